"""Makes AdamW as the paper has it, sums gradients over micro-batches, averages weights."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.training import schedules


def decayed(params: Any) -> Any:
    """Which parameters decay: kernels of products; no norms, biases, embeddings or parameters of time kernels."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW behind a clip of the global norm (paper, section 3.5); batch_size says for how many rows."""
    peak = schedules.peak_rate(config.peak_learning_rate, config.batch_size, config.rate_rows)
    rate = schedules.learning_rate(peak, config.warmup_steps, config.steps, config.decay)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(rate, b2=config.adam_b2, weight_decay=config.weight_decay, mask=decayed),
    )


class Summed(NamedTuple):
    """Sums over micro-batches, and the collections that the last one left."""

    value: jax.Array
    metrics: dict
    gradient: Any
    collections: dict


def summed_gradients(objective: Callable, variables: tuple, batch: dict, key: jax.Array, n_micro: int) -> Summed:
    """Value, metrics and gradient of an objective that is a sum over rows, `n_micro` parts of the batch at a time.

    Only one part's activations are held. Row r is in part r % n_micro, so that each device gives its share of each.

    Args:
      objective: (params, collections, rows, key) -> (scalar, (metrics, collections)); all but the latter add up.
      variables: (params, collections).
      batch: {name: [B, ...]}.

    Raises:
      ValueError: n_micro does not divide B.
    """
    params, collections = variables
    gradient = jax.value_and_grad(objective, has_aux=True)
    if n_micro == 1:
        (value, (metrics, collections)), grads = gradient(params, collections, batch, key)
        return Summed(value, metrics, grads, collections)
    n_rows = next(iter(batch.values())).shape[0]
    if n_rows % n_micro:
        raise ValueError(f"a batch of {n_rows} rows does not divide into {n_micro} micro-batches")
    parts = {k: jnp.swapaxes(x.reshape(n_rows // n_micro, n_micro, *x.shape[1:]), 0, 1) for k, x in batch.items()}
    keys = jax.random.split(key, n_micro)

    @functools.partial(jax.jit, inline=True)  # so that its trace for the shapes serves the loop
    def one(params, collections, part):
        (value, (metrics, collections)), grads = gradient(params, collections, *part)
        return (value, metrics, grads), collections

    def add(carry, part):
        total, collections = carry
        found, collections = one(params, collections, part)
        return (jax.tree.map(jnp.add, total, found), collections), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, params, collections, first)[0])
    ((value, metrics, grads), collections), _ = jax.lax.scan(add, (zero, collections), (parts, keys))
    return Summed(value, metrics, grads, collections)


def average(averaged: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """Exponential moving average of weights; early on it forgets faster, so that the start is not remembered."""
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(params, averaged, 1.0 - kept)
