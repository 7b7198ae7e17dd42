"""Pretraining: where data meets the model. Pure steps first, then the loop, in data-flow order."""

import dataclasses
import functools
import json
import logging
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.models.joint import losses
from ehrwear_jax.models.joint.network import ModelConfig, MultimodalModel
from ehrwear_jax.models.layers.transformer import anywhere
from ehrwear_jax.ops.kernel_attention import kernel_attention
from ehrwear_jax.runtime import files
from ehrwear_jax.runtime.supervision import Supervision
from ehrwear_jax.training import cost, schedules, sharding
from ehrwear_jax.training import warm_start as initialise
from ehrwear_jax.training.optimizer import average, make_optimizer, summed_gradients
from ehrwear_jax.training.throughput import Throughput


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation (paper, section 3.5 and appendix A.4).

    Attributes:
      steps, batch_size: optimiser steps; rows of the global batch.
      rows_per_device: if positive, the global batch has so many rows for each device that has rows of its own, and
        batch_size says nothing. A run goes on with as many devices as it began with.
      peak_learning_rate, warmup_steps, weight_decay, clip_norm, adam_b2: AdamW.
      accumulate: micro-batches per step: as many fewer rows at a time, the same sums (see losses.py).
      ema_decay: of the average of the weights that validation and embedding use; 0: they use the weights themselves.
      weights: {loss term: schedules.Ramp}.
      log_every, validate_every, validate_batches, checkpoint_every, keep: in steps, steps, batches, steps, checkpoints.
      data_threads, data_workers: see pipeline.train_batches.
      keep_every: checkpoints at multiples of this step are kept for good; 0: none.
      init_from: a pretraining folder whose parameters a new run starts from; empty: from random ones.
      max_skipped: so many steps in a row that are not finite end the run.
      spike_factor: a loss so many robust deviations over the median of the last ones is noted; 0: none is.
      step_timeout_s: a step that takes longer has hung and ends the process; 0: may take forever.
      profile_at, profile_steps: trace steps from this one on; how many (also of a trace that is asked for).
      stop_after: end the process's work at this step (the run can be resumed); None runs to `steps`.
    """

    steps: int
    batch_size: int
    peak_learning_rate: float
    warmup_steps: int
    weights: dict
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    adam_b2: float = 0.98
    rows_per_device: int = 0
    accumulate: int = 1
    ema_decay: float = 0.0
    seed: int = 0
    log_every: int = 50
    validate_every: int = 500
    validate_batches: int = 8
    checkpoint_every: int = 500
    keep: int = 2
    data_threads: int = 2
    data_workers: int = 0
    keep_every: int = 0
    init_from: str = ""
    max_skipped: int = 20
    spike_factor: float = 8.0
    step_timeout_s: float = 1800.0
    profile_at: int = 0
    profile_steps: int = 5
    stop_after: int | None = None


# Settings that change how the result is reached, and not the result; what rows_per_device gives is in batch_size.
NOT_RESULTS = ("rows_per_device", "log_every", "keep", "keep_every", "data_threads", "data_workers", "stop_after",
               "checkpoint_every", "max_skipped", "spike_factor", "step_timeout_s", "profile_at",
               "profile_steps")  # fmt: skip


def with_rows(config, mesh):
    """A TrainConfig whose batch_size is that of the global batch on this mesh."""
    if not config.rows_per_device:
        return config
    return dataclasses.replace(config, batch_size=config.rows_per_device * sharding.n_row_devices(mesh))


# ------------------------------------------------------------------------------------------------ model and optimiser


def make_model(patients, options, mesh=None):
    """The model that fits the patients' data; options: the ModelConfig fields that are not given by data.

    mesh: where its batches will lie; None for one device.
    """
    shape = patients.batch_shape()
    return MultimodalModel(
        attend=sharding.attention(mesh) if mesh is not None else kernel_attention,
        place=sharding.placement(mesh) if mesh is not None else anywhere,
        config=ModelConfig(
            vocabulary=len(patients.vocabulary),
            steps=shape.steps,
            channels=shape.channels if shape.windows else 0,
            patch_steps=patients.config.patch_steps,
            future_windows=shape.future_windows,
            future_codes=shape.future_codes,
            horizons=len(patients.config.horizons),
            later_rates=patients.later_rates(),
            recalled_tokens=shape.recalled_tokens,
            further_summaries=shape.further_summaries,
            pairs=shape.pairs,
            **options,
        ),
    )


def active_terms(model, patients):
    """Names of the loss terms that the given modalities can feed, and the model's options."""
    wear = model.config.channels > 0
    ehr = "ehr" in patients.config.modalities
    off = set() if model.config.pairs else {"contrast"}
    off |= set() if model.config.posterior == "normal" else {"latent_kl"}
    off |= set() if wear else set(losses.NEED_WEAR)
    off |= set() if ehr else set(losses.NEED_EHR)
    return [t for t in losses.TERMS if t not in off]


