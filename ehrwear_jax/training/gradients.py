"""Measures what each loss term asks of z: the norm of its gradient there, by which loss_weights.py weighs terms.

A network that can be measured has two methods beside `__call__`, its halves at inference: read(batch) -> (z, more)
and predicted(z, more, batch, names) -> {term: what its loss takes}; its objective has only(name), the objective of one
term (models/objective.py). Once the first half was computed, each term costs its own head forward and backward: the
encoders and the backbone are gone through once, and forward alone.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.training import sharding
from ehrwear_jax.training.loss_weights import averaged, balanced
from ehrwear_jax.training.step import NetworkTask, State, runs_once

Measurement = Callable[[State, dict], tuple[State, dict[str, float]]]
MEASURED = ("step", "params", "collections", "gradients")  # what is read of a state


def gradient_norms(task: NetworkTask, variables: Mapping[str, Any], batch: dict) -> dict[str, jax.Array]:
    """Norm over the batch of each term's gradient on z, at weight 1 and without dropout: {term: float32 scalar}.

    Zero of a term that does not read z, as one that compares contents. Under `jax.jit` the batch is the global one.
    """
    apply, whole = functools.partial(task.network.apply, variables), cast(Any, task.objective)
    z, more = apply(batch, method="read")

    def norm(name):
        objective = whole.only(name)

        def loss(z):
            out = apply(z, more, batch, (name,), method="predicted")
            return objective(out, batch, {name: 1.0}, objective.normalisers(batch))[0]

        return optax.tree.norm(jax.grad(loss)(z)).astype(jnp.float32)

    return {name: norm(name) for name in task.objective.weights(0)}


def measurement(task: NetworkTask, config: TrainConfig, mesh: jax.sharding.Mesh) -> Measurement | None:
    """(state, batch) -> (state, {"gradient/<term>", "share/<term>"}); None where nothing is to be measured.

    Of a batch that is cut into micro-batches the first is measured, as no more fits. A share is what a term's norm,
    times what its loss is multiplied by, is of the sum over all terms. With config.weights_from_gradients the state's
    "gradients", the averaged norms, have changed.

    Raises:
      ValueError: weights depend on what cannot be measured, for want of the network's two halves.
    """
    halves = hasattr(task.network, "read") and hasattr(task.network, "predicted")
    can = halves and hasattr(task.objective, "only")
    if config.weights_from_gradients and not can:
        raise ValueError(
            "config.train.weights_from_gradients: the family's network has no methods read and predicted, see "
            "ehrwear_jax/training/gradients.py"
        )
    if not config.gradients_every or not can:
        return None

    def measured(state, batch):
        rows = {k: x.reshape(-1, config.accumulate, *x.shape[1:])[:, 0] for k, x in batch.items()}
        norms = gradient_norms(task, {"params": state["params"], **state.get("collections", {})}, rows)
        weights, kept = task.objective.weights(state["step"]), None
        if config.weights_from_gradients:
            before = state["gradients"]
            kept = {name: averaged(before[name], norm, config.gradients_decay) for name, norm in norms.items()}
            weights = balanced(weights, kept)
        weighted = {name: weights[name] * norm for name, norm in norms.items()}
        total = jnp.maximum(functools.reduce(jnp.add, weighted.values()), 1e-30)
        found = {f"gradient/{name}": norm for name, norm in norms.items()}
        return kept, found | {f"share/{name}": x / total for name, x in weighted.items()}

    options = runs_once(mesh.devices.flat[0].platform)
    compiled = jax.jit(measured, out_shardings=sharding.replicated(mesh), compiler_options=options)

    def measure(state, batch):
        kept, found = compiled({name: state[name] for name in MEASURED if name in state}, batch)
        state = state if kept is None else state | {"gradients": kept}
        return state, {name: float(x) for name, x in jax.device_get(found).items()}

    return measure
