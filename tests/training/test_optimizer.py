"""Weight decay where it belongs, micro-batches that add up to the batch, averaged weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_rows import CONFIG, FACTS, SPEC, make_batch, model_of
from small_model import random_params

from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.models.joint.config import WEIGHTS
from ehrwear_jax.models.joint.cross_terms import Contrast
from ehrwear_jax.models.objective import Ramp, WeightedTerms, n_true
from ehrwear_jax.training import optimizer, schedules

N_ROWS = 8
# `person` by itself: the random batch that it is part of has a gradient of 1.1 among such of 48 of the density of next
# values, which lose 1e-3 to rounding
TOGETHER = tuple(t for t in WEIGHTS if t not in ("contrast", "person"))


@pytest.fixture(scope="module")
def params():
    _, network, _ = model_of()
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), SPEC.empty(1)))["params"]
    return random_params(shapes)


def options(**changes):
    defaults = {"steps": 20, "batch_size": N_ROWS, "peak_learning_rate": 1e-2, "warmup_steps": 1}
    return TrainConfig(**defaults | changes)


def test_weight_decay_is_for_matrices_only(params):
    """Not for norms, biases, embeddings, the time kernel's beta and gamma, u_m or v_j."""
    decayed = {jax.tree_util.keystr(path, simple=True, separator="/"): on
               for path, on in jax.tree.leaves_with_path(optimizer.decayed(params))}  # fmt: skip
    block = "backbone/blocks/"
    for name in ("query/kernel", "key/kernel", "value/kernel", "out/kernel", "up/kernel", "down/kernel"):
        assert decayed[block + name], name
    for name in ("kernel/gamma", "kernel/beta", "modality_bias/tag", "modality_bias/projection", "modality_bias/offset",
                 "up/bias", "norm_attention/scale", "norm_mlp/bias"):  # fmt: skip
        assert not decayed[block + name], name
    for name in ("ehr/table/embedding", "ehr/value_table/embedding", "modality/embedding", "query",
                 "signal_decoder/horizon", "posterior/log_rate", "posterior/log_stationary",
                 "term_head_contrast/log_temperature", "counts/log_rate", "code_head/bias"):  # fmt: skip
        assert not decayed[name], name
    matrices = {jax.tree_util.keystr(p, simple=True, separator="/") for p, x in jax.tree.leaves_with_path(params)
                if x.ndim >= 2}  # fmt: skip
    assert {name for name, on in decayed.items() if on} <= matrices


def test_decay_shrinks_what_has_no_gradient_and_only_that(params):
    config = options(weight_decay=0.5)
    adamw = optimizer.make_optimizer(config)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(adamw.update)(zero, adamw.init(params), params)
    rate = schedules.learning_rate(1e-2, 1, 20)(0)

    def check(on, update, x):
        np.testing.assert_allclose(update, -rate * 0.5 * x if on else 0.0 * x, rtol=1e-5, atol=1e-12)

    jax.tree.map(check, optimizer.decayed(params), updates, params)


def test_gradients_are_clipped_at_their_global_norm():
    params = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    clip = optimizer.make_optimizer(options(clip_norm=1.0))
    state, big = clip.init(params), {"a": jnp.full(3, 3.0), "b": jnp.full(4, 4.0)}
    norm = np.sqrt(3 * 9 + 4 * 16)
    _, state = clip.update(big, state, params)
    moments = state[1][0].mu
    np.testing.assert_allclose(moments["a"], 0.1 * 3.0 / norm, rtol=1e-5)
    np.testing.assert_allclose(moments["b"], 0.1 * 4.0 / norm, rtol=1e-5)


