"""Reads prepared records at random access: one per person, in no model's terms.

A record holds events as ids of the dataset's own tables of codes and texts with raw values, and signals in physical
units. What was fitted on the training split of a fold (statistics of codes, texts and signals) lies beside it and is
applied by whoever reads the records. On disk a record is a dict of numpy arrays as bytes, in ArrayRecord shards.

Axes: S static events, K timed events, M windows, L steps, C channels, X derived features, R segments of a set.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from array_record.python.array_record_data_source import ArrayRecordDataSource

from ehrwear_jax.config import options
from ehrwear_jax.config.segment_spec import SegmentSpec
from ehrwear_jax.data import record_bytes
from ehrwear_jax.data.cache import Cache
from ehrwear_jax.runtime import files

NO_BIRTH = np.iinfo(np.int64).min
NO_TEXT = -1
OPTIONAL = PRETRAINING, RANGES, FAMILY_FACTS = "pretraining.parquet", "value_ranges.parquet", "family_facts.json"
HOUR_US, MINUTE_US = 3_600_000_000, 60_000_000


# -------------------------------------------------------------------------------------------------------- scales
def signed_log1p(x: np.ndarray) -> np.ndarray:
    """log(1 + x), continued oddly below zero, so that every number has an inverse."""
    return np.copysign(np.log1p(np.abs(x)), x)


@dataclasses.dataclass(frozen=True)
class Scales:
    """How columns of numbers are brought to a model's scale: logarithm where said, then statistics of training.

    Attributes:
      is_log_C: bool, of which columns `signed_log1p` is taken.
      mean_C, std_C: float32, after the logarithm.
    """

    is_log_C: np.ndarray
    mean_C: np.ndarray
    std_C: np.ndarray

    def standardise(self, x: np.ndarray, axis: int = -1) -> np.ndarray:
        """A float32 copy in standard deviations from the training mean; NaN stays. axis: that of the columns."""
        out = np.array(x, np.float32, order="C")
        columns = np.moveaxis(out, axis, 0)  # a view
        for c in np.flatnonzero(self.is_log_C):
            columns[c] = signed_log1p(columns[c])
        shape = [1] * out.ndim
        shape[axis] = -1
        out -= self.mean_C.reshape(shape)
        out /= self.std_C.reshape(shape)
        return out

    def restore(self, z: np.ndarray) -> np.ndarray:
        """The inverse of `standardise`, columns last: float32 in physical units."""
        out = np.asarray(z, np.float32) * self.std_C + self.mean_C
        for c in np.flatnonzero(self.is_log_C):
            out[..., c] = np.copysign(np.expm1(np.abs(out[..., c])), out[..., c])
        return out


# -------------------------------------------------------------------------------------------------------- records
class Segments(NamedTuple):
    """One person's segments of a set, in order of time; see signals/segments.py.

    Attributes:
      start_us_R: int64, time of the first sample. score_R: float32, 0 to 1.
      values_RxSxA: float16 [R, samples, channels], each channel of a segment standardised by itself; float32 in
        physical units where the set says so. NaN is missing.
      channels: names of A. length_us: of each segment.
    """

    start_us_R: np.ndarray
    score_R: np.ndarray
    values_RxSxA: np.ndarray
    channels: tuple[str, ...]
    length_us: int

    @property
    def end_us_R(self) -> np.ndarray:
        """When each segment is known."""
        return self.start_us_R + self.length_us

    def select(self, keep_R: np.ndarray) -> "Segments":
        """Those that keep_R (bool or indices) says."""
        arrays = (x[keep_R] for x in (self.start_us_R, self.score_R, self.values_RxSxA))
        return self._replace(**dict(zip(("start_us_R", "score_R", "values_RxSxA"), arrays, strict=True)))


@dataclasses.dataclass(frozen=True)
class Record:
    """One person; times in microseconds since the epoch.

    Attributes:
      static_code_S, static_value_S, static_text_S: int32 code_id, float32 in the code's unit (NaN: none), int32 text_id
        (-1: none) of events without a time.
      code_K, value_K, text_K: likewise of timed events, in the order of time_K (int64, when each is known).
      window_end_M: int64, when each window is known. window_MxLxC: float32 in the channels' units, NaN missing.
      derived_MxX: float32, derived features of each window in their units, NaN missing.
      birth_us: NO_BIRTH where it is not known. first_us: the first time of an event or of a window, end_us of a record
        without any; where part of a record was taken away, the first time that is left.
      end_us: end of follow-up. died: bool.
      channels: names of C. window_us: length of a window.
      quality_MxLxC: uint8, see signals/grid_quality.py; None where it was not prepared.
      segments: {set: Segments}.
      worn_minutes_M: int16, how much of each window the device was worn, see signals/non_wear.py; None: all of it.
      utc_offset_M: int16, minutes that the local clock showed beyond window_end_M, see signals/local_time.py; None: all
        zero.
    """

    static_code_S: np.ndarray
    static_value_S: np.ndarray
    static_text_S: np.ndarray
    code_K: np.ndarray
    value_K: np.ndarray
    text_K: np.ndarray
    time_K: np.ndarray
    window_end_M: np.ndarray
    window_MxLxC: np.ndarray
    derived_MxX: np.ndarray
    birth_us: int
    first_us: int
    end_us: int
    died: bool
    channels: tuple[str, ...]
    window_us: int
    quality_MxLxC: np.ndarray | None = None
    segments: Mapping[str, Segments] = dataclasses.field(default_factory=dict)
    worn_minutes_M: np.ndarray | None = None
    utc_offset_M: np.ndarray | None = None

    @property
    def origin_us(self) -> int:
        """From when ages count: birth, else the first record."""
        return self.first_us if self.birth_us == NO_BIRTH else self.birth_us

    @property
    def nbytes(self) -> int:
        """Memory held, bytes."""
        arrays = [*vars(self).values(), *(x for found in self.segments.values() for x in found[:3])]
        return sum(x.nbytes for x in arrays if isinstance(x, np.ndarray))

    def select_events(self, keep_K: np.ndarray | slice, keep_S: np.ndarray | slice | None = None) -> "Record":
        """Some of the timed events, and some of the static ones (None: all); what is kept as bool or indices."""
        changes = {name: getattr(self, name)[keep_K] for name in ("code_K", "value_K", "text_K", "time_K")}
        if keep_S is not None:
            names = ("static_code_S", "static_value_S", "static_text_S")
            changes |= {name: getattr(self, name)[keep_S] for name in names}
        return dataclasses.replace(self, **changes)._from_what_is_left()

    def select_windows(self, keep_M: np.ndarray, segments: Mapping[str, Segments] | None = None) -> "Record":
        """Some of the windows (bool [M]), with the given segments; None: those that began in these windows."""
        names = ("window_end_M", "window_MxLxC", "derived_MxX", "quality_MxLxC", "worn_minutes_M", "utc_offset_M")
        changes = {name: getattr(self, name)[keep_M] for name in names if getattr(self, name) is not None}
        if segments is None:
            segments = {}
            for name, found in self.segments.items():
                window_R = self.window_of(found.start_us_R)
                segments[name] = found.select((window_R >= 0) & np.append(keep_M, False)[window_R])
        return dataclasses.replace(self, **changes, segments=segments)._from_what_is_left()

    def until(self, time_us: int) -> "Record":
        """What is known at a time; static events and the birth date stay, and a later death is none."""
        segments = {name: found.select(found.end_us_R <= time_us) for name, found in self.segments.items()}
        cut = self.select_windows(self.window_end_M <= time_us, segments).select_events(self.time_K <= time_us)
        end_us = min(self.end_us, time_us)
        return dataclasses.replace(cut, end_us=end_us, died=self.died and self.end_us <= time_us)._from_what_is_left()

    def window_of(self, time_us_R: np.ndarray) -> np.ndarray:
        """The window in which each time lies, -1 for none: int64 [R]."""
        window_R = np.searchsorted(self.window_end_M, time_us_R, side="right")
        inside_R = np.append(self.window_end_M, NO_BIRTH)[window_R] - self.window_us <= time_us_R
        return np.where(inside_R & (window_R < len(self.window_end_M)), window_R, -1)

    def without_ehr(self) -> "Record":
        """No events and no birth date, which is an EHR fact too."""
        none = slice(0)
        return dataclasses.replace(self, birth_us=NO_BIRTH).select_events(none, none)

    def without_wear(self) -> "Record":
        """No windows and no segments."""
        if not len(self.window_end_M) and not any(len(found.start_us_R) for found in self.segments.values()):
            return self  # a copy takes as long as reading the record
        return self.select_windows(np.zeros(len(self.window_end_M), bool))

    def _from_what_is_left(self):
        firsts = [int(x[0]) for x in (self.time_K, self.window_end_M) if len(x)]
        return dataclasses.replace(self, first_us=min(firsts, default=self.end_us))


def make_record(
    arrays: Mapping[str, np.ndarray], channels: tuple[str, ...], window_us: int, segments: Mapping[str, SegmentSpec]
) -> Record:
    """The Record of decoded arrays; see prepare/record_shards.py for what is written."""
    found = {}
    for name, spec in segments.items():
        start_us_R, score_R, values_RxSxA = (arrays[f"{name}/{x}"] for x in ("start_us", "score", "values"))
        found[name] = Segments(start_us_R, score_R, values_RxSxA, spec.channels, spec.length_us)
    end_us, firsts = int(arrays["end_us"]), [int(arrays[x][0]) for x in ("time_us", "window_end_us") if len(arrays[x])]
    return Record(
        static_code_S=arrays["static_code"],
        static_value_S=arrays["static_value"],
        static_text_S=arrays["static_text"],
        code_K=arrays["code"],
        value_K=arrays["value"],
        text_K=arrays["text"],
        time_K=arrays["time_us"],
        window_end_M=arrays["window_end_us"],
        window_MxLxC=arrays["window"],
        derived_MxX=arrays["derived"],
        birth_us=int(arrays["birth_us"]),
        first_us=min(firsts, default=end_us),
        end_us=end_us,
        died=bool(arrays["died"]),
        channels=channels,
        window_us=window_us,
        quality_MxLxC=arrays.get("quality"),
        segments=found,
        worn_minutes_M=arrays.get("worn_minutes"),
        utc_offset_M=arrays.get("utc_offset"),
    )


CACHE_BYTES = 2**29

# Options of config.prepare that families take to make tokens of what was fitted.
FITTED_WITH = ("min_subjects", "value_bins", "min_values", "min_text_subjects")


class RecordStore:
    """The records of one split of one fold, and what was fitted on the fold's training split.

    Attributes:
      index: a row per record, in order: position, subject_id, group_id, split, n_static, n_events, n_windows and
        n_segments_<set>; days (from the first record to the end of follow-up), first_us, end_us; of the fold:
        known_static, known_events (events of a code that has an alias, see code_statistics), rarity (mean over these
        timed events of -log of their alias's share of all training events that have one).
      codes: code_id, code, description, ancestors (nearest first), unit. texts: text_id, code_id, text, n_subjects.
      channels, log_channels, derived: names. steps, step_us, window_us: of the grid. has_quality: of records.
      segments: {set: SegmentSpec}. scales, derived_scales: Scales of windows and of derived features.
      min_subjects, value_bins, min_values, min_text_subjects: config.prepare's, for families that make tokens.
      max_age_years: highest age that is told, see data/ages.py; None without a limit.
      cutoff_us: when records end that are learned from; None where they do not.
      family_facts: what a family fitted on training people who are not here (Examples.family_facts), else {}.
      folder: the closest folder above both parts, to which `files` are relative.

    Args:
      records_dir, fit_dir: written by prepare_records and fit_split.
      split: "train", "tuning", "held_out" or None for all.
      cache_bytes: how much memory decoded records may take, and again what a family makes of them; those beyond it are
        decoded at every use.
      file_cache_bytes: of a temporary file for what a family makes of records and memory does not hold; what is beyond
        it, too, is made at every use.
      pretraining: only the people who are pretrained on, and of their records what is known at the cut-off.
    """

    def __init__(
        self,
        records_dir: Path,
        fit_dir: Path,
        split: str | None = None,
        cache_bytes: int = CACHE_BYTES,
        pretraining: bool = False,
        file_cache_bytes: int = 0,
    ) -> None:
        self.records_dir, self.fit_dir, self.split = Path(records_dir), Path(fit_dir), split
        self.cache_bytes, self.file_cache_bytes = cache_bytes, file_cache_bytes
        self._cache = Cache[Record](cache_bytes)
        self.folder = Path(os.path.commonpath([os.path.abspath(p) for p in (records_dir, fit_dir)]))
        people = pl.read_parquet(self.fit_dir / "subject_statistics.parquet")
        index = pl.read_parquet(self.records_dir / "index.parquet")
        index = index.join(people, on="subject_id", how="left", maintain_order="left")
        fitted_with = json.loads((self.fit_dir / "meta.json").read_text())
        cut = fitted_with.get("cutoff")
        self.cutoff_us = int(np.datetime64(cut, "us").astype(np.int64)) if cut else None
        learned = self._learned(index)
        own_days = learned.filter(pl.col("split") == "train")["days"].sum()
        self.train_days = float(fitted_with.get("train_days", own_days))
        self.family_facts: dict = files.read_json(self.fit_dir / FAMILY_FACTS, {})
        self._ends_us: int | None = self.cutoff_us if pretraining else None
        index = learned if pretraining else index
        self.index = index if split is None else index.filter(pl.col("split") == split)
        self._position = self.index["position"].to_numpy()
        meta = json.loads((self.records_dir / "meta.json").read_text())
        self.channels, self.log_channels = tuple(meta["channels"]), tuple(meta["log_channels"])
        self.steps, self.window_us = meta["steps"], meta["window_hours"] * HOUR_US
        self.step_us, self.has_quality = meta["step_minutes"] * MINUTE_US, meta["quality"]
        self.derived = tuple(meta["derived"])
        self.max_age_years: float | None = meta["max_age_years"] or None
        self.segments = {name: options.build(SegmentSpec, spec) for name, spec in meta["segments"].items()}
        signal = json.loads((self.fit_dir / "signal_statistics.json").read_text())
        fitted = {name: np.asarray(values, np.float32) for name, values in signal.items()}
        is_log = np.array([c in self.log_channels for c in self.channels], bool)
        self.scales = Scales(is_log, fitted["mean"], fitted["std"])
        self.derived_scales = Scales(np.zeros(len(self.derived), bool), fitted["derived_mean"], fitted["derived_std"])
        self.min_subjects, self.value_bins, self.min_values, self.min_text_subjects = (
            fitted_with[name] for name in FITTED_WITH
        )
        self._shards = tuple(meta["shards"])
        self._source = ArrayRecordDataSource([str(self.records_dir / s) for s in self._shards]) if self._shards else []

    def _learned(self, index):
        """The part of the index that is pretrained on, with the counts of what is known at the cut-off."""
        path = self.fit_dir / PRETRAINING
        if not path.exists():
            return index.filter(pl.col("split") != "held_out")
        cut = pl.read_parquet(path)
        kept = index.select("subject_id", *(c for c in index.columns if c not in cut.columns))
        return kept.join(cut, on="subject_id", how="inner", maintain_order="left").select(index.columns)

    @functools.cached_property
    def codes(self) -> pl.DataFrame:
        return pl.read_parquet(self.records_dir / "codes.parquet")

    @functools.cached_property
    def texts(self) -> pl.DataFrame:
        return pl.read_parquet(self.records_dir / "texts.parquet")

    @functools.cached_property
    def code_statistics(self) -> pl.DataFrame:
        """prepare.statistics.CODE_STATISTICS, a row per code of `codes`; ValueError if it is of other codes."""
        table = pl.read_parquet(self.fit_dir / "code_statistics.parquet")
        if not table["code"].equals(self.codes["code"]):
            raise ValueError(f"{self.fit_dir} was fitted on other codes than those of {self.records_dir}")
        return table

    @functools.cached_property
    def text_statistics(self) -> pl.DataFrame:
        """prepare.code_counts.TEXT_COUNTS, a row per text of `texts`."""
        return pl.read_parquet(self.fit_dir / "text_statistics.parquet")

    @functools.cached_property
    def range_labels(self) -> dict[int, list[str]]:
        """{code_id: labels of its clinical ranges}, {} without prepare's table of them."""
        path = self.fit_dir / RANGES
        table = pl.read_parquet(path, columns=["code_id", "label"]).drop_nulls() if path.exists() else pl.DataFrame()
        return dict(table.iter_rows())

    def __len__(self) -> int:
        return len(self._position)

    def read(self, i: int) -> Record:
        """Record i of the split, decoded anew."""
        arrays = record_bytes.decode(self._source[int(self._position[i])])
        record = make_record(arrays, self.channels, self.window_us, self.segments)
        return record if self._ends_us is None else record.until(self._ends_us)

    def __getitem__(self, i: int) -> Record:
        record = self._cache.get(i)
        if record is None:
            record = self.read(i)
            self._cache.put(i, record)
        return record

    def view(self, split: str | None, pretraining: bool = False) -> "RecordStore":
        """The records of another split; for pretraining only what is learned from, see RecordStore."""
        sizes = {"cache_bytes": self.cache_bytes, "file_cache_bytes": self.file_cache_bytes}
        return RecordStore(self.records_dir, self.fit_dir, split, pretraining=pretraining, **sizes)

    def files(self) -> list[str]:
        """Names, below `folder`, of the files that examples are made of."""
        records = ["index.parquet", "meta.json", "codes.parquet", "texts.parquet", *self._shards]
        fitted = ["subject_statistics.parquet", "code_statistics.parquet", "text_statistics.parquet"]
        fitted += ["signal_statistics.json", "meta.json", *(n for n in OPTIONAL if (self.fit_dir / n).exists())]
        paths = [self.records_dir / name for name in records] + [self.fit_dir / name for name in fitted]
        return [os.path.relpath(path, self.folder) for path in paths]

    def digest(self) -> str:
        """SHA-256 of what both folders' manifests say of their files."""
        manifests = [json.loads((d / "manifest.json").read_text())["files"] for d in (self.records_dir, self.fit_dir)]
        return hashlib.sha256(json.dumps(manifests, sort_keys=True).encode()).hexdigest()
