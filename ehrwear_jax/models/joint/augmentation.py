"""Augments recordings: warps them in time, adds noise, drops sensors or a modality.

Paper, appendix A.3: "time-warping bounded by 5% total duration, low-amplitude additive Gaussian noise scaled to local
signal variance, and channel dropout simulating temporary sensor loss"; modality dropout gives some contexts only one
of the two streams, as at inference for people who have one. Each function draws from its own numpy Generator, and
nothing of a window depends on another window, so that what a window's end makes known stays known then and not before.

Missing steps are NaN. Axes: M windows, L steps, C channels.
"""

import functools

import numpy as np

N_WAVES = 3
MAX_WARP = 0.1  # up to 1 / (pi * N_WAVES) = 0.106 time runs forward everywhere, see warp_positions


def warp_positions(rng: np.random.Generator, n_windows: int, n_steps: int, bound: float) -> np.ndarray:
    """Where each step of a warped window is read: a smooth, increasing map of [0, n_steps - 1] onto itself.

    On u = step / (n_steps - 1) it is u + sum_k c_k sin(pi k u), k = 1..3, with c_k normal over k, scaled so that
    sum_k |c_k| is uniform in [0, bound]: the ends stay (a window's end time remains true), no step moves by more than
    bound times the duration, and the slope is at least 1 - 3 pi bound.

    Returns:
      float64 [M, L], in steps.

    Raises:
      ValueError: bound is not in [0, MAX_WARP].
    """
    if not 0 <= bound <= MAX_WARP:
        raise ValueError(f"a time warp of {bound} of the duration; it must lie in [0, {MAX_WARP}]")
    c_MxK = rng.normal(size=(n_windows, N_WAVES)) / np.arange(1, N_WAVES + 1)
    total_Mx1 = np.abs(c_MxK).sum(axis=1, keepdims=True)
    c_MxK = c_MxK * (bound * rng.random((n_windows, 1)) / np.maximum(total_Mx1, 1e-12))
    u_L, wave_KxL = _waves(n_steps)
    position_MxL = c_MxK[:, :1] * wave_KxL[0]
    for k in range(1, N_WAVES):  # no BLAS, whose last bits depend on the machine's threads
        position_MxL += c_MxK[:, k, None] * wave_KxL[k]
    position_MxL += u_L
    position_MxL *= n_steps - 1
    position_MxL[:, :1], position_MxL[:, -1:] = 0.0, n_steps - 1
    return np.clip(position_MxL, 0.0, n_steps - 1, out=position_MxL)


@functools.lru_cache(maxsize=8)
def _waves(n_steps):
    """(u [L], sin(pi k u) [K, L])."""
    u_L = np.linspace(0.0, 1.0, n_steps)
    return u_L, np.sin(np.pi * np.arange(1, N_WAVES + 1)[:, None] * u_L)


def time_warp(rng: np.random.Generator, signal_MxLxC: np.ndarray, bound: float = 0.05) -> np.ndarray:
    """Windows whose time runs unevenly, all channels of a window alike (appendix A.3: at most 5% of the duration).

    A step is interpolated linearly between its two neighbours in the recording. It is missing if the nearer one is; if
    only the farther one is, it takes the nearer one's value: gaps move and change their length as the signal does, and
    no gap spreads.

    Returns:
      Array of the shape and dtype of `signal_MxLxC`.
    """
    signal_MxCxL = _channels_first(signal_MxLxC)
    n_windows, n_channels, n_steps = signal_MxCxL.shape
    if n_steps < 2 or not signal_MxCxL.size:
        return signal_MxLxC.copy()
    position_MxL = warp_positions(rng, n_windows, n_steps, bound)
    left_MxL = np.minimum(position_MxL.astype(np.intp), n_steps - 2)
    position_MxL -= left_MxL
    share_MxL = position_MxL.astype(signal_MxLxC.dtype)
    flat, first_MxC = signal_MxCxL.reshape(-1), np.arange(0, signal_MxCxL.size, n_steps).reshape(n_windows, n_channels)
    at_MxCxL = left_MxL[:, None] + first_MxC[..., None]
    left_MxCxL, right_MxCxL = flat.take(at_MxCxL), flat[1:].take(at_MxCxL)
    between_MxCxL = right_MxCxL - left_MxCxL
    between_MxCxL *= share_MxL[:, None]
    between_MxCxL += left_MxCxL
    gap = np.flatnonzero(np.isnan(between_MxCxL))
    if len(gap):
        m, step = gap // (n_channels * n_steps), gap % n_steps
        right, left = right_MxCxL.reshape(-1)[gap], left_MxCxL.reshape(-1)[gap]
        between_MxCxL.reshape(-1)[gap] = np.where(share_MxL[m, step] > 0.5, right, left)
    return between_MxCxL.transpose(0, 2, 1)


def _channels_first(signal_MxLxC):
    """The signal as a contiguous [M, C, L]: a view where it lies in memory so, as `Patient.signal` gives it.

    Steps are many and channels few: loops over steps are the ones to vectorise.
    """
    return np.ascontiguousarray(signal_MxLxC.transpose(0, 2, 1))


