"""Reads the accelerometry of UK Biobank: five-second means of field 90004, and the summaries of a person's week.

The device (Axivity AX3, dominant wrist) was worn for seven days in 2013 to 2016. `<eid>_90004_0_0.csv`, perhaps with
`.gz` and in any folder below accelerometer/, has a header that says when it was recorded, on the clock of the place:

    acceleration (mg) - 2015-08-06 10:00:00 - 2015-08-13 09:59:55 - sampleRate = 5 seconds,imputed

and a line per five seconds: a value, and 1 where it was imputed from other days. **An imputed value is missing here**:
it was made from days that follow as well as from those before, so it tells the future, and tells it where nothing was
measured.

People whose fields 90015 (worn for long enough) or 90016 (calibrated) say no, or say nothing, are left out, files and
summaries. The mean of the week (90012) and the days worn (90051) are channels of one value, known at the week's end.
"""

import gzip
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import polars as pl

from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.sources.csv_source import Ledger
from ehrwear_jax.data.sources.ukb import participants
from ehrwear_jax.data.sources.ukb.export_files import STRANGER, Tally

ACCELERATION, WEEK_MEAN, DAYS_WORN = "acceleration", "acceleration_week", "days_worn"
UNIT, DEVICE = "mg", "Axivity AX3, dominant wrist"
PEOPLE_PER_FILE = 100
_NAME = re.compile(r"(?P<eid>\d+)_90004_\d+_\d+\.csv(\.gz)?")
_TIME = r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)[^,]*?"
_HEADER = re.compile(rf"acceleration \(mg\) - {_TIME} - {_TIME} - sampleRate = (\d+(?:\.\d+)?) seconds?\s*(?:,.*)?")
_YES = ("1", "yes", "1.0")


class Recording(NamedTuple):
    """A file of field 90004: its start, seconds a sample, and values f32 with NaN where imputed or missing."""

    start: datetime
    seconds: float
    values: pl.Series


