"""Looks at MEDS datasets that a test has written."""

from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import meds


def count_subjects(meds_dir: Path) -> int:
    """Number of subjects; asserts that each is in exactly one shard and has a split."""
    shards = [meds.read_shard(path)["subject_id"].unique() for path in meds.list_shards(meds_dir)]
    subjects = pl.concat(shards)
    assert subjects.is_unique().all()
    assert set(subjects) <= set(meds.read_splits(meds_dir)["subject_id"])
    return len(subjects)
