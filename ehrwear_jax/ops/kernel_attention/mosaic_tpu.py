"""Kernel attention as Pallas kernels for TPUs (Mosaic), forward and backward.

Flash attention (Dao et al. 2022) with K as a factor: `tiles` has the mathematics, `mosaic_tpu_tile` its form on a TPU.
The forward kernel and that of the queries' gradients visit the key blocks of one query block, newest first; that of the
keys' gradients visits the query blocks of one key block. Tiles that nobody sees come last and cost neither a copy nor
arithmetic. Everything a kernel reads is laid out beforehand as it is used, so that no kernel transposes a large block.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ehrwear_jax.ops.kernel_attention import fused, tiles
from ehrwear_jax.ops.kernel_attention.mosaic_tpu_tile import ROWS, Tile

BLOCK_Q, BLOCK_K = 256, 512
LANES = 128  # columns of a register: blocks are multiples of it
VMEM_BYTES = 64 * 2**20  # of 128 MiB; the compiler's own limit is 16 MiB

# Blocks that kernels read and write: axes, B batch, H head, Q query, K key, 1 whole. E: depth and bias columns.
LAYOUT = {
    "q": "BH1Q",  # [E, Q]
    "range": "B1Q",  # [2, Q] int32: start, stop
    "times": "B1Q",  # [2, Q]: time, newest visible
    "row": "BH1Q",  # [R, Q]
    "head": "H11",  # [R, 1]
    "stats": "BH1Q",  # [2, Q]: log-sum-exp and delta; the forward pass writes log-sum-exp and sum of weights
    "d_out": "BH1Q",  # [D, Q]
    "k": "BHK1",  # [K, E]
    "k_t": "BH1K",  # [E, K]
    "v": "BHK1",  # [K, D]
    "v_t": "BH1K",  # [D, K]
    "k_time": "B1K",  # [1, K]
}
KERNEL_INPUTS = ("times", "row", "head", "k_time")


def kernel_attention_mosaic_tpu(
    q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, *, block_q=BLOCK_Q, block_k=BLOCK_K, interpret=None, **arguments
):
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
      NotImplementedError: no TPU and no interpret; skip_tolerance > 0 ("xla" has it); a dtype that is neither float32
        nor bfloat16.
    """
    if not interpret and jax.default_backend() != "tpu":
        raise NotImplementedError(f"mosaic_tpu runs on TPUs, and this is a {jax.default_backend()}; see `interpret`")
    if arguments["skip_tolerance"] > 0.0:
        raise NotImplementedError("mosaic_tpu skips no visible keys: skip_tolerance needs implementation='xla'")
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


def _padded(x, axis, multiple, value=0):
    pads = [(0, _up(x.shape[axis], multiple) - x.shape[axis] if a == axis % x.ndim else 0) for a in range(x.ndim)]
    return jnp.pad(x, pads, constant_values=value)


