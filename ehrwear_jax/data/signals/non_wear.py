"""Finds when a device was not worn, takes its samples of that time out, and counts the minutes that are left.

Rules, "channel:rule" in `config.prepare.non_wear`:

    counts        activity counts: runs of zeros, rest_activity.non_wear_counts (Choi 2011).
    acceleration  three axes, "x,y,z:acceleration" in g, mg or m/s2: the sensor lies still,
                  accelerometry.still_blocks (van Hees 2013).
    flag          the device's own: 0 is not worn, anything else is. The channel keeps its values.
    auto          counts for each channel in counts per minute, acceleration for each three NAME_x, NAME_y, NAME_z.

A minute with a heart rate (unit bpm or beats/min) of the same device counts like one with movement. ENMO and other
norms have no rule: a sleeper's is as still as that of a device in a drawer.

A minute is judged at the end of its window, by what was recorded up to then: a run that is too short there counts as
worn in this window, and if it goes on, as not worn from the next one's beginning. Nothing later changes a window. What
is found takes away the samples of all channels of the device. Samples longer than an hour sum up time worn and not
worn: they stay, and show no wear either.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ehrwear_jax.data.formats import units
from ehrwear_jax.data.formats.stretches import Limits, Stretch, channel_limits, sample_edges
from ehrwear_jax.data.formats.times import HOUR_US, MINUTE_US
from ehrwear_jax.data.signals import accelerometry, grid, overlap, rest_activity

AUTO = "auto"
KINDS = ("counts", "acceleration", "flag")
COUNT_UNITS = ("counts/min", "count/min", "cpm")
HEART_UNITS = ("bpm", "beats/min")
_AXES = ("_x", "_y", "_z")
_ABOVE_ZERO = float(np.finfo(np.float32).tiny)


class Rules(NamedTuple):
    """How non-wear is found.

    Attributes:
      found_by: (kind, channels) of each rule. heart: channels of the heart rate.
      in_g: {channel of an acceleration rule: factor that brings its unit to g}.
      min_minutes: shortest run of zero counts that is not worn.
    """

    found_by: tuple[tuple[str, tuple[str, ...]], ...]
    heart: tuple[str, ...]
    in_g: Mapping[str, float]
    min_minutes: int

    @property
    def channels(self) -> tuple[str, ...]:
        """All channels that the rules read."""
        return tuple(dict.fromkeys([*(c for _, names in self.found_by for c in names), *self.heart]))

    @property
    def flags(self) -> tuple[str, ...]:
        """Channels that are flags of wear."""
        return tuple(c for kind, names in self.found_by if kind == "flag" for c in names)


def parse(texts: Sequence[str], unit_of: Mapping[str, str], min_minutes: int = 90) -> Rules:
    """Reads the texts of the config.

    Args:
      texts: "channel:rule" each, or "auto".
      unit_of: {declared channel: its unit}.

    Raises:
      ValueError: no such rule or channel, not three axes, axes in no unit of acceleration.
    """
    found: dict[tuple[str, tuple[str, ...]], None] = {}
    for text in texts:
        if text == AUTO:
            found |= dict.fromkeys(_automatic(unit_of))
            continue
        names, _, kind = text.rpartition(":")
        channels, where = tuple(names.split(",")), f"config.prepare.non_wear holds {text!r}"
        if kind not in KINDS or not names:
            raise ValueError(f"{where}, expected 'auto' or 'channel:rule' with a rule of {', '.join(KINDS)}")
        if unknown := set(channels) - set(unit_of):
            raise ValueError(
                f"{where}: no channel {sorted(unknown)} in metadata/channels.parquet; there are {sorted(unit_of)}"
            )
        if len(channels) != (3 if kind == "acceleration" else 1):
            raise ValueError(f"{where}: the rule takes {'three axes' if kind == 'acceleration' else 'one channel'}")
        if kind == "acceleration" and None in [units.conversion(unit_of[c], "g") for c in channels]:
            raise ValueError(f"{where}: the axes are in {[unit_of[c] for c in channels]}, which are not acceleration")
        found[kind, channels] = None
    axes = {c for kind, names in found for c in names if kind == "acceleration"}
    in_g = {c: (units.conversion(unit_of[c], "g") or (1.0, 0.0))[0] for c in sorted(axes)}
    heart = tuple(c for c, unit in unit_of.items() if unit in HEART_UNITS) if found else ()
    return Rules(tuple(found), heart, in_g, min_minutes)


def _automatic(unit_of: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for channel, unit in unit_of.items():
        if unit in COUNT_UNITS:
            yield "counts", (channel,)
    for three in three_axes(unit_of):
        yield "acceleration", three


def three_axes(unit_of: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Each three of the declared channels that are NAME_x, NAME_y and NAME_z in a unit of acceleration."""
    threes = [tuple(c.removesuffix(_AXES[0]) + axis for axis in _AXES) for c in unit_of if c.endswith(_AXES[0])]
    return [three for three in threes if all(units.conversion(unit_of.get(c, ""), "g") for c in three)]


