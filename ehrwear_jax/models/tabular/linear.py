"""Fits penalised linear models on sparse features: logistic, Cox or ridge regression, as the loss says.

Minimises loss.mean(x @ coef + intercept) + l2 / 2 ||coef||^2 over standardised columns by L-BFGS, from the strongest
penalty to weaker ones, each begun where the last one ended; the penalty of lowest tuning loss is kept.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy  # its submodules load at first use
from scipy import sparse

from ehrwear_jax.models.tabular.losses import Loss

L2_GRID = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5)
RARE_SD = 0.1  # columns of less spread (counts of codes that one person in a hundred has) are not blown up further
Blocks = Sequence[sparse.csr_matrix | np.ndarray]
_ENTRIES_AT_ONCE = 500_000
_WORSE = 2  # penalties in a row without a lower tuning loss after which weaker ones are not tried


@dataclasses.dataclass(frozen=True)
class Linear:
    """A fitted linear model.

    Attributes:
      coef_F: of the columns as they are given. intercept: of the score.
      l2: the penalty; tuning_loss: {l2: loss}, of those that were tried.
    """

    coef_F: np.ndarray
    intercept: float
    l2: float
    tuning_loss: dict[float, float]

    def score(self, x: Blocks) -> np.ndarray:
        """Log-odds, log-hazard or value, float64 [N]."""
        return _times(x, self.coef_F) + self.intercept


def fit(
    x_train: Blocks,
    train: Loss,
    x_tuning: Blocks,
    tuning: Loss,
    l2_grid: Sequence[float] = L2_GRID,
    standardised: tuple[np.ndarray, np.ndarray] | None = None,
) -> Linear:
    """A linear model; no randomness.

    Args:
      x_train, x_tuning: encoded features, blocks of columns side by side, float32 [N, F in all]. train, tuning: losses
        of their rows.
      standardised: mean and scale [F] by which columns are standardised; None: `moments` of x_train, sparse then.
    """
    mean_F, scale_F = standardised or moments(x_train)
    fits: dict[float, tuple[np.ndarray, float]] = {}
    losses: dict[float, float] = {}
    start = np.zeros(len(mean_F) + 1)
    for l2 in sorted(l2_grid, reverse=True):
        start = _minimise(x_train, train, mean_F, scale_F, l2, start)
        coef_F = start[:-1] / scale_F
        fits[l2] = coef_F, float(start[-1] - coef_F @ mean_F)
        losses[l2] = tuning.mean(Linear(*fits[l2], l2, {}).score(x_tuning))
        best = min(losses, key=lambda k: losses[k])
        if list(losses).index(best) < len(losses) - _WORSE:
            break
    return Linear(*fits[best], best, losses)


def _times(x, coef_F):
    """x @ coef, float64 [N]."""
    parts = np.split(coef_F.astype(np.float32), np.cumsum([block.shape[1] for block in x])[:-1])
    return np.sum([block @ part for block, part in zip(x, parts, strict=True)], axis=0, dtype=np.float64)


def moments(x: Sequence[sparse.csr_matrix], least: float = RARE_SD) -> tuple[np.ndarray, np.ndarray]:
    """(mean, scale) of the columns, zeros included, float64 [F]; scale infinite of a constant column.

    Args:
      least: scale of columns that vary less.
    """
    n, sums = x[0].shape[0], []
    for block in x:
        total = np.zeros((2, block.shape[1]))
        for begin in range(0, block.nnz, _ENTRIES_AT_ONCE):
            part = slice(begin, begin + _ENTRIES_AT_ONCE)
            value, column = block.data[part].astype(np.float64), block.indices[part]
            # entry by entry, so that the sums do not depend on how many are taken at once
            np.add.at(total[0], column, value)
            np.add.at(total[1], column, value**2)
        sums.append(total)
    mean_F, square_F = np.concatenate(sums, axis=1) / n
    sd_F = np.sqrt(np.maximum(square_F - mean_F**2, 0))
    return mean_F, np.where(sd_F > 1e-6 * np.maximum(np.abs(mean_F), 1e-30), np.maximum(sd_F, least), np.inf)


def _minimise(x, loss, mean_F, scale_F, l2, start):
    """Coefficients of the standardised columns and, last, the intercept."""

    def objective(theta):
        coef_F = theta[:-1] / scale_F
        score_N = _times(x, coef_F) + (theta[-1] - coef_F @ mean_F)
        first_N = loss.derivatives(score_N)[0] / loss.n_terms
        total = first_N.sum()
        first = first_N.astype(np.float32)  # block.T is a view
        by_column = np.concatenate([(block.T @ first).astype(np.float64) for block in x]) - mean_F * total
        gradient = np.append(by_column / scale_F + l2 * theta[:-1], total)
        return loss.mean(score_N) + l2 / 2 * theta[:-1] @ theta[:-1], gradient

    options = {"maxiter": 200, "maxcor": 20, "ftol": 1e-8, "gtol": 1e-6}
    return scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
