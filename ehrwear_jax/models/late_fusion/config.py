"""Declares the options of late fusion: latents of several models side by side."""

import dataclasses
from typing import ClassVar


@dataclasses.dataclass(frozen=True)
class Config:
    """Late fusion; nothing is trained but the probes."""

    IS_NETWORK: ClassVar[bool] = False

    members: tuple = ("ehr_only", "wear_only")
    """Models whose latents are concatenated."""

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError(f"config.models: late fusion of {self.members}; it takes at least two members")
