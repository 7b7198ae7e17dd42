"""Checks the arguments of the public kernel attention op and picks an implementation."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention import mosaic_tpu, reference, triton, xla
from ehrwear_jax.ops.kernel_attention.reference import Kernel

# Name -> callable that raises NotImplementedError where it cannot run; the first that can is taken when none is named.
IMPLEMENTATIONS = {
    "mosaic_tpu": mosaic_tpu.kernel_attention_mosaic_tpu,
    "triton": triton.kernel_attention_triton,
    "xla": xla.kernel_attention_xla,
    "reference": reference.kernel_attention_reference,
}
_logged: set[str] = set()


def _check(condition, message):
    if not condition:
        raise ValueError(f"kernel_attention: {message}")


def kernel_attention(
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
    implementation: str | None = None,
    return_residuals: bool = False,
    newest_time_BxT: jax.Array | None = None,
    first_index: Sequence[int | jax.Array] = (0, 0, 0, 0),
    options: Mapping[str, Any] | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
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
      dropout_rate: probability of dropping an attention weight; dropout_key is needed when it is positive. What is
        dropped is a function of the key and of the global indices of batch row, head, query and key.
      skip_tolerance: keys may be left out when they provably carry at most this share of a query's weight, which moves
        its output by at most 2 skip_tolerance max |v|. 0 leaves out nothing.
      bit_causal: whether no bit of an output may depend on what its query does not see. False lets times of unseen keys
        decide in which of two ways, equal but for rounding, an implementation computes a tile; `triton` is faster so
        where contexts stand packed in rows.
      implementation: a name in IMPLEMENTATIONS, or None for the best that can run the call here.
      return_residuals: also return the log-sum-exp of the logits, by which results for disjoint sets of keys combine.
      newest_time_BxT: time of the newest key that a query sees in all sets of keys, when this call has one of several.
      first_index: global indices of the first batch row, head, query and key, when this call has a part of them.
      options: keyword arguments of the implementation, such as {"block_q": 128, "block_k": 128}.

    q, k, v, source_bias and the kernel's parameters have gradients; times are constants.

    Returns:
      out_BxTxHxD in q's dtype; with return_residuals (out, log_sum_exp_BxHxT float32). The latter is of
      scale * q.k + bias + log K(t_i - t_j) - log K(t_i - n_i) over the visible keys, n_i = min(t_i, newest_time_i): so
      taken it keeps its digits however old the keys are. It is -inf where no key is visible.

    Raises:
      ValueError: shapes that disagree, a missing companion argument, an unknown implementation.
      NotImplementedError: the named implementation cannot run the call, with the reason.
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
    _check(0.0 <= skip_tolerance < 1.0, f"skip_tolerance {skip_tolerance} is outside [0, 1)")
    _check_kernel(kernel, n_head)
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"kernel_attention: no implementation {implementation!r}; there are {sorted(IMPLEMENTATIONS)}")
    arguments: dict[str, Any] = {
        "q_time_BxT": jax.lax.stop_gradient(q_time_BxT),
        "k_time_BxS": jax.lax.stop_gradient(k_time_BxS),
        "kv_range_BxTx2": kv_range_BxTx2,
        "kernel": kernel,
        "source_bias_BxHxMxS": source_bias_BxHxMxS,
        "q_modality_BxT": q_modality_BxT,
        "scale": scale,
        "dropout_rate": dropout_rate,
        "dropout_key": dropout_key,
        "skip_tolerance": skip_tolerance,
        "bit_causal": bit_causal,
        "newest_time_BxT": newest_time_BxT,
        "first_index": first_index,
    }
    if implementation is not None:
        found = IMPLEMENTATIONS[implementation](q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, **arguments, **(options or {}))
        return found if return_residuals else found[0]
    passed_over = []
    for name, run in IMPLEMENTATIONS.items():
        try:
            found = run(q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, **arguments, **(options or {}))
        except NotImplementedError as error:
            passed_over.append(f"not {name}: {error}")
            continue
        _log_once(f"kernel_attention: implementation {'; '.join([name, *passed_over])}")
        return found if return_residuals else found[0]
    raise AssertionError("the reference runs everywhere")


def _check_kernel(kernel, n_head):
    if isinstance(kernel, reference.ExponentialMixture):
        shapes = kernel.beta_HxR.shape, kernel.gamma_HxR.shape
        good = len(shapes[0]) == 2 and shapes[0] == shapes[1] and shapes[0][0] == n_head and shapes[0][1] > 0
        _check(good, f"beta, gamma {shapes}, expected twice [{n_head} heads, components]")
    elif isinstance(kernel, reference.RationalQuadratic):
        shapes = kernel.alpha_H.shape, kernel.length_H.shape
        _check(shapes == ((n_head,), (n_head,)), f"alpha, length {shapes}, expected twice [{n_head} heads]")
    else:
        _check(kernel is None, f"kernel is a {type(kernel).__name__}: ExponentialMixture, RationalQuadratic or None")


def _log_once(message):
    if message not in _logged:
        _logged.add(message)
        logging.info("%s", message)
