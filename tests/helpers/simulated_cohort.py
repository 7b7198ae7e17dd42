"""Reads what a test looks at in a simulated cohort."""

from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats.stretches import sample_edges


def read_latent(truth_dir: Path) -> pl.DataFrame:
    """The latent path at each midnight, by subject and time; see truth.LATENT_TYPES."""
    files = sorted((Path(truth_dir) / "latent").rglob("*.parquet"))
    return pl.concat([pl.read_parquet(path) for path in files]).sort("subject_id", "time")


def sample_times(row: dict) -> np.ndarray:
    """Times, datetime64[us] [len(values)], of the samples of one row of a wearable table."""
    start_us = int(np.datetime64(row["start_time"], "us").astype(np.int64))
    return sample_edges(start_us, row["sample_rate_hz"], len(row["values"]))[:-1].astype("datetime64[us]")
