"""Counts parameters by part, and knows the peak of devices."""

from typing import Any

import jax

# Dense bfloat16 flops per second by the makers' data sheets; a device's kind begins with one of these names.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Flops per second of one device, or None where it is not known (CPUs)."""
    fitting = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def parameters(params: dict[str, Any]) -> dict[str, int]:
    """{part: number of parameters} of the parts of a network, largest first."""
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))
