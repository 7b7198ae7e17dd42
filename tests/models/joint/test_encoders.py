"""Encoders of events and raw windows: embeddings and scores from one table; each raw window speaks for its patch."""

import device_traffic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_rows
from flax import linen as nn
from small_model import random_params

from ehrwear_jax.models.joint.batch import Facts
from ehrwear_jax.models.joint.code_head import CodeHead
from ehrwear_jax.models.joint.config import MODALITIES, Config, ContextConfig, NetworkConfig
from ehrwear_jax.models.joint.encoders import EhrEmbedder
from ehrwear_jax.models.joint.raw_encoder import RawEncoder

# --------------------------------------------------------------------------------------------------------- EHR events

V, WIDTH, OUT = 7, 4, 6


class Tied(nn.Module):
    """An embedder and the head that scores by its table, as in JointNetwork."""

    dtype: str = "float32"
    scale: float = 1.0

    def setup(self):
        self.embed = EhrEmbedder(V, WIDTH, OUT, self.dtype, self.scale)
        self.head = CodeHead(V, WIDTH, self.dtype)

    def __call__(self, token, value, hidden=None):
        x = self.embed(token, value)
        hidden = x if hidden is None else hidden
        # each vector's loss with every token as its target: log p of all tokens
        asked = (jnp.broadcast_to(y, (hidden.shape[0], hidden.shape[1] * V)) for y in (np.tile(np.arange(V), 3), True))
        return x, self.head(jnp.repeat(hidden, V, axis=1), self.embed.table.embedding, *asked)


@pytest.fixture(scope="module")
def setting():
    module = Tied()
    token, value = np.arange(6, dtype=np.int32).reshape(2, 3), np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)
    hidden = np.random.default_rng(0).normal(size=(2, 3, OUT)).astype(np.float32)
    params = random_params(jax.eval_shape(module.init, jax.random.key(0), token, value, hidden)["params"])
    return params, token, value, hidden, jax.jit(lambda *a: module.apply({"params": params}, *a))


def test_embedding_is_the_token_plus_value_times_its_direction(setting):
    params, token, value, hidden, apply = setting
    p = jax.tree.map(np.float64, params)["embed"]
    vector = p["table"]["embedding"][token] + value[..., None] * p["value_table"]["embedding"][token]
    want = vector @ p["project"]["kernel"] + p["project"]["bias"]
    np.testing.assert_allclose(apply(token, value, hidden)[0], want, atol=1e-5)


def test_the_scale_is_that_of_what_is_read_and_not_of_scores(setting):
    params, token, value, hidden, apply = setting
    run = jax.jit(lambda: Tied(scale=3.0).apply({"params": params}, token, value, hidden))
    bias = params["embed"]["project"]["bias"]
    scaled, plain = (np.asarray(x) - np.asarray(bias) for x in (run()[0], apply(token, value, hidden)[0]))
    np.testing.assert_allclose(scaled, 3.0 * plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run()[1].nll, apply(token, value, hidden)[1].nll)


def test_what_looking_up_tokens_sends_does_not_grow_with_the_devices():
    """The tables and their gradient travel, and no vector of the batch."""
    fields = {"token": np.zeros((1, 400), np.int32), "value": np.zeros((1, 400), np.float32)}
    fields["quantile"] = fields["value"]
    device_traffic.does_not_grow(
        lambda ops: EhrEmbedder(512, 64, 64, value_features=3, mesh_ops=ops), fields, lambda m, batch: m(**batch)
    )


def test_what_raw_windows_send_does_not_grow_with_the_devices():
    shapes = {"raw": (1, 12, S, A), "raw_observed": (1, 12, S, A), "raw_window": (1, 12), "raw_patch": (1, 12)}
    dtypes = np.float32, np.bool_, np.int32, np.int32
    fields = {name: np.zeros(shape, dtype) for (name, shape), dtype in zip(shapes.items(), dtypes, strict=True)}
    device_traffic.does_not_grow(lambda _: RawEncoder(8, 64, n_blocks=1), fields, lambda m, batch: m(batch, 8, 8))


