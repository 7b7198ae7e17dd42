"""Adds up loss terms with ramped weights: the objective that families of several terms share."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from ehrwear_jax.models.layers.vocabulary_loss import TokenLoss


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A loss weight: `start` at step 0, linear to `end` at `steps`, constant afterwards."""

    start: float
    end: float
    steps: int = 0

    def __call__(self, step: jax.Array | int) -> jax.Array | float:
        """The weight at a step."""
        share = jnp.clip(step / self.steps, 0.0, 1.0) if self.steps else 1.0
        return self.start + (self.end - self.start) * share


class Term(Protocol):
    """One term: what it averages over, from the batch alone, and its sum divided by that."""

    @property
    def name(self) -> str:
        """By which weights, normalisers and metrics are called."""
        ...

    def normaliser(self, batch: Mapping[str, jax.Array]) -> Any:
        """Arrays of a whole batch."""
        ...

    def loss(self, out: Any, batch: Mapping[str, jax.Array], normaliser: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(scalar, diagnostics) of what the network put out for this term; zero where nothing is to be predicted."""
        ...


@dataclasses.dataclass(frozen=True)
class WeightedTerms:
    """Weighted sum of terms (models/family.py, Objective): out is a dict with an entry per term.

    Attributes:
      bounds: {metric: terms of which it is the negative sum, whatever their weights}: logged where all are there.
    """

    terms: tuple[Term, ...]
    ramps: Mapping[str, Ramp]
    bounds: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def weights(self, step: jax.Array | int) -> dict[str, jax.Array | float]:
        """{term: weight} at a step."""
        return {t.name: self.ramps[t.name](step) for t in self.terms}

    def normalisers(self, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """{term: what it is divided by}, of a whole batch whose micro-batches are then given to the call."""
        return {t.name: t.normaliser(batch) for t in self.terms}

    def only(self, name: str) -> "WeightedTerms":
        """The objective of one of its terms."""
        return dataclasses.replace(self, terms=tuple(t for t in self.terms if t.name == name))

    def __call__(
        self, out: Any, batch: Mapping[str, jax.Array], weights: Mapping[str, Any], normalisers: Mapping[str, Any]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss, {"loss/total", "loss/<term>": value, "<term>/<diagnostic>": value})."""
        loss: Any = 0.0
        metrics: dict[str, jax.Array] = {}
        for term in self.terms:
            value, diagnostics = term.loss(out[term.name], batch, normalisers[term.name])
            loss = loss + weights[term.name] * value
            metrics[f"loss/{term.name}"] = value
            metrics |= {f"{term.name}/{k}": v for k, v in diagnostics.items()}
        for name, parts in self.bounds.items():
            if all(f"loss/{part}" in metrics for part in parts):
                metrics[name] = -functools.reduce(jnp.add, [metrics[f"loss/{part}"] for part in parts])
        return loss, metrics | {"loss/total": loss}


def n_true(mask: jax.Array, axis: Any = None) -> jax.Array:
    """How many are true, in float32: a global batch has more steps than int32 counts."""
    return jnp.sum(mask, axis=axis, dtype=jnp.float32)


def n_true_of(masks: Iterable[jax.Array]) -> jax.Array:
    """How many are true in all masks together, of which there is at least one."""
    return functools.reduce(jnp.add, map(n_true, masks))


def masked_mean(value: jax.Array, mask: jax.Array, count: jax.Array | None = None) -> jax.Array:
    """Sum of value where mask over count (by default, of the mask), 0.0 if that is nothing; float32."""
    mask = jnp.broadcast_to(mask, value.shape)
    total = jnp.sum(jnp.where(mask, value.astype(jnp.float32), 0.0))
    return total / jnp.maximum(n_true(mask) if count is None else count, 1)


@dataclasses.dataclass(frozen=True)
class NextCode:
    """The code that follows: mean over places of -log p, nats.

    Attributes:
      target: field of the batch with what follows each place, -1 where nothing is predicted.
    """

    target: str
    name: str = "next_code"

    def normaliser(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """How many places there are."""
        return n_true(batch[self.target] >= 0)

    def loss(
        self, out: TokenLoss, batch: Mapping[str, jax.Array], normaliser: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(mean of out.nll, {"accuracy": share of places where no code has a higher score than the right one})."""
        real = batch[self.target] >= 0
        return masked_mean(out.nll, real, normaliser), {"accuracy": masked_mean(out.right, real, normaliser)}
