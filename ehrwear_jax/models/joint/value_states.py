"""Computes the state of series at many times at once: last value, and mean, extremes, trend and count of late.

Axes: N known values, Q times that ask, S spans, U series, G = 2 + 5 S statistics.
"""

from typing import NamedTuple

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


class Asked(NamedTuple):
    """Pairs of a series and a time at which its state is asked for; pairs of a series lie together, by time.

    Attributes:
      series_R, day_R: of each pair. lo_SxR, hi_R: among the values of all series, those from lo to hi lie within the
        span and are known at the time; the last value is that of all before hi.
    """

    series_R: np.ndarray
    day_R: np.ndarray
    lo_SxR: np.ndarray
    hi_R: np.ndarray


def value_states(
    series_N: np.ndarray, value_N: np.ndarray, day_N: np.ndarray, asked: Asked, spans_days: tuple[float, ...]
) -> np.ndarray:
    """The statistics of series at times.

    The trend is a least-squares slope times the span: by how much the series changes over a span at this rate. It is
    shrunk where the values' times lie close together, by a ridge of (TREND_SHARE span)^2 beside their variance, and
    clipped; of one time alone it is unknown. The time since the last value is log(1 + days / (SINCE_SHARE first span)),
    the count of a span log(1 + n), unknown where there is none.

    Args:
      series_N: int64, 0, 1, ...: series of each value; a series is in order of time. value_N: on a scale of about 1.
      day_N: times of the values, near zero.

    Returns:
      float32 [R, G], NaN where unknown.
    """
    (series_R, day_R, lo_SxR, hi_R), n = asked, len(series_N)
    out_RxG = np.full((len(hi_R), len(names(spans_days))), np.nan, np.float32)
    if not n:
        return out_RxG
    order = np.argsort(series_N, kind="stable")
    key_N, base_R = series_N[order] * (n + 1) + order, series_R * (n + 1)
    # the moments whose sums over a range say all but maximum and minimum; a place to stop at behind them
    moment_4xN = np.zeros((4, n + 1))
    moment_4xN[0, :n], moment_4xN[1, :n] = value_N[order], day_N[order]
    np.multiply(moment_4xN[1], moment_4xN[1], out=moment_4xN[2])
    np.multiply(moment_4xN[1], moment_4xN[0], out=moment_4xN[3])
    start_R, stop_R = key_N.searchsorted(base_R), key_N.searchsorted(base_R + hi_R)
    at = np.flatnonzero(stop_R > start_R)
    last = stop_R[at] - 1
    out_RxG[at, 0] = moment_4xN[0, last]
    out_RxG[at, 1] = np.log1p(np.maximum(day_R[at] - moment_4xN[1, last], 0) / (SINCE_SHARE * spans_days[0]))
    for s, span in enumerate(spans_days):
        start_R, first = key_N.searchsorted(base_R + lo_SxR[s]), len(ANY_TIME) + len(STATISTICS) * s
        at = np.flatnonzero(stop_R > start_R)
        if len(at):
            lo, hi = start_R[at], stop_R[at]
            # successive times of a series often see the same values
            other = np.ones(len(at), bool)
            other[1:] = (lo[1:] != lo[:-1]) | (hi[1:] != hi[:-1])
            found_5xR = _of_span(moment_4xN, lo[other], hi[other], span)
            out_RxG[at, first : first + len(STATISTICS)] = found_5xR.T[np.cumsum(other) - 1]
    return out_RxG


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
    days: tuple[np.ndarray, float],
    contexts: tuple[np.ndarray, np.ndarray],
    range_Qx1S: tuple[np.ndarray, np.ndarray],
    spans_days: tuple[float, ...],
) -> np.ndarray:
    """The statistics of each channel at each time: mean, standard deviation and trend of its steps, and the last one.

    Axes: M windows of K contexts, L steps, C channels. The trend is that of `value_states`.

    Args:
      signal: (values, whether they are seen), [M, L, C].
      days: (when each window ends [M], increasing in a context, near zero; days of a step).
      contexts: (int64 [K + 1], where the windows of each context begin and those of the last one end; which context
        each time is of [Q]).
      range_Qx1S: (lo [Q, S], hi [Q]): of the windows of its context, lo to hi end within the span and are known at the
        time.

    Returns:
      float32 [Q, C, 1 + 3 S], NaN where unknown.
    """
    (value_MxLxC, seen_MxLxC), (bound_K, of_Q), (lo_QxS, hi_Q) = signal, contexts, range_Qx1S
    until, begin_K, n_channels = _sums_until(signal, days, bound_K), bound_K[:-1], value_MxLxC.shape[2]
    out = np.full((len(hi_Q), n_channels, 1 + len(SIGNAL_STATISTICS) * len(spans_days)), np.nan, np.float32)
    # the last seen step of each channel: in which window, found before hi, and there the last step
    place_Mx1 = np.arange(len(seen_MxLxC))[:, None]
    window = np.maximum.accumulate(np.where(seen_MxLxC.any(axis=1), place_Mx1, -1), axis=0)
    window_QxC = np.concatenate([np.full((1, n_channels), -1), window])[begin_K[of_Q] + hi_Q]
    q, c = np.nonzero(window_QxC >= begin_K[of_Q][:, None])  # others are of earlier contexts
    m = window_QxC[q, c]
    step_MxC = seen_MxLxC.shape[1] - 1 - np.argmax(seen_MxLxC[:, ::-1], axis=1)
    out[q, c, 0] = value_MxLxC[m, step_MxC[m, c], c]
    at_Q = begin_K[of_Q] + of_Q  # of the zeros before the first window of a context
    for s, span in enumerate(spans_days):
        first = 1 + len(SIGNAL_STATISTICS) * s
        inside = until[:, at_Q + hi_Q] - until[:, at_Q + np.minimum(lo_QxS[:, s], hi_Q)]
        out[..., first : first + len(SIGNAL_STATISTICS)] = _of_signal(inside, span)
    return out


def _sums_until(signal, days, bound_K):
    """Sums over the seen steps of a context's windows before each, of six moments: [6, M + K, C].

    Count, value, its square, time, its square, time times value; a context begins with zeros.
    """
    (value_MxLxC, seen_MxLxC), (end_day_M, step_days) = signal, days
    n_windows, n_steps, n_channels = value_MxLxC.shape
    ago_L = step_days * np.arange(n_steps - 1, -1, -1.0)
    x, seen = np.where(seen_MxLxC, value_MxLxC, np.float32(0)).astype(np.float64), seen_MxLxC.astype(np.float64)
    count, total, square = seen.sum(1), x.sum(1), np.einsum("mlc,mlc->mc", x, x)
    ago, ago2 = (np.einsum("mlc,l->mc", seen, ago_L**k) for k in (1, 2))
    end_Mx1 = end_day_M[:, None]
    time, time2 = end_Mx1 * count - ago, end_Mx1**2 * count - 2 * end_Mx1 * ago + ago2
    product = end_Mx1 * total - np.einsum("mlc,l->mc", x, ago_L)
    moment = np.stack([count, total, square, time, time2, product])
    until, at = np.zeros((6, n_windows + len(bound_K) - 1, n_channels)), bound_K.tolist()
    for k, (a, b) in enumerate(zip(at, at[1:], strict=False)):
        np.cumsum(moment[:, a:b], axis=1, out=until[:, a + k + 1 : b + k + 1])
    return until


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
