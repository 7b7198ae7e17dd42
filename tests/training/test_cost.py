"""Parameters counted by hand, and the peaks of devices."""

import numpy as np
import pytest

from ehrwear_jax.training import cost


@pytest.mark.parametrize(
    "kind, peak",
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-40GB", 312e12),
     ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("cpu", None), ("NVIDIA GeForce RTX 4090", None)],
)  # fmt: skip
def test_the_peak_is_the_makers_or_unknown(kind, peak):
    assert cost.peak_flops(kind) == peak


def test_parts_are_summed_and_sorted():
    params = {"a": {"x": np.zeros((2, 3))}, "b": {"y": np.zeros(4), "z": {"w": np.zeros((3, 3))}}}
    assert list(cost.parameters(params).items()) == [("b", 13), ("a", 6)]
