"""Tabular baselines: what they can fit, how they choose, and what must not leak into them."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from threadpoolctl import threadpool_limits

from ehrwear_jax.models.tabular import estimators

SMALL_GRID = ({"learning_rate": 0.2, "min_samples_leaf": 10, "max_leaf_nodes": 8},)


def table(n=900, seed=0):
    """A table with an interaction, a skewed column, values missing with meaning, a dead column."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    x[:, 2] = rng.exponential(30, n)
    logit = 1.5 * x[:, 0] * x[:, 1] + 0.02 * x[:, 2] - 1
    y = rng.random(n) < 1 / (1 + np.exp(-logit))
    x[rng.random(n) < np.where(y, 0.6, 0.2), 3] = np.nan
    x[:, 4] = np.nan
    return x, y


def split(x, y):
    return x[:500], y[:500], x[500:700], y[500:700]


def test_boosting_learns_an_interaction_with_missing_values():
    x, y = table()
    model = estimators.fit_gradient_boosting(*split(x, y), estimators.BoostingSearch(SMALL_GRID))
    p = model.predict_proba(x[700:])
    assert p.shape == (200,)
    assert roc_auc_score(y[700:], p) > 0.75


def test_boosting_stops_at_the_iteration_with_the_lowest_validation_loss():
    x, y = table()
    model = estimators.fit_gradient_boosting(*split(x, y), estimators.BoostingSearch(SMALL_GRID, 120))
    # The oracle: one model trained without stopping, every stage scored.
    oracle = HistGradientBoostingClassifier(max_iter=120, early_stopping=False, **SMALL_GRID[0])
    seen = np.delete(x, 4, axis=1)  # scikit-learn refuses a column without values
    with threadpool_limits(1, user_api="openmp"):  # waiting threads spin on a busy machine
        oracle.fit(seen[:500], y[:500])
        losses = [log_loss(y[500:700], p) for p in oracle.staged_predict_proba(seen[500:700])]
    assert model.n_iterations == int(np.argmin(losses)) + 1
    assert 1 < model.n_iterations < 120
    assert model.validation_loss == pytest.approx(min(losses))
    loss = log_loss(y[500:700], model.predict_proba(x[500:700]))
    assert loss == pytest.approx(model.validation_loss)


def test_boosting_keeps_the_best_candidate_of_the_grid():
    x, y = table()
    useless = {"learning_rate": 1e-6, "min_samples_leaf": 200}
    model = estimators.fit_gradient_boosting(*split(x, y), estimators.BoostingSearch((useless, *SMALL_GRID), 60))
    assert model.settings == SMALL_GRID[0]


def test_boosting_is_deterministic_and_ignores_thread_count():
    x, y = table()
    searches = [estimators.BoostingSearch(SMALL_GRID, 20, n_threads=n) for n in (1, 1, 2)]
    p = [estimators.fit_gradient_boosting(*split(x, y), search).predict_proba(x) for search in searches]
    np.testing.assert_array_equal(p[0], p[1])
    np.testing.assert_array_equal(p[0], p[2])


def test_encoder_uses_training_statistics_only():
    x, _ = table()
    encoder = estimators.TableEncoder(x[:500])
    alone = encoder(x[700:701])
    other = x[700:].copy()
    other[1:] = 1e6
    np.testing.assert_array_equal(encoder(other)[:1], alone)
    encoded = encoder(x[:500])
    np.testing.assert_allclose(encoded.mean(0), 0, atol=1e-8)
    varying = encoded.std(0) > 0
    np.testing.assert_allclose(encoded[:, varying].std(0), 1, atol=0.05)


def test_encoder_by_hand():
    # Column 0: median 2 with an indicator. Column 1: never seen in training. Column 2: constant.
    train = np.array([[1.0, np.nan, 7.0], [2.0, np.nan, 7.0], [3.0, np.nan, 7.0], [np.nan] * 3])
    train[3, 2] = 7.0
    encoder = estimators.TableEncoder(train)
    value, spread = 2.0, np.std([1, 2, 3, 2])
    indicator_mean, indicator_spread = 0.25, np.std([0, 0, 0, 1])
    encoded = encoder(np.array([[3.0, 5.0, 9.0], [np.nan, np.nan, np.nan], [1e9, 0.0, 0.0]]))
    np.testing.assert_allclose(encoded[:, 0], [(3 - value) / spread, 0, 10])
    np.testing.assert_array_equal(encoded[:, 1:3], 0)
    np.testing.assert_allclose(encoded[:, 3], (np.array([0, 1, 0]) - indicator_mean) / indicator_spread)


def test_encoder_takes_logarithms_of_skewed_counts_only():
    rng = np.random.default_rng(0)
    counts, symmetric = rng.pareto(2.0, 500), rng.normal(5, 1, 500)
    encoder = estimators.TableEncoder(np.stack([counts, symmetric, -counts], axis=1))
    encoded = encoder(np.stack([counts, symmetric, -counts], axis=1))
    logged = np.log1p(counts)
    np.testing.assert_allclose(encoded[:, 0], (logged - logged.mean()) / logged.std(), atol=1e-9)
    assert np.corrcoef(encoded[:, 1], symmetric)[0, 1] == pytest.approx(1)
    assert np.corrcoef(encoded[:, 2], -counts)[0, 1] > 0.95


def test_logistic_regression_equals_sklearn_on_the_encoded_table():
    x, y = table()
    model = estimators.fit_logistic_regression(*split(x, y), l2_grid=[0.01])
    z = model.encoder(x)
    oracle = LogisticRegression(C=1 / (0.01 * 500), tol=1e-10, max_iter=5000).fit(z[:500], y[:500])
    np.testing.assert_allclose(model.predict_proba(x), oracle.predict_proba(z)[:, 1], atol=1e-5)


def test_logistic_regression_chooses_strength_on_validation_and_uses_missingness():
    x, y = table()
    model = estimators.fit_logistic_regression(*split(x, y))
    losses = {
        l2: estimators.fit_logistic_regression(*split(x, y), l2_grid=[l2]).validation_loss
        for l2 in estimators.LOGISTIC_L2_GRID
    }
    assert model.l2 == min(losses, key=losses.get)
    assert model.validation_loss == losses[model.l2]
    assert roc_auc_score(y[700:], model.predict_proba(x[700:])) > 0.65


@pytest.mark.parametrize("fit", [estimators.fit_gradient_boosting, estimators.fit_logistic_regression])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, 0 * y, x, y), "y_train holds one class only"),
        (lambda x, y: (np.where(x > 2, np.inf, x), y, x, y), "x_train is infinite in row"),
        (lambda x, y: (x, y, x[:, :2], y), "x_val has 2 features, expected 6"),
        (lambda x, y: (x, y, x[:0], y[:0]), "x_val must be a non-empty"),
        (lambda x, y: (x, y + 1, x, y), "y_train must hold 900 labels"),
    ],
)
def test_bad_input_is_named(fit, change, message):
    x, y = table()
    with pytest.raises(ValueError, match=message):
        fit(*change(x, y.astype(int)))


@pytest.mark.parametrize("fault", [{"grid": ()}, {"max_iterations": 0}, {"patience": 0}])
def test_an_impossible_search_is_refused(fault):
    with pytest.raises(ValueError, match="must be positive and the grid not empty"):
        estimators.BoostingSearch(**fault)
