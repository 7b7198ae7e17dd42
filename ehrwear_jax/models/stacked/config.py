"""Declares the options of stacked predictions: the predictions of several models, weighted by a small one."""

import dataclasses
from typing import ClassVar

from ehrwear_jax.config import options

WEIGHTS = ("fitted", "equal")


@dataclasses.dataclass(frozen=True)
class Config:
    """Stacked predictions, weighted per task (evals/stacking.py)."""

    IS_NETWORK: ClassVar[bool] = False

    members: tuple = ("ehr_only", "wear_only")
    """Models whose predictions are combined: networks (by their probes), late fusion and tabular models."""
    weights: str = "fitted"
    """Weights of the members' log-odds, log-hazards or values. fitted: on the tuning split, never negative; equal: the
    plain mean of the scores, for tuning splits of few events."""

    def __post_init__(self) -> None:
        options.require_choice("config.models", "weights", self.weights, WEIGHTS)
        if len(self.members) < 2:
            raise ValueError(f"config.models: predictions of {self.members} stacked; it takes at least two members")
        if len(set(self.members)) < len(self.members):
            raise ValueError(f"config.models: predictions of {self.members} stacked; a member is named twice")
