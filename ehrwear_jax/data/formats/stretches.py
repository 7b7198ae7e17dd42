"""Represents recorded stretches of wearable channels as arrays."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Limits = Mapping[str, tuple[float, float]]
"""Plausible range of each channel, inclusive, in the channel's unit; see channel_limits for the others."""


class Stretch(NamedTuple):
    """One row of a wearable table: samples of one channel at a fixed rate.

    Attributes:
      start_us: when the first sample begins, microseconds since 1970.
      rate_hz: samples per second.
      channel: name.
      values_N: float [N] in the channel's unit; NaN: missing.
      device: name; None: not known.
      utc_offset_minutes: what the local clock shows beyond start_us; None: not known.
    """

    start_us: int
    rate_hz: float
    channel: str
    values_N: np.ndarray
    device: str | None = None
    utc_offset_minutes: int | None = None


def sample_edges(start_us: int, rate_hz: float, n: int) -> np.ndarray:
    """int64 [n + 1], microseconds: where the n samples of a stretch begin, and where the last one ends."""
    return start_us + np.round(np.arange(n + 1) * (1e6 / rate_hz)).astype(np.int64)


def channel_limits(limits: Limits, channel: str) -> tuple[float, float]:
    """(lowest, highest) plausible value of a channel; infinite for a channel without limits."""
    return limits.get(channel, (-np.inf, np.inf))
