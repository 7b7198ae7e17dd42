"""Bundles what a network takes from the mesh it runs on: sharding constraints of activations, and the attention op."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ehrwear_jax.ops.kernel_attention import kernel_attention


def no_constraint(x: jax.Array, *names: str | None) -> jax.Array:
    """Returns an activation as it is: on one device there is nothing to say of where it lies."""
    del names
    return x


@dataclasses.dataclass(frozen=True)
class MeshOps:
    """Operations that depend on the devices; equal for equal meshes, so that equal networks are compiled once.

    Attributes:
      constrain: (x, *logical names of its dimensions, None where never split) -> x, with a sharding constraint.
      attend: called like ops.kernel_attention.kernel_attention; over a mesh, its sharded form.
      row_groups: devices, or groups of them, that a batch's rows are spread over.
      length_groups: devices that the positions of a row are spread over.
    """

    constrain: Callable = no_constraint
    attend: Callable = kernel_attention
    row_groups: int = 1
    length_groups: int = 1

    def joined(self, *parts: jax.Array) -> jax.Array:
        """[B, T, ...], [B, Q, ...] -> [B, T + Q, ...]: on each device, its positions of one behind those of the other.

        So nothing is sent. Where the devices do not divide the lengths, the order is that of concatenation.
        """
        n = self._groups([x.shape[1] for x in parts])
        whole = jnp.concatenate([x.reshape(x.shape[0], n, x.shape[1] // n, *x.shape[2:]) for x in parts], axis=2)
        return whole.reshape(whole.shape[0], n * whole.shape[2], *whole.shape[3:])

    def split(self, x: jax.Array, lengths: tuple[int, ...]) -> list[jax.Array]:
        """The inverse of `joined` for parts of these lengths."""
        n = self._groups(lengths)
        grouped = x.reshape(x.shape[0], n, x.shape[1] // n, *x.shape[2:])
        ends = [sum(lengths[: k + 1]) // n for k in range(len(lengths) - 1)]
        parts = zip(jnp.split(grouped, ends, axis=2), lengths, strict=True)
        return [y.reshape(y.shape[0], length, *y.shape[3:]) for y, length in parts]

    def _groups(self, lengths):
        return self.length_groups if all(length % self.length_groups == 0 for length in lengths) else 1


ONE_DEVICE = MeshOps()
