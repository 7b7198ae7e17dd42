"""Pooling, alignment and the posterior of latents against numpy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ehrwear_jax.models.joint import heads


def init(module, *inputs):
    return nn.meta.unbox(jax.jit(module.init)(jax.random.key(1), *inputs))["params"]


def dense(p, x):
    return x @ np.float64(p["kernel"]) + np.float64(p["bias"])


@pytest.fixture(scope="module")
def pool():
    module = heads.WearablePool()
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 8, 3)).astype(np.float32)
    is_wear = rng.random((2, 8)) < 0.6
    ranges = np.array([[(0, 8), (2, 5), (3, 3), (7, 8), (0, 0)], [(0, 2), (4, 8), (1, 6), (5, 2), (0, 8)]], np.int32)
    params = init(module, z, is_wear, ranges)
    return jax.jit(lambda *a: module.apply({"params": params}, *a)), params, z, is_wear, ranges


def slow_pool(params, z, is_wear, ranges, b, n):
    at = [t for t in range(*ranges[b, n]) if is_wear[b, t]]
    if not at:
        return np.zeros(z.shape[-1]), False
    score = dense(params["score"], z[b].astype(np.float64))[at, 0]
    weight = np.exp(score - score.max())
    return (weight / weight.sum()) @ z[b, at], True


def test_pool_is_a_softmax_over_the_wearable_tokens_of_the_range(pool):
    apply, params, z, is_wear, ranges = pool
    pooled, exists = apply(z, is_wear, ranges)
    for b, n in np.ndindex(2, 5):
        want, there = slow_pool(params, z, is_wear, ranges, b, n)
        np.testing.assert_allclose(pooled[b, n], want, atol=1e-5)
        assert bool(exists[b, n]) == there
    assert exists.any() and not exists.all()


def test_pool_survives_large_scores_and_does_not_look_outside(pool):
    apply, params, z, is_wear, ranges = pool
    pooled, _ = apply(z * 1e4, is_wear, ranges)
    for b, n in np.ndindex(2, 5):
        np.testing.assert_allclose(pooled[b, n], slow_pool(params, z * 1e4, is_wear, ranges, b, n)[0], rtol=1e-4)
    loud = np.where(is_wear[..., None], z, np.float32(1e30))  # EHR tokens are never looked at
    np.testing.assert_array_equal(apply(loud, is_wear, ranges)[0], apply(z, is_wear, ranges)[0])


def test_gradient_of_an_empty_pool_is_zero(pool):
    apply, _, z, is_wear, ranges = pool
    grad = jax.jit(jax.grad(lambda z: jnp.sum(apply(z, jnp.zeros_like(is_wear), ranges)[0])))(z)
    assert np.isfinite(grad).all() and not np.any(grad)


@pytest.fixture(scope="module")
def timed(pool):
    _, _, z, is_wear, ranges = pool
    rng = np.random.default_rng(3)
    z = np.concatenate([z, z[..., :1] ** 2], axis=-1)  # a width of 4: two scales of two dimensions
    time = np.sort(rng.uniform(0, 40, z.shape[:2]), axis=1).astype(np.float32)
    read = (np.take_along_axis(time, np.clip(ranges[..., 1] - 1, 0, 7), 1) + 1).astype(np.float32)
    return z, is_wear, ranges, time, read


def test_the_temporal_readout_forgets_exponentially(timed):
    z, is_wear, ranges, time, read = timed
    module = heads.WearablePool("temporal", n_scales=2, shortest_days=0.5, longest_days=20.0)
    params = init(module, z, is_wear, ranges, time, read)
    np.testing.assert_allclose(np.exp(params["log_days"]), [0.5, 20.0], rtol=1e-6)
    pooled, exists = jax.jit(module.apply)({"params": params}, z, is_wear, ranges, time, read)
    for b, n in np.ndindex(2, 5):
        at = [t for t in range(*ranges[b, n]) if is_wear[b, t]]
        want = np.zeros(4)
        for k, days in enumerate((0.5, 20.0)):
            weight = np.exp(-(float(read[b, n]) - time[b, at].astype(np.float64)) / days)
            for d in (2 * k, 2 * k + 1):
                want[d] = np.sum(weight * z[b, at, d]) / weight.sum() if at else 0.0
        np.testing.assert_allclose(pooled[b, n], want, atol=1e-5)
        assert bool(exists[b, n]) == bool(at)


def test_a_pool_that_there_is_not_is_refused(timed):
    with pytest.raises(ValueError, match="unknown pooling 'last': attention or temporal"):
        heads.WearablePool("last").init(jax.random.key(0), *timed)
    with pytest.raises(ValueError, match="3 time scales do not divide a width of 4"):
        heads.WearablePool("temporal", n_scales=3).init(jax.random.key(0), *timed)


@pytest.mark.parametrize("learned", [True, False])
def test_alignment_projects_a_window_and_the_mean_of_its_events(learned):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(2, 6, 3)).astype(np.float32)
    visible = np.array([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0]], bool)
    position, near = np.array([[2, 4], [4, 0]]), np.array([[(0, 4), (3, 6)], [(1, 5), (2, 3)]])
    module = heads.Alignment(5, temperature=0.2, learned=learned)
    params = init(module, h, visible, position, near)
    ehr, wear, temperature = jax.jit(module.apply)({"params": params}, h, visible, position, near)
    np.testing.assert_allclose(temperature, 0.2, rtol=1e-6)
    assert ("log_temperature" in params) == learned

    def project(x, name):
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) @ np.float64(params[name]["kernel"])
        return x / np.linalg.norm(x)

    for b, n in np.ndindex(2, 2):
        at = [t for t in range(*near[b, n]) if visible[b, t]]
        np.testing.assert_allclose(ehr[b, n], project(h[b, at].astype(np.float64).mean(0), "ehr"), atol=1e-4)
        np.testing.assert_allclose(wear[b, n], project(h[b, position[b, n]].astype(np.float64), "wear"), atol=1e-4)


def test_a_learned_temperature_has_a_floor():
    module = heads.Alignment(2)
    arguments = jnp.ones((1, 2, 3)), jnp.ones((1, 2), bool), jnp.zeros((1, 1), int), jnp.array([[[0, 1]]])
    params = init(module, *arguments) | {"log_temperature": jnp.float32(-20.0)}
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, *arguments)[2], 0.01)


def test_a_posterior_starts_at_its_prior_and_its_variance_is_bounded():
    module = heads.Posterior(5, shortest_days=0.5, longest_days=8.0)

    def both(m, mean):
        return m.variance(mean), m.prior()

    mean = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    params = nn.meta.unbox(jax.jit(lambda k: module.init(k, mean, method=both))(jax.random.key(0)))["params"]
    run = jax.jit(lambda p: module.apply({"params": p}, mean, method=both))
    variance, (rate, stationary) = run(params)
    np.testing.assert_allclose(variance, np.exp(-2.0), rtol=1e-5)
    np.testing.assert_allclose(1 / rate, np.geomspace(0.5, 8.0, 5), rtol=1e-5)
    np.testing.assert_array_equal(stationary, 1.0)
    for bias, bound in ((99.0, np.exp(4.0)), (-99.0, np.exp(-10.0))):
        variance = run(params | {"log_variance": params["log_variance"] | {"bias": jnp.full(5, bias)}})[0]
        np.testing.assert_allclose(variance, bound, rtol=1e-5)
