"""Derives from a config the artifacts that a run is made of: where each lies, and what it depends on."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ehrwear_jax.config import RunConfig, options
from ehrwear_jax.config.data import (
    ADAPTERS,
    CLINICAL,
    DEIDENTIFY_OPTIONS,
    FIT_OPTIONS,
    PREPARE_NOT_RESULTS,
    RECORD_OPTIONS,
    SimulateConfig,
)
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.prepare import clinical_ranges, deidentify
from ehrwear_jax.data.prepare.division import Division
from ehrwear_jax.data.store import CACHE_BYTES, RecordStore
from ehrwear_jax.models.late_fusion import family as late_fusion
from ehrwear_jax.stages.artifacts import Artifact
from ehrwear_jax.stages.inputs import Inputs
from ehrwear_jax.stages.workdir import Workdir
from ehrwear_jax.training import warm_start
from ehrwear_jax.training.pretrain import Model

MODALITIES = ("ehr", "wear")  # of a family that has no such option


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network to train: of a model, on a fold, with a seed."""

    name: str
    fold: str
    seed: int

    @property
    def key(self) -> str:
        """Its name among artifacts."""
        return f"{self.name}/{self.fold}-seed{self.seed}"


class Plan:
    """The artifacts of a config in a workdir; nothing is made here.

    Args:
      verify: read all raw inputs again, whatever their size and time say.
    """

    def __init__(self, config: RunConfig, workdir: Workdir, verify: bool = False) -> None:
        self.config, self.workdir, self.inputs = config, workdir, Inputs(workdir.inputs, verify)

    def artifact(self, kind: str, name: str, of: object) -> Artifact:
        """An artifact of this workdir."""
        return Artifact(self.workdir, kind, name, of)

    # ------------------------------------------------------------------------------------------------------- data

    @property
    def adapted(self) -> bool:
        """Whether the raw dataset is made here: simulated, or built from published files."""
        return self.config.data.source != "meds"

    @functools.cached_property
    def raw_identity(self) -> dict:
        """What the raw dataset is, without its labels."""
        data, source = self.config.data, self.config.data.source
        if source == "synthetic":
            return {"source": source, "simulate": options.as_dict(self.simulate)}
        if source == "meds":
            folders = {"meds": data.meds_dir, "wearable": data.wearable_dir}
            return {"source": source} | {k: self.inputs.digest(v) for k, v in folders.items() if v}
        of = {"source": source, "files": self.inputs.digest(data.source_dir)}
        return of | {name: getattr(data, name) for name in ADAPTERS[source]}

    @property
    def simulate(self) -> SimulateConfig:
        """Options of the simulation, with the seed of the data."""
        return dataclasses.replace(self.config.simulate, seed=self.config.data.seed)

    @property
    def raw(self) -> Artifact:
        """The raw dataset that is made here."""
        return self.artifact("raw", self.config.data.source, self.raw_identity)

    @property
    def meds_dir(self) -> Path:
        """The MEDS dataset."""
        return self.raw.folder / "meds" if self.adapted else Path(self.config.data.meds_dir)

    @property
    def wearable_dir(self) -> Path | None:
        """The wearable tables; None without any."""
        if not self.adapted:
            return Path(self.config.data.wearable_dir) if self.config.data.wearable_dir else None
        folder = self.raw.folder / "wearable"
        return folder if folder.is_dir() else None

    @property
    def changes_people(self) -> bool:
        """Whether ids or dates are changed."""
        return self.deidentifier.active

    @functools.cached_property
    def deidentifier(self) -> deidentify.Deidentifier:
        """What is done to ids and dates."""
        return deidentify.of(self.config.prepare)

    def _prepare_options(self, names):
        """Options of prepare as a part of an identity."""
        return {k: v for k, v in options.identity(self.config.prepare).items() if k in names}

    @functools.cached_property
    def tables(self) -> Artifact:
        """Harmonised tables of the dataset."""
        mapping = self.config.prepare.mapping_files
        others = {*PREPARE_NOT_RESULTS, *RECORD_OPTIONS, *FIT_OPTIONS, *DEIDENTIFY_OPTIONS}
        of = {
            "raw": self.raw_identity,
            "prepare": self._prepare_options([k for k in options.as_dict(self.config.prepare) if k not in others]),
            "mapping": self.inputs.of_files(mapping) if mapping else "",
            "splits": self._splits_identity(),
            "people": self.deidentifier.settings(),
        }
        return self.artifact("tables", self.config.data.source, of)

    def _splits_identity(self):
        """What of config.data tells which splits people have in the tables; how they are drawn is part of a fit."""
        column, equals, _ = self.config.data.holdout_site.partition("=")
        return {"names": dict(self.config.data.split_names), "site": column if equals else ""}

    @functools.cached_property
    def records(self) -> Artifact:
        """Records of the dataset."""
        of = {"tables": self.tables.digest, "prepare": self._prepare_options(RECORD_OPTIONS)}
        return self.artifact("records", self.config.data.source, of)

    @property
    def _has_splits(self):
        """Whether the dataset says who is in which split."""
        return self.adapted or self.inputs.has(meds.splits_path(self.meds_dir))

    @property
    def _has_folds(self):
        """Whether the dataset says who is in which fold."""
        if self.adapted:
            return "n_folds" in ADAPTERS.get(self.config.data.source, ())
        return self.inputs.has(meds.folds_path(self.meds_dir))

    def division(self, fold: str) -> Division:
        """How people are divided in a fold."""
        c = self.config
        return Division(dict(c.folds)[fold], c.data, c.cohort, c.prepare.tuning_fraction)

    def fit(self, fold: str) -> Artifact:
        """What is fitted on the training split of a fold."""
        of = {
            "records": self.records.digest,
            "division": self.division(fold).identity(self._has_splits, self._has_folds),
            "prepare": self._prepare_options(FIT_OPTIONS),
            "ranges": self._ranges_identity(),
        }
        return self.artifact("fit", fold, of)

    def _ranges_identity(self):
        ranges = self.config.prepare.ranges_file
        if not ranges:
            return ""
        path = clinical_ranges.TABLE if ranges == CLINICAL else ranges
        return {"table": self.inputs.of_files([path]), "revision": clinical_ranges.REVISION}

    def store(self, fold: str, split: str | None = None, cache_bytes: int = CACHE_BYTES) -> RecordStore:
        """The records of a fold."""
        return RecordStore(self.records.folder, self.fit(fold).folder, split, cache_bytes)

    # ------------------------------------------------------------------------------------------------------- models

    def trained(self, name: str | None = None) -> list[Trained]:
        """Every network to train, what others need before them: of all models, or of one."""
        names = self.config.pretrained if name is None else [name]
        return [Trained(n, fold, seed) for fold, _ in self.config.folds for n in names for seed in self.config.seeds]

    def needed(self, trained: Trained) -> dict[str, Trained]:
        """{model: its network} of those that a network's training calls."""
        names = getattr(self.config.model_config(trained.name), "needs", ())
        return {name: dataclasses.replace(trained, name=name) for name in names}

    def first(self, name: str) -> Trained:
        """A network of the first fold and seed: what is interpreted and drawn."""
        return Trained(name, self.config.folds[0][0], self.config.seeds[0])

    def members(self, name: str) -> tuple[str, ...]:
        """The networks whose latents a model's are: itself, or those that late fusion fuses."""
        return (name,) if name in self.config.networks else self.config.model_config(name).networks

    def modalities(self, name: str) -> set[str]:
        """Those that a model is given."""
        configs = [self.config.model_config(m) for m in self.members(name)]
        return {modality for c in configs for modality in getattr(c, "modalities", MODALITIES)}

    def fused(self, name: str, of_network: Callable[[str], np.ndarray]) -> np.ndarray:
        """Features of a model on whose latents probes are fitted: those of its network or, fused, of its members."""
        if name in self.config.networks:
            return of_network(name)
        return late_fusion.features(self.config.model_config(name), {m: of_network(m) for m in self.members(name)})

    def model(self, trained: Trained) -> Model:
        """What training takes."""
        return Model(**self.config.model(trained.name, trained.seed))

    def pretrained(self, trained: Trained) -> Artifact:
        """The folder of a network."""
        model = self.model(trained)
        of = model.identity() | {"data": self.fit(trained.fold).digest}
        if model.train.init_from:
            source = model.train.init_from
            of["started_from"] = self.inputs.noted(source, warm_start.identity(source))
        if needed := self.needed(trained):
            of["needs"] = {name: self.pretrained(other).digest for name, other in needed.items()}
        return self.artifact("models", trained.key, of)

    def embeddings(self, trained: Trained) -> Path:
        """Folder of a network's embeddings: a file per set of prediction times, see stages/embed.py."""
        return self.artifact("embeddings", trained.key, {"model": self.pretrained(trained).digest}).folder
