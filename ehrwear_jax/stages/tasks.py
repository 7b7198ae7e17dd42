"""Reads a task: its labelled prediction times in every fold, with split and group, and the targets as arrays."""

import dataclasses
import logging
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.formats.label_tables import COMPETING
from ehrwear_jax.evals import survey
from ehrwear_jax.evals.survival import FollowUp
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import eligibility, embed, evaluate_score
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.plan import Plan

SPLITS = ("train", "tuning", "held_out")
BINARY, SURVIVAL, REGRESSION = "binary", "survival", "regression"
KIND_OF_COLUMN = {"boolean_value": BINARY, "time_to_event_days": SURVIVAL, "float_value": REGRESSION}
GRID_POINTS = 24  # of the integrated Brier score, beside the horizons


@dataclasses.dataclass(frozen=True)
class TaskFold:
    """A task in one fold.

    Attributes:
      name, number: of the fold.
      times: subject_id, prediction_time, label column(s), split, group_id; sorted.
    """

    name: str
    number: int | None
    kind: str
    times: pl.DataFrame

    def of(self, split: str) -> pl.DataFrame:
        """The prediction times of a split."""
        return self.times.filter(pl.col("split") == split)

    @property
    def target(self) -> dict[str, Any]:
        """{split: labels float64 [N]}; of a time-to-event task {split: (time [N], event [N])}."""
        if self.kind != SURVIVAL:
            column = self.times.columns[2]
            return {s: self.of(s)[column].to_numpy().astype(np.float64) for s in SPLITS}
        out = {}
        for split in SPLITS:
            mine = self.of(split)
            event_N = mine["event_observed"].to_numpy().astype(bool)
            out[split] = mine["time_to_event_days"].to_numpy().astype(np.float64), event_N
        return out

    @property
    def competing(self) -> dict[str, np.ndarray] | None:
        """{split: whether a competing event came first, bool [N]}, None where the table has no such event."""
        if COMPETING not in self.times.columns or not self.times[COMPETING].any():
            return None
        return {s: self.of(s)[COMPETING].to_numpy().astype(bool) for s in SPLITS}


@dataclasses.dataclass(frozen=True)
class Task:
    """A task over all folds.

    Attributes:
      kind: BINARY, SURVIVAL or REGRESSION. column: of the label. labels: digest of the table.
      horizons, times_T: of a time-to-event task: days of AUC(t) inside the follow-up, and the grid of survival curves.
      notes: sentences on horizons that are left out.
    """

    name: str
    kind: str
    column: str
    labels: str
    folds: tuple[TaskFold, ...]
    horizons: tuple[float, ...] = ()
    times_T: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    notes: tuple[str, ...] = ()

    def of(self, split: str) -> pl.DataFrame:
        """The prediction times of a split of all folds, each once; the held-out ones in the order of predictions."""
        table = pl.concat([f.of(split) for f in self.folds])
        return table.unique(KEYS, maintain_order=True) if split == "train" else table

    @property
    def fold_N(self) -> np.ndarray:
        """Number of the fold, from 0, in which each held-out prediction time is held out, int [N]."""
        return np.repeat(np.arange(len(self.folds)), [f.of("held_out").height for f in self.folds])

    @property
    def group_N(self) -> np.ndarray:
        """Of the held-out prediction times."""
        return self.of("held_out")["group_id"].to_numpy()


def follow_up_of(times: pl.DataFrame) -> FollowUp:
    """Of the rows of a time-to-event task's label table."""
    competing_N = times[COMPETING].to_numpy().astype(bool) if COMPETING in times.columns else None
    return FollowUp(times["time_to_event_days"].to_numpy(), times["event_observed"].to_numpy(), competing_N)


