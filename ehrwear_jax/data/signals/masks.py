"""Finds runs in masks of samples."""

import numpy as np
from numpy.typing import ArrayLike


def runs(mask_T: ArrayLike) -> np.ndarray:
    """Half-open index ranges [R, 2] int64 of the runs of True, in order."""
    edge = np.diff(np.concatenate([[0], np.asarray(mask_T, np.int8), [0]]))
    return np.stack([np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)], axis=1)
