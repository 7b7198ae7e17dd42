"""Lays batches, activations and training state over the devices of a mesh; the only file that names mesh axes."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ehrwear_jax.config.training import MeshConfig
from ehrwear_jax.models.layers.mesh_ops import MeshOps
from ehrwear_jax.ops.kernel_attention import kernel_attention
from ehrwear_jax.ops.kernel_attention.sharded import sharded_kernel_attention

AXES = ("data", "fsdp", "tensor", "context")
LEAST_DIVIDED = 2**16  # elements of a parameter for which a dimension that fsdp divides is looked for
MOST_WHOLE = 2**28  # bytes of a state that every device may hold whole for want of a dimension that fsdp divides

# Logical name of a dimension -> the mesh axes that it lies over. Other names, and dimensions that the axes do not
# divide, are not split.
LOGICAL = {
    "batch": ("data", "fsdp"),  # rows: parameters are gathered over fsdp where they are used, rows never
    "length": ("context",),  # tokens, windows
    "heads": ("tensor",),
    "mlp": ("tensor",),  # hidden units between two products
    "token": ("tensor",),  # places of embedding tables and of what is predicted by name
    "future_code": ("tensor",),
    "history_token": ("tensor",),
    "embed": ("fsdp",),  # the model's width in parameters; activations keep it whole
}


def make_mesh(devices: Any = None, config: MeshConfig | None = None) -> jax.sharding.Mesh:
    """A mesh of the devices (all by default) as MeshConfig says; over slices of TPUs that a network joins, by data.

    Raises:
      ValueError: the numbers do not multiply to that of the devices, or data is no multiple of the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config or MeshConfig(), axis) for axis in AXES]
    given = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) == 1 and given and len(devices) % given == 0:
        sizes[sizes.index(-1)] = len(devices) // given
    if min(sizes) < 1 or np.prod(sizes) != len(devices):
        named = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
        raise ValueError(f"config.mesh {named} does not fit {len(devices)} devices (-1, once, takes the rest)")
    n_slices = len({getattr(d, "slice_index", 0) for d in devices})
    if n_slices > 1:
        if sizes[0] % n_slices:
            raise ValueError(f"config.mesh.data={sizes[0]} does not divide over {n_slices} slices of TPUs")
        inside = [sizes[0] // n_slices, *sizes[1:]]
        placed = mesh_utils.create_hybrid_device_mesh(
            inside, [n_slices, 1, 1, 1], devices=devices, allow_split_physical_axes=True
        )
    else:
        # an axis of the mesh may be part of an axis of a slice's torus, such as tensor=4 of 8x8
        placed = mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _count(mesh, axes):
    return _product(mesh.shape, axes)


def _product(sizes, axes):
    return int(np.prod([sizes[a] for a in axes]))


def spec(mesh: jax.sharding.Mesh, shape: tuple[int, ...], names: tuple[str | None, ...]) -> PartitionSpec:
    """PartitionSpec of an array whose dimensions have these logical names (None: never split)."""
    return _as_spec(_axes(mesh.shape, shape, names))


def _axes(sizes, shape, names):
    """The mesh axes that each dimension lies over by its name: a list of tuples."""

    def of(size, name):
        axes = tuple(a for a in LOGICAL.get(name, ()) if sizes[a] > 1)
        return () if size % _product(sizes, axes) else axes

    return [of(size, name) for size, name in zip(shape, names, strict=True)]


def _as_spec(axes):
    return PartitionSpec(*(a if len(a) > 1 else a[0] if a else None for a in axes))


def _parameter_axes(sizes, shape, names):
    """As `_axes`, for a parameter: what fsdp cannot divide by name, it divides along the longest dimension that it can.

    Returns:
      (axes, whether fsdp was to divide the parameter and does not). Layers are not divided: each would lie whole on one
      device, and a scan over them would gather them all.
    """
    axes = _axes(sizes, shape, names)
    wanted = sizes["fsdp"] > 1 and any("fsdp" in LOGICAL.get(name, ()) for name in names)
    if not wanted or any("fsdp" in a for a in axes):
        return axes, False
    small = np.prod(shape) < LEAST_DIVIDED
    for k in sorted(range(len(shape)), key=lambda k: -shape[k]) if not small else ():
        if names[k] != "layers" and shape[k] % _product(sizes, (*axes[k], "fsdp")) == 0:
            axes[k] = (*axes[k], "fsdp")
            return axes, False
    return axes, True


def path_name(path: tuple) -> str:
    """A key path of a pytree as text, e.g. "params/backbone/blocks/up/kernel"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def state_sharding(state: Any, mesh: jax.sharding.Mesh, axes: Mapping[str, tuple[str | None, ...]]) -> Any:
    """NamedShardings of a training state (arrays or their shapes).

    Args:
      axes: {path of a parameter: logical names of its axes}. The optimiser's moments end with their parameters' paths
        and lie as these do; whatever has no names lies whole on every device.

    Raises:
      ValueError: fsdp can divide no dimension of parameters and moments of more than MOST_WHOLE bytes.
    """
    named = []  # (shape, names, bytes) of what has names

    def of(path, x):
        parts = path_name(path).split("/")
        for k in range(len(parts)):
            names = axes.get("/".join(parts[k:]))
            if names is not None and len(names) == len(x.shape):
                named.append((x.shape, names, int(np.prod(x.shape)) * x.dtype.itemsize))
                return NamedSharding(mesh, _as_spec(_parameter_axes(mesh.shape, x.shape, names)[0]))
        return replicated(mesh)

    places = jax.tree_util.tree_map_with_path(of, state)
    _check_divided(mesh, named)
    return places


def _check_divided(mesh, named):
    def whole(sizes):
        return sum(n for shape, names, n in named if _parameter_axes(sizes, shape, names)[1])

    sizes = dict(mesh.shape)
    if (held := whole(sizes)) <= MOST_WHOLE:
        return
    rows = sizes["data"] * sizes["fsdp"]
    fits = [n for n in range(1, rows) if rows % n == 0 and whole(sizes | {"data": rows // n, "fsdp": n}) <= MOST_WHOLE]
    best = max(fits, default=1)
    raise ValueError(
        f"config.mesh.fsdp={sizes['fsdp']} divides no dimension of parameters and optimiser state of "
        f"{held / 2**30:.2f} GiB, which every device would hold whole; config.mesh.data={rows // best} with "
        f"config.mesh.fsdp={best} fits the same devices"
    )


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Rows of a batch over the axes that hold rows."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL["batch"]))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def n_row_devices(mesh: jax.sharding.Mesh) -> int:
    """Over how many devices (or groups that share rows) a batch's rows are spread."""
    return _count(mesh, LOGICAL["batch"])


def row_share(mesh: jax.sharding.Mesh, devices: Iterable[Any] | None = None) -> tuple[tuple[int, ...], int]:
    """(blocks, count): a process reads these of the `count` equal blocks of rows that a global batch consists of.

    The devices that hold a block are those of one row's tensor or context split; processes that share them read the
    same block. A process's blocks need not follow each other: the mesh orders the chips of a TPU slice by their
    coordinates, of which a host has a square.

    Args:
      devices: of the process; by default those of this one.
    """
    count = n_row_devices(mesh)
    mine = set(mesh.local_devices if devices is None else devices)
    held = batch_sharding(mesh).devices_indices_map((count,))
    blocks = {index[0].indices(count)[0] for device, index in held.items() if device in mine and index is not None}
    return tuple(sorted(blocks)), count


def device_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Process-local numpy rows, those of `row_share` one block behind the other -> global arrays over the mesh.

    Raises:
      ValueError: the rows do not divide into the blocks.
    """
    n_local = next(iter(batch.values())).shape[0]
    blocks, count = row_share(mesh)
    if n_local % len(blocks):
        raise ValueError(f"a batch of {n_local * count // len(blocks)} rows does not divide over {count} devices")
    rows, sharding = n_local // len(blocks), batch_sharding(mesh)

    def place(x):
        def of_device(index):
            first = (index[0].start or 0) // rows
            return x[blocks.index(first) * rows :][:rows]

        return jax.make_array_from_callback((rows * count, *x.shape[1:]), sharding, of_device)

    return {k: place(x) for k, x in batch.items()}


def mesh_ops(mesh: jax.sharding.Mesh, config: MeshConfig | None = None) -> MeshOps:
    """What networks take from a mesh: constraints of activations by logical names, and the attention op over it.

    Args:
      config: how attention goes over the devices that share a row, as by default where it is None; the devices
        themselves are the mesh's.
    """
    how = config or MeshConfig()
    return _mesh_ops(mesh, how.context_attention, how.context_layout)


@functools.cache  # so that networks for equal meshes are equal, and are compiled once
def _mesh_ops(mesh, method, layout):

    def constrain(x, *names):
        if mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(mesh, x.shape, names)))

    def attend(q_BxTxHxD, k_BxSxHxD, *arguments, **keywords):
        # Left to itself, XLA would gather the batch around a fused kernel, or ask all devices what each tile sees. An
        # example of one row, as parameters are initialised with, has no place on several devices.
        if mesh.size == 1 or q_BxTxHxD.shape[0] % _count(mesh, LOGICAL["batch"]):
            return kernel_attention(q_BxTxHxD, k_BxSxHxD, *arguments, **keywords)
        names = ("batch", "length", "heads", None)
        q_spec, k_spec = (spec(mesh, x.shape, names) for x in (q_BxTxHxD, k_BxSxHxD))
        return sharded_kernel_attention(
            q_BxTxHxD, k_BxSxHxD, *arguments, mesh=mesh, q_spec=q_spec, k_spec=k_spec,
            method=method, layout=layout, **keywords,
        )  # fmt: skip

    return MeshOps(constrain, attend, n_row_devices(mesh))
