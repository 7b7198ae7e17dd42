"""Compiles a training step for devices that are not there: its parameters, memory and collectives before data exist."""

import contextlib
import dataclasses
import importlib.util
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
from jax.experimental import topologies

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.training import MeshConfig
from ehrwear_jax.models.family import BatchSpec
from ehrwear_jax.ops.kernel_attention.target import compiling_for
from ehrwear_jax.training import cost, hlo, sharding
from ehrwear_jax.training.feed import Share
from ehrwear_jax.training.optimizer import make_optimizer
from ehrwear_jax.training.pretrain import Model, Needed, make_task, with_rows
from ehrwear_jax.training.step import abstract_state, jit_step


def assumed(model: Model, prepare: PrepareConfig, vocabulary: int) -> tuple[BatchSpec, dict[str, int]]:
    """The batches that data of this size would give a model, and the counts of a full row.

    Raises:
      ValueError: the family cannot say.
    """
    if not hasattr(model.module, "assumed"):
        raise ValueError(f"the family {model.family} cannot say what its batches would be without data")
    return model.module.assumed(model.config, prepare, vocabulary)


def parameters(model: Model, spec: BatchSpec) -> dict[str, int]:
    """{part: number of parameters} of the network, without making it."""
    network = model.module.network(spec, model.config)
    return cost.parameters(jax.eval_shape(lambda: network.init(jax.random.key(0), spec.empty(1)))["params"])


def tpu_library() -> Path:
    """Path of libtpu.so: beside the environment's packages, where launch/setup_env.sh puts it, or among them.

    Raises:
      FileNotFoundError: it is not installed.
    """
    beside = Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"
    if beside.exists():
        return beside
    if (spec := importlib.util.find_spec("libtpu")) and spec.origin:
        return Path(spec.origin).parent / "libtpu.so"
    raise FileNotFoundError("compiling for TPUs needs libtpu; launch/setup_env.sh's ensure_libtpu installs it")


def tpu_devices(topology: str) -> list:
    """The devices of a TPU slice that need not exist, e.g. "v5e:16x16".

    Raises:
      FileNotFoundError: libtpu is not installed.
      ValueError: it does not know the topology.
    """
    # libtpu looks for the chips of a cloud machine unless told otherwise, and wants to be alone
    settings = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.update(settings | {"TPU_LIBRARY_PATH": str(tpu_library())})
    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # jaxlib's errors have no common class
        raise ValueError(f"config.compile.topology is {topology!r}: {error}") from error


def shares(mesh: jax.sharding.Mesh) -> dict[int, Share]:
    """{process: the rows of a global batch that it would read}, by what pretraining asks of a mesh.

    Raises:
      ValueError: a block of rows that no process reads.
    """
    devices: dict[int, list] = {}
    for device in mesh.devices.flat:
        devices.setdefault(device.process_index, []).append(device)
    found = {process: Share(*sharding.row_share(mesh, mine)) for process, mine in sorted(devices.items())}
    if unread := set(range(sharding.n_row_devices(mesh))).difference(*(s.blocks for s in found.values())):
        raise ValueError(f"config.mesh: no process holds block {min(unread)} of a batch's rows")
    return found


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A training step, compiled.

    Attributes:
      seconds: that compiling took. text: of the program. rows: of the global batch.
      memory: {"state and batch", "temporary", "program", "total"}: bytes on each device.
      flops: of each device by the compiler's count, which leaves out what custom kernels do.
      model_flops: of all devices, by the family's formula for rows without padding.
      collectives: see hlo.collectives.
    """

    seconds: float
    text: str
    rows: int
    memory: dict
    flops: float
    model_flops: float
    collectives: dict


def compile_step(
    model: Model,
    spec: BatchSpec,
    row_counts: Mapping[str, int],
    mesh: jax.sharding.Mesh,
    platform: str | None = None,
    mesh_config: MeshConfig | None = None,
    needed: Mapping[str, tuple[Model, BatchSpec]] | None = None,
) -> Compiled:
    """Compiles the training step that pretraining runs, on shapes alone.

    Args:
      row_counts: of a full row, for the flops.
      platform: of the mesh's devices, where it is not this machine's. mesh_config: see sharding.mesh_ops.
      needed: models that the training of this one calls, and their batches.

    Raises:
      ValueError: rows that the mesh does not divide; the program does not fit the devices' memory; the compiler says
        nothing of it.
    """
    config = with_rows(model.train, mesh)
    rows, optimizer = config.batch_size, make_optimizer(config)
    others = {name: _needed(m, s, mesh) for name, (m, s) in (needed or {}).items()}
    task = make_task(model, spec, mesh, mesh_config, others)
    frozen = {name: other.variables for name, other in others.items()}
    place = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=place) for name, x in spec.empty(1).items()
    }
    with compiling_for(platform) if platform else contextlib.nullcontext():
        state = abstract_state(task, optimizer, config, mesh)
        lowered = jit_step(task, optimizer, config, model.seed, state).lower(state, frozen, batch)
        began = time.monotonic()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"the step does not compile: {str(error)[:600]}") from error
    seconds, text, memory = time.monotonic() - began, compiled.as_text(), compiled.memory_analysis()
    if text is None or memory is None:
        raise ValueError("the compiler says nothing of the program it made")
    parts = {
        # the new state lies where the old one did
        "state and batch": memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    flops = (compiled.cost_analysis() or {}).get("flops", float("nan"))
    sizes = cost.parameters(state["params"])
    full = model.module.flops(spec, model.config, sizes, {name: rows * n for name, n in row_counts.items()})
    return Compiled(seconds, text, rows, parts | {"total": sum(parts.values())}, flops, full, hlo.collectives(text))


def _needed(model, spec, mesh):
    """A network that is called in training, with the shapes of its variables."""
    network = model.module.network(spec, model.config)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: network.init(jax.random.key(0), spec.empty(1))))
    whole = sharding.replicated(mesh)
    return Needed(network, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes))
