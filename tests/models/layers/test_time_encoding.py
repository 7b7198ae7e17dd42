"""rho against float64, over a century."""

import jax
import numpy as np
import pytest

from ehrwear_jax.models.layers import time_encoding


def split(days):
    whole = np.floor(days)
    return np.stack([whole, days - whole], axis=-1).astype(np.float32)


def in_float64(days, n_features, shortest=0.25, longest=36525.0):
    cycles = 1.0 / np.exp(np.linspace(np.log(shortest), np.log(longest), n_features // 2))
    angle = 2 * np.pi * ((days[..., None] * cycles) % 1.0)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


@pytest.fixture(scope="module")
def encode():
    def rho(age, n_features, shortest=0.25, longest=36525.0):
        return time_encoding.encode(age, time_encoding.frequencies(n_features, shortest, longest))

    return jax.jit(rho, static_argnums=(1, 2, 3))


def test_exact_to_a_thousandth_over_a_century(encode):
    rng = np.random.default_rng(0)
    fraction = rng.integers(0, 2**20, 4000) / 2**20  # representable, so that the input itself has no error
    days = np.concatenate([rng.integers(0, 36_525, 4000) + fraction, [0.0, 255.999, 256.0, 36_524.75]])
    got = np.asarray(encode(split(days), 128))
    exact = split(days).astype(np.float64).sum(-1)
    assert got.shape == (4004, 128) and got.dtype == np.float32
    np.testing.assert_allclose(got, in_float64(exact, 128), atol=1e-3)
    naive = np.sin(np.float32(2 * np.pi) * (days.astype(np.float32) / np.float32(0.25)))
    assert np.abs(naive - in_float64(exact, 128)[:, 0]).max() > 1e-2, "float32 days would not do"


def test_a_minute_is_visible_in_old_age(encode):
    days = 30_000.25 + np.array([0.0, 1 / 1440])
    one, two = np.asarray(encode(split(days), 16))
    assert np.abs(one - two).max() > 0.01


def test_frequencies_are_log_linear_and_highest_first():
    cycles = time_encoding.frequencies(10, 0.25, 36525.0)
    assert len(cycles) == 5 and cycles[0] == 4.0
    np.testing.assert_allclose(1 / cycles[-1], 36525.0)
    np.testing.assert_allclose(np.diff(np.log(cycles)), np.log(0.25 / 36525.0) / 4)


def test_each_pair_lies_on_the_unit_circle_and_has_its_period(encode):
    shape = (2, 3)
    days = np.random.default_rng(1).integers(0, 30_000, shape).astype(np.float64)
    got = np.asarray(encode(split(days), 4, 1.0, 7.0))
    assert got.shape == (*shape, 4)
    np.testing.assert_allclose(got[..., :2] ** 2 + got[..., 2:] ** 2, 1.0, atol=1e-5)
    np.testing.assert_allclose(np.asarray(encode(split(days + 7), 4, 1.0, 7.0)), got, atol=1e-3)
    np.testing.assert_allclose(got[..., 0], 0.0, atol=1e-3)  # whole days are whole turns of the daily component
    assert np.abs(np.asarray(encode(split(days + 3.5), 4, 1.0, 7.0))[..., 1] + got[..., 1]).max() < 1e-3


def test_stream_features_count_what_lies_behind():
    rng = np.random.default_rng(0)
    key_time = np.sort(rng.gamma(1.0, 90.0, (2, 6)), axis=1).astype(np.float32)
    key_time[:, 0] = 0.0
    time = np.array([[9.0, 5.0, 400.0, 7.0], [1e4, 800.0, 2.0, 0.5]], np.float32)
    seen = np.array([[(0, 0), (0, 1), (0, 6), (2, 4)], [(0, 5), (3, 3), (1, 2), (4, 6)]], np.int32)
    got = np.asarray(jax.jit(time_encoding.stream_features)(time, seen, seen[..., 1] - 1, key_time))
    assert got.shape == (2, 4, time_encoding.N_STREAM) and got.dtype == np.float32 and np.isfinite(got).all()
    for b, n in np.ndindex(2, 4):
        lo, hi = seen[b, n]
        gap = max(float(time[b, n]) - float(key_time[b, hi - 1]), 0.0) if hi > lo else 0.0
        span = float(time[b, n])
        want = [np.log1p(hi - lo), 1 / (1 + hi - lo), np.log1p(span), np.exp(-span / 30), np.log1p(gap),
                np.exp(-gap / 30), float(hi > lo)]  # fmt: skip
        np.testing.assert_allclose(got[b, n], want, rtol=1e-5, atol=1e-6)


def test_gaussian_features_approximate_the_gaussian_kernel_and_never_change():
    """Bochner: the mean of cos(w_j (s - t)) over normal frequencies is exp(-(2 pi dt / period)^2 / 2)."""
    period = 400.0
    cycles = time_encoding.gaussian_frequencies(20_000, period)
    np.testing.assert_array_equal(cycles, time_encoding.gaussian_frequencies(20_000, period))
    assert cycles.shape == (10_000,) and np.any(cycles != time_encoding.gaussian_frequencies(20_000, period, seed=1))
    days = np.array([20_000.0, 20_010.25, 20_050.5, 20_100.0, 21_000.0])
    rho = np.asarray(time_encoding.encode(split(days), cycles))
    gap = days[:, None] - days[None]
    want = np.exp(-((2 * np.pi * gap / period) ** 2) / 2)
    np.testing.assert_allclose(rho @ rho.T / 10_000, want, atol=0.03)
    assert want[0, 3] < 0.7 < want[0, 1], "the gaps tell the kernel from a constant"


def test_day_bins_keep_the_day_and_nothing_below_it():
    rng = np.random.default_rng(0)
    batch = {"time": rng.gamma(1.0, 9.0, (2, 5)), "query_time": rng.gamma(1.0, 9.0, (2, 3)), "token": np.ones((2, 5))}
    batch |= {"age": split(8000 + batch["time"]), "query_age": split(8000 + batch["query_time"])}
    got = time_encoding.in_day_bins({k: np.float32(v) for k, v in batch.items()})
    for name in ("time", "query_time"):
        np.testing.assert_array_equal(got[name], np.floor(batch[name]))
    for name in ("age", "query_age"):
        np.testing.assert_array_equal(got[name][..., 0], batch[name][..., 0])
        np.testing.assert_array_equal(got[name][..., 1], 0.0)
    np.testing.assert_array_equal(got["token"], batch["token"])
