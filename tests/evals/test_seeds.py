"""Means over seeds on the data and on every resample, and the spread beside them, against their definitions."""

import numpy as np
import pytest

from ehrwear_jax.evals import bootstrap, builders, seeds
from ehrwear_jax.evals.classification import auroc
from ehrwear_jax.evals.estimates import Resampling
from ehrwear_jax.evals.protocol import TaskSpec
from ehrwear_jax.stages import evaluate_score


def problem(n=240, n_seeds=4):
    """Labels, patients, and predictions of two models with several seeds and of one with one."""
    rng = np.random.default_rng(0)
    y, group = rng.random(n) < 0.4, np.arange(n) // 2
    logit = lambda k: k * y - 1 + rng.normal(size=(n_seeds, n))  # noqa: E731
    p = {"joint": 1 / (1 + np.exp(-logit(1.5))), "other": 1 / (1 + np.exp(-logit(1.0)))}
    return y, group, p | {"table": 1 / (1 + np.exp(-logit(0.8)[0]))}


def scored(y, group, predictions):
    cohort = evaluate_score.Cohort(group)
    found = evaluate_score.score_binary(TaskSpec("d", "t", "joint", Resampling(80, seed=3)), predictions, y, cohort)
    return {(r["model"], r["metric"]): r for r in found["records"]}


def test_values_intervals_and_p_values_are_of_the_mean_over_seeds():
    y, group, predictions = problem()
    found, weight = scored(y, group, predictions), bootstrap.patient_weights(group, 80, seed=3)
    each = {m: np.array([auroc(y, s) for s in np.atleast_2d(p)]) for m, p in predictions.items()}
    resampled = {m: np.mean([auroc(y, s, weight) for s in np.atleast_2d(p)], axis=0) for m, p in predictions.items()}
    for model in predictions:
        record = found[model, "auroc"]
        assert record["value"] == pytest.approx(each[model].mean())
        np.testing.assert_allclose([record["lo"], record["hi"]], np.quantile(resampled[model], [0.025, 0.975]))
    for other in ("other", "table"):
        delta_B = resampled["joint"] - resampled[other]
        record = found[f"joint - {other}", "auroc_difference"]
        assert record["value"] == pytest.approx(each["joint"].mean() - each[other].mean())
        np.testing.assert_allclose([record["lo"], record["hi"]], np.quantile(delta_B, [0.025, 0.975]))
    assert found["joint", "auroc_seed_sd"]["value"] == pytest.approx(each["joint"].std(ddof=1))
    assert ("table", "auroc_seed_sd") not in found and ("joint - table", "auroc_difference_d") not in found
    d = each["joint"] - each["other"]
    assert found["joint - other", "auroc_difference_d"]["value"] == pytest.approx(d.mean() / d.std(ddof=1))


def test_two_seeds_have_a_spread_and_no_effect_size():
    y, group, predictions = problem(n_seeds=2)
    found = scored(y, group, predictions)
    assert ("joint", "auroc_seed_sd") in found and ("joint", "brier_seed_sd") in found
    assert not [metric for _, metric in found if metric.endswith("_d")]


def test_one_seed_is_scored_as_if_there_were_no_axis_for_it():
    y, group, predictions = problem(n_seeds=1)
    alone = scored(y, group, {m: np.atleast_2d(p)[0] for m, p in predictions.items()})
    assert scored(y, group, predictions) == alone


def test_gaps_of_bins_are_those_of_the_first_seed():
    y, _, predictions = problem()
    builds = seeds.by_seed(predictions, lambda p, _: builders.binary(y, p, thresholds=()))
    assert [len(builds[m]) for m in predictions] == [4, 4, 1]
    ones = np.ones((len(y), 1))
    mean, first = seeds.averaged(builds)["joint"](None)(ones), builds["joint"][0](None)(ones)
    assert all(mean[k] == first[k] for k in first if k.startswith("gap_")) and mean["ece"] != first["ece"]
