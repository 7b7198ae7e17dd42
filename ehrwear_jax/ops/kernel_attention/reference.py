"""Defines kernel attention, in plain einsum and at least float32.

The operation (paper, section 3.2), for batch b, head h, query i and visible key j:

    logit_ij = scale * <q_i, k_j> + bias[m(i), j] + log K(max(t_i - t_j, 0))
    out_i    = sum_j softmax_j(logit_ij) v_j

    ExponentialMixture:  K(d) = sum_r beta_r exp(-gamma_r d)
    RationalQuadratic:   K(d) = (1 + d^2 / (2 alpha length^2)) ** -alpha
    None:                K(d) = 1

Key j is visible to query i when kv_range[b, i, 0] <= j < kv_range[b, i, 1]; a query with no visible key gets zeros.

Softmax ignores a factor per row, so everything here works with K relative to the query's newest visible key. With
n_i the time of that key (at most t_i), g_i = t_i - n_i and u_ij = n_i - min(t_j, t_i) >= 0:

    K(g_i + u_ij) / K(g_i) = sum_r p_ir exp(-gamma_r u_ij),   p_ir = softmax_r(log beta_r - gamma_r g_i)
    ... and for the quadratic  (1 + u_ij (2 g_i + u_ij) / c_i) ** -alpha,   c_i = 2 alpha length^2 + g_i^2

Without this, years after the last event every log K is a large negative number, and float32 has no digits left for the
differences between keys, nor for the gradient of gamma, whose terms cancel. p and c depend on the query and the head
alone. Every faster implementation shares `kernel_rows` and is tested against this file.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


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


Kernel = ExponentialMixture | RationalQuadratic | None


def visible_BxTxS(kv_range_BxTx2: jax.Array, n_keys: int) -> jax.Array:
    """Boolean mask of the keys that each query sees."""
    position_S = jnp.arange(n_keys, dtype=kv_range_BxTx2.dtype)
    start_BxTx1, stop_BxTx1 = kv_range_BxTx2[..., :1], kv_range_BxTx2[..., 1:]
    return (position_S[None, None] >= start_BxTx1) & (position_S[None, None] < stop_BxTx1)


def newest_visible(k_time_BxS: jax.Array, kv_range_BxTx2: jax.Array) -> jax.Array:
    """Time of the newest key in each query's range, -inf for an empty one: [B, T], in O((S + T) log S).

    Maxima over all stretches of 2^l keys; a range is the union of two of them.
    """
    n_key = k_time_BxS.shape[1]
    levels = [k_time_BxS]
    while 2 ** len(levels) <= n_key:
        last, half = levels[-1], 2 ** (len(levels) - 1)
        # the tail, where a stretch would leave the keys, is never asked for
        levels.append(jnp.concatenate([jnp.maximum(last[:, :-half], last[:, half:]), last[:, -half:]], axis=1))
    table_BxLS = jnp.concatenate(levels, axis=1)
    start_BxT = jnp.clip(kv_range_BxTx2[..., 0], 0, n_key)
    length_BxT = jnp.clip(kv_range_BxTx2[..., 1], 0, n_key) - start_BxT
    level_BxT = 31 - jax.lax.clz(jnp.maximum(length_BxT, 1).astype(jnp.int32))
    width_BxT = jnp.left_shift(jnp.int32(1), level_BxT)
    first_BxT = level_BxT * n_key + jnp.minimum(start_BxT, n_key - 1)
    ends = [first_BxT, first_BxT + jnp.maximum(length_BxT - width_BxT, 0)]
    newest_BxT = jnp.maximum(*(jnp.take_along_axis(table_BxLS, at, axis=1) for at in ends))
    return jnp.where(length_BxT > 0, newest_BxT, -jnp.inf)


def row_times(
    q_time_BxT: jax.Array, k_time_BxS: jax.Array, kv_range_BxTx2: jax.Array, newest_BxT: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(n_BxT, g_BxT) of the module docstring; an empty range gives n = t, g = 0."""
    if newest_BxT is None:
        newest_BxT = newest_visible(k_time_BxS, kv_range_BxTx2)
    newest_BxT = jnp.minimum(jnp.where(jnp.isfinite(newest_BxT), newest_BxT, q_time_BxT), q_time_BxT)
    return newest_BxT, q_time_BxT - newest_BxT


