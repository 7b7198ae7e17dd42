"""Computes training steps: the state, one update of it, validation. Pure functions of arrays."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.models.family import BatchSpec, Objective
from ehrwear_jax.training import sharding
from ehrwear_jax.training.loss_weights import balanced
from ehrwear_jax.training.optimizer import average, summed_gradients

State = dict[str, Any]
CompilerOptions = dict[str, bool | int | str | float]


def runs_once(platform: str) -> CompilerOptions | None:
    """XLA's options for what runs once or a few times; same numbers.

    Making code fast for a CPU takes longer than running it then.
    """
    quick: CompilerOptions = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return quick if platform == "cpu" else None


class Task(Protocol):
    """What is trained: a network with its objective, or a pretrained one with a head and what may change of it.

    Attributes:
      objective: see models/family.py.
      axes: {path of a parameter: logical names of its axes}.
    """

    @property
    def objective(self) -> Objective: ...

    @property
    def axes(self) -> Mapping[str, tuple[str | None, ...]]: ...

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """(parameters, further collections that change without a gradient, by name)."""
        ...

    def apply(
        self, params: dict, collections: dict, frozen: Any, batch: dict, dropout_key: jax.Array | None
    ) -> tuple[Any, dict]:
        """(what the objective takes, collections); without a key as at inference, and collections as they were."""
        ...


@dataclasses.dataclass(frozen=True)
class NetworkTask:
    """A family's network trained from the start.

    Attributes:
      needed: {model: network} of those that its training calls; frozen are {model: their variables}.
    """

    network: nn.Module
    spec: BatchSpec
    objective: Objective
    needed: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def _variables(self):
        # one trace serves the names of axes, the shapes of the state and its making
        return jax.jit(lambda key: self.network.init(key, self.spec.empty(1)), inline=True)

    @functools.cached_property
    def axes(self) -> dict[str, tuple[str | None, ...]]:
        """Logical names of the axes of each parameter that has any."""
        return _names(jax.eval_shape(self._variables, jax.random.key(0)))

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """Initial variables."""
        return split_variables(self._variables(key))

    def apply(
        self, params: dict, collections: dict, frozen: Any, batch: dict, dropout_key: jax.Array | None
    ) -> tuple[Any, dict]:
        """The network's output."""
        variables, more = {"params": params, **collections}, dict[str, Any]()
        if self.needed:
            more["needed"] = {name: functools.partial(n.apply, frozen[name]) for name, n in self.needed.items()}
        if dropout_key is None:
            return self.network.apply(variables, batch, deterministic=True, **more), collections
        rngs = {"dropout": dropout_key}
        mutable = list(collections) or False
        out: Any = self.network.apply(variables, batch, deterministic=False, rngs=rngs, mutable=mutable, **more)
        return out if collections else (out, collections)


def split_variables(variables: Mapping[str, Any]) -> tuple[dict, dict]:
    """(parameters, further collections) of a network's variables, without their axes' names.

    What a network sows or perturbs for others to look at is no state.
    """
    found = dict(nn.meta.unbox(variables))
    params = found.pop("params", {})
    return params, {k: v for k, v in found.items() if k not in ("perturbations", "intermediates")}


def parameter_axes(network: nn.Module, spec: BatchSpec) -> dict[str, tuple[str | None, ...]]:
    """{path of a parameter: logical names of its axes}, of the parameters that carry names."""
    return _names(jax.eval_shape(lambda: network.init(jax.random.key(0), spec.empty(1))))


def _names(variables):
    named = traverse_util.flatten_dict(nn.get_partition_spec(variables["params"]), sep="/")
    return {path: tuple(names) for path, names in named.items() if any(names)}


# ------------------------------------------------------------------------------------------------------- the state


def _initial(task, optimizer, config, seed):
    def init():
        params, collections = task.init(jax.random.key(seed))
        zero = jnp.zeros((), jnp.int32)
        state = {"step": zero, "params": params, "optimizer": optimizer.init(params), "skipped": zero}
        state |= {"collections": collections} if collections else {}
        state |= {"average": jax.tree.map(jnp.copy, params)} if config.ema_decay else {}
        if config.weights_from_gradients:
            state["gradients"] = {name: jnp.zeros(()) for name in task.objective.weights(0)}
        if config.patience:
            best = jax.tree.map(jnp.copy, read_variables(state))
            state["best"] = {"variables": best, "loss": jnp.float32(jnp.inf), "step": zero}
        return state

    return init


