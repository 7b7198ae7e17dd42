"""Calibration slope and intercept against statsmodels, on the data and on every resample."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from ehrwear_jax.evals import bootstrap, recalibration


def problem(n=300, slope=0.7, intercept=-0.4, seed=0):
    """Labels whose logit is intercept + slope times that of the predictions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(-1.5, 1.2, n)
    return rng.random(n) < expit(intercept + slope * x), expit(x), rng.integers(0, n // 3, n)


def oracle(y, p, weight):
    """(slope, intercept at slope 1) of statsmodels."""
    x, family = logit(p), sm.families.Binomial()
    line = sm.GLM(y.astype(float), sm.add_constant(x), family=family, freq_weights=weight).fit(tol=1e-14)
    shift = sm.GLM(y.astype(float), np.ones((len(y), 1)), family=family, freq_weights=weight, offset=x).fit(tol=1e-14)
    return line.params[1], shift.params[0]


def test_slope_and_intercept_equal_statsmodels_on_every_resample():
    y, p, group = problem()
    np.testing.assert_allclose(recalibration.slope_and_intercept(y, p), oracle(y, p, np.ones(len(y))), atol=1e-8)
    weight = bootstrap.patient_weights(group, 40, seed=2)
    found = np.stack(recalibration.slope_and_intercept(y, p, weight), axis=1)
    np.testing.assert_allclose(found, [oracle(y, p, w) for w in weight], atol=1e-7)


def test_the_line_is_that_of_statsmodels():
    y, p, _ = problem()
    want = sm.GLM(y.astype(float), sm.add_constant(logit(p)), family=sm.families.Binomial()).fit(tol=1e-14).params
    np.testing.assert_allclose(recalibration.Recalibration(y, p).line(), want, atol=1e-8)


def test_fixed_factors_weigh_rows_and_leave_those_of_zero_out():
    y, p, _ = problem()
    factor = np.random.default_rng(3).choice([0.0, 1.0, 2.5], len(y))
    broken = np.where(factor == 0, np.nan, p)  # may hold any value
    found = recalibration.Recalibration(y, broken, factor_N=factor)(np.ones((len(y), 1)))
    expected = oracle(y, p, factor)
    assert [v[0] for v in found.values()] == pytest.approx(expected, abs=1e-8)


@given(st.floats(0.3, 3), st.floats(-2, 2), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_the_true_recalibration_is_found_in_many_rows(slope, intercept, seed):
    y, p, _ = problem(40_000, slope, intercept, seed)
    found, shift = recalibration.slope_and_intercept(y, p)
    assert found == pytest.approx(slope, abs=0.15)
    # the intercept with slope 1 makes the mean risk the observed share
    assert expit(logit(p) + shift).mean() == pytest.approx(y.mean(), abs=1e-9)


def test_where_there_is_no_maximum_the_value_is_undefined():
    y, p, _ = problem()
    slope, intercept = recalibration.slope_and_intercept(np.zeros(len(y)), p)
    assert np.isnan(slope) and np.isnan(intercept)
    slope, intercept = recalibration.slope_and_intercept(y, np.full(len(y), 0.2))
    assert np.isnan(slope) and intercept == pytest.approx(logit(y.mean()) - logit(0.2))
    slope, _ = recalibration.slope_and_intercept(p > 0.2, p)  # the predictions separate the classes
    assert np.isnan(slope)
    one_class = np.stack([np.ones(len(y)), ~y]).astype(float)
    slope_2, intercept_2 = recalibration.slope_and_intercept(y, p, one_class)
    assert np.isfinite([slope_2[0], intercept_2[0]]).all() and np.isnan([slope_2[1], intercept_2[1]]).all()


def test_predictions_of_zero_and_one_count_as_nearly_so():
    y, p, _ = problem()
    p[:5], p[5:10] = 0.0, 1.0
    found = recalibration.slope_and_intercept(y, p)
    assert found == pytest.approx(recalibration.slope_and_intercept(y, np.clip(p, 1e-6, 1 - 1e-6)))
    assert np.isfinite(found).all()
