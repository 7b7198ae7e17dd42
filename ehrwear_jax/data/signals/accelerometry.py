"""Computes movement, posture, non-wear and sleep from raw acceleration.

NaN is missing everywhere. Flags lie beside the signal and never change it. Each function describes the array that it is
given: pass it nothing but the samples that are complete at the end of the window.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ehrwear_jax.data.signals.masks import runs

# van Hees et al. (2011, PLoS ONE 6:e22922), with the limits of 2013: a still axis.
STILL_SD_MG = 13.0
STILL_RANGE_MG = 50.0
CELL_MINUTES = 7.5  # a block is two cells, the hour around it eight
CELLS_AROUND = 3  # of that hour, before the block and after it
# van Hees et al. (2015, PLoS ONE 10:e0142533): sleep is a posture that changes by no more than 5 degrees from epoch to
# epoch of 5 s, for 5 minutes or longer.
ANGLE_EPOCH_S = 5.0
ANGLE_CHANGE_DEG = 5.0
ANGLE_STILL_MINUTES = 5.0


def enmo(acceleration_Tx3: ArrayLike) -> np.ndarray:
    """Euclidean norm minus one g, negative values set to zero (van Hees et al. 2013, PLoS ONE 8:e61691).

    Args:
      acceleration_Tx3: g, calibrated.

    Returns:
      [T] float64, milli-g; NaN where an axis is missing.
    """
    norm_T = np.sqrt((np.asarray(acceleration_Tx3, np.float64) ** 2).sum(axis=-1))
    return 1000 * np.maximum(norm_T - 1.0, 0.0)


def arm_angle(acceleration_Tx3: ArrayLike) -> np.ndarray:
    """Angle of the z axis to the horizontal plane (van Hees et al. 2015).

    Args:
      acceleration_Tx3: g, best the mean of each epoch of ANGLE_EPOCH_S.

    Returns:
      [T] float64, degrees from -90 to 90; NaN where an axis is missing or nothing pulls.
    """
    x, y, z = np.moveaxis(np.asarray(acceleration_Tx3, np.float64), -1, 0)
    angle = np.degrees(np.arctan2(z, np.hypot(x, y)))
    return np.where((x == 0) & (y == 0) & (z == 0), np.nan, angle)


class Cells(NamedTuple):
    """What is known of successive cells of CELL_MINUTES, float64 arrays of one shape, [..., K cells, A axes] in g.

    Attributes:
      seconds: that samples fill. samples: how many. total, square: sums of them and of their squares. top, bottom: the
        highest and the lowest.
    """

    seconds: np.ndarray
    samples: np.ndarray
    total: np.ndarray
    square: np.ndarray
    top: np.ndarray
    bottom: np.ndarray


# A cell without samples, and how what is known of a cell from two sources is joined, in the order of Cells.
EMPTY_CELL = (0.0, 0.0, 0.0, 0.0, -np.inf, np.inf)
JOIN_CELLS = (np.add, np.add, np.add, np.add, np.maximum, np.minimum)


def summarise_cells(value_N: np.ndarray, first_K: np.ndarray, sample_s: float) -> Cells:
    """Cells [K] of samples without gaps of one axis, in g; first_K: the first sample of each cell."""
    count_K = np.diff(np.append(first_K, len(value_N))).astype(np.float64)
    total_K, square_K = np.add.reduceat(value_N, first_K), np.add.reduceat(value_N**2, first_K)
    top_K, bottom_K = np.maximum.reduceat(value_N, first_K), np.minimum.reduceat(value_N, first_K)
    return Cells(count_K * sample_s, count_K, total_K, square_K, top_K, bottom_K)


def still_blocks(cells: Cells) -> np.ndarray:
    """Blocks of 15 minutes (two cells) in which the sensor lies still.

    van Hees et al. (2011, with the limits of 2013): a block is not worn if, over the hour around it, at least two axes
    have a standard deviation below STILL_SD_MG, or at least two a range below STILL_RANGE_MG.

    Args:
      cells: [..., CELLS_AROUND + 2 B + CELLS_AROUND, 3]; cells without samples as EMPTY_CELL.

    Returns:
      bool [..., B]. Where half an hour or more of that hour is not known nothing is flagged.
    """
    seconds, count, total, square = (_hours(x).sum(-1) for x in cells[:4])
    top, bottom = _hours(cells.top).max(-1), _hours(cells.bottom).min(-1)
    some = np.maximum(count, 1)
    sd = np.sqrt(np.maximum(square / some - (total / some) ** 2, 0.0))
    enough = seconds > 4 * CELL_MINUTES * 60 + 1e-6
    still_axes = (sd < STILL_SD_MG / 1000, top - bottom < STILL_RANGE_MG / 1000)
    by_sd, by_range = ((enough & still).sum(axis=-1) >= 2 for still in still_axes)
    return by_sd | by_range


def _hours(x: np.ndarray) -> np.ndarray:
    """[..., B, A, 8]: the eight cells of the hour around each block of two."""
    return np.lib.stride_tricks.sliding_window_view(x, 2 + 2 * CELLS_AROUND, axis=-2)[..., ::2, :, :]


def non_wear_acceleration(acceleration_Tx3: ArrayLike, rate_hz: float) -> np.ndarray:
    """Time in which the sensor lies still (`still_blocks`), of an array without gaps in time.

    Args:
      acceleration_Tx3: g; NaN: missing.
      rate_hz: samples per second.

    Returns:
      [T] bool. Where half an hour or more of the hour around it is missing or lies outside the array nothing is
      flagged.
    """
    acceleration_Tx3 = np.asarray(acceleration_Tx3, np.float64)
    n_samples = len(acceleration_Tx3)
    if not n_samples:
        return np.zeros(0, bool)
    cell = max(int(round(CELL_MINUTES * 60 * rate_hz)), 1)
    fill, pad = -n_samples % (2 * cell), CELLS_AROUND * cell
    x = np.pad(acceleration_Tx3, ((pad, fill + pad), (0, 0)), constant_values=np.nan).reshape(-1, cell, 3)
    seen = np.isfinite(x)
    count, x = seen.sum(1), np.where(seen, x, 0.0)
    top, bottom = np.where(seen, x, -np.inf).max(1), np.where(seen, x, np.inf).min(1)
    seconds = count * (CELL_MINUTES * 60 / cell)
    return np.repeat(still_blocks(Cells(seconds, count, x.sum(1), (x**2).sum(1), top, bottom)), 2 * cell)[:n_samples]


def asleep_angle(angle_T: ArrayLike) -> np.ndarray:
    """Sleep or wake by the angle of the arm; for raw acceleration, where it needs no calibrated count.

    van Hees et al. (2015): asleep while the angle changes by no more than ANGLE_CHANGE_DEG from epoch to epoch, for
    ANGLE_STILL_MINUTES or longer.

    Args:
      angle_T: [T] degrees, one value per epoch of ANGLE_EPOCH_S (`arm_angle`).

    Returns:
      [T] float64: 1 asleep, 0 awake, NaN where the angle is missing; a missing epoch ends a still time.
    """
    angle_T = np.asarray(angle_T, np.float64)
    seen_T = np.isfinite(angle_T)
    out_T = np.where(seen_T, 0.0, np.nan)
    still = np.abs(np.diff(angle_T)) <= ANGLE_CHANGE_DEG
    for first, last in runs(still):  # last + 1 - first epochs
        if (last + 1 - first) * ANGLE_EPOCH_S >= ANGLE_STILL_MINUTES * 60:
            out_T[first : last + 1] = 1.0
    return out_T
