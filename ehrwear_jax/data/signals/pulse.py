"""Finds beats in pulse waves and electrocardiograms; computes the intervals between them, heart rate and variability.

An interval is what lies between two successive beats of one stretch of signal. One that cannot be trusted stays in
its place as NaN, so two intervals are neighbours in the array only if they are neighbours in time.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import scipy  # its submodules load at first use
from numpy.typing import ArrayLike

from ehrwear_jax.data.signals import filters, quality
from ehrwear_jax.data.signals.masks import runs

MIN_DELAY_S = 0.3  # least time between two beats: 200 a minute
INTERVAL_MS = (300.0, 2000.0)  # of normal beats: 30 to 200 a minute
MAX_CHANGE = 0.2  # of an interval; Malik et al. (1989, Eur Heart J 10:1060)
NN50_MS = 50.0  # Task Force (1996, Circulation 93:1043)
MIN_INTERVALS = 10  # fewest for a rate or a variability
MIN_SHARE = 0.5  # of the signal's time that trustworthy intervals must fill


@dataclasses.dataclass(frozen=True)
class Wave:
    """How the beats of a kind of signal are found: by two moving averages of its energy, see find_beats.

    Attributes:
      band_hz: pass band.
      short_s, long_s: widths of the averages, about one wave and one beat.
      offset: what the short one must exceed, over the mean energy.
      upright: only positive values are a beat's.
    """

    band_hz: tuple[float, float]
    short_s: float
    long_s: float
    offset: float
    upright: bool


# Elgendi et al. (2013, PLoS ONE 8:e76585), and for the QRS complex Elgendi (2013, PLoS ONE 8:e73557).
PPG = Wave(filters.PULSE_HZ, 0.111, 0.667, 0.02, True)
ECG = Wave((8.0, 20.0), 0.097, 0.611, 0.08, False)


def find_beats(filtered_T: ArrayLike, rate_hz: float, wave: Wave = PPG) -> tuple[np.ndarray, np.ndarray]:
    """Beats of a band-passed wave, by two moving averages.

    The squared wave (of a pulse wave: its positive part) is averaged over short_s and over long_s; where the short
    average is above the long one by a share of the stretch's mean, for short_s or longer, there is a beat, at the
    largest value; of two that are closer than MIN_DELAY_S the earlier one is kept. See Wave for the sources; here each
    finite stretch is taken by itself, a beat at the very edge of a stretch is dropped (its peak may lie beyond), and a
    parabola through three samples places the peak between them.

    Args:
      filtered_T: [T], see `filters.band_pass`; NaN where missing.
      rate_hz: samples per second.
      wave: the kind of signal.

    Returns:
      (beat_s_B float64, stretch_B int64): seconds after the first sample, and which finite stretch the beat is from.
      Both are empty if there is no beat.
    """
    filtered_T = np.asarray(filtered_T, np.float64)
    parts = [
        (first / rate_hz + _beats_of_stretch(filtered_T[first:last], rate_hz, wave))
        for first, last in runs(np.isfinite(filtered_T))
    ]
    stretch_B = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    return (np.concatenate(parts) if parts else np.zeros(0)), stretch_B.astype(np.int64)


def _beats_of_stretch(x_N: np.ndarray, rate_hz: float, wave: Wave) -> np.ndarray:
    """Seconds after the stretch's first sample [B]."""
    height_N = np.clip(x_N, 0.0, None) if wave.upright else np.abs(x_N)
    energy_N = height_N**2
    short = max(int(round(wave.short_s * rate_hz)), 1)
    long = max(int(round(wave.long_s * rate_hz)), 1)
    moving_mean = scipy.ndimage.uniform_filter1d
    level_N = moving_mean(energy_N, long, mode="nearest") + wave.offset * energy_N.mean()
    blocks = runs(moving_mean(energy_N, short, mode="nearest") > level_N)
    peaks, previous = [], -np.inf
    for first, last in blocks[blocks[:, 1] - blocks[:, 0] >= short]:
        peak = first + int(np.argmax(height_N[first:last]))
        if 0 < peak < len(x_N) - 1 and peak - previous >= MIN_DELAY_S * rate_hz:
            peaks.append(peak)
            previous = peak
    peak_B = np.asarray(peaks, np.int64)
    before_B, at_B, after_B = (np.sign(x_N[peak_B]) * x_N[peak_B + k] for k in (-1, 0, 1))
    bend_B = before_B - 2 * at_B + after_B
    with np.errstate(invalid="ignore", divide="ignore"):
        shift_B = np.where(bend_B < 0, 0.5 * (before_B - after_B) / bend_B, 0.0)
    return (peak_B + np.clip(shift_B, -0.5, 0.5)) / rate_hz


