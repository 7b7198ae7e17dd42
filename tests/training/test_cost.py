"""Flops and parameters against counting by hand and against the compiler's own count."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.training import cost


@pytest.mark.parametrize(
    "kind, peak",
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-40GB", 312e12),
     ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("cpu", None), ("NVIDIA GeForce RTX 4090", None)],
)  # fmt: skip
def test_the_peak_is_the_makers_or_unknown(kind, peak):
    assert cost.peak_flops(kind) == peak


def test_a_batch_counts_what_is_not_padding():
    shape = batch_lib.BatchShape(tokens=6, windows=3, steps=4, channels=1, patches=2, masked=1, events=1, queries=3,
                                 future_windows=1, future_codes=1, recalled_tokens=1)  # fmt: skip
    batch = batch_lib.empty_batch(shape, 2)
    assert set(cost.batch_counts(batch).values()) == {0}
    batch["segment"][:] = [[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]]
    batch["modality"][:] = [[1, 2, 1, 2, 1, 0], [1, 2, 0, 0, 0, 0]]
    batch["kv_range"][:] = [[(0, 1), (0, 2), (0, 3), (3, 4), (3, 5), (5, 5)], [(0, 1), (0, 2), *[(2, 2)] * 4]]
    batch["query_segment"][:] = [[1, 2, 0], [1, 0, 0]]
    batch["query_kv_range"][:] = [[(0, 2), (3, 5), (5, 5)], [(0, 0), (2, 2), (2, 2)]]
    batch["time"][:] = [[0.0, 0.2, 1.1, 0.0, 0.9, 0.0], [0.0, 7.0, 0.0, 0.0, 0.0, 0.0]]
    assert cost.patient_days(batch) == 2 + 1 + 2
    assert cost.batch_counts(batch) == {"contexts": 3, "tokens": 7, "queries": 3, "windows": 3, "seen": 1 + 2 + 3 + 1 +
                                        2 + 1 + 2 + 2 + 2}  # fmt: skip


def test_the_formula_is_that_of_a_plain_transformer():
    """3 x the flops of the forward pass as the compiler counts them, with every token seeing every token."""
    n, width, hidden, layers = 64, 32, 128, 2
    rng = np.random.default_rng(0)
    params = [{"qkv": rng.normal(size=(width, 3 * width)), "out": rng.normal(size=(width, width)),
               "up": rng.normal(size=(width, hidden)), "down": rng.normal(size=(hidden, width))}
              for _ in range(layers)]  # fmt: skip

    def forward(params, x):
        for p in params:
            q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
            x = x + (q @ k.T) @ v @ p["out"]
            x = x + (x @ p["up"]) @ p["down"]
        return x

    counted = jax.jit(forward).lower(params, np.ones((n, width), np.float32)).compile().cost_analysis()["flops"]
    sizes = {"backbone": sum(x.size for x in jax.tree.leaves(params)), "later": 10**9}
    config = types.SimpleNamespace(width=width, n_layers=layers, channels=0)
    counts = {"contexts": 1, "tokens": n - 4, "queries": 4, "windows": 9, "seen": n * n}
    assert cost.model_flops(config, sizes, counts) == pytest.approx(3 * counted, rel=0.02)


def test_patches_count_for_the_local_encoder():
    config = types.SimpleNamespace(width=8, n_layers=1, channels=2, steps=12, patch_steps=4)
    counts = {"tokens": 0, "queries": 0, "windows": 5, "seen": 0}
    assert cost.model_flops(config, {"backbone": 100, "wear": 7}, counts) == 6 * 7 * 5 * 3


def test_parts_are_summed_and_sorted():
    params = {"a": {"x": np.zeros((2, 3))}, "b": {"y": np.zeros(4), "z": {"w": np.zeros((3, 3))}}}
    assert list(cost.parameters(params).items()) == [("b", 13), ("a", 6)]
