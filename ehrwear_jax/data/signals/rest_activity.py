"""Movement over days: acceleration in milli-g, time not worn, sleep, resting heart rate and the daily rhythm.

NaN is missing everywhere. Flags lie beside the signal and never change it. The measures of the rhythm take a table of
days by equal bins of the day (`by_day`), so that they say what they average over. All of them describe the array that
they are given; one that stands for a window gets the samples up to the window's end (`signal.complete_by`).
"""

import numpy as np

from ehrwear_jax.data.signals.signal import runs

DAY_MINUTES = 1440
# Cole et al. (1992, Sleep 15:461), weights for counts of whole minutes: from four minutes before to two after.
COLE_KRIPKE = 0.001 * np.array([106.0, 54.0, 58.0, 76.0, 230.0, 74.0, 67.0])


def enmo(acceleration_Tx3):
    """Euclidean norm minus one g, negative values set to zero (van Hees et al. 2013, PLoS ONE 8:e61691).

    Args:
      acceleration_Tx3: g, calibrated.

    Returns:
      [T] float64, milli-g; NaN where an axis is missing.
    """
    norm_T = np.sqrt((np.asarray(acceleration_Tx3, np.float64) ** 2).sum(axis=-1))
    return 1000 * np.maximum(norm_T - 1.0, 0.0)


def arm_angle(acceleration_Tx3):
    """Angle of the z axis to the horizontal plane (van Hees et al. 2015, PLoS ONE 10:e0142533).

    Args:
      acceleration_Tx3: g, best the mean of each epoch of 5 s.

    Returns:
      [T] float64, degrees from -90 to 90; NaN where an axis is missing or nothing pulls.
    """
    x, y, z = np.moveaxis(np.asarray(acceleration_Tx3, np.float64), -1, 0)
    angle = np.degrees(np.arctan2(z, np.hypot(x, y)))
    return np.where((x == 0) & (y == 0) & (z == 0), np.nan, angle)


