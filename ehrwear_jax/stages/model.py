"""The pretrain and embed stages: one model per row of the config and per fold."""

import logging
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.runtime import distributed
from ehrwear_jax.stages import prepare
from ehrwear_jax.training import embedding, train


def _patients(config, workdir, fold, row, split=None):
    return pipeline.Patients(prepare.open_store(workdir, fold, split), config_lib.context_config(config, row))


def restored(config, workdir, fold, row):
    """(patients of all splits, parameters of the newest checkpoint) of a pretrained row."""
    patients = _patients(config, workdir, fold, row)
    folder = Path(workdir) / "pretrain" / fold / row
    options = config_lib.model_options(config), config_lib.train_config(config)
    return patients, embedding.restore_params(folder, patients, *options)[0]


def pretrain(config, workdir):
    """Pretrains every row; False if config.train.stop_after ended it before the last step."""
    complete, options = True, config_lib.train_config(config)
    for fold, _ in config_lib.folds(config):
        for row in config.rows:
            patients, tuning = (_patients(config, workdir, fold, row, s) for s in ("train", "tuning"))
            folder = Path(workdir) / "pretrain" / fold / row
            model = config_lib.model_options(config)
            _, step = train.pretrain(folder, patients, tuning, model, options, config_lib.mesh_config(config))
            complete &= step >= options.steps
            if distributed.is_first():
                patients.vocabulary.save(folder)
    return complete


def embed(config, workdir):
    """Writes embed/<fold>/<row>.parquet (subject_id, prediction_time, split, embedding) and trajectories."""
    index = prepare.prediction_index(config, workdir)
    for fold, k in config_lib.folds(config):
        subjects = pl.read_parquet(prepare.fit_dir(workdir, fold) / "subjects.parquet")
        rows = index.join(subjects.select("subject_id", "split"), on="subject_id", how="left").sort(
            "subject_id", "prediction_time"
        )
        if (lost := rows["split"].null_count()) and k in (None, 0):
            logging.warning("embed: %d label rows belong to people who are not in the dataset", lost)
        rows = rows.filter(pl.col("split").is_not_null())
        for row in config.rows:
            target = Path(workdir) / "embed" / fold / f"{row}.parquet"
            wanted = (
                _trajectory_subjects(config, workdir, fold, rows)
                if row == config.evaluate.reference_row and k in (None, 0)
                else []
            )
            missing = [s for s in wanted if not (target.parent / "trajectories" / f"{s}.npz").exists()]
            if target.exists() and not missing:
                continue
            patients, params = restored(config, workdir, fold, row)
            encode = embedding.make_encoder(patients, config_lib.model_options(config), params)
            for subject in missing:
                _trajectory(config, target.parent / "trajectories", encode, patients, subject)
            if not target.exists():
                embedding.embed_to(target, encode, patients, rows, config.embed.batch_size)


def _trajectory_subjects(config, workdir, fold, rows):
    """Held-out people to draw: with wearable windows where there are any, then those with the most events."""
    index = prepare.open_store(workdir, fold).index
    held = index.join(rows.filter(pl.col("split") == "held_out"), on="subject_id", how="semi")
    columns = {"ehr": "known_events", "wear": "n_windows"}
    given = [columns[m] for m in config.rows[config.evaluate.reference_row]]
    held = held.filter(pl.sum_horizontal(given) > 0)  # others have no time to draw
    ranked = held.sort(pl.col("n_windows") > 0, "known_events", "subject_id", descending=[True, True, False])
    return ranked["subject_id"].head(config.embed.trajectories).to_list()


def _trajectory(config, folder, encode, patients, subject):
    """z on a regular time grid over one person's record: <subject>.npz with time_us [N] and z [N, D]."""
    folder.mkdir(parents=True, exist_ok=True)
    place = patients.index["subject_id"].to_list().index(subject)
    person = patients[place]
    begin, end = int(person.time_N[0]), int(person.time_N[-1])
    grid = np.linspace(begin, end, config.embed.trajectory_points).astype(np.int64)
    index = pl.DataFrame(
        {"subject_id": [subject] * len(grid), "prediction_time": pl.Series(grid).cast(pl.Datetime("us"))}
    )
    z = embedding.embed(encode, patients, index, config.embed.batch_size)
    with open(folder / f"{subject}.npz.partial", "wb") as f:
        np.savez(f, time_us=grid, z=z)
    (folder / f"{subject}.npz.partial").rename(folder / f"{subject}.npz")
