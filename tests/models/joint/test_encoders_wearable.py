"""The local encoder: what may and what may not reach a window's vector."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wear_batches import FIRST, OUT, SEGMENT, SIZES, TIME, B, C, L, P, W, encoder, inputs, make, with_slots

from ehrwear_jax.config.training import MeshConfig
from ehrwear_jax.models.joint.encoders import WearableConfig, WearableEncoder, first_windows
from ehrwear_jax.training import sharding

KINDS = [("transformer", 0.0), ("transformer", 0.5), ("tcn", 0.0), ("tcn", 0.5)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda k: f"{k[0]}-{k[1]}")
def setting(request):
    """(kind, span, params, encode)."""
    return *request.param, *make(*request.param)


# ----------------------------------------------------------------------------------------------- in float64
def layer_norm(p, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def dense(p, x):
    return np.tensordot(x, p["kernel"], 1) + p.get("bias", 0.0)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention_block(p, x_WxPxD, first_W, stop_W, time_W, span):
    """Patches of window w over all patches of windows first to stop, nearer ones with more weight by K."""
    y = layer_norm(p["norm_attention"], x_WxPxD)
    query, key, value = (dense(p[n], y) for n in ("query", "key", "value"))
    out = np.zeros_like(query)
    for w, h in np.ndindex(W, 2):
        seen = range(first_W[w], stop_W[w])
        if not seen:
            continue
        k, v = (np.concatenate([z[j, :, h] for j in seen]) for z in (key, value))
        logit = query[w, :, h] @ k.T / 2.0  # 4 dimensions per head
        if span:
            gap = np.repeat([time_W[w] - time_W[j] for j in seen], P)
            beta, gamma = (np.logaddexp(0, p["kernel"][n][h]) for n in ("beta", "gamma"))
            logit = logit + np.log((beta * np.exp(-gap[:, None] * gamma)).sum(-1))
        weight = np.exp(logit - logit.max(-1, keepdims=True))
        out[w, :, h] = weight / weight.sum(-1, keepdims=True) @ v
    x = x_WxPxD + np.einsum("wphd,hde->wpe", out, p["out"]["kernel"]) + p["out"]["bias"]
    return x + dense(p["down"], gelu(dense(p["up"], layer_norm(p["norm_mlp"], x))))


def convolution(p, x_WxPxD, dilation):
    padded = np.pad(x_WxPxD, [(0, 0), (dilation, dilation), (0, 0)])
    return sum(padded[:, i * dilation :][:, :P] @ p["kernel"][i] for i in range(3)) + p["bias"]


def conv_block(p, x_WxPxD, first_W, dilation, span):
    y = layer_norm(p["norm_in"], x_WxPxD)
    if span:
        mean = y.mean(1)
        past = [mean[first_W[w] : w].mean(0) if first_W[w] < w else np.zeros(mean.shape[1]) for w in range(W)]
        y = y + dense(p["before"], np.stack(past))[:, None]
    y = layer_norm(p["norm_out"], gelu(convolution(p["conv_in"], y, dilation)))
    return x_WxPxD + convolution(p["conv_out"], gelu(y), dilation)


def in_float64(params, batch, kind, span):
    """The encoder written out for one row at a time."""
    p = jax.tree.map(np.float64, params)
    out = np.zeros((B, W, OUT))
    for b in range(B):
        first, stop = FIRST[b] if span else np.arange(W), np.arange(1, W + 1)
        if span:  # padding sees nothing
            stop = np.where(SEGMENT[b] > 0, stop, first)
        x = np.zeros((W, P, 8))
        for w, k in np.ndindex(W, P):
            steps = slice(2 * k, 2 * k + 2)
            seen = batch["observed"][b, w, steps]
            signal = np.where(seen, batch["wear"][b, w, steps].astype(np.float64), 0.0)
            patch = (np.concatenate([signal, seen], axis=-1) * p["channel_scale"]).ravel()
            vector = dense(p["channel_projection"], np.concatenate([patch, seen.mean(0)]))
            x[w, k] = (p["mask_vector"] if batch["patch_mask"][b, w, k] else vector) + p["position"][k]
        for i in range(2):
            if kind == "tcn":
                x = conv_block(p[f"block_{i}"], x, first, 2**i, span)
            else:
                layer = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
                x = attention_block(layer, x, first, stop, TIME[b].astype(np.float64), span)
        x = layer_norm(p["norm_out"], x)
        logit = dense(p["pool"], x)
        score = np.exp(logit - logit.max(1, keepdims=True))
        score = score / score.sum(1, keepdims=True)
        out[b] = dense(p["out"], np.concatenate([(score * x).sum(1), x.mean(1)], axis=-1))
    return out


def test_encoder_equals_the_formula_in_float64(setting):
    kind, span, params, encode = setting
    got = encode(inputs())
    assert got.shape == (B, W, OUT) and got.dtype == np.float32
    np.testing.assert_allclose(got, in_float64(params, inputs(), kind, span), rtol=2e-4, atol=2e-4)


# ----------------------------------------------------------------------------------------------- who sees whom
def test_first_windows_are_of_the_context_and_within_the_span():
    batch = inputs()
    np.testing.assert_array_equal(first_windows(batch, 0.5), FIRST)
    np.testing.assert_array_equal(first_windows(batch, 0.0), np.broadcast_to(np.arange(W), (B, W)))
    np.testing.assert_array_equal(first_windows(batch, 1e6), [[0, 0, 0, 0, 4, 4], [0, 0, 0, 0, 0, 5]])


def test_a_window_reaches_itself_and_those_that_see_it(setting):
    """Never an earlier window or another patient, and a later one only through spans: two, with two layers."""
    kind, span, _, encode = setting
    before = np.asarray(encode(inputs()))
    sees = np.zeros((B, W, W), bool)
    for b, w in np.ndindex(B, W):
        sees[b, w, FIRST[b, w] if span else w : w + 1] = True
    through = np.matmul(sees, sees)
    for b, w in np.ndindex(B, W):
        batch = inputs()
        batch["wear"][b, w] += 1.0
        batch["observed"][b, w] = ~batch["observed"][b, w]
        batch["patch_mask"][b, w] = [True, False, False]
        after = np.asarray(encode(batch))
        moved = np.any(after != before, axis=-1)
        assert not np.any(moved[1 - b])
        # the last norm may round away what came through two layers
        assert not np.any(moved[b] & ~through[b, :, w]) and np.all(moved[b][sees[b, :, w]]), (b, w)


def test_hidden_and_missing_steps_say_nothing(setting):
    encode = setting[-1]
    batch = inputs()
    hidden = np.repeat(batch["patch_mask"], 2, axis=-1)[..., None]
    other = np.where(hidden | ~batch["observed"], np.float32(np.nan), batch["wear"])
    flipped = np.where(hidden, ~batch["observed"], batch["observed"])
    np.testing.assert_array_equal(encode(batch | {"wear": other, "observed": flipped}), encode(batch))
    assert np.any(encode(batch | {"patch_mask": np.zeros_like(batch["patch_mask"])}) != encode(batch))


def test_hidden_channels_say_nothing_and_look_unmeasured(setting):
    encode = setting[-1]
    channel_BxWxC = np.random.default_rng(1).random((B, W, C)) < 0.5
    hidden, batch = channel_BxWxC[:, :, None], inputs()
    got = encode(batch | {"channel_mask": channel_BxWxC})
    other = {"wear": np.where(hidden, np.float32(np.nan), batch["wear"]), "observed": batch["observed"] ^ hidden}
    np.testing.assert_array_equal(encode(batch | other | {"channel_mask": channel_BxWxC}), got)
    np.testing.assert_array_equal(encode(batch | {"observed": batch["observed"] & ~hidden}), got)
    assert np.any(got != encode(batch))


# ----------------------------------------------------------------------------------------------- empty slots
def of_windows(h_BxWxD, batch):
    """What the windows' vectors are, zeros at slots without one."""
    return jnp.where((batch["window_position"] >= 0)[..., None], h_BxWxD, 0.0)


