"""Kernel attention: the definition, in plain einsum and at least float32.

The operation (paper, section 3.2), for batch b, head h, query i and visible key j:

    logit_ij = scale * <q_i, k_j> + bias[m(i), j] + log K(max(t_i - t_j, 0))
    out_i    = sum_j softmax_j(logit_ij) v_j

    ExponentialMixture:  K(d) = sum_r beta_r exp(-gamma_r d)
    RationalQuadratic:   K(d) = (1 + d^2 / (2 alpha length^2)) ** -alpha
    None:                K(d) = 1

Key j is visible to query i when kv_range[b, i, 0] <= j < kv_range[b, i, 1]; a query with no visible key gets
zeros. Every faster implementation is tested against this file.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExponentialMixture:
    """K(d) = sum_r beta_r exp(-gamma_r d).

    Attributes:
      beta_HxR: float32 > 0, weight of each component.
      gamma_HxR: float32 > 0, decay rate in 1/day.
    """

    beta_HxR: jax.Array
    gamma_HxR: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RationalQuadratic:
    """K(d) = (1 + d^2 / (2 alpha length^2)) ** -alpha.

    Attributes:
      alpha_H: float32 > 0, tail exponent.
      length_H: float32 > 0, length scale in days.
    """

    alpha_H: jax.Array
    length_H: jax.Array


def visible_BxTxS(kv_range_BxTx2, n_keys):
    """Boolean mask of the keys that each query sees."""
    position_S = jnp.arange(n_keys, dtype=kv_range_BxTx2.dtype)
    start_BxTx1, stop_BxTx1 = kv_range_BxTx2[..., :1], kv_range_BxTx2[..., 1:]
    return (position_S[None, None] >= start_BxTx1) & (position_S[None, None] < stop_BxTx1)


def log_kernel_BxHxTxS(kernel, q_time_BxT, k_time_BxS, mask_BxTxS):
    """log K(max(t_i - t_j, 0)) up to a constant per query, which softmax ignores.

    For the mixture, the slowest decay is taken out of the sum and measured from the query's newest visible key:
    log K = -gamma_min (gap - gap_newest) + log sum_r beta_r exp(-(gamma_r - gamma_min) gap). Without this, after a
    gap of years every logit is a large negative number and float32 has no digits left for their differences.
    """
    q_BxTx1, k_Bx1xS = q_time_BxT[:, :, None], k_time_BxS[:, None, :]
    gap_Bx1xTxS = jnp.where(mask_BxTxS, jnp.maximum(q_BxTx1 - k_Bx1xS, 0.0), 0.0)[:, None]
    if isinstance(kernel, RationalQuadratic):
        alpha_Hx1x1, length_Hx1x1 = kernel.alpha_H[:, None, None], kernel.length_H[:, None, None]
        ratio = jnp.square(gap_Bx1xTxS / length_Hx1x1[None]) / (2.0 * alpha_Hx1x1[None])
        return -alpha_Hx1x1[None] * jnp.log1p(ratio)
    newest_BxTx1 = jnp.max(
        jnp.where(mask_BxTxS, jnp.broadcast_to(k_Bx1xS, mask_BxTxS.shape), -jnp.inf), -1, keepdims=True
    )
    newest_BxTx1 = jnp.minimum(jnp.where(jnp.isfinite(newest_BxTx1), newest_BxTx1, q_BxTx1), q_BxTx1)
    behind_Bx1xTxS = jnp.where(mask_BxTxS, newest_BxTx1 - jnp.minimum(k_Bx1xS, q_BxTx1), 0.0)[:, None]
    slowest_1xHx1x1 = jnp.min(kernel.gamma_HxR, axis=-1)[None, :, None, None]
    total = 0.0
    for r in range(kernel.gamma_HxR.shape[-1]):  # a loop keeps memory at one [B, H, T, S] array per term
        beta = kernel.beta_HxR[:, r][None, :, None, None]
        gamma = kernel.gamma_HxR[:, r][None, :, None, None]
        total = total + beta * jnp.exp(-(gamma - slowest_1xHx1x1) * gap_Bx1xTxS)
    # far out only the slowest component is left and cannot underflow: its exponent is zero
    return -slowest_1xHx1x1 * behind_Bx1xTxS + jnp.log(total)


def _mix(word):
    """A 32-bit finaliser (two xor-shift multiplications); bijective, so distinct counters stay distinct."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def dropout_keep(key, batch, head, query, position, rate):
    """Which attention weights survive dropout: a pure function of global indices.

    Args:
      key: a JAX PRNG key, typed or raw uint32[2].
      batch, head, query, position: uint32 arrays of *global* indices, broadcast against one another.
      rate: probability of dropping.

    Returns:
      Boolean array of the broadcast shape. The same entries are dropped by every implementation and sharding.
    """
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    word = _mix(data.ravel()[0].astype(jnp.uint32))
    for counter in (data.ravel()[-1], batch, head, query, position):
        word = _mix(word + jnp.asarray(counter).astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(0x85EBCA6B))
    # 24 bits fit a float32 exactly, so the threshold means the same on every platform
    return (word >> 8).astype(jnp.float32) >= jnp.float32(rate * 2.0**24)


