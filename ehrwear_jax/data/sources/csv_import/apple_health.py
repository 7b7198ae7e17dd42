"""Reads export.xml of Apple Health as a stream: heart rate, its variability, steps, resting heart rate, sleep.

Read are the elements Record with these types; others are counted and left out:

  HKQuantityTypeIdentifierHeartRate                 heart_rate, bpm: mean of a minute
  HKQuantityTypeIdentifierHeartRateVariabilitySDNN  hrv_sdnn, ms
  HKQuantityTypeIdentifierRestingHeartRate          resting_heart_rate, bpm, one a day: known when the day is over
  HKQuantityTypeIdentifierStepCount                 steps, steps/min, spread evenly from startDate to endDate
  HKCategoryTypeIdentifierSleepAnalysis             in_bed (InBed 1), asleep (Awake 0, Asleep... 1) and, where known,
                                                    sleep_stage: 0 awake, 1 REM, 2 core, 3 deep

Stamps look like 2023-01-01 08:00:00 +0100. Assumed: the offset is that of the place at that time; phones are said to
write their own at the time of the export, so that hours of the day are wrong for a journey. Between records nothing is
known: steps are missing there, not zero.

The device is the hardware that a record names. `sourceName` often holds the owner's name; where a record names no
hardware its source gets a number.

The standard library's expat is called directly, as its ElementTree does not tell lines.
"""

import re
import xml.parsers.expat
from collections.abc import Iterator
from typing import Any

import polars as pl

from ehrwear_jax.data.sources.csv_import import clock
from ehrwear_jax.data.sources.csv_import.mapping import STEP, Channel, Sampling
from ehrwear_jax.data.sources.csv_import.readings import READINGS, Check, Job, find_files

_MINUTE, _STATE = Sampling(STEP, 60.0), Sampling(STEP, 60.0, "last")
CHANNELS = {
    c.name: c
    for c in (
        Channel("heart_rate", "bpm", "Heart rate, mean of a minute", 25.0, 250.0, sampling=_MINUTE),
        Channel("hrv_sdnn", "ms", "Standard deviation of beat intervals", 0.0, 500.0, sampling=_MINUTE),
        Channel(
            "resting_heart_rate", "bpm", "Resting heart rate of a day", 25.0, 150.0, sampling=Sampling(STEP, 86_400.0)
        ),
        Channel("steps", "steps/min", "Steps of a minute", 0.0, 300.0, sampling=Sampling(STEP, 60.0, "sum_per_minute")),
        Channel("in_bed", "1", "1 while in bed", 0.0, 1.0, sampling=_STATE),
        Channel("asleep", "1", "1 while asleep, 0 while awake between sleep", 0.0, 1.0, sampling=_STATE),
        Channel("sleep_stage", "code", "0 awake, 1 REM, 2 core (light), 3 deep", 0.0, 3.0, sampling=_STATE),
    )
}
# Type of a record: channel, unit.
_QUANTITIES = {
    "HKQuantityTypeIdentifierHeartRate": ("heart_rate", "count/min"),
    "HKQuantityTypeIdentifierHeartRateVariabilitySDNN": ("hrv_sdnn", "ms"),
    "HKQuantityTypeIdentifierRestingHeartRate": ("resting_heart_rate", "count/min"),
    "HKQuantityTypeIdentifierStepCount": ("steps", "count"),
}
_SLEEP = "HKCategoryTypeIdentifierSleepAnalysis"
_SLEEP_VALUE = "HKCategoryValueSleepAnalysis"
_SLEEP_STATES = {
    "InBed": (("in_bed", 1.0),),
    "Asleep": (("asleep", 1.0),),
    "AsleepUnspecified": (("asleep", 1.0),),
    "Awake": (("asleep", 0.0), ("sleep_stage", 0.0)),
    "AsleepREM": (("asleep", 1.0), ("sleep_stage", 1.0)),
    "AsleepCore": (("asleep", 1.0), ("sleep_stage", 2.0)),
    "AsleepDeep": (("asleep", 1.0), ("sleep_stage", 3.0)),
}
_HARDWARE = re.compile(r"hardware:\s*(\w+,\d+|[^,>]+)")
_CHUNK_BYTES = 1 << 20
_BATCH = 50_000


