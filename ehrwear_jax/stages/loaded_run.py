"""Loads a trained run for interpretation: networks, labelled prediction times, probes, latents of changed records."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.evals import protocol
from ehrwear_jax.evals.probes import LogisticProbe
from ehrwear_jax.models.joint import examples
from ehrwear_jax.stages import model as model_stage
from ehrwear_jax.stages import prepare
from ehrwear_jax.stages.evaluate_subgroups import KEYS
from ehrwear_jax.training import embedding, train

LATE_FUSION = "late_fusion"


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A pretrained model: its patients (all splits), network, parameters, and the encoder made of them."""

    patients: examples.Patients
    network: Any
    params: Mapping[str, Any]
    encode: Callable


class LoadedRun:
    """What was trained and labelled, of the first fold; everything is loaded once and when it is needed.

    Attributes:
      fold: folder name. task: the binary task that probes are fitted for, None if there is none.
      subjects: subject_id, split, group_id. keys: subject_id, prediction_time of the embed stage.
    """

    def __init__(self, config: Any, workdir: str | os.PathLike):
        self.config, self.workdir = config, Path(workdir)
        self.fold = config_lib.folds(config)[0][0]
        self.task = self._task()
        self._changed = {}
        subjects = pl.read_parquet(prepare.fit_dir(workdir, self.fold) / "subjects.parquet")
        self.subjects = subjects.select("subject_id", "split", "group_id")
        self.keys = self._embedded(next(iter(config.rows))).select(KEYS)

    def _task(self) -> str | None:
        wanted = self.config.interpret.task or self.config.report.reliability_task
        for task in [wanted] if wanted else self.config.evaluate.tasks:
            if "boolean_value" in prepare.label_table(self.config, self.workdir, task).columns:
                return task
        logging.info("  no binary task among config.evaluate.tasks: nothing that needs a probe is computed")
        return None

    def _embedded(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.workdir / "embed" / self.fold / f"{name}.parquet")

    @functools.cached_property
    def store(self):
        """RecordStore of everybody."""
        return prepare.open_store(self.workdir, self.fold)

    @functools.cached_property
    def models(self) -> dict[str, LoadedModel]:
        """{name: pretrained model}."""
        out = {}
        for name in self.config.rows:
            patients, params = model_stage.restored(self.config, self.workdir, self.fold, name)
            options = config_lib.model_options(self.config)
            network = train.make_model(patients, options)
            params = jax.device_get(params)
            out[name] = LoadedModel(patients, network, params, embedding.make_encoder(patients, options, params))
        return out

    @functools.cached_property
    def latents(self) -> dict[str, np.ndarray]:
        """{name: float [N, D]} at all prediction times of the embed stage; late fusion has those of its members."""
        out = {name: np.stack(self._embedded(name)["embedding"].to_numpy()) for name in self.config.rows}
        if self.fused:
            out[LATE_FUSION] = np.concatenate([out[name] for name in self.fused], axis=1)
        return out

    @property
    def fused(self) -> tuple[str, ...]:
        """The members of late fusion, () where one of them was not trained."""
        members = self.config.evaluate.late_fusion
        return tuple(members) if members and set(members) <= set(self.config.rows) else ()

    @functools.cached_property
    def labels(self) -> pl.DataFrame:
        """The task's labelled prediction times: boolean_value, split, group_id, and `at`, the row of `latents`."""
        table = prepare.label_table(self.config, self.workdir, self.task)
        keys = self.keys.with_row_index("at").join(self.subjects, on="subject_id", how="left")
        return table.join(keys, on=KEYS).sort(KEYS)

    @functools.cached_property
    def held(self) -> pl.DataFrame:
        """Those of the held-out split, whole people, at most config.interpret.max_times."""
        held = self.labels.filter(pl.col("split") == "held_out")
        limit = self.config.interpret.max_times
        if limit and held.height > limit:
            people = held["subject_id"].unique().sort().to_numpy()
            people = np.random.default_rng(self.config.seed).permutation(people)
            order = pl.DataFrame({"subject_id": people, "order": np.arange(len(people))})
            ranked = held.join(order, on="subject_id").sort("order", "prediction_time").drop("order").head(limit)
            held = ranked.sort(KEYS)
        return held

    def train_latents(self, name: str) -> np.ndarray:
        """Latents at all prediction times of the training split, labelled for the task or not: float64 [N, D]."""
        split = self.keys.join(self.subjects, on="subject_id", how="left", maintain_order="left")["split"]
        return self.latents[name][(split == "train").to_numpy()].astype(np.float64)

    def of_split(self, name: str, split: str) -> np.ndarray:
        """Latents at the labelled prediction times of a split."""
        return self.latents[name][self.labels.filter(pl.col("split") == split)["at"].to_numpy()]

    @functools.cached_property
    def probes(self) -> dict[str, LogisticProbe]:
        """{name: probe}, fitted as in the evaluate stage."""
        splits = ("train", "tuning")
        y = {s: self.labels.filter(pl.col("split") == s)["boolean_value"].to_numpy().astype(float) for s in splits}
        return {m: protocol.predict_binary({s: self.of_split(m, s) for s in splits}, y).model for m in self.latents}

    def embed(
        self, name: str, times: pl.DataFrame, transform: Callable | None = None, encode: Callable | None = None
    ) -> np.ndarray:
        """z at prediction times (subject_id, prediction_time) from changed records: float32 [N, D].

        Args:
          transform: of data/perturbations.py; None: records as they are.
          encode: instead of the model's own encoder.
        """
        loaded = self.models[name]
        encode = encode or loaded.encode
        return embedding.embed(encode, loaded.patients, times, self.config.embed.batch_size, transform)

    def held_latents(
        self, name: str, perturbation: str | None = None, transform: Callable | None = None
    ) -> np.ndarray:
        """z at the held-out prediction times, of one model or of late fusion; perturbed ones are kept by their name."""
        if transform is None:
            return self.latents[name][self.held["at"].to_numpy()]
        if name == LATE_FUSION:
            return np.concatenate([self.held_latents(m, perturbation, transform) for m in self.fused], axis=1)
        if (name, perturbation) not in self._changed:
            self._changed[name, perturbation] = self.embed(name, self.held, transform)
        return self._changed[name, perturbation]

    def modalities(self, name: str) -> set[str]:
        """Those that a model is given and the dataset has."""
        members = self.fused if name == LATE_FUSION else (name,)
        given = {modality for m in members for modality in self.config.rows[m]}
        return given if self.channels else given - {"wear"}

    @functools.cached_property
    def channels(self) -> tuple[str, ...]:
        """Names of the wearable channels."""
        return next(iter(self.models.values())).patients.channels

    @functools.cached_property
    def joint(self) -> str | None:
        """The model whose mechanisms are measured: the reference model, else the first with most modalities; None."""
        return config_lib.reference_model(self.config, self.modalities)


def prediction_times(subject_id: Sequence[int], time_us: npt.ArrayLike) -> pl.DataFrame:
    """A table of prediction times for `LoadedRun.embed`.

    Args:
      subject_id: [N]. time_us: microseconds since the epoch [N].
    """
    time = pl.Series(np.asarray(time_us, np.int64)).cast(pl.Datetime("us"))
    return pl.DataFrame({"subject_id": pl.Series(subject_id, dtype=pl.Int64), "prediction_time": time})