def remove(rows: Iterable[Stretch], rules: Rules, window_us: int, limits: Limits) -> list[Stretch]:
    """The stretches of one person with NaN where their device was not worn.

    Args:
      rows: all channels that the rules read, and those that are to be freed of time not worn.
      rules: as `parse` returns.
      window_us: length of the windows, a multiple of an hour.
      limits: values outside the plausible range of their channel count as missing.
    """
    rows = list(rows)
    if not rules.found_by:
        return rows
    of_device: dict[str | None, list[Stretch]] = {}
    for row in rows:
        of_device.setdefault(row.device, []).append(row)
    off = {device: _minutes_off(mine, rules, window_us, limits) for device, mine in of_device.items()}
    flags = set(rules.flags)
    return [row if row.channel in flags else _without(row, off[row.device], window_us) for row in rows]


def _minutes_off(rows: list[Stretch], rules: Rules, window_us: int, limits: Limits) -> np.ndarray:
    """Half-open ranges [R, 2] int64, microseconds, of the minutes in which one device was not worn."""
    hours = window_us // HOUR_US
    found = [np.zeros(0, np.int64)]
    for kind, channels in rules.found_by:
        if not any(row.channel in channels for row in rows):
            continue
        read = rules.heart if kind == "acceleration" else (*channels, *rules.heart)
        spec = grid.WindowSpec(read, hours, step_minutes=1, min_coverage=0.0)
        if kind == "acceleration":
            minutes = _still_minutes(rows, channels, rules, spec, limits)
        else:
            end_M, value_MxLxC, _ = grid.window_person(rows, spec, limits)
            off_MxL = value_MxLxC[..., 0] == 0
            if kind == "counts":
                beats_MxL = np.isfinite(value_MxLxC[..., 1:]).any(axis=2)
                off_MxL = _quiet(end_M, value_MxLxC[..., 0], beats_MxL, rules.min_minutes)
            minutes = _numbers(end_M, off_MxL)
        found.append(minutes)
    minute = np.sort(np.concatenate(found))
    is_first = np.append(True, np.diff(minute) > 1)[: len(minute)]
    is_last = np.append(is_first[1:], True)[: len(minute)]
    return np.stack([minute[is_first], minute[is_last] + 1], axis=1) * MINUTE_US


def _numbers(end_M: np.ndarray, flag_MxL: np.ndarray) -> np.ndarray:
    """The flagged minutes of windows, counted from the epoch."""
    m, minute = np.nonzero(flag_MxL)
    return end_M[m] // MINUTE_US - flag_MxL.shape[1] + minute