@pytest.mark.parametrize(
    "kind, span, remat",
    [
        ("transformer", 0.5, "products"),
        pytest.param("transformer", 0.0, "none", marks=pytest.mark.slow),
        pytest.param("tcn", 0.5, "none", marks=pytest.mark.slow),
    ],
)
def test_windows_are_encoded_alike_however_many_slots_are_empty(kind, span, remat):
    params, _ = make(kind, span)
    target = np.random.default_rng(3).normal(size=(B, W, OUT)).astype(np.float32)

    def gradient(batch, **options):
        module, more = encoder(kind=kind, span_days=span, remat=remat, **options), batch["wear"].shape[1] - W
        wanted = np.pad(target, [(0, 0), (0, more), (0, 0)])

        def loss(p):
            h_BxWxD = of_windows(module.apply({"params": p}, batch), batch)
            return jnp.sum((h_BxWxD * wanted).astype(jnp.float32)), h_BxWxD

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (_, h_BxWxD), want = gradient(inputs())
    for slots in (W, 2 * W):  # 3 parts of 2 slots, all of which are needed, or of 4, of which 2
        (_, got_BxWxD), got = gradient(with_slots(inputs(), slots), window_parts=3)
        np.testing.assert_allclose(got_BxWxD[:, :W], h_BxWxD, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4)