def test_logits_use_the_input_table(setting):
    params, token, value, hidden, apply = setting
    p = jax.tree.map(np.float64, params)["head"]
    x = hidden.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = (x * p["norm"]["scale"] + p["norm"]["bias"]) @ p["to_token"]["kernel"] + p["to_token"]["bias"]
    want = x @ np.float64(params["embed"]["table"]["embedding"]).T + p["bias"]
    found = apply(token, value, hidden)[1]
    log_sum = np.log(np.exp(want).sum(-1, keepdims=True))
    assert found.nll.shape == (2, 3 * V) and found.nll.dtype == np.float32
    np.testing.assert_allclose(found.nll.reshape(2, 3, V), log_sum - want, atol=1e-5)
    np.testing.assert_allclose(found.log_sum.reshape(2, 3, V), log_sum.repeat(V, -1), atol=1e-5)
    np.testing.assert_array_equal(found.right.reshape(2, 3, V), want == want.max(-1, keepdims=True))


def test_half_precision_computes_in_half_and_scores_in_full():
    inputs = np.zeros((1, 3), np.int32), np.zeros((1, 3), np.float32)
    module = Tied("bfloat16")
    (x, found), variables = jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)
    assert x.dtype == "bfloat16" and found.nll.dtype == found.log_sum.dtype == np.float32
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))


# -------------------------------------------------------------------------------------------------------- raw windows

B, N, S, A, W, P, RAW_OUT = 2, 4, 64, 3, 2, 3, 6
WINDOW = np.array([[0, 0, 1, -1], [1, 1, 1, 0]], np.int32)
PATCH = np.array([[0, 2, 2, 0], [1, 1, 0, 2]], np.int32)


def fields(seed=0):
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(B, N, S, A)).astype(np.float32)
    return {"raw": raw, "raw_observed": rng.random(raw.shape) < 0.8, "raw_window": WINDOW, "raw_patch": PATCH}


@pytest.fixture(scope="module")
def encode():
    module = RawEncoder(width=8, out_width=RAW_OUT, n_blocks=2)
    shapes = jax.eval_shape(lambda k: module.init(k, fields(), W, P), jax.random.key(0))["params"]
    params = random_params(shapes, spread=0.5)
    return jax.jit(lambda batch: module.apply({"params": params}, batch, W, P)[0])


def test_each_raw_window_speaks_for_its_patch(encode):
    before = np.asarray(encode(fields()))
    assert before.shape == (B, W, P, RAW_OUT)
    filled = {(0, 0, 0), (0, 0, 2), (0, 1, 2), (1, 1, 1), (1, 1, 0), (1, 0, 2)}
    for b, w, p in np.ndindex(B, W, P):
        assert np.any(before[b, w, p] != 0) == ((b, w, p) in filled)
    for b, n in np.ndindex(B, N):
        batch = fields()
        batch["raw"][b, n] += np.linspace(0, 1, S)[:, None]
        moved = np.any(np.asarray(encode(batch)) != before, axis=-1)
        where = np.zeros_like(moved)
        if WINDOW[b, n] >= 0:
            where[b, WINDOW[b, n], PATCH[b, n]] = True
        np.testing.assert_array_equal(moved, where)


def test_a_patch_has_the_mean_of_its_raw_windows(encode):
    both = np.asarray(encode(fields()))[1, 1, 1]
    one, two = (
        np.asarray(encode(fields() | {"raw_window": np.where(np.arange(N) == n, WINDOW, -1).astype(np.int32)}))[1, 1, 1]
        for n in (0, 1)
    )
    np.testing.assert_allclose(both, (one + two) / 2, rtol=1e-5, atol=1e-6)
    assert np.abs(one - two).max() > 1e-3


