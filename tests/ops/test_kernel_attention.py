"""The reference op against float64 numpy, analytic cases and invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.ops.kernel_attention import ExponentialMixture, RationalQuadratic, kernel_attention
from ehrwear_jax.ops.kernel_attention.reference import dropout_keep


def make_inputs(seed=0, n_batch=2, n_query=7, n_key=9, n_head=2, depth=4, n_component=3, span=100.0):
    rng = np.random.default_rng(seed)
    k_time = np.sort(rng.uniform(0, span, (n_batch, n_key)), axis=1)
    q_time = np.sort(rng.uniform(0, span * 1.2, (n_batch, n_query)), axis=1)
    stop = np.array([np.searchsorted(k, q, side="right") for k, q in zip(k_time, q_time, strict=True)])
    start = np.minimum(2 * np.arange(n_batch)[:, None], stop)
    return {
        "q": rng.normal(size=(n_batch, n_query, n_head, depth)),
        "k": rng.normal(size=(n_batch, n_key, n_head, depth)),
        "v": rng.normal(size=(n_batch, n_key, n_head, depth)),
        "q_time": q_time,
        "k_time": k_time,
        "kv_range": np.stack([start, stop], axis=-1).astype(np.int32),
        "beta": rng.uniform(0.1, 1, (n_head, n_component)),
        "gamma": rng.uniform(1e-3, 2, (n_head, n_component)),
        "bias": rng.normal(size=(n_batch, n_head, 3, n_key)),
        "modality": rng.integers(0, 3, (n_batch, n_query)),
    }


def run(x, kernel="mixture", dtype=jnp.float32, **options):
    c = {k: jnp.asarray(v, dtype if np.issubdtype(v.dtype, np.floating) else None) for k, v in x.items()}
    kernels = {
        "mixture": lambda: ExponentialMixture(c["beta"], c["gamma"]),
        "quadratic": lambda: RationalQuadratic(c["beta"][:, 0], c["gamma"][:, 0]),
        "none": lambda: None,
    }
    return kernel_attention(
        c["q"],
        c["k"],
        c["v"],
        q_time_BxT=c["q_time"],
        k_time_BxS=c["k_time"],
        kv_range_BxTx2=c["kv_range"],
        kernel=kernels[kernel](),
        source_bias_BxHxMxS=c["bias"],
        q_modality_BxT=c["modality"],
        **options,
    )


def definition(x, kernel):
    """The module docstring's formula by loops, in float64."""
    n_batch, n_query, n_head, depth = x["q"].shape
    out = np.zeros(x["q"].shape)
    for b, i, h in np.ndindex(n_batch, n_query, n_head):
        keys = np.arange(*x["kv_range"][b, i])
        if not len(keys):
            continue
        d = np.maximum(x["q_time"][b, i] - x["k_time"][b, keys], 0)
        if kernel == "mixture":
            # logsumexp over components, so that the oracle itself does not underflow
            log_k = np.logaddexp.reduce(np.log(x["beta"][h]) - np.outer(d, x["gamma"][h]), axis=1)
        elif kernel == "quadratic":
            a, length = x["beta"][h, 0], x["gamma"][h, 0]
            log_k = -a * np.log1p(d**2 / (2 * a * length**2))
        else:
            log_k = 0.0
        s = x["k"][b, keys, h] @ x["q"][b, i, h] / np.sqrt(depth) + x["bias"][b, h, x["modality"][b, i], keys] + log_k
        w = np.exp(s - s.max())
        out[b, i, h] = (w / w.sum()) @ x["v"][b, keys, h]
    return out


@pytest.mark.parametrize("kernel", ["mixture", "quadratic", "none"])
def test_matches_the_definition(kernel):
    x = make_inputs()
    np.testing.assert_allclose(run(x, kernel), definition(x, kernel), atol=2e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 10.0, 4000.0, 30_000.0]))
def test_matches_the_definition_over_time_scales(seed, span):
    x = make_inputs(seed, span=span)
    np.testing.assert_allclose(run(x), definition(x, "mixture"), atol=1e-5)


def test_digits_survive_a_gap_of_years():
    """A query 4,000 days after its keys still ranks keys an hour apart as the definition does."""
    x = make_inputs()
    x["k_time"] = np.tile(np.arange(9) / 24.0, (2, 1)).astype(np.float32).astype(np.float64)
    x["q_time"] = np.full((2, 7), 4000.0)
    x["kv_range"][...] = (0, 9)
    x["gamma"] = np.full((2, 3), [0.5, 2.0, 8.0])
    np.testing.assert_allclose(run(x), definition(x, "mixture"), atol=2e-6)


def test_no_visible_key_gives_zeros_and_zero_gradients():
    x = make_inputs()
    x["kv_range"][:, 3] = x["kv_range"][:, 3, :1]

    def loss(parts):
        return jnp.sum(run(x | parts)[:, 3] ** 2)

    parts = {k: jnp.asarray(x[k], jnp.float32) for k in ("q", "k", "v", "beta", "gamma", "bias")}
    value, grads = jax.value_and_grad(loss)(parts)
    assert value == 0
    for name, grad in grads.items():
        assert np.all(np.asarray(grad) == 0), name


