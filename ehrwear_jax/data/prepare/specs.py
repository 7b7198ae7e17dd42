"""Derives from the options of prepare what its parts take: bounds of times, the grid of windows, sets of segments.

Options that say "auto" stand for what the data's channels allow. `resolve` finds that when tables are made and notes it
beside them, for what is made of the tables.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from ehrwear_jax.config.data import ACCELERATION_CHANNELS, AUTO, PrepareConfig
from ehrwear_jax.config.segment_spec import SegmentSpec
from ehrwear_jax.data.formats import meds_checks, wearable
from ehrwear_jax.data.formats.parquet import write_json
from ehrwear_jax.data.signals import derived_features, grid, non_wear, raw_acceleration, segments

RESOLVED = "resolved.json"


def time_bounds(config: PrepareConfig) -> meds_checks.TimeBounds:
    """The times that a row may have."""
    return meds_checks.time_bounds(config.first_date, config.extraction_date)


def window_spec(config: PrepareConfig) -> grid.WindowSpec:
    """The grid of wearable windows."""
    return grid.WindowSpec(tuple(config.channels), config.window_hours, config.step_minutes, config.min_coverage)


def segment_specs(config: PrepareConfig) -> dict[str, SegmentSpec]:
    """{name: spec} of the sets of segments; ValueError for some that cannot be, as without a grid to lie in."""
    if config.segments and not config.channels:
        raise ValueError("config.prepare.segments needs config.prepare.channels, in whose windows segments lie")
    for spec in config.segments.values():
        segments.cell_steps(spec, window_spec(config))
    return dict(config.segments)


# ------------------------------------------------------------------------------------------------------------ auto
def resolve(config: PrepareConfig, wearable_dir: Path | None, out: Path) -> PrepareConfig:
    """The options without "auto", noted in OUT/resolved.json where there was one."""
    if not _is_auto(config):
        return config
    unit_of = {} if wearable_dir is None else wearable.units(wearable.read_channels(wearable_dir))
    if config.acceleration == (AUTO,):
        threes = non_wear.three_axes(unit_of) if not set(ACCELERATION_CHANNELS) & set(unit_of) else []
        config = dataclasses.replace(config, acceleration=threes[0] if threes else ())
    found = derived_features.automatic(config.summaries, config.channels, made_units(config, unit_of))
    noted = {"acceleration": list(config.acceleration), "summaries": list(found)}
    write_json(noted, out / RESOLVED)
    return dataclasses.replace(config, summaries=found)


def resolved(config: PrepareConfig, tables: Path) -> PrepareConfig:
    """The options as `resolve` noted them when these tables were made."""
    if not _is_auto(config):
        return config
    noted = json.loads((tables / RESOLVED).read_text())
    acceleration, summaries = (tuple(noted[name]) for name in ("acceleration", "summaries"))
    return dataclasses.replace(config, acceleration=acceleration, summaries=summaries)


def _is_auto(config):
    return AUTO in (*config.acceleration, *config.summaries)


def made_units(config: PrepareConfig, unit_of: Mapping[str, str]) -> dict[str, str]:
    """{channel: its unit} of the declared ones and of those that are made of raw acceleration.

    Raises:
      ValueError: one that is to be made is declared.
    """
    if config.acceleration and (twice := sorted(set(raw_acceleration.UNITS) & set(unit_of))):
        raise ValueError(
            f"config.prepare.acceleration makes a channel {twice[0]!r}, which metadata/channels.parquet declares"
        )
    return dict(unit_of) | (raw_acceleration.UNITS if config.acceleration else {})
