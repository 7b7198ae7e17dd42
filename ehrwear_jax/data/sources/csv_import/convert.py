"""Writes readings as wearable tables: first sorted by people and channels to files, then stretch by stretch.

Memory: one batch of readings, then the readings of one channel of one group of people, and the group's stretches. A
group is a file of the result; people come to groups in the order in which they are met.
"""

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrwear_jax.data.formats import parquet, wearable, wearable_checks
from ehrwear_jax.data.formats.times import MINUTE_US
from ehrwear_jax.data.sources.csv_import.assemble import NO_END, NO_OFFSET, Made, Piece, Series, assemble
from ehrwear_jax.data.sources.csv_import.mapping import Channel
from ehrwear_jax.data.sources.csv_import.readings import Tally

MAX_GROUPS = 32
GROUP_BYTES = 64 << 20  # of the source that are meant for a group of people
NO_DEVICE = -1
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")
_STORED = ("person", "device", "time", "end", "offset", "value")


@dataclasses.dataclass
class Found:
    """What is in the result, per channel.

    Attributes:
      people: distinct ids. stretches, samples (with a value), missing: counts.
      seconds: lengths of a sample, distinct ones. devices: distinct, None: not named.
      first_us, last_us: time of the first and of the last sample, in the clock of the readings.
    """

    people: set[int] = dataclasses.field(default_factory=set)
    stretches: int = 0
    samples: int = 0
    missing: int = 0
    seconds: set[float] = dataclasses.field(default_factory=set)
    devices: set[str | None] = dataclasses.field(default_factory=set)
    first_us: int = np.iinfo(np.int64).max
    last_us: int = np.iinfo(np.int64).min


@dataclasses.dataclass
class Result:
    """What a conversion made.

    Attributes:
      ids: {subject as in the source: subject_id}.
      numbered: whether these differ.
      found: what is in the result, per channel.
      in_utc: whether the times of `found` are in UTC; else they are of the clock at the place.
      kept: readings that are in a sample.
    """

    ids: dict[str, int]
    numbered: bool
    found: dict[str, Found]
    in_utc: bool
    kept: int = 0