def read(plan: Plan, name: str) -> Task:
    """A task of config.evaluate.tasks.

    Raises:
      FileNotFoundError, ValueError: see Labels.table.
    """
    labels = Labels(plan)
    table = labels.table(name)
    column = table.columns[2]
    kind = KIND_OF_COLUMN[column]
    folds = []
    for fold, number in plan.config.folds:
        times = table.join(embed.prediction_times(plan, fold), on=KEYS, how="inner").sort(KEYS)
        times = eligibility.known_by_then(times, name, plan.config.data)
        folds.append(TaskFold(fold, number, kind, times))
    known = labels.digest(name)
    if plan.config.data.holdout_time:  # which of them are used, and until when
        known = files.digest([known, plan.config.data.holdout, plan.config.data.holdout_gap_days])
    task = Task(name, kind, column, known, tuple(folds))
    if kind != SURVIVAL:
        return task
    notes: list[str] = []
    config, train = plan.config.evaluate, [follow_up_of(f.of("train")) for f in folds]
    horizons = evaluate_score.usable_horizons(
        config.horizons_of(name), follow_up_of(task.of("held_out")), task.group_N, train, config.min_horizon_events,
        notes.append,
    )  # fmt: skip
    if not horizons:
        notes.append(f"  {name}: no horizon of config.evaluate can be evaluated: no AUC(t), no Brier(t)")
        return dataclasses.replace(task, notes=tuple(notes))
    times_T = np.union1d(np.linspace(0, max(horizons), GRID_POINTS + 1)[1:], horizons)
    return dataclasses.replace(task, horizons=tuple(horizons), times_T=times_T, notes=tuple(notes))


def evaluated(plan: Plan) -> list[Task]:
    """The tasks of config.evaluate.tasks that models can be fitted to; [] if there is none."""
    return [task for task in (read(plan, name) for name in plan.config.evaluate.tasks) if unusable(task) is None]


def left_out(plan: Plan) -> dict[str, str]:
    """{task of config.evaluate.tasks that no model can be fitted to: why}."""
    found = {name: unusable(read(plan, name)) for name in plan.config.evaluate.tasks}
    return {name: why for name, why in found.items() if why is not None}


def unusable(task: Task) -> str | None:
    """Why nothing can be fitted to a task or told of it, a clause; None where it can.

    Training needs both outcomes, or an event; so does the tuning split of a time-to-event task, as its partial
    likelihood chooses penalties.
    """
    if not task.of("held_out").height:
        return "nobody in its held-out split has a label"
    for fold in task.folds:
        where = f" of {fold.name}" if len(task.folds) > 1 else ""
        for split in ("train", "tuning"):
            mine, name = fold.of(split), f"its {split} split{where}"
            if not mine.height:
                return f"nobody in {name} has a label"
            if task.kind == SURVIVAL and not mine["event_observed"].any():
                return f"{name} holds no event"
            if task.kind == BINARY and split == "train" and mine[task.column].n_unique() < 2:
                return f"{name} holds one class only ({str(mine[task.column][0]).lower()})"
    return None


def held_out_groups(plan: Plan) -> np.ndarray:
    """Groups of all held-out people with a prediction time, so that the tasks share their resamples."""
    return _held_out_people(plan)["group_id"].unique().sort().to_numpy()


def _held_out_people(plan):
    times = (embed.prediction_times(plan, fold) for fold, _ in plan.config.folds)
    held = [t.filter(pl.col("split") == "held_out").select("subject_id", "group_id") for t in times]
    return pl.concat(held).unique().sort("subject_id")


def survey_design(plan: Plan) -> survey.Design | None:
    """The design of the survey that held_out_groups are of; None: config.evaluate names no weight.

    Raises:
      ValueError: ids were changed, so that nobody is found in the survey; what survey.read raises.
      FileNotFoundError: the dataset has no such table.
    """
    config = plan.config.evaluate
    if not config.survey_weight:
        return None
    if plan.changes_people:
        raise ValueError(
            "config.evaluate.survey_weight: prepare changes the ids of people, and the survey's table has their own"
        )
    people, path = _held_out_people(plan), meds.survey_path(plan.meds_dir)
    if not path.exists():
        raise FileNotFoundError(f"config.evaluate.survey_weight is {config.survey_weight!r}, and there is no {path}")
    columns = config.survey_weight, config.survey_strata, config.survey_units
    found = survey.read(path, people["subject_id"].to_numpy(), people["group_id"].to_numpy(), columns)
    if found.n_single:
        logging.warning(
            "  %s of %s strata of the survey have one sampling unit: intervals leave out how much it varies",
            found.n_single, len(np.unique(found.stratum_G)),
        )  # fmt: skip
    return found
