"""Families are found by name, in the package and outside of it, and what is none is said."""

import sys
import types

import pytest

from ehrwear_jax.models import registry
from ehrwear_jax.models.joint import family as joint


def test_a_family_of_the_package_is_found_by_its_folder():
    assert registry.load("joint") is joint


def test_a_family_outside_the_package_is_found_by_its_module():
    assert registry.load("ehrwear_jax.models.joint.family") is joint


@pytest.mark.parametrize("name", ["cubist", "nowhere.at_all"])
def test_a_family_that_there_is_not_is_said(name):
    with pytest.raises(ValueError, match=f"there is no model family '{name}'"):
        registry.load(name)


def test_what_a_module_lacks_is_said(monkeypatch):
    half = types.ModuleType("half.family")
    for name in ("Config", "examples", "network"):
        setattr(half, name, None)
    monkeypatch.setitem(sys.modules, "half", types.ModuleType("half"))
    monkeypatch.setitem(sys.modules, "half.family", half)
    with pytest.raises(ValueError, match="half.family is no model family: it has no objective"):
        registry.load("half.family")
