"""Lays a sequence over n devices so that each has an early and a late part of it, and brings it back.

Of 2n parts device i has i and 2n - 1 - i. Arrays arrive and leave in contiguous order, device i with parts 2i and
2i + 1: of the two parts of a device one number is even and one odd, and each of the two kinds travels at once.
"""

import jax
import jax.numpy as jnp


def starts(device: int | jax.Array, n_device: int, n_part: int) -> list:
    """Index of the first entry of each of a device's two parts, of n_part entries."""
    return [device * n_part, (2 * n_device - 1 - device) * n_part]


def _owners(n_device, odd):
    """(device that has part 2i + odd in contiguous order, device that has it in zigzag) for each i."""
    return [(i, min(2 * i + odd, 2 * (n_device - 1 - i) + 1 - odd)) for i in range(n_device)]


def _in_order(parts, axis_name):
    """Two parts as they are on devices of even number, exchanged on others: a device's first part has its number."""
    even, (a, b) = jax.lax.axis_index(axis_name) % 2 == 0, parts
    return jnp.where(even, a, b), jnp.where(even, b, a)


def spread(x: jax.Array, axis_name: str, n_device: int, dim: int) -> jax.Array:
    """This device's entries along `dim` in zigzag, from those in contiguous order: inside shard_map."""
    parts = [
        jax.lax.ppermute(part, axis_name, _owners(n_device, odd)) for odd, part in enumerate(jnp.split(x, 2, axis=dim))
    ]
    return jnp.concatenate(_in_order(parts, axis_name), axis=dim)


def collected(x: jax.Array, axis_name: str, n_device: int, dim: int) -> jax.Array:
    """The inverse of `spread`."""
    parts = _in_order(jnp.split(x, 2, axis=dim), axis_name)
    back = [
        jax.lax.ppermute(part, axis_name, [(there, here) for here, there in _owners(n_device, odd)])
        for odd, part in enumerate(parts)
    ]
    return jnp.concatenate(back, axis=dim)
