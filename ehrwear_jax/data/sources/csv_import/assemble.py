"""Makes stretches of the readings of one channel, person and device: lattices, steps, single samples, beats.

A stretch ends where there is no reading for longer than Sampling.gap_us, and where the offset of the clock at the place
changes; shorter gaps are NaN.
"""

import dataclasses
from collections import Counter
from typing import NamedTuple

import numpy as np

from ehrwear_jax.data.formats.times import MINUTE_US
from ehrwear_jax.data.sources.csv_import import mapping
from ehrwear_jax.data.sources.csv_import.mapping import Sampling

NO_OFFSET = -32768
NO_END = np.iinfo(np.int64).min
MAX_SAMPLES = 1 << 18  # of a stretch; what comes after begins the next one
# Intervals between beats stand one by one at this rate, in stretches of at most MAX_BEATS, which end with their last
# beat. The rate is above every heart's, so that no interval is told before it ended, and the same for everybody, so
# that all stretches of a device count as one source (signals/overlap.py).
BEATS_HZ = 4.0
MAX_BEATS = 128
_BEAT_TOLERANCE = 0.25  # of an interval, by which the next one may begin earlier or later than it ended
# A rate is inferred if this share of the times between neighbours are whole multiples of their median, up to _SLACK of
# it, and half of them are one.
_REGULAR, _SLACK = 0.9, 0.1
_EXACT = 0.95
REPEATED = "the same time and value as another reading"
OTHER_VALUE = "the same time as another reading, with another value"
LONE = "a reading without another one from which the rate can be inferred"


class Series(NamedTuple):
    """Readings of one channel, person and device, in the order in which they were read.

    Attributes:
      time_N, end_N: int64 microseconds; NO_END: the reading is of one moment.
      offset_N: int16 minutes, NO_OFFSET: not known.
      value_N: float64.
    """

    time_N: np.ndarray
    end_N: np.ndarray
    offset_N: np.ndarray
    value_N: np.ndarray

    def take(self, which: np.ndarray | slice) -> "Series":
        """Some of the readings."""
        return Series(*(x[which] for x in self))


class Piece(NamedTuple):
    """A stretch: start_us in the clock of the readings, rate_hz, values_S float32, offset in minutes or NO_OFFSET."""

    start_us: int
    rate_hz: float
    values_S: np.ndarray
    offset: int


@dataclasses.dataclass
class Made:
    """What became of readings.

    Attributes:
      pieces: stretches in order of time.
      dropped: {reason: readings}.
      kept: readings that are in a sample.
    """

    pieces: list[Piece]
    dropped: Counter[str]
    kept: int = 0


def assemble(series: Series, sampling: Sampling, duplicates: str = "first") -> Made:
    """Stretches of one channel, person and device.

    Args:
      series: in the order in which it was read.
      sampling: how readings become samples.
      duplicates: which of several readings at one time is used: first, last, or mean of them.

    Raises:
      ValueError: the rate is to be inferred and the times are irregular; says how they are.
    """
    made, n_read = Made([], Counter()), len(series.time_N)
    series = _in_order(series, duplicates, made.dropped)
    if sampling.kind == mapping.INFER:
        if len(series.time_N) < 2:
            made.dropped[LONE] += len(series.time_N)
            return made
        sampling = dataclasses.replace(sampling, kind=mapping.RATE, seconds=infer_step_us(series.time_N) / 1e6)
    changes = np.flatnonzero(np.diff(series.offset_N)) + 1
    edges = [0, *changes.tolist(), len(series.time_N)]
    make = {mapping.RATE: _at_rate, mapping.STEP: _in_steps, mapping.SINGLE: _alone, mapping.BEATS: _beats}
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        if a < b:
            made.pieces += make[sampling.kind](series.take(slice(a, b)), sampling, made.dropped)
    made.kept = n_read - made.dropped.total()
    made.pieces.sort(key=lambda piece: piece.start_us)
    return made


def _in_order(series: Series, duplicates: str, dropped: Counter[str]) -> Series:
    """By time and end, one reading for each."""
    order = np.lexsort((series.end_N, series.time_N))  # stable: the order of reading decides between equals
    series = series.take(order)
    if not len(order):
        return series
    new = np.append(True, (np.diff(series.time_N) != 0) | (np.diff(series.end_N) != 0))
    if new.all():
        return series
    group_N = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(order)) - 1
    chosen = series.take(last if duplicates == "last" else first)
    if duplicates == "mean":
        return chosen._replace(value_N=np.bincount(group_N, series.value_N) / np.bincount(group_N))
    same_N = series.value_N == chosen.value_N[group_N]
    n_other = int((~same_N).sum())
    dropped.update({REPEATED: len(order) - len(first) - n_other, OTHER_VALUE: n_other})
    return chosen


def infer_step_us(time_N: np.ndarray) -> float:
    """Microseconds between the samples of a sensor with a fixed rate, from increasing times with gaps.

    Raises:
      ValueError: the times are irregular.
    """
    between = np.diff(time_N)
    between = between[between > 0].astype(np.float64)
    median = float(np.median(between))
    near = between[between <= mapping.GAP_SAMPLES * median]
    steps = np.rint(near / median)
    regular = np.abs(near / median - steps) <= _SLACK
    if regular.mean() < _REGULAR or (steps == 1).mean() < 0.5:
        raise ValueError(
            f"its times are irregular (the median distance is {median / 1e6:g} s, and {regular.mean():.0%} are "
            "multiples of it); say step_seconds, single_seconds or rate_hz"
        )
    if (near % median == 0).mean() >= _EXACT:
        return median
    return float(near[regular].sum() / steps[regular].sum())  # the median of rounded times is rounded too


