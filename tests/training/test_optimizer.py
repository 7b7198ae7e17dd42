"""Weight decay where it belongs, micro-batches that add up to the batch, averaged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_rows import CONFIG, SHAPE, make_batch

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import losses
from ehrwear_jax.models.joint.network import MultimodalModel
from ehrwear_jax.training import optimizer, schedules, train

N_ROWS = 8


@pytest.fixture(scope="module")
def params():
    return jax.jit(MultimodalModel(CONFIG).init)(jax.random.key(0), batch_lib.empty_batch(SHAPE, 1))["params"]


def options(**changes):
    defaults = {"steps": 20, "batch_size": N_ROWS, "peak_learning_rate": 1e-2, "warmup_steps": 1, "weights": {}}
    return train.TrainConfig(**defaults | changes)


def test_weight_decay_is_for_matrices_only(params):
    """Not for norms, biases, embeddings, the time kernel's beta and gamma, u_m or v_j."""
    decayed = {jax.tree_util.keystr(path, simple=True, separator="/"): on
               for path, on in jax.tree.leaves_with_path(optimizer.decayed(params))}  # fmt: skip
    block = "backbone/blocks/"
    for name in ("query/kernel", "key/kernel", "value/kernel", "out/kernel", "up/kernel", "down/kernel"):
        assert decayed[block + name], name
    for name in ("kernel/gamma", "kernel/beta", "modality_tag", "source/kernel", "source/bias", "up/bias",
                 "norm_attention/scale", "norm_mlp/bias"):  # fmt: skip
        assert not decayed[block + name], name
    for name in ("ehr/table/embedding", "ehr/value_table/embedding", "modality/embedding", "query",
                 "decoder/horizon", "posterior/log_rate", "posterior/log_stationary", "align/log_temperature",
                 "counts/log_rate"):  # fmt: skip
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


@pytest.fixture(scope="module")
def results(params):
    """{n_micro: ((loss, metrics), gradient)} without dropout, of all terms but the contrast of other rows."""
    model = MultimodalModel(CONFIG)
    batch = {k: jnp.asarray(v) for k, v in make_batch(N_ROWS).items()}
    weights = {t: 0.5 + 0.25 * i for i, t in enumerate(losses.TERMS) if t != "contrast"}

    def run(n_micro):
        whole = losses.normalisers(batch, weights, CONFIG.horizons)

        def objective(params, rows, key):
            return losses.total(model.apply({"params": params}, rows), rows, weights, whole)

        return optimizer.summed_gradients(objective, params, batch, jax.random.key(0), n_micro)

    return {n: jax.tree.map(np.asarray, jax.jit(run, static_argnums=0)(n)) for n in (1, 4)}


def test_micro_batches_add_up_to_the_batch(results):
    """Rows hold unequal numbers of terms: a mean over micro-batches of their means would be another number."""
    ((loss, metrics), grads), ((loss_4, metrics_4), grads_4) = results[1], results[4]
    assert all(metrics[f"loss/{t}"] > 0 for t in losses.TERMS if t != "contrast")
    np.testing.assert_allclose(loss_4, loss, rtol=1e-6)
    assert metrics.keys() == metrics_4.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics_4[name], metrics[name], rtol=1e-5, err_msg=name)
    # some gradients are zero but for rounding, such as that of a bias of all keys
    slack = 1e-6 * max(np.abs(g).max() for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=slack), grads_4, grads)
    batch = make_batch(N_ROWS)
    parts = [losses.n_true(batch["masked_position"][i::4] >= 0) for i in range(4)]
    assert len(set(map(float, parts))) > 1


def test_in_micro_batches_contrast_has_the_negatives_of_its_part():
    """Eight rows, a pair and a patient each, all alike: log of the windows that a part compares."""
    unit = jnp.ones((8, 1, 4)) / 2.0
    batch = {"pair_patient": jnp.arange(8)[:, None], "unit": unit}
    whole = losses.normalisers(batch, ["contrast"], 0)

    def objective(scale, rows, key):
        out = {"pair_ehr": rows["unit"] * scale, "pair_wear": rows["unit"], "temperature": jnp.float32(0.1)}
        return losses.total(out, rows, {"contrast": 1.0}, whole)

    for n_micro in (1, 2, 4):
        (loss, metrics), _ = optimizer.summed_gradients(objective, 1.0, batch, jax.random.key(0), n_micro)
        np.testing.assert_allclose(loss, np.log(8 / n_micro), rtol=1e-5)
        assert metrics["contrast/negatives"] == 8 / n_micro - 1
        np.testing.assert_allclose(metrics["contrast/temperature"], 0.1, rtol=1e-6)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="a batch of 6 rows does not divide into 4 micro-batches"):
        optimizer.summed_gradients(lambda p, r, k: (0.0, {}), 1.0, {"a": jnp.zeros(6)}, jax.random.key(0), 4)


def test_the_average_forgets_the_start_and_follows_the_weights():
    averaged, by_hand = {"w": jnp.zeros(2)}, 0.0
    for step in range(200):
        value = 1.0 + 0.5 * (step % 2)
        averaged = optimizer.average(averaged, {"w": jnp.full(2, value)}, step, 0.9)
        decay = min(0.9, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * value
    np.testing.assert_allclose(averaged["w"], by_hand, rtol=1e-5)
    assert abs(by_hand - 1.25) < 0.05
