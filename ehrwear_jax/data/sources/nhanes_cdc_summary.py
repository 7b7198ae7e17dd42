"""Sums up a person's week of minutes: means over the valid days, as analyses of NHANES do.

A valid day has at least VALID_MINUTES of wear. Counts (2003-2006) are not worn where Choi's rule says so
(signals/rest_activity.py); of 2011-2014 the CDC's own prediction is taken. Sedentary is less than SEDENTARY counts a
minute, moderate to vigorous at least MVPA (Troiano et al., 2008, Med Sci Sports Exerc 40:181). An active bout is a run
of worn minutes that are not sedentary; the chance of leaving a state is one over the mean length of its bouts (Di et
al., 2017, bioRxiv 182337).

Letters: D days of 1,440 minutes, T minutes.
"""

import numpy as np

from ehrwear_jax.data.formats.times import DAY_MINUTES
from ehrwear_jax.data.signals.masks import runs

VALID_MINUTES = 600
SEDENTARY, MVPA = 100, 2020
BINS = 12  # of two hours


def _profile(values_DxM: np.ndarray) -> list[float]:
    """Sums over the two-hour bins of a day, mean over days; a minute without a value adds nothing."""
    sums_DxB = np.nansum(values_DxM.reshape(len(values_DxM), BINS, DAY_MINUTES // BINS), axis=2)
    return sums_DxB.mean(axis=0).tolist()


def _bout_lengths(active_M: np.ndarray, worn_M: np.ndarray) -> tuple[float, float]:
    """Mean length of the active bouts of a day and of its sedentary ones, minutes; NaN where there is none."""
    means = []
    for state_M in (active_M & worn_M, ~active_M & worn_M):
        length = np.diff(runs(state_M), axis=1)
        means.append(float(length.mean()) if len(length) else np.nan)
    return means[0], means[1]


def of_counts(counts_T: np.ndarray, worn_T: np.ndarray) -> tuple[int, dict[str, float], list[float]]:
    """Means over the valid days of counts that begin at midnight.

    Args:
      counts_T: [T] counts per minute, NaN where missing; T a multiple of a day.
      worn_T: [T] bool.

    Returns:
      (valid days, {column of the small form's table (nhanes.py, DAILY_CHANNELS): mean}, [12] profile); both empty
      without a valid day. A mean is left out where no valid day has it.
    """
    counts_DxM = counts_T.reshape(-1, DAY_MINUTES)
    worn_DxM = worn_T.reshape(-1, DAY_MINUTES) & np.isfinite(counts_DxM)
    valid_D = worn_DxM.sum(axis=1) >= VALID_MINUTES
    if not valid_D.any():
        return 0, {}, []
    worn_DxM = worn_DxM[valid_D]
    worn_counts_DxM = np.where(worn_DxM, counts_DxM[valid_D], 0.0)
    log_DxM = np.log1p(worn_counts_DxM)
    bouts_Dx2 = np.array([_bout_lengths(c >= SEDENTARY, w) for c, w in zip(worn_counts_DxM, worn_DxM, strict=True)])
    per_day = {
        "tac": worn_counts_DxM.sum(axis=1),
        "tlac": log_DxM.sum(axis=1),
        "wt": worn_DxM.sum(axis=1),
        "st": (worn_counts_DxM < SEDENTARY).sum(axis=1),
        "mvpa": (worn_counts_DxM >= MVPA).sum(axis=1),
        "about": bouts_Dx2[:, 0],
        "sbout": bouts_Dx2[:, 1],
        "satp": 1 / bouts_Dx2[:, 1],
        "astp": 1 / bouts_Dx2[:, 0],
    }
    means = {name: float(np.nanmean(v_D)) for name, v_D in per_day.items() if np.isfinite(v_D).any()}
    return int(valid_D.sum()), means, _profile(log_DxM)


def of_mims(mims_T: np.ndarray, worn_T: np.ndarray, asleep_T: np.ndarray) -> tuple[int, dict[str, float], list[float]]:
    """Means over the valid days of MIMS units that begin at midnight.

    Args:
      mims_T: [T] units per minute, NaN where missing. worn_T, asleep_T: [T] bool. T is a multiple of a day.

    Returns:
      (valid days, {"total_mims", "wt", "sleep": mean}, [12] profile); both empty without a valid day.
    """
    worn_DxM = worn_T.reshape(-1, DAY_MINUTES)
    valid_D = worn_DxM.sum(axis=1) >= VALID_MINUTES
    if not valid_D.any():
        return 0, {}, []
    mims_DxM = np.where(worn_DxM, mims_T.reshape(-1, DAY_MINUTES), np.nan)[valid_D]
    per_day = {
        "total_mims": np.nansum(mims_DxM, axis=1),
        "wt": worn_DxM[valid_D].sum(axis=1),
        "sleep": asleep_T.reshape(-1, DAY_MINUTES)[valid_D].sum(axis=1),
    }
    return int(valid_D.sum()), {name: float(v_D.mean()) for name, v_D in per_day.items()}, _profile(mims_DxM)
