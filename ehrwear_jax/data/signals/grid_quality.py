"""Measures the quality of each step of the grid, 0 to 1, from the samples that were pooled into it.

In each step and channel: the share of the step's time that observed samples fill that are no artefact, times, where
the rate holds the pulse band, the share of their power that a pulse explains (quality.segment_quality, in segments of
about 8 s). Of several devices the best one counts. A step's quality is a function of the samples that were pooled into
it (grid.pool_row) and of no others.
"""

from collections.abc import Iterable

import numpy as np

from ehrwear_jax.data.formats.stretches import Limits, Stretch, channel_limits, sample_edges
from ehrwear_jax.data.signals import grid, overlap, quality
from ehrwear_jax.data.signals.filters import holds_band


def of_person(rows: Iterable[Stretch], end_us_M: np.ndarray, spec: grid.WindowSpec, limits: Limits) -> np.ndarray:
    """Quality of the steps of one person's windows, in 255ths.

    Args:
      rows: recorded stretches.
      end_us_M: when the windows end, increasing, microseconds since the epoch.
      spec: the grid.
      limits: plausible range of each channel.

    Returns:
      uint8 [M, L, C].
    """
    quality_MxLxC = np.zeros((len(end_us_M), spec.steps, len(spec.channels)))
    window_M = np.asarray(end_us_M, np.int64) // spec.window_us - 1
    of_source = overlap.by_source(rows, spec.channels)
    for channel, source in sorted(of_source):
        low_high = channel_limits(limits, channel)
        mine_MxL = np.zeros(quality_MxLxC.shape[:2])
        for start_us, rate_hz, values_N in overlap.without_repeats(of_source[channel, source])[0]:
            step_quality = _of_waves if holds_band(rate_hz) else _of_samples
            step_K, quality_K = step_quality(start_us, rate_hz, values_N, spec, low_high)
            at_K = np.searchsorted(window_M, step_K // spec.steps)
            there_K = np.append(window_M, np.iinfo(np.int64).max)[at_K] == step_K // spec.steps
            np.add.at(mine_MxL, (at_K[there_K], step_K[there_K] % spec.steps), quality_K[there_K])
        at = spec.channels.index(channel)
        quality_MxLxC[..., at] = np.maximum(quality_MxLxC[..., at], mine_MxL)
    return np.rint(255 * np.clip(quality_MxLxC, 0, 1)).astype(np.uint8)


def of_wave(values_N: np.ndarray, rate_hz: float, low: float = -np.inf, high: float = np.inf) -> float:
    """Quality of a short piece of signal, 0 to 1: the mean of quality.segment_quality, 0 where it cannot be judged.

    The segments are equally long, since one that is cut short cannot be judged.
    """
    n_segments, segment_s = _equal_segments(len(values_N), rate_hz)
    bad_N = quality.artefacts(values_N, rate_hz, low, high, segment_s=segment_s)
    return float(np.nan_to_num(quality.segment_quality(values_N, rate_hz, bad_N, segment_s)[:n_segments]).mean())


def without_artefacts(values_N: np.ndarray, rate_hz: float) -> np.ndarray:
    """A short piece of a pulse wave with NaN in place of quality.artefacts, as itself shows them.

    They are judged in segments as in `of_wave`; where the pulse band is not held nothing is taken out.
    """
    bad_N = quality.artefacts(values_N, rate_hz, segment_s=_equal_segments(len(values_N), rate_hz)[1])
    return np.where(bad_N, np.nan, values_N)


def _equal_segments(n: int, rate_hz: float) -> tuple[int, float]:
    """(number, seconds) of equally long segments of n samples, of about quality.SEGMENT_S."""
    n_segments = max(round(n / (quality.SEGMENT_S * rate_hz)), 1)
    return n_segments, max(n // n_segments, 1) / rate_hz


def _of_samples(
    start_us: int, rate_hz: float, values_N: np.ndarray, spec: grid.WindowSpec, low_high: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(step of the grid [K], share of its time that plausible samples fill [K]); a long sample fills whole steps."""
    step_K, _, count_K = grid.pool_row(start_us, rate_hz, values_N, spec, *low_high)
    return step_K, count_K / max(spec.step_minutes * 60 * rate_hz, 1.0)


def _of_waves(
    start_us: int, rate_hz: float, values_N: np.ndarray, spec: grid.WindowSpec, low_high: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """As _of_samples, of a wave that can show a pulse: artefacts left out, and times the pulse's share of the power."""
    edge_N = sample_edges(start_us, rate_hz, len(values_N))
    # a sample belongs where pool_row puts it
    step_N = np.maximum(edge_N[:-1], (edge_N[1:] - 1) // spec.window_us * spec.window_us) // spec.step_us
    first_K = np.flatnonzero(np.append(True, step_N[1:] != step_N[:-1]))
    quality_K = np.zeros(len(first_K))
    for k, part_N in enumerate(np.split(np.asarray(values_N, np.float64), first_K[1:])):
        quality_K[k] = of_wave(part_N, rate_hz, *low_high) * len(part_N)
    return step_N[first_K], quality_K / (spec.step_minutes * 60 * rate_hz)
