"""What the options of the joint model switch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_rows import CONFIG, make_batch

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import losses
from ehrwear_jax.models.joint.network import ModelConfig, MultimodalModel

N_TOKENS = 5
SHAPE = batch_lib.BatchShape(
    tokens=N_TOKENS, windows=0, steps=4, channels=0, patches=2, masked=1, events=1, queries=2, future_windows=1,
    future_codes=2, recalled_tokens=2,
)  # fmt: skip


def model(**options):
    return MultimodalModel(
        ModelConfig(
            vocabulary=6, steps=4, channels=0, patch_steps=2, future_windows=1, future_codes=2, horizons=1,
            later_rates=(0.1, 0.1), recalled_tokens=2, width=8, n_layers=1, n_heads=2, mlp_width=8, token_width=4,
            time_features=8, source_width=2, **options,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def batch():
    """One context of distinct codes; the first query knows all of it, the second its first three tokens."""
    batch = batch_lib.empty_batch(SHAPE, 1)
    batch["token"][:] = 3, 4, 5, 3, 4
    batch["modality"][:] = batch_lib.MODALITY_EHR
    batch["time"][:] = 0.0, 10.0, 30.0, 31.0, 90.0
    batch["age"][..., 0] = 9000.0 + batch["time"]
    batch["kv_range"][..., 1] = 1 + np.arange(N_TOKENS)
    batch["query_time"][:], batch["query_kv_range"][..., 1] = (95.0, 30.5), (5, 3)
    batch["query_age"][..., 0] = 9095.0, 9030.0
    return batch


def latents(options, batch):
    m = model(**options)
    params = jax.jit(lambda k: m.init(k, batch, method="encode"))(jax.random.key(0))["params"]
    encode = jax.jit(lambda b: m.apply({"params": params}, b, method="encode")[1])
    return params, encode


def test_without_width_there_are_no_decayed_counts(batch):
    with_counts, encode = latents({"count_width": 4}, batch)
    without, encode0 = latents({"count_width": 0}, batch)
    assert with_counts.keys() - without.keys() == {"counts"}
    assert np.isfinite(encode0(batch)).all() and np.isfinite(encode(batch)).all()
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(encode(batch), encode0(batch), atol=1e-3)


def test_a_long_shortest_period_hides_the_time_of_day(batch):
    later = {**batch, "query_age": batch["query_age"] + np.float32([0, 0.37])}
    shift = {}
    for period in (0.25, 1000.0):
        _, encode = latents({"shortest_period_days": period}, batch)
        shift[period] = np.abs(np.asarray(encode(later)) - np.asarray(encode(batch))).max()
    assert shift[0.25] > 0.05 and shift[1000.0] < 0.01 * shift[0.25]


# ------------------------------------------------------------------------- posterior, and terms that do not shape z


@pytest.fixture(scope="module")
def normal(batch):
    m = model(posterior="normal")
    params = m.init(jax.random.key(0), batch)["params"]
    apply = jax.jit(
        lambda key, b: m.apply({"params": params}, b, deterministic=False, rngs={"dropout": key})["next_logits_query"]
    )
    return m, params, apply


def test_z_is_drawn_while_training_and_its_mean_is_read_otherwise(batch, normal):
    m, params, apply = normal
    drawn = [np.asarray(apply(jax.random.key(i), batch)) for i in range(3)]
    assert np.std(drawn, axis=0).min() > 0
    out = m.apply({"params": params}, batch)
    np.testing.assert_array_equal(out["mean_query"], out["z_query"])
    np.testing.assert_allclose(out["z_query"], m.apply({"params": params}, batch, method="encode")[1], atol=1e-6)
    np.testing.assert_allclose(out["variance_query"], np.exp(-2.0), rtol=1e-5)
    assert out["prior_rate"].shape == out["prior_variance"].shape == (8,)


def test_a_posterior_that_there_is_not_is_refused(batch):
    with pytest.raises(ValueError, match="unknown posterior 'cauchy': point or normal"):
        model(posterior="cauchy").init(jax.random.key(0), batch)


@pytest.mark.parametrize("detached", [True, False])
def test_detached_cross_modal_terms_train_their_heads_and_nothing_before_them(detached):
    m = MultimodalModel(dataclasses.replace(CONFIG, detach_cross_modal=detached))
    batch = make_batch(4)
    for name in ("event_pool", "query_pool", "pair_near"):  # several windows to pool, several events to average
        batch[name][..., 0], batch[name][..., 1] = 0, batch["token"].shape[1]
    params = jax.jit(m.init)(jax.random.key(0), batch)["params"]

    @jax.jit
    def gradient(params):
        weights = dict.fromkeys(("wear_to_ehr", "ehr_to_wear", "contrast"), 1.0)
        return jax.grad(lambda p: losses.total(m.apply({"params": p}, batch), batch, weights)[0])(params)

    grads = jax.tree.map(lambda x: bool(jnp.any(x != 0)), gradient(params))
    heads = ("summary", "pool", "pool_mlp", "align")
    assert all(any(jax.tree.leaves(grads[name])) for name in heads)
    shaped = {name for name, found in grads.items() if any(jax.tree.leaves(found))} - {*heads, "pool_norm"}
    if detached:
        assert shaped == {"ehr"}, "the projection and bias of the scores"
        assert not any(grads["ehr"][name]["embedding"] for name in ("table", "value_table"))
        assert not any(jax.tree.leaves(grads["ehr"]["project"]))
    else:
        assert {"backbone", "wear", "ehr", "rho", "query"} <= shaped


@pytest.mark.parametrize(
    "options",
    [{"time_encoding": "gaussian"}, {"kernel": "none"}, {"kernel": "rational_quadratic"}, {"n_components": 8}],
)
def test_variants_give_other_finite_latents(batch, options):
    _, encode = latents({}, batch)
    params, encode_variant = latents(options, batch)
    z, z_variant = np.asarray(encode(batch)), np.asarray(encode_variant(batch))
    assert np.isfinite(z_variant).all() and np.abs(z - z_variant).max() > 1e-5
    if "n_components" in options:
        assert params["backbone"]["blocks"]["kernel"]["gamma"].shape == (1, 2, options["n_components"])


def test_day_bins_hide_the_hour_and_keep_the_day(batch):
    _, encode = latents({"day_bins": True}, batch)
    _, exact = latents({}, batch)

    def later(days):
        moved = {**batch, "time": batch["time"] + np.float32([0, 0, 0, days, 0])}
        moved["query_time"] = batch["query_time"] + np.float32([days, 0])
        whole = np.floor(batch["query_age"][..., :1] + days)
        return moved | {"query_age": np.concatenate([whole, np.full_like(whole, days % 1)], -1)}

    np.testing.assert_array_equal(encode(later(0.3)), encode(batch))
    assert np.abs(np.asarray(exact(later(0.3))) - np.asarray(exact(batch))).max() > 1e-4
    assert np.abs(np.asarray(encode(later(2.0))) - np.asarray(encode(batch))).max() > 1e-4


@pytest.mark.parametrize("pool", ["attention", "temporal"])
def test_day_bins_hide_the_hour_from_the_wearable_encoder_and_the_readout_too(pool):
    options = {"wear_span_days": 1.0, "pool": pool, "posterior": "point", "width": 8}
    batch = make_batch(4)
    for name in ("time", "query_time"):
        batch[name] = np.floor(batch[name]).astype(np.float32)
    batch["event_pool"][..., 0], batch["event_pool"][..., 1] = 0, 6
    moved = batch | {n: batch[n] + np.float32(0.4) for n in ("time", "query_time")}
    moved["time"] = batch["time"] + np.linspace(0.0, 0.9, 6, dtype=np.float32)  # in order, each within its day

    def difference(day_bins):
        m = MultimodalModel(dataclasses.replace(CONFIG, day_bins=day_bins, **options))
        params = jax.jit(m.init)(jax.random.key(0), batch)["params"]
        run = jax.jit(lambda b: m.apply({"params": params}, b))
        some, others = run(batch), run(moved)
        return max(float(np.abs(np.asarray(some[n]) - np.asarray(others[n])).max()) for n in some)

    assert difference(True) == 0.0
    assert difference(False) > 1e-4


def test_an_unknown_time_encoding_is_refused(batch):
    with pytest.raises(ValueError, match="config.model.time_encoding is 'rotary'; it can be log_linear or gaussian"):
        jax.eval_shape(model(time_encoding="rotary").init, jax.random.key(0), batch)
