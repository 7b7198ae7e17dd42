"""Checks MEDS event tables: faults of a file raise one sentence, bad rows are set aside with their reason.

A fault of the file (not parquet, a column missing or of another type, a subject in two pieces or out of time order)
says that the writer went wrong: nothing of it can be trusted. A bad row (no subject, no code, an infinite value, a
time that cannot be) is a fault of one entry, as every hospital has: `screen` takes it out and says why.
"""

import dataclasses
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import parquet

# What the readers return, whatever the version on disk.
EVENT_SCHEMA: parquet.Schema = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
}
_QUARANTINED: parquet.Schema = {
    "file": pl.String, "row": pl.Int64, "column": pl.String, "reason": pl.String, "value": pl.String, **EVENT_SCHEMA,
}  # fmt: skip
# Dates of de-identified records are often shifted into the 22nd century (MIMIC-IV: 2110 to 2212).
LATEST_WITHOUT_EXTRACTION = datetime(2300, 1, 1)
BIRTH_CODE = "MEDS_BIRTH"
LIFETIME = timedelta(days=36_524)  # a birth may lie this long before the first possible event


@dataclasses.dataclass(frozen=True)
class TimeBounds:
    """Times that a row can have: not before `first` (a birth: not before LIFETIME earlier), before `end`."""

    first: datetime = datetime(1900, 1, 1)
    end: datetime = LATEST_WITHOUT_EXTRACTION

    def outside(self, column: str) -> tuple[tuple[pl.Expr, str], ...]:
        """(which rows, the reason) for a column of times; null times are not outside."""
        return (
            (pl.col(column) < self.first, f"before {self.first:%Y-%m-%d}"),
            (pl.col(column) >= self.end, f"on or after {self.end:%Y-%m-%d}"),
        )


def time_bounds(first_date: str, extraction_date: str) -> TimeBounds:
    """Bounds from two ISO dates: the earliest possible day and the day of extraction, "" or "none" if unknown.

    Times may follow the extraction by a year (booked appointments). With the day unknown the end is
    LATEST_WITHOUT_EXTRACTION: shifted dates may lie far ahead.

    Raises:
      ValueError: not an ISO date, or an end that does not follow the first day.
    """
    parsed = {}
    for name, text in (("first_date", first_date), ("extraction_date", extraction_date)):
        try:
            parsed[name] = (
                datetime.combine(date.fromisoformat(text), datetime.min.time()) if text not in ("", "none") else None
            )
        except ValueError:
            raise ValueError(f"config.prepare.{name} is {text!r}, expected a date such as 1900-01-01") from None
    extracted = parsed["extraction_date"]
    bounds = TimeBounds(
        parsed["first_date"] or TimeBounds.first,
        LATEST_WITHOUT_EXTRACTION if extracted is None else extracted + timedelta(days=366),
    )
    if bounds.first >= bounds.end:
        raise ValueError(
            f"config.prepare.first_date {bounds.first:%Y-%m-%d} is not before the end of times {bounds.end:%Y-%m-%d}"
        )
    return bounds


def printable(column: str) -> pl.Expr:
    """A column of times with null for what no calendar holds (years outside 1 to 9999): to print such one crashes."""
    first, last = datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999)
    return pl.when(pl.col(column).is_between(pl.lit(first), pl.lit(last))).then(pl.col(column)).alias(column)


def _text(column: str) -> pl.Expr:
    """A cell as text; a time that is not printable as its number of microseconds since 1970."""
    if column != "time":
        return pl.col(column).cast(pl.String)
    return printable("time").cast(pl.String).fill_null(pl.format("{} us", pl.col("time").to_physical()))


def _row_faults(bounds: TimeBounds | None) -> list[tuple[str, pl.Expr, str]]:
    """(column, which rows, the reason), the first that applies to a row decides."""
    faults = [
        ("subject_id", pl.col("subject_id").is_null(), "null"),
        ("code", pl.col("code").is_null(), "null"),
        ("code", pl.col("code") == "", "empty"),
        ("numeric_value", pl.col("numeric_value").is_infinite(), "infinite"),
    ]
    if bounds is not None:
        birth = pl.col("code").str.starts_with(BIRTH_CODE)
        at_birth = dataclasses.replace(bounds, first=bounds.first - LIFETIME)
        for which, reason in bounds.outside("time"):
            faults.append(("time", which & ~birth, reason))
        for which, reason in at_birth.outside("time"):
            faults.append(("time", which & birth, reason))
    return faults


def _normalise(events: pl.DataFrame, source: str | Path) -> pl.DataFrame:
    events = parquet.normalise(events, EVENT_SCHEMA, source, optional=("numeric_value", "text_value"))
    return events.with_columns(pl.col("numeric_value").fill_nan(None))


