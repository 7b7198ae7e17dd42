"""Computes a selective state space (Gu and Dao, "Mamba", 2023) whose state and convolution end with each context.

Axes: B rows, T tokens, I hidden units, S numbers that each of them remembers, W width of the convolution.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ehrwear_jax.models.layers.mesh_ops import no_constraint


def causal_convolution(x_BxTxI: jax.Array, kernel_WxI: jax.Array, begin_BxT: jax.Array) -> jax.Array:
    """sum_w kernel_w x_{t - w}, each hidden unit for itself, over tokens of the same context: [B, T, I].

    Args:
      begin_BxT: int32, position of the first token of each token's context.
    """
    position = jnp.arange(x_BxTxI.shape[1])[None]
    out = x_BxTxI * kernel_WxI[0][None, None]
    for w in range(1, kernel_WxI.shape[0]):
        earlier = jnp.pad(x_BxTxI, ((0, 0), (w, 0), (0, 0)))[:, : x_BxTxI.shape[1]]
        own = (position - w >= begin_BxT)[..., None]
        out = out + jnp.where(own, earlier * kernel_WxI[w][None, None], jnp.zeros((), x_BxTxI.dtype))
    return out


def selective_scan(
    x_BxTxI: jax.Array,
    step_BxTxI: jax.Array,
    rate_IxS: jax.Array,
    write_BxTxS: jax.Array,
    read_BxTxS: jax.Array,
    begins_BxT: jax.Array,
    *,
    chunk: int,
    constrain: Callable = no_constraint,
) -> jax.Array:
    """y_t = h_t . read_t of h_t = exp(-step_t rate) h_{t-1} + step_t x_t write_t, where h is 0 ahead of each context.

    An associative scan solves the recurrence in a chunk of tokens, and chunks follow each other. The backward pass
    computes a chunk's states again, so that only B x chunk x I x S of them are alive at once, and one state a chunk.

    Args:
      x_BxTxI, step_BxTxI, write_BxTxS, read_BxTxS: float32; steps >= 0. rate_IxS: float32 > 0.
      begins_BxT: bool, whether a context begins with the token. constrain: of MeshOps.

    Returns:
      float32 [B, T, I].
    """
    n_batch, n_time, n_hidden = x_BxTxI.shape
    chunk = min(chunk, n_time)

    def pieces(x):  # zeros behind the last token: steps of none keep the state
        x = jnp.pad(x, ((0, 0), (0, -n_time % chunk)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(n_batch, -1, chunk, *x.shape[2:]), 1, 0)

    def join(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    @jax.checkpoint
    def one(state_BxIxS, piece):
        x, step, write, read, begins = piece
        keep = jnp.exp(-step[..., None] * rate_IxS[None, None])
        keep = constrain(jnp.where(begins[..., None, None], 0.0, keep), "batch", None, "mlp", None)
        add = constrain((step * x)[..., None] * write[:, :, None], "batch", None, "mlp", None)
        kept, found = jax.lax.associative_scan(join, (keep, add), axis=1)
        found = found + kept * state_BxIxS[:, None]
        return found[:, -1], jnp.einsum("btis,bts->bti", found, read)

    start = constrain(jnp.zeros((n_batch, *rate_IxS.shape), x_BxTxI.dtype), "batch", "mlp", None)
    given = (x_BxTxI, step_BxTxI, write_BxTxS, read_BxTxS, begins_BxT)
    _, y = jax.lax.scan(one, start, tuple(map(pieces, given)))
    return jnp.moveaxis(y, 0, 1).reshape(n_batch, -1, n_hidden)[:, :n_time]
