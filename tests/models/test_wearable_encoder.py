"""The local encoder: what may and what may not reach a window's vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrwear_jax.models.wearable_encoder import WearableEncoder

B, W, L, C, P = 2, 3, 6, 2, 3
OUT = 5


def random_params(module, *args):
    """Random params: at initialisation some would hide an input."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return tree.unflatten([jnp.asarray(rng.normal(0.2, 0.5, x.shape), x.dtype) for x in leaves])


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    wear = rng.normal(size=(B, W, L, C)).astype(np.float32)
    return wear, rng.random(wear.shape) < 0.7, rng.random((B, W, P)) < 0.3


@pytest.fixture(scope="module")
def setting():
    module = WearableEncoder(width=8, out_width=OUT, n_layers=2, n_heads=2, patch_steps=2)
    params = random_params(module, *inputs())
    return module, params, jax.jit(lambda *args: module.apply({"params": params}, *args))


def layer_norm(p, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def softmax(x, axis):
    x = np.exp(x - x.max(axis, keepdims=True))
    return x / x.sum(axis, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def in_float64(params, wear, observed, patch_mask):
    """The encoder written out for one window at a time."""
    p = jax.tree.map(np.float64, params)
    out = np.zeros((B, W, OUT))
    for b, w in np.ndindex(B, W):
        rows = []
        for k in range(P):
            seen = observed[b, w, 2 * k : 2 * k + 2]
            signal = np.where(seen, wear[b, w, 2 * k : 2 * k + 2].astype(np.float64), 0.0)
            patch = (np.concatenate([signal, seen], axis=-1) * p["channel_scale"]).ravel()
            vector = patch @ p["channel_projection"]["kernel"] + p["channel_projection"]["bias"]
            rows.append((p["mask_vector"] if patch_mask[b, w, k] else vector) + p["position"][k])
        x = np.stack(rows)
        for i in range(2):
            q = p[f"block_{i}"]
            y, a = layer_norm(q["norm_attention"], x), q["attention"]
            query, key, value = (np.tensordot(y, a[n]["kernel"], 1) + a[n]["bias"] for n in ("query", "key", "value"))
            weight = softmax(np.einsum("phe,she->hps", query, key) / 2.0, -1)  # 4 dimensions per head
            x = x + np.einsum("hps,she,hed->pd", weight, value, a["out"]["kernel"]) + a["out"]["bias"]
            y = layer_norm(q["norm_mlp"], x)
            y = gelu(y @ q["up"]["kernel"] + q["up"]["bias"]) @ q["down"]["kernel"] + q["down"]["bias"]
            x = x + y
        x = layer_norm(p["norm_out"], x)
        score = softmax(x @ p["pool"]["kernel"] + p["pool"]["bias"], 0)
        pooled = np.concatenate([(score * x).sum(0), x.mean(0)])
        out[b, w] = pooled @ p["out"]["kernel"] + p["out"]["bias"]
    return out


def test_encoder_equals_the_formula_in_float64(setting):
    _, params, encode = setting
    got = encode(*inputs())
    assert got.shape == (B, W, OUT) and got.dtype == np.float32
    np.testing.assert_allclose(got, in_float64(params, *inputs()), rtol=1e-4, atol=1e-4)


def test_hidden_and_missing_steps_say_nothing(setting):
    _, _, encode = setting
    wear, observed, mask = inputs()
    hidden = np.repeat(mask, 2, axis=-1)[..., None]
    other = np.where(hidden | ~observed, np.float32(np.nan), wear)
    flipped = np.where(hidden, ~observed, observed)
    np.testing.assert_array_equal(encode(other, flipped, mask), encode(wear, observed, mask))
    assert np.any(encode(wear, observed, np.zeros_like(mask)) != encode(wear, observed, mask))


def test_hidden_channels_say_nothing_and_look_unmeasured(setting):
    _, _, encode = setting
    wear, observed, mask = inputs()
    channel_BxWxC = np.random.default_rng(1).random((B, W, C)) < 0.5
    hidden = channel_BxWxC[:, :, None]
    got = encode(wear, observed, mask, channel_BxWxC)
    np.testing.assert_array_equal(
        encode(np.where(hidden, np.float32(np.nan), wear), observed ^ hidden, mask, channel_BxWxC), got
    )
    np.testing.assert_array_equal(encode(wear, observed & ~hidden, mask), got)
    assert np.any(got != encode(wear, observed, mask))
    np.testing.assert_array_equal(
        encode(wear, observed, mask, np.zeros_like(channel_BxWxC)), encode(wear, observed, mask)
    )


def test_absence_is_not_a_value_of_zero(setting):
    _, _, encode = setting
    wear, observed, mask = inputs()
    zeros = np.zeros_like(wear)
    there, absent = (encode(zeros, np.full_like(observed, v), np.zeros_like(mask)) for v in (True, False))
    assert np.abs(there - absent).max() > 1e-2


def test_a_window_knows_itself_only(setting):
    _, _, encode = setting
    wear, observed, mask = inputs()
    changed = wear.copy()
    changed[0, 1] += 1.0
    before, after = np.asarray(encode(wear, observed, mask)), np.asarray(encode(changed, observed, mask))
    same = np.ones((B, W), bool)
    same[0, 1] = False
    np.testing.assert_array_equal(after[same], before[same])
    assert np.any(after[0, 1] != before[0, 1])


def test_the_order_of_patches_matters(setting):
    _, _, encode = setting
    wear, observed, mask = np.ones((B, W, L, C), np.float32), np.ones((B, W, L, C), bool), np.zeros((B, W, P), bool)
    wear[:, :, :2] = 3.0
    assert np.abs(encode(wear, observed, mask) - encode(wear[:, :, ::-1], observed, mask)).max() > 1e-3


def test_patches_that_do_not_divide_the_window_are_refused():
    module = WearableEncoder(width=8, out_width=OUT, n_layers=1, n_heads=2, patch_steps=4)
    with pytest.raises(ValueError, match="patches of 4 steps do not divide a window of 6 steps"):
        jax.eval_shape(module.init, jax.random.key(0), *inputs()[:2], np.zeros((B, W, 1), bool))


def test_half_precision_keeps_its_dtype():
    module = WearableEncoder(width=8, out_width=OUT, n_layers=1, n_heads=2, patch_steps=2, dtype="bfloat16")
    out, variables = jax.eval_shape(lambda k: module.init_with_output(k, *inputs()), jax.random.key(0))
    assert out.dtype == "bfloat16" and all(x.dtype == np.float32 for x in jax.tree.leaves(variables))
