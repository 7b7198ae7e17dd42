"""Autoregressive imputation against statsmodels and dense linear algebra, and its limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
from statsmodels.regression.linear_model import burg as statsmodels_burg

from ehrwear_jax.data.signals import imputation


def test_empty_and_missing_input():
    for n in (0, 300):
        filled, imputed = imputation.impute_ar(np.full(n, np.nan), 25.0)
        assert filled.shape == (n,) and np.isnan(filled).all() and not imputed.any()


@pytest.mark.parametrize(("rate", "n", "long"), [(1 / 60, 10, 0), (1 / 60, 11, 1), (1.0, 600, 0), (1.0, 601, 1)])
def test_gaps_longer_than_ten_minutes_are_not_bridged(rate, n, long):
    x = np.ones(3 * n)
    x[n : 2 * n] = np.nan
    filled, imputed = imputation.impute_ar(x, rate, order=1)
    np.testing.assert_array_equal(imputed, np.isnan(x) & (not long))
    np.testing.assert_array_equal(filled[imputed], 1.0)


def autoregression(n, seed):
    return 70.0 + lfilter([1.0], [1.0, -1.2, 0.5, -0.1], np.random.default_rng(seed).standard_normal(n + 100))[100:]


@given(seed=st.integers(0, 10**6), order=st.integers(1, 6))
def test_burg_equals_statsmodels_without_gaps(seed, order):
    x = autoregression(200, seed) - 70.0
    np.testing.assert_allclose(
        imputation.burg(x, order), statsmodels_burg(x, order, demean=False)[0], rtol=1e-9, atol=1e-12
    )


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.05, 0.3, 0.5]), order=st.integers(1, 3))
def test_imputed_values_are_the_conditional_mean(seed, share, order):
    """Against a dense solve of the Gaussian whose precision is A'A, A the prediction errors of the fitted model."""
    x = autoregression(120, seed)
    x[np.random.default_rng(seed).random(120) < share] = np.nan
    x[0] = 70.0
    filled, imputed = imputation.impute_ar(x, 1 / 60, order, max_gap_minutes=200)
    seen = np.isfinite(x)
    mean = x[seen].mean()
    errors = np.eye(120)
    for k, a in enumerate(imputation.burg(x - mean, order), 1):
        errors -= a * np.eye(120, k=-k)
    precision = errors.T @ errors
    want = np.linalg.solve(precision[np.ix_(~seen, ~seen)], -precision[np.ix_(~seen, seen)] @ (x[seen] - mean))
    np.testing.assert_allclose(filled[~seen], mean + want, rtol=1e-8)
    np.testing.assert_array_equal(filled[seen], x[seen])
    np.testing.assert_array_equal(imputed, ~seen)
    shifted, _ = imputation.impute_ar(1000.0 - 2.0 * x, 1 / 60, order, max_gap_minutes=200)
    np.testing.assert_allclose(shifted, 1000.0 - 2.0 * filled, rtol=1e-7)


def test_imputation_beats_the_mean_and_knows_its_own_limits():
    x = autoregression(4000, seed=3)
    holed = x.copy()
    holed[np.random.default_rng(0).random(4000) < 0.2] = np.nan
    holed[:5] = np.nan  # before the first value
    holed[1000:1030] = np.nan  # half an hour: missing
    holed[-3:] = np.nan
    filled, imputed = imputation.impute_ar(holed, 1 / 60)
    assert not imputed[:5].any() and not imputed[1000:1030].any() and imputed[-3:].all()
    np.testing.assert_array_equal(np.isfinite(filled), imputed | np.isfinite(holed))
    few = np.r_[x[:29], np.nan, x[29]]
    assert imputation.impute_ar(few, 1 / 60)[1].sum() == 1 and not imputation.impute_ar(few[:-1], 1 / 60)[1].any()
    error = np.sqrt(np.mean((filled - x)[imputed] ** 2))
    assert error < 0.65 * x[imputed].std()
