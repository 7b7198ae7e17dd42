"""Answers questions about new people with a trained network: `load`, then `embed` and `predict`.

    import ehrwear_jax as ew
    model = ew.load("tiny")
    risk = model.predict("hospitalization_365d", "meds", "wearable")

`load` takes a bundle, a run's folder or the name of a bundle that comes with the package.
"""

import functools
import json
import logging
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.config import families
from ehrwear_jax.config.training import FinetuneConfig
from ehrwear_jax.data.formats.label_tables import KEY_SCHEMA, read_times
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.evals.probes import LogisticProbe
from ehrwear_jax.inference import (
    bundle_files,
    coverage,
    fine_tuned,
    new_people,
    patient_state,
    stored_probes,
    write_bundle,
)
from ehrwear_jax.inference.coverage import Report
from ehrwear_jax.inference.growing_record import GrowingRecord
from ehrwear_jax.inference.patient_state import PatientState
from ehrwear_jax.inference.stored_probes import StoredProbe
from ehrwear_jax.models.family import Transform
from ehrwear_jax.stages import interpret_people
from ehrwear_jax.stages.loaded_run import LoadedNetwork
from ehrwear_jax.training import embedding
from ehrwear_jax.training.pretrain import Model

SHIPPED = Path(__file__).parent / "bundles"
_EXPLAINED = pl.Schema(
    {
        "subject_id": pl.Int64(),
        "prediction_time": pl.Datetime("us"),
        "days": pl.Float64(),
        "token": pl.String(),
        "attribution": pl.Float64(),
        "rollout": pl.Float64(),
        "completeness_gap": pl.Float64(),
    }
)


def shipped() -> list[str]:
    """Names of the bundles that come with the package."""
    return sorted(p.name for p in SHIPPED.iterdir() if bundle_files.is_bundle(p)) if SHIPPED.is_dir() else []


def load(source: str | Path, model: str = "", seed: int | None = None, fold: str = "") -> "TrainedModel":
    """A trained network, ready for new data.

    Args:
      source: a bundle's folder, the folder of a run (workdir), or the name of a bundle that comes with the package.
      model, seed, fold: which network of a run; by default its reference model, first seed and fold.

    Raises:
      FileNotFoundError: there is no such thing. ValueError: a bundle is damaged or of a later format, which names the
        file; a run has no such network.
    """
    folder = Path(source)
    if not folder.exists() and str(source) in shipped():
        folder = SHIPPED / str(source)
    if not folder.exists():
        raise FileNotFoundError(
            f"{source}: no such bundle or run; the bundles that come with the package: {', '.join(shipped()) or 'none'}"
        )
    if bundle_files.is_bundle(folder) or (folder / "COMMIT").exists():
        if model or seed is not None or fold:
            raise ValueError(f"{folder} is a bundle, which holds one network; model, seed and fold are for runs")
        return TrainedModel(folder)
    plan = write_bundle.open_run(folder)
    kept = tempfile.TemporaryDirectory(prefix="ehrwear_jax-")
    bundle = write_bundle.write(plan, write_bundle.chosen(plan, model, seed, fold), Path(kept.name) / "bundle")
    return TrainedModel(bundle, kept)


