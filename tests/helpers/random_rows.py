"""Rows of random numbers that hold unequal numbers of targets, and a small model of every loss term for them."""

import numpy as np

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint.network import ModelConfig

SHAPE = batch_lib.BatchShape(
    tokens=6, windows=2, steps=4, channels=1, patches=2, masked=3, events=3, queries=3, future_windows=2,
    future_codes=3, recalled_tokens=2, pairs=3,
)  # fmt: skip
CONFIG = ModelConfig(
    vocabulary=9, steps=4, channels=1, patch_steps=2, future_windows=2, future_codes=3, horizons=2,
    later_rates=(0.1,) * 6, recalled_tokens=2, pairs=3, posterior="normal", width=8, n_layers=1, n_heads=2, mlp_width=8,
    token_width=4, align_width=4, time_features=4, wear_width=4, wear_layers=1, wear_heads=1, source_width=2,
)  # fmt: skip


def make_batch(n_rows):
    """Random targets, few of them in the first rows, so that devices hold different numbers of terms."""
    rng = np.random.default_rng(0)
    batch = batch_lib.empty_batch(SHAPE, n_rows)
    for name, (dims, dtype, _, _) in batch_lib.FIELDS.items():
        shape = batch[name].shape
        values = {
            np.bool_: lambda s: rng.random(s) < 0.5,
            np.float32: lambda s: rng.normal(size=s),
            np.int32: lambda s: rng.integers(0, 3, s),
            np.uint8: lambda s: rng.integers(0, 3, s),
        }[dtype](shape)
        sparse = rng.random(shape) < np.linspace(0.1, 1.0, n_rows).reshape(-1, *(1,) * len(dims))
        batch[name] = np.where(sparse, values, batch[name]).astype(dtype)
    for name, places in (("window", 2), ("step_window", 2), ("query_window", 2)):
        batch[name] = np.minimum(batch[name], places - 1).astype(np.int32)
    batch["token"] = rng.integers(0, 9, batch["token"].shape).astype(np.int32)
    batch["modality"] = rng.integers(0, 3, batch["modality"].shape).astype(np.int32)
    batch["time"] = np.sort(np.abs(batch["time"]), axis=1)
    batch["age"], batch["query_age"] = np.abs(batch["age"]), np.abs(batch["query_age"])
    batch["kv_range"][..., 0], batch["kv_range"][..., 1] = 0, 1 + np.arange(SHAPE.tokens)
    batch["query_kv_range"][..., 0], batch["query_kv_range"][..., 1] = 0, SHAPE.tokens
    return batch