def read_file(path: Path) -> Recording:
    """A five-second file.

    Raises:
      ValueError: naming file and reason: no such header, a value that is no number, or more or fewer values than the
        header says.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    line, _, body = raw.partition(b"\n")
    said = _HEADER.match(line.decode("utf-8", "replace").strip().strip('"'))
    if said is None:
        raise ValueError(f"{path}: the first line is not as field 90004 has it")
    start, end = (datetime.fromisoformat(t) for t in said.group(1, 2))
    seconds = float(said[3])
    expected = round((end - start).total_seconds() / seconds) + 1
    try:
        table = pl.read_csv(body, has_header=False, new_columns=["value", "imputed"], infer_schema=False)
    except pl.exceptions.PolarsError:
        raise ValueError(f"{path}: holds no values") from None
    value = table["value"].str.strip_chars().replace("", None)
    number = value.cast(pl.Float32, strict=False)
    if number.null_count() > value.null_count():
        row = int((number.is_null() & value.is_not_null()).arg_max() or 0)
        raise ValueError(f"{path}: row {row + 1}: column 'acceleration' is '{value[row]}', not a number")
    if abs(len(number) - expected) > 1:  # the end is the last sample's time or the one after it
        raise ValueError(f"{path}: has {len(number):,} values, and its first line says {expected:,}")
    if "imputed" in table.columns:
        imputed = table["imputed"].str.strip_chars().is_in(["1", "1.0"]).fill_null(False)
        number = pl.select(pl.when(~imputed).then(number)).to_series()
    return Recording(start, seconds, number.fill_null(float("nan")))


def channels() -> pl.DataFrame:
    """The table of channels."""
    rows = [
        (ACCELERATION, UNIT, "mean vector magnitude above gravity of five seconds, imputed ones missing", 0.0, 8000.0),
        (WEEK_MEAN, UNIT, "mean of the week (field 90012), known at its end", 0.0, 2000.0),
        (DAYS_WORN, "d", "days worn (field 90051), known at the week's end", 0.0, 14.0),
    ]
    return pl.DataFrame(rows, schema=list(wearable.CHANNEL_SCHEMA), orient="row")


def quality(wear: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """The people whose recording is of use: subject_id, end (Datetime; null: unknown), mean, days (f32).

    Args:
      wear: as Participants.wear.
    """
    good = {f: pl.col(str(f)).str.to_lowercase() for f in (participants.GOOD_WEAR, participants.GOOD_CALIBRATION)}
    known = wear.filter(pl.any_horizontal(pl.exclude("subject_id").is_not_null()))
    tally.n_read += known.height
    kept = tally.keep(
        known,
        (pl.any_horizontal(g.is_null() for g in good.values()), "quality unknown (90015, 90016)"),
        (~good[participants.GOOD_WEAR].is_in(_YES), "not worn for long enough (90015)"),
        (~good[participants.GOOD_CALIBRATION].is_in(_YES), "not calibrated (90016)"),
    )

    def number(field: int) -> pl.Expr:
        return pl.col(str(field)).cast(pl.Float32, strict=False)

    time = pl.col(str(participants.WEAR_END)).str.replace("T", " ").str.head(19)
    ends = [time.str.to_datetime(f, strict=False, time_unit="us")
            for f in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%d/%m/%Y %H:%M:%S")]  # fmt: skip
    return kept.select(
        "subject_id",
        pl.coalesce(*ends).alias("end"),
        number(participants.WEAR_MEAN).alias("mean"),
        number(participants.WEAR_DAYS).alias("days"),
    )


def find_recordings(folder: Path) -> pl.DataFrame:
    """subject_id, path of the five-second files below a folder, by subject_id and path."""
    found = []
    for path in sorted(Path(folder).rglob("*_90004_*.csv*")):
        if name := _NAME.fullmatch(path.name):
            found.append((int(name["eid"]), str(path)))
    return pl.DataFrame(found, schema={"subject_id": pl.Int64, "path": pl.String}, orient="row").sort(
        "subject_id", "path"
    )


def _row(subject_id: int, start: datetime, seconds: float, channel: str, values: pl.Series, unit: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"subject_id": [subject_id], "start_time": [start], "sample_rate_hz": [1 / seconds], "channel": [channel],
         "values": [values], "unit": [unit], "device": [DEVICE]},
        schema=wearable.ROW_SCHEMA,
    )  # fmt: skip


def _summaries(person: dict) -> Iterator[pl.DataFrame]:
    if person["end"] is None:
        return
    start = person["end"] - timedelta(microseconds=DAY_US)
    for channel, column, unit in ((WEEK_MEAN, "mean", UNIT), (DAYS_WORN, "days", "d")):
        if person[column] is not None:
            values = pl.Series([person[column]], dtype=pl.Float32)
            yield _row(person["subject_id"], start, DAY_US / 1e6, channel, values, unit)


def write(folder: Path, source: Path, splits: pl.DataFrame, good: pl.DataFrame, tally: Tally, ledger: Ledger) -> int:
    """Writes wearable/ of the people whose recording is of use; returns the number of stretches.

    Memory: the recordings of PEOPLE_PER_FILE people, 484 kB each.

    Args:
      folder: of the dataset. source: folder with the files, at any depth.
      splits: subject_id, split. good: as quality returns.
    """
    files = find_recordings(source)
    tally.n_read += files.height
    files = tally.keep(
        files,
        (~pl.col("subject_id").is_in(splits["subject_id"].implode()), STRANGER),
        (~pl.col("subject_id").is_in(good["subject_id"].implode()), "quality unknown or bad (90015, 90016)"),
        (~pl.col("subject_id").is_first_distinct(), "a further file of a person"),
    )
    table = channels()
    everyone = good.join(files, on="subject_id", how="left", maintain_order="left").join(splits, on="subject_id")
    n, bad = 0, []
    for split in meds.SPLITS:
        part = everyone.filter(pl.col("split") == split).sort("subject_id")
        number = 0
        for first in range(0, part.height, PEOPLE_PER_FILE):
            rows: list[pl.DataFrame] = []
            for person in part[first : first + PEOPLE_PER_FILE].iter_rows(named=True):
                try:
                    rows += _recorded(person)
                except ValueError as error:
                    bad.append(str(error))
                rows += _summaries(person)
            if rows:
                wearable.write_shard(folder / "wearable" / split / f"{number}.parquet", pl.concat(rows), table)
                number, n = number + 1, n + len(rows)
    tally.drop("file is not as field 90004 has it", len(bad))
    for reason in bad[:10]:
        ledger.add(f"left out: {reason}", 0)
    if n:
        wearable.write_channels(folder / "wearable", table)
    return n


def _recorded(person: dict) -> list[pl.DataFrame]:
    if person["path"] is None:
        return []
    found = read_file(Path(person["path"]))
    return [_row(person["subject_id"], found.start, found.seconds, ACCELERATION, found.values, UNIT)]