def _at_rate(series: Series, sampling: Sampling, dropped: Counter[str]) -> list[Piece]:
    """Each reading at the nearest place of a lattice that begins with its stretch; several in a place: their mean."""
    step_us, pieces = sampling.seconds * 1e6, []
    for part in _without_gaps(series, sampling.gap_us(step_us)):
        place_N = np.rint((part.time_N - part.time_N[0]) / step_us).astype(np.int64)
        pieces += _filled(int(part.time_N[0]), step_us, place_N, part.value_N, int(part.offset_N[0]))
    return pieces


def _in_steps(series: Series, sampling: Sampling, dropped: Counter[str]) -> list[Piece]:
    """Steps begin at whole multiples of their length on the clock at the place, since 1970."""
    step_us = round(sampling.seconds * 1e6)
    offset = int(series.offset_N[0])
    shift = (0 if offset == NO_OFFSET else offset) * MINUTE_US
    begin_N = series.time_N + shift
    lasting = (series.end_N != NO_END) & (series.end_N > series.time_N)
    end_N = np.where(lasting, series.end_N + shift, begin_N + 1)
    first_N, last_N = begin_N // step_us, (end_N - 1) // step_us
    n_N = last_N - first_N + 1
    index_M = np.repeat(np.arange(len(n_N)), n_N)
    place_M = np.arange(len(index_M)) - np.repeat(np.cumsum(n_N) - n_N, n_N) + first_N[index_M]
    value_M = series.value_N[index_M]
    if sampling.combine == "sum_per_minute":
        inside_M = np.minimum(end_N[index_M], (place_M + 1) * step_us) - np.maximum(begin_N[index_M], place_M * step_us)
        value_M = value_M * inside_M / (end_N - begin_N)[index_M] / (step_us / MINUTE_US)
    if sampling.combine == "last":
        middle_M = place_M * step_us + step_us // 2  # the state in the middle of the step, if it lasts
        there = ~lasting[index_M] | ((begin_N[index_M] <= middle_M) & (middle_M < end_N[index_M]))
        lost = len(n_N) - len(np.unique(index_M[there]))
        if lost:
            dropped["too short for the middle of a step"] += lost
        place_M, value_M = place_M[there], value_M[there]
    if not len(place_M):
        return []
    places, group_M = np.unique(place_M, return_inverse=True)
    combined: np.ndarray = np.empty(len(places))
    if sampling.combine == "last":
        combined[group_M] = value_M  # of several the last stays
    else:
        combined = np.bincount(group_M, value_M)
        if sampling.combine == "mean":
            combined = combined / np.bincount(group_M)
    pieces = []
    cuts = np.flatnonzero(np.diff(places) * step_us > sampling.gap_us(step_us)) + 1
    for place, value in zip(np.split(places, cuts), np.split(combined, cuts), strict=True):
        pieces += _filled(int(place[0]) * step_us - shift, step_us, place - place[0], value, offset)
    return pieces


def _alone(series: Series, sampling: Sampling, dropped: Counter[str]) -> list[Piece]:
    """A stretch of one sample for each reading."""
    rate_hz = 1 / sampling.seconds
    rows = zip(
        series.time_N.tolist(), series.value_N.astype(np.float32)[:, None], series.offset_N.tolist(), strict=True
    )
    return [Piece(time, rate_hz, value, offset) for time, value, offset in rows]


def _beats(series: Series, sampling: Sampling, dropped: Counter[str]) -> list[Piece]:
    """Successive intervals, ms; see BEATS_HZ."""
    possible_N = series.value_N >= 1000 / BEATS_HZ
    if not possible_N.all():
        dropped[f"an interval of less than {1000 / BEATS_HZ:g} ms"] += int((~possible_N).sum())
        series = series.take(possible_N)
    if not len(series.time_N):
        return []
    length_N = np.rint(series.value_N * 1000)
    end_N = series.time_N + (length_N if sampling.stamp == "start" else 0)
    begin_N = end_N - length_N
    apart_N = np.abs(begin_N[1:] - end_N[:-1]) > _BEAT_TOLERANCE * length_N[1:]
    pieces = []
    for run in np.split(np.arange(len(end_N)), np.flatnonzero(apart_N) + 1):
        for a in range(0, len(run), MAX_BEATS):
            part = run[a : a + MAX_BEATS]
            start_us = round(float(end_N[part[-1]]) - len(part) * 1e6 / BEATS_HZ)
            values = series.value_N[part].astype(np.float32)
            pieces.append(Piece(start_us, BEATS_HZ, values, int(series.offset_N[part[0]])))
    return pieces


def _without_gaps(series: Series, gap_us: float) -> list[Series]:
    cuts = [0, *(np.flatnonzero(np.diff(series.time_N) > gap_us) + 1).tolist(), len(series.time_N)]
    return [series.take(slice(a, b)) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def _filled(start_us: int, step_us: float, place_N: np.ndarray, value_N: np.ndarray, offset: int) -> list[Piece]:
    """Pieces of at most MAX_SAMPLES samples: the mean of the values in each place, NaN in the others."""
    pieces, rate_hz = [], 1e6 / step_us
    for first in range(0, int(place_N[-1]) + 1, MAX_SAMPLES):
        inside = slice(*np.searchsorted(place_N, (first, first + MAX_SAMPLES)))
        place, value = place_N[inside] - first, value_N[inside]
        if not len(place):
            continue
        lead = int(place[0])  # a piece begins with a value
        count = np.bincount(place - lead)
        total = np.bincount(place - lead, value)
        with np.errstate(invalid="ignore"):
            values = np.where(count > 0, total / count, np.nan).astype(np.float32)
        pieces.append(Piece(start_us + round((first + lead) * step_us), rate_hz, values, offset))
    return pieces
