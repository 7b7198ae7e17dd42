"""Intervals, p-values, false discovery control and effect sizes against scipy and statsmodels."""

import types

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

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


def test_bca_equals_scipy_on_the_same_resamples():
    """A skewed statistic, so that both corrections matter."""
    rng = np.random.default_rng(0)
    x = rng.exponential(size=60)
    weights = np.concatenate(list(bootstrap.weight_blocks(np.arange(60), 1500, 0)), axis=1)
    leave_one_out = np.concatenate(list(bootstrap.jackknife_blocks(np.arange(60))), axis=1)
    variance = lambda w: (w.T @ x**2) / w.sum(0) - ((w.T @ x) / w.sum(0)) ** 2  # noqa: E731
    samples = variance(weights)
    mine = inference.bca_interval(x.var(), samples, variance(leave_one_out))
    made = types.SimpleNamespace(bootstrap_distribution=samples, confidence_interval=None, standard_error=None)
    theirs = scipy.stats.bootstrap(
        (x,), np.var, n_resamples=0, bootstrap_result=made, method="BCa", vectorized=False
    ).confidence_interval
    np.testing.assert_allclose(mine[:2], [theirs.low, theirs.high], rtol=1e-9)
    percentile = inference.interval(samples)
    assert mine.lo > percentile.lo and mine.hi > percentile.hi


def test_bca_without_bias_and_skew_is_the_percentile_interval():
    samples = np.linspace(-1, 1, 2001)
    symmetric = inference.bca_interval(0.0, samples, np.array([-0.1, 0.1, 0.2, -0.2]))
    np.testing.assert_allclose(symmetric[:2], inference.interval(samples)[:2], atol=1e-3)
    assert np.isnan(inference.bca_interval(np.nan, samples, samples).lo)
    one_sided = inference.bca_interval(-2.0, np.r_[samples, np.nan], samples)
    assert one_sided == inference.interval(np.r_[samples, np.nan])
    assert one_sided.n_degenerate == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_benjamini_hochberg_equals_statsmodels(p):
    adjusted = inference.benjamini_hochberg(dict(enumerate(p)))
    rejected, q, *_ = multipletests(p, alpha=0.05, method="fdr_bh")
    np.testing.assert_allclose([a.q for a in adjusted.values()], q, atol=1e-12)
    assert [a.rejected for a in adjusted.values()] == rejected.tolist()


def test_undefined_tests_are_no_part_of_the_family():
    adjusted = inference.benjamini_hochberg({"a": 0.01, "b": np.nan, "c": 0.04})
    assert adjusted["a"].q == pytest.approx(0.02) and adjusted["c"].q == pytest.approx(0.04)
    assert np.isnan(adjusted["b"].q) and not adjusted["b"].rejected
    assert inference.benjamini_hochberg({}) == {}
    with pytest.raises(ValueError, match="outside"):
        inference.benjamini_hochberg({"a": 1.5})


def test_bootstrap_z_grows_with_patients_and_cohens_d_does_not():
    rng = np.random.default_rng(0)
    z = [inference.bootstrap_z(0.1, 0.1 + rng.normal(size=4000) / np.sqrt(n)) for n in (100, 10_000)]
    assert z[0] == pytest.approx(1, rel=0.1) and z[1] == pytest.approx(10, rel=0.1)
    # seed by seed the differences are 3, 1 and 5: mean 3, SD 2
    assert inference.seed_cohens_d([5, 2, 8], [2, 1, 3]) == pytest.approx(1.5)
    assert inference.seed_cohens_d([5, 2, 8], [1, 3, 2]) != pytest.approx(1.5)  # other pairs
    assert np.isnan(inference.seed_cohens_d([1, 1, 1], [2, 2, 2]))
    for other in ([2.0, 3.0], [2.0, 3.0, 4.0, 5.0]):
        with pytest.raises(ValueError, match="three seeds or more"):
            inference.seed_cohens_d([1.0, 2.0], other)


def test_the_smallest_p_value_is_reached_by_a_difference_of_one_sign():
    assert inference.paired_pvalue(np.full(5000, 0.1)) == 2 / 5001


def test_the_bootstrap_of_a_paired_auroc_difference_agrees_with_delong():
    """DeLong's variance from the placements of each positive and negative."""
    rng = np.random.default_rng(0)
    y = rng.random(1500) < 0.3
    shared = y + rng.normal(size=1500)
    scores = [shared + s * rng.normal(size=1500) for s in (0.3, 0.8)]
    above = [(s[y][:, None] > s[~y]).astype(float) for s in scores]
    difference = above[0] - above[1]
    variance = difference.mean(1).var(ddof=1) / y.sum() + difference.mean(0).var(ddof=1) / (~y).sum()
    statistics = {str(i): classification.BinaryRanking(y, s) for i, s in enumerate(scores)}
    samples = bootstrap.resample(statistics, np.arange(1500), 2000, 0)
    delta = samples["0"]["auroc"] - samples["1"]["auroc"]
    assert delta.std() == pytest.approx(np.sqrt(variance), rel=0.06)
    z = inference.bootstrap_z(difference.mean(), delta)
    assert z == pytest.approx(difference.mean() / np.sqrt(variance), rel=0.06)
