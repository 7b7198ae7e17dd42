"""Scales the values of numeric codes robustly, and finds their quantiles, by what was fitted on training patients.

A value is clipped to the quantiles of 1 and 99% of its code, then standardised by mean and standard deviation of the
values so clipped: one that was mistyped is as far out as the outermost percent. Axes: V tokens, U codes with values.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import polars as pl

from ehrwear_jax.models.vocabulary import Vocabulary

N_KNOTS = 33  # of a code's quantiles
TAILS = (0.01, 0.99)  # quantiles that values are clipped to
_LEAST_SPREAD = 1e-6  # of clipped values, in the standard deviations of Vocabulary.encode; below it all are alike


class _Scale(NamedTuple):
    low: float
    high: float
    centre: float
    spread: float


@dataclasses.dataclass(frozen=True)
class ValueScales:
    """The codes whose values are predicted.

    Attributes:
      names: codes, the one with the most training values first.
      class_V: int, place in `names` of a token's code, -1: not among them.
      low_U, high_U, centre_U, spread_U: float64, in the standardised unit of Vocabulary.encode.
    """

    names: tuple[str, ...]
    class_V: np.ndarray
    low_U: np.ndarray
    high_U: np.ndarray
    centre_U: np.ndarray
    spread_U: np.ndarray

    def __call__(self, class_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
        """Standardised values (Vocabulary.encode) of the classes on the robust scale: float64 [N], NaN stays."""
        clipped_N = np.minimum(np.maximum(value_N, self.low_U[class_N]), self.high_U[class_N])
        return (clipped_N - self.centre_U[class_N]) / self.spread_U[class_N]


@dataclasses.dataclass(frozen=True)
class ValueQuantiles:
    """Where a value lies among the training values of its code.

    Attributes:
      row_V: int, row of knot_RxK of a token's code, -1: its values are not used.
      knot_RxK: values at K equally spaced quantiles, in the standardised unit of Vocabulary.encode.
    """

    row_V: np.ndarray
    knot_RxK: np.ndarray

    def __call__(self, token_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
        """Quantiles of standardised values, inside (0, 1), linear between knots; 0 without a value: float32 [N]."""
        out_N, row_N = np.zeros(len(token_N), np.float32), self.row_V[token_N]
        at = np.flatnonzero((row_N >= 0) & np.isfinite(value_N))
        if not len(at):
            return out_N
        knot_NxK, value_Nx1 = self.knot_RxK[row_N[at]], value_N[at, None]
        below, up_to = (knot_NxK < value_Nx1).sum(axis=1), (knot_NxK <= value_Nx1).sum(axis=1)
        last = knot_NxK.shape[1] - 1
        k, row = np.clip(below, 1, last), np.arange(len(at))
        width = knot_NxK[row, k] - knot_NxK[row, k - 1]
        part = (value_Nx1[:, 0] - knot_NxK[row, k - 1]) / np.where(width > 0, width, 1.0)
        # a value that knots have lies in the middle of them
        rank = np.where(up_to > below, 0.5 * (below + up_to - 1), k - 1 + np.clip(part, 0.0, 1.0))
        out_N[at] = np.clip(rank / last, *TAILS)
        return out_N


def fit_quantiles(vocabulary: Vocabulary, statistics: pl.DataFrame) -> ValueQuantiles:
    """The quantiles of all codes whose values the vocabulary standardises; statistics: as for `fit`."""
    share_K = np.linspace(0.0, 1.0, N_KNOTS)
    rows: dict[str, np.ndarray] = {}
    for code, n, quantile, up_to in _valued(vocabulary, statistics):
        at = np.searchsorted(up_to, share_K * n)
        rows[code] = quantile[np.minimum(at, len(quantile) - 1)]
    place = {code: r for r, code in enumerate(rows)}
    row_V = np.array([place.get(code, -1) for code in vocabulary.tokens["code"].to_list()], np.int64)
    return ValueQuantiles(row_V, np.array(list(rows.values()), np.float64).reshape(-1, N_KNOTS))


def fit(vocabulary: Vocabulary, statistics: pl.DataFrame, limit: int) -> ValueScales:
    """The scales of the `limit` codes with the most values among those that the vocabulary standardises.

    Args:
      statistics: prepare.statistics.CODE_STATISTICS of the training split, in the order of vocabulary.codes.
    """
    found: dict[str, tuple[int, _Scale]] = {}
    for code, n, quantile, up_to in _valued(vocabulary, statistics):
        scale = _scale(quantile, up_to, n)
        if scale.spread > _LEAST_SPREAD:
            found[code] = n, scale
    names = tuple(sorted(found, key=lambda code: (-found[code][0], code))[: max(limit, 0)])
    place = {code: u for u, code in enumerate(names)}
    class_V = np.array([place.get(code, -1) for code in vocabulary.tokens["code"].to_list()], np.int64)
    scale_4xU = np.array([found[code][1] for code in names], np.float64).reshape(-1, 4).T
    return ValueScales(names, class_V, *scale_4xU)


def _valued(vocabulary, statistics):
    """(code, its number of values, distinct permilles in standard deviations, how many values are at most each)."""
    own = pl.concat([statistics, vocabulary.codes.select("value_mean", "value_std", target="alias")], how="horizontal")
    own = own.filter((pl.col("target") == pl.col("code")) & pl.col("value_mean").is_not_null())
    columns = ("code", "n_values", "quantile", "up_to", "value_mean", "value_std")
    for code, n, quantile, up_to, mean, std in own.select(columns).iter_rows():
        yield code, n, (np.asarray(quantile, np.float64) - mean) / std, np.asarray(up_to, np.int64)


def _scale(quantile_K, up_to_K, n):
    """Of the distinct permilles of n values, and how many values are at most each."""
    at = [min(int(np.searchsorted(up_to_K, share * n)), len(quantile_K) - 1) for share in TAILS]
    low, high = (float(quantile_K[k]) for k in at)
    weight_K = np.diff(up_to_K, prepend=0)
    clipped_K = np.clip(quantile_K, low, high)
    centre = float(np.average(clipped_K, weights=weight_K))
    return _Scale(low, high, centre, float(np.sqrt(np.average((clipped_K - centre) ** 2, weights=weight_K))))
