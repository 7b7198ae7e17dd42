"""Decision curves against dcurves and lifelines, under ties, censoring and weights."""

import dcurves
import lifelines
import numpy as np
import pandas as pd
import pytest

from ehrwear_jax.evals import bootstrap, decision, weighting

THRESHOLDS = np.array([0.05, 0.1, 0.2, 0.3])


def problem(n=400, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    died, censored = np.ceil(rng.exponential(60 * np.exp(-x))), np.ceil(rng.uniform(0, 60, n))
    p = np.round(1 / (1 + np.exp(1.5 - x)), 2)
    return np.minimum(died, censored), died <= censored, p, rng.random(n) < p, rng.integers(0, 150, n)


def curves(result):
    k = len(THRESHOLDS)
    return [np.array([result[f"{name}_{i}"] for i in range(k)]) for name in ("net_benefit", "net_benefit_all")]


def oracle(frame, **survival):
    table = dcurves.dca(data=frame, modelnames=["p"], thresholds=THRESHOLDS, **survival)
    return [table[table["model"] == m].sort_values("threshold")["net_benefit"].to_numpy() for m in ("p", "all")]


def test_net_benefit_equals_dcurves_whole_and_resampled():
    _, _, p, y, group = problem()
    statistic = decision.NetBenefit(y, p, THRESHOLDS)
    for w in [np.ones(len(y), int), *bootstrap.patient_weights(group, 3, seed=0)]:
        rows = np.repeat(np.arange(len(y)), w)
        expected = oracle(pd.DataFrame({"p": p[rows], "y": y[rows].astype(int)}), outcome="y")
        for mine, theirs in zip(curves(weighting.evaluate(statistic, len(y), w)), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_censored_net_benefit_equals_dcurves_whole_and_resampled():
    time, event, p, _, group = problem()
    statistic = decision.CensoredNetBenefit(time, event, p, 30, THRESHOLDS)
    for w in [np.ones(len(p), int), *bootstrap.patient_weights(group, 3, seed=0)]:
        rows = np.repeat(np.arange(len(p)), w)
        frame = pd.DataFrame({"p": p[rows], "died": event[rows].astype(int), "time": time[rows]})
        expected = oracle(frame, outcome="died", time=30, time_to_outcome_col="time")
        for mine, theirs in zip(curves(weighting.evaluate(statistic, len(p), w)), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-10)


def test_without_censoring_both_versions_agree():
    time, _, p, _, _ = problem()
    censored = decision.CensoredNetBenefit(time, np.ones(len(p)), p, 30, THRESHOLDS)
    plain = decision.NetBenefit(time <= 30, p, THRESHOLDS)
    first, second = (weighting.evaluate(s, len(p)) for s in (censored, plain))
    assert first == pytest.approx(second, abs=1e-12)


def test_competing_events_enter_as_aalen_and_johansen_have_them():
    time, event, p, _, _ = problem()
    code = np.where(event & (np.arange(len(p)) % 3 == 0), 2, event)
    # lifelines jitters tied times at random: give it none.
    time = time + np.random.default_rng(1).permutation(len(p)) / (2 * len(p))
    result = weighting.evaluate(decision.CensoredNetBenefit(time, code, p, 30, THRESHOLDS), len(p))
    odds = THRESHOLDS / (1 - THRESHOLDS)
    expected = []
    for t, o in zip(THRESHOLDS, odds, strict=True):
        treated = p >= t
        fitted = lifelines.AalenJohansenFitter().fit(time[treated], code[treated], event_of_interest=1)
        incidence = fitted.cumulative_density_.loc[:30].iloc[-1, 0]
        expected.append(treated.mean() * (incidence - (1 - incidence) * o))
    np.testing.assert_allclose(curves(result)[0], expected, atol=1e-10)


def test_a_factor_restricts_to_its_rows_and_bad_thresholds_are_named():
    time, event, p, y, _ = problem()
    inside = np.arange(len(p)) % 2 == 0
    for build, arrays in (
        (lambda *a, **f: decision.NetBenefit(*a, THRESHOLDS, **f), (y, p)),
        (lambda *a, **f: decision.CensoredNetBenefit(*a, 30, THRESHOLDS, **f), (time, event, p)),
    ):
        whole = weighting.evaluate(build(*arrays, factor_N=inside.astype(float)), len(p))
        part = weighting.evaluate(build(*(a[inside] for a in arrays)), inside.sum())
        assert whole == pytest.approx(part, abs=1e-12)
    with pytest.raises(ValueError, match="increase inside"):
        decision.NetBenefit(y, p, [0.1, 0.05])
    with pytest.raises(ValueError, match="nobody is followed"):
        decision.CensoredNetBenefit(time, event, p, 1000)


def test_nobody_above_a_threshold_gives_no_benefit():
    y, p = np.array([0, 1, 1, 0]), np.array([0.01, 0.02, 0.15, 0.1])
    result = weighting.evaluate(decision.NetBenefit(y, p, THRESHOLDS), 4)
    assert result["net_benefit_3"] == 0
    assert result["net_benefit_2"] == 0
    assert result["net_benefit_1"] == pytest.approx(1 / 4 - 1 / 4 * 0.1 / 0.9)
