"""Attention weights, rollout and kernels against their formulas."""

import jax
import numpy as np
import pytest
import small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.interpret import attention
from ehrwear_jax.ops.kernel_attention import ExponentialMixture, kernel_attention


@pytest.fixture(scope="module")
def weights():
    model, params = small_model.make_model()
    return jax.jit(lambda b: attention.attention_weights(model, params, b))(small_model.make_batch())


def test_weights_are_those_that_the_op_multiplies_values_with():
    """The op's output on random values equals weights times values, gaps and biases included."""
    rng = np.random.default_rng(0)
    b, t, s, h, d = 2, 5, 6, 2, 3
    q, k, v = (rng.normal(size=(b, n, h, d)).astype(np.float32) for n in (t, s, s))
    kernel = ExponentialMixture(*(np.exp(rng.normal(size=(h, 3))).astype(np.float32) for _ in range(2)))
    bias = rng.normal(size=(b, h, 4, s)).astype(np.float32)
    key_time = np.sort(rng.gamma(1.0, 2.0, (b, s)), axis=1).astype(np.float32)
    kv = np.stack([np.zeros((b, t)), np.broadcast_to(np.arange(t), (b, t))], -1).astype(np.int32)
    time = key_time[:, :t] + 0.1
    modality = rng.integers(0, 4, (b, t)).astype(np.int32)
    call = {"query": q, "key": k, "bias": bias, "kernel": kernel, "key_time": key_time, "time": time}
    weight = attention._weights(call | {"kv_range": kv, "modality": modality})
    out = kernel_attention(q, k, v, q_time_BxT=time, k_time_BxS=key_time, kv_range_BxTx2=kv, kernel=kernel,
                           source_bias_BxHxMxS=bias, q_modality_BxT=modality, implementation="xla")  # fmt: skip
    np.testing.assert_allclose(np.einsum("bhts,bshd->bthd", weight, v), out, atol=1e-5)
    np.testing.assert_allclose(weight.sum(-1)[:, :, 1:], 1.0, atol=1e-6)


def test_the_models_weights_are_causal_distributions_and_explain_what_changes(weights):
    token, query = (np.asarray(w) for w in weights)
    batch = small_model.make_batch()
    assert token.shape == (2, 2, 2, 7, 7) and query.shape == (2, 2, 2, 3, 7)
    for weight, kv in ((token, batch["kv_range"]), (query, batch["query_kv_range"])):
        visible = (np.arange(7) >= kv[..., :1]) & (np.arange(7) < kv[..., 1:])
        assert not weight[:, ~np.broadcast_to(visible[:, None], weight.shape[1:])].any()
        np.testing.assert_allclose(
            weight.sum(-1), np.broadcast_to(visible.any(-1)[:, None], weight.shape[:-1]), atol=1e-6
        )
    assert token.std() > 0.01


def test_recording_is_off_unless_asked_for():
    """Without a mutable collection the layers' scan returns tokens and queries and nothing else."""
    model, params = small_model.make_model()
    batch = small_model.make_batch()
    assert set(jax.eval_shape(model.init, jax.random.key(0), batch)) == {"params", "perturbations"}

    def scan_outputs(**options):
        traced = jax.make_jaxpr(lambda b: model.apply({"params": params}, b, method="encode", **options))(batch)
        *_, scan = [e for e in traced.eqns if e.primitive.name == "scan"]  # the last one is the backbone's
        return len(scan.outvars)

    assert scan_outputs() == 2
    assert scan_outputs(mutable=["intermediates"]) > 2


