"""Concordance against all pairs, lifelines and scikit-survival, and its invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lifelines.utils import concordance_index as lifelines_concordance

from ehrwear_jax.evals import concordance, weighting


@st.composite
def survival_problems(draw):
    n = draw(st.integers(2, 25))
    column = lambda top: np.array(  # noqa: E731
        draw(st.lists(st.integers(0, top), min_size=n, max_size=n))
    )
    return column(6), column(1).astype(bool), column(5), column(3)


def pairs_concordance(time, event, risk, weight, event_factor=None):
    """Harrell's C by listing all pairs."""
    concordant = comparable = 0.0
    for i in np.flatnonzero(event):
        for j in range(len(time)):
            if time[j] > time[i] or (time[j] == time[i] and not event[j]):
                pair = weight[i] * weight[j] * (1 if event_factor is None else event_factor[i])
                comparable += pair
                concordant += pair * (np.sign(risk[i] - risk[j]) + 1) / 2
    return concordant / comparable if comparable else np.nan


@given(survival_problems())
def test_concordance_equals_all_pairs(problem):
    time, event, risk, weight = problem
    result = concordance.concordance_index(time, event, risk, weight)
    np.testing.assert_allclose(result, pairs_concordance(time, event, risk, weight), atol=1e-12)


@given(survival_problems())
def test_every_level_and_weighted_events_equal_all_pairs(problem):
    """With blocks of one row all pairs go through the levels; events weigh by their time."""

    class Levels(concordance.Concordance):
        _SMALLEST_LEVEL = 0

    time, event, risk, weight = problem
    by_time = 1 / (1 + time)
    statistic = Levels(time, event, risk, event_factor={"plain": np.ones(len(time)), "weighted": by_time})
    result = weighting.evaluate(statistic, len(time), weight)
    np.testing.assert_allclose(result["plain"], pairs_concordance(time, event, risk, weight), atol=1e-12)
    expected = pairs_concordance(time, event, risk, weight, by_time)
    np.testing.assert_allclose(result["weighted"], expected, atol=1e-12)


def test_concordance_equals_lifelines_over_many_chunks():
    rng = np.random.default_rng(3)
    n = 1500
    time, event = rng.integers(0, 300, n), rng.random(n) < 0.4
    risk = np.round(-time / 50 + rng.normal(size=n), 1)
    assert concordance.concordance_index(time, event, risk) == pytest.approx(
        lifelines_concordance(time, -risk, event), abs=1e-12
    )
    rows = rng.integers(0, n, n)
    weight = np.bincount(rows, minlength=n)
    assert concordance.concordance_index(time, event, risk, weight) == pytest.approx(
        lifelines_concordance(time[rows], -risk[rows], event[rows]), abs=1e-12
    )


def test_concordance_ignores_row_order_and_monotone_transforms():
    rng = np.random.default_rng(0)
    time, event, risk = rng.integers(0, 50, 200), rng.random(200) < 0.5, rng.normal(size=200)
    expected = concordance.concordance_index(time, event, risk)
    order = rng.permutation(200)
    shuffled = concordance.concordance_index(time[order], event[order], risk[order])
    assert shuffled == pytest.approx(expected, abs=1e-12)
    transformed = concordance.concordance_index(time**3, event, np.exp(risk))
    assert transformed == pytest.approx(expected, abs=1e-12)
    reversed_ = concordance.concordance_index(time, event, -risk)
    assert reversed_ == pytest.approx(1 - expected, abs=1e-12)


def test_event_and_censoring_at_the_same_time_are_comparable_two_events_are_not():
    assert concordance.concordance_index([1, 1], [1, 0], [2, 1]) == 1.0
    assert concordance.concordance_index([1, 1], [0, 1], [2, 1]) == 0.0
    assert np.isnan(concordance.concordance_index([1, 1], [1, 1], [2, 1]))
    assert np.isnan(concordance.concordance_index([1, 2], [0, 0], [2, 1]))
    assert concordance.concordance_index([1, 2], [1, 0], [3, 3]) == 0.5
