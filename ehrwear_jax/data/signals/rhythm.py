"""Computes non-parametric measures of the daily rest-activity rhythm.

They take a table of days by equal bins of the day (`by_day`), NaN where missing, so that they say what they average
over.
"""

import numpy as np
from numpy.typing import ArrayLike

from ehrwear_jax.data.formats.times import DAY_MINUTES
from ehrwear_jax.data.signals.summaries import epoch_mean, evenness

BIN_MINUTES = 60  # hours, as in the sources of the measures
MIN_DAYS_PER_BIN = 2  # of the average day; with one there is no day to compare it with
MIN_PAIRS = 24  # of successive hours: a day


def by_day(values_T: ArrayLike, start_minute: int, step_minutes: int = 1) -> np.ndarray:
    """Means per hour of the day, one row per calendar day.

    Args:
      values_T: [T] any unit.
      start_minute: local clock time of the first sample, minutes since midnight (0 to 1439).
      step_minutes: sampling interval; divides an hour, and start_minute.

    Returns:
      [D, 24] float64; NaN where less than half of the hour is there.

    Raises:
      ValueError: the intervals do not divide an hour, or start_minute is no time of day on the grid.
    """
    if BIN_MINUTES % step_minutes:
        raise ValueError(f"steps of {step_minutes} min do not divide bins of {BIN_MINUTES} min")
    if not 0 <= start_minute < DAY_MINUTES or start_minute % step_minutes:
        raise ValueError(f"a start {start_minute} min after midnight is not on a daily grid of {step_minutes} min")
    values_T = np.asarray(values_T, np.float64)
    before = int(start_minute // step_minutes)
    after = -(before + len(values_T)) % int(DAY_MINUTES // step_minutes)
    padded = np.pad(values_T, (before, after), constant_values=np.nan)
    return epoch_mean(padded, int(BIN_MINUTES // step_minutes)).reshape(-1, DAY_MINUTES // BIN_MINUTES)


def mean_profile(bins_DxP: np.ndarray, min_days: int = MIN_DAYS_PER_BIN) -> np.ndarray:
    """The average day [P]; NaN in a bin that fewer than min_days days have."""
    seen = np.isfinite(bins_DxP)
    count = seen.sum(axis=0)
    return np.where(count >= min_days, np.where(seen, bins_DxP, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def interdaily_stability(bins_DxP: ArrayLike) -> float:
    """How much of the variation is the same every day: 0 for none, 1 for all.

    Witting et al. (1990, Biol Psychiatry 27:563), Van Someren et al. (1999, Chronobiol Int 16:505): the variance of
    the average day over the variance of all bins. With missing bins each bin of the average day counts as often as
    it was seen, which keeps the ratio a share; without, this is the published formula. Missing bins stay missing.

    Args:
      bins_DxP: [D, P] activity per bin, usually hours (`by_day`).

    Returns:
      A number; NaN if a bin of the day was seen on fewer than MIN_DAYS_PER_BIN days or nothing varies. By chance alone
      it is about 1 / D.
    """
    bins_DxP = np.asarray(bins_DxP, np.float64)
    seen = np.isfinite(bins_DxP)
    profile_P = mean_profile(bins_DxP)
    if not np.isfinite(profile_P).all() or not bins_DxP.size:
        return np.nan
    mean = bins_DxP[seen].mean()
    spread = ((bins_DxP[seen] - mean) ** 2).sum()
    return float((seen.sum(axis=0) * (profile_P - mean) ** 2).sum() / spread) if _varies(bins_DxP[seen]) else np.nan


def intradaily_variability(bins_DxP: ArrayLike) -> float:
    """How broken up activity is: near 0 for a smooth daily wave, about 2 for noise.

    Witting et al. (1990), Van Someren et al. (1999), as in `interdaily_stability`: the mean squared difference of
    successive bins over the variance of all bins. A difference counts only if both bins were seen.

    Returns:
      A number; NaN with fewer than MIN_PAIRS differences, or if nothing varies.
    """
    x_N = np.asarray(bins_DxP, np.float64).ravel()
    step_N = np.diff(x_N)
    step_N, x_N = step_N[np.isfinite(step_N)], x_N[np.isfinite(x_N)]
    if len(step_N) < MIN_PAIRS or not _varies(x_N):
        return np.nan
    return float((step_N**2).mean() / x_N.var())


def _varies(x_N: np.ndarray) -> bool:
    """Whether the values differ by more than rounding."""
    return np.ptp(x_N) > 1e-12 * np.abs(x_N).max()


def most_and_least_active(bins_DxP: ArrayLike) -> dict[str, float]:
    """The ten most and the five least active successive hours of the average day, around the clock.

    Witting et al. (1990), Van Someren et al. (1999).

    Args:
      bins_DxP: P a multiple of 24.

    Returns:
      {"m10", "l5"}: mean activity there, {"m10_start_hour", "l5_start_hour"}: clock time of their beginnings, hours.
      All NaN if a bin of the day was seen on fewer than MIN_DAYS_PER_BIN days.

    Raises:
      ValueError: P is not a multiple of 24.
    """
    bins_DxP = np.asarray(bins_DxP, np.float64)
    per_hour, rest = divmod(bins_DxP.shape[1], 24)
    if rest or not per_hour:
        raise ValueError(f"{bins_DxP.shape[1]} bins a day are no whole number an hour")
    profile_P = mean_profile(bins_DxP)
    out = dict.fromkeys(("m10", "l5", "m10_start_hour", "l5_start_hour"), np.nan)
    if not np.isfinite(profile_P).all():
        return out
    for name, hours, pick in (("m10", 10, np.argmax), ("l5", 5, np.argmin)):
        n = hours * per_hour
        around = np.lib.stride_tricks.sliding_window_view(np.concatenate([profile_P, profile_P[: n - 1]]), n).mean(-1)
        at = int(pick(around))
        out[name], out[f"{name}_start_hour"] = float(around[at]), at / per_hour
    return out


def relative_amplitude(bins_DxP: ArrayLike) -> float:
    """(M10 - L5) / (M10 + L5), Witting et al. (1990): 0 for a flat day, 1 for one with five hours of nothing.

    Returns:
      A number; NaN where `most_and_least_active` has none, or if the sum is zero.
    """
    found = most_and_least_active(bins_DxP)
    total = found["m10"] + found["l5"]
    return (found["m10"] - found["l5"]) / total if total > 0 else np.nan


def activity_entropy(bins_DxP: ArrayLike) -> float:
    """How evenly activity is spread over the day: 0 if all of it falls into one bin, 1 if every bin has the same.

    No source defines it; here it is Shannon's entropy (1948) of the bins' shares of the average day's activity, over
    the logarithm of the number of bins.

    Args:
      bins_DxP: non-negative, P at least 2, usually hours (`by_day`).

    Returns:
      A number; NaN if a bin of the day was never seen, or if there was no activity.
    """
    profile_P = mean_profile(np.asarray(bins_DxP, np.float64), min_days=1)
    return float(evenness(profile_P[None], min_coverage=1.0)[0])
