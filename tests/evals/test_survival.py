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
from sksurv.nonparametric import CensoringDistributionEstimator, cumulative_incidence_competing_risks
from sksurv.util import Surv

from ehrwear_jax.evals import bootstrap, builders, calibration, classification, concordance, survival, weighting


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
            concordance.uno_c(censoring, *arguments, risk[rows], tau=40, factor_N=factor),
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
        concordance.uno_c(censoring, time, event, risk)
    with pytest.raises(ValueError, match="inside their follow-up"):
        survival.horizon_factor(censoring, time, event, 10)
    with pytest.raises(ValueError, match="survival must be"):
        survival.BrierCurve(censoring, time, event, np.ones((3, 1)), [1.0])


# ------------------------------------------------------------------------------------------------- competing events


def competing(n=400, seed=0, censored=True):
    """(time, code 0/1/2, risk, the same without censoring: (time, code)), whole days with many ties."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    event, other = np.ceil(rng.exponential(60 * np.exp(-x))), np.ceil(rng.exponential(80 * np.exp(0.4 * x)))
    first, cause = np.minimum(event, other), np.where(event <= other, 1, 2)
    end = np.ceil(rng.uniform(0, 90, n)) if censored else np.full(n, np.inf)
    risk = np.round(x + 0.5 * rng.normal(size=n), 1)
    return np.minimum(first, end), np.where(first <= end, cause, 0), risk, (first, cause)


def follow_up_of(time, code):
    return survival.FollowUp(time, code == 1, code == 2)


def evaluated(time, code, risk, *, times, tau, curves, train=None, fold=None, weights=None):
    """Metrics of one model; train: FollowUp of each fold."""
    train = [follow_up_of(time, code)] if train is None else train
    fitted = survival.TrainingCurves.fit_folds(train, np.zeros(len(time), int) if fold is None else fold)
    predicted = builders.PredictedCurves(times, {"": curves})
    mine = follow_up_of(time, code)
    build = builders.time_to_event(fitted, mine, {"": risk}, horizons=times, tau=tau, curves=predicted)
    return weighting.evaluate(build[""](None), len(time), weights)


def by_definition(time, code, risk, g, *, times, tau, curves, weight, null):
    """The same metrics pair by pair and row by row: g(rows, at) is P(uncensored) of the rows' own folds."""
    n, rows = len(time), np.arange(len(time))
    at_own, out = g(rows, time), {}
    i, j = np.meshgrid(rows, rows, indexing="ij")
    order = (risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])
    both = np.outer(weight, weight) * (i != j)
    beyond = (code[i] == 1) & ((time[j] > time[i]) | ((time[j] == time[i]) & (code[j] != 1)))
    before = (code[i] == 1) & (code[j] == 2) & (time[j] < time[i])
    pairs = (beyond | before) * both
    out["c_index"] = (pairs * order).sum() / pairs.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        weighted = np.where(beyond, 1 / at_own[i] ** 2, 0) + np.where(before, 1 / (at_own[i] * at_own[j]), 0)
    pairs = np.where(time[i] < tau, np.nan_to_num(weighted, posinf=0), 0) * both
    out["uno_c"] = (pairs * order).sum() / pairs.sum()
    losses, nulls = [], []
    for k, t in enumerate(times):
        case, other, late = (code == 1) & (time <= t), (code == 2) & (time <= t), time > t
        inverse = np.zeros(n)
        inverse[case | other] = 1 / at_own[case | other]
        inverse[late] = 1 / g(rows, np.full(n, t))[late]
        pairs = np.outer(case * inverse * weight, ~case * inverse * weight)
        out[f"auc_{t:g}"] = (pairs * order).sum() / pairs.sum()
        losses.append(np.sum(weight * inverse * (case - (1 - curves[:, k])) ** 2) / weight.sum())
        nulls.append(np.sum(weight * inverse * (case - (1 - null[:, k])) ** 2) / weight.sum())
        out |= {f"brier_{t:g}": losses[-1], f"brier_{t:g}_null": nulls[-1]}
    span = times[-1] - times[0]
    out |= {"ibs": np.trapezoid(losses, times) / span, "ibs_null": np.trapezoid(nulls, times) / span}
    return out


