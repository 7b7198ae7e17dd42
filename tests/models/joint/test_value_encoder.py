"""What a value says beyond its bin, against numpy; how loud the parts of a token are at initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from joint_rows import examples_of, row_of
from scipy.stats import norm
from small_model import random_params

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import family, value_encoder
from ehrwear_jax.models.joint.encoders import EhrEmbedder

V, WIDTH, OUT, F = 7, 4, 6, 3
CONTEXT = {"tokens": 48, "windows": 16, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3}


def test_curves_are_the_normal_score_and_cosines_of_the_quantile():
    quantile = np.array([0.0, 0.01, 0.5, 0.975], np.float32)
    found = np.asarray(value_encoder.curves(quantile, 4))
    want = np.stack([norm.ppf(quantile[1:])] + [np.sqrt(2) * np.cos(np.pi * k * quantile[1:]) for k in (1, 2, 3)], 1)
    np.testing.assert_allclose(found[1:], want, atol=1e-4)
    assert not found[0].any(), "no value"


def test_the_embedding_adds_the_curves_as_the_token_mixes_them():
    module = EhrEmbedder(V, WIDTH, OUT, scale=3.0, value_features=F)
    rng = np.random.default_rng(0)
    token, value = rng.integers(0, V, (2, 5)), rng.normal(size=(2, 5)).astype(np.float32)
    quantile = rng.uniform(0.05, 0.95, (2, 5)).astype(np.float32)
    params = random_params(jax.eval_shape(module.init, jax.random.key(0), token, value, quantile)["params"])
    p = jax.tree.map(np.float64, params)
    mixed = np.asarray(value_encoder.curves(quantile, F)) @ p["curves"]["mix"]["kernel"]
    vector = p["table"]["embedding"][token] + value[..., None] * p["value_table"]["embedding"][token]
    vector += p["curves"]["gain"]["embedding"][token] * mixed
    want = 3.0 * vector @ p["project"]["kernel"] + p["project"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, token, value, quantile), want, atol=1e-4)


def test_rows_hold_quantiles_of_shown_values_where_the_network_reads_them(many_people):
    options = {"masked_contexts": 1.0, "ehr_mask": 0.4}
    rows = examples_of(many_people, CONTEXT | options, value_features=F)
    plain = examples_of(many_people, CONTEXT | options)
    assert rows.spec.fields.keys() - plain.spec.fields.keys() == {"quantile"}
    assert "quantile" not in examples_of(many_people, CONTEXT, modalities=("wear",), value_features=F).spec.fields
    n_valued, found = 0, []
    for g in range(rows.rows_per_epoch):
        row = row_of(rows, g)
        hidden, is_event = row["token"] == batch_lib.MASK, row["modality"] == batch_lib.MODALITY_EHR
        assert not row["quantile"][hidden | ~is_event].any()
        valued = row["quantile"] > 0
        assert np.all(valued[row["value"] != 0]) and np.all(row["quantile"][valued] < 1)
        n_valued += valued.sum()
        found.append(row["quantile"][valued])
    quantile = np.concatenate(found)
    assert n_valued > 200 and abs(quantile.mean() - 0.5) < 0.05 and quantile.std() == pytest.approx(12**-0.5, abs=0.05)


def parts_at_initialisation(rows, gain):
    """{part of an EHR token: root mean square over tokens and width} of a freshly initialised network."""
    network = family.network(rows.spec, rows.config)
    batch = rows.spec.empty(rows.rows_per_epoch)
    for g in range(rows.rows_per_epoch):
        rows.fill({k: v[g] for k, v in batch.items()}, g)
    found = {}

    def note(call, args, kwargs, about):
        out = call(*args, **kwargs)
        if about.method_name == "__call__" and about.module.name in ("ehr", "rho", "stream", "counts"):
            found.setdefault(about.module.name, out[0] if isinstance(out, tuple) else out)
        return out

    variables = network.init(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
    with nn.intercept_methods(note):
        network.apply(variables, batch, method="encode")
    real = batch["modality"] == batch_lib.MODALITY_EHR
    return {name: float(np.sqrt(np.mean(np.asarray(x)[real] ** 2))) for name, x in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "low", "high"), [(1.0, 0.0, 0.05), (50.0, 0.5, 3.0)])
def test_the_gain_lets_what_a_token_says_begin_as_loud_as_its_time(many_people, gain, low, high):
    rows = examples_of(many_people, CONTEXT, modalities=("ehr",), width=64, n_layers=1, n_heads=2, mlp_width=64,
                       token_width=32, time_features=32, count_width=16, embedding_scale=gain)  # fmt: skip
    parts = parts_at_initialisation(rows, gain)
    others = np.median([parts[name] for name in ("rho", "stream", "counts")])
    assert low < parts["ehr"] / others < high, parts