def kernel_attention_reference(
    q_BxTxHxD,
    k_BxSxHxD,
    v_BxSxHxD,
    *,
    q_time_BxT,
    k_time_BxS,
    kv_range_BxTx2,
    kernel,
    source_bias_BxHxMxS=None,
    q_modality_BxT=None,
    scale=None,
    dropout_rate=0.0,
    dropout_key=None,
):
    """The definition above; arguments, result and errors as in `api.kernel_attention`."""
    n_batch, n_query, n_head, depth = q_BxTxHxD.shape
    n_key = k_BxSxHxD.shape[1]
    scale = depth**-0.5 if scale is None else scale
    dtype = jnp.promote_types(q_BxTxHxD.dtype, jnp.float32)
    q, k, v = (x.astype(dtype) for x in (q_BxTxHxD, k_BxSxHxD, v_BxSxHxD))
    mask_BxTxS = visible_BxTxS(kv_range_BxTx2, n_key)
    logit_BxHxTxS = scale * jnp.einsum("bthd,bshd->bhts", q, k, precision="highest")
    if source_bias_BxHxMxS is not None:
        n_modality = source_bias_BxHxMxS.shape[2]
        onehot_BxTxM = jax.nn.one_hot(q_modality_BxT, n_modality, dtype=dtype)
        logit_BxHxTxS += jnp.einsum(
            "btm,bhms->bhts", onehot_BxTxM, source_bias_BxHxMxS.astype(dtype), precision="highest"
        )
    if kernel is not None:
        logit_BxHxTxS += log_kernel_BxHxTxS(kernel, q_time_BxT.astype(dtype), k_time_BxS.astype(dtype), mask_BxTxS)
    mask_Bx1xTxS = mask_BxTxS[:, None]
    logit_BxHxTxS = jnp.where(mask_Bx1xTxS, logit_BxHxTxS, -jnp.inf)
    peak = jax.lax.stop_gradient(jnp.max(logit_BxHxTxS, axis=-1, keepdims=True))
    weight = jnp.where(mask_Bx1xTxS, jnp.exp(logit_BxHxTxS - jnp.where(jnp.isfinite(peak), peak, 0.0)), 0.0)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    weight = weight / jnp.where(total > 0, total, 1.0)
    if dropout_rate > 0.0:
        index = (
            jnp.arange(n_batch)[:, None, None, None],
            jnp.arange(n_head)[None, :, None, None],
            jnp.arange(n_query)[None, None, :, None],
            jnp.arange(n_key)[None, None, None, :],
        )
        weight = jnp.where(dropout_keep(dropout_key, *index, dropout_rate), weight / (1.0 - dropout_rate), 0.0)
    return jnp.einsum("bhts,bshd->bthd", weight, v, precision="highest").astype(q_BxTxHxD.dtype)