def test_gradients_match_finite_differences_in_float64():
    with jax.enable_x64(True):
        x = make_inputs(n_batch=1, n_query=4, n_key=5)
        parts = {k: jnp.asarray(x[k]) for k in ("q", "k", "v", "beta", "gamma", "bias")}
        weight = jnp.asarray(np.random.default_rng(1).normal(size=x["q"].shape))

        def loss(parts):
            return jnp.sum(run(x | parts, dtype=jnp.float64) * weight)

        grads = jax.grad(loss)(parts)
        rng = np.random.default_rng(2)
        for name in parts:
            direction = jnp.asarray(rng.normal(size=x[name].shape))
            step = 1e-6
            ahead, behind = (loss(parts | {name: parts[name] + s * step * direction}) for s in (1, -1))
            np.testing.assert_allclose(
                jnp.sum(grads[name] * direction), (ahead - behind) / (2 * step), rtol=2e-6, atol=1e-8
            )
            assert float(jnp.abs(grads[name]).max()) > 0, name


def test_what_is_not_visible_changes_no_bit():
    x = make_inputs()
    before = np.asarray(run(x))
    changed = {k: v.copy() for k, v in x.items()}
    last = x["kv_range"][:, 4, 1]
    for b in range(2):
        for name in ("k", "v"):
            changed[name][b, last[b] :] = 1e3
        changed["bias"][b, :, :, last[b] :] = -50
        changed["k_time"][b, last[b] :] += 17
    np.testing.assert_array_equal(np.asarray(run(changed))[:, :5], before[:, :5])
    assert np.any(np.asarray(run(changed)) != before)


def test_shifting_all_times_changes_nothing():
    x = make_inputs()
    x["k_time"], x["q_time"] = np.round(x["k_time"] * 8) / 8, np.round(x["q_time"] * 8) / 8
    moved = x | {"k_time": x["k_time"] + 512, "q_time": x["q_time"] + 512}
    np.testing.assert_allclose(run(moved), run(x), atol=1e-6)


def test_scaling_beta_changes_nothing():
    x = make_inputs()
    np.testing.assert_allclose(run(x | {"beta": x["beta"] * 37.0}), run(x), atol=1e-5)


def test_packing_two_sequences_equals_two_calls():
    x, y = make_inputs(1, n_batch=1), make_inputs(2, n_batch=1)
    y["beta"], y["gamma"] = x["beta"], x["gamma"]
    packed = {
        k: np.concatenate([x[k], y[k]], axis=-1 if k == "bias" else 1)
        for k in x
        if k not in ("beta", "gamma", "kv_range")
    }
    packed |= {"beta": x["beta"], "gamma": x["gamma"]}
    packed["kv_range"] = np.concatenate([x["kv_range"], y["kv_range"] + 9], axis=1)
    np.testing.assert_allclose(run(packed), np.concatenate([run(x), run(y)], axis=1), atol=2e-6)


def test_dropout_keeps_the_mean_and_depends_on_global_indices_only():
    key = jax.random.key(3)
    index = np.arange(200, dtype=np.uint32)
    keep = dropout_keep(key, jnp.uint32(0), jnp.uint32(1), jnp.asarray(index)[:, None], jnp.asarray(index)[None], 0.3)
    assert abs(float(keep.mean()) - 0.7) < 4 * np.sqrt(0.21 / keep.size)
    part = dropout_keep(
        key, jnp.uint32(0), jnp.uint32(1), jnp.asarray(index[50:60])[:, None], jnp.asarray(index[7:9])[None], 0.3
    )
    np.testing.assert_array_equal(part, keep[50:60, 7:9])
    # rows, columns, heads and keys are unrelated to one another
    other = dropout_keep(
        jax.random.key(4), jnp.uint32(0), jnp.uint32(1), jnp.asarray(index)[:, None], jnp.asarray(index)[None], 0.3
    )
    for a, b in ((keep[1:], keep[:-1]), (keep[:, 1:], keep[:, :-1]), (keep, other), (keep, keep.T)):
        assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.03
    x = make_inputs()
    np.testing.assert_array_equal(run(x, dropout_rate=0.5, dropout_key=key), run(x, dropout_rate=0.5, dropout_key=key))
    assert np.any(np.asarray(run(x, dropout_rate=0.5, dropout_key=key)) != np.asarray(run(x)))


def test_errors_name_the_argument():
    x = make_inputs()
    with pytest.raises(ValueError, match="dropout_key"):
        run(x, dropout_rate=0.1)
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        run(x, implementation="fast")
    with pytest.raises(ValueError, match="k_time"):
        run(x | {"k_time": x["k_time"][:, 1:]})
    with pytest.raises(ValueError, match="kv_range must hold integers"):
        run(x | {"kv_range": x["kv_range"].astype(np.float32)})
