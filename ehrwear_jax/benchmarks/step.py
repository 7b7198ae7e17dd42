"""Times training steps of a configuration on real rows, on one machine: tokens a second, share of the peak, memory.

    python -m ehrwear_jax.benchmarks.step --config=configs/full.py --records=RUN/records/NAME --fit=RUN/fit/NAME

Batches are made before the clock starts, so that the step alone is timed (benchmarks/data.py times the making). Any
option may be changed, as in --config.joint.network.unroll=24; --vocabulary=N gives the model as many tokens as a real
dataset would. --profile=N prints the kernels that took most of N further steps. Programs that are given the same --lock
compile side by side and use the device one after another.
"""

import collections
import contextlib
import dataclasses
import fcntl
import glob
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from ehrwear_jax import config as config_lib
from ehrwear_jax.benchmarks import results, rows
from ehrwear_jax.config.run import RunConfig
from ehrwear_jax.training import cost, sharding
from ehrwear_jax.training.optimizer import make_optimizer
from ehrwear_jax.training.pretrain import Model, make_task, with_rows
from ehrwear_jax.training.step import abstract_state, init_state, jit_step

DISTINCT = 4  # batches that the steps take in turn


@dataclasses.dataclass(frozen=True)
class Timing:
    """How many steps are timed, go before, and are profiled behind them."""

    steps: int = 50
    warmup: int = 5
    profile: int = 0


def measure(
    config: RunConfig,
    name: str,
    records: Path,
    fit: Path,
    timing: Timing = Timing(),
    vocabulary: int = 0,
    turn: contextlib.AbstractContextManager | None = None,
) -> dict[str, float]:
    """{metric: number} of one model's training steps; see the module's head.

    Args:
      name: in config.models. records, fit, vocabulary: see rows.examples.
      turn: held while the device is used.
    """
    mesh = sharding.make_mesh(config=config.mesh)
    model = Model(name, config.family(name), config.model_config(name), config.train_config(name))
    train = with_rows(model.train, mesh)
    examples, spec = rows.examples(records, fit, model, vocabulary)
    task, optimizer = make_task(model, spec, mesh), make_optimizer(train)
    made = rows.batches(examples, train.batch_size, DISTINCT)
    counts = [examples.counts(b) for b in made]
    shapes = abstract_state(task, optimizer, train, mesh)
    sizes = cost.parameters(shapes["params"])
    place = sharding.batch_sharding(mesh)
    like = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for n, x in made[0].items()}
    began = time.perf_counter()
    step = jit_step(task, optimizer, train, model.seed, shapes).lower(shapes, {}, like).compile()
    compiled = time.perf_counter() - began
    with turn or contextlib.nullcontext():
        state = init_state(task, optimizer, train, mesh, model.seed)
        seconds, loss = _timed(step, state, [sharding.device_batch(b, mesh) for b in made], timing)
        used = (mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use")
        del state
    each = statistics.median(seconds)
    mean = {name: statistics.mean(c[name] for c in counts) for name in counts[0]}
    flops = statistics.mean(model.module.flops(spec, model.config, sizes, c) for c in counts)
    out = {
        "parameters": float(sum(sizes.values())),
        "rows": float(train.batch_size),
        "step_ms": 1e3 * each,
        "slowest_step_ms": 1e3 * max(seconds),
        "compile_s": compiled,
        "tokens_per_second": mean["tokens"] / each,
        "patient_days_per_second": mean["patient_days"] / each,
        "contexts_per_row": mean["contexts"] / train.batch_size,
        "filled": mean["tokens"] / (train.batch_size * made[0]["token"].shape[1]) if "token" in made[0] else 1.0,
        "model_tflops_per_second": flops / each / 1e12,
        "loss": loss,
    }
    if "window_position" in made[0]:
        out["slots_filled"] = rows.slots_filled(made, model.config.context.window_parts)
    if peak := cost.peak_flops(mesh.devices.flat[0].device_kind):
        out["mfu"] = flops / each / (peak * mesh.size)
    if memory := step.memory_analysis():
        out["temporary_gib"] = memory.temp_size_in_bytes / 2**30
    if used:
        out["peak_gib"] = used / 2**30
    return out


def _timed(step, state, batches, timing):
    """(seconds of each step that counts, loss of the last)."""
    seconds = []
    for n in range(timing.warmup + timing.steps):
        began = time.perf_counter()
        state, metrics = step(state, {}, batches[n % DISTINCT])
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    if timing.profile:
        _profile(step, state, batches, timing.profile)
    return seconds[timing.warmup :], float(metrics["loss/total"])


def _profile(step, state, batches, n):
    """Prints what the device spent its time on, kernel by kernel."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for i in range(n):
                state, metrics = step(state, {}, batches[i % len(batches)])
            jax.block_until_ready(metrics)
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
    total: collections.Counter[str] = collections.Counter()
    for plane in data.planes:
        if plane.name.startswith("/device:"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    for event in line.events:
                        total[event.name] += event.duration_ns
    whole = sum(total.values())
    print(f"{whole / n / 1e6:.2f} ms of kernels a step, of which")
    for name, ns in total.most_common(40):
        print(f"{ns / n / 1e6:9.3f} ms {ns / whole:6.1%}  {name[:110]}")


@contextlib.contextmanager
def _locked(path):
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def define_flags() -> None:
    """Declares the flags; not on import, since other programs have flags of these names."""
    config_flags.DEFINE_config_file("config", None, "Configuration file, e.g. configs/full.py.")
    flags.DEFINE_string("records", None, "Folder of prepared records.", required=True)
    flags.DEFINE_string("fit", None, "Folder of what prepare fitted on a training split of them.", required=True)
    flags.DEFINE_string("model", "joint", "A name in config.models.")
    flags.DEFINE_integer("steps", 50, "Steps to time, after as many as --warmup says.", lower_bound=1)
    flags.DEFINE_integer("warmup", 5, "Steps before.", lower_bound=1)
    flags.DEFINE_integer("vocabulary", 0, "Tokens of the model; 0: those of the records.")
    flags.DEFINE_integer("profile", 0, "Steps to profile.")
    flags.DEFINE_string("lock", "", "File that programs lock which share a device.")
    flags.DEFINE_string("json", "", "File for the results.")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark by its flags."""
    del argv
    given = flags.FLAGS
    config = config_lib.parse(given.config)
    device = jax.devices()[0]
    turn = _locked(given.lock) if given.lock else None
    timing = Timing(given.steps, given.warmup, given.profile)
    found = measure(config, given.model, Path(given.records), Path(given.fit), timing, given.vocabulary, turn)
    results.show(f"{given.model} of {config.name} on {device.device_kind}, JAX {jax.__version__}", found, given.json)


if __name__ == "__main__":
    define_flags()
    app.run(main)
