"""Defines what every format is read into: readings of channels, counts of what was dropped, and checks of each value.

A reading is a value of a channel at a time, or from a time to another. READINGS is the schema of a batch of them.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import polars as pl
from tqdm import tqdm

from ehrwear_jax.data.formats import parquet
from ehrwear_jax.data.sources.csv_import.clock import Clock
from ehrwear_jax.data.sources.csv_import.mapping import Channel

READINGS = pl.Schema(
    {
        "subject": pl.String,  # as in the source
        "time": pl.Int64,  # microseconds since 1970: in UTC where there is an offset, else the clock at the place
        "end": pl.Int64,  # null: the reading is of one moment
        "offset": pl.Int16,  # minutes that the clock at the place shows beyond UTC; null: not known
        "channel": pl.String,
        "device": pl.String,  # null: not named
        "value": pl.Float64,  # in the channel's unit
    }
)
MAX_INTERVAL_US = 7 * 86_400_000_000  # a reading does not last longer
_EXAMPLES = 3


class Tally:
    """Counts rows and readings.

    Attributes:
      rows: {file: rows read, of whatever the format calls a row}.
      readings: how many values of channels these rows have room for.
      dropped: {reason: readings}.
      skipped: files that the format does not read.
      examples: the first readings as understood, a sentence each.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.readings = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.skipped: list[str] = []
        self.examples: list[str] = []

    def read(self, path: Path, rows: int, readings: int) -> None:
        """Notes rows of a file."""
        self.rows[str(path)] = self.rows.get(str(path), 0) + rows
        self.readings += readings

    def drop(self, reason: str, n: int) -> None:
        """Notes readings that are left out."""
        if n:
            self.dropped[reason] += int(n)

    @property
    def kept(self) -> int:
        """Readings that are not left out."""
        return self.readings - self.dropped.total()


@dataclasses.dataclass(frozen=True)
class Job:
    """What the command asks for, whatever the format.

    Attributes:
      source: file or folder.
      tally: what the readers count in.
      subject: whose recording all of it is; "": the format says so, or the folders do.
      subject_folders: whether the first folder below `source` is the person's id.
      timezone, utc_offset_minutes: of the place, see clock.Clock.
      device: of readings whose device the format does not name; "": none.
      drop_bad: whether a row that cannot be read is dropped and counted; else it is an error.
    """

    source: Path
    tally: Tally
    subject: str = ""
    subject_folders: bool = False
    timezone: str = ""
    utc_offset_minutes: int | None = None
    device: str = ""
    drop_bad: bool = False

    def clock(self, form: str = "iso", utc: bool = False) -> Clock:
        """A clock at the place that the command names."""
        return Clock(form, self.timezone, self.utc_offset_minutes, utc)

    def subject_of(self, path: Path) -> str:
        """Whose file it is, for formats that do not say so.

        Raises:
          ValueError: nothing says so.
        """
        if self.subject:
            return self.subject
        if self.subject_folders:
            parts = path.relative_to(self.source).parts if path != self.source else ()
            if len(parts) < 2:
                raise ValueError(f"{path}: lies in no person's folder below {self.source}; give --subject=ID")
            return parts[0]
        raise ValueError(f"{path}: does not say whose recording it is; give --subject=ID or --subject-folders")


class Check:
    """Judges the rows of a batch: a row that cannot be read is an error, or with Job.drop_bad counted.

    Args:
      job: says which.
      path: file.
      place: "line 12" of a row of the batch.
      n: rows of the batch.
      per_row: readings that are lost with a row.
    """

    def __init__(self, job: Job, path: Path, place: Callable[[int], str], n: int, per_row: int = 1) -> None:
        self.job, self.path, self.place, self.per_row = job, path, place, per_row
        self.good = pl.Series("good", [True], pl.Boolean).new_from_index(0, n)

    def require(self, ok: pl.Series, column: str, shown: pl.Series, what: str) -> None:
        """Takes out the rows that are not `ok`.

        Raises:
          ValueError: there is one and bad rows are not to be dropped; names file, line and column.
        """
        bad = self.good & ~ok.fill_null(False)
        if not bad.any():
            return
        if not self.job.drop_bad:
            row = parquet.first_true(bad)
            raise ValueError(f"{self.path}: {self.place(row)}: column '{column}': '{shown[row]}' {what}")
        self.job.tally.drop(f"column '{column}' {what}", int(bad.sum()) * self.per_row)
        self.good = self.good & ~bad

    def leave_out(self, which: pl.Series, reason: str) -> None:
        """Takes out rows that hold nothing to keep; they are no error."""
        bad = self.good & which.fill_null(False)
        self.job.tally.drop(reason, int(bad.sum()) * self.per_row)
        self.good = self.good & ~bad

    def times(self, parsed: pl.DataFrame, column: str, shown: pl.Series) -> None:
        """Takes out rows whose time (clock.parse) cannot be used. Raises as require."""
        self.require(~parsed["skipped"], column, shown, "is a time that the clock of the zone skips")
        self.require(parsed["time"].is_not_null(), column, shown, "is not a time of the given format")
        if bool((self.good & parsed["placeless"]).any()):
            row = parquet.first_true(self.good & parsed["placeless"])
            raise ValueError(
                f"{self.path}: {self.place(row)}: column '{column}': '{shown[row]}' is in UTC; say with --timezone or "
                "--utc-offset-minutes (in a mapping: timezone, utc_offset_minutes) what the clock at the place showed"
            )

    def numbers(self, text: pl.Series, column: str, decimal: str = ".") -> pl.Series:
        """Values f64 of a column of text or numbers; rows without a value are left out. Raises as require."""
        self.leave_out(text.is_null(), "no value")
        shown = text
        if text.dtype == pl.String:
            text = text.str.strip_chars()
            text = text.str.replace(decimal, ".", literal=True) if decimal != "." else text
        value = text.cast(pl.Float64, strict=False)
        self.require(value.is_not_null(), column, shown, "is not a number")
        self.require(value.is_finite(), column, shown, "is not a finite number")
        return value

    def intervals(self, time: pl.Series, end: pl.Series, column: str, shown: pl.Series) -> None:
        """Takes out readings that end before they begin, or last longer than MAX_INTERVAL_US. Raises as require."""
        self.require((end >= time).fill_null(True), column, shown, "is before the begin")
        days = MAX_INTERVAL_US // 86_400_000_000
        self.require((end - time <= MAX_INTERVAL_US).fill_null(True), column, shown, f"is more than {days} days later")


