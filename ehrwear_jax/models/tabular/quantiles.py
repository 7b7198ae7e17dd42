"""Turns values into the normal scores of their training quantiles, for linear models.

Laboratory values are skewed, and risk rises at both ends of many: a linear model of a value's rank, spread as a normal
distribution, and of its square sees both, and no absurd value decides it. Trees need neither.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.special import ndtri

from ehrwear_jax.models.tabular.encoder import known_entries
from ehrwear_jax.models.tabular.features import VALUE

_KNOTS = 128  # quantiles kept of a column
_TAIL = 0.005  # ranks are cut there: scores of at most 2.6
_ENTRIES_AT_ONCE = 500_000


class NormalScores:
    """What was fitted on the training rows; columns of kinds other than VALUE stay as they are.

    Args:
      x_train: CSR [N, F], encoded features. kinds: of the F columns.

    Attributes:
      place_F: row of a value's column in knots_VxK, -1 of other columns and of those that no training row knows.
      knots_VxK: quantiles of the known training values, at equal steps. n_V: number of these values.
    """

    def __init__(self, x_train: sparse.csr_matrix, kinds: Sequence[str]) -> None:
        value_F = np.flatnonzero(np.array(kinds) == VALUE)
        self.place_F = np.full(len(kinds), -1)
        steps_K = np.linspace(0, 1, _KNOTS)
        knots: list[np.ndarray] = []
        counts: list[int] = []
        for column, known_N in known_entries(x_train, value_F):
            self.place_F[column] = len(knots)
            knots.append(np.quantile(known_N, steps_K).astype(np.float32))
            counts.append(len(known_N))
        self.knots_VxK = np.array(knots, np.float32).reshape(-1, _KNOTS)
        self.n_V = np.array(counts, np.int64)

    def __call__(self, x: sparse.csr_matrix) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """(scores, their squares), CSR float32 [N, F] that share x's indices; x's entries are changed in place.

        The squares of columns without scores are zeros.
        """
        squares_E = np.zeros_like(x.data)
        for begin in range(0, x.nnz, _ENTRIES_AT_ONCE):
            part = slice(begin, begin + _ENTRIES_AT_ONCE)
            place_E = self.place_F[x.indices[part]]
            mine = place_E >= 0
            score_M = self._scores(x.data[part][mine], place_E[mine])
            x.data[part][mine] = score_M
            squares_E[part][mine] = score_M**2
        return x, sparse.csr_matrix((squares_E, x.indices, x.indptr), x.shape, copy=False)

    def _scores(self, value_M, place_M):
        below_M, upto_M = (self._count(value_M, place_M, side) for side in (np.less, np.less_equal))
        at_knots = (below_M + upto_M - 1) / 2  # the middle of the knots that equal the value
        lo_M = np.clip(below_M - 1, 0, _KNOTS - 1)
        hi_M = np.clip(below_M, 0, _KNOTS - 1)
        low_M, high_M = self.knots_VxK[place_M, lo_M], self.knots_VxK[place_M, hi_M]
        gap_M = np.where(high_M > low_M, high_M - low_M, 1)
        between = lo_M + np.where(hi_M > lo_M, (value_M - low_M) / gap_M, 0)
        rank_M = np.where(upto_M > below_M, at_knots, between) / (_KNOTS - 1)
        tail_M = np.maximum(_TAIL, 0.5 / self.n_V[place_M])
        return ndtri(np.clip(rank_M, tail_M, 1 - tail_M)).astype(np.float32)

    def _count(self, value_M, place_M, side):
        """How many knots of its column are below a value (or up to it): a search by halves, for all values at once."""
        lo_M, hi_M = np.zeros(len(value_M), np.int64), np.full(len(value_M), _KNOTS)
        while (open_M := lo_M < hi_M).any():
            middle_M = (lo_M + hi_M) // 2
            less_M = side(self.knots_VxK[place_M, np.minimum(middle_M, _KNOTS - 1)], value_M)
            lo_M = np.where(open_M & less_M, middle_M + 1, lo_M)
            hi_M = np.where(open_M & ~less_M, middle_M, hi_M)
        return lo_M
