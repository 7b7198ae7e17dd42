"""Runs the embed stage: z of every network at the tasks' and further prediction times, and along some people's records.

All processes of a job do it. A network's folder holds a file for each shard of people, <digest>.parquet (subject_id,
prediction_time, embedding; the network's step in the metadata), named by its prediction times, written whole and never
again: what is there need not be computed, so that a run that was stopped goes on at the shard, and a further task adds
files with the times that are new. tokens_seen/<digest>.parquet says how much of their records the model sees there
(stages/tokens_seen.py). trajectories/ holds <subject>-<points>.npz: time_us [N] and z [N, D].
"""

import base64
import functools
import logging
import os
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from tqdm import tqdm

from ehrwear_jax.data.formats import label_tables, parquet
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.runtime import distributed, files, run_dir
from ehrwear_jax.stages import eligibility, tokens_seen
from ehrwear_jax.stages.labels import Labels, times_of
from ehrwear_jax.stages.plan import Plan, Trained
from ehrwear_jax.stages.workdir import write_npz
from ehrwear_jax.training import embedding

KEYS = ["subject_id", "prediction_time"]
_SEEN_WITHIN_S = 120.0  # of its end, what a process wrote is seen by another


class Embeddings:
    """z of a network, by prediction time.

    Args:
      folder: of the network's embeddings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    @functools.cached_property
    def _known(self) -> pl.DataFrame:
        """subject_id, prediction_time, file (its number), row of everything there is."""
        tables = [
            pl.read_parquet(path, columns=KEYS).with_row_index("row").with_columns(file=pl.lit(i, pl.UInt32))
            for i, path in enumerate(self._files)
        ]
        schema: parquet.Schema = {"row": pl.UInt32, "subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}
        return pl.concat([pl.DataFrame(schema=schema | {"file": pl.UInt32}), *tables])

    def lacking(self, times: pl.DataFrame) -> pl.DataFrame:
        """The prediction times that are not there, in their order."""
        return times.select(KEYS).join(self._known, on=KEYS, how="anti", maintain_order="left")

    def read(self, times: pl.DataFrame) -> np.ndarray:
        """float32 [N, D] in the order of some prediction times; a file lies in memory at a time.

        Raises:
          FileNotFoundError: not all of them are there.
        """
        found = times.select(KEYS).join(self._known, on=KEYS, how="left", maintain_order="left")
        if found["file"].null_count():
            raise FileNotFoundError(f"{self.folder} lacks prediction times: run the embed stage")
        file_N, row_N, z_NxD = found["file"].to_numpy(), found["row"].to_numpy(), None
        order_N = np.argsort(file_N, kind="stable")
        bounds = np.searchsorted(file_N[order_N], np.arange(len(self._files) + 1))
        for path, begin, end in zip(self._files, bounds[:-1], bounds[1:], strict=True):
            if begin < end:
                table, mine_K = embedding.read(path), order_N[begin:end]
                z_NxD = np.empty((found.height, table.shape[1]), np.float32) if z_NxD is None else z_NxD
                z_NxD[mine_K] = table[row_N[mine_K]]
        return np.empty((0, 0), np.float32) if z_NxD is None else z_NxD


@functools.lru_cache(maxsize=16)
def prediction_times(plan: Plan, fold: str) -> pl.DataFrame:
    """subject_id, prediction_time, split, group_id of all tasks' prediction times that are evaluated; sorted."""
    return _of_fold(plan, Labels(plan).prediction_times(plan.config.evaluate.tasks), plan.fit(fold).folder)


def _of_tasks(plan, fold):
    """As `prediction_times`; no row without a task where config.embed.times alone are embedded."""
    no_task = plan.config.embed.times and not plan.config.evaluate.tasks
    return _given_times(plan, plan.fit(fold).folder).clear() if no_task else prediction_times(plan, fold)


@functools.lru_cache(maxsize=16)
def _wanted_times(plan, fold):
    """As `prediction_times`, with those of config.embed.times: all at which z is computed."""
    return _united(_of_tasks(plan, fold), _given_times(plan, plan.fit(fold).folder))


