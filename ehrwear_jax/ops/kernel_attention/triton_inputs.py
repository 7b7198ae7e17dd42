"""Arranges a problem for the kernels of `triton`: padding, layouts, factors of K, and which tiles are of which class.

Keys are cut into *stretches*: a row never sees keys of two of them, so contexts that stand packed in a row, each with a
clock of its own, are apart. A key's decay is taken up to the newest key of its own stretch in its block of keys. Where
a row sees only a part of a block, the newest key c of the stretch may be newer than the row's own newest key n; the
table `span` holds the longest such c - n of a tile's rows, by which the kernels choose what K's factors can carry.
"""

import math

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention import fused, reference, tiles, triton_program
from ehrwear_jax.ops.kernel_attention.triton_program import Static, Tuning

Arrays = dict[str, tuple[str, jax.Array]]


def pad(x: jax.Array, axis: int, size: int, value: float = 0) -> jax.Array:
    """x with `value` behind it, up to `size` along an axis."""
    return jnp.pad(x, [(0, size - n if a == axis else 0) for a, n in enumerate(x.shape)], constant_values=value)


def static_of(spec: fused.Spec, problem: dict[str, jax.Array], tuning: Tuning, by_key: bool = False) -> Static:
    """What a kernel knows when it is compiled; tiles are no larger than the problem."""
    block_q, block_k = (
        min(size, triton_program.power(problem[n].shape[2]))
        for size, n in ((tuning.block_q, "q"), (tuning.block_k, "k"))
    )
    edge, masked = (min(n, block_q if by_key else block_k) for n in (tuning.edge, tuning.masked))
    if spec.kind != "mixture":
        masked = edge
    n_component, has_bias = problem["row"].shape[-1], problem["extra_q"].shape[-1] > 0
    edge, dtype = min(edge, masked), problem["q"].dtype
    return Static(spec, block_q, block_k, edge, masked, dtype, n_component, has_bias, by_key, tuning.reach)


def arrange(static: Static, problem: dict[str, jax.Array], **more: jax.Array) -> Arrays:
    """What a kernel reads: name -> (axes, array), where b, h and . mark batch, head and what a program sees whole.

    more: further arrays [B, H, T, ...] by row.
    """
    kind, block_q, block_k = static.spec.kind, static.block_q, static.block_k
    n_query, n_key = problem["q"].shape[2], problem["k"].shape[2]
    n_row, n_col = n_query + -n_query % block_q, n_key + -n_key % block_k

    def by_token(x_BxHxLxD, size):
        x_BxLxHxD = jnp.moveaxis(pad(x_BxHxLxD, 3, triton_program.power(x_BxHxLxD.shape[3])), 1, 2)
        return "b.h.", pad(x_BxLxHxD, 1, size)

    start, stop, newest = (pad(problem[n], 1, n_row) for n in ("start", "stop", "newest"))
    arrays = {
        "q": by_token(problem["q"], n_row),
        "k": by_token(problem["k"], n_col),
        "v": by_token(problem["v"], n_col),
        "start": ("b.", start),
        "stop": ("b.", stop),
    }
    if static.spec.dropout_rate > 0.0:
        arrays |= _dropout_words(problem, n_row, n_col)
    for name, x in more.items():
        # padding: no query, which exp(s - log_sum_exp) = 0 says best
        padded = pad(x, 2, n_row, triton_program.HIGHEST) if name == "log_sum_exp" else x
        arrays[name] = ("bh.", pad(padded, 2, n_row)) if x.ndim == 3 else by_token(x, n_row)
    if static.has_bias:
        width = triton_program.power(problem["extra_q"].shape[-1])
        arrays["extra_q"] = "b..", pad(pad(problem["extra_q"], 2, width), 1, n_row)
        arrays["extra_k"] = "bh..", pad(pad(problem["extra_k"], 3, width), 2, n_col)
    oldest_BxM = None
    if kind != "none":
        time = pad(problem["k_time"], 1, n_col)
        arrays |= {"newest": ("b.", newest), "q_time": ("b.", pad(problem["q_time"], 1, n_row))}
        arrays |= {"time": ("b.", time), "head": ("h.", problem["head"])}
        # padding of the quadratic's rows divides
        arrays["row"] = "bh..", pad(problem["row"], 2, n_row, 1 if kind == "quadratic" else 0)
    plain_BxMxN, seen_BxMxL = _visible(static, start, stop, n_col)
    if kind == "mixture":
        c_BxS = _newest_of_stretch(stretches(start, stop, n_col), time, block_k)
        arrays |= _decay_factors(static, problem, time, c_BxS, contracted="delta" in more and not static.by_key)
        later = pad(problem["later"], 1, n_row)
        span_BxMxN = spans(static, start, stop, jnp.where(later, -jnp.inf, newest), c_BxS)
        arrays["span"] = "b..", jnp.swapaxes(span_BxMxN, 1, 2) if static.by_key else span_BxMxN
        gap = _blocks(jnp.where(start < stop, arrays["q_time"][1] - newest, 0.0), block_q)
        is_direct = jnp.max(span_BxMxN, axis=2) * jnp.max(problem["head"]) > static.reach
        arrays["apart"] = "b.", (jnp.any(gap > 0.0, axis=2) & is_direct).astype(jnp.int32)
        oldest_BxM = jnp.min(jnp.where(_blocks(start >= stop, block_q), jnp.inf, _blocks(newest, block_q)), axis=-1)
        # where a row sees all of a block, that is of one stretch
        plain_BxMxN &= _blocks(c_BxS, block_k)[..., 0][:, None] <= oldest_BxM[..., None]
    tables = [jnp.swapaxes(x, 1, 2) if static.by_key else x for x in (plain_BxMxN, seen_BxMxL)]
    return arrays | {"bounds": ("b..", bounds(*tables))}


