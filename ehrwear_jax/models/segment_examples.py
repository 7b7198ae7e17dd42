"""Makes batches of pieces of signal, for families that read nothing else: numpy alone, a row a function of (seed, g).

A *piece* is what such a model reads at a time. It is a part of a recorded segment of a set (data/signals/segments.py),
resampled to the model's own rate; or, where `reading.segments` is empty, the grid's channels over some hours, a day, as
if they were one segment: its equivalent in cohorts without sub-second signal. A piece is known when all of the segment
that it is cut from is, for that was filtered and standardised as a whole; one of the grid, when its hours are over.

How pieces are scaled is the family's choice, with one exception: channels of the grid say something by their level,
which a scale of each piece's own would take away, so they are in standard deviations from the mean of the training
people, up to GRID_REACH of them.

Axes: N pieces of a row, S samples, A channels; Q pieces of a person, R segments.
"""

import dataclasses
import itertools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.segment_spec import SegmentReading
from ehrwear_jax.data import random_streams
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.signals import segments as segments_lib
from ehrwear_jax.data.store import HOUR_US, Record, RecordStore
from ehrwear_jax.models.family import Batch, BatchSpec, Examples, Field, Transform

FIELDS = {
    "signal": Field("NSA", np.float32, 0, "samples of a piece as the family scales them; 0 where not observed"),
    "observed": Field("NSA", np.bool_, False, "which samples were measured"),
    "person": Field("N", np.int32, -1, "number of the piece's person in the split; -1: no piece"),
}
GRID_REACH = 4.0  # standard deviations
_TRIES = 8  # further pieces of a person that are looked at for one that a family accepts


@dataclasses.dataclass(frozen=True)
class Facts:
    """What data decide of a network of signal: channels and samples of a piece; from_grid: see the module."""

    channels: int
    samples: int
    from_grid: bool


