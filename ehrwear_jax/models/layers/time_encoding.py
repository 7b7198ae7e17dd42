"""Encodes continuous time: rho of an age given as whole days and a fraction of a day."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


def frequencies(n_features: int, shortest_days: float, longest_days: float) -> np.ndarray:
    """n_features / 2 log-linearly spaced frequencies in cycles per day (paper, section 3.2), highest first."""
    return 1.0 / np.geomspace(shortest_days, longest_days, n_features // 2)


def gaussian_frequencies(n_features: int, period_days: float, seed: int = 0) -> np.ndarray:
    """n_features / 2 frequencies in cycles per day, normal with standard deviation 1 / period_days: never trained.

    Random Fourier features (Rahimi and Recht 2007) of the Gaussian kernel exp(-(2 pi dt / period_days)^2 / 2).
    """
    return np.abs(np.random.default_rng(seed).normal(0.0, 1.0 / period_days, n_features // 2))


def encode(age_x2: jax.Array, cycles_F: np.ndarray) -> jax.Array:
    """rho(t) = [sin(w_1 t), ..., cos(w_1 t), ...], exact to 1e-3 rad for a century of days in float32.

    The phase of a fast component after 30,000 days has no digits left in float32, so the day count is split into
    multiples of 256 and a rest, and whole turns are removed from the frequencies in float64 beforehand.

    Args:
      age_x2: float32 [..., 2]: whole days (>= 0 and below 2 ** 20) and fraction in [0, 1).
      cycles_F: float64 numpy, cycles per day.

    Returns:
      float32 [..., 2 F].
    """
    high = jnp.floor(age_x2[..., :1] / 256.0)
    low = age_x2[..., :1] - 256.0 * high
    # trailing axis of age_x2's rank, so that nothing relies on rank promotion
    step, coarse, fine = (
        jnp.asarray(x, jnp.float32).reshape((1,) * (age_x2.ndim - 1) + (-1,))
        for x in (cycles_F, (256.0 * cycles_F) % 1.0, cycles_F % 1.0)
    )
    turn = high * coarse + low * fine + age_x2[..., 1:] * step
    angle = 2.0 * np.pi * (turn - jnp.floor(turn))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def in_day_bins(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch with every time and age rounded down to whole days: time in bins of one day (paper, Table 4).

    Kernel times count from the first token of their context. Which tokens a position sees stays as it is.
    """
    times = {n: jnp.floor(batch[n]) for n in ("time", "query_time")}
    whole = jnp.asarray([1.0, 0.0], jnp.float32)
    ages = {n: batch[n] * whole.reshape((1,) * (batch[n].ndim - 1) + (2,)) for n in ("age", "query_age")}
    return {**batch, **times, **ages}


N_STREAM = 7


def stream_features(
    time_BxN: jax.Array, seen_BxNx2: jax.Array, previous_BxN: jax.Array, key_time_BxT: jax.Array
) -> jax.Array:
    """How much record lies behind a position: what normalised attention and an encoding of age cannot express.

    Softmax weights sum to one however many keys there are and however old they are, so the number of known tokens,
    the span of the record and the time since its last token are given as inputs.

    Args:
      time_BxN: kernel time of the position, days since the context's first token.
      seen_BxNx2: range of the tokens that the position sees.
      previous_BxN: token whose age is the gap; below the range's start: there is none.
      key_time_BxT: kernel times of the tokens.

    Returns:
      float32 [B, N, N_STREAM].
    """
    count = (seen_BxNx2[..., 1] - seen_BxNx2[..., 0]).astype(jnp.float32)
    exists = previous_BxN >= seen_BxNx2[..., 0]
    at = jnp.clip(previous_BxN, 0, key_time_BxT.shape[1] - 1)
    gap = jnp.maximum(time_BxN - jnp.take_along_axis(key_time_BxT, at, axis=1), 0.0)
    gap = jnp.where(exists, gap, 0.0)
    span = jnp.maximum(time_BxN, 0.0)
    features = (jnp.log1p(count), 1.0 / (1.0 + count), jnp.log1p(span), jnp.exp(-span / 30.0), jnp.log1p(gap),
                jnp.exp(-gap / 30.0), exists.astype(jnp.float32))  # fmt: skip
    return jax.lax.stop_gradient(jnp.stack(features, axis=-1))