def _require_order(events: pl.DataFrame, source: str | Path, row_N: np.ndarray) -> None:
    """Raises ValueError for a subject in two pieces or out of time order; row_N: each row's number in the file."""
    subject_id_N = events["subject_id"].to_numpy()
    parquet.require_contiguous(subject_id_N, source, row_N)
    time_N = events["time"].to_physical().fill_null(np.iinfo(np.int64).min).to_numpy()
    backwards = (subject_id_N[1:] == subject_id_N[:-1]) & (time_N[1:] < time_N[:-1])
    if backwards.any():
        at = int(np.argmax(backwards)) + 1
        raise ValueError(
            f"{source}: row {row_N[at]}: column 'time' ({events['time'][at] or 'null'}) is earlier than the row "
            f"before ({events['time'][at - 1]}) of subject {subject_id_N[at]}"
        )


def validate_events(events: pl.DataFrame, source: str | Path) -> pl.DataFrame:
    """Checks one shard of events and returns it with the dtypes of EVENT_SCHEMA.

    A NaN in numeric_value means missing and becomes null.

    Raises:
      ValueError: a missing column or impossible dtype; a null subject or code; an empty code; an
        infinite value; a subject whose rows are not contiguous or not in time order (static events,
        null time, first).
    """
    events = _normalise(events, source)
    for column, which, reason in _row_faults(None):
        bad = events.select(which.fill_null(False)).to_series()
        if bad.any():
            raise ValueError(f"{source}: row {parquet.first_true(bad)}: column '{column}' is {reason}")
    _require_order(events, source, np.arange(events.height))
    return events


def _screen_rows(
    events: pl.DataFrame, source: str | Path, bounds: TimeBounds, first_row: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """As `screen`, of a part of a file that begins with row first_row; events keep the column row, not yet in order."""
    events = _normalise(events, source).with_row_index("row", first_row)
    faults = [(name, which.fill_null(False), why) for name, which, why in _row_faults(bounds)]
    is_bad = events.select(pl.any_horizontal(which for _, which, _ in faults)).to_series()
    if not is_bad.any():  # most parts, and what is appended to one person's record row by row
        return events, pl.DataFrame(schema=_QUARANTINED)
    good, aside = events.filter(~is_bad), events.filter(is_bad)
    column = reason = value = pl.lit(None, pl.String)
    for name, which, why in reversed(faults):
        column = pl.when(which).then(pl.lit(name)).otherwise(column)
        reason = pl.when(which).then(pl.lit(why)).otherwise(reason)
        value = pl.when(which).then(_text(name)).otherwise(value)
    quarantined = aside.select(
        pl.lit(str(source)).alias("file"), pl.col("row").cast(pl.Int64), column.alias("column"),
        reason.alias("reason"), value.alias("value"), *EVENT_SCHEMA,
    ).with_columns(printable("time"))  # fmt: skip
    return good, quarantined


def screen(events: pl.DataFrame, source: str | Path, bounds: TimeBounds) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Takes the bad rows out of one shard and checks the rest as validate_events does.

    Args:
      events: as read from the file.
      source: the file, for messages and for the quarantine.
      bounds: which times can be.

    Returns:
      (events, quarantined): EVENT_SCHEMA, and file, row (0-based, in the file), column, reason, value (the cell as
      text), then the columns of EVENT_SCHEMA, with null for a time that no calendar holds. Together they hold every
      row of the file once.

    Raises:
      ValueError: a missing column or impossible dtype, or the rows that remain are not contiguous per subject or not
        in time order.
    """
    good, quarantined = _screen_rows(events, source, bounds, 0)
    _require_order(good, source, good["row"].to_numpy())
    return good.drop("row"), quarantined


def screen_shard(path: Path, bounds: TimeBounds) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(events, quarantined) of one shard on disk; see screen. Raises also as parquet.read_parquet."""
    return screen(parquet.read_parquet(Path(path)), path, bounds)


def screen_pieces(path: Path, bounds: TimeBounds, max_rows: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """(events, quarantined), as `screen`, of consecutive pieces of one shard.

    A piece ends where a subject ends and has about max_rows rows, or those of one subject if they are more. A shard has
    at least one piece. Memory: about three pieces.

    Raises: as screen_shard.
    """
    path, aside, waiting = Path(path), [], None
    seen: set[int] = set()
    with parquet.reading(path):
        there = pl.read_parquet_schema(path)
    columns = [c for c in EVENT_SCHEMA if c in there or c not in ("numeric_value", "text_value")]
    batches = parquet.row_batches(path, columns, max_rows)
    following: tuple[int, pl.DataFrame] | None = next(batches)
    while following is not None:
        (first_row, stored), following = following, next(batches, None)
        good, bad = _screen_rows(stored, path, bounds, first_row)
        good = good if waiting is None else pl.concat([waiting, good])
        aside.append(bad)
        row_N, subject_N = good["row"].to_numpy(), good["subject_id"].to_numpy()
        _require_order(good, path, row_N)
        cut = good.height
        if following is not None and cut:  # the last subject may go on
            cut = int(np.argmax(subject_N == subject_N[-1]))
        for subject in seen.intersection(subject_N[:cut]) if seen else ():
            row = row_N[np.argmax(subject_N == subject)]
            raise ValueError(f"{path}: row {row}: column 'subject_id': rows of subject {subject} are not contiguous")
        if following is not None:
            seen.update(subject_N[:cut].tolist())
        waiting = good[cut:]
        if cut or following is None:
            yield good[:cut].drop("row"), pl.concat(aside)
            aside = []
