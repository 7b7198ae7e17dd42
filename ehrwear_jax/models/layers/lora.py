"""Low-rank updates of kernels (LoRA, Hu et al. 2021) as functions of the parameters: the model's code knows nothing.

An update of a kernel that maps I inputs to O outputs is A_IxR @ B_RxO times a scale; layers of a scanned stack have one
each. B starts at zero, so that the updated parameters begin as the given ones.
"""

import math
import re

import jax
import jax.numpy as jnp
from flax import traverse_util


def _dimensions(name, shape):
    """(layers, inputs, outputs) of a kernel: shapes of its leading, middle and last dimensions.

    Raises:
      ValueError: it is no kernel of a product.
    """
    parts = name.split("/")
    stack = 1 if "blocks" in parts else 0
    inner = shape[stack:]
    if parts[-1] != "kernel" or len(inner) < 2:
        raise ValueError(f"{name} {tuple(shape)} is no kernel of a product: nothing for a low-rank update")
    # of all products, only that of the heads' results has more than one dimension of inputs
    n_inputs = len(inner) - 1 if parts[-2] == "out" else 1
    return shape[:stack], inner[:n_inputs], inner[n_inputs:]


def init(key, params, pattern, rank):
    """Updates of the kernels whose whole path the pattern matches, e.g. "backbone/blocks/(query|value)/kernel".

    Args:
      params: nested dict. pattern: regular expression over the path with "/" between names.

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
        layers, inputs, outputs = _dimensions(name, flat[name].shape)
        n_in, n_out = math.prod(inputs), math.prod(outputs)
        a = jax.random.normal(one_key, (*layers, n_in, rank)) / math.sqrt(n_in)
        out[name] = {"a": a, "b": jnp.zeros((*layers, rank, n_out))}
    return out


def merge(params, updates, scale):
    """The parameters with scale * A @ B added to each updated kernel; all others are the given arrays."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for name, update in updates.items():
        kernel = flat[name]
        change = scale * jnp.matmul(update["a"], update["b"], precision="highest")
        flat[name] = kernel + change.reshape(kernel.shape).astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat, sep="/")
