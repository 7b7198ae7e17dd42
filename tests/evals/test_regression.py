"""RMSE, MAE and R2 against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from ehrwear_jax.evals import regression, weighting


def test_all_equal_sklearn_under_weights():
    rng = np.random.default_rng(0)
    y = 1000 + np.round(rng.normal(size=200), 1)
    predicted = y + rng.normal(size=200)
    weight = rng.integers(0, 4, (6, 200))
    result = weighting.evaluate(regression.Regression(y, predicted), 200, weight)
    for b, w in enumerate(weight):
        for name, function in (("rmse", root_mean_squared_error), ("mae", mean_absolute_error), ("r2", r2_score)):
            assert result[name][b] == pytest.approx(function(y, predicted, sample_weight=w), abs=1e-9)


def test_r2_of_the_mean_is_zero_and_of_a_constant_undefined():
    y = np.array([1.0, 2.0, 6.0])
    assert weighting.evaluate(regression.Regression(y, np.full(3, 3.0)), 3)["r2"] == pytest.approx(0, abs=1e-12)
    constant = weighting.evaluate(regression.Regression(np.full(3, 0.1), y), 3)
    assert np.isnan(constant["r2"]) and constant["rmse"] > 0
    single = weighting.evaluate(regression.Regression(y, y + 1), 3, [0, 0, 2])
    assert np.isnan(single["r2"]) and single["mae"] == pytest.approx(1)


def test_rows_of_factor_zero_may_hold_anything():
    y, predicted = np.array([1.0, np.nan, 3.0]), np.array([2.0, 5.0, 5.0])
    result = weighting.evaluate(regression.Regression(y, predicted, factor_N=[1, 0, 1]), 3)
    assert result["mae"] == pytest.approx(1.5)
