"""Grows one person's record row by row, by the functions of prepare that make records of a whole data set.

`Intake` holds what a bundle says of rows; `GrowingRecord` what has arrived of one person. Rows appended in any number
of parts, in any order, give the record that `TrainedModel.read` makes of all of them at once, where both can: a code
that the bundle does not know and that stands for one of its own is known at the time it says, since whether a source
writes dates without times can be told of many events alone (data/prepare/date_only.py).

A record need not keep all: `forget` drops what no context can show any more, and the raw signal that no window needs.
"""

import collections
import dataclasses
import io
import json
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import meds, meds_checks, wearable, wearable_checks
from ehrwear_jax.data.formats.times import MINUTE_US
from ehrwear_jax.data.prepare import code_table, harmonise, specs
from ehrwear_jax.data.prepare import events as prepare_events
from ehrwear_jax.data.prepare import windows as prepare_windows
from ehrwear_jax.data.prepare.record_shards import CODED, coded_events
from ehrwear_jax.data.signals import grid_quality
from ehrwear_jax.data.store import NO_BIRTH, Record, RecordStore
from ehrwear_jax.inference import bundle_files, new_people

NOBODY = 0  # subject_id of the store's one record, in whose place others are read
_FORMAT = 1  # of to_bytes
# Minutes before a window that may decide what is worn in it or an artefact, beside the shortest run that is not worn:
# more than non_wear, accelerometry and rate_artefacts look back.
_LOOK_BACK_MINUTES = 240
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, pl.exceptions.PolarsError)
_NEVER = np.iinfo(np.int64).max


