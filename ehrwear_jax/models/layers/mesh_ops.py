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
    """

    constrain: Callable = no_constraint
    attend: Callable = kernel_attention
    row_groups: int = 1

    def look_up(self, table_VxD: jax.Array, index: jax.Array) -> jax.Array:
        """Vectors of a table at int32 [...]: [..., D].

        The table is gathered first: split over devices that hold rows of a batch, as it is kept, the vectors of the
        whole batch would travel instead, which grow with the number of devices.
        """
        return jnp.take(self.constrain(table_VxD, "token", None), index, axis=0)


ONE_DEVICE = MeshOps()
