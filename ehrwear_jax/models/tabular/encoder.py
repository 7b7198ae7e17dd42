"""Makes sparse features fit for models: what is known in comparable units, what is not known as zero.

Counts become log(1 + n), days since 1 / (1 + log(1 + days / D)) (1 now, 0 never; D is 30 for records of years), values
standard deviations from the training mean. Every one of these is monotone, so trees lose nothing. A value that is not
known stays a zero that is not stored: the mean to a linear model, which is told by the counts beside it whether there
is one, and missing to trees (boosting.py).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse

from ehrwear_jax.models.tabular.features import COUNT, SINCE, VALUE

CLIP = 10.0  # standard deviations: one absurd value does not decide a prediction
TRIMMED = 0.01  # share of each tail that statistics of values are winsorised by
_AT_MEAN = 1e-6  # a value at the training mean, which stays apart from one that is not known
_ENTRIES_AT_ONCE = 500_000
_MOST_BLOCKS = 16  # of columns, as each block goes through the whole table


class Encoder:
    """What was fitted on the training rows.

    Args:
      x_train: CSR [N, F], as features are read. kinds: of the F columns.
      since_days: D of the module's docstring.

    Attributes:
      centre_F, scale_F: mean and standard deviation of the known training values, tails winsorised; 0 and 1 of columns
        of other kinds, scale infinite where there is no spread.
    """

    def __init__(self, x_train: sparse.csr_matrix, kinds: Sequence[str], since_days: float = 30.0) -> None:
        self._since_days = since_days
        self._kind_F = np.array(kinds)
        if x_train.shape[1] != len(kinds):
            raise ValueError(f"x_train has {x_train.shape[1]} columns, expected {len(kinds)}")
        if not np.isfinite(x_train.data).all():
            raise ValueError("x_train holds a value that is not finite")
        self.centre_F, self.scale_F = np.zeros(len(kinds), np.float32), np.ones(len(kinds), np.float32)
        value_F = np.flatnonzero(self._kind_F == VALUE)
        for column, known_K in known_entries(x_train, value_F):
            low, high = np.quantile(known_K, [TRIMMED, 1 - TRIMMED])
            inside_K = np.clip(known_K.astype(np.float64), low, high)
            centre, scale = inside_K.mean(), inside_K.std()
            self.centre_F[column] = centre
            self.scale_F[column] = scale if scale > 1e-6 * max(abs(centre), 1e-30) else np.inf

    def __call__(self, x: sparse.csr_matrix) -> sparse.csr_matrix:
        """Encodes a matrix in place, and returns it: CSR float32 [N, F], finite."""
        for begin in range(0, x.nnz, _ENTRIES_AT_ONCE):
            part = slice(begin, begin + _ENTRIES_AT_ONCE)
            x.data[part] = self._encoded(x.data[part], x.indices[part])
        return x

    def _encoded(self, value_E, column_E):
        kind_E = self._kind_F[column_E]
        out_E = value_E.copy()
        counts, since, values = (kind_E == kind for kind in (COUNT, SINCE, VALUE))
        out_E[counts] = np.log1p(np.maximum(value_E[counts], 0))
        out_E[since] = 1 / (1 + np.log1p(np.maximum(value_E[since], 0) / self._since_days))
        at_E = column_E[values]
        z_E = np.clip((value_E[values] - self.centre_F[at_E]) / self.scale_F[at_E], -CLIP, CLIP)
        out_E[values] = np.where(np.abs(z_E) < _AT_MEAN, _AT_MEAN, z_E)
        return out_E


def known_entries(x: sparse.csr_matrix, column_K: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(column, its stored entries) of some columns that have any, a block of columns at a time, in bounded memory."""
    parts = [slice(begin, begin + _ENTRIES_AT_ONCE) for begin in range(0, x.nnz, _ENTRIES_AT_ONCE)]
    n_F = np.zeros(x.shape[1], np.int64)
    for part in parts:  # numpy counts wider integers than these
        n_F += np.bincount(x.indices[part], minlength=x.shape[1])
    column_K = column_K[n_F[column_K] > 0]
    blocks = np.cumsum(n_F[column_K]) // max(_ENTRIES_AT_ONCE, x.nnz // _MOST_BLOCKS)
    for block in np.unique(blocks):
        mine_K = column_K[blocks == block]
        chosen_F = np.zeros(x.shape[1], bool)
        chosen_F[mine_K] = True
        inside = [(x.indices[part][keep], x.data[part][keep]) for part in parts
                  if (keep := chosen_F[x.indices[part]]).any()]  # fmt: skip
        column_E, value_E = (np.concatenate(found) for found in zip(*inside, strict=True))
        value_E = value_E[np.argsort(column_E, kind="stable")]
        yield from zip(mine_K, np.split(value_E, np.cumsum(n_F[mine_K])[:-1]), strict=True)