def beat_intervals(beat_s_B: ArrayLike, stretch_B: np.ndarray | None = None) -> np.ndarray:
    """Intervals between successive beats; NaN where there is no `trustworthy` one, or two stretches meet.

    Args:
      beat_s_B: [B] seconds, increasing.
      stretch_B: [B] which stretch the beat is from; None for one stretch. Between two, beats were missed.

    Returns:
      [max(B - 1, 0)] float64, milliseconds.
    """
    interval_N = np.diff(np.asarray(beat_s_B, np.float64)) * 1000
    if stretch_B is not None:
        interval_N = np.where(np.diff(stretch_B) == 0, interval_N, np.nan)
    return trustworthy(interval_N)


def trustworthy(interval_ms_N: ArrayLike) -> np.ndarray:
    """The intervals with NaN in the place of those that no two successive normal beats make.

    These lie outside INTERVAL_MS, or further than MAX_CHANGE from the median of the five around it: the 20 % rule of
    Malik et al. (1989) against a local median instead of one neighbour. It takes out ectopic beats (a short interval,
    then a long one) and beats that were missed or found twice. True intervals that differ as much go too, so
    variability is too low where intervals vary by more than about 5 % at random.

    Args:
      interval_ms_N: [N] milliseconds, successive; NaN where one is missing.

    Returns:
      [N] float64.
    """
    interval_N = np.asarray(interval_ms_N, np.float64)
    if len(interval_N) == 0:
        return np.zeros(0)
    low_ms, high_ms = INTERVAL_MS
    with np.errstate(invalid="ignore"):
        interval_N = np.where((interval_N >= low_ms) & (interval_N <= high_ms), interval_N, np.nan)
    sorted_Nx5 = np.sort(np.lib.stride_tricks.sliding_window_view(np.pad(interval_N, 2, constant_values=np.nan), 5))
    last_N = np.maximum(np.isfinite(sorted_Nx5).sum(axis=1) - 1, 0)  # NaN is sorted behind
    at_Nx2 = np.stack([last_N // 2, (last_N + 1) // 2], axis=1)
    median_N = np.take_along_axis(sorted_Nx5, at_Nx2, axis=1).mean(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(interval_N - median_N) <= MAX_CHANGE * median_N, interval_N, np.nan)


def heart_rate(interval_ms_xN: ArrayLike, min_intervals: float = MIN_INTERVALS) -> np.ndarray:
    """Beats per minute: 60,000 over the mean interval (ms) along the last axis.

    Args:
      interval_ms_xN: [..., N] milliseconds, NaN where an interval is missing (`beat_intervals`).
      min_intervals: fewest intervals.

    Returns:
      float64 [...]; NaN where there are too few.
    """
    mean_x, count_x = _mean(np.asarray(interval_ms_xN, np.float64))
    with np.errstate(divide="ignore"):
        return np.where(count_x >= min_intervals, 60_000 / mean_x, np.nan)[()]


def hrv(interval_ms_xN: ArrayLike, min_intervals: float = MIN_INTERVALS) -> dict[str, np.ndarray]:
    """Time-domain variability of the intervals along the last axis.

    Task Force (1996, Circulation 93:1043): SDNN is the standard deviation of the intervals (N - 1 in the
    denominator); RMSSD the root of the mean squared difference of successive intervals; pNN50 the share of those
    differences that exceed 50 ms. A difference exists only between two intervals that are neighbours in the array
    and both observed, so none reaches across a gap or a beat that was taken out, and shares are of such differences.

    Args:
      interval_ms_xN: [..., N] milliseconds, NaN where an interval is missing (`beat_intervals`).
      min_intervals: fewest intervals for SDNN, and fewest differences for the other two.

    Returns:
      {"sdnn_ms", "rmssd_ms", "pnn50_percent", "n_intervals", "n_differences"}: [...] each; NaN where too few.
    """
    interval_ms_xN = np.asarray(interval_ms_xN, np.float64)
    difference_xN = np.diff(interval_ms_xN, axis=-1)
    mean_x, count_x = _mean(interval_ms_xN)
    spread_x, _ = _mean((interval_ms_xN - mean_x[..., None]) ** 2)
    square_x, pairs_x = _mean(difference_xN**2)
    share_x, _ = _mean(np.where(np.isfinite(difference_xN), np.abs(difference_xN) > NN50_MS, np.nan))
    enough_x, enough_pairs_x = count_x >= max(min_intervals, 2), pairs_x >= max(min_intervals, 1)
    out = {
        "sdnn_ms": np.where(enough_x, np.sqrt(spread_x * count_x / np.maximum(count_x - 1, 1)), np.nan),
        "rmssd_ms": np.where(enough_pairs_x, np.sqrt(square_x), np.nan),
        "pnn50_percent": np.where(enough_pairs_x, 100 * share_x, np.nan),
        "n_intervals": count_x,
        "n_differences": pairs_x,
    }
    return {k: v[()] for k, v in out.items()}


def _mean(x_xN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, number) of what is finite along the last axis; the mean of nothing is NaN."""
    seen_xN = np.isfinite(x_xN)
    count_x = seen_xN.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.where(seen_xN, x_xN, 0.0).sum(axis=-1) / count_x, count_x


def summarise(
    stretches: Iterable[tuple[float, ArrayLike]], low: float = -np.inf, high: float = np.inf, wave: Wave = PPG
) -> dict[str, np.ndarray]:
    """Heart rate, variability and quality of stretches of raw signal, none of which reaches into another.

    Chains cleaning, `find_beats` and `beat_intervals` for each stretch. An electrocardiogram is cleaned of values out
    of range and flat ones only: its noise shows in the intervals, most of which are then not trustworthy.

    Args:
      stretches: (rate_hz, values_T), in order of time.
      low, high: plausible range in the unit of the values.
      wave: the kind of signal.

    Returns:
      {"heart_rate_bpm", "quality", and all of `hrv`}: numbers. Quality is the mean over the segments that could be
      judged; of an electrocardiogram, the share of the time that trustworthy intervals fill. Rate and variability are
      NaN where trustworthy intervals are fewer than MIN_INTERVALS or fill less than MIN_SHARE of the time.
    """
    interval, quality_S, seconds = [np.zeros(0)], [np.zeros(0)], 0.0
    for rate_hz, values_T in stretches:
        values_T = np.asarray(values_T, np.float64)
        bad_T = quality.artefacts(values_T, rate_hz, low, high, judge_pulse=wave is PPG)
        filtered_T = filters.band_pass(np.where(bad_T, np.nan, values_T), rate_hz, *wave.band_hz)
        if wave is PPG:
            quality_S.append(quality.segment_quality(values_T, rate_hz, bad_T))
        # a NaN behind each stretch: what follows it is no neighbour
        interval += [beat_intervals(*find_beats(filtered_T, rate_hz, wave)), np.full(1, np.nan)]
        seconds += len(values_T) / rate_hz
    interval_N = np.concatenate(interval)
    filled_s = np.nansum(interval_N) / 1000
    min_intervals = MIN_INTERVALS if filled_s >= MIN_SHARE * seconds else np.inf
    judged = _mean(np.concatenate(quality_S))[0] if wave is PPG else filled_s / seconds if seconds else np.nan
    rate = heart_rate(interval_N, min_intervals)
    return {"heart_rate_bpm": rate, "quality": np.asarray(judged)[()], **hrv(interval_N, min_intervals)}
