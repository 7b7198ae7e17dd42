"""Windows against loops over single samples, and what a window knows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.data.formats.stretches import Stretch
from ehrwear_jax.data.formats.times import HOUR_US, MINUTE_US
from ehrwear_jax.data.signals import grid

SPEC = grid.WindowSpec(("hr", "steps"), window_hours=6, step_minutes=30, min_coverage=0.0)
PERIODS_S = (60.0, 90.0, 7.3, 1800.0, 2000.0, 2400.0, 3600.0, 21600.0, 86400.0, 604800.0)


def window(rows, spec, limits):
    """(end_us_M, values_MxLxC) of rows whose device may be left out."""
    return grid.window_person([Stretch(*row) for row in rows], spec, limits)[:2]


def edges(start, rate, i):
    return start + round(i * 1e6 / rate), start + round((i + 1) * 1e6 / rate)


def slow_once(rows):
    """[(start, rate, channel, values, device)] without what an earlier stretch of the same source has, by loops."""
    kept = []
    for start, rate, channel, values, device in sorted(rows, key=lambda row: row[0]):
        values = np.array(values, np.float64)
        for i in range(len(values)):
            begin, end = edges(start, rate, i)
            for other_start, other_rate, other_channel, other_values, other_device in kept:
                if (channel, device, rate) != (other_channel, other_device, other_rate):
                    continue
                near = int(((begin + end) // 2 - other_start) * rate / 1e6)
                for j in range(max(near - 2, 0), min(near + 3, len(other_values))):
                    other_begin, other_end = edges(other_start, other_rate, j)
                    if other_begin <= (begin + end) // 2 < other_end <= end and math.isfinite(other_values[j]):
                        values[i] = math.nan
        kept.append((start, rate, channel, values, device))
    return kept


def slow_windows(rows, spec, limits):
    """{window end: [L, C] float64} by loops over samples and steps."""
    step_us, window_us = spec.step_minutes * MINUTE_US, spec.window_hours * HOUR_US
    cells = {}
    for start, rate, channel, values, device in slow_once([(*row, None)[:5] for row in rows]):
        if channel not in spec.channels:
            continue
        low, high = limits.get(channel, (-math.inf, math.inf))
        for i, value in enumerate(values):
            if not (math.isfinite(value) and low <= value <= high):
                continue
            begin, end = edges(start, rate, i)
            number = (end - 1) // window_us  # the window in which the sample is complete
            at = max(begin, number * window_us)
            last = end - 1 if 1e6 / rate > step_us else at
            source = (device is None, device or "", -rate)
            for step in range(at // step_us, last // step_us + 1):
                mine = cells.setdefault((number, spec.channels.index(channel)), {}).setdefault(source, {})
                total, count = mine.get(step, (0.0, 0))
                mine[step] = (total + value, count + 1)
    out = {}
    for (number, channel), sources in cells.items():
        values = out.setdefault((number + 1) * window_us, np.full((spec.steps, len(spec.channels)), np.nan))
        for source in sorted(sources, key=lambda s: (-len(sources[s]), s)):
            for step, (total, count) in sources[source].items():
                if np.isnan(values[step - number * spec.steps, channel]):
                    values[step - number * spec.steps, channel] = total / count
    return {end: x for end, x in sorted(out.items()) if np.isfinite(x).mean(axis=0).max() >= spec.min_coverage}


@st.composite
def stretches(draw):
    """Recorded rows of one person on both sides of the epoch, at any phase of the clock."""
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        period = draw(st.sampled_from(PERIODS_S))
        start = draw(st.integers(-3 * 24 * HOUR_US, 3 * 24 * HOUR_US))
        if draw(st.booleans()):
            start = start // (15 * MINUTE_US) * 15 * MINUTE_US
        rng = np.random.default_rng(draw(st.integers(0, 10**6)))
        n = int(min(draw(st.integers(1, 400)), 3 * 86400 / period + 2))
        values = rng.normal(70, 30, n)
        values[rng.random(n) < 0.2] = np.nan
        channel, device = (
            draw(st.sampled_from(("hr", "steps", "other"))),
            draw(st.sampled_from((None, "ring", "watch"))),
        )
        rows.append((start, 1.0 / period, channel, values.astype(np.float32), device))
    return rows


LIMITS = {"hr": (30.0, 110.0), "steps": (-math.inf, 100.0)}


@settings(max_examples=100)
@given(rows=stretches(), min_coverage=st.sampled_from([0.0, 0.1, 0.5]))
def test_windows_equal_loops_over_samples(rows, min_coverage):
    spec = grid.WindowSpec(SPEC.channels, 6, 30, min_coverage)
    end_M, values_MxLxC = window(rows, spec, LIMITS)
    want = slow_windows(rows, spec, LIMITS)
    assert end_M.tolist() == list(want) and end_M.dtype == np.int64
    assert values_MxLxC.dtype == np.float32 and values_MxLxC.shape[1:] == (12, 2)
    for got, expected in zip(values_MxLxC, want.values(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@settings(max_examples=100)
@given(rows=stretches(), cut=st.integers(-3 * 24 * HOUR_US, 4 * 24 * HOUR_US))
def test_windows_that_ended_do_not_know_what_was_recorded_later(rows, cut):
    """Only samples that were complete at the cut are kept; no bit of a window that ended by then changes."""
    whole_end, whole = window(rows, SPEC, LIMITS)
    known = []
    for start, rate, channel, values, device in rows:
        n = sum(start + round((i + 1) * 1e6 / rate) <= cut for i in range(len(values)))
        known.append((start, rate, channel, values[:n], device))
    part_end, part = window(known, SPEC, LIMITS)
    np.testing.assert_array_equal(part_end[part_end <= cut], whole_end[whole_end <= cut])
    np.testing.assert_array_equal(part[part_end <= cut], whole[whole_end <= cut])


def test_a_long_sample_stands_only_in_the_window_in_which_it_ends():
    day = 24 * HOUR_US
    end_M, values = window([(0, 1 / (7 * 86400), "hr", [3.0])], SPEC, {})
    assert end_M.tolist() == [7 * day] and np.all(values[0, :, 0] == 3.0)
    # a sample from 05:00 to 07:00 is known at 07:00: the steps 06:00-07:00 of the second window
    end_M, values = window([(5 * HOUR_US, 1 / 7200, "hr", [3.0])], SPEC, {})
    assert end_M.tolist() == [12 * HOUR_US]
    np.testing.assert_array_equal(np.isfinite(values[0, :, 0]), [True] * 2 + [False] * 10)
    # one that ends exactly with the window belongs to it
    end_M, _ = window([(5 * HOUR_US, 1 / 3600, "hr", [3.0])], SPEC, {})
    assert end_M.tolist() == [6 * HOUR_US]


def test_a_short_sample_across_the_end_of_a_window_is_known_in_the_next():
    begin = 6 * HOUR_US - 30_000_000  # 05:59:30, one minute long
    end_M, values = window([(begin, 1 / 60, "hr", [3.0])], SPEC, {})
    assert end_M.tolist() == [12 * HOUR_US]
    np.testing.assert_array_equal(np.nonzero(np.isfinite(values[0, :, 0]))[0], [0])


def test_short_samples_are_averaged_by_their_number_also_across_rows():
    rows = [(0, 1 / 60, "hr", [1.0, 2.0, 3.0]), (10 * MINUTE_US, 1 / 60, "hr", [10.0]), (0, 1 / 60, "other", [9.0])]
    _, values = window(rows, SPEC, {})
    assert values[0, 0, 0] == 4.0 and np.isnan(values[0, 1:]).all() and np.isnan(values[0, :, 1]).all()


def test_limits_are_inclusive_and_each_may_be_infinite():
    rows = [(0, 1 / 1800, "hr", [29.9, 30.0, 200.0, 200.1])]
    for limit, want in (
        ((30.0, 200.0), [False, True, True, False]),
        ((-math.inf, 200.0), [True, True, True, False]),
        ((30.0, math.inf), [False, True, True, True]),
        ((-math.inf, math.inf), [True] * 4),
    ):
        _, values = window(rows, SPEC, {"hr": limit})
        np.testing.assert_array_equal(np.isfinite(values[0, :4, 0]), want)


@pytest.mark.parametrize(("n", "kept"), [(2, False), (3, True)])
def test_one_channel_with_the_coverage_makes_a_window(n, kept):
    spec = grid.WindowSpec(("hr", "steps"), 6, 30, min_coverage=0.25)
    end_M, values = window([(0, 1 / 1800, "steps", np.ones(n))], spec, {})
    assert len(end_M) == len(values) == int(kept)


def test_nothing_recorded_gives_no_window():
    for rows in ([], [(0, 1 / 60, "hr", [np.nan, np.nan])], [(0, 1.0, "other", [1.0])], [(0, 1.0, "hr", [])]):
        end_M, values = window(rows, SPEC, {})
        assert end_M.shape == (0,) and values.shape == (0, 12, 2)


@pytest.mark.parametrize(("hours", "minutes"), [(5, 5), (6, 7), (48, 5)])
def test_windows_that_do_not_divide_the_day_are_refused(hours, minutes):
    with pytest.raises(ValueError, match="do not divide a day"):
        grid.WindowSpec(("hr",), hours, minutes)
