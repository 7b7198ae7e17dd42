"""Finds the options of model families by name; the families' networks are not imported here.

A family of the package is a folder ehrwear_jax/models/<name> whose config.py declares Config. A family outside of it is
a module, named by its dotted path, that holds Config and whatever else models/family.py asks for.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from ehrwear_jax.config import options

PACKAGE = "ehrwear_jax.models"
# Families whose options may be set for all their models at once, in a part of the config of their name.
SHARED = ("joint",)
# Families of other papers' models, which declare entries of config.models as they were published.
PUBLISHED = ("motor", "cehr_bert", "context_clues", "himae", "papagei", "motif_distance", "pulse_ppg")


def config_class(family: str) -> type:
    """The option dataclass of a family.

    Raises:
      ValueError: there is no such family.
    """
    name = family if "." in family else f"{PACKAGE}.{family}.config"
    try:
        return importlib.import_module(name).Config
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"there is no model family {family!r}: {error}") from error


def published() -> dict[str, dict[str, Any]]:
    """{name: entry of config.models} of the models of other papers, with their sizes, batches and rates."""
    modules = (importlib.import_module(f"{PACKAGE}.{family}.config") for family in PUBLISHED)
    return {name: dict(entry) for module in modules for name, entry in module.PUBLISHED.items()}


def config(family: str, values: Mapping[str, Any], path: str) -> Any:
    """A family's Config with these values; ValueError names the key below `path`."""
    return options.build(config_class(family), values, path)


def is_network(family: str) -> bool:
    """Whether models of a family are networks, which are pretrained; others are fitted per task."""
    return getattr(config_class(family), "IS_NETWORK", True)


def has_latents(family: str) -> bool:
    """Whether z of a family's networks is what tasks are predicted from; others are trained for networks that need
    them."""
    return is_network(family) and getattr(config_class(family), "HAS_LATENTS", True)