def kernel_rows(kernel: Kernel, gap_BxT: jax.Array) -> tuple[str, jax.Array, jax.Array]:
    """What the kernel is for one query: constants per row and component, and per component.

    Returns:
      (kind, row_BxHxTxR, head_HxR): kind "mixture": log p and gamma; "quadratic" (R = 1): c and alpha; "none" (R = 0).
    """
    gap_Bx1xTx1 = gap_BxT[:, None, :, None]
    if kernel is None:
        shape = (gap_BxT.shape[0], 1, gap_BxT.shape[1], 0)
        return "none", jnp.zeros(shape, gap_BxT.dtype), jnp.zeros((1, 0), gap_BxT.dtype)
    if isinstance(kernel, RationalQuadratic):
        alpha_Hx1, length_Hx1 = (x.astype(gap_BxT.dtype)[:, None] for x in (kernel.alpha_H, kernel.length_H))
        row = (2.0 * alpha_Hx1 * jnp.square(length_Hx1))[None, :, None] + jnp.square(gap_Bx1xTx1)
        return "quadratic", row, alpha_Hx1
    beta_HxR, gamma_HxR = (x.astype(gap_BxT.dtype) for x in (kernel.beta_HxR, kernel.gamma_HxR))
    log_beta_HxR = jnp.log(jnp.maximum(beta_HxR, jnp.finfo(gap_BxT.dtype).tiny))
    # relative to the slowest rate: large numbers, which round differently wherever XLA computes them again, cancel here
    over_HxR = gamma_HxR - jax.lax.stop_gradient(jnp.min(gamma_HxR, axis=-1, keepdims=True))
    row = jax.nn.log_softmax(log_beta_HxR[None, :, None] - over_HxR[None, :, None] * gap_Bx1xTx1, axis=-1)
    return "mixture", row, gamma_HxR


def log_kernel(
    kind: str, row_BxHxTxR: jax.Array, head_HxR: jax.Array, behind_BxTxS: jax.Array, gap_BxT: jax.Array
) -> jax.Array:
    """log K(g + u) - log K(g), [B, H, T, S], for u = behind_BxTxS >= 0; differentiable without loss of digits."""
    u = behind_BxTxS[:, None]
    if kind == "quadratic":
        ratio = u * (2.0 * gap_BxT[:, None, :, None] + u) / row_BxHxTxR
        return -head_HxR[None, :, :, None] * jnp.log1p(ratio)
    terms = [(row_BxHxTxR[..., r, None], -head_HxR[None, :, r, None, None] * u) for r in range(head_HxR.shape[1])]
    # near 1 by what is missing from 1; far below 1 in logarithms, which cannot underflow
    missing = sum(jnp.exp(log_p) * jnp.expm1(decay) for log_p, decay in terms)
    near = missing > -0.9
    peak = jax.lax.stop_gradient(jnp.max(jnp.stack([a + b for a, b in terms]), axis=0))
    far = peak + jnp.log(sum(jnp.exp(log_p + decay - peak) for log_p, decay in terms))
    return jnp.where(near, jnp.log1p(jnp.where(near, missing, 0.0)), far)


def _mix(word):
    """A 32-bit finaliser (two xor-shift multiplications); bijective, so distinct counters stay distinct."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def dropout_seed(key: jax.Array | None) -> jax.Array:
    """uint32 [2] of a JAX PRNG key, typed or raw; ValueError for None."""
    if key is None:
        raise ValueError("kernel_attention: dropout needs dropout_key")
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    data = data.ravel().astype(jnp.uint32)
    return jnp.stack([data[0], data[-1]])


def _chain(start, *counters):
    for counter in counters:
        start = _mix(start + jnp.asarray(counter).astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(0x85EBCA6B))
    return start


def dropout_words(
    seed: jax.Array | Sequence[jax.Array], batch: jax.Array, head: jax.Array, query: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What `kept_by` takes of a row of weights, as in `dropout_keep`: two words, so that no two rows are alike."""
    first, second = (_chain(_mix(seed[0] ^ jnp.uint32(n)), seed[1], batch, head, query) for n in (0, 0x68E31DA4))
    return first, second


def dropout_word(seed: jax.Array | Sequence[jax.Array], position: jax.Array) -> jax.Array:
    """What `kept_by` takes of a column of weights; arguments as in `dropout_keep`."""
    return _chain(_mix(seed[0] ^ jnp.uint32(0xB5297A4D)), seed[1], position)


def kept_by(row: tuple[jax.Array, jax.Array], column: jax.Array, rate: float | jax.Array) -> jax.Array:
    """Which weights survive, of words of rows and columns: few operations an entry, for every entry needs its own."""
    word = (column ^ row[0]) * jnp.uint32(0x7FEB352D) + row[1]
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    # compared with a sign, as all platforms can
    if isinstance(rate, float):
        return word.astype(jnp.int32) >= jnp.int32(min(round(rate * 2.0**32), 2**32 - 1) - 2**31)
    return word.astype(jnp.int32) >= (rate * 2.0**32 - 2.0**31).astype(jnp.int32)


