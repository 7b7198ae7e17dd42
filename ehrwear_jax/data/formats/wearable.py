"""Reads and writes wearable recordings: a parquet layout that sits beside a MEDS dataset.

One row is one recorded stretch of one channel at a fixed rate:
subject_id i64 | start_time timestamp[us] | sample_rate_hz f64 | channel str | values list<f32>
(NaN: missing) | unit str | device str (nullable) | utc_offset_minutes i16 (nullable; the column may be absent).
Sample k of a row was taken at start_time + k / sample_rate_hz.

Clocks: where a row has utc_offset_minutes (-840 to 840), its start_time is in UTC, and the clock at the place shows
start_time + utc_offset_minutes; without, start_time is the clock at the place. Windows end at fixed times of the clock
of start_time, on which MEDS events are to be too; nights, hours of the day and ages use the local one
(signals/local_time.py).

Files lie at any depth below the folder, for instance one folder
per split; `metadata/channels.parquet` declares the channels. Rows of a subject are contiguous, in
one file. Stretches may overlap, also those of one channel; see signals/overlap.py for what is then used.
`python -m ehrwear_jax.data.formats.wearable_validate DIR` checks a folder.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import polars as pl
import pyarrow.parquet as pq

from ehrwear_jax.data.formats import parquet, wearable_checks
from ehrwear_jax.data.formats.meds_checks import TimeBounds
from ehrwear_jax.data.formats.stretches import Limits, Stretch
from ehrwear_jax.data.formats.wearable_checks import ARROW_TYPES, CHANNEL_SCHEMA, validate_rows

ROW_SCHEMA = wearable_checks.ROW_SCHEMA
_SAMPLES_PER_GROUP = 4_000_000  # what a reader holds at a time


def list_shards(wearable_dir: Path) -> list[Path]:
    """Recording files at any depth below the folder, `metadata/` left out, in path order.

    Raises:
      FileNotFoundError: no such folder, or no parquet file in it.
    """
    wearable_dir = Path(wearable_dir)
    if not wearable_dir.is_dir():
        raise FileNotFoundError(f"{wearable_dir}: no such folder")
    shards = [
        path for path in parquet.parquet_files(wearable_dir) if path.relative_to(wearable_dir).parts[0] != "metadata"
    ]
    if not shards:
        raise FileNotFoundError(f"{wearable_dir}: holds no parquet file of recordings")
    return shards


def read_shard(path: Path, channels: pl.DataFrame | None = None) -> pl.DataFrame:
    """Recordings of one file, validated (see validate_rows), with the columns of ROW_SCHEMA."""
    return validate_rows(parquet.read_parquet(Path(path)), path, channels)


def row_groups(path: Path) -> Iterator[tuple[int, pl.DataFrame]]:
    """(number of its first row, rows as stored) of each row group: no more than one is in memory.

    Raises:
      FileNotFoundError, PermissionError, ValueError: as parquet.reading.
    """
    path, first_row = Path(path), 0
    with parquet.reading(path):
        file = pq.ParquetFile(path)
    with file:
        for group in range(file.num_row_groups):
            with parquet.reading(path):
                rows = cast(pl.DataFrame, pl.from_arrow(file.read_row_group(group)))
            yield first_row, rows
            first_row += rows.height
        if not file.num_row_groups:
            yield 0, cast(pl.DataFrame, pl.from_arrow(file.schema_arrow.empty_table()))


def read_subjects(
    path: Path, channels: pl.DataFrame, bounds: TimeBounds, aside: list[pl.DataFrame]
) -> Iterator[tuple[int, pl.DataFrame]]:
    """(subject_id, its rows) for each subject of a file, in the order of the file.

    Memory: one row group and the rows of one subject.

    Args:
      path: one file of recordings.
      channels: as read_channels returns.
      bounds: which times can be.
      aside: bad rows are appended to it; see wearable_checks.screen.

    Raises:
      FileNotFoundError, PermissionError, ValueError: the file cannot be read, lacks a column or has one of another
        type, or a subject's rows are not contiguous.
    """
    seen: set[int] = set()
    last, pending = None, None
    for first_row, stored in row_groups(path):
        rows, bad = wearable_checks.screen(stored, path, channels, bounds, first_row)
        aside.append(bad)
        last = _require_contiguous(stored["subject_id"], first_row, seen, last, path)
        if pending is not None:
            rows = pl.concat([pending, rows])
        pending, begin = None, 0
        for n, subject_id in rows["subject_id"].rle().struct.unnest().iter_rows():
            mine, begin = rows[begin : begin + n], begin + n
            if begin < rows.height:
                yield subject_id, mine
            else:
                pending = mine  # may go on in the next row group
    if pending is not None:
        yield pending["subject_id"][0], pending


def stretches(rows: pl.DataFrame) -> list[Stretch]:
    """One person's rows (ROW_SCHEMA, perhaps with OFFSET) as arrays, values float32."""
    known = wearable_checks.OFFSET in rows.columns
    parts = zip(
        rows["start_time"].to_physical(),
        rows["sample_rate_hz"],
        rows["channel"],
        rows["values"],
        rows["device"],
        rows[wearable_checks.OFFSET] if known else [None] * rows.height,
        strict=True,
    )
    return [
        Stretch(start_us, rate_hz, channel, values.to_numpy(), device, offset)
        for start_us, rate_hz, channel, values, device, offset in parts
    ]


