"""Makes the mesh of devices; says how batches, activations and state lie on it. No other file names mesh axes."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ehrwear_jax.ops.kernel_attention import kernel_attention
from ehrwear_jax.ops.kernel_attention.sharded import sharded_kernel_attention

PyTree = Any  # of arrays

AXES = ("data", "fsdp", "tensor", "context")

# What a dimension is -> the mesh axes that it lies over. A dimension that they do not divide is not split.
LOGICAL = {
    "batch": ("data", "fsdp"),  # rows: parameters are gathered over fsdp where they are used, rows never
    "length": ("context",),  # tokens, windows
    "heads": ("tensor",),
    "mlp": ("tensor",),  # hidden units between two products
    "vocab": ("tensor",),
    "embed": ("fsdp",),  # the model's width in parameters; activations keep it whole
}

# The first pattern found in a parameter's path says what its dimensions are; all others lie whole on every device. A
# scanned stack has its layers first. The optimiser's moments end with their parameters' paths and lie as these do.
PARAMETERS = (
    (r"blocks/(query|key|value|source)/kernel$", (None, "embed", "heads", None)),
    (r"blocks/(query|key|value|source)/bias$", (None, "heads", None)),
    (r"blocks/out/kernel$", (None, "heads", None, "embed")),
    (r"blocks/modality_tag$", (None, None, "heads", None)),
    (r"blocks/kernel/(beta|gamma)$", (None, "heads", None)),
    (r"blocks/kernel/(length|alpha)$", (None, "heads")),
    (r"blocks/up/kernel$", (None, "embed", "mlp")),
    (r"blocks/up/bias$", (None, "mlp")),
    (r"blocks/down/kernel$", (None, "mlp", "embed")),
    (r"conv_in/kernel$", (None, "embed", "mlp")),
    (r"conv_out/kernel$", (None, "mlp", "embed")),
    (r"ehr/(table|value_table)/embedding$", ("vocab", "embed")),
    (r"ehr/bias$", ("vocab",)),
    (r"out/kernel$", ("mlp", "embed")),
    (r"/kernel$", ("embed", "mlp")),  # of a product outside the stacks: heads, projections
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1, at one axis, takes the rest.

    Attributes:
      data: copies of the model, each with rows of its own. fsdp: devices that share one copy of the parameters and of
        the optimiser's state, each with rows of its own. tensor: heads and hidden units. context: positions of a row.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1


def make_mesh(devices: Sequence[jax.Device] | None = None, config: MeshConfig | None = None) -> Mesh:
    """A mesh of the devices (all by default) as MeshConfig says.

    Raises:
      ValueError: the numbers do not multiply to that of the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config or MeshConfig(), axis) for axis in AXES]
    given = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) == 1 and given and len(devices) % given == 0:
        sizes[sizes.index(-1)] = len(devices) // given
    if min(sizes) < 1 or np.prod(sizes) != len(devices):
        named = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
        raise ValueError(f"config.mesh {named} does not fit {len(devices)} devices (-1, once, takes the rest)")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _count(mesh, axes):
    return int(np.prod([mesh.shape[a] for a in axes]))


def spec(mesh: Mesh, shape: Sequence[int], names: Sequence[str | None]) -> PartitionSpec:
    """PartitionSpec of an array whose dimensions have these logical names (None: never split)."""

    def split(size, name):
        axes = tuple(a for a in (LOGICAL[name] if name else ()) if mesh.shape[a] > 1)
        if not axes or size % _count(mesh, axes):
            return None
        return axes if len(axes) > 1 else axes[0]

    return PartitionSpec(*(split(size, name) for size, name in zip(shape, names, strict=True)))


def path_name(path: Sequence[Any]) -> str:
    """A key path of a pytree as text, e.g. "params/backbone/blocks/up/kernel"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def state_sharding(state: PyTree, mesh: Mesh) -> PyTree:
    """NamedShardings of a pytree of parameters or of a training state (arrays or their shapes), by PARAMETERS."""

    def of(path, x):
        for pattern, names in PARAMETERS:
            if re.search(pattern, path_name(path)) and len(names) == len(x.shape):
                return NamedSharding(mesh, spec(mesh, x.shape, names))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the axes that hold rows."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def n_row_devices(mesh: Mesh) -> int:
    """Over how many devices (or groups that share rows) a batch's rows are spread."""
    return _count(mesh, LOGICAL["batch"])


def row_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process reads part `index` of the `count` parts that a global batch is read in.

    Processes whose devices hold the same rows (of one row's tensor or context split) read the same part.

    Raises:
      ValueError: the rows of this process's devices are not one part of equal ones.
    """
    count = _count(mesh, LOGICAL["batch"])
    held = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    blocks = sorted({index[0].indices(count)[0] for index in held if index is not None})
    n, first = len(blocks), blocks[0]
    if blocks != list(range(first, first + n)) or count % n or first % n:
        raise ValueError(f"config.mesh: a process's devices hold parts {blocks} of {count} of a batch's rows")
    return first // n, count // n


def device_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Process-local numpy rows -> global arrays over the mesh.

    Raises:
      ValueError: the global number of rows is not divisible by the devices that hold rows.
    """
    n_local = next(iter(batch.values())).shape[0]
    n_global, n_devices = n_local * row_share(mesh)[1], _count(mesh, LOGICAL["batch"])
    if n_global % n_devices:
        raise ValueError(f"a batch of {n_global} rows does not divide over {n_devices} devices")
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v, (n_global, *v.shape[1:])) for k, v in batch.items()}


@functools.cache  # so that models for equal meshes are equal, and are compiled once
def placement(mesh: Mesh) -> Callable[..., jax.Array]:
    """place(x, *names): says to the compiler where an activation lies, by the logical names of its dimensions."""

    def place(x, *names):
        if mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(mesh, x.shape, names)))

    return place


@functools.cache
def attention(mesh: Mesh) -> Callable[..., jax.Array]:
    """The kernel attention op for arrays of global batches on this mesh, called like `kernel_attention`.

    Left to itself, XLA would gather the batch around a fused kernel, or ask all devices what each tile sees.
    """

    def attend(q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, **keywords):
        # an example of one row, as parameters are initialised with, has no place on several devices
        if mesh.size == 1 or q_BxTxHxD.shape[0] % _count(mesh, LOGICAL["batch"]):
            return kernel_attention(q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, **keywords)
        names = ("batch", "length", "heads", None)
        specs: dict[str, Any] = {"mesh": mesh, "q_spec": spec(mesh, q_BxTxHxD.shape, names)}
        specs["k_spec"] = spec(mesh, k_BxSxHxD.shape, names)
        return sharded_kernel_attention(q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, **specs, **keywords)

    return attend
