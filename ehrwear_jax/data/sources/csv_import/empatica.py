"""Reads the raw CSV files of an Empatica E4: ACC, BVP, EDA, TEMP, HR and IBI.

The first line is the start in seconds since 1970 in UTC, once per column; the second the rate in Hz; then a line a
sample. IBI.csv has no rate: its first line is the start and a title, then a line is the seconds from the start to a
beat, and the seconds since the beat before. Acceleration is in 1/64 g. All this is as the export's info.txt says;
tags.csv is not read. Times are in UTC: --timezone is needed. A folder is one session; --subject or --subject-folders
say whose.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.sources.csv_import import clock
from ehrwear_jax.data.sources.csv_import.mapping import BEATS, RATE, Channel, Layout, Sampling
from ehrwear_jax.data.sources.csv_import.readings import Check, Job, find_files, of_channel
from ehrwear_jax.data.sources.csv_import.text_tables import TextTable, sniff

DEVICE = "Empatica E4"
# File: (channel, factor) of each column, and the rates that the device has.
_FILES = {
    "ACC.csv": ((("acceleration_x", 1 / 64), ("acceleration_y", 1 / 64), ("acceleration_z", 1 / 64)), 32.0),
    "BVP.csv": ((("ppg", 1.0),), 64.0),
    "EDA.csv": ((("eda", 1.0),), 4.0),
    "TEMP.csv": ((("skin_temperature", 1.0),), 4.0),
    "HR.csv": ((("heart_rate", 1.0),), 1.0),
}
_IBI = "IBI.csv"
CHANNELS = {
    c.name: c
    for c in (
        *(
            Channel(f"acceleration_{axis}", "g", f"Acceleration, {axis}", -2.1, 2.1, sampling=Sampling(RATE, 1 / 32))
            for axis in "xyz"
        ),
        Channel("ppg", "a.u.", "Blood volume pulse", sampling=Sampling(RATE, 1 / 64)),
        Channel("eda", "uS", "Electrodermal activity", 0.0, 100.0, sampling=Sampling(RATE, 1 / 4)),
        Channel("skin_temperature", "degC", "Skin temperature", 15.0, 45.0, sampling=Sampling(RATE, 1 / 4)),
        Channel("heart_rate", "bpm", "Heart rate, mean of 10 s", 25.0, 250.0, sampling=Sampling(RATE, 1.0)),
        Channel("beat_interval", "ms", "Intervals between beats", 250.0, 3000.0, sampling=Sampling(BEATS, stamp="end")),
    )
}


def read(job: Job) -> Iterator[pl.DataFrame]:
    """Batches of readings of all E4 files below Job.source.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a file is not as the module's docstring says; names file, line and column.
    """
    for path in find_files(job.source, (*_FILES, _IBI)):
        if path.name not in (*_FILES, _IBI):
            raise ValueError(f"{path}: is none of {', '.join((*_FILES, _IBI))}")
        yield from _Session(path, job).batches()


class _Session:
    """One file."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job, self.beats = path, job, path.name == _IBI
        columns, expected = ((("beat_interval", 1000.0),), 0.0) if self.beats else _FILES[path.name]
        self.columns = columns
        lines = [line.split(",") for line in (sniff(path) or [""])[:2]] + [[], []]
        self.start_s = self._number(lines[0], 1, "start time")
        if not 9e8 < self.start_s < 1e10:
            shown = lines[0][0].strip()
            raise ValueError(f"{path}: line 1: column 1: '{shown}' is no start time in seconds since 1970")
        self.rate_hz = 0.0
        if not self.beats:
            self.rate_hz = self._number(lines[1], 2, "rate in Hz")
            if self.rate_hz != expected:
                raise ValueError(f"{path}: line 2: column 1: {self.rate_hz:g} Hz; of an E4 it is {expected:g} Hz")
            if len(lines[0]) != len(columns):
                raise ValueError(f"{path}: line 1: has {len(lines[0])} columns; of an E4 it has {len(columns)}")
        names = ("time", "interval") if self.beats else tuple(name for name, _ in columns)
        layout = Layout(header=names, skip_lines=1 if self.beats else 2, keep_empty=len(names) == 1)
        self.table = TextTable(path, layout, job.drop_bad)

    def _number(self, fields: list[str], line: int, what: str) -> float:
        try:
            return float(fields[0])
        except (ValueError, IndexError):
            shown = fields[0].strip() if fields else ""
            raise ValueError(f"{self.path}: line {line}: column 1: '{shown}' is no {what}") from None

    def batches(self) -> Iterator[pl.DataFrame]:
        names = self.table.names
        self.job.tally.read(self.path, 0, 0)
        for first_row, rows in self.table.batches(names):
            self.job.tally.read(self.path, rows.height, rows.height * len(self.columns))
            at_s = np.arange(first_row, first_row + rows.height) / (self.rate_hz or 1.0)
            check = Check(self.job, self.path, _place(self.table, first_row), rows.height)
            if self.beats:
                at_s = check.numbers(rows["time"], "time").fill_null(0.0).to_numpy()
            yield from self._parts(rows, at_s, check, first_row)
        if self.table.ragged:
            raise ValueError(
                f"{self.path}: {self.table.ragged} lines have not {len(names)} columns, which shifts the times"
            )

    def _parts(self, rows: pl.DataFrame, at_s: np.ndarray, check: Check, first_row: int) -> Iterator[pl.DataFrame]:
        stamps = pl.Series(np.round((self.start_s + at_s) * 1e6)).cast(pl.Int64)
        times = clock.parse(stamps, self.job.clock("epoch_us"))
        check.times(times, "1", stamps)
        for name, factor in self.columns:
            column = "interval" if self.beats else name
            mine = Check(self.job, self.path, _place(self.table, first_row), rows.height)
            mine.good = check.good.clone()
            value = mine.numbers(rows[column], column)
            subject = self.job.subject_of(self.path)
            yield of_channel(times, value * factor, mine.good, subject, name, self.job.device or DEVICE)


def _place(table: TextTable, first_row: int):
    return lambda row: table.place(first_row + row)
