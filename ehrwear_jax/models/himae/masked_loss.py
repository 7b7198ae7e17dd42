"""Computes HiMAE's loss: the squared error of hidden samples."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from ehrwear_jax.models.himae.network import hidden_samples
from ehrwear_jax.models.objective import masked_mean, n_true


@dataclasses.dataclass(frozen=True)
class Masked:
    """Mean squared error over samples that were observed and hidden, in units of half a piece's range.

    Diagnostic: mean_error, that of the mean of what is seen of each channel of a piece.

    Attributes:
      patch: samples of a patch.
    """

    patch: int
    name: ClassVar[str] = "masked"

    def normaliser(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """How many samples are predicted."""
        return n_true(self.predicted(batch))

    def loss(
        self, out_BxNxSxA: jax.Array, batch: Mapping[str, jax.Array], normaliser: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss, diagnostics)."""
        target, asked = batch["signal"], self.predicted(batch)
        seen = batch["observed"] & ~hidden_samples(batch, self.patch)[..., None]
        count = jnp.maximum(jnp.sum(seen, axis=2, keepdims=True, dtype=jnp.float32), 1.0)
        mean = jnp.sum(jnp.where(seen, target, 0.0), axis=2, keepdims=True) / count
        trivial = masked_mean((mean - target) ** 2, asked, normaliser)
        return masked_mean((out_BxNxSxA - target) ** 2, asked, normaliser), {"mean_error": trivial}

    def predicted(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Observed samples of hidden patches: bool [B, N, S, A]."""
        return batch["observed"] & hidden_samples(batch, self.patch)[..., None]
