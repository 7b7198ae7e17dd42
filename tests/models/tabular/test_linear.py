"""Linear models on sparse features, against other libraries."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge

from ehrwear_jax.evals import cox
from ehrwear_jax.models.tabular import linear, losses


def data(n=600, seed=0):
    """Columns of different spread, half of them mostly zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(1, [0.5, 1, 3, 10], (n, 4))
    x[:, 2:] *= rng.random((n, 2)) < 0.4
    score = x @ [1.0, -0.5, 0.3, 0.05]
    return sparse.csr_matrix(x.astype(np.float32)), score, rng


def fitted(x, kind, target, l2):
    train = losses.of(kind, target, "train")
    return linear.fit([x], train, [x], train, l2_grid=[l2])


def standardised(x):
    dense = x.toarray().astype(np.float64)
    return (dense - dense.mean(0)) / dense.std(0)


def test_ridge_and_logistic_regression_equal_sklearn():
    x, score, rng = data()
    y = score + rng.normal(size=600)
    oracle = Ridge(alpha=0.1 * 600).fit(standardised(x), y).predict(standardised(x))
    np.testing.assert_allclose(fitted(x, losses.REGRESSION, y, 0.1).score([x]), oracle, atol=2e-3)
    labels = (rng.random(600) < 1 / (1 + np.exp(-score))).astype(float)
    oracle = LogisticRegression(C=1 / (0.01 * 600), tol=1e-10, max_iter=5000).fit(standardised(x), labels)
    found = fitted(x, losses.BINARY, labels, 0.01).score([x])
    np.testing.assert_allclose(found, oracle.decision_function(standardised(x)), atol=2e-3)


def test_cox_equals_the_dense_solver_where_no_times_tie():
    x, score, rng = data()
    time_N = rng.exponential(np.exp(-score))
    event_N = rng.random(600) < 0.6
    found = fitted(x, losses.SURVIVAL, (time_N, event_N), 0.05).score([x])
    dense = x.toarray()
    # the dense solver's mean is over rows, this one's over events
    l2 = 0.05 * event_N.mean()
    oracle = cox.fit_cox(dense, time_N, event_N, dense, time_N, event_N, l2_grid=[l2]).log_hazard(dense)
    np.testing.assert_allclose(found - found.mean(), oracle - oracle.mean(), atol=2e-3)


def test_the_penalty_of_lowest_tuning_loss_is_kept():
    x, score, rng = data()
    noise = sparse.csr_matrix(rng.normal(size=(600, 80)).astype(np.float32))
    x, y = sparse.hstack([x, noise], "csr"), score + rng.normal(size=600)
    train, tuning = (losses.of(losses.REGRESSION, y[part], "t") for part in (slice(120), slice(120, 600)))
    model = linear.fit([x[:120]], train, [x[120:]], tuning)
    alone = {k: linear.fit([x[:120]], train, [x[120:]], tuning, [k]).tuning_loss[k] for k in linear.L2_GRID}
    assert model.tuning_loss == pytest.approx({k: alone[k] for k in model.tuning_loss}, rel=1e-3)
    assert model.l2 == min(alone, key=alone.get)
    assert tuning.mean(model.score([x[120:]])) == pytest.approx(model.tuning_loss[model.l2])
    assert 1e-5 < model.l2 < 100


def test_a_constant_column_has_no_coefficient_and_a_rare_one_is_not_blown_up():
    x, score, _ = data()
    rare = np.zeros((600, 2), np.float32)
    rare[:, 0], rare[0, 1] = 5.0, 1.0
    model = fitted(sparse.hstack([x, sparse.csr_matrix(rare)], "csr"), losses.REGRESSION, score, 0.01)
    assert model.coef_F[4] == 0
    assert abs(model.coef_F[5]) < 0.05


def test_moments_do_not_depend_on_how_many_entries_are_taken_at_once(monkeypatch):
    x = [data()[0]]
    whole = linear.moments(x)
    dense = x[0].toarray().astype(np.float64)
    np.testing.assert_allclose(whole[0], dense.mean(0), rtol=1e-12, atol=1e-12)
    for entries in (1, 11, 1000):
        monkeypatch.setattr(linear, "_ENTRIES_AT_ONCE", entries)
        np.testing.assert_array_equal(linear.moments(x), whole)


def test_blocks_side_by_side_are_one_table(monkeypatch):
    x, score, _ = data()
    whole, loss = fitted(x, losses.REGRESSION, score, 0.1), losses.of(losses.REGRESSION, score, "train")
    monkeypatch.setattr(linear, "_ENTRIES_AT_ONCE", 11)
    blocks = [x[:, :1], x[:, 1:]]
    parts = linear.fit(blocks, loss, blocks, loss, [0.1])
    np.testing.assert_allclose(parts.coef_F, whole.coef_F, rtol=1e-3)
    np.testing.assert_allclose(parts.score(blocks), whole.score([x]), atol=1e-3)
