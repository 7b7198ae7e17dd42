"""Fits gradient-boosted trees on sparse features: log loss, Cox's partial likelihood or squared error.

Settings and the number of trees are chosen by the loss on the tuning rows, never on a random part of the training rows,
which would mix rows of one patient; the best few models are averaged, and none is refitted on the tuning rows. What a
row does not store is missing, and every split learns where missing rows go; under Cox's likelihood it is the mean.
"""

import dataclasses
import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ehrwear_jax.models.tabular.losses import Loss

if TYPE_CHECKING:  # loaded by what fits: a start that finds everything done does not wait for it
    import lightgbm

# leaves (depth), rows of a leaf, share of columns, learning rate, l2. Shallow trees on a fifth of the columns come
# first; a search of fewer candidates is the head of this list.
_TABLE = (
    (8, 3, 20, 0.2, 0.05, 1.0), (31, -1, 100, 0.2, 0.03, 10.0), (4, 2, 50, 0.2, 0.1, 10.0),
    (15, 4, 50, 0.5, 0.05, 10.0), (15, 5, 20, 0.2, 0.05, 100.0), (8, 3, 100, 1.0, 0.05, 10.0),
    (31, -1, 50, 0.5, 0.05, 100.0), (4, 2, 200, 0.5, 0.1, 1.0), (15, -1, 200, 0.2, 0.05, 1.0),
    (63, -1, 20, 0.2, 0.03, 100.0), (15, 4, 100, 1.0, 0.05, 100.0), (8, 4, 50, 0.1, 0.1, 30.0),
)  # fmt: skip
_NAMES = ("num_leaves", "max_depth", "min_data_in_leaf", "feature_fraction", "learning_rate", "lambda_l2")
CANDIDATES: tuple[dict[str, Any], ...] = tuple(dict(zip(_NAMES, row, strict=True)) for row in _TABLE)
# One thread a model: OpenMP's threads spin while they wait for each other, and candidates run side by side anyway.
_ALWAYS: dict[str, Any] = {
    "verbosity": -1, "num_threads": 1, "deterministic": True, "force_col_wise": True, "max_bin": 63,
    "feature_pre_filter": False, "bagging_fraction": 0.8, "bagging_freq": 1,
    "objective": "none", "metric": "none", "histogram_pool_size": 64.0,
}  # fmt: skip

_BINNED_ENTRIES = 2_000_000


@dataclasses.dataclass(frozen=True)
class Search:
    """How settings and the number of trees are searched.

    Attributes:
      candidates: settings to try; the first wins ties.
      max_trees: of a model. patience: a candidate stops once its best tree is so many trees ago.
      averaged: models of lowest tuning loss whose scores are averaged.
      seed: of the rows and columns that trees are given.
    """

    candidates: Sequence[Mapping[str, Any]] = CANDIDATES
    max_trees: int = 1000
    patience: int = 50
    averaged: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.max_trees, self.patience, self.averaged, len(self.candidates)) < 1:
            raise ValueError("max_trees, patience and averaged must be positive, and there must be a candidate")


@dataclasses.dataclass(frozen=True)
class Boosted:
    """One boosted model, cut at the number of trees with the lowest tuning loss.

    Attributes:
      model: of the cut. n_trees: in it.
      settings: of the candidate. tuning_loss: at the cut, in the library's units.
    """

    model: "lightgbm.Booster"
    n_trees: int
    settings: Mapping[str, Any]
    tuning_loss: float

    def score(self, x: sparse.csr_matrix) -> np.ndarray:
        """Log-odds, log-hazard or value, float64 [N]."""
        return np.asarray(self.model.predict(x, num_threads=1, raw_score=True), np.float64)


