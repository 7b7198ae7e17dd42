"""Checks a folder of wearable tables: a message per bad row, then what the folder holds and what in it is unlikely.

    python -m ehrwear_jax.data.formats.wearable_validate DIR

Exit code 0: no fault, whatever is warned of (wearable_oddities.py); 1: something is wrong; 2: the command itself is.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import cast

import polars as pl

from ehrwear_jax.data.formats import meds_checks, wearable, wearable_checks, wearable_oddities
from ehrwear_jax.data.formats.stretches import Limits


@dataclasses.dataclass
class Summary:
    """What a folder holds.

    Attributes:
      people, days: persons, and person-days with a recorded stretch.
      files, rows: files of recordings, and their rows.
      channels: per channel: unit, rows, people, rates (Hz, the distinct ones), devices (None: unnamed), samples,
        missing (NaN or null), outside (of the valid range), overlapping (rows that begin before an earlier one of the
        channel has ended), and the counts of wearable_oddities.count.
      worn: subject_id, first and last time, and hours with a value in the channel that has most, of each person.
    """

    people: int = 0
    days: int = 0
    files: int = 0
    rows: int = 0
    channels: dict[str, dict] = dataclasses.field(default_factory=dict)
    worn: list[tuple[int, datetime, datetime, float]] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """For people to read."""
        devices = {d for c in self.channels.values() for d in c["devices"]}
        out = [
            f"{self.people:,} people, {self.days:,} person-days, {len(self.channels)} channels, "
            f"{len(devices)} devices, {self.rows:,} rows in {self.files:,} files"
        ]
        for name, c in sorted(self.channels.items()):
            rates = sorted(c["rates"])
            rate = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
            n = max(c["samples"], 1)
            out.append(
                f"  {name} [{c['unit']}]: {c['people']:,} people, {c['rows']:,} rows, {rate} Hz, "
                f"{len(c['devices'])} devices, {c['samples']:,} samples ({c['missing'] / n:.1%} missing, "
                f"{c['outside'] / n:.1%} outside the valid range), {c['overlapping']:,} rows overlap an earlier one"
            )
        return out + wearable_oddities.worn_lines(self.worn)

    def warnings(self) -> list[str]:
        """What is unlikely, a sentence each."""
        return [w for name, c in sorted(self.channels.items()) for w in wearable_oddities.warnings(name, c)]


def _tally(rows: pl.DataFrame, limits: Limits, summary: Summary) -> pl.DataFrame:
    """Adds good rows of one person to the summary; returns the days that they touch."""
    length = (pl.col("values").list.len() / pl.col("sample_rate_hz") * 1e6).cast(pl.Int64)
    rows = rows.with_columns((pl.col("start_time") + pl.duration(microseconds=length)).alias("end_time"))
    hours = 0.0
    for (name,), part in rows.group_by("channel"):
        c = summary.channels.setdefault(
            name,
            {"unit": part["unit"][0], "rows": 0, "people": 0, "rates": set(), "devices": set()}
            | dict.fromkeys(("samples", "missing", "outside", "overlapping", *wearable_oddities.COUNTS), 0),
        )
        values = part["values"].explode()
        low, high = limits[name]
        c["rows"] += part.height
        c["people"] += 1
        c["rates"] |= set(part["sample_rate_hz"])
        c["devices"] |= set(part["device"])
        c["samples"] += len(values)
        c["missing"] += int(values.is_nan().sum())
        c["outside"] += int((values.is_not_nan() & ((values < low) | (values > high))).sum())
        by_start = part.sort("start_time").select("start_time", pl.col("end_time").cum_max().shift(1))
        c["overlapping"] += int((by_start["start_time"] < by_start["end_time"]).sum())
        for count, n in wearable_oddities.count(part).items():
            c[count] += n
        given = part["values"].list.eval(pl.element().is_not_nan()).list.sum()
        hours = max(hours, float((given / part["sample_rate_hz"]).sum()) / 3600)
    first, end = rows["start_time"].min(), rows["end_time"].max()
    summary.worn.append((rows["subject_id"][0], cast(datetime, first), cast(datetime, end), hours))
    last = pl.col("end_time") - pl.duration(microseconds=1)
    days = pl.date_ranges(pl.col("start_time").dt.date(), pl.max_horizontal("start_time", last).dt.date())
    return rows.select(days.alias("day")).explode("day").unique()


def validate(wearable_dir: Path, bounds: meds_checks.TimeBounds, summary: Summary) -> Iterator[str]:
    """Messages, each one sentence that names the file and, for a row, the row and the column.

    Args:
      wearable_dir: folder of wearable tables.
      bounds: which times can be.
      summary: filled with what the usable rows hold.
    """
    try:
        channels = wearable.read_channels(wearable_dir)
        shards = wearable.list_shards(wearable_dir)
    except (ValueError, OSError) as error:
        yield str(error)
        return
    limits = wearable.plausible_limits(channels)
    home: dict[int, Path] = {}
    for path in shards:
        summary.files += 1
        try:
            for first_row, stored in wearable.row_groups(path):
                rows = wearable_checks.normalise(stored, path)
                summary.rows += rows.height
                for fault in wearable_checks.row_faults(rows, channels, bounds, True).iter_rows(named=True):
                    yield wearable_checks.describe(fault | {"row": fault["row"] + first_row}, path)
            aside: list[pl.DataFrame] = []
            for subject_id, rows in wearable.read_subjects(path, channels, bounds, aside):
                if home.setdefault(subject_id, path) != path:
                    yield f"{path}: column 'subject_id': subject {subject_id} is also in {home[subject_id]}"
                else:
                    summary.people += 1
                    summary.days += _tally(rows, limits, summary).height
        except (ValueError, OSError) as error:
            yield str(error)


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ehrwear_jax.data.formats.wearable_validate",
        description="Checks wearable tables; exit code 1 if any is faulty.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first-date", default="1900-01-01", help="no recording begins before this day")
    parser.add_argument("--extraction-date", default="", help="no recording lies more than a year after this day")
    parser.add_argument("--max-messages", type=int, default=100, help="messages printed; all are counted")
    options = parser.parse_args(argv)
    try:
        bounds = meds_checks.time_bounds(options.first_date, options.extraction_date)
    except ValueError as error:
        parser.error(str(error).replace("config.prepare.", ""))
    summary, n = Summary(), 0
    for message in validate(options.folder, bounds, summary):
        n += 1
        if n <= options.max_messages:
            print(message)
    if n > options.max_messages:
        print(f"... and {n - options.max_messages:,} more")
    print("\n".join([*summary.lines(), *(f"warning: {warning}" for warning in summary.warnings())]))
    print(f"{options.folder}: {n:,} faults" if n else f"{options.folder}: no fault found")
    return 1 if n else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