class TrainedModel:
    """A trained network of a bundle.

    Attributes:
      card: the model card, as a dict; `card_text` in Markdown.
      tasks: names of the tasks that it has probes for.

    Args:
      folder: of a bundle. kept: what lives as long as the model does.

    Raises:
      ValueError: a damaged bundle or one of a later format, as bundle_files.read_about says.
    """

    def __init__(self, folder: Path, kept: Any = None) -> None:
        self.folder, self._kept = Path(folder), kept
        self.about = bundle_files.read_about(self.folder)
        of = self.about["model"]
        where = f"{self.folder / bundle_files.ABOUT}: model.config"
        config = families.config(of["family"], of["config"], where)
        self.model = Model(of["name"], of["family"], config, seed=of["seed"])
        self.card: dict[str, Any] = json.loads((self.folder / bundle_files.CARD).read_text())
        self._readers: dict[str, patient_state.Reader] = {}
        self.card_text = (self.folder / bundle_files.CARD_TEXT).read_text()

    def __repr__(self) -> str:
        return f"<{self.card['name']}, {self.model.family}; tasks: {', '.join(self.tasks) or 'none'}>"

    @functools.cached_property
    def probes(self) -> dict[str, StoredProbe]:
        """{task: its probe}."""
        arrays = bundle_files.read_arrays(self.folder / bundle_files.PROBES)
        listed = json.loads((self.folder / bundle_files.PROBES_ABOUT).read_text())
        return {x["task"]: stored_probes.of_arrays(arrays[str(i)], x) for i, x in enumerate(listed)}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that it has probes for."""
        return list(self.probes)

    @functools.cached_property
    def variables(self) -> dict:
        """{"params", "collections"} of the network."""
        found = bundle_files.read_arrays(self.folder / bundle_files.WEIGHTS)
        return {"collections": {}} | found

    @functools.cached_property
    def _latents(self):
        path = self.folder / bundle_files.LATENTS
        return bundle_files.read_arrays(path) if path.exists() else {}

    # -------------------------------------------------------------------------------------------------------- answers

    def read(
        self, meds_dir: str | Path, wearable_dir: str | Path | None = None, mapping: str | Path | None = None
    ) -> "People":
        """New people, prepared once for any number of questions.

        Args:
          meds_dir: a MEDS data set; splits are not looked at. wearable_dir: wearable tables (data/formats/wearable.py).
          mapping: table of code, target and perhaps factor and offset, CSV or parquet: which of the model's codes your
            codes stand for (data/prepare/harmonise.py).

        Raises:
          FileNotFoundError, ValueError: what is wrong with the data, naming the file; a unit that does not convert.
        """
        folder = tempfile.TemporaryDirectory(prefix="ehrwear_jax-")
        worn = None if wearable_dir is None else Path(wearable_dir)
        sources = new_people.Sources(Path(meds_dir), worn, () if mapping is None else (Path(mapping),))
        prepared = new_people.prepare(self.folder, self.about, sources, Path(folder.name))
        return People(self, prepared, folder)

    def embed(
        self,
        meds_dir: str | Path,
        wearable_dir: str | Path | None = None,
        times: pl.DataFrame | str | Path | None = None,
    ) -> pl.DataFrame:
        """subject_id, prediction_time, z0, z1, ... of new people; see `read` and `People.embed`."""
        return self.read(meds_dir, wearable_dir).embed(times)

    def predict(
        self,
        task: str,
        meds_dir: str | Path,
        wearable_dir: str | Path | None = None,
        times: pl.DataFrame | str | Path | None = None,
    ) -> pl.DataFrame:
        """subject_id, prediction_time and the predictions of a task; see `read` and `People.predict`."""
        self.probe(task)
        return self.read(meds_dir, wearable_dir).predict(task, times)

    def fine_tune(
        self,
        meds_dir: str | Path,
        wearable_dir: str | Path | None,
        labels: str | Path,
        task: str,
        workdir: str | Path,
        config: FinetuneConfig | None = None,
        mode: str = "lora",
    ) -> fine_tuned.FineTuned:
        """The network fine-tuned for a task of other people, which predicts as this one does.

        A call with the same arguments goes on where one stopped, or reads what it found.

        Args:
          meds_dir: a MEDS data set with metadata/subject_splits.parquet: train people are learned from, tuning people
            say when to stop. labels: folder of label tables. workdir: receives checkpoints.
          config: options; None: their defaults. mode: head, lora, adapter or full.

        Raises:
          FileNotFoundError, ValueError: what is wrong with the data; one class, no event.
        """
        table, splits = fine_tuned.labels_of(Path(labels), task), fine_tuned.splits_of(Path(meds_dir))
        people = self.read(meds_dir, wearable_dir)
        settings = config or FinetuneConfig()
        return fine_tuned.fine_tune(self, people, splits, table, task, Path(workdir), settings, mode)

    def state(
        self,
        patient: str = "",
        saved: bytes | str | Path | None = None,
        mapping: str | Path | None = None,
        late_days: float = patient_state.LATE_DAYS,
    ) -> PatientState:
        """A patient's state, to which rows are appended as they arrive; see patient_state.py.

        Args:
          patient: what you call the patient. saved: what PatientState.to_bytes or save made; None: nothing is known.
          mapping: as in `read`. late_days: see PatientState.

        Raises:
          ValueError: a damaged state; a model that rows cannot be appended for (growing_record.Intake).
        """
        reader = self.reader(mapping)
        data = saved if isinstance(saved, bytes | None) else Path(saved).read_bytes()
        record = None if data is None else GrowingRecord.of_bytes(reader.intake, data)
        return PatientState(self, reader, patient, record, late_days)

    def reader(self, mapping: str | Path | None = None) -> patient_state.Reader:
        """What the states of all patients share, made once; see `state`."""
        if str(mapping) not in self._readers:
            self._readers[str(mapping)] = patient_state.Reader(self, mapping)
        return self._readers[str(mapping)]

    def probe(self, task: str) -> StoredProbe:
        """The probe of a task; ValueError without one."""
        if task not in self.probes:
            raise ValueError(f"the model has no task {task!r}; it has {', '.join(self.tasks) or 'none'}")
        return self.probes[task]


class People:
    """New people as a model reads them.

    Attributes:
      report: what the model knows of their data; a question adds its warnings, which are logged too.
    """

    def __init__(self, model: TrainedModel, prepared: new_people.Prepared, folder: Any) -> None:
        self.model, self._prepared, self._folder = model, prepared, folder
        self.store: RecordStore = prepared.store
        index, modalities = self.store.index, model.about["modalities"]
        found = coverage.of_data(prepared.codes, prepared.missing_channels, index, modalities)
        self.report = Report(
            prepared.codes, prepared.units, prepared.unstated_units, prepared.missing_channels, index.height,
            int(index["n_windows"].sum()), prepared.steps, [],
        )  # fmt: skip
        self._warn([*found, *prepared.warnings])
        self._embedded: list[tuple[pl.DataFrame, np.ndarray]] = []

    def _warn(self, found):
        for sentence in found:
            if sentence not in self.report.warnings:
                self.report.warnings.append(sentence)
                logging.warning("%s", sentence)

    @functools.cached_property
    def network(self) -> LoadedNetwork:
        """The network, compiled at its first question, with the examples of these people."""
        model, size = self.model, self.model.about["batch_size"]
        devices = embedding.row_devices(size)
        where = str(model.folder / bundle_files.WEIGHTS)
        examples, network = embedding.assemble(model.model, self.store, model.variables, where, devices)
        encode = embedding.encoder(network, model.variables, devices=devices)
        return LoadedNetwork(model.model, examples, network, model.variables, encode)

    def last_times(self) -> pl.DataFrame:
        """subject_id, prediction_time: the last record of each person."""
        with_any = self.store.index.filter(pl.col("n_static") + pl.col("n_events") + pl.col("n_windows") > 0)
        return with_any.select("subject_id", pl.col("end_us").cast(pl.Datetime("us")).alias("prediction_time"))

    def latents(
        self, times: pl.DataFrame | str | Path | None = None, transform: Transform | None = None
    ) -> tuple[pl.DataFrame, np.ndarray]:
        """(subject_id and prediction_time, z float32 [N, D]); NaN where there is nothing to read. See `embed`."""
        wanted = self.last_times() if times is None else read_times(times)
        for known, z_NxD in self._embedded if transform is None else ():
            if known.equals(wanted):
                return known, z_NxD
        if other := sorted(set(wanted["subject_id"]) - set(self.store.index["subject_id"])):
            raise ValueError(f"{len(other)} people of the prediction times are not in the data, e.g. {other[0]}")
        self._warn(coverage.of_times(wanted, self.store.index))
        network, size = self.network, self.model.about["batch_size"]
        z_NxD = embedding.embed(network.encode, network.examples, wanted, size, transform)
        if transform is not None:
            return wanted, z_NxD
        std_D = self.model._latents.get("std")
        self._warn(coverage.of_latents(wanted["subject_id"].to_numpy(), z_NxD, std_D))
        self._embedded = [*self._embedded[-3:], (wanted, z_NxD)]
        return wanted, z_NxD

    def embed(self, times: pl.DataFrame | str | Path | None = None, transform: Transform | None = None) -> pl.DataFrame:
        """z at prediction times, from what was known then.

        Args:
          times: subject_id and prediction_time, as a frame or a parquet file; None: the last record of each person.
          transform: what becomes of each record before it is read (data/perturbations.py), as for counterfactuals.

        Returns:
          subject_id, prediction_time, z0, z1, ... (Float32; null where there is nothing to read).

        Raises:
          ValueError: a column is missing, or somebody is not in the data.
        """
        keys, z_NxD = self.latents(times, transform)
        names = [f"z{i}" for i in range(z_NxD.shape[1])]
        return keys.hstack(pl.DataFrame(z_NxD, names).fill_nan(None))

    def predict(
        self, task: str, times: pl.DataFrame | str | Path | None = None, transform: Transform | None = None
    ) -> pl.DataFrame:
        """Predictions of a task: subject_id, prediction_time and the columns of StoredProbe.predict.

        Args:
          times, transform: as `embed` takes them.

        Raises:
          ValueError: no such task; as `embed`.
        """
        probe = self.model.probe(task)
        keys, z_NxD = self.latents(times, transform)
        return keys.hstack(probe.predict(z_NxD))

    def explain(self, task: str, times: pl.DataFrame | str | Path, steps: int = 16) -> pl.DataFrame:
        """What of a person's record the logit of a binary task is read from, by integrated gradients.

        Args:
          times: few of them, each takes `steps` passes back through the network.
          steps: nodes of the path from a record without content; more of them lower completeness_gap.

        Returns:
          A row per event and wearable window that is shown at a time: subject_id, prediction_time, days (before it,
          negative), token, attribution (part of the logit), rollout (of attention, sums to one) and completeness_gap
          (of the time: the sum of the parts less the change of the logit from a record without content).

        Raises:
          ValueError: no such task, its probe is no logistic regression, or the family has no attribution.
        """
        probe, network = self.model.probe(task).model, self.network
        if not isinstance(probe, LogisticProbe):
            raise ValueError(f"the probe of {task} is no logistic regression, whose logit could be explained")
        if not hasattr(network.interpretation, "embedded_inputs"):
            raise ValueError(f"the family {self.model.model.family} has no attribution of its inputs")
        wanted = read_times(times)
        position = dict(zip(self.store.index["subject_id"].to_list(), range(len(self.store)), strict=True))
        embedding.positions(network.examples, wanted)  # an error for people who are not there
        rows = []
        found = interpret_people.explain(network, probe, position, wanted, steps)
        for key, one in zip(wanted.iter_rows(), found, strict=True):
            names = ("days", "label", "gradient", "rollout")
            rows += [(*key, *(token[n] for n in names), one["completeness_gap"]) for token in one["tokens"]]
        return pl.DataFrame(rows, _EXPLAINED, orient="row")


def at(subject_id: int, *moments: datetime) -> pl.DataFrame:
    """Prediction times of one person, for `embed` and `predict`."""
    return pl.DataFrame({"subject_id": [subject_id] * len(moments), "prediction_time": list(moments)}, KEY_SCHEMA)
