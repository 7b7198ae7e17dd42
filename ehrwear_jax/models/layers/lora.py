"""Adds low-rank updates to kernels (LoRA, Hu et al. 2021) as functions of the parameters: networks know nothing of it.

An update of a kernel that maps I inputs to O outputs is A_IxR @ B_RxO times a scale; layers of a scanned stack have one
each. B starts at zero, so that the updated parameters begin as the given ones.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from ehrwear_jax.models.layers.dense import LAYERS

Axes = Mapping[str, tuple[str | None, ...]]


def _dimensions(name, shape, axes):
    """(layers, inputs, outputs) of a kernel: sizes of its leading, middle and last dimensions.

    A kernel whose first axis is the residual stream reads it with one axis; another one writes to its last axis.

    Raises:
      ValueError: it is no kernel of a product.
    """
    names = axes.get(name, (None,) * len(shape))
    stack = 1 if names[0] == LAYERS else 0
    inner = shape[stack:]
    if name.rpartition("/")[2] != "kernel" or len(inner) < 2:
        raise ValueError(f"{name} {tuple(shape)} is no kernel of a product: nothing for a low-rank update")
    n_inputs = 1 if len(inner) == 2 or names[stack] == "embed" else len(inner) - 1
    return shape[:stack], inner[:n_inputs], inner[n_inputs:]


def init(key: jax.Array, params: Any, axes: Axes, pattern: str, rank: int) -> dict[str, dict[str, jax.Array]]:
    """Updates of the kernels whose whole path the pattern matches, e.g. "backbone/blocks/(query|value)/kernel".

    Args:
      params: nested dict. axes: {path: logical names of the axes}. pattern: regular expression over the path.

    Returns:
      {path: {"a": [..., I, R] normal with variance 1 / I, "b": [..., R, O] zeros}} float32.

    Raises:
      ValueError: nothing matches, or something that is no kernel.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    found = sorted(name for name in flat if re.fullmatch(pattern, name))
    if not found:
        raise ValueError(f"no parameter matches {pattern!r}; there are {', '.join(sorted(flat)[:3])}, ...")
    out = {}
    for name, one_key in zip(found, jax.random.split(key, len(found)), strict=True):
        layers, inputs, outputs = _dimensions(name, flat[name].shape, axes)
        n_in, n_out = math.prod(inputs), math.prod(outputs)
        a = jax.random.normal(one_key, (*layers, n_in, rank)) / math.sqrt(n_in)
        out[name] = {"a": a, "b": jnp.zeros((*layers, rank, n_out))}
    return out


def merge(params: Any, updates: Mapping[str, Mapping[str, jax.Array]], scale: float) -> Any:
    """The parameters with scale * A @ B added to each updated kernel; all others are the given arrays."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for name, update in updates.items():
        kernel = flat[name]
        change = scale * jnp.matmul(update["a"], update["b"], precision="highest")
        flat[name] = kernel + change.reshape(kernel.shape).astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat, sep="/")
