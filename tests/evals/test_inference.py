"""Intervals, p-values, false discovery control and effect sizes against scipy and statsmodels."""

import numpy as np
import pytest

from ehrwear_jax.evals import bootstrap, calibration, classification, inference


def test_interval_of_a_mean_covers_and_matches_the_normal_one():
    rng = np.random.default_rng(0)
    y = rng.random(2000) < 0.3
    p = np.full(2000, 0.3)
    samples = bootstrap.resample({"r": calibration.Calibration(y, p)}, np.arange(2000), 2000, seed=0)
    bounds = inference.interval(samples["r"]["brier"])
    loss = (p - y) ** 2
    half = 1.96 * loss.std() / np.sqrt(2000)
    assert bounds.lo == pytest.approx(loss.mean() - half, abs=half / 8)
    assert bounds.hi == pytest.approx(loss.mean() + half, abs=half / 8)


def test_degenerate_resamples_are_counted_and_left_out():
    y, score, group = np.array([1, 0, 0]), np.array([0.9, 0.2, 0.1]), np.arange(3)
    samples = bootstrap.resample({"r": classification.BinaryRanking(y, score)}, group, 900, 0)
    bounds = inference.interval(samples["r"]["auroc"])
    # Without the positive: (2/3)^3; with nothing else: (1/3)^3.
    assert bounds.n_degenerate == pytest.approx(900 * 9 / 27, abs=60)
    assert bounds.n_valid + bounds.n_degenerate == 900
    assert bounds.lo == bounds.hi == 1.0
    assert np.isnan(inference.interval([np.nan, np.nan]).lo)


def test_pvalue_by_hand_and_its_limits():
    assert inference.paired_pvalue(np.ones(99)) == pytest.approx(2 / 100)
    assert inference.paired_pvalue(-np.ones(99)) == pytest.approx(2 / 100)
    assert inference.paired_pvalue(np.zeros(99)) == 1.0
    delta = np.r_[np.ones(90), -np.ones(9)]
    assert inference.paired_pvalue(delta) == pytest.approx(2 * 10 / 100)
    assert inference.paired_pvalue(np.r_[delta, np.nan]) == pytest.approx(2 * 10 / 100)
    assert np.isnan(inference.paired_pvalue([]))