def dropout_keep(
    seed: jax.Array | Sequence[jax.Array],
    batch: jax.Array,
    head: jax.Array,
    query: jax.Array,
    position: jax.Array,
    rate: float | jax.Array,
) -> jax.Array:
    """Which attention weights survive dropout: a pure function of global indices.

    Args:
      seed: pair of uint32, see dropout_seed.
      batch, head, query, position: arrays of *global* indices, broadcast against one another.
      rate: probability of dropping.

    Returns:
      Boolean array of the broadcast shape. The same entries are dropped by every implementation and sharding.
    """
    return kept_by(dropout_words(seed, batch, head, query), dropout_word(seed, position), rate)


def kernel_attention_reference(
    q_BxTxHxD: jax.Array,
    k_BxSxHxD: jax.Array,
    v_BxSxHxD: jax.Array,
    *,
    q_time_BxT: jax.Array,
    k_time_BxS: jax.Array,
    kv_range_BxTx2: jax.Array,
    kernel: Kernel,
    source_bias_BxHxMxS: jax.Array | None = None,
    q_modality_BxT: jax.Array | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    skip_tolerance: float = 0.0,
    bit_causal: bool = True,
    newest_time_BxT: jax.Array | None = None,
    first_index: Sequence[int | jax.Array] = (0, 0, 0, 0),
) -> tuple[jax.Array, jax.Array]:
    """The definition above; arguments and errors as in `api.kernel_attention`; nothing is skipped, all is bit-causal.

    Returns:
      (out_BxTxHxD, log_sum_exp_BxHxT).
    """
    del skip_tolerance, bit_causal
    n_key, depth = k_BxSxHxD.shape[1], q_BxTxHxD.shape[3]
    scale = depth**-0.5 if scale is None else scale
    dtype = jnp.promote_types(q_BxTxHxD.dtype, jnp.float32)
    q, k, v = (x.astype(dtype) for x in (q_BxTxHxD, k_BxSxHxD, v_BxSxHxD))
    mask_BxTxS = visible_BxTxS(kv_range_BxTx2, n_key)
    logit_BxHxTxS = jnp.einsum("bthd,bshd->bhts", q * scale, k, precision="highest")
    if source_bias_BxHxMxS is not None:
        n_modality = source_bias_BxHxMxS.shape[2]
        onehot_BxTxM = jax.nn.one_hot(q_modality_BxT, n_modality, dtype=dtype)
        logit_BxHxTxS += jnp.einsum(
            "btm,bhms->bhts", onehot_BxTxM, source_bias_BxHxMxS.astype(dtype), precision="highest"
        )
    if kernel is not None:
        q_time_BxT, k_time_BxS = q_time_BxT.astype(dtype), k_time_BxS.astype(dtype)
        n_BxT, gap_BxT = row_times(q_time_BxT, k_time_BxS, kv_range_BxTx2, newest_time_BxT)
        known_BxTxS = jnp.minimum(k_time_BxS[:, None], q_time_BxT[..., None])
        behind_BxTxS = jnp.where(mask_BxTxS, jnp.maximum(n_BxT[..., None] - known_BxTxS, 0.0), 0.0)
        kind, row, head = kernel_rows(kernel, gap_BxT)
        logit_BxHxTxS += log_kernel(kind, row, head, behind_BxTxS, gap_BxT)
    mask_Bx1xTxS = mask_BxTxS[:, None]
    logit_BxHxTxS = jnp.where(mask_Bx1xTxS, logit_BxHxTxS, -jnp.inf)
    peak = jax.lax.stop_gradient(jnp.max(logit_BxHxTxS, axis=-1, keepdims=True))
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    weight = jnp.where(mask_Bx1xTxS, jnp.exp(logit_BxHxTxS - peak), 0.0)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    any_visible = total > 0
    log_sum_exp = jnp.where(any_visible, peak + jnp.log(jnp.where(any_visible, total, 1.0)), -jnp.inf)
    weight = weight / jnp.where(any_visible, total, 1.0)
    if dropout_rate > 0.0:
        weight = _dropped(weight, dropout_rate, dropout_key, first_index)
    out = jnp.einsum("bhts,bshd->bthd", weight, v, precision="highest").astype(q_BxTxHxD.dtype)
    out = checkpoint_name(out, "attended")  # as what fused forward passes leave, see fused.CHECKPOINT_NAME
    return out, log_sum_exp[..., 0]


def _dropped(weight_BxHxTxS, rate, key, first_index):
    """Weights of which each is 0 with probability `rate`, decided by its indices from `first_index` on."""
    positions = []
    for axis, (first, n) in enumerate(zip(first_index, weight_BxHxTxS.shape, strict=True)):
        positions.append(jnp.expand_dims(first + jnp.arange(n), [a for a in range(4) if a != axis]))
    b, h, t, s = positions
    keep = dropout_keep(dropout_seed(key), b, h, t, s, rate)
    return jnp.where(keep, weight_BxHxTxS / (1.0 - rate), 0.0)
