"""Calibrates accelerometers by gravity: gain and offset of each axis from times in which the sensor lies still.

Then only gravity acts on it, so that its readings lie on a sphere of radius one g, whatever way it points; with wrong
gains and offsets they lie on an ellipsoid with the same axes. After van Hees et al. (2014, J Appl Physiol 117:738), who
take means of 10 s in which no axis moves and ask that they lie all around; the ellipsoid is found here by linear least
squares, whose sums can be added up, so that each window has the calibration of what was recorded up to its end.
"""

from typing import NamedTuple

import numpy as np

CELL_S = 10
STILL_SD_G = 0.013
FULL_SHARE = 0.9  # of a cell's samples without which it is not judged
# Postures in all directions: each axis below and above this, and at least so many of them; our choice is the number.
AROUND_G = 0.3
MIN_POSTURES = 12
POSTURE_G = 0.1  # of one window, those in a cube of this size are one posture: a night in one counts once
MAX_ERROR_G = 0.01  # of what is left, root mean square
MAX_CHANGE = 0.2  # of a gain, and in g of an offset: more is no fault of a gain


class Postures(NamedTuple):
    """Sums over still postures p (g): of six terms (p squared, p), of their products; their number and extremes [3]."""

    terms_6: np.ndarray
    products_6x6: np.ndarray
    number: int
    low_3: np.ndarray
    high_3: np.ndarray


NONE = Postures(np.zeros(6), np.zeros((6, 6)), 0, np.full(3, np.inf), np.full(3, -np.inf))
IDENTITY = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])


def still(count_K: np.ndarray, total_Kx3: np.ndarray, square_Kx3: np.ndarray, full: float) -> np.ndarray:
    """Means [N, 3], g, of the cells of CELL_S in which no axis moves.

    Args:
      count_K: samples of each cell. total_Kx3, square_Kx3: sums of them and of their squares, g.
      full: samples of a cell without a gap.
    """
    some_Kx1 = np.maximum(count_K, 1)[:, None]
    mean_Kx3 = total_Kx3 / some_Kx1
    variance_Kx3 = square_Kx3 / some_Kx1 - mean_Kx3**2
    return mean_Kx3[(count_K >= FULL_SHARE * full) & (variance_Kx3 < STILL_SD_G**2).all(axis=1)]


def postures(still_Nx3: np.ndarray) -> Postures:
    """The still cells of one window, those in a cube of POSTURE_G as one with the means of their terms."""
    if not len(still_Nx3):
        return NONE
    _, of_N, count_P = np.unique(np.floor(still_Nx3 / POSTURE_G), axis=0, return_inverse=True, return_counts=True)
    term_Nx6 = np.concatenate([still_Nx3**2, still_Nx3], axis=1)
    term_Px6 = np.stack([np.bincount(of_N.ravel(), term_N) for term_N in term_Nx6.T], axis=1) / count_P[:, None]
    low_3, high_3 = term_Px6[:, 3:].min(axis=0), term_Px6[:, 3:].max(axis=0)
    return Postures(term_Px6.sum(axis=0), term_Px6.T @ term_Px6, len(term_Px6), low_3, high_3)


def add(a: Postures, b: Postures) -> Postures:
    """Those of both."""
    low_3, high_3 = np.minimum(a.low_3, b.low_3), np.maximum(a.high_3, b.high_3)
    return Postures(a.terms_6 + b.terms_6, a.products_6x6 + b.products_6x6, a.number + b.number, low_3, high_3)


def fit(seen: Postures) -> np.ndarray:
    """(gain, offset) [2, 3] float64: calibrated = gain * (measured - offset), g.

    The coefficients a, b of a * p^2 + b * p = 1, summed over the axes, with least squared errors; then offset
    = -b / 2 a, and gains that make the radius one. IDENTITY where postures do not lie all around, or the error that is
    left, or the change, is too large.
    """
    if seen.number < MIN_POSTURES or (seen.low_3 > -AROUND_G).any() or (seen.high_3 < AROUND_G).any():
        return IDENTITY
    fitted_6 = np.linalg.lstsq(seen.products_6x6, seen.terms_6, rcond=None)[0]
    a_3, b_3 = fitted_6[:3], fitted_6[3:]
    if (a_3 <= 0).any():
        return IDENTITY
    square = 1 + (b_3**2 / (4 * a_3)).sum()  # of the radius
    gain_3, offset_3 = np.sqrt(a_3 / square), -b_3 / (2 * a_3)
    left = max(fitted_6 @ seen.products_6x6 @ fitted_6 - 2 * fitted_6 @ seen.terms_6 + seen.number, 0.0)
    error = np.sqrt(left / seen.number) / (2 * square)  # of squared radii, of which a radius' error is half
    if error > MAX_ERROR_G or np.abs(gain_3 - 1).max() > MAX_CHANGE or np.abs(offset_3).max() > MAX_CHANGE:
        return IDENTITY
    return np.stack([gain_3, offset_3])
