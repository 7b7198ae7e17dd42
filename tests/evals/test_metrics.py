"""Metrics against scikit-learn and lifelines, under ties and weights, and their invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lifelines.utils import concordance_index as lifelines_concordance
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ehrwear_jax.evals import metrics


@st.composite
def binary_problems(draw):
    """(y, score, integer weights): few score levels, so ties are common; any class balance."""
    n = draw(st.integers(2, 30))
    y = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    score = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    weight = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return np.array(y), np.array(score) / 6, np.array(weight)


@st.composite
def survival_problems(draw):
    n = draw(st.integers(2, 25))
    column = lambda top: np.array(  # noqa: E731
        draw(st.lists(st.integers(0, top), min_size=n, max_size=n))
    )
    return column(6), column(1).astype(bool), column(5), column(3)


def random_binary(n=500, seed=0, levels=40):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    score = np.round(levels / (1 + np.exp(-1.0 * y - rng.normal(size=n)))) / levels
    return y, score, rng


def pairs_concordance(time, event, risk, weight):
    """Harrell's C by listing all pairs."""
    concordant = comparable = 0.0
    for i in np.flatnonzero(event):
        for j in range(len(time)):
            if time[j] > time[i] or (time[j] == time[i] and not event[j]):
                pair = weight[i] * weight[j]
                comparable += pair
                concordant += pair * (np.sign(risk[i] - risk[j]) + 1) / 2
    return concordant / comparable if comparable else np.nan


@given(binary_problems())
def test_auroc_and_auprc_equal_sklearn_under_ties_and_weights(problem):
    y, score, weight = problem
    positives, negatives = weight[y].sum(), weight[~y].sum()
    auroc, auprc = metrics.auroc(y, score, weight), metrics.auprc(y, score, weight)
    if positives and negatives:
        assert auroc == pytest.approx(roc_auc_score(y, score, sample_weight=weight), abs=1e-12)
    else:
        assert np.isnan(auroc)
    if positives:
        expected = average_precision_score(y, score, sample_weight=weight)
        assert auprc == pytest.approx(expected, abs=1e-12)
    else:
        assert np.isnan(auprc)


@given(binary_problems())
def test_weight_means_repetition(problem):
    y, p, weight = problem
    rows = np.repeat(np.arange(len(y)), weight)
    if not len(rows):
        return
    edges = metrics.equal_mass_edges(p)
    for metric, settings in (
        (metrics.auroc, {}),
        (metrics.auprc, {}),
        (metrics.brier, {}),
        (metrics.ece, {"edges": edges}),
    ):
        weighted, repeated = metric(y, p, weight, **settings), metric(y[rows], p[rows], **settings)
        np.testing.assert_allclose(weighted, repeated, atol=1e-12)


@given(survival_problems())
def test_concordance_equals_all_pairs(problem):
    time, event, risk, weight = problem
    result = metrics.concordance_index(time, event, risk, weight)
    np.testing.assert_allclose(result, pairs_concordance(time, event, risk, weight), atol=1e-12)


def test_concordance_equals_lifelines_over_many_chunks():
    rng = np.random.default_rng(3)
    n = 1500
    time, event = rng.integers(0, 300, n), rng.random(n) < 0.4
    risk = np.round(-time / 50 + rng.normal(size=n), 1)
    assert metrics.concordance_index(time, event, risk) == pytest.approx(
        lifelines_concordance(time, -risk, event), abs=1e-12
    )
    rows = rng.integers(0, n, n)
    weight = np.bincount(rows, minlength=n)
    assert metrics.concordance_index(time, event, risk, weight) == pytest.approx(
        lifelines_concordance(time[rows], -risk[rows], event[rows]), abs=1e-12
    )


def test_real_valued_weights_equal_sklearn():
    y, p, rng = random_binary()
    weight = rng.exponential(size=len(y))
    expected = roc_auc_score(y, p, sample_weight=weight)
    assert metrics.auroc(y, p, weight) == pytest.approx(expected, abs=1e-12)
    expected = average_precision_score(y, p, sample_weight=weight)
    assert metrics.auprc(y, p, weight) == pytest.approx(expected, abs=1e-12)
    expected = brier_score_loss(y, p, sample_weight=weight)
    assert metrics.brier(y, p, weight) == pytest.approx(expected, abs=1e-12)


def test_many_weightings_equal_one_at_a_time():
    y, p, rng = random_binary(n=60)
    time, event, risk = rng.integers(0, 20, 60), rng.random(60) < 0.5, rng.integers(0, 9, 60)
    weight = rng.integers(0, 4, (metrics.LANES + 7, 60))
    for metric, arrays in (
        (metrics.auroc, (y, p)),
        (metrics.auprc, (y, p)),
        (metrics.brier, (y, p)),
        (metrics.ece, (y, p)),
        (metrics.concordance_index, (time, event, risk)),
    ):
        together = metric(*arrays, weight)
        assert together.shape == (len(weight),)
        np.testing.assert_allclose(together, [metric(*arrays, w) for w in weight], atol=1e-12)


