"""MMD, effective rank and Lipschitz estimates against plain formulas and analytic cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.interpret import geometry


def plain_kernel(x, y, h):
    return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / (2 * h * h))


def plain_mmd(x, y, h):
    """The three means, pair by pair."""
    same = [[plain_kernel(a[i : i + 1], a[j : j + 1], h)[0, 0] for i in range(len(a)) for j in range(len(a)) if i != j]
            for a in (x, y)]  # fmt: skip
    return np.mean(same[0]) + np.mean(same[1]) - 2 * plain_kernel(x, y, h).mean()


def plain_paired(x, y, h):
    xx, yy, xy = plain_kernel(x, x, h), plain_kernel(y, y, h), plain_kernel(x, y, h)
    total = xx + yy - xy - xy.T
    return (total.sum() - np.trace(total)) / (len(x) * (len(x) - 1))


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.floats(0.3, 5), st.integers(0, 99))
@settings(max_examples=25)
def test_mmd_is_the_difference_of_mean_kernels(n, m, d, h, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(0.5, 2, (m, d))
    assert geometry.mmd(x, y, h).mmd2 == pytest.approx(plain_mmd(x, y, h), abs=1e-12)
    pair = rng.normal(size=(n, d))
    assert geometry.mmd_paired(x, pair, h).mmd2 == pytest.approx(plain_paired(x, pair, h), abs=1e-12)


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.normal(1, 1, (25, 3))
    whole = geometry.mmd(x, y, 1.5, n_permutations=50)
    monkeypatch.setattr(geometry, "BLOCK", 7)
    parts = geometry.mmd(x, y, 1.5, n_permutations=50)
    assert parts.mmd2 == pytest.approx(whole.mmd2, abs=1e-14) and parts.p_value == whole.p_value


def test_mmd_of_two_normals_is_the_closed_form_on_average():
    """E k(x, y) of N(0, s2) and N(mu, s2) is (h2 / (h2 + 2 s2)) ** (d / 2) exp(-mu2 / (2 (h2 + 2 s2)))."""
    rng, h, d, mu = np.random.default_rng(1), 1.3, 2, np.array([1.0, 0.5])
    spread = h * h + 2.0
    expected = 2 * (h * h / spread) ** (d / 2) * (1 - np.exp(-(mu @ mu) / (2 * spread)))
    found = [geometry.mmd(rng.normal(size=(60, d)), rng.normal(size=(50, d)) + mu, h).mmd2 for _ in range(200)]
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(200)
    null = [geometry.mmd(rng.normal(size=(30, d)), rng.normal(size=(30, d)), h).mmd2 for _ in range(300)]
    assert abs(np.mean(null)) < 4 * np.std(null) / np.sqrt(300)  # unbiased: the biased one lies above 0
    biased = 2 * (1 - 29 / 30 * (h * h / spread) ** (d / 2)) / 30
    assert biased > 8 * np.std(null) / np.sqrt(300)


def test_permutation_p_values_are_uniform_under_the_null_and_small_else():
    rng = np.random.default_rng(2)
    p = [geometry.mmd(*rng.normal(size=(2, 20, 2)), 1.0, n_permutations=39, seed=s).p_value for s in range(300)]
    for level in (0.1, 0.25, 0.5, 0.9):
        assert abs(np.mean(np.array(p) <= level) - level) < 4 * np.sqrt(level * (1 - level) / 300)
    far = geometry.mmd(rng.normal(size=(30, 2)), rng.normal(2, 1, (30, 2)), 1.0, n_permutations=199)
    assert far.p_value == pytest.approx(1 / 200)


def test_the_same_patients_in_both_slices_are_exchanged_within_the_patient():
    """A person's level differs far more between people than between slices: only the paired null is right."""
    rng = np.random.default_rng(3)
    paired = []
    for seed in range(200):
        level = rng.normal(0, 5, (25, 2))
        x, y = (level + rng.normal(0, 0.3, (25, 2)) for _ in range(2))
        paired.append(geometry.mmd_paired(x, y, 5.0, n_permutations=39, seed=seed).p_value)
    assert abs(np.mean(np.array(paired) <= 0.25) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 200)
    level = rng.normal(0, 5, (40, 2))
    shifted = level + 1.0 + rng.normal(0, 0.3, (40, 2))
    assert geometry.mmd_paired(level, shifted, 5.0, n_permutations=199).p_value < 0.01
    assert geometry.mmd(level, shifted, 5.0, n_permutations=199).p_value > 0.05  # what ignoring it would say


