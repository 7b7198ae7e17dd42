"""Reads the truth of a simulated cohort, which no real one has: evaluation only."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from ehrwear_jax.data.formats import parquet
from ehrwear_jax.data.sources.simulator.admission_risk import RiskTable

RISK_FILE = "risk.npz"
LATENT_TYPES = {
    "subject_id": pa.int64(),
    "time": pa.timestamp("us"),
    "log_risk_offset": pa.float32(),
    "ehr_health": pa.float32(),
    "wearable_health": pa.float32(),
    "shock": pa.int8(),
    "heart_disease": pa.bool_(),
    "in_hospital": pa.bool_(),
}
SUBJECT_TYPES = {
    "subject_id": pa.int64(),
    "start_time": pa.timestamp("us"),
    "scheduled_end": pa.timestamp("us"),
    "first_wear": pa.timestamp("us"),
}


def _scan(truth_dir: Path, kind: str) -> pl.LazyFrame:
    folder = Path(truth_dir) / kind
    if not folder.is_dir() or not (files := parquet.parquet_files(folder)):
        raise FileNotFoundError(f"{folder}: no truth tables; only simulated cohorts have them")
    return pl.scan_parquet(files, hive_partitioning=False)


def read_subjects(truth_dir: Path) -> pl.DataFrame:
    """subject_id, start_time, scheduled_end, first_wear (null: none), by subject."""
    return _scan(truth_dir, "subjects").sort("subject_id").collect()


def outside_hospital(truth_dir: Path, index: pl.DataFrame) -> pl.DataFrame:
    """The rows of (subject_id, prediction_time), midnights, of people who are alive and not in hospital then."""
    home = _scan(truth_dir, "latent").filter(~pl.col("in_hospital")).select("subject_id", prediction_time="time")
    return index.lazy().join(home, on=["subject_id", "prediction_time"], how="semi").collect()


def oracle_risk(truth_dir: Path, index: pl.DataFrame, horizon_days: int) -> np.ndarray:
    """True risk [N] of an admission within the horizon given the latent state at a time.

    A death before an admission counts as no admission. The risk is that at the midnight before (or
    at) prediction_time, for the `horizon_days` days that start there. NaN while in hospital, and
    outside the time lived and observed.

    Args:
      truth_dir: ROOT/truth of a simulated cohort.
      index: subject_id, prediction_time.
      horizon_days: one of the horizons in the simulator's config.

    Raises:
      FileNotFoundError: no truth there.
      ValueError: a horizon that was not solved for.
    """
    table = RiskTable.load(Path(truth_dir) / RISK_FILE)
    asked = index.select(
        pl.col("subject_id").cast(pl.Int64),
        pl.col("prediction_time").cast(pl.Datetime("us")).dt.truncate("1d").alias("time"),
    )
    ids = asked["subject_id"].unique().to_list()
    path = _scan(truth_dir, "latent").filter(pl.col("subject_id").is_in(ids) & ~pl.col("in_hospital"))
    state = asked.lazy().join(path, on=["subject_id", "time"], how="left", maintain_order="left").collect()
    risk = np.full(len(state), np.nan)
    known = state["shock"].is_not_null().to_numpy()
    columns = ("log_risk_offset", "ehr_health", "wearable_health", "shock", "heart_disease")
    risk[known] = table(horizon_days, *(state[c].to_numpy()[known] for c in columns))
    return risk
