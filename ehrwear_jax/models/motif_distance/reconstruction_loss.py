"""Computes the loss of reconstructing hidden samples of signal."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ehrwear_jax.models.layers.instance_norm import statistics
from ehrwear_jax.models.motif_distance.network import pieces


class Reconstruction:
    """Mean squared error of hidden samples that were observed, at the frames that are reconstructed.

    Args:
      stride: samples for a frame.
    """

    name = "reconstruction"

    def __init__(self, stride: int) -> None:
        self._stride = stride

    def judged(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Which samples are: bool [R, T, A]."""
        _, observed, hidden = pieces(batch)
        return (observed & hidden[..., None])[:, :: self._stride]

    def normaliser(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """How many samples are judged."""
        return self.judged(batch).sum(dtype=jnp.float32)

    def loss(
        self, out: jax.Array, batch: Mapping[str, jax.Array], normaliser: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss, {"of_mean": that of the mean of what is not hidden, "judged": samples})."""
        signal, observed, hidden = pieces(batch)
        judged, count = self.judged(batch), jnp.maximum(normaliser, 1.0)
        mean, _ = statistics(signal, observed & ~hidden[..., None])

        def error(x):
            return jnp.where(judged, (x - signal[:, :: self._stride]) ** 2, 0.0).sum() / count

        return error(out), {"of_mean": error(mean), "judged": judged.sum(dtype=jnp.float32)}
