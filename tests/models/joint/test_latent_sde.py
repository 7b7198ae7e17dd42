"""Paths of the latent SDE: exact for the prior, the divergence in closed form, order under halved steps, no leak."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from ehrwear_jax.models.joint.cross_terms import ou_kl
from ehrwear_jax.models.joint.latent_sde import Gaps, SdePosterior, gaps_of, integrate, steps_of

PRIOR = jnp.float32([0.3, 2.0]), jnp.float32([1.2, 0.7])  # rate, stationary
DAYS, START = 1.5, jnp.float32([0.8, -1.1])


def tilted(bend, pull):
    """The control that makes the end of the gap p(z1 | z0) exp(pull z1 - bend z1^2 / 2), up to a factor, exactly."""
    rate, stationary = PRIOR

    def control(z, share):
        left = rate * DAYS * (1.0 - share)
        decay, variance = jnp.exp(-left), -jnp.expm1(-2.0 * left) * stationary
        u = jnp.sqrt(2.0 * rate * stationary) * decay
        return u[None] * (pull[None] - (bend * decay)[None] * z) / (1.0 + bend * variance)[None]

    return control


def end_of(bend, pull):
    """(mean, variance) of the tilted end."""
    rate, stationary = PRIOR
    decay, variance = jnp.exp(-rate * DAYS), -jnp.expm1(-2.0 * rate * DAYS) * stationary
    return (decay * START + pull * variance) / (1.0 + bend * variance), variance / (1.0 + bend * variance)


@pytest.fixture(scope="module")
def simulated():
    """{steps: (states, costs)} of many paths with a linear drift of their own."""
    bend, pull = jnp.float32([0.6, 1.5]), jnp.float32([1.0, -0.5])

    def run(steps, n_paths=20_000):
        noise = jax.random.normal(jax.random.key(0), (steps, n_paths, 2))
        z = jnp.broadcast_to(START, (n_paths, 2))
        path = jax.jit(lambda z, e: integrate(tilted(bend, pull), z, jnp.full(n_paths, DAYS), e, PRIOR))
        return path(z, noise)

    return (bend, pull), {n: run(n) for n in (4, 64, 128)}


def test_an_ornstein_uhlenbeck_posterior_costs_what_the_closed_form_says(simulated):
    """The path's divergence is that of its end, as given the end it is the prior's bridge."""
    tilt, found = simulated
    mean, variance = end_of(*tilt)
    want = float(ou_kl((mean, variance), (START, jnp.zeros(2)), jnp.float32(DAYS), jnp.array(False), PRIOR))
    means = {n: float(jnp.mean(cost)) for n, (_, cost) in found.items()}
    errors = {n: float(jnp.std(cost)) / np.sqrt(len(cost)) for n, (_, cost) in found.items()}
    assert abs(means[128] - want) < 0.03 * want + 4 * errors[128] and want > 0.2
    # the bias is of first order in the step: twice the finer less the coarser has none
    assert abs(2 * means[128] - means[64] - want) < 4 * np.hypot(2 * errors[128], errors[64])
    z, _ = found[128]
    np.testing.assert_allclose(jnp.mean(z, 0), mean, atol=0.03)
    np.testing.assert_allclose(jnp.var(z, 0), variance, rtol=0.06)


def test_few_steps_cost_no_less_than_their_own_end(simulated):
    """The bound holds for any number of steps: a chain's divergence is at least that of its last state."""
    _, found = simulated
    z, cost = found[4]
    mean, variance = jnp.mean(z, 0), jnp.var(z, 0)
    least = float(ou_kl((mean, variance), (START, jnp.zeros(2)), jnp.float32(DAYS), jnp.array(False), PRIOR))
    assert float(jnp.mean(cost)) > least - 4 * float(jnp.std(cost)) / np.sqrt(len(cost))


def test_without_a_drift_of_its_own_a_path_is_the_priors_at_no_cost_whatever_the_gap():
    days, n = jnp.float32([1e-3, 1.0, 400.0]), 20_000
    noise = jax.random.normal(jax.random.key(1), (3, n, 3, 2))
    start = jnp.broadcast_to(START, (n, 3, 2))
    z, cost = integrate(lambda z, share: jnp.zeros_like(z), start, jnp.broadcast_to(days, (n, 3)), noise, PRIOR)
    step = steps_of(PRIOR, days)
    assert not np.asarray(cost).any()
    np.testing.assert_allclose(z.mean(0), step.decay * START[None], atol=0.03)
    np.testing.assert_allclose(z.std(0), step.sd, rtol=0.03)


