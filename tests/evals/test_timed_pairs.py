"""Pairs in one pass: equal to the sorted sums, whatever the ties, censoring, weights and subgroups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.evals import concordance, survival, timed_pairs, weighting


def both(time, event, risk, weight, horizons, factor=None, tau=np.inf):
    censoring = survival.censoring_survival(np.arange(1, 200), np.arange(1, 200) % 3 == 0)
    settings = {"horizons": horizons, "tau": tau, "factor_N": factor}
    return [
        weighting.evaluate(
            survival.ranking(censoring, time, event, risk, max_cells=cells, **settings), len(time), weight
        )
        for cells in (0, timed_pairs.MAX_CELLS)
    ]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_sorted_sums(data):
    n = data.draw(st.integers(2, 40))
    draw = lambda values: np.array(data.draw(st.lists(values, min_size=n, max_size=n)))  # noqa: E731
    time, event = draw(st.integers(1, data.draw(st.integers(1, 60)))), draw(st.booleans())
    risk = draw(st.integers(0, data.draw(st.integers(0, 30)))).astype(float)
    whole = data.draw(st.booleans())
    weight = np.stack([draw(st.integers(0, 4)) for _ in range(3)]) * (1.0 if whole else 0.3)
    factor = data.draw(st.sampled_from([None, "mask", "inverse"]))
    factor = None if factor is None else draw(st.sampled_from([0.0, 1.0] if factor == "mask" else [0.0, 0.7, 1.9]))
    if factor is not None and not factor.any():
        return
    horizons = data.draw(st.lists(st.integers(1, 60), unique=True, max_size=3))
    sums, pairs = both(time, event, risk, weight, horizons, factor, data.draw(st.sampled_from([np.inf, 20])))
    assert sums.keys() == pairs.keys()
    for name in sums:
        np.testing.assert_allclose(pairs[name], sums[name], atol=1e-12, err_msg=name)


def test_many_events_and_whole_weights_are_exact():
    """More events than are taken at once, and sums that single precision would round if they were not whole."""
    rng = np.random.default_rng(0)
    n = 1500
    time, event, risk = rng.integers(1, 190, n), rng.random(n) < 0.6, np.round(rng.normal(size=n), 2)
    weight = rng.multinomial(n, np.full(n, 1 / n), 7)
    sums, pairs = both(time, event, risk, weight, [30, 90, 180])
    for name in sums:
        np.testing.assert_allclose(pairs[name], sums[name], atol=1e-13, err_msg=name)
    assert event.sum() > 3 * timed_pairs._EVENTS_AT_ONCE


def test_harrell_by_pairs_for_few_rows_and_by_sums_for_many(monkeypatch):
    time, event, risk = np.array([3, 1, 4, 1, 5]), np.array([1, 1, 0, 0, 1]), np.array([0.2, 0.9, 0.1, 0.4, 0.3])
    few = survival.harrell_c(time, event, risk)
    monkeypatch.setattr(survival, "MAX_CELLS", 14)
    many = survival.harrell_c(time, event, risk)
    assert (type(few), type(many)) == (timed_pairs.TimedPairs, concordance.Concordance)
    # Comparable: (1, event) with all of 4 later ones; (3) with 4 and 5. Risk .9 beats all, .2 beats .1 and not .3.
    for statistic in (few, many):
        assert weighting.evaluate(statistic, 5)["c_index"] == pytest.approx(5 / 6)


def test_without_events_nothing_is_defined():
    result = both(np.array([1, 2, 3]), np.zeros(3), np.array([1.0, 2.0, 3.0]), np.ones((2, 3)), [2])[1]
    assert all(np.isnan(v).all() for v in result.values()) and set(result) == {"c_index", "uno_c", "auc_2"}