@pytest.fixture(scope="module", params=[TOGETHER, ("person",)], ids=["together", "person"])
def results(request, params):
    """{n_micro: Summed} without dropout, of some terms, none of which is the contrast of other rows."""
    on = request.param
    weights = {t: (0.5 + 0.25 * i,) * 2 + (0,) if t in on else (0.0, 0.0, 0) for i, t in enumerate(WEIGHTS)}
    network = dataclasses.replace(CONFIG.network, posterior="normal" if "latent_kl" in on else "point")
    spec, network, objective = model_of(dataclasses.replace(CONFIG, network=network, weights=weights))
    batch = {k: jnp.asarray(v) for k, v in make_batch(N_ROWS, spec).items()}
    mine = {name: part for name, part in params.items() if name.removeprefix("term_head_") in on or "head_" not in name}

    def run(n_micro):
        whole = objective.normalisers(batch)

        def loss(params, collections, rows, key):
            value, metrics = objective(network.apply({"params": params}, rows), rows, objective.weights(0), whole)
            return value, (metrics, collections)

        return optimizer.summed_gradients(loss, (mine, {}), batch, jax.random.key(0), n_micro)

    return {n: jax.tree.map(np.asarray, jax.jit(run, static_argnums=0)(n)) for n in (1, 4)}


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch(results):
    """Rows hold unequal numbers of terms: a mean over micro-batches of their means would be another number."""
    (loss, metrics, grads, _), (loss_4, metrics_4, grads_4, _) = results[1], results[4]
    losses = {name: value for name, value in metrics.items() if name.startswith("loss/")}
    # the logarithm of a density has either sign
    assert all(value > 0 or (value and name == "loss/next_value") for name, value in losses.items())
    assert {name.removeprefix("loss/") for name in losses} in ({*TOGETHER, "total"}, {"person", "total"})
    np.testing.assert_allclose(loss_4, loss, rtol=1e-6)
    assert metrics.keys() == metrics_4.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics_4[name], metrics[name], rtol=1e-5, err_msg=name)
    # some gradients are zero but for rounding, such as that of a bias of all keys
    slack = 1e-6 * max(np.abs(g).max() for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=slack), grads_4, grads)
    batch = make_batch(N_ROWS)
    parts = [n_true(batch["masked_position"][i::4] >= 0) for i in range(4)]
    assert len(set(map(float, parts))) > 1


def test_in_micro_batches_contrast_has_the_negatives_of_its_part():
    """Eight rows, a pair and a patient each, all alike: log of the windows that a part compares."""
    unit = jnp.ones((8, 1, 4)) / 2.0
    batch = {"pair_patient": jnp.arange(8)[:, None], "unit": unit}
    objective = WeightedTerms((Contrast(FACTS, CONFIG),), {"contrast": Ramp(1.0, 1.0)})
    whole = objective.normalisers(batch)

    def loss(scale, collections, rows, key):
        out = {"ehr": rows["unit"] * scale, "wear": rows["unit"], "temperature": jnp.float32(0.1)}
        value, metrics = objective({"contrast": out}, rows, {"contrast": 1.0}, whole)
        return value, (metrics, collections)

    for n_micro in (1, 2, 4):
        found = optimizer.summed_gradients(loss, (jnp.float32(1.0), {}), batch, jax.random.key(0), n_micro)
        np.testing.assert_allclose(found.value, np.log(8 / n_micro), rtol=1e-5)
        assert found.metrics["contrast/negatives"] == 8 / n_micro - 1
        np.testing.assert_allclose(found.metrics["contrast/temperature"], 0.1, rtol=1e-6)


def test_each_micro_batch_has_rows_of_its_own_a_key_of_its_own_and_the_collections_before_it():
    """Row r is in part r % n_micro, so that each device gives its share of each."""

    def loss(params, collections, rows, key):
        noise = jax.random.normal(key, ())
        seen = collections["seen"] * 10 + rows["row"][0]
        metrics = {"rows": jnp.sum(rows["row"]), "noise": noise, "square": noise**2}
        return params * jnp.sum(rows["row"]), (metrics, {"seen": seen})

    batch, key = {"row": jnp.arange(1.0, 7.0)}, jax.random.key(3)
    variables = jnp.float32(2.0), {"seen": jnp.float32(0.0)}
    one, three = (optimizer.summed_gradients(loss, variables, batch, key, n) for n in (1, 3))
    assert one.value == three.value == 42 and one.gradient == three.gradient == 21
    assert one.metrics["rows"] == three.metrics["rows"] == 21
    assert one.collections["seen"] == 1 and three.collections["seen"] == 123
    noise = np.array([jax.random.normal(k, ()) for k in jax.random.split(key, 3)])
    np.testing.assert_allclose(three.metrics["noise"], noise.sum(), rtol=1e-5)
    np.testing.assert_allclose(three.metrics["square"], (noise**2).sum(), rtol=1e-5)
    assert len(set(noise.tolist())) == 3


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="a batch of 6 rows does not divide into 4 micro-batches"):
        optimizer.summed_gradients(lambda *_: (0.0, ({}, {})), (1.0, {}), {"a": jnp.zeros(6)}, jax.random.key(0), 4)


def test_the_average_forgets_the_start_and_follows_the_weights():
    averaged, by_hand = {"w": jnp.zeros(2)}, 0.0
    for step in range(200):
        value = 1.0 + 0.5 * (step % 2)
        averaged = optimizer.average(averaged, {"w": jnp.full(2, value)}, step, 0.9)
        decay = min(0.9, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * value
    np.testing.assert_allclose(averaged["w"], by_hand, rtol=1e-5)
    assert abs(by_hand - 1.25) < 0.05
