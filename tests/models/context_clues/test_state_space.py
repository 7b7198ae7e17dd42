"""The state space and its convolution against plain loops, alone and where several contexts share a row."""

import context_clues_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrwear_jax.models.context_clues.state_space import causal_convolution, selective_scan

T, HIDDEN, S = 37, 5, 3
BEGINS = (0, 1, 20, 23)  # of contexts of one, nineteen, three and fourteen tokens


def case(seed=0, n_rows=2):
    rng = np.random.default_rng(seed)
    x, step = rng.normal(size=(n_rows, T, HIDDEN)), rng.exponential(0.3, (n_rows, T, HIDDEN))
    write, read = rng.normal(size=(2, n_rows, T, S))
    begins = np.zeros((n_rows, T), bool)
    begins[:, BEGINS] = True
    return x, step, rng.exponential(1.0, (HIDDEN, S)), write, read, begins


def by_loops(x, step, rate, write, read, begins):
    out = np.zeros_like(x)
    for b in range(len(x)):
        bounds = [*np.flatnonzero(begins[b]), T]
        for a, z in zip(bounds, bounds[1:], strict=False):
            out[b, a:z] = reference.scanned(x[b, a:z], step[b, a:z], rate, write[b, a:z], read[b, a:z])
    return out


@pytest.mark.parametrize("chunk", [1, 8, 37, 64])
def test_it_is_the_recurrence_in_every_context(chunk):
    """In float32, whatever the chunk; the recurrence in float64."""
    arguments = case()
    want = by_loops(*arguments)
    found = jax.jit(lambda *a: selective_scan(*a, chunk=chunk))(
        *(np.float32(a) if a.dtype != bool else a for a in arguments)
    )
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_it_is_the_recurrence_in_double_precision():
    arguments = case(1)
    with jax.enable_x64(True):
        found = np.asarray(selective_scan(*map(jnp.asarray, arguments), chunk=8))
    np.testing.assert_allclose(found, by_loops(*arguments), rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_recurrence():
    """Of a loop over tokens that keeps every state."""
    *given, begins = (np.float32(a) if a.dtype != bool else a for a in case(2))
    weight = np.random.default_rng(3).normal(size=(2, T, HIDDEN)).astype(np.float32)

    def loop(x, step, rate, write, read):
        def one(state, at):
            x, step, write, read, begins = at
            state = jnp.where(begins[:, None, None], 0.0, state)
            state = jnp.exp(-step[..., None] * rate[None]) * state + (step * x)[..., None] * write[:, None]
            return state, jnp.einsum("bis,bs->bi", state, read)

        moved = [jnp.moveaxis(a, 1, 0) for a in (x, step, write, read, begins)]
        return jnp.moveaxis(jax.lax.scan(one, jnp.zeros((2, HIDDEN, S)), tuple(moved))[1], 0, 1)

    def gradients(run):
        return jax.jit(jax.grad(lambda *a: jnp.sum(weight * run(*a)), argnums=tuple(range(5))))(*given)

    found = gradients(lambda *a: selective_scan(*a, begins, chunk=8))
    for a, b in zip(found, gradients(loop), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_convolution_is_a_loop_in_every_context():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, T, HIDDEN)), rng.normal(size=(4, HIDDEN))
    begin = np.zeros((1, T), np.int32)
    bounds, want = [*BEGINS, T], np.zeros_like(x)
    for a, z in zip(bounds, bounds[1:], strict=False):
        begin[:, a:z], want[0, a:z] = a, reference.convolved(x[0, a:z], kernel)
    np.testing.assert_allclose(causal_convolution(*map(np.float32, (x, kernel)), begin), want, rtol=1e-5, atol=1e-5)