def epoch_mean(values_T, n, min_coverage=0.5):
    """[T // n] float64: means of n samples each; NaN if less than min_coverage of them is there. The rest is dropped.

    The values may have trailing axes, which stay.
    """
    values_T = np.asarray(values_T, np.float64)
    x = values_T[: len(values_T) // n * n].reshape(-1, n, *values_T.shape[1:])
    seen = np.isfinite(x)
    count = seen.sum(axis=1)
    mean = np.where(seen, x, 0.0).sum(axis=1) / np.maximum(count, 1)
    return np.where(count >= max(min_coverage * n, 1), mean, np.nan)


def non_wear_acceleration(acceleration_Tx3, rate_hz, sd_mg=13.0, range_mg=50.0):
    """Time in which the sensor lies still, flagged in blocks of 15 minutes.

    van Hees et al. (2011, PLoS ONE 6:e22922; limits of 2013): a block is not worn if, over the hour around it, at
    least two axes have a standard deviation below sd_mg, or at least two a range below range_mg.

    Args:
      acceleration_Tx3: g.

    Returns:
      [T] bool. Where half an hour or more of that hour is missing or lies outside the array nothing is flagged.
    """
    acceleration_Tx3 = np.asarray(acceleration_Tx3, np.float64)
    n_samples = len(acceleration_Tx3)
    if not n_samples:
        return np.zeros(0, bool)
    cell = max(int(round(450 * rate_hz)), 1)  # 7.5 minutes: a block is two of them, its hour eight
    fill = -n_samples % (2 * cell)
    x = np.pad(acceleration_Tx3, ((3 * cell, fill + 3 * cell), (0, 0)), constant_values=np.nan).reshape(-1, cell, 3)
    seen = np.isfinite(x)
    x = np.where(seen, x, 0.0)
    parts = (seen.sum(1), x.sum(1), (x**2).sum(1))
    count, total, square = (_windows(p, 8).sum(-1) for p in parts)
    top = _windows(np.where(seen, x, -np.inf).max(1), 8).max(-1)
    bottom = _windows(np.where(seen, x, np.inf).min(1), 8).min(-1)
    some = np.maximum(count, 1)
    sd = np.sqrt(np.maximum(square / some - (total / some) ** 2, 0.0))
    enough = count > 4 * cell
    still = [(enough & low).sum(axis=-1) >= 2 for low in (sd < sd_mg / 1000, top - bottom < range_mg / 1000)]
    return np.repeat(still[0] | still[1], 2 * cell)[:n_samples]


def _windows(x_CxK, n):
    """[blocks, K, n]: n cells from every second cell on."""
    return np.lib.stride_tricks.sliding_window_view(x_CxK, n, axis=0)[::2]


def non_wear_counts(counts_T, min_minutes=90, spike_minutes=2, quiet_minutes=30):
    """Time in which a counter counts nothing, for an hour and a half or longer.

    Choi et al. (2011, Med Sci Sports Exerc 43:357): runs of zeros of at least min_minutes, in which up to
    spike_minutes of counts are allowed if quiet_minutes before and after them are zero (as far as the array goes).
    Sleep is rarely as still as this for so long, but it can be.

    Args:
      counts_T: [T] counts per minute.

    Returns:
      [T] bool. A minute without a value is not flagged and ends a run.
    """
    counts_T = np.asarray(counts_T, np.float64)
    zero_T = counts_T == 0
    quiet_T = zero_T.copy()
    for first, last in runs(counts_T > 0):
        before, after = zero_T[max(first - quiet_minutes, 0) : first], zero_T[last : last + quiet_minutes]
        if last - first <= spike_minutes and before.all() and after.all():
            quiet_T[first:last] = True
    flag_T = np.zeros(len(counts_T), bool)
    for first, last in runs(quiet_T):
        flag_T[first:last] = last - first >= min_minutes
    return flag_T


def asleep_counts(counts_T, scale=0.01, cap=300.0):
    """Sleep or wake, minute by minute, by the rule of Cole and Kripke; for counts, where no raw acceleration exists.

    Cole et al. (1992, Sleep 15:461): asleep if the weighted sum of seven minutes (COLE_KRIPKE) is below one. No rule
    for mending single minutes follows, so a time awake looks some three minutes longer than it is. The weights are
    for a counter of 1992; scale and cap bring others to it (an ActiGraph's: a hundredth, at most 300).

    Args:
      counts_T: [T] counts per minute, non-negative; NaN where missing or not worn, for zeros look like sleep.

    Returns:
      [T] float64: 1 asleep, 0 awake, NaN where one of the seven minutes is missing or outside the array.
    """
    x_T = np.minimum(np.asarray(counts_T, np.float64) * scale, cap)
    out_T = np.full(len(x_T), np.nan)
    if len(x_T) >= len(COLE_KRIPKE):
        score = np.lib.stride_tricks.sliding_window_view(x_T, len(COLE_KRIPKE)) @ COLE_KRIPKE
        out_T[4:-2] = np.where(np.isfinite(score), score < 1.0, np.nan)
    return out_T


def asleep_angle(angle_T, epoch_s=5.0, max_change=5.0, min_minutes=5.0):
    """Sleep or wake by the angle of the arm; for raw acceleration, where it needs no calibrated count.

    van Hees et al. (2015, PLoS ONE 10:e0142533): asleep while the angle changes by no more than max_change degrees
    from epoch to epoch, for min_minutes or longer.

    Args:
      angle_T: [T] degrees, one value per epoch (`arm_angle`).

    Returns:
      [T] float64: 1 asleep, 0 awake, NaN where the angle is missing; a missing epoch ends a still time.
    """
    angle_T = np.asarray(angle_T, np.float64)
    seen_T = np.isfinite(angle_T)
    out_T = np.where(seen_T, 0.0, np.nan)
    still = np.abs(np.diff(angle_T)) <= max_change
    for first, last in runs(still):  # last + 1 - first epochs
        if (last + 1 - first) * epoch_s >= min_minutes * 60:
            out_T[first : last + 1] = 1.0
    return out_T


def sleep_windows(asleep_T, start_minute, step_minutes=1.0, around=30.0, max_wake=60.0):
    """The main sleep of each day from noon to noon.

    After the rule for blocks of van Hees et al. (2018, Sci Rep 8:12975): times of rest are joined if less than an hour
    lies between them, and the longest is the main one. There rest is a small change of the arm's angle, smoothed over
    five minutes, by a threshold of the person's own; here it is a time around which, for half an hour, any rule found
    more sleep than waking. A block is cut or stretched to whole runs of sleep.

    Args:
      asleep_T: [T] 1 asleep, 0 awake, NaN unknown.
      start_minute: local clock time of the first sample, minutes since midnight.
      step_minutes: sampling interval.
      around, max_wake: minutes, the half hour and the hour of the rule.

    Returns:
      [D, 2] int64: half-open index range of the block for every day touched; (-1, -1) if there is none, or if within
      that day nobody was seen awake before it or after it, so that its true beginning or end is not known.
    """
    asleep_T = np.asarray(asleep_T, np.float64)
    if not len(asleep_T):
        return np.zeros((0, 2), np.int64)
    day_T = np.floor((start_minute - DAY_MINUTES / 2 + np.arange(len(asleep_T)) * step_minutes) / DAY_MINUTES)
    edges = [0, *(np.flatnonzero(np.diff(day_T)) + 1), len(asleep_T)]
    half, gap = int(around / step_minutes / 2), max_wake / step_minutes
    return np.array([_main_block(asleep_T[a:b], half, gap, a) for a, b in zip(edges[:-1], edges[1:], strict=True)])


def _main_block(asleep_N, half, max_wake, offset):
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


def sleep_efficiency(asleep_T, window_Dx2, min_coverage=0.8):
    """Share of the main sleep's time spent asleep.

    Time asleep over time from falling asleep to the last waking. Without a diary the time in bed is not known, so the
    time before sleep comes is not counted (van Hees et al. 2018 call this sleep efficiency within the window).

    Args:
      asleep_T: [T] 1 asleep, 0 awake, NaN unknown.
      window_Dx2: index ranges (`sleep_windows`).

    Returns:
      [D] float64, 0 to 1, of the time that is known; NaN without a window, or if less than min_coverage is known.
    """
    asleep_T = np.asarray(asleep_T, np.float64)
    out_D = np.full(len(window_Dx2), np.nan)
    for d, (first, last) in enumerate(window_Dx2):
        known = asleep_T[first:last][np.isfinite(asleep_T[first:last])] if first >= 0 else ()
        if len(known) and len(known) >= min_coverage * (last - first):
            out_D[d] = np.mean(known)
    return out_D


def resting_heart_rate(heart_rate_T, activity_T, still=0.0, lead=12, min_samples=30, asleep_T=None):
    """Median heart rate after a while without movement.

    Mishra et al. (2020, Nat Biomed Eng 4:1208) take the heart rate of minutes with no steps in the twelve before; the
    minute itself must be still here too, and sleep may be left out.

    Args:
      heart_rate_T: [T] beats per minute, one value a minute.
      activity_T: [T] any unit, on the same grid.
      still: largest activity that counts as none.
      lead: samples before one that must be observed and still, too.
      asleep_T: [T] 1 where asleep: left out. None keeps sleep in.

    Returns:
      Beats per minute; NaN if fewer than min_samples remain.
    """
    heart_rate_T = np.asarray(heart_rate_T, np.float64)
    with np.errstate(invalid="ignore"):
        still_T = np.asarray(activity_T, np.float64) <= still
    total = np.concatenate([np.zeros(lead + 1, np.int64), np.cumsum(still_T)])
    rest_T = total[lead + 1 :] - total[: len(still_T)] == lead + 1
    rest_T &= np.isfinite(heart_rate_T)
    if asleep_T is not None:
        rest_T &= np.asarray(asleep_T) != 1
    return float(np.median(heart_rate_T[rest_T])) if rest_T.sum() >= max(min_samples, 1) else np.nan


def by_day(values_T, start_minute, step_minutes=1, bin_minutes=60, min_coverage=0.5):
    """Means per bin of the day, one row per calendar day.

    Args:
      values_T: [T] any unit.
      start_minute: local clock time of the first sample, minutes since midnight (0 to 1439).
      step_minutes: sampling interval; divides bin_minutes, which divides a day, and start_minute.

    Returns:
      [D, 1440 / bin_minutes] float64; NaN where less than min_coverage of the bin is there.

    Raises:
      ValueError: the intervals do not divide each other, or start_minute is no time of day on the grid.
    """
    if DAY_MINUTES % bin_minutes or bin_minutes % step_minutes:
        raise ValueError(f"steps of {step_minutes} min do not divide bins of {bin_minutes} min, or these a day")
    if not 0 <= start_minute < DAY_MINUTES or start_minute % step_minutes:
        raise ValueError(f"a start {start_minute} min after midnight is not on a daily grid of {step_minutes} min")
    values_T = np.asarray(values_T, np.float64)
    before = int(start_minute // step_minutes)
    after = -(before + len(values_T)) % int(DAY_MINUTES // step_minutes)
    padded = np.pad(values_T, (before, after), constant_values=np.nan)
    means = epoch_mean(padded, int(bin_minutes // step_minutes), min_coverage)
    return means.reshape(-1, DAY_MINUTES // bin_minutes)


def mean_profile(bins_DxP, min_days=2):
    """The average day [P]; NaN in a bin that fewer than min_days days have."""
    seen = np.isfinite(bins_DxP)
    count = seen.sum(axis=0)
    return np.where(count >= min_days, np.where(seen, bins_DxP, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def interdaily_stability(bins_DxP, min_days=2):
    """How much of the variation is the same every day: 0 for none, 1 for all.

    Witting et al. (1990, Biol Psychiatry 27:563), Van Someren et al. (1999, Chronobiol Int 16:505): the variance of
    the average day over the variance of all bins. With missing bins each bin of the average day counts as often as
    it was seen, which keeps the ratio a share; without, this is the published formula. Missing bins stay missing.

    Args:
      bins_DxP: [D, P] activity per bin, usually hours (`by_day`).

    Returns:
      A number; NaN if a bin of the day was seen on fewer than min_days days or nothing varies. By chance alone it is
      about 1 / D.
    """
    bins_DxP = np.asarray(bins_DxP, np.float64)
    seen = np.isfinite(bins_DxP)
    profile_P = mean_profile(bins_DxP, max(min_days, 1))
    if not np.isfinite(profile_P).all() or not bins_DxP.size:
        return np.nan
    mean = bins_DxP[seen].mean()
    spread = ((bins_DxP[seen] - mean) ** 2).sum()
    return float((seen.sum(axis=0) * (profile_P - mean) ** 2).sum() / spread) if _varies(bins_DxP[seen]) else np.nan


def intradaily_variability(bins_DxP, min_pairs=24):
    """How broken up activity is: near 0 for a smooth daily wave, about 2 for noise.

    Witting et al. (1990), Van Someren et al. (1999), as in `interdaily_stability`: the mean squared difference of
    successive bins over the variance of all bins. A difference counts only if both bins were seen.

    Returns:
      A number; NaN with fewer than min_pairs differences, or if nothing varies.
    """
    x_N = np.asarray(bins_DxP, np.float64).ravel()
    step_N = np.diff(x_N)
    step_N, x_N = step_N[np.isfinite(step_N)], x_N[np.isfinite(x_N)]
    if len(step_N) < max(min_pairs, 1) or not _varies(x_N):
        return np.nan
    return float((step_N**2).mean() / x_N.var())


def _varies(x_N):
    """Whether the values differ by more than rounding."""
    return np.ptp(x_N) > 1e-12 * np.abs(x_N).max()


def most_and_least_active(bins_DxP, min_days=2):
    """The ten most and the five least active successive hours of the average day, around the clock.

    Witting et al. (1990), Van Someren et al. (1999).

    Args:
      bins_DxP: P a multiple of 24.

    Returns:
      {"m10", "l5"}: mean activity there, {"m10_start_hour", "l5_start_hour"}: clock time of their beginnings, hours.
      All NaN if a bin of the day was seen on fewer than min_days days.

    Raises:
      ValueError: P is not a multiple of 24.
    """
    bins_DxP = np.asarray(bins_DxP, np.float64)
    per_hour, rest = divmod(bins_DxP.shape[1], 24)
    if rest or not per_hour:
        raise ValueError(f"{bins_DxP.shape[1]} bins a day are no whole number an hour")
    profile_P = mean_profile(bins_DxP, min_days)
    out = dict.fromkeys(("m10", "l5", "m10_start_hour", "l5_start_hour"), np.nan)
    if not np.isfinite(profile_P).all():
        return out
    for name, hours, pick in (("m10", 10, np.argmax), ("l5", 5, np.argmin)):
        n = hours * per_hour
        around = np.lib.stride_tricks.sliding_window_view(np.concatenate([profile_P, profile_P[: n - 1]]), n).mean(-1)
        at = int(pick(around))
        out[name], out[f"{name}_start_hour"] = float(around[at]), at / per_hour
    return out


def relative_amplitude(bins_DxP, min_days=2):
    """(M10 - L5) / (M10 + L5), Witting et al. (1990): 0 for a flat day, 1 for one with five hours of nothing.

    Returns:
      A number; NaN where `most_and_least_active` has none, or if the sum is zero.
    """
    found = most_and_least_active(bins_DxP, min_days)
    total = found["m10"] + found["l5"]
    return (found["m10"] - found["l5"]) / total if total > 0 else np.nan


def activity_entropy(bins_DxP, min_days=1):
    """How evenly activity is spread over the day: 0 if all of it falls into one bin, 1 if every bin has the same.

    No source defines it; here it is Shannon's entropy (1948) of the bins' shares of the average day's activity, over
    the logarithm of the number of bins.

    Args:
      bins_DxP: non-negative, P at least 2, usually hours (`by_day`).

    Returns:
      A number; NaN if a bin of the day was seen on fewer than min_days days, or if there was no activity.
    """
    profile_P = mean_profile(np.asarray(bins_DxP, np.float64), max(min_days, 1))
    return float(evenness(profile_P[None], min_coverage=1.0)[0])


def evenness(values_MxP, min_coverage=0.5):
    """Shannon's entropy (1948) of the shares that the values of a row have of its sum, over the log of their number.

    Args:
      values_MxP: non-negative; NaN where missing, and left out.
      min_coverage: least share of a row that must be there.

    Returns:
      [M] float64: 0 if all of the sum is in one value, 1 if all values are the same; NaN if fewer than two values or
      too few are there, or their sum is zero.
    """
    values_MxP = np.asarray(values_MxP, np.float64)
    seen = np.isfinite(values_MxP)
    count_M = seen.sum(axis=1)
    total_M = np.where(seen, values_MxP, 0.0).sum(axis=1)
    enough_M = (count_M >= np.maximum(min_coverage * values_MxP.shape[1], 2)) & (total_M > 0)
    share_MxP = np.where(seen & enough_M[:, None], values_MxP, 0.0) / np.where(enough_M, total_M, 1.0)[:, None]
    bits_M = -np.sum(share_MxP * np.log(np.where(share_MxP > 0, share_MxP, 1.0)), axis=1)
    return np.where(enough_M, np.maximum(bits_M, 0.0) / np.log(np.maximum(count_M, 2)), np.nan)
