"""Brings signals with missing samples to mean 0 and variance 1 over time, each by itself.

Axes: B signals, S samples or frames, A channels or features.
"""

import jax
import jax.numpy as jnp

_EPSILON = 1e-5  # added to variances


def statistics(x_BxSxA: jax.Array, observed_BxSxA: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation over time of what is observed: float32 [B, 1, A] both; 0 and small of nothing."""
    x = jnp.where(observed_BxSxA, x_BxSxA.astype(jnp.float32), 0.0)
    count = jnp.maximum(observed_BxSxA.sum(axis=1, keepdims=True, dtype=jnp.float32), 1.0)
    mean = x.sum(axis=1, keepdims=True) / count
    variance = jnp.where(observed_BxSxA, (x - mean) ** 2, 0.0).sum(axis=1, keepdims=True) / count
    return mean, jnp.sqrt(variance + _EPSILON)


def instance_normed(x_BxSxA: jax.Array, observed_BxSxA: jax.Array | None = None) -> jax.Array:
    """The signals normed, float32, 0 where not observed; None: everything is. Without learned parameters."""
    observed = jnp.ones(x_BxSxA.shape, bool) if observed_BxSxA is None else observed_BxSxA
    mean, std = statistics(x_BxSxA, observed)
    return jnp.where(observed, (x_BxSxA.astype(jnp.float32) - mean) / std, 0.0)
