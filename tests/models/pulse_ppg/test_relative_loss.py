"""The relative loss against its definition, candidate by candidate."""

import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.pulse_ppg import relative_loss as lib


def by_definition(similarity_BxC, distance_BxC):
    """Loss of each anchor, in loops over candidates in float64."""
    out = []
    for s, d in zip(np.float64(similarity_BxC), distance_BxC, strict=True):
        real = [i for i in range(len(d)) if np.isfinite(d[i])]
        total = 0.0
        for i in real:
            if d[i] < max(d[j] for j in real):
                total -= np.log(np.exp(s[i]) / sum(np.exp(s[j]) for j in real if d[j] >= d[i]))
        out.append(total)
    return np.array(out)


def drawn(seed, n=6, c=9):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, c)).astype(np.float32) * 3, rng.random((n, c)).astype(np.float32)


def test_it_is_the_definition():
    for seed in range(3):
        s, d = drawn(seed)
        d[0, 3:] = np.inf  # fewer candidates
        d[1, 1:] = np.inf  # one: it has nobody to be nearer than
        d[2] = np.inf
        d[3] = np.round(d[3] * 3)  # several are equally far
        d[4] = 1.0
        found = np.asarray(lib.relative_loss(s, d))
        np.testing.assert_allclose(found, by_definition(s, d), rtol=2e-5, atol=1e-5)
        np.testing.assert_array_equal(found[[1, 2, 4]], 0.0)
        assert np.asarray(lib.is_ranked(d)).tolist() == [True, False, False, True, False, True]


def test_without_ties_it_is_the_loss_over_sorted_candidates():
    """As the original writes it: a cumulative sum over candidates from the farthest on."""
    s, d = drawn(5)
    order = np.argsort(-d, axis=1)
    far_first = np.take_along_axis(s, order, axis=1)
    behind = np.log(np.cumsum(np.exp(far_first), axis=1))
    np.testing.assert_allclose(lib.relative_loss(s, d), (behind - far_first)[:, 1:].sum(1), rtol=2e-5)


def test_the_order_of_candidates_does_not_matter_even_with_ties():
    s, d = drawn(6)
    d = np.round(d * 4)
    turn = np.random.default_rng(0).permutation(d.shape[1])
    np.testing.assert_allclose(lib.relative_loss(s[:, turn], d[:, turn]), lib.relative_loss(s, d), rtol=1e-5)


def test_its_gradient_is_finite_and_pulls_the_nearest():
    s, d = drawn(7)
    d[0], d[1, 2:] = np.inf, np.inf
    gradient = np.asarray(jax.grad(lambda x: lib.relative_loss(x, d).sum())(s * 100))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~np.isfinite(d)], 0.0)
    uniform = np.asarray(jax.grad(lambda x: lib.relative_loss(x, d).sum())(np.zeros_like(s)))
    for b in range(2, len(d)):
        assert uniform[b].argmin() == d[b].argmin() and uniform[b].argmax() == d[b].argmax()


def test_similarities_are_cosines_over_the_temperature():
    z = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    z[4] = 0.0
    anchor, candidate = np.array([0, 2]), np.array([[1, 2, 4], [0, 1, 3]])
    found = lib.similarities(jnp.asarray(z), anchor, candidate, 0.1)
    unit = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-6)
    want = [[unit[a] @ unit[c] / 0.1 for c in row] for a, row in zip(anchor, candidate, strict=True)]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)
