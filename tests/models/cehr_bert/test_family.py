"""CEHR-BERT at the seam: flops by hand, sizes without data, and that it learns more than how frequent things are."""

import json
import runpy

import numpy as np
import pytest
import small_run
from cehr_cases import config_of
from motor_cases import batch_of
from repo import REPO

from ehrwear_jax.config import parse
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.sources.simulator import simulate
from ehrwear_jax.models.cehr_bert import family
from ehrwear_jax.training import compile_only, feed
from ehrwear_jax.training.pretrain import Model, pretrain


def test_flops_by_hand():
    """Three times two for each product, forward and backward; the decoder's keys and values once for each token."""
    config = config_of()
    spec, _ = family.assumed(config, PrepareConfig(), 50)
    sizes = {"backbone": 1000, "embedder": 10**9, "token_head": 10**9, "visit_decoder": 500}
    counts = {"tokens": 10, "seen": 40, "targets": 3, "visits": 2, "visit_seen": 12}
    d = config.width
    keys = 2 * 2 * 3 * d * config.n_layers * 40  # scores and sums
    embedder = 6 * 10 * ((d + 1) * d + (d + 3 * config.time_features) * d)
    head = 6 * 3 * (d * d + d * 50)
    decoder = 6 * (10 * 2 * d * d + 2 * (500 - 2 * d * d)) + 2 * 2 * 3 * d * 12
    assert family.flops(spec, config, sizes, counts) == 6 * 1000 * 10 + keys + embedder + head + decoder
    alone = config_of(visit_weight=0.0)
    spec, more = family.assumed(alone, PrepareConfig(), 50)
    assert family.flops(spec, alone, sizes, counts) == 6 * 1000 * 10 + keys + embedder + head and "visits" not in more


def test_a_model_of_assumed_data_has_the_sizes_that_are_asked_for():
    config = config_of()
    spec, counts = family.assumed(config, PrepareConfig(), 50)
    parts = compile_only.parameters(Model("cehr_bert", "cehr_bert", config), spec)
    assert parts["token_head"] == 50 + config.width**2 + 3 * config.width and spec.facts.tokens == 50
    one = sum(x.nbytes for x in spec.empty(1).values())
    assert one == 46 * config.tokens + 8 * config.sites + 28 * config.visits
    n = config.context_tokens
    assert counts["tokens"] == 2 * n and counts["seen"] == 2 * n * n and counts["visits"] == 4


def test_examples_of_training_and_validation_are_alike(people):
    """What is hidden is drawn the same way: validation is the loss of what is hidden."""
    store = small_run.store(people, "train")
    rows = [batch_of(family.examples(store, config_of(), 3, train), [0]) for train in (True, False)]
    for name in rows[0]:
        np.testing.assert_array_equal(rows[0][name], rows[1][name])


def frequencies(batches, n, target):
    """-log share of each target, one added to each: float64 [n]."""
    count = np.ones(n)
    for batch in batches:
        count += np.bincount(batch[target][batch[target] >= 0], minlength=n)
    return -np.log(count / count.sum())


@pytest.mark.slow
def test_it_learns_more_than_how_frequent_tokens_and_types_of_visits_are(tmp_path):
    """On the simulated cohort, validation losses below those of training shares of what is hidden.

    Seen of hidden tokens after 60 steps: 3.79 nats, against 3.82.
    """
    config = runpy.run_path(str(REPO / "configs" / "tiny.py"))["get_config"]("cehr_bert")
    config.simulate.n_subjects = 360
    config.train.update({"steps": 120, "validate_every": 120, "validate_batches": 4})
    run = parse(config)
    simulate.simulate(tmp_path / "raw", run.simulate)
    store = small_run.store(small_run.prepare(tmp_path, tmp_path / "raw", run.prepare))
    model = Model(**run.model("cehr_bert", 0))
    pretrain(tmp_path / "cehr_bert", model, store)
    lines = [json.loads(x) for x in (tmp_path / "cehr_bert" / "metrics.jsonl").read_text().splitlines()]
    learned = next(x for x in reversed(lines) if "validation/loss/total" in x)

    examples = model.module.examples(store.view("train"), model.config, 0)
    facts, table = examples.fitted.facts, examples.fitted.table
    assert table.is_discharge_C.any() and facts.visit_types == 5, "stays, admissions and clinic visits"
    held = model.module.examples(store.view("tuning"), model.config, 0, train=False)
    n = min(4, max(1, held.rows_per_epoch // 8))
    for name, target, size in (("masked_tokens", "target", facts.tokens),
                               ("visit_types", "visit_target", facts.visit_types)):  # fmt: skip
        cost = frequencies(feed.train_batches(examples, 8, n_steps=20, threads=0), size, target)
        batches = list(feed.train_batches(held, 8, n_steps=n, threads=0))
        trivial = np.mean(np.concatenate([cost[b[target][b[target] >= 0]] for b in batches]))
        print(f"{name}: {learned[f'validation/loss/{name}']:.3f} nats after 120 steps, {trivial:.3f} by frequency")
        assert learned[f"validation/loss/{name}"] < trivial, name
