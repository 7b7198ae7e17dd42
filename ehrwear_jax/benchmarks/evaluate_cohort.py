"""Multiplies a prepared cohort, so that what follows training can be measured on more people than can be simulated.

Real: the records, tables and codes of the people who were simulated and prepared, each of them several times under new
ids, in as many shards as so many people have. Drawn anew for every copy: when somebody is admitted, dies or is lost,
from a risk that goes up with what happened to the person who was simulated and is otherwise random, and the latents of
the networks, which are that risk with noise in two columns and noise in the others. Numbers of files, rows, columns and
bytes are thus those of a cohort of that size; how well a model predicts says nothing.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.config import RunConfig
from ehrwear_jax.data.formats import label_tables, meds
from ehrwear_jax.data.formats.parquet import write_frame
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir

HORIZONS = (90, 365)
TIME_TO = "time_to_hospitalization"
_PER_YEAR, _DEATHS_PER_YEAR = 0.15, 0.03
_LEAST_DAYS, _MOST_DAYS = 370.0, 1100.0  # of follow-up
_NOISE = 0.6  # of the first network's risk; each further one has so much more


def sources(folder: Path) -> tuple[Path, Path]:
    """(MEDS dataset, labels) of a multiplied cohort: what config.data names."""
    return folder / "source" / "meds", folder / "source" / "labels"


@dataclasses.dataclass(frozen=True)
class Cohort:
    """What is multiplied.

    Attributes:
      config, workdir: of the run that simulated and prepared the people.
      copies: of everybody. times: prediction times of a person, the first ones.
    """

    config: RunConfig
    workdir: Path
    copies: int
    times: int


def multiply(cohort: Cohort, config: RunConfig, folder: Path) -> int:
    """Writes what evaluate reads to the workdir of a run on all copies; returns the number of prediction times.

    Args:
      config: of that run, whose options name `sources`.
    """
    base, copies, times = Plan(cohort.config, Workdir(cohort.workdir)), cohort.copies, cohort.times
    (fold, _), *_ = config.folds
    subjects = pl.read_parquet(base.fit(fold).folder / "subjects.parquet")
    stride = int(subjects["subject_id"].max() or 0) + 1  # type: ignore[arg-type]

    def copied(table: pl.DataFrame, k: int) -> pl.DataFrame:
        ids = [c for c in ("subject_id", "group_id") if c in table.columns]
        return table.with_columns(pl.col(c) + k * stride for c in ids)

    meds_dir, labels_dir = sources(folder)
    splits = pl.concat([copied(subjects.select("subject_id", "split"), k) for k in range(copies)])
    (meds_dir / "metadata").mkdir(parents=True, exist_ok=True)
    write_frame(splits, meds.splits_path(meds_dir))
    plan = Plan(config, Workdir(folder))
    _copy_tables(base.tables.folder, plan, copies, copied)
    _copy_records(base, plan, copies, copied)
    _copy_fit(base.fit(fold).folder, plan, fold, copies, copied)
    table = label_tables.task_files(base.raw.folder / "labels", f"hospitalization_{HORIZONS[-1]}d")
    asked = meds.read_labels(table).sort(KEYS).group_by("subject_id", maintain_order=True).head(times)
    networks = [plan.embeddings(trained) for trained in plan.trained()]
    for trained in plan.trained():
        with plan.pretrained(trained).making():  # evaluate asks whether it is there, and reads nothing of it
            pass
    width = config.model_config(config.networks[0]).network.width
    n_times, parts = 0, []
    for k in range(copies):
        drawn, risk_N = _draw(copied(asked, k), np.random.default_rng([0, k]))
        parts.append(drawn)
        n_times += drawn.height
        for i, place in enumerate(networks):
            _write_latents(place, drawn, risk_N, width, (i, k))
    labels_dir.mkdir(parents=True, exist_ok=True)
    _write_labels(labels_dir, pl.concat(parts))
    return n_times


def _copy_tables(source: Path, plan: Plan, copies: int, copied: Callable) -> None:
    with plan.tables.making() as folder:
        for kind in ("events", "windows"):
            (folder / kind).mkdir(exist_ok=True)
            for path in sorted((source / kind).glob("*.parquet")):
                table = pl.read_parquet(path)
                for k in range(copies):
                    write_frame(copied(table, k), folder / kind / f"{path.stem}__{k:05d}.parquet")


def _copy_records(base: Plan, plan: Plan, copies: int, copied: Callable) -> None:
    """The records themselves are links to those of the base."""
    source = base.records.folder.absolute()
    meta = json.loads((source / "meta.json").read_text())
    index = pl.read_parquet(source / "index.parquet")
    with plan.records.making() as folder:
        for name in ("codes.parquet", "texts.parquet", "manifest.json"):
            shutil.copy(source / name, folder / name)
        parts = [copied(index, k).with_columns(pl.col("position") + k * index.height) for k in range(copies)]
        write_frame(pl.concat(parts), folder / "index.parquet")
        shards = [(name, f"{k:05d}-{name}") for k in range(copies) for name in meta["shards"]]
        for name, link in shards:
            (folder / link).unlink(missing_ok=True)
            (folder / link).symlink_to(source / name)
        (folder / "meta.json").write_text(json.dumps(meta | {"shards": [link for _, link in shards]}))


def _copy_fit(source: Path, plan: Plan, fold: str, copies: int, copied: Callable) -> None:
    with plan.fit(fold).making() as folder:
        for path in (p for p in source.iterdir() if p.is_file() and p.name != "artifact.json"):
            if path.name.startswith("subject"):
                table = pl.read_parquet(path)
                write_frame(pl.concat([copied(table, k) for k in range(copies)]), folder / path.name)
            else:
                shutil.copy(path, folder / path.name)


def _draw(asked: pl.DataFrame, rng: np.random.Generator) -> tuple[pl.DataFrame, np.ndarray]:
    """(follow-up at prediction times: KEYS, label columns of a time-to-event task; risk [N])."""
    before_N, n = asked["boolean_value"].to_numpy().astype(np.float64), asked.height
    risk_N = rng.normal(size=n) + before_N - before_N.mean()
    event_N = rng.exponential(365.0 / (_PER_YEAR * np.exp(0.8 * risk_N - 0.3)))
    death_N, lost_N = rng.exponential(365.0 / _DEATHS_PER_YEAR, n), rng.uniform(_LEAST_DAYS, _MOST_DAYS, n)
    time_N = np.minimum(np.minimum(event_N, death_N), lost_N)
    follow_up = {
        "time_to_event_days": np.ceil(time_N),
        "event_observed": time_N == event_N,
        label_tables.COMPETING: time_N == death_N,
    }
    return asked.select(KEYS).with_columns(**{k: pl.Series(v) for k, v in follow_up.items()}), risk_N


def _write_labels(folder: Path, drawn: pl.DataFrame) -> None:
    meds.write_labels(folder / f"{TIME_TO}.parquet", drawn)
    for days in HORIZONS:
        had = pl.col("event_observed") & (pl.col("time_to_event_days") <= days)
        meds.write_labels(folder / f"hospitalization_{days}d.parquet", drawn.select(*KEYS, boolean_value=had))


def _write_latents(folder: Path, drawn: pl.DataFrame, risk_N: np.ndarray, width: int, number: tuple[int, int]) -> None:
    """The file of z of a copy; number: of the network, and of the copy."""
    network, copy = number
    rng = np.random.default_rng([1, network, copy])
    folder.mkdir(parents=True, exist_ok=True)
    z_NxD = rng.standard_normal((drawn.height, width), np.float32)
    z_NxD[:, :2] = risk_N[:, None] + (network + 1) * _NOISE * z_NxD[:, :2]
    z = pl.Series("embedding", z_NxD).arr.to_list()
    write_frame(drawn.select(KEYS).with_columns(z), folder / f"{copy:05d}.parquet")
