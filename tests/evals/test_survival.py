"""Survival metrics against scikit-survival and lifelines, on its data sets and under heavy ties."""

import lifelines
import numpy as np
import pytest
from lifelines.datasets import load_rossi
from sksurv import datasets
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import (
    brier_score,
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.nonparametric import CensoringDistributionEstimator
from sksurv.util import Surv

from ehrwear_jax.evals import bootstrap, builders, classification, concordance, survival, weighting


def metrics(train, time, event, risk, *, times=(), curves=None, tau=np.inf, weights=None):
    """Every survival metric of one model, through the statistics that are resampled."""
    fitted = survival.TrainingCurves.fit(survival.FollowUp(*train))
    predicted = builders.PredictedCurves(times, {"": curves}) if curves is not None else None
    build = builders.time_to_event(
        fitted, survival.FollowUp(time, event), {"": risk}, horizons=times, tau=tau, curves=predicted
    )
    return weighting.evaluate(build[""](None), len(time), weights)


def simulated(n=600, seed=0):
    """Whole-day times with many ties, about 75% censored, risks on few levels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    died, censored = np.ceil(rng.exponential(90 * np.exp(-x))), np.ceil(rng.uniform(0, 60, n))
    return np.minimum(died, censored), died <= censored, np.round(x + rng.normal(size=n), 1)


def real(name):
    """(features, time, event) of a data set that scikit-survival or lifelines ships."""
    if name == "rossi":
        table = load_rossi()
        return table.drop(columns=["week", "arrest"]).to_numpy(float), table["week"], table["arrest"]
    load = {
        "whas500": datasets.load_whas500,
        "gbsg2": datasets.load_gbsg2,
        "flchain": datasets.load_flchain,
        "veterans": datasets.load_veterans_lung_cancer,
    }[name]
    x, y = load()
    event, time = y.dtype.names
    numeric = x.select_dtypes("number").fillna(0).to_numpy(float)
    return numeric, y[time], y[event]


@pytest.mark.parametrize("name", ["whas500", "gbsg2", "flchain", "veterans", "rossi"])
def test_every_metric_equals_scikit_survival_on_real_data(name):
    x, time, event = (np.asarray(v) for v in real(name))
    time, event = time.astype(float), event.astype(bool)
    rng = np.random.default_rng(0)
    # The longest follow-up is in training, where the censoring is estimated.
    train = (rng.random(len(time)) < 0.5) | (time >= np.quantile(time, 0.97))
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = Surv.from_arrays(event, time)
    if name == "flchain":  # 7,874 rows: the oracle's loops are slow
        keep = rng.random(len(time)) < 0.25
        x, time, event, y, train = x[keep], time[keep], event[keep], y[keep], train[keep]
    model = CoxPHSurvivalAnalysis(alpha=0.1).fit(x[train], y[train])
    test = ~train
    risk = np.round(model.predict(x[test]), 1)  # ties
    events = time[test][event[test]]
    times = np.unique(np.quantile(events, [0.1, 0.3, 0.5, 0.7, 0.9]))
    tau = float(times[-1])
    curves = np.stack([f(times) for f in model.predict_survival_function(x[test])])

    fitted_on = time[train], event[train]
    result = metrics(fitted_on, time[test], event[test], risk, times=times, curves=curves, tau=tau)
    assert result["c_index"] == pytest.approx(concordance_index_censored(event[test], time[test], risk)[0], abs=1e-12)
    assert result["uno_c"] == pytest.approx(concordance_index_ipcw(y[train], y[test], risk, tau)[0], abs=1e-12)
    auc = cumulative_dynamic_auc(y[train], y[test], risk, times)[0]
    np.testing.assert_allclose([result[f"auc_{t:g}"] for t in times], auc, atol=1e-12)
    brier = brier_score(y[train], y[test], curves, times)[1]
    np.testing.assert_allclose([result[f"brier_{t:g}"] for t in times], brier, atol=1e-12)
    assert result["ibs"] == pytest.approx(integrated_brier_score(y[train], y[test], curves, times), abs=1e-12)
    null = np.tile(survival.kaplan_meier(time[train], event[train])(times), (test.sum(), 1))
    expected = integrated_brier_score(y[train], y[test], null, times)
    assert result["ibs_null"] == pytest.approx(expected, abs=1e-12)
    assert result["ibs_skill"] == pytest.approx(1 - result["ibs"] / expected)


def test_curves_equal_lifelines_and_scikit_survival_under_ties():
    time, event, _ = simulated()
    at = np.arange(0, 60, 0.5)
    fitted = lifelines.KaplanMeierFitter().fit(time, event)
    np.testing.assert_allclose(
        survival.kaplan_meier(time, event)(at), fitted.survival_function_at_times(at), atol=1e-12
    )
    oracle = CensoringDistributionEstimator().fit(Surv.from_arrays(event, time))
    inside = at[at <= time.max()]
    np.testing.assert_allclose(
        survival.censoring_survival(time, event)(inside), oracle.predict_proba(inside), atol=1e-12
    )
    curve = survival.StepFunction(np.array([1.0, 2.0]), np.array([0.5, 0.25]))
    assert curve([0, 1, 1.5, 2, 9]).tolist() == [1, 0.5, 0.5, 0.25, 0.25]


def test_resampled_metrics_equal_scikit_survival_on_the_expanded_rows():
    """Several rows a patient, ties, heavy censoring; the training rows stay what they are."""
    train_time, train_event, _ = simulated(seed=1)
    time, event, risk = simulated(n=150, seed=2)
    keep = time < 55
    time, event, risk = time[keep], event[keep], risk[keep]
    group = np.random.default_rng(0).integers(0, 60, len(time))
    weight = bootstrap.patient_weights(group, 12, seed=3)
    times = np.array([10.0, 25.0, 40.0])
    curves = np.exp(-np.exp(risk)[:, None] * times / 120)
    fitted_on = train_time, train_event
    result = metrics(fitted_on, time, event, risk, times=times, curves=curves, tau=40, weights=weight)
    train = Surv.from_arrays(train_event, train_time)
    for b, w in enumerate(weight):
        rows = np.repeat(np.arange(len(time)), w)
        test = Surv.from_arrays(event[rows], time[rows])
        c = concordance_index_censored(event[rows], time[rows], risk[rows])[0]
        assert result["c_index"][b] == pytest.approx(c, abs=1e-12)
        assert result["uno_c"][b] == pytest.approx(concordance_index_ipcw(train, test, risk[rows], 40)[0], abs=1e-12)
        auc = cumulative_dynamic_auc(train, test, risk[rows], times)[0]
        np.testing.assert_allclose([result[f"auc_{t:g}"][b] for t in times], auc, atol=1e-12)
        ibs = integrated_brier_score(train, test, curves[rows], times)
        assert result["ibs"][b] == pytest.approx(ibs, abs=1e-12)


def test_a_factor_restricts_every_statistic_to_its_rows():
    train_time, train_event, _ = simulated(seed=1)
    time, event, risk = simulated(n=200, seed=4)
    censoring = survival.censoring_survival(train_time, train_event)
    weight = np.random.default_rng(0).integers(0, 3, (5, 200))
    inside = time % 2 == 0
    times = np.array([10.0, 30.0])
    curves = np.exp(-np.exp(risk)[:, None] * times / 120)

    def built(rows, factor):
        arguments = time[rows], event[rows]
        return weighting.merge(
            survival.uno_c(censoring, *arguments, risk[rows], tau=40, factor_N=factor),
            survival.dynamic_auc(censoring, *arguments, risk[rows], 30, factor_N=factor),
            survival.BrierCurve(censoring, *arguments, curves[rows], times, factor_N=factor),
        )

    whole = weighting.evaluate(built(slice(None), inside.astype(float)), 200, weight)
    part = weighting.evaluate(built(inside, None), inside.sum(), weight[:, inside])
    assert whole.keys() == part.keys()
    for name in whole:
        np.testing.assert_allclose(whole[name], part[name], atol=1e-12)


def test_horizon_labels_leave_out_people_censored_early():
    time, event = [5, 10, 10, 12, 3, 4], [1, 1, 0, 1, 0, 2]
    y, known = survival.horizon_labels(time, event, 10)
    assert y.tolist() == [True, True, False, False, False, False]
    # Followed to the horizon: known. Censored before: not. A competing event first: negative.
    assert known.tolist() == [True, True, True, True, False, True]
    with pytest.raises(ValueError, match="event is 3 in row 1"):
        survival.horizon_labels([1, 2], [1, 3], 10)


def test_inverse_probabilities_recover_what_complete_follow_up_would_show():
    """Censoring that depends on nothing: excluding distorts the prevalence, weighting does not."""
    rng = np.random.default_rng(0)
    n, horizon = 40_000, 30.0
    x = rng.normal(size=n)
    died, censored = rng.exponential(60 * np.exp(-x)), rng.uniform(0, 60, n)
    time, event = np.minimum(died, censored), died <= censored
    truth = died <= horizon
    y, known = survival.horizon_labels(time, event, horizon)
    factor = survival.horizon_factor(survival.censoring_survival(time, event), time, event, horizon)
    assert (factor[~known] == 0).all() and factor.sum() == pytest.approx(n, rel=0.01)
    weighted = weighting.evaluate(classification.Prevalence(y, factor_N=factor), n)["prevalence"]
    assert weighted == pytest.approx(truth.mean(), abs=0.008)
    assert y[known].mean() > truth.mean() + 0.05
    ranked = weighting.evaluate(classification.BinaryRanking(y, x, factor_N=factor), n)
    assert ranked["auroc"] == pytest.approx(classification.auroc(truth, x), abs=0.01)
    assert ranked["auprc"] == pytest.approx(classification.auprc(truth, x), abs=0.01)


def test_horizon_weighted_brier_equals_the_brier_curve():
    time, event, risk = simulated()
    time = time + np.linspace(0, 0.4, len(time))  # nobody is censored exactly at the horizon
    censoring = survival.censoring_survival(time, event)
    p = 1 / (1 + np.exp(-risk))
    y, _ = survival.horizon_labels(time, event, 20)
    factor = survival.horizon_factor(censoring, time, event, 20)
    curve = survival.BrierCurve(censoring, time, event, 1 - p[:, None], [20.0])
    n = len(time)
    expected = np.sum(factor * (p - y) ** 2) / n
    assert weighting.evaluate(curve, n)["brier_0"] == pytest.approx(expected, abs=1e-12)
    auc = weighting.evaluate(survival.dynamic_auc(censoring, time, event, risk, 20), n)["auc"]
    weighted = weighting.evaluate(classification.BinaryRanking(y, risk, factor_N=factor), n)["auroc"]
    assert auc == pytest.approx(weighted, abs=1e-12)


def test_uno_without_censoring_is_harrell():
    rng = np.random.default_rng(0)
    time, risk = rng.integers(1, 40, 300), rng.normal(size=300)
    result = metrics((time, np.ones(300)), time, np.ones(300), risk)
    assert result["uno_c"] == pytest.approx(concordance.concordance_index(time, np.ones(300), risk), abs=1e-12)


def test_a_horizon_outside_the_training_follow_up_is_an_error():
    time, event, risk = simulated()
    censoring = survival.censoring_survival([1, 2, 3], [1, 1, 0])
    with pytest.raises(ValueError, match="inside their follow-up"):
        survival.uno_c(censoring, time, event, risk)
    with pytest.raises(ValueError, match="inside their follow-up"):
        survival.horizon_factor(censoring, time, event, 10)
    with pytest.raises(ValueError, match="survival must be"):
        survival.BrierCurve(censoring, time, event, np.ones((3, 1)), [1.0])
