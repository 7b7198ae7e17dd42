"""Resolves overlapping stretches of one channel: decides which recorded samples are used. Nothing is averaged.

A source is a device (also the unnamed one) at one sampling rate, rates within about 2% taken as one.

Within a source: of two stretches that overlap, the one that starts first (then the first in the file) is used. A sample
of the other is left out if its middle lies inside an observed sample of the first that was complete when it was. An
upload that arrived twice therefore counts once.

Between sources: in each window and channel the source with most observed steps is used, at a tie the device whose name
sorts first (unnamed last), then the higher rate; each of the others, in that order, gives only the steps that those
before it lack. Neither rule looks at anything beyond the window.
"""

import math
from collections.abc import Container, Iterable

import numpy as np

from ehrwear_jax.data.formats.stretches import Stretch, sample_edges

Source = tuple[bool, str, int]
Samples = tuple[int, float, np.ndarray]
"""start_us, rate_hz and values_N of a stretch of a known channel and source."""
# Names of the counts and what they say.
COUNTS = {
    "samples of overlapping stretches": "an earlier stretch of the same channel and device has the time",
    "steps of a further device": "observed by several devices or rates, the one with most steps in the window is used",
}


def source(device: str | None, rate_hz: float) -> Source:
    """Sortable by preference at a tie: (unnamed, name, -rate class)."""
    return device is None, device or "", -round(math.log(rate_hz) / math.log(1.02))


def by_source(rows: Iterable[Stretch], channels: Container[str]) -> dict[tuple[str, Source], list[Samples]]:
    """Groups the stretches of some channels by (channel, source), in their order; empty ones are left out."""
    found: dict[tuple[str, Source], list[Samples]] = {}
    for start_us, rate_hz, channel, values_N, device, *_ in rows:
        if channel in channels and len(values_N):
            found.setdefault((channel, source(device, rate_hz)), []).append((start_us, rate_hz, values_N))
    return found


def without_repeats(rows: list[Samples]) -> tuple[list[Samples], int]:
    """Takes out of the stretches of one channel and source the samples that an earlier stretch has.

    Args:
      rows: list of (start_us, rate_hz, values_N), in the order of the file.

    Returns:
      (rows, n_samples): by start, with NaN for the samples left out; how many observed ones there were.
    """
    kept: list[Samples] = []
    open_rows: list[tuple[int, int, float, np.ndarray]] = []
    n_left_out = 0
    for start_us, rate_hz, values_N in sorted(rows, key=lambda row: row[0]):
        open_rows = [row for row in open_rows if row[0] > start_us]
        edge_N = sample_edges(start_us, rate_hz, len(values_N) if open_rows else 0)
        for _, other_start, other_rate, other_values in open_rows:
            other_edge = sample_edges(other_start, other_rate, len(other_values))
            middle_N = (edge_N[:-1] + edge_N[1:]) // 2
            at_N = np.searchsorted(other_edge, middle_N, side="right") - 1
            inside_N = (at_N >= 0) & (at_N < len(other_values))
            at_N = np.where(inside_N, at_N, 0)
            repeated_N = inside_N & np.isfinite(other_values[at_N]) & (other_edge[at_N + 1] <= edge_N[1:])
            repeated_N &= np.isfinite(values_N)
            if repeated_N.any():
                n_left_out += int(repeated_N.sum())
                values_N = np.where(repeated_N, np.nan, values_N)
        end_us = start_us + round(len(values_N) * (1e6 / rate_hz))
        open_rows.append((end_us, start_us, rate_hz, np.asarray(values_N)))
        kept.append((start_us, rate_hz, values_N))
    return kept, n_left_out


def choose_source(values_DxMxLxC: np.ndarray) -> tuple[np.ndarray, int]:
    """Takes one source's value per step.

    Args:
      values_DxMxLxC: NaN where a source observed nothing; sources in order of preference at a tie.

    Returns:
      (values_MxLxC, n_steps): n_steps values of further sources are left out.
    """
    if len(values_DxMxLxC) == 1:
        return values_DxMxLxC[0], 0
    seen = np.isfinite(values_DxMxLxC)
    order_DxMx1xC = np.argsort(-seen.sum(axis=2, keepdims=True), axis=0, kind="stable")
    first_1xMxLxC = np.take_along_axis(seen, order_DxMx1xC, axis=0).argmax(axis=0, keepdims=True)
    ordered = np.take_along_axis(values_DxMxLxC, order_DxMx1xC, axis=0)
    chosen = np.take_along_axis(ordered, first_1xMxLxC, axis=0)[0]
    return chosen, int(np.maximum(seen.sum(axis=0) - 1, 0).sum())
