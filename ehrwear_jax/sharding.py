"""Devices: the mesh and how batches and state lie on it; the only file that names mesh axes."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ehrwear_jax.ops.kernel_attention import kernel_attention
from ehrwear_jax.ops.kernel_attention.sharded import sharded_kernel_attention

AXES = ("data",)


def make_mesh(devices=None):
    """A mesh of all devices along the data axis."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), AXES, axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh):
    """Rows of a batch over the data axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh):
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def device_batch(batch, mesh):
    """Process-local numpy rows -> global arrays over the mesh.

    Raises:
      ValueError: the global number of rows is not divisible by the devices of the data axis.
    """
    n_local = next(iter(batch.values())).shape[0]
    n_global, n_devices = n_local * jax.process_count(), mesh.shape["data"]
    if n_global % n_devices:
        raise ValueError(f"a batch of {n_global} rows does not divide over {n_devices} devices")
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def attention(mesh):
    """The kernel attention op for arrays of global batches on this mesh, called like `kernel_attention`.

    Left to itself, XLA would gather the batch around a fused kernel, or ask all devices what each tile sees.
    """

    def attend(q_BxTxHxD, *arguments, **keywords):
        # an example of one row, as parameters are initialised with, has no place on several devices
        if mesh.size == 1 or q_BxTxHxD.shape[0] % mesh.shape["data"]:
            return kernel_attention(q_BxTxHxD, *arguments, **keywords)
        specs = {"mesh": mesh, "q_spec": PartitionSpec("data"), "k_spec": PartitionSpec("data")}
        return sharded_kernel_attention(q_BxTxHxD, *arguments, **specs, **keywords)

    return attend
