"""Times the wearable encoder at a configuration's shape, with full, half full and empty rows, and what empty rows cost.

    python -m ehrwear_jax.benchmarks.encoder --config=configs/full.py
    python -m ehrwear_jax.benchmarks.encoder --config=configs/full.py:layers=2,seq=256 --rows=1    # on a CPU

Forward and backward pass over random signals; no records are needed. `empty_over_none` is the time of the whole network
(backbone and heads' input, forward and backward) on rows without a window, over that of the same rows in batches that
have no room for windows: 1 if empty slots are free. Any option may be changed, as in
--config.joint.context.patch_steps=10.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from ehrwear_jax import config as config_lib
from ehrwear_jax.benchmarks import results
from ehrwear_jax.config.run import RunConfig
from ehrwear_jax.models.family import Batch, BatchSpec
from ehrwear_jax.models.joint import encoders, family
from ehrwear_jax.models.joint.batch import INPUTS, MODALITY_EHR, MODALITY_WEAR, N_SPECIAL, WEAR
from ehrwear_jax.models.joint.network import JointNetwork, wearable_config

CONTEXT_WINDOWS = 96  # of one person: 24 days of 6 h each
FILLED = {"full": 1.0, "half": 0.5, "empty": 0.0}


@dataclasses.dataclass(frozen=True)
class Timing:
    """How many passes are timed, and go before."""

    passes: int = 10
    warmup: int = 2


def make_batch(spec: BatchSpec, n_rows: int, filled: float) -> Batch:
    """Rows full of tokens, the first of which are windows: so many as fill this share of their slots.

    Contexts of CONTEXT_WINDOWS tokens follow each other, whose windows end every six hours.
    """
    rng, batch = np.random.default_rng(0), spec.empty(n_rows)
    n_tokens, n_windows = spec.sizes["T"], round(filled * spec.sizes["W"])
    at = np.arange(n_tokens)
    first = at - at % CONTEXT_WINDOWS
    batch["time"][:], batch["segment"][:] = 0.25 * (1 + at - first), 1 + at // CONTEXT_WINDOWS
    batch["age"][..., 0] = 15_000 + batch["time"]
    batch["kv_range"][:] = np.stack([first, at + 1], axis=-1)
    batch["token"][:], batch["modality"][:] = N_SPECIAL, MODALITY_EHR
    batch["query_kv_range"][..., 1] = CONTEXT_WINDOWS
    windows = slice(n_windows)
    batch["token"][:, windows], batch["modality"][:, windows] = WEAR, MODALITY_WEAR
    batch["window"][:, windows] = batch["window_position"][:, windows] = at[windows]
    shape = batch["wear"][:, windows].shape
    batch["wear"][:, windows], batch["observed"][:, windows] = rng.normal(size=shape), True
    return batch


def without_slots(spec: BatchSpec, batch: Batch) -> Batch:
    """The batch with no room for windows."""
    return {name: x[:, :0] if "W" in spec.fields[name].axes else x for name, x in batch.items()}


def seconds(run: Callable[..., Any], argument: Any, batch: Batch, timing: Timing) -> float:
    """Least duration of a pass: what else the machine does only adds to it."""
    placed, each = jax.device_put(batch), []
    for _ in range(timing.warmup + timing.passes):
        began = time.perf_counter()
        jax.block_until_ready(run(argument, placed))
        each.append(time.perf_counter() - began)
    return min(each[timing.warmup :])


def _gradient(apply):
    """Jitted gradient of the sum of squares of what apply(params, batch) returns."""

    def loss(params, batch):
        return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(apply(params, batch)))

    return jax.jit(jax.grad(loss))


def measure(
    config: RunConfig, n_rows: int, timing: Timing = Timing(), vocabulary: int = 512, whole: bool = True
) -> dict[str, float]:
    """{metric: number}; see the module's head.

    Args:
      n_rows: of a batch. vocabulary: tokens of the network. whole: whether the whole network is timed too.
    """
    model = config.model_config("joint")
    spec, _ = family.assumed(model, config.prepare, vocabulary)
    spec = dataclasses.replace(spec, fields={n: f for n, f in spec.fields.items() if n in INPUTS})
    encoder = encoders.WearableEncoder(wearable_config(model))
    batches = {name: make_batch(spec, n_rows, share) for name, share in FILLED.items()}
    one = {name: x[:1] for name, x in batches["full"].items()}
    params = jax.jit(encoder.init)(jax.random.key(0), one)["params"]
    rngs = {"dropout": jax.random.key(0)}
    gradient = _gradient(lambda p, b: encoder.apply({"params": p}, b, deterministic=False, rngs=rngs))  # as in training
    compiled = gradient.lower(params, batches["full"]).compile()
    out = {"slots": float(n_rows * spec.sizes["W"]), "patches": float(n_rows * spec.sizes["W"] * spec.sizes["P"])}
    for name, value in (compiled.cost_analysis() or {}).items():
        if name in ("flops", "bytes accessed"):
            out[f"encoder_{'tflop' if name == 'flops' else 'gb'}"] = value / (1e12 if name == "flops" else 1e9)
    if memory := compiled.memory_analysis():
        out["encoder_temporary_gib"] = memory.temp_size_in_bytes / 2**30
    for name, batch in batches.items():
        out[f"encoder_{name}_ms"] = 1e3 * seconds(compiled, params, batch, timing)
    if whole:
        network = family.network(spec, model)
        params = jax.jit(lambda b: network.init(jax.random.key(0), b, method=JointNetwork.latents))(one)["params"]
        gradient = _gradient(lambda p, b: network.apply({"params": p}, b, method=JointNetwork.latents))
        out["network_empty_ms"] = 1e3 * seconds(gradient, params, batches["empty"], timing)
        out["network_none_ms"] = 1e3 * seconds(gradient, params, without_slots(spec, batches["empty"]), timing)
        out["empty_over_none"] = out["network_empty_ms"] / out["network_none_ms"]
    return out


def define_flags() -> None:
    """Declares the flags; not on import, since other programs have flags of these names."""
    config_flags.DEFINE_config_file("config", None, "Configuration file, e.g. configs/full.py.")
    flags.DEFINE_integer("rows", 0, "Rows of a batch; 0: those of a device in training.")
    flags.DEFINE_integer("passes", 10, "Passes to time, after two that are not.", lower_bound=1)
    flags.DEFINE_bool("whole", True, "Whether the whole network is timed too.")
    flags.DEFINE_string("json", "", "File for the results.")


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark by its flags."""
    del argv
    given = flags.FLAGS
    config = config_lib.parse(given.config)
    n_rows = given.rows or config.train.rows_per_device or config.train.batch_size
    found = measure(config, n_rows, Timing(given.passes), whole=given.whole)
    device = jax.devices()[0].device_kind
    title = f"wearable encoder of {config.name}, {n_rows} rows on {device}, JAX {jax.__version__}"
    results.show(title, found, given.json)


if __name__ == "__main__":
    define_flags()
    app.run(main)
