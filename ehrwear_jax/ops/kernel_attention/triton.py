"""Implements kernel attention as Pallas-Triton kernels, for NVIDIA GPUs of the Ampere and Hopper generations.

Three kernels: the forward pass and the gradients of a query block loop over the key blocks that it sees, the gradients
of a key block over the query blocks that see it, so that no sum needs atomics. The mathematics is that of `tiles`; here
is what a GPU adds to it:

- A tile is *plain* when every row of it sees all of its keys and K factors. `triton_inputs.bounds` finds the longest
  run of plain tiles, whose loop has no mask and no branch. In tiles that some rows see in part, on the diagonal and
  where packed contexts meet, K still factors but for components that decay too fast for the tile (`triton_tile`).
- The products with K's factors, and with the columns of the modality bias, run on the tensor cores. In bfloat16 both
  factors are split in high and low halves, whose three products stand side by side in 16 columns (R <= 5).
- A query block in which the factors lose a row (`tiles.SMALLEST_SUM`) starts again, element by element.
- kappa_i = max_r log a_ir serves as well as log sum_r a_ir, and needs no logarithm.
- Everything that depends on a key and its block alone, b and the columns that the gradients contract with, is computed
  before the kernels, in XLA.

Arrays are padded to whole blocks and to depths that are powers of two, as Triton wants them; nothing inside a kernel is
sliced but references. Layout of q, k, v and out is [B, T, H, D], so that the transposes around `fused.call` cancel.
"""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention import fused, reference, target, triton_inputs, triton_program, triton_tile
from ehrwear_jax.ops.kernel_attention.triton_program import Tuning, pl, plgpu

MOST_COMPONENTS = 8
MOST_DEPTH = 128

# Of the forward pass, the gradients of queries and of keys; float32 products run without tensor cores.
NARROW = ((64, 64), (64, 64, 4, 3), (64, 64))
WIDE = ((32, 32, 4, 2, 16, 32),) * 3
FILLING = 264  # programs that occupy a GPU: two for each multiprocessor of an H100


@dataclasses.dataclass(frozen=True)
class Options:
    """Static; `forward`, `query` and `key` tune the forward pass and the gradients of queries and of keys."""

    forward: Tuning
    query: Tuning
    key: Tuning
    interpret: bool


def kernel_attention_triton(
    q_BxTxHxD: jax.Array,
    k_BxSxHxD: jax.Array,
    v_BxSxHxD: jax.Array,
    *,
    block_q: int | None = None,
    block_k: int | None = None,
    forward: Sequence[int] | None = None,
    query: Sequence[int] | None = None,
    key: Sequence[int] | None = None,
    interpret: bool = False,
    check_device: bool = True,
    **arguments: Any,
) -> tuple[jax.Array, jax.Array]:
    """Arguments, results and errors as in `reference`.

    Args:
      block_q, block_k: powers of two from 16, rows and columns of a tile in all kernels, in place of what follows.
      forward, query, key: sequences of what `Tuning` takes, for the forward pass and the gradients of queries and keys.
      interpret: run on any device, slowly.
      check_device: False lets the call be lowered where there is no GPU.

    Raises:
      NotImplementedError: no such device here, or arguments that the kernels do not take.
    """
    _check(q_BxTxHxD, v_BxSxHxD, arguments, check_device and not interpret)
    narrow = q_BxTxHxD.dtype == jnp.bfloat16
    tuning = []
    for given, default in zip((forward, query, key), NARROW if narrow else WIDE, strict=True):
        size = Tuning(*(given or default))
        if not (given or block_q):
            size = _filling(size, q_BxTxHxD.shape)
        tuning.append(dataclasses.replace(size, block_q=block_q or size.block_q, block_k=block_k or size.block_k))
    if arguments["bit_causal"]:  # which components factor in a masked tile is decided by times of all its rows and keys
        tuning[0] = dataclasses.replace(tuning[0], reach=-1)
    for length in (n for t in tuning for n in (t.block_q, t.block_k, t.edge, t.masked)):
        if length < 16 or length & (length - 1):
            raise ValueError(f"kernel_attention: blocks must be powers of two from 16, got {length}")
    return fused.call(
        (_forward, _backward),
        q_BxTxHxD,
        k_BxSxHxD,
        v_BxSxHxD,
        **arguments,
        block_q=tuning[0].block_q,
        block_k=tuning[0].block_k,
        dtype=jnp.bfloat16 if narrow else jnp.promote_types(q_BxTxHxD.dtype, jnp.float32),
        options=Options(tuning[0], tuning[1], tuning[2], interpret),
    )


