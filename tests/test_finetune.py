"""Fine-tuning: it starts as the frozen probe, changes what its mode says and nothing else, and sees no future."""

import dataclasses
import itertools
from datetime import datetime, timedelta

import cohort
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import traverse_util

from ehrwear_jax import batch as batch_lib
from ehrwear_jax import finetune, sharding, train
from ehrwear_jax.data import pipeline
from ehrwear_jax.evals import cox, probes
from ehrwear_jax.finetune import FinetuneConfig

CONTEXT = {"tokens": 40, "windows": 14, "context_tokens": 40, "queries": 4, "events": 4, "patch_steps": 3,
           "future_windows": 1, "future_codes": 3, "recalled_tokens": 4}  # fmt: skip
MODEL = {"width": 8, "n_layers": 2, "n_heads": 2, "mlp_width": 16, "token_width": 8, "time_features": 8,
         "wear_width": 8, "wear_layers": 1, "wear_heads": 2, "source_width": 4, "n_components": 2,
         "count_width": 4}  # fmt: skip
MODES = ("head", "lora", "adapter", "full")
ROWS = 3  # no divisor of the devices: one is enough


def config(mode, **options):
    defaults = {"steps": 4, "batch_size": ROWS, "validate_every": 2, "warmup_steps": 2, "rank": 2, "alpha": 4.0,
                "adapter_width": 3, "learning_rate": 1e-2, "full_learning_rate": 1e-2}  # fmt: skip
    return FinetuneConfig(mode, **defaults | options)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = cohort.prepare_cohort(cohort.write_cohort(tmp_path_factory.mktemp("cohort"), 40), step_minutes=60)
    return pipeline.Patients(root / "all", pipeline.ContextConfig(**CONTEXT))


@pytest.fixture(scope="module")
def params(people):
    """Weights far from zero, so that nothing hides behind a small initial scale."""
    model, example = train.make_model(people, MODEL), batch_lib.empty_batch(people.batch_shape(), 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([rng.normal(0.05, 0.3, x.shape).astype(x.dtype) for x in leaves])


@pytest.fixture(scope="module")
def encode(people, params):
    return train.make_encoder(people, MODEL, params)


@pytest.fixture(scope="module")
def reads(people):
    """{task: {split: reads with labels}}: whether a person has had E11 by then, which a frozen random model blurs."""
    split = dict(people.index.select("subject_id", "split").iter_rows())
    rng, rows = np.random.default_rng(0), []
    code = people.vocabulary.tokens["code"].to_list()
    for i, subject in enumerate(people.index["subject_id"].to_list()):
        person = people[i]
        for day in (150, 300, 450):
            time = datetime(2015, 1, 1) + timedelta(days=day)
            us = int((time - datetime(1970, 1, 1)).total_seconds() * 1e6)
            known = [code[v] for v, t in zip(person.event_token_K, person.event_time_K, strict=True) if t <= us]
            has = "DX//E11" in known
            rows.append((subject, time, has, float(rng.integers(1, 30) + 40 * (not has)), bool(rng.random() < 0.8)))
    names = ["subject_id", "prediction_time", "boolean_value", "time_to_event_days", "event_observed"]
    table = pl.DataFrame(rows, names, orient="row").with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    table = table.with_columns(split=pl.col("subject_id").replace_strict(split))
    binary, survival = names[:3], [*names[:2], *names[3:]]
    return {
        task: {s: table.filter(pl.col("split") == s).select(columns) for s in ("train", "tuning", "held_out")}
        for task, columns in (("binary", binary), ("survival", survival))
    }


@pytest.fixture(scope="module")
def z(people, encode, reads):
    return {s: train.embed(encode, people, table, ROWS) for s, table in reads["binary"].items()}


def flat(tree):
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


@pytest.fixture(scope="module")
def found(people, params, reads, z):
    """{mode: Finetuned} of a few fast steps; every look at the tuning split is a better one."""
    out, before = {}, finetune._evaluate
    losses = itertools.count(0, -1)
    finetune._evaluate = lambda *_: float(next(losses))
    try:
        for mode in MODES:
            out[mode] = finetune.finetune(people, params, MODEL, reads["binary"], z, config(mode))
    finally:
        finetune._evaluate = before
    return out


def test_every_mode_runs(found):
    assert {m: f.n_trained for m, f in found.items()} == {}
