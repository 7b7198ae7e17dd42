"""Finds, for each prediction time, the ranges of a subject's rows that end at it.

A range of d days before a prediction time t holds the rows with t - d < time <= t; nothing behind t is ever in one.
Array suffixes: Q prediction times, N rows of a table, P pairs of a prediction time and a group of rows.
"""

import numpy as np
import polars as pl

from ehrwear_jax.data.formats.times import DAY_US


def time_us(series: pl.Series) -> np.ndarray:
    """Microseconds since the epoch, int64 [N]."""
    return series.cast(pl.Datetime("us")).to_physical().to_numpy()


class Groups:
    """Rows sorted by (group, time), searchable by (group, time) through one integer key.

    Args:
      group_N: int, ascending. time_N: microseconds, ascending within a group.

    Attributes:
      time_N: as given. first_N: position of the first row of each row's group.
    """

    def __init__(self, group_N: np.ndarray, time_N: np.ndarray) -> None:
        self.time_N = time_N
        self.first_N = np.searchsorted(group_N, group_N, "left")
        self._times = np.unique(time_N)
        self._key_N = self._key(group_N, time_N)

    def _key(self, group: np.ndarray, time: np.ndarray) -> np.ndarray:
        # The rank of a time is the number of distinct row times up to it; 0 precedes every row.
        return group.astype(np.int64) * (len(self._times) + 1) + np.searchsorted(self._times, time, "right")

    def until(self, group_P: np.ndarray, time_P: np.ndarray, days_back: float | None = 0) -> np.ndarray:
        """Position behind the last row of each group up to time - days_back; None: the group's first row. int64 [P]."""
        if days_back is None:
            return np.searchsorted(self._key_N, group_P.astype(np.int64) * (len(self._times) + 1), "right")
        return np.searchsorted(self._key_N, self._key(group_P, time_P - round(days_back * DAY_US)), "right")


def reduce(ufunc: np.ufunc, values_N: np.ndarray, lo_P: np.ndarray, hi_P: np.ndarray) -> np.ndarray:
    """ufunc over values[lo:hi] of each pair, float64 [P], NaN where empty.

    Reduces each range by itself: differences of running sums would let rows outside a range (the
    future, other subjects) change the last bits.
    """
    padded = np.append(values_N.astype(np.float64), 0.0)
    bounds = np.stack([lo_P, np.maximum(lo_P, hi_P)], axis=1).ravel()
    return np.where(lo_P < hi_P, ufunc.reduceat(padded, bounds)[::2], np.nan) if len(lo_P) else padded[:0]


def take(values_N: np.ndarray, position_P: np.ndarray, valid_P: np.ndarray) -> np.ndarray:
    """values[position] where valid, else NaN."""
    result = np.full(len(position_P), np.nan)
    result[valid_P] = values_N[position_P[valid_P]]
    return result


def slope(day_N: np.ndarray, value_N: np.ndarray, lo_P: np.ndarray, hi_P: np.ndarray) -> np.ndarray:
    """Least-squares slope per day over values[lo:hi] of each pair, NaN with fewer than two distinct days.

    Args:
      day_N, value_N: near zero within each range, so that little cancels.
    """
    n_P = (hi_P - lo_P).astype(np.float64)
    sums = [reduce(np.add, x_N, lo_P, hi_P) for x_N in (day_N, value_N, day_N**2, day_N * value_N)]
    with np.errstate(invalid="ignore", divide="ignore"):
        day, value, square, product = (x_P / n_P for x_P in sums)
        spread = square - day**2
        found = (product - day * value) / spread
    return np.where(spread > 1e-6, found, np.nan)


def pairs(owner_Q: np.ndarray, owner_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(prediction time, group) of every prediction time with each group of the same owner, by prediction time.

    Args:
      owner_Q, owner_G: int of the owner (a subject); owner_G ascending.
    """
    lo_Q, hi_Q = (np.searchsorted(owner_G, owner_Q, side) for side in ("left", "right"))
    n_Q = hi_Q - lo_Q
    query_P = np.repeat(np.arange(len(owner_Q)), n_Q)
    within_P = np.arange(len(query_P)) - np.repeat(np.cumsum(n_Q) - n_Q, n_Q)
    return query_P, lo_Q[query_P] + within_P
