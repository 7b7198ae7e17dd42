"""A second family, outside the package: which codes a person has had, to which they will have; with batch norm.

About as short as a family can be. A run takes it by its dotted path: {"family": "toy_families.bag_of_codes"}.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.family import BatchSpec, Examples, Field
from ehrwear_jax.models.objective import Ramp, WeightedTerms


@dataclasses.dataclass(frozen=True)
class Config:
    """Options."""

    width: int = 8
    """Of z."""


class BagOfCodes(Examples):
    """A row is a person at a random time of their record: codes before it, and codes after it."""

    def __init__(self, store, config, seed=0, train=True):
        self.store, self.seed = store, seed
        self.subject_id = store.index["subject_id"].to_numpy()
        self.rows_per_epoch = max(1, len(store))
        fields = {"bag": Field("V", np.float32, 0, "log(1 + count) of each code so far"),
                  "later": Field("V", np.bool_, False, "whether the code follows")}  # fmt: skip
        self.spec = BatchSpec({"V": store.codes.height}, fields, store.codes.height)

    def _bag(self, codes):
        return np.log1p(np.bincount(codes, minlength=self.spec.facts)).astype(np.float32)

    def _draw(self, g):
        rng = np.random.default_rng([self.seed, int(g)])
        return int(rng.integers(len(self.store))), rng

    def fill(self, row, g):
        i, rng = self._draw(g)
        record = self.store[i]
        at = int(rng.integers(len(record.time_K) + 1))
        row["bag"][:] = self._bag(np.concatenate([record.static_code_S, record.code_K[:at]]))
        row["later"][record.code_K[at:]] = True

    def subjects(self, rows):
        return sorted({int(self.subject_id[self._draw(g)[0]]) for g in rows})

    def prediction_batches(self, position_N, time_us_N, batch_size, transform=None):
        for begin in range(0, len(position_N), batch_size):
            batch, where = self.spec.empty(batch_size), np.full((batch_size, 1), -1)
            for row, k in enumerate(range(begin, min(begin + batch_size, len(position_N)))):
                record, time = self.store[int(position_N[k])], int(time_us_N[k])
                record = record if transform is None else transform(record, time)
                known = record.code_K[: np.searchsorted(record.time_K, time, side="right")]
                batch["bag"][row], where[row, 0] = self._bag(np.concatenate([record.static_code_S, known])), k
            yield batch, where

    def counts(self, batch):
        return {"tokens": len(batch["bag"]), "patient_days": len(batch["bag"])}


class Network(nn.Module):
    """Two products with a batch norm between them, and a third for the codes to come."""

    config: Config

    @nn.compact
    def encode(self, batch, deterministic=True):
        x = nn.BatchNorm(use_running_average=deterministic, name="norm")(nn.Dense(32, name="inner")(batch["bag"]))
        return nn.Dense(self.config.width, name="outer")(nn.gelu(x))[:, None]

    @nn.compact
    def __call__(self, batch, deterministic=True):
        return {"later": nn.Dense(batch["bag"].shape[1], name="head")(self.encode(batch, deterministic)[:, 0])}


class Later:
    """Log loss of which codes follow."""

    name = "later"

    def normaliser(self, batch):
        return jnp.float32(batch["later"].size)

    def loss(self, logit, batch, normaliser):
        return jnp.sum(jnp.logaddexp(0.0, logit) - batch["later"] * logit) / normaliser, {}


def examples(store, config, seed=0, train=True):
    return BagOfCodes(store, config, seed, train)


def network(spec, config, mesh_ops=None):
    return Network(config)


def objective(spec, config):
    return WeightedTerms((Later(),), {"later": Ramp(1.0, 1.0)})


def flops(spec, config, sizes, counts):
    return 6.0 * sum(sizes.values()) * counts["tokens"]
