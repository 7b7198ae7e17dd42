"""Metrics against scikit-learn under ties and weights, and their invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score

from ehrwear_jax.evals import calibration, classification, concordance, weighting


@st.composite
def binary_problems(draw):
    """(y, score, integer weights): few score levels, so ties are common; any class balance."""
    n = draw(st.integers(2, 30))
    y = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    score = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    weight = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return np.array(y), np.array(score) / 6, np.array(weight)


def random_binary(n=500, seed=0, levels=40):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    score = np.round(levels / (1 + np.exp(-1.0 * y - rng.normal(size=n)))) / levels
    return y, score, rng


@given(binary_problems())
def test_auroc_and_auprc_equal_sklearn_under_ties_and_weights(problem):
    y, score, weight = problem
    positives, negatives = weight[y].sum(), weight[~y].sum()
    auroc, auprc = classification.auroc(y, score, weight), classification.auprc(y, score, weight)
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
    edges = calibration.equal_mass_edges(p)
    for metric, settings in (
        (classification.auroc, {}),
        (classification.auprc, {}),
        (calibration.brier, {}),
        (calibration.ece, {"edges": edges}),
    ):
        weighted, repeated = metric(y, p, weight, **settings), metric(y[rows], p[rows], **settings)
        np.testing.assert_allclose(weighted, repeated, atol=1e-12)


def test_real_valued_weights_equal_sklearn():
    y, p, rng = random_binary()
    weight = rng.exponential(size=len(y))
    expected = roc_auc_score(y, p, sample_weight=weight)
    assert classification.auroc(y, p, weight) == pytest.approx(expected, abs=1e-12)
    expected = average_precision_score(y, p, sample_weight=weight)
    assert classification.auprc(y, p, weight) == pytest.approx(expected, abs=1e-12)
    expected = brier_score_loss(y, p, sample_weight=weight)
    assert calibration.brier(y, p, weight) == pytest.approx(expected, abs=1e-12)


def test_many_weightings_equal_one_at_a_time():
    y, p, rng = random_binary(n=60)
    time, event, risk = rng.integers(0, 20, 60), rng.random(60) < 0.5, rng.integers(0, 9, 60)
    weight = rng.integers(0, 4, (weighting.LANES + 7, 60))
    for metric, arrays in (
        (classification.auroc, (y, p)),
        (classification.auprc, (y, p)),
        (calibration.brier, (y, p)),
        (calibration.ece, (y, p)),
        (concordance.concordance_index, (time, event, risk)),
    ):
        together = metric(*arrays, weight)
        assert together.shape == (len(weight),)
        np.testing.assert_allclose(together, [metric(*arrays, w) for w in weight], atol=1e-12)


@given(binary_problems(), st.randoms(use_true_random=False))
def test_row_order_and_monotone_transforms_change_nothing(problem, random):
    y, score, weight = problem
    order = np.array(random.sample(range(len(y)), len(y)))
    for metric in (classification.auroc, classification.auprc):
        expected = metric(y, score, weight)
        np.testing.assert_allclose(metric(y[order], score[order], weight[order]), expected)
        np.testing.assert_allclose(metric(y, np.exp(5 * score) - 7, weight), expected)


def test_perfect_reversed_and_constant_scores():
    y = np.array([0, 0, 1, 1])
    assert classification.auroc(y, [1, 2, 3, 4]) == classification.auprc(y, [1, 2, 3, 4]) == 1.0
    assert classification.auroc(y, [4, 3, 2, 1]) == 0.0
    assert classification.auroc(y, [0.5] * 4) == classification.auprc(y, [0.5] * 4) == 0.5
    assert classification.auprc(y, [4, 3, 2, 1]) == pytest.approx((1 / 3 + 2 / 4) / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classification.auroc([0, 2], [0.1, 0.2]), "y is 2.0 in row 1"),
        (lambda: classification.auroc([0, 1], [0.1, np.nan]), "score is nan in row 1"),
        (lambda: calibration.brier([0, 1], [0.1, 1.2]), "p is 1.2 in row 1"),
        (lambda: classification.auroc([0, 1], [0.1]), "differ in length"),
        (lambda: classification.auroc([], []), "non-empty"),
        (lambda: classification.auroc([0, 1], [0.1, 0.2], [1, 1, 1]), "weights must be"),
        (lambda: classification.auroc([0, 1], [0.1, 0.2], [1, -1]), "not negative"),
        (lambda: concordance.concordance_index([1, np.inf], [1, 0], [0, 0]), "time is inf in row 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("sensitivity", [0.5, 0.8, 1.0])
def test_the_threshold_is_the_largest_that_reaches_the_sensitivity(sensitivity):
    y, p, _ = random_binary()
    threshold = classification.sensitivity_threshold(y, p, sensitivity)
    reached = [t for t in np.unique(p) if (p[y] >= t).mean() >= sensitivity]
    assert threshold == max(reached)
    assert classification.sensitivity_threshold([0, 1, 1, 1, 1, 1], [9, 1, 2, 3, 4, 5], 0.8) == 2
    with pytest.raises(ValueError, match="no positive row"):
        classification.sensitivity_threshold([0, 0], [0.1, 0.2], 0.8)
    with pytest.raises(ValueError, match="sensitivity must lie"):
        classification.sensitivity_threshold(y, p, 80)


def test_confusion_equals_sklearn_under_weights():
    y, p, rng = random_binary()
    weight = rng.integers(0, 3, (4, len(y)))
    result = weighting.evaluate(classification.Confusion(y, p, 0.6), len(y), weight)
    for b, w in enumerate(weight):
        tn, fp, fn, tp = confusion_matrix(y, p >= 0.6, sample_weight=w).ravel()
        assert [result[k][b] for k in ("tn", "fp", "fn", "tp")] == [tn, fp, fn, tp]
        assert result["sensitivity"][b] == tp / (tp + fn)
        assert result["specificity"][b] == tn / (tn + fp)
        assert result["ppv"][b] == tp / (tp + fp)
        assert result["npv"][b] == tn / (tn + fn)
    everything = weighting.evaluate(classification.Confusion(y, p, -1), len(y))
    assert np.isnan(everything["npv"]) and everything["sensitivity"] == 1


def test_a_factor_restricts_to_its_rows_and_multiplies_weights():
    y, p, rng = random_binary()
    factor = rng.integers(0, 3, len(y)).astype(float)
    weight, inside = rng.integers(0, 4, (5, len(y))), factor > 0
    edges = calibration.equal_mass_edges(p)
    for build in (
        classification.BinaryRanking,
        classification.Prevalence,
        lambda y, p, **f: classification.Confusion(y, p, 0.5, **f),
        lambda y, p, **f: calibration.Calibration(y, p, edges=edges, **f),
    ):
        arguments = (y,) if build is classification.Prevalence else (y, p)
        whole = weighting.evaluate(build(*arguments, factor_N=factor), len(y), weight)
        part = weighting.evaluate(build(*(a[inside] for a in arguments)), inside.sum(), (weight * factor)[:, inside])
        for name in whole:
            np.testing.assert_allclose(whole[name], part[name], atol=1e-12)
    with pytest.raises(ValueError, match="not negative"):
        classification.BinaryRanking(y, p, factor_N=factor - 1)
