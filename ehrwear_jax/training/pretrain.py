"""Pretrains a model of any family: where records meet a network."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.config import options
from ehrwear_jax.config.training import TRAIN_NOT_RESULTS, TRAIN_RESULTS_WITH, MeshConfig, TrainConfig
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models import registry
from ehrwear_jax.models.family import BatchSpec, Examples, Family
from ehrwear_jax.runtime import distributed, files
from ehrwear_jax.training import cost, feed, gradients, sharding, step, warm_start
from ehrwear_jax.training.loop import Job, fit
from ehrwear_jax.training.optimizer import make_optimizer
from ehrwear_jax.training.throughput import Throughput

MODEL, LAST_STEP = "model.json", "last_step"


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained: a member of a family.

    Attributes:
      name: as in config.models. family: see models/registry.py. config: the family's Config.
      train: TrainConfig. seed: of the parameters, the batches and dropout.
    """

    name: str
    family: str
    config: Any
    train: TrainConfig = TrainConfig()
    seed: int = 0

    @property
    def module(self) -> Family:
        """The family."""
        return registry.load(self.family)

    def identity(self) -> dict:
        """JSON-able dict of what its parameters depend on beside the data."""
        on = [names for option, names in TRAIN_RESULTS_WITH.items() if getattr(self.train, option)]
        left_out = set(TRAIN_NOT_RESULTS).difference(*on)
        train = {k: v for k, v in options.identity(self.train).items() if k not in left_out}
        return {
            "family": self.family,
            "config": without(options.identity(self.config), getattr(self.config, "NOT_RESULTS", ())),
            "train": train,
            "seed": self.seed,
        }


class Needed(NamedTuple):
    """A trained network that another one's training calls; its variables as embedding.restore returns them."""

    network: nn.Module
    variables: dict


def without(values: dict, names: tuple[str, ...]) -> dict:
    """A nested dict without some of its values, named by dotted paths."""
    out = dict(values)
    for name in names:
        key, _, rest = name.partition(".")
        if key in out:
            if rest:
                out[key] = without(out[key], (rest,))
            else:
                del out[key]
    return out


def with_rows(config: TrainConfig, mesh: jax.sharding.Mesh) -> TrainConfig:
    """A TrainConfig whose batch_size is that of the global batch on this mesh.

    Raises:
      ValueError: micro-batches do not divide over the devices.
    """
    n = sharding.n_row_devices(mesh)
    if config.rows_per_device:
        config = dataclasses.replace(config, batch_size=config.rows_per_device * n, rows_per_device=0)
    rows = config.batch_size // config.accumulate
    if rows % n:
        raise ValueError(
            f"config.train.accumulate={config.accumulate} leaves {rows} rows at a time, which do not divide over {n} "
            "devices"
        )
    return config


def make_task(
    model: Model,
    spec: BatchSpec,
    mesh: jax.sharding.Mesh,
    mesh_config: MeshConfig | None = None,
    needed: Mapping[str, Needed] | None = None,
) -> step.NetworkTask:
    """The model's network and objective on a mesh.

    Args:
      mesh_config: see sharding.mesh_ops. needed: to train it, see models/family.py.
    """
    network = model.module.network(spec, model.config, sharding.mesh_ops(mesh, mesh_config))
    networks = {name: other.network for name, other in (needed or {}).items()}
    return step.NetworkTask(network, spec, model.module.objective(spec, model.config), networks)