def find_files(source: Path, patterns: Iterable[str]) -> list[Path]:
    """The file itself, or the files below the folder that match a pattern, in path order.

    Raises:
      FileNotFoundError: no such file or folder, or no file that matches.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such file or folder")
    patterns = tuple(patterns)
    found = {p for pattern in patterns for p in source.rglob(pattern) if p.is_file() and not p.name.startswith(".")}
    if not found:
        raise FileNotFoundError(f"{source}: holds no file {' or '.join(patterns)}")
    return sorted(found)


def known_files(
    job: "Job", patterns: Iterable[str], batches_of: Callable[[Path], Iterator[pl.DataFrame] | None], lacking: str
) -> Iterator[pl.DataFrame]:
    """Batches of the files of an export, one file after the other; those that are of another form are noted.

    Args:
      patterns: see find_files. batches_of: of a file, None where it is of another form.
      lacking: what the source does not hold where no file is of this form.

    Raises:
      FileNotFoundError: no file is of this form.
    """
    known = 0
    for path in find_files(job.source, patterns):
        batches = batches_of(path)
        if batches is None:
            job.tally.skipped.append(str(path))
            continue
        known += 1
        yield from batches
    if not known:
        raise FileNotFoundError(f"{job.source}: {lacking}")


def of_channel(
    times: pl.DataFrame, value: pl.Series, good: pl.Series, subject: str, channel: str, device: str
) -> pl.DataFrame:
    """Readings (READINGS) of one channel of one person.

    Args:
      times: time and offset (clock.parse). value: f64. good: which rows are taken.
    """
    frame = times.select("time", "offset").with_columns(
        value.alias("value"),
        pl.lit(subject).alias("subject"),
        pl.lit(None, pl.Int64).alias("end"),
        pl.lit(channel).alias("channel"),
        pl.lit(device).alias("device"),
    )
    return frame.filter(good).select(*READINGS)


def noted(batches: Iterable[pl.DataFrame], job: Job, channels: dict[str, Channel]) -> Iterator[pl.DataFrame]:
    """The batches as they are; the first readings become Job.tally.examples. A terminal shows how many there are."""
    with tqdm(unit=" readings", unit_scale=True, disable=None) as bar:  # None: not where there is no terminal
        for batch in batches:
            bar.update(batch.height)
            missing = _EXAMPLES - len(job.tally.examples)
            if missing:  # a wide table's batch is channel by channel
                heads = batch.group_by("channel", maintain_order=True).head(missing).sort("time", maintain_order=True)
                moments = heads.group_by("subject", "time", "end", "offset", "device", maintain_order=True)
                together = moments.agg("channel", "value").head(missing)
                job.tally.examples += [_sentence(row, channels) for row in together.iter_rows(named=True)]
            yield batch


def show_time(us: int, offset: int | None) -> str:
    """A time for people to read: on the clock at the place, with its offset."""
    local = pl.Series([us + (offset or 0) * 60_000_000]).cast(pl.Datetime("us"))
    text = local.dt.to_string("%Y-%m-%d %H:%M:%S%.3f")[0].removesuffix(".000")
    if offset is None:
        return text
    sign, minutes = "-" if offset < 0 else "+", abs(offset)
    return f"{text} (UTC{sign}{minutes // 60:02d}:{minutes % 60:02d})"


def _sentence(row: dict, channels: dict[str, Channel]) -> str:
    end = "" if row["end"] is None else f" to {show_time(row['end'], row['offset'])}"
    device = "" if row["device"] is None else f", device {row['device']}"
    pairs = zip(row["channel"], row["value"], strict=True)
    values = ", ".join(f"{name} {value:g} {channels[name].unit}" for name, value in pairs)
    return f"subject {row['subject']}: {show_time(row['time'], row['offset'])}{end}: {values}{device}"
