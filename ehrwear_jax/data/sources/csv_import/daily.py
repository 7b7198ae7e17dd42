"""Reads tables with one row a day, as Oura and Garmin write them: values become samples of a day.

A sample is known when its day is over. A table has a column of dates (date, day, calendarDate, summary_date) and any of
the columns in COLUMNS, whose names are compared without case and punctuation: "Average Resting Heart Rate" is
average_resting_heart_rate. Other columns are left out. Delimiters , ; and tab are recognised. A column subject_id,
participant_id or user_id says whose day it is; without, --subject or --subject-folders do.

Assumed: a date is of the clock at the place (--timezone gives it an offset, and is not needed); durations of sleep are
in seconds, as in Oura's trends and Garmin's summaries; Oura's average HRV is the night's mean RMSSD in ms; what a night
says stands on the day on which it ended. Of several rows of a day the first is used, and the others are counted.
"""

import re
from collections.abc import Iterator

import polars as pl

from ehrwear_jax.data.sources.csv_import import mapped, text_tables
from ehrwear_jax.data.sources.csv_import.mapping import STEP, Channel, Layout, Mapping, Sampling
from ehrwear_jax.data.sources.csv_import.readings import Job, known_files

_DAY = Sampling(STEP, 86_400.0)
CHANNELS = {
    c.name: c
    for c in (
        Channel("resting_heart_rate", "bpm", "Resting heart rate of a day", 25.0, 150.0, sampling=_DAY),
        Channel("lowest_heart_rate", "bpm", "Lowest heart rate of a night", 20.0, 150.0, sampling=_DAY),
        Channel("hrv_rmssd", "ms", "Mean RMSSD of a night", 0.0, 400.0, sampling=_DAY),
        Channel("daily_steps", "steps/day", "Steps of a day", 0.0, 150_000.0, sampling=_DAY),
        Channel("sleep_duration", "min", "Time asleep in the night that ended that day", 0.0, 1440.0, sampling=_DAY),
        Channel("sleep_deep", "min", "Deep sleep", 0.0, 1440.0, sampling=_DAY),
        Channel("sleep_rem", "min", "REM sleep", 0.0, 1440.0, sampling=_DAY),
        Channel("respiratory_rate", "breaths/min", "Mean respiratory rate", 3.0, 60.0, sampling=_DAY),
        Channel(
            "temperature_deviation", "degC", "Skin temperature minus the person's mean", -10.0, 10.0, sampling=_DAY
        ),
        Channel("spo2", "%", "Mean oxygen saturation", 50.0, 100.0, sampling=_DAY),
        Channel("stress", "a.u.", "Garmin's mean stress level, 0 to 100", 0.0, 100.0, sampling=_DAY),
    )
}
# Column, compared as the docstring says: channel, unit of the column.
COLUMNS = {
    "average_resting_heart_rate": ("resting_heart_rate", "bpm"),
    "resting_heart_rate": ("resting_heart_rate", "bpm"),
    "restingheartrate": ("resting_heart_rate", "bpm"),
    "lowest_resting_heart_rate": ("lowest_heart_rate", "bpm"),
    "lowest_heart_rate": ("lowest_heart_rate", "bpm"),
    "average_hrv": ("hrv_rmssd", "ms"),
    "steps": ("daily_steps", "steps/day"),
    "totalsteps": ("daily_steps", "steps/day"),
    "total_steps": ("daily_steps", "steps/day"),
    "total_sleep_duration": ("sleep_duration", "s"),
    "sleeptimeseconds": ("sleep_duration", "s"),
    "deep_sleep_duration": ("sleep_deep", "s"),
    "deepsleepseconds": ("sleep_deep", "s"),
    "rem_sleep_duration": ("sleep_rem", "s"),
    "remsleepseconds": ("sleep_rem", "s"),
    "respiratory_rate": ("respiratory_rate", "breaths/min"),
    "average_breath": ("respiratory_rate", "breaths/min"),
    "averagerespirationvalue": ("respiratory_rate", "breaths/min"),
    "temperature_deviation_c": ("temperature_deviation", "degC"),
    "temperature_deviation": ("temperature_deviation", "degC"),
    "average_spo2": ("spo2", "%"),
    "averagespo2value": ("spo2", "%"),
    "averagestresslevel": ("stress", "a.u."),
}
DATES = ("date", "day", "calendardate", "calendar_date", "summary_date")
SUBJECTS = ("subject_id", "participant_id", "user_id")


def plain(name: str) -> str:
    """A column's name in lower case, with _ for all that is neither letter nor digit."""
    return re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")


def read(job: Job) -> Iterator[pl.DataFrame]:
    """Batches of readings of all tables below Job.source.

    Raises:
      FileNotFoundError: no table with a column of dates and one of COLUMNS.
      ValueError: a value cannot be read; names file, line and column.
    """

    def batches_of(path):
        plan = _plan(path, job)
        return None if plan is None else mapped.read([path], plan, job)

    patterns = ("*.csv", "*.csv.gz", "*.tsv", "*.txt", "*.parquet")
    yield from known_files(job, patterns, batches_of, "holds no table of days with columns as in daily.py")


def _plan(path, job: Job) -> Mapping | None:
    """The mapping of a table, None if it is no table of days."""
    layout = Layout()
    if path.suffix != ".parquet":
        lines = text_tables.sniff(path)
        if not lines or not lines[0].strip():
            return None
        layout = Layout(delimiter=text_tables.likely_delimiter(lines[0]))
    names = {plain(name): name for name in reversed(text_tables.open_table(path, layout).names)}
    date = next((names[name] for name in DATES if name in names), None)
    channels: dict[str, Channel] = {}
    for column, (channel, unit) in COLUMNS.items():
        if column in names and channel not in channels:
            channels[channel] = Channel(channel, CHANNELS[channel].unit, column=names[column], source_unit=unit)
    if date is None or not channels:
        return None
    subject = "" if job.subject or job.subject_folders else next((names[s] for s in SUBJECTS if s in names), "")
    return Mapping(channels, (date,), clock=job.clock(), layout=layout, subject_column=subject, device=job.device)