def test_rollout_of_two_layers_by_hand():
    """Token 1 looks half at token 0, then wholly; a query looks at token 1, then at token 0."""
    token = np.zeros((2, 1, 1, 2, 2))
    token[:, 0, 0, 0, 0] = 1.0
    token[0, 0, 0, 1], token[1, 0, 0, 1] = (0.5, 0.5), (1.0, 0.0)
    query = np.array([[0.0, 1.0], [1.0, 0.0]]).reshape(2, 1, 1, 1, 2)
    rolled_token, rolled_query = attention.rollout(token, query)
    # layer 1: row 1 is (1/4, 3/4); layer 2: 1/2 (1/4, 3/4) + 1/2 (1, 0)
    np.testing.assert_allclose(rolled_token[0], [[1, 0], [5 / 8, 3 / 8]])
    # layer 1: 1/2 of token 1 as it came in; layer 2: half of that, and half of token 0 after layer 1
    np.testing.assert_allclose(rolled_query[0, 0], [1 / 2, 1 / 4])


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=25)
def test_rollout_is_the_product_over_tokens_and_queries_together(n_layer, n_token, n_query, seed):
    rng = np.random.default_rng(seed)
    n = n_token + n_query
    token = rng.dirichlet(np.ones(n_token), (n_layer, 2, 2, n_token)) * np.tril(np.ones((n_token, n_token)))
    token /= token.sum(-1, keepdims=True)
    query = rng.dirichlet(np.ones(n_token), (n_layer, 2, 2, n_query))
    query[:, 0, :, 0] = 0.0  # sees nothing
    product = np.broadcast_to(np.eye(n), (2, n, n))
    for layer in range(n_layer):
        weight = np.concatenate([token[layer].mean(1), query[layer].mean(1)], axis=1)
        whole = 0.5 * np.concatenate([weight, np.zeros((2, n, n_query))], axis=2) + 0.5 * np.eye(n)
        whole[0, n_token, n_token] = 1.0
        product = whole @ product
    found = np.concatenate(attention.rollout(token, query), axis=1)
    np.testing.assert_allclose(found, product[:, :, :n_token], atol=1e-12)
    np.testing.assert_allclose(found[:, :n_token].sum(-1), 1.0)
    np.testing.assert_allclose(found[1, n_token:].sum(-1), 1 - 0.5**n_layer)


def test_rollout_of_the_model_keeps_to_the_past(weights):
    token, query = attention.rollout(*weights)
    assert not np.triu(token, 1).any() and not query[:, 0].any() and not query[:, 1, 4:].any()
    assert (query[:, 2, :6] > 0).all()


def test_learned_kernels_are_the_mixture_and_the_quadratic():
    days = np.array([0.0, 0.5, 3.0, 400.0])
    _, params = small_model.make_model()
    raw = jax.tree.map(lambda x: np.logaddexp(0.0, np.asarray(x, np.float64)), params["backbone"]["blocks"]["kernel"])
    curve = (raw["beta"][..., None] * np.exp(-raw["gamma"][..., None] * days)).sum(2) / raw["beta"].sum(-1)[..., None]
    found = attention.learned_kernels(params["backbone"]["blocks"]["kernel"], "mixture", 2, 3, 1.0, days)
    np.testing.assert_allclose(found, curve, rtol=2e-5, atol=1e-7)
    in_hours = attention.learned_kernels(params["backbone"]["blocks"]["kernel"], "mixture", 2, 3, 1 / 24, days / 24)
    np.testing.assert_allclose(in_hours, found, rtol=1e-6)
    _, params = small_model.make_model("rational_quadratic")
    raw = jax.tree.map(lambda x: np.logaddexp(0.0, np.asarray(x, np.float64)), params["backbone"]["blocks"]["kernel"])
    alpha, length = raw["alpha"][..., None], raw["length"][..., None]
    found = attention.learned_kernels(params["backbone"]["blocks"]["kernel"], "rational_quadratic", 2, 3, 1.0, days)
    np.testing.assert_allclose(found, (1 + days**2 / (2 * alpha * length**2)) ** -alpha, rtol=2e-5)
    assert (attention.learned_kernels({}, "none", 2, 3, 1.0, days) == 1).all()


def test_half_life_of_exponentials():
    days = np.geomspace(0.01, 10_000, 400)
    gamma = np.log(2) / np.array([[0.25, 30.0], [365.0, 1e7]])
    found = attention.half_life_days(np.exp(-gamma[..., None] * days), days)
    np.testing.assert_allclose(found[[0, 0, 1], [0, 1, 0]], [0.25, 30.0, 365.0], rtol=1e-3)
    assert np.isinf(found[1, 1])