def test_aalen_johansen_equals_lifelines_and_scikit_survival():
    time, code, *_ = competing()
    times, incidence = cumulative_incidence_competing_risks(code, time)
    mine = survival.aalen_johansen(time, code)
    np.testing.assert_allclose(1 - mine(times), incidence[1], atol=1e-12)
    apart = time + np.random.default_rng(0).uniform(0, 0.9, len(time))  # lifelines would move ties
    fitted = lifelines.AalenJohansenFitter(calculate_variance=False).fit(apart, code, 1)
    expected = fitted.cumulative_density_.iloc[:, 0]
    np.testing.assert_allclose(1 - survival.aalen_johansen(apart, code)(expected.index), expected, atol=1e-12)
    # 1 - Kaplan-Meier with deaths as censorings is the larger
    assert (survival.kaplan_meier(time, code == 1)(times) <= mine(times) + 1e-12).all()
    assert survival.kaplan_meier(time, code == 1)(60) < mine(60) - 0.05
    # by hand: 4 at risk, an event at 1, a death at 2, an event at 3: 1/4 + 3/4 * 2/3 * 1/2
    by_hand = survival.aalen_johansen([1, 2, 3, 4], [1, 2, 1, 0])
    np.testing.assert_allclose(1 - by_hand([0.5, 1, 2, 3, 9]), [0, 0.25, 0.25, 0.5, 0.5], atol=1e-15)


def test_aalen_johansen_is_the_mean_of_inverse_probabilities():
    """The identity of the two estimators: without ties of a censoring, sum over events of 1 / (n G(t_i))."""
    time, code, *_ = competing()
    censoring = survival.censoring_survival(time, code)
    mean = np.mean((code == 1) * (time <= 40) / np.maximum(censoring(time - 1e-9), 1e-12))
    # events precede censorings of the same day, so that G just before a day is what weighs them
    assert 1 - survival.aalen_johansen(time, code)(40) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("n_folds", [1, 3])
def test_metrics_under_competing_events_equal_their_definitions(n_folds):
    """Ties of times and of risks, resampling weights, and G and the null of each row's own fold."""
    rng = np.random.default_rng(5)
    time, code, risk, _ = competing(n=130, seed=1)
    fold = np.arange(len(time)) % n_folds
    train = []
    for k in range(n_folds):
        times_k, code_k, *_ = competing(n=300, seed=10 + k)
        stopped = np.minimum(times_k, 60 + 10 * k)  # the folds' censoring differs
        train.append(follow_up_of(stopped, np.where(stopped < times_k, 0, code_k)))
    g_of = [survival.censoring_survival(t.time_N, t.code_N) for t in train]
    times, tau = np.array([10.0, 25.0, 40.0]), 40.0
    null = np.stack([survival.aalen_johansen(train[k].time_N, train[k].code_N)(times) for k in fold])
    curves = np.clip(null + rng.normal(0, 0.1, null.shape), 0, 1)
    weight = rng.integers(0, 3, (4, len(time)))
    got = evaluated(
        time, code, risk, times=times, tau=tau, curves=curves, train=train, fold=fold, weights=weight
    )  # fmt: skip

    def g(rows, at):
        return np.array([g_of[fold[r]](t) for r, t in zip(rows, at, strict=True)])

    for b, w in enumerate(weight):
        expected = by_definition(time, code, risk, g, times=times, tau=tau, curves=curves, weight=w, null=null)
        for name, value in expected.items():
            assert got[name][b] == pytest.approx(value, abs=1e-12), name


