"""Detects non-wear, sleep and rest in activity counts; computes sleep efficiency and the resting heart rate.

NaN is missing everywhere. Flags lie beside the signal and never change it. Each function describes the array that it is
given: pass it nothing but the samples that are complete at the end of the window. Which sleep rule found asleep_T does
not matter: asleep_counts here, or accelerometry.asleep_angle.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ehrwear_jax.data.formats.times import DAY_MINUTES
from ehrwear_jax.data.signals.masks import runs

# Choi et al. (2011, Med Sci Sports Exerc 43:357): counts that may interrupt time not worn, and the zeros around them.
SPIKE_MINUTES = 2
QUIET_MINUTES = 30
# Cole et al. (1992, Sleep 15:461), weights for counts of whole minutes: from four minutes before to two after.
COLE_KRIPKE = 0.001 * np.array([106.0, 54.0, 58.0, 76.0, 230.0, 74.0, 67.0])
# After van Hees et al. (2018, Sci Rep 8:12975): rest is what has more sleep than waking within half an hour around it
# (there: a posture that is still for half an hour); times of rest are joined over less than an hour.
REST_AROUND_MINUTES = 30.0
MAX_WAKE_MINUTES = 60.0
MIN_NIGHT_COVERAGE = 0.8  # share of a night that must be known; our choice
# Mishra et al. (2020, Nat Biomed Eng 4:1208): minutes without steps before one at rest.
STILL_MINUTES = 12
MIN_REST_MINUTES = 30  # fewest for a median; our choice


def non_wear_counts(counts_T: ArrayLike, min_minutes: int = 90) -> np.ndarray:
    """Time in which a counter counts nothing, for an hour and a half or longer.

    Choi et al. (2011): runs of zeros of at least min_minutes, in which up to SPIKE_MINUTES of counts are allowed if
    QUIET_MINUTES before and after them are zero (as far as the array goes). Sleep is rarely as still as this for so
    long, but it can be.

    Args:
      counts_T: [T] counts per minute.
      min_minutes: shortest time not worn; 90 is Choi's.

    Returns:
      [T] bool. A minute without a value is not flagged and ends a run.
    """
    counts_T = np.asarray(counts_T, np.float64)
    zero_T = counts_T == 0
    spike = runs(counts_T > 0)
    spike = spike[spike[:, 1] - spike[:, 0] <= SPIKE_MINUTES]
    n_other = np.concatenate([[0], np.cumsum(~zero_T)])  # minutes that are not zero, before each
    around = np.clip(spike + [-QUIET_MINUTES, QUIET_MINUTES], 0, len(counts_T))
    alone = n_other[around[:, 1]] - n_other[around[:, 0]] == spike[:, 1] - spike[:, 0]
    quiet_T = zero_T.copy()
    for first, last in spike[alone]:
        quiet_T[first:last] = True
    run = runs(quiet_T)
    flag_T = np.zeros(len(counts_T), bool)
    for first, last in run[run[:, 1] - run[:, 0] >= min_minutes]:
        flag_T[first:last] = True
    return flag_T


def asleep_counts(counts_T: ArrayLike, scale: float = 0.01, cap: float = 300.0) -> np.ndarray:
    """Sleep or wake, minute by minute, by the rule of Cole and Kripke; for counts, where no raw acceleration exists.

    Cole et al. (1992): asleep if the weighted sum of seven minutes (COLE_KRIPKE) is below one. No rule for mending
    single minutes follows, so a time awake looks some three minutes longer than it is. The weights are for a counter
    of 1992; scale and cap bring others to it.

    Args:
      counts_T: [T] counts per minute, non-negative; NaN where missing or not worn, for zeros look like sleep.
      scale: of the device's counts; an ActiGraph's are taken by the hundredth.
      cap: highest scaled count.

    Returns:
      [T] float64: 1 asleep, 0 awake, NaN where one of the seven minutes is missing or outside the array.
    """
    x_T = np.minimum(np.asarray(counts_T, np.float64) * scale, cap)
    out_T = np.full(len(x_T), np.nan)
    if len(x_T) >= len(COLE_KRIPKE):
        score = np.lib.stride_tricks.sliding_window_view(x_T, len(COLE_KRIPKE)) @ COLE_KRIPKE
        out_T[4:-2] = np.where(np.isfinite(score), score < 1.0, np.nan)
    return out_T


def sleep_windows(asleep_T: ArrayLike, start_minute: float, step_minutes: float = 1.0) -> np.ndarray:
    """The main sleep of each day from noon to noon.

    After the rule for blocks of van Hees et al. (2018): times of rest are joined if less than MAX_WAKE_MINUTES lie
    between them, and the longest is the main one. There rest is a small change of the arm's angle, smoothed over five
    minutes, by a threshold of the person's own; here it is a time around which, for REST_AROUND_MINUTES, any rule
    found more sleep than waking. A block is cut or stretched to whole runs of sleep.

    Args:
      asleep_T: [T] 1 asleep, 0 awake, NaN unknown.
      start_minute: local clock time of the first sample, minutes since midnight.
      step_minutes: sampling interval.

    Returns:
      [D, 2] int64: half-open index range of the block for every day touched; (-1, -1) if there is none, or if within
      that day nobody was seen awake before it or after it, so that its true beginning or end is not known.
    """
    asleep_T = np.asarray(asleep_T, np.float64)
    if not len(asleep_T):
        return np.zeros((0, 2), np.int64)
    day_T = np.floor((start_minute - DAY_MINUTES / 2 + np.arange(len(asleep_T)) * step_minutes) / DAY_MINUTES)
    edges = [0, *(np.flatnonzero(np.diff(day_T)) + 1), len(asleep_T)]
    half, gap = int(REST_AROUND_MINUTES / step_minutes / 2), MAX_WAKE_MINUTES / step_minutes
    return np.array([_main_block(asleep_T[a:b], half, gap, a) for a, b in zip(edges[:-1], edges[1:], strict=True)])


def _main_block(asleep_N: np.ndarray, half: int, max_wake: float, offset: int) -> tuple[int, int]:
    """(first, last) index range of the longest block, counted from offset; (-1, -1) if there is none."""
    sleep_N, wake_N = asleep_N == 1, asleep_N == 0
    lean = np.concatenate([np.zeros(half + 1), np.cumsum(sleep_N.astype(np.int64) - wake_N), np.zeros(half)])
    lean[len(lean) - half :] = lean[len(lean) - half - 1]
    rest, sleep = runs(lean[2 * half + 1 :] > lean[: len(asleep_N)]), runs(sleep_N)
    new = rest[1:, 0] - rest[:-1, 1] >= max_wake
    begin_B, end_B = rest[np.append(True, new)[: len(rest)], 0], rest[np.append(new, True)[: len(rest)], 1]
    # the runs of sleep that reach into each block
    pairs = zip(np.searchsorted(sleep[:, 1], begin_B, side="right"), np.searchsorted(sleep[:, 0], end_B), strict=True)
    blocks = [(int(sleep[i, 0]), int(sleep[j - 1, 1])) for i, j in pairs if i < j]
    if not blocks:
        return -1, -1
    first, last = max(blocks, key=lambda block: block[1] - block[0])
    if not (wake_N[:first].any() and wake_N[last:].any()):
        return -1, -1
    return first + offset, last + offset


def sleep_efficiency(asleep_T: ArrayLike, window_Dx2: Sequence[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """Share of the main sleep's time spent asleep.

    Time asleep over time from falling asleep to the last waking. Without a diary the time in bed is not known, so the
    time before sleep comes is not counted (van Hees et al. 2018 call this sleep efficiency within the window).

    Args:
      asleep_T: [T] 1 asleep, 0 awake, NaN unknown.
      window_Dx2: index ranges (`sleep_windows`).

    Returns:
      [D] float64, 0 to 1, of the time that is known; NaN without a window, or if less than MIN_NIGHT_COVERAGE is known.
    """
    asleep_T = np.asarray(asleep_T, np.float64)
    out_D = np.full(len(window_Dx2), np.nan)
    for d, (first, last) in enumerate(window_Dx2):
        known = asleep_T[first:last][np.isfinite(asleep_T[first:last])] if first >= 0 else ()
        if len(known) and len(known) >= MIN_NIGHT_COVERAGE * (last - first):
            out_D[d] = np.mean(known)
    return out_D


def resting_heart_rate(
    heart_rate_T: ArrayLike, activity_T: ArrayLike, still: float = 0.0, asleep_T: ArrayLike | None = None
) -> float:
    """Median heart rate after a while without movement.

    Mishra et al. (2020) take the heart rate of minutes with no steps in the STILL_MINUTES before; the minute itself
    must be still here too, and sleep may be left out.

    Args:
      heart_rate_T: [T] beats per minute, one value a minute.
      activity_T: [T] any unit, on the same grid; a minute without a value is not still.
      still: largest activity that counts as none, in that unit.
      asleep_T: [T] 1 where asleep: left out. None keeps sleep in.

    Returns:
      Beats per minute; NaN if fewer than MIN_REST_MINUTES remain.
    """
    heart_rate_T = np.asarray(heart_rate_T, np.float64)
    with np.errstate(invalid="ignore"):
        still_T = np.asarray(activity_T, np.float64) <= still
    total = np.concatenate([np.zeros(STILL_MINUTES + 1, np.int64), np.cumsum(still_T)])
    rest_T = total[STILL_MINUTES + 1 :] - total[: len(still_T)] == STILL_MINUTES + 1
    rest_T &= np.isfinite(heart_rate_T)
    if asleep_T is not None:
        rest_T &= np.asarray(asleep_T) != 1
    return float(np.median(heart_rate_T[rest_T])) if rest_T.sum() >= MIN_REST_MINUTES else np.nan