def _filling(size, shape):
    """A tuning with fewer rows in a block, where there would be too few blocks: of a model's few queries, say."""
    n_batch, n_query, n_head, _ = shape
    block = size.block_q
    while block > 16 and n_batch * n_head * -(-n_query // block) < FILLING:
        block //= 2
    return dataclasses.replace(size, block_q=block)


def _check(q, v, arguments, check_device):
    def require(condition, message):
        if not condition:
            raise NotImplementedError(f"the Triton kernels {message}")

    require(plgpu is not None, "need a JAX that has Pallas-Triton")
    require(jnp.promote_types(q.dtype, jnp.float32) == jnp.float32, f"have no {q.dtype}")
    require(max(q.shape[-1], v.shape[-1]) <= MOST_DEPTH, f"have a depth of at most {MOST_DEPTH}")
    kernel = arguments["kernel"]
    if isinstance(kernel, reference.ExponentialMixture):
        require(kernel.beta_HxR.shape[1] <= MOST_COMPONENTS, f"mix at most {MOST_COMPONENTS} components")
    require(arguments.get("skip_tolerance", 0.0) == 0.0, "skip nothing (implementation 'xla' does)")
    if check_device:
        require(target.platform() == "gpu", "need a GPU")
        capability = getattr(jax.devices()[0], "compute_capability", "")
        # AMD's are names like gfx942
        good = capability.replace(".", "", 1).isdigit() and float(capability) >= 8.0
        require(good, f"need compute capability 8.0, this is {capability or 'unknown'}")


# ------------------------------------------------------------------------------------------------ around the kernels


def _run(kernel, static, tuning, n_block, arrays, outputs):
    """Calls kernel(static, references by name) once per block, head and batch row.

    Args:
      arrays: see `triton_inputs.arrange`. outputs: name -> (axes, shape, dtype).
    """
    n_batch, n_head = arrays["q"][1].shape[0], arrays["q"][1].shape[2]

    def block(axes, shape):
        sizes = tuple(None if a in "bh" else n for a, n in zip(axes, shape, strict=True))
        return pl.BlockSpec(sizes, lambda i, h, b: tuple({"b": b, "h": h}.get(a, 0) for a in axes))

    names = [*arrays, *outputs]

    def body(*references):
        kernel(static, types.SimpleNamespace(**dict(zip(names, references, strict=True))))

    found = pl.pallas_call(
        body,
        grid=(n_block, n_head, n_batch),
        in_specs=[block(axes, x.shape) for axes, x in arrays.values()],
        out_specs=[block(axes, shape) for axes, shape, _ in outputs.values()],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for _, shape, dtype in outputs.values()],
        compiler_params=plgpu.CompilerParams(num_warps=tuning.num_warps, num_stages=tuning.num_stages),
        interpret=static.spec.options.interpret,
        name=f"kernel_attention_{kernel.__name__}",
    )(*(x for _, x in arrays.values()))
    return dict(zip(outputs, found, strict=True))


def _by_head(x_BxLxHxD, size, depth):
    """Inverse of the layout by token in triton_inputs.arrange: [B, H, size, depth]."""
    return jnp.moveaxis(x_BxLxHxD[:, :size, :, :depth], 2, 1)


