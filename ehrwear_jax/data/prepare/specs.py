"""Derives from the options of prepare what its parts take: bounds of times, the grid of windows, raw windows."""

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds_checks
from ehrwear_jax.data.signals import grid, raw_windows


def time_bounds(config: PrepareConfig) -> meds_checks.TimeBounds:
    """The times that a row may have."""
    return meds_checks.time_bounds(config.first_date, config.extraction_date)


def window_spec(config: PrepareConfig) -> grid.WindowSpec:
    """The grid of wearable windows."""
    return grid.WindowSpec(tuple(config.channels), config.window_hours, config.step_minutes, config.min_coverage)


def raw_spec(config: PrepareConfig) -> raw_windows.RawSpec:
    """Raw windows; ValueError for some that cannot be, as without a grid or longer than its steps."""
    channels = config.raw_channels if isinstance(config.raw_channels, str) else tuple(config.raw_channels)
    raw = raw_windows.RawSpec(channels, config.raw_rate_hz, config.raw_seconds, config.raw_per_window, config.raw_score)
    if raw.channels and not config.channels:
        raise ValueError("config.prepare.raw_channels needs config.prepare.channels, in whose windows raw ones lie")
    if raw.channels and raw.seconds > 60 * config.step_minutes:
        raise ValueError(
            f"config.prepare.raw_seconds is {raw.seconds:g}: a raw window must fit into a step of "
            f"config.prepare.step_minutes, {config.step_minutes}"
        )
    return raw