def test_parts_without_a_window_are_not_encoded():
    """Parameters that are no numbers show in every slot that is encoded."""
    for n_windows, n_encoded in [(0, 0), (1, 2), (2, 2), (3, 4), (5, 6)]:
        batch = inputs()
        batch["window_position"] = np.where(np.arange(W) < n_windows, batch["window_position"], -1).astype(np.int32)
        module = encoder(span_days=0.5, window_parts=3)
        shapes = jax.eval_shape(module.init, jax.random.key(0), batch)["params"]
        params = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), shapes)
        got = jax.jit(module.apply)({"params": params}, batch)
        np.testing.assert_array_equal(np.isnan(got), np.broadcast_to((np.arange(W) < n_encoded)[:, None], got.shape))


@pytest.mark.parametrize("sizes", [(2, 2, 1, 1), (2, 1, 1, 2)], ids=["rows", "rows and windows"])
def test_devices_choose_the_same_parts(sizes):
    """Of the row with most windows, wherever it lies."""
    batch = {name: np.concatenate([x, x]) for name, x in inputs().items()}
    batch["window_position"][:3, 1:] = -1
    batch["window_position"][3, 3:] = -1
    params, encode = make("transformer", 0.5, window_parts=3)
    mesh = sharding.make_mesh(jax.devices()[:4], MeshConfig(*sizes))
    module = WearableEncoder(WearableConfig(**SIZES, span_days=0.5, window_parts=3), sharding.mesh_ops(mesh))
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    got = jax.jit(lambda b: module.apply({"params": params}, b))(placed)
    np.testing.assert_allclose(of_windows(got, batch), of_windows(encode(batch), batch), atol=1e-5)
    assert not np.any(got[:, 4:]) and np.any(got[:3, 2])


def test_scanning_several_layers_at_once_changes_no_value():
    params, encode = make("transformer", 0.5)
    module = encoder(span_days=0.5, unroll=2)
    np.testing.assert_allclose(module.apply({"params": params}, inputs()), encode(inputs()), atol=1e-5)


# ----------------------------------------------------------------------------------------------- inputs
@pytest.fixture(scope="module")
def plain():
    return make()[1]


def test_absence_is_not_a_value_of_zero(plain):
    batch = inputs() | {"wear": np.zeros((B, W, L, C), np.float32), "patch_mask": np.zeros((B, W, P), bool)}
    there, absent = (plain(batch | {"observed": np.full((B, W, L, C), v)}) for v in (True, False))
    assert np.abs(there - absent).max() > 1e-2


