"""The bag of codes as a network that only others need."""

import dataclasses
from typing import ClassVar

from toy_families import bag_of_codes
from toy_families.bag_of_codes import examples, flops, network, objective

__all__ = ["Config", "examples", "flops", "network", "objective"]


@dataclasses.dataclass(frozen=True)
class Config(bag_of_codes.Config):
    """Options."""

    HAS_LATENTS: ClassVar[bool] = False
