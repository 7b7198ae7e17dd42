"""Computes what PaPaGei-S learns of the shape of pulse waves: sVRI, IPA and a quality index, by Pillai et al. (2025).

Array suffix: S samples.
"""

from typing import NamedTuple

import numpy as np
import scipy  # its submodules load at first use

CHUNK_S = 5.0  # of which skewness is taken
# Between these, both left out, lies what is learned from.
SVRI, IPA, SQI = (0.0, 2.0), (-10.0, 10.0), (-3.0, 3.0)


class Morphology(NamedTuple):
    """Of a piece; NaN where it is not defined.

    Attributes:
      svri: stress-induced vascular response index: mean height behind the highest sample over that before it.
      ipa: inflection point area ratio of the first beat: area before its notch over that behind.
      sqi: skewness, mean over chunks of CHUNK_S.
    """

    svri: float
    ipa: float
    sqi: float

    @property
    def is_plausible(self) -> bool:
        """Whether it is learned from: sVRI and skewness within their limits, and IPA, where there is a notch."""
        inside = [low < x < high for x, (low, high) in zip(self, (SVRI, IPA, SQI), strict=True)]
        return inside[0] and (inside[1] or bool(np.isnan(self.ipa))) and inside[2]


def morphology(wave_S: np.ndarray, rate_hz: float) -> Morphology:
    """Of one channel of a piece; NaN are samples that are missing, over which straight lines lead."""
    seen_S = np.isfinite(wave_S)
    if not seen_S.any():
        return Morphology(np.nan, np.nan, np.nan)
    at_S = np.arange(len(wave_S))
    wave_S = np.interp(at_S, at_S[seen_S], np.asarray(wave_S, np.float64)[seen_S])
    return Morphology(svri(wave_S), ipa(wave_S, rate_hz), sqi(wave_S, rate_hz))


def svri(wave_S: np.ndarray) -> float:
    """Mean of the wave from its highest sample on over that of the wave before, both from 0 to 1; NaN of a flat one."""
    low, high = wave_S.min(), wave_S.max()
    top = int(np.argmax(wave_S))
    if high <= low or not top:
        return np.nan
    height_S = (wave_S - low) / (high - low)
    before = height_S[:top].mean()
    return float(height_S[top:].mean() / before) if before > 0 else np.nan


def ipa(wave_S: np.ndarray, rate_hz: float) -> float:
    """Area of the first beat up to its notch over the area behind, of the wave in its standard deviations.

    A beat lies between two minima of a fifth of a second to either side; the notch is the first lower sample than both
    of its neighbours in it. NaN where there is none.
    """
    std = wave_S.std()
    if std <= 0:
        return np.nan
    z_S = (wave_S - wave_S.mean()) / std
    (minima,) = scipy.signal.argrelmin(z_S, order=max(int(rate_hz // 5), 1))
    if len(minima) < 2:
        return np.nan
    beat = z_S[minima[0] : minima[1]]
    (notches,) = scipy.signal.argrelmin(beat)
    if not len(notches):
        return np.nan
    before, behind = np.trapezoid(beat[: notches[0]]), np.trapezoid(beat[notches[0] :])
    return float(before / behind) if behind else np.nan


def sqi(wave_S: np.ndarray, rate_hz: float) -> float:
    """Skewness, mean over whole chunks of five seconds; of a shorter wave, its own. NaN where a chunk is flat."""
    n = min(round(CHUNK_S * rate_hz), len(wave_S))
    chunks = wave_S[: len(wave_S) // n * n].reshape(-1, n)
    centred = chunks - chunks.mean(axis=1, keepdims=True)
    variance = np.mean(centred**2, axis=1)
    if variance.min() <= 0:
        return np.nan
    return float(np.mean(np.mean(centred**3, axis=1) / variance**1.5))


def svri_bin(value: float, n_bins: int) -> int:
    """Which of n equal parts of the range of plausible sVRI it lies in."""
    low, high = SVRI
    return int(np.clip((value - low) / (high - low) * n_bins, 0, n_bins - 1))