class Sorter:
    """Keeps readings on disk, by group of people and channel.

    Args:
      folder: for its files.
      n_groups: of people.
    """

    def __init__(self, folder: Path, n_groups: int) -> None:
        self.folder, self.n_groups = folder, n_groups
        self.people: dict[str, int] = {}
        self.devices: dict[str, int] = {}
        self.channels: set[str] = set()
        self.known_offset: set[bool] = set()
        self._writers: dict[tuple[int, str], pq.ParquetWriter] = {}
        self._files: dict[str, int] = {}

    def path(self, group: int, channel: str) -> Path:
        """Where the readings of a channel of a group are, if there are any."""
        number = self._files.setdefault(channel, len(self._files))
        return self.folder / f"{group}-{number}.parquet"

    def add(self, batch: pl.DataFrame) -> None:
        """Takes a batch (readings.READINGS)."""
        if not batch.height:
            return
        self.known_offset |= set(batch["offset"].is_not_null().unique())
        rows = batch.select(
            _coded(batch["subject"], self.people).cast(pl.UInt32).alias("person"),
            _coded(batch["device"], self.devices).fill_null(NO_DEVICE).cast(pl.Int32).alias("device"),
            "time",
            pl.col("end").fill_null(NO_END),
            pl.col("offset").fill_null(NO_OFFSET),
            "value",
            "channel",
            (_coded(batch["subject"], self.people) % self.n_groups).alias("group"),
        )
        for (group, channel), part in rows.partition_by(
            "group", "channel", as_dict=True, maintain_order=True, include_key=False
        ).items():
            table = part.select(*_STORED).to_arrow()
            key = (int(group), str(channel))
            if key not in self._writers:
                self._writers[key] = pq.ParquetWriter(self.path(*key), table.schema, compression="zstd")
                self.channels.add(key[1])
            self._writers[key].write_table(table)

    def close(self) -> None:
        """Ends the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def series(self, group: int, channel: str) -> Iterator[tuple[int, int, Series]]:
        """(person, device, readings in the order in which they came) of a channel and group."""
        if not self.path(group, channel).is_file():
            return
        rows = parquet.read_parquet(self.path(group, channel))
        order = np.lexsort((rows["device"].to_numpy(), rows["person"].to_numpy()))
        person, device = rows["person"].to_numpy()[order], rows["device"].to_numpy()[order]
        cuts = np.flatnonzero((np.diff(person) != 0) | (np.diff(device) != 0)) + 1
        columns = [rows[name].to_numpy() for name in _STORED[2:]]
        for part in np.split(np.arange(len(order)), cuts):
            at = order[part]
            yield int(person[part[0]]), int(device[part[0]]), Series(*(column[at] for column in columns))


def _coded(values: pl.Series, codes: dict[str, int]) -> pl.Series:
    """The number of each text, null for null; new texts get the next number."""
    texts = values.unique(maintain_order=True).drop_nulls().to_list()
    for text in texts:
        codes.setdefault(text, len(codes))
    return values.replace_strict({t: codes[t] for t in texts}, default=None, return_dtype=pl.Int64)


def subject_numbers(subjects: Iterable[str], given: dict[str, int] | None = None) -> tuple[dict[str, int], bool]:
    """({subject as in the source: subject_id}, whether they were numbered).

    Integers stay as they are if all are; else all are numbered from 1 in sorted order. `given` says the ids of those
    that it has, and the others get none.
    """
    subjects = sorted(subjects)
    if given is not None:
        return {s: given[s] for s in subjects if s in given}, True
    if all(_INTEGER.fullmatch(s) for s in subjects):
        return {s: int(s) for s in subjects}, False
    return {s: i for i, s in enumerate(subjects, 1)}, True


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How the result is to be: channels by name, duplicates as in Mapping, given ids, local: on the local clock."""

    channels: dict[str, Channel]
    duplicates: str = "first"
    given_ids: dict[str, int] | None = None
    local: bool = False


