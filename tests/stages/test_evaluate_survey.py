"""The evaluate stage of a survey: people weigh, and resamples are drawn, as the design beside the data says."""

import logging

import numpy as np
import polars as pl
import pytest
import small_run
from sklearn.metrics import roc_auc_score
from small_run import FOLDS, value

from ehrwear_jax.data.formats import meds
from ehrwear_jax.evals import concordance
from ehrwear_jax.stages import evaluate, predictors, prepare, report_contents, tasks

MODELS = ("wear_only", "linear_table")
SURVEY = {"survey_weight": "w", "survey_strata": ("h",), "survey_units": ("u",)}


def config_of(root):
    config = small_run.small_config(root)
    config.data.n_folds = 2
    for name in set(config.models) - set(MODELS):
        del config.models[name]
    config.evaluate.reference_model = "wear_only"
    return config


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """(a plan whose people count alike, evaluated; one of the same run with a survey's weights)."""
    root = tmp_path_factory.mktemp("survey")
    small_run.write_inputs(root, folds=FOLDS)
    alike = small_run.plan_of(config_of(root), root / "run")
    prepare.run(alike)
    rng = np.random.default_rng(0)
    small_run.write_embeddings(alike, lambda trained, times: rng.normal(size=(times.height, 4)))
    evaluate.run(alike)
    config = config_of(root)
    config.evaluate.update(SURVEY)
    return alike, small_run.plan_of(config, root / "run")


def write_design(plan, n_units=2):
    """Three strata of so many units each; the last stratum of one."""
    ids = FOLDS["subject_id"]
    weight, unit = np.random.default_rng(1).uniform(1, 9, len(ids)), ids // 3 % n_units
    design = pl.DataFrame({"subject_id": ids, "w": weight, "h": ids % 3, "u": unit})
    design = design.with_columns(u=pl.when(pl.col("h") == 2).then(0).otherwise("u"))
    design.write_parquet(meds.survey_path(plan.meds_dir))
    return design


def predictions(plan, task, model):
    return pl.read_parquet(evaluate.scores(plan, tasks.read(plan, task)).folder / "predictions" / f"{model}.parquet")


def test_values_are_those_of_the_weighted_people(plans, caplog):
    """Against scikit-learn, and the C-index of weighted pairs; the scores of people who count alike stay."""
    alike, weighted = plans
    with pytest.raises(FileNotFoundError, match="survey_weight is 'w', and there is no .*subject_survey.parquet"):
        evaluate.run(weighted)
    design = write_design(weighted)
    with caplog.at_level(logging.WARNING):
        evaluate.run(weighted)
    assert "1 of 3 strata of the survey have one sampling unit" in caplog.text
    (records, _), (plain, _) = evaluate.results(weighted), evaluate.results(alike)
    # what is written is rounded to 32 bits, by which some predictions are tied
    exact = {p.name: p.held_out for p in predictors.predict(weighted, tasks.read(weighted, "readmission"))}
    for model in MODELS:
        binary, survival = (predictions(weighted, task, model) for task in ("readmission", "relapse"))
        weight = binary.join(design, on="subject_id", maintain_order="left")["w"]
        expected = roc_auc_score(binary["boolean_value"], exact[model], sample_weight=weight)
        assert value(records, "readmission", model, "auroc") == pytest.approx(expected)
        columns = ("time_to_event_days", "event_observed", "predicted_log_hazard", "w")
        joined = survival.join(design, on="subject_id", maintain_order="left")
        expected = concordance.concordance_index(*(joined[c].to_numpy() for c in columns))
        assert value(records, "relapse", model, "c_index") == pytest.approx(expected)
        assert value(records, "relapse", model, "c_index") != value(plain, "relapse", model, "c_index")
    assert {r["n"] for r in records} == {r["n"] for r in plain}
    folders = [evaluate.scores(plan, tasks.read(plan, "relapse")).folder for plan in plans]
    assert folders[0] != folders[1]
    write_design(weighted, n_units=3)
    assert evaluate.scores(weighted, tasks.read(weighted, "relapse")).folder not in folders, "of another design"


def test_the_page_says_of_whom_its_numbers_are(plans):
    alike, weighted = plans
    assert "people weigh by w" in " ".join(report_contents.notes(weighted))
    assert "weigh" not in " ".join(report_contents.notes(alike))
