"""Computes features of wearable windows at each prediction time: levels, spreads and trends by recency.

Array suffixes: Q prediction times, N windows, C columns; NaN is unknown.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from ehrwear_jax.data.formats.times import DAY_US, MINUTE_US
from ehrwear_jax.models.tabular import timeline
from ehrwear_jax.models.tabular.event_features import COUNT, SINCE, VALUE, YEARS, Ranges, range_name

DAY_BINS = 4  # equal parts of the day for the time-of-day means
PARTS = ("mean", "std", "min", "max", "coverage")


def channels(columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """(channels with all PARTS, further summaries of windows) among the columns of a table of windows."""
    found = [c.removesuffix("__mean") for c in columns if c.endswith("__mean")]
    own = {f"{channel}__{part}" for channel in found for part in PARTS}
    if lacking := sorted(own - set(columns)):
        raise ValueError(f"windows: column {lacking[0]!r} is missing")
    return found, [c for c in columns if "__" in c and c not in own]


def column_names(columns: Sequence[str], ranges: Ranges = YEARS) -> list[tuple[str, str]]:
    """[(name, kind)] of the columns of `wear_features`.

    Per channel c and range r, such as 7d or all: wear__c__mean_r, __std_r (of window means), __trend_r (slope per
    day, from 3 windows on), __mean_<hours>_r (windows that end within those hours), __swing_r (the largest of these
    less the smallest), all over windows with a mean and weighted by coverage; __within_std_r (average of the windows'
    own), __min_r, __max_r, __coverage_r (average over recorded windows); __change_r (mean_r less mean_all). Per further
    summary s wear__s__mean_r. wear__n_windows_r, wear__worn_hours_r, wear__days_since_last, wear__days_since_first.
    """
    found, further = channels(columns)
    out = []
    for channel in found:
        for days in ranges.windows:
            features = ["mean", "std", "trend", *_hours(), "swing", "within_std", "min", "max", "coverage"]
            out += [(f"wear__{channel}__{f}_{range_name(days)}", VALUE) for f in features]
        out += [(f"wear__{channel}__change_{range_name(days)}", VALUE) for days in ranges.baselines]
    out += [(f"wear__{name}__mean_{range_name(days)}", VALUE) for name in further for days in ranges.windows]
    for days in ranges.windows:
        out += [(f"wear__n_windows_{range_name(days)}", COUNT), (f"wear__worn_hours_{range_name(days)}", COUNT)]
    return [*out, ("wear__days_since_last", SINCE), ("wear__days_since_first", SINCE)]


def _hours():
    return [f"mean_{24 * k / DAY_BINS:g}h_{24 * (k + 1) / DAY_BINS:g}h" for k in range(DAY_BINS)]


class _Windows:
    """The windows of the people of some prediction times, sorted; ranges of any subset of them."""

    def __init__(self, windows: pl.DataFrame, queries: pl.DataFrame, ranges: Ranges) -> None:
        self.days = ranges
        ids = queries["subject_id"].unique().sort()
        self.table = windows.filter(pl.col("subject_id").is_in(ids.implode())).sort(
            "subject_id", "time", maintain_order=True
        )
        self.subject_N = np.searchsorted(ids.to_numpy(), self.table["subject_id"].to_numpy())
        self.time_N = timeline.time_us(self.table["time"])
        self.subject_Q = np.searchsorted(ids.to_numpy(), queries["subject_id"].to_numpy())
        self.time_Q = timeline.time_us(queries["prediction_time"])
        self.n_subjects = len(ids)
        offset = self.table["utc_offset_minutes"].to_numpy() if "utc_offset_minutes" in windows.columns else 0
        self.local_N = self.time_N + np.asarray(offset, np.int64) * MINUTE_US

    def values(self, name: str) -> np.ndarray:
        """A column, float64 [N], NaN where null."""
        return self.table[name].cast(pl.Float64).to_numpy()

    def ranges(self, at_K: np.ndarray) -> dict[float | None, tuple[np.ndarray, np.ndarray]]:
        """{range: (lo, hi) [Q]} in a subset of the windows."""
        line = timeline.Groups(self.subject_N[at_K], self.time_N[at_K])
        now_Q = line.until(self.subject_Q, self.time_Q)
        return {days: (line.until(self.subject_Q, self.time_Q, days), now_Q) for days in self.days.windows}


def wear_features(
    windows: pl.DataFrame, queries: pl.DataFrame, window_hours: float, ranges: Ranges = YEARS
) -> np.ndarray:
    """float32 [Q, C], columns of column_names, from each person's windows that end by the prediction time.

    Args:
      windows: subject_id, time (the window's end), CHANNEL__PART of each channel and part, further summaries; where
        they are, worn_minutes and utc_offset_minutes.
      queries: subject_id, prediction_time. window_hours: length of a window.

    Raises:
      ValueError: a channel without one of PARTS, or a window without a time.
    """
    if windows["time"].null_count():
        raise ValueError("windows: a time is null")
    found, further = channels(windows.columns)
    rows, out = _Windows(windows, queries, ranges), []
    worn_N, hours_N = np.zeros(len(rows.time_N), bool), np.zeros(len(rows.time_N))
    for channel in found:
        coverage_N = rows.values(f"{channel}__coverage")
        worn_N |= np.isfinite(rows.values(f"{channel}__mean")) & (coverage_N > 0)
        hours_N = np.maximum(hours_N, np.nan_to_num(coverage_N) * window_hours)
        out += _channel(rows, channel)
    if "worn_minutes" in windows.columns:
        hours_N = rows.values("worn_minutes") / 60
    for name in further:
        value_N = rows.values(name)
        at_K = np.flatnonzero(np.isfinite(value_N))
        out += [_mean(value_N[at_K], *bounds) for bounds in rows.ranges(at_K).values()]
    for lo_Q, hi_Q in rows.ranges(np.arange(len(rows.time_N))).values():
        out += [(hi_Q - lo_Q).astype(np.float64), np.nan_to_num(timeline.reduce(np.add, hours_N, lo_Q, hi_Q))]
    at_K = np.flatnonzero(worn_N)
    start_Q, now_Q = rows.ranges(at_K)[None]
    for at_Q in (now_Q - 1, start_Q):
        out.append((rows.time_Q - timeline.take(rows.time_N[at_K], at_Q, now_Q > start_Q)) / DAY_US)
    return np.stack(out, axis=1).astype(np.float32)


def _mean(value_K, lo_Q, hi_Q):
    return timeline.reduce(np.add, value_K, lo_Q, hi_Q) / np.maximum(hi_Q - lo_Q, 1)


def _channel(rows: _Windows, channel: str) -> list[np.ndarray]:
    """The columns of a channel, float64 [Q] each."""
    parts = {part: rows.values(f"{channel}__{part}") for part in PARTS}
    at_K = np.flatnonzero(np.isfinite(parts["mean"]) & (parts["coverage"] > 0))
    levels, out = _Levels(rows, parts, at_K), []
    present = {part: np.flatnonzero(np.isfinite(parts[part])) for part in ("std", "min", "max", "coverage")}
    ranges = {part: rows.ranges(at) for part, at in present.items()}
    means = {}
    for days in rows.days.windows:
        means[days], *others = levels.of(days)
        out += [means[days], *others]
        for part, ufunc in (("std", np.add), ("min", np.minimum), ("max", np.maximum), ("coverage", np.add)):
            lo_Q, hi_Q = ranges[part][days]
            value_K = parts[part][present[part]]
            out.append(_mean(value_K, lo_Q, hi_Q) if ufunc is np.add else timeline.reduce(ufunc, value_K, lo_Q, hi_Q))
    return out + [means[days] - means[None] for days in rows.days.baselines]


class _Levels:
    """Weighted moments of a channel's window means.

    About the subject's first worn window: near the data, so that little cancels, and known at every time at which a
    range is not empty.
    """

    def __init__(self, rows: _Windows, parts: dict[str, np.ndarray], at_K: np.ndarray) -> None:
        self._ranges, subject_K, time_K = rows.ranges(at_K), rows.subject_N[at_K], rows.time_N[at_K]
        first_K = np.searchsorted(subject_K, subject_K, "left")
        start_Q, now_Q = self._ranges[None]
        self._origin_Q = timeline.take(parts["mean"][at_K], start_Q, now_Q > start_Q)
        self._weight_K = parts["coverage"][at_K]
        self._x_K = parts["mean"][at_K] - parts["mean"][at_K][first_K]
        self._day_K = (time_K - time_K[first_K]) / DAY_US
        # A window that ends at midnight, on the local clock, belongs to the day that it closes.
        bin_K = ((rows.local_N[at_K] - 1) % DAY_US) * DAY_BINS // DAY_US
        self._bins = [np.flatnonzero(bin_K == k) for k in range(DAY_BINS)]
        self._bin_ranges = [rows.ranges(at_K[inside]) for inside in self._bins]

    def of(self, days: float | None) -> list[np.ndarray]:
        """[mean, std, trend, means by time of day, swing] of a range."""
        lo_Q, hi_Q = self._ranges[days]
        weight, x, day = self._weight_K, self._x_K, self._day_K
        products = (weight, weight * x, weight * day, weight * x**2, weight * day**2, weight * day * x)
        w, wx, wt, wxx, wtt, wtx = (timeline.reduce(np.add, p, lo_Q, hi_Q) for p in products)
        std = np.sqrt(np.maximum(wxx / w - (wx / w) ** 2, 0))
        spread = wtt - wt**2 / w
        defined = (hi_Q - lo_Q >= 3) & (spread > 1e-9)
        trend = np.divide(wtx - wx * wt / w, spread, out=np.full(len(spread), np.nan), where=defined)
        by_hour = []
        for inside, ranges in zip(self._bins, self._bin_ranges, strict=True):
            of_bin = (timeline.reduce(np.add, p[inside], *ranges[days]) for p in (weight * x, weight))
            by_hour.append(self._origin_Q + np.divide(*of_bin))
        some: np.ndarray = ~np.isnan(np.stack(by_hour)).all(axis=0)
        low, high = (np.full(len(some), np.nan) for _ in range(2))
        low[some], high[some] = (f(np.stack(by_hour)[:, some], axis=0) for f in (np.nanmin, np.nanmax))
        return [self._origin_Q + wx / w, std, trend, *by_hour, high - low]
