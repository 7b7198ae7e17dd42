"""Reads recordings of Polar sensors: the files of the app Polar Sensor Logger, and CSV files of Polar Flow.

Sensor Logger: text with ; between fields, and a header that begins with "Phone timestamp":

  ...;sensor timestamp [ns];X [mg];Y [mg];Z [mg]                 acceleration_x, _y, _z
  ...;sensor timestamp [ns];channel 0;channel 1;...;ambient      ppg_0, ppg_1, ..., ppg_ambient
  ...;sensor timestamp [ns];timestamp [ms];ecg [uV]              ecg
  ...;HR [bpm]                                                   heart_rate; 0 is none
  ...;PP-interval [ms];error estimate [ms];blocker;...           beat_interval; with blocker 1 it is left out
  ...;RR-interval [ms]                                           beat_interval

Assumed: phone times are of the clock at the place (--timezone gives them an offset, and is not needed); an interval
begins at its time, as successive rows show. Phone times come in packets, a second or more too early or late: samples
with a sensor time are placed by it, and intervals one behind the other, from the phone's time of the first row on, and
anew where the phone's time is later than that by more than AHEAD_S, as after a pause, or earlier by BEHIND_S.

Flow: a line of titles, a line about the session (Date dd-mm-yyyy, Start time hh:mm:ss, of the clock at the place), then
a table "Sample rate,Time,HR (bpm),..." with times since the start. The heart rate is read, and neither the name nor
anything else of the session.

Files do not say whose they are: --subject or --subject-folders do.
"""

import csv
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.sources.csv_import import clock, mapped
from ehrwear_jax.data.sources.csv_import.mapping import BEATS, STEP, Channel, Layout, Mapping, Sampling
from ehrwear_jax.data.sources.csv_import.readings import Check, Job, known_files, of_channel
from ehrwear_jax.data.sources.csv_import.text_tables import TextTable, sniff

AHEAD_S, BEHIND_S = 5.0, 60.0
PHONE, SENSOR = "Phone timestamp", "sensor timestamp [ns]"
FLOW = "Sample rate,Time,HR (bpm)"
CHANNELS = {
    c.name: c
    for c in (
        *(Channel(f"acceleration_{axis}", "mg", f"Acceleration, {axis}", -16_000.0, 16_000.0) for axis in "xyz"),
        *(Channel(f"ppg_{i}", "a.u.", f"Raw optical sensor, light {i}") for i in range(16)),
        Channel("ppg_ambient", "a.u.", "Raw optical sensor, without light"),
        Channel("ecg", "uV", "Electrocardiogram", -20_000.0, 20_000.0),
        Channel("heart_rate", "bpm", "Heart rate", 25.0, 250.0, sampling=Sampling(STEP, 1.0)),
        Channel("beat_interval", "ms", "Beat intervals", 250.0, 3000.0, sampling=Sampling(BEATS, stamp="start")),
    )
}
_COLUMNS = {
    "X [mg]": "acceleration_x",
    "Y [mg]": "acceleration_y",
    "Z [mg]": "acceleration_z",
    "ambient": "ppg_ambient",
    "ecg [uV]": "ecg",
    "HR [bpm]": "heart_rate",
    "PP-interval [ms]": "beat_interval",
    "RR-interval [ms]": "beat_interval",
}
_PPG = re.compile(r"channel (\d+)")


def read(job: Job) -> Iterator[pl.DataFrame]:
    """Batches of readings of all Polar files below Job.source.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a file is not as the module's docstring says; names file, line and column.
    """
    yield from known_files(
        job,
        ("*.txt", "*.csv", "*.txt.gz", "*.csv.gz"),
        lambda path: _batches(path, job),
        "holds no file of Polar Sensor Logger or Polar Flow (see polar.py)",
    )


def _batches(path: Path, job: Job) -> Iterator[pl.DataFrame] | None:
    lines = sniff(path)
    if lines and lines[0].startswith(PHONE + ";") and columns_of(lines[0].split(";")):
        return _Logged(path, job).batches()
    return _flow(path, lines, job) if any(line.startswith(FLOW) for line in lines) else None


def columns_of(names: list[str]) -> dict[str, str]:
    """{column: channel} of a header of the Sensor Logger; the heart rate is left out where it goes with intervals."""
    found = {}
    for name in (n.strip() for n in names):
        ppg = _PPG.fullmatch(name)
        channel = f"ppg_{ppg.group(1)}" if ppg else _COLUMNS.get(name)
        if channel in CHANNELS:
            found[name] = channel
    if "beat_interval" in found.values():
        found.pop("HR [bpm]", None)
    return found


