"""Rows of random numbers that hold unequal numbers of targets, and a small joint model of every loss term for them."""

import numpy as np

from ehrwear_jax.models.joint import family
from ehrwear_jax.models.joint.batch import Facts, batch_spec
from ehrwear_jax.models.joint.config import MODALITIES, WEIGHTS, Config, ContextConfig, NetworkConfig
from ehrwear_jax.models.joint.terms import active, target_fields

EVERY_TERM = dict.fromkeys(WEIGHTS, (1.0, 1.0, 0))
FACTS = Facts(
    modalities=MODALITIES, vocabulary=9, steps=4, channels=1, derived=0, future_codes=3, history_tokens=2, n_horizons=2,
    future_rates=(0.1,) * 6, value_codes=3, raw_samples=4, raw_channels=1,
)  # fmt: skip
CONFIG = Config(
    context=ContextConfig(
        tokens=10, context_tokens=10, windows=2, queries=3, events=3, pairs=3, future_windows=2, horizons=(30, 90),
        future_codes=3, history_tokens=2, patch_steps=2, raw_segments="ppg", raw_windows=3, raw_parts=2,
    ),
    network=NetworkConfig(
        posterior="normal", width=8, n_layers=1, n_heads=2, mlp_width=8, token_width=4, align_width=4, time_features=4,
        wear_width=4, wear_layers=1, wear_heads=1, source_width=2, count_width=4, raw_width=4,
    ),
    weights=EVERY_TERM,
)  # fmt: skip


def spec_of(config=CONFIG, facts=FACTS):
    """The batches of a model of this config, were the data such."""
    return batch_spec(config.context, facts, target_fields(active(config, facts)))


def model_of(config=CONFIG, facts=FACTS):
    """(spec, network, objective)."""
    spec = spec_of(config, facts)
    return spec, family.network(spec, config), family.objective(spec, config)


SPEC = spec_of()


def make_batch(n_rows, spec=SPEC):
    """Random targets, few of them in the first rows, so that devices hold different numbers of terms."""
    rng = np.random.default_rng(0)
    batch, places = spec.empty(n_rows), {"window": "W", "step_window": "W", "query_window": "W", "raw_window": "W"}
    for name, field in spec.fields.items():
        shape = batch[name].shape
        if field.dtype is np.bool_:
            values = rng.random(shape) < 0.5
        elif field.dtype is np.float32:
            values = rng.normal(size=shape)
        else:
            values = rng.integers(0, max(min(3, spec.sizes[places[name]]), 1) if name in places else 3, shape)
        sparse = rng.random(shape) < np.linspace(0.1, 1.0, n_rows).reshape(-1, *(1,) * len(field.axes))
        batch[name] = np.where(sparse, values, batch[name]).astype(field.dtype)
    tokens = spec.sizes["T"]
    batch["token"] = rng.integers(0, spec.facts.vocabulary, batch["token"].shape).astype(np.int32)
    batch["modality"] = rng.integers(0, 3, batch["modality"].shape).astype(np.int32)
    batch["time"] = np.sort(np.abs(batch["time"]), axis=1)
    for name in ("age", "query_age", "event_mark_gap", "query_mark_gap"):  # lengths of time
        if name in batch:
            batch[name] = np.abs(batch[name])
    batch["kv_range"][..., 0], batch["kv_range"][..., 1] = 0, 1 + np.arange(tokens)
    batch["query_kv_range"][..., 0], batch["query_kv_range"][..., 1] = 0, tokens
    for name in ("event_pool", "query_pool"):  # from anywhere up to the last token: wearable ones too
        if name not in batch:
            continue
        batch[name][..., 0], batch[name][..., 1] = rng.integers(0, 3, batch[name].shape[:2]), tokens
    spec.check(batch, n_rows)
    return batch
