"""What a configuration costs before it has data or devices: its parameters, and its step compiled for a TPU slice."""

import contextlib
import dataclasses
import importlib.util
import os
import sys
import time
from pathlib import Path

import jax
from jax.experimental import topologies

from ehrwear_jax.data.signals import derived_features as window_summaries
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.ops.kernel_attention.target import compiling_for
from ehrwear_jax.training import cost, hlo, schedules, sharding, train


class AssumedPatients:
    """Stands in for pipeline.Patients where only sizes are asked for.

    Args:
      config: ContextConfig. prepare: PrepareConfig.
      vocabulary: number of tokens, which data would decide; at least as many codes are predicted and recalled.
    """

    batch_shape = pipeline.Patients.batch_shape

    def __init__(self, config, prepare, vocabulary):
        self.config, self.channels = config, tuple(prepare.channels)
        self.steps = prepare.window_hours * 60 // prepare.step_minutes
        self.vocabulary, self.future_codes = range(vocabulary), range(config.future_codes)
        self.n_recalled = config.recalled_tokens
        raw = prepare.segments.get(config.raw_segments)
        self.raw_samples, self.raw_channel_A = (raw.samples, raw.channels) if raw else (0, ())
        self.has_quality = prepare.quality
        wanted = window_summaries.parse(prepare.summaries, self.channels)
        self.further_channel_X = window_summaries.targets(wanted)

    def later_rates(self):
        return (0.01,) * (len(self.future_codes) * len(self.config.horizons))


def parameters(patients, model_options):
    """{part: number of parameters} of the model, without making it."""
    example = batch_lib.empty_batch(patients.batch_shape(), 1)
    model = train.make_model(patients, model_options)
    return cost.parameters(jax.eval_shape(lambda k: model.init(k, example), jax.random.key(0))["params"])


def tpu_library():
    """Path of libtpu.so: beside the environment's packages, where launch/setup_env.sh puts it, or among them.

    Raises:
      FileNotFoundError: it is not installed.
    """
    beside = Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"
    if beside.exists():
        return beside
    if spec := importlib.util.find_spec("libtpu"):
        return Path(spec.origin).parent / "libtpu.so"
    raise FileNotFoundError("compiling for TPUs needs libtpu; launch/setup_env.sh's ensure_libtpu installs it")


def tpu_devices(topology):
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
        raise ValueError(f"config.topology is {topology!r}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A training step, compiled.

    Attributes:
      seconds: that compiling took. text: of the program. rows: of the global batch.
      memory: {"state and batch", "temporary", "program", "total"}: bytes on each device.
      flops: of each device by the compiler's count, which leaves out what custom kernels do.
      model_flops: of all devices, by cost.model_flops for rows without padding.
      collectives: see hlo.collectives.
    """

    seconds: float
    text: str
    rows: int
    memory: dict
    flops: float
    model_flops: float
    collectives: dict


def compile_step(patients, model_options, train_config, mesh, rows, platform=None):
    """Compiles the training step that `train.pretrain` runs, on shapes alone.

    Args:
      rows: of the global batch. platform: of the mesh's devices, where it is not this machine's.

    Raises:
      ValueError: rows that the mesh does not divide; the program does not fit the devices' memory.
    """
    model, optimizer = train.make_model(patients, model_options, mesh), train.make_optimizer(train_config)
    curriculum = schedules.curriculum(train_config.weights, train.active_terms(model, patients))
    place = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=place)
        for name, x in batch_lib.empty_batch(patients.batch_shape(), 1).items()
    }
    with compiling_for(platform) if platform else contextlib.nullcontext():
        state = train.abstract_state(model, optimizer, patients, mesh, train_config.ema_decay > 0)
        lowered = train.jit_step(model, optimizer, curriculum, train_config, state).lower(state, batch)
        began = time.monotonic()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"the step does not compile: {str(error)[:600]}") from error
    seconds, text, memory = time.monotonic() - began, compiled.as_text(), compiled.memory_analysis()
    parts = {
        # the new state lies where the old one did
        "state and batch": memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    flops = (compiled.cost_analysis() or {}).get("flops", float("nan"))
    sizes = cost.parameters(state["params"])
    full = cost.model_flops(model.config, sizes, full_counts(patients, rows))
    return Compiled(seconds, text, rows, parts | {"total": sum(parts.values())}, flops, full, hlo.collectives(text))


def full_counts(patients, rows):
    """cost.batch_counts of rows that hold one context each and no padding."""
    shape = patients.batch_shape()
    seen = shape.tokens * (shape.tokens + 1) // 2 + shape.queries * shape.tokens
    held = {"contexts": 1, "tokens": shape.tokens, "queries": shape.queries, "windows": shape.windows, "seen": seen}
    return {name: rows * n for name, n in held.items()}
