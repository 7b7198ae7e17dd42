"""Builds the tables of features of a fold, shard by shard on disk, and reads them.

Every feature of a prediction time t of a subject is computed from that subject's rows with time <= t alone; a range of
d days holds the rows with t - d < time <= t. Which codes have columns is fitted on the training subjects
(code_columns.py). Column names begin with ehr__ (events and demographics) or wear__ (wearable windows). In a folder:

columns.parquet                name, kind (event_features.COUNT, ...) of every column, in order
people.npz, ehr-*.npz, wear-*.npz   the columns of a group, for the prediction times of a shard (matrices.py)
"""

import dataclasses
import functools
import logging
import pickle
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from scipy import sparse

from ehrwear_jax.data import ages
from ehrwear_jax.data.formats.parquet import shard_names, write_frame, writing
from ehrwear_jax.data.prepare.workers import Pool
from ehrwear_jax.models.tabular import code_columns, event_features, matrices, wear_features
from ehrwear_jax.models.tabular.event_features import COUNT, FLAG, SINCE, VALUE, YEARS, Ranges

AGE = "ehr__age_years"
COLUMNS = "columns.parquet"
KEYS = ["subject_id", "prediction_time"]
_GROUPS = ("people", "ehr", "wear")
_WORK = "work.pickle"  # for the processes that share the shards; it goes when they are done
_TIMES_AT_ONCE = 4096  # prediction times of a shard that are computed together
__all__ = ["AGE", "COUNT", "FLAG", "SINCE", "VALUE", "Features", "Ranges", "Sources", "build"]


@dataclasses.dataclass(frozen=True)
class Sources:
    """What features are made of.

    Attributes:
      events, windows: parquet files, no person in two files of a kind; see event_features and wear_features.
      subjects: subject_id (unique), birth_time (nullable), split and perhaps max_age_years, the highest age told.
      codes: code, ancestors of all codes of the events, and of their texts (code_columns.with_texts).
      min_subjects: training people that a code needs for columns of its own.
      window_hours: length of a window.
      end: events of training people after it decide no column.
      ranges: of time, that features are computed over.
    """

    events: tuple[Path, ...]
    windows: tuple[Path, ...]
    subjects: pl.DataFrame
    codes: pl.DataFrame
    min_subjects: int = 10
    window_hours: float = 6.0
    end: datetime | None = None
    ranges: Ranges = YEARS


def build(sources: Sources, times: pl.DataFrame, out: Path, pool: Pool | None = None) -> None:
    """Writes the features of all prediction times to a folder; shards that are there are kept.

    Args:
      times: subject_id, prediction_time, each pair once; a row's number is its row in the features.
      pool: of processes that share the shards; None: this one does them all.

    Raises:
      ValueError: a null key, a pair or subject that occurs twice, a subject that sources.subjects lacks.
    """
    _check(sources, times)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    train = sources.subjects.filter(pl.col("split") == "train")["subject_id"]
    codes = code_columns.choose(sources.events, train, sources.codes, sources.min_subjects, sources.end)
    ranges = sources.ranges
    names = [[(AGE, VALUE)], event_features.column_names(codes, ranges), _wear_columns(sources.windows, ranges)]
    queries = times.select(KEYS).with_row_index("row").sort(KEYS)
    matrices.write(out / "people.npz", np.arange(times.height), _age(sources.subjects, times))
    work = out / _WORK
    with writing(work) as partial:
        partial.write_bytes(pickle.dumps(_Work(queries, codes, ranges, sources.window_hours)))
    shards = [("ehr", *s) for s in _shards("ehr", sources.events, out)]
    shards += [("wear", *s) for s in _shards("wear", sources.windows, out)]
    (pool or Pool()).map(functools.partial(_write, (work, work.stat().st_mtime_ns)), shards, "features")
    work.unlink()
    rows = [(name, kind, group) for group, part in zip(_GROUPS, names, strict=True) for name, kind in part]
    schema = {"name": pl.String, "kind": pl.String, "group": pl.String}
    write_frame(pl.DataFrame(rows, schema, orient="row"), out / COLUMNS)
    rate = times.height / max(time.monotonic() - began, 1e-9)
    logging.info("  features: %d prediction times, %d columns, %.0f times/s", times.height, len(rows), rate)


def _check(sources, times):
    for name in KEYS:
        if times[name].null_count():
            raise ValueError(f"times: {name} is null in row {int(times[name].is_null().arg_true()[0])}")
    if sources.subjects["subject_id"].is_duplicated().any():
        raise ValueError("subjects: a subject_id occurs twice")
    unknown = times.join(sources.subjects, on="subject_id", how="anti")
    if unknown.height:
        raise ValueError(f"times: subject {unknown['subject_id'][0]} is not in subjects")
    if times.select(KEYS).is_duplicated().any():
        raise ValueError("times: a subject has the same prediction time twice")


