"""Finds model families by name: folders of the package, or modules outside of it by their dotted path."""

import importlib

from ehrwear_jax.models.family import Family

NAMES = ("Config", "examples", "network", "objective", "flops")


def load(family: str) -> Family:
    """The module of a family.

    Raises:
      ValueError: there is no such family, or a name of models/family.py is missing from it.
    """
    name = family if "." in family else f"ehrwear_jax.models.{family}.family"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no model family {family!r}: {error}") from error
    if missing := [n for n in NAMES if not hasattr(module, n)]:
        raise ValueError(f"{name} is no model family: it has no {missing[0]} (ehrwear_jax/models/family.py)")
    return module
