"""Tokens and queries are joined into one array on each device and come apart again; nothing is sent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.training import sharding


@pytest.mark.parametrize("lengths", [(8, 4), (6, 0), (5, 3)])
@pytest.mark.parametrize("ops", [ONE_DEVICE, MeshOps(length_groups=4), MeshOps(length_groups=2)])
def test_what_is_joined_comes_apart_again(ops, lengths):
    parts = [np.random.default_rng(n).normal(size=(2, n, 3)).astype(np.float32) for n in lengths]
    whole = ops.joined(*parts)
    assert whole.shape == (2, sum(lengths), 3)
    for part, again in zip(parts, ops.split(whole, lengths), strict=True):
        np.testing.assert_array_equal(again, part)
    if lengths == (8, 4) and ops.length_groups == 4:
        np.testing.assert_array_equal(whole[:, 3:6], np.concatenate([parts[0][:, 2:4], parts[1][:, 1:2]], 1))


def test_positions_on_several_devices_are_joined_without_a_message():
    mesh = sharding.make_mesh(jax.devices()[:8], sharding.MeshConfig(data=2, context=4))
    ops, place = sharding.mesh_ops(mesh), NamedSharding(mesh, PartitionSpec("data", "context"))
    x, y = (jnp.ones((4, n, 3)) for n in (16, 8))

    def run(x, y):
        z = ops.constrain(ops.joined(x, y), "batch", "length", None) * 2
        return [ops.constrain(part, "batch", "length", None) for part in ops.split(z, (16, 8))]

    compiled = jax.jit(run, in_shardings=(place, place), out_shardings=[place, place]).lower(x, y).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))
