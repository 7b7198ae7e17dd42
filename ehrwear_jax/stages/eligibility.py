"""Keeps the prediction times that are eligible (config.cohort) and those that a temporal hold-out leaves."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ehrwear_jax.config.data import CohortConfig, DataConfig
from ehrwear_jax.data.labels import cohort
from ehrwear_jax.data.prepare import division
from ehrwear_jax.stages.artifacts import Artifact

if TYPE_CHECKING:
    from ehrwear_jax.stages.plan import Plan

ELIGIBLE = "eligible.parquet"
_HORIZON = re.compile(r"_(\d+)d$")


def artifact(plan: "Plan", task: str, labels: str) -> Artifact:
    """Where it lies which prediction times of a task are eligible.

    Args:
      labels: digest of the task's table.
    """
    of = {"tables": plan.tables.digest, "labels": labels, "criteria": plan.config.cohort.criteria}
    return plan.artifact("eligibility", task, of)


class Judge:
    """Makes these artifacts; what is judged by is read once."""

    def __init__(self, plan: "Plan") -> None:
        self._plan = plan

    @functools.cached_property
    def _evidence(self):
        config = self._plan.config
        return division.read_evidence(self._plan.tables.folder, config.prepare.window_hours, config.cohort)

    def make(self, folder: Path, task: str, table: pl.DataFrame) -> list[dict]:
        """Writes the eligible (subject_id, prediction_time) of a task's table; returns the counts of each criterion."""
        kept, steps = cohort.select(table.select(cohort.KEYS), self._evidence, self._plan.config.cohort)
        kept.unique().sort(cohort.KEYS).write_parquet(Path(folder) / ELIGIBLE)
        return [{**step, "step": f"{task}: {step['step']}"} for step in steps]


def of(path: Path, table: pl.DataFrame) -> pl.DataFrame:
    """The rows of a task's table whose prediction times are eligible, in their order.

    Args:
      path: ELIGIBLE in the task's artifact.

    Raises:
      FileNotFoundError: the prepare stage has not judged them.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: who is eligible is not known yet: run the prepare stage")
    return table.join(pl.read_parquet(path), on=cohort.KEYS, how="semi", maintain_order="left")


def design(config: CohortConfig, told: Mapping[str, str]) -> dict[str, str]:
    """The eligibility of a task's design with the criteria in words, {} without criteria."""
    return {} if config.is_open else {"eligibility": f"{told.get('eligibility', '')} {cohort.in_words(config)}".strip()}


# ---------------------------------------------------------------------------------------------- temporal hold-outs
def in_period(times: pl.DataFrame, data: DataConfig) -> pl.DataFrame:
    """The prediction times that a temporal hold-out leaves: held-out people's from its date on, the others' before it.

    Args:
      times: prediction_time, split and further columns.
    """
    date = data.holdout_time
    if date is None:
        return times
    return times.filter((pl.col("prediction_time") >= date) == (pl.col("split") == "held_out"))


def known_by_then(table: pl.DataFrame, task: str, data: DataConfig) -> pl.DataFrame:
    """Labels as they were known at the date of a temporal hold-out, of all but held-out people.

    Times to an event are censored there. Of other labels those stay whose whole period was over: <days> of a name
    NAME_<days>d, else config.data.holdout_gap_days; those that were known earlier because something happened go too,
    for they would be selected by their outcome.

    Args:
      table: prediction_time, label column(s), split; within `in_period`.

    Raises:
      ValueError: it cannot be told when the outcome is known.
    """
    date = data.holdout_time
    if date is None:
        return table
    others = pl.col("split") != "held_out"
    left = (pl.lit(date, pl.Datetime("us")) - pl.col("prediction_time")).dt.total_microseconds() / 86_400e6
    if "time_to_event_days" in table.columns:
        later = others & (pl.col("time_to_event_days") > left)
        flags = [c for c in ("event_observed", "competing_event") if c in table.columns]
        days = pl.when(later).then(left).otherwise("time_to_event_days").cast(table.schema["time_to_event_days"])
        return table.with_columns(days.alias("time_to_event_days"), *(pl.col(c) & ~later for c in flags))
    found = _HORIZON.search(task)
    period = float(found[1]) if found else data.holdout_gap_days
    if not period:
        raise ValueError(
            f"config.data.holdout: when an outcome of {task} is known cannot be told from its name; set "
            "--config.data.holdout_gap_days to the days that it takes"
        )
    return table.filter(~others | (left >= period))


def holdout_steps(table: pl.DataFrame, task: str, data: DataConfig) -> list[dict]:
    """Counts [{step, n, dropped, reason}] of what a temporal hold-out leaves of a task's labels, by split."""
    left, out = known_by_then(in_period(table, data), task, data), []
    date = f"{data.holdout_time:%Y-%m-%d}"
    for split, reason in (
        ("train", f"on or after {date}, or with an outcome that was not known by then"),
        ("tuning", f"on or after {date}, or with an outcome that was not known by then"),
        ("held_out", f"before {date}"),
    ):
        n, before = (t.filter(pl.col("split") == split).height for t in (left, table))
        step = f"{task}: {split} prediction times of the temporal hold-out"
        out.append({"step": step, "n": n, "dropped": before - n, "reason": reason})
    return out