def _shards(group: str, paths: Iterable[Path], out: Path) -> list[tuple[Path, Path]]:
    """(input, file of features) of the shards of a group that are not there."""
    paths = list(paths)
    names = shard_names(paths, Path(paths[0]).parent) if paths else []
    files = [out / f"{group}-{name}.npz" for name in names]
    return [(path, file) for path, file in zip(paths, files, strict=True) if not file.exists()]


@dataclasses.dataclass(frozen=True)
class _Work:
    """What every shard needs: prediction times with the number of their row, and what is computed at them."""

    queries: pl.DataFrame
    codes: code_columns.CodeColumns
    ranges: Ranges
    window_hours: float

    def ehr(self, events: pl.DataFrame, queries: pl.DataFrame) -> sparse.csr_matrix:
        return event_features.event_features(events, queries, self.codes, self.ranges)

    def wear(self, windows: pl.DataFrame, queries: pl.DataFrame) -> sparse.csr_matrix:
        return _sparse(wear_features.wear_features(windows, queries, self.window_hours, self.ranges))


@functools.lru_cache(maxsize=1)
def _read_work(path: Path, written_ns: int) -> _Work:
    """Once a process; written_ns: when the file was written, which tells a newer one of the same name."""
    del written_ns
    found: _Work = pickle.loads(path.read_bytes())
    return found


def _write(where: tuple[Path, int], shard: tuple[str, Path, Path]) -> None:
    """The features of the prediction times of a shard's people, some at a time.

    Args:
      where: of the _Work. shard: "ehr" or "wear", input, file of features.
    """
    (group, path, file), work = shard, _read_work(*where)
    rows, queries, compute = pl.read_parquet(path), work.queries, getattr(work, group)
    mine = queries.join(rows.select("subject_id").unique(), on="subject_id", how="semi", maintain_order="left")
    parts = []
    for begin in range(0, mine.height, _TIMES_AT_ONCE):
        some = mine[begin : begin + _TIMES_AT_ONCE]
        inside = rows.filter(pl.col("subject_id").is_in(some["subject_id"].unique().implode()))
        parts.append(compute(inside, some))
    whole = sparse.vstack(parts, "csr") if parts else sparse.csr_matrix((0, 0), dtype=np.float32)
    matrices.write(file, mine["row"].to_numpy(), whole)


def _sparse(x_NxF: np.ndarray) -> sparse.csr_matrix:
    """What is not NaN; zeros are stored."""
    row, column = np.nonzero(~np.isnan(x_NxF))
    return sparse.coo_matrix((x_NxF[row, column], (row, column)), x_NxF.shape).tocsr()


def _age(subjects, times):
    people = subjects if ages.LIMIT in subjects.columns else subjects.with_columns(pl.lit(None).alias(ages.LIMIT))
    births = people.select(
        "subject_id", pl.col("birth_time").cast(pl.Datetime("us")), pl.col(ages.LIMIT).cast(pl.Float64)
    )
    known = times.select(KEYS).join(births, on="subject_id", how="left", maintain_order="left")
    age = ages.years(pl.col("birth_time"), pl.col("prediction_time"), pl.col(ages.LIMIT))
    years_N = known.select(age.fill_null(float("nan"))).to_series().to_numpy()
    return _sparse(years_N.astype(np.float32)[:, None])


def _wear_columns(windows, ranges):
    return wear_features.column_names(list(pl.read_parquet_schema(windows[0])), ranges) if windows else []


class Features:
    """The features that `build` wrote to a folder.

    Attributes:
      columns: name, kind, group of every column.
    """

    def __init__(self, folder: Path, times: pl.DataFrame) -> None:
        self._folder, self._times = Path(folder), times.select(KEYS).with_row_index("row")
        self.columns = pl.read_parquet(self._folder / COLUMNS)

    @functools.cached_property
    def _groups(self):
        first = self.columns.with_row_index().group_by("group").agg(pl.col("index").min())
        begin = dict(first.iter_rows())
        return [(begin[g], sorted(self._folder.glob(f"{g}*.npz"))) for g in _GROUPS if g in begin]

    def read(self, times: pl.DataFrame, names: Iterable[str]) -> sparse.csr_matrix:
        """Some columns at some of the prediction times, in their order: float32 [N, F]; not stored means not known.

        Raises:
          KeyError: a prediction time that features were not built for.
        """
        row = times.select(KEYS).join(self._times, on=KEYS, how="left", maintain_order="left")["row"]
        if row.null_count():
            raise KeyError(f"no features at {times.select(KEYS).row(int(row.is_null().arg_true()[0]))}")
        wanted_F = self.columns["name"].is_in(pl.Series(list(names), dtype=pl.String).implode()).to_numpy()
        return matrices.read(self._groups, row.to_numpy(), wanted_F, self._times.height)
