"""Ridge Cox against lifelines and statsmodels, finite differences, and known hazards."""

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from statsmodels.duration.hazard_regression import PHReg

from ehrwear_jax.evals import cox, probes, survival


def problem(n=400, d=4, seed=0, step=20.0):
    """Features, follow-up rounded to `step` (many ties), event indicators."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.geomspace(0.1, 10, d)
    hazard = np.exp((x / x.std(0)) @ np.linspace(0.8, -0.4, d))
    event_time, censoring = rng.exponential(300 / hazard), rng.exponential(300, n)
    time = np.minimum(event_time, censoring)
    return x, np.ceil(time / step) * step if step else time, event_time < censoring


@pytest.mark.parametrize("step", [0.0, 20.0, 200.0])
def test_coefficients_and_likelihood_equal_statsmodels_efron(step):
    x, time, event = problem(step=step)
    model = cox.fit_cox(x, time, event, x, time, event, l2_grid=[1e-9])
    z = model.standardizer(x)
    oracle = PHReg(time, z, status=event, ties="efron").fit()
    np.testing.assert_allclose(model.coef_D, oracle.params, atol=1e-5)
    value = cox.PartialLikelihood(time, event).value(z @ oracle.params)
    assert value == pytest.approx(oracle.llf, abs=1e-6)


@pytest.mark.parametrize("l2", [1e-4, 0.1, 2.0])
def test_ridge_coefficients_equal_lifelines(l2):
    x, time, event = problem()
    n = len(x)
    # lifelines standardises with ddof = 1: its penalty on our scale is larger by n / (n - 1).
    model = cox.fit_cox(x, time, event, x, time, event, l2_grid=[l2 * n / (n - 1)])
    frame = pd.DataFrame(model.standardizer(x)).assign(time=time, event=event)
    oracle = CoxPHFitter(penalizer=l2).fit(frame, "time", "event", fit_options={"precision": 1e-12})
    np.testing.assert_allclose(model.coef_D, oracle.params_.to_numpy(), atol=2e-6)


def test_gradient_and_hessian_equal_finite_differences():
    x, time, event = problem(n=80)
    likelihood, rng = cox.PartialLikelihood(time, event), np.random.default_rng(0)
    x = x / x.std(0)
    coef = rng.normal(size=x.shape[1]) * 0.3
    gradient, hessian = likelihood.gradient_hessian(x, x @ coef)
    step = 1e-5 * np.eye(len(coef))
    difference = [(likelihood.value(x @ (coef + e)) - likelihood.value(x @ (coef - e))) / 2e-5 for e in step]
    np.testing.assert_allclose(gradient, difference, atol=1e-5)
    difference = [
        (likelihood.gradient_hessian(x, x @ (coef + e))[0] - likelihood.gradient_hessian(x, x @ (coef - e))[0]) / 2e-5
        for e in step
    ]
    np.testing.assert_allclose(hessian, difference, atol=1e-5)


def test_baseline_equals_lifelines_and_survival_follows_from_it():
    x, time, event = problem()
    model = cox.fit_cox(x, time, event, x, time, event, l2_grid=[1e-9])
    frame = pd.DataFrame(model.standardizer(x)).assign(time=time, event=event)
    oracle = CoxPHFitter().fit(frame, "time", "event", fit_options={"precision": 1e-12})
    times = np.quantile(time, [0.1, 0.5, 0.8])
    expected = oracle.predict_survival_function(frame, times=times).to_numpy().T
    np.testing.assert_allclose(model.survival(x, times), expected, atol=1e-5)


def test_breslow_without_covariates_is_nelson_aalen():
    times, hazard = cox.breslow([1, 2, 2, 3, 4], [1, 1, 1, 0, 1], np.zeros(5))
    np.testing.assert_array_equal(times, [1, 2, 4])
    np.testing.assert_allclose(hazard, np.cumsum([1 / 5, 2 / 4, 1 / 1]))


def test_survival_is_one_before_the_first_event_and_flat_after_the_last():
    x, time, event = problem()
    model = cox.fit_cox(x, time, event, x, time, event)
    survival = model.survival(x, [-1.0, time.max(), time.max() * 10])
    assert (survival[:, 0] == 1).all()
    np.testing.assert_array_equal(survival[:, 1], survival[:, 2])
    assert (np.diff(survival, axis=1) <= 0).all()


def test_large_effects_do_not_overflow():
    x, time, event = problem()
    likelihood = cox.PartialLikelihood(time, event)
    eta = x[:, -1] * 30
    shifted = likelihood.value(eta + 5000.0)
    assert shifted == pytest.approx(likelihood.value(eta), rel=1e-9)
    separated = (time < np.median(time)).astype(float)[:, None]
    model = cox.fit_cox(separated, time, event, separated, time, event)
    assert np.isfinite(model.coef_D).all()


def test_strength_minimises_validation_loss_and_validation_changes_nothing_else():
    x, time, event = problem(n=160, d=40)
    train, val = slice(0, 80), slice(80, None)
    labels = time[train], event[train], x[val], time[val], event[val]
    model = cox.fit_cox(x[train], *labels)
    assert set(model.validation_loss) == set(probes.L2_GRID)
    assert model.l2 == min(model.validation_loss, key=model.validation_loss.get)
    assert min(probes.L2_GRID) < model.l2 < max(probes.L2_GRID)
    first = cox.fit_cox(x[train], *labels, l2_grid=[0.1])
    noise = np.random.default_rng(0).normal(size=(80, 40)) * 1e5
    second = cox.fit_cox(x[train], *labels[:2], noise, *labels[3:], l2_grid=[0.1])
    np.testing.assert_array_equal(first.coef_D, second.coef_D)
    np.testing.assert_array_equal(first.standardizer.mean_D, x[train].mean(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, e: (x, t, 0 * e, x, t, e), "event_train holds no event among 400"),
        (lambda x, t, e: (x, t, e, x, t, 0 * e), "event_val holds no event"),
        (lambda x, t, e: (x, -t, e, x, t, e), "expected 0 or more"),
        (lambda x, t, e: (x, t, e + 1, x, t, e), "expected 0 or 1"),
        (lambda x, t, e: (x, t[1:], e[1:], x, t, e), "x_train has 400 rows, time_train 399"),
    ],
)
def test_bad_input_is_named(change, message):
    x, time, event = problem()
    with pytest.raises(ValueError, match=message):
        cox.fit_cox(*change(x, time, event.astype(int)))


# ------------------------------------------------------------------------------------------------- cumulative incidence


def exponential(rate, n_people=1, upto=10.0, steps=40_000):
    """A constant hazard as one that jumps often."""
    times = np.linspace(0, upto, steps + 1)[1:]
    return cox.Hazard(np.zeros(n_people), times, rate * times)


def test_incidence_of_two_constant_hazards_is_the_analytic_one():
    first, second, times = 0.3, 0.5, np.array([0.0, 0.1, 1.0, 4.0, 9.5])
    got = 1 - cox.event_free(exponential(first), exponential(second), times)[0]
    np.testing.assert_allclose(got, first / 0.8 * (1 - np.exp(-0.8 * times)), atol=1e-4)
    # both incidences and the share of those without either add up
    other = 1 - cox.event_free(exponential(second), exponential(first), times)[0]
    np.testing.assert_allclose(got + other, 1 - np.exp(-0.8 * times), atol=1e-4)


def test_incidence_without_competing_hazard_is_that_of_the_cox_model():
    x, time, event = problem()
    model = cox.fit_cox(x, time, event, x, time, event)
    times = np.array([15.0, 50, 200, 900])
    mine = cox.Hazard(model.log_hazard(x), model.event_times_T, model.cumulative_hazard_T)
    nobody = cox.Hazard(np.zeros(len(x)), np.empty(0), np.empty(0))
    np.testing.assert_allclose(cox.event_free(mine, nobody, times), model.survival(x, times), atol=1e-12)
    # a hazard that is too large for a float is a certain event
    huge = cox.Hazard(np.array([1000.0]), model.event_times_T, model.cumulative_hazard_T)
    assert cox.event_free(huge, cox.Hazard(np.zeros(1), np.empty(0), np.empty(0)), [900.0]) == pytest.approx(0)


def test_incidence_without_covariates_is_near_aalen_and_johansen():
    rng = np.random.default_rng(0)
    first, second, end = rng.exponential(50, 3000), rng.exponential(80, 3000), rng.uniform(0, 120, 3000)
    time = np.minimum(np.minimum(first, second), end)
    code = np.where(time == first, 1, np.where(time == second, 2, 0))
    one = np.zeros(1)
    event, other = (cox.Hazard(one, *cox.breslow(time, code == c, np.zeros(3000))) for c in (1, 2))
    times = np.array([10.0, 40, 80])
    expected = survival.aalen_johansen(time, code)(times)
    np.testing.assert_allclose(cox.event_free(event, other, times)[0], expected, atol=1e-3)


def test_blocks_of_people_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    first = cox.Hazard(rng.normal(size=50), np.arange(1.0, 30), np.linspace(0.01, 1, 29))
    second = cox.Hazard(rng.normal(size=50), np.arange(1.5, 20), np.linspace(0.02, 0.6, 19))
    whole = cox.event_free(first, second, [5.0, 25.0])
    monkeypatch.setattr(cox, "_BLOCK_CELLS", 100)
    np.testing.assert_array_equal(cox.event_free(first, second, [5.0, 25.0]), whole)


@pytest.mark.parametrize("step", [0.0, 20.0, 200.0])
def test_rows_read_some_at_a_time_give_the_derivatives_and_the_fit_of_all_at_once(step, monkeypatch):
    """Where times are tied too, of which no block holds a part: some blocks are then longer, or empty."""
    x, time, event = problem(step=step)
    coef, likelihood = np.linspace(-0.3, 0.3, x.shape[1]), cox.PartialLikelihood(time, event)
    z = x / x.std(0)
    whole, fitted = likelihood.gradient_hessian(z, z @ coef), cox.fit_cox(x, time, event, x, time, event)
    monkeypatch.setattr(probes, "CELLS_AT_ONCE", 9 * x.shape[1])
    parts = list(likelihood._from_the_last(x.shape[1]))
    assert len(parts) > 3 and sorted(r for p in parts for r in range(p.start, p.stop)) == list(range(len(x)))
    for got, want in zip(likelihood.gradient_hessian(z, z @ coef), whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    again = cox.fit_cox(x, time, event, x, time, event)
    np.testing.assert_allclose(again.log_hazard(x), fitted.log_hazard(x), rtol=1e-8, atol=1e-9)
