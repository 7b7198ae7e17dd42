"""Fits the tabular baselines: gradient boosting and logistic regression on hand-made features.

Both choose their settings by log loss on the given validation rows (never on a random part of the
training rows, which would mix rows of one patient) and are not refitted on them. NaN = missing.
Array suffixes: N rows, F features.
"""

import concurrent.futures
import dataclasses
import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:  # scikit-learn is loaded by what fits: a start that finds everything done does not wait for it
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

BOOSTING_GRID = tuple(
    {"learning_rate": rate, "l2_regularization": l2, "max_leaf_nodes": 15, "min_samples_leaf": 50}
    for rate, l2 in itertools.product((0.05, 0.1), (0.0, 10.0))
)
LOGISTIC_L2_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _table(x: ArrayLike, name: str, n_features: int | None = None) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must be a non-empty [N, F] array, got shape {x.shape}")
    if n_features is not None and x.shape[1] != n_features:
        raise ValueError(f"{name} has {x.shape[1]} features, expected {n_features}")
    if np.isinf(x).any():
        row, column = np.argwhere(np.isinf(x))[0]
        raise ValueError(f"{name} is infinite in row {row}, column {column}")
    return x


def _labels(y: ArrayLike, name: str, n_rows: int) -> np.ndarray:
    y = np.asarray(y)
    if y.shape != (n_rows,) or not np.isin(y, (0, 1)).all():
        raise ValueError(f"{name} must hold {n_rows} labels of 0 or 1, got shape {y.shape}")
    return y.astype(int)


def _check(x_train: ArrayLike, y_train: ArrayLike, x_val: ArrayLike, y_val: ArrayLike) -> Arrays:
    """(x_train, y_train, x_val, y_val) as float64 and int; ValueError for bad shapes or values, or a single class."""
    x_train = _table(x_train, "x_train")
    x_val = _table(x_val, "x_val", x_train.shape[1])
    y_train = _labels(y_train, "y_train", len(x_train))
    if len(np.unique(y_train)) < 2:
        raise ValueError(f"y_train holds one class only ({y_train[0]}, {len(y_train)} rows)")
    return x_train, y_train, x_val, _labels(y_val, "y_val", len(x_val))


@dataclasses.dataclass(frozen=True)
class BoostingSearch:
    """How settings and iteration of a boosted model are searched.

    Attributes:
      grid: settings of HistGradientBoostingClassifier to try; the first wins ties.
      max_iterations: trees at most.
      patience: a candidate stops once its best iteration is this many trees ago.
      n_threads: OpenMP threads per candidate; candidates run concurrently anyway. More pays on
        large tables and idle cores only: OpenMP's threads spin while they wait for each other.
    """

    grid: Sequence[Mapping[str, Any]] = BOOSTING_GRID
    max_iterations: int = 500
    patience: int = 40
    n_threads: int = 1

    def __post_init__(self) -> None:
        if self.max_iterations < 1 or self.patience < 1 or not self.grid:
            raise ValueError("max_iterations and patience must be positive and the grid not empty")


@dataclasses.dataclass(frozen=True)
class GradientBoosting:
    """A boosted model cut at the iteration with the lowest validation log loss.

    Attributes:
      model: the fitted classifier, with the iterations that were tried after the best one.
      seen_F: bool, columns with a training value; the others are not given to the model.
      n_iterations: of the cut.
      settings: those of the grid that were chosen.
      validation_loss: log loss at the cut.
    """

    model: "HistGradientBoostingClassifier"
    seen_F: np.ndarray
    n_iterations: int
    settings: Mapping[str, Any]
    validation_loss: float

    def predict_proba(self, x: ArrayLike) -> np.ndarray:
        """P(y = 1), float64 [N]."""
        x = _table(x, "x", len(self.seen_F))
        with threadpool_limits(1, user_api="openmp"):  # one short parallel region per tree
            stages = self.model.staged_predict_proba(x[:, self.seen_F])
            return next(itertools.islice(stages, self.n_iterations - 1, None))[:, 1]


def fit_gradient_boosting(
    x_train: ArrayLike,
    y_train: ArrayLike,
    x_val: ArrayLike,
    y_val: ArrayLike,
    search: BoostingSearch = BoostingSearch(),
) -> GradientBoosting:
    """Histogram gradient boosting; settings and iteration by validation log loss.

    Args:
      x_train, x_val: float [N, F], NaN = missing (handled natively).
      y_train, y_val: bool or 0/1 [N].
      search: candidates, and when each stops.

    Raises:
      ValueError: bad shapes or values, or one class in training.
    """
    x_train, y_train, x_val, y_val = _check(x_train, y_train, x_val, y_val)
    # scikit-learn cannot bin a column without any value.
    seen_F = np.asarray((~np.isnan(x_train)).any(axis=0))
    if not seen_F.any():
        raise ValueError("x_train has no value in any column")
    arrays = x_train[:, seen_F], y_train, x_val[:, seen_F], y_val

    def fit(settings: Mapping[str, Any]) -> GradientBoosting:
        with threadpool_limits(search.n_threads, user_api="openmp"):
            model, losses = _boost(arrays, settings, search)
        best = int(np.argmin(losses))
        return GradientBoosting(model, seen_F, best + 1, settings, losses[best])

    with concurrent.futures.ThreadPoolExecutor(min(len(search.grid), os.cpu_count() or 1)) as pool:
        candidates = list(pool.map(fit, search.grid))
    return min(candidates, key=lambda candidate: candidate.validation_loss)