def convert(
    batches: Iterable[pl.DataFrame],
    wanted: Wanted,
    tally: Tally,
    workplace: Path,
    wearable_dir: Path | None,
    n_bytes: int,
) -> Result:
    """Turns readings into stretches, and writes them.

    Args:
      batches: of readings (readings.READINGS).
      wanted: how the result is to be.
      tally: takes what is dropped.
      workplace: folder for files that are removed at the end.
      wearable_dir: where to write wearable tables; None: nowhere, the result is only described.
      n_bytes: size of the source, from which the number of groups follows.

    Raises:
      ValueError: no reading is left, some times have an offset and others have none, or a rate cannot be inferred.
    """
    workplace.mkdir(parents=True)
    try:
        with contextlib.closing(Sorter(workplace, min(MAX_GROUPS, 1 + n_bytes // GROUP_BYTES))) as sorter:
            for batch in batches:
                sorter.add(batch)
        if len(sorter.known_offset) > 1:
            raise ValueError(
                "some times have a UTC offset and others have none, so that they are on different clocks; name the "
                "place with --timezone or --utc-offset-minutes"
            )
        if not sorter.people:
            raise ValueError(f"no reading is left of {tally.readings:,} ({_reasons(tally)})")
        ids, numbered = subject_numbers(sorter.people, wanted.given_ids)
        result = Result(ids, numbered, {}, True in sorter.known_offset)
        for group in range(sorter.n_groups):
            rows = _group(sorter, group, wanted, tally, result)
            if wearable_dir is not None and rows:
                _write(rows, wanted, wearable_dir / f"{group:04d}.parquet", sorter.channels)
        if wearable_dir is not None and result.found:
            wearable.write_channels(wearable_dir, channel_table(wanted.channels, result.found))
    finally:
        shutil.rmtree(workplace)
    if not result.found:
        raise ValueError(f"no reading is left of {tally.readings:,} ({_reasons(tally)})")
    return result


def _group(
    sorter: Sorter, group: int, wanted: Wanted, tally: Tally, result: Result
) -> list[tuple[int, str, str | None, list[Piece]]]:
    """(subject_id, channel, device, stretches) of a group of people."""
    names, devices = list(sorter.people), [*sorter.devices, None]  # NO_DEVICE is the last
    rows = []
    for channel in sorted(sorter.channels):
        for person, device, series in sorter.series(group, channel):
            subject = names[person]
            if subject not in result.ids:
                tally.drop("the subject is not in the table of ids", len(series.time_N))
                continue
            try:
                made = assemble(series, wanted.channels[channel].sampling, wanted.duplicates)
            except ValueError as error:
                raise ValueError(f"channel '{channel}' of subject '{subject}': {error}") from None
            for reason, n in made.dropped.items():
                tally.drop(reason, n)
            result.kept += made.kept
            if made.pieces:
                rows.append((result.ids[subject], channel, devices[device], made.pieces))
                _note(result.found.setdefault(channel, Found()), result.ids[subject], devices[device], made)
    return rows


def _note(found: Found, subject_id: int, device: str | None, made: Made) -> None:
    found.people.add(subject_id)
    found.devices.add(device)
    found.stretches += len(made.pieces)
    for piece in made.pieces:
        n = int(np.isfinite(piece.values_S).sum())
        found.samples += n
        found.missing += len(piece.values_S) - n
        found.seconds.add(round(1 / piece.rate_hz, 9))
        found.first_us = min(found.first_us, piece.start_us)
        last = piece.start_us + round((len(piece.values_S) - 1) * 1e6 / piece.rate_hz)
        found.last_us = max(found.last_us, last)


def _write(rows: list[tuple[int, str, str | None, list[Piece]]], wanted: Wanted, path: Path, present: set[str]) -> None:
    """A file of recordings, each subject's rows together, by channel, device and time."""
    rows = sorted(rows, key=lambda row: (row[0], row[1], row[2] is None, row[2] or ""))
    flat = [(subject, channel, device, piece) for subject, channel, device, pieces in rows for piece in pieces]
    offset = np.array([piece.offset for *_, piece in flat], np.int64)
    start = np.array([piece.start_us for *_, piece in flat], np.int64)
    known = offset != NO_OFFSET
    if wanted.local:
        start, known = start + np.where(known, offset, 0) * MINUTE_US, np.zeros_like(known)
    lengths = np.cumsum([0, *(len(piece.values_S) for *_, piece in flat)])
    values = pa.LargeListArray.from_arrays(
        pa.array(lengths, pa.int64()), pa.array(np.concatenate([piece.values_S for *_, piece in flat]), pa.float32())
    )
    table = pl.DataFrame(
        {
            "subject_id": [subject for subject, *_ in flat],
            "start_time": pl.Series(start).cast(pl.Datetime("us")),
            "sample_rate_hz": [piece.rate_hz for *_, piece in flat],
            "channel": [channel for _, channel, *_ in flat],
            "values": pl.from_arrow(values),
            "unit": [wanted.channels[channel].unit for _, channel, *_ in flat],
            "device": pl.Series([device for _, _, device, _ in flat], dtype=pl.String),
        },
        wearable_checks.ROW_SCHEMA,
    )
    if known.any():
        minutes = pl.Series(wearable_checks.OFFSET, np.where(known, offset, 0).astype(np.int16))
        table = table.with_columns(pl.select(pl.when(pl.Series(known)).then(minutes)).to_series().alias(minutes.name))
    wearable.write_shard(path, table, channel_table(wanted.channels, present))


def channel_table(channels: dict[str, Channel], names: Iterable[str]) -> pl.DataFrame:
    """metadata/channels.parquet (wearable_checks.CHANNEL_SCHEMA) of some channels."""
    rows = [
        (c.name, c.unit, c.description, float(c.valid_min), float(c.valid_max))
        for c in (channels[name] for name in sorted(names))
    ]
    return pl.DataFrame(rows, wearable_checks.CHANNEL_SCHEMA, orient="row")


def _reasons(tally: Tally) -> str:
    return ", ".join(f"{n:,}: {reason}" for reason, n in tally.dropped.most_common(5)) or "nothing was read"
