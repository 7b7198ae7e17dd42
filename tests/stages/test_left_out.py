"""Tasks that no model can be fitted to are left out by name, and the others evaluated."""

import logging

import numpy as np
import polars as pl
import pytest
import small_run

from ehrwear_jax.data.formats import meds
from ehrwear_jax.stages import evaluate, prepare, report_contents, tasks

WHY = {
    "never": "its train split holds one class only (false)",
    "late_relapse": "its tuning split holds no event",
    "apart": "nobody in its held-out split has a label",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, config): three tasks that cannot be evaluated before one that can."""
    root = tmp_path_factory.mktemp("left_out")
    labels = small_run.write_inputs(root)
    split_of = pl.col("subject_id") % 5  # 0 to 2: train, 3: tuning, 4: held out
    readmission, relapse = labels["readmission"], labels["relapse"]
    of_held_out = readmission.with_columns(boolean_value=pl.col("boolean_value") & (split_of >= 3))
    without_tuning = relapse.with_columns(event_observed=pl.col("event_observed") & (split_of != 3))
    for name, table in (
        ("never", of_held_out),
        ("late_relapse", without_tuning),
        ("apart", readmission.filter(split_of < 4)),
    ):
        meds.write_labels(root / "labels" / f"{name}.parquet", table)
    config = small_run.one_model(small_run.small_config(root), "ehr_only")
    for name in set(small_run.TABLES) - {"age_sex"}:
        del config.models[name]
    config.evaluate.update({"tasks": (*WHY, "readmission"), "label_fractions": (), "n_resamples": 10})
    config.report.reliability_task = "never"
    return root, config


@pytest.fixture(scope="module")
def evaluated(written):
    """(plan, what was logged) after the stage."""
    root, config = written
    plan, told = small_run.plan_of(config, root / "run"), []
    heard = logging.Handler()
    heard.emit = lambda record: told.append(record.getMessage())
    logging.getLogger().addHandler(heard)
    try:
        prepare.run(plan)
        small_run.write_embeddings(plan, lambda trained, times: np.random.default_rng(0).normal(size=(times.height, 3)))
        evaluate.run(plan)
    finally:
        logging.getLogger().removeHandler(heard)
    return plan, told


def test_the_others_are_evaluated(evaluated):
    plan, _ = evaluated
    assert [task.name for task in tasks.evaluated(plan)] == ["readmission"]
    assert not evaluate.missing(plan), "the stage is done"
    records, details = evaluate.results(plan)
    assert {r["task"] for r in records} == {"readmission"} == {p["task"] for p in details["prevalence"]}


def test_they_are_named_with_their_reason(evaluated):
    plan, told = evaluated
    assert tasks.left_out(plan) == WHY
    for name, why in WHY.items():
        assert f"  {name} will not be evaluated: {why}" in told, "before anything is trained"
        assert f"  {name} is left out: {why}" in told
    notes = report_contents.notes(plan)
    assert "Never is not evaluated: its train split holds one class only (false)." in notes
    assert sum("is not evaluated" in note for note in notes) == len(WHY)


def test_it_is_an_error_if_no_task_is_left(written, evaluated):
    root, config = written
    config.evaluate.tasks, config.report.reliability_task = ("never", "apart"), ""
    plan = small_run.plan_of(config, root / "run")
    assert evaluate.missing(plan) == ["never", "apart"], "not taken for done"
    with pytest.raises(ValueError, match="no task can be evaluated .never: its train split holds one class only"):
        evaluate.run(plan)