class _Logged:
    """One file of the Sensor Logger."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        self.table = TextTable(path, Layout(delimiter=";"), job.drop_bad)
        self.columns = columns_of(self.table.names)
        self.sensor = SENSOR in self.table.names
        self.intervals = next((c for c, channel in self.columns.items() if channel == "beat_interval"), "")
        self.elapsed_us = 0  # sum of the intervals so far
        self.shift_us: int | None = None  # from the sensor's clock to the phone's
        self.subject = job.subject_of(path)

    def batches(self) -> Iterator[pl.DataFrame]:
        tally, per_row = self.job.tally, len(self.columns)
        blocker = ["blocker"] if self.intervals and "blocker" in self.table.names else []
        tally.read(self.path, 0, 0)
        for first_row, rows in self.table.batches([PHONE, *[SENSOR] * self.sensor, *blocker, *self.columns]):
            tally.read(self.path, rows.height, rows.height * per_row)

            def place(row: int, first_row: int = first_row) -> str:
                return self.table.place(first_row + row)

            check = Check(self.job, self.path, place, rows.height, per_row)
            times = self._times(rows, check)
            if blocker:
                check.leave_out(rows["blocker"].str.strip_chars() == "1", "an interval with the blocker set")
            yield from self._parts(rows, times, check, place)
        if self.table.ragged:
            tally.read(self.path, self.table.ragged, self.table.ragged * per_row)
            tally.drop("another number of fields than columns", self.table.ragged * per_row)

    def _times(self, rows: pl.DataFrame, check: Check) -> pl.DataFrame:
        stamps = rows[PHONE]
        check.require(stamps.is_not_null(), PHONE, stamps.fill_null(""), "is no time")
        times = clock.parse(stamps, self.job.clock())
        check.times(times, PHONE, stamps)
        sensor_N = self._sensor_us(rows, check)
        if not sensor_N.any():  # some apps write zeros
            return times
        placed_N = times["time"].fill_null(0).to_numpy().copy()
        good_N = np.flatnonzero(check.good.to_numpy())
        shift_N, at = placed_N[good_N] - sensor_N[good_N], 0
        while at < len(good_N):
            if self.shift_us is None or _apart(shift_N[at], self.shift_us):
                self.shift_us = int(shift_N[at])
            apart = np.flatnonzero(_apart(shift_N[at:], self.shift_us))
            until = at + int(apart[0]) if len(apart) else len(good_N)
            placed_N[good_N[at:until]] = sensor_N[good_N[at:until]] + self.shift_us
            at = until
        return times.with_columns(pl.Series("time", placed_N))

    def _sensor_us(self, rows: pl.DataFrame, check: Check) -> np.ndarray:
        """int64 [N]: the clock of the sensor, zeros if there is none."""
        if self.intervals:
            length = rows[self.intervals].str.strip_chars().cast(pl.Float64, strict=False).fill_null(np.nan)
            length_N = np.nan_to_num(
                length.to_numpy(), nan=1000.0, posinf=1000.0, neginf=1000.0
            )  # parts its neighbours
            end_N = self.elapsed_us + np.round(length_N * 1000).astype(np.int64).cumsum()
            begin_N = np.append(self.elapsed_us, end_N[:-1])
            self.elapsed_us = int(end_N[-1])
            return begin_N
        if not self.sensor:
            return np.zeros(rows.height, np.int64)
        number = rows[SENSOR].cast(pl.Int64, strict=False)
        check.require(number.is_not_null(), SENSOR, rows[SENSOR].fill_null(""), "is no whole number")
        return (number.fill_null(0) // 1000).to_numpy()

    def _parts(
        self, rows: pl.DataFrame, times: pl.DataFrame, check: Check, place: Callable[[int], str]
    ) -> Iterator[pl.DataFrame]:
        for column, channel in self.columns.items():
            mine = Check(self.job, self.path, place, rows.height)
            mine.good = check.good.clone()
            value = mine.numbers(rows[column], column)
            if channel == "heart_rate":
                mine.leave_out(value == 0, "a heart rate of 0")
            yield of_channel(times, value, mine.good, self.subject, channel, self.job.device or "Polar")


def _apart(shift_us_N: np.ndarray, shift_us: int) -> np.ndarray:
    """Whether the phone's clock says that there was a pause, or that it was set back."""
    return (shift_us_N - shift_us > AHEAD_S * 1e6) | (shift_us - shift_us_N > BEHIND_S * 1e6)


def _flow(path: Path, lines: list[str], job: Job) -> Iterator[pl.DataFrame]:
    """One session of Polar Flow."""
    above = next(i for i, line in enumerate(lines) if line.startswith(FLOW))
    titles, values = (next(csv.reader([line]), []) for line in (lines[0], lines[1]))
    session = dict(zip(titles, values, strict=False))
    stamp = f"{session.get('Date', '')} {session.get('Start time', '')}"
    start = pl.Series([stamp]).str.strptime(pl.Datetime("us"), "%d-%m-%Y %H:%M:%S", strict=False)[0]
    if start is None:
        raise ValueError(f"{path}: line 2: column 'Date': '{stamp}' is no Date dd-mm-yyyy and Start time hh:mm:ss")
    plan = Mapping(
        {"heart_rate": Channel("heart_rate", "bpm", column="HR (bpm)")},
        ("Time",),
        clock=dataclasses.replace(job.clock(clock.ELAPSED), start=start.isoformat()),
        layout=Layout(skip_lines=above),
        device=job.device or "Polar",
    )
    yield from mapped.read([path], plan, job)