def test_paired_interval_holds_the_estimate_and_weights_are_copies():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(60, 2)), rng.normal(1, 1, (60, 2))
    bounds = geometry.mmd_paired_interval(x, y, 1.5, n_resamples=200)
    assert bounds.lo < geometry.mmd_paired(x, y, 1.5).mmd2 < bounds.hi and bounds.n_degenerate == 0
    (single,) = (geometry.mmd_paired_interval(x, y, 1.5, n_resamples=1, seed=7),)
    drawn = np.random.default_rng([7, 0]).integers(0, 60, (250, 60), dtype=np.int32)[0]
    h = plain_kernel(x, x, 1.5) + plain_kernel(y, y, 1.5) - plain_kernel(x, y, 1.5) - plain_kernel(x, y, 1.5).T
    other = drawn[:, None] != drawn[None]
    count = np.bincount(drawn, minlength=60)
    expected = h[drawn[:, None], drawn[None]][other].sum() / (60**2 - (count**2).sum())
    assert single.lo == pytest.approx(expected, abs=1e-12)


def test_median_bandwidth():
    x = np.array([[0.0], [1.0], [3.0]])  # distances 1, 2, 3
    assert geometry.median_bandwidth(x) == 2.0
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3000, 4))
    assert geometry.median_bandwidth(z, max_rows=500) == pytest.approx(geometry.median_bandwidth(z), rel=0.05)
    with pytest.raises(ValueError, match="coincide"):
        geometry.median_bandwidth(np.ones((5, 2)))


def test_adjacent_slices_take_a_patients_last_read_of_each_slice():
    group = np.array(["a", "a", "a", "b", "b", "c", "c", "c"])
    days = np.array([1.0, 29.0, 31.0, 5.0, 45.0, 2.0, 65.0, 95.0])
    ((k, now, then),) = geometry.adjacent_slices(group, days)
    assert k == 0 and list(group[now]) == list(group[then]) == ["a", "b"]
    assert list(days[now]) == [29.0, 5.0] and list(days[then]) == [31.0, 45.0]


def test_effective_rank_of_known_spectra():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(np.concatenate([np.ones((50, 1)), rng.normal(size=(50, 6))], axis=1))
    basis = q[:, 1:]  # orthonormal and of mean zero
    assert geometry.effective_rank(basis @ np.diag([3.0] * 4 + [0.0] * 2) + 7.0) == pytest.approx(4.0)
    assert geometry.effective_rank(basis[:, :1] @ rng.normal(size=(1, 6))) == pytest.approx(1.0)
    share = np.array([4, 2, 1, 1]) / 8
    expected = np.exp(-(share * np.log(share)).sum())
    assert geometry.effective_rank(basis[:, :4] @ np.diag([4.0, 2.0, 1.0, 1.0])) == pytest.approx(expected)
    assert np.isnan(geometry.effective_rank(np.full((4, 3), 0.1)))


def test_whitening_gives_unit_covariance_and_does_not_blow_up_dead_directions():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + 4.0
    white = geometry.fit_whitening(z, floor=1e-9)(z)
    np.testing.assert_allclose(np.cov(white, rowvar=False, bias=True), np.eye(3), atol=1e-8)
    np.testing.assert_allclose(white.mean(0), 0.0, atol=1e-9)
    dead = np.concatenate([z, np.zeros((500, 1))], axis=1)
    moved = geometry.fit_whitening(dead)(dead + np.array([0, 0, 0, 1e-6])) - geometry.fit_whitening(dead)(dead)
    assert np.abs(moved).max() < 1e-3
    with pytest.raises(ValueError, match="constant"):
        geometry.fit_whitening(np.ones((5, 2)))


def test_rate_in_time_of_straight_lines_is_their_speed():
    velocity = np.array([[3.0, 4.0], [0.0, 0.5]])
    group = np.array([0, 1, 0, 1, 0, 0])
    days = np.array([2.0, 1.0, 0.0, 11.0, 2.0, 100.0])
    z = velocity[group] * days[:, None]
    found = geometry.lipschitz_in_time(z, days, group)
    assert list(found["group"]) == [0, 1]  # not the repeated time, not the gap of 98 days
    np.testing.assert_allclose(found["rate"], [5.0, 0.5])
    scaled = geometry.lipschitz_in_time(z * 10, days, group)["rate"]
    np.testing.assert_allclose(scaled, 10 * found["rate"])


def test_inputs_that_cannot_be_compared_are_refused():
    x = np.zeros((3, 2))
    for call in (lambda: geometry.mmd(x[:1], x, 1.0), lambda: geometry.mmd(x, x, 0.0),
                 lambda: geometry.mmd(x, np.zeros((3, 4)), 1.0), lambda: geometry.mmd_paired(x, x[:2], 1.0),
                 lambda: geometry.effective_rank(np.array([[1.0], [np.nan]]))):  # fmt: skip
        with pytest.raises(ValueError):
            call()
