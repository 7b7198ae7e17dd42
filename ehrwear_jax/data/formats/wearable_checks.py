"""Checks wearable tables: their schemas, what each row must satisfy, and which rows are set aside."""

import functools
import logging
from pathlib import Path

import polars as pl
import pyarrow as pa

from ehrwear_jax.data.formats import parquet, units
from ehrwear_jax.data.formats.meds_checks import TimeBounds, printable
from ehrwear_jax.data.formats.times import DAY_US

ROW_SCHEMA: parquet.Schema = {
    "subject_id": pl.Int64,
    "start_time": pl.Datetime("us"),
    "sample_rate_hz": pl.Float64,
    "channel": pl.String,
    "values": pl.List(pl.Float32),
    "unit": pl.String,
    "device": pl.String,
}
# A table may have this column too: minutes to add to start_time, which is then in UTC, for the clock at the place.
OFFSET = "utc_offset_minutes"
OFFSETS = (-14 * 60, 14 * 60)  # those of all time zones
CHANNEL_SCHEMA: parquet.Schema = {
    "channel": pl.String,
    "unit": pl.String,
    "description": pl.String,
    "valid_min": pl.Float64,
    "valid_max": pl.Float64,
}
ARROW_TYPES = {
    "subject_id": pa.int64(),
    "start_time": pa.timestamp("us"),
    "sample_rate_hz": pa.float64(),
    "channel": pa.string(),
    "values": pa.list_(pa.float32()),
    "unit": pa.string(),
    "device": pa.string(),
    OFFSET: pa.int16(),
    "description": pa.string(),
    "valid_min": pa.float64(),
    "valid_max": pa.float64(),
}
REQUIRED = tuple(c for c in ROW_SCHEMA if c != "device")
FAULT_SCHEMA = pl.Schema({"row": pl.Int64, "subject_id": pl.Int64, "column": pl.String, "reason": pl.String})
_DAYS_AT_MOST = 366_000  # a longer stretch lies outside any bounds, and its end may not fit a timestamp


def normalise(rows: pl.DataFrame, source: str | Path) -> pl.DataFrame:
    """The columns of ROW_SCHEMA, and OFFSET where it is; ValueError for a missing column or another type."""
    if "values" in rows.columns and isinstance(rows.schema["values"], pl.Array):
        rows = rows.with_columns(pl.col("values").arr.to_list())
    if "values" in rows.columns and not isinstance(rows.schema["values"], pl.List | pl.Null):
        raise ValueError(f"{source}: column 'values' is {rows.schema['values']}, expected a list of numbers")
    schema = ROW_SCHEMA | ({OFFSET: pl.Int16} if OFFSET in rows.columns else {})
    return parquet.normalise(rows, schema, source, optional=("device",))


def fill_missing(rows: pl.DataFrame) -> pl.DataFrame:
    """A null inside `values` means missing: it becomes NaN."""
    if not rows["values"].explode().null_count():  # true also of a null or empty list; those rows are faults
        return rows
    return rows.with_columns(pl.col("values").list.eval(pl.element().fill_null(float("nan"))))


def _other_units(rows: pl.DataFrame, channels: pl.DataFrame) -> list[tuple]:
    """(channel, unit, declared unit, factor, offset) of the rows whose values can be turned into the declared unit."""
    declared, found = dict(channels.select("channel", "unit").iter_rows()), []
    for channel, unit in rows.select("channel", "unit").unique().sort("channel", "unit").iter_rows():
        known = units.conversion(unit, declared.get(channel)) if unit != declared.get(channel) else None
        if known is not None:
            found.append((channel, unit, declared[channel], *known))
    return found


@functools.cache
def _log_conversion(channel: str, unit: str, declared: str) -> None:
    logging.warning("  channel %s: recordings in %r are converted to %r, its declared unit", channel, unit, declared)


def convert_units(rows: pl.DataFrame, channels: pl.DataFrame) -> pl.DataFrame:
    """Rows in a unit that `units.UNITS` can turn into the channel's own; each such unit is logged once."""
    for channel, unit, declared, factor, offset in _other_units(rows, channels):
        _log_conversion(channel, unit, declared)
        which = (pl.col("channel") == channel) & (pl.col("unit") == unit)
        values = pl.col("values").list.eval(pl.element().cast(pl.Float64) * factor + offset).cast(pl.List(pl.Float32))
        rows = rows.with_columns(
            values=pl.when(which).then(values).otherwise("values"),
            unit=pl.when(which).then(pl.lit(declared)).otherwise("unit"),
        )
    return rows


def _channel_faults(rows: pl.DataFrame, channels: pl.DataFrame, convertible: bool) -> list[tuple]:
    """(column, which rows, reason) of channels that are not declared, and of other units than the declared ones."""
    unit = pl.col("channel").replace_strict(
        channels["channel"].to_list(), channels["unit"].to_list(), default=None, return_dtype=pl.String
    )
    other = pl.col("unit") != unit
    for name, its_unit, *_ in _other_units(rows, channels) if convertible else ():
        other &= ~((pl.col("channel") == name) & (pl.col("unit") == its_unit))
    return [
        (
            "channel",
            pl.col("channel").is_not_null() & unit.is_null(),
            pl.format("channel '{}' is not in metadata/channels.parquet", "channel"),
        ),
        (
            "unit",
            other,
            pl.format("'{}' is not '{}', the unit of channel '{}'", "unit", unit, "channel"),
        ),
    ]


