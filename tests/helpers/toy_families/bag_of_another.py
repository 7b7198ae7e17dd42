"""A family that needs another model: it learns what a trained bag of codes makes of the same people.

The other way round from what is usual: what it needs is not used where its own z is read.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from toy_families import bag_of_codes

from ehrwear_jax.models.objective import Ramp, WeightedTerms

examples, flops = bag_of_codes.examples, bag_of_codes.flops


@dataclasses.dataclass(frozen=True)
class Config:
    """Options."""

    width: int = 8
    """Of z."""
    teacher: str = "bag"
    """Model that it needs."""

    @property
    def needs(self):
        return (self.teacher,)


class Network(nn.Module):
    """One product."""

    config: Config

    @nn.compact
    def encode(self, batch, deterministic=True):
        return nn.Dense(self.config.width, name="inner")(batch["bag"])[:, None]

    @nn.compact
    def __call__(self, batch, deterministic=True, needed=None):
        z = self.encode(batch, deterministic)
        if self.is_initializing():
            return {"distilled": (z, z)}
        return {"distilled": (z, needed[self.config.teacher](batch, method="encode"))}


class Distilled:
    """Mean squared difference."""

    name = "distilled"

    def normaliser(self, batch):
        return jnp.float32(len(batch["bag"]))

    def loss(self, out, batch, normaliser):
        return jnp.sum((out[0] - out[1]) ** 2) / normaliser, {"of_zero": jnp.sum(out[1] ** 2) / normaliser}


def network(spec, config, mesh_ops=None):
    return Network(config)


def objective(spec, config):
    return WeightedTerms((Distilled(),), {"distilled": Ramp(1.0, 1.0)})