def assumed_facts(reading: SegmentReading, prepare: PrepareConfig) -> Facts:
    """The Facts of records that are prepared so, before there are any; one channel where segments are not prepared."""
    if not reading.segments:
        return Facts(len(prepare.channels), reading.hours * 60 // prepare.step_minutes, True)
    spec = prepare.segments.get(reading.segments)
    return Facts(len(spec.channels) if spec else 1, reading.samples, False)


# ------------------------------------------------------------------------------------------------ people's pieces


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of one person, in the order in which they are known.

    Attributes:
      end_us_Q: int64, when each is known. of_Q: int64, its segment; of the grid, its first window. part_Q: int64,
        which part of the segment; of the grid, 0.
      reader: makes their signal of `record`, once each.
    """

    record: Record
    reader: "PieceReader"
    end_us_Q: np.ndarray
    of_Q: np.ndarray
    part_Q: np.ndarray
    _made: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.end_us_Q)

    def known(self, time_us: int) -> int:
        """How many are known at a time: the first ones."""
        return int(np.searchsorted(self.end_us_Q, time_us, side="right"))

    def signal(self, q: int) -> np.ndarray:
        """Samples of piece q: float32 [S, A], NaN where not observed; see PieceReader for the unit."""
        if q not in self._made:
            self._made[q] = self.reader.signal(self, q)
            self._made[q].flags.writeable = False
        return self._made[q]


class PieceReader:
    """Finds the pieces in records of a store, and makes their signal.

    Signal is in the unit of the set (standardised by segment, unless the set says otherwise); of the grid in standard
    deviations, within GRID_REACH.

    Raises:
      ValueError: the store was not prepared so that it can be read like this.
    """

    def __init__(self, store: RecordStore, reading: SegmentReading) -> None:
        self.reading, self.scales, self.steps = reading, store.scales, store.steps
        window_hours = store.window_us // HOUR_US
        reading.check_prepared(store.segments, window_hours)
        self.spec = store.segments[reading.segments] if reading.segments else None
        self.channels = self.spec.channels if self.spec else store.channels
        self.windows = 1 if self.spec else reading.hours // window_hours  # of a piece
        samples = reading.samples if self.spec else self.windows * store.steps
        self.facts = Facts(len(self.channels), samples, self.spec is None)
        self.parts, self.rate_hz = (reading.parts(self.spec), self.spec.rate_hz) if self.spec else (1, 0.0)

    def of(self, record: Record) -> Pieces:
        """The pieces of a record, changed or not."""
        return self._of_segments(record) if self.spec else self._of_grid(record)

    def most(self, index: pl.DataFrame) -> np.ndarray:
        """Upper bound of each person's number of pieces, int64 [people], by RecordStore.index."""
        column = f"n_segments_{self.reading.segments}" if self.spec else "n_windows"
        return index[column].to_numpy().astype(np.int64) * self.parts

    def signal(self, pieces: Pieces, q: int) -> np.ndarray:
        """See Pieces.signal."""
        if not self.spec:
            return self._grid_signal(pieces.record, int(pieces.of_Q[q]))
        values_SxA = pieces.record.segments[self.reading.segments].values_RxSxA[int(pieces.of_Q[q])].astype(np.float64)
        n, part = self.facts.samples, int(pieces.part_Q[q])
        whole = [
            segments_lib.resampled(x, self.rate_hz, self.reading.rate_hz, self.parts * n) for x in values_SxA.T
        ]
        return np.stack(whole, axis=1)[part * n : (part + 1) * n].astype(np.float32)

    def _of_segments(self, record):
        found = record.segments[self.reading.segments]
        seen_RxSxA = np.isfinite(found.values_RxSxA)
        bound = np.round(np.arange(self.parts + 1) * self.reading.seconds * self.rate_hz).astype(int)
        share_RxP = np.stack(
            [seen_RxSxA[:, a:b].mean(axis=1).max(axis=1, initial=0) for a, b in itertools.pairwise(bound)], axis=1
        )
        of_Q, part_Q = np.nonzero(share_RxP >= max(self.reading.min_observed, 1e-9))
        return Pieces(record, self, found.end_us_R[of_Q], of_Q, part_Q)

    def _of_grid(self, record):
        piece_us = self.reading.hours * HOUR_US
        # a window is known at its end, which belongs to the piece that it closes
        number_M = -(-record.window_end_M // piece_us)
        number_Q, first_Q = np.unique(number_M, return_index=True)
        seen_MxC = np.isfinite(record.window_MxLxC).sum(axis=1)
        seen_QxC = np.add.reduceat(seen_MxC, first_Q) if len(first_Q) else np.zeros((0, 1))
        enough_Q = seen_QxC.max(axis=1, initial=0) >= max(self.reading.min_observed * self.facts.samples, 1)
        end_us_Q = number_Q[enough_Q] * piece_us
        return Pieces(record, self, end_us_Q, first_Q[enough_Q], np.zeros(len(end_us_Q), np.int64))

    def _grid_signal(self, record, first):
        """The windows of the piece that window `first` begins, each in its place: [S, C]."""
        piece_us = self.reading.hours * HOUR_US
        stop_us = -(-int(record.window_end_M[first]) // piece_us) * piece_us
        last = int(np.searchsorted(record.window_end_M, stop_us, side="right"))
        out_WxLxC = np.full((self.windows, self.steps, self.facts.channels), np.nan, np.float32)
        place = self.windows - 1 - (stop_us - record.window_end_M[first:last]) // record.window_us
        out_WxLxC[place] = self.scales.standardise(record.window_MxLxC[first:last])
        return np.clip(out_WxLxC.reshape(self.facts.samples, -1), -GRID_REACH, GRID_REACH)


# ------------------------------------------------------------------------------------------------ how they are scaled


def unit_range(signal_SxA: np.ndarray) -> np.ndarray:
    """Each channel from -1, its lowest sample, to 1, its highest; 0 of a flat one. NaN stays."""
    return _per_channel(signal_SxA, lambda x: ((x.max() + x.min()) / 2, (x.max() - x.min()) / 2))


def z_score(signal_SxA: np.ndarray) -> np.ndarray:
    """Each channel in its own standard deviations from its mean; 0 of a flat one. NaN stays."""
    return _per_channel(signal_SxA, lambda x: (x.mean(dtype=np.float64), x.std(dtype=np.float64)))


def clipped(signal_SxA: np.ndarray, facts: Facts, highest: float) -> np.ndarray:
    """z_score, clipped above at `highest`, where artefacts of pulse waves reach; of the grid, the signal as it is."""
    return signal_SxA if facts.from_grid else np.minimum(z_score(signal_SxA), np.float32(highest))


def _per_channel(signal_SxA, middle_and_unit):
    out_SxA = np.array(signal_SxA, np.float32)
    for a in range(out_SxA.shape[1]):
        seen = out_SxA[np.isfinite(out_SxA[:, a]), a]
        if len(seen):
            middle, unit = middle_and_unit(seen)
            flat = unit <= 1e-6 * max(float(np.abs(seen).max()), 1e-30)
            out_SxA[:, a] = (out_SxA[:, a] - middle) / unit if not flat else 0.0 * out_SxA[:, a]
    return out_SxA


# ------------------------------------------------------------------------------------------------------- batches


@dataclasses.dataclass(frozen=True)
class _Order:
    """Places of an epoch: person of each, and which of the person's places it is."""

    person_E: np.ndarray
    rank_E: np.ndarray


class SegmentExamples(Examples):
    """Training rows at random access, and batches for prediction times.

    In an epoch each person has places for up to `per_person` pieces, which follow each other, the people in random
    order; rows take `per_row` places after another, across the ends of epochs. Which of a person's pieces are shown is
    drawn anew in every epoch, none twice.

    z at a prediction time is the mean over the last pieces known then, a slot each. A time before all pieces has one
    slot without any, for which the network's z is zero; `tokens_seen` and `n_without` count such.

    A family says how signal is scaled (`scaled`), what else is in a batch (`fields`, `fill_piece`) and, where it cannot
    learn from every piece, from which (`accepts`).

    Attributes:
      reader: PieceReader. n_without: people of the split with fewer than `least` pieces, by the index.
    """

    fields: Mapping[str, Field] = {}

    def __init__(
        self, store: RecordStore, reading: SegmentReading, seed: int = 0, sizes: Mapping[str, int] | None = None,
        least: int = 1,
    ) -> None:  # fmt: skip
        """sizes: of further axes of `fields`. least: pieces that a person has who is shown in training."""
        self.store, self.reading, self.seed = store, reading, seed
        self.reader = PieceReader(store, reading)
        self.subject_id = store.index["subject_id"].to_numpy()
        facts = self.reader.facts
        axes = {"N": reading.per_row, "S": facts.samples, "A": facts.channels} | dict(sizes or {})
        self.spec = BatchSpec(axes, FIELDS | dict(self.fields), facts)
        most_P = self.reader.most(store.index)
        self._eligible = np.flatnonzero(most_P >= least)
        self._copies = np.minimum(most_P[self._eligible], reading.per_person)
        self.n_without = len(most_P) - len(self._eligible)
        if self.n_without:
            logging.info("%d of %d people have fewer than %d segments to read", self.n_without, len(most_P), least)
        self._orders: dict[int, _Order] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        """For worker processes: they draw for themselves."""
        return {k: v for k, v in vars(self).items() if k not in ("_orders", "_lock")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _orders={}, _lock=threading.Lock())

    # ------------------------------------------------------------------------------------------- a family's choices

    def scaled(self, signal_SxA: np.ndarray) -> np.ndarray:
        """The signal of a piece as the network reads it, NaN not observed: float32 [S, A]."""
        return signal_SxA

    def accepts(self, pieces: Pieces, q: int) -> bool:
        """Whether piece q is one to learn from."""
        del pieces, q
        return True

    def fill_piece(self, row: Batch, n: int, pieces: Pieces, q: int, rng: np.random.Generator) -> None:
        """Writes what a training row holds beside `FIELDS`, of its n-th piece, piece q of a person."""

    # ------------------------------------------------------------------------------------------------ people

    def pieces(self, i: int) -> Pieces:
        """All pieces of person i of the split."""
        return self.reader.of(self.store[i])

    # ------------------------------------------------------------------------------------------------ training rows

    @property
    def _n_places(self):
        if not len(self._eligible):
            what = f"segment of {self.reading.segments!r}" if self.reading.segments else "wearable window"
            raise ValueError(f"{self.store.records_dir}: none of the {self.store.split} people has a {what} to read")
        return int(self._copies.sum())

    @property
    def rows_per_epoch(self) -> int:  # type: ignore[override]
        """Rows that show everybody once."""
        return max(1, self._n_places // self.reading.per_row)

    def _order(self, epoch):
        with self._lock:
            if epoch not in self._orders:
                at = np.random.default_rng([self.seed, epoch]).permutation(len(self._eligible))
                copies = self._copies[at]
                rank = np.arange(copies.sum()) - np.repeat(np.cumsum(copies) - copies, copies)
                order = _Order(np.repeat(self._eligible[at], copies), rank)
                self._orders = {k: v for k, v in self._orders.items() if k >= epoch - 1} | {epoch: order}
            return self._orders[epoch]

    def _places(self, g):
        """(epoch, person, number among the person's places) of each piece of row g."""
        n = self.reading.per_row
        for place in range(int(g) * n, (int(g) + 1) * n):
            epoch, e = divmod(place, self._n_places)
            order = self._order(epoch)
            yield epoch, int(order.person_E[e]), int(order.rank_E[e])

    def _chosen(self, pieces, epoch, person, rank):
        """The piece that is shown, of those that are accepted in a random order; None where there is none."""
        key = random_streams.words([self.seed, epoch, person])
        order_Q = np.random.default_rng(key).permutation(len(pieces))[: rank + 1 + _TRIES]
        accepted = (int(q) for q in order_Q if self.accepts(pieces, int(q)))
        return next(itertools.islice(accepted, rank, None), None)

    def fill(self, row: Batch, g: int) -> None:
        """Writes training row g into the empty arrays of a row."""
        for n, (epoch, person, rank) in enumerate(self._places(g)):
            pieces = self.pieces(person)
            q = self._chosen(pieces, epoch, person, rank)
            if q is not None:
                self._show(row, n, person, pieces, q)
                key = random_streams.words([self.seed, int(g), n])
                self.fill_piece(row, n, pieces, q, np.random.default_rng(key))

    def _show(self, row, n, person, pieces, q):
        signal_SxA = self.scaled(pieces.signal(q))
        row["person"][n], row["observed"][n] = person, np.isfinite(signal_SxA)
        row["signal"][n] = np.nan_to_num(signal_SxA, nan=0.0)

    def subjects(self, rows: Sequence[int]) -> list[int]:
        """Sorted subject ids in the rows of the given global numbers."""
        people = {person for g in rows for _, person, _ in self._places(g)}
        return sorted(self.subject_id[sorted(people)].tolist())

    # -------------------------------------------------------------------------------------------- prediction times

    def _asked(self, position_N, time_us_N, transform):
        """(number of a prediction time, its person, their pieces, how many are known then), people as they come."""
        if transform is not None:
            for k, (i, t) in enumerate(zip(position_N, time_us_N, strict=True)):
                pieces = self.reader.of(transform(self.store[int(i)], int(t)))
                yield k, int(i), pieces, pieces.known(int(t))
            return
        places: dict[int, list[int]] = {}
        for k, i in enumerate(position_N):
            places.setdefault(int(i), []).append(k)
        for i, of_person in places.items():
            pieces = self.pieces(i)
            yield from ((k, i, pieces, pieces.known(int(time_us_N[k]))) for k in of_person)

    def prediction_batches(
        self, position_N: np.ndarray, time_us_N: np.ndarray, batch_size: int, transform: Transform | None = None
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """See models/family.py and the class."""
        slots = (
            (k, i, pieces, q)
            for k, i, pieces, known in self._asked(position_N, time_us_N, transform)
            for q in (range(max(0, known - self.reading.last), known) if known else (None,))
        )
        n_row = self.reading.per_row
        while part := list(itertools.islice(slots, batch_size * n_row)):
            batch, where = self.spec.empty(batch_size), np.full((batch_size, n_row), -1)
            for at, (k, i, pieces, q) in enumerate(part):
                r, n = divmod(at, n_row)
                where[r, n] = k
                if q is not None:
                    self._show({name: batch[name][r] for name in FIELDS}, n, i, pieces, q)
            yield batch, where

    def tokens_seen(self, position_N: np.ndarray, time_us_N: np.ndarray) -> dict[str, np.ndarray]:
        """Pieces that z is the mean of, and older ones, see models/family.py."""
        known_N = np.zeros(len(position_N), np.int64)
        for k, _, _, known in self._asked(position_N, time_us_N, None):
            known_N[k] = known
        seen_N = np.minimum(known_N, self.reading.last)
        return {"segments": seen_N, "segments_left_out": known_N - seen_N}

    # ------------------------------------------------------------------------------------------------- for others

    def counts(self, batch: Batch) -> dict[str, int]:
        """Pieces, which are the tokens of such models and, of the grid, patient-days; else people for those."""
        pieces = int((batch["person"] >= 0).sum())
        people = len(np.unique(batch["person"][batch["person"] >= 0]))
        days = self.reading.hours * HOUR_US / DAY_US
        return {"tokens": pieces, "patient_days": round(pieces * days) if self.spec.facts.from_grid else people}
