"""Offsets of times and windows by loops: the latest stretch that began before, and nothing later."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.data.formats.stretches import Stretch
from ehrwear_jax.data.formats.times import MINUTE_US
from ehrwear_jax.data.signals import local_time

stretches = st.lists(st.tuples(st.integers(0, 20), st.one_of(st.none(), st.integers(-840, 840))), max_size=8)


def make(pairs):
    return [Stretch(start, 1.0, "x", np.zeros(1), None, offset) for start, offset in pairs]


@given(pairs=stretches)
def test_the_offset_of_a_time_is_that_of_the_latest_stretch_that_began_before_it(pairs):
    for time in range(-1, 23):
        want = 0
        for start, offset in sorted(pairs, key=lambda pair: pair[0]):
            if start < time and offset is not None:
                want = offset
        got = local_time.offsets(make(pairs), np.array([time]))
        assert got.tolist() == [want] and got.dtype == np.int16
        known = [pair for pair in pairs if pair[0] < time]
        assert local_time.offsets(make(known), np.array([time])).tolist() == [want], "nothing later changes it"


@given(ends=st.lists(st.integers(0, 30), unique=True, max_size=8).map(sorted), seed=st.integers(0, 99))
def test_between_windows_the_last_one_that_ended_counts(ends, seed):
    offset_M = np.random.default_rng(seed).integers(-840, 841, len(ends)).astype(np.int16)
    times = np.arange(-1, 33)
    want = [next((int(o) for e, o in zip(ends[::-1], offset_M[::-1], strict=True) if e <= t), 0) for t in times]
    got = local_time.latest(np.array(ends, np.int64), offset_M, times)
    np.testing.assert_array_equal(got, np.array(want) * MINUTE_US)
    assert not local_time.latest(np.array(ends, np.int64), None, times).any()


def test_stretches_are_moved_to_the_local_clock_each_by_its_own_offset():
    rows = make([(0, 60), (10, None), (20, -30)])
    moved = local_time.on_local_clock(rows)
    assert [row.start_us for row in moved] == [60 * MINUTE_US, 10, 20 - 30 * MINUTE_US]
    assert {row.utc_offset_minutes for row in moved} == {None} and rows[0].start_us == 0
