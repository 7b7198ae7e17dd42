"""What devices that share a batch send each other, read from the compiled program: it must not grow with them."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from ehrwear_jax.models.layers.mesh_ops import MeshOps
from ehrwear_jax.training import hlo, sharding

ROWS = 2  # on a device


def of_gradient(
    make: Callable[[MeshOps], nn.Module], fields: Mapping[str, np.ndarray], n_devices: int, call: Callable
) -> tuple[int, int]:
    """(bytes that collectives bring a device, its temporary bytes) of a gradient with respect to parameters.

    Parameters are divided over the devices, as by fsdp, and so are rows: ROWS on each.

    Args:
      make: mesh_ops -> module. fields: a batch of one row. call: (module, batch) -> arrays, whose squares are summed.
    """
    mesh = sharding.make_mesh(jax.devices()[:n_devices], sharding.MeshConfig(data=1, fsdp=n_devices))
    module, place = make(sharding.mesh_ops(mesh)), sharding.batch_sharding(mesh)
    variables = jax.eval_shape(lambda: nn.init(call, module)(jax.random.key(0), fields))
    named = traverse_util.flatten_dict(nn.get_partition_spec(variables), sep="/")
    axes = {path.partition("/")[2]: tuple(names) for path, names in named.items() if any(names)}
    variables = nn.meta.unbox(variables)
    places = sharding.state_sharding(variables, mesh, axes)
    struct = jax.ShapeDtypeStruct
    shapes = jax.tree.map(lambda x, at: struct(x.shape, x.dtype, sharding=at), variables, places)
    batch = {name: struct((ROWS * n_devices, *x.shape[1:]), x.dtype, sharding=place) for name, x in fields.items()}

    def loss(variables, batch):
        found = jax.tree.leaves(nn.apply(call, module)(variables, batch))
        return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in found)

    compiled = jax.jit(jax.grad(loss), out_shardings=places).lower(shapes, batch).compile()
    sent = sum(size for _, size in hlo.collectives(compiled.as_text()).values())
    return sent, compiled.memory_analysis().temp_size_in_bytes


def does_not_grow(
    make: Callable[[MeshOps], nn.Module], fields: Mapping[str, np.ndarray], call: Callable = lambda m, batch: m(batch)
) -> None:
    """Checks that on eight devices a device is sent, and holds, no more than on two; see of_gradient."""
    (few, few_memory), (many, many_memory) = (of_gradient(make, fields, n, call) for n in (2, 8))
    assert 0 < many <= 1.02 * few, (few, many)
    assert many_memory <= 1.1 * few_memory, (few_memory, many_memory)