def pretrain(
    folder: str | Path,
    model: Model,
    store: RecordStore,
    mesh_config: MeshConfig | None = None,
    needed: Mapping[str, Needed] | None = None,
) -> tuple[dict, int]:
    """Trains to model.train.steps, from the newest checkpoint in `folder`, else from train.init_from, else anew.

    Args:
      folder: receives checkpoints/, metrics.jsonl, tensorboard/, model.json and what Supervision writes.
      store: of all splits; the training split is learned from and the tuning split validates.
      needed: {model: network} of those in the Config's `needs`.

    Returns:
      ({"params", "collections"}, step reached).

    Raises:
      RunError: one of runtime/exit_codes.py's: the folder is in use or of another config, a signal, no room, no finite
        step.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh(config=mesh_config)
    config = with_rows(model.train, mesh)
    model = dataclasses.replace(model, train=config)
    examples = model.module.examples(store.view("train", pretraining=True), model.config, model.seed)
    held = model.module.examples(store.view("tuning", pretraining=True), model.config, model.seed, train=False)
    _require_validation(config, held)
    task = make_task(model, examples.spec, mesh, mesh_config, needed)
    frozen = _frozen(needed or {}, mesh)
    sizes = cost.parameters(jax.eval_shape(lambda: task.init(jax.random.key(0))[0]))
    write_model(folder, model, examples, sizes)
    logging.info("%s: %d parameters", model.name, sum(sizes.values()))
    flops = functools.partial(model.module.flops, examples.spec, model.config, sizes)
    share = feed.Share(*sharding.row_share(mesh))
    job = Job(
        folder=folder,
        task=task,
        optimizer=make_optimizer(config),
        config=config,
        seed=model.seed,
        mesh=mesh,
        batches=lambda begin: feed.train_batches(
            examples, config.batch_size, share, start_step=begin, threads=config.data_threads,
            workers=config.data_workers,
        ),
        validate=validation(held, task, config, mesh, frozen),
        frozen=frozen,
        measure=gradients.measurement(task, config, mesh),
        throughput=lambda begin: Throughput(examples.counts, flops, mesh, begin),
        subjects=lambda done: examples.subjects(range((done - 1) * config.batch_size, done * config.batch_size)),
        about=model.identity() | {"data": store.digest()},
        start=lambda state: _warm(state, config, examples, task, folder),
    )  # fmt: skip
    state, done = fit(job)
    _note_end(folder, done)
    return step.best_variables(state), done


def _require_validation(config, held):
    """ValueError where patience waits for losses that nobody computes."""
    if config.patience and not config.validate_batches:
        raise ValueError("config.train.patience waits for a lower validation loss: validate_batches must be positive")
    if config.patience and not len(held.subject_id):
        raise ValueError("config.train.patience waits for a lower loss on the tuning split, which has nobody")


def _note_end(folder, done):
    """Adds to model.json the step that training ended with, which embeddings are computed of."""
    if distributed.is_first():
        files.write_json(folder / MODEL, files.read_json(folder / MODEL) | {LAST_STEP: done}, indent=1)


def _frozen(needed, mesh):
    """{model: variables of its network}, whole on every device."""
    found = {name: {"params": n.variables["params"], **n.variables["collections"]} for name, n in needed.items()}
    return jax.device_put(found, sharding.replicated(mesh))


def _warm(state, config, examples, task, folder):
    if not config.init_from:
        return state
    names = warm_start.Places.of(examples, task.axes)
    state = state | {"params": warm_start.from_run(config.init_from, state["params"], names, folder)}
    if "average" in state:
        state["average"] = jax.tree.map(jax.numpy.copy, state["params"])
    return state


def write_model(folder: Path, model: Model, examples: Examples, sizes: dict[str, int]) -> None:
    """Notes in a model's folder what it is, its number of parameters, and what the places of its tables are called."""
    if distributed.is_first():
        about = {"name": model.name, **model.identity(), "parameters": sum(sizes.values()), "parts": sizes}
        files.write_json(folder / MODEL, about, indent=1)
        warm_start.write_names(folder, examples)


def validation(
    examples: Examples, task: step.Task, config: TrainConfig, mesh: jax.sharding.Mesh, frozen: Any = None
) -> Callable[[step.State], dict[str, float]]:
    """state -> {"validation/<metric>": over the first batches of the split}, at the final loss weights.

    As of one large batch: a batch with few targets counts for little. Only contrasts compare within each of them. The
    batches are made once, and lie on the devices.

    Args:
      frozen: see step.Task.
    """
    batches: list[dict] = []
    whole: dict = {}
    weights = task.objective.weights(config.steps)
    validate = jax.jit(
        lambda v, fixed, b, whole: step.validation_step(
            v, b, task=task, weights=weights, normalisers=whole, frozen=fixed
        )
    )

    def run(state):
        if not batches and len(examples.subject_id) and config.validate_batches:
            n = min(config.validate_batches, max(1, examples.rows_per_epoch // config.batch_size))
            share = feed.Share(*sharding.row_share(mesh))
            made = feed.train_batches(examples, config.batch_size, share, n_steps=n, threads=0)
            batches.extend(sharding.device_batch(b, mesh) for b in made)
            joined = jax.jit(lambda bs: task.objective.normalisers(jax.tree.map(lambda *x: jnp.concatenate(x), *bs)))
            whole.update(joined(batches))
        results = [jax.device_get(validate(step.read_variables(state), frozen, b, whole)) for b in batches]
        return {f"validation/{k}": float(np.sum([r[k] for r in results])) for k in (results[0] if results else {})}

    return run
