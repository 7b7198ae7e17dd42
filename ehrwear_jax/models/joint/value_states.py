"""Computes the state of series at many times at once: last value, and mean, extremes, trend and count of late.

Axes: N known values, Q times that ask, S spans, U series, G = 2 + 5 S statistics.
"""

import numpy as np

ANY_TIME = ("last", "since")  # the last value, and how long ago it was
STATISTICS = ("mean", "max", "min", "trend", "count")  # of each span, behind those
SINCE_SHARE = 0.1  # part of the first span that is the unit of the logarithm of the time since
TREND_SHARE = 0.05  # part of a span; times that lie closer together say little of a trend
TREND_CLIP = 5.0


def names(spans_days: tuple[float, ...]) -> tuple[str, ...]:
    """Names of the statistics in order: last, since, then mean, max, min, trend and count of each span."""
    return (*ANY_TIME, *(f"{name}_{days:g}d" for days in spans_days for name in STATISTICS))


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
    days: tuple[np.ndarray, np.ndarray],
    range_Qx1S: tuple[np.ndarray, np.ndarray],
    spans_days: tuple[float, ...],
    n_classes: int,
) -> np.ndarray:
    """The statistics of each series at each time.

    The trend is a least-squares slope times the span: by how much the series changes over a span at this rate. It is
    shrunk where the values' times lie close together, by a ridge of (TREND_SHARE span)^2 beside their variance, and
    clipped; of one time alone it is unknown. The time since the last value is log(1 + days / (SINCE_SHARE first span)),
    the count of a span log(1 + n), unknown where there is none.

    Args:
      class_N: series of each value, in order of time. value_N: on a scale of about 1.
      days: (day_N of the values, day_Q of the times), near zero.
      range_Qx1S: (lo [Q, S], hi [Q]): values lo to hi lie within the span and are known at the time; the last value is
        that of all before hi.

    Returns:
      float32 [Q, n_classes, G], NaN where unknown.
    """
    (lo_QxS, hi_Q), (day_N, day_Q), n = range_Qx1S, days, len(class_N)
    out_QxUxG = np.full((len(hi_Q), n_classes, len(names(spans_days))), np.nan, np.float32)
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
    last = stop_QxP[q, p] - 1
    out_QxUxG[q, class_P[p], 0] = value_N[last]
    out_QxUxG[q, class_P[p], 1] = np.log1p(np.maximum(day_Q[q] - day_N[last], 0) / (SINCE_SHARE * spans_days[0]))
    for s, span in enumerate(spans_days):
        start_QxP, first = until(lo_QxS[:, s]), len(ANY_TIME) + len(STATISTICS) * s
        q, p = np.nonzero(stop_QxP > start_QxP)
        if len(q):
            found = _of_span(moment_4xN, start_QxP[q, p], stop_QxP[q, p], span)
            out_QxUxG[q, class_P[p], first : first + len(STATISTICS)] = found.T
    return out_QxUxG


def _of_span(moment_4xN, lo_R, hi_R, days):
    """STATISTICS of the ranges lo to hi: [5, R]."""
    mean, day, square, product = over(np.add, moment_4xN, lo_R, hi_R) / (hi_R - lo_R)
    variance = np.maximum(square - day**2, 0.0)
    trend = days * (product - day * mean) / (variance + (TREND_SHARE * days) ** 2)
    apart = moment_4xN[1, hi_R - 1] > moment_4xN[1, lo_R]
    trend = np.where(apart, np.clip(trend, -TREND_CLIP, TREND_CLIP), np.nan)
    (high,), (low,) = (over(f, moment_4xN[:1], lo_R, hi_R) for f in (np.maximum, np.minimum))
    return np.stack([mean, high, low, trend, np.log1p(hi_R - lo_R)])


# ------------------------------------------------------------------------------------------------- signals

SIGNAL_STATISTICS = ("mean", "spread", "trend")  # of each span, behind the last value


