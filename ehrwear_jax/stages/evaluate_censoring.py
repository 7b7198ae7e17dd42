"""Finds the times behind a binary task with a horizon, from which follow how often its labels are unknown."""

import logging

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import label_tables
from ehrwear_jax.data.labels import outcomes
from ehrwear_jax.data.prepare import specs
from ehrwear_jax.evals import survival
from ehrwear_jax.evals.survival import FollowUp
from ehrwear_jax.report.result_records import horizon_of
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import evaluate_subgroups
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
    return files.digest([plan.raw_identity, bounds, plan.config.labels.admission_code_prefix])


def time_behind(plan: Plan, task: Task) -> tuple[np.ndarray, FollowUp] | None:
    """(inverse probability of a known label [N], FollowUp of the event) of a task <name>_<days>d, or None.

    The times come from the label table time_to_<name>; those of hospitalisation from the events, where a death before
    the event is known too. The censoring is that of the prediction times themselves and of those whose label is
    unknown.
    """
    name, days = horizon_of(task.name) or ("", 0.0)
    if not name:
        return None
    everyone, held = evaluate_subgroups.attributes(plan).filter(pl.col("split") != "tuning"), task.of("held_out")
    times = _event_times(plan, name, everyone)
    if times is None:
        return None
    mine = held.select(KEYS).join(times, on=KEYS, how="left", maintain_order="left")
    if mine["time_to_event_days"].null_count():
        return None  # the labels were not made from these times
    fitted_on = times.join(everyone, on=KEYS, how="semi")
    censoring = survival.censoring_survival(
        fitted_on["time_to_event_days"].to_numpy(), fitted_on["code"].to_numpy() > 0
    )
    time_N, code_N = mine["time_to_event_days"].to_numpy(), mine["code"].to_numpy()
    y_N, known_N = survival.horizon_labels(time_N, code_N, days)
    if not known_N.all() or (y_N != held["boolean_value"].to_numpy()).any():
        logging.info("  %s: the labels differ from time_to_%s at the horizon: no weighted variant", task.name, name)
        return None
    try:
        return survival.horizon_factor(censoring, time_N, code_N, days), FollowUp(time_N, code_N == 1)
    except ValueError as error:
        logging.info("  %s: no weighted variant: %s", task.name, error)
        return None


def _event_times(plan, name, everyone):
    """Label table time_to_<name> with `code` (0 censored, 1 event, 2 a death before it), or None where unknown."""
    try:
        times = Labels(plan).table(f"time_to_{name}")
        died = pl.col(label_tables.COMPETING) if label_tables.COMPETING in times.columns else pl.lit(False)
        times = times.with_columns(died.alias("died"))
    except FileNotFoundError:
        if name != HOSPITALIZATION or plan.changes_people:
            return None
        prepare, _ = with_extraction_date(plan.config.prepare, plan.meds_dir)
        times = outcomes.time_to_admission(
            plan.meds_dir,
            index=everyone.select(KEYS),
            bounds=specs.time_bounds(prepare),
            admission_code_prefix=plan.config.labels.admission_code_prefix,
        )
    return times.with_columns(pl.when("event_observed").then(1).when("died").then(2).otherwise(0).alias("code"))
