"""Draws what is masked in pretraining: EHR events, and patches or channels of wearable windows.

Every function that draws takes its own numpy Generator, so that what is hidden is a function of (seed, epoch, patient)
alone.
"""

import numpy as np
import numpy.typing as npt

WEAR_MASKS = ("contiguous", "random", "window", "channel")
MAX_CHANCE = 0.9  # something of every kind of event stays visible


def token_weights(counts_V: npt.ArrayLike, temperature: float, scale_V: npt.ArrayLike = 1.0) -> np.ndarray:
    """Relative chance that a token is drawn: scale * count ** -temperature, 1 on average over occurrences.

    Temperature 0 draws all codes alike; larger ones favour rare codes over administrative ones (paper, section 3.3:
    temperature-scaled, per-stratum sampling). Tokens never seen in training get weight 0.

    Args:
      counts_V: occurrences in training.
      scale_V: factor per token, less than 1 for what is to be drawn less than its count says (section 3.3: per-code
        downsampling to avoid overfitting to administrative tokens).
    """
    counts_V = np.asarray(counts_V, np.float64)
    weight_V = np.where(counts_V > 0, np.maximum(counts_V, 1.0) ** -temperature * scale_V, 0.0)
    return weight_V / max((weight_V * counts_V).sum() / max(counts_V.sum(), 1.0), 1e-12)


def near_events(time_us_N: np.ndarray, of_interest_N: np.ndarray, days: float) -> np.ndarray:
    """Which events lie within `days` of an event of interest, before or after it; it is near itself.

    Args:
      time_us_N: sorted.
      of_interest_N: bool.
    """
    center = time_us_N[of_interest_N]
    if not len(center):
        return np.zeros(len(time_us_N), bool)
    after = np.searchsorted(center, time_us_N)
    gap_N = np.minimum(
        np.abs(time_us_N - center[np.maximum(after - 1, 0)]),
        np.abs(center[np.minimum(after, len(center) - 1)] - time_us_N),
    )
    return gap_N <= days * 86_400_000_000


def mask_chances(
    token_N: np.ndarray, weight_V: np.ndarray, rate: float, boost_N: np.ndarray | None = None
) -> np.ndarray:
    """Chance of each of a context's events to be hidden: min(rate * weight, 0.9).

    With `boost_N` (paper, section 3.3: higher probability near events of interest) the chances are proportional to
    rate * weight * boost, with the same cap, and scaled so that their sum is what it is without: as many of the
    context's events are hidden on average, nearer to what is of interest.

    Args:
      token_N: vocabulary ids.
      weight_V: from `token_weights`, 1 on average: so `rate` is the share hidden on average.
      boost_N: positive factors, or None.

    Returns:
      float64 [N]; no draw is involved.
    """
    chance_N = np.minimum(rate * weight_V[token_N], MAX_CHANCE)
    if boost_N is None:
        return chance_N
    wanted, raised_N = chance_N.sum(), rate * weight_V[token_N] * boost_N
    capped_N = np.zeros(len(token_N), bool)
    # what the cap takes away from some is spread over the others; a pass without a new capped event ends it
    for _ in range(len(token_N) + 1):
        free = raised_N[~capped_N].sum()
        factor = (wanted - MAX_CHANCE * capped_N.sum()) / free if free > 0 else 0.0
        over_N = ~capped_N & (raised_N * factor > MAX_CHANCE)
        if not over_N.any():
            break
        capped_N |= over_N
    return np.where(capped_N, MAX_CHANCE, raised_N * max(factor, 0.0))


def mask_patches(
    rng: np.random.Generator, n_windows: int, n_patches: int, rate: float, kind: str = "contiguous"
) -> np.ndarray:
    """Which patches are hidden.

    Args:
      kind: "contiguous": one run in each window (paper, appendix A.4: 25% contiguous; section 4's ablation: 50%).
        "random": as many patches of each window, each set equally likely. "window": whole windows, their number
        rounded at random so that its mean is rate * n_windows.

    Returns:
      Boolean [n_windows, n_patches]; of the first two kinds rate * n_patches patches are hidden in each row, rounded at
      random so that this is their mean.

    Raises:
      ValueError: another kind.
    """
    if kind not in ("contiguous", "random", "window"):
        raise ValueError(f"no mask of patches is called {kind!r}; there are contiguous, random, window")
    if kind == "window":
        whole_W = rng.permutation(n_windows) < int(rate * n_windows + rng.random())
        return np.repeat(whole_W[:, None], n_patches, axis=1)
    length_Wx1 = (rate * n_patches + rng.random((n_windows, 1))).astype(np.int64)
    position = np.arange(n_patches)[None]
    if kind == "random":
        return rng.permuted(position < length_Wx1, axis=1)
    start_Wx1 = rng.integers(0, n_patches - length_Wx1 + 1)
    return (position >= start_Wx1) & (position < start_Wx1 + length_Wx1)


def mask_channels(rng: np.random.Generator, n_windows: int, n_channels: int, rate: float) -> np.ndarray:
    """Modality-wise masking: which channels of a window are hidden from its first step to its last.

    The number of hidden channels of a window is rate * n_channels, rounded at random so that this is its mean: with two
    channels and 25%, one channel in half of the windows.

    Returns:
      Boolean [n_windows, n_channels].
    """
    count_W = (rate * n_channels + rng.random(n_windows)).astype(np.int64)
    return rng.permuted(np.arange(n_channels)[None] < count_W[:, None], axis=1)