def _dropout_words(problem, n_row, n_col):
    """Words of all rows and columns, see reference.kept_by."""
    n_batch, n_head = problem["q"].shape[:2]
    batch, head, query, key = (
        first + jnp.arange(n) for first, n in zip(problem["first"], (n_batch, n_head, n_row, n_col), strict=True)
    )
    seed, index = problem["seed"], (batch[:, None, None], head[None, :, None], query[None, None])
    words = dict(zip(("row_word", "row_more"), reference.dropout_words(seed, *index), strict=True))
    return {n: ("bh.", x) for n, x in words.items()} | {"column_word": (".", reference.dropout_word(seed, key))}


def _blocks(x_BxL, block):
    return x_BxL.reshape(x_BxL.shape[0], -1, block)


def _visible(static, start, stop, n_col):
    """Which tiles all rows see whole, bool [B, M, N], and which ones, as wide as masked tiles, some row sees at all."""

    def extent(block):
        """(least, largest start, least, largest stop) of the rows of a block that see anything, [B, M, 1] each."""
        begin, end = _blocks(start, block), _blocks(stop, block)
        empty = begin >= end
        least = [jnp.min(jnp.where(empty, n_col, x), -1)[..., None] for x in (begin, end)]
        most = [jnp.max(jnp.where(empty, 0, x), -1)[..., None] for x in (begin, end)]
        return least[0], most[0], least[1], most[1]

    def low(block):
        return jnp.arange(n_col // block)[None, None] * block

    block_q, block_k = static.block_q, static.block_k
    fine_q, fine_k = (static.masked, block_k) if static.by_key else (block_q, static.masked)
    first, _, _, last = extent(fine_q)
    seen = (first < low(fine_k) + fine_k) & (last > low(fine_k))
    first, begin, end, last = extent(block_q)
    return (begin <= low(block_k)) & (end >= low(block_k) + block_k) & (first < last), seen


def stretches(start_BxT: jax.Array, stop_BxT: jax.Array, n_key: int) -> jax.Array:
    """A number for each key, int32 [B, S], the same for all keys that a row sees; it grows with the position."""
    n_batch = start_BxT.shape[0]
    # how many rows see both a key and the next one
    change = jnp.zeros((n_batch, n_key + 1), jnp.int32)
    some = (stop_BxT > start_BxT).astype(jnp.int32)
    row = jnp.arange(n_batch)[:, None]
    change = change.at[row, start_BxT].add(some).at[row, jnp.maximum(stop_BxT - 1, 0)].add(-some)
    apart = jnp.cumsum(change, axis=1)[:, : n_key - 1] <= 0
    return jnp.pad(jnp.cumsum(apart, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def _newest_of_stretch(stretch_BxS, time_BxS, block):
    """Newest time of each key's own stretch within its block, [B, S]."""
    stretch, time = _blocks(stretch_BxS, block), _blocks(time_BxS, block)
    same = stretch[..., :, None] == stretch[..., None, :]
    return jnp.max(jnp.where(same, time[..., None, :], -jnp.inf), axis=-1).reshape(time_BxS.shape)


def spans(static: Static, start: jax.Array, stop: jax.Array, newest: jax.Array, c_BxS: jax.Array) -> jax.Array:
    """[B, M, N]: the longest c - n of the rows that see anything of a tile, at least 0; inf where n is -inf.

    start, stop, newest: [B, T], whole blocks. c_BxS: newest time of each key's stretch within its block.
    """
    n_batch, n_col = c_BxS.shape
    low = jnp.arange(n_col // static.block_k) * static.block_k
    low = low[None, None]
    last = jnp.clip(stop[..., None] - 1, low, low + static.block_k - 1)
    c_BxTxN = jnp.take_along_axis(c_BxS, last.reshape(n_batch, -1), axis=1).reshape(last.shape)
    sees = (start[..., None] < jnp.minimum(stop[..., None], low + static.block_k)) & (stop[..., None] > low)
    ahead = jnp.where(sees, c_BxTxN - newest[..., None], 0.0)
    return jnp.maximum(jnp.max(ahead.reshape(n_batch, -1, static.block_q, low.size), axis=2), 0.0)


def _decay_factors(static, problem, time_BxL, c_BxL, contracted):
    """Arrays of a mixture: the newest time of each key's stretch in its block, and its decay up to that time.

    contracted: with what the gradients to the rows are summed with.
    """
    lag = jnp.maximum(c_BxL - time_BxL, 0.0)[:, None, :, None]
    log_b = -problem["head"][None, :, None] * lag
    b = jnp.exp(log_b)
    high, *rest = fused.parts(b, static.dtype)
    arrays = {"c": ("b.", c_BxL), "b": ("bh..", _columns(static, high, *rest, *rest and [high]))}
    if contracted:
        sees = (problem["stop"] > problem["start"])[:, None, :, None]
        alive = jnp.max(jnp.where(sees, problem["row"], -jnp.inf), 2, keepdims=True) > math.log(tiles.ALIVE)
        is_near = jnp.min(jnp.where(alive, log_b, 0.0), 3, keepdims=True) > math.log(tiles.NEAR)
        less = jnp.where(is_near, jnp.expm1(log_b), b)
        arrays["contracted"] = "bh..", jnp.swapaxes(_columns(static, b, less, b * lag, is_near * 1.0), 2, 3)
    return arrays


def _columns(static, *sets_BxHxSxR):
    """[B, H, S, C]: up to three sets of components side by side, and one column more."""
    return pad(jnp.concatenate(sets_BxHxSxR, axis=-1), 3, static.n_column)


def bounds(plain_BxMxN: jax.Array, seen_BxMxL: jax.Array) -> jax.Array:
    """Where block m has work: int32 [B, M, 6] (a, b, c, d, start, stop).

    [start, stop) is the longest run of plain blocks; [a, b) and [c, d) are what is seen beside it, in the units of L.
    """
    n, n_fine = plain_BxMxN.shape[2], seen_BxMxL.shape[2]
    at = jnp.arange(n)[None, None]
    length = at - jax.lax.cummax(jnp.where(plain_BxMxN, -1, at), axis=2)  # of the run that ends here
    stop = jnp.argmax(length, axis=2) + 1
    start = stop - jnp.max(length, axis=2)
    some = jnp.any(seen_BxMxL, axis=2)
    lo = jnp.where(some, jnp.argmax(seen_BxMxL, axis=2), 0)
    hi = jnp.where(some, n_fine - jnp.argmax(seen_BxMxL[..., ::-1], axis=2), 0)
    before, after = (jnp.where(start < stop, x * (n_fine // n), lo) for x in (start, stop))
    # rows that see nothing may begin or end a plain block, which then reaches beyond what is seen
    lo, hi = jnp.minimum(lo, before), jnp.maximum(hi, after)
    return jnp.stack([lo, before, after, hi, start, stop], axis=-1).astype(jnp.int32)
