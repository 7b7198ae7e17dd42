"""Declares the options of models on hand-made features at each prediction time."""

import dataclasses
from typing import ClassVar

from ehrwear_jax.config import options

ESTIMATORS = ("boosting", "linear", "average", "kernel")
MODALITIES = ("ehr", "wear")
FEATURES = ("all", "counts", "demographics", "none")


@dataclasses.dataclass(frozen=True)
class Config:
    """A model on hand-made features; it is fitted per task, where it is evaluated."""

    IS_NETWORK: ClassVar[bool] = False

    estimator: str = "boosting"
    """Estimator, of binary, time-to-event and regression tasks. boosting: gradient-boosted trees with log loss, Cox's
    partial likelihood or squared error; linear: logistic, Cox or ridge regression on values in standard deviations, or
    on their normal scores and the squares of these, as the tuning split chooses; average: the mean of both models'
    log-odds, log-hazards or values; kernel: logistic, Cox or ridge regression with a Gaussian kernel (kernel.py)."""
    modalities: tuple = MODALITIES
    """Modalities whose features the model is given."""
    features: str = "all"
    """Features that the model is given. all: every one of its modalities; counts: how often each code and ancestor
    occurred, in each range; demographics: age and the static codes of sex_prefixes; none: latents alone."""
    latents: tuple = ()
    """Models of the config, networks or late fusion, whose latents are features too: what z adds to the table."""
    sex_prefixes: tuple = ("GENDER//", "SEX//")
    """Prefixes of the codes of a person's sex."""
    candidates: int = 12
    """Number of settings of boosted trees that are tried; the tuning split chooses among them."""
    max_trees: int = 1000
    """Most trees of a boosted model; the tuning split stops it earlier."""
    averaged: int = 3
    """Number of boosted models, or kernels, of lowest tuning loss whose predictions are averaged."""
    seed: int = 0
    """Seed of the rows and columns that each tree is given."""

    def __post_init__(self) -> None:
        options.require_choice("config.models", "estimator", self.estimator, ESTIMATORS)
        options.require_choice("config.models", "features", self.features, FEATURES)
        if not self.modalities or set(self.modalities) - set(MODALITIES):
            raise ValueError(f"config.models: modalities are {self.modalities}; they can be {' and '.join(MODALITIES)}")
        if self.features == "none" and not self.latents:
            raise ValueError("config.models: features none are of nothing unless latents name a model")
        if self.features in ("counts", "demographics") and "ehr" not in self.modalities:
            raise ValueError(f"config.models: features {self.features} are of modality ehr, which modalities lack")
        if min(self.candidates, self.max_trees, self.averaged) < 1:
            raise ValueError("config.models: candidates, max_trees and averaged must be positive")
