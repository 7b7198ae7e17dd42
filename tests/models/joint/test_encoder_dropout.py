"""Dropout in the encoders: what is dropped, that padding decides nothing of it, and that inference has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wear_batches import encoder, inputs, make, with_slots

from ehrwear_jax.models.joint.encoders import EhrEmbedder, dropped_update

KEY = jax.random.key(3)


def trained(module, params):
    """(batch, key) -> what the encoder gives in training."""

    def apply(batch, key):
        return module.apply({"params": params}, batch, None, False, rngs={"dropout": key})

    return jax.jit(apply)


@pytest.mark.parametrize("kind", ["transformer", "tcn"])
def test_training_drops_by_the_key_and_inference_nothing(kind):
    params, plain = make(kind)
    module = encoder(kind=kind, dropout=0.4)
    train, batch = trained(module, params), inputs()
    there = batch["window_position"] >= 0
    one, again, other = (np.asarray(train(batch, key))[there] for key in (KEY, KEY, jax.random.key(4)))
    np.testing.assert_array_equal(one, again)
    assert np.all(np.any(one != other, axis=-1))
    np.testing.assert_array_equal(module.apply({"params": params}, batch)[there], plain(batch)[there])


def test_updates_keep_their_mean_and_lose_their_share():
    update, seed = jnp.ones((4, 6, 5, 64)), jnp.array([7, 9], jnp.uint32)
    found = np.asarray(dropped_update(update, 0.25, seed, 0))
    assert set(np.unique(found)) == {0.0, np.float32(1 / 0.75)}
    assert (found == 0).mean() == pytest.approx(0.25, abs=0.02) and found.mean() == pytest.approx(1.0, abs=0.03)
    assert np.any(np.asarray(dropped_update(update, 0.25, seed, 1)) != found), "another layer, other entries"


def test_what_is_dropped_does_not_depend_on_the_number_of_slots():
    """A row whose windows take half of the slots is encoded in all of them and in the first half alone."""
    params, _ = make()
    few, key = with_slots(inputs(), 12), jax.random.key(0)
    there = few["window_position"] >= 0
    whole, parts = (
        np.asarray(trained(encoder(dropout=0.4, window_parts=n), params)(few, key))[there] for n in (1, 2)
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)


def test_what_events_say_is_dropped_in_training_only():
    module = EhrEmbedder(9, 64, 8, dropout=0.5)
    token, value = np.arange(8, dtype=np.int32).reshape(2, 4), np.ones((2, 4), np.float32)
    params = jax.jit(module.init)(KEY, token, value)
    trained = jax.jit(jax.vmap(lambda k: module.apply(params, token, value, None, False, rngs={"dropout": k})))
    many = np.asarray(trained(jax.random.split(KEY, 400)))
    assert np.any(many[0] != many[1])
    plain = EhrEmbedder(9, 64, 8).apply(params, token, value)
    np.testing.assert_array_equal(module.apply(params, token, value), plain)
    np.testing.assert_allclose(many.mean(axis=0), plain, atol=0.12)
