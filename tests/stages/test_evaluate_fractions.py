"""Label efficiency: a model on a share of the labels is the same predictor of the same task with fewer of them."""

import numpy as np
import polars as pl
import pytest
import small_run
from sklearn.metrics import roc_auc_score
from sksurv.metrics import concordance_index_censored
from small_run import value

from ehrwear_jax.evals import protocol
from ehrwear_jax.stages import evaluate, evaluate_fractions, predictors, prepare, tasks


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(plan, records, details) after the stage."""
    root = tmp_path_factory.mktemp("fractions")
    labels = small_run.write_inputs(root)
    config = small_run.small_config(root)
    config.evaluate.update({"min_patients": 2, "min_per_class": 1, "label_fractions": (0.5, 1.0), "label_draws": 2})
    config.evaluate.label_models = ("joint", "late_fusion", "linear_table")
    config.models = {n: m for n, m in config.models.items() if m.family != "tabular" or n == "linear_table"}
    plan = small_run.plan_of(config, root / "run")
    prepare.run(plan)
    small_run.write_embeddings(plan, small_run.telling_latents(labels))
    evaluate.run(plan)
    return plan, *evaluate.results(plan)


def spec_of(plan, task):
    return evaluate.task_spec(plan.config.evaluate, "d", task.name, 0, tasks.held_out_groups(plan))


def test_label_fractions_are_fitted_for_the_last_binary_task(done):
    """Of the models that the config names: probes and models on tables, by the same way."""
    plan, records, details = done
    assert {r["task"] for r in details["fractions"]} == {"readmission"}
    whole = {r["model"]: r for r in details["fractions"] if r["fraction"] == 1 and r["metric"] == "auroc"}
    assert set(whole) == set(plan.config.evaluate.label_models) == {"joint", "late_fusion", "linear_table"}
    for model, r in whole.items():  # everything is what the task's own model saw
        expected = value(records, "readmission", model, "auroc")
        assert r["n_draws"] == 1 and r["value"] == pytest.approx(expected, abs=1e-6)
        if model != "joint":
            difference = value(records, "readmission", f"joint - {model}", "auroc_difference")
            assert r["difference"] == pytest.approx(difference, abs=1e-6)
            assert r["difference_lo"] <= r["difference"] <= r["difference_hi"]
    half = [r for r in details["fractions"] if r["fraction"] == 0.5]
    assert {r["model"] for r in half} == set(whole) and whole["joint"]["difference"] is None
    assert all(r["n_draws"] == 2 and r["n_patients"] < whole["joint"]["n_patients"] for r in half)


def test_a_fraction_is_the_same_task_with_fewer_training_patients(done):
    plan, *_ = done
    task = tasks.read(plan, "readmission")
    few, fewer = (evaluate_fractions.on_fraction(plan, task, f, 0).folds[0] for f in (0.5, 0.2))
    for split in ("tuning", "held_out"):
        assert few.of(split).equals(task.folds[0].of(split))
    patients = [set(f.of("train")["group_id"].to_list()) for f in (fewer, few, task.folds[0])]
    assert patients[0] < patients[1] < patients[2], "smaller fractions are parts of larger ones"
    other = evaluate_fractions.on_fraction(plan, task, 0.5, 1)
    assert set(other.folds[0].of("train")["group_id"].to_list()) != patients[1]
    assert len({task.labels, other.labels, evaluate_fractions.on_fraction(plan, task, 0.5, 0).labels}) == 3
    whole = task.folds[0].of("train")
    assert few.of("train").equals(whole.filter(pl.col("group_id").is_in(list(patients[1])))), "all of their rows"


def test_a_probe_on_half_the_labels_is_the_one_fitted_to_those_rows(done):
    """Each draw's predictions, made again by hand from the latents."""
    plan, _, details = done
    task, found = tasks.read(plan, "readmission"), []
    y_N = task.of("held_out")["boolean_value"].to_numpy()
    for draw in range(2):
        (fold,) = evaluate_fractions.on_fraction(plan, task, 0.5, draw).folds
        x = predictors.latents(plan, "joint", 0)(fold)
        p_N = protocol.predict_binary(x, fold.target).probability["held_out"]
        found.append(roc_auc_score(y_N, p_N))
    (r,) = [r for r in details["fractions"] if (r["model"], r["fraction"], r["metric"]) == ("joint", 0.5, "auroc")]
    assert r["value"] == pytest.approx(np.mean(found), abs=1e-6)
    assert r["spread"] == pytest.approx(np.std(found, ddof=1), abs=1e-6)


def test_label_efficiency_of_a_time_to_event_task_is_of_c(done):
    plan, *_ = done
    task = tasks.read(plan, "relapse")
    spec = spec_of(plan, task)
    found = evaluate_fractions.label_efficiency(plan, task, spec)
    assert {r["metric"] for r in found} == {"c_index"}
    held = pl.read_parquet(evaluate.scores(plan, task).folder / "predictions" / "joint.parquet")
    names = ("event_observed", "time_to_event_days", "predicted_log_hazard")
    expected = concordance_index_censored(*(held[n].to_numpy() for n in names))[0]
    (whole,) = [r for r in found if (r["model"], r["fraction"]) == ("joint", 1.0)]
    assert whole["value"] == pytest.approx(expected, abs=1e-6) and whole["lo"] <= whole["value"] <= whole["hi"]


def test_a_model_that_cannot_learn_from_so_few_is_left_out_and_named(done, monkeypatch, caplog):
    plan, *_ = done
    task = tasks.read(plan, "readmission")
    spec = spec_of(plan, task)
    real = predictors.predict

    def refuse(plan, part, only):
        if part.labels != task.labels and only == ("late_fusion",):
            raise ValueError("late_fusion: too few")
        return real(plan, part, only)

    monkeypatch.setattr(predictors, "predict", refuse)
    found = evaluate_fractions.label_efficiency(plan, task, spec)
    assert {r["model"] for r in found if r["fraction"] == 0.5} == {"joint", "linear_table"}
    assert {r["model"] for r in found if r["fraction"] == 1.0} == {"joint", "linear_table", "late_fusion"}
    assert "50% of the labels: left out: late_fusion: too few" in caplog.text
