"""Pools recorded stretches to windows on a regular grid, which end at fixed times of the recording's clock.

NaN is missing everywhere. A window is a function of the samples that are complete at its end and of no others.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from ehrwear_jax.data.formats.stretches import Limits, Stretch, channel_limits, sample_edges
from ehrwear_jax.data.formats.times import HOUR_US, MINUTE_US
from ehrwear_jax.data.signals import overlap


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """How a dense signal becomes windows.

    Attributes:
      channels: names, in the order of the last array axis.
      window_hours: length of a window; divides 24. Windows end at multiples of it on the recording's clock.
      step_minutes: pooled sampling interval; divides the window.
      min_coverage: a window exists if any channel has at least this share of its steps.
    """

    channels: tuple[str, ...]
    window_hours: int = 6
    step_minutes: int = 5
    min_coverage: float = 0.1

    def __post_init__(self) -> None:
        if 24 % self.window_hours or (self.window_hours * 60) % self.step_minutes:
            raise ValueError(f"window of {self.window_hours} h and step of {self.step_minutes} min do not divide a day")

    @property
    def steps(self) -> int:
        """Steps of a window."""
        return self.window_hours * 60 // self.step_minutes

    @property
    def step_us(self) -> int:
        """Length of a step, microseconds."""
        return self.step_minutes * MINUTE_US

    @property
    def window_us(self) -> int:
        """Length of a window, microseconds."""
        return self.window_hours * HOUR_US


def pool_row(
    start_us: int, rate_hz: float, values_N: ArrayLike, spec: WindowSpec, low: float = -np.inf, high: float = np.inf
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pools one recorded stretch to the grid.

    A sample is known only at its end, so it counts only in the window in which it ends. One that lasts longer than a
    step fills the steps that it covers there; shorter ones are averaged per step. Values outside [low, high] count as
    missing.

    Args:
      start_us: time of the first sample, microseconds since the epoch.
      rate_hz: samples per second.
      values_N: float [N]; NaN is missing.

    Returns:
      (step_M int64, sum_M float64, weight_M float64): grid step since the epoch, sum of samples, number of samples.
    """
    step_us = spec.step_us
    values_N = np.asarray(values_N, np.float64)
    good_N = np.isfinite(values_N) & (values_N >= low) & (values_N <= high)
    period_us = 1e6 / rate_hz
    if period_us == step_us and start_us % step_us == 0:  # one sample per step
        step_M = start_us // step_us + np.nonzero(good_N)[0]
        return step_M, values_N[good_N], np.ones(len(step_M))
    edge_us = sample_edges(start_us, rate_hz, len(values_N))
    last_N = edge_us[1:] - 1
    first_N = np.maximum(edge_us[:-1], last_N // spec.window_us * spec.window_us)
    if period_us <= step_us:
        step_N = first_N // step_us
        first = step_N[0]
        n = int(step_N[-1] - first) + 1
        total = np.bincount((step_N - first)[good_N], values_N[good_N], n)
        weight = np.bincount((step_N - first)[good_N], None, n).astype(np.float64)
        keep = weight > 0
        return first + np.nonzero(keep)[0], total[keep], weight[keep]
    steps, totals = [], []
    for first, last, value in zip(first_N[good_N], last_N[good_N], values_N[good_N], strict=True):
        covered = np.arange(first // step_us, last // step_us + 1)
        steps.append(covered)
        totals.append(np.full(len(covered), value))
    if not steps:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    step_M = np.concatenate(steps)
    return step_M, np.concatenate(totals), np.ones(len(step_M))


@dataclasses.dataclass(frozen=True)
class _Pooled:
    """A pooled stretch: its source (see overlap.source), its channel's index, and what pool_row returns."""

    source: overlap.Source
    channel: int
    step_M: np.ndarray
    sum_M: np.ndarray
    weight_M: np.ndarray


def window_person(
    rows: Iterable[Stretch], spec: WindowSpec, limits: Limits
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Windows of one person.

    Args:
      rows: recorded stretches, which may overlap (see overlap.py); those of channels that spec does not name are
        ignored.
      spec: the grid.
      limits: values outside the plausible range of their channel count as missing.

    Returns:
      (end_us_M int64, values_MxLxC float32 with NaN where missing, {name: count} of overlap.COUNTS), windows by time.
    """
    counts = dict.fromkeys(overlap.COUNTS, 0)
    parts = []
    for (channel, source), stretches in overlap.by_source(rows, spec.channels).items():
        stretches, n_left_out = overlap.without_repeats(stretches)
        counts["samples of overlapping stretches"] += n_left_out
        for start_us, rate_hz, values_N in stretches:
            pooled = pool_row(start_us, rate_hz, values_N, spec, *channel_limits(limits, channel))
            if len(pooled[0]):
                parts.append(_Pooled(source, spec.channels.index(channel), *pooled))
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, spec.steps, len(spec.channels)), np.float32), counts
    window_M, values_DxMxLxC = _mean_by_source(parts, spec)
    values_MxLxC, counts["steps of a further device"] = overlap.choose_source(values_DxMxLxC)
    coverage_M = np.isfinite(np.moveaxis(values_MxLxC, 2, 0)).mean(axis=2).max(axis=0)
    covered_M = coverage_M >= spec.min_coverage
    end_us_M = (window_M + 1) * spec.window_us
    return end_us_M[covered_M], values_MxLxC[covered_M], counts


def windows_before(end_M: np.ndarray, value_MxL: np.ndarray, before_us: int) -> np.ndarray:
    """Of each window the one that ended before_us earlier, NaN where it is not among them.

    Args:
      end_M: when windows end, increasing, microseconds. value_MxL: of each.
    """
    then_M = end_M - before_us
    at_M = np.searchsorted(end_M, then_M)
    there_M = end_M[np.minimum(at_M, len(end_M) - 1)] == then_M if len(end_M) else np.zeros(0, bool)
    return np.where(there_M[:, None], value_MxL[np.where(there_M, at_M, 0)], np.nan)


def _mean_by_source(parts: list[_Pooled], spec: WindowSpec) -> tuple[np.ndarray, np.ndarray]:
    """(windows with any value, counted from the epoch [M]; float32 [D, M, L, C] means per step, sources sorted)."""
    window_of = [part.step_M // spec.steps for part in parts]  # increasing in each part, all but always
    window_M = np.unique(np.concatenate([w[np.append(True, w[1:] != w[:-1])] for w in window_of]))
    position_W = np.searchsorted(window_M, np.arange(window_M[0], window_M[-1] + 1))
    sources = sorted({part.source for part in parts})
    # steps last: sums over them run along memory
    shape = (len(sources), len(spec.channels), len(window_M) * spec.steps)
    total, weight = np.zeros(shape), np.zeros(shape)
    for part, window in zip(parts, window_of, strict=True):
        at = position_W[window - window_M[0]] * spec.steps + part.step_M % spec.steps
        total_G, weight_G = (x[sources.index(part.source), part.channel] for x in (total, weight))
        if at[-1] - at[0] == len(at) - 1 and (at[1:] > at[:-1]).all():  # without a gap
            total_G[at[0] : at[-1] + 1] += part.sum_M
            weight_G[at[0] : at[-1] + 1] += part.weight_M
        elif (at[1:] > at[:-1]).all():  # no step twice
            total_G[at] += part.sum_M
            weight_G[at] += part.weight_M
        else:
            np.add.at(total_G, at, part.sum_M)
            np.add.at(weight_G, at, part.weight_M)
    with np.errstate(invalid="ignore"):
        values = (total / weight).astype(np.float32)  # 0 / 0: NaN
    return window_M, np.moveaxis(values.reshape(*shape[:2], len(window_M), spec.steps), 1, 3)