@given(binary_problems(), st.randoms(use_true_random=False))
def test_row_order_and_monotone_transforms_change_nothing(problem, random):
    y, score, weight = problem
    order = np.array(random.sample(range(len(y)), len(y)))
    for metric in (metrics.auroc, metrics.auprc):
        expected = metric(y, score, weight)
        np.testing.assert_allclose(metric(y[order], score[order], weight[order]), expected)
        np.testing.assert_allclose(metric(y, np.exp(5 * score) - 7, weight), expected)


def test_concordance_ignores_row_order_and_monotone_transforms():
    rng = np.random.default_rng(0)
    time, event, risk = rng.integers(0, 50, 200), rng.random(200) < 0.5, rng.normal(size=200)
    expected = metrics.concordance_index(time, event, risk)
    order = rng.permutation(200)
    shuffled = metrics.concordance_index(time[order], event[order], risk[order])
    assert shuffled == pytest.approx(expected, abs=1e-12)
    transformed = metrics.concordance_index(time**3, event, np.exp(risk))
    assert transformed == pytest.approx(expected, abs=1e-12)
    reversed_ = metrics.concordance_index(time, event, -risk)
    assert reversed_ == pytest.approx(1 - expected, abs=1e-12)


def test_event_and_censoring_at_the_same_time_are_comparable_two_events_are_not():
    assert metrics.concordance_index([1, 1], [1, 0], [2, 1]) == 1.0
    assert metrics.concordance_index([1, 1], [0, 1], [2, 1]) == 0.0
    assert np.isnan(metrics.concordance_index([1, 1], [1, 1], [2, 1]))
    assert np.isnan(metrics.concordance_index([1, 2], [0, 0], [2, 1]))
    assert metrics.concordance_index([1, 2], [1, 0], [3, 3]) == 0.5


def test_perfect_reversed_and_constant_scores():
    y = np.array([0, 0, 1, 1])
    assert metrics.auroc(y, [1, 2, 3, 4]) == metrics.auprc(y, [1, 2, 3, 4]) == 1.0
    assert metrics.auroc(y, [4, 3, 2, 1]) == 0.0
    assert metrics.auroc(y, [0.5] * 4) == metrics.auprc(y, [0.5] * 4) == 0.5
    assert metrics.auprc(y, [4, 3, 2, 1]) == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_ece_by_hand():
    # Two bins of equal mass: gaps |0.1 - 0.5| and |0.8 - 0.5|, each with half of the rows.
    y, p = [0, 1, 0, 1], [0.1, 0.1, 0.8, 0.8]
    assert metrics.ece(y, p, n_bins=2) == pytest.approx((0.4 + 0.3) / 2)
    # One bin: the difference of the means. Weights move it.
    assert metrics.ece(y, p, n_bins=1) == pytest.approx(0.05)
    assert metrics.ece(y, p, [1, 1, 0, 0], n_bins=1) == pytest.approx(0.4)


def test_equal_mass_edges_hold_equal_counts_and_survive_ties():
    p = np.random.default_rng(0).random(1000)
    counts = np.histogram(p, metrics.equal_mass_edges(p))[0]
    assert (counts == 100).all()
    assert metrics.equal_mass_edges(np.full(10, 0.3)).tolist() == [0.0, 0.3, 1.0]
    assert metrics.equal_mass_edges(np.zeros(10)).tolist() == [0.0, 1.0]


def test_ece_floor_matches_reference_and_is_what_calibrated_predictions_show():
    rng = np.random.default_rng(1)
    p = rng.beta(1, 6, 3000)
    floor = metrics.ece_floor(p, seed=5)
    observed = np.mean([metrics.ece(rng.random(3000) < p, p) for _ in range(100)])
    assert floor == pytest.approx(observed, rel=0.1)
    assert metrics.ece(rng.random(3000) < p**2, p) > 3 * floor


def test_reliability_curve_reconciles_with_ece_and_totals():
    y, p, rng = random_binary(n=2000)
    weight = rng.integers(0, 3, (5, 2000))
    curve = metrics.reliability_curve(y, p)
    assert curve.weight.sum() == 2000
    gaps = np.abs(curve.mean_predicted - curve.observed)
    assert np.nansum(curve.weight * gaps) / 2000 == pytest.approx(metrics.ece(y, p))
    resampled = metrics.reliability_curve(y, p, weight)
    assert resampled.observed.shape == (5, len(curve.edges) - 1)
    single = metrics.reliability_curve(y, p, weight[3])
    np.testing.assert_allclose(resampled.observed[3], single.observed)
    inside = (p >= curve.edges[2]) & (p < curve.edges[3])
    np.testing.assert_allclose(curve.observed[2], y[inside].mean())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.auroc([0, 2], [0.1, 0.2]), "y is 2.0 in row 1"),
        (lambda: metrics.auroc([0, 1], [0.1, np.nan]), "score is nan in row 1"),
        (lambda: metrics.brier([0, 1], [0.1, 1.2]), "p is 1.2 in row 1"),
        (lambda: metrics.auroc([0, 1], [0.1]), "differ in length"),
        (lambda: metrics.auroc([], []), "non-empty"),
        (lambda: metrics.auroc([0, 1], [0.1, 0.2], [1, 1, 1]), "weights must be"),
        (lambda: metrics.auroc([0, 1], [0.1, 0.2], [1, -1]), "not negative"),
        (lambda: metrics.concordance_index([1, np.inf], [1, 0], [0, 0]), "time is inf in row 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
