"""The joint family at the seam: flops by hand and by the compiler, sizes without data, adapters, every loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from joint_rows import assert_same, config_of, examples_of, row_of, rows_of
from random_rows import CONFIG, EVERY_TERM, FACTS, spec_of
from small_model import random_params

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.models.joint import family
from ehrwear_jax.models.joint.config import WEIGHTS, Config, ContextConfig, NetworkConfig

CONTEXT = {"tokens": 64, "windows": 32, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3,
           "future_windows": 3, "future_codes": 5, "pairs": 8, "colocated_days": 90.0, "masked_contexts": 1.0,
           "ehr_mask": 0.4}  # fmt: skip


def counts_of(**counts):
    return {"contexts": 1, "tokens": 0, "queries": 0, "windows": 0, "seen": 0} | counts


def flops_of(sizes, counts, facts=FACTS, context=None, **network):
    config = dataclasses.replace(
        CONFIG,
        network=dataclasses.replace(CONFIG.network, **network),
        context=dataclasses.replace(CONFIG.context, **(context or {})),
    )
    return family.flops(spec_of(config, facts), config, sizes, counts)


def test_the_formula_is_that_of_a_plain_transformer():
    """3 x the flops of the forward pass as the compiler counts them, with every token seeing every token."""
    n, width, hidden, layers = 64, 32, 128, 2
    rng = np.random.default_rng(0)
    params = [{"qkv": rng.normal(size=(width, 3 * width)), "out": rng.normal(size=(width, width)),
               "up": rng.normal(size=(width, hidden)), "down": rng.normal(size=(hidden, width))}
              for _ in range(layers)]  # fmt: skip

    def forward(params, x):
        for p in params:
            q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
            x = x + (q @ k.T) @ v @ p["out"]
            x = x + (x @ p["up"]) @ p["down"]
        return x

    counted = jax.jit(forward).lower(params, np.ones((n, width), np.float32)).compile().cost_analysis()["flops"]
    sizes = {"backbone": sum(x.size for x in jax.tree.leaves(params)), "term_head_future_codes": 10**9}
    of_ehr = dataclasses.replace(FACTS, modalities=("ehr",))
    counts = counts_of(tokens=n - 4, queries=4, windows=9, seen=n * n)
    found = flops_of(sizes, counts, of_ehr, width=width, n_layers=layers)
    assert found == pytest.approx(3 * counted, rel=0.02)


def test_patches_count_for_the_local_encoder():
    twelve = dataclasses.replace(FACTS, steps=12)
    found = flops_of({"backbone": 100, "wear": 7}, counts_of(windows=5), twelve, {"patch_steps": 4})
    assert found == 6 * 7 * 5 * 3


def test_a_model_of_assumed_data_has_the_sizes_that_are_asked_for():
    context = ContextConfig(tokens=4, context_tokens=4, windows=4, queries=2, events=2, future_windows=2,
                            horizons=(30, 90), future_codes=4, history_tokens=3, patch_steps=3)  # fmt: skip
    prepare = PrepareConfig(channels=("a", "b"), window_hours=6, step_minutes=30)
    spec, counts = family.assumed(Config(context=context), prepare, 50)
    assert [spec.sizes[a] for a in "TWLCPKR"] == [8, 4, 12, 2, 4, 4, 3]
    assert len(spec.facts.future_rates) == 8 and spec.facts.vocabulary == 50
    # a full row is counted as a batch would be: 36 keys of its tokens, 16 of its queries
    assert counts == {"contexts": 1, "tokens": 8, "queries": 2, "windows": 4, "seen": 36 + 16}
    for config, of in ((Config(modalities=("ehr",)), prepare), (Config(), PrepareConfig())):
        alone, counts = family.assumed(config, of, 50)
        assert alone.sizes["W"] == counts["windows"] == 0 and alone.facts.modalities == ("ehr",)


def test_raw_windows_and_quality_are_assumed_where_the_config_has_them():
    ppg = {"channels": ("ppg",), "rate_hz": 4.0, "seconds": 30.0}
    prepare = PrepareConfig(channels=("a",), segments={"ppg": ppg}, quality=True)
    context = ContextConfig(windows=4, raw_segments="ppg", raw_windows=8)
    config = Config(context=context, network=NetworkConfig(raw_width=4))
    spec, _ = family.assumed(config, prepare, 50)
    assert spec.shape("raw") == (8, 120, 1) and "quality" in spec.fields


def test_adapters_are_an_option_of_the_network():
    adapted = family.adapted(CONFIG, 3)
    assert adapted.network.adapter_width == 3
    assert dataclasses.replace(adapted, network=CONFIG.network) == CONFIG


def test_changed_examples_have_every_loss_and_validation_leaves_them_unchanged(packed_people):
    changes = {"wear_mask_kind": "channel", "patient_days": 1.0, "interest_codes": ("DX//",), "time_warp": 0.05,
               "noise": 0.2, "channel_dropout": 0.2, "drop_ehr": 0.2, "drop_wear": 0.2}  # fmt: skip
    small = {name: getattr(CONFIG.network, name) for name in (
        "width", "n_layers", "n_heads", "mlp_width", "token_width", "align_width", "time_features", "wear_width",
        "wear_layers", "wear_heads", "source_width", "count_width", "posterior")}  # fmt: skip
    config = config_of(CONTEXT | changes, weights=EVERY_TERM, **small)
    rows, plain = (
        examples_of(packed_people, CONTEXT | changes, augmented=augmented, weights=EVERY_TERM, **small)
        for augmented in (True, False)
    )
    network, objective = family.network(rows.spec, config), family.objective(rows.spec, config)
    params = random_params(jax.eval_shape(lambda: network.init(jax.random.key(0), rows.spec.empty(1)))["params"])

    @jax.jit
    def losses(batch):
        out = network.apply({"params": params}, batch)
        return objective(out, batch, objective.weights(0), objective.normalisers(batch))[1]

    values = [jax.device_get(losses({k: v[None] for k, v in row_of(rows, g).items()})) for g in range(6)]
    assert all(np.isfinite(v) for metrics in values for v in metrics.values())
    assert all(any(metrics[f"loss/{term}"] > 0 for metrics in values) for term in set(WEIGHTS) - {"raw_masked"})
    assert any(np.any(a["wear"] != b["wear"]) for a, b in zip(rows_of(rows, 1), rows_of(plain, 1), strict=True))
    store = small_run.store(packed_people, "train")
    held = family.examples(store, config, train=False)
    assert family.examples(store, config).augmented and not held.augmented
    assert_same(rows_of(held, 1), rows_of(plain, 1))
