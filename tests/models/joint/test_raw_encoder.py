"""Raw windows: each speaks for its own patch, and only where something was measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint.network import ModelConfig, MultimodalModel
from ehrwear_jax.models.joint.raw_encoder import RawEncoder

B, N, S, A, W, P, OUT = 2, 4, 64, 3, 2, 3, 6
WINDOW = np.array([[0, 0, 1, -1], [1, 1, 1, 0]], np.int32)
PATCH = np.array([[0, 2, 2, 0], [1, 1, 0, 2]], np.int32)


def fields(seed=0):
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(B, N, S, A)).astype(np.float32)
    return {"raw": raw, "raw_observed": rng.random(raw.shape) < 0.8, "raw_window": WINDOW, "raw_patch": PATCH}


@pytest.fixture(scope="module")
def encode():
    module = RawEncoder(width=8, out_width=OUT, n_blocks=2)
    shapes = jax.eval_shape(lambda k: module.init(k, fields(), W, P), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = tree.unflatten([jnp.asarray(rng.normal(0.1, 0.5, x.shape), x.dtype) for x in leaves])
    return jax.jit(lambda batch: module.apply({"params": params}, batch, W, P))


def test_each_raw_window_speaks_for_its_patch(encode):
    before = np.asarray(encode(fields()))
    assert before.shape == (B, W, P, OUT)
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
    module = RawEncoder(width=8, out_width=OUT, n_blocks=2)
    wave = np.sin(np.pi / 2 * np.arange(S) + 0.3)[None, None, :, None]
    of = {h: {"raw": (h * wave).astype(np.float32), "raw_observed": np.ones(wave.shape, bool),
              "raw_window": np.zeros((1, 1), np.int32), "raw_patch": np.zeros((1, 1), np.int32)}
          for h in (0.2, 0.8)}  # fmt: skip
    params = module.init(jax.random.key(0), of[0.2], 1, 1)
    low, high = (module.apply(params, batch, 1, 1) for batch in of.values())
    assert np.abs(low - high).max() > 1e-2


def test_raw_windows_reach_the_latents_of_later_reads_only():
    """Through the whole model, by the optional fields of the batch contract."""
    shape = batch_lib.BatchShape(tokens=4, windows=W, steps=6, channels=2, patches=P, masked=1, events=1, queries=2,
                                 future_windows=1, future_codes=2, recalled_tokens=2)  # fmt: skip
    batch = batch_lib.empty_batch(shape, B) | fields()
    batch_lib.check_batch(batch, shape, B)
    batch["modality"][:] = 1, 2, 1, 2
    batch["segment"][:] = 1
    batch["window"][:], batch["window_position"][:] = (-1, 0, -1, 1), (1, 3)
    batch["time"][:] = 0.0, 0.25, 0.3, 0.5
    batch["kv_range"][..., 1] = 1 + np.arange(4)
    batch["query_time"][:], batch["query_kv_range"][..., 1] = (0.3, 0.5), (3, 4)
    model = MultimodalModel(ModelConfig(
        vocabulary=6, steps=6, channels=2, patch_steps=2, future_windows=1, future_codes=2, horizons=1,
        later_rates=(0.1, 0.1), recalled_tokens=2, width=8, n_layers=1, n_heads=2, mlp_width=8, token_width=4,
        time_features=8, source_width=2, wear_width=4, wear_layers=1, wear_heads=1, raw_width=4,
    ))  # fmt: skip
    params = jax.jit(lambda k: model.init(k, batch, method="encode"))(jax.random.key(0))["params"]
    assert "raw" in params
    encode = jax.jit(lambda b: model.apply({"params": params}, b, method="encode")[1])
    before = np.asarray(encode(batch))
    other = batch | {"raw": batch["raw"] + np.where(WINDOW == 1, 1.0, 0.0)[..., None, None].astype(np.float32)}
    after = np.asarray(encode(other))
    np.testing.assert_array_equal(after[:, 0], before[:, 0])  # known before window 1 ends
    assert np.all(np.any(after[:, 1] != before[:, 1], axis=-1))
