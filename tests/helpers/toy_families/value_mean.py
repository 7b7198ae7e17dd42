"""A family of four numbers on rows of the joint one, for tests of what befalls a run: it compiles to next to nothing.

The loss is the mean of the values in the batch, so that what a batch holds decides it, and each number's gradient is
the loss. With the optimizer of toy_training a step is w <- 0.9 w + loss.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ehrwear_jax.models.joint.config import Config
from ehrwear_jax.models.joint.family import examples
from ehrwear_jax.models.objective import Ramp, WeightedTerms

__all__ = ["Config", "examples", "flops", "network", "objective"]


class Network(nn.Module):
    """Four numbers."""

    @nn.compact
    def __call__(self, batch, deterministic=True):
        return {"mean": self.param("w", nn.initializers.constant(0.1), (4,))}

    @nn.compact
    def encode(self, batch, deterministic=True):
        w = self.param("w", nn.initializers.constant(0.1), (4,))
        return w[None, None] + batch["query_time"][..., None]


class Mean:
    """Mean of the values, with a gradient of as much for each number."""

    name = "mean"

    def normaliser(self, batch):
        return jnp.float32(batch["value"].size)

    def loss(self, out, batch, normaliser):
        mean = jnp.sum(batch["value"]) / normaliser
        return mean + jax.lax.stop_gradient(mean) * jnp.sum(out - jax.lax.stop_gradient(out)), {}


def network(spec, config, mesh_ops=None):
    del spec, config, mesh_ops
    return Network()


def objective(spec, config):
    del spec, config
    return WeightedTerms((Mean(),), {"mean": Ramp(1.0, 1.0)})


def flops(spec, config, sizes, counts):
    del spec, config, sizes, counts
    return 0.0
