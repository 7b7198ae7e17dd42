"""Fits linear probes (logistic and ridge regression) on frozen embeddings.

Protocol, the same for every probe: features are standardised with the training mean and standard
deviation; one model per L2 strength is fitted on the training rows, from the strongest to the
weakest; the strength with the lowest validation loss is kept (on a tie, the stronger). There is no
refit on training + validation, so validation rows stay usable for thresholds and fusion. The
problems are convex and the solvers deterministic: no seed.

L2 is on the scale of the mean loss: mean_n loss_n + l2 / 2 ||coef||^2, intercept unpenalised, so
one grid serves any number of rows. Features are kept as they are given, float32 as a network's latents are, and
standardised in float64 some rows at a time: memory beyond them does not grow with their number. Array suffixes: N rows,
D features, K targets.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

L2_GRID = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


CELLS_AT_ONCE = 2**22  # rows times features that are read at a time


def blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Rows, in order, of no more than CELLS_AT_ONCE cells each."""
    size = max(CELLS_AT_ONCE // max(n_columns, 1), 1)
    return (slice(begin, min(begin + size, n_rows)) for begin in range(0, n_rows, size))


def check_features(x: npt.ArrayLike, name: str, n_features: int | None = None) -> np.ndarray:
    """`x` as float [N, D], of 32 bits where it is; ValueError when it is empty, of another width, or not finite."""
    x = np.asarray(x)
    x = x if x.dtype == np.float32 else np.asarray(x, np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must be a non-empty [N, D] array, got shape {x.shape}")
    if n_features is not None and x.shape[1] != n_features:
        raise ValueError(f"{name} has {x.shape[1]} features, expected {n_features}")
    for rows in blocks(*x.shape):
        if not np.isfinite(x[rows]).all():
            row, column = np.argwhere(~np.isfinite(x[rows]))[0]
            raise ValueError(f"{name} is {x[rows][row, column]} in row {rows.start + row}, column {column}")
    return x


def check_grid(l2_grid: Sequence[float]) -> np.ndarray:
    """The L2 strengths from strong to weak; ValueError unless all are positive."""
    grid = np.sort(np.asarray(l2_grid, dtype=np.float64).ravel())[::-1]
    if not grid.size or not np.isfinite(grid).all() or grid[-1] <= 0:
        raise ValueError(f"the L2 grid must hold positive numbers, got {list(l2_grid)}")
    return grid


@dataclasses.dataclass(frozen=True)
class Standardizer:
    """x -> (x - mean) / scale with statistics of the training rows; constant features give 0."""

    mean_D: np.ndarray
    scale_D: np.ndarray
    varies_D: np.ndarray

    @classmethod
    def fit(cls, x_NxD: np.ndarray) -> "Standardizer":
        n, parts = len(x_NxD), list(blocks(*x_NxD.shape))
        mean_D = sum(x_NxD[rows].sum(0, np.float64) for rows in parts) / n
        std_D = np.sqrt(sum(((x_NxD[rows] - mean_D) ** 2).sum(0) for rows in parts) / n)
        # Below the rounding error of the mean, spread is noise and dividing by it would amplify it.
        varies_D = std_D > 1e-10 * np.maximum(np.abs(mean_D), 1e-100)
        return cls(mean_D, np.where(varies_D, std_D, 1.0), varies_D)

    def __call__(self, x_NxD: np.ndarray) -> np.ndarray:
        return np.where(self.varies_D, (x_NxD - self.mean_D) / self.scale_D, 0.0)


@dataclasses.dataclass(frozen=True)
class Standardized:
    """Features that are standardised as their rows are read: float64, as an array of them would be.

    Attributes:
      standardizer: fitted on the training rows. x_NxD: as they are given, float32 or float64.
    """

    standardizer: Standardizer
    x_NxD: np.ndarray

    def __len__(self) -> int:
        return len(self.x_NxD)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, features)."""
        return self.x_NxD.shape[0], self.x_NxD.shape[1]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.standardizer(self.x_NxD[rows])

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """(which, float64 [n, D]) of all rows, some at a time."""
        return ((rows, self[rows]) for rows in blocks(*self.shape))

    def __matmul__(self, coef: np.ndarray) -> np.ndarray:
        """[N] of coefficients [D], or [N, K] of [D, K]."""
        return np.concatenate([block @ coef for _, block in self.blocks()])


@dataclasses.dataclass(frozen=True)
class LogisticProbe:
    """A fitted logistic regression on standardised features."""

    standardizer: Standardizer
    coef_D: np.ndarray
    intercept: float
    l2: float
    validation_loss: dict[float, float]  # l2 -> mean log loss on the validation rows

    def logit(self, x: npt.ArrayLike) -> np.ndarray:
        """Log-odds of y = 1, float64 [N]."""
        x = check_features(x, "x", len(self.coef_D))
        return Standardized(self.standardizer, x) @ self.coef_D + self.intercept

    def predict_proba(self, x: npt.ArrayLike) -> np.ndarray:
        """P(y = 1), float64 [N]."""
        return sigmoid(self.logit(x))


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logit)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -logit))


def log_loss(y_N: np.ndarray, logit_N: np.ndarray) -> float:
    """Mean negative log-likelihood of 0/1 labels given logits."""
    return float(np.mean(np.logaddexp(0.0, logit_N) - y_N * logit_N))


def check_labels(y: npt.ArrayLike, name: str, n_rows: int) -> np.ndarray:
    """`y` as float64 0/1 [N]; ValueError on another shape or value."""
    y = np.asarray(y, dtype=np.float64)
    if y.shape != (n_rows,):
        raise ValueError(f"{name} has shape {y.shape}, expected ({n_rows},)")
    wrong = (y != 0) & (y != 1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{name} is {y[row]} in row {row}, expected 0 or 1")
    return y


def fit_logistic(
    x_train: npt.ArrayLike,
    y_train: npt.ArrayLike,
    x_val: npt.ArrayLike,
    y_val: npt.ArrayLike,
    *,
    l2_grid: Sequence[float] = L2_GRID,
) -> LogisticProbe:
    """L2-regularised logistic regression, strength chosen by validation log loss.

    Args:
      x_train, x_val: float [N, D] features.
      y_train, y_val: bool or 0/1 [N] labels; training needs both classes.
      l2_grid: strengths to try.

    Raises:
      ValueError: bad shapes or values, one class in training, no validation rows.
    """
    x_train = check_features(x_train, "x_train")
    x_val = check_features(x_val, "x_val", x_train.shape[1])
    y_train = check_labels(y_train, "y_train", len(x_train))
    y_val = check_labels(y_val, "y_val", len(x_val))
    if len(np.unique(y_train)) < 2:
        raise ValueError(f"y_train holds one class only ({int(y_train[0])}, {len(y_train)} rows)")
    standardizer = Standardizer.fit(x_train)
    z_train, z_val = (Standardized(standardizer, x) for x in (x_train, x_val))
    losses: dict[float, float] = {}
    fits: dict[float, np.ndarray] = {}
    theta = np.zeros(x_train.shape[1] + 1)  # the intercept last
    for l2 in check_grid(l2_grid):
        theta = fits[l2] = _newton(z_train, y_train, l2, theta)  # from the next stronger penalty's: a few steps each
        losses[float(l2)] = log_loss(y_val, z_val @ theta[:-1] + theta[-1])
    best = min(losses, key=lambda l2: losses[l2])
    return LogisticProbe(standardizer, fits[best][:-1], float(fits[best][-1]), best, losses)


def _newton(z: Standardized, y_N: np.ndarray, l2: float, theta: np.ndarray, max_steps: int = 200) -> np.ndarray:
    """Newton's method with step halving on the penalised mean log loss; coefficients and, last, the intercept.

    It ends with a step that gains less than 1e-14, after which the error is that of rounding, or where no gain can be
    represented any more. An unconverged fit is still a valid candidate: validation loss judges it.
    """
    current, gradient, hessian = _log_loss_terms(z, y_N, l2, theta)
    for _ in range(max_steps):
        step, scale = np.linalg.solve(hessian, -gradient), 1.0
        is_last = -gradient @ step < 1e-14
        while (found := _log_loss_terms(z, y_N, l2, theta + scale * step))[0] > current and not is_last:
            scale /= 2
            if scale < 1e-6:
                return theta
        theta = theta + scale * step
        if is_last:
            break
        current, gradient, hessian = found
    return theta


def _log_loss_terms(z: Standardized, y_N: np.ndarray, l2: float, theta: np.ndarray):
    """(value, gradient, Hessian) of mean log loss + l2 / 2 ||coef||^2 in coefficients and intercept."""
    size, value = len(theta), 0.0
    penalty = np.append(np.full(size - 1, l2), 0.0)
    gradient, hessian = np.zeros(size), np.zeros((size, size))
    for rows, block in z.blocks():
        block, y = np.concatenate([block, np.ones((len(block), 1))], axis=1), y_N[rows]
        logit = block @ theta
        p = sigmoid(logit)
        value += np.sum(np.logaddexp(0.0, logit) - y * logit)
        gradient += block.T @ (p - y)
        hessian += (block * (p * (1 - p))[:, None]).T @ block
    n = len(z)
    return value / n + penalty @ theta**2 / 2, gradient / n + penalty * theta, hessian / n + np.diag(penalty)


@dataclasses.dataclass(frozen=True)
class RidgeProbe:
    """A fitted ridge regression on standardised features; one strength per target."""

    standardizer: Standardizer
    coef_DxK: np.ndarray
    intercept_K: np.ndarray
    l2_K: np.ndarray
    validation_mse_LxK: np.ndarray  # rows in the order of the grid, strong to weak
    is_vector: bool  # the target was [N], not [N, K]

    def predict(self, x: npt.ArrayLike) -> np.ndarray:
        """Float64 [N], or [N, K] when fitted on [N, K]."""
        x = check_features(x, "x", len(self.coef_DxK))
        predicted_NxK = Standardized(self.standardizer, x) @ self.coef_DxK + self.intercept_K
        return predicted_NxK[:, 0] if self.is_vector else predicted_NxK


def _targets(y, name: str, n_rows: int) -> np.ndarray:
    y = np.asarray(y, dtype=np.float64)
    if y.ndim not in (1, 2) or len(y) != n_rows:
        raise ValueError(f"{name} has shape {y.shape}, expected ({n_rows},) or ({n_rows}, K)")
    return check_features(y.reshape(n_rows, -1), name)


def fit_ridge(
    x_train: npt.ArrayLike,
    y_train: npt.ArrayLike,
    x_val: npt.ArrayLike,
    y_val: npt.ArrayLike,
    *,
    l2_grid: Sequence[float] = L2_GRID,
) -> RidgeProbe:
    """Ridge regression by one eigendecomposition, strength per target by validation MSE.

    Minimises mean (y - f(x))^2 / 2 + l2 / 2 ||coef||^2 per target.

    Args:
      x_train, x_val: float [N, D].
      y_train, y_val: float [N] or [N, K].
      l2_grid: strengths to try.
    """
    x_train = check_features(x_train, "x_train")
    x_val = check_features(x_val, "x_val", x_train.shape[1])
    is_vector = np.ndim(y_train) == 1
    y_train = _targets(y_train, "y_train", len(x_train))
    y_val = _targets(y_val, "y_val", len(x_val))
    if y_train.shape[1] != y_val.shape[1]:
        raise ValueError(f"y_train has {y_train.shape[1]} targets, y_val {y_val.shape[1]}")
    grid, standardizer = check_grid(l2_grid), Standardizer.fit(x_train)
    z_train, z_val = (Standardized(standardizer, x) for x in (x_train, x_val))
    intercept_K = y_train.mean(0)
    products_DxD = np.zeros((x_train.shape[1], x_train.shape[1]))
    moments_DxK = np.zeros((x_train.shape[1], y_train.shape[1]))
    for rows, block in z_train.blocks():
        products_DxD += block.T @ block
        moments_DxK += block.T @ (y_train[rows] - intercept_K)
    eigenvalues, vectors = np.linalg.eigh(products_DxD / len(z_train))
    projected = vectors.T @ moments_DxK / len(z_train)
    coef_LxDxK = np.stack([vectors @ (projected / (np.maximum(eigenvalues, 0)[:, None] + l2)) for l2 in grid])
    mse_LxK = sum(
        np.sum((y_val[rows] - (block @ coef_LxDxK + intercept_K)) ** 2, axis=1) for rows, block in z_val.blocks()
    ) / len(z_val)  # fmt: skip
    best_K = mse_LxK.argmin(0)
    coef_DxK = coef_LxDxK[best_K, :, np.arange(len(best_K))].T
    return RidgeProbe(standardizer, coef_DxK, intercept_K, grid[best_K], mse_LxK, is_vector)
