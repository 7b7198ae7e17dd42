"""Defines what a model family is: the one seam between models and everything else.

A family is a module (of the package: ehrwear_jax/models/<name>/family.py) with these names:

    Config                                 frozen dataclass of its options; a family of the package declares it in
                                           config.py, which imports no jax
    examples(store, config, seed, train)   Examples: records to batches, numpy only
    network(spec, config, mesh_ops)        Flax module: batch -> what the objective takes; method encode: batch -> z
    objective(spec, config)                Objective: ramped weights, whole-batch normalisers, sum and diagnostics
    flops(spec, config, sizes, counts)     model flops of a step

and it may have these:

    assumed(config, prepare, vocabulary)   (BatchSpec, counts of a full row) before there are data: describe, compile
    network's methods read and predicted   its two halves, between which lies z: gradients on z (training/gradients.py)
    adapted(config, width)                 the config with adapters, which a mode of fine-tuning adds
    published(config, train, prepare)      ([(what, in its paper, here)], what is added to it): describe, the report
    Config.needs                           names of models of the config whose networks, trained before, training calls
    Config.HAS_LATENTS                     False of networks that only others need: not embedded, nothing predicted of z
    interpretation                         a module like models/joint/interpretation.py: kernels, attributable inputs

A network whose Config has `needs` is called in training with one argument more, needed: {model: its network's `apply`
with the variables that it was trained to}; where z is read it is called without. What is needed is an artifact of its
own, trained first, on the same fold and with the same seed, and part of the identity of what needs it.

The loop, checkpoints, sharding, embedding, probes, fine-tuning, cost and report take these and never name a family.
Arrays that change while training without a gradient (batch norm) are further collections of the network's variables.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps

Batch = dict[str, np.ndarray]
# (record, prediction time in us) -> the record as it is read then; see data/perturbations.py
Transform = Callable[[Any, int], Any]


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of a batch.

    Attributes:
      axes: names of its axes behind the rows, one letter each. dtype: numpy's.
      fill: value where nothing is. meaning: in words, with the unit.
    """

    axes: str
    dtype: type
    fill: float
    meaning: str


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """Every field of a batch, its shape, dtype and unit, and what data decide of the network.

    Attributes:
      sizes: {axis letter: size}. fields: {name: Field}.
      facts: frozen dataclass of the family, hashable: sizes of vocabularies and the like, fitted on the training split.
    """

    sizes: Mapping[str, int]
    fields: Mapping[str, Field]
    facts: Any = None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a field of one row."""
        return tuple(self.sizes[a] for a in self.fields[name].axes)

    def empty(self, n_rows: int) -> Batch:
        """A batch that holds nothing: {name: array of shape [n_rows, ...]}."""
        batch: Batch = {}
        for name, field in self.fields.items():
            size = (n_rows, *self.shape(name))
            # zeros take no memory until written
            batch[name] = np.full(size, field.fill, field.dtype) if field.fill else np.zeros(size, field.dtype)
        return batch

    def check(self, batch: Mapping[str, Any], n_rows: int) -> None:
        """Raises ValueError unless every field is there with its shape and dtype, and no other."""
        if different := self.fields.keys() ^ batch.keys():
            raise ValueError(f"batch fields differ from the contract: {sorted(different)}")
        for name, field in self.fields.items():
            want = (n_rows, *self.shape(name))
            if batch[name].shape != want or batch[name].dtype != field.dtype:
                got = f"{batch[name].shape} {batch[name].dtype}"
                raise ValueError(f"batch field {name}: {got}, expected {want} {np.dtype(field.dtype)}")


class Examples(abc.ABC):
    """Records of one split as batches of a family: picklable, stateless, a row is a function of (seed, its number).

    Attributes:
      spec: BatchSpec of its batches.
      subject_id: ids of the split's people, int64 [N]; position i is person i below.
      rows_per_epoch: rows after which everybody was shown once, roughly.
    """

    spec: BatchSpec
    subject_id: np.ndarray
    rows_per_epoch: int

    @abc.abstractmethod
    def fill(self, row: Batch, g: int) -> None:
        """Writes training row g, of all epochs counted on, into the empty arrays of a row (no batch axis)."""

    def fill_rows(self, batch: Batch, numbers: Sequence[int]) -> None:
        """Writes training rows of these numbers into an empty batch; a family may make several at once."""
        for r, g in enumerate(numbers):
            self.fill({name: array[r] for name, array in batch.items()}, g)

    @abc.abstractmethod
    def subjects(self, rows: Sequence[int]) -> list[int]:
        """Sorted subject ids in training rows, for the log of a step that failed."""

    @abc.abstractmethod
    def prediction_batches(
        self, position_N: np.ndarray, time_us_N: np.ndarray, batch_size: int, transform: Transform | None = None
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batches for prediction times: person position_N[i] as known at time_us_N[i], int64 [N] both.

        Yields:
          (batch, where): where int64 [rows, slots] gives, for each slot whose z the network's `encode` returns, its
          place in position_N, or -1. z of a prediction time is the mean over its slots.
        """

    @abc.abstractmethod
    def counts(self, batch: Batch) -> dict[str, int]:
        """What a batch holds beside padding: "tokens", "patient_days" and what the family's flops need."""

    def tokens_seen(self, position_N: np.ndarray, time_us_N: np.ndarray) -> dict[str, np.ndarray]:
        """What z at each prediction time is read from: {what: int64 [N]}; {} of a family that does not count it.

        For each kind of input, such as "events", how many are seen, and "<kind>_left_out": how many older ones not.
        """
        del position_N, time_us_N
        return {}

    def family_facts(self) -> dict[str, Any]:
        """What was fitted on training people beside what prepare fits, as JSON holds it; {} of most families.

        It goes with the network to where those people are not: there the store has it, as `family_facts`.
        """
        return {}

    def place_names(self) -> dict[str, list[str]]:
        """{logical axis name: what its places are called}, by which another run's parameters find theirs."""
        return {}

    def content_names(self) -> dict[str, list[str]]:
        """Further lists that must be alike for parameters of `place_names` to mean the same, such as horizons."""
        return {}