def _forward(spec, problem):
    """Saves which rows stand in blocks without a plain tile, and what bfloat16 outputs lack."""
    tuning = spec.options.forward
    static = triton_inputs.static_of(spec, problem, tuning)
    n_batch, n_head, n_query, _ = problem["q"].shape
    arrays = triton_inputs.arrange(static, problem)
    n_row = arrays["q"][1].shape[1]
    n_block = n_row // static.block_q
    outputs = {
        "out": ("b.h.", (n_batch, n_row, n_head, arrays["v"][1].shape[3]), static.dtype),
        "log_sum_exp": ("bh.", (n_batch, n_head, n_row), jnp.float32),
        "lost": ("bh.", (n_batch, n_head, n_block), jnp.int32),
    }
    if static.narrow:
        outputs["low"] = outputs["out"]
    found = _run(triton_tile.forward, static, tuning, n_block, arrays, outputs)
    out, *low = (_by_head(found[n], n_query, problem["v"].shape[3]) for n in ("out", "low") if n in found)
    lost_BxHxT = jnp.repeat(found["lost"], static.block_q, axis=2)[..., :n_query]
    return out, found["log_sum_exp"][..., :n_query], (lost_BxHxT, low)


def _backward(spec, problem, saved, d_out, log_sum_exp, delta):
    lost_BxHxT, low = saved
    for x in low:
        delta += jnp.sum(d_out * x.astype(jnp.float32), axis=-1)
    n_batch, n_head, n_query, _ = problem["q"].shape
    n_key, n_component = problem["k"].shape[2], problem["row"].shape[-1]
    more = {
        "d_out": d_out.astype(problem["q"].dtype),
        "log_sum_exp": jnp.where(jnp.isfinite(log_sum_exp), log_sum_exp, triton_program.HIGHEST),
        "delta": delta.astype(jnp.float32),
    }
    static = triton_inputs.static_of(spec, problem, spec.options.query)
    arrays = triton_inputs.arrange(static, problem, **more)
    n_row = arrays["q"][1].shape[1]
    n_block = n_row // static.block_q
    lost = triton_inputs.pad(lost_BxHxT, 2, n_row).reshape(n_batch, n_head, n_block, static.block_q)
    # the gradients to what lies behind a gap want more digits than components that are added to factors leave
    apart = arrays["apart"][1][:, None] if spec.kind == "mixture" else 0
    arrays["lost"] = "bh.", jnp.maximum(jnp.max(lost, axis=3), apart)
    outputs = {"dq": ("b.h.", arrays["q"][1].shape, static.dtype)}
    if spec.kind != "none":
        outputs["d_row"] = "bh..", (n_batch, n_head, n_component, n_row), jnp.float32
        outputs["d_head"] = "bh..", (n_batch, n_head, n_component, n_block), jnp.float32
    found = _run(triton_tile.query_gradients, static, spec.options.query, n_block, arrays, outputs)

    static = triton_inputs.static_of(spec, problem, spec.options.key, by_key=True)
    arrays = triton_inputs.arrange(static, problem, **more)
    n_block = arrays["k"][1].shape[1] // static.block_k
    arrays["lost"] = "bh.", jnp.broadcast_to(jnp.max(lost, axis=(2, 3))[..., None], (n_batch, n_head, n_block))
    outputs = {"d" + n: ("b.h.", arrays[n][1].shape, static.dtype) for n in ("k", "v")}
    if static.has_bias:
        outputs["d_extra_k"] = "bh..", arrays["extra_k"][1].shape, static.dtype
    found |= _run(triton_tile.key_gradients, static, spec.options.key, n_block, arrays, outputs)

    grads = {name: jnp.zeros_like(problem[name]) for name in ("row", "head", "extra_k")}
    grads |= {name: _by_head(found["d" + name], *problem[name].shape[2:]) for name in ("q", "k", "v")}
    if spec.kind != "none":
        grads["row"] = jnp.moveaxis(found["d_row"][..., :n_query], 2, 3)
        grads["head"] = jnp.sum(found["d_head"], axis=(0, 3))
    if static.has_bias:
        grads["extra_k"] = found["d_extra_k"][..., :n_key, : problem["extra_k"].shape[-1]]
    return grads
