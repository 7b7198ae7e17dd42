"""Judges the quality of raw pulse waves: artefacts, the signal-to-noise ratio of the pulse, long gaps.

NaN is missing everywhere. Flags lie beside the values and never change them. Segments tile the array that is given, so
pass it nothing but the samples that are complete at the end of the window.
"""

import numpy as np
import scipy  # its submodules load at first use
from numpy.typing import ArrayLike

from ehrwear_jax.data.signals.filters import PULSE_HZ, holds_band
from ehrwear_jax.data.signals.masks import runs

SEGMENT_S = 8.0  # several beats, and a breath or two
NOISE_HZ = 8.0  # highest frequency of the noise that a pulse is compared with
MIN_SEGMENT_COVERAGE = 0.9  # share of a segment's samples without which its noise is not judged
FLAT_S = 1.0  # equal values for so long: no contact, or a sensor that got stuck
# White noise reaches about 0 dB, because the best frequency counts; a rhythm as irregular as atrial fibrillation may
# fall below 3.
MIN_SNR_DB = 3.0
MAX_SWING = 3.0  # root mean square over the median segment's
MAX_GAP_MINUTES = 10.0  # longer gaps are missing; shorter ones may be bridged


def pulse_snr(values_T: ArrayLike, rate_hz: float, segment_s: float = SEGMENT_S) -> tuple[np.ndarray, np.ndarray]:
    """Power of the pulse and of everything else, segment by segment.

    After de Haan and Jeanne (2013, IEEE TBME 60:2878): the pulse is what lies around one frequency of the pulse band
    and around two and three times that frequency; the noise is the rest between 0.5 and 8 Hz (or Nyquist). The
    frequency is the one that explains most. Segments are detrended and tapered (Hann); "around" is the half width of
    the taper's main lobe, 2 / segment_s. (There: the fundamental and one harmonic, margins of their own.)

    Args:
      values_T: [T] raw signal, any unit.
      rate_hz: samples per second.
      segment_s: seconds; the segments tile the array from its first sample, and the last may be cut short.

    Returns:
      (pulse_S, noise_S) float64 mean squares in the unit of the values, squared. NaN where less than
      MIN_SEGMENT_COVERAGE of the segment is finite, and everywhere if the rate does not hold the pulse band.
    """
    x_SxN = _segments(values_T, rate_hz, segment_s)
    n_segments, n = x_SxN.shape
    nan_S = np.full(n_segments, np.nan)
    if not holds_band(rate_hz) or n_segments == 0:
        return nan_S, nan_S.copy()
    seen = np.isfinite(x_SxN)
    enough_S = seen.mean(axis=1) >= MIN_SEGMENT_COVERAGE
    mean_Sx1 = np.where(seen, x_SxN, 0.0).sum(axis=1, keepdims=True) / np.maximum(seen.sum(axis=1, keepdims=True), 1)
    taper_N = np.hanning(n + 2)[1:-1]
    x_SxN = scipy.signal.detrend(np.where(seen, x_SxN - mean_Sx1, 0.0), axis=1) * taper_N
    hz_F = np.fft.rfftfreq(n, 1 / rate_hz)
    power_SxF = 2 * np.abs(np.fft.rfft(x_SxN, axis=1)) ** 2 / (n * (taper_N**2).sum())
    power_SxF[:, (hz_F < PULSE_HZ[0]) | (hz_F > NOISE_HZ)] = 0.0
    pulse_K = hz_F[(hz_F >= PULSE_HZ[0]) & (hz_F <= PULSE_HZ[1])]
    off_FxKx3 = hz_F[:, None, None] - pulse_K[:, None] * np.arange(1, 4)
    near_FxK = (np.abs(off_FxKx3) <= 2 / segment_s + 1e-9).any(axis=2)
    pulse_S = (power_SxF @ near_FxK).max(axis=1)
    noise_S = np.maximum(power_SxF.sum(axis=1) - pulse_S, 0.0)
    return np.where(enough_S, pulse_S, np.nan), np.where(enough_S, noise_S, np.nan)


