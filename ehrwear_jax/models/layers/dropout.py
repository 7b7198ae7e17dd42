"""Drops activations by a hash of their places: cheap enough to be computed again where it is needed, and never kept.

A counter-based generator takes eight times as many operations an entry, for bits that XLA writes to memory and reads
again, forward and backward.
"""

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention.reference import dropout_keep, dropout_seed

__all__ = ["dropout_seed", "dropped", "kept"]


def kept(shape: tuple[int, ...], rate: float | jax.Array, seed: jax.Array, stream: int) -> jax.Array:
    """Which entries of an array of three axes stay, each with chance 1 - rate: bool.

    A function of the seed, the stream and the entry's indices, by the hash that drops attention weights, whatever
    devices the array lies on.

    Args:
      seed: see reference.dropout_seed. stream: another number drops other entries by the same seed.
    """
    row, place, column = jnp.ogrid[: shape[0], : shape[1], : shape[2]]
    return dropout_keep(seed, row, jnp.uint32(stream), place, column, rate)


def dropped(x_BxNxD: jax.Array, rate: float, seed: jax.Array, stream: int) -> jax.Array:
    """Entries are zero with chance `rate`, else divided by 1 - rate; see kept."""
    zero = jnp.zeros((), x_BxNxD.dtype)
    return jnp.where(kept(x_BxNxD.shape, rate, seed, stream), x_BxNxD / (1.0 - rate), zero)
