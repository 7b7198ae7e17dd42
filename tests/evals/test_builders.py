"""All metrics of a task together equal the metrics one by one; through subgroups as well."""

import numpy as np
import pytest

from ehrwear_jax.benchmarks import evals as bench
from ehrwear_jax.evals import (
    builders,
    calibration,
    classification,
    concordance,
    decision,
    regression,
    subgroups,
    survival,
    weighting,
)
from ehrwear_jax.evals.estimates import Resampling


def problem(n=700):
    """Follow-up of 200 to 1,200 days, risks of two models, patients of several rows, a split."""
    time, event, risk = bench.cohort(n, 2)
    rng = np.random.default_rng(0)
    risk = {"joint": risk["model 0"], "other": risk["model 1"] + rng.normal(size=n)}
    return time, event, risk, rng.integers(0, 300, n), rng.choice(["a", "b"], n)


def probability(risk):
    return 1 - np.exp(-np.exp(risk) * 365 / 2600)


def value(records, model, level, metric):
    (record,) = [r for r in records if (r["model"], r["level"], r["metric"]) == (model, level, metric)]
    return record["value"]


def test_binary_metrics_with_censored_rows_left_out():
    time, event, risk, group, split = problem()
    y, known = survival.horizon_labels(time, event, 365)
    predictions = {model: probability(v) for model, v in risk.items()}
    points = {m: classification.sensitivity_threshold(y[known], p[known], 0.8) for m, p in predictions.items()}
    build = builders.binary(y, predictions, operating_points=points, factor_N=known.astype(float))
    found = subgroups.cells({"split": split}, y, group, counted_N=known)
    records = subgroups.score(build, found, group, Resampling(30))
    for level, rows in (("all", known), ("a", known & (split == "a"))):
        counts = {(r["n_patients"], r["n_positive"]) for r in records if r["level"] == level}
        assert counts == {(len(np.unique(group[rows])), len(np.unique(group[rows & y])))}
        for model, p in predictions.items():
            y_level, p_level = y[rows], p[rows]
            assert value(records, model, level, "auroc") == pytest.approx(classification.auroc(y_level, p_level))
            assert value(records, model, level, "auprc") == pytest.approx(classification.auprc(y_level, p_level))
            assert value(records, model, level, "prevalence") == pytest.approx(y_level.mean())
            assert value(records, model, level, "brier") == pytest.approx(calibration.brier(y_level, p_level))
            edges = calibration.equal_mass_edges(p[known])
            assert value(records, model, level, "ece") == pytest.approx(calibration.ece(y_level, p_level, edges=edges))
            assert value(records, model, level, "ece_corrected") <= value(records, model, level, "ece")
            sensitivity = (p_level[y_level] >= points[model]).mean()
            assert value(records, model, level, "sensitivity") == pytest.approx(sensitivity)
            curve = weighting.evaluate(decision.NetBenefit(y_level, p_level), rows.sum())
            assert value(records, model, level, "net_benefit_7") == pytest.approx(curve["net_benefit_7"])
    assert not [r for r in records if r["metric"].startswith(calibration.GAP)]


def test_survival_metrics_are_named_by_their_times():
    time, event, risk, group, split = problem()
    train = time.copy(), event.copy()
    fitted = survival.TrainingCurves.fit(survival.FollowUp(*train))
    times = np.array([90.0, 365.0, 600.0])
    curves = {"joint": np.exp(-np.exp(risk["joint"])[:, None] * times / 2600)}
    predicted = builders.PredictedCurves(times, curves)
    build = builders.time_to_event(
        fitted, survival.FollowUp(time, event), risk, horizons=[365, 600], tau=900, curves=predicted
    )
    comparison = subgroups.Comparison(("c_index", "auc_365", "ibs"), reference_model="joint")
    found = subgroups.cells({"split": split}, event, group)
    records = subgroups.score(build, found, group, Resampling(20), comparison)
    inside = split == "b"
    rows = time[inside], event[inside]
    aucs = [survival.dynamic_auc(fitted.censoring, *rows, risk["joint"][inside], t) for t in (365, 600)]
    one_by_one = [
        concordance.uno_c(fitted.censoring, *rows, risk["joint"][inside], tau=900),
        *(weighting.rename(auc, {"auc": f"auc_{t}"}) for auc, t in zip(aucs, (365, 600), strict=True)),
        survival.BrierCurve(fitted.censoring, *rows, curves["joint"][inside], times, null=fitted.null),
    ]
    expected = weighting.evaluate(weighting.merge(*one_by_one), int(inside.sum()))
    for mine, theirs in (
        ("c_index", "c_index"),
        ("uno_c", "uno_c"),
        ("auc_365", "auc_365"),
        ("auc_600", "auc_600"),
        ("brier_90", "brier_0"),
        ("brier_600_null", "brier_2_null"),
        ("ibs", "ibs"),
        ("ibs_skill", "ibs_skill"),
    ):
        assert value(records, "joint", "b", mine) == pytest.approx(expected[theirs]), mine
    # One of the two has no curves: nothing to score, nothing to compare.
    assert not [r for r in records if r["model"] == "other" and r["metric"] == "ibs"]
    assert not [r for r in records if r["metric"] == "ibs_difference"]
    assert [r for r in records if r["model"] == "joint" and r["metric"] == "ibs_gap"]
    difference = value(records, "joint - other", "all", "auc_365_difference")
    assert difference == pytest.approx(
        value(records, "joint", "all", "auc_365") - value(records, "other", "all", "auc_365")
    )


def test_continuous_metrics():
    _, _, risk, group, split = problem()
    y = risk["joint"] + 1
    build = builders.continuous(y, risk)
    found = subgroups.cells({"split": split}, risk["other"] > 0, group)
    records = subgroups.score(build, found, group, Resampling(20), subgroups.Comparison(("rmse",)))
    assert value(records, "joint", "a", "rmse") == pytest.approx(1)
    expected = weighting.evaluate(
        regression.Regression(y[split == "b"], risk["other"][split == "b"]), sum(split == "b")
    )
    assert value(records, "other", "b", "r2") == pytest.approx(expected["r2"])
