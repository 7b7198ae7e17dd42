"""A page of saved predictions alone: no data, no model, no stage before it."""

import dataclasses
import json
from datetime import datetime

import numpy as np
import polars as pl
import pytest
import small_run
from sklearn.metrics import average_precision_score, roc_auc_score
from small_run import value

from ehrwear_jax import config as config_lib
from ehrwear_jax.evals import concordance, meds_predictions
from ehrwear_jax.stages import report, report_inputs, report_predictions, runner

N = 240


def write_predictions(folder):
    """Two models of a binary, a survival and a float task, at 240 times of 120 people; returns the times."""
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(1, N // 2 + 1), 2)
    time = pl.Series(np.tile([0, 90], N // 2)) * 86_400_000_000
    times = pl.DataFrame(
        {"subject_id": subject, "prediction_time": time.cast(pl.Duration("us")) + datetime(2015, 1, 1)}
    )
    times = times.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    risk = rng.normal(size=N)
    y = risk + rng.normal(size=N) > 0.8
    days = rng.exponential(400 * np.exp(-risk)) + 1
    event = rng.random(N) < 0.7
    for model, noise in (("joint", 0.3), ("other <b>", 2.0)):
        score = risk + noise * rng.normal(size=N)
        p = 1 / (1 + np.exp(1 - score))
        for split in ("held", "tuning"):
            path = folder / split / "readmission_365d"
            path.mkdir(parents=True, exist_ok=True)
            table = meds_predictions.predictions(times["subject_id"], times["prediction_time"], y, p)
            meds_predictions.write(table.sample(fraction=1.0, shuffle=True, seed=3), path / f"{model}.parquet")
        path = folder / "held" / "relapse"
        path.mkdir(exist_ok=True)
        columns = {"time_to_event_days": days, "event_observed": event, "predicted_log_hazard": score}
        columns |= {f"predicted_survival_{t}d": np.exp(-t / 400 * np.exp(score)) for t in (90, 365)}
        times.with_columns(**{k: pl.Series(v) for k, v in columns.items()}).write_parquet(path / f"{model}.parquet")
        path = folder / "held" / "sleep"
        path.mkdir(exist_ok=True)
        value = {"float_value": risk, "predicted_float_value": score}
        times.with_columns(**{k: pl.Series(v) for k, v in value.items()}).write_parquet(path / f"{model}.parquet")
    sex = np.where(subject % 2, "female", "male")
    times.with_columns(sex=pl.Series(sex), age_years=pl.Series(30.0 + subject % 50)).write_parquet(
        folder / "held" / "attributes.parquet"
    )
    return times


def plan_of(folder):
    config = config_lib.base()
    config.name = "theirs"
    config.evaluate.n_resamples = 60
    config.report.update({"predictions_dir": str(folder / "held"), "tuning_dir": str(folder / "tuning")})
    return small_run.plan_of(config, folder / "run")


def make(folder):
    """Runs the report stage alone; returns the plan."""
    plan = plan_of(folder)
    runner.run(plan.config, plan.workdir.root, ["report"])
    return plan


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    write_predictions(folder)
    make(folder)
    return folder


def numbers(folder):
    return json.loads((folder / "run" / "report" / "results.json").read_text())


def test_the_stage_alone_makes_the_page(done):
    kinds = {p.name for p in (done / "run").iterdir() if p.is_dir() and not p.is_symlink()}
    assert kinds == {"configs", "reports"}
    shown = {p.name for p in (done / "run" / "report").iterdir()}
    assert shown >= {"report.html", "report.md", "results.json", "tables"}
    page = (done / "run" / "report" / "report.html").read_text()
    assert "<b>" not in page and len(page) < 10_000_000
    for text in ("Table 1, AUROC", "Table 2", "Table 3", "Table 5", "Table 6", "Table 7", "Table 8",
                 "Table 4 is not filled", "Table 9 is not filled", "Kaplan-Meier"):  # fmt: skip
        assert text in page, text
    assert "2015-" not in page  # no calendar date


def test_the_numbers_are_those_of_the_files(done):
    records = numbers(done)
    for model in ("joint", "other <b>"):
        table = pl.read_parquet(done / "held" / "readmission_365d" / f"{model}.parquet")
        y, p = table["boolean_value"].to_numpy(), table["predicted_boolean_probability"].to_numpy()
        assert value(records, "readmission_365d", model, "auroc") == pytest.approx(roc_auc_score(y, p), abs=1e-12)
        expected = average_precision_score(y, p)
        assert value(records, "readmission_365d", model, "auprc") == pytest.approx(expected, abs=1e-12)
        # the tuning file holds the same predictions: the sensitivity wanted is reached, and by no more than one time
        reached = value(records, "readmission_365d", model, "sensitivity")
        assert 0.8 <= reached < 0.8 + 1 / y.sum() + 1e-12
        table = pl.read_parquet(done / "held" / "relapse" / f"{model}.parquet")
        columns = ("time_to_event_days", "event_observed", "predicted_log_hazard")
        c = concordance.concordance_index(*(table[k].to_numpy() for k in columns))
        assert value(records, "relapse", model, "c_index") == pytest.approx(c, abs=1e-12)
        table = pl.read_parquet(done / "held" / "sleep" / f"{model}.parquet")
        error = table["float_value"].to_numpy() - table["predicted_float_value"].to_numpy()
        assert value(records, "sleep", model, "rmse") == pytest.approx(np.sqrt(np.mean(error**2)), abs=1e-12)
    p_value = value(records, "readmission_365d", "joint - other <b>", "auroc_difference_p")
    assert value(records, "readmission_365d", "joint - other <b>", "auroc_difference_q") == pytest.approx(p_value)


def test_another_page_is_made_when_a_file_changes(tmp_path):
    write_predictions(tmp_path)
    first = report.artifact(make(tmp_path))
    times, before = small_run.written_at(first.folder), small_run.contents(first.folder)
    assert report.artifact(make(tmp_path)).folder == first.folder and small_run.written_at(first.folder) == times
    (tmp_path / "held" / "sleep" / "other <b>.parquet").unlink()
    second = report.artifact(make(tmp_path))
    assert {r["model"] for r in numbers(tmp_path) if r["task"] == "sleep"} == {"joint"}
    # the first one stays as it was, beside it
    link = tmp_path / "run" / "report"
    assert first.folder != second.folder == link.resolve()
    assert small_run.written_at(first.folder) == times and small_run.contents(first.folder) == before


def test_a_page_that_was_not_finished_is_made_whole(tmp_path):
    write_predictions(tmp_path)
    plan = make(tmp_path)
    made = report.artifact(plan)
    before = small_run.contents(made.folder)
    small_run.interrupted(made, "report.html", "results.json")
    assert report.missing(plan) == ["the report"]
    make(tmp_path)
    after = small_run.contents(made.folder)
    assert report.missing(plan) == [] and before.items() <= after.items()


def test_a_prediction_time_that_differs_between_models_is_named(tmp_path):
    write_predictions(tmp_path)
    path = tmp_path / "held" / "sleep" / "joint.parquet"
    pl.read_parquet(path).head(N - 1).write_parquet(path)
    message = "other <b>.parquet: its prediction times or labels differ from those of joint.parquet"
    with pytest.raises(ValueError, match=message):
        report_predictions.inputs(plan_of(tmp_path).config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop("predicted_float_value"), "column boolean_value is missing"),
        (lambda t: t.with_columns(predicted_float_value=pl.lit(float("nan"))), "holds a value that is not finite"),
    ],
)
def test_a_faulty_file_is_named(tmp_path, change, message):
    write_predictions(tmp_path)
    for path in (tmp_path / "held" / "sleep").iterdir():
        change(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(ValueError, match=f"sleep/joint.parquet.*{message}"):
        report_predictions.inputs(plan_of(tmp_path).config)


@pytest.mark.parametrize(("source", "wanted", "drawn"), [
    ("synthetic", False, True), ("meds", False, False), ("meds", True, True), ("nhanes", False, False)])  # fmt: skip
def test_single_people_are_shown_of_simulated_cohorts_or_by_the_flag(source, wanted, drawn):
    config = config_lib.base()
    config.data.source, config.report.individuals = source, wanted
    assert report_inputs.shows_individuals(config_lib.parse(config)) == drawn


def test_weights_of_a_survey_are_refused_and_not_passed_over(tmp_path):
    plan = plan_of(tmp_path)
    evaluate = dataclasses.replace(plan.config.evaluate, survey_weight="w")
    with pytest.raises(ValueError, match="of saved predictions people count alike"):
        report_predictions.inputs(dataclasses.replace(plan.config, evaluate=evaluate))


def test_an_empty_folder_is_said(tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "tuning").mkdir()
    with pytest.raises(ValueError, match="holds no <task>/<model>.parquet"):
        report.run(plan_of(tmp_path))
