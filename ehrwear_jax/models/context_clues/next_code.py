"""Declares the one term of ContextClues: cross-entropy of the token that follows."""

import dataclasses
from collections.abc import Mapping

import jax

from ehrwear_jax.models.layers.vocabulary_loss import TokenLoss
from ehrwear_jax.models.objective import masked_mean, n_true


@dataclasses.dataclass(frozen=True)
class NextCode:
    """Mean over tokens of -log p(the token that follows), nats."""

    name: str = "next_code"

    def normaliser(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """How many tokens are predicted."""
        return n_true(batch["target"] >= 0)

    def loss(
        self, out: TokenLoss, batch: Mapping[str, jax.Array], normaliser: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(mean of out.nll, {"accuracy": share of targets that no token has a higher score than})."""
        predicted = batch["target"] >= 0
        return masked_mean(out.nll, predicted, normaliser), {"accuracy": masked_mean(out.right, predicted, normaliser)}
