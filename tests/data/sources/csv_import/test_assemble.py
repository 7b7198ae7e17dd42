"""Samples stand at the times of their readings; nothing is made up, told early or lost without being counted."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.data.formats.stretches import Stretch
from ehrwear_jax.data.signals import derived_features, pulse
from ehrwear_jax.data.sources.csv_import import assemble
from ehrwear_jax.data.sources.csv_import.assemble import NO_END, NO_OFFSET, Series
from ehrwear_jax.data.sources.csv_import.mapping import BEATS, INFER, RATE, SINGLE, STEP, Sampling

S = 1_000_000
DAY_S = 86_400


def series(times_s, values, ends_s=None, offset=NO_OFFSET):
    times = np.round(np.asarray(times_s, np.float64) * S).astype(np.int64)
    ends = np.full(len(times), NO_END) if ends_s is None else np.round(np.asarray(ends_s) * S).astype(np.int64)
    offsets = np.broadcast_to(np.asarray(offset, np.int16), len(times)).copy()
    return Series(times, ends, offsets, np.asarray(values, np.float64))


def made(*arguments, sampling, duplicates="first", **options):
    return assemble.assemble(series(*arguments, **options), sampling, duplicates)


def points(pieces):
    """{time in s: value} of the samples that have one."""
    return {
        piece.start_us / S + k / piece.rate_hz: float(value)
        for piece in pieces
        for k, value in enumerate(piece.values_S)
        if value == value
    }


def test_a_fixed_rate_takes_jitter_and_cuts_at_gaps():
    rng = np.random.default_rng(0)
    k = np.delete(np.arange(500), [100, 101, *range(200, 300)])
    out = made(k / 50 + rng.uniform(-0.004, 0.004, len(k)), k, sampling=Sampling(RATE, 1 / 50))
    assert [len(p.values_S) for p in out.pieces] == [200, 200] and out.kept == len(k) and not out.dropped
    first, second = out.pieces
    assert np.isnan(first.values_S[100:102]).all() and np.isfinite(np.delete(first.values_S, [100, 101])).all()
    np.testing.assert_array_equal(second.values_S, np.arange(300, 500))
    assert abs(second.start_us / S - 6) < 0.005 and second.rate_hz == 50


def test_a_rate_that_is_declared_wrong_by_little_never_moves_a_reading_by_more_than_half_a_sample():
    times = np.arange(20_000) / 49.9
    out = made(times, times, sampling=Sampling(RATE, 1 / 50))
    at = points(out.pieces)
    assert max(abs(t - v) for t, v in at.items()) <= 0.5 / 50 + 2e-3  # float32 values


def test_the_rate_is_found_from_the_times():
    for step in (60.0, 1 / 54.74):
        times = np.delete(np.round(np.arange(3000) * step, 3), range(500, 520))  # rounded to ms, as phones do
        out = made(times, np.ones(len(times)), sampling=Sampling(INFER))
        assert out.pieces[0].rate_hz == pytest.approx(1 / step, rel=1e-5)
        assert sum(np.isfinite(p.values_S).sum() for p in out.pieces) >= len(times) * 0.999
    with pytest.raises(ValueError, match="irregular.*step_seconds"):
        made(np.cumsum(np.random.default_rng(1).exponential(5, 200)), np.ones(200), sampling=Sampling(INFER))
    lone = made([5], [1], sampling=Sampling(INFER))
    assert lone.pieces == [] and lone.dropped == Counter({assemble.LONE: 1}) and lone.kept == 0


def test_steps_hold_the_mean_of_what_falls_into_them():
    times = [0, 20, 59.9, 60, 185, 10_000]
    out = made(times, [1, 2, 6, 10, 7, 5], sampling=Sampling(STEP, 60.0))
    assert points(out.pieces) == {0: 3, 60: 10, 180: 7, 9960: 5}
    assert [len(p.values_S) for p in out.pieces] == [4, 1]  # more than 60 steps apart
    last = made(times, [1, 2, 6, 10, 7, 5], sampling=Sampling(STEP, 60.0, "last"))
    assert points(last.pieces) == {0: 6, 60: 10, 180: 7, 9960: 5}


def test_a_day_is_one_of_the_clock_at_the_place():
    """Two days west of Greenwich: the sample begins at midnight there."""
    midnight_utc = 5 * 3600
    out = made(
        [midnight_utc + 7 * 3600, midnight_utc + DAY_S + 60], [50, 52], sampling=Sampling(STEP, DAY_S), offset=-300
    )
    assert points(out.pieces) == {midnight_utc: 50, midnight_utc + DAY_S: 52} and out.pieces[0].offset == -300


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 1500), st.integers(0, 500)), min_size=1, max_size=20),
    st.sampled_from([30, 60, 900]),
)
def test_sums_that_are_spread_are_conserved(intervals, step):
    starts, lengths, values = np.array(sorted(intervals), float).T
    unique = np.unique(np.stack([starts, lengths]), axis=1, return_index=True)[1]
    starts, lengths, values = starts[unique], lengths[unique], values[unique]
    sampling = Sampling(STEP, float(step), "sum_per_minute")
    out = made(starts, values, starts + lengths, sampling=sampling)
    assert sum(points(out.pieces).values()) * step / 60 == pytest.approx(values.sum(), rel=1e-5)
    assert out.kept == len(values)


def test_a_state_is_that_in_the_middle_of_the_step_and_of_several_the_last_begun():
    out = made([0, 100, 130, 300], [1, 2, 3, 9], [600, 140, 290, 310], sampling=Sampling(STEP, 60.0, "last"))
    assert points(out.pieces) == dict(zip(range(0, 600, 60), [1, 1, 3, 3, 3, 1, 1, 1, 1, 1], strict=True))
    assert out.dropped == Counter({"too short for the middle of a step": 2}) and out.kept == 2


def test_readings_at_one_time():
    times, values = [0, 60, 60, 60, 120], [1, 2, 2, 5, 3]
    step = Sampling(STEP, 60.0)
    first = made(times, values, sampling=step)
    assert points(first.pieces)[60] == 2 and first.kept == 3
    assert first.dropped == Counter({assemble.REPEATED: 1, assemble.OTHER_VALUE: 1})
    last = made(times, values, sampling=step, duplicates="last")
    assert points(last.pieces)[60] == 5 and last.dropped == Counter({assemble.OTHER_VALUE: 2})
    mean = made(times, values, sampling=step, duplicates="mean")
    assert points(mean.pieces)[60] == 3 and mean.kept == 5 and not mean.dropped


def test_single_readings_and_changes_of_the_offset():
    single = made([3, 500], [1, 2], sampling=Sampling(SINGLE, 10.0))
    assert points(single.pieces) == {3: 1, 500: 2} and {p.rate_hz for p in single.pieces} == {0.1}
    moved = made(np.arange(4) * 60, [1, 2, 3, 4], sampling=Sampling(STEP, 60.0), offset=[60, 60, 0, 0])
    assert [(p.start_us / S, p.offset, len(p.values_S)) for p in moved.pieces] == [(0, 60, 2), (120, 0, 2)]


def test_long_stretches_are_cut_without_a_gap(monkeypatch):
    monkeypatch.setattr(assemble, "MAX_SAMPLES", 64)
    k = np.delete(np.arange(1000), range(120, 135))  # 128 is missing, where a piece would begin
    out = made(k / 10, k, sampling=Sampling(RATE, 0.1, gap_seconds=1000))
    assert max(len(p.values_S) for p in out.pieces) <= 64
    assert {round(t, 6): v for t, v in points(out.pieces).items()} == {i / 10: i for i in k}


@pytest.mark.parametrize("stamp", ["start", "end"])
def test_beat_intervals_keep_their_neighbours_and_are_never_told_early(stamp):
    rng = np.random.default_rng(2)
    interval = np.round(rng.normal(850, 30, 400))
    end = 1000 + np.cumsum(interval) / 1000
    keep = np.delete(np.arange(400), [150, 151, 152])
    time = (end if stamp == "end" else end - interval / 1000)[keep]
    out = made(time, interval[keep], sampling=Sampling(BEATS, stamp=stamp))
    np.testing.assert_array_equal(np.concatenate([p.values_S for p in out.pieces]), interval[keep])
    told = np.concatenate([p.start_us / S + np.arange(1, len(p.values_S) + 1) / p.rate_hz for p in out.pieces])
    assert (told - end[keep] > -1e-3).all() and (told - end[keep] < assemble.MAX_BEATS).all()
    edges = [(p.start_us, p.start_us + len(p.values_S) * S / p.rate_hz) for p in out.pieces]
    assert all(a[1] <= b[0] for a, b in zip(edges, edges[1:], strict=False))  # overlap.py would drop what overlaps

    rows = [Stretch(p.start_us, p.rate_hz, "x", p.values_S) for p in out.pieces]
    table, _ = derived_features.of_signal(rows, np.array([3600 * S]), 3600 * S, {}, "x", "intervals")
    found = dict(zip(derived_features.KINDS["intervals"], table[0], strict=True))
    whole = interval.copy()
    whole[[150, 151, 152]] = np.nan
    assert found["heart_rate_bpm"] == pytest.approx(pulse.heart_rate(pulse.trustworthy(whole)), rel=1e-3)
    assert found["rmssd_ms"] == pytest.approx(pulse.hrv(pulse.trustworthy(whole))["rmssd_ms"], rel=0.03)


def test_intervals_that_no_heart_makes_are_counted():
    out = made([1, 2], [100, 900], sampling=Sampling(BEATS))
    assert out.kept == 1 and out.dropped.total() == 1
    nothing = made([1], [0], sampling=Sampling(BEATS))
    assert nothing.pieces == [] and nothing.kept == 0