def test_metrics_under_competing_events_are_those_of_complete_follow_up():
    """Censoring of half the people changes no metric but for noise; leaving competing events out does."""
    time, code, risk, (whole_time, whole_code) = competing(n=30_000, seed=3)
    times, tau = np.array([20.0, 40.0]), 40.0
    curves = 1 - np.clip(1 / (1 + np.exp(1.5 - risk))[:, None] * [0.5, 1.0], 0, 1)
    shared = {"times": times, "tau": tau, "curves": curves}
    seen, truth = evaluated(time, code, risk, **shared), evaluated(whole_time, whole_code, risk, **shared)
    y = (whole_code == 1) & (whole_time <= 40)
    assert truth["auc_40"] == pytest.approx(classification.auroc(y, risk), abs=1e-12)
    assert truth["brier_40"] == pytest.approx(calibration.brier(y, 1 - curves[:, 1]), abs=1e-12)
    assert truth["brier_40_null"] == pytest.approx(y.mean() * (1 - y.mean()), abs=1e-12)
    for name in ("auc_20", "auc_40", "uno_c", "brier_20", "brier_40", "ibs", "brier_40_null"):
        assert seen[name] == pytest.approx(truth[name], abs=0.012), name
    naive = evaluated(time, (code == 1).astype(int), risk, **shared)
    assert abs(naive["auc_40"] - truth["auc_40"]) > 0.015
    # C of complete data up to tau, pair by pair among a sample
    few = slice(0, 1500)
    small = evaluated(whole_time[few], whole_code[few], risk[few], times=times, tau=np.inf, curves=curves[few])
    ones = np.ones(1500)
    expected = by_definition(
        whole_time[few], whole_code[few], risk[few], lambda rows, at: np.ones(len(rows)), times=times, tau=np.inf,
        curves=curves[few], weight=ones, null=curves[few],
    )  # fmt: skip
    assert small["uno_c"] == pytest.approx(expected["uno_c"], abs=1e-12) == pytest.approx(small["c_index"])


def test_auc_under_competing_events_is_the_weighted_auroc_of_the_label_at_the_horizon():
    time, code, risk, _ = competing()
    time = time + np.linspace(0, 0.4, len(time))  # nobody is censored exactly at the horizon
    censoring = survival.censoring_survival(time, code)
    y, known = survival.horizon_labels(time, code, 30)
    factor = survival.horizon_factor(censoring, time, code, 30)
    assert (known == (factor > 0)).all() and not y[code == 2].any() and known[code == 2].all()
    auc = weighting.evaluate(survival.dynamic_auc(censoring, time, code, risk, 30), len(time))["auc"]
    weighted = weighting.evaluate(classification.BinaryRanking(y, risk, factor_N=factor), len(time))["auroc"]
    assert auc == pytest.approx(weighted, abs=1e-12)


def test_without_competing_events_every_number_is_that_of_the_plain_labels_bit_by_bit():
    time, event, risk = simulated()
    times = np.array([10.0, 30.0])
    curves = np.exp(-np.exp(risk)[:, None] * times / 120)
    weight = np.random.default_rng(0).integers(0, 3, (5, len(time)))
    plain = metrics((time, event), time, event, risk, times=times, curves=curves, tau=50, weights=weight)
    got = evaluated(time, event.astype(int), risk, times=times, curves=curves, tau=50, weights=weight)
    assert plain.keys() == got.keys()
    for name in plain:
        assert plain[name].tobytes() == got[name].tobytes(), name


def test_a_row_has_one_of_the_two_events():
    with pytest.raises(ValueError, match="row 1 has both"):
        _ = survival.FollowUp(np.ones(2), np.array([0, 1]), np.array([1, 1])).code_N
    part = survival.FollowUp(np.arange(3.0), np.array([0, 1, 0]), np.array([1, 0, 0])).of(np.array([True, False, True]))
    assert part.code_N.tolist() == [2, 0] and part.any_competing


def test_the_last_time_is_where_the_censoring_leaves_nobody():
    fitted = survival.TrainingCurves.fit(survival.FollowUp(np.array([1, 2, 3]), np.array([1, 1, 0])))
    assert fitted.last_time() == 3
    assert survival.TrainingCurves.fit(survival.FollowUp(np.array([1, 2]), np.array([0, 1]))).last_time() == np.inf
    two = [survival.FollowUp(np.array([1, 2, t]), np.array([1, 1, 0])) for t in (5, 4)]
    curves = survival.TrainingCurves.fit_folds(two, np.array([0, 1, 0]))
    assert curves.last_time() == 4
    # an event at that time, or after it, is no case of Uno's C up to it
    time, event, risk = simulated()
    assert np.isfinite(
        weighting.evaluate(
            concordance.uno_c(fitted.censoring, time, event, risk, tau=fitted.last_time()), len(time)
        )["uno_c"]
    )  # fmt: skip
