"""Reads Fitbit's intraday heart rate and steps: Fitabase's CSV files, and the files of an account's archive.

Files of a folder are told apart by their names and headers; others are named in the output and not read.

  Id,Time,Value                         Fitabase, heart rate in beats a minute every few seconds; Id is the person
  Id,ActivityMinute,Steps               Fitabase, steps of each minute
      Times like 4/12/2016 7:21:00 AM are of the clock at the place: --timezone says which.
  heart_rate-2019-08-23.json            archive: a list of {"dateTime": "08/23/19 04:00:05",
                                        "value": {"bpm": 71, "confidence": 3}}
  steps-2019-08-23.json                 archive: a list of {"dateTime": "08/23/19 04:00:00", "value": "12"}, of a minute
  timestamp,beats per minute            archive, heart_rate_2024-10-27.csv: 2024-10-27T00:00:04Z
  timestamp,steps                       archive, steps_2024-10-27.csv
      Times are in UTC: --timezone is needed. The archive is of one person: --subject or --subject-folders.

Assumed: times of the JSON files are month/day/year in UTC, as users of the archive report. A heart rate of confidence 0
is left out: the device filled it in. Heart rates become means of a minute. Minutes that a file does not have are
missing, not zero.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ehrwear_jax.data.sources.csv_import import clock, mapped, text_tables
from ehrwear_jax.data.sources.csv_import.mapping import STEP, Channel, Mapping, Sampling
from ehrwear_jax.data.sources.csv_import.readings import Check, Job, known_files, of_channel

_MINUTE = Sampling(STEP, 60.0)
CHANNELS = {
    "heart_rate": Channel("heart_rate", "bpm", "Heart rate, mean of a minute", 25.0, 250.0, sampling=_MINUTE),
    "steps": Channel(
        "steps", "steps/min", "Steps of a minute", 0.0, 300.0, sampling=Sampling(STEP, 60.0, "sum_per_minute")
    ),
}
# Columns of a CSV file: channel, column of the person or "", time, value.
_TABLES = (
    ("heart_rate", "Id", "Time", "Value"),
    ("steps", "Id", "ActivityMinute", "Steps"),
    ("heart_rate", "", "timestamp", "beats per minute"),
    ("steps", "", "timestamp", "steps"),
)
_FITABASE_TIME = "%m/%d/%Y %I:%M:%S %p"
_ARCHIVE_TIME = "%m/%d/%y %H:%M:%S"
_JSON = {"heart_rate-": "heart_rate", "steps-": "steps"}


def read(job: Job) -> Iterator[pl.DataFrame]:
    """Batches of readings of all files below Job.source.

    Raises:
      FileNotFoundError: nothing that this format reads.
      ValueError: a file is not as the module's docstring says; names file, line and column.
    """
    yield from known_files(
        job,
        ("*.csv", "*.csv.gz", "*.json"),
        lambda path: _json(path, job) if path.suffix == ".json" else _table(path, job),
        "holds no heart rates or steps as Fitbit writes them (see fitbit.py)",
    )


def _json(path: Path, job: Job) -> Iterator[pl.DataFrame] | None:
    channel = next((c for prefix, c in _JSON.items() if path.name.startswith(prefix)), None)
    return None if channel is None else _archive(path, channel, job)


def _table(path: Path, job: Job) -> Iterator[pl.DataFrame] | None:
    header = [name.strip(' "') for name in (text_tables.sniff(path) or [""])[0].split(",")]
    for name, person, time, value in _TABLES:
        if {person or time, time, value} <= set(header) and (person or "Id" not in header):
            form = clock.Clock(_FITABASE_TIME, job.timezone, job.utc_offset_minutes) if person else job.clock()
            channel = Channel(name, CHANNELS[name].unit, column=value)
            plan = Mapping({name: channel}, (time,), clock=form, subject_column=person, device=job.device or "Fitbit")
            return mapped.read([path], plan, job)
    return None


def _archive(path: Path, channel: str, job: Job) -> Iterator[pl.DataFrame]:
    """One day's file of the archive."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}: column {error.colno}: not JSON ({error.msg})") from error
    if not isinstance(records, list):
        raise ValueError(f"{path}: line 1: not a list of records")
    n = len(records)
    job.tally.read(path, n, n)
    check = Check(job, path, lambda row: f"line {record_line(text, row)}", n)
    stamps = pl.Series([_field(r, "dateTime") for r in records], dtype=pl.String)
    check.require(stamps.is_not_null(), "dateTime", stamps.fill_null(""), "is no time")
    times = clock.parse(stamps, job.clock(_ARCHIVE_TIME, utc=True))
    check.times(times, "dateTime", stamps)
    values = [_field(r, "value") for r in records]
    column = "value"
    if channel == "heart_rate":
        column = "value.bpm"
        sure = pl.Series([_field(v, "confidence") for v in values], dtype=pl.String)
        check.leave_out(sure == "0", "a heart rate of confidence 0")
        values = [_field(v, "bpm") for v in values]
    value = check.numbers(pl.Series([None if v is None else str(v) for v in values], dtype=pl.String), column)
    yield of_channel(times, value, check.good, job.subject_of(path), channel, job.device or "Fitbit")


def _field(record: Any, name: str) -> Any:
    """A field of a JSON object as text, an object within it as it is; None if there is none."""
    value = record.get(name) if isinstance(record, dict) else None
    return value if value is None or isinstance(value, dict) else str(value)


def record_line(text: str, number: int) -> int:
    """The line, from 1, on which record `number`, from 0, of a JSON list begins."""
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    for _ in range(number + 1):
        while text[at] in " \t\r\n,":
            at += 1
        begin = at
        at = decoder.raw_decode(text, at)[1]
    return text.count("\n", 0, begin) + 1
