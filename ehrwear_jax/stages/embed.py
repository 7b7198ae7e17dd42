"""Runs the embed stage: z of every network at the prediction times of the tasks, and along some people's records.

A network's folder holds a file for each set of prediction times that was asked for, <digest>.parquet (subject_id,
prediction_time, embedding), written whole and never again: a further task adds a file with the times that are new.
tokens_seen/<digest>.parquet says how much of their records the model sees there (stages/tokens_seen.py).
trajectories/ holds <subject>-<points>.npz: time_us [N] and z [N, D].
"""

import functools
import logging
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import parquet
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import eligibility, tokens_seen
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import write_npz
from ehrwear_jax.training import embedding

KEYS = ["subject_id", "prediction_time"]


class Embeddings:
    """z of a network, by prediction time.

    Args:
      folder: of the network's embeddings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def _known(self) -> pl.DataFrame:
        """subject_id, prediction_time, file, row of everything there is."""
        tables = [
            pl.read_parquet(path, columns=KEYS).with_row_index("row").with_columns(file=pl.lit(path.name))
            for path in sorted(self.folder.glob("*.parquet"))
        ]
        schema: parquet.Schema = {"row": pl.UInt32, "subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}
        return pl.concat([pl.DataFrame(schema=schema | {"file": pl.String}), *tables])

    def lacking(self, times: pl.DataFrame) -> pl.DataFrame:
        """The prediction times that are not there, in their order."""
        return times.select(KEYS).join(self._known, on=KEYS, how="anti", maintain_order="left")

    def read(self, times: pl.DataFrame) -> np.ndarray:
        """float32 [N, D] in the order of some prediction times.

        Raises:
          FileNotFoundError: not all of them are there.
        """
        found = times.select(KEYS).join(self._known, on=KEYS, how="left", maintain_order="left")
        if found["file"].null_count():
            raise FileNotFoundError(f"{self.folder} lacks prediction times: run the embed stage")
        z_NxD = None
        for name in found["file"].unique().sort():
            table = np.stack(list(pl.read_parquet(self.folder / name)["embedding"].to_numpy()))
            mine = found["file"].to_numpy() == name
            z_NxD = np.empty((found.height, table.shape[1]), np.float32) if z_NxD is None else z_NxD
            z_NxD[mine] = table[found["row"].to_numpy()[mine]]
        return np.empty((0, 0), np.float32) if z_NxD is None else z_NxD


@functools.lru_cache(maxsize=16)
def prediction_times(plan: Plan, fold: str) -> pl.DataFrame:
    """subject_id, prediction_time, split, group_id of all tasks' prediction times that are evaluated; sorted."""
    times = Labels(plan).prediction_times(plan.config.evaluate.tasks)
    subjects = pl.read_parquet(plan.fit(fold).folder / "subjects.parquet").select("subject_id", "split", "group_id")
    known = times.join(subjects, on="subject_id", how="inner", maintain_order="left")
    return eligibility.in_period(known, plan.config.data)


def missing(plan: Plan) -> list[str]:
    """Names of the networks that are not embedded at all prediction times."""
    out = []
    for fold, _ in plan.config.folds:
        times = prediction_times(plan, fold)
        for trained in (t for t in plan.trained() if t.fold == fold):
            if Embeddings(plan.embeddings(trained)).lacking(times).height or _undrawn(plan, trained, times):
                out.append(trained.key)
    return out


def run(plan: Plan) -> None:
    """Computes what is missing."""
    wanted = Labels(plan).prediction_times(plan.config.evaluate.tasks)
    for fold, number in plan.config.folds:
        times = prediction_times(plan, fold)
        of_fold = pl.read_parquet(plan.fit(fold).folder / "subjects.parquet", columns=["subject_id"])
        if (lost := wanted.join(of_fold, on="subject_id", how="anti").height) and number in (None, 0):
            logging.warning("embed: %d prediction times belong to people who are not in the dataset", lost)
        for trained in (t for t in plan.trained() if t.fold == fold):
            _embed(plan, trained, times)


def _embed(plan, trained, times):
    folder, size = plan.embeddings(trained), plan.config.embed.batch_size
    lacking, undrawn = Embeddings(folder).lacking(times), _undrawn(plan, trained, times)
    if not lacking.height and not undrawn:
        return
    pretrained, model = plan.pretrained(trained).folder, plan.model(trained)
    devices = embedding.row_devices(size)
    examples, network, variables = embedding.restore(pretrained, model, plan.store(trained.fold), devices)
    encode = embedding.encoder(network, variables, devices=devices)
    if lacking.height:
        name = files.digest(lacking.write_csv())[:16]
        logging.info("  %s: %d prediction times", trained.key, lacking.height)
        tokens_seen.write(folder, name, examples, lacking)
        embedding.embed_to(folder / f"{name}.parquet", encode, examples, lacking, size)
    for path, subject, grid in undrawn:
        path.parent.mkdir(parents=True, exist_ok=True)
        along = pl.DataFrame({"subject_id": [subject] * len(grid), "prediction_time": grid})
        z_NxD = embedding.embed(encode, examples, along.cast({"prediction_time": pl.Datetime("us")}), size)
        write_npz(path, time_us=grid, z=z_NxD)


# ------------------------------------------------------------------------------------------------- trajectories


def trajectories(plan: Plan) -> list[Path]:
    """Files of the people whose z(t) is drawn, of the reference model's first seed on the first fold."""
    reference = plan.config.evaluate.reference_model
    if reference not in plan.config.networks:
        return []
    trained = plan.first(reference)
    return [path for path, _, _ in _wanted(plan, trained, prediction_times(plan, trained.fold))]


def _undrawn(plan, trained, times):
    """[(path, subject, times in us)] of the trajectories of a network that are not there."""
    if trained.name != plan.config.evaluate.reference_model or trained != plan.first(trained.name):
        return []
    return [wanted for wanted in _wanted(plan, trained, times) if not wanted[0].exists()]


def _wanted(plan, trained, times):
    """Held-out people to draw: those with wearable windows where there are any, then those with the most events."""
    store, points = plan.store(trained.fold), plan.config.embed.trajectory_points
    held = store.index.join(times.filter(pl.col("split") == "held_out"), on="subject_id", how="semi")
    given = plan.modalities(trained.name)
    events, windows = pl.col("known_events") * ("ehr" in given), pl.col("n_windows") * ("wear" in given)
    held = held.filter(events + windows > 0)  # others have nothing that the model is given
    ranked = held.sort(windows > 0, events, "subject_id", descending=[True, True, False])
    folder, out = plan.embeddings(trained) / "trajectories", []
    position = dict(zip(store.index["subject_id"].to_list(), range(len(store)), strict=True))
    for subject in ranked["subject_id"].head(plan.config.embed.trajectories).to_list():
        record = store[position[subject]]
        last = max(int(x[-1]) for x in (record.time_K, record.window_end_M) if len(x))
        grid = np.linspace(record.first_us, last, points).astype(np.int64)
        out.append((folder / f"{subject}-{points}.npz", subject, grid))
    return out