def test_quality_is_an_input_where_the_batch_has_it(plain):
    batch = inputs()
    known = batch["observed"] & ~np.repeat(batch["patch_mask"], 2, axis=-1)[..., None]
    coverage = known.reshape(B, W, P, 2, C).mean(3).astype(np.float32)
    np.testing.assert_allclose(plain(batch | {"quality": coverage}), plain(batch), atol=1e-5)
    worse = plain(batch | {"quality": coverage / 2})
    assert np.abs(worse - plain(batch)).max() > 1e-3
    # that of hidden patches and channels is hidden
    hidden = batch["patch_mask"][..., None] & np.ones(C, bool)
    unknown = np.where(hidden, np.float32(np.nan), coverage)
    np.testing.assert_array_equal(plain(batch | {"quality": unknown}), plain(batch | {"quality": coverage}))
    no_channel = batch | {"channel_mask": np.ones((B, W, C), bool)}
    np.testing.assert_array_equal(*(plain(no_channel | {"quality": q}) for q in (coverage, np.ones_like(coverage))))


def test_the_order_of_patches_matters(plain):
    batch = inputs() | {"observed": np.ones((B, W, L, C), bool), "patch_mask": np.zeros((B, W, P), bool)}
    wear = np.ones((B, W, L, C), np.float32)
    wear[:, :, :2] = 3.0
    assert np.abs(plain(batch | {"wear": wear}) - plain(batch | {"wear": wear[:, :, ::-1]})).max() > 1e-3


def test_detail_joins_its_patch_and_hides_with_it(plain):
    batch = inputs()
    detail = np.random.default_rng(2).normal(size=(B, W, P, 8)).astype(np.float32)
    hidden = batch["patch_mask"][..., None]
    np.testing.assert_array_equal(plain(batch, np.where(hidden, detail, 0.0)), plain(batch))
    moved = np.any(plain(batch, np.where(hidden, 0.0, detail)) != plain(batch), axis=-1)
    np.testing.assert_array_equal(moved, ~batch["patch_mask"].all(-1))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"patch_steps": 4}, "patches of 4 steps do not divide a window of 6 steps"),
        ({"kind": "lstm"}, "wear_encoder is 'lstm'; it can be transformer, tcn"),
        ({"remat": "some"}, "remat is 'some'; it can be none, full, attention, products"),
    ],
)
def test_what_cannot_be_is_refused(options, sentence):
    module = encoder(**options)
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(module.init, jax.random.key(0), inputs())


def test_remat_changes_no_value():
    params, encode = make("transformer", 0.5)
    module = encoder(span_days=0.5, remat="full")
    got = jax.jit(lambda b: module.apply({"params": params}, b))(inputs())
    np.testing.assert_allclose(got, encode(inputs()), atol=1e-5)


@pytest.mark.parametrize("remat, n_streams, n_hidden, n_heads", [("full", 3, 0, 0), ("products", 3, 2, 8)])
def test_what_is_kept_for_the_backward_pass(remat, n_streams, n_hidden, n_heads):
    """The input of each of two layers and of the pooling; with "products" their hidden units, and q, k, v, attended."""
    module = encoder(span_days=0.5, remat=remat)
    params = jax.eval_shape(module.init, jax.random.key(0), inputs())["params"]

    def backward(p):
        return jax.vjp(lambda q: module.apply({"params": q}, inputs()), p)[1]

    kept = [x for x in jax.tree.leaves(jax.eval_shape(backward, params)) if x.dtype == np.float32]

    def count(*ends):
        """Arrays over all patches that end with these axes."""
        return sum(x.size / (B * W * P * np.prod(ends)) for x in kept if x.shape[-2 - len(ends) :] == (W, P, *ends))

    assert (count(8), count(32), count(2, 4)) == (n_streams, n_hidden, n_heads)


@pytest.mark.parametrize("kind, span", KINDS)
def test_half_precision_keeps_its_dtype(kind, span):
    module = encoder(kind=kind, span_days=span, dtype="bfloat16")
    out, variables = jax.eval_shape(lambda k: module.init_with_output(k, inputs()), jax.random.key(0))
    assert out.dtype == "bfloat16" and all(x.dtype == np.float32 for x in jax.tree.leaves(variables))