def test_halved_steps_halve_the_error_of_a_path():
    """Strong order 1, the noise being additive: the same Brownian path in ever shorter steps."""
    n, fine, days = 500, 256, 2.0

    def control(z, share):
        return jnp.sin(3.0 * z) + jnp.cos(2.0 * share)

    noise = np.random.default_rng(2).normal(size=(fine, n, 2)).astype(np.float32)

    def end(noise):
        return integrate(control, jnp.broadcast_to(START, (n, 2)), jnp.full(n, days), noise, PRIOR)[0]

    ends, steps = {}, fine
    while steps >= 8:
        ends[steps] = np.asarray(jax.jit(end)(noise)) if steps in (8, 16, 32, fine) else None
        half, whole = (jax.tree.map(np.asarray, steps_of(PRIOR, jnp.float32(days / k))) for k in (steps, steps / 2))
        noise = (half.decay * noise[::2] + noise[1::2]) * half.sd / whole.sd
        steps //= 2
    error = {k: np.abs(ends[k] - ends[fine]).mean() for k in (8, 16, 32)}
    for coarse in (8, 16):
        assert 1.6 < error[coarse] / error[2 * coarse] < 2.7, error


# --------------------------------------------------------------------------------------------- the posterior module


def case():
    """A row of two contexts, a query in each, and one before any token."""
    batch = {
        "time": jnp.float32([[0.0, 0.5, 0.5, 0.0, 3.0]]),
        "kv_range": jnp.array([[[0, 1], [0, 2], [0, 3], [3, 4], [3, 5]]]),
        "query_time": jnp.float32([[0.7, 4.0, 0.0]]),
        "query_kv_range": jnp.array([[[0, 3], [3, 5], [0, 0]]]),
    }
    h = jax.random.normal(jax.random.key(3), (1, 5, 4)), jax.random.normal(jax.random.key(4), (1, 3, 4))
    return batch, h


def test_gaps_are_those_within_a_context():
    (tokens, queries), last = gaps_of(case()[0], 2.0, 0.1)
    np.testing.assert_array_equal(tokens.begins, [[True, False, False, True, False]])
    np.testing.assert_allclose(np.where(tokens.begins, 0, tokens.days), [[0, 1.0, 0.1, 0, 6.0]], rtol=1e-6)
    np.testing.assert_array_equal(queries.begins, [[False, False, True]])
    np.testing.assert_array_equal(last[0, :2], [2, 4])
    np.testing.assert_allclose(queries.days[0, :2], [0.4, 2.0], rtol=1e-5)
    assert isinstance(tokens, Gaps)


def test_states_follow_the_past_alone_and_the_untrained_posterior_costs_its_first_states_only():
    batch, h = case()
    module = SdePosterior(4, hidden=8, steps=2)

    def noise(shape):
        return jax.random.normal(jax.random.key(5), shape)

    def run(params, h):
        return module.apply({"params": params}, h, *gaps_of(batch, 1.0, 1 / 24), noise)

    params = meta.unbox(module.init(jax.random.key(6), h, *gaps_of(batch, 1.0, 1 / 24), noise)["params"])
    *_, cost = run(params, h)
    np.testing.assert_allclose(np.where([[1, 0, 0, 1, 0]], 0, cost["kl_token"]), 0, atol=1e-6)
    assert np.all(cost["kl_token"][0, [0, 3]] > 0)
    np.testing.assert_array_equal(np.asarray(cost["kl_query"][0]) > 0, [False, False, True])
    params |= {"out": jax.random.normal(jax.random.key(7), (8, 4))}
    before, queries, cost = run(params, h)
    assert np.all(cost["kl_token"] > 0)
    after, queries_after, _ = run(params, (h[0].at[0, 1].add(1.0), h[1]))
    changed = np.any(np.asarray(before != after), axis=-1)[0]
    np.testing.assert_array_equal(changed, [False, True, True, False, False])
    np.testing.assert_array_equal(np.any(np.asarray(queries != queries_after), -1)[0], [True, False, False])