def _inputs(spec, problem):
    """(inputs by name as in LAYOUT, scalars by name): padded to whole blocks; padded queries see nothing."""
    n_head, n_key = problem["k"].shape[1:3]
    n_batch, n_query = problem["q_time"].shape
    extra_q = jnp.broadcast_to(problem["extra_q"][:, None], (n_batch, n_head, *problem["extra_q"].shape[1:]))
    q = _padded(jnp.concatenate([problem["q"], extra_q], axis=-1), 2, spec.block_q)
    k = _padded(jnp.concatenate([problem["k"], problem["extra_k"]], axis=-1), 2, spec.block_k)
    v = _padded(problem["v"], 2, spec.block_k)
    inputs = {"q": jnp.swapaxes(q, 2, 3), "k": k, "k_t": jnp.swapaxes(k, 2, 3), "v": v, "v_t": jnp.swapaxes(v, 2, 3)}
    inputs["range"] = _padded(jnp.stack([problem["start"], problem["stop"]], axis=1), 2, spec.block_q)
    n_block_k = k.shape[2] // spec.block_k
    scalars = {"n_block_k": n_block_k, "flags": None}
    if spec.kind != "none":
        inputs["times"] = _padded(jnp.stack([problem["q_time"], problem["newest"]], axis=1), 2, spec.block_q)
        inputs["k_time"] = _padded(problem["k_time"][:, None], 2, spec.block_k)
        # log p = -1e30 makes the weight of a padded component exactly 0
        row = _padded(jnp.swapaxes(problem["row"], 2, 3), 2, ROWS, -1e30 if spec.kind == "mixture" else 1.0)
        inputs["row"] = _padded(row, 3, spec.block_q)
        inputs["head"] = _padded(problem["head"][..., None], 1, ROWS)
        real = _padded(problem["k_time"], 1, spec.block_k, -jnp.inf)
        scalars["newest"] = jnp.max(real.reshape(n_batch, n_block_k, spec.block_k), axis=-1).ravel()
    start, stop = (inputs["range"][:, i].reshape(n_batch, -1, spec.block_q) for i in (0, 1))
    seen = stop > start
    lo = jnp.min(jnp.where(seen, start // spec.block_k, n_block_k), axis=-1)
    hi = jnp.max(jnp.where(seen, -(-stop // spec.block_k), 0), axis=-1)
    scalars |= {"lo": lo.ravel(), "hi": hi.ravel()}
    return inputs, scalars


def _flags(problem, direct):
    """int32 [7]: whether every tile is to be taken directly, the first indices, the seed of dropout."""
    seed = jax.lax.bitcast_convert_type(problem["seed"], jnp.int32)
    return jnp.concatenate([jnp.asarray(direct, jnp.int32)[None], problem["first"], seed])


# -------------------------------------------------------------------------------------------------------- the kernels


def _launch(spec, problem, inputs, scalars, direct, *, names, outputs, queries_innermost, visit, cost):
    """Runs `visit(tile, refs of outputs, ...)` on every tile that some row sees; see `_forward` for its use.

    Args:
      names: of the inputs. outputs: name -> (layout, rows or columns of "1", dtype).
      queries_innermost: whether accumulators belong to a key block.
      cost: products of [K, Q] tiles, each as deep as q or v.
    """
    n_batch, n_head, _, n_query = inputs["q"].shape
    n_block_q, n_block_k = n_query // spec.block_q, scalars["n_block_k"]
    n_component = problem["head"].shape[1]
    sizes = {"Q": spec.block_q, "K": spec.block_k}
    prefetched = [n for n in ("newest", "lo", "hi", "first_q", "last_q") if n in scalars]

    def block_indices(named, outer, step):
        """(query block, key block, whether to work) of a step; steps without work repeat the last copy."""
        b, _, o = outer
        if queries_innermost:
            lo, hi = (named[n][b * n_block_k + o] for n in ("first_q", "last_q"))
            i = jnp.clip(lo + step, 0, jnp.maximum(hi - 1, 0))
            own = (named[n][b * n_block_q + i] for n in ("lo", "hi"))
            j, works = o, lo + step < hi
            lo, hi = own
            return i, j, works & (lo <= j) & (j < hi)
        lo, hi = (named[n][b * n_block_q + o] for n in ("lo", "hi"))
        j = hi - 1 - step
        return o, jnp.clip(j, jnp.minimum(lo, n_block_k - 1), n_block_k - 1), j >= lo

    def index_map(layout):
        def at(*args):
            *outer, step = args[:4]
            i, j, _ = block_indices(dict(zip(["flags", *prefetched], args[4:], strict=True)), outer, step)
            where = {"B": outer[0], "H": outer[1], "Q": i, "K": j, "1": 0}
            return tuple(where[axis] for axis in layout)

        return at

    def block_spec(layout, shape):
        block = tuple(None if a in "BH" else sizes.get(a, n) for a, n in zip(layout, shape, strict=True))
        if layout == "H11":
            block = (None, *shape[1:])
        return pl.BlockSpec(block, index_map(layout))

    dims = {"B": n_batch, "H": n_head, "Q": n_query, "K": n_block_k * spec.block_k}
    out_shapes = {
        name: jax.ShapeDtypeStruct(tuple(dims.get(a, size) for a in layout), dtype)
        for name, (layout, size, dtype) in outputs.items()
    }

    def body(*refs):
        named = dict(zip(["flags", *prefetched, *names, *outputs], refs, strict=False))
        outer, step = [pl.program_id(a) for a in range(3)], pl.program_id(3)
        i, j, works = block_indices(named, outer, step)
        tile = Tile(spec, n_component, named, (*outer[:2], i, j), named | {"n_block_k": n_block_k})
        visit(tile, named, refs[1 + len(prefetched) + len(names) + len(outputs) :], step, works)

    grid = (n_batch, n_head, n_block_k, n_block_q) if queries_innermost else (n_batch, n_head, n_block_q, n_block_k)
    scratch = [pltpu.VMEM((1, spec.block_q), jnp.float32)] * (2 if "out" in outputs else 0)
    n_element = n_batch * n_head * n_query * n_block_k * spec.block_k
    found = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1 + len(prefetched),
            grid=grid,
            in_specs=[block_spec(LAYOUT[n], inputs[n].shape) for n in names],
            out_specs=[block_spec(layout, out_shapes[n].shape) for n, (layout, _, _) in outputs.items()],
            scratch_shapes=scratch,
        ),
        out_shape=list(out_shapes.values()),
        interpret=spec.options[0] or False,
        name=f"kernel_attention_{'_'.join(outputs)}",
        cost_estimate=pl.CostEstimate(
            flops=2 * cost * n_element * inputs["q"].shape[2],
            transcendentals=n_element,
            bytes_accessed=sum(inputs[n].size * inputs[n].dtype.itemsize for n in names) * n_block_q,
        ),
        compiler_params=_compiler_params(),
    )(_flags(problem, direct), *(scalars[n] for n in prefetched), *(inputs[n] for n in names))
    return dict(zip(outputs, found, strict=True))


def _compiler_params():
    # CompilerParams was TPUCompilerParams before JAX 0.7
    make = getattr(pltpu, "CompilerParams", None) or pltpu.TPUCompilerParams
    return make(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES)


def _both_ways(spec, tile, works, run):
    """run(factored) where there is work, factored or directly as the tile allows."""
    if spec.kind != "mixture":
        pl.when(works)(functools.partial(run, False))
        return

    @pl.when(works)
    def _():
        directly = tile.taken_directly()
        pl.when(directly)(functools.partial(run, False))
        pl.when(jnp.logical_not(directly))(functools.partial(run, True))


def _names(spec, *names):
    return [*names, "range", *(KERNEL_INPUTS if spec.kind != "none" else ())]


def _forward(spec, problem):
    """Saves whether all tiles were taken directly."""
    spec = _spec_in_use(spec)
    inputs, scalars = _inputs(spec, problem)
    n_query, depth = problem["q"].shape[2], problem["v"].shape[3]

    def visit(tile, refs, scratch, step, works):
        peak_ref, total_ref = scratch

        @pl.when(step == 0)
        def _():
            peak_ref[...] = jnp.full(peak_ref.shape, -jnp.inf, jnp.float32)
            total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
            refs["out"][...] = jnp.zeros(refs["out"].shape, jnp.float32)

        _both_ways(spec, tile, works, functools.partial(tile.accumulate, peak_ref, total_ref, refs["out"]))

        @pl.when(step == pl.num_programs(3) - 1)
        def _():
            total = total_ref[...]
            safe = jnp.where(total > 0.0, total, 1.0)
            refs["out"][...] = refs["out"][...] / safe
            refs["stats"][0:1] = jnp.where(total > 0.0, peak_ref[...] + jnp.log(safe), -jnp.inf)
            refs["stats"][1:2] = total

    def run(direct):
        found = _launch(
            spec,
            problem,
            inputs,
            scalars,
            direct,
            names=_names(spec, "q", "k", "v_t"),
            outputs={"out": ("BH1Q", depth, jnp.float32), "stats": ("BH1Q", 2, jnp.float32)},
            queries_innermost=False,
            visit=visit,
            cost=2,
        )
        stats = found["stats"][..., :n_query]
        return jnp.swapaxes(found["out"][..., :n_query], 2, 3), stats[:, :, 0], stats[:, :, 1]

    out, log_sum_exp, total = run(False)
    sees = (problem["stop"] > problem["start"])[:, None]
    lost = jnp.any(sees & (total < tiles.SMALLEST_SUM)) & (spec.kind == "mixture")
    if spec.kind == "mixture":
        # factors that underflow together with the weights of all keys of a row: once more, in logarithms
        out, log_sum_exp = jax.lax.cond(lost, lambda: run(True)[:2], lambda: (out, log_sum_exp))
    return out, log_sum_exp, lost


def _backward(spec, problem, direct, d_out, log_sum_exp, delta):
    spec = _spec_in_use(spec)
    inputs, scalars = _inputs(spec, problem)
    n_batch, n_head, n_query, depth = problem["q"].shape
    n_key = problem["k"].shape[2]
    wide = inputs["q"].shape[2]  # depth and the columns of the bias
    inputs["d_out"] = _padded(jnp.swapaxes(d_out.astype(problem["v"].dtype), 2, 3), 3, spec.block_q)
    safe = jnp.where(jnp.isfinite(log_sum_exp), log_sum_exp, 0.0)
    inputs["stats"] = _padded(jnp.stack([safe, delta], axis=2), 3, spec.block_q)
    has_kernel = spec.kind != "none"

    def visit(method, tile, refs, scratch, step, works):
        grads = [refs[n] for n in ("dk", "dv", "dq", "d_row", "d_head") if n in refs]

        @pl.when(step == 0)
        def _():
            for ref in grads:
                ref[...] = jnp.zeros(ref.shape, ref.dtype)

        grads = grads if len(grads) > 1 else [*grads, None, None]
        _both_ways(spec, tile, works, functools.partial(getattr(tile, method), *grads))

    def launch(method, names, outputs, queries_innermost, cost):
        return _launch(
            spec,
            problem,
            inputs,
            scalars,
            direct,
            names=_names(spec, "q", "k", "v", "d_out", "stats", *names),
            outputs={name: (*rest, jnp.float32) for name, rest in outputs.items()},
            queries_innermost=queries_innermost,
            visit=functools.partial(visit, method),
            cost=cost,
        )

    to_queries = {"dq": ("BH1Q", wide)}
    if has_kernel:
        to_queries |= {n: ("BH1Q", inputs["row"].shape[2]) for n in ("d_row", "d_head")}
    grads = launch("to_queries", ["k_t"], to_queries, False, 3)
    # the query blocks between the first and the last that see a key block
    lo, hi = (scalars[n].reshape(n_batch, -1, 1) for n in ("lo", "hi"))
    key_block = jnp.arange(scalars["n_block_k"])[None, None]
    sees = (lo <= key_block) & (key_block < hi)
    number = jnp.arange(lo.shape[1])[None, :, None]
    scalars["first_q"] = jnp.min(jnp.where(sees, number, lo.shape[1]), axis=1).ravel()
    scalars["last_q"] = jnp.max(jnp.where(sees, number + 1, 0), axis=1).ravel()
    grads |= launch("to_keys", [], {"dk": ("BHK1", wide), "dv": ("BHK1", depth)}, True, 4)
    grads = {n: g[..., :n_query] if g.shape[-1] == inputs["q"].shape[3] else g[:, :, :n_key] for n, g in grads.items()}
    n_component = problem["head"].shape[1]
    if has_kernel:
        d_row, d_head = (jnp.swapaxes(grads[n][:, :, :n_component], 2, 3) for n in ("d_row", "d_head"))
    else:
        d_row = d_head = jnp.zeros(problem["row"].shape, jnp.float32)
    return {
        "q": jnp.swapaxes(grads["dq"], 2, 3)[..., :depth],
        "k": grads["dk"][..., :depth],
        "extra_k": grads["dk"][..., depth:],
        "v": grads["dv"],
        "row": d_row,
        "head": jnp.sum(d_head, axis=(0, 2)),
    }
