"""Activations are dropped at their rate, by their places, whatever the devices, and by nothing that is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ehrwear_jax.models.layers.dropout import dropped as dropped_by
from ehrwear_jax.models.layers.dropout import kept
from ehrwear_jax.ops.kernel_attention.reference import dropout_seed
from ehrwear_jax.training import sharding

B, N, D = 8, 64, 128


def dropped(x, seed=0, rate=0.1, stream=0):
    return dropped_by(x, rate, dropout_seed(jax.random.key(seed)), stream)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_entries_are_dropped_independently_at_the_rate_and_the_rest_is_scaled(rate):
    y = np.asarray(jax.jit(lambda: dropped(jnp.ones((B, N, D)), rate=rate))())
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    gone, n = y == 0, y.size
    assert abs(gone.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    for axis in range(3):  # neighbours, and whole rows, places and columns
        a, b = (np.take(gone, range(s, gone.shape[axis] - 1 + s), axis) for s in (0, 1))
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)
        share = gone.mean(axis=tuple(k for k in range(3) if k != axis))
        assert np.abs(share - rate).max() < 5 * np.sqrt(rate * (1 - rate) * gone.shape[axis] / n)


def test_another_key_drops_others_and_the_same_key_the_same():
    x = jnp.ones((B, N, D))
    one, again, other, stream = (np.asarray(dropped(x, *of)) for of in ((1,), (1,), (2,), (1, 0.1, 1)))
    np.testing.assert_array_equal(one, again)
    for y in (other, stream):
        assert abs(np.corrcoef((one == 0).ravel(), (y == 0).ravel())[0, 1]) < 5 / np.sqrt(one.size)


def test_the_gradient_goes_where_the_value_went():
    x = jnp.ones((B, N, D))
    grad = jax.grad(lambda x: dropped(x).sum())(x)
    np.testing.assert_array_equal(grad, dropped(x))


def test_rows_are_dropped_at_a_rate_that_is_no_constant():
    seed = dropout_seed(jax.random.key(3))
    share = jax.jit(lambda rate: kept((4000, 1, 1), rate, seed, 0).mean())
    for rate in (0.0, 0.05, 0.7):
        assert abs(share(jnp.float32(rate)) - (1 - rate)) <= 5 * np.sqrt(rate * (1 - rate) / 4000)
    assert dropped(jnp.ones((1, 2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


def test_rows_on_several_devices_drop_what_they_drop_on_one():
    mesh = sharding.make_mesh(jax.devices()[:4], sharding.MeshConfig(data=2, context=2))
    x = jnp.ones((B, N, D))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "context")))
    run = jax.jit(dropped)
    np.testing.assert_array_equal(run(placed), run(x))
    text = run.lower(placed).compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text


def test_no_generator_makes_bits_and_no_mask_is_kept():
    x = jnp.ones((B, N, D))
    assert "random_bits" not in str(jax.make_jaxpr(jax.grad(lambda x: dropped(x).sum()))(x))
    entry = jax.jit(jax.grad(lambda x: jnp.sum(dropped(x) ** 2))).lower(x).compile().as_text().split("ENTRY")[1]
    assert f"pred[{B},{N},{D}]" not in entry and f"u32[{B},{N},{D}]" not in entry
