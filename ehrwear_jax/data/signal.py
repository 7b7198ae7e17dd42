"""Wearable signals on a regular grid: range checks, pooling to a common step, windows that end at fixed clock times."""

import dataclasses

import numpy as np

from ehrwear_jax.data import overlap

DAY_US = 86_400_000_000


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """How a dense signal becomes windows.

    Attributes:
      channels: names, in the order of the last array axis.
      window_hours: length of a window; divides 24. Windows end at multiples of it on the recording's clock.
      step_minutes: pooled sampling interval; divides the window.
      min_coverage: a window exists if any channel has at least this share of its steps.
    """

    channels: tuple
    window_hours: int = 6
    step_minutes: int = 5
    min_coverage: float = 0.1

    def __post_init__(self):
        if 24 % self.window_hours or (self.window_hours * 60) % self.step_minutes:
            raise ValueError(f"window of {self.window_hours} h and step of {self.step_minutes} min do not divide a day")

    @property
    def steps(self):
        return self.window_hours * 60 // self.step_minutes


def pool_row(start_us, rate_hz, values_N, spec, low=-np.inf, high=np.inf):
    """Pools one recorded stretch to the grid.

    A sample is known only at its end, so it counts only in the window in which it ends. One that lasts longer than a
    step fills the steps that it covers there; shorter ones are averaged per step. Values outside [low, high] count as
    missing.

    Args:
      start_us: time of the first sample, microseconds since the epoch.
      rate_hz: samples per second.
      values_N: float array; NaN is missing.

    Returns:
      (step_M int64, sum_M f64, weight_M f64): grid step since the epoch, sum of samples, number of samples.
    """
    step_us = spec.step_minutes * 60_000_000
    values_N = np.asarray(values_N, np.float64)
    good_N = np.isfinite(values_N) & (values_N >= low) & (values_N <= high)
    period_us = 1e6 / rate_hz
    window_us = spec.window_hours * 3_600_000_000
    edge_us = overlap.sample_edges(start_us, rate_hz, len(values_N))
    last_N = edge_us[1:] - 1
    first_N = np.maximum(edge_us[:-1], last_N // window_us * window_us)
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
    step = np.concatenate(steps)
    return step, np.concatenate(totals), np.ones(len(step))


def window_subject(rows, spec, limits):
    """Windows of one person.

    Args:
      rows: iterable of (start_us, rate_hz, channel, values_N) or (..., device); see overlap.py for overlapping ones.
      spec: WindowSpec; rows of channels that it does not name are ignored.
      limits: {channel: (low, high)} plausible range, either may be None.

    Returns:
      (end_us_M int64, values_MxLxC float32 with NaN where missing), ordered by time.
    """
    return window_person(rows, spec, limits)[:2]


def window_person(rows, spec, limits):
    """As window_subject; returns also {name: count} of overlap.COUNTS."""
    step_us = spec.step_minutes * 60_000_000
    counts = dict.fromkeys(overlap.COUNTS, 0)
    of = {}
    for start_us, rate_hz, channel, values, *device in rows:
        if channel in spec.channels and len(values):
            of.setdefault((overlap.source(device[0] if device else None, rate_hz), channel), []).append(
                (start_us, rate_hz, values)
            )
    parts = []
    for (source, channel), stretches in of.items():
        stretches, n_left_out = overlap.without_repeats(stretches)
        counts["samples of overlapping stretches"] += n_left_out
        low, high = limits.get(channel, (None, None))
        low, high = -np.inf if low is None else low, np.inf if high is None else high
        for start_us, rate_hz, values in stretches:
            part = pool_row(start_us, rate_hz, values, spec, low, high)
            if len(part[0]):
                parts.append((source, spec.channels.index(channel), *part))
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, spec.steps, len(spec.channels)), np.float32), counts
    window_N = np.unique(np.concatenate([p[2] // spec.steps for p in parts]))
    sources = sorted({p[0] for p in parts})
    total = np.zeros((len(sources), len(window_N), spec.steps, len(spec.channels)))
    weight = np.zeros_like(total)
    for source, channel, step, value, count in parts:
        at = (sources.index(source), np.searchsorted(window_N, step // spec.steps), step % spec.steps, channel)
        np.add.at(total, at, value)
        np.add.at(weight, at, count)
    with np.errstate(invalid="ignore"):
        values = np.where(weight > 0, total / weight, np.nan).astype(np.float32)
    values, counts["steps of a further device"] = overlap.choose_source(values)
    covered = np.isfinite(values).mean(axis=1).max(axis=1) >= spec.min_coverage
    end_us = (window_N + 1) * spec.steps * step_us
    return end_us[covered], values[covered], counts


def summaries(values_MxLxC):
    """Mean, standard deviation, mean absolute step, minimum, maximum and coverage per window and channel.

    Returns:
      {name: float32 [M, C]}; NaN where a statistic needs more values than there are. A step is a difference of
      neighbouring grid points that are both observed.
    """
    seen = np.isfinite(values_MxLxC)
    count = seen.sum(axis=1)
    filled = np.where(seen, values_MxLxC, 0.0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=1) / count
        var = np.where(seen, (values_MxLxC - mean[:, None]) ** 2, 0.0).sum(axis=1) / count
        pair = seen[:, 1:] & seen[:, :-1]
        step = np.abs(np.where(pair, np.diff(values_MxLxC, axis=1), 0.0)).sum(axis=1) / pair.sum(axis=1)
        std = np.sqrt(np.where(count > 1, var, np.nan))
    low = np.where(seen, values_MxLxC, np.inf).min(axis=1, initial=np.inf)
    high = np.where(seen, values_MxLxC, -np.inf).max(axis=1, initial=-np.inf)
    out = {
        "mean": mean,
        "std": std,
        "mean_abs_step": step,
        "min": np.where(count > 0, low, np.nan),
        "max": np.where(count > 0, high, np.nan),
        "coverage": seen.mean(axis=1),
    }
    return {k: v.astype(np.float32) for k, v in out.items()}
