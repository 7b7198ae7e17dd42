"""Turns pairs of features by angles, so that products of queries and keys tell differences (rotary embedding).

Su et al., "RoFormer: enhanced transformer with rotary position embedding" (2021). The angles are of positions here, or
of ages (models/motor/network.py).
"""

import jax
import jax.numpy as jnp
import numpy as np


def position_angles(position_BxT: jax.Array, n_pairs: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """(sin, cos) of position times theta^(-f / F) radians: float32 [B, T, 1, F], of F pairs of features of a head.

    Args:
      position_BxT: int32, of the token in its context; below 2^14 the angles are exact to 1e-3 rad.
    """
    radians_F = jnp.asarray(theta ** -(np.arange(n_pairs) / n_pairs), jnp.float32)
    angle = position_BxT[..., None, None].astype(jnp.float32) * radians_F[None, None, None]
    return jnp.sin(angle), jnp.cos(angle)


def rotated(x_BxTxHxD: jax.Array, sin_BxTx1xF: jax.Array, cos_BxTx1xF: jax.Array) -> jax.Array:
    """Each pair of features (f, f + D / 2) turned by its angle."""
    a, b = jnp.split(x_BxTxHxD.astype(jnp.float32), 2, axis=-1)
    turned = [a * cos_BxTx1xF - b * sin_BxTx1xF, b * cos_BxTx1xF + a * sin_BxTx1xF]
    return jnp.concatenate(turned, axis=-1).astype(x_BxTxHxD.dtype)