def _given_times(plan, fit):
    """Of config.embed.times, with the ids and dates of the dataset as it is prepared."""
    return _in_dataset(_read_given(plan), fit)


def _read_given(plan):
    path = plan.config.embed.times
    table = label_tables.read_times(path) if path else pl.DataFrame(schema=label_tables.KEY_SCHEMA)
    return plan.deidentifier.table(table).unique().sort(KEYS)


def _in_dataset(times, fit):
    subjects = pl.read_parquet(fit / "subjects.parquet").select("subject_id", "split", "group_id")
    return times.join(subjects, on="subject_id", how="inner", maintain_order="left")


def _united(times, given):
    return pl.concat([times, given.join(times, on=KEYS, how="anti")]).sort(KEYS)


def _of_fold(plan, times, fit):
    return eligibility.in_period(_in_dataset(times, fit), plan.config.data)


def _networks(plan, fold):
    """Those that embed."""
    return [t for name in plan.config.networks for t in plan.trained(name) if t.fold == fold]


def missing(plan: Plan) -> list[str]:
    """Names of the networks that are not embedded at all prediction times."""
    out = []
    for fold, _ in plan.config.folds:
        times = _wanted_times(plan, fold)
        for trained in _networks(plan, fold):
            undrawn = _undrawn(plan, trained, _of_tasks(plan, fold))
            if Embeddings(plan.embeddings(trained)).lacking(times).height or undrawn:
                out.append(trained.key)
    return out


def run(plan: Plan) -> None:
    """Computes what is missing, with the other processes of the job.

    Raises:
      ValueError: a process sees other prediction times than the first one. OSError: the first one does not see what
        another has written.
    """
    first = distributed.is_first()
    for fold, number in plan.config.folds:
        if first and number in (None, 0):
            _warn_of_lost(plan, fold)
        # Where files lie, and what is there, is said by one process: another may see a file system that is behind, and
        # would look at every raw file, or read it, for the digests that folders are called by.
        sources = _from_first(_sources(plan, fold) if first else None)
        root = plan.workdir.root
        fit = root / sources["fit"]
        times = _given_times(plan, fit)
        if sources["tasks"]:
            times = _united(_of_fold(plan, times_of(sources["tasks"], root), fit), times)
        for trained in _networks(plan, fold):
            asked = _from_first(_asked(plan, trained, times) if first else None)
            places = _Places(*(root / path for path in asked["places"]))
            lacking = times.filter(_unpacked(asked, times.height))
            undrawn = _undrawn(plan, trained, _of_tasks(plan, fold)) if first else []
            if lacking.height or undrawn:
                _embed(plan, trained, places, lacking, undrawn)
            _meet(places.embeddings, lacking, plan.config.embed.shard_people)


def one(plan: Plan, trained: Trained) -> None:
    """Computes what is missing of one network, alone.

    Raises:
      InUse: another process does.
    """
    _warn_of_lost(plan, trained.fold)
    times, of_tasks = _wanted_times(plan, trained.fold), _of_tasks(plan, trained.fold)
    with run_dir.Lease(plan.embeddings(trained)):
        lacking = Embeddings(plan.embeddings(trained)).lacking(times)
        _embed(plan, trained, _places(plan, trained), lacking, _undrawn(plan, trained, of_tasks))


def folder_of(plan: Plan, trained: Trained) -> Path:
    """Where the embeddings of a network lie."""
    return plan.embeddings(trained)


def where(plan: Plan, trained: Trained) -> str:
    """How much of a network's embeddings there is, in words."""
    return f"{len(list(plan.embeddings(trained).glob('*.parquet')))} files"


def _warn_of_lost(plan, fold):
    wanted = _read_given(plan)
    if tasks := plan.config.evaluate.tasks:
        wanted = pl.concat([wanted, Labels(plan).prediction_times(tasks)])
    of_fold = pl.read_parquet(plan.fit(fold).folder / "subjects.parquet", columns=["subject_id"])
    if lost := wanted.join(of_fold, on="subject_id", how="anti").height:
        logging.warning("embed: %d prediction times belong to people who are not in the dataset", lost)


class _Places(NamedTuple):
    """Folders: of a network's embeddings, of the network, of the records, of their fit."""

    embeddings: Path
    network: Path
    records: Path
    fit: Path