def local_std(signal_MxLxC: np.ndarray, span: int) -> np.ndarray:
    """Standard deviation of the observed steps among the `span` around each step of its window and channel.

    Returns:
      float32 [M, L, C]; 0 where fewer than two are observed.
    """
    signal_MxCxL = _channels_first(signal_MxLxC)
    n_windows, n_channels, n_steps = signal_MxCxL.shape
    finite = np.isfinite(signal_MxCxL)
    # Rows behind each other with `span` zeros between them: a shift of this flat array is a shift of every window.
    seen, value, variance = (np.zeros((n_windows, n_channels, n_steps + span), np.float32) for _ in range(3))
    inside = slice(span // 2, span // 2 + n_steps)
    seen[..., inside] = finite
    value[..., inside] = np.where(finite, signal_MxCxL, 0)
    # about the window's mean, for the sake of rounding: a variance does not depend on a shift
    mean_MxCx1 = value.sum(-1, keepdims=True) / np.maximum(seen.sum(-1, keepdims=True), 1)
    value -= mean_MxCx1
    value *= seen
    seen, value = seen.reshape(-1), value.reshape(-1)
    count = _sums(seen, span)
    share = 1 / np.maximum(count, 1)
    mean = _sums(value, span) * share
    apart, total = np.empty_like(mean), variance.reshape(-1)[: len(mean)]
    for k in range(span):
        np.subtract(value[k : k + len(mean)], mean, out=apart)
        apart *= apart
        apart *= seen[k : k + len(mean)]
        total += apart
    total *= share
    total *= count > 1
    return np.sqrt(variance[..., :n_steps], dtype=np.float32).transpose(0, 2, 1)


def _sums(x_N, span):
    """Sums of `span` neighbours, [N - span + 1], from sums of powers of two: errors do not add up along x."""
    n, total, done, width, left, part = len(x_N) - span + 1, None, 0, 1, span, x_N
    while left:  # part holds sums of `width` neighbours
        if left & 1:
            here = part[done : done + n]
            total = here if total is None else total + here
            done += width
        left >>= 1
        if left:
            part = part[:-width] + part[width:]
            width *= 2
    return total


def add_noise(rng: np.random.Generator, signal_MxLxC: np.ndarray, scale: float, span: int) -> np.ndarray:
    """Adds independent Gaussian noise with standard deviation scale * local_std to every observed step (appendix A.3).

    A missing step stays missing and neither gets noise nor scales that of others: what is hidden can be passed as NaN.

    Returns:
      Array of the shape and dtype of `signal_MxLxC`.
    """
    n_windows, n_steps, n_channels = signal_MxLxC.shape
    noise_MxCxL = rng.standard_normal((n_windows, n_channels, n_steps), np.float32)
    noise_MxCxL *= _channels_first(local_std(signal_MxLxC, span))
    noise_MxCxL *= np.float32(scale)
    return (signal_MxLxC + noise_MxCxL.transpose(0, 2, 1)).astype(signal_MxLxC.dtype, copy=False)


def drop_channels(rng: np.random.Generator, signal_MxLxC: np.ndarray, chance: float) -> np.ndarray:
    """Loses each channel of each window with `chance`: a sensor that fails for a while (appendix A.3).

    One half of the losses take the whole window, the other half a run of steps whose length is uniform in 1..L and
    whose start is uniform among those that fit. A window that would lose all that was observed keeps everything: a
    wearable token stands for a recording, and with one channel only runs are lost.

    Returns:
      A copy with NaN where lost.
    """
    n_windows, n_steps, n_channels = signal_MxLxC.shape
    shape = (n_windows, n_channels)
    lost_MxC, whole_MxC = rng.random(shape) < chance, rng.random(shape) < 0.5
    length_MxC = np.where(whole_MxC, n_steps, rng.integers(1, n_steps + 1, shape))
    start_MxC = (rng.random(shape) * (n_steps - length_MxC + 1)).astype(np.int64)
    kept_MxCxL = np.array(_channels_first(signal_MxLxC))
    hit_M = np.flatnonzero(lost_MxC.any(axis=1))
    first_HxCx1, n_HxCx1 = start_MxC[hit_M, :, None], length_MxC[hit_M, :, None]
    step_L = np.arange(n_steps)
    gone_HxCxL = lost_MxC[hit_M, :, None] & (step_L >= first_HxCx1) & (step_L < first_HxCx1 + n_HxCx1)
    left_H = (np.isfinite(kept_MxCxL[hit_M]) & ~gone_HxCxL).any(axis=(1, 2))
    kept_MxCxL[hit_M] = np.where(gone_HxCxL & left_H[:, None, None], np.nan, kept_MxCxL[hit_M])
    return kept_MxCxL.transpose(0, 2, 1)


def drop_modality(
    rng: np.random.Generator, has_ehr: bool, has_wear: bool, drop_ehr: float, drop_wear: float
) -> tuple[bool, bool]:
    """Which streams a context is given: without its wearables or without its EHR by chance, never without both.

    Args:
      has_ehr, has_wear: whether there is anything of it; who has one stream keeps it.
      drop_ehr, drop_wear: chances, together at most 1.

    Returns:
      (keep_ehr, keep_wear).
    """
    draw = rng.random()
    if not (has_ehr and has_wear):
        return has_ehr, has_wear
    return not draw < drop_ehr, not drop_ehr <= draw < drop_ehr + drop_wear
