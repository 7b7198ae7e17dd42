"""Computes the losses of CEHR-BERT: tokens that were hidden, their values, and the types of visits.

Each is a mean over what is predicted in the whole batch. The original's loss of values divides by all values of a
sequence, predicted or not.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ehrwear_jax.models.layers.vocabulary_loss import TokenLoss
from ehrwear_jax.models.objective import masked_mean, n_true


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of what a field of the batch says is predicted; -1 there: nothing.

    Attributes:
      name: of the term. target: of the field.
    """

    name: str
    target: str

    def normaliser(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """How many targets there are."""
        return n_true(batch[self.target] >= 0)

    def loss(
        self, out: TokenLoss, batch: Mapping[str, jax.Array], normaliser: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(nats, {"accuracy": share of targets with the highest score})."""
        there = batch[self.target] >= 0
        right = masked_mean(out.right.astype(jnp.float32), there, normaliser)
        return masked_mean(out.nll, there, normaliser), {"accuracy": right}


@dataclasses.dataclass(frozen=True)
class MaskedValues:
    """Mean squared error of the values of predicted tokens, in standard deviations of their codes."""

    name: str = "masked_values"

    def normaliser(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """How many predicted tokens have a value."""
        return n_true(batch["has_value_target"])

    def loss(
        self, out: jax.Array, batch: Mapping[str, jax.Array], normaliser: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(mean of the squares, {}); out: predicted values [B, T]."""
        return masked_mean((out - batch["value_target"]) ** 2, batch["has_value_target"], normaliser), {}
