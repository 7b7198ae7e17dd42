"""A family whose terms have known gradients on z: z is x times a matrix, each term a mean of z in a direction.

Over N rows, the gradient of scale * mean(z . d) is scale d / N in every row: its norm is scale |d| / sqrt(N). `quiet`
reads the inputs and not z.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.family import BatchSpec, Examples, Field
from ehrwear_jax.models.objective import Ramp, WeightedTerms

WIDTH = 4
SCALES = {"loud": 100.0, "soft": 0.5, "quiet": 3.0}
WEIGHTS = {"loud": (1.0, 1.0, 0), "soft": (1.0, 3.0, 4), "quiet": (0.25, 0.25, 0)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options."""

    halves: bool = True


class Rows(Examples):
    """Random rows; every second row says nothing to `soft`."""

    def __init__(self, seed=0):
        fields = {"x": Field("D", np.float32, 0, "features"), "real": Field("S", np.bool_, False, "whether soft reads")}
        self.seed, self.spec, self.subject_id = seed, BatchSpec({"D": WIDTH, "S": 1}, fields), np.arange(8)
        self.rows_per_epoch = 8

    def fill(self, row, g):
        row["x"][:] = np.random.default_rng([self.seed, g]).normal(size=WIDTH)
        row["real"][:] = g % 2 == 0

    def subjects(self, rows):
        return sorted(set(rows))

    def prediction_batches(self, position_N, time_us_N, batch_size, transform=None):
        raise NotImplementedError

    def counts(self, batch):
        return {"tokens": len(batch["x"]), "patient_days": 0}


class Network(nn.Module):
    """The matrix, and a number per term that scales its direction."""

    def setup(self):
        self.inner = nn.Dense(WIDTH, use_bias=False)
        self.heads = {name: self.param(name, nn.initializers.ones, ()) for name in SCALES}

    def __call__(self, batch, deterministic=True):
        return self._heads(self.inner(batch["x"]), batch["x"], SCALES)

    def _heads(self, z, x, names):
        return {name: self.heads[name] * (x if name == "quiet" else z) for name in names}


class Halves(Network):
    """A network that says what z is."""

    def read(self, batch):
        return self.inner(batch["x"]), batch["x"]

    def predicted(self, z, more, batch, names):
        del batch
        return self._heads(z, more, names)


@dataclasses.dataclass(frozen=True)
class Mean:
    """Scale times the mean of z's first number (loud, quiet), or of the sum of all where a row is real (soft)."""

    name: str

    def normaliser(self, batch):
        return jnp.sum(batch["real"]) if self.name == "soft" else jnp.float32(len(batch["x"]))

    def loss(self, out, batch, normaliser):
        value = jnp.sum(out, axis=1) * batch["real"][:, 0] if self.name == "soft" else out[:, 0]
        return SCALES[self.name] * jnp.sum(value) / normaliser, {}


def norms(n_rows, n_real):
    """Of the gradients on z, while all heads are 1."""
    return {"loud": 100 / n_rows**0.5, "soft": 0.5 * WIDTH**0.5 / n_real**0.5, "quiet": 0.0}


def examples(store, config, seed=0, train=True):
    del store, config, train
    return Rows(seed)


def network(spec, config, mesh_ops=None):
    del spec, mesh_ops
    return Halves() if config.halves else Network()


def objective(spec, config):
    del spec, config
    return WeightedTerms(tuple(map(Mean, SCALES)), {name: Ramp(*w) for name, w in WEIGHTS.items()})


def flops(spec, config, sizes, counts):
    del spec, config, sizes, counts
    return 0.0