def _boost(
    arrays: Arrays, settings: Mapping[str, Any], search: BoostingSearch
) -> tuple["HistGradientBoostingClassifier", list[float]]:
    """A boosted model and the validation log loss after each of its iterations."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import log_loss

    x_train, y_train, x_val, y_val = arrays
    # the random state matters for the binning of more than 200,000 rows only
    model = HistGradientBoostingClassifier(early_stopping=False, warm_start=True, random_state=0, **settings)
    losses: list[float] = []
    while len(losses) < search.max_iterations:
        model.set_params(max_iter=min(len(losses) + search.patience, search.max_iterations))
        model.fit(x_train, y_train)
        stages = itertools.islice(model.staged_predict_proba(x_val), len(losses), None)
        losses += [log_loss(y_val, p_Nx2[:, 1], labels=[0, 1]) for p_Nx2 in stages]
        if len(losses) - 1 - int(np.argmin(losses)) >= search.patience or model.n_iter_ < model.max_iter:
            break
    return model, losses


class TableEncoder:
    """Encodes a table with missing values for a linear model, with training statistics only.

    In order: log(1 + x) of the columns that are non-negative and skewed in training (counts, days
    since); median imputation; an indicator per column that is missing somewhere in training;
    standardisation; clipping at 10 standard deviations, so that one absurd laboratory value does
    not decide a prediction. Columns without a training value become 0.
    """

    _SKEWED = 2.0  # the skewness of an exponential distribution

    def __init__(self, x_train: ArrayLike) -> None:
        x = _table(x_train, "x_train")
        missing, empty = np.isnan(x).any(0), np.isnan(x).all(0)
        self._logged = np.array([_skewness(c[~np.isnan(c)]) for c in x.T]) > self._SKEWED
        self._indicated = missing & ~empty
        x = self._log(x)
        self._median = np.array([0.0 if none else np.nanmedian(c) for none, c in zip(empty, x.T, strict=True)])
        filled = self._fill(x)
        self._mean, std = filled.mean(0), filled.std(0)
        self._scale = np.where(std > 1e-10 * np.maximum(np.abs(self._mean), 1e-100), std, np.inf)

    def _log(self, x: np.ndarray) -> np.ndarray:
        # A value below 0 in other rows, though never in training, counts as 0.
        return np.where(self._logged, np.log1p(np.maximum(x, 0.0)), x)

    def _fill(self, x: np.ndarray) -> np.ndarray:
        is_missing = np.isnan(x)
        return np.concatenate([np.where(is_missing, self._median, x), is_missing[:, self._indicated]], axis=1)

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """Float64 [N, F + indicators], finite."""
        encoded = self._fill(self._log(_table(x, "x", len(self._median))))
        return np.clip((encoded - self._mean) / self._scale, -10, 10)


def _skewness(column: np.ndarray) -> float:
    """Skewness of a non-negative column; 0 where it has negative values or no spread."""
    if column.size < 3 or column.min() < 0 or column.std() == 0:
        return 0.0
    return float(np.mean(((column - column.mean()) / column.std()) ** 3))


@dataclasses.dataclass(frozen=True)
class TabularLogistic:
    """A logistic regression on an encoded table."""

    encoder: TableEncoder
    model: "LogisticRegression"
    l2: float
    validation_loss: float

    def predict_proba(self, x: ArrayLike) -> np.ndarray:
        """P(y = 1), float64 [N]."""
        return self.model.predict_proba(self.encoder(x))[:, 1]


def fit_logistic_regression(
    x_train: ArrayLike,
    y_train: ArrayLike,
    x_val: ArrayLike,
    y_val: ArrayLike,
    l2_grid: Sequence[float] = LOGISTIC_L2_GRID,
) -> TabularLogistic:
    """Logistic regression on `TableEncoder` columns; strength by validation log loss.

    l2 is on the mean scale: mean log loss + l2 / 2 ||coef||^2. Arguments and errors as in
    `fit_gradient_boosting`.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    x_train, y_train, x_val, y_val = _check(x_train, y_train, x_val, y_val)
    encoder = TableEncoder(x_train)
    z_train, z_val = encoder(x_train), encoder(x_val)
    best: TabularLogistic | None = None
    for l2 in sorted(l2_grid, reverse=True):
        model = LogisticRegression(C=1 / (l2 * len(z_train)), solver="newton-cholesky", tol=1e-6, max_iter=200)
        with warnings.catch_warnings():
            # An unconverged fit is still a valid candidate: validation loss judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(z_train, y_train)
        loss = log_loss(y_val, model.predict_proba(z_val)[:, 1], labels=[0, 1])
        if best is None or loss < best.validation_loss:
            best = TabularLogistic(encoder, model, l2, loss)
    if best is None:
        raise ValueError("l2_grid is empty")
    return best
