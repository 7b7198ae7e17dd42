"""Brings recordings in UTC to the clock at the place where they were made: offsets of stretches, of times, of windows.

The offset of a time is that of the stretch that began last before it and has one (of several that began at once, the
last in the file); zero where there is none, as in recordings that are on the local clock already. Nothing later changes
it.
"""

from collections.abc import Iterable

import numpy as np

from ehrwear_jax.data.formats.stretches import Stretch
from ehrwear_jax.data.formats.times import MINUTE_US


def offsets(rows: Iterable[Stretch], time_us_N: np.ndarray) -> np.ndarray:
    """int16 [N]: minutes that the local clock shows beyond each time, see above; a stretch that begins then counts not.

    Args:
      rows: stretches of one person, in the order of the file.
      time_us_N: int64, microseconds since the epoch.
    """
    known = [(row.start_us, row.utc_offset_minutes) for row in rows if row.utc_offset_minutes is not None]
    known.sort(key=lambda pair: pair[0])
    offset = np.array([0, *(minutes for _, minutes in known)], np.int16)
    return offset[np.searchsorted(np.array([start for start, _ in known], np.int64), time_us_N, side="left")]


def latest(window_end_M: np.ndarray, offset_M: np.ndarray | None, time_us_N: np.ndarray) -> np.ndarray:
    """int64 [N], microseconds: the offset of the last window that ended by each time, zero before the first.

    Args:
      window_end_M: int64, increasing. offset_M: minutes, of `offsets` at the windows' ends; None: all are zero.
      time_us_N: int64, microseconds since the epoch.
    """
    if offset_M is None:
        return np.zeros(np.shape(time_us_N), np.int64)
    whole = np.concatenate([[0], np.asarray(offset_M, np.int64)]) * MINUTE_US
    return whole[np.searchsorted(window_end_M, time_us_N, side="right")]


def on_local_clock(rows: Iterable[Stretch]) -> list[Stretch]:
    """The stretches at the times of the local clock, with no offset left."""
    return [
        row._replace(start_us=row.start_us + (row.utc_offset_minutes or 0) * MINUTE_US, utc_offset_minutes=None)
        for row in rows
    ]
