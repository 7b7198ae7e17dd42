"""The public kernel attention op: checks its arguments and picks an implementation."""

import logging

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention import reference, xla

# Name -> callable; the first that can run the call is taken when none is named.
IMPLEMENTATIONS = {"xla": xla.kernel_attention_xla, "reference": reference.kernel_attention_reference}
_logged = set()


def _check(condition, message):
    if not condition:
        raise ValueError(f"kernel_attention: {message}")


def kernel_attention(
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
    skip_tolerance=0.0,
    implementation=None,
    return_residuals=False,
    newest_time_BxT=None,
    first_index=(0, 0, 0, 0),
):
    """Attention with logits scale * q.k + bias[modality of the query] + log K(time gap); see `reference`.

    Args:
      q_BxTxHxD, k_BxSxHxD, v_BxSxHxD: float arrays; softmax and log K are computed in float32.
      q_time_BxT, k_time_BxS: float32 days relative to any common origin.
      kv_range_BxTx2: int32, half-open range of visible keys of each query; both columns non-decreasing along T
        (faster implementations rely on it). An empty range gives zeros and zero gradients.
      kernel: ExponentialMixture, RationalQuadratic or None.
      source_bias_BxHxMxS: optional float, one bias per query modality and key.
      q_modality_BxT: int32 in [0, M), needed with source_bias.
      scale: multiplies q.k; D ** -0.5 when None.
      dropout_rate: probability of dropping an attention weight; dropout_key is needed when it is positive.
      implementation: a name in IMPLEMENTATIONS, or None for the best available.

    Returns:
      out_BxTxHxD in q's dtype.

    Raises:
      ValueError: shapes that disagree, a missing companion argument, an unknown implementation.
    """
    _check(q_BxTxHxD.ndim == 4 and k_BxSxHxD.ndim == 4, "q, k and v need four axes: batch, length, head, depth")
    n_batch, n_query, n_head, depth = q_BxTxHxD.shape
    n_key = k_BxSxHxD.shape[1]
    _check(
        k_BxSxHxD.shape == (n_batch, n_key, n_head, depth), f"k {k_BxSxHxD.shape} does not match q {q_BxTxHxD.shape}"
    )
    _check(v_BxSxHxD.shape[:3] == (n_batch, n_key, n_head), f"v {v_BxSxHxD.shape} does not match k {k_BxSxHxD.shape}")
    _check(q_time_BxT.shape == (n_batch, n_query), f"q_time {q_time_BxT.shape}, expected {(n_batch, n_query)}")
    _check(k_time_BxS.shape == (n_batch, n_key), f"k_time {k_time_BxS.shape}, expected {(n_batch, n_key)}")
    _check(
        kv_range_BxTx2.shape == (n_batch, n_query, 2),
        f"kv_range {kv_range_BxTx2.shape}, expected {(n_batch, n_query, 2)}",
    )
    _check(
        jnp.issubdtype(kv_range_BxTx2.dtype, jnp.integer), f"kv_range must hold integers, got {kv_range_BxTx2.dtype}"
    )
    _check((source_bias_BxHxMxS is None) == (q_modality_BxT is None), "source_bias and q_modality come together")
    _check(0.0 <= dropout_rate < 1.0, f"dropout_rate {dropout_rate} is outside [0, 1)")
    _check(dropout_rate == 0.0 or dropout_key is not None, "dropout needs dropout_key")
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"kernel_attention: no implementation {implementation!r}; there are {sorted(IMPLEMENTATIONS)}")
    name = implementation or next(iter(IMPLEMENTATIONS))
    if name not in _logged:
        _logged.add(name)
        logging.info("kernel_attention: implementation %s", name)
    out, log_sum_exp = IMPLEMENTATIONS[name](
        q_BxTxHxD,
        k_BxSxHxD,
        v_BxSxHxD,
        q_time_BxT=jax.lax.stop_gradient(q_time_BxT),
        k_time_BxS=jax.lax.stop_gradient(k_time_BxS),
        kv_range_BxTx2=kv_range_BxTx2,
        kernel=kernel,
        source_bias_BxHxMxS=source_bias_BxHxMxS,
        q_modality_BxT=q_modality_BxT,
        scale=scale,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        skip_tolerance=skip_tolerance,
        newest_time_BxT=newest_time_BxT,
        first_index=first_index,
    )
    return (out, log_sum_exp) if return_residuals else out