def places_by_person(position_N: Iterable[int]) -> dict[int, list[int]]:
    """{person: places of their prediction times}, people as they come: to make a person once, cached or not."""
    found: dict[int, list[int]] = {}
    for k, i in enumerate(position_N):
        found.setdefault(int(i), []).append(k)
    return found


class Objective(Protocol):
    """What training minimises: a sum over a batch of terms, each divided by a normaliser of the whole batch.

    A batch cut into micro-batches that share the normalisers of the whole has losses, gradients and diagnostics that
    add up to those of the whole.
    """

    def weights(self, step: jax.Array | int) -> Mapping[str, jax.Array | float]:
        """{term: weight} at a step."""
        ...

    def normalisers(self, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """{term: arrays} of a whole batch."""
        ...

    def __call__(
        self, out: Any, batch: Mapping[str, jax.Array], weights: Mapping[str, Any], normalisers: Mapping[str, Any]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(weighted sum, {"loss/total", "loss/<term>", "<term>/<diagnostic>"})."""
        ...


class Family(Protocol):
    """The names of a family's module; see the module's docstring."""

    Config: type

    def examples(self, store: Any, config: Any, seed: int = 0, train: bool = True) -> Examples:
        """Batches of a data.store.RecordStore; train=False: signals as recorded, nothing dropped."""
        ...

    def network(self, spec: BatchSpec, config: Any, mesh_ops: MeshOps = ONE_DEVICE) -> nn.Module:
        """Its __call__(batch, deterministic) and encode(batch, deterministic) -> z [rows, slots, width]."""
        ...

    def objective(self, spec: BatchSpec, config: Any) -> Objective:
        """What training minimises."""
        ...

    def flops(self, spec: BatchSpec, config: Any, sizes: Mapping[str, int], counts: Mapping[str, int]) -> float:
        """Flops of forward and backward pass; sizes: parameters by part, counts: of Examples.counts."""
        ...
