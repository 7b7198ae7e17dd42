"""Loads a trained run for interpretation: networks, labelled prediction times, probes, latents of changed records."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrwear_jax.data.store import Record, RecordStore
from ehrwear_jax.evals import protocol
from ehrwear_jax.evals.probes import LogisticProbe
from ehrwear_jax.interpret import geometry
from ehrwear_jax.models.family import Examples
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import embed, tasks
from ehrwear_jax.stages.embed import KEYS, Embeddings
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.training import embedding
from ehrwear_jax.training.pretrain import Model


@dataclasses.dataclass(frozen=True)
class LoadedNetwork:
    """A pretrained network: what it is, its examples (all splits), variables, and the encoder made of them."""

    model: Model
    examples: Examples
    network: Any
    variables: dict
    encode: Callable

    @property
    def interpretation(self) -> Any:
        """The family's module for interpretation, None without one."""
        return getattr(self.model.module, "interpretation", None)


def main_task(plan: Plan) -> str | None:
    """The binary task that probes are fitted for: the one that the config names, if it is evaluated, else the first.

    None without one, and where the config names one of another kind.
    """
    wanted = plan.config.interpret.task or plan.config.report.reliability_task
    kinds = {task.name: task.kind for task in tasks.evaluated(plan)}
    return next((n for n in ([wanted] if wanted in kinds else kinds) if kinds[n] == tasks.BINARY), None)


def reference(plan: Plan) -> str | None:
    """The network whose mechanisms are measured: the reference model, else the first network; None."""
    name = plan.config.evaluate.reference_model
    return name if name in plan.config.networks else next(iter(plan.config.networks), None)


