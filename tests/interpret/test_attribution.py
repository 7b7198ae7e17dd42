"""Integrated gradients on cases with an answer, and effects of changes on scores whose effects are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.interpret import attribution


@given(st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=10)
def test_a_linear_score_is_split_by_its_weights(width, seed):
    rng = np.random.default_rng(seed)
    weight, x, base = (rng.normal(size=(n, width)).astype(np.float32) for n in (1, 3, 3))
    found = attribution.integrated_gradients(lambda v: (v["a"] * weight).sum(1), {"a": x}, {"a": base}, n_steps=3)
    np.testing.assert_allclose(found.parts["a"], weight * (x - base), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.gap_B, 0.0, atol=1e-5)


def test_products_and_powers_are_exact():
    """x y is shared equally from a zero baseline; x^2 z gives 2/3 and 1/3; the cubic x^3 goes to x alone."""
    x = {"x": jnp.array([[2.0]]), "y": jnp.array([[3.0]]), "z": jnp.array([[5.0]])}
    zero = jax.tree.map(jnp.zeros_like, x)

    def parts(score):
        found = attribution.integrated_gradients(score, x, zero, n_steps=2, steps_at_once=1)
        assert abs(found.gap_B[0]) < 1e-5
        return [float(found.parts[k][0, 0]) for k in "xyz"]

    assert parts(lambda v: (v["x"] * v["y"])[:, 0]) == pytest.approx([3, 3, 0])
    assert parts(lambda v: (v["x"] ** 2 * v["z"])[:, 0]) == pytest.approx([40 / 3, 0, 20 / 3])
    assert parts(lambda v: (v["x"] ** 3)[:, 0]) == pytest.approx([8, 0, 0])


def test_few_steps_leave_a_gap_that_is_reported():
    x, zero = np.array([[3.0, 1.0]], np.float32), np.zeros((1, 2), np.float32)

    def score(v):
        return jnp.exp(v).sum(1)

    coarse, fine = (attribution.integrated_gradients(score, x, zero, n_steps=n) for n in (1, 16))
    change = np.exp(3) + np.exp(1) - 2
    np.testing.assert_allclose(fine.parts, [[np.exp(3) - 1, np.exp(1) - 1]], rtol=1e-5)
    midpoint = 3 * np.exp(1.5) + np.exp(0.5)
    np.testing.assert_allclose(coarse.gap_B, midpoint - change, rtol=1e-5)
    assert abs(coarse.gap_B[0]) > 1e3 * abs(fine.gap_B[0])


def test_effects_of_an_additive_score_are_its_terms():
    value = {"a": 1.5, "b": -2.0}

    def score(change):
        return np.array([sum(v for k, v in value.items() if k != change)] * 3)

    found = attribution.effects(score, {"without a": "a", "without b": "b", "nothing": "c"})
    assert {k: list(v) for k, v in found.items()} == {
        "without a": [-1.5] * 3,
        "without b": [2.0] * 3,
        "nothing": [0.0] * 3,
    }