def signal_names(spans_days: tuple[float, ...]) -> tuple[str, ...]:
    """Names of the statistics of a channel in order: last, then mean, spread and trend of each span."""
    return ("last", *(f"{name}_{days:g}d" for days in spans_days for name in SIGNAL_STATISTICS))


def signal_states(
    signal: tuple[np.ndarray, np.ndarray],
    end_day_M: np.ndarray,
    step_days: float,
    range_Qx1S: tuple[np.ndarray, np.ndarray],
    spans_days: tuple[float, ...],
) -> np.ndarray:
    """The statistics of each channel at each time: mean, standard deviation and trend of its steps, and the last one.

    Axes: M windows, L steps, C channels. The trend is that of `value_states`.

    Args:
      signal: (values, whether they are seen), [M, L, C]. end_day_M: when each window ends, increasing, near zero.
      range_Qx1S: (lo [Q, S], hi [Q]): windows lo to hi end within the span and are known at the time.

    Returns:
      float32 [Q, C, 1 + 3 S], NaN where unknown.
    """
    (value_MxLxC, seen_MxLxC), (lo_QxS, hi_Q) = signal, range_Qx1S
    n_windows, n_steps, n_channels = value_MxLxC.shape
    ago_L = step_days * np.arange(n_steps - 1, -1, -1.0)
    x, seen = np.where(seen_MxLxC, value_MxLxC, 0.0).astype(np.float64), seen_MxLxC.astype(np.float64)
    count, total, square = seen.sum(1), x.sum(1), np.einsum("mlc,mlc->mc", x, x)
    ago, ago2 = (np.einsum("mlc,l->mc", seen, ago_L**k) for k in (1, 2))
    end_Mx1 = end_day_M[:, None]
    time, time2 = end_Mx1 * count - ago, end_Mx1**2 * count - 2 * end_Mx1 * ago + ago2
    product = end_Mx1 * total - np.einsum("mlc,l->mc", x, ago_L)
    moment = np.stack([count, total, square, time, time2, product])
    until = np.concatenate([np.zeros((6, 1, n_channels)), np.cumsum(moment, axis=1)], axis=1)
    out = np.full((len(hi_Q), n_channels, 1 + len(SIGNAL_STATISTICS) * len(spans_days)), np.nan, np.float32)
    # the last seen step of each channel: in which window, found before hi, and there the last step
    window = np.maximum.accumulate(np.where(count > 0, np.arange(n_windows)[:, None], -1), axis=0)
    window_QxC = np.concatenate([np.full((1, n_channels), -1), window])[hi_Q]
    step_MxC = n_steps - 1 - np.argmax(seen_MxLxC[:, ::-1], axis=1)
    q, c = np.nonzero(window_QxC >= 0)
    m = window_QxC[q, c]
    out[q, c, 0] = value_MxLxC[m, step_MxC[m, c], c]
    for s, days in enumerate(spans_days):
        first, inside = 1 + len(SIGNAL_STATISTICS) * s, until[:, hi_Q] - until[:, np.minimum(lo_QxS[:, s], hi_Q)]
        out[..., first : first + len(SIGNAL_STATISTICS)] = _of_signal(inside, days)
    return out


def _of_signal(moment_6xQxC, days):
    """SIGNAL_STATISTICS of sums over steps, [Q, C, 3]; NaN where there is no step."""
    count = moment_6xQxC[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, square, time, time2, product = moment_6xQxC[1:] / count
    apart = np.maximum(time2 - time**2, 0.0)
    trend = days * (product - time * mean) / (apart + (TREND_SHARE * days) ** 2)
    several = count > 1
    spread = np.where(several, np.sqrt(np.maximum(square - mean**2, 0.0)), np.nan)
    return np.stack([mean, spread, np.where(several, np.clip(trend, -TREND_CLIP, TREND_CLIP), np.nan)], axis=-1)
