"""Makes the optimiser (AdamW as the paper has it), sums gradients over micro-batches, averages weights."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from ehrwear_jax.training import schedules

if TYPE_CHECKING:
    from ehrwear_jax.training.train import TrainConfig

PyTree = Any  # of arrays
Batch = Mapping[str, jax.Array]

# v_j of the modality bias u_m . v_j: a parameter of the attention kernel, though a matrix
NOT_DECAYED = ("source",)


def decayed(params: PyTree) -> PyTree:
    """Weight decay acts on matrices only: not on norms, biases, embeddings or parameters of the attention kernel."""

    def is_decayed(path, _):
        names = [key.key for key in path]
        return names[-1] == "kernel" and not any(name in NOT_DECAYED for name in names)

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(config: "TrainConfig") -> optax.GradientTransformation:
    """AdamW behind a clip of the global norm (paper, section 3.5); config: train.TrainConfig."""
    rate = schedules.learning_rate(config.peak_learning_rate, config.warmup_steps, config.steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(rate, b2=config.adam_b2, weight_decay=config.weight_decay, mask=decayed),
    )


def summed_gradients(
    objective: Callable[[PyTree, Batch, jax.Array], tuple[jax.Array, PyTree]],
    params: PyTree,
    batch: Batch,
    key: jax.Array,
    n_micro: int,
) -> tuple[tuple[jax.Array, PyTree], PyTree]:
    """Value, metrics and gradient of an objective that is a sum over rows, `n_micro` parts of the batch at a time.

    Only one part's activations are held. Row r is in part r % n_micro, so that each device gives its share of each.

    Args:
      objective: (params, rows, key) -> (scalar, metrics); all three add up over parts.
      batch: {name: [B, ...]}.

    Returns:
      ((scalar, metrics), gradient), sums over the parts.

    Raises:
      ValueError: n_micro does not divide B.
    """
    gradient = jax.value_and_grad(objective, has_aux=True)
    if n_micro == 1:
        return gradient(params, batch, key)
    n_rows = next(iter(batch.values())).shape[0]
    if n_rows % n_micro:
        raise ValueError(f"a batch of {n_rows} rows does not divide into {n_micro} micro-batches")
    parts = {k: jnp.swapaxes(x.reshape(n_rows // n_micro, n_micro, *x.shape[1:]), 0, 1) for k, x in batch.items()}
    keys = jax.random.split(key, n_micro)

    def add(carry, part):
        return jax.tree.map(jnp.add, carry, gradient(params, *part)), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, *first))
    return jax.lax.scan(add, zero, (parts, keys))[0]


def average(averaged: PyTree, params: PyTree, step: jax.Array, decay: float | jax.Array) -> PyTree:
    """Exponential moving average of weights; early on it forgets faster, so that the start is not remembered."""
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, averaged, params)
