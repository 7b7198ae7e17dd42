"""One call makes every length of time of a config fit hours; without it, all are as they were."""

import runpy

import ml_collections
import pytest
from repo import REPO

from ehrwear_jax import config as config_lib
from ehrwear_jax.config import reference, time_scale


def read(config, name):
    for part in name.split("."):
        config = config[part]
    return config


def test_lengths_shrink_together_and_nothing_else_changes():
    before, after = config_lib.base(), config_lib.base()
    spans = (0.25, 0.5)
    config_lib.set_time_scale(after, 1 / 24, window_hours=2, step_minutes=5, spans_days=spans)
    for name in time_scale.LENGTHS:
        length = read(before, name)
        expected = tuple(x / 24 for x in length) if isinstance(length, tuple) else length / 24
        assert read(after, name) == pytest.approx(expected), name
    changed = {"joint.context.horizons": spans, "evaluate.feature_ranges_days": spans, "prepare.window_hours": 2,
               "prepare.step_minutes": 5}  # fmt: skip
    for name, value in changed.items():
        assert read(after, name) == value
        *parts, key = name.split(".")
        read(after, ".".join(parts))[key] = read(before, name)
    for name in time_scale.LENGTHS:
        *parts, key = name.split(".")
        read(after, ".".join(parts))[key] = read(before, name)
    assert after.to_dict() == before.to_dict()
    config_lib.parse(after)


def test_no_length_of_time_of_the_networks_is_forgotten():
    """Every option of joint models whose name ends in _days or _spans is scaled, or is 0: nothing."""
    base, ends = config_lib.base(), ("_days", "_spans")
    lengths = {o.name for o in reference.entries() if o.name.startswith("joint.") and o.name.endswith(ends)}
    others = {name for name in lengths - set(time_scale.LENGTHS) if read(base, name)}
    assert lengths and not others


def test_the_icu_config_is_one_of_hours():
    config = runpy.run_path(str(REPO / "configs" / "physionet2012.py"))["get_config"]("")
    assert config.joint.network.time_unit_days == pytest.approx(1 / 24)
    assert max(config.joint.context.horizons) <= 1.0 and max(config.evaluate.feature_ranges_days) <= 1.0
    assert isinstance(config, ml_collections.ConfigDict)
    windows = 48 // config.prepare.window_hours + 1
    assert windows <= config.joint.context.windows