def _segments(values_T: ArrayLike, rate_hz: float, segment_s: float) -> np.ndarray:
    """[S, N]: the array cut into segments, the last filled up with NaN."""
    n = max(int(round(segment_s * rate_hz)), 1)
    values_T = np.asarray(values_T, np.float64)
    return np.pad(values_T, (0, -len(values_T) % n), constant_values=np.nan).reshape(-1, n)


def artefacts(
    values_T: ArrayLike,
    rate_hz: float,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    segment_s: float = SEGMENT_S,
    judge_pulse: bool = True,
) -> np.ndarray:
    """Observed samples that are not to be trusted; the values stay as they are.

    A sample is flagged if it lies outside [low, high], and, where the rate holds the pulse band, if it is one of a
    run of equal values that lasts FLAT_S or longer, or if the segment around it is noisy or moved. These are
    judged by `pulse_snr` of what the other two rules leave: noisy is a ratio below MIN_SNR_DB; moved is a root mean
    square between 0.5 and 8 Hz above MAX_SWING times the median of at least three segments.

    Args:
      values_T: [T]. rate_hz: samples per second.
      low, high: plausible range in the unit of the values.
      segment_s: seconds, as in `pulse_snr`.
      judge_pulse: whether noise and movement are judged: not of an electrocardiogram, whose power is no pulse's.

    Returns:
      [T] bool; False where there is no value, and where too little of a segment is left to judge its noise.
    """
    values_T = np.asarray(values_T, np.float64)
    seen_T = np.isfinite(values_T)
    bad_T = seen_T & ((values_T < low) | (values_T > high))
    if not holds_band(rate_hz):
        return bad_T
    for first, last in runs(np.diff(values_T) == 0):  # last + 1 - first equal values
        if last + 1 - first >= FLAT_S * rate_hz:
            bad_T[first : last + 1] = True
    if not judge_pulse:
        return bad_T
    pulse_S, noise_S = pulse_snr(np.where(bad_T, np.nan, values_T), rate_hz, segment_s)
    noisy_S = pulse_S < noise_S * 10 ** (MIN_SNR_DB / 10)
    power_S = pulse_S + noise_S
    if np.isfinite(power_S).sum() >= 3:
        noisy_S |= power_S > MAX_SWING**2 * np.nanmedian(power_S)
    n = max(int(round(segment_s * rate_hz)), 1)
    return bad_T | (seen_T & np.repeat(noisy_S, n)[: len(values_T)])


def segment_quality(
    values_T: ArrayLike, rate_hz: float, artefact_T: np.ndarray, segment_s: float = SEGMENT_S
) -> np.ndarray:
    """Quality of each segment, from 0 (nothing usable) to 1 (a clean pulse without a hole).

    The share of the segment's samples that are observed and no artefact, times the share of the power between 0.5
    and 8 Hz that the pulse explains (`pulse_snr` of all observed samples). Where the rate does not hold the pulse
    band the second factor is left out.

    Args:
      values_T: [T]. rate_hz: samples per second.
      artefact_T: [T] bool, see `artefacts`.
      segment_s: seconds, as in `pulse_snr`.

    Returns:
      [S] float64; NaN where the pulse's share cannot be judged.
    """
    seen_SxN = np.isfinite(_segments(values_T, rate_hz, segment_s))
    bad_SxN = _segments(np.asarray(artefact_T, np.float64), rate_hz, segment_s) == 1
    usable_S = (seen_SxN & ~bad_SxN).mean(axis=1)
    if not holds_band(rate_hz):
        return usable_S
    pulse_S, noise_S = pulse_snr(values_T, rate_hz, segment_s)
    with np.errstate(invalid="ignore"):
        return usable_S * (pulse_S / (pulse_S + noise_S))


def long_gaps(values_T: ArrayLike, rate_hz: float, max_gap_minutes: float = MAX_GAP_MINUTES) -> np.ndarray:
    """[T] bool: the sample lies in a run without values that lasts longer than max_gap_minutes.

    A run that the array's end cuts off counts with the length seen.
    """
    values_T = np.asarray(values_T, np.float64)
    gap_T = np.zeros(len(values_T), bool)
    for first, last in runs(~np.isfinite(values_T)):
        gap_T[first:last] = last - first > max_gap_minutes * 60 * rate_hz * (1 + 1e-9)
    return gap_T
