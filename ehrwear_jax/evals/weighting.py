"""Checks inputs, builds weighted sums as sparse products, and evaluates statistics in blocks of weightings.

Every metric is a function of sums that are linear in the row weights. A statistic object
(`classification.BinaryRanking`, `concordance.Concordance`, ...) sorts its rows once and keeps those
sums as a sparse matrix; evaluating B weightings (bootstrap resamples) is then a sparse product with
the weights as lanes. Float64 throughout, so integer weights give exact counts.

Every statistic takes `factor_N`, a fixed multiplier of the row weights: a 0/1 mask restricts it to
a subgroup while all subgroups share the resamples, inverse probabilities correct for censoring.
Rows of factor 0 are left out and may hold any value.

Array suffixes: N rows, B weightings, K bins or thresholds. The plain functions take `weights` as
None, [N] (they return a float) or [B, N] (they return [B]); statistics take the lane layout [N, B].
"""

from collections.abc import Callable, Mapping
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

# Weightings processed together: at most LANES, and as many as let a block of rows * lanes stay in cache (2 MB), but
# enough to vectorise while it is within 64 MB.
LANES = 250
CACHED_BLOCK_CELLS = 2**18
_VECTOR_LANES = 16
MAX_BLOCK_CELLS = 2**23

Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]


class Deferred:
    """A statistic that is made when it is first called and can be let go: its sums take memory, what makes it little.

    Args:
      make: what makes it. n_rows: rows of a positive factor, which its memory grows with.
    """

    def __init__(self, make: Callable[[], Statistic], n_rows: int) -> None:
        self._make, self.n_rows = make, n_rows
        self._made: Statistic | None = None

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        """As the statistic.

        Raises:
          ValueError: what making it raises.
        """
        if self._made is None:
            self._made = self._make()
        return self._made(weight_NxB)

    def release(self) -> None:
        """Lets go of the statistic, which the next call makes anew."""
        self._made = None

    def __getstate__(self) -> dict:
        """For worker processes, which make their own."""
        return vars(self) | {"_made": None}


def vector(values: npt.ArrayLike, name: str) -> np.ndarray:
    """`values` as float64 [N]; ValueError when empty or not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty vector, got shape {array.shape}")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name} is {array[row]} in row {row}")
    return array


def binary(values: npt.ArrayLike, name: str) -> np.ndarray:
    """`values` as bool [N]; ValueError unless all are 0 or 1."""
    array = vector(values, name)
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{name} is {array[row]} in row {row}, expected 0 or 1")
    return array.astype(bool)


def probability(values: npt.ArrayLike, name: str) -> np.ndarray:
    """`values` as float64 [N]; ValueError unless all lie in [0, 1]."""
    array = vector(values, name)
    wrong = (array < 0) | (array > 1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{name} is {array[row]} in row {row}, expected a probability")
    return array


def same_length(**vectors: npt.ArrayLike) -> int:
    """The length that all have; ValueError, naming the lengths, unless all are equal."""
    lengths = {name: len(np.asarray(v)) for name, v in vectors.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"vectors differ in length: {lengths}")
    return next(iter(lengths.values()))


def kept_rows(factor_N: npt.ArrayLike | None, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows with a positive factor [M], their factors [M]); None means all ones."""
    if factor_N is None:
        return np.arange(n_rows), np.ones(n_rows)
    factor_N = vector(factor_N, "factor")
    if len(factor_N) != n_rows or (factor_N < 0).any():
        raise ValueError(f"factor must be [{n_rows}] and not negative")
    rows = np.flatnonzero(factor_N)
    return rows, factor_N[rows]


def group_rows(
    row_of: np.ndarray, column: np.ndarray, n_rows: int, n_columns: int, values: npt.ArrayLike | None = None
) -> sp.csr_array:
    """Sparse [n_rows, n_columns] with values[i] (default 1) at (row_of[i], column[i])."""
    order = np.argsort(row_of, kind="stable")
    indptr = np.searchsorted(row_of[order], np.arange(n_rows + 1))
    data = np.ones(len(order)) if values is None else np.asarray(values, np.float64)[order]
    return sp.csr_array((data, column[order], indptr), shape=(n_rows, n_columns))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is not positive."""
    nan = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=nan, where=denominator > 0)


def lanes_of(n_rows: int) -> int:
    """How many weightings of n_rows are held at a time."""
    n_rows = max(n_rows, 1)
    wanted = max(CACHED_BLOCK_CELLS // n_rows, _VECTOR_LANES)
    return max(min(wanted, MAX_BLOCK_CELLS // n_rows, LANES), 1)


def merge(*statistics: Statistic) -> Statistic:
    """One statistic with the metrics of all."""
    return lambda weight_NxB: {k: v for s in statistics for k, v in s(weight_NxB).items()}


def rename(statistic: Statistic, names: Mapping[str, str] | Callable[[str], str]) -> Statistic:
    """`statistic` with its metrics renamed by a mapping or a function."""
    new = names if callable(names) else names.__getitem__
    return lambda weight_NxB: {new(k): v for k, v in statistic(weight_NxB).items()}


@overload
def evaluate(statistic: Statistic, n_rows: int, weights: None = None) -> dict[str, float]: ...


@overload
def evaluate(statistic: Statistic, n_rows: int, weights: npt.ArrayLike | None) -> dict[str, Any]: ...


def evaluate(statistic: Statistic, n_rows: int, weights: npt.ArrayLike | None = None) -> dict[str, Any]:
    """A statistic under `weights`: None or [N] gives floats, [B, N] gives [B].

    Raises:
      ValueError: weights of another shape, negative, or not finite.
    """
    weights = np.ones(n_rows) if weights is None else np.asarray(weights)
    if weights.ndim not in (1, 2) or weights.shape[-1] != n_rows:
        raise ValueError(f"weights must be [{n_rows}] or [B, {n_rows}], got {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("weights must be finite and not negative")
    weight_BxN, lanes = np.atleast_2d(weights), lanes_of(n_rows)
    blocks = [
        statistic(np.ascontiguousarray(weight_BxN[i : i + lanes].T, dtype=np.float64))
        for i in range(0, len(weight_BxN), lanes)
    ]
    if not blocks:
        raise ValueError("weights hold no weighting (B = 0)")
    result = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return {name: float(v[0]) for name, v in result.items()} if weights.ndim == 1 else result
