"""Predicts values: the state of each frequent numeric code and of each channel, which z is to hold at queries."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ehrwear_jax.models.family import Batch
from ehrwear_jax.models.joint import value_fields, value_states
from ehrwear_jax.models.joint.layout import Contexts
from ehrwear_jax.models.joint.terms import Arrays, Latents, Loss, Term
from ehrwear_jax.models.layers.dense import dense

_PRIOR_COUNT = 10.0  # so many targets of variance 1 are added to those of a batch


class StateTerm(Term):
    """A term that asks z of a query for the state of series: statistics X of each series U of what was seen before it.

    Squared error over the target's variance in the batch, so that 1 is what a model costs that knows means only,
    whatever the series and the statistic. A target of which the batch has n counts 1 / sqrt(n): frequent ones do not
    drown rare ones, and rare ones do not speak as loudly as a mean over series would let them.

    Attributes:
      field: of the batch, the statistics; <field>_mask says which are known. axes: names of U and X.
    """

    field: ClassVar[str]
    axes: ClassVar[tuple[str, str]]

    @property
    def n_series(self) -> int:
        """U."""
        raise NotImplementedError

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of X."""
        raise NotImplementedError

    def write(self, batch: Batch, c: Contexts) -> None:
        """Writes the field and its mask."""
        raise NotImplementedError

    def has_targets(self) -> bool:
        return self.n_series > 0

    def fill(self, batch: Batch, c: Contexts) -> None:
        if not c.people.value_inputs:  # else they are written, as inputs
            self.write(batch, c)

    def head(self) -> nn.Module:
        return dense((self.n_series, len(self.statistics)), ("embed", *self.axes))

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        return head(z.query_BxQxD)

    def normaliser(self, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        return balanced(batch[self.field], batch[f"{self.field}_mask"])

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        share_UxX = unexplained(out, batch[self.field], batch[f"{self.field}_mask"], normaliser)
        return state_loss(share_UxX, normaliser[1], self.statistics)


class EhrValues(StateTerm):
    """The state of each numeric code: how much it was, where EhrHistory says when.

    Last value and time since it, and mean, maximum, minimum, trend and count over spans back (value_states.py) of what
    the context shows before the query: hidden events and what lies before its first token do not count. Values are on
    the scale of value_scales.py.
    """

    name = "ehr_values"
    needs = ("ehr",)
    targets = value_fields.CODES
    field, axes = "query_value", ("value_code", "value_statistic")

    @property
    def n_series(self) -> int:
        return self.facts.value_codes

    @property
    def statistics(self) -> tuple[str, ...]:
        return value_states.names(self.config.context.value_spans)

    def write(self, batch: Batch, c: Contexts) -> None:
        value_fields.fill_codes(batch, c)


class WearValues(StateTerm):
    """The state of each channel: the last step, and mean, spread and trend over spans back of the steps that are shown.

    Hidden steps do not count.
    """

    name = "wear_values"
    needs = ("wear",)
    targets = value_fields.CHANNELS
    field, axes = "query_signal", ("channel", "signal_statistic")

    @property
    def n_series(self) -> int:
        return self.facts.channels

    @property
    def statistics(self) -> tuple[str, ...]:
        return value_states.signal_names(self.config.context.wear_spans)

    def write(self, batch: Batch, c: Contexts) -> None:
        value_fields.fill_channels(batch, c)


def balanced(target_BxQxUxG: jax.Array, mask_BxQxUxG: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(variance of each target in the batch, towards 1 where there are few; weight n / sqrt(n)): float32 [U, G]."""
    count = jnp.sum(mask_BxQxUxG, (0, 1), jnp.float32)
    known = jnp.where(mask_BxQxUxG, target_BxQxUxG, 0.0)
    mean = jnp.sum(known, (0, 1)) / jnp.maximum(count, 1)
    apart = jnp.where(mask_BxQxUxG, jnp.square(target_BxQxUxG - mean[None, None]), 0.0)
    return (jnp.sum(apart, (0, 1)) + _PRIOR_COUNT) / (count + _PRIOR_COUNT), jnp.sqrt(count)


def unexplained(
    out_BxQxUxG: jax.Array, target_BxQxUxG: jax.Array, mask_BxQxUxG: jax.Array, normaliser: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Sum over a part of the batch of the squared error over the variance, times 1 / sqrt(n): float32 [U, G].

    Summed over all parts and divided by the weight of `balanced`, it is the target's unexplained share of variance.
    """
    variance_UxG, weight_UxG = normaliser
    error = jnp.where(mask_BxQxUxG, jnp.square(out_BxQxUxG.astype(jnp.float32) - target_BxQxUxG), 0.0)
    return jnp.sum(error, (0, 1)) / (variance_UxG * jnp.maximum(weight_UxG, 1.0))


def state_loss(share_UxG: jax.Array, weight_UxG: jax.Array, names: tuple[str, ...]) -> Loss:
    """(unexplained share over all series and statistics, {statistic: that of it, but for extremes})."""
    part_G = jnp.sum(share_UxG, axis=0) / jnp.maximum(jnp.sum(weight_UxG, axis=0), 1e-9)
    parts = {name: part_G[g] for g, name in enumerate(names) if not name.startswith(("max", "min"))}
    return jnp.sum(share_UxG) / jnp.maximum(jnp.sum(weight_UxG), 1e-9), parts


TERMS = (EhrValues, WearValues)