class Intake:
    """What rows of anybody are prepared by, made once per model.

    Attributes:
      store: a RecordStore with the bundle's tables and one record, of nobody.

    Args:
      bundle: folder. about: its bundle.json. mapping: as TrainedModel.read takes it.

    Raises:
      ValueError: records of this bundle cannot grow: it has raw segments, or caps events of a day.
    """

    def __init__(self, bundle: Path, about: Mapping[str, Any], mapping: str | Path | None = None) -> None:
        self.bundle, tables = Path(bundle), () if mapping is None else (Path(mapping),)
        options = new_people.prepare_options(self.bundle, about, tables)
        if options.segments or options.max_per_day:
            name = "segments" if options.segments else "max_per_day"
            raise ValueError(f"{self.bundle}: prepared with config.prepare.{name}, which appended rows cannot be yet")
        self._folder = tempfile.TemporaryDirectory(prefix="ehrwear_jax-")
        out = Path(self._folder.name)
        self.channels = pl.DataFrame(about["channels"], wearable_checks.CHANNEL_SCHEMA)
        nobody, worn = _write_nobody(out / "nobody", self.channels)
        (out / "prepared").mkdir()
        self.store: RecordStore = new_people.prepare(
            self.bundle, about, new_people.Sources(nobody, worn, tables), out / "prepared"
        ).store
        self.config = specs.resolved(options, out / "prepared" / "tables")
        trained = pl.read_parquet(self.bundle / bundle_files.DATE_ONLY)
        texts = pl.read_parquet(self.bundle / "texts.parquet").join(
            self.store.codes.select("code_id", "code"), on="code_id"
        )
        mapped = harmonise.read_mapping(self.config.mapping_files)
        self._rules = prepare_events.Rules(self.config, mapped, texts, trained.filter("date_only")["code"])
        self._how = prepare_windows.how_of("signal", self.channels, self.config) if self.config.channels else None
        self.bounds = specs.time_bounds(self.config)
        self._codes, self._texts = self.store.codes, self.store.texts
        self._own = self.store.code_statistics["alias"].is_not_null().to_numpy()  # codes that become tokens
        self._alias: dict[str, int | None] = {}

    @property
    def look_back_us(self) -> int | None:
        """How long before a window what was recorded may decide of it; None: from the beginning."""
        if self.config.acceleration:  # calibrated by all earlier still times
            return None
        window_us = self.store.window_us
        minutes = self.config.non_wear_minutes + _LOOK_BACK_MINUTES
        return -(-minutes * MINUTE_US // window_us) * window_us

    def events(self, rows: pl.DataFrame) -> tuple[np.ndarray, pl.DataFrame, pl.DataFrame, int]:
        """Appended events as records have them.

        Args:
          rows: time (null: static), code and, perhaps, numeric_value and text_value.

        Returns:
          (CODED of those that become tokens; births and ends of prepare.events.harmonise_events; the first time of any
          event, NEVER without).

        Raises:
          ValueError: a column is missing or of another type, or a row would go to quarantine.
        """
        ordered = rows.with_columns(subject_id=pl.lit(NOBODY, pl.Int64)).sort("time", maintain_order=True)
        good, bad = meds_checks.screen(ordered, "events", self.bounds)
        _require_none(bad, "events")
        kept, births, ends, _ = prepare_events.known_events(good, self._rules)
        first_us = kept["time"].drop_nulls().to_physical().to_numpy().min(initial=_NEVER)
        coded = coded_events(self._with_ids(kept))
        coded = coded[coded["code"] >= 0]
        return coded, births, ends, int(first_us)

    def _with_ids(self, kept):
        """Events with ids of codes that become tokens, -1 for the others."""
        found = code_table.event_ids(kept, self._codes, self._texts)
        code_N, value, text = found["code_id"].fill_null(-1).to_numpy().copy(), found["numeric_value"], found["text_id"]
        foreign = np.flatnonzero(code_N < 0)
        code_N[(code_N >= 0) & ~self._own[code_N]] = -1
        if len(foreign):
            # what stands for a code is its token alone: a value or text of another quantity says nothing of it
            names = kept["code"].gather(foreign)
            self._look_up(names.unique().to_list())
            code_N[foreign] = [-1 if (a := self._alias[name]) is None else a for name in names]
            is_foreign = pl.Series(np.isin(np.arange(len(code_N)), foreign))
            value, text = value.set(is_foreign, None), text.set(is_foreign, None)
        return found.with_columns(pl.Series("code_id", code_N), value, text)

    def _look_up(self, names):
        """Finds what stands for codes that the bundle does not know."""
        new = [name for name in names if name not in self._alias]
        if new:
            coded = new_people.extended(self.bundle, self._codes, sorted(new), None, self.config.implied_parents)
            behind = coded.statistics.slice(coded.n_known).select("code", "alias")
            self._alias |= dict.fromkeys(new) | dict(behind.iter_rows())

    def signal(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Appended stretches, checked and in the bundle's units: wearable.ROW_SCHEMA and perhaps OFFSET.

        Args:
          rows: start_time, sample_rate_hz, channel, values, unit and, perhaps, device and utc_offset_minutes.

        Raises:
          ValueError: a column is missing or of another type, or a row would go to quarantine.
        """
        named = rows.with_columns(subject_id=pl.lit(NOBODY, pl.Int64))
        good, bad = wearable_checks.screen(named, "signal", self.channels, self.bounds)
        _require_none(bad, "signal")
        return good

    def windows(self, rows: pl.DataFrame) -> tuple[prepare_windows.Windows, np.ndarray | None]:
        """(windows with the derived features that records have, their quality where the bundle has it) of stretches."""
        assert self._how is not None
        stretches, found = prepare_windows.of_person(rows, self._how, collections.Counter())
        quality = None
        if self.config.quality:
            quality = grid_quality.of_person(stretches, found.end_M, self._how.spec, self._how.limits)
        derived = prepare_windows.in_records(found.derived_MxX, self._how.wanted)
        return found._replace(derived_MxX=derived), quality


def _write_nobody(folder, channels):
    """(MEDS data set with the birth of one person, wearable tables without a row), for prepare to write its tables."""
    birth = pl.DataFrame({"subject_id": [NOBODY], "code": [meds.BIRTH_CODE]}).with_columns(time=pl.datetime(2000, 1, 1))
    meds.write_shard(folder / "meds" / "data" / "0.parquet", birth.with_columns(numeric_value=pl.lit(None, pl.Float32)))
    wearable.write_channels(folder / "wearable", channels)
    wearable.write_shard(folder / "wearable" / "0.parquet", pl.DataFrame(schema=wearable.ROW_SCHEMA))
    return folder / "meds", folder / "wearable"


def _require_none(bad, what):
    """Raises ValueError for rows that prepare would set aside, naming no value."""
    if bad.height:
        column, reason = bad.select("column", "reason").row(0)
        raise ValueError(f"{what}: {bad.height} rows cannot be used, the first for its column {column!r}: {reason}")


# ------------------------------------------------------------------------------------------------------------- record


@dataclasses.dataclass
class GrowingRecord:
    """What has arrived of one person.

    Attributes:
      intake: of the model. events: CODED, static ones first, then by time, then as they arrived.
      birth_us, first_us, end_us, died: as in Record.
      signal: stretches that windows may still be made of. signal_from_us: none of it is missing from then on.
      windows, quality_MxLxC: of the signal. n_events_forgotten: how many events were dropped.
    """

    intake: Intake
    events: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, CODED))
    birth_us: int = NO_BIRTH
    first_us: int = _NEVER
    end_us: int = NO_BIRTH
    died: bool = False
    signal: pl.DataFrame | None = None
    signal_from_us: int = NO_BIRTH
    windows: prepare_windows.Windows | None = None
    quality_MxLxC: np.ndarray | None = None
    n_events_forgotten: int = 0

    @property
    def n_static(self) -> int:
        """How many events have no time."""
        return int(np.searchsorted(self.events["time"], NO_BIRTH, side="right"))

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, bytes."""
        arrays = [self.events, *(self.windows or ()), *([] if self.quality_MxLxC is None else [self.quality_MxLxC])]
        return sum(x.nbytes for x in arrays) + int(0 if self.signal is None else self.signal.estimated_size())

    def append(self, events: pl.DataFrame | None = None, signal: pl.DataFrame | None = None) -> None:
        """Takes rows, all of them or none; see Intake.events and Intake.signal.

        Raises:
          ValueError: a row cannot be used; signal of a time whose raw signal was forgotten.
        """
        found = None if events is None or not events.height else self.intake.events(events)
        worn = None if signal is None or not signal.height else self._with_signal(self.intake.signal(signal))
        if worn is not None:
            self.signal, self.windows, self.quality_MxLxC = worn
        if found is not None:
            coded, births, ends, first_us = found
            whole = np.concatenate([self.events, coded])
            self.events = whole[np.argsort(whole["time"], kind="stable")]
            self.first_us = min(self.first_us, first_us)
            for birth in births["birth_time"].to_physical():
                self.birth_us = birth if self.birth_us == NO_BIRTH else min(birth, self.birth_us)
            for end, died in ends.select(pl.col("end_time").to_physical(), "died").iter_rows():
                self.end_us, self.died = max(self.end_us, NO_BIRTH if end is None else end), self.died or died

    def _with_signal(self, rows):
        """(signal, windows, quality) with further rows: windows that end after the first of them are made anew."""
        intake, window_us = self.intake, self.intake.store.window_us
        begin_us = int(rows["start_time"].to_physical().to_numpy().min()) // window_us * window_us
        look_back_us = intake.look_back_us
        from_us = NO_BIRTH if look_back_us is None else begin_us - look_back_us
        if self.signal_from_us > NO_BIRTH and from_us < self.signal_from_us:
            raise ValueError("signal: it begins before what is kept of the raw signal, so that its windows are closed")
        signal = rows if self.signal is None else pl.concat([self.signal, rows], how="diagonal")
        if not intake.config.channels:
            return self.signal, self.windows, self.quality_MxLxC
        made, quality = intake.windows(signal.filter(_ends(signal) > from_us))
        new_M = made.end_M > begin_us
        parts = [(made, quality, new_M)]
        if self.windows is not None:
            parts.insert(0, (self.windows, self.quality_MxLxC, self.windows.end_M <= begin_us))
        columns = zip(*([x[keep] for x in windows] for windows, _, keep in parts), strict=True)
        windows = prepare_windows.Windows(*map(np.concatenate, columns))
        if quality is not None:
            quality = np.concatenate([x[keep] for _, x, keep in parts if x is not None])
        return signal, windows, quality

    def forget(self, n_events: int | None = None, late_us: int | None = None) -> None:
        """Drops all but the latest timed events, and raw signal that windows are no longer made of.

        Args:
          n_events: how many are kept; None: all. late_us: how long after it was recorded signal can arrive, counted
            from the end of the newest; None: any time.
        """
        n_static, n_timed = self.n_static, len(self.events) - self.n_static
        if n_events is not None and n_timed > n_events:
            self.events = np.concatenate([self.events[:n_static], self.events[-n_events:]])
            self.n_events_forgotten += n_timed - n_events
        look_back_us, signal = self.intake.look_back_us, self.signal
        if late_us is None or look_back_us is None or signal is None:
            return
        from_us = int(_ends(signal).to_numpy().max()) - late_us - look_back_us
        old = _ends(signal) <= from_us
        if old.any():
            kept = signal.filter(~old)
            if wearable_checks.OFFSET in signal.columns:  # the clock of a window is that of the last stretch before it
                told = signal.filter(old).drop_nulls(wearable_checks.OFFSET).sort("start_time", maintain_order=True)
                silent = pl.lit([float("nan")], pl.List(pl.Float32))
                kept = pl.concat([told.tail(1).with_columns(values=silent), kept])
            self.signal, self.signal_from_us = kept, max(self.signal_from_us, from_us)

    def record(self) -> Record:
        """The Record of what has arrived."""
        store, s = self.intake.store, self.n_static
        windows, quality = self.windows, self.quality_MxLxC
        if windows is None:
            shape = (0, store.steps, len(store.channels))
            values, derived = np.zeros(shape, np.float32), np.zeros((0, len(store.derived)), np.float32)
            worn, offset = np.zeros((2, 0), np.int16)
            windows = prepare_windows.Windows(np.zeros(0, np.int64), values, derived, worn, offset)
            quality = np.zeros(shape, np.uint8) if store.has_quality else None
        ends = windows.end_M[-1:].tolist()
        end_us = max([self.end_us, *self.events["time"][-1:].tolist(), *ends])
        first_us = min([self.first_us, *windows.end_M[:1].tolist()])
        static, timed = self.events[:s], self.events[s:]
        return Record(
            static_code_S=static["code"],
            static_value_S=static["value"],
            static_text_S=static["text"],
            code_K=timed["code"],
            value_K=timed["value"],
            text_K=timed["text"],
            time_K=timed["time"],
            window_end_M=windows.end_M,
            window_MxLxC=windows.window_MxLxC,
            derived_MxX=windows.derived_MxX,
            birth_us=self.birth_us,
            first_us=end_us if first_us == _NEVER else first_us,
            end_us=end_us,
            died=self.died,
            channels=store.channels,
            window_us=store.window_us,
            quality_MxLxC=quality,
            worn_minutes_M=windows.worn_M,
            utc_offset_M=windows.offset_M,
        )

    # ---------------------------------------------------------------------------------------------------------- bytes

    def to_bytes(self) -> bytes:
        """What `of_bytes` makes the same record of: arrays and a table, nothing that is run."""
        scalars = ("birth_us", "first_us", "end_us", "died", "signal_from_us", "n_events_forgotten")
        about = {"format": _FORMAT} | {name: getattr(self, name) for name in scalars}
        arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8), "events": self.events}
        if self.signal is not None:
            table = io.BytesIO()
            self.signal.write_ipc(table)
            arrays["signal"] = np.frombuffer(table.getvalue(), np.uint8)
        if self.windows is not None:
            arrays |= {f"window_{name}": x for name, x in self.windows._asdict().items()}
        if self.quality_MxLxC is not None:
            arrays["quality"] = self.quality_MxLxC
        out = io.BytesIO()
        np.savez(out, allow_pickle=False, **arrays)
        return out.getvalue()

    @classmethod
    def of_bytes(cls, intake: Intake, data: bytes) -> "GrowingRecord":
        """The record that `to_bytes` wrote; ValueError for anything else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                arrays = dict(stored)
            about = json.loads(arrays["about"].tobytes())
            if about.pop("format") != _FORMAT or arrays["events"].dtype != CODED:
                raise ValueError("of another format")
            signal, names = arrays.get("signal"), prepare_windows.Windows._fields
            table = None if signal is None else pl.read_ipc(io.BytesIO(signal.tobytes()))
            windows = None
            if "window_end_M" in arrays:
                windows = prepare_windows.Windows(*(arrays[f"window_{name}"] for name in names))
            return cls(intake, arrays["events"], signal=table, windows=windows,
                       quality_MxLxC=arrays.get("quality"), **about)  # fmt: skip
        except _DAMAGED as error:
            raise ValueError(f"this is no state of a patient that this version reads: {error}") from None


def _ends(signal: pl.DataFrame) -> pl.Series:
    """When the last sample of each stretch ends, microseconds."""
    lasting = pl.col("values").list.len() * 1e6 / pl.col("sample_rate_hz")
    return signal.select(pl.col("start_time").to_physical() + lasting.ceil().cast(pl.Int64)).to_series()


def frame(rows: Iterable[Mapping[str, Any]] | pl.DataFrame | None, schema: Mapping[str, Any]) -> pl.DataFrame | None:
    """Rows given as dicts or as a frame, as a frame; times may be text in ISO 8601.

    Raises:
      ValueError: a column that is not in the schema, or a value that its type cannot hold; no value is named.
    """
    if rows is None or isinstance(rows, pl.DataFrame):
        return rows
    listed = list(rows)
    if not all(isinstance(row, Mapping) for row in listed):
        raise ValueError("a row is not an object with a value for each column")
    names = dict.fromkeys(name for row in listed for name in row)
    if unknown := [name for name in names if name not in schema]:
        raise ValueError(f"there is no column {str(unknown[0])[:40]!r}; there are {', '.join(schema)}")
    text = {n: pl.String if s == pl.Datetime("us") else s for n, s in schema.items() if n in names}
    try:
        plain = [{n: _plain(row.get(n)) for n in names} for row in listed]
        found = pl.DataFrame(plain, text, orient="row", strict=True)
        times = [n for n in names if schema[n] == pl.Datetime("us")]
        utc = (pl.col(n).str.to_datetime(time_unit="us", time_zone="UTC") for n in times)
        return found.with_columns(column.dt.replace_time_zone(None) for column in utc)
    except (pl.exceptions.PolarsError, TypeError, OverflowError):
        types = ", ".join(f"{n} {schema[n]}" for n in names)
        raise ValueError(f"a value is not of its column's type: {types}") from None


def _plain(value):
    return value.isoformat() if hasattr(value, "isoformat") else value


EVENT_ROWS = {"time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32, "text_value": pl.String}
SIGNAL_ROWS = {n: s for n, s in wearable.ROW_SCHEMA.items() if n != "subject_id"} | {wearable_checks.OFFSET: pl.Int16}
