"""Tells what latents hold: how well linear probes read each feature of a table from z, on other people.

Rows are prediction times: N of training, M of tuning, T of held-out people; D dimensions of z, F features, NaN where a
feature is unknown. What cannot be read from z linearly, a frozen linear probe cannot use.
"""

from collections.abc import Mapping

import numpy as np

from ehrwear_jax.evals import probes
from ehrwear_jax.evals.classification import auroc

TAILS = (0.01, 0.99)  # training quantiles that features are clipped to
SPLITS = ("train", "tuning", "held_out")
LEAST_ROWS = 30  # with a known feature, of each split
_LEAST_OF_CLASS = 5  # held-out rows of either value of a binary feature


def scores(z: Mapping[str, np.ndarray], x: Mapping[str, np.ndarray], binary_F: np.ndarray) -> list[dict | None]:
    """How well each feature is read from z at the held-out times where it is known.

    A ridge regression is fitted on the training rows with the feature, its strength chosen on the tuning rows. A
    feature is clipped to training quantiles before: one absurd value decides no R2.

    Args:
      z: {split of SPLITS: float [rows, D]}. x: {split: float [rows, F]}. binary_F: bool, features of 0 and 1.

    Returns:
      Per feature {"measure": "r2" (1 - squared error over that of the held-out mean) or "auroc" of a binary one,
      "value", "n": held-out rows, "n_train": training rows}; None of one that too few rows have, or that does not vary.
    """
    x = _clipped(x)
    found: list[dict | None] = [None] * len(binary_F)
    for columns_K, rows in _patterns(x):
        if min(len(r) for r in rows.values()) < LEAST_ROWS:
            continue
        y = {s: x[s][np.ix_(rows[s], columns_K)] for s in SPLITS}
        varies_K = np.min([y[s].std(axis=0) for s in SPLITS], axis=0) > 1e-9
        columns_K, y = columns_K[varies_K], {s: y[s][:, varies_K] for s in SPLITS}
        if not len(columns_K):
            continue
        # in standard deviations: the solver's accuracy does not depend on a feature's unit
        scale_K = y["train"].std(axis=0)
        fitted = probes.fit_ridge(z["train"][rows["train"]], y["train"] / scale_K, z["tuning"][rows["tuning"]],
                                  y["tuning"] / scale_K)  # fmt: skip
        predicted = fitted.predict(z["held_out"][rows["held_out"]])
        for k, column in enumerate(columns_K):
            score = _score(y["held_out"][:, k] / scale_K[k], predicted[:, k], bool(binary_F[column]))
            if score is not None:
                found[column] = score | {"n": len(predicted), "n_train": len(rows["train"])}
    return found


def _clipped(x):
    with np.errstate(invalid="ignore"):
        known_F = np.isfinite(x["train"]).any(axis=0)
        low_F, high_F = np.full((2, len(known_F)), np.nan)
        low_F[known_F], high_F[known_F] = np.nanquantile(x["train"][:, known_F], TAILS, axis=0)
        is_rare_F = low_F == high_F  # a count that few have: clipping would leave nothing of it
        low_F, high_F = np.where(is_rare_F, -np.inf, low_F), np.where(is_rare_F, np.inf, high_F)
        return {s: np.clip(x[s], low_F, high_F) for s in SPLITS}


def _patterns(x):
    """(features, {split: rows where they are known}) of the features that are known at the same times."""
    known = {s: np.isfinite(x[s]) for s in SPLITS}
    groups: dict[bytes, list[int]] = {}
    packed = np.packbits(np.concatenate([known[s] for s in SPLITS]), axis=0)
    for column in range(packed.shape[1]):
        groups.setdefault(packed[:, column].tobytes(), []).append(column)
    for columns in groups.values():
        yield np.array(columns), {s: np.flatnonzero(known[s][:, columns[0]]) for s in SPLITS}


def _score(y_T, predicted_T, is_binary):
    if is_binary:
        positive_T = y_T > 0.5 * (y_T.min() + y_T.max())
        if min(positive_T.sum(), (~positive_T).sum()) < _LEAST_OF_CLASS:
            return None
        return {"measure": "auroc", "value": float(auroc(positive_T.astype(float), predicted_T))}
    spread = np.mean((y_T - y_T.mean()) ** 2)
    return {"measure": "r2", "value": float(1 - np.mean((y_T - predicted_T) ** 2) / spread)}
