"""Prepares the arguments of all fused implementations in the form that tiles need; defines the custom derivative.

An implementation is a pair of passes, each over one problem:

    forward(spec, problem) -> (out_BxHxTxD, log_sum_exp_BxHxT, saved)
    backward(spec, problem, saved, d_out_BxHxTxD, log_sum_exp_BxHxT, delta_BxHxT) -> gradients by name, see `GRADIENTS`

`log_sum_exp` is of s_ij + log(K_ij / K(g_i)) over the visible keys, -inf where there is none; `delta` is the row sum of
out * d_out, less the cotangent of log_sum_exp; both passes use the notation of `reference` and `tiles`. `saved` is any
pytree of arrays that the forward pass leaves for the backward one.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from ehrwear_jax.ops.kernel_attention import reference
from ehrwear_jax.ops.kernel_attention.reference import Kernel

Pass = Callable[..., Any]

CHECKPOINT_NAME = "attended"  # of what the forward pass leaves for the backward one, see jax.checkpoint_policies
# The entries of a problem that have a gradient.
GRADIENTS = ("q", "k", "v", "extra_k", "row", "head")
# A problem's other entries.
CONSTANTS = ("extra_q", "q_time", "newest", "later", "start", "stop", "k_time", "seed", "first")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is static.

    Attributes:
      kind: "mixture", "quadratic" or "none", see reference.kernel_rows.
      passes: (forward, backward).
      block_q, block_k: rows and columns of a tile.
      dropout_rate, skip_tolerance: as in api.kernel_attention.
      post_scale: what the product of q, with its extra columns, and k is to be multiplied by, see split_scale; their
        gradients are multiplied by it here.
      options: what else an implementation needs, hashable.
    """

    kind: str
    passes: tuple[Pass, Pass]
    block_q: int
    block_k: int
    dropout_rate: float
    skip_tolerance: float
    post_scale: float = 1.0
    options: Any = ()


def call(
    passes: tuple[Pass, Pass],
    q_BxTxHxD: jax.Array,
    k_BxSxHxD: jax.Array,
    v_BxSxHxD: jax.Array,
    *,
    q_time_BxT: jax.Array,
    k_time_BxS: jax.Array,
    kv_range_BxTx2: jax.Array,
    kernel: Kernel,
    source_bias_BxHxMxS: jax.Array | None,
    q_modality_BxT: jax.Array | None,
    scale: float | None,
    dropout_rate: float,
    dropout_key: jax.Array | None,
    skip_tolerance: float,
    bit_causal: bool,
    newest_time_BxT: jax.Array | None,
    first_index: Sequence[int | jax.Array],
    block_q: int,
    block_k: int,
    dtype: DTypeLike,
    one_row_at_a_time: bool = False,
    options: Any = (),
) -> tuple[jax.Array, jax.Array]:
    """Runs an implementation's passes; arguments as in `api.kernel_attention`.

    Args:
      bit_causal: not used; what the passes do with it is in their options.
      dtype: of q, k and v inside the products.
      one_row_at_a_time: loop over the batch, so that each row visits only the tiles that it needs.

    A problem is a dict of
      q [B, H, T, D], scaled; k [B, H, S, D]; v [B, H, S, D]: in `dtype`,
      extra_q [B, T, X], extra_k [B, H, S, X]: more columns of q and k, which carry the modality bias (X = 0: none),
      row [B, H, T, R], head [H, R]: the kernel, see reference.kernel_rows ([B, 1, T, 0] and [1, 0] without one),
      q_time, newest [B, T]; later bool [B, T]: some key that the query sees is newer than it; start, stop [B, T] int32;
      k_time [B, S]; seed uint32 [2]; first int32 [4].

    Returns:
      (out_BxTxHxD in q's dtype, log_sum_exp_BxHxT).
    """
    del bit_causal
    n_batch, n_query, n_head, depth = q_BxTxHxD.shape
    n_key = k_BxSxHxD.shape[1]
    scale = depth**-0.5 if scale is None else scale
    wide = jnp.promote_types(q_BxTxHxD.dtype, jnp.float32)
    scale, post_scale = split_scale(scale) if dtype == jnp.bfloat16 else (scale, 1.0)
    q, k, v = (jnp.moveaxis(x, 2, 1).astype(dtype) for x in (q_BxTxHxD.astype(wide) * scale, k_BxSxHxD, v_BxSxHxD))
    if source_bias_BxHxMxS is None:
        extra_q, extra_k = jnp.zeros((n_batch, n_query, 0), dtype), jnp.zeros((n_batch, n_head, n_key, 0), dtype)
    else:
        onehot_BxTxM = jax.nn.one_hot(q_modality_BxT, source_bias_BxHxMxS.shape[2], dtype=dtype)
        columns = [jnp.swapaxes(x, 2, 3) for x in parts(source_bias_BxHxMxS.astype(wide) / post_scale, dtype)]
        extra_q = jnp.concatenate([onehot_BxTxM] * len(columns), axis=-1)
        extra_k = jnp.concatenate(columns, axis=-1)
    q_time_BxT, k_time_BxS = q_time_BxT.astype(wide), k_time_BxS.astype(wide)
    if newest_time_BxT is None:
        newest_time_BxT = reference.newest_visible(k_time_BxS, kv_range_BxTx2)
    newest_BxT, gap_BxT = reference.row_times(q_time_BxT, k_time_BxS, kv_range_BxTx2, newest_time_BxT)
    kind, row_BxHxTxR, head_HxR = reference.kernel_rows(kernel, gap_BxT)
    range_BxTx2 = jnp.clip(kv_range_BxTx2.astype(jnp.int32), 0, n_key)
    spec = Spec(
        kind,
        passes,
        min(block_q, n_query),
        min(block_k, n_key),
        float(dropout_rate),
        float(skip_tolerance),
        post_scale,
        options,
    )
    by_row = {
        "q": q,
        "k": k,
        "v": v,
        "extra_q": extra_q,
        "extra_k": extra_k,
        "row": row_BxHxTxR,
        "q_time": q_time_BxT,
        "newest": newest_BxT,
        "later": newest_time_BxT > q_time_BxT,
        "start": range_BxTx2[..., 0],
        "stop": range_BxTx2[..., 1],
        "k_time": k_time_BxS,
    }
    seed = reference.dropout_seed(dropout_key) if dropout_rate > 0.0 else jnp.zeros((2,), jnp.uint32)
    first = jnp.stack([jnp.asarray(x, jnp.int32) for x in first_index])

    def run(by_row, first):
        return _attention(spec, by_row | {"head": head_HxR, "seed": seed, "first": first})

    if one_row_at_a_time and n_batch > 1:

        def one(b, by_row):
            return jax.tree.map(lambda x: x[0], run({n: x[None] for n, x in by_row.items()}, first.at[0].add(b)))

        out, log_sum_exp = jax.lax.map(lambda x: one(*x), (jnp.arange(n_batch), by_row))
    else:
        out, log_sum_exp = run(by_row, first)
    return jnp.moveaxis(out, 1, 2).astype(q_BxTxHxD.dtype), log_sum_exp


