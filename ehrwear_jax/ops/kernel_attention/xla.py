"""Implements kernel attention by blocks in plain XLA: memory linear in the number of keys, on any platform.

The online softmax of flash attention (Dao et al. 2022) over tiles of queries and keys, forward and backward, with K as
a factor beside exp(logit) instead of a logarithm inside it; `tiles` has the mathematics of a tile. A query block visits
its visible key blocks from the newest to the oldest, so that it can stop where the rest is provably negligible.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention import fused, target, tiles

BLOCK = 256  # rows and columns of a tile
# ... on a CPU, for calls with so many sequences times heads: tiles whose intermediate arrays stay in its cache
CPU_BLOCKS = ((32, 64), (8, 128))


def default_block(n_batch: int, n_head: int, on_cpu: bool) -> int:
    """Rows and columns of a tile."""
    fitting = [block for least, block in CPU_BLOCKS if on_cpu and n_batch * n_head >= least]
    return fitting[0] if fitting else BLOCK


def kernel_attention_xla(
    q_BxTxHxD: jax.Array,
    k_BxSxHxD: jax.Array,
    v_BxSxHxD: jax.Array,
    *,
    block_q: int | None = None,
    block_k: int | None = None,
    **arguments: Any,
) -> tuple[jax.Array, jax.Array]:
    """Arguments, results and errors as in `reference`; block_q, block_k: rows and columns of a tile (default_block)."""
    on_cpu = target.platform() == "cpu"
    default = default_block(q_BxTxHxD.shape[0], q_BxTxHxD.shape[2], on_cpu)
    block_q, block_k = block_q or default, block_k or default
    # CPUs have no fast product of bfloat16
    narrow = q_BxTxHxD.dtype == jnp.bfloat16 and not on_cpu
    return fused.call(
        (_forward, _backward),
        q_BxTxHxD,
        k_BxSxHxD,
        v_BxSxHxD,
        **arguments,
        block_q=block_q,
        block_k=block_k,
        dtype=jnp.bfloat16 if narrow else jnp.promote_types(q_BxTxHxD.dtype, jnp.float32),
        # what is skipped differs from row to row, and a CPU gains by it
        one_row_at_a_time=on_cpu and arguments["skip_tolerance"] > 0.0 and k_BxSxHxD.shape[1] > block_k,
    )


def _blocked(x, axis, block):
    """x cut along an axis into blocks, which come first; padded by zeros."""
    x = jnp.pad(x, [(0, -x.shape[axis] % block if a == axis else 0) for a in range(x.ndim)])
    shape = (*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _unblocked(x, axis, size):
    """Inverse of _blocked."""
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape((*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :]))
    return jax.lax.slice_in_dim(x, 0, size, axis=axis)


def _query_blocks(spec, problem, **more):
    """What the loop over query blocks reads, and the range [lo, hi) of key blocks that each of them sees."""
    n_head, n_key = problem["k"].shape[1:3]
    extra = jnp.repeat(problem["extra_q"][:, None], n_head, axis=1)
    per_head = {"q": jnp.concatenate([problem["q"], extra], axis=-1), "row": problem["row"], **more}
    blocks = {name: _blocked(x, 2, spec.block_q) for name, x in per_head.items()}
    for name in ("q_time", "newest", "start", "stop"):
        blocks[name] = _blocked(problem[name], 1, spec.block_q)  # padding sees [0, 0): nothing
    seen = blocks["stop"] > blocks["start"]
    lo = jnp.where(seen, blocks["start"] // spec.block_k, -(-n_key // spec.block_k))
    hi = jnp.where(seen, -(-blocks["stop"] // spec.block_k), 0)
    return blocks | {"lo": jnp.min(lo, axis=(1, 2)), "hi": jnp.max(hi, axis=(1, 2)), "index": jnp.arange(lo.shape[0])}


def _key_blocks(spec, problem):
    k = jnp.concatenate([problem["k"], problem["extra_k"]], axis=-1)
    blocks = {"k": _blocked(k, 2, spec.block_k), "v": _blocked(problem["v"], 2, spec.block_k)}
    blocks["time"] = _blocked(problem["k_time"], 1, spec.block_k)
    real = _blocked(jnp.ones_like(problem["k_time"], jnp.bool_), 1, spec.block_k)  # padding is False
    return blocks | {"newest": jnp.max(jnp.where(real, blocks["time"], -jnp.inf), axis=-1)}


def _is_one_block(spec, problem):
    """A single block of keys needs no loop, and is best taken directly: it has every query's newest key."""
    return problem["k"].shape[2] <= spec.block_k


