"""Packs people's latest events into rows, for training and for prediction times: what families of one sequence share.

A *context* is what stands ahead of a person's events, such as static facts, and the latest of their events before some
end. A row is a function of (seed, its number). A family says how a record becomes a timeline (`People.of`), how many
tokens stand ahead of its events, and what is written of both into a row (`PackedContexts`).

A batch has the fields "segment" [T] and "kv_range" [T, 2], which are written here, and "site" [N], the token positions
where z is read.
"""

import abc
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from ehrwear_jax.data.store import Record, RecordStore
from ehrwear_jax.models.family import Batch, BatchSpec, Examples, Transform, places_by_person
from ehrwear_jax.models.row_packing import pack


class Timed(Protocol):
    """A person's tokens."""

    @property
    def time_K(self) -> np.ndarray:
        """When each token is known, those ahead of all events apart: int64 us, in order."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory held, bytes."""
        ...


T = TypeVar("T", bound=Timed)


class People(abc.ABC, Generic[T]):
    """The people of a store as timelines, at random access.

    Args:
      cache_bytes: memory that timelines may take; those beyond it are made at every use.
    """

    def __init__(self, store: RecordStore, cache_bytes: int = 2**28) -> None:
        self.store, self.cache_bytes = store, cache_bytes
        self._cache: dict[int, T] = {}
        self._cached_bytes = 0

    @abc.abstractmethod
    def of(self, record: Record) -> T:
        """The timeline of a record of the store, changed or not."""

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, i: int) -> T:
        found = self._cache.get(i)
        if found is None:
            found = self.of(self.store.read(i))
            if self._cached_bytes + found.nbytes <= self.cache_bytes:
                self._cached_bytes += found.nbytes
                self._cache[i] = found
        return found

    def __getstate__(self) -> dict:
        """For worker processes, which fill caches of their own."""
        return vars(self) | {"_cache": {}, "_cached_bytes": 0}


