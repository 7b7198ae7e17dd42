"""A trained run as interpretation needs it: rows with their networks, labelled reads, probes, and changed reads."""

import dataclasses
import functools
import logging

import jax
import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.evals import protocol
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.stages import model, prepare
from ehrwear_jax.training import embedding, train


@dataclasses.dataclass(frozen=True)
class Reader:
    """A pretrained row: its patients (all splits), network, parameters, and the encoder made of them."""

    patients: pipeline.Patients
    network: object
    params: dict
    encode: object


class Study:
    """What was trained and labelled, of the first fold; everything is loaded once and when it is needed.

    Attributes:
      fold: folder name. task: the binary task that probes are fitted for, None if there is none.
      labels: subject_id, prediction_time, boolean_value, split, group_id of its labelled reads, with `at`, the row of
        the embeddings. held: those of the held-out split, whole people, at most config.interpret.max_reads.
    """

    def __init__(self, config, workdir):
        self.config, self.workdir = config, workdir
        self.fold = config_lib.folds(config)[0][0]
        self.task = self._task()
        self._changed = {}
        subjects = pl.read_parquet(prepare.fit_dir(workdir, self.fold) / "subjects.parquet")
        self.subjects = subjects.select("subject_id", "split", "group_id")
        self.keys = self._embedded(next(iter(config.rows))).select("subject_id", "prediction_time")

    def _task(self):
        wanted = self.config.interpret.task or self.config.report.reliability_task
        for task in [wanted] if wanted else self.config.evaluate.tasks:
            if "boolean_value" in prepare.label_table(self.config, self.workdir, task).columns:
                return task
        logging.info("  no binary task among config.evaluate.tasks: nothing that needs a probe is computed")
        return None

    def _embedded(self, row):
        return pl.read_parquet(self.workdir / "embed" / self.fold / f"{row}.parquet")

    @functools.cached_property
    def store(self):
        """RecordStore of everybody."""
        return prepare.open_store(self.workdir, self.fold)

    @functools.cached_property
    def rows(self):
        """{row: Reader}."""
        out = {}
        for row in self.config.rows:
            patients, params = model.restored(self.config, self.workdir, self.fold, row)
            options = config_lib.model_options(self.config)
            network = train.make_model(patients, options)
            params = jax.device_get(params)
            out[row] = Reader(patients, network, params, embedding.make_encoder(patients, options, params))
        return out

    @functools.cached_property
    def latents(self):
        """{row: float [N, D]} of all reads of the embed stage, late fusion with its members side by side."""
        out = {row: np.stack(self._embedded(row)["embedding"].to_numpy()) for row in self.config.rows}
        if self.fused:
            out["late_fusion"] = np.concatenate([out[r] for r in self.fused], axis=1)
        return out

    @property
    def fused(self):
        members = self.config.evaluate.late_fusion
        return tuple(members) if members and set(members) <= set(self.config.rows) else ()

    @functools.cached_property
    def labels(self):
        table = prepare.label_table(self.config, self.workdir, self.task)
        keys = self.keys.with_row_index("at").join(self.subjects, on="subject_id", how="left")
        return table.join(keys, on=["subject_id", "prediction_time"]).sort("subject_id", "prediction_time")

    @functools.cached_property
    def held(self):
        held = self.labels.filter(pl.col("split") == "held_out")
        limit = self.config.interpret.max_reads
        if limit and held.height > limit:
            people = held["subject_id"].unique().sort().to_numpy()
            people = np.random.default_rng(self.config.seed).permutation(people)
            order = pl.DataFrame({"subject_id": people, "order": np.arange(len(people))})
            ranked = held.join(order, on="subject_id").sort("order", "prediction_time").drop("order").head(limit)
            held = ranked.sort("subject_id", "prediction_time")
        return held

    def train_latents(self, row):
        """Latents of all reads of the training split, labelled for the task or not: float64 [N, D]."""
        split = self.keys.join(self.subjects, on="subject_id", how="left", maintain_order="left")["split"]
        return self.latents[row][(split == "train").to_numpy()].astype(np.float64)

    def of_split(self, row, split):
        """Latents of the labelled reads of a split."""
        return self.latents[row][self.labels.filter(pl.col("split") == split)["at"].to_numpy()]

    @functools.cached_property
    def probes(self):
        """{row: probes.LogisticProbe}, fitted as in the evaluate stage."""
        splits = ("train", "tuning")
        y = {s: self.labels.filter(pl.col("split") == s)["boolean_value"].to_numpy().astype(float) for s in splits}
        return {r: protocol.predict_binary({s: self.of_split(r, s) for s in splits}, y).model for r in self.latents}

    def read(self, row, index, transform=None, encode=None):
        """z at the reads of `index` (subject_id, prediction_time) from changed records: float32 [N, D]."""
        reader = self.rows[row]
        encode = encode or reader.encode
        return embedding.embed(encode, reader.patients, index, self.config.embed.batch_size, transform)

    def held_latents(self, row, name=None, transform=None):
        """z at the held-out reads, of one row or of late fusion; changed reads are kept under their name."""
        if transform is None:
            return self.latents[row][self.held["at"].to_numpy()]
        if row == "late_fusion":
            return np.concatenate([self.held_latents(r, name, transform) for r in self.fused], axis=1)
        if (row, name) not in self._changed:
            self._changed[row, name] = self.read(row, self.held, transform)
        return self._changed[row, name]

    def modalities(self, row):
        """Those that a row is given and the dataset has."""
        members = self.fused if row == "late_fusion" else (row,)
        given = {m for r in members for m in self.config.rows[r]}
        return given if self.channels else given - {"wear"}

    @functools.cached_property
    def channels(self):
        return next(iter(self.rows.values())).patients.channels

    @functools.cached_property
    def joint(self):
        """The row that mechanisms are looked for in: the reference row, else the first with most modalities; None."""
        return config_lib.reference_model(self.config, self.modalities)


def reads(subject_id, time_us) -> pl.DataFrame:
    """An index for `Study.read`."""
    time = pl.Series(np.asarray(time_us, np.int64)).cast(pl.Datetime("us"))
    return pl.DataFrame({"subject_id": pl.Series(subject_id, dtype=pl.Int64), "prediction_time": time})
