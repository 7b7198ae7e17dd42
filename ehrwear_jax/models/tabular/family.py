"""Fits models on hand-made features, a model per task; a family without a network (stages/predictors.py).

Array suffixes: N rows, F features; NaN is missing.
"""

from collections.abc import Callable, Mapping

import numpy as np
import polars as pl

from ehrwear_jax.models.tabular import estimators, features
from ehrwear_jax.models.tabular.config import Config

__all__ = ["Config", "columns", "encoder", "probabilities"]

Split = Mapping[str, np.ndarray]  # {"train", "tuning", "held_out": [N, ...]}


def columns(config: Config, table: pl.DataFrame) -> list[str]:
    """The features that a model is given, of features.build_features; [] where it would be another one's or has none.

    A model of fewer modalities than there are differs from one of all only where the table has features of both.
    """
    groups = features.feature_groups(table)
    there = [m for m in ("ehr", "wear") if groups[m]]
    mine = [m for m in there if m in config.modalities]
    if not mine or (len(config.modalities) == 1 and len(there) == 1):
        return []
    return [name for m in mine for name in groups[m]]


def probabilities(config: Config, x: Split, y: Split) -> dict[str, np.ndarray]:
    """{"tuning", "held_out": P(y = 1) float64 [N]} of a binary task.

    Args:
      x: float64 [N, F] by split. y: 0/1 [N] of train and tuning.
    """
    fits: dict[str, Callable] = {
        "boosting": estimators.fit_gradient_boosting,
        "linear": estimators.fit_logistic_regression,
    }
    model = fits[config.estimator](x["train"], y["train"], x["tuning"], y["tuning"])
    return {split: model.predict_proba(x[split]) for split in ("tuning", "held_out")}


def encoder(x_NxF: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What makes features fit for a linear model (missing ones imputed and flagged, skewed ones transformed)."""
    return estimators.TableEncoder(x_NxF)
