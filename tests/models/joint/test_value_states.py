"""States of series against loops in float64, by hypothesis; what a trend is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.models.joint import value_states

SPANS = (10.0, 100.0)


def slow_states(series, values, days, known, time, n_series):
    """[U, 1 + 4 S] of one time from the values before `known`."""
    out = np.full((n_series, 1 + 4 * len(SPANS)), np.nan)
    for u in range(n_series):
        mine = [k for k in range(known) if series[k] == u]
        if mine:
            out[u, 0] = values[mine[-1]]
        for s, span in enumerate(SPANS):
            inside = [k for k in mine if days[k] > time - span]
            if not inside:
                continue
            x, t = np.array([values[k] for k in inside]), np.array([days[k] for k in inside])
            found = [x.mean(), x.max(), x.min(), np.nan]
            if t.max() > t.min():
                slope = ((t - t.mean()) * (x - x.mean())).mean() / (t.var() + (0.05 * span) ** 2)
                found[3] = np.clip(span * slope, -5, 5)
            out[u, 1 + 4 * s : 5 + 4 * s] = found
    return out


def ranges(days, times):
    """(lo [Q, S], hi [Q]) of the times."""
    lo = np.stack([np.searchsorted(days, times - span, side="right") for span in SPANS], axis=1)
    return lo, np.searchsorted(days, times, side="right")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 3), st.integers(0, 12)), max_size=12),
    st.lists(st.integers(-5, 130), min_size=1, max_size=5),
)
def test_states_equal_loops(events, times):
    """Ties of time, series without a value, times before the first one and long after the last."""
    series, values, gaps = (np.array([e[k] for e in events], np.int64) for k in range(3))
    days, times = np.cumsum(gaps).astype(np.float64), np.sort(np.array(times, np.float64))
    found = value_states.value_states(series, values.astype(np.float64), days, ranges(days, times), SPANS, 4)
    assert found.dtype == np.float32 and found.shape == (len(times), 4, 9)
    for q, time in enumerate(times):
        known = int((days <= time).sum())
        np.testing.assert_allclose(found[q], slow_states(series, values, days, known, time, 4), atol=1e-4)


def test_what_comes_later_changes_no_bit():
    rng = np.random.default_rng(0)
    series, values, days = rng.integers(0, 3, 40), rng.normal(size=40), np.sort(rng.uniform(0, 90, 40))
    times = np.array([20.0, 50.0])
    before = value_states.value_states(series, values, days, ranges(days, times), SPANS, 3)
    later = days > 50
    changed = np.where(later, 1e6, values)
    after = value_states.value_states(series, changed, days, ranges(days, times), SPANS, 3)
    np.testing.assert_array_equal(after, before)


def test_the_trend_is_the_change_over_a_span_and_says_little_of_times_that_lie_close():
    days = np.linspace(0, 100, 51)
    line = np.zeros(51, np.int64), 0.02 * days - 1.0, days
    (state,) = value_states.value_states(*line, ranges(days, np.array([100.0])), (10.0, 100.0), 1)
    names = value_states.names(SPANS)
    assert len(names) == state.shape[1]
    trend = dict(zip(names, state[0], strict=True))
    assert trend["trend_100d"] == pytest.approx(2.0, rel=0.05) and trend["last"] == pytest.approx(1.0)
    close = np.array([99.0, 99.01])
    (state,) = value_states.value_states(
        np.zeros(2, np.int64), np.array([0.0, 3.0]), close, ranges(close, np.array([100.0])), SPANS, 1
    )
    steep = dict(zip(names, state[0], strict=True))
    assert 0 < steep["trend_10d"] < 2.0, (
        "three standard deviations within a quarter of an hour are no trend of ten days"
    )
