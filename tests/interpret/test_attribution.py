"""Integrated gradients on cases with an answer, and hiding inputs of a model whose effects are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model
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


@pytest.fixture(scope="module")
def explained():
    model, params = small_model.make_model()
    batch = small_model.make_batch()
    direction = np.random.default_rng(3).normal(size=8).astype(np.float32)

    def head(z_BxTxD, z_BxQxD):
        del z_BxTxD
        return z_BxQxD[:, 1] @ direction

    inputs, baseline = attribution.embedded_inputs(model, params, batch)
    score = attribution.score_of_embedded(model, params, batch, head)
    plain = jax.jit(lambda b: head(*model.apply({"params": params}, b, method="encode")))(batch)
    return plain, attribution.integrated_gradients(score, inputs, baseline, n_steps=64)


def test_the_models_attributions_are_complete(explained):
    plain, found = explained
    np.testing.assert_allclose(found.score_B, plain, atol=1e-5)  # entering behind the embedding changes nothing
    change = found.score_B - found.baseline_score_B
    assert np.abs(change).min() > 0.05
    np.testing.assert_allclose(found.gap_B, 0.0, atol=5e-3 * np.abs(change).min())
    token_BxT, wear_BxWxC = attribution.by_token(found)
    np.testing.assert_allclose(token_BxT.sum(1) + wear_BxWxC.sum((1, 2)), change, atol=1e-3)


def test_what_the_read_does_not_see_has_no_part(explained):
    """Query 1 sees four tokens, one of them the first window. A wearable token's id is not read."""
    token_BxT, wear_BxWxC = attribution.by_token(explained[-1])
    assert not token_BxT[:, 4:].any() and not token_BxT[:, 2].any() and not wear_BxWxC[:, 1].any()
    # what is not seen is exactly zero above: any part at all is one of what is seen
    assert (np.abs(token_BxT[:, [0, 1, 3]]) > 1e-6).all() and (np.abs(wear_BxWxC[:, 0]) > 1e-6).all()


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