def _forward(spec, problem):
    """Saves the oldest key block that each query block visited, and whether all tiles were taken directly."""
    n_query = problem["q"].shape[2]
    queries, keys = _query_blocks(spec, problem), _key_blocks(spec, problem)
    bounds = tiles.key_bounds(keys) if spec.skip_tolerance > 0.0 else None
    dtype = jnp.promote_types(problem["q"].dtype, jnp.float32)

    def run(direct):
        def one_block(block):
            shape = block["q"].shape[:3]
            peak, total = jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, dtype)
            start = (block["hi"] - 1, jnp.bool_(True), peak, total, jnp.zeros((*shape, keys["v"].shape[-1]), dtype))

            def visit(state):
                j, _, *sums = state
                tile = tiles.Tile(spec, block, jax.tree.map(lambda x: x[j], keys), j, problem)
                sums = tile.accumulate(direct, *sums)
                more = jnp.bool_(True)
                if bounds is not None:
                    more = ~tiles.rest_is_negligible(spec, block, bounds, j, problem["head"], *sums[:2])
                return (j - 1, more, *sums)

            if _is_one_block(spec, problem):
                last, _, peak, total, acc = visit((jnp.int32(0), *start[1:]))
            else:
                last, _, peak, total, acc = jax.lax.while_loop(lambda s: (s[0] >= block["lo"]) & s[1], visit, start)
            safe = jnp.where(total > 0, total, 1.0)
            log_sum_exp = jnp.where(total > 0, peak + jnp.log(safe), -jnp.inf)
            sees = (block["stop"] > block["start"])[:, None]
            lost = jnp.any(sees & (total < tiles.SMALLEST_SUM))
            return acc / safe[..., None], log_sum_exp, last + 1, lost

        out, log_sum_exp, oldest, lost = jax.lax.map(one_block, queries)
        return _unblocked(out, 2, n_query), _unblocked(log_sum_exp, 2, n_query), oldest, jnp.any(lost)

    if spec.kind != "mixture" or _is_one_block(spec, problem):
        out, log_sum_exp, *saved = run(True)
        return out, log_sum_exp, tuple(saved)
    *found, lost = run(jnp.bool_(False))
    # factors that underflow together with the weights of all keys of a row: once more, in logarithms
    out, log_sum_exp, oldest = jax.lax.cond(lost, lambda: run(jnp.bool_(True))[:3], lambda: tuple(found))
    return out, log_sum_exp, (oldest, lost)


def _backward(spec, problem, saved, d_out, log_sum_exp, delta):
    oldest, direct = saved
    if spec.kind != "mixture" or _is_one_block(spec, problem):
        direct = True
    depth, n_query, n_key = problem["q"].shape[-1], problem["q"].shape[2], problem["k"].shape[2]
    queries = _query_blocks(spec, problem, d_out=d_out, log_sum_exp=log_sum_exp, delta=delta) | {"lo": oldest}
    keys = _key_blocks(spec, problem)
    dtype = jnp.promote_types(problem["q"].dtype, jnp.float32)

    def one_block(carry, block):
        def visit(state):
            j, dk, dv, *per_query = state
            tile = tiles.Tile(spec, block, jax.tree.map(lambda x: x[j], keys), j, problem)
            to_k, to_v, *more = tile.gradients(direct)
            dk, dv = dk.at[j].add(to_k), dv.at[j].add(to_v)
            return (j - 1, dk, dv, *(a + b for a, b in zip(per_query, more, strict=True)))

        zeros = [jnp.zeros(block[name].shape, dtype) for name in ("q", "row", "row")]
        if _is_one_block(spec, problem):
            state = visit((jnp.int32(0), *carry, *zeros))
        else:
            state = jax.lax.while_loop(lambda s: s[0] >= block["lo"], visit, (block["hi"] - 1, *carry, *zeros))
        return state[1:3], state[3:]

    zeros = tuple(jnp.zeros(keys[name].shape, dtype) for name in ("k", "v"))
    (dk, dv), (dq, d_row, d_head) = jax.lax.scan(one_block, zeros, queries)
    dk = _unblocked(dk, 2, n_key)
    return {
        "q": _unblocked(dq, 2, n_query)[..., :depth],
        "k": dk[..., :depth],
        "extra_k": dk[..., depth:],
        "v": _unblocked(dv, 2, n_key),
        "row": _unblocked(d_row, 2, n_query),
        "head": jnp.sum(_unblocked(d_head, 2, n_query), axis=(0, 2)),
    }