def _require_contiguous(ids: pl.Series, first_row: int, seen: set, last: int | None, path: Path) -> int | None:
    """Checks a row group's subjects against those seen before it; returns the last one."""
    row = first_row
    for n, subject_id in ids.rle().struct.unnest().iter_rows():
        if subject_id is not None and subject_id != last:
            if subject_id in seen:
                raise ValueError(
                    f"{path}: row {row}: column 'subject_id': rows of subject {subject_id} are not contiguous"
                )
            seen.add(subject_id)
            last = subject_id
        row += n
    return last


def write_shard(path: Path, rows: pl.DataFrame, channels: pl.DataFrame | None = None) -> None:
    """Validates and writes recordings, in row groups of about 16 MB; the file appears whole or not at all."""
    rows = validate_rows(rows, path, channels)
    n_samples = int(rows["values"].list.len().sum())
    per_group = min(max(_SAMPLES_PER_GROUP * rows.height // max(n_samples, 1), 1), 1024)
    parquet.write_parquet(path, rows, ARROW_TYPES, row_group_size=per_group)


def _validate_channels(channels: pl.DataFrame, source: str | Path) -> pl.DataFrame:
    channels = parquet.normalise(channels, CHANNEL_SCHEMA, source, optional=("description",))
    parquet.require_not_null(channels, ["channel", "unit", "valid_min", "valid_max"], source)
    repeated = channels["channel"].is_duplicated()
    if repeated.any():
        row = parquet.first_true(repeated)
        raise ValueError(f"{source}: row {row}: channel '{channels['channel'][row]}' has more than one row")
    nan = channels["valid_min"].is_nan() | channels["valid_max"].is_nan()  # which polars orders above every number
    empty = ~(channels["valid_min"] < channels["valid_max"]) | nan
    if empty.any():
        row = parquet.first_true(empty)
        raise ValueError(f"{source}: row {row}: valid_min must be less than valid_max")
    return channels


def read_channels(wearable_dir: Path) -> pl.DataFrame:
    """channel (unique), unit, description nullable, valid_min f64, valid_max f64 (inclusive)."""
    path = Path(wearable_dir) / "metadata" / "channels.parquet"
    return _validate_channels(parquet.read_parquet(path), path)


def rates(wearable_dir: Path) -> dict[str, tuple[float, float]]:
    """{channel: (lowest, highest) sample_rate_hz} of the recordings, without what is no rate; reads no values."""
    found: dict[str, tuple[float, float]] = {}
    for path in list_shards(wearable_dir):
        rows = parquet.read_parquet(path, ["channel", "sample_rate_hz"]).drop_nulls()
        rows = rows.filter(pl.col("sample_rate_hz").is_finite() & (pl.col("sample_rate_hz") > 0))
        ends = (pl.col("sample_rate_hz").min().alias("low"), pl.col("sample_rate_hz").max().alias("high"))
        for channel, low, high in rows.group_by("channel").agg(*ends).iter_rows():
            before = found.get(channel, (low, high))
            found[channel] = min(low, before[0]), max(high, before[1])
    return dict(sorted(found.items()))


def units(channels: pl.DataFrame) -> dict[str, str]:
    """{channel: its unit} of the table that read_channels returns."""
    return dict(channels.select("channel", "unit").iter_rows())


def plausible_limits(channels: pl.DataFrame) -> Limits:
    """{channel: (valid_min, valid_max)} of the table that read_channels returns."""
    return {r["channel"]: (r["valid_min"], r["valid_max"]) for r in channels.iter_rows(named=True)}


def write_channels(wearable_dir: Path, channels: pl.DataFrame) -> None:
    """Writes `metadata/channels.parquet`; raises ValueError for a malformed table."""
    channels = _validate_channels(channels, "channels").sort("channel")
    path = Path(wearable_dir) / "metadata" / "channels.parquet"
    parquet.write_parquet(path, channels, ARROW_TYPES)