def abstract_state(
    task: Task, optimizer: optax.GradientTransformation, config: TrainConfig, mesh: jax.sharding.Mesh
) -> State:
    """Shapes and shardings of the training state; nothing is computed.

    The state: {"step", "params", "optimizer", "skipped"}; "collections" if there are any; "average" of the params with
    ema_decay; "gradients", averaged norms on z by term, with weights_from_gradients; with patience "best":
    {"variables", "loss", "step"} of the lowest validation loss.
    """
    shapes = jax.eval_shape(_initial(task, optimizer, config, 0))
    places = sharding.state_sharding(shapes, mesh, task.axes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)


def init_state(
    task: Task, optimizer: optax.GradientTransformation, config: TrainConfig, mesh: jax.sharding.Mesh, seed: int
) -> State:
    """The state that `abstract_state` describes; no device ever holds more of it than its part."""
    places = jax.tree.map(lambda x: x.sharding, abstract_state(task, optimizer, config, mesh))
    options = runs_once(mesh.devices.flat[0].platform)
    return jax.jit(_initial(task, optimizer, config, seed), out_shardings=places, compiler_options=options)()


def read_variables(state: State) -> dict:
    """{"params", "collections"} as they are now: averaged parameters if there are any."""
    return {"params": state.get("average", state["params"]), "collections": state.get("collections", {})}


def best_variables(state: State) -> dict:
    """{"params", "collections"} that are used after training: of the lowest validation loss, if that was kept."""
    return state["best"]["variables"] if "best" in state else read_variables(state)


@functools.partial(jax.jit, donate_argnums=0)
def note_best(best: dict, variables: dict, loss: jax.Array, step: jax.Array) -> dict:
    """The state's "best" after a validation loss; NaN is no lower loss."""
    now = {"variables": variables, "loss": loss, "step": step}
    return jax.tree.map(lambda a, b: jnp.where(loss < best["loss"], a, b), now, best)


# ------------------------------------------------------------------------------------------------------- steps


def train_step(
    state: State, frozen: Any, batch: dict, *, task: Task, optimizer: optax.GradientTransformation, config: TrainConfig,
    seed: int,
) -> tuple[State, dict]:  # fmt: skip
    """One update; a step whose loss or gradient is not finite changes nothing but the counters.

    Returns:
      (state, metrics: {name: float32 scalar}).
    """
    key = jax.random.fold_in(jax.random.key(seed), state["step"])
    weights = task.objective.weights(state["step"])
    weights = balanced(weights, state["gradients"]) if config.weights_from_gradients else weights
    whole = task.objective.normalisers(batch)
    collections = state.get("collections", {})

    def loss(params, collections, rows, key):
        out, collections = task.apply(params, collections, frozen, rows, key)
        value, metrics = task.objective(out, rows, weights, whole)
        return value, (metrics, collections)

    found = summed_gradients(loss, (state["params"], collections), batch, key, config.accumulate)
    norm = optax.tree.norm(found.gradient)
    finite = jnp.isfinite(found.value) & jnp.isfinite(norm)
    updates, optimizer_state = optimizer.update(found.gradient, state["optimizer"], state["params"])
    new = {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer_state}
    new |= {"collections": found.collections} if collections else {}
    new = state | jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, {name: state[name] for name in new})
    new |= {"step": state["step"] + 1, "skipped": jnp.where(finite, 0, state["skipped"] + 1)}
    if config.ema_decay:
        new["average"] = average(state["average"], new["params"], state["step"], config.ema_decay)
    counters = {"gradient_norm": norm, "finite": finite.astype(jnp.float32), "skipped": new["skipped"]}
    counters |= {f"weight/{name}": w for name, w in weights.items()} if config.weights_from_gradients else {}
    return new, found.metrics | counters


def jit_step(
    task: Task, optimizer: optax.GradientTransformation, config: TrainConfig, seed: int, state: State
) -> jax.stages.Wrapped:
    """train_step compiled, (state, frozen, batch) -> (state, metrics); the new state takes the old one's place."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    mesh = next(iter(jax.tree.leaves(shardings))).mesh
    step = functools.partial(train_step, task=task, optimizer=optimizer, config=config, seed=seed)
    # shardings as they came in, so that the second step does not compile again
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))


def validation_step(
    variables: dict,
    batch: dict,
    *,
    task: Task,
    weights: Mapping[str, jax.Array | float],
    normalisers: Mapping[str, Any],
    frozen: Any = None,
) -> dict[str, jax.Array]:
    """A batch's part of the losses without dropout at the given weights: {name: float32 scalar}.

    Args:
      normalisers: of all batches together; their parts add up.
      frozen: see Task.apply.
    """
    out, _ = task.apply(variables["params"], variables["collections"], frozen or {}, batch, None)
    return task.objective(out, batch, weights, normalisers)[1]