def split_scale(scale: float) -> tuple[float, float]:
    """scale as a power of two, by which narrow numbers multiply without rounding, and a factor in [1, 2) behind it.

    1.0 behind it for a scale that is such a power, as 1 / sqrt(64) is, or that is no number when compiling.
    """
    if not isinstance(scale, float | int) or scale == 0.0:
        return scale, 1.0
    mantissa, exponent = math.frexp(scale)
    return 2.0 ** (exponent - 1), 2.0 * mantissa


def parts(x: jax.Array, dtype: DTypeLike) -> tuple[jax.Array, ...]:
    """x as summands of `dtype`: itself, or bfloat16 halves that together keep 16 bits."""
    if dtype != jnp.bfloat16:
        return (x.astype(dtype),)
    high = _rounded(x)
    return high.astype(dtype), (x - high).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(spec, problem):
    return spec.passes[0](spec, problem)[:2]


def _attention_fwd(spec, problem):
    # here too: a forward pass by Pallas has no derivative, and the error should be the one with a reason
    problem = problem | _first_order_only({name: problem[name] for name in GRADIENTS})
    # named, so that a model that rematerialises all but attention does not run it twice
    out, log_sum_exp, saved = checkpoint_name(spec.passes[0](spec, problem), CHECKPOINT_NAME)
    return (out, log_sum_exp), (problem, saved, out, log_sum_exp)


def _attention_bwd(spec, residuals, cotangents):
    problem, saved, out, log_sum_exp = residuals
    d_out, d_log_sum_exp = cotangents
    problem |= _first_order_only({name: problem[name] for name in GRADIENTS})
    d_out, wide = _first_order_only(d_out), jnp.promote_types(out.dtype, jnp.float32)
    if problem["q"].dtype == jnp.bfloat16:
        # delta and the products must be of the same numbers, or what cancels between them does not
        d_out = _rounded(d_out.astype(wide))
    delta = jnp.sum(d_out.astype(wide) * out.astype(wide), axis=-1)
    delta -= jnp.where(jnp.isfinite(log_sum_exp), d_log_sum_exp, 0.0)
    grads = spec.passes[1](spec, problem, saved, d_out, log_sum_exp, delta)
    if spec.post_scale != 1.0:
        grads |= {name: grads[name].astype(wide) * spec.post_scale for name in ("q", "k", "extra_k")}
    nothing = {name: no_gradient(problem[name]) for name in CONSTANTS}
    return ({name: grads[name].astype(problem[name].dtype) for name in GRADIENTS} | nothing,)


_attention.defvjp(_attention_fwd, _attention_bwd)


def _rounded(x):
    """x to the precision of bfloat16: not by conversions there and back, which XLA takes for the identity on GPUs."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def no_gradient(x: jax.Array) -> jax.Array | np.ndarray:
    """The cotangent of an argument that has none: float0 for integers, zeros for times."""
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.inexact) else np.zeros(x.shape, jax.dtypes.float0)


@jax.custom_jvp
def _first_order_only(x):
    """The identity; differentiating what depends on it says why that is not possible."""
    return x


@_first_order_only.defjvp
def _refuse(primals, tangents):
    raise NotImplementedError(
        "kernel_attention: second derivatives exist with implementation='reference' only; the fused ones recompute "
        "their tiles in the backward pass, which cannot be differentiated again"
    )
