"""Computes z of people at prediction times from a trained model of any family."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from ehrwear_jax.data.formats.parquet import write_frame
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import Batch, Examples, Transform
from ehrwear_jax.runtime import checkpoint_manifest, files
from ehrwear_jax.runtime.checkpoint import DamagedCheckpoint, read_newest, read_parts
from ehrwear_jax.training import sharding
from ehrwear_jax.training.pretrain import LAST_STEP, MODEL, Model, make_task

STEP = "ehrwear_jax.step"  # in the metadata of a file of embeddings

# batch -> z [rows, slots, width] float32, on the host
Encoder = Callable[[Batch], np.ndarray]


def row_devices(batch_size: int) -> list[jax.Device]:
    """This process's accelerators that have equal parts of a batch's rows; one CPU: a program uses all its cores."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return devices[:1]
    return devices[: max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)]


def encoder(
    network: Any,
    variables: dict,
    dropout_seed: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    draw_seed: int | None = None,
) -> Encoder:
    """A network's `encode`, compiled for some of this process's devices.

    Args:
      network: made for these devices (`restore`).
      variables: {"params", "collections"}.
      dropout_seed: with it the dropout of training stays on, other masks for each row and each call in turn; the same
        seed and calls give the same masks (Monte Carlo dropout, interpret/uncertainty.py).
      devices: that share the rows of a batch; None: the first one.
      draw_seed: with it z is drawn from its posterior (`encode_drawn`), in the same way and without dropout.

    Raises:
      ValueError: dropout is to stay on in a network whose statistics would then be those of each batch.
    """
    if dropout_seed is not None and variables["collections"]:
        raise ValueError(f"dropout cannot stay on alone in a network that changes its {min(variables['collections'])}")
    mesh = sharding.make_mesh(devices or jax.local_devices()[:1])
    # by way of the host: parameters that lie on all processes cannot be moved to this one's device directly
    whole = {"params": variables["params"], **variables["collections"]}
    whole = jax.device_put(jax.device_get(whole), sharding.replicated(mesh))
    if (seed := dropout_seed if draw_seed is None else draw_seed) is None:
        encode = jax.jit(lambda v, b: network.apply(v, b, method="encode"))
        return lambda batch: np.asarray(encode(whole, sharding.device_batch(batch, mesh)))
    key, calls = jax.random.key(seed), itertools.count()

    @jax.jit
    def encode_at_random(v, b, call):
        rngs = {"dropout": jax.random.fold_in(key, call)}
        if draw_seed is not None:
            return network.apply(v, b, method="encode_drawn", rngs=rngs)
        return network.apply(v, b, deterministic=False, method="encode", rngs=rngs)

    return lambda batch: np.asarray(encode_at_random(whole, sharding.device_batch(batch, mesh), next(calls)))


def restore(
    folder: str | Path, model: Model, store: RecordStore, devices: Sequence[jax.Device] | None = None
) -> tuple[Examples, Any, dict]:
    """(examples of all people, network, {"params", "collections"}) of a trained model, as `read_variables` finds it.

    The variables lie on the host. The network is made for `devices`, None: this process's first one.

    Raises:
      FileNotFoundError: there is no checkpoint yet. ValueError: it is damaged, or of another model.
    """
    variables, number = read_variables(folder, model)
    where = f"{Path(folder) / 'checkpoints'}: checkpoint {number}"
    return (*assemble(model, store, variables, where, devices), variables)


def read_variables(folder: str | Path, model: Model) -> tuple[dict, int]:
    """({"params", "collections"} that z is computed with, step) of a trained model.

    Of a training that ended its last checkpoint, never an earlier one in the place of a damaged one; of one that runs,
    or was written before `last_step` was noted, the newest whole one.

    Raises:
      FileNotFoundError: there is no checkpoint yet. ValueError: it is damaged.
    """
    folder, ended = Path(folder) / "checkpoints", last_step(folder)
    if ended is None and not checkpoint_manifest.steps(folder):
        raise FileNotFoundError(f"{folder.parent}: no checkpoint; run the pretrain stage first")
    part = "best" if model.train.patience else "average" if model.train.ema_decay else "params"
    if ended is None:
        parts, number = read_newest(folder, (part, "collections"))
    else:
        parts, number = _read_last(folder, ended, (part, "collections")), ended
    if part == "best":
        return {"collections": {}} | parts["best"]["variables"], number
    return {"params": parts[part], "collections": parts.get("collections", {})}, number


def last_step(folder: str | Path) -> int | None:
    """The step at which the training in a folder ended, None before that."""
    return files.read_json(Path(folder) / MODEL, {}).get(LAST_STEP)