def _places(plan, trained):
    return _Places(
        plan.embeddings(trained), plan.pretrained(trained).folder, plan.records.folder, plan.fit(trained.fold).folder
    )


def _from_first(value):
    return distributed.from_first("embed", value, timeout_s=distributed.LONGEST_STAGE_S)


def _sources(plan, fold) -> dict[str, Any]:
    """What the prediction times of a fold are read from, below the workdir."""
    fit = os.path.relpath(plan.fit(fold).folder, plan.workdir.root)
    return {"tasks": Labels(plan).sources(plan.config.evaluate.tasks), "fit": fit}


def _asked(plan, trained, times) -> dict[str, Any]:
    """Where a network's files lie, and which of the prediction times are lacking, as JSON holds it in few bytes."""
    lacking = Embeddings(plan.embeddings(trained)).lacking(times)
    mask_N = times.select(KEYS).join(lacking.with_columns(is_lacking=True), on=KEYS, how="left", maintain_order="left")
    bits = np.packbits(mask_N["is_lacking"].fill_null(False).to_numpy())
    places = [os.path.relpath(folder, plan.workdir.root) for folder in _places(plan, trained)]
    packed = base64.b64encode(zlib.compress(bits.tobytes())).decode()
    return {"places": places, "times": times.height, "lacking": packed}


def _unpacked(asked, n_times):
    """bool Series [N]; ValueError where they are not those of this process."""
    if asked["times"] != n_times:
        raise ValueError(
            f"this process of the job sees {n_times} prediction times, the first one {asked['times']}: all of them "
            "must see the same files"
        )
    bits = np.frombuffer(zlib.decompress(base64.b64decode(asked["lacking"])), np.uint8)
    return pl.Series(np.unpackbits(bits, count=n_times).astype(bool))


def _name(times):
    """Of the file of some prediction times."""
    return files.digest(times.select(KEYS).write_csv())[:16]


def _embed(plan, trained, places, lacking, undrawn):
    """Every n-th shard of what is lacking, of n processes; the first one also draws trajectories."""
    folder, size = places.embeddings, plan.config.embed.batch_size
    every = slice(distributed.process_index(), None, distributed.process_count())
    mine = embedding.shards(lacking.select(KEYS), plan.config.embed.shard_people)[every]
    if not mine and not undrawn:
        return
    if lacking.height:
        logging.info("  %s: %d prediction times", trained.key, lacking.height)
    devices, store = embedding.row_devices(size), RecordStore(places.records, places.fit)
    model = plan.model(trained)
    variables, step = embedding.read_variables(places.network, model)
    where = f"{places.network}: checkpoint {step}"
    examples, network = embedding.assemble(model, store, variables, where, devices)
    encode = embedding.encoder(network, variables, devices=devices)
    folder.mkdir(parents=True, exist_ok=True)
    for part in tqdm(mine, f"embed {trained.key}", unit="shard", disable=None):
        name = _name(part)
        tokens_seen.write(folder, name, examples, part)
        embedding.write(folder / f"{name}.parquet", part, embedding.embed(encode, examples, part, size), step)
    for path, subject, grid in undrawn:
        path.parent.mkdir(parents=True, exist_ok=True)
        along = pl.DataFrame({"subject_id": [subject] * len(grid), "prediction_time": grid})
        z_NxD = embedding.embed(encode, examples, along.cast({"prediction_time": pl.Datetime("us")}), size)
        write_npz(path, time_us=grid, z=z_NxD)


def _meet(folder, lacking, people):
    """Waits until all processes have written their shards, and until the first one sees them."""
    distributed.to_first("embedded", lacking.height, timeout_s=distributed.LONGEST_STAGE_S)
    if not distributed.several() or not distributed.is_first():
        return
    wanted = {f"{_name(part)}.parquet" for part in embedding.shards(lacking, people)}
    until = time.monotonic() + _SEEN_WITHIN_S
    while unseen := wanted - {path.name for path in folder.glob("*.parquet")}:
        if time.monotonic() > until:
            raise OSError(f"{folder}: {min(unseen)}, which another process wrote, is not there: do they share files?")
        time.sleep(1)


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
