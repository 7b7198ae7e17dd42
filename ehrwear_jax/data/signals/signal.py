"""Wearable signals on a regular grid: cleaning, pooling to a common step, windows that end at fixed clock times.

NaN is missing everywhere. Flags lie beside the values and never change them. Whatever works forwards and backwards in
time (the filter, the imputation, the noise of a segment) knows only the array that it is given, so the caller passes
the samples that were complete at the end of the window (`complete_by`), or the ends of the windows themselves.
"""

import dataclasses

import numpy as np
from scipy.linalg import solveh_banded
from scipy.signal import butter, detrend, lfilter, sosfiltfilt

from ehrwear_jax.data.signals import overlap

DAY_US = 86_400_000_000
PULSE_HZ = (0.5, 3.5)  # band of the pulse wave's fundamental: 30 to 210 beats a minute


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """How a dense signal becomes windows.

    Attributes:
      channels: names, in the order of the last array axis.
      window_hours: length of a window; divides 24. Windows end at multiples of it on the recording's clock.
      step_minutes: pooled sampling interval; divides the window.
      min_coverage: a window exists if any channel has at least this share of its steps.
    """

    channels: tuple
    window_hours: int = 6
    step_minutes: int = 5
    min_coverage: float = 0.1

    def __post_init__(self):
        if 24 % self.window_hours or (self.window_hours * 60) % self.step_minutes:
            raise ValueError(f"window of {self.window_hours} h and step of {self.step_minutes} min do not divide a day")

    @property
    def steps(self):
        return self.window_hours * 60 // self.step_minutes


