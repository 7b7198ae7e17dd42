"""MOTOR at the seam: flops by hand, sizes without data, and that it learns what constant hazards do not know."""

import json
import runpy

import jax
import numpy as np
import pytest
import small_run
from motor_cases import batch_of, config_of
from repo import REPO

from ehrwear_jax.config import parse
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.sources.simulator import simulate
from ehrwear_jax.models.motor import family
from ehrwear_jax.training import compile_only, feed
from ehrwear_jax.training.pretrain import Model, pretrain


def test_flops_by_hand():
    """Three times two for each product, forward and backward; a place's codes once for each piece of time."""
    config = config_of()
    spec, _ = family.assumed(config, PrepareConfig(), 50)
    sizes = {"backbone": 1000, "dictionary": 10**9, "head": 10**9}
    found = family.flops(spec, config, sizes, {"tokens": 10, "seen": 40, "sites": 3})
    keys = 2 * 2 * 3 * config.width * config.n_layers * 40  # scores and sums
    head = 6 * 3 * (3 * config.width * config.task_width + 3 * config.task_width * spec.facts.tasks)
    assert found == 6 * 1000 * 10 + keys + head


def test_a_model_of_assumed_data_has_the_sizes_that_are_asked_for():
    config = config_of(tasks=40)
    spec, counts = family.assumed(config, PrepareConfig(), 50)
    parts = compile_only.parameters(Model("motor", "motor", config), spec)
    assert parts["dictionary"] == 50 * config.width and spec.facts.tasks == 40
    full = spec.empty(1)
    full["segment"][:] = 1
    position = np.arange(config.tokens)
    full["kv_range"][0] = np.stack([np.maximum(0, position + 1 - config.attention_window), position + 1], axis=1)
    assert counts["seen"] == np.diff(full["kv_range"]).sum() and counts["tokens"] == config.tokens
    assert len(family.assumed(config, PrepareConfig(), 7)[0].facts.rates) == 7, "no more codes than entries"


def constant_hazards(batches, facts):
    """log hazard [K, C] of each code and piece of time: events over exposure, one event added to each."""
    bounds = np.array([*facts.bin_days, np.inf])
    events, days = np.zeros((2, len(bounds) - 1, facts.tasks))
    for batch in batches:
        event = np.full((*batch["site"].shape, facts.tasks), np.inf)
        r, p = np.nonzero(batch["pair_site"] >= 0)
        event[r, batch["pair_site"][r, p], batch["pair_task"][r, p]] = batch["pair_days"][r, p]
        real = batch["site_days"] > 0
        event, end = event[real], batch["site_days"][real][:, None]
        for k, (begin, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
            days[k] += np.clip(np.minimum(event, end) - begin, 0, stop - begin).sum(0)
            events[k] += ((event >= begin) & (event < stop)).sum(0)
    return np.log((events + 1) / (days + 1 / np.asarray(facts.rates)))


@pytest.mark.slow
def test_it_learns_more_than_constant_hazards(tmp_path):
    """On the simulated cohort, validation loss below that of each code's rate in each piece of time.

    Seen of 360 people after 60 steps: 148.4 nats a place, against 153.6, and 165.8 of one rate for all pieces.
    """
    config = runpy.run_path(str(REPO / "configs" / "tiny.py"))["get_config"]("motor")
    config.simulate.n_subjects = 360
    config.train.update({"steps": 80, "validate_every": 80, "validate_batches": 4})
    run = parse(config)
    simulate.simulate(tmp_path / "raw", run.simulate)
    store = small_run.store(small_run.prepare(tmp_path, tmp_path / "raw", run.prepare))
    model = Model(**run.model("motor", 0))
    pretrain(tmp_path / "motor", model, store)
    lines = [json.loads(x) for x in (tmp_path / "motor" / "metrics.jsonl").read_text().splitlines()]
    learned = next(x["validation/loss/total"] for x in reversed(lines) if "validation/loss/total" in x)

    examples = model.module.examples(store.view("train"), model.config, 0)
    log_hazard = constant_hazards(feed.train_batches(examples, 8, n_steps=20, threads=0), examples.fitted.facts)
    held = model.module.examples(store.view("tuning"), model.config, 0, train=False)
    network, objective = (f(held.spec, model.config) for f in (family.network, family.objective))
    n = min(4, max(1, held.rows_per_epoch // 8))
    losses = []
    for batch in feed.train_batches(held, 8, n_steps=n, threads=0):
        variables = jax.eval_shape(lambda b=batch: network.init(jax.random.key(0), b))["params"]
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), variables)
        zeros["head"]["bias"] = log_hazard.astype(np.float32)
        out = network.apply({"params": zeros}, batch)
        losses.append(float(objective(out, batch, {"time_to_event": 1.0}, objective.normalisers(batch))[0]))
    assert learned < 0.99 * np.mean(losses), (learned, np.mean(losses))


def test_examples_of_training_and_validation_are_alike(people):
    """Nothing is hidden or changed: the same rows."""
    store = small_run.store(people, "train")
    rows = [batch_of(family.examples(store, config_of(), 3, train), [0]) for train in (True, False)]
    for name in rows[0]:
        np.testing.assert_array_equal(rows[0][name], rows[1][name])
