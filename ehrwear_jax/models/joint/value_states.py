"""Computes the state of series at many times at once: last value, and mean, maximum, minimum and trend of late.

Axes: N known values, Q times that ask, S spans, U series, G = 1 + 4 S statistics.
"""

import numpy as np

STATISTICS = ("mean", "max", "min", "trend")  # of each span, behind the last value
TREND_SHARE = 0.05  # part of a span; times that lie closer together say little of a trend
TREND_CLIP = 5.0


def names(spans_days: tuple[float, ...]) -> tuple[str, ...]:
    """Names of the statistics in order: last, then mean, max, min and trend of each span."""
    return ("last", *(f"{name}_{days:g}d" for days in spans_days for name in STATISTICS))


def over(ufunc: np.ufunc, value_KxN: np.ndarray, lo_R: np.ndarray, hi_R: np.ndarray) -> np.ndarray:
    """ufunc over value_KxN[:, lo:hi] of each range, none of which is empty or reaches beyond N - 1: float64 [K, R].

    The last column is a place to stop at. Each range is reduced by itself: differences of running sums would let what
    comes later change the last bits.
    """
    bounds = np.stack([lo_R, hi_R], axis=1).ravel()
    return ufunc.reduceat(value_KxN, bounds, axis=1)[:, ::2]


def value_states(
    class_N: np.ndarray,
    value_N: np.ndarray,
    day_N: np.ndarray,
    range_Qx1S: tuple[np.ndarray, np.ndarray],
    spans_days: tuple[float, ...],
    n_classes: int,
) -> np.ndarray:
    """The statistics of each series at each time.

    The trend is a least-squares slope times the span: by how much the series changes over a span at this rate. It is
    shrunk where the values' times lie close together, by a ridge of (TREND_SHARE span)^2 beside their variance, and
    clipped; of one time alone it is unknown.

    Args:
      class_N: series of each value, in order of time. value_N: on a scale of about 1. day_N: days, near zero.
      range_Qx1S: (lo [Q, S], hi [Q]): values lo to hi lie within the span and are known at the time; the last value is
        that of all before hi.

    Returns:
      float32 [Q, n_classes, 1 + 4 S], NaN where unknown.
    """
    lo_QxS, hi_Q = range_Qx1S
    n, n_spans = len(class_N), lo_QxS.shape[1]
    out_QxUxG = np.full((len(hi_Q), n_classes, 1 + len(STATISTICS) * n_spans), np.nan, np.float32)
    if not n:
        return out_QxUxG
    order = np.argsort(class_N, kind="stable")
    class_P = np.unique(class_N)
    key_N = class_N[order] * (n + 1) + order
    # the moments whose sums over a range say all but maximum and minimum; a place to stop at behind them
    value_N, day_N = (np.append(x[order], 0.0) for x in (value_N, day_N))
    moment_4xN = np.stack([value_N, day_N, day_N**2, day_N * value_N])

    def until(at_Q):
        """Where, among the sorted values, those of each class before at_Q end: [Q, P]."""
        return np.searchsorted(key_N, class_P[None] * (n + 1) + at_Q[:, None])

    stop_QxP = until(hi_Q)
    q, p = np.nonzero(stop_QxP > until(np.zeros_like(hi_Q)))
    out_QxUxG[q, class_P[p], 0] = value_N[stop_QxP[q, p] - 1]
    for s, days in enumerate(spans_days):
        start_QxP, first = until(lo_QxS[:, s]), 1 + len(STATISTICS) * s
        q, p = np.nonzero(stop_QxP > start_QxP)
        if len(q):
            found = _of_span(moment_4xN, start_QxP[q, p], stop_QxP[q, p], days)
            out_QxUxG[q, class_P[p], first : first + len(STATISTICS)] = found.T
    return out_QxUxG


def _of_span(moment_4xN, lo_R, hi_R, days):
    """STATISTICS of the ranges lo to hi: [4, R]."""
    mean, day, square, product = over(np.add, moment_4xN, lo_R, hi_R) / (hi_R - lo_R)
    variance = np.maximum(square - day**2, 0.0)
    trend = days * (product - day * mean) / (variance + (TREND_SHARE * days) ** 2)
    apart = moment_4xN[1, hi_R - 1] > moment_4xN[1, lo_R]
    trend = np.where(apart, np.clip(trend, -TREND_CLIP, TREND_CLIP), np.nan)
    (high,), (low,) = (over(f, moment_4xN[:1], lo_R, hi_R) for f in (np.maximum, np.minimum))
    return np.stack([mean, high, low, trend])
