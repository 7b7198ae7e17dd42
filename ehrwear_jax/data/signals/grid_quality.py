"""How well each step of the grid was measured, 0 to 1: what the samples behind a pooled value were worth.

In each step and channel: the share of the step's time that observed samples fill that are no artefact, times, where
the rate holds the pulse band, the share of their power that a pulse explains (signal.segment_quality, in segments of
about 8 s). Of several devices the best one counts. A step's quality is a function of the samples that were pooled into
it (signal.pool_row) and of no others.
"""

import numpy as np

from ehrwear_jax.data.signals import overlap, signal

_SEGMENT_S = 8.0


def of_person(rows, end_us_M, spec, limits):
    """Quality of the steps of one person's windows, in 255ths.

    Args:
      rows: list of (start_us, rate_hz, channel, values_N, device).
      end_us_M: when the windows end, increasing. spec: signal.WindowSpec.
      limits: {channel: (low, high)}, either may be None.

    Returns:
      uint8 [M, L, C].
    """
    quality_MxLxC = np.zeros((len(end_us_M), spec.steps, len(spec.channels)))
    step_us = spec.step_minutes * 60_000_000
    window_M = np.asarray(end_us_M, np.int64) // (spec.steps * step_us) - 1
    of = {}
    for start_us, rate_hz, channel, values_N, device in rows:
        if channel in spec.channels and len(values_N):
            of.setdefault((channel, overlap.source(device, rate_hz)), []).append((start_us, rate_hz, values_N))
    for channel, source in sorted(of):
        low, high = limits.get(channel, (None, None))
        low, high = -np.inf if low is None else low, np.inf if high is None else high
        mine_MxL = np.zeros(quality_MxLxC.shape[:2])
        for start_us, rate_hz, values_N in overlap.without_repeats(of[channel, source])[0]:
            judge = _of_waves if signal.holds_band(rate_hz) else _of_samples
            step_K, quality_K = judge(start_us, rate_hz, values_N, spec, low, high)
            at_K = np.searchsorted(window_M, step_K // spec.steps)
            there_K = np.append(window_M, np.iinfo(np.int64).max)[at_K] == step_K // spec.steps
            np.add.at(mine_MxL, (at_K[there_K], step_K[there_K] % spec.steps), quality_K[there_K])
        at = spec.channels.index(channel)
        quality_MxLxC[..., at] = np.maximum(quality_MxLxC[..., at], mine_MxL)
    return np.rint(255 * np.clip(quality_MxLxC, 0, 1)).astype(np.uint8)


def of_wave(values_N, rate_hz, low=-np.inf, high=np.inf):
    """Quality of a short piece of signal, 0 to 1: the mean of signal.segment_quality, 0 where it cannot be judged.

    The segments are equally long, since one that is cut short cannot be judged.
    """
    n_segments = max(round(len(values_N) / (_SEGMENT_S * rate_hz)), 1)
    segment_s = max(len(values_N) // n_segments, 1) / rate_hz
    bad_N = signal.artefacts(values_N, rate_hz, low, high, segment_s=segment_s)
    return float(np.nan_to_num(signal.segment_quality(values_N, rate_hz, bad_N, segment_s)[:n_segments]).mean())


def _of_samples(start_us, rate_hz, values_N, spec, low, high):
    """(step of the grid [K], share of its time that plausible samples fill [K]); a long sample fills whole steps."""
    step_K, _, count_K = signal.pool_row(start_us, rate_hz, values_N, spec, low, high)
    return step_K, count_K / max(spec.step_minutes * 60 * rate_hz, 1.0)


def _of_waves(start_us, rate_hz, values_N, spec, low, high):
    """As _of_samples, of a wave that can show a pulse: artefacts left out, and times the pulse's share of the power."""
    step_us, window_us = spec.step_minutes * 60_000_000, spec.window_hours * 3_600_000_000
    edge_N = overlap.sample_edges(start_us, rate_hz, len(values_N))
    # a sample belongs where pool_row puts it
    step_N = np.maximum(edge_N[:-1], (edge_N[1:] - 1) // window_us * window_us) // step_us
    first_K = np.flatnonzero(np.append(True, step_N[1:] != step_N[:-1]))
    quality_K = np.zeros(len(first_K))
    for k, part_N in enumerate(np.split(np.asarray(values_N, np.float64), first_K[1:])):
        quality_K[k] = of_wave(part_N, rate_hz, low, high) * len(part_N)
    return step_N[first_K], quality_K / (spec.step_minutes * 60 * rate_hz)
