"""Encodes a value beyond its bin: smooth curves of its quantile, mixed by what its code makes of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from ehrwear_jax.models.layers.dense import dense, embedding
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps


def curves(quantile: jax.Array, n_features: int) -> jax.Array:
    """Features of quantiles, float32 [..., F]: the normal score, then cos(pi k u), k = 1 to F - 1; zeros where u is 0.

    Args:
      quantile: float32 [...], u of the value within its code's training values, inside (0, 1); 0: there is no value.
    """
    known = quantile > 0
    u = jnp.where(known, quantile, 0.5)[..., None]
    wave_F = jnp.asarray(np.pi * np.arange(1, n_features), jnp.float32).reshape((1,) * quantile.ndim + (-1,))
    found = jnp.concatenate([ndtri(u), np.sqrt(2) * jnp.cos(wave_F * u)], axis=-1)
    return jnp.where(known[..., None], found, 0.0)


class ValueEncoder(nn.Module):
    """A product of the curves, scaled dimension by dimension by a vector of the token (FiLM: Perez et al., 2018).

    Attributes:
      vocabulary: number of tokens. width: of the token table. n_features: curves.
    """

    vocabulary: int
    width: int
    n_features: int
    mesh_ops: MeshOps = ONE_DEVICE

    def setup(self) -> None:
        self.gain = embedding(self.vocabulary, self.width)
        self.mix = dense(self.width, (None, None), use_bias=False)

    def __call__(self, token: jax.Array, quantile: jax.Array) -> jax.Array:
        """token int32 [...], quantile float32 [...] as in `curves` -> float32 [..., width]."""
        return self.mesh_ops.look_up(self.gain.embedding, token) * self.mix(curves(quantile, self.n_features))
