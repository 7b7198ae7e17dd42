"""All metrics of a task together equal the metrics one by one; through subgroups as well."""

import numpy as np
import pytest

from ehrwear_jax.benchmarks import evals as bench
from ehrwear_jax.evals import (
    builders,
    calibration,
    classification,
    decision,
    regression,
    subgroups,
    survival,
    weighting,
)


def problem(n=700):
    """Follow-up of 200 to 1,200 days, risks of two models, patients of several rows, a split."""
    time, event, risk = bench.cohort(n, 2)
    rng = np.random.default_rng(0)
    risk = {"joint": risk["model 0"], "other": risk["model 1"] + rng.normal(size=n)}
    return time, event, risk, rng.integers(0, 300, n), rng.choice(["a", "b"], n)


def probability(risk):
    return 1 - np.exp(-np.exp(risk) * 365 / 2600)


def value(records, row, level, metric):
    (record,) = [r for r in records if (r["row"], r["level"], r["metric"]) == (row, level, metric)]
    return record["value"]


def test_binary_metrics_with_censored_rows_left_out():
    time, event, risk, group, split = problem()
    y, known = survival.horizon_labels(time, event, 365)
    predictions = {row: probability(v) for row, v in risk.items()}
    points = {row: classification.sensitivity_threshold(y[known], p[known], 0.8) for row, p in predictions.items()}
    build = builders.binary(y, predictions, operating_points=points, factor_N=known.astype(float))
    records = subgroups.score(build, {"split": split}, y, group, n_resamples=30, counted_N=known)
    for level, rows in (("all", known), ("a", known & (split == "a"))):
        counts = {(r["n_patients"], r["n_positive"]) for r in records if r["level"] == level}
        assert counts == {(len(np.unique(group[rows])), len(np.unique(group[rows & y])))}
        for row, p in predictions.items():
            y_level, p_level = y[rows], p[rows]
            assert value(records, row, level, "auroc") == pytest.approx(classification.auroc(y_level, p_level))
            assert value(records, row, level, "auprc") == pytest.approx(classification.auprc(y_level, p_level))
            assert value(records, row, level, "prevalence") == pytest.approx(y_level.mean())
            assert value(records, row, level, "brier") == pytest.approx(calibration.brier(y_level, p_level))
            edges = calibration.equal_mass_edges(p[known])
            assert value(records, row, level, "ece") == pytest.approx(calibration.ece(y_level, p_level, edges=edges))
            assert value(records, row, level, "ece_corrected") <= value(records, row, level, "ece")
            sensitivity = (p_level[y_level] >= points[row]).mean()
            assert value(records, row, level, "sensitivity") == pytest.approx(sensitivity)
            curve = weighting.evaluate(decision.NetBenefit(y_level, p_level), rows.sum())
            assert value(records, row, level, "net_benefit_7") == pytest.approx(curve["net_benefit_7"])
    assert not [r for r in records if r["metric"].startswith(calibration.GAP)]


def test_survival_metrics_are_named_by_their_times():
    time, event, risk, group, split = problem()
    train = time.copy(), event.copy()
    censoring, null = survival.censoring_survival(*train), survival.kaplan_meier(*train)
    times = np.array([90.0, 365.0, 600.0])
    curves = {"joint": np.exp(-np.exp(risk["joint"])[:, None] * times / 2600)}
    build = builders.time_to_event(
        censoring, time, event, risk, horizons=[365, 600], tau=900, curves=curves, times_T=times, null=null
    )
    records = subgroups.score(
        build,
        {"split": split},
        event,
        group,
        n_resamples=20,
        compared=("c_index", "auc_365", "ibs"),
        reference_row="joint",
    )
    inside = split == "b"
    rows = time[inside], event[inside]
    one_by_one = [
        survival.uno_c(censoring, *rows, risk["joint"][inside], tau=900),
        *(
            weighting.rename(survival.dynamic_auc(censoring, *rows, risk["joint"][inside], t), {"auc": f"auc_{t}"})
            for t in (365, 600)
        ),
        survival.BrierCurve(censoring, *rows, curves["joint"][inside], times, null=null),
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
    assert not [r for r in records if r["row"] == "other" and r["metric"] == "ibs"]
    assert not [r for r in records if r["metric"] == "ibs_difference"]
    assert [r for r in records if r["row"] == "joint" and r["metric"] == "ibs_gap"]
    difference = value(records, "joint - other", "all", "auc_365_difference")
    assert difference == pytest.approx(
        value(records, "joint", "all", "auc_365") - value(records, "other", "all", "auc_365")
    )


def test_continuous_metrics():
    _, _, risk, group, split = problem()
    y = risk["joint"] + 1
    build = builders.continuous(y, risk)
    records = subgroups.score(build, {"split": split}, risk["other"] > 0, group, n_resamples=20, compared=("rmse",))
    assert value(records, "joint", "a", "rmse") == pytest.approx(1)
    expected = weighting.evaluate(
        regression.Regression(y[split == "b"], risk["other"][split == "b"]), sum(split == "b")
    )
    assert value(records, "other", "b", "r2") == pytest.approx(expected["r2"])
