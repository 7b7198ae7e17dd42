"""Weighs loss terms by their gradients on z: weights are shares of it, and not what losses are multiplied by.

Terms meet in z, and what counts there is not the size of a loss but that of its gradient. Chen et al. (2018, GradNorm)
balance terms by it; here, as in Defossez et al. (2022), losses are multiplied by what makes weights shares, from an
average over the last measurements (training/gradients.py).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

MOST = 100.0  # times a term's weight that it is multiplied by: one whose gradient has vanished is not all noise


def balanced(weights: Mapping[str, jax.Array | float], norms: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Multipliers of losses by which each term has its weight's share of the gradient on z.

    A multiplier is weight / norm times a factor that all terms share, by which the norms of all weighted terms add up
    to what they would with the weights as multipliers (Defossez et al. 2022, section 3.4, scale to a constant). Terms
    without a gradient on z keep their weight.

    Args:
      weights: {term: wished part, relative to the others}. norms: {term: of its gradient on z; 0: none, or not known}.
    """
    known = {name: jnp.asarray(norms[name]) > 0 for name in weights}
    parts = {name: jnp.where(known[name], weight, 0.0) for name, weight in weights.items()}
    total: Any = sum(part * norms[name] for name, part in parts.items())
    each = total / jnp.maximum(sum(parts.values()), 1e-30)
    return {
        name: weight * jnp.where(known[name], jnp.minimum(each / jnp.maximum(norms[name], 1e-30), MOST), 1.0)
        for name, weight in weights.items()
    }


def averaged(before: jax.Array, now: jax.Array, decay: float) -> jax.Array:
    """The average after a measurement; one that is zero (nothing to predict in the batch) or not finite is none."""
    mean = jnp.where(before > 0, decay * before + (1.0 - decay) * now, now)
    return jnp.where((now > 0) & jnp.isfinite(now), mean, before)