@dataclasses.dataclass(frozen=True)
class BoostedAverage:
    """The models of lowest tuning loss, best first; their scores are averaged."""

    models: tuple[Boosted, ...]

    def score(self, x: sparse.csr_matrix) -> np.ndarray:
        """Log-odds, log-hazard or value, float64 [N]."""
        return np.mean([m.score(x) for m in self.models], axis=0)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows as LightGBM keeps them, a byte or two per entry; the table that they were made of need not live on.

    Attributes:
      data: the library's. loss: of the rows.
    """

    data: "lightgbm.Dataset"
    loss: Loss

    @classmethod
    def of(cls, x: sparse.csr_matrix, loss: Loss) -> "Rows":
        """Training rows, from encoded features float32 [N, F]: the bins are fitted on them."""
        # rows that bins are made of, in bounded memory
        sample = max(_BINNED_ENTRIES * x.shape[0] // max(x.nnz, 1), 5000)
        settings = _ALWAYS | {"bin_construct_sample_cnt": sample, "zero_as_missing": loss.unknown_is_missing}
        return cls(_library().Dataset(x, loss.target, params=settings, free_raw_data=True).construct(), loss)

    def like(self, x: sparse.csr_matrix, loss: Loss) -> "Rows":
        """Further rows, in these bins."""
        data = _library().Dataset(x, loss.target, reference=self.data, params=self.data.params, free_raw_data=True)
        return Rows(data.construct(), loss)


def fit(train: Rows, tuning: Rows, search: Search = Search()) -> BoostedAverage:
    """Boosted trees; the same bits whatever the number of cores.

    Memory: beside the rows, histograms of a model per core, and the trees of the best models so far.

    Args:
      tuning: in the bins of the training rows.
    """
    lightgbm = _library()
    lock = threading.Lock()
    best: list[tuple[float, int, Boosted]] = []

    def run(job):
        number, candidate = job
        settings = {**_ALWAYS, **train.loss.boosting, **candidate, "seed": 1000 * search.seed + number + 1}
        settings["zero_as_missing"] = train.loss.unknown_is_missing
        with lock:  # here, as the library's log level is a thread's own
            booster = lightgbm.Booster(settings, train.data)
            booster.add_valid(tuning.data, "tuning")
        n_trees, loss = _boost(booster, train.loss, tuning.loss, search)
        text = booster.model_to_string(num_iteration=n_trees)  # the trees alone, without what training them took
        found = Boosted(lightgbm.Booster(model_str=text), n_trees, candidate, loss)
        with lock:
            best.append((loss, number, found))  # the first of equal losses comes first
            best.sort(key=lambda one: one[:2])
            del best[search.averaged :]

    jobs = list(enumerate(search.candidates))
    with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
        list(pool.map(run, jobs))
    return BoostedAverage(tuple(found for *_, found in best))


def _library():
    """LightGBM; OSError in one sentence where the system lacks what it is linked with."""
    try:
        import lightgbm
    except OSError as error:
        remedy = "install OpenMP's runtime (Debian and Ubuntu: libgomp1; Homebrew: libomp)"
        raise OSError(f"LightGBM cannot be loaded ({error}): {remedy}") from error
    return lightgbm


def _boost(booster: "lightgbm.Booster", train: Loss, tuning: Loss, search: Search) -> tuple[int, float]:
    """(trees, tuning loss) of the best cut; the booster is trained until the loss stops falling."""

    def objective(score_N, _):
        return train.derivatives(score_N)

    def evaluation(score_N, _):
        return "loss", tuning.mean(score_N), False

    own = not train.boosting  # the library's own losses are faster
    best, best_loss = 0, math.inf
    for n in range(1, search.max_trees + 1):
        try:
            ended = booster.update(fobj=objective) if own else booster.update()
        except _library().basic.LightGBMError as error:
            # rows per leaf are reckoned from second derivatives: a split may turn out to leave one side empty
            if n == 1 or "left_count" not in str(error) and "right_count" not in str(error):
                raise
            logging.info("  boosting ended at tree %d: %s", n, str(error).split(" at ")[0])
            break
        loss = booster.eval_valid(evaluation if own else None)[0][2]
        if loss < best_loss:
            best, best_loss = n, loss
        if ended or n - best >= search.patience:  # ended: no split is left
            break
    return best, best_loss
