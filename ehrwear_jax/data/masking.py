"""What is hidden from the model during pretraining: EHR events and patches of wearable windows.

Every function takes its own numpy Generator, so that what is hidden is a function of (seed, epoch, patient) alone.
"""

import numpy as np


def token_weights(counts_V, temperature):
    """Relative chance that a token is hidden: count ** -temperature, 1 on average over occurrences.

    Temperature 0 hides all codes alike; larger ones favour rare codes over administrative ones (paper, section 3.3:
    temperature-scaled, per-stratum sampling). Tokens never seen in training get weight 0.
    """
    counts_V = np.asarray(counts_V, np.float64)
    weight_V = np.where(counts_V > 0, np.maximum(counts_V, 1.0) ** -temperature, 0.0)
    return weight_V / max((weight_V * counts_V).sum() / max(counts_V.sum(), 1.0), 1e-12)


def mask_events(rng, token_N, weight_V, rate):
    """Which of a context's events are hidden.

    Args:
      token_N: vocabulary ids.
      weight_V: from `token_weights`.
      rate: average share hidden; a single event's chance is capped at 0.9.

    Returns:
      Boolean [N].
    """
    return rng.random(len(token_N)) < np.minimum(rate * weight_V[token_N], 0.9)


def mask_patches(rng, n_windows, n_patches, rate):
    """One contiguous run of hidden patches per window (paper, appendix A.4: 25% contiguous).

    Returns:
      Boolean [n_windows, n_patches] with round(rate * n_patches) patches hidden in each row, at least one if rate > 0.
    """
    length = min(n_patches, max(1, round(rate * n_patches))) if rate > 0 else 0
    start = rng.integers(0, n_patches - length + 1, n_windows)[:, None]
    position = np.arange(n_patches)[None]
    return (position >= start) & (position < start + length)
