"""Finds the times behind a binary task with a horizon, from which follow how often its labels are unknown."""

import dataclasses
import logging

import numpy as np
import polars as pl

from ehrwear_jax.data.formats.label_tables import COMPETING
from ehrwear_jax.data.labels import event_tasks, outcomes
from ehrwear_jax.data.prepare import specs
from ehrwear_jax.evals import survival
from ehrwear_jax.evals.survival import FollowUp, TrainingCurves
from ehrwear_jax.report.result_records import horizon_of
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import tasks
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.labels import HOSPITALIZATION, Labels, with_extraction_date
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.tasks import Task


def identity(plan: Plan, task: Task) -> str | None:
    """Digest of what `time_behind` reads beside the task's own labels, None where it finds nothing."""
    name, labels = (horizon_of(task.name) or ("", 0.0))[0], Labels(plan)
    if not name:
        return None
    if labels.files(f"time_to_{name}"):
        return labels.digest(f"time_to_{name}")
    if name != HOSPITALIZATION or plan.changes_people:
        return None
    bounds = [getattr(plan.config.prepare, k) for k in ("first_date", "extraction_date")]
    rules = dataclasses.asdict(event_tasks.rules(plan.config.labels))
    return files.digest([plan.raw_identity, bounds, rules])


def time_behind(plan: Plan, task: Task) -> tuple[np.ndarray, FollowUp] | None:
    """(inverse probability of a known label [N], FollowUp of the event) of a task <name>_<days>d, or None.

    The times come from the label table time_to_<name>; those of hospitalisation, where there is none, from the events.
    A death before the event is a competing event. The censoring is that of each fold's own training people at all times
    of the table, also those whose label at the horizon is unknown.
    """
    name, days = horizon_of(task.name) or ("", 0.0)
    times = event_times(plan, name) if name else None
    if times is None:
        return None
    held = task.of("held_out")
    mine = held.select(KEYS).join(times, on=KEYS, how="left", maintain_order="left")
    if mine["time_to_event_days"].null_count():
        return None  # the labels were not made from these times
    in_training = [times.join(_training_people(plan, f.name), on="subject_id", how="semi") for f in task.folds]
    train = [tasks.follow_up_of(table) for table in in_training]
    if not all(len(t.time_N) for t in train):
        return None
    follow_up = tasks.follow_up_of(mine)
    time_N, code_N = follow_up.time_N, follow_up.code_N
    y_N, known_N = survival.horizon_labels(time_N, code_N, days)
    if not known_N.all() or (y_N != held["boolean_value"].to_numpy()).any():
        logging.info("  %s: the labels differ from time_to_%s at the horizon: no weighted variant", task.name, name)
        return None
    censoring = TrainingCurves.fit_folds(train, task.fold_N).censoring
    try:
        return survival.horizon_factor(censoring, time_N, code_N, days), follow_up
    except ValueError as error:
        logging.info("  %s: no weighted variant: %s", task.name, error)
        return None


def _training_people(plan, fold):
    subjects = pl.read_parquet(plan.fit(fold).folder / "subjects.parquet")
    return subjects.filter(pl.col("split") == "train").select("subject_id")


def event_times(plan: Plan, name: str) -> pl.DataFrame | None:
    """Label table time_to_<name>, or one made of the events; None where the times are unknown."""
    labels = Labels(plan)
    if labels.files(f"time_to_{name}"):
        return labels.table(f"time_to_{name}")
    if name != HOSPITALIZATION or plan.changes_people:
        return None
    prepare, _ = with_extraction_date(plan.config.prepare, plan.meds_dir)
    times = outcomes.time_to_admission(
        plan.meds_dir,
        index=labels.prediction_times(plan.config.evaluate.tasks),
        bounds=specs.time_bounds(prepare),
        rules=event_tasks.rules(plan.config.labels),
    )
    return times.with_columns((pl.col("died") & ~pl.col("event_observed")).alias(COMPETING))