def row_faults(
    rows: pl.DataFrame, channels: pl.DataFrame | None, bounds: TimeBounds | None, convertible: bool = False
) -> pl.DataFrame:
    """Everything that is wrong with each row.

    Args:
      rows: normalised.
      channels: if given, as read_channels returns; channel and unit must agree with it.
      bounds: if given, a stretch lies within it from its first sample to its last.
      convertible: whether a unit that convert_units knows is no fault.

    Returns:
      row (0-based), subject_id, column, reason: one row per fault, by row.
    """
    rate, n = pl.col("sample_rate_hz"), pl.col("values").list.len()
    good_rate = rate.is_finite() & (rate > 0)
    faults = [(column, pl.col(column).is_null(), pl.lit("null")) for column in REQUIRED]
    infinite = pl.lit(False)
    if rows["values"].explode().is_infinite().any():  # far cheaper than list by list
        infinite = pl.col("values").list.eval(pl.element().is_infinite()).list.any()
    faults += [
        ("sample_rate_hz", ~good_rate, pl.format("{} Hz, must be positive and finite", rate)),
        ("values", n == 0, pl.lit("holds no sample")),
        ("values", infinite, pl.lit("holds an infinite sample")),
    ]
    if OFFSET in rows.columns:
        low, high = OFFSETS
        reason = pl.format("{} minutes, must lie between {} and {}", OFFSET, pl.lit(low), pl.lit(high))
        faults.append((OFFSET, ~pl.col(OFFSET).is_between(low, high), reason))
    if channels is not None:
        faults += _channel_faults(rows, channels, convertible)
    if bounds is not None:
        days = (n.cast(pl.Float64) - 1) / rate / 86_400
        faults += [("start_time", which, pl.lit(reason)) for which, reason in bounds.outside("start_time")]
        room = (pl.lit(bounds.end) - pl.col("start_time")).dt.total_microseconds() / DAY_US
        longer = good_rate & (pl.col("start_time") < bounds.end) & ((days > _DAYS_AT_MOST) | (days >= room))
        late = pl.format("{} samples end on or after {}", n, pl.lit(f"{bounds.end:%Y-%m-%d}"))
        faults.append(("sample_rate_hz", longer, late))
    found = []
    numbered = rows.with_row_index("row")
    for column, which, reason in faults:
        bad = numbered.filter(which.fill_null(False))
        if bad.height:
            found.append(bad.select("row", "subject_id", pl.lit(column).alias("column"), reason.alias("reason")))
    if not found:
        return pl.DataFrame(schema=FAULT_SCHEMA)
    return pl.concat(found).cast(FAULT_SCHEMA).sort("row", maintain_order=True)


def describe(fault: dict, source: str | Path) -> str:
    """One sentence for a row of row_faults."""
    return (
        f"{source}: row {fault['row']} (subject {fault['subject_id']}): column '{fault['column']}': {fault['reason']}"
    )


def validate_rows(rows: pl.DataFrame, source: str | Path, channels: pl.DataFrame | None = None) -> pl.DataFrame:
    """Checks recordings and returns them with the dtypes of ROW_SCHEMA.

    A null inside `values` means missing and becomes NaN.

    Args:
      rows: any frame with the columns of ROW_SCHEMA (`device` may be absent), and perhaps OFFSET.
      source: file or words for the error messages.
      channels: if given, as read_channels returns; channel and unit must agree with it.

    Raises:
      ValueError: a missing column or impossible dtype; a null; a rate that is not positive and
        finite; no samples; an infinite sample; an offset beyond OFFSETS; an undeclared channel; a unit other than the
        channel's; a subject whose rows are not contiguous.
    """
    rows = normalise(rows, source)
    parquet.require_not_null(rows, REQUIRED, source)
    faults = row_faults(rows, channels, None)
    if faults.height:
        raise ValueError(describe(faults.row(0, named=True), source))
    parquet.require_contiguous(rows["subject_id"].to_numpy(), source)
    return fill_missing(rows)


def screen(
    rows: pl.DataFrame, source: str | Path, channels: pl.DataFrame, bounds: TimeBounds, first_row: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Takes the bad rows out of (a part of) a file, and brings the others to the declared units.

    Args:
      rows: as read from the file.
      source: the file, for messages and for the quarantine.
      channels: as read_channels returns.
      bounds: which times can be.
      first_row: number in the file of the first of `rows`.

    Returns:
      (rows, quarantined): ROW_SCHEMA and perhaps OFFSET, and file, row, column, reason (the first fault of the row),
      subject_id, start_time, sample_rate_hz, channel, unit, device, perhaps OFFSET, n_samples.

    Raises:
      ValueError: a missing column or impossible dtype.
    """
    rows = normalise(rows, source)
    columns = rows.columns
    faults = row_faults(rows, channels, bounds, convertible=True).unique("row", keep="first", maintain_order=True)
    rows = rows.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    bad = faults.select("row", "column", "reason").join(rows, on="row", how="inner", maintain_order="left")
    bad = bad.with_columns(printable("start_time")).select(
        pl.lit(str(source)).alias("file"),
        pl.col("row") + first_row,
        "column",
        "reason",
        *(c for c in columns if c != "values"),
        pl.col("values").list.len().cast(pl.Int64).alias("n_samples"),
    )
    good = rows.join(faults, on="row", how="anti", maintain_order="left")
    return fill_missing(convert_units(good.select(columns), channels)), bad
