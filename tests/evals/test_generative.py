"""Coverage, moments and frequencies of decoded draws against simulation, and rank correlation against scipy."""

import numpy as np
import pytest
from scipy import stats

from ehrwear_jax.evals import generative
from ehrwear_jax.evals.generative import LEVELS, CodeSums, SignalSums


def code_sums(rng, p_V, said_V, n_rows=200, n=30):
    """Events of a distribution, beside what a model says of each."""
    order = np.argsort(-said_V)
    above_V = np.empty(len(said_V))
    above_V[order] = np.cumsum(said_V[order]) - said_V[order]
    codes_RxN = rng.choice(len(p_V), (n_rows, n), p=p_V)
    observed = np.stack([np.bincount(row, minlength=len(p_V)) for row in codes_RxN]).astype(float)
    inside = np.stack([(above_V[codes_RxN] < a).sum(1) for a in LEVELS], axis=1).astype(float)
    return CodeSums(np.tile(n * said_V, (n_rows, 1)), observed, inside, np.log(said_V)[codes_RxN].sum(1))


def by_name(records):
    return {(r["measure"], r["of"], r["level"]): r for r in records}


def test_a_model_that_says_the_truth_is_at_its_floor_and_one_that_does_not_is_not():
    rng = np.random.default_rng(0)
    p_V = rng.dirichlet(np.ones(12))
    true = by_name(generative.of_codes(code_sums(rng, p_V, p_V), 200))
    flat = by_name(generative.of_codes(code_sums(rng, p_V, np.full(12, 1 / 12)), 200))
    name, floor = ("code_total_variation", "", None), ("code_total_variation_floor", "", None)
    assert true[name]["value"] < 2 * true[floor]["value"] and true[name]["n"] == 6000
    np.testing.assert_allclose(flat[name]["value"], 0.5 * np.abs(p_V - 1 / 12).sum(), atol=0.02)
    assert flat[name]["lo"] > 3 * flat[floor]["value"]
    likelihood = true["code_log_likelihood", "", None]
    np.testing.assert_allclose(likelihood["value"], (p_V * np.log(p_V)).sum(), atol=0.05)
    assert likelihood["lo"] < (p_V * np.log(p_V)).sum() < likelihood["hi"]
    for level in LEVELS:
        assert true["code_coverage", "", level]["lo"] > level - 0.02, "sets are whole codes: no less than their level"


def signal_sums(x_RxNxC, mean, sd):
    pit = stats.norm.cdf((x_RxNxC - mean) / sd)
    inside = np.stack([(2 * np.abs(pit - 0.5) <= a).sum(1) for a in LEVELS], axis=-1).astype(float)
    n = np.full((len(x_RxNxC), x_RxNxC.shape[2]), float(x_RxNxC.shape[1]))
    return SignalSums(n, x_RxNxC.sum(1), (x_RxNxC**2).sum(1), n * mean, n * (mean**2 + sd**2), inside)


def test_coverage_and_moments_of_a_signal_are_those_of_the_model():
    x = np.random.default_rng(0).normal([1.0, -2.0], [0.5, 3.0], (300, 40, 2))
    found = by_name(generative.of_signal(signal_sums(x, np.array([1.0, -1.0]), np.array([0.5, 1.5])), ("a", "b"), 200))
    for level in LEVELS:
        right = found["signal_coverage", "a", level]
        assert right["lo"] - 0.005 < level < right["hi"] + 0.005
        tail = stats.norm.ppf(0.5 + level / 2) * 1.5
        want = stats.norm.cdf((tail + 1) / 3) - stats.norm.cdf((-tail + 1) / 3)
        np.testing.assert_allclose(found["signal_coverage", "b", level]["value"], want, atol=0.015)
    np.testing.assert_allclose(found["signal_variance_ratio", "a", None]["value"], 1.0, atol=0.05)
    np.testing.assert_allclose(found["signal_variance_ratio", "b", None]["value"], 0.25, atol=0.02)
    difference = found["signal_mean_difference", "b", None]
    assert difference["lo"] < 1.0 < difference["hi"] and difference["n"] == 12_000


def test_rank_correlation_is_spearmans_and_intervals_are_of_people():
    rng = np.random.default_rng(0)
    x_N = np.round(rng.normal(size=300), 1)
    y_N = x_N + rng.normal(size=300)
    people = np.arange(300)
    value, lo, hi = generative.of_uncertainty(x_N, y_N, people, 300)
    assert value == pytest.approx(stats.spearmanr(x_N, y_N)[0]) and lo < value < hi
    again = generative.of_uncertainty(*(np.repeat(a, 10) for a in (x_N, y_N, people)), 300)
    np.testing.assert_allclose(again, (value, lo, hi), rtol=1e-9, err_msg="rows of one person are no further evidence")
    assert all(np.isnan(generative.of_uncertainty(np.ones(300), y_N, people, 20)))


def test_resamples_without_a_step_are_left_out():
    """Of three rows one has the channel: where it is not drawn there is no mean, and its coverage is not zero."""
    x = np.random.default_rng(0).normal(size=(3, 500, 1))
    sums = SignalSums(*(a * np.array([1.0, 0, 0]).reshape(-1, *(1,) * (a.ndim - 1)) for a in signal_sums(x, 0.0, 1.0)))
    found = by_name(generative.of_signal(sums, ("a",), 100))
    for r in found.values():
        np.testing.assert_allclose([r["lo"], r["hi"]], r["value"], rtol=1e-9)


def test_nothing_that_was_hidden_is_no_entry():
    empty = CodeSums(np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((3, 3)), np.zeros(3))
    assert generative.of_codes(empty) == []
    assert generative.of_signal(signal_sums(np.zeros((2, 0, 1)), 0.0, 1.0), ("a",)) == []
