"""Warns of wearable recordings that are well-formed and unlikely: dates of 1970, rates upside down, values off scale.

Nothing here is a fault: rows are used as they are. It is for people to look at before they train on them.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import polars as pl

COUNTS = ("epoch", "empty", "repeated", "followed", "reciprocal")
HALF = 0.5  # share of samples or rows from which on they are warned of
FASTEST_HZ = 5.0  # of a rate or a count that a device tells: no beat, breath or step counter is read more often
SLOW_UNITS = ("bpm", "beats/min", "breaths/min", "counts/min", "count/min", "counts", "count", "steps", "steps/min")
_AGREE = 0.01  # relative difference of a step between rows from that of the inverted rate


def count(rows: pl.DataFrame) -> dict[str, int]:
    """{name of COUNTS: rows} of one person's recordings of one channel.

    epoch: begin in 1970. empty: hold no value. repeated: are one that is there already, in all columns. followed: come
    after another of the same device; reciprocal: of these, those that begin where the row before would end if its rate
    was 1 / rate, and nowhere near where it ends.

    Args:
      rows: ROW_SCHEMA.
    """
    given = pl.col("values").list.eval(pl.element().is_not_nan() & pl.element().is_not_null()).list.any()
    alike = rows.select("start_time", "sample_rate_hz", "device", pl.col("values").hash().alias("values"))
    by_start = rows.sort("device", "start_time", nulls_last=True).select(
        "device",
        "sample_rate_hz",
        n=pl.col("values").list.len(),
        gap=(pl.col("start_time").shift(-1) - pl.col("start_time")).dt.total_microseconds() / 1e6,
        same=pl.col("device").eq_missing(pl.col("device").shift(-1)),
    )
    follow = by_start.head(-1).filter(pl.col("same") & (pl.col("gap") > 0))
    rate = pl.col("sample_rate_hz")
    inverted = (pl.col("gap") / (pl.col("n") * rate) - 1).abs() < _AGREE
    is_reciprocal = inverted & ((rate.log(10).abs()) > 0.5)
    return {
        "epoch": rows.filter(pl.col("start_time").dt.year() == 1970).height,
        "empty": rows.filter(~given).height,
        "repeated": int((~alike.is_unique()).sum() - alike.filter(~alike.is_unique()).n_unique()),
        "followed": follow.height,
        "reciprocal": follow.filter(is_reciprocal).height,
    }


def warnings(name: str, channel: Mapping[str, Any]) -> list[str]:
    """Sentences on a channel.

    Args:
      channel: of wearable_validate.Summary.channels.
    """
    rows, samples, given = channel["rows"], channel["samples"], channel["samples"] - channel["missing"]
    out = []
    if n := channel["epoch"]:
        out.append(f"{name}: {n:,} of {rows:,} rows begin in 1970: is start_time in another unit, or not set?")
    fast = [rate for rate in channel["rates"] if rate >= FASTEST_HZ]
    if channel["followed"] and channel["reciprocal"] >= HALF * channel["followed"]:
        rates = ", ".join(f"{rate:g}" for rate in sorted(channel["rates"]))
        out.append(
            f"{name}: {channel['reciprocal']:,} of {channel['followed']:,} rows are followed as if their rate was one "
            f"over the written one ({rates} Hz): a sample every 60 s is 1/60 Hz"
        )
    elif fast and channel["unit"] in SLOW_UNITS:
        out.append(
            f"{name}: {max(fast):g} Hz is much for {channel['unit']}: a sample every {max(fast):g} s is "
            f"1/{max(fast):g} Hz"
        )
    elif channel["overlapping"] > HALF * rows:
        out.append(
            f"{name}: {channel['overlapping']:,} of {rows:,} rows begin before an earlier one has ended: is the rate "
            "too low, or is every recording there twice?"
        )
    if not given:
        out.append(f"{name}: all of {samples:,} samples are missing")
    elif channel["outside"] >= HALF * given:
        out.append(
            f"{name}: {channel['outside']:,} of {given:,} values lie outside valid_min to valid_max: are they in "
            f"{channel['unit']}?"
        )
    if (n := channel["empty"]) and given:
        out.append(f"{name}: {n:,} of {rows:,} rows hold no value")
    if n := channel["repeated"]:
        out.append(f"{name}: {n:,} of {rows:,} rows are exact copies of another one")
    return out


def worn_lines(people: list[tuple[int, datetime, datetime, float]]) -> list[str]:
    """When and how long people wore a device: quantiles, and who is at the ends.

    Args:
      people: (subject_id, first time, last time, hours with a value) each.
    """
    if not people:
        return []
    table = pl.DataFrame(people, ["subject_id", "first", "last", "hours"], orient="row")
    out = []
    for column, what in (("first", "first time"), ("last", "last time"), ("hours", "hours of wear")):
        by = table.sort(column, "subject_id")
        quarters = [by[column][round(q * (by.height - 1))] for q in (0.25, 0.5, 0.75)]
        ends = ((by["subject_id"][i], by[column][i]) for i in (0, -1))
        (low_id, low), (high_id, high) = ends
        inner = ", ".join(_shown(x) for x in quarters)
        out.append(
            f"  {what} per person: {_shown(low)} (subject {low_id}) to {_shown(high)} (subject {high_id}); quartiles "
            f"{inner}"
        )
    return out


def _shown(value):
    return f"{value:%Y-%m-%d}" if isinstance(value, datetime) else f"{value:,.1f}"
