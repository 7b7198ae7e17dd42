"""Other recordings that could have been made of the same person: warped, noisier, with sensors lost, one-sided.

Paper, appendix A.3: "time-warping bounded by 5% total duration, low-amplitude additive Gaussian noise scaled to local
signal variance, and channel dropout simulating temporary sensor loss"; modality dropout gives some contexts only one
of the two streams, as at inference for people who have one. Each function draws from its own numpy Generator, and
nothing of a window depends on another window, so that what a window's end makes known stays known then and not before.

Missing steps are NaN. Axes: M windows, L steps, C channels.
"""

import numpy as np

N_WAVES = 3
MAX_WARP = 0.1  # up to 1 / (pi * N_WAVES) = 0.106 time runs forward everywhere, see warp_positions


def warp_positions(rng, n_windows, n_steps, bound):
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
    u_L = np.linspace(0.0, 1.0, n_steps)
    wave_KxL = np.sin(np.pi * np.arange(1, N_WAVES + 1)[:, None] * u_L[None])
    moved_MxL = (c_MxK[..., None] * wave_KxL).sum(axis=1)  # no BLAS, whose last bits depend on the machine's threads
    position_MxL = (u_L[None] + moved_MxL) * (n_steps - 1)
    position_MxL[:, :1], position_MxL[:, -1:] = 0.0, n_steps - 1
    return np.clip(position_MxL, 0.0, n_steps - 1)


def time_warp(rng, signal_MxLxC, bound=0.05):
    """Windows whose time runs unevenly, all channels of a window alike (appendix A.3: at most 5% of the duration).

    A step is interpolated linearly between its two neighbours in the recording. It is missing if the nearer one is; if
    only the farther one is, it takes the nearer one's value: gaps move and change their length as the signal does, and
    no gap spreads.

    Returns:
      Array of the shape and dtype of `signal_MxLxC`.
    """
    n_windows, n_steps, _ = signal_MxLxC.shape
    if n_steps < 2 or not n_windows:
        return signal_MxLxC.copy()
    position_MxL = warp_positions(rng, n_windows, n_steps, bound)
    left_MxL = np.minimum(position_MxL.astype(np.int64), n_steps - 2)
    share_MxLx1 = (position_MxL - left_MxL).astype(signal_MxLxC.dtype)[..., None]
    left_MxLxC = np.take_along_axis(signal_MxLxC, left_MxL[..., None], axis=1)
    right_MxLxC = np.take_along_axis(signal_MxLxC, left_MxL[..., None] + 1, axis=1)
    between_MxLxC = left_MxLxC + share_MxLx1 * (right_MxLxC - left_MxLxC)
    nearest_MxLxC = np.where(share_MxLx1 > 0.5, right_MxLxC, left_MxLxC)
    return np.where(np.isnan(between_MxLxC), nearest_MxLxC, between_MxLxC)


def local_std(signal_MxLxC, span):
    """Standard deviation of the observed steps among the `span` around each step of its window and channel.

    Returns:
      float64 [M, L, C]; 0 where fewer than two are observed.
    """
    seen = np.isfinite(signal_MxLxC)
    value = np.where(seen, signal_MxLxC, 0.0).astype(np.float64)
    # about the window's mean, for the sake of rounding: a variance does not depend on a shift
    value = np.where(seen, value - value.sum(1, keepdims=True) / np.maximum(seen.sum(1, keepdims=True), 1), 0.0)
    before = span // 2

    def around(x_MxLxC):
        """Sums over the span, cut at the window's ends."""
        n_steps = x_MxLxC.shape[1]
        total = np.zeros((x_MxLxC.shape[0], n_steps + span, x_MxLxC.shape[2]), x_MxLxC.dtype)
        np.cumsum(x_MxLxC, axis=1, out=total[:, before + 1 : before + 1 + n_steps])
        total[:, before + 1 + n_steps :] = total[:, before + n_steps, None]
        return total[:, span:] - total[:, :n_steps]

    count = around(seen.astype(np.int32))
    share = 1.0 / np.maximum(count, 1)
    variance = around(value * value) * share - (around(value) * share) ** 2
    return np.sqrt(np.where(count > 1, np.maximum(variance, 0.0), 0.0))


def add_noise(rng, signal_MxLxC, scale, span):
    """Adds independent Gaussian noise with standard deviation scale * local_std to every observed step (appendix A.3).

    A missing step stays missing and neither gets noise nor scales that of others: what is hidden can be passed as NaN.

    Returns:
      Array of the shape and dtype of `signal_MxLxC`.
    """
    noise_MxLxC = rng.standard_normal(signal_MxLxC.shape, np.float32) * (scale * local_std(signal_MxLxC, span))
    return (signal_MxLxC + noise_MxLxC).astype(signal_MxLxC.dtype)


def drop_channels(rng, signal_MxLxC, chance):
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
    step_1xLx1 = np.arange(n_steps)[None, :, None]
    gone_MxLxC = (
        lost_MxC[:, None] & (step_1xLx1 >= start_MxC[:, None]) & (step_1xLx1 < (start_MxC + length_MxC)[:, None])
    )
    left_M = (np.isfinite(signal_MxLxC) & ~gone_MxLxC).any(axis=(1, 2))
    return np.where(gone_MxLxC & left_M[:, None, None], np.nan, signal_MxLxC).astype(signal_MxLxC.dtype)


def drop_modality(rng, has_ehr, has_wear, drop_ehr, drop_wear):
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
