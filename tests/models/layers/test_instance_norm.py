"""Norms of signals with missing samples, against numpy on what was observed."""

import numpy as np

from ehrwear_jax.models.layers import instance_norm


def signals():
    rng = np.random.default_rng(0)
    observed = rng.random((2, 60, 2)) > 0.3
    return rng.normal(size=(2, 60, 2)).cumsum(axis=1).astype(np.float32), observed


def test_statistics_are_of_what_is_observed():
    x, observed = signals()
    mean, std = instance_norm.statistics(np.where(observed, x, np.nan), observed)
    for b in range(2):
        for a in range(2):
            mine = x[b, observed[b, :, a], a]
            np.testing.assert_allclose([mean[b, 0, a], std[b, 0, a]], [mine.mean(), mine.std()], rtol=1e-4)
    mean, std = instance_norm.statistics(x, np.zeros_like(observed))
    assert np.isfinite(mean).all() and (np.asarray(std) > 0).all()


def test_normed_signals_have_mean_zero_and_variance_one_and_missing_ones_are_zero():
    x, observed = signals()
    found = np.asarray(instance_norm.instance_normed(np.where(observed, 50 * x + 7, np.nan), observed))
    np.testing.assert_array_equal(found[~observed], 0.0)
    for b in range(2):
        for a in range(2):
            mine = found[b, observed[b, :, a], a]
            np.testing.assert_allclose([mine.mean(), mine.std()], [0, 1], atol=1e-4)
    whole = np.asarray(instance_norm.instance_normed(x))
    np.testing.assert_allclose(whole.mean(1), 0, atol=1e-5)
