"""Drops activations by a hash of their places: cheap enough to be computed again where it is needed, and never kept."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention.reference import dropout_keep, dropout_seed


class Dropout(nn.Module):
    """Each entry of [B, N, D] is zero with chance `rate`, else divided by 1 - rate.

    What is dropped is a function of the key and of the entry's indices, by the hash that drops attention weights. A
    counter-based generator takes eight times as many operations an entry, for bits that XLA then writes to memory and
    reads again, forward and backward.

    Attributes:
      rate: in [0, 1). deterministic: whether nothing is dropped, and no key taken.
    """

    rate: float
    deterministic: bool

    def __call__(self, x_BxNxD: jax.Array) -> jax.Array:
        if self.deterministic or not self.rate:
            return x_BxNxD
        n_row, n_place, width = x_BxNxD.shape
        row, place, column = jnp.ogrid[:n_row, :n_place, :width]
        keep = dropout_keep(dropout_seed(self.make_rng("dropout")), row, jnp.uint32(0), place, column, self.rate)
        return jnp.where(keep, x_BxNxD / (1.0 - self.rate), jnp.zeros((), x_BxNxD.dtype))
