"""Fine-tunes a bundled network for a task of one's own people, and predicts it for others (training/finetune.py)."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ehrwear_jax.config import options
from ehrwear_jax.config.training import MODES, SCRATCH, FinetuneConfig
from ehrwear_jax.data.formats import label_tables, meds
from ehrwear_jax.evals.probes import LogisticProbe
from ehrwear_jax.training.finetune import Finetuned, Source, finetune

if TYPE_CHECKING:
    from ehrwear_jax.inference.trained_model import People, TrainedModel

_COLUMNS = ("boolean_value", "time_to_event_days")  # of labels that can be learned


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A network that was fine-tuned for a task.

    Attributes:
      model: the trained one. task: its name. found: parameters, head, step and drift.
    """

    model: "TrainedModel"
    task: str
    found: Finetuned
    batch_size: int

    def predict(
        self,
        meds_dir: str | Path,
        wearable_dir: str | Path | None = None,
        times: pl.DataFrame | str | Path | None = None,
    ) -> pl.DataFrame:
        """subject_id, prediction_time and predicted_boolean_probability, or predicted_log_hazard; null without data.

        Args: as TrainedModel.predict.
        """
        return self.predict_people(self.model.read(meds_dir, wearable_dir), times)

    def predict_people(self, people: "People", times: pl.DataFrame | str | Path | None = None) -> pl.DataFrame:
        """As `predict`, of people that the trained model has read."""
        wanted = people.last_times() if times is None else label_tables.read_times(times)
        is_binary = isinstance(self.found.probe, LogisticProbe)
        name = "predicted_boolean_probability" if is_binary else "predicted_log_hazard"
        score_N = self.found.predict(people.network.examples, wanted, self.batch_size)
        return wanted.with_columns(pl.Series(name, score_N, pl.Float64).fill_nan(None))


def fine_tune(
    model: "TrainedModel", people: "People", splits: pl.DataFrame, labels: pl.DataFrame, task: str, workdir: Path,
    config: FinetuneConfig, mode: str,
) -> FineTuned:  # fmt: skip
    """Fine-tunes for labels of people; goes on where an earlier call with the same arguments stopped.

    Args:
      splits: subject_id, split: train and tuning are learned from. labels: as label_tables.read_labels returns.

    Raises:
      ValueError: a mode that there is not, labels that are neither boolean nor times to an event, a split without any.
    """
    options.require_choice("config.finetune", "modes", mode, tuple(m for m in MODES if m != SCRATCH))
    if labels.columns[2] not in _COLUMNS:
        raise ValueError(f"{task} holds {labels.columns[2]}; fine-tuning takes {' or '.join(_COLUMNS)}")
    times, z_by_split = {}, {}
    of_split = labels.join(splits, on="subject_id").sort("subject_id", "prediction_time")
    for split in ("train", "tuning"):
        mine = of_split.filter(pl.col("split") == split).drop("split")
        _, z_NxD = people.latents(mine)
        known_N = np.isfinite(z_NxD).all(axis=1)
        if not known_N.any():
            raise ValueError(f"{task}: nobody of the {split} split has a label and anything that the model reads")
        times[split], z_by_split[split] = mine.filter(pl.Series(known_N)), z_NxD[known_N]
    source = Source(model.model, people.network.examples, model.variables, times, z_by_split)
    folder = workdir / f"{task}-{mode}"
    folder.mkdir(parents=True, exist_ok=True)
    return FineTuned(model, task, finetune(folder, source, config, mode), config.batch_size)


def labels_of(folder: Path, task: str) -> pl.DataFrame:
    """The label table of a task; FileNotFoundError names those that there are."""
    if not (found := label_tables.task_files(folder, task)):
        there = ", ".join(label_tables.tasks(folder)) or "none"
        raise FileNotFoundError(f"{folder}: no label table {task}.parquet; there are {there}")
    return label_tables.read_labels(found)


def splits_of(meds_dir: Path) -> pl.DataFrame:
    """subject_id, split of a MEDS data set; FileNotFoundError without any."""
    return meds.read_splits(meds_dir).select("subject_id", "split")
