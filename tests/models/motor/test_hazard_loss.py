"""The loss against its formula in numpy, by hand where it is short, and what the original's did wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from ehrwear_jax.models.motor import hazard_loss
from ehrwear_jax.models.motor.hazard_loss import TimeToEvent, event_days, place_loss

B, N, K, E, C = 2, 7, 4, 5, 9
BINS = (0.0, 3.0, 10.0, 50.0)


def slow_loss(score_NxKxC, bins, event_NxC, end_N):
    """sum over pieces and codes of exp(score) exposure - happens * score, in float64: [N]."""
    score_NxKxC, ends = np.asarray(score_NxKxC, np.float64), (*bins[1:], np.inf)
    found = np.zeros(len(end_N))
    for n in range(len(end_N)):
        for k, (begin, end) in enumerate(zip(bins, ends, strict=True)):
            for c in range(event_NxC.shape[1]):
                until = min(event_NxC[n, c], end_N[n])
                exposed = min(max(until - begin, 0.0), end - begin)
                happens = event_NxC[n, c] <= end_N[n] and begin <= event_NxC[n, c] < end
                found[n] += np.exp(score_NxKxC[n, k, c]) * exposed - happens * score_NxKxC[n, k, c]
    return found


def random_case(seed=0, n=N, c=C):
    """(h, kernel, bias, event days, days to the end); events on the bounds of pieces and at the end of follow-up."""
    rng = np.random.default_rng(seed)
    h, kernel = rng.normal(size=(B, n, K, E)), 0.3 * rng.normal(size=(E, c))
    bias, end = rng.normal(-4.0, 1.0, (K, c)), rng.exponential(40.0, (B, n))
    event = rng.exponential(30.0, (B, n, c))
    event = np.where(rng.random(event.shape) < 0.2, rng.choice(BINS[1:], event.shape), event)
    event = np.where((event > end[..., None]) | (rng.random(event.shape) < 0.5), np.inf, event)
    event[0, 0, 0] = end[0, 0]
    end[1, 1], event[1, 1] = 0.0, np.inf  # a slot without a place
    return tuple(np.asarray(x, np.float32) for x in (h, kernel, bias, event, end))


def naive(h, kernel, bias, event, end):
    """The formula over [place, piece, code] at once."""
    score = jnp.einsum("bnke,ec->bnkc", h, kernel) + bias[None, None]
    begin, stop = (jnp.asarray(x)[None, None, :, None] for x in (BINS, (*BINS[1:], jnp.inf)))
    event = event[:, :, None]
    until = jnp.minimum(event, end[..., None, None])
    exposed = jnp.clip(until - begin, 0.0, stop - begin)
    happens = (event <= end[..., None, None]) & (event >= begin) & (event < stop)
    loss = (jnp.exp(score) * exposed - happens * score).sum((-1, -2))
    return jnp.where(end > 0, loss, 0.0)


fast = jax.jit(functools.partial(place_loss, bin_days=BINS))


def loss_of(h, kernel, bias, event, end):
    return fast(h, kernel, bias, event_BxNxC=event, end_BxN=end)


def test_the_loss_is_its_formula():
    h, kernel, bias, event, end = case = random_case()
    score = np.einsum("bnke,ec->bnkc", *(x.astype(np.float64) for x in (h, kernel))) + bias
    want = np.stack([slow_loss(score[b], BINS, event[b], end[b]) for b in range(B)])
    assert np.isfinite(event).mean() > 0.2 and (event == end[..., None]).any()
    np.testing.assert_allclose(loss_of(*case), want, rtol=2e-5, atol=1e-5)
    assert want[1, 1] == 0.0


def test_the_loss_of_a_network_in_half_precision_is_float32():
    """Products alone are rounded: the loss is that of the rounded factors, added up in float32."""
    h, kernel, bias, event, end = random_case(3)
    half = [x.astype(jnp.bfloat16) for x in (h, kernel)]
    found = loss_of(half[0], kernel, bias, event, end)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, loss_of(*(np.asarray(x, np.float32) for x in half), bias, event, end), rtol=1e-4)


def test_gradients_are_those_of_the_formula():
    h, kernel, bias, event, end = random_case(1)

    def gradients(f):
        return jax.jit(jax.grad(lambda *x: f(*x, event, end).sum(), argnums=(0, 1, 2)))(h, kernel, bias)

    for mine, want in zip(gradients(loss_of), gradients(naive), strict=True):
        np.testing.assert_allclose(mine, want, rtol=1e-4, atol=1e-4)


def test_two_codes_two_pieces_by_hand():
    """Hazards .1 and .2 a day until day 10, .3 and .4 from then on; 25 days followed up; the first occurs on day 15."""
    hazard_KxC = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    h, kernel = jnp.zeros((1, 1, 2, 1)), jnp.zeros((1, 2))
    event, end = np.array([[[15.0, np.inf]]], np.float32), np.array([[25.0]], np.float32)
    found = place_loss(h, kernel, np.log(hazard_KxC), (0.0, 10.0), event, end)
    want = (0.1 * 10 + 0.3 * 5 - np.log(0.3)) + (0.2 * 10 + 0.4 * 15)
    assert float(found[0, 0]) == pytest.approx(want, rel=1e-6)


def test_constant_hazards_are_best_at_events_over_exposure():
    """Of one code and piece the loss is least at the rate: its gradient there is zero."""
    _, _, _, event, end = random_case(2, n=50, c=1)
    until = np.minimum(event, end[..., None])
    rate = np.isfinite(event).sum() / until.sum()

    def total(log_rate):
        h, kernel = jnp.zeros((B, 50, 1, 1)), jnp.zeros((1, 1))
        return place_loss(h, kernel, log_rate[None, None], (0.0,), event, end).sum()

    assert abs(float(jax.grad(total)(jnp.log(rate)))) < 1e-3 * np.isfinite(event).sum()


def test_no_exposure_is_no_loss_and_no_gradient_however_large_the_score():
    """exp(score) times zero days would be no number."""
    h, kernel = jnp.zeros((1, 1, 2, 1)), jnp.zeros((1, 1))
    event, end = np.full((1, 1, 1), np.inf, np.float32), np.full((1, 1), 2.0, np.float32)

    def total(bias):
        return place_loss(h, kernel, bias, (0.0, 5.0), event, end).sum()

    value, gradient = jax.value_and_grad(total)(jnp.array([[-1.0], [500.0]]))
    assert float(value) == pytest.approx(2 * np.exp(-1.0), rel=1e-6)
    np.testing.assert_allclose(gradient, [[2 * np.exp(-1.0)], [0.0]], rtol=1e-6)


def test_nothing_as_large_as_places_times_pieces_times_codes_is_ever_made():
    """Forward and backward, by the compiler's count of memory; the formula at once takes more than that."""
    n, c = 32, 512
    h, kernel, bias, event, end = random_case(0, n, c)
    whole = 4 * B * n * K * c

    def memory(f):
        grad = jax.jit(jax.grad(lambda *x: f(*x, event, end).sum(), argnums=(0, 1, 2)))
        return grad.lower(h, kernel, bias).compile().memory_analysis().temp_size_in_bytes

    def largest(f):
        jaxpr = jax.make_jaxpr(jax.grad(lambda *x: f(*x, event, end).sum(), argnums=(0, 1, 2)))(h, kernel, bias)
        return max(size_of(jaxpr.jaxpr))

    def size_of(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from size_of(inner)

    assert largest(loss_of) <= B * n * c < largest(naive) == B * n * K * c
    assert memory(loss_of) < whole < memory(naive)


def test_pairs_become_days_and_padding_is_dropped():
    batch = {
        "site": np.array([[3, 5, -1]]),
        "pair_site": np.array([[0, 1, 1, -1]]),
        "pair_task": np.array([[2, 0, 1, 0]]),
        "pair_days": np.array([[4.0, 5.0, 6.0, 99.0]], np.float32),
    }
    inf = np.inf
    np.testing.assert_array_equal(event_days(batch, 3), [[[inf, inf, 4.0], [5.0, 6.0, inf], [inf] * 3]])


def test_the_objective_is_the_mean_over_places_and_says_the_originals():
    term, days = TimeToEvent(n_scores=8), np.array([[4.0, 0.0], [1.0, 2.0]], np.float32)
    batch = {"site_days": days}
    value, more = term.loss(jnp.array([[1.0, 77.0], [2.0, 6.0]]), batch, term.normaliser(batch))
    assert float(value) == 3.0 and float(more["per_score"]) == 3.0 / 8
    nothing = {"site_days": np.zeros((2, 2), np.float32)}
    assert float(term.loss(jnp.ones((2, 2)), nothing, term.normaliser(nothing))[0]) == 0.0
    assert hazard_loss.TimeToEvent(8) == term, "equal objectives are compiled once"
