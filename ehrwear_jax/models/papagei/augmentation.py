"""Changes pieces of signal at random, as PaPaGei's training does: noise, sign, direction, scale, and a part of them."""

import numpy as np

from ehrwear_jax.models.papagei.config import Augmentation


def augmented(signal_SxA: np.ndarray, how: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """A changed copy; zeros, which is what is missing, stay zeros but for noise.

    Each change has its chance, in the order noise, sign, direction, scale, part; noise and scale are a channel's own.

    Args:
      signal_SxA: standardised; 0 where not observed.

    Returns:
      float32 [S, A].
    """
    n, n_channels = signal_SxA.shape
    # all draws are made, so that whether one change happens moves no other
    chance, noise = rng.random(5), rng.normal(0.0, how.noise_std, (n, n_channels))
    scale, (width, begin) = rng.normal(1.0, how.scale_std, n_channels), _window(n, how.crop_shape, rng)
    out = np.array(signal_SxA, np.float32)
    if chance[0] < how.noise:
        out += noise
    if chance[1] < how.negation:
        out = -out
    if chance[2] < how.flip:
        out = out[::-1].copy()
    if chance[3] < how.scaling:
        out *= scale
    if chance[4] < how.crop:
        out[:begin], out[begin + width :] = 0.0, 0.0
    return out.astype(np.float32)


def _window(n, shape, rng):
    """(width, begin) of the part that a crop keeps: more than half, by a beta distribution."""
    share = rng.beta(shape, shape)
    width = max(1, round(n * max(share, 1.0 - share)))
    return width, int(rng.integers(n - width + 1))
