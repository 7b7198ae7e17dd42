"""A family that shares nothing with the joint one: z is the mean over segments before a time; batch norm and dropout.

Its store makes random records, so that what never names a family can be tested without a prepared cohort. A segment's
target is a function of its features that is learned within a few steps.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.family import BatchSpec, Examples, Field
from ehrwear_jax.models.layers.dense import dense
from ehrwear_jax.models.objective import Ramp, WeightedTerms, masked_mean, n_true

FEATURES = 5
DAY_US = 86_400_000_000
SPLITS = ("train", "train", "tuning", "held_out")


@dataclasses.dataclass(frozen=True)
class Store:
    """Random records in the place of data.store.RecordStore; every eighth person has no segment."""

    n_subjects: int = 32
    seed: int = 0
    split: str | None = None
    pretraining: bool = False

    def view(self, split, pretraining=False):
        return dataclasses.replace(self, split=split, pretraining=pretraining)

    def digest(self):
        return f"{self.n_subjects}-{self.seed}"

    def subjects(self):
        """Ids of the split's people."""
        return [i for i in range(self.n_subjects) if self.split in (None, SPLITS[i % 4])]

    def record(self, i):
        """(time_us [R] sorted, x [R, FEATURES], y [R]) of person i."""
        rng = np.random.default_rng([self.seed, i])
        n = 0 if i % 8 == 7 else int(rng.integers(2, 9))
        x = rng.normal(size=(n, FEATURES)).astype(np.float32)
        return np.sort(rng.integers(0, 300 * DAY_US, n)), x, np.tanh(x[:, 0] - x[:, 1])


@dataclasses.dataclass(frozen=True)
class Config:
    """Options."""

    NOT_RESULTS = ("speed", "inner.unroll")

    width: int = 4
    slots: int = 3
    dropout: float = 0.2
    noise: float = 0.1
    speed: int = 1
    features: tuple = ("a", "b", "c", "d", "e")


class PooledExamples(Examples):
    """Up to `slots` segments of a random person in a row."""

    def __init__(self, store, config, seed=0, train=True):
        self.config, self.seed, self.train = config, seed, train
        self.records = [store.record(i) for i in store.subjects()]
        self.subject_id = 100 + np.array(store.subjects(), np.int64)
        self.filled = np.array([i for i, r in enumerate(self.records) if len(r[0])])
        self.rows_per_epoch = max(1, len(self.filled))
        fields = {
            "x": Field("SD", np.float32, 0, "features"),
            "y": Field("S", np.float32, 0, "target"),
            "valid": Field("S", np.bool_, False, "whether the slot holds a segment"),
        }
        self.spec = BatchSpec({"S": config.slots, "D": FEATURES}, fields, len(self.records))

    def _drawn(self, g):
        rng = np.random.default_rng([self.seed, int(g)])
        return int(rng.choice(self.filled)), rng

    def fill(self, row, g):
        i, rng = self._drawn(g)
        _, x, y = self.records[i]
        shown = rng.permutation(len(y))[: self.config.slots]
        row["x"][: len(shown)], row["y"][: len(shown)], row["valid"][: len(shown)] = x[shown], y[shown], True
        if self.train:
            row["x"][: len(shown)] += self.config.noise * rng.normal(size=x[shown].shape)

    def subjects(self, rows):
        return sorted({int(self.subject_id[self._drawn(g)[0]]) for g in rows})

    def prediction_batches(self, position_N, time_us_N, batch_size, transform=None):
        slots, found = self.config.slots, []
        for k, (i, t) in enumerate(zip(position_N, time_us_N, strict=True)):
            record = self.records[int(i)]
            if transform is not None:
                record = transform(record, int(t))
            found += [(k, x) for time, x in zip(*record[:2], strict=True) if time <= t]
        for begin in range(0, len(found), batch_size * slots):
            part = found[begin : begin + batch_size * slots]
            batch, where = self.spec.empty(batch_size), np.full(batch_size * slots, -1)
            where[: len(part)] = [k for k, _ in part]
            batch["x"].reshape(-1, FEATURES)[: len(part)] = [x for _, x in part]
            batch["valid"].reshape(-1)[: len(part)] = True
            yield batch, where.reshape(batch_size, slots)

    def counts(self, batch):
        return {"tokens": int(batch["valid"].sum()), "patient_days": int(batch["valid"].any(1).sum())}

    def place_names(self):
        return {"feature": list(self.config.features)}


class Network(nn.Module):
    """Features to z by a product, a batch norm and another product; a number from z."""

    config: Config

    def setup(self):
        self.inner = dense(self.config.width, ("feature", "mlp"))
        self.norm = nn.BatchNorm(momentum=0.9)
        self.drop = nn.Dropout(self.config.dropout)
        self.outer = dense(self.config.width, ("mlp", "embed"))
        self.head = dense(1, ("embed", None))

    def encode(self, batch, deterministic=True):
        x = self.inner(batch["x"])
        x = self.norm(x, use_running_average=deterministic, mask=batch["valid"][..., None])
        return self.outer(self.drop(nn.gelu(x), deterministic=deterministic))

    def __call__(self, batch, deterministic=True):
        return {"regression": self.head(self.encode(batch, deterministic))[..., 0]}


@dataclasses.dataclass(frozen=True)
class Regression:
    """Mean squared error over segments."""

    name = "regression"

    def normaliser(self, batch):
        return n_true(batch["valid"])

    def loss(self, out, batch, normaliser):
        error = jnp.square(out - batch["y"])
        return masked_mean(error, batch["valid"], normaliser), {"count": n_true(batch["valid"])}


def examples(store, config, seed=0, train=True):
    return PooledExamples(store, config, seed, train)


def network(spec, config, mesh_ops=None):
    del spec, mesh_ops
    return Network(config)


def objective(spec, config):
    del spec, config
    return WeightedTerms((Regression(),), {"regression": Ramp(1.0, 1.0)})


def flops(spec, config, sizes, counts):
    del spec, config
    return 6.0 * sum(sizes.values()) * counts["tokens"]
