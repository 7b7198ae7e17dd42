"""Supervised from scratch: it begins with what pretraining would have begun with, and learns all of it."""

import dataclasses

import jax
import numpy as np
import polars as pl
import pytest
from toy_families import pooled

from ehrwear_jax.config.training import FinetuneConfig, TrainConfig
from ehrwear_jax.training import embedding, finetune, scratch, sharding, step
from ehrwear_jax.training.optimizer import make_optimizer
from ehrwear_jax.training.pretrain import Model, make_task

STORE = pooled.Store(n_subjects=64)
CONFIG = FinetuneConfig(steps=2, batch_size=8, validate_every=4, warmup_steps=1, patience=1, full_learning_rate=0.0,
                        scratch_steps=24, scratch_learning_rate=3e-2, scratch_patience=9)  # fmt: skip
MODEL = Model("toy", "toy_families.pooled", pooled.Config(), TrainConfig(steps=10, batch_size=16), seed=3)


@pytest.fixture(scope="module")
def times():
    """{split: two labelled times of everybody}: is the mean of the first feature far from zero?"""
    rng, rows = np.random.default_rng(0), []
    for i in range(STORE.n_subjects):
        at, x, _ = STORE.record(i)
        for time in rng.integers(100 * pooled.DAY_US, 250 * pooled.DAY_US, 2) if len(at) else ():
            known = x[at <= time][:, 0]
            if len(known):
                rows.append((100 + i, int(time), bool(abs(known.mean()) > 0.3), pooled.SPLITS[i % 4]))
    table = pl.DataFrame(rows, ["subject_id", "prediction_time", "boolean_value", "split"], orient="row")
    table = table.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    return {s: table.filter(split=s).drop("split") for s in ("train", "tuning")}


@pytest.fixture(scope="module")
def source(times):
    return scratch.source(MODEL, STORE, times, CONFIG.batch_size)


def leaves(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def test_it_begins_with_what_pretraining_begins_with(source, times):
    """By the seed, whatever the options of pretraining are."""
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    task = make_task(MODEL, source.examples.spec, mesh)
    begun = step.init_state(task, make_optimizer(MODEL.train), MODEL.train, mesh, MODEL.seed)
    assert leaves(source.variables["params"]) == leaves(begun["params"])
    other = dataclasses.replace(MODEL, train=TrainConfig(steps=99, peak_learning_rate=1.0, ema_decay=0.5))
    again = scratch.source(other, STORE, times, CONFIG.batch_size)
    assert leaves(again.variables) == leaves(source.variables) and again.model == source.model
    assert leaves(again.z_by_split) == leaves(source.z_by_split)
    reseeded = scratch.source(dataclasses.replace(MODEL, seed=4), STORE, times, CONFIG.batch_size)
    assert leaves(reseeded.variables["params"]) != leaves(source.variables["params"])


def test_all_that_z_depends_on_learns_with_the_options_of_its_own(source, tmp_path):
    config = scratch.options_of(CONFIG, "scratch")
    found = finetune.finetune(tmp_path, source, config, "scratch")
    network = source.model.module.network(source.examples.spec, source.model.config)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), source.examples.spec.empty(1), method="encode"))
    assert found.n_trained["model"] == sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert found.last_step == 24 and found.best_step > 0 and found.drift > 1e-2
    before = finetune.tuning_loss(finetune.fit_probe(source.times, source.z_by_split), source.z_by_split["tuning"],
                                  source.times["tuning"])  # fmt: skip
    z_NxD = embedding.embed(found.encode, source.examples, source.times["tuning"], 8)
    after = finetune.tuning_loss(found.probe, z_NxD, source.times["tuning"])
    assert after < before - 0.02


def test_its_options_are_no_others(times):
    assert scratch.options_of(CONFIG, "full") == CONFIG
    mine = scratch.options_of(CONFIG, "scratch")
    assert (mine.steps, mine.full_learning_rate, mine.patience) == (24, 3e-2, 9)
    assert dataclasses.replace(mine, steps=2, full_learning_rate=0.0, patience=1) == CONFIG
