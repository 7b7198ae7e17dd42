"""Declares the options of models on hand-made features at each prediction time."""

import dataclasses
from typing import ClassVar

from ehrwear_jax.config import options

ESTIMATORS = ("boosting", "linear")
MODALITIES = ("ehr", "wear")


@dataclasses.dataclass(frozen=True)
class Config:
    """A model on hand-made features; it is fitted per task, where it is evaluated."""

    IS_NETWORK: ClassVar[bool] = False

    estimator: str = "boosting"
    """Estimator. boosting: gradient boosting, of binary tasks; linear: logistic regression, Cox or ridge, as the task
    asks."""
    modalities: tuple = MODALITIES
    """Modalities whose features the model is given."""
    codes: int = 64
    """Most codes with features of their own."""

    def __post_init__(self) -> None:
        options.require_choice("config.models", "estimator", self.estimator, ESTIMATORS)
        if not self.modalities or set(self.modalities) - set(MODALITIES):
            raise ValueError(f"config.models: modalities are {self.modalities}; they can be {' and '.join(MODALITIES)}")
