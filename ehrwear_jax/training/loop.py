"""Runs the training loop of any task: data, step, validation, checkpoint, in the order of data flow."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.models.family import Batch
from ehrwear_jax.runtime.supervision import Supervision
from ehrwear_jax.training import sharding
from ehrwear_jax.training.step import State, Task, init_state, jit_step, note_best, read_variables
from ehrwear_jax.training.throughput import Throughput

MONITORED = "validation/loss/total"  # what patience waits for


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that a run of the loop takes.

    Attributes:
      folder: receives checkpoints/, metrics.jsonl, tensorboard/ and what Supervision writes.
      task, optimizer, config, seed, mesh: see training/step.py. frozen: what the task's `apply` reads and nothing
        changes.
      batches: start step -> this process's batches from there on.
      validate: state -> {metric: value}, every config.validate_every steps.
      measure: (state, the step's batch) -> (state, {metric: value}), every config.gradients_every steps and, where
        weights depend on it, after the first; None: nothing is measured. See training/gradients.py.
      throughput: start step -> Throughput.
      subjects: step (from 1) -> ids of the people in its global batch, for the log of what went wrong.
      about: JSON-able dict of what the state depends on.
      start: changes a new run's initial state, as a warm start does; not called on a resume.
    """

    folder: Path
    task: Task
    optimizer: optax.GradientTransformation
    config: TrainConfig
    seed: int
    mesh: jax.sharding.Mesh
    batches: Callable[[int], Iterator[Batch]]
    validate: Callable[[State], dict[str, float]]
    throughput: Callable[[int], Throughput]
    subjects: Callable[[int], list[int]]
    about: dict
    frozen: Any = dataclasses.field(default_factory=dict)
    start: Callable[[State], State] = lambda state: state
    measure: Callable[[State, dict], tuple[State, dict[str, float]]] | None = None

    @property
    def name(self) -> str:
        """In the log: the last two parts of the folder."""
        return "/".join(self.folder.parts[-2:])


def fit(job: Job) -> tuple[State, int]:
    """Trains to config.steps, from the newest whole checkpoint in the folder, else from the start.

    Returns:
      (state, step reached).

    Raises:
      RunError: one of runtime/exit_codes.py's: the folder is in use or of another config, a signal, no room, no finite
        step.
    """
    config, mesh = job.config, job.mesh
    devices = mesh.devices.flat[0].device_kind, mesh.size
    with Supervision(job.folder, config, job.about, devices) as run:
        state = init_state(job.task, job.optimizer, config, mesh, job.seed)
        begin, state = run.resume(state)
        if not begin:
            state = job.start(state)
        last = config.steps if config.stop_after is None else min(config.steps, config.stop_after)
        if begin >= last or _is_over(job, state, begin):
            return state, begin
        logging.info("%s: steps %d to %d", job.name, begin, last)
        batches = job.batches(begin)
        step_fn = jit_step(job.task, job.optimizer, config, job.seed, state)
        run.begin(begin)
        if "best" in state and not begin:
            with run.part("validating"):
                state, _ = _validated(job, state, run, 0)
        reporter = _Reporter(run, job, begin)
        for step in reporter.steps(begin, last):
            waiting = time.perf_counter()
            over = False
            with run.part("data"):
                local = next(batches)
                reporter.throughput.add(local, time.perf_counter() - waiting)
                batch = sharding.device_batch(local, mesh)
            with run.part("step"):
                state, metrics = step_fn(state, job.frozen, batch)
                reporter.turn(step + 1, metrics)
                done, stop = step + 1, run.step_done(step + 1)
            if job.measure and (done % config.gradients_every == 0 or (done == 1 and config.weights_from_gradients)):
                with run.part("validating"):
                    state, found = job.measure(state, batch)
                    run.write(done, found)
            if done % config.validate_every == 0 or done == config.steps:
                with run.part("validating"):
                    state, over = _validated(job, state, run, done)
            over |= done == last
            if run.due(done, last) or stop or over:
                # logged first: a run killed after the checkpoint resumes behind this step
                with run.part("step"):
                    reporter.flush()
                if stop:
                    run.stop(done, state)
                run.save(done, state, last=over)
            if over:
                break
        logging.info("%s: %s", job.name, run.summary())
    return state, done


def _is_over(job, state, step):
    """Whether a run that was resumed had run out of patience."""
    if "best" not in state or not step:
        return False
    return step - int(state["best"]["step"]) >= job.config.patience * job.config.validate_every


def _validated(job, state, run, step):
    """Writes the validation losses; with patience keeps the best parameters and says whether to stop."""
    found = job.validate(state)
    run.write(step, found)
    if "best" not in state:
        return state, False
    loss = jnp.float32(found.get(MONITORED, jnp.nan))
    best = note_best(state["best"], jax.tree.map(jnp.copy, read_variables(state)), loss, state["step"])
    waited = step - int(best["step"])
    return state | {"best": best}, waited >= job.config.patience * job.config.validate_every


class _Reporter:
    """Logs metrics one step late, so that the devices are never waited for."""

    def __init__(self, run, job, begin) -> None:
        self._run, self._job = run, job
        self._pending: tuple[int, Any] | None = None
        self.throughput = job.throughput(begin)

    def steps(self, begin, last):
        """The numbers of the steps, with a progress bar on the first process."""
        self._bar = tqdm(
            range(begin, last),
            self._job.name,
            unit="step",
            initial=begin,
            total=self._job.config.steps,
            disable=True if jax.process_index() else None,
            mininterval=2,
        )
        return self._bar

    def turn(self, step, metrics):
        """Reports the step before and keeps this one's metrics."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self):
        """Reports what is kept: every log_every steps, and any step that was not finite or stands out."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        config = self._job.config
        if step % config.log_every == 0 or step == config.steps:
            values = {k: float(v) for k, v in jax.device_get(metrics).items()} | self.throughput.read(step)
            self._run.write(step, values)
            self._bar.set_postfix(loss=f"{values['loss/total']:.3f}", refresh=False)
        names = ("loss/total", "finite", "skipped")
        loss, finite, skipped = (float(x) for x in jax.device_get([metrics[k] for k in names]))
        self._run.judge(step, loss, finite == 1.0, int(skipped), lambda: self._job.subjects(step))
