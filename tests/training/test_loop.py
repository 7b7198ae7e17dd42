"""The loop of any task: it goes on where it was, ends when it should, and keeps the best if it is to."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from toy_families import pooled

from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.runtime import checkpoint_manifest, run_dir
from ehrwear_jax.training import feed, sharding, step
from ehrwear_jax.training.loop import Job, fit
from ehrwear_jax.training.optimizer import make_optimizer
from ehrwear_jax.training.pretrain import Model, make_task
from ehrwear_jax.training.throughput import TIMINGS, Throughput

EXAMPLES = pooled.examples(pooled.Store(split="train"), pooled.Config())
STEPS, ROWS = 8, 16
# with micro-batches and averaged weights, which a checkpoint holds beside those that are trained, and batch norm
OPTIONS = {"steps": STEPS, "batch_size": ROWS, "accumulate": 2, "ema_decay": 0.9, "peak_learning_rate": 1e-2,
           "warmup_steps": 1, "log_every": 1, "validate_every": 2, "checkpoint_every": 3}  # fmt: skip


def job_in(folder, validate=lambda state: {}, **options):
    """A run of the pooled family in a folder."""
    config, mesh = TrainConfig(**OPTIONS | options), sharding.make_mesh()
    model = Model("pooled", "toy_families.pooled", pooled.Config(), config)
    about = {k: v for k, v in model.identity().items() if k != "train"}
    return Job(
        folder=folder,
        task=make_task(model, EXAMPLES.spec, mesh),
        optimizer=make_optimizer(dataclasses.replace(config, stop_after=None)),
        config=config,
        seed=0,
        mesh=mesh,
        batches=lambda begin: feed.train_batches(EXAMPLES, ROWS, start_step=begin, threads=0),
        validate=validate,
        throughput=lambda begin: Throughput(EXAMPLES.counts, lambda counts: 0.0, mesh, begin),
        subjects=lambda done: EXAMPLES.subjects(range((done - 1) * ROWS, done * ROWS)),
        about=about | {"data": "none"},
    )


def lines(folder):
    """What was logged, without what is measured by the clock."""
    found = run_dir.read_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in x.items() if k not in TIMINGS} for x in found]


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(two))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(state, what was logged) of a run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    state, done = fit(job_in(folder))
    assert done == STEPS
    return state, lines(folder)


def test_a_run_in_parts_is_the_run_in_one(whole, tmp_path):
    """Every bit of the state, and every loss: stopped before, on and after a checkpoint."""
    for stop in (2, 3, 5, None):
        state, done = fit(job_in(tmp_path, stop_after=stop))
        assert done == (stop or STEPS)
        assert checkpoint_manifest.steps(tmp_path / "checkpoints")[-1] == done
    same(state, whole[0])
    assert lines(tmp_path) == whole[1]
    logged = [x["loss/total"] for x in whole[1] if "loss/total" in x]
    assert len(set(logged)) == STEPS and logged[-1] < logged[0]
    assert all(np.any(x) for x in jax.tree.leaves(jax.device_get(state["collections"]))), "the statistics have moved"
    # a finished run does nothing more
    again, done = fit(job_in(tmp_path))
    assert done == STEPS and lines(tmp_path) == whole[1]
    same(again, state)


def test_a_new_run_is_started_by_its_start_and_a_resumed_one_is_not(whole, tmp_path):
    calls = []

    def start(state):
        calls.append(int(state["step"]))
        return state | {"params": jax.tree.map(lambda x: x + 1.0, state["params"])}

    for stop in (4, None):
        state, _ = fit(dataclasses.replace(job_in(tmp_path, stop_after=stop), start=start))
    assert calls == [0]
    other = jax.tree.map(lambda a, b: bool(np.any(a != b)), *jax.device_get((state["params"], whole[0]["params"])))
    assert all(jax.tree.leaves(other))


def test_metrics_and_validation_are_written_when_they_are_due(tmp_path):
    seen = []

    def validate(state):
        seen.append(int(state["step"]))
        return {"validation/loss/total": float(state["step"])}

    fit(job_in(tmp_path, validate, log_every=3, validate_every=3))
    assert seen == [3, 6, 8], "and at the end"
    found = lines(tmp_path)
    assert [x["step"] for x in found if "validation/loss/total" in x] == seen
    assert [x["step"] for x in found if "loss/total" in x] == [3, 6, 8]


# ------------------------------------------------------------------------------------------------ patience


class Script:
    """Validation losses by the step, in the place of a tuning split."""

    def __init__(self, losses):
        self.losses, self.seen = losses, []

    def __call__(self, state):
        at = int(state["step"])
        self.seen.append((at, jax.device_get(step.read_variables(state))))
        return {"validation/loss/total": self.losses[at]}


# looks every 2 steps, of which two without a lower loss end it: at step 4 the best, NaN is no lower loss
LOSSES = {0: 0.9, 2: 0.8, 4: 0.5, 6: float("nan"), 8: 0.5, 10: 0.1, 12: 0.0}
PATIENT = {"steps": 12, "patience": 2}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """(state, script, what was logged) of a run that runs out of patience."""
    folder, script = tmp_path_factory.mktemp("ended"), Script(LOSSES)
    state, done = fit(job_in(folder, script, **PATIENT))
    assert done == 8
    return state, script, lines(folder)


def test_a_run_ends_when_no_look_was_better_and_keeps_the_best(ended):
    state, script, logged = ended
    assert [at for at, _ in script.seen] == [0, 2, 4, 6, 8], "the first look is before the first step"
    assert int(state["best"]["step"]) == 4 and state["best"]["loss"] == np.float32(0.5)
    same(state["best"]["variables"], dict(script.seen)[4])
    same(step.best_variables(state), dict(script.seen)[4])
    last = dict(script.seen)[8]
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), *jax.device_get((step.best_variables(state), last)))
    assert all(jax.tree.leaves(moved)), "training went on behind the best step, statistics too"
    assert [x["step"] for x in logged if "validation/loss/total" in x] == [0, 2, 4, 6, 8]


FURTHER = [pytest.param(s, marks=pytest.mark.slow) for s in ((4, 5), (6,), (7,))]


@pytest.mark.parametrize("stops", [(3,), (1, 2, 4, 6, 7), *FURTHER])
def test_patience_survives_a_resume(ended, tmp_path, stops):
    """What is the best, and how long it was waited for, does not depend on where the run was stopped."""
    for stop in (*stops, None):
        script = Script(LOSSES)
        state, done = fit(job_in(tmp_path, script, stop_after=stop, **PATIENT))
        assert done == (stop or 8)
    same(state, ended[0])
    assert [x for x in lines(tmp_path) if "loss/total" in x] == [x for x in ended[2] if "loss/total" in x]


def test_a_run_whose_patience_is_over_stays_so(ended, tmp_path):
    fit(job_in(tmp_path, Script(LOSSES), **PATIENT))
    script = Script(LOSSES)
    state, done = fit(job_in(tmp_path, script, **PATIENT))
    assert done == 8 and script.seen == []
    same(state, ended[0])


def test_a_run_that_goes_on_getting_better_is_done_to_its_end(tmp_path):
    falling = itertools.count(0, -1)
    state, done = fit(job_in(tmp_path, lambda state: {"validation/loss/total": float(next(falling))}, patience=1))
    assert done == STEPS and int(state["best"]["step"]) == STEPS
    same(state["best"]["variables"], step.read_variables(state))