def _initial(model, optimizer, patients, seed, averaged):
    example = batch_lib.empty_batch(patients.batch_shape(), 1)

    def init():
        params = model.init(jax.random.key(seed), example)["params"]
        zero = jnp.zeros((), jnp.int32)
        state = {"step": zero, "params": params, "optimizer": optimizer.init(params), "skipped": zero}
        return state | ({"average": jax.tree.map(jnp.copy, params)} if averaged else {})

    return init


def abstract_state(model, optimizer, patients, mesh, averaged=False):
    """Shapes and shardings of the training state; nothing is computed.

    The state: {"step", "params", "optimizer", "skipped"} and, if averaged, "average" of the params.
    """
    shapes = jax.eval_shape(_initial(model, optimizer, patients, 0, averaged))
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(place, shapes, sharding.state_sharding(shapes, mesh))


def init_state(model, optimizer, patients, seed, mesh, averaged=False):
    """The state that `abstract_state` describes; no device ever holds more of it than its part."""
    like = abstract_state(model, optimizer, patients, mesh, averaged)
    places = jax.tree.map(lambda x: x.sharding, like)
    return jax.jit(_initial(model, optimizer, patients, seed, averaged), out_shardings=places)()


# ------------------------------------------------------------------------------------------------------- pure steps


def read_params(state):
    """The weights that validation and embedding use."""
    return state.get("average", state["params"])


def train_step(state, batch, *, model, optimizer, curriculum, seed, accumulate=1, ema_decay=0.0):
    """One update; a step whose loss or gradient is not finite changes nothing but the counters.

    Returns:
      (state, metrics: {name: float32 scalar}).
    """
    key = jax.random.fold_in(jax.random.key(seed), state["step"])
    weights = curriculum(state["step"])
    whole = losses.normalisers(batch, weights, model.config.horizons)

    def objective(params, rows, key):
        out = model.apply({"params": params}, rows, deterministic=False, rngs={"dropout": key})
        return losses.total(out, rows, weights, whole)

    (loss, metrics), grads = summed_gradients(objective, state["params"], batch, key, accumulate)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    new = {
        "step": state["step"] + 1,
        "params": jax.tree.map(keep, params, state["params"]),
        "optimizer": jax.tree.map(keep, optimizer_state, state["optimizer"]),
        "skipped": jnp.where(finite, 0, state["skipped"] + 1),
    }
    if ema_decay:
        new["average"] = average(state["average"], new["params"], state["step"], ema_decay)
    return new, metrics | {"gradient_norm": norm, "finite": finite.astype(jnp.float32), "skipped": new["skipped"]}


def validation_step(params, batch, *, model, weights):
    """The losses without dropout, at the final loss weights."""
    out = model.apply({"params": params}, batch, deterministic=True)
    return losses.total(out, batch, weights)[1]


# ------------------------------------------------------------------------------------------------------- the loop


def jit_step(model, optimizer, curriculum, config, state):
    """train_step as a TrainConfig has it, compiled; the new state takes the old one's place."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        functools.partial(
            train_step,
            model=model,
            optimizer=optimizer,
            curriculum=curriculum,
            seed=config.seed,
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
        ),
        donate_argnums=0,
        # as it came in, so that the second step does not compile again
        out_shardings=(shardings, sharding.replicated(next(iter(jax.tree.leaves(shardings))).mesh)),
    )


def _about(patients, model_options, config):
    """What a state depends on: a run whose folder says something else cannot go on."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_RESULTS}
    options = {"train": settings, "model": model_options, "context": dataclasses.asdict(patients.config)}
    return {"seed": config.seed, "config": options, "data": files.digests(patients.folder, patients.files())}


