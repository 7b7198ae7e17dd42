"""A report says what its data are called, of when they are, and what made it; numbers of too few are withheld."""

import json
import re
from datetime import date

import numpy as np
import polars as pl
import pytest
import small_run

from ehrwear_jax.config.evaluation import EvaluateConfig
from ehrwear_jax.report.build import ReportInputs, report_page
from ehrwear_jax.report.page import to_markdown_page
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.stages import evaluate, evaluate_too_few, prepare, report_contents, report_provenance, target_trial

TODAY = date(2026, 11, 28)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("provenance")
    labels = small_run.write_inputs(root)
    config = small_run.one_model(small_run.small_config(root), "ehr_only")
    for name in set(small_run.TABLES) - {"age_sex"}:
        del config.models[name]
    config.evaluate.update({"label_fractions": (), "n_resamples": 10})
    prepare.run(small_run.plan_of(config, root / "run"))
    return root, config, labels


def test_data_are_called_by_their_own_name(inputs):
    root, config, _ = inputs
    config.report.title = "Simulated cohort, small model"  # as tiny.py with data of one's own
    plan = small_run.plan_of(config, root / "run")
    assert report_provenance.title(plan) == "test cohort", "of dataset.json"
    config.report.title = "Hospital A"
    assert report_provenance.title(small_run.plan_of(config, root / "run")) == "Hospital A"
    config.report.title = ""
    path = root / "raw" / "meds" / "metadata" / "dataset.json"
    text = path.read_text()
    path.unlink()
    try:
        assert report_provenance.title(small_run.plan_of(config, root / "run")) == "raw", "the folder above meds"
    finally:
        path.write_text(text)
    config.data.source = "synthetic"
    assert report_provenance.title(small_run.plan_of(config, root / "run")) == "Simulated cohort"
    config.data.source = "meds"


def test_the_page_says_when_and_of_what_it_was_made(inputs):
    root, config, _ = inputs
    plan = small_run.plan_of(config, root / "run")
    told = report_provenance.subtitle(plan, TODAY)
    assert told.startswith("test cohort; dataset small, seed 0; made on 2026-11-28 with ehrwear_jax ")
    facts = report_provenance.facts(plan, TODAY)
    assert facts["data"] == "test cohort" and facts["made on"] == "2026-11-28"
    assert facts["provenance"].startswith("MEDS (meds); wearable (wearable); labels (labels); meds ")
    assert str(root) not in json.dumps(facts), "paths are of a machine"
    events = pl.read_parquet(sorted((plan.tables.folder / "events").glob("*.parquet")))
    events = events.filter(pl.col("time").is_not_null() & ~pl.col("code").str.starts_with("MEDS_BIRTH"))
    people = dict(events.group_by(pl.col("time").dt.year()).agg(pl.col("subject_id").n_unique()).iter_rows())
    years = [year for year, n in people.items() if n >= 10]
    assert facts["data period"].startswith(f"{min(years)} to {max(years)} (years in which at least 10 people")


@pytest.mark.parametrize(
    "label, kind, expected",
    [
        ([True] * 12, "binary", {"people": 12, "events": 12, "others": 0}),  # an AUPRC of 1.000 [1.000, 1.000]
        ([True] * 4 + [False] * 8, "binary", {"people": 12, "events": -1, "others": -1}),
        ([True] * 5 + [False] * 7, "binary", None),
        ([True] * 12, "survival", None),
        (None, "regression", None),
    ],
)
def test_a_task_needs_people_with_and_without_the_event(label, kind, expected):
    found = evaluate_too_few.counted(EvaluateConfig(), "relapse", kind, label, np.arange(12))
    assert found == (expected and {"task": "relapse", "limit": 10} | expected)
    assert evaluate_too_few.counted(EvaluateConfig(), "relapse", kind, label, np.arange(12) // 2), "six people"


def test_a_task_of_few_people_has_a_sentence_in_the_place_of_numbers(inputs):
    """Six held-out people; the page is whole all the same, and names no option."""
    root, config, labels = inputs
    config.evaluate.update({"min_task_people": 10, "min_task_events": 5})
    config.report.reliability_task = ""
    plan = small_run.plan_of(config, root / "run")
    small_run.write_embeddings(plan, lambda trained, times: np.random.default_rng(0).normal(size=(times.height, 3)))
    evaluate.run(plan)
    assert not evaluate.missing(plan)
    records, details = evaluate.results(plan)
    assert records == [] and [few["task"] for few in details["too_few"]] == ["readmission", "relapse"]
    assert report_contents._predictions(plan, {few["task"] for few in details["too_few"]}) == {}
    data = ReportData(**details | {"trials": target_trial.described(plan, details["trials"])})
    # of a run whose network was not trained
    shown = ReportInputs("A", "b", "small", records, notes=report_contents.notes(plan), data=data)
    text = to_markdown_page(report_page(shown, records))
    assert "**Readmission.** No numbers, too few: fewer than 10 people, fewer than 10 events" in text
    assert not re.search(r"config\.[a-z_]+\.", text), "hints are for the log"
    assert "1.000" not in text
