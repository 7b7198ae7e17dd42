"""Wearable recordings on disk: a parquet layout that sits beside a MEDS dataset, and its checks.

One row is one recorded stretch of one channel at a fixed rate:
subject_id i64 | start_time timestamp[us] | sample_rate_hz f64 | channel str | values list<f32>
(NaN: missing) | unit str | device str (nullable). Sample k of a row was taken at
start_time + k / sample_rate_hz. Files lie at any depth below the folder, for instance one folder
per split; `metadata/channels.parquet` declares the channels. Rows of a subject are contiguous, in
one file.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from ehrwear_jax.data import tables

ROW_SCHEMA = {
    "subject_id": pl.Int64,
    "start_time": pl.Datetime("us"),
    "sample_rate_hz": pl.Float64,
    "channel": pl.String,
    "values": pl.List(pl.Float32),
    "unit": pl.String,
    "device": pl.String,
}
CHANNEL_SCHEMA = {
    "channel": pl.String,
    "unit": pl.String,
    "description": pl.String,
    "valid_min": pl.Float64,
    "valid_max": pl.Float64,
}
_ARROW_TYPES = {
    "subject_id": pa.int64(),
    "start_time": pa.timestamp("us"),
    "sample_rate_hz": pa.float64(),
    "channel": pa.string(),
    "values": pa.list_(pa.float32()),
    "unit": pa.string(),
    "device": pa.string(),
    "description": pa.string(),
    "valid_min": pa.float64(),
    "valid_max": pa.float64(),
}


def validate_rows(rows: pl.DataFrame, source, channels: pl.DataFrame | None = None) -> pl.DataFrame:
    """Checks recordings and returns them with the dtypes of ROW_SCHEMA.

    A null inside `values` means missing and becomes NaN.

    Args:
      rows: any frame with the columns of ROW_SCHEMA (`device` may be absent).
      source: file or words for the error messages.
      channels: if given, as read_channels returns; channel and unit must agree with it.

    Raises:
      ValueError: a missing column or impossible dtype; a null; a rate that is not positive and
        finite; no samples; an infinite sample; an undeclared channel; a unit other than the
        channel's; a subject whose rows are not contiguous.
    """
    if "values" in rows.columns and isinstance(rows.schema["values"], pl.Array):
        rows = rows.with_columns(pl.col("values").arr.to_list())
    rows = tables.normalise(rows, ROW_SCHEMA, source, optional=("device",))
    tables.require_not_null(rows, [c for c in ROW_SCHEMA if c != "device"], source)

    def fail_where(bad: pl.Series, what: str) -> None:
        if bad.any():
            row = int(bad.arg_max())
            raise ValueError(f"{source}: row {row} (subject {rows['subject_id'][row]}): {what}")

    rate = rows["sample_rate_hz"]
    fail_where(~(rate.is_finite() & (rate > 0)), "column 'sample_rate_hz' must be positive")
    fail_where(rows["values"].list.len() == 0, "column 'values' holds no sample")
    flat = rows["values"].explode()
    if flat.is_infinite().any():
        bad = rows.select(pl.col("values").list.eval(pl.element().is_infinite()).list.any())
        fail_where(bad["values"].fill_null(False), "column 'values' holds an infinite sample")
    if flat.null_count():
        rows = rows.with_columns(pl.col("values").list.eval(pl.element().fill_null(float("nan"))))
    if channels is not None:
        declared = dict(zip(channels["channel"], channels["unit"], strict=True))
        for name in rows["channel"].unique().sort():
            mine = rows["channel"] == name
            if name not in declared:
                fail_where(mine, f"channel '{name}' is not in metadata/channels.parquet")
            fail_where(
                mine & (rows["unit"] != declared[name]),
                f"column 'unit' is not '{declared[name]}', the unit of channel '{name}'",
            )
    tables.require_contiguous(rows["subject_id"].to_numpy(), source)
    return rows


def list_shards(wearable_dir: Path) -> list[Path]:
    """Recording files at any depth below the folder, `metadata/` left out, in path order.

    Raises:
      FileNotFoundError: no such folder, or no parquet file in it.
    """
    wearable_dir = Path(wearable_dir)
    if not wearable_dir.is_dir():
        raise FileNotFoundError(f"{wearable_dir}: no such folder")
    shards = [
        path for path in tables.parquet_files(wearable_dir) if path.relative_to(wearable_dir).parts[0] != "metadata"
    ]
    if not shards:
        raise FileNotFoundError(f"{wearable_dir}: holds no parquet file of recordings")
    return shards


def read_shard(path: Path, channels: pl.DataFrame | None = None) -> pl.DataFrame:
    """Recordings of one file, validated (see validate_rows), with the columns of ROW_SCHEMA."""
    return validate_rows(tables.read_parquet(Path(path)), path, channels)


def write_shard(path: Path, rows: pl.DataFrame, channels: pl.DataFrame | None = None) -> None:
    """Validates and writes recordings; the file appears whole or not at all."""
    rows = validate_rows(rows, path, channels)
    tables.write_parquet(path, rows, _ARROW_TYPES, row_group_size=1024)


def _validate_channels(channels: pl.DataFrame, source) -> pl.DataFrame:
    channels = tables.normalise(channels, CHANNEL_SCHEMA, source, optional=("description",))
    tables.require_not_null(channels, ["channel", "unit", "valid_min", "valid_max"], source)
    repeated = channels["channel"].is_duplicated()
    if repeated.any():
        row = int(repeated.arg_max())
        raise ValueError(f"{source}: row {row}: channel '{channels['channel'][row]}' has more than one row")
    empty = ~(channels["valid_min"] < channels["valid_max"])
    if empty.any():
        row = int(empty.arg_max())
        raise ValueError(f"{source}: row {row}: valid_min must be less than valid_max")
    return channels


def read_channels(wearable_dir: Path) -> pl.DataFrame:
    """channel (unique), unit, description nullable, valid_min f64, valid_max f64 (inclusive)."""
    path = Path(wearable_dir) / "metadata" / "channels.parquet"
    return _validate_channels(tables.read_parquet(path), path)


def write_channels(wearable_dir: Path, channels: pl.DataFrame) -> None:
    """Writes `metadata/channels.parquet`; raises ValueError for a malformed table."""
    channels = _validate_channels(channels, "channels").sort("channel")
    path = Path(wearable_dir) / "metadata" / "channels.parquet"
    tables.write_parquet(path, channels, _ARROW_TYPES)


def valid_range(channels: pl.DataFrame, channel: str) -> tuple[float, float]:
    """(valid_min, valid_max) of a channel; ValueError if it is not declared."""
    row = channels.filter(pl.col("channel") == channel)
    if not len(row):
        raise ValueError(f"channel '{channel}' is not in metadata/channels.parquet")
    return float(row["valid_min"][0]), float(row["valid_max"][0])


def sample_times(row: dict) -> np.ndarray:
    """Times, datetime64[us] [len(values)], of the samples of one row (a dict of ROW_SCHEMA)."""
    step_us = 1e6 / row["sample_rate_hz"]
    offset_us = np.rint(np.arange(len(row["values"])) * step_us).astype("timedelta64[us]")
    return np.datetime64(row["start_time"], "us") + offset_us