def read(job: Job) -> Iterator[pl.DataFrame]:
    """Batches of readings of every export.xml below Job.source, or of the file that it is.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not XML, or a record not as the module's docstring says; names file, line and attribute.
    """
    if job.timezone or job.utc_offset_minutes is not None:
        raise ValueError(f"{job.source}: stamps of Apple Health say their UTC offset; leave --timezone out")
    for path in find_files(job.source, ("export.xml",)):
        yield from _Export(path, job).batches()


class _Export:
    """One export.xml."""

    def __init__(self, path: Any, job: Job) -> None:
        self.path, self.job = path, job
        self.subject = job.subject_of(path)
        self.sources: dict[str, str] = {}
        self.records: list[tuple] = []  # line, type, channel, value, unit, start, end, device
        self.parser = xml.parsers.expat.ParserCreate()
        self.parser.StartElementHandler = self._start

    def batches(self) -> Iterator[pl.DataFrame]:
        self.job.tally.read(self.path, 0, 0)
        with open(self.path, "rb") as file:
            more = True
            while more:
                chunk = file.read(_CHUNK_BYTES)
                more = bool(chunk)
                try:
                    self.parser.Parse(chunk, not more)
                except xml.parsers.expat.ExpatError as error:
                    reason = xml.parsers.expat.ErrorString(error.code)
                    raise ValueError(
                        f"{self.path}: line {error.lineno}: column {error.offset + 1}: not XML ({reason})"
                    ) from error
                if len(self.records) >= _BATCH or not more:
                    yield self._batch()

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name != "Record":
            return
        kind, value = attributes.get("type", ""), attributes.get("value")
        if kind in _QUANTITIES:
            readings: tuple = ((_QUANTITIES[kind][0], value),)
        elif kind == _SLEEP:
            # an unknown state goes on as text, and is refused with its line
            readings = _SLEEP_STATES.get((value or "").removeprefix(_SLEEP_VALUE), (("asleep", value),))
        else:
            self.job.tally.read(self.path, 1, 1)
            self.job.tally.drop(f"type {kind or 'missing'} is not read", 1)
            return
        self.job.tally.read(self.path, 1, len(readings))
        line, device = self.parser.CurrentLineNumber, self._device(attributes)
        start, end, unit = (attributes.get(key) for key in ("startDate", "endDate", "unit"))
        for channel, number in readings:
            shown = None if number is None else str(number)
            self.records.append((line, kind, channel, shown, unit, start, end, device))

    def _device(self, attributes: dict[str, str]) -> str:
        found = _HARDWARE.search(attributes.get("device", ""))
        if found:
            return found.group(1).strip()
        source = attributes.get("sourceName", "")
        return self.sources.setdefault(source, f"source {len(self.sources) + 1}")

    def _batch(self) -> pl.DataFrame:
        names = ("line", "kind", "channel", "value", "unit", "start", "end", "device")
        rows = pl.DataFrame(self.records, dict.fromkeys(names, pl.String) | {"line": pl.Int64}, orient="row")
        self.records = []
        check = Check(self.job, self.path, lambda row: f"line {rows['line'][row]}", rows.height)
        expected = {kind: unit for kind, (_, unit) in _QUANTITIES.items()}
        unit = rows["kind"].replace_strict(expected, default=None, return_dtype=pl.String)
        fits = unit.is_null() | (rows["unit"] == unit).fill_null(False)
        check.require(fits, "unit", rows["unit"].fill_null(""), "is not the unit of this type")
        times = {}
        for column, name in (("start", "startDate"), ("end", "endDate")):
            check.require(rows[column].is_not_null(), name, rows[column].fill_null(""), "is no time")
            times[column] = clock.parse(rows[column], clock.Clock())
            check.times(times[column], name, rows[column])
            check.require(times[column]["offset"].is_not_null(), name, rows[column], "has no UTC offset")
        start, end = times["start"]["time"], times["end"]["time"]
        check.intervals(start, end, "endDate", rows["end"])
        value = check.numbers(rows["value"], "value")
        frame = rows.select("channel", "device").with_columns(
            pl.lit(self.subject).alias("subject"),
            start.alias("time"),
            pl.select(pl.when(end > start).then(end)).to_series().alias("end"),
            times["start"]["offset"].alias("offset"),
            value.alias("value"),
        )
        return frame.filter(check.good).select(*READINGS)
