"""States of series against loops in float64, by hypothesis; what a trend is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.models.joint import value_states

SPANS = (10.0, 100.0)


def slow_states(series, values, days, known, time, n_series):
    """[U, 2 + 5 S] of one time from the values before `known`."""
    out = np.full((n_series, 2 + 5 * len(SPANS)), np.nan)
    for u in range(n_series):
        mine = [k for k in range(known) if series[k] == u]
        if mine:
            out[u, :2] = values[mine[-1]], np.log1p(10 * (time - days[mine[-1]]) / SPANS[0])
        for s, span in enumerate(SPANS):
            inside = [k for k in mine if days[k] > time - span]
            if not inside:
                continue
            x, t = np.array([values[k] for k in inside]), np.array([days[k] for k in inside])
            found = [x.mean(), x.max(), x.min(), np.nan, np.log1p(len(x))]
            if t.max() > t.min():
                slope = ((t - t.mean()) * (x - x.mean())).mean() / (t.var() + (0.05 * span) ** 2)
                found[3] = np.clip(span * slope, -5, 5)
            out[u, 2 + 5 * s : 7 + 5 * s] = found
    return out


def ranges(days, times):
    """(lo [Q, S], hi [Q]) of the times."""
    lo = np.stack([np.searchsorted(days, times - span, side="right") for span in SPANS], axis=1)
    return lo, np.searchsorted(days, times, side="right")


def states(series, values, days, times, n_series):
    """value_states of every series at all times, as known then: [Q, U, G]."""
    lo, hi = ranges(days, times)
    pair_R, query_R = np.repeat(np.arange(n_series), len(times)), np.tile(np.arange(len(times)), n_series)
    asked = value_states.Asked(pair_R, times[query_R], lo[query_R].T, hi[query_R])
    found = value_states.value_states(series, values.astype(np.float64), days, asked, SPANS)
    assert found.dtype == np.float32
    return found.reshape(n_series, len(times), -1).transpose(1, 0, 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 3), st.integers(0, 12)), max_size=12),
    st.lists(st.integers(-5, 130), min_size=1, max_size=5),
)
def test_states_equal_loops(events, times):
    """Ties of time, series without a value, times before the first one and long after the last."""
    series, values, gaps = (np.array([e[k] for e in events], np.int64) for k in range(3))
    days, times = np.cumsum(gaps).astype(np.float64), np.sort(np.array(times, np.float64))
    found = states(series, values, days, times, 4)
    assert found.shape == (len(times), 4, 12)
    for q, time in enumerate(times):
        known = int((days <= time).sum())
        np.testing.assert_allclose(found[q], slow_states(series, values, days, known, time, 4), atol=1e-4)


def test_what_comes_later_changes_no_bit():
    rng = np.random.default_rng(0)
    series, values, days = rng.integers(0, 3, 40), rng.normal(size=40), np.sort(rng.uniform(0, 90, 40))
    times = np.array([20.0, 50.0])
    before = states(series, values, days, times, 3)
    later = days > 50
    changed = np.where(later, 1e6, values)
    after = states(series, changed, days, times, 3)
    np.testing.assert_array_equal(after, before)


def test_the_trend_is_the_change_over_a_span_and_says_little_of_times_that_lie_close():
    days, now = np.linspace(0, 100, 51), np.array([100.0])
    series, line = np.zeros(51, np.int64), 0.02 * days - 1.0
    (state,) = states(series, line, days, now, 1)
    names = value_states.names(SPANS)
    assert len(names) == state.shape[1]
    trend = dict(zip(names, state[0], strict=True))
    assert trend["trend_100d"] == pytest.approx(2.0, rel=0.05) and trend["last"] == pytest.approx(1.0)
    close, steep = np.array([99.0, 99.01]), np.array([0.0, 3.0])
    (state,) = states(series[:2], steep, close, now, 1)
    found = dict(zip(names, state[0], strict=True))
    assert 0 < found["trend_10d"] < 2.0, "what rises within minutes is no trend of ten days"


def slow_signal(value, seen, end_day, step_days, time):
    """[C, 1 + 3 S] of one time."""
    n_windows, n_steps, n_channels = value.shape
    out = np.full((n_channels, 1 + 3 * len(SPANS)), np.nan)
    for c in range(n_channels):
        mine = [(end_day[m], end_day[m] - step_days * (n_steps - 1 - k), float(value[m, k, c]))
                for m in range(n_windows) for k in range(n_steps) if seen[m, k, c] and end_day[m] <= time]  # fmt: skip
        if mine:
            out[c, 0] = mine[-1][2]
        for s, span in enumerate(SPANS):
            t, x = (np.array([step[k] for step in mine if step[0] > time - span]) for k in (1, 2))
            if len(x):
                out[c, 1 + 3 * s] = x.mean()
            if len(x) > 1:
                slope = ((t - t.mean()) * (x - x.mean())).mean() / (t.var() + (0.05 * span) ** 2)
                out[c, 2 + 3 * s : 4 + 3 * s] = x.std(), np.clip(span * slope, -5, 5)
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.floats(0.0, 1.0), st.integers(0, 99))
def test_states_of_signals_equal_loops(n_windows, n_steps, share, seed):
    """Windows without a seen step, queries before all windows and long after them."""
    rng = np.random.default_rng(seed)
    value = rng.normal(size=(n_windows, n_steps, 2))
    seen = rng.random(value.shape) < share
    end_day = np.cumsum(rng.choice([0.25, 1.0, 40.0], n_windows))
    times = np.sort(rng.uniform(-1, end_day[-1] + 60, 4))
    # the same windows as those of three contexts, the last of which has none
    cut = int(rng.integers(0, n_windows + 1))
    for bound in ((0, n_windows), (0, cut, n_windows, n_windows)):
        of_Q = np.sort(rng.integers(0, len(bound) - 1, 4))
        parts = [slice(bound[k], bound[k + 1]) for k in of_Q]
        found_ranges = [ranges(end_day[part], times[[q]]) for q, part in enumerate(parts)]
        lo, hi = (np.concatenate(x) for x in zip(*found_ranges, strict=True))
        contexts = np.array(bound), of_Q
        found = value_states.signal_states((value, seen), (end_day, 0.05), contexts, (lo, hi), SPANS)
        assert found.dtype == np.float32 and found.shape == (4, 2, len(value_states.signal_names(SPANS)))
        for q, (time, part) in enumerate(zip(times, parts, strict=True)):
            want = slow_signal(value[part], seen[part], end_day[part], 0.05, time)
            np.testing.assert_allclose(found[q], want, atol=1e-4)