def pretrain(folder, patients, validation, model_options, config, mesh_config=None):
    """Trains to config.steps, from the newest whole checkpoint in `folder`, else from config.init_from, else anew.

    Args:
      folder: receives checkpoints/, metrics.jsonl, tensorboard/, parameters.json and what Supervision writes.
      patients, validation: pipeline.Patients of the training and tuning splits.
      mesh_config: sharding.MeshConfig; None spreads rows over all devices.

    Returns:
      (params: averaged ones if config.ema_decay, step reached).

    Raises:
      RunError: one of exits.py's: the folder is in use or of another config, a signal, no room, no finite step.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh(config=mesh_config)
    share, n_shares = sharding.row_share(mesh)
    config = with_rows(config, mesh)
    if config.batch_size // config.accumulate % sharding.n_row_devices(mesh):
        raise ValueError(
            f"config.train.accumulate={config.accumulate} leaves {config.batch_size // config.accumulate} rows at a "
            f"time, which do not divide over {sharding.n_row_devices(mesh)} devices"
        )
    model = make_model(patients, model_options, mesh)
    optimizer = make_optimizer(config)
    curriculum = schedules.curriculum(config.weights, active_terms(model, patients))
    devices = mesh.devices.flat[0].device_kind, mesh.size
    with Supervision(folder, config, _about(patients, model_options, config), devices) as run:
        state = init_state(model, optimizer, patients, config.seed, mesh, config.ema_decay > 0)
        sizes = cost.parameters(state["params"])
        n_params = sum(sizes.values())
        initialise.write_names(folder, patients)
        files.write_whole(folder / "parameters.json", json.dumps({"parameters": n_params}))
        start, state = run.resume(state)
        if not start and config.init_from:
            state["params"] = initialise.from_run(config.init_from, state["params"], patients, folder)
            if config.ema_decay:
                state["average"] = jax.tree.map(jnp.copy, state["params"])
        last = config.steps if config.stop_after is None else min(config.steps, config.stop_after)
        if start >= last:
            return read_params(state), start
        logging.info("%s: %d parameters, steps %d to %d", folder.name, n_params, start, last)
        rows = pipeline.TrainRows(patients, config.seed)
        batches = pipeline.train_batches(
            rows,
            config.batch_size,
            start_step=start,
            process_index=share,
            process_count=n_shares,
            threads=config.data_threads,
            workers=config.data_workers,
        )
        held = _validation_batches(validation, config, mesh)
        step_fn = jit_step(model, optimizer, curriculum, config, state)
        validate = jax.jit(lambda p, b: validation_step(p, b, model=model, weights=curriculum(config.steps)))
        run.begin(start)
        throughput = Throughput(model, sizes, mesh, start)
        pending = None
        bar = tqdm(
            range(start, last),
            folder.name,
            unit="step",
            initial=start,
            total=config.steps,
            disable=True if jax.process_index() else None,
            mininterval=2,
        )
        for step in bar:
            waiting = time.perf_counter()
            with run.part("data"):
                batch = next(batches)
                throughput.add(batch, time.perf_counter() - waiting)
                batch = sharding.device_batch(batch, mesh)
            with run.part("step"):
                state, metrics = step_fn(state, batch)
                if pending is not None:  # one step late, so that the device is never waited for
                    _report(run, bar, *pending, throughput, rows, config)
                pending = (step + 1, metrics)
                done = step + 1
                stop = run.step_done(done)
            if done % config.validate_every == 0 or done == config.steps:
                with run.part("validating"):
                    run.write(done, _validate(validate, read_params(state), held))
            if run.due(done, last) or stop:
                # logged first: a run killed after the checkpoint resumes behind this step
                with run.part("step"):
                    _report(run, bar, *pending, throughput, rows, config)
                pending = None
                if stop:
                    run.stop(done, state)
                run.save(done, state, last=done == last)
        logging.info("%s: %s", folder.name, run.summary())
    return read_params(state), last


def _report(run, bar, step, metrics, throughput, rows, config):
    """Logs every log_every steps, and any step that was not finite or stands out, with its patients."""
    if step % config.log_every == 0 or step == config.steps:
        values = {k: float(v) for k, v in jax.device_get(metrics).items()} | throughput.read(step)
        run.write(step, values)
        bar.set_postfix(loss=f"{values['loss/total']:.3f}", refresh=False)
    loss, finite, skipped = (
        float(x) for x in jax.device_get([metrics[k] for k in ("loss/total", "finite", "skipped")])
    )
    of_step = range((step - 1) * config.batch_size, step * config.batch_size)
    run.judge(step, loss, finite == 1.0, int(skipped), lambda: rows.subjects(of_step))


def _validation_batches(validation, config, mesh):
    if validation is None or not len(validation):
        return []
    rows = pipeline.TrainRows(validation, config.seed, augmented=False)
    n = min(config.validate_batches, max(1, rows.rows_per_epoch // config.batch_size))
    batches = pipeline.train_batches(
        rows,
        config.batch_size,
        n_steps=n,
        process_index=sharding.row_share(mesh)[0],
        process_count=sharding.row_share(mesh)[1],
        threads=0,
    )
    return [sharding.device_batch(b, mesh) for b in batches]


def _validate(validate, params, batches):
    results = [jax.device_get(validate(params, b)) for b in batches]
    return {f"validation/{k}": np.mean([r[k] for r in results]) for k in (results[0] if results else {})}
