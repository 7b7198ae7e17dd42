"""From a pretrained model to z: parameters of its newest checkpoint, and reads of people at prediction times."""

import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from tqdm import tqdm

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.runtime import checkpoint_manifest as manifest
from ehrwear_jax.runtime.checkpoint import read_newest
from ehrwear_jax.training import sharding
from ehrwear_jax.training.train import make_model


def make_encoder(patients, model_options, params, dropout_seed=None):
    """batch -> z_BxQxD float32 of the queries, on the host.

    dropout_seed: with it the dropout of training stays on, other masks for each row and each call in turn; the same
      seed and calls give the same masks (Monte Carlo dropout, evals/uncertainty.py).
    """
    model = make_model(patients, model_options)
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    # by way of the host: parameters that lie on all processes cannot be moved to this one's device directly
    params = jax.device_put(jax.device_get(params), sharding.replicated(mesh))
    if dropout_seed is None:
        encode = jax.jit(lambda p, b: model.apply({"params": p}, b, method="encode")[1])
        return lambda batch: np.asarray(encode(params, sharding.device_batch(batch, mesh)))
    key, calls = jax.random.key(dropout_seed), itertools.count()

    @jax.jit
    def encode_with_dropout(p, b, call):
        rngs = {"dropout": jax.random.fold_in(key, call)}
        return model.apply({"params": p}, b, deterministic=False, method="encode", rngs=rngs)[1]

    return lambda batch: np.asarray(encode_with_dropout(params, sharding.device_batch(batch, mesh), next(calls)))


def restore_params(folder, patients, model_options, config):
    """Parameters (averaged ones if there are) of the newest whole checkpoint of a pretraining folder, and its step.

    They lie on the host.

    Raises:
      FileNotFoundError: there is none yet. ValueError: it is damaged, or of another model.
    """
    folder, part = Path(folder) / "checkpoints", "average" if config.ema_decay else "params"
    if not manifest.steps(folder):
        raise FileNotFoundError(f"{folder.parent}: no checkpoint; run the pretrain stage first")
    parts, step = read_newest(folder, (part,))
    example = batch_lib.empty_batch(patients.batch_shape(), 1)
    model = make_model(patients, model_options)
    want = jax.eval_shape(lambda: model.init(jax.random.key(config.seed), example)["params"])
    got = parts[part]
    if jax.tree.map(jnp.shape, got) != jax.tree.map(jnp.shape, want):
        raise ValueError(f"{folder}: checkpoint {step} is of another model than the config says")
    return got, step


def embed(encode, patients, index, batch_size, transform=None):
    """z at each (subject, prediction time), from what is known then.

    Args:
      encode: from make_encoder.
      index: subject_id, prediction_time (datetime us), all subjects prepared.
      transform: what becomes of a patient before the read, see pipeline.inference_batches.

    Returns:
      float32 [N, D] in the order of index.
    """
    place = dict(zip(patients.index["subject_id"].to_list(), range(len(patients)), strict=True))
    if missing := set(index["subject_id"].to_list()) - place.keys():
        raise ValueError(
            f"{patients.folder}: {len(missing)} subjects of the labels were not prepared, e.g. {min(missing)}"
        )
    index_N = np.array([place[s] for s in index["subject_id"].to_list()], np.int64)
    time_N = index["prediction_time"].to_physical().to_numpy()
    out = None
    for batch, where in pipeline.inference_batches(patients, index_N, time_N, batch_size, transform):
        z_BxQxD = encode(batch)
        out = np.zeros((len(index_N), z_BxQxD.shape[-1]), np.float32) if out is None else out
        out[where[where >= 0]] = z_BxQxD[where >= 0]
    return out


def embed_to(path, encode, patients, index, batch_size, part_rows=20_000):
    """Writes the embeddings of `index` as parquet: its columns and `embedding` list<f32>; resumes at the part."""
    path = Path(path)
    parts_dir = path.with_suffix(".parts")
    parts_dir.mkdir(parents=True, exist_ok=True)
    parts = []
    for begin in tqdm(range(0, index.height, part_rows), f"embed {path.stem}", unit="part", disable=None):
        part = parts_dir / f"{begin:09d}.parquet"
        if not part.exists():
            rows = index.slice(begin, part_rows)
            z = embed(encode, patients, rows, batch_size)
            rows.with_columns(pl.Series("embedding", z.tolist(), dtype=pl.List(pl.Float32))).write_parquet(
                f"{part}.partial"
            )
            os.replace(f"{part}.partial", part)
        parts.append(part)
    pl.concat([pl.read_parquet(p) for p in parts]).write_parquet(f"{path}.partial")
    os.replace(f"{path}.partial", path)
    for part in parts:
        part.unlink()
    parts_dir.rmdir()
