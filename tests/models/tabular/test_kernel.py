"""Kernel machines: against exact solvers of another library, and on what no line separates."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import KernelCenterer

from ehrwear_jax.models.tabular import kernel, linear, losses


def data(n=300, n_features=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal([0, 5, -2], [1, 10, 0.1], (n, n_features)).astype(np.float32)
    unit = (x - x.mean(0)) / x.std(0)
    return x, unit, rng


def test_with_every_row_a_landmark_it_is_exact_kernel_ridge_regression(monkeypatch):
    monkeypatch.setattr(kernel, "L2_GRID", (1e-2,))
    x, unit, rng = data()
    y = np.sin(2 * unit[:, 0]) * unit[:, 1] + rng.normal(size=300) / 4
    loss = losses.of(losses.REGRESSION, y[:200], "train")
    model = kernel.fit(sparse.csr_matrix(x[:200]), loss, sparse.csr_matrix(x[:200]), loss, gammas=(0.6,))
    own = (x - x[:200].mean(0)) / x[:200].std(0)
    gram = RBF(np.sqrt(1 / (2 * 0.6 / 3)))(own, own[:200])
    centre = KernelCenterer().fit(gram[:200])
    oracle = KernelRidge(alpha=1e-2 * 200, kernel="precomputed").fit(
        centre.transform(gram[:200]), y[:200] - y[:200].mean()
    )
    expected = oracle.predict(centre.transform(gram)) + y[:200].mean()
    np.testing.assert_allclose(model.score(sparse.csr_matrix(x)), expected, atol=2e-3)


def test_coordinates_have_the_kernel_as_their_inner_product():
    _, unit, _ = data(60)
    coordinates = kernel.Coordinates.of(unit.astype(np.float32), 0.2)
    mapped = coordinates(unit.astype(np.float32))
    expected = np.exp(-0.2 * ((unit[:, None] - unit[None]) ** 2).sum(-1))
    np.testing.assert_allclose(mapped @ mapped.T, expected, atol=1e-3)


def test_it_tells_apart_what_no_line_does():
    x, unit, rng = data(900)
    y = (unit[:, 0] * unit[:, 1] > 0).astype(float)  # exclusive or
    parts = slice(500), slice(500, 700), slice(700, None)
    blocks = [sparse.csr_matrix(x[p]) for p in parts]
    train, tuning = (losses.of(losses.BINARY, y[p], "t") for p in parts[:2])
    found = kernel.fit(blocks[0], train, blocks[1], tuning, averaged=2)
    line = linear.fit([blocks[0]], train, [blocks[1]], tuning)
    assert roc_auc_score(y[parts[2]], found.score(blocks[2])) > 0.95
    assert abs(roc_auc_score(y[parts[2]], line.score([blocks[2]])) - 0.5) < 0.1
    assert len(found.members) == 2 and set(found.tuning_loss) == set(kernel.GAMMAS)
    best = sorted(found.tuning_loss.values())[:2]
    alone = [
        kernel.fit(blocks[0], train, blocks[1], tuning, gammas=(g,)) for g, v in found.tuning_loss.items() if v in best
    ]
    mean = np.mean([model.score(blocks[2]) for model in alone], axis=0)
    np.testing.assert_allclose(found.score(blocks[2]), mean, atol=1e-6)


def test_units_and_constant_columns_change_nothing(monkeypatch):
    x, unit, rng = data(200)
    y = losses.of(losses.REGRESSION, unit[:, 0] ** 2, "train")
    other = np.concatenate([x * [100, 0.5, 3] + [7, 0, 0], np.full((200, 1), 4.0)], axis=1).astype(np.float32)
    monkeypatch.setattr(kernel, "_ROWS_AT_ONCE", 64)  # scores in several parts
    scores = [kernel.fit(m, y, m, y).score(m) for m in (sparse.csr_matrix(x), sparse.csr_matrix(other))]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-2)  # rounding, under the weakest penalties


def test_more_rows_than_it_can_hold_are_drawn(monkeypatch):
    np.testing.assert_array_equal(kernel.rows(50), np.arange(50))
    monkeypatch.setattr(kernel, "MOST_ROWS", 40)
    drawn = kernel.rows(1000)
    assert len(drawn) == 40 and (np.diff(drawn) > 0).all() and drawn[-1] > 500
    np.testing.assert_array_equal(drawn, kernel.rows(1000))


@pytest.mark.parametrize("landmarks", [20, 200])
def test_fewer_landmarks_than_rows_still_follow_a_curve(monkeypatch, landmarks):
    monkeypatch.setattr(kernel, "LANDMARKS", landmarks)
    x, unit, rng = data(400, seed=1)
    y = np.abs(unit[:, 0])
    loss, tuning = (losses.of(losses.REGRESSION, y[p], "t") for p in (slice(300), slice(300, 400)))
    model = kernel.fit(sparse.csr_matrix(x[:300]), loss, sparse.csr_matrix(x[300:]), tuning)
    assert model.members[0][0].landmark_MxF.shape == (landmarks, 3)
    assert np.corrcoef(model.score(sparse.csr_matrix(x[300:])), y[300:])[0, 1] > 0.9