class LoadedRun:
    """What was trained and labelled, of the first fold and seed; everything is loaded once and when it is needed.

    Attributes:
      fold: its name. task: the binary task that probes are fitted for, None if there is none.
      keys: subject_id, prediction_time, split, group_id of all tasks' prediction times.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.config, self.fold = plan, plan.config, plan.config.folds[0][0]
        self.task = main_task(plan)
        if self.task is None:
            logging.info("  no binary task among config.evaluate.tasks: nothing that needs a probe is computed")
        self.keys = embed.prediction_times(plan, self.fold)
        self._networks: dict[str, LoadedNetwork] = {}
        self._latents: dict[str, np.ndarray] = {}
        self._probes: dict[str, LogisticProbe] = {}
        self._changed: dict[tuple[str, str], np.ndarray] = {}

    @functools.cached_property
    def store(self) -> RecordStore:
        """The records of everybody."""
        return self.plan.store(self.fold)

    @functools.cached_property
    def position(self) -> dict[int, int]:
        """{subject_id: position in the store}."""
        return dict(zip(self.store.index["subject_id"].to_list(), range(len(self.store)), strict=True))

    @functools.cached_property
    def subjects(self) -> pl.DataFrame:
        """subject_id, split, group_id."""
        folder = self.plan.fit(self.fold).folder
        return pl.read_parquet(folder / "subjects.parquet").select("subject_id", "split", "group_id")

    # ------------------------------------------------------------------------------------------------- models

    def modalities(self, name: str) -> set[str]:
        """Those that a model is given and the dataset has."""
        given = self.plan.modalities(name)
        return given if self.store.channels else given - {"wear"}

    def network(self, name: str) -> LoadedNetwork:
        """A pretrained network."""
        if name not in self._networks:
            trained = self.plan.first(name)
            model = self.plan.model(trained)
            found = embedding.restore(self.plan.pretrained(trained).folder, model, self.store)
            self._networks[name] = LoadedNetwork(model, *found, embedding.encoder(*found[1:]))
        return self._networks[name]

    def record(self, name: str, i: int) -> Record:
        """Record i of the store with the modalities that a network is given."""
        record, given = self.store[i], self.modalities(name)
        if "ehr" not in given:
            static = any(getattr(self.plan.config.model_config(m), "static", False) for m in self.plan.members(name))
            record = record.select_events(slice(0)) if static else record.without_ehr()
        return record if "wear" in given else record.without_wear()

    def latents(self, name: str) -> np.ndarray:
        """z at all prediction times, of a network or of late fusion: float32 [N, D] in the order of `keys`."""
        if name not in self._latents:
            self._latents[name] = self.plan.fused(
                name, lambda m: Embeddings(self.plan.embeddings(self.plan.first(m))).read(self.keys)
            )
        return self._latents[name]

    def embed(
        self, name: str, times: pl.DataFrame, transform: Callable | None = None, encode: Callable | None = None
    ) -> np.ndarray:
        """z at prediction times (subject_id, prediction_time) from changed records: float32 [N, D].

        Args:
          transform: of data/perturbations.py; None: records as they are.
          encode: instead of the network's own encoder.
        """

        def of_network(member):
            network, size = self.network(member), self.config.embed.batch_size
            return embedding.embed(encode or network.encode, network.examples, times, size, transform)

        return self.plan.fused(name, of_network)

    # ------------------------------------------------------------------------------------------------- the task

    @functools.cached_property
    def labels(self) -> pl.DataFrame:
        """The task's labelled prediction times: boolean_value, split, group_id, and `at`, the row of `latents`."""
        if self.task is None:
            raise ValueError("there is no binary task")
        table = Labels(self.plan).table(self.task)
        return table.join(self.keys.with_row_index("at"), on=KEYS).sort(KEYS)

    @functools.cached_property
    def held(self) -> pl.DataFrame:
        """Those of the held-out split, whole people, at most config.interpret.max_times."""
        held = self.labels.filter(pl.col("split") == "held_out")
        limit = self.config.interpret.max_times
        if limit and held.height > limit:
            people = held["subject_id"].unique().sort().to_numpy()
            people = np.random.default_rng(self.config.data.seed).permutation(people)
            order = pl.DataFrame({"subject_id": people, "order": np.arange(len(people))})
            ranked = held.join(order, on="subject_id").sort("order", "prediction_time").drop("order").head(limit)
            held = ranked.sort(KEYS)
        return held

    def train_latents(self, name: str) -> np.ndarray:
        """Latents at all prediction times of the training split, labelled for the task or not: float64 [N, D]."""
        return self.latents(name)[(self.keys["split"] == "train").to_numpy()].astype(np.float64)

    def whitening(self, name: str) -> geometry.Whitening | None:
        """ZCA whitening by a model's training latents; None, which is logged, if they are all the same."""
        try:
            return geometry.fit_whitening(self.train_latents(name))
        except ValueError as error:
            logging.info("  %s: %s", name, error)
            return None

    def of_split(self, name: str, split: str) -> np.ndarray:
        """Latents at the labelled prediction times of a split."""
        return self.latents(name)[self.labels.filter(pl.col("split") == split)["at"].to_numpy()]

    def probe(self, name: str) -> LogisticProbe:
        """A model's probe for the task, solved exactly."""
        if name not in self._probes:
            splits = ("train", "tuning")
            y = {s: self.labels.filter(pl.col("split") == s)["boolean_value"].to_numpy().astype(float) for s in splits}
            found = protocol.predict_binary({s: self.of_split(name, s) for s in splits}, y)
            self._probes[name] = found.model
        return self._probes[name]

    def held_latents(self, name: str, perturbation: str | None = None, transform: Callable | None = None) -> np.ndarray:
        """z at the held-out prediction times; perturbed ones are kept by their name."""
        if transform is None:
            return self.latents(name)[self.held["at"].to_numpy()]
        key = name, str(perturbation)
        if key not in self._changed:
            if name in self.config.networks:
                self._changed[key] = self.embed(name, self.held, transform)
            else:
                self._changed[key] = self.plan.fused(name, lambda m: self.held_latents(m, perturbation, transform))
        return self._changed[key]


def prediction_times(subject_id: Sequence[int] | np.ndarray, time_us: npt.ArrayLike) -> pl.DataFrame:
    """A table of prediction times for `LoadedRun.embed`.

    Args:
      subject_id: [N]. time_us: microseconds since the epoch [N].
    """
    time = pl.Series(np.asarray(time_us, np.int64)).cast(pl.Datetime("us"))
    return pl.DataFrame({"subject_id": pl.Series(subject_id, dtype=pl.Int64), "prediction_time": time})


def identity(plan: Plan, name: str) -> dict:
    """What interpreting a model depends on, beside the options."""
    fold, task = plan.config.folds[0][0], main_task(plan)
    times = embed.prediction_times(plan, fold).select(KEYS)
    return {
        "networks": [plan.pretrained(plan.first(m)).digest for m in plan.members(name)],
        "task": None if task is None else tasks.read(plan, task).labels,
        "times": files.digest(times.write_csv()),
        "fit": plan.fit(fold).digest,
    }
