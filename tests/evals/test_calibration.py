"""Calibration error and its floor, by hand and by simulation."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from ehrwear_jax.evals import bootstrap, calibration, weighting


def random_binary(n=500, seed=0, levels=40):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    score = np.round(levels / (1 + np.exp(-1.0 * y - rng.normal(size=n)))) / levels
    return y, score, rng


def test_the_brier_score_stands_beside_that_of_the_prevalence():
    rng = np.random.default_rng(0)
    y, weight = rng.random(200) < 0.3, rng.integers(0, 4, (5, 200))
    p = np.clip(0.3 + 0.2 * (y - 0.3) + 0.1 * rng.normal(size=200), 0, 1)
    found = calibration.Calibration(y, p)(weight.T.astype(float))
    for b, w in enumerate(weight):
        share = np.average(y, weights=w)
        null = brier_score_loss(y, np.full(200, share), sample_weight=w)
        assert found["brier_null"][b] == pytest.approx(null) == pytest.approx(share * (1 - share))
        assert found["brier_skill"][b] == pytest.approx(1 - brier_score_loss(y, p, sample_weight=w) / null)
    at_prevalence = calibration.Calibration(y, np.full(200, y.mean()))(np.ones((200, 1)))
    assert at_prevalence["brier_skill"][0] == pytest.approx(0, abs=1e-12)
    assert np.isnan(calibration.Calibration(np.zeros(200), p)(np.ones((200, 1)))["brier_skill"][0])


def test_ece_by_hand():
    # Two bins of equal mass: gaps |0.1 - 0.5| and |0.8 - 0.5|, each with half of the rows.
    y, p = [0, 1, 0, 1], [0.1, 0.1, 0.8, 0.8]
    assert calibration.ece(y, p, n_bins=2) == pytest.approx((0.4 + 0.3) / 2)
    # One bin: the difference of the means. Weights move it.
    assert calibration.ece(y, p, n_bins=1) == pytest.approx(0.05)
    assert calibration.ece(y, p, [1, 1, 0, 0], n_bins=1) == pytest.approx(0.4)


def test_equal_mass_edges_hold_equal_counts_and_survive_ties():
    p = np.random.default_rng(0).random(1000)
    counts = np.histogram(p, calibration.equal_mass_edges(p))[0]
    assert (counts == 100).all()
    assert calibration.equal_mass_edges(np.full(10, 0.3)).tolist() == [0.0, 0.3, 1.0]
    assert calibration.equal_mass_edges(np.zeros(10)).tolist() == [0.0, 1.0]


def test_ece_floor_matches_reference_and_is_what_calibrated_predictions_show():
    rng = np.random.default_rng(1)
    p = rng.beta(1, 6, 3000)
    floor = calibration.ece_floor(p, seed=5)
    observed = np.mean([calibration.ece(rng.random(3000) < p, p) for _ in range(100)])
    assert floor == pytest.approx(observed, rel=0.1)
    assert calibration.ece(rng.random(3000) < p**2, p) > 3 * floor


def gaps_of(y, p, group, n_resamples=400):
    statistic = calibration.Calibration(y, p, gaps=True)
    n_bins = len(statistic.edges) - 1
    samples = bootstrap.resample({"": statistic}, group, n_resamples, 0)[""]
    value = weighting.evaluate(statistic, len(y))
    names = [f"gap_{k}" for k in range(n_bins)]
    return np.array([value[g] for g in names]), np.stack([samples[g] for g in names], axis=1), value["ece"]


def test_corrected_error_is_zero_when_calibrated_and_right_when_not():
    rng = np.random.default_rng(0)
    risk = rng.beta(2, 5, 2000)
    y = rng.random(2000) < risk
    gap, samples, plain = gaps_of(y, risk, np.arange(2000))
    assert plain == pytest.approx(np.abs(gap).sum()) and plain > 0.01
    calibrated = calibration.corrected_ece(gap, samples)
    assert calibrated.lo == pytest.approx(0, abs=1e-6) and calibrated.value < plain - 0.005
    shifted = np.minimum(risk + 0.1, 1)  # every prediction 0.1 too high
    result = calibration.corrected_ece(*gaps_of(y, shifted, np.arange(2000))[:2])
    assert result.lo < 0.1 < result.hi and result.value == pytest.approx(0.1, abs=0.025)
    wide = calibration.corrected_ece(*gaps_of(y, shifted, np.arange(2000))[:2], level=0.99)
    assert wide.lo < result.lo and wide.hi > result.hi
    with pytest.raises(ValueError, match="two resamples"):
        calibration.corrected_ece(gap, samples[:1])
    with pytest.raises(ValueError, match="level"):
        calibration.corrected_ece(gap, samples, level=95)


def test_signed_gaps_show_the_direction():
    rng = np.random.default_rng(0)
    y, p = rng.random(500) < 0.2, np.full(500, 0.5)
    gap, samples, plain = gaps_of(y, p, np.arange(500), 50)
    assert gap.sum() == pytest.approx(0.5 - y.mean()) and plain == pytest.approx(abs(gap.sum()))
    assert samples.shape == (50, len(gap))
    found = weighting.evaluate(calibration.Calibration(y, p, gaps=True), 500)
    assert found["mean_gap"] == pytest.approx(0.5 - y.mean())
