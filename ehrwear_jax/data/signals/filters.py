"""Filters pulse waves: a zero-phase band-pass of every finite stretch of an array.

A filter that runs forwards and backwards knows the whole array that it is given: pass it nothing but the samples that
are complete at the end of the window.
"""

import numpy as np
import scipy  # its submodules load at first use
from numpy.typing import ArrayLike

from ehrwear_jax.data.signals.masks import runs

PULSE_HZ = (0.5, 3.5)  # band of the pulse wave's fundamental: 30 to 210 beats a minute


def holds_band(rate_hz: float, high_hz: float = PULSE_HZ[1]) -> bool:
    """Whether sampling at rate_hz can carry frequencies up to high_hz (Nyquist)."""
    return rate_hz > 2 * high_hz


def band_pass(
    values_T: ArrayLike, rate_hz: float, low_hz: float = PULSE_HZ[0], high_hz: float = PULSE_HZ[1], order: int = 2
) -> np.ndarray:
    """Zero-phase Butterworth band-pass of every finite stretch by itself.

    The filter (Butterworth 1930) runs forwards and backwards, so its gain is the squared magnitude of one pass and
    its phase is zero. A stretch is extended by its odd reflection, one period of low_hz long, at both of its ends.

    Args:
      values_T: [T] any unit; NaN: missing.
      rate_hz: samples per second.
      low_hz, high_hz: -3 dB points of one pass.
      order: of one pass, per edge.

    Returns:
      [T] float64 in the unit of the values. NaN where the value is not finite, in stretches shorter than two periods
      of low_hz, and everywhere if the rate does not hold the band.
    """
    values_T = np.asarray(values_T, np.float64)
    out_T = np.full(len(values_T), np.nan)
    if not holds_band(rate_hz, high_hz):
        return out_T
    sos = scipy.signal.butter(order, (low_hz, high_hz), "bandpass", fs=rate_hz, output="sos")
    pad = int(np.ceil(rate_hz / low_hz))
    for first, last in runs(np.isfinite(values_T)):
        if last - first >= 2 * pad:
            out_T[first:last] = scipy.signal.sosfiltfilt(sos, values_T[first:last], padlen=pad)
    return out_T
