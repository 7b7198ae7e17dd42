"""Reads who is in the training split of what is being fitted."""

import functools
from pathlib import Path

import polars as pl


def ids(out: Path) -> pl.DataFrame:
    """subject_id, sorted, of the training patients of OUT/subjects.parquet."""
    path = Path(out) / "subjects.parquet"
    return _ids_of(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _ids_of(path, _):
    subjects = pl.read_parquet(path, columns=["subject_id", "split"])
    return subjects.filter(pl.col("split") == "train").select("subject_id").sort("subject_id")