def _read_last(folder, ended, parts):
    try:
        return read_parts(folder / str(ended), parts)
    except DamagedCheckpoint as error:
        raise DamagedCheckpoint(
            f"{error}. The training ended there, and an earlier checkpoint is another model: remove "
            f"{folder / str(ended)} and run the stage pretrain, which goes on from the checkpoint before"
        ) from error


def assemble(
    model: Model, store: RecordStore, variables: dict, where: str, devices: Sequence[jax.Device] | None = None
) -> tuple[Examples, Any]:
    """(examples of all people, network) for variables, of which `where` says in an error where they are from.

    Raises:
      ValueError: they are of another model.
    """
    examples = model.module.examples(store.view(None), model.config, model.seed, train=False)
    task = make_task(model, examples.spec, sharding.make_mesh(devices or jax.local_devices()[:1]))
    want = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    got = (variables["params"], variables["collections"])
    if jax.tree.map(lambda x: tuple(x.shape), want) != jax.tree.map(lambda x: tuple(np.shape(x)), got):
        raise ValueError(f"{where} is of another model than the config says")
    return examples, task.network


def embed(
    encode: Encoder, examples: Examples, index: pl.DataFrame, batch_size: int, transform: Transform | None = None
) -> np.ndarray:
    """z at each (subject, prediction time), from what is known then: the mean over its slots (models/family.py).

    Args:
      index: subject_id, prediction_time (datetime us), all subjects prepared.
      transform: what becomes of a record before it is read, see data/perturbations.py.

    Returns:
      float32 [N, D] in the order of index; NaN where the model has nothing to read.

    Raises:
      ValueError: a subject that was not prepared.
    """
    position_N = positions(examples, index)
    time_N = index["prediction_time"].to_physical().to_numpy()
    total, count = None, np.zeros(len(position_N), np.int64)
    for batch, where in examples.prediction_batches(position_N, time_N, batch_size, transform):
        z_BxSxD, there = encode(batch), where >= 0
        total = np.zeros((len(position_N), z_BxSxD.shape[-1]), np.float32) if total is None else total
        np.add.at(total, where[there], z_BxSxD[there])
        np.add.at(count, where[there], 1)
    if total is None:  # nobody has anything to read
        width = encode(examples.spec.empty(batch_size)).shape[-1] if len(position_N) else 0
        return np.full((len(position_N), width), np.nan, np.float32)
    return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None].astype(np.float32), np.float32(np.nan))


def positions(examples: Examples, index: pl.DataFrame) -> np.ndarray:
    """Where the people of `index` are among those of the examples, int64 [N].

    Raises:
      ValueError: a subject that was not prepared.
    """
    order_P, subject_N = np.argsort(examples.subject_id, kind="stable"), index["subject_id"].to_numpy()
    known_P = examples.subject_id[order_P]
    at_N = np.minimum(np.searchsorted(known_P, subject_N), len(known_P) - 1)
    if len(missing := np.unique(subject_N[known_P[at_N] != subject_N])):
        raise ValueError(f"{len(missing)} subjects of the labels were not prepared, e.g. {missing[0]}")
    return order_P[at_N]


def shards(index: pl.DataFrame, people: int) -> list[pl.DataFrame]:
    """`index`, whose rows of a person follow each other, in parts of so many people: all times of a person in one.

    What is left of `index` without some of its shards has the others as its shards.
    """
    runs = index["subject_id"].rle().struct.field("len").to_numpy()
    first_P = np.concatenate([[0], np.cumsum(runs)])
    bounds = [*first_P[:-1:people].astype(int).tolist(), index.height]
    return [index.slice(begin, end - begin) for begin, end in itertools.pairwise(bounds)]


def write(path: Path, index: pl.DataFrame, z_NxD: np.ndarray, step: int | None = None) -> None:
    """Writes the embeddings of `index` as parquet, whole or not at all: its columns and `embedding` list<f32>.

    Args:
      step: of the network, in the file's metadata as STEP.
    """
    z = pl.Series("embedding", z_NxD.astype(np.float32, copy=False)).arr.to_list()
    write_frame(index.with_columns(z), path, {} if step is None else {STEP: str(step)})


def steps_of(folder: Path) -> list[int]:
    """Steps of the network whose embeddings lie in a folder, ascending; files that do not say are left out."""
    told = {pl.read_parquet_metadata(path).get(STEP) for path in folder.glob("*.parquet")}
    return sorted(int(step) for step in told if step is not None)


def read(path: Path) -> np.ndarray:
    """The embeddings that `write` wrote: float32 [N, D]."""
    z = pl.read_parquet(path, columns=["embedding"])["embedding"]
    return z.explode().to_numpy().reshape(len(z), -1)
