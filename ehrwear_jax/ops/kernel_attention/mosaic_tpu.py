"""Implements kernel attention as Pallas kernels for TPUs (Mosaic), forward and backward.

Flash attention (Dao et al. 2022) with K as a factor: `tiles` has the mathematics, `mosaic_tpu_tile` its form on a TPU.
The forward kernel and that of the queries' gradients visit the key blocks of one query block, newest first; that of the
keys' gradients visits the query blocks of one key block. Tiles that nobody sees come last and cost neither a copy nor
arithmetic. Everything a kernel reads is laid out beforehand as it is used, so that no kernel transposes a large block.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ehrwear_jax.ops.kernel_attention import fused, target, tiles
from ehrwear_jax.ops.kernel_attention.mosaic_tpu_tile import ROWS, Tile

BLOCK_Q, BLOCK_K = 256, 256
TILES_PER_STEP = 4  # at most; a step of the grid has a price of its own
LANES = 128  # columns of a register: blocks are multiples of it
NO_TILE = 2**30  # the oldest key block of queries that visited none
VMEM_BYTES = 32 * 2**20  # room for tiles of 512 x 512; the compiler allows 16 MiB unless told otherwise

# Blocks that kernels read and write: axes, B batch, H head, Q query, K key, 1 whole. E: depth and bias columns.
LAYOUT = {
    "q": "BH1Q",  # [E, Q]
    "range": "B1Q",  # [2, Q] int32: start, stop
    "times": "B1Q",  # [2, Q]: time, newest visible
    "row": "BH1Q",  # [R, Q]
    "head": "H11",  # [R, 1]
    "stats": "BH1Q",  # [2, Q]: log-sum-exp and delta; forward writes log-sum-exp, sum of weights, oldest block
    "d_out": "BH1Q",  # [D, Q]
    "k": "BHK1",  # [K, E]
    "k_t": "BH1K",  # [E, K]
    "v": "BHK1",  # [K, D]
    "v_t": "BH1K",  # [D, K]
    "k_time": "B1K",  # [1, K]
}
KERNEL_INPUTS = ("times", "row", "head", "k_time")


def kernel_attention_mosaic_tpu(
    q_BxTxHxD: jax.Array,
    k_BxSxHxD: jax.Array,
    v_BxSxHxD: jax.Array,
    *,
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
    interpret: Any = None,
    **arguments: Any,
) -> tuple[jax.Array, jax.Array]:
    """Kernel attention on TPUs; arguments, results and errors as in `reference`.

    Args:
      q_BxTxHxD, k_BxSxHxD, v_BxSxHxD: float32 (products in full precision) or bfloat16 (products of bfloat16).
      block_q, block_k: rows and columns of a tile, rounded up to multiples of 128 on a TPU.
      interpret: True runs the kernels by Pallas' interpreter, on any platform; pltpu.InterpretParams() by that which
        simulates a TPU's memories, slowly. None compiles them.
      arguments: those of `reference.kernel_attention_reference`, all of them; times in days.

    Returns:
      (out_BxTxHxD in q's dtype, log_sum_exp_BxHxT float32).

    Raises:
      NotImplementedError: no TPU and no interpret; a dtype that is neither float32 nor bfloat16.
    """
    if not interpret and target.platform() != "tpu":
        raise NotImplementedError(f"mosaic_tpu runs on TPUs, and this is a {target.platform()}; see `interpret`")
    if any(x.dtype not in (jnp.float32, jnp.bfloat16) for x in (q_BxTxHxD, k_BxSxHxD, v_BxSxHxD)):
        raise NotImplementedError(f"mosaic_tpu takes float32 or bfloat16, not {q_BxTxHxD.dtype}")
    return fused.call(
        (_forward, _backward),
        q_BxTxHxD,
        k_BxSxHxD,
        v_BxSxHxD,
        **arguments,
        block_q=block_q,
        block_k=block_k,
        dtype=q_BxTxHxD.dtype,
        options=(interpret,),
    )


# ------------------------------------------------------------------------------------------------- what kernels read


def _spec_in_use(spec):
    """spec with blocks that Mosaic can tile; the interpreter takes any."""
    if spec.options[0]:
        return spec
    return dataclasses.replace(spec, block_q=_up(spec.block_q, LANES), block_k=_up(spec.block_k, LANES))


def _up(n, multiple):
    return -(-n // multiple) * multiple


def _per_step(n, block):
    """Tiles that a step of the grid visits along an axis of n entries: at most TILES_PER_STEP, alike in all steps."""
    n_tile = _up(n, block) // block
    return _up(n_tile, -(-n_tile // TILES_PER_STEP)) // -(-n_tile // TILES_PER_STEP)


def _padded(x, axis, multiple, value=0):
    pads = [(0, _up(x.shape[axis], multiple) - x.shape[axis] if a == axis % x.ndim else 0) for a in range(x.ndim)]
    return jnp.pad(x, pads, constant_values=value)


def _of_blocks(reduce, x, block):
    """[..., blocks]: a reduction over each block of the last axis.

    As rows of a matrix: the compiler gives the blocks of a higher rank a layout that it then cannot reshape to.
    """
    return reduce(x.reshape(-1, block), axis=1).reshape(*x.shape[:-1], -1)


def _inputs(spec, problem):
    """(inputs by name as in LAYOUT, scalars by name): padded to whole blocks; padded queries see nothing.

    Scalars [B, 1 or H, blocks], prefetched: per key block its newest time; per query block the range [lo, hi) of key
    blocks that it sees; with skipping the largest norm of keys (norm) and their newest time (older), both of all keys
    up to and with a block.
    """
    n_head, n_key = problem["k"].shape[1:3]
    n_batch, n_query = problem["q_time"].shape
    all_q, all_k = (b * _per_step(n, b) for n, b in ((n_query, spec.block_q), (n_key, spec.block_k)))
    extra_q = jnp.broadcast_to(problem["extra_q"][:, None], (n_batch, n_head, *problem["extra_q"].shape[1:]))
    q = _padded(jnp.concatenate([problem["q"], extra_q], axis=-1), 2, all_q)
    k = _padded(jnp.concatenate([problem["k"], problem["extra_k"]], axis=-1), 2, all_k)
    v = _padded(problem["v"], 2, all_k)
    inputs = {"q": jnp.swapaxes(q, 2, 3), "k": k, "k_t": jnp.swapaxes(k, 2, 3), "v": v, "v_t": jnp.swapaxes(v, 2, 3)}
    inputs["range"] = _padded(jnp.stack([problem["start"], problem["stop"]], axis=1), 2, all_q)
    n_block_k = k.shape[2] // spec.block_k
    scalars = {}
    if spec.kind != "none":
        inputs["times"] = _padded(jnp.stack([problem["q_time"], problem["newest"]], axis=1), 2, all_q)
        inputs["k_time"] = _padded(problem["k_time"][:, None], 2, all_k)
        # log p = -1e30 makes the weight of a padded component exactly 0
        row = _padded(jnp.swapaxes(problem["row"], 2, 3), 2, ROWS, -1e30 if spec.kind == "mixture" else 1.0)
        inputs["row"] = _padded(row, 3, all_q)
        inputs["head"] = _padded(problem["head"][..., None], 1, ROWS)
        real = _padded(problem["k_time"], 1, all_k, -jnp.inf)
        scalars["newest"] = _of_blocks(jnp.max, real, spec.block_k)[:, None]
    start, stop = (inputs["range"][:, i] for i in (0, 1))
    seen = stop > start
    lo = _of_blocks(jnp.min, jnp.where(seen, start // spec.block_k, n_block_k), spec.block_q)
    hi = _of_blocks(jnp.max, jnp.where(seen, -(-stop // spec.block_k), 0), spec.block_q)
    scalars |= {"lo": lo[:, None], "hi": hi[:, None]}
    if spec.skip_tolerance > 0.0:
        norm = jnp.linalg.norm(k.astype(jnp.float32), axis=-1)
        scalars["norm"] = jax.lax.cummax(_of_blocks(jnp.max, norm, spec.block_k), axis=2)
        if spec.kind != "none":
            scalars["older"] = jax.lax.cummax(scalars["newest"], axis=2)
    return inputs, scalars


def _flags(problem, direct):
    """int32 [7]: whether every tile is to be taken directly, the first indices, the seed of dropout."""
    seed = jax.lax.bitcast_convert_type(problem["seed"], jnp.int32)
    return jnp.concatenate([jnp.asarray(direct, jnp.int32)[None], problem["first"], seed])


# -------------------------------------------------------------------------------------------------------- the kernels


def _launch(spec, problem, inputs, scalars, direct, *, names, outputs, inner, scratch=(), visit, cost):
    """Runs a kernel over all tiles that some row sees.

    Args:
      names: of the inputs. outputs: name -> (layout, size of its "1", dtype).
      inner: "K" or "Q", the axis that the last, sequential axis of the grid goes along; outputs belong to the other.
      scratch: memory that lasts from one step to the next.
      visit: object with start(refs), tile(tile, refs, works) and stop(refs), of references by name and to scratch.
      cost: products of a [K, Q] tile, each as deep as q.

    Returns:
      Outputs by name.
    """
    n_batch, n_head, wide, n_query = inputs["q"].shape
    count = {"Q": n_query // spec.block_q, "K": inputs["k"].shape[2] // spec.block_k}
    outer = "QK".replace(inner, "")
    sizes = {"Q": spec.block_q, "K": spec.block_k}
    per_step = _per_step(problem["q" if inner == "Q" else "k"].shape[2], sizes[inner])
    blocks = sizes | {inner: sizes[inner] * per_step}
    bounds = ("lo", "hi") if inner == "K" else ("first_q", "last_q")

    def scalar(named, b, h, name, at):
        n_own, size = scalars[name].shape[1:]
        return named[name][(b * n_own + (h if n_own > 1 else 0)) * size + at]

    def group(named, b, h, o, step):
        """Which tiles of the inner axis a step has; steps without work repeat the last, which costs no copy."""
        lo, hi = (scalar(named, b, h, n, o) for n in bounds)
        lo, hi = lo // per_step, (hi + per_step - 1) // per_step
        at = hi - 1 - step
        return jnp.clip(at, jnp.minimum(lo, count[inner] // per_step - 1), None), at >= lo

    def index_map(layout):
        def at(b, h, o, step, *scalar_refs):
            named = dict(zip(["flags", *scalars], scalar_refs, strict=True))
            where = {"B": b, "H": h, outer: o, "1": 0}
            if inner in layout:
                where[inner] = group(named, b, h, o, step)[0]
            return tuple(where[axis] for axis in layout)

        return at

    def block_spec(layout, shape):
        return pl.BlockSpec(
            tuple(None if a in "BH" else blocks.get(a, n) for a, n in zip(layout, shape, strict=True)),
            index_map(layout),
        )

    def body(*refs):
        names_all = ["flags", *scalars, *names, *outputs]
        named = dict(zip(names_all, refs, strict=False)) | {"scratch": refs[len(names_all) :]}
        b, h, o, step = (pl.program_id(a) for a in range(4))
        pl.when(step == 0)(lambda: visit.start(named))
        here = functools.partial(scalar, named, b, h)
        lo, hi = (here(n, o) for n in bounds)
        at, works = group(named, b, h, o, step)

        def one(n, _):
            number = at * per_step + per_step - 1 - n  # newest first
            i, j = (o, number) if inner == "K" else (number, o)
            seen = works & (lo <= number) & (number < hi)
            if inner == "Q":
                seen = seen & (here("lo", i) <= j) & (j < here("hi", i))
            cut = pl.ds(pl.multiple_of((per_step - 1 - n) * sizes[inner], sizes[inner]), sizes[inner])
            tile_refs = {
                name: named[name].at[tuple(cut if a == inner else slice(None) for a in LAYOUT[name] if a not in "BH")]
                if inner in LAYOUT[name]
                else named[name]
                for name in names
            }
            tile = Tile(spec, problem["head"].shape[1], tile_refs, (b, h, i, j), named["flags"], here)
            visit.tile(tile, named, seen)
            return 0

        jax.lax.fori_loop(0, per_step, one, 0)
        pl.when(step == pl.num_programs(3) - 1)(lambda: visit.stop(named))

    dims = {"B": n_batch, "H": n_head, "Q": n_query, "K": count["K"] * spec.block_k}
    out_shapes = [
        jax.ShapeDtypeStruct(tuple(dims.get(a, size) for a in layout), dtype)
        for layout, size, dtype in outputs.values()
    ]
    n_element = n_batch * n_head * n_query * count["K"] * spec.block_k
    found = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1 + len(scalars),
            grid=(n_batch, n_head, count[outer], count[inner] // per_step),
            in_specs=[block_spec(LAYOUT[n], inputs[n].shape) for n in names],
            out_specs=[block_spec(o[0], s.shape) for o, s in zip(outputs.values(), out_shapes, strict=True)],
            scratch_shapes=scratch,
        ),
        out_shape=out_shapes,
        interpret=spec.options[0] or False,
        name=f"kernel_attention_{'_'.join(outputs)}",
        cost_estimate=pl.CostEstimate(
            flops=2 * cost * n_element * wide,
            transcendentals=n_element,
            bytes_accessed=sum(inputs[n].size * inputs[n].dtype.itemsize for n in names) * count[outer],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
    )(_flags(problem, direct), *(x.ravel() for x in scalars.values()), *(inputs[n] for n in names))
    return dict(zip(outputs, found, strict=True))


def _both_ways(tile, works, run):
    """run(factored) where there is work, factored or directly as the tile allows."""
    if tile.spec.kind != "mixture":
        pl.when(works)(functools.partial(run, False))
        return

    @pl.when(works)
    def _():
        directly = tile.taken_directly()
        pl.when(directly)(functools.partial(run, False))
        pl.when(jnp.logical_not(directly))(functools.partial(run, True))


class _Forward:
    """The online softmax; scratch: its maximum and sum [1, Q], and with skipping whether to stop and the last tile."""

    def __init__(self, spec) -> None:
        self.skips = spec.skip_tolerance > 0.0
        self.scratch = [pltpu.VMEM((1, spec.block_q), jnp.float32)] * 2
        self.scratch += [pltpu.SMEM((2,), jnp.int32)] if self.skips else []

    def start(self, refs):
        peak_ref, total_ref, *state = refs["scratch"]
        peak_ref[...] = jnp.full(peak_ref.shape, -jnp.inf, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        refs["out"][...] = jnp.zeros(refs["out"].shape, jnp.float32)
        if self.skips:
            state[0][0], state[0][1] = 0, NO_TILE

    def tile(self, tile, refs, works):
        peak_ref, total_ref, *state = refs["scratch"]
        if self.skips:
            works = works & (state[0][0] == 0)
        _both_ways(tile, works, functools.partial(tile.accumulate, peak_ref, total_ref, refs["out"]))
        if self.skips:

            @pl.when(works)
            def _():
                state[0][0] = tile.rest_is_negligible(peak_ref[...], total_ref[...]).astype(jnp.int32)
                state[0][1] = tile.at[3]

    def stop(self, refs):
        peak, total = (ref[...] for ref in refs["scratch"][:2])
        safe = jnp.where(total > 0.0, total, 1.0)
        refs["out"][...] = refs["out"][...] / safe
        refs["stats"][0:1] = jnp.where(total > 0.0, peak + jnp.log(safe), -jnp.inf)
        refs["stats"][1:2] = total
        if self.skips:
            refs["stats"][2:3] = jnp.full(total.shape, refs["scratch"][2][1].astype(jnp.float32))


class _Backward:
    """Gradients of the named outputs, by a method of Tile that adds to them."""

    def __init__(self, method, names) -> None:
        self.method, self.names = method, names

    def start(self, refs):
        for name in self.names:
            refs[name][...] = jnp.zeros(refs[name].shape, jnp.float32)

    def tile(self, tile, refs, works):
        _both_ways(tile, works, functools.partial(getattr(tile, self.method), [refs[n] for n in self.names]))

    def stop(self, refs):
        pass


def _names(spec, *names):
    return [*names, "range", *(KERNEL_INPUTS if spec.kind != "none" else ())]


def _forward(spec, problem):
    """Saves whether all tiles were taken directly, and the oldest key block that each query block visited."""
    spec = _spec_in_use(spec)
    inputs, scalars = _inputs(spec, problem)
    n_query, depth = problem["q"].shape[2], problem["v"].shape[3]
    visit = _Forward(spec)

    def run(direct):
        found = _launch(
            spec,
            problem,
            inputs,
            scalars,
            direct,
            names=_names(spec, "q", "k", "v_t"),
            outputs={"out": ("BH1Q", depth, jnp.float32), "stats": ("BH1Q", 3 if visit.skips else 2, jnp.float32)},
            inner="K",
            scratch=visit.scratch,
            visit=visit,
            cost=2,
        )
        stats = found["stats"]
        oldest = stats[:, :, 2, :: spec.block_q].astype(jnp.int32) if visit.skips else scalars["lo"]
        out = jnp.swapaxes(found["out"][..., :n_query], 2, 3)
        return out, stats[:, :, 0, :n_query], oldest, stats[:, :, 1, :n_query]

    *found, total = run(False)
    sees = (problem["stop"] > problem["start"])[:, None]
    lost = jnp.any(sees & (total < tiles.SMALLEST_SUM)) & (spec.kind == "mixture")
    if spec.kind == "mixture":
        # factors that underflow together with the weights of all keys of a row: once more, in logarithms
        found = jax.lax.cond(lost, lambda: list(run(True)[:3]), lambda: found)
    out, log_sum_exp, oldest = found
    return out, log_sum_exp, (lost, oldest)


def _backward(spec, problem, saved, d_out, log_sum_exp, delta):
    direct, oldest = saved
    spec = _spec_in_use(spec)
    inputs, scalars = _inputs(spec, problem)
    scalars["lo"] = oldest
    n_query, depth = problem["q"].shape[2:]
    n_key = problem["k"].shape[2]
    wide, padded_q = inputs["q"].shape[2:]  # depth and the columns of the bias
    inputs["d_out"] = _padded(jnp.swapaxes(d_out.astype(problem["v"].dtype), 2, 3), 3, padded_q)
    safe = jnp.where(jnp.isfinite(log_sum_exp), log_sum_exp, 0.0)
    inputs["stats"] = _padded(jnp.stack([safe, delta], axis=2), 3, padded_q)

    def launch(method, names, outputs, inner, cost):
        return _launch(
            spec,
            problem,
            inputs,
            scalars,
            direct,
            names=_names(spec, "q", "k", "v", "d_out", "stats", *names),
            outputs={name: (*rest, jnp.float32) for name, rest in outputs.items()},
            inner=inner,
            visit=_Backward(method, list(outputs)),
            cost=cost,
        )

    to_queries = {"dq": ("BH1Q", wide)}
    if spec.kind != "none":
        to_queries |= dict.fromkeys(("d_row", "d_head"), ("BH1Q", inputs["row"].shape[2]))
    grads = launch("to_queries", ["k_t"], to_queries, "K", 3)
    # the query blocks between the first and the last that see a key block
    lo, hi = scalars["lo"][..., None], scalars["hi"][..., None]
    key_block = jnp.arange(inputs["k"].shape[2] // spec.block_k)[None, None, None]
    sees = (lo <= key_block) & (key_block < hi)
    number = jnp.arange(hi.shape[2])[None, None, :, None]
    scalars["first_q"] = jnp.min(jnp.where(sees, number, hi.shape[2]), axis=2)
    scalars["last_q"] = jnp.max(jnp.where(sees, number + 1, 0), axis=2)
    grads |= launch("to_keys", [], {"dk": ("BHK1", wide), "dv": ("BHK1", depth)}, "Q", 4)
    dq, *d_kernel = (jnp.swapaxes(grads[n][..., :n_query], 2, 3) for n in to_queries)
    dk, dv = (grads[n][:, :, :n_key] for n in ("dk", "dv"))
    n_component = problem["head"].shape[1]
    d_row, d_head = (x[..., :n_component] for x in d_kernel) if d_kernel else [jnp.zeros(problem["row"].shape)] * 2
    return {
        "q": dq[..., :depth],
        "k": dk[..., :depth],
        "extra_k": dk[..., depth:],
        "v": dv,
        "row": d_row,
        "head": jnp.sum(d_head, axis=(0, 2)),
    }
