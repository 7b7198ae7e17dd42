"""Token embedding with values, and logits from the same table, against numpy."""

import jax
import numpy as np
import pytest

from ehrwear_jax.models.joint.ehr_embedder import EhrEmbedder

V, WIDTH, OUT = 7, 4, 6


def perturbed(params, seed=1):
    """Params far from their initial zeros and ones."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return tree.unflatten([np.asarray(x) + rng.normal(0, 0.5, x.shape).astype(np.float32) for x in leaves])


@pytest.fixture(scope="module")
def setting():
    module = EhrEmbedder(V, WIDTH, OUT)
    token, value = np.arange(6, dtype=np.int32).reshape(2, 3), np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)

    def both(m, token, value, hidden):
        return m(token, value), m.logits(hidden)

    hidden = np.random.default_rng(0).normal(size=(2, 3, OUT)).astype(np.float32)
    params = perturbed(
        jax.jit(lambda k: module.init(k, token, value, hidden, method=both))(jax.random.key(0))["params"]
    )
    return params, token, value, hidden, jax.jit(lambda *a: module.apply({"params": params}, *a, method=both))


def test_embedding_is_the_token_plus_value_times_its_direction(setting):
    params, token, value, hidden, apply = setting
    p = jax.tree.map(np.float64, params)
    vector = p["table"]["embedding"][token] + value[..., None] * p["value_table"]["embedding"][token]
    want = vector @ p["project"]["kernel"] + p["project"]["bias"]
    np.testing.assert_allclose(apply(token, value, hidden)[0], want, atol=1e-5)


def test_logits_use_the_input_table(setting):
    params, token, value, hidden, apply = setting
    p = jax.tree.map(np.float64, params)
    x = hidden.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = (x * p["norm"]["scale"] + p["norm"]["bias"]) @ p["to_token"]["kernel"] + p["to_token"]["bias"]
    want = x @ p["table"]["embedding"].T + p["bias"]
    logits = apply(token, value, hidden)[1]
    assert logits.shape == (2, 3, V) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, want, atol=1e-5)


def test_half_precision_computes_in_half_and_scores_in_full():
    module = EhrEmbedder(V, WIDTH, OUT, "bfloat16")
    token, value = np.zeros((1, 2), np.int32), np.zeros((1, 2), np.float32)

    def both(m, token, value):
        x = m(token, value)
        return x, m.logits(x)

    variables, (x, logits) = jax.eval_shape(
        lambda k: (lambda v: (v, module.apply(v, token, value, method=both)))(
            module.init(k, token, value, method=both)
        ),
        jax.random.key(0),
    )
    assert x.dtype == "bfloat16" and logits.dtype == np.float32
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
