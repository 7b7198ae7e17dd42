"""What the options of the joint network switch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_rows
from random_rows import CONFIG, EVERY_TERM, model_of
from small_model import random_params

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import network as network_lib
from ehrwear_jax.models.joint.batch import Facts
from ehrwear_jax.models.joint.config import WEIGHTS, Config, ContextConfig, NetworkConfig

N_TOKENS = 5
OF_EHR = Facts(modalities=("ehr",), vocabulary=6, steps=4, channels=0, derived=0, future_codes=2, history_tokens=2,
               n_horizons=1, future_rates=(0.1, 0.1))  # fmt: skip


def config(**network):
    """A model of EHR alone."""
    weights = {"latent_kl": (1.0, 1.0, 0)} if network.get("posterior", "point") != "point" else {}
    return Config(
        modalities=("ehr",),
        context=ContextConfig(tokens=N_TOKENS, context_tokens=N_TOKENS, queries=2, events=1, horizons=(30,),
                              future_codes=2, history_tokens=2, patch_steps=2),
        network=NetworkConfig(width=8, n_layers=1, n_heads=2, mlp_width=8, token_width=4, time_features=8,
                              source_width=2, **{"count_width": 4} | network),
        weights=weights,
    )  # fmt: skip


SPEC = random_rows.spec_of(config(), OF_EHR)


@pytest.fixture(scope="module")
def batch():
    """One context of distinct codes; the first query knows all of it, the second its first three tokens."""
    batch = SPEC.empty(1)
    batch["token"][:] = 3, 4, 5, 3, 4
    batch["modality"][:] = batch_lib.MODALITY_EHR
    batch["time"][:] = 0.0, 0.5, 1.5, 2.0, 3.0  # gaps for which kernels of about one a day differ
    batch["age"][..., 0] = 9000.0 + batch["time"]
    batch["kv_range"][..., 1] = 1 + np.arange(N_TOKENS)
    batch["query_time"][:], batch["query_kv_range"][..., 1] = (3.2, 1.7), (5, 3)
    batch["query_age"][..., 0] = 9003.0, 9001.0
    return batch


@functools.cache
def latents(**options):
    """(params, batch -> z of the queries), of parameters that networks with other options share."""
    _, network, _ = model_of(config(**options), OF_EHR)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), SPEC.empty(1), method="encode"))["params"]
    params = random_params(shapes)
    return params, jax.jit(lambda b: network.apply({"params": params}, b, method="encode"))


def distance(some, others):
    return np.abs(np.asarray(some, np.float64) - np.asarray(others, np.float64)).max()


def test_without_width_there_are_no_decayed_counts(batch):
    with_counts, encode = latents()
    without, encode0 = latents(count_width=0)
    assert with_counts.keys() - without.keys() == {"counts"}
    assert np.isfinite(encode0(batch)).all() and np.isfinite(encode(batch)).all()
    assert distance(encode(batch), encode0(batch)) > 1e-3


def test_a_long_shortest_period_hides_the_time_of_day(batch):
    later = {**batch, "query_age": batch["query_age"] + np.float32([0, 0.37])}
    shift = {}
    for period in (0.25, 1000.0):
        _, encode = latents(shortest_period_days=period)
        shift[period] = distance(encode(later), encode(batch))
    assert shift[0.25] > 0.05 and shift[1000.0] < 0.01 * shift[0.25]


def test_a_unit_of_an_hour_is_records_of_days_read_as_others_are_in_days(batch):
    """The same parameters, times 24 times as close: the same latents. Ages stay in days, and a span is one of days."""
    hourly = {**batch, **{name: batch[name] / np.float32(24.0) for name in ("time", "query_time")}}
    options = {"dtype": "float32", "wear_span_days": 1.0}
    _, in_days = latents(**options)
    _, in_hours = latents(**options | {"wear_span_days": 1 / 24, "time_unit_days": 1 / 24})
    np.testing.assert_allclose(in_hours(hourly), in_days(batch), atol=2e-5)
    assert distance(in_days(hourly), in_days(batch)) > 1e-3


@pytest.mark.parametrize(
    "options",
    [{"time_encoding": "gaussian"}, {"kernel": "none"}, {"kernel": "rational_quadratic"}, {"n_components": 8}],
)
def test_variants_give_other_finite_latents(batch, options):
    _, encode = latents()
    params, encode_variant = latents(**options)
    z, z_variant = np.asarray(encode(batch)), np.asarray(encode_variant(batch))
    assert np.isfinite(z_variant).all() and np.abs(z - z_variant).max() > 1e-5
    if "n_components" in options:
        assert params["backbone"]["blocks"]["kernel"]["gamma"].shape == (1, 2, options["n_components"])


def test_exact_cycles_tell_the_time_of_day_however_old_a_person_is():
    """The same hour of two days far apart is the same to their features, and another hour is not."""
    _, network, _ = model_of(config(cycles_days=(1.0, 7.0), shortest_period_days=1000.0), OF_EHR)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), SPEC.empty(1), method="encode"))
    params = random_params(variables["params"])
    kernel = np.zeros(params["rho"]["kernel"].shape, np.float32)
    assert kernel.shape[0] == 8 + 2 * 2
    day = [8 // 2, 8 // 2 + 2 + 8 // 2]  # sine and cosine of the period of a day
    kernel[day, [0, 1]] = 1.0
    params = params | {"rho": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(8)}}
    age = np.array([[[1.0, 0.25], [30_000.0, 0.25], [30_000.0, 0.75], [3.0, 0.25]]], np.float32)
    found = np.asarray(network.apply({"params": params}, age, method="_time"))[0, :, :2]
    np.testing.assert_allclose(found, [[1, 0], [1, 0], [-1, 0], [1, 0]], atol=1e-3)


def test_day_bins_hide_the_hour_and_keep_the_day(batch):
    _, encode = latents(day_bins=True)
    _, exact = latents()

    def later(days):
        moved = {**batch, "time": batch["time"] + np.float32([0, 0, 0, days, 0])}
        moved["query_time"] = batch["query_time"] + np.float32([days, 0])
        whole = np.floor(batch["query_age"][..., :1] + days)
        return moved | {"query_age": np.concatenate([whole, np.full_like(whole, days % 1)], -1)}

    np.testing.assert_array_equal(encode(later(0.3)), encode(batch))
    assert distance(exact(later(0.3)), exact(batch)) > 1e-4
    assert distance(encode(later(2.0)), encode(batch)) > 1e-4


# ------------------------------------------------------------------------- posterior, and terms that do not shape z


def test_z_is_drawn_while_training_and_its_mean_is_read_otherwise(batch):
    spec, network, _ = model_of(config(posterior="normal"), OF_EHR)
    params = random_params(jax.eval_shape(lambda: network.init(jax.random.key(0), spec.empty(1)))["params"])
    params["posterior"]["log_variance"] = {"kernel": jnp.zeros((8, 8)), "bias": jnp.full(8, -2.0)}
    run = jax.jit(lambda b, **options: network.apply({"params": params}, b, **options), static_argnames="deterministic")
    drawn = [
        np.asarray(run(batch, deterministic=False, rngs={"dropout": jax.random.key(i)})["future_codes"])
        for i in range(3)
    ]
    assert np.std(drawn, axis=0).min() > 0
    out = run(batch)
    state = out["latent_kl"]
    z = jax.jit(lambda b: network.apply({"params": params}, b, method="encode"))(batch)
    np.testing.assert_allclose(state["mean_query"], z, atol=1e-6)
    np.testing.assert_allclose(state["variance_query"], np.exp(-2.0), rtol=1e-5)
    assert state["prior_rate"].shape == state["prior_variance"].shape == (8,)
    np.testing.assert_array_equal(out["future_codes"], run(batch)["future_codes"])


@pytest.mark.parametrize("detached", [True, False])
def test_detached_cross_modal_terms_train_their_heads_and_nothing_before_them(detached):
    terms = ("wear_to_ehr", "ehr_to_wear", "contrast")
    network = dataclasses.replace(CONFIG.network, detach_cross_modal=detached, posterior="point")
    weights = {name: EVERY_TERM[name] if name in terms else (0.0, 0.0, 0) for name in WEIGHTS}
    spec, network, objective = model_of(dataclasses.replace(CONFIG, network=network, weights=weights))
    batch = random_rows.make_batch(4, spec)
    for name in ("event_pool", "query_pool", "pair_near"):  # several windows to pool, several events to average
        batch[name][..., 0], batch[name][..., 1] = 0, batch["token"].shape[1]
    params = random_params(jax.eval_shape(lambda: network.init(jax.random.key(0), spec.empty(1)))["params"])

    @jax.jit
    def gradient(params):
        def loss(params):
            out = network.apply({"params": params}, batch)
            return objective(out, batch, objective.weights(0), objective.normalisers(batch))[0]

        return jax.tree.map(lambda g: jnp.any(g != 0), jax.grad(loss)(params))

    grads = jax.device_get(gradient(params))
    heads = {f"term_head_{name}" for name in terms}
    assert all(any(jax.tree.leaves(grads[name])) for name in heads)
    shaped = {name for name, found in grads.items() if any(jax.tree.leaves(found))} - heads
    if detached:
        assert shaped == {"code_head"}, "the projection and bias of the scores, and not the table that they share"
    else:
        assert {"backbone", "wear", "ehr", "rho", "query"} <= shaped


@pytest.mark.parametrize("pool", ["attention", "temporal"])
def test_day_bins_hide_the_hour_from_the_wearable_encoder_and_the_readout_too(pool):
    terms = ("wear_masked", "wear_to_ehr")
    weights = {name: EVERY_TERM[name] if name in terms else (0.0, 0.0, 0) for name in WEIGHTS}

    def model(day_bins):
        options = {"wear_span_days": 1.0, "pool": pool, "posterior": "point", "day_bins": day_bins}
        network = dataclasses.replace(CONFIG.network, **options)
        return model_of(dataclasses.replace(CONFIG, network=network, weights=weights))

    spec = model(True)[0]
    batch = random_rows.make_batch(4, spec)
    for name in ("time", "query_time"):
        batch[name] = np.floor(batch[name]).astype(np.float32)
    batch["event_pool"][..., 0], batch["event_pool"][..., 1] = 0, N_TOKENS + 1
    moved = batch | {n: batch[n] + np.float32(0.4) for n in ("time", "query_time")}
    n_tokens = batch["time"].shape[1]
    moved["time"] = batch["time"] + np.linspace(0.0, 0.9, n_tokens, dtype=np.float32)  # in order, each within its day

    def difference(day_bins):
        _, network, _ = model(day_bins)
        params = random_params(jax.eval_shape(lambda: network.init(jax.random.key(0), spec.empty(1)))["params"])
        run = jax.jit(lambda b: network.apply({"params": params}, b))
        return max(jax.tree.leaves(jax.tree.map(distance, run(batch), run(moved))))

    assert difference(True) == 0.0
    assert difference(False) > 1e-4


def test_the_papers_network_has_no_way_to_attention_but_what_tokens_say_and_their_time(batch):
    params, encode = latents(count_width=0, stream=False, value_channel=False, query="hidden")
    assert params.keys() == {"ehr", "rho", "modality", "backbone"} and "value_table" not in params["ehr"]
    valued = {**batch, "value": np.full_like(batch["value"], 2.0)}
    assert distance(encode(valued), encode(batch)) == 0.0
    assert distance(latents()[1](valued), latents()[1](batch)) > 1e-3


@pytest.mark.parametrize("query", ["hidden", "learned"])
def test_a_query_begins_as_a_hidden_event_does_or_as_a_vector_of_its_own(batch, query):
    """What hidden events are is what masked modelling trains: the embedding of MASK, their modality."""
    options = config(query=query)
    _, network, _ = model_of(options, OF_EHR)
    params, _ = latents(query=query)
    z = {}
    for name in ("as it is", "masked", "query"):
        changed = jax.tree.map(jnp.asarray, params)
        if name == "masked":
            table = changed["ehr"]["table"]["embedding"]
            changed["ehr"]["table"]["embedding"] = table.at[batch_lib.MASK].add(1.0)
        if name == "query":
            changed["modality"]["embedding"] = changed["modality"]["embedding"].at[batch_lib.MODALITY_QUERY].add(1.0)
        z[name] = network.apply({"params": changed}, batch, method="encode")
    moved = distance(z["masked"], z["as it is"])
    assert moved > 1e-3 if query == "hidden" else moved == 0.0
    assert distance(z["query"], z["as it is"]) == 0.0


@pytest.mark.parametrize("posterior", ["normal", "sde"])
def test_draws_differ_and_without_noise_z_is_one(batch, posterior):
    """Of queries as they are embedded, and of an SDE, whose states the heads read, of tokens in a row."""
    spec, network, objective = model_of(config(posterior=posterior, sde_steps=2), OF_EHR)
    params = random_params(jax.eval_shape(lambda: network.init(jax.random.key(0), spec.empty(1)))["params"])
    batch = batch | {name: np.ones_like(batch[name]) for name in ("segment", "query_segment")}
    apply = jax.jit(lambda b, key: (
        network.apply({"params": params}, b, method="encode"),
        network.apply({"params": params}, b, method="encode_drawn", rngs={"dropout": key}),
        objective(network.apply({"params": params}, b), b, objective.weights(0), objective.normalisers(b))[1],
    ))  # fmt: skip
    (z, drawn, metrics), (again, other, _) = apply(batch, jax.random.key(0)), apply(batch, jax.random.key(1))
    np.testing.assert_array_equal(z, again)
    assert np.all(drawn != other) and np.all(drawn != z) and np.isfinite(drawn).all()
    assert metrics["latent_kl/token"] > 0 and metrics["latent_kl/query"] > 0


def test_the_noise_of_validation_is_one_for_all_rows_and_another_for_queries_than_for_tokens():
    """Else a query's noise would repeat that of the path before it, and the mean cost would be no divergence."""
    noise = network_lib._noise_of_places()
    tokens, queries = noise((3, 5, 2)), noise((3, 5, 2))
    np.testing.assert_array_equal(tokens, np.broadcast_to(tokens[:1], tokens.shape))
    assert np.all(tokens != queries)
