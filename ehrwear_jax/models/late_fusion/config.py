"""Declares the options of late fusion: latents of several models side by side."""

import dataclasses
from typing import ClassVar

from ehrwear_jax.config import options


@dataclasses.dataclass(frozen=True)
class Config:
    """Late fusion; nothing is trained but the probes."""

    IS_NETWORK: ClassVar[bool] = False

    members: tuple = ("ehr_only", "wear_only")
    """Models whose latents are concatenated."""
    groups: tuple = options.added(())
    """Groups of models, such as (("ehr_only", "motor"), ("wear_only", "himae")), that stand in place of `members`: of
    each group the one is fused whose probe predicts the task best on the fold's tuning people. What is looked into
    beside the tasks' predictions has the latents of all of them. Empty: all of `members` are fused."""

    def __post_init__(self) -> None:
        fused = self.groups or self.members
        if len(fused) < 2:
            raise ValueError(f"config.models: late fusion of {fused}; it takes at least two members")
        if bad := [g for g in self.groups if not isinstance(g, tuple | list) or not g]:
            raise ValueError(f"config.models: late fusion of groups of which one is {bad[0]!r}, no list of models")

    @property
    def networks(self) -> tuple[str, ...]:
        """All models whose latents are read."""
        return tuple(m for group in self.groups for m in group) if self.groups else tuple(self.members)
