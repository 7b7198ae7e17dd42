"""Defines a loss term of the joint family: what it predicts, from what, and how wrong that is, in one place."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.family import Batch, Field
from ehrwear_jax.models.joint.batch import Facts
from ehrwear_jax.models.joint.config import Config
from ehrwear_jax.models.joint.layout import Contexts

Arrays = Mapping[str, jax.Array]  # a batch
Loss = tuple[jax.Array, dict[str, jax.Array]]  # value, diagnostics

# fields of the events at which predictions are made, for the terms that are made there
EVENTS = {"event_position": Field("E", np.int32, -1, "token position of an event: the last of its time")}


class Latents(NamedTuple):
    """What the heads read: latents of tokens and queries, contents of tokens before time and context, raw windows.

    Drawn from their posteriors while training the ELBO variant, whose means, variances and prior are `posterior`.

    Attributes:
      drawn_BxTxD: states of tokens for likelihoods, drawn at inference too, where `token_BxTxD` are means.
    """

    token_BxTxD: jax.Array
    query_BxQxD: jax.Array
    content_BxTxD: jax.Array
    posterior: dict[str, jax.Array]
    drawn_BxTxD: jax.Array
    raw_BxNxD: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss term. Subclasses say what is their own; a term is a function of its fields and of the model's config.

    Attributes:
      name: as in config.WEIGHTS.
      needs: modalities without which there is nothing to predict, or to predict from.
      targets: fields of a batch that `fill` writes. at_events: whether predictions are made at events too.
      hides_signal: whether steps of windows are hidden for it.
      uses: heads that several terms share: "codes" (see ehr_terms.CodeTerm), "signal" (network.signal_decoder).
    """

    facts: Facts
    config: Config

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    targets: ClassVar[dict[str, Field]] = {}
    at_events: ClassVar[bool] = False
    hides_signal: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ()

    def has_targets(self) -> bool:
        """Whether the data have what it predicts, beside the modalities."""
        return True

    def fill(self, batch: Batch, c: Contexts) -> None:
        """Writes the targets of all contexts of some rows."""

    def head(self) -> nn.Module | None:
        """The term's own head."""
        return None

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        """What `loss` takes, from the latents."""
        raise NotImplementedError

    def normaliser(self, batch: Arrays) -> Any:
        """What the term averages over, from the batch alone."""
        raise NotImplementedError

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        """(a sum divided by the normaliser, diagnostics)."""
        raise NotImplementedError


def take(z_BxTxD: jax.Array, position_BxN: jax.Array) -> jax.Array:
    """Vectors at positions, [B, N, D]; those of -1 are some vector."""
    return jnp.take_along_axis(z_BxTxD, jnp.maximum(position_BxN, 0)[..., None], axis=1)


def active(config: Config, facts: Facts) -> tuple[Term, ...]:
    """The terms whose weight is not zero throughout and that the modalities can feed, in the order of WEIGHTS."""
    # they subclass Term
    from ehrwear_jax.models.joint import cross_terms, ehr_terms, next_value, raw_terms, value_terms, wear_terms
    from ehrwear_jax.models.joint import likelihood_terms as likelihoods
    from ehrwear_jax.models.joint import person_terms as person

    modules = (ehr_terms, value_terms, next_value, wear_terms, raw_terms, cross_terms, likelihoods, person)
    known = {t.name: t for module in modules for t in module.TERMS}
    found = []
    for name, (start, end, _) in config.weights.items():
        if (start or end) and set(known[name].needs) <= set(facts.modalities):
            term = known[name](facts, config)
            found += [term] if term.has_targets() else []
    return tuple(found)


def target_fields(terms: tuple[Term, ...]) -> dict[str, Field]:
    """The fields that the terms' targets take of a batch."""
    fields = dict(EVENTS) if any(t.at_events for t in terms) else {}
    for term in terms:
        fields |= term.targets
    return fields
