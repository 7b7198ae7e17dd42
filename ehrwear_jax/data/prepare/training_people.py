"""Reads who is in the training split of what is being fitted, and until when it is learned from them."""

import functools
import json
from datetime import datetime
from pathlib import Path

import polars as pl


def ids(out: Path) -> pl.DataFrame:
    """subject_id, sorted, of the training patients of OUT/subjects.parquet who are pretrained on."""
    path = Path(out) / "subjects.parquet"
    return _ids_of(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _ids_of(path, _):
    subjects = pl.read_parquet(path)
    learned = pl.col("pretraining") if "pretraining" in subjects.columns else pl.lit(True)
    return subjects.filter((pl.col("split") == "train") & learned).select("subject_id").sort("subject_id")


def cutoff(out: Path) -> datetime | None:
    """When the records end that are learned from, of OUT/meta.json; None where they do not, or without the file."""
    path = Path(out) / "meta.json"
    found = json.loads(path.read_text()).get("cutoff") if path.exists() else None
    return datetime.fromisoformat(found) if found else None