def _quiet(end_M: np.ndarray, counts_MxL: np.ndarray, beats_MxL: np.ndarray, min_minutes: int) -> np.ndarray:
    """bool [M, L]: rest_activity.non_wear_counts of all that is known at the end of each window.

    A run is long enough, or not, by the min_minutes before it at most, and a spike is judged by the minutes around it:
    what lies further back decides nothing.
    """
    n_steps = counts_MxL.shape[1]
    moved_MxL = np.where(beats_MxL & (counts_MxL == 0), 1.0, counts_MxL)
    back = min_minutes + rest_activity.QUIET_MINUTES + rest_activity.SPIKE_MINUTES
    parts = [grid.windows_before(end_M, moved_MxL, k * n_steps * MINUTE_US) for k in range(-(-back // n_steps), 0, -1)]
    known_MxK = np.concatenate([*parts, moved_MxL], axis=1)[:, -(back + n_steps) :]
    flag_MxL = np.zeros(counts_MxL.shape, bool)
    for m in np.flatnonzero((known_MxK == 0).sum(axis=1) >= min_minutes // 2):  # a run has few spikes
        flag_MxL[m] = rest_activity.non_wear_counts(known_MxK[m], min_minutes)[-n_steps:]
    return flag_MxL


def _still_minutes(
    rows: list[Stretch], axes: tuple[str, ...], rules: Rules, spec: grid.WindowSpec, limits: Limits
) -> np.ndarray:
    """Minutes, counted from the epoch, of blocks in which three axes are still and the channels of spec are silent."""
    cell_us = round(accelerometry.CELL_MINUTES * MINUTE_US)
    axis_cells = [_cells(rows, axis, rules.in_g[axis], cell_us, spec.window_us, limits) for axis in axes]
    window_M = np.unique(np.concatenate([cell_K for cell_K, _ in axis_cells]) * cell_us // spec.window_us)
    if not len(window_M):
        return np.zeros(0, np.int64)
    n_cells, pad = spec.window_us // cell_us, accelerometry.CELLS_AROUND
    # cells around each window: those behind its end are not known yet and stay empty
    number_MxK = (window_M * n_cells)[:, None] + np.arange(-pad, n_cells + pad)
    cells = [np.full((*number_MxK.shape, 3), fill) for fill in accelerometry.EMPTY_CELL]
    for a, (cell_K, parts) in enumerate(axis_cells):
        if len(cell_K):
            at_MxK = np.minimum(np.searchsorted(cell_K, number_MxK), len(cell_K) - 1)
            known_MxK = (cell_K[at_MxK] == number_MxK) & (np.arange(-pad, n_cells + pad) < n_cells)
            for whole, part in zip(cells, parts, strict=True):
                whole[..., a][known_MxK] = part[at_MxK[known_MxK]]
    still_MxB = accelerometry.still_blocks(accelerometry.Cells(*cells))
    end_us_M, per_block = (window_M + 1) * spec.window_us, round(2 * accelerometry.CELL_MINUTES)
    end_K, value_KxLxC, _ = grid.window_person(rows, spec, limits)  # of the heart rate
    beats_KxB = np.isfinite(value_KxLxC).any(axis=2).reshape(len(end_K), spec.steps // per_block, per_block).sum(axis=2)
    _, at_M, at_K = np.intersect1d(end_us_M, end_K, assume_unique=True, return_indices=True)
    still_MxB[at_M] &= beats_KxB[at_K] <= rest_activity.SPIKE_MINUTES
    return _numbers(end_us_M, np.repeat(still_MxB, per_block, axis=1))


def _cells(
    rows: list[Stretch], axis: str, in_g: float, cell_us: int, window_us: int, limits: Limits
) -> tuple[np.ndarray, accelerometry.Cells]:
    """(cells, counted from the epoch, int64 [K] increasing; what is known of each, [K]) of one axis of a device."""
    numbers, parts = [np.zeros(0, np.int64)], [accelerometry.Cells(*np.zeros((6, 0)))]
    low, high = channel_limits(limits, axis)
    for stretches in overlap.by_source(rows, (axis,)).values():
        for start_us, rate_hz, values_N in overlap.without_repeats(stretches)[0]:
            edge_N = sample_edges(start_us, rate_hz, len(values_N))
            # a sample belongs where grid.pool_row puts it
            cell_N = np.maximum(edge_N[:-1], (edge_N[1:] - 1) // window_us * window_us) // cell_us
            good_N = np.isfinite(values_N) & (values_N >= low) & (values_N <= high)
            value_N, cell_N = values_N[good_N].astype(np.float64) * in_g, cell_N[good_N]
            first = np.flatnonzero(np.append(True, cell_N[1:] != cell_N[:-1])[: len(cell_N)])
            if len(first):
                numbers.append(cell_N[first])
                parts.append(accelerometry.summarise_cells(value_N, first, 1 / rate_hz))
    number, cells = np.concatenate(numbers), accelerometry.Cells(*map(np.concatenate, zip(*parts, strict=True)))
    cell_K, at = np.unique(number, return_inverse=True)
    out = accelerometry.Cells(*(np.full(len(cell_K), fill) for fill in accelerometry.EMPTY_CELL))
    for total, part, add in zip(out, cells, accelerometry.JOIN_CELLS, strict=True):
        add.at(total, at, part)
    return cell_K, out


def _without(row: Stretch, off_Rx2: np.ndarray, window_us: int) -> Stretch:
    """The stretch with NaN in place of samples all of whose minutes, as grid.pool_row finds them, were not worn."""
    end_us = row.start_us + round(len(row.values_N) * 1e6 / row.rate_hz)
    off_Rx2 = off_Rx2[(off_Rx2[:, 1] > row.start_us) & (off_Rx2[:, 0] < end_us)]
    if not len(off_Rx2) or _sums_up(row):
        return row
    edge_N = sample_edges(row.start_us, row.rate_hz, len(row.values_N))
    begin_N = np.maximum(edge_N[:-1], (edge_N[1:] - 1) // window_us * window_us)
    last_N = begin_N if 1e6 / row.rate_hz <= MINUTE_US else edge_N[1:] - 1  # in the last minute of each
    values_N = np.array(row.values_N)
    for a, b in zip(np.searchsorted(begin_N, off_Rx2[:, 0]), np.searchsorted(last_N, off_Rx2[:, 1]), strict=True):
        values_N[a:b] = np.nan
    return row._replace(values_N=values_N)


def _sums_up(row: Stretch) -> bool:
    """Whether the samples last longer than an hour, but for rounding of the rate."""
    return 1e6 / row.rate_hz > 1.001 * HOUR_US


def recorded_minutes(
    rows: Iterable[Stretch], rules: Rules, window_us: int, limits: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """In how many minutes of each window any channel has a plausible value, a flag of wear one above zero.

    Returns:
      (end_us_K, minutes_K) int64, windows by time. A sample of at most an hour lies in the minutes that it covers in
      the window in which it ends.
    """
    spec = grid.WindowSpec((), window_us // HOUR_US, step_minutes=1)
    found = []
    for row in rows:
        low, high = channel_limits(limits, row.channel)
        low = max(low, _ABOVE_ZERO) if row.channel in rules.flags else low
        if len(row.values_N) and not _sums_up(row):
            minute_N = grid.pool_row(row.start_us, row.rate_hz, row.values_N, spec, low, high)[0]
            found += [minute_N] if len(minute_N) else []
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    window_of = [minute_N // spec.steps for minute_N in found]
    window_K = np.unique(np.concatenate([w[np.append(True, w[1:] != w[:-1])] for w in window_of]))
    begin_W = np.searchsorted(window_K, np.arange(window_K[0], window_K[-1] + 1)) * spec.steps
    seen = np.zeros(len(window_K) * spec.steps, bool)
    for minute_N, window_N in zip(found, window_of, strict=True):
        seen[begin_W[window_N - window_K[0]] + minute_N - window_N * spec.steps] = True
    return (window_K + 1) * window_us, seen.reshape(len(window_K), spec.steps).sum(axis=1)


def minutes_of_windows(recorded: tuple[np.ndarray, np.ndarray], end_us_M: np.ndarray) -> np.ndarray:
    """int16 [M]: the minutes, as `recorded_minutes` returns them, of the windows that end at end_us_M; 0 for others."""
    end_us_K, minutes_K = recorded
    at_M = np.searchsorted(end_us_K, end_us_M)
    there_M = np.append(end_us_K, -1)[at_M] == end_us_M
    return np.where(there_M, np.append(minutes_K, 0)[at_M], 0).astype(np.int16)