class Need(NamedTuple):
    """What a context of each person takes, by the index of the store alone: int64 [people].

    Attributes:
      ahead_N: tokens ahead of events. events_N: tokens of events at most, without any limit; 0: never trained on.
    """

    ahead_N: np.ndarray
    events_N: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Contexts of an epoch in the order in which they are packed; row r holds bound_R[r] to bound_R[r + 1].

    person_N: position in the split. end_N: uniform draw of where a context ends that does not hold the whole record.
    """

    person_N: np.ndarray
    end_N: np.ndarray
    bound_R: np.ndarray


@dataclasses.dataclass
class _Filled:
    """How much of a row of a prediction batch is taken."""

    contexts: int = 0
    tokens: int = 0
    sites: int = 0


class PackedContexts(Examples):
    """Training rows at random access, and batches for prediction times.

    In an epoch a person appears once for each context that their events fill, the last one begun; a record that one
    context holds is shown whole, of another one a part that ends anywhere. The order is drawn anew for every epoch.
    Rows are planned by the index, so that no record is read for it, and are less full where a timeline is shorter than
    the index can say. Every epoch has as many rows as epoch 0; what does not fit is left out of that epoch, another
    part each time.

    Args:
      people: of the split. spec: with sizes "T", tokens, and "N", places where z is read, of a row.
      context_tokens: most tokens of one person. window: how many a token sees, itself and the latest before it.
    """

    def __init__(
        self, people: People, spec: BatchSpec, need: Need, seed: int, *, context_tokens: int, window: int
    ) -> None:
        self.people, self.spec, self.seed = people, spec, seed
        self.subject_id = people.store.index["subject_id"].to_numpy()
        self._context_tokens, self._window = context_tokens, window
        self._ahead, self._n_events = need
        self._source = str(people.store.records_dir)
        self._plans: dict[int, _Plan] = {}
        self._lock = threading.Lock()

    @abc.abstractmethod
    def _n_ahead(self, timeline: Any) -> int:
        """Tokens of a person that stand ahead of the events."""

    @abc.abstractmethod
    def _write(self, row: Batch, at: int, timeline: Any, start: int, stop: int) -> None:
        """Writes a context: what is ahead from position `at` on, then events `start` to `stop`."""

    def __getstate__(self) -> dict:
        """For worker processes: they plan for themselves."""
        return {k: v for k, v in vars(self).items() if k not in ("_plans", "_lock")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _plans={}, _lock=threading.Lock())

    def _room(self, timeline):
        """Most events of a person in a context."""
        return self._context_tokens - self._n_ahead(timeline)

    def _show(self, row, number, at, timeline, start, stop):
        """Writes context `number` of a row from position `at` on; returns where it ends."""
        end = at + self._n_ahead(timeline) + stop - start
        position = np.arange(at, end)
        row["segment"][at:end] = number
        begin = np.maximum(at, position + 1 - self._window)
        row["kv_range"][at:end] = np.stack([begin, position + 1], axis=1)
        row["kv_range"][end:] = end  # of padding: keeps both columns non-decreasing
        self._write(row, at, timeline, start, stop)
        return end

    # ----------------------------------------------------------------------------------------------- training rows

    @property  # of the plan of an epoch, which is drawn when rows are first asked for
    def rows_per_epoch(self) -> int:  # type: ignore[override]
        """Rows of every epoch."""
        return len(self._plan(0).bound_R) - 1

    def _plan(self, epoch):
        with self._lock:
            if epoch not in self._plans:
                eligible = np.flatnonzero(self._n_events > 0)
                if not len(eligible):
                    raise ValueError(f"{self._source}: no training person has an event of a known code")
                rng, room_N = np.random.default_rng([self.seed, epoch]), self._context_tokens - self._ahead
                copies = -(-self._n_events[eligible] // room_N[eligible])
                person_N = rng.permutation(np.repeat(eligible, copies))
                need_N = self._ahead[person_N] + np.minimum(self._n_events, room_N)[person_N]
                plan = _Plan(person_N, rng.random(len(person_N)), pack([need_N], [self.spec.sizes["T"]]))
                self._plans = {k: v for k, v in self._plans.items() if k >= epoch - 1} | {epoch: plan}
            return self._plans[epoch]

    def _contexts(self, g):
        """(person, timeline, first event, last event + 1) of each context of row g."""
        epoch, r = divmod(int(g), self.rows_per_epoch)
        plan = self._plan(epoch)
        r %= len(plan.bound_R) - 1
        for k in range(int(plan.bound_R[r]), int(plan.bound_R[r + 1])):
            person = int(plan.person_N[k])
            timeline = self.people[person]
            n, room = len(timeline.time_K), self._room(timeline)
            stop = n if n <= room else room + int(plan.end_N[k] * (n + 1 - room))
            yield person, timeline, max(0, stop - room), stop

    def subjects(self, rows: Sequence[int]) -> list[int]:
        """Sorted subject ids in the rows of the given global numbers."""
        people = {person for g in rows for person, *_ in self._contexts(g)}
        return sorted(self.subject_id[sorted(people)].tolist())

    # -------------------------------------------------------------------------------------------- prediction times

    def prediction_batches(
        self, position_N: np.ndarray, time_us_N: np.ndarray, batch_size: int, transform: Transform | None = None
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """See models/family.py: z is read at the last token at or before a time; before all events, ahead of them.

        Times of a person share a context where it holds all that is known at each of them.
        """
        n_tokens, n_sites = self.spec.sizes["T"], self.spec.sizes["N"]
        batch, where = self.spec.empty(batch_size), np.full((batch_size, n_sites), -1)
        filled = [_Filled() for _ in range(batch_size)]
        for timeline, stop, asked in self._asked(position_N, np.asarray(time_us_N, np.int64), transform):
            ahead, start = self._n_ahead(timeline), max(0, stop - self._room(timeline))
            n = ahead + stop - start

            def fits(row, n=n, asked=asked):
                return row.tokens + n <= n_tokens and row.sites + len(asked) <= n_sites

            r = next((r for r, row in enumerate(filled) if fits(row)), None)
            if r is None:
                yield batch, where
                batch, where = self.spec.empty(batch_size), np.full((batch_size, n_sites), -1)
                filled, r = [_Filled() for _ in range(batch_size)], 0
            row = filled[r]
            self._show({k: v[r] for k, v in batch.items()}, row.contexts + 1, row.tokens, timeline, start, stop)
            slots = slice(row.sites, row.sites + len(asked))
            where[r, slots] = [k for k, _ in asked]
            batch["site"][r, slots] = [row.tokens + ahead - 1 + known - start for _, known in asked]
            row.contexts, row.tokens, row.sites = row.contexts + 1, row.tokens + n, row.sites + len(asked)
        if any(row.contexts for row in filled):
            yield batch, where

    def _asked(self, position_N, time_us_N, transform):
        """(timeline, end of the context, [(place of a prediction time, events known then)]), people as they come."""
        if transform is not None:
            for k, (i, t) in enumerate(zip(position_N, time_us_N, strict=True)):
                timeline = self.people.of(transform(self.people.store[int(i)], int(t)))
                stop = self._known(timeline, int(t))
                yield timeline, stop, [(k, stop)]
            return
        for i, of_person in places_by_person(position_N).items():
            timeline = self.people[i]
            known = [(k, self._known(timeline, int(time_us_N[k]))) for k in of_person]
            known.sort(key=lambda x: x[1])
            shared = [x for x in known if x[1] <= self._room(timeline)]
            for first in range(0, len(shared), self.spec.sizes["N"]):
                part = shared[first : first + self.spec.sizes["N"]]
                yield timeline, part[-1][1], part
            yield from ((timeline, x[1], [x]) for x in known[len(shared) :])

    def _known(self, timeline, time_us):
        return int(np.searchsorted(timeline.time_K, time_us, side="right"))