def pool_row(start_us, rate_hz, values_N, spec, low=-np.inf, high=np.inf):
    """Pools one recorded stretch to the grid.

    A sample is known only at its end, so it counts only in the window in which it ends. One that lasts longer than a
    step fills the steps that it covers there; shorter ones are averaged per step. Values outside [low, high] count as
    missing.

    Args:
      start_us: time of the first sample, microseconds since the epoch.
      rate_hz: samples per second.
      values_N: float array; NaN is missing.

    Returns:
      (step_M int64, sum_M f64, weight_M f64): grid step since the epoch, sum of samples, number of samples.
    """
    step_us = spec.step_minutes * 60_000_000
    values_N = np.asarray(values_N, np.float64)
    good_N = np.isfinite(values_N) & (values_N >= low) & (values_N <= high)
    period_us = 1e6 / rate_hz
    window_us = spec.window_hours * 3_600_000_000
    if period_us == step_us and start_us % step_us == 0:  # one sample per step
        step = start_us // step_us + np.nonzero(good_N)[0]
        return step, values_N[good_N], np.ones(len(step))
    edge_us = overlap.sample_edges(start_us, rate_hz, len(values_N))
    last_N = edge_us[1:] - 1
    first_N = np.maximum(edge_us[:-1], last_N // window_us * window_us)
    if period_us <= step_us:
        step_N = first_N // step_us
        first = step_N[0]
        n = int(step_N[-1] - first) + 1
        total = np.bincount((step_N - first)[good_N], values_N[good_N], n)
        weight = np.bincount((step_N - first)[good_N], None, n).astype(np.float64)
        keep = weight > 0
        return first + np.nonzero(keep)[0], total[keep], weight[keep]
    steps, totals = [], []
    for first, last, value in zip(first_N[good_N], last_N[good_N], values_N[good_N], strict=True):
        covered = np.arange(first // step_us, last // step_us + 1)
        steps.append(covered)
        totals.append(np.full(len(covered), value))
    if not steps:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    step = np.concatenate(steps)
    return step, np.concatenate(totals), np.ones(len(step))


def window_subject(rows, spec, limits):
    """Windows of one person.

    Args:
      rows: iterable of (start_us, rate_hz, channel, values_N) or (..., device); see overlap.py for overlapping ones.
      spec: WindowSpec; rows of channels that it does not name are ignored.
      limits: {channel: (low, high)} plausible range, either may be None.

    Returns:
      (end_us_M int64, values_MxLxC float32 with NaN where missing), ordered by time.
    """
    return window_person(rows, spec, limits)[:2]


def window_person(rows, spec, limits):
    """As window_subject; returns also {name: count} of overlap.COUNTS."""
    step_us = spec.step_minutes * 60_000_000
    counts = dict.fromkeys(overlap.COUNTS, 0)
    of = {}
    for start_us, rate_hz, channel, values, *device in rows:
        if channel in spec.channels and len(values):
            of.setdefault((overlap.source(device[0] if device else None, rate_hz), channel), []).append(
                (start_us, rate_hz, values)
            )
    parts = []
    for (source, channel), stretches in of.items():
        stretches, n_left_out = overlap.without_repeats(stretches)
        counts["samples of overlapping stretches"] += n_left_out
        low, high = limits.get(channel, (None, None))
        low, high = -np.inf if low is None else low, np.inf if high is None else high
        for start_us, rate_hz, values in stretches:
            part = pool_row(start_us, rate_hz, values, spec, low, high)
            if len(part[0]):
                parts.append((source, spec.channels.index(channel), *part))
    if not parts:
        return np.zeros(0, np.int64), np.zeros((0, spec.steps, len(spec.channels)), np.float32), counts
    window_of = [p[2] // spec.steps for p in parts]  # increasing in each part, all but always
    window_N = np.unique(np.concatenate([w[np.append(True, w[1:] != w[:-1])] for w in window_of]))
    place_W = np.searchsorted(window_N, np.arange(window_N[0], window_N[-1] + 1))
    sources = sorted({p[0] for p in parts})
    # steps last: sums over them run along memory
    shape = (len(sources), len(spec.channels), len(window_N) * spec.steps)
    total, weight = np.zeros(shape), np.zeros(shape)
    for (source, channel, step, value, count), window in zip(parts, window_of, strict=True):
        at = place_W[window - window_N[0]] * spec.steps + step % spec.steps
        total_G, weight_G = (x[sources.index(source), channel] for x in (total, weight))
        if at[-1] - at[0] == len(at) - 1 and (at[1:] > at[:-1]).all():  # without a gap
            total_G[at[0] : at[-1] + 1] += value
            weight_G[at[0] : at[-1] + 1] += count
        elif (at[1:] > at[:-1]).all():  # no step twice
            total_G[at] += value
            weight_G[at] += count
        else:
            np.add.at(total_G, at, value)
            np.add.at(weight_G, at, count)
    with np.errstate(invalid="ignore"):
        values = (total / weight).astype(np.float32)  # 0 / 0: NaN
    values = values.reshape(len(sources), len(spec.channels), len(window_N), spec.steps)
    values, counts["steps of a further device"] = overlap.choose_source(np.moveaxis(values, 1, 3))
    covered = np.isfinite(np.moveaxis(values, 2, 0)).mean(axis=2).max(axis=0) >= spec.min_coverage
    end_us = (window_N + 1) * spec.steps * step_us
    return end_us[covered], values[covered], counts


_SUMMARISED_AT_ONCE = 64  # windows whose intermediate results stay in the processor's cache


def summaries(values_MxLxC):
    """Mean, standard deviation, mean absolute step, minimum, maximum and coverage per window and channel.

    Returns:
      {name: float32 [M, C]}; NaN where a statistic needs more values than there are. A step is a difference of
      neighbouring grid points that are both observed.
    """
    n = len(values_MxLxC)
    blocks = [_summaries(values_MxLxC[i : i + _SUMMARISED_AT_ONCE]) for i in range(0, max(n, 1), _SUMMARISED_AT_ONCE)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _summaries(values_MxLxC):
    values_MxCxL = np.ascontiguousarray(np.moveaxis(values_MxLxC, 1, 2))  # sums over steps run along memory
    seen = np.isfinite(values_MxCxL)
    count = seen.sum(axis=2)
    filled = np.where(seen, values_MxCxL, 0.0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=2) / count
        var = np.where(seen, (filled - mean[..., None]) ** 2, 0.0).sum(axis=2) / count
        pair = seen[..., 1:] & seen[..., :-1]
        step = np.abs(np.where(pair, np.diff(filled, axis=2), 0.0)).sum(axis=2) / pair.sum(axis=2)
        std = np.sqrt(np.where(count > 1, var, np.nan))
    low = np.where(seen, values_MxCxL, np.inf).min(axis=2, initial=np.inf)
    high = np.where(seen, values_MxCxL, -np.inf).max(axis=2, initial=-np.inf)
    out = {
        "mean": mean,
        "std": std,
        "mean_abs_step": step,
        "min": np.where(count > 0, low, np.nan),
        "max": np.where(count > 0, high, np.nan),
        "coverage": seen.mean(axis=2),
    }
    return {k: v.astype(np.float32) for k, v in out.items()}


def runs(mask_T):
    """Half-open index ranges [R, 2] int64 of the runs of True, in order."""
    edge = np.diff(np.concatenate([[0], np.asarray(mask_T, np.int8), [0]]))
    return np.stack([np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)], axis=1)


def complete_by(start_us, rate_hz, n, end_us):
    """How many of n samples are complete at end_us: sample i ends at start + (i + 1) / rate, as in `pool_row`."""
    end_N = start_us + np.round(np.arange(1, n + 1) * (1e6 / rate_hz)).astype(np.int64)
    return int(np.searchsorted(end_N, end_us, side="right"))


def holds_band(rate_hz, high_hz=PULSE_HZ[1]):
    """Whether sampling at rate_hz can carry frequencies up to high_hz (Nyquist)."""
    return rate_hz > 2 * high_hz


def band_pass(values_T, rate_hz, low_hz=PULSE_HZ[0], high_hz=PULSE_HZ[1], order=2, ends=()):
    """Zero-phase Butterworth band-pass of every finite stretch by itself.

    The filter (Butterworth 1930) runs forwards and backwards, so its gain is the squared magnitude of one pass and
    its phase is zero. A stretch is extended by its odd reflection, one period of low_hz long, at both of its ends.

    Args:
      values_T: [T] any unit.
      rate_hz: samples per second.
      low_hz, high_hz: -3 dB points of one pass.
      order: of one pass, per edge.
      ends: sample indices at which windows end, increasing. What is returned before an end depends on no sample at
        or after it. The array's own end always counts as one.

    Returns:
      [T] float64 in the unit of the values. NaN where the value is not finite, where the stretch up to the window's
      end is shorter than two periods of low_hz, and everywhere if the rate does not hold the band.
    """
    values_T = np.asarray(values_T, np.float64)
    out_T = np.full(len(values_T), np.nan)
    if not holds_band(rate_hz, high_hz):
        return out_T
    sos = butter(order, (low_hz, high_hz), "bandpass", fs=rate_hz, output="sos")
    pad = int(np.ceil(rate_hz / low_hz))
    lead = 16 * pad  # past it the filter has forgotten how it began
    edges = [0, *ends, len(values_T)]
    for first, last in runs(np.isfinite(values_T)):
        for previous, end in zip(edges[:-1], edges[1:], strict=True):
            lo, hi = max(first, previous), min(last, end)
            begin = max(first, lo - lead)
            if lo < hi and hi - begin >= 2 * pad:
                out_T[lo:hi] = sosfiltfilt(sos, values_T[begin:hi], padlen=pad)[lo - begin :]
    return out_T


def pulse_snr(values_T, rate_hz, segment_s=8.0, min_coverage=0.9):
    """Power of the pulse and of everything else, segment by segment.

    After de Haan and Jeanne (2013, IEEE TBME 60:2878): the pulse is what lies around one frequency of the pulse band
    and around two and three times that frequency; the noise is the rest between 0.5 and 8 Hz (or Nyquist). The
    frequency is the one that explains most. Segments are detrended and tapered (Hann); "around" is the half width of
    the taper's main lobe, 2 / segment_s. (There: the fundamental and one harmonic, margins of their own.)

    Args:
      values_T: [T] raw signal, any unit.
      segment_s: seconds; the segments tile the array from its first sample, and the last may be cut short.

    Returns:
      (pulse_S, noise_S) float64 mean squares in the unit of the values, squared. NaN where less than min_coverage of
      the segment is finite, and everywhere if the rate does not hold the pulse band.
    """
    x_SxN = _segments(values_T, rate_hz, segment_s)
    n_segments, n = x_SxN.shape
    nan_S = np.full(n_segments, np.nan)
    if not holds_band(rate_hz) or n_segments == 0:
        return nan_S, nan_S.copy()
    seen = np.isfinite(x_SxN)
    enough_S = seen.mean(axis=1) >= min_coverage
    mean_Sx1 = np.where(seen, x_SxN, 0.0).sum(axis=1, keepdims=True) / np.maximum(seen.sum(axis=1, keepdims=True), 1)
    taper_N = np.hanning(n + 2)[1:-1]
    x_SxN = detrend(np.where(seen, x_SxN - mean_Sx1, 0.0), axis=1) * taper_N
    hz_F = np.fft.rfftfreq(n, 1 / rate_hz)
    power_SxF = 2 * np.abs(np.fft.rfft(x_SxN, axis=1)) ** 2 / (n * (taper_N**2).sum())
    power_SxF[:, (hz_F < PULSE_HZ[0]) | (hz_F > 8.0)] = 0.0
    pulse_K = hz_F[(hz_F >= PULSE_HZ[0]) & (hz_F <= PULSE_HZ[1])]
    off_FxKx3 = hz_F[:, None, None] - pulse_K[:, None] * np.arange(1, 4)
    near_FxK = (np.abs(off_FxKx3) <= 2 / segment_s + 1e-9).any(axis=2)
    pulse_S = (power_SxF @ near_FxK).max(axis=1)
    noise_S = np.maximum(power_SxF.sum(axis=1) - pulse_S, 0.0)
    return np.where(enough_S, pulse_S, np.nan), np.where(enough_S, noise_S, np.nan)


def _segments(values_T, rate_hz, segment_s):
    """[S, N]: the array cut into segments, the last filled up with NaN."""
    n = max(int(round(segment_s * rate_hz)), 1)
    values_T = np.asarray(values_T, np.float64)
    return np.pad(values_T, (0, -len(values_T) % n), constant_values=np.nan).reshape(-1, n)


def artefacts(values_T, rate_hz, low=-np.inf, high=np.inf, flat_s=1.0, min_snr_db=3.0, max_swing=3.0, segment_s=8.0):
    """Observed samples that are not to be trusted; the values stay as they are.

    A sample is flagged if it lies outside [low, high], and, where the rate holds the pulse band, if it is one of a
    run of equal values that lasts flat_s seconds or longer, or if the segment around it is noisy or moved. These are
    judged by `pulse_snr` of what the other two rules leave: noisy is a ratio below min_snr_db decibels (white noise
    reaches about 0, because the best frequency counts; a rhythm as irregular as atrial fibrillation may fall below);
    moved is a root mean square between 0.5 and 8 Hz above max_swing times the median of at least three segments.

    Returns:
      [T] bool; False where there is no value, and where too little of a segment is left to judge its noise.
    """
    values_T = np.asarray(values_T, np.float64)
    seen_T = np.isfinite(values_T)
    bad_T = seen_T & ((values_T < low) | (values_T > high))
    if not holds_band(rate_hz):
        return bad_T
    for first, last in runs(np.diff(values_T) == 0):  # last + 1 - first equal values
        if last + 1 - first >= flat_s * rate_hz:
            bad_T[first : last + 1] = True
    pulse_S, noise_S = pulse_snr(np.where(bad_T, np.nan, values_T), rate_hz, segment_s)
    noisy_S = pulse_S < noise_S * 10 ** (min_snr_db / 10)
    power_S = pulse_S + noise_S
    if np.isfinite(power_S).sum() >= 3:
        noisy_S |= power_S > max_swing**2 * np.nanmedian(power_S)
    n = max(int(round(segment_s * rate_hz)), 1)
    return bad_T | (seen_T & np.repeat(noisy_S, n)[: len(values_T)])


def segment_quality(values_T, rate_hz, artefact_T, segment_s=8.0):
    """Quality of each segment, from 0 (nothing usable) to 1 (a clean pulse without a hole).

    The share of the segment's samples that are observed and no artefact, times the share of the power between 0.5
    and 8 Hz that the pulse explains (`pulse_snr` of all observed samples). Where the rate does not hold the pulse
    band the second factor is left out.

    Returns:
      [S] float64; segments as in `pulse_snr`. NaN where the pulse's share cannot be judged.
    """
    seen_SxN = np.isfinite(_segments(values_T, rate_hz, segment_s))
    bad_SxN = _segments(np.asarray(artefact_T, np.float64), rate_hz, segment_s) == 1
    usable_S = (seen_SxN & ~bad_SxN).mean(axis=1)
    if not holds_band(rate_hz):
        return usable_S
    pulse_S, noise_S = pulse_snr(values_T, rate_hz, segment_s)
    with np.errstate(invalid="ignore"):
        return usable_S * (pulse_S / (pulse_S + noise_S))


def long_gaps(values_T, rate_hz, max_gap_minutes=10.0):
    """[T] bool: the sample lies in a run without values that lasts longer than max_gap_minutes.

    Such a run is missing; shorter ones are small enough to be bridged by `impute_ar`. A run that the array's end cuts
    off counts with the length seen.
    """
    gap_T = np.zeros(len(values_T), bool)
    for first, last in runs(~np.isfinite(values_T)):
        gap_T[first:last] = last - first > max_gap_minutes * 60 * rate_hz * (1 + 1e-9)
    return gap_T


def burg(centred_T, order):
    """Coefficients a [order] of x_t = sum_k a_k x_{t-k} + noise, from a zero-mean array with gaps.

    Burg's recursion (1967): each reflection coefficient minimises the squared forward and backward errors over the
    places where both exist, so a gap only takes its neighbours out and the model is never explosive.
    """
    forward = backward = np.asarray(centred_T, np.float64)
    filter_P = np.ones(1)
    for _ in range(order):
        f, b = forward[1:], backward[:-1]
        both = np.isfinite(f) & np.isfinite(b)
        energy = (f[both] ** 2).sum() + (b[both] ** 2).sum()
        k = 2 * (f[both] * b[both]).sum() / energy if energy > 0 else 0.0
        forward, backward = f - k * b, b - k * f
        filter_P = np.append(filter_P, 0.0) - k * np.append(filter_P, 0.0)[::-1]
    return -filter_P[1:]


def impute_ar(values_T, rate_hz, order=3, max_gap_minutes=10.0):
    """Short gaps filled by a short autoregressive model; for normalisation only, never as input of a model.

    The model is fitted to the observed samples (`burg`, after their mean is taken off). The filled values are those
    that make its squared prediction errors smallest given everything observed (Janssen, Veldhuis and Vries 1986, IEEE
    TASSP 34:317): the conditional mean of a Gaussian process, pulled to the mean before the first value.

    Args:
      values_T: [T] any unit.
      max_gap_minutes: longer gaps stay NaN, and so does what precedes the first value. Neither is bridged.

    Returns:
      (filled_T float64, imputed_T bool). Nothing is imputed if fewer than 10 * order samples are observed.
    """
    values_T = np.asarray(values_T, np.float64)
    seen_T = np.isfinite(values_T)
    filled_T, imputed_T = np.where(seen_T, values_T, np.nan), np.zeros(len(values_T), bool)
    if seen_T.sum() < 10 * order:
        return filled_T, imputed_T
    mean = values_T[seen_T].mean()
    filter_P = np.concatenate([[1.0], -burg(filled_T - mean, order)])
    for first, last in runs(~long_gaps(values_T, rate_hz, max_gap_minutes)):
        first += int(np.argmax(seen_T[first:last]))
        unknown_N = ~seen_T[first:last]
        if seen_T[first] and unknown_N.any():
            filled_T[first:last][unknown_N] = mean + _interpolate(filled_T[first:last] - mean, unknown_N, filter_P)
            imputed_T[first:last] = unknown_N
    return filled_T, imputed_T


def _interpolate(centred_N, unknown_N, filter_P):
    """The unknown values [U] that minimise the sum of squares of filter * x: a banded, positive definite system."""
    n, order = len(centred_N), len(filter_P) - 1
    # element (i, i + d) of the normal matrix: products of the filter with itself at lag d, cut off at the array's end
    lagged_DxP = np.stack([np.concatenate([np.zeros(d), filter_P[: order + 1 - d]]) for d in range(order + 1)])
    normal_DxP = np.cumsum(filter_P * lagged_DxP, axis=1)
    at_U = np.flatnonzero(unknown_N)
    reach_U = np.minimum(order, n - 1 - at_U)
    band = np.zeros((min(order, len(at_U) - 1) + 1, len(at_U)))
    for q in range(len(band)):
        lag = at_U[q:] - at_U[: len(at_U) - q]
        near = lag <= order
        band[q, : len(lag)][near] = normal_DxP[lag[near], reach_U[: len(lag)][near]]
    error_N = lfilter(filter_P, 1.0, np.where(unknown_N, 0.0, centred_N))
    return solveh_banded(band, -lfilter(filter_P, 1.0, error_N[::-1])[::-1][at_U], lower=True)
