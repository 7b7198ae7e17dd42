"""Wearable windows with gaps, hidden patches and padding, and a small encoder of them with random parameters."""

import jax
import numpy as np
import random_rows
import small_model

from ehrwear_jax.models.joint.encoders import WearableConfig, WearableEncoder

B, W, L, C, P = 2, 6, 6, 2, 3
OUT = 5
SIZES = {"width": 8, "out_width": OUT, "n_layers": 2, "n_heads": 2, "patch_steps": 2}
# row 0: two contexts (windows 0-3 with a gap of a week before 2, windows 4-5); row 1: one of five, and padding
SEGMENT = np.array([[1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 1, 0]])
TIME = np.array([[0.25, 0.5, 7.5, 7.75, 0.25, 1.0], [0.25, 0.5, 0.75, 1.0, 1.25, 0.0]], np.float32)
# for a span of half a day, which leaves out a window that ended exactly that long ago
FIRST = np.array([[0, 0, 2, 2, 4, 5], [0, 0, 1, 2, 3, 5]])


def inputs(seed=0):
    """A batch whose tokens are one EHR event before each window."""
    rng = np.random.default_rng(seed)
    wear = rng.normal(size=(B, W, L, C)).astype(np.float32)
    position = np.where(SEGMENT > 0, 1 + 2 * np.arange(W), -1).astype(np.int32)
    return {
        "wear": wear,
        "observed": rng.random(wear.shape) < 0.7,
        "patch_mask": rng.random((B, W, P)) < 0.3,
        "channel_mask": np.zeros((B, W, C), bool),
        "window_position": position,
        "time": np.repeat(TIME, 2, axis=1),
        "segment": np.repeat(SEGMENT, 2, axis=1).astype(np.int32),
    }


def encoder(**options):
    return WearableEncoder(WearableConfig(**SIZES | options))


def make(kind="transformer", span=0.0, **options):
    """(random params: at initialisation some would hide an input; jitted encoder)."""
    module = encoder(kind=kind, span_days=span, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs())["params"]
    params = small_model.random_params(shapes, mean=0.2, spread=0.5)
    return params, jax.jit(lambda *args: module.apply({"params": params}, *args))


PER_WINDOW = ("wear", "observed", "patch_mask", "channel_mask", "window_position")


def with_slots(batch, n):
    """The batch with room for n windows a row."""
    out = dict(batch)
    for name in PER_WINDOW:
        x = batch[name]
        out[name] = np.full((B, n, *x.shape[2:]), random_rows.SPEC.fields[name].fill, x.dtype)
        out[name][:, :W] = x
    return out
