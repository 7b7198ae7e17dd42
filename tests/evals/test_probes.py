"""Linear probes against scikit-learn, their selection rule, and what must not leak."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from ehrwear_jax.evals import probes


def problem(n=600, d=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.geomspace(0.01, 100, d) + rng.normal(size=d)
    logit = (x - x.mean(0)) / x.std(0) @ rng.normal(size=d) - 1
    return x, rng.random(n) < probes.sigmoid(logit), logit + rng.normal(size=n)


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_logistic_equals_sklearn_lbfgs(l2):
    x, y, _ = problem()
    probe = probes.fit_logistic(x, y, x[:100], y[:100], l2_grid=[l2])
    z = StandardScaler().fit_transform(x)
    oracle = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=10_000).fit(z, y)
    np.testing.assert_allclose(probe.coef_D, oracle.coef_[0], atol=1e-4)
    np.testing.assert_allclose(probe.predict_proba(x), oracle.predict_proba(z)[:, 1], atol=1e-5)


def test_logistic_gradient_vanishes_at_every_chosen_strength():
    x, y, _ = problem()
    for l2 in probes.L2_GRID:
        probe = probes.fit_logistic(x, y, x[:100], y[:100], l2_grid=[10.0, l2])
        z, residual = probe.standardizer(x), probe.predict_proba(x) - y
        gradient = z.T @ residual / len(x) + probe.l2 * probe.coef_D
        assert np.abs(gradient).max() < 1e-6
        assert abs(residual.mean()) < 1e-6


def test_strength_minimises_validation_log_loss():
    x, y, _ = problem(n=120, d=40)
    train, val = slice(0, 60), slice(60, None)
    probe = probes.fit_logistic(x[train], y[train], x[val], y[val])
    assert set(probe.validation_loss) == set(probes.L2_GRID)
    assert probe.l2 == min(probe.validation_loss, key=probe.validation_loss.get)
    # The choice matters here: neither end of the grid is best.
    assert min(probes.L2_GRID) < probe.l2 < max(probes.L2_GRID)
    expected = log_loss(y[val], probe.predict_proba(x[val]))
    assert probe.validation_loss[probe.l2] == pytest.approx(expected)


def test_fit_is_deterministic():
    x, y, target = problem()
    first, second = (probes.fit_logistic(x, y, x[:99], y[:99]) for _ in range(2))
    np.testing.assert_array_equal(first.coef_D, second.coef_D)
    first, second = (probes.fit_ridge(x, target, x[:99], target[:99]) for _ in range(2))
    np.testing.assert_array_equal(first.coef_DxK, second.coef_DxK)


def test_validation_rows_choose_the_strength_and_nothing_else():
    x, y, target = problem()
    rng = np.random.default_rng(1)
    other = rng.normal(size=(50, x.shape[1])) * 1e6, rng.random(50) < 0.5
    first = probes.fit_logistic(x, y, x[:100], y[:100], l2_grid=[0.01])
    second = probes.fit_logistic(x, y, *other, l2_grid=[0.01])
    np.testing.assert_array_equal(first.coef_D, second.coef_D)
    np.testing.assert_array_equal(first.standardizer.mean_D, x.mean(0))
    np.testing.assert_array_equal(second.standardizer.scale_D, x.std(0))
    first = probes.fit_ridge(x, target, x[:100], target[:100], l2_grid=[0.01])
    second = probes.fit_ridge(x, target, other[0], rng.normal(size=50), l2_grid=[0.01])
    np.testing.assert_array_equal(first.coef_DxK, second.coef_DxK)


def test_scale_and_shift_of_features_do_not_matter():
    x, y, _ = problem()
    first = probes.fit_logistic(x, y, x[:100], y[:100])
    scaled = x * 1000 - 5
    second = probes.fit_logistic(scaled, y, scaled[:100], y[:100])
    np.testing.assert_allclose(first.predict_proba(x), second.predict_proba(scaled), atol=1e-7)


def test_constant_and_separating_features_are_harmless():
    x, y, _ = problem()
    x = np.column_stack([x, np.full(len(x), 0.1), 2.0 * y])
    probe = probes.fit_logistic(x, y, x[:100], y[:100])
    assert probe.coef_D[-2] == 0
    assert np.isfinite(probe.coef_D).all()
    moved = x.copy()
    moved[:, -2] = 1e9  # never varied in training, so it cannot matter later
    np.testing.assert_array_equal(probe.predict_proba(moved), probe.predict_proba(x))


def test_more_features_than_rows():
    x, y, target = problem(n=60, d=200)
    assert np.isfinite(probes.fit_logistic(x[:30], y[:30], x[30:], y[30:]).coef_D).all()
    probe = probes.fit_ridge(x[:30], target[:30], x[30:], target[30:])
    assert np.isfinite(probe.predict(x)).all()


def test_ridge_equals_sklearn_for_each_target():
    x, _, target = problem()
    targets = np.stack([target, target**2, np.arange(len(x))], axis=1)
    probe = probes.fit_ridge(x, targets, x[:150], targets[:150])
    scaler = StandardScaler().fit(x)
    for k, l2 in enumerate(probe.l2_K):
        oracle = Ridge(alpha=l2 * len(x)).fit(scaler.transform(x), targets[:, k])
        predicted = oracle.predict(scaler.transform(x))
        np.testing.assert_allclose(probe.predict(x)[:, k], predicted, rtol=1e-8, atol=1e-8)
    alone = probes.fit_ridge(x, target, x[:150], target[:150])
    assert alone.predict(x).shape == (len(x),)
    np.testing.assert_allclose(alone.predict(x), probe.predict(x)[:, 0])
    np.testing.assert_array_equal(probe.l2_K, np.asarray(probes.L2_GRID)[probe.validation_mse_LxK.argmin(0)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, np.zeros(len(x)), x, y), "y_train holds one class only"),
        (lambda x, y: (np.where(x > 0, np.nan, x), y, x, y), "x_train is nan in row"),
        (lambda x, y: (x, y, x[:, :3], y), "x_val has 3 features, expected 8"),
        (lambda x, y: (x, y, x[:0], y[:0]), "x_val must be a non-empty"),
        (lambda x, y: (x, y + 1, x, y), "expected 0 or 1"),
        (lambda x, y: (x, y[:-1], x, y), "y_train has shape"),
    ],
)
def test_bad_input_is_named(change, message):
    x, y, _ = problem()
    with pytest.raises(ValueError, match=message):
        probes.fit_logistic(*change(x, y.astype(float)))


def test_grid_must_be_positive():
    x, y, _ = problem()
    with pytest.raises(ValueError, match="positive"):
        probes.fit_logistic(x, y, x, y, l2_grid=[0.0, 1.0])


def test_rows_read_some_at_a_time_give_the_probe_of_all_at_once(monkeypatch):
    """Of float32 features, as latents are, with a number of rows that blocks do not divide."""
    x, y, target = problem()
    x, targets = x.astype(np.float32), np.stack([target, y], axis=1)
    found = {}
    for cells in (2**22, 7 * x.shape[1]):
        monkeypatch.setattr(probes, "CELLS_AT_ONCE", cells)
        logistic = probes.fit_logistic(x, y, x[:100], y[:100])
        ridge = probes.fit_ridge(x, targets, x[:100], targets[:100])
        predicted = logistic.logit(x), ridge.predict(x), ridge.validation_mse_LxK
        found[cells] = [*predicted, logistic.standardizer.mean_D, logistic.standardizer.scale_D, logistic.l2]
    assert len(list(probes.blocks(*x.shape))) == 86
    for whole, parts in zip(*found.values(), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-9, atol=1e-10)


def test_features_of_32_bits_are_not_copied_and_the_faulty_row_of_a_later_block_is_named(monkeypatch):
    x, *_ = problem()
    x = x.astype(np.float32)
    assert probes.check_features(x, "x") is x
    monkeypatch.setattr(probes, "CELLS_AT_ONCE", 16)
    x[501, 3] = np.inf
    with pytest.raises(ValueError, match="x is inf in row 501, column 3"):
        probes.check_features(x, "x")
