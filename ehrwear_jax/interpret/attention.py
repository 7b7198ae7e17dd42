"""Computes attention weights, attention rollout, and the learned kernels of time.

Attention weights are not causal evidence; they are to be compared with occlusion and counterfactuals (attribution.py).

Axes: B batch, T tokens, Q queries, H heads, N layers.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from ehrwear_jax.models.layers.transformer import TimeKernel
from ehrwear_jax.ops.kernel_attention import reference


def attention_weights(
    model: nn.Module, params: Mapping[str, Any], batch: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Softmax weights of every layer, by the reference formula, without dropout.

    Memory is N * B * H * T * (T + Q) floats: one or a few patients at a time.

    Args:
      model: a network whose `backbone` is layers.transformer.Backbone. params: its parameters. batch: of its family.

    Returns:
      (token_NxBxHxTxT, query_NxBxHxQxT) float32; rows sum to 1, or to 0 where nothing is visible.
    """
    _, sown = model.apply({"params": params}, batch, method="encode", mutable=["intermediates"])
    tokens, queries = sown["intermediates"]["backbone"]["blocks"]["attention_calls"]
    return jax.lax.map(_weights, tokens), jax.lax.map(_weights, queries)


def _weights(call):
    """[B, H, T, S] of one call of the op in models/layers/transformer.py."""
    n_batch, n_key, n_head, _ = call["key"].shape
    # with the identity as values, what attention returns are its weights
    identity = jnp.broadcast_to(jnp.eye(n_key)[None, :, None], (n_batch, n_key, n_head, n_key))
    weight_BxTxHxS, _ = reference.kernel_attention_reference(
        call["query"].astype(jnp.float32),
        call["key"],
        identity,
        q_time_BxT=call["time"],
        k_time_BxS=call["key_time"],
        kv_range_BxTx2=call["kv_range"],
        kernel=call["kernel"],
        source_bias_BxHxMxS=call["bias"],
        q_modality_BxT=call["modality"],
    )
    return weight_BxTxHxS.transpose(0, 2, 1, 3)


def rollout(token_NxBxHxTxT: npt.ArrayLike, query_NxBxHxQxT: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Attention rollout (Abnar & Zuidema 2020): how much of each token's content reaches each query, by weights alone.

    Heads are averaged; the residual path is half of each layer: A = (I + mean_h W_h) / 2, tokens that see nothing keep
    all of it. Tokens: R_n = A_n R_{n-1}, R_0 = I. A query is seen by nobody and starts from itself, so what it holds of
    the tokens is r_n = r_{n-1} / 2 + (mean_h W_h) R_{n-1} / 2, r_0 = 0.

    Returns:
      (token_BxTxT, query_BxQxT) float64; the rows of tokens sum to 1, those of queries to 1 - 2**-N where they see
      anything in each layer (the rest is the query itself).
    """
    token_NxBxTxT, query_NxBxQxT = (np.asarray(w, np.float64).mean(2) for w in (token_NxBxHxTxT, query_NxBxHxQxT))
    n_batch, n_token = token_NxBxTxT.shape[1:3]
    token_BxTxT = np.broadcast_to(np.eye(n_token), (n_batch, n_token, n_token))
    query_BxQxT = np.zeros(query_NxBxQxT.shape[1:])
    for token_weight, query_weight in zip(token_NxBxTxT, query_NxBxQxT, strict=True):
        sees = query_weight.sum(-1, keepdims=True)
        query_BxQxT = query_BxQxT * (1.0 - 0.5 * sees) + 0.5 * query_weight @ token_BxTxT
        own = 1.0 - 0.5 * token_weight.sum(-1, keepdims=True)
        token_BxTxT = own * token_BxTxT + 0.5 * token_weight @ token_BxTxT
    return token_BxTxT, query_BxQxT


def learned_kernels(
    kernel_params: Mapping[str, Any],
    kind: str,
    n_heads: int,
    n_components: int,
    unit_days: float,
    days_K: npt.ArrayLike,
) -> np.ndarray:
    """K(d) / K(0) of every layer and head at the given gaps.

    Args:
      kernel_params: the parameters of the scanned layers' TimeKernel, leading axis N: for MultimodalModel
        params["backbone"]["blocks"]["kernel"]; {} for kind "none".
      kind, n_heads, n_components: as in ModelConfig.
      unit_days: days of the unit of time that the kernels were learned in. days_K: gaps, days.

    Returns:
      float32 [N, H, K]; [1, H, K] of ones for kind "none".
    """
    gap_K = jnp.asarray(np.asarray(days_K, np.float64) / unit_days, jnp.float32)
    if kind == "none":
        return np.ones((1, n_heads, len(gap_K)), np.float32)
    module = TimeKernel(kind, n_heads, n_components)

    def curve(params):
        zero = jnp.zeros((1, 1))
        kernel: Any = module.apply({"params": params})
        rows = reference.kernel_rows(kernel, zero)
        return jnp.exp(reference.log_kernel(*rows, gap_K[None, None], zero))[0, :, 0]

    return np.asarray(jax.vmap(curve)(kernel_params))


def half_life_days(curve_NxHxK: npt.ArrayLike, days_K: npt.ArrayLike) -> np.ndarray:
    """The gap at which each kernel has fallen to one half, interpolated in log days; inf where it does not. [N, H]."""
    curve_NxHxK, log_days_K = np.asarray(curve_NxHxK, np.float64), np.log(np.asarray(days_K, np.float64))
    below = curve_NxHxK <= 0.5
    after = np.clip(below.argmax(-1), 1, len(log_days_K) - 1)[..., None]
    high, low = (np.take_along_axis(curve_NxHxK, after - k, -1)[..., 0] for k in (1, 0))
    share = np.clip((high - 0.5) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    after = after[..., 0]
    days = np.exp(log_days_K[after - 1] + share * (log_days_K[after] - log_days_K[after - 1]))
    return np.where(below.any(-1), days, np.inf)
