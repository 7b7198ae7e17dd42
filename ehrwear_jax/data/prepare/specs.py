"""Derives from the options of prepare what its parts take: bounds of times, the grid of windows, sets of segments."""

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.segment_spec import SegmentSpec
from ehrwear_jax.data.formats import meds_checks
from ehrwear_jax.data.signals import grid, segments


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