def test_what_was_not_measured_says_nothing(encode):
    batch = fields()
    unknown = np.where(batch["raw_observed"], batch["raw"], np.float32(np.nan))
    np.testing.assert_array_equal(encode(batch | {"raw": unknown}), encode(batch))
    batch["raw_observed"][0, 2] = False  # a raw window without a single sample is none
    np.testing.assert_array_equal(encode(batch)[0, 1], 0.0)


def test_a_fast_component_is_seen(encode):
    """Two signals with the same mean and spread, at 1/4 and 1/8 of the sampling rate."""
    out = [
        encode(fields() | {"raw": np.broadcast_to(np.sin(2 * np.pi * f * np.arange(S) + 0.3)[:, None], (B, N, S, A))
                           .astype(np.float32), "raw_observed": np.ones((B, N, S, A), bool)})
        for f in (0.25, 0.125)
    ]  # fmt: skip
    assert np.abs(out[0] - out[1]).max() > 1e-2


def test_the_height_of_a_wave_is_seen_in_one_channel():
    """Of a wave that averages out in the first stride, below one: its sign alone says nothing."""
    module = RawEncoder(width=8, out_width=RAW_OUT, n_blocks=2)
    wave = np.sin(np.pi / 2 * np.arange(S) + 0.3)[None, None, :, None]
    of = {h: {"raw": (h * wave).astype(np.float32), "raw_observed": np.ones(wave.shape, bool),
              "raw_window": np.zeros((1, 1), np.int32), "raw_patch": np.zeros((1, 1), np.int32)}
          for h in (0.2, 0.8)}  # fmt: skip
    params = jax.jit(lambda: module.init(jax.random.key(0), of[0.2], 1, 1))()
    low, high = map(jax.jit(lambda batch: module.apply(params, batch, 1, 1)[0]), of.values())
    assert np.abs(low - high).max() > 1e-2


def test_raw_windows_reach_the_latents_of_later_reads_only():
    """Through the whole network, by the optional fields of the batch."""
    config = Config(
        context=ContextConfig(tokens=4 - W, context_tokens=4 - W, windows=W, queries=2, events=1, future_windows=1,
                              horizons=(30,), patch_steps=2, raw_windows=N),
        network=NetworkConfig(width=8, n_layers=1, n_heads=2, mlp_width=8, token_width=4, time_features=8,
                              source_width=2, wear_width=4, wear_layers=1, wear_heads=1, raw_width=4, count_width=0),
    )  # fmt: skip
    facts = Facts(modalities=MODALITIES, vocabulary=6, steps=6, channels=2, derived=0, future_codes=2, history_tokens=2,
                  n_horizons=1, future_rates=(0.1, 0.1), raw_samples=S, raw_channels=A)  # fmt: skip
    spec, network, _ = random_rows.model_of(config, facts)
    batch = spec.empty(B) | fields()
    spec.check(batch, B)
    batch["modality"][:] = 1, 2, 1, 2
    batch["segment"][:] = 1
    batch["window"][:], batch["window_position"][:] = (-1, 0, -1, 1), (1, 3)
    batch["time"][:] = 0.0, 0.25, 0.3, 0.5
    batch["kv_range"][..., 1] = 1 + np.arange(4)
    batch["query_time"][:], batch["query_kv_range"][..., 1] = (0.3, 0.5), (3, 4)
    shapes = jax.eval_shape(lambda k: network.init(k, batch, method="encode"), jax.random.key(0))["params"]
    assert "raw" in shapes
    params = random_params(shapes)
    encode = jax.jit(lambda b: network.apply({"params": params}, b, method="encode"))
    before = np.asarray(encode(batch))
    other = batch | {"raw": batch["raw"] + np.where(WINDOW == 1, 1.0, 0.0)[..., None, None].astype(np.float32)}
    after = np.asarray(encode(other))
    np.testing.assert_array_equal(after[:, 0], before[:, 0])  # known before window 1 ends
    assert np.all(np.any(after[:, 1] != before[:, 1], axis=-1))
