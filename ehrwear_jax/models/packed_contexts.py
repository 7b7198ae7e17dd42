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
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from ehrwear_jax.data.cache import Cache, Held, from_arrays, to_arrays
from ehrwear_jax.data.store import Record, RecordStore
from ehrwear_jax.models.family import Batch, BatchSpec, Examples, Transform, places_by_person
from ehrwear_jax.models.row_packing import pack

T = TypeVar("T", bound=Held)


class People(abc.ABC, Generic[T]):
    """The people of a store as timelines, at random access.

    A timeline is a NamedTuple or a dataclass of arrays and numbers.

    Args:
      cache_bytes: memory that timelines may take; those beyond it lie in a file, as the store says, or are made at
        every use. None: the store's.
    """

    def __init__(self, store: RecordStore, cache_bytes: int | None = None) -> None:
        self.store = store
        memory = store.cache_bytes if cache_bytes is None else cache_bytes
        self.cache = Cache[T](memory, store.file_cache_bytes, to_arrays, from_arrays)

    @abc.abstractmethod
    def of(self, record: Record) -> T:
        """The timeline of a record of the store, changed or not."""

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, i: int) -> T:
        found = self.cache.get(i)
        if found is None:
            found = self.of(self.store.read(i))
            self.cache.put(i, found)
        return found


class Need(NamedTuple):
    """What a context of each person takes, by the index of the store alone: int64 [people].

    Attributes:
      ahead_N: tokens ahead of events. events_N: tokens of events, without any limit; 0: never trained on.
    """

    ahead_N: np.ndarray
    events_N: np.ndarray


class Shown(NamedTuple):
    """A context of a batch for prediction times.

    Attributes:
      timeline, what: the arguments of `PackedRows._show`. n_tokens: that it takes.
      places: the prediction times that read it, as they are numbered. site: where each reads z, counted from the
        context's first token; one number, or two.
    """

    timeline: Any
    what: tuple
    n_tokens: int
    places: list[int]
    site: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Contexts of an epoch in the order in which they are packed; row r holds bound_R[r] to bound_R[r + 1].

    person_N: position in the split. need_N: tokens of the row that each may take. end_N: uniform draw of where a
    context ends that does not hold the whole record.
    """

    person_N: np.ndarray
    need_N: np.ndarray
    end_N: np.ndarray
    bound_R: np.ndarray


@dataclasses.dataclass
class _Filled:
    """How much of a row of a prediction batch is taken."""

    contexts: int = 0
    tokens: int = 0
    sites: int = 0


class PackedRows(Examples):
    """Training rows at random access, and batches for prediction times.

    In an epoch a person appears once for each context that their tokens fill, the last one begun. The order is drawn
    anew for every epoch. Rows are planned by the index, so that no record is read for it. Every epoch has as many rows
    as epoch 0; what does not fit is left out of that epoch, another part each time.

    Args:
      people: of the split. spec: with sizes "T", tokens, and "N", places where z is read, of a row.
      context_tokens: most tokens of one person.
    """

    def __init__(self, people: People, spec: BatchSpec, need: Need, seed: int, context_tokens: int) -> None:
        self.people, self.spec, self.seed = people, spec, seed
        self.subject_id = people.store.index["subject_id"].to_numpy()
        self._context_tokens = context_tokens
        self._ahead, self._n_events = need
        self._source = str(people.store.records_dir)
        self._plans: dict[int, _Plan] = {}
        self._lock = threading.Lock()

    @abc.abstractmethod
    def _contexts(self, g: int) -> Iterator[tuple]:
        """What row g holds: (person, ...) of each context."""

    @abc.abstractmethod
    def _show(self, row: Batch, number: int, at: int, timeline: Any, *what: Any) -> int:
        """Writes context `number` of a row from position `at` on; returns where it ends."""

    @abc.abstractmethod
    def _shown(self, timeline: Any, time_us_N: np.ndarray, places: list[int]) -> Iterator[Shown]:
        """Contexts that answer a person's prediction times, those at `places` of all."""

    def __getstate__(self) -> dict:
        """For worker processes: they plan for themselves."""
        return {k: v for k, v in vars(self).items() if k not in ("_plans", "_lock")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _plans={}, _lock=threading.Lock())

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
                plan = _Plan(person_N, need_N, rng.random(len(person_N)), pack([need_N], [self.spec.sizes["T"]]))
                self._plans = {k: v for k, v in self._plans.items() if k >= epoch - 1} | {epoch: plan}
            return self._plans[epoch]

    def _planned(self, g):
        """(person, tokens that it may take, uniform draw of where it ends) of each context of row g."""
        epoch, r = divmod(int(g), self.rows_per_epoch)
        plan = self._plan(epoch)
        r %= len(plan.bound_R) - 1
        own = slice(int(plan.bound_R[r]), int(plan.bound_R[r + 1]))
        return zip(*(x[own].tolist() for x in (plan.person_N, plan.need_N, plan.end_N)), strict=True)

    def subjects(self, rows: Sequence[int]) -> list[int]:
        """Sorted subject ids in the rows of the given global numbers."""
        people = {person for g in rows for person, *_ in self._contexts(g)}
        return sorted(self.subject_id[sorted(people)].tolist())

    # -------------------------------------------------------------------------------------------- prediction times

    def prediction_batches(
        self, position_N: np.ndarray, time_us_N: np.ndarray, batch_size: int, transform: Transform | None = None
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """See models/family.py: times of a person share a context where one can answer them."""
        n_tokens, n_sites = self.spec.sizes["T"], self.spec.sizes["N"]
        batch, where = self.spec.empty(batch_size), np.full((batch_size, n_sites), -1)
        filled = [_Filled() for _ in range(batch_size)]
        for shown in self._asked(position_N, np.asarray(time_us_N, np.int64), transform):

            def fits(row, shown=shown):
                return row.tokens + shown.n_tokens <= n_tokens and row.sites + len(shown.places) <= n_sites

            r = next((r for r, row in enumerate(filled) if fits(row)), None)
            if r is None:
                yield batch, where
                batch, where = self.spec.empty(batch_size), np.full((batch_size, n_sites), -1)
                filled, r = [_Filled() for _ in range(batch_size)], 0
            row = filled[r]
            end = self._show(
                {k: v[r] for k, v in batch.items()}, row.contexts + 1, row.tokens, shown.timeline, *shown.what
            )
            slots = slice(row.sites, row.sites + len(shown.places))
            where[r, slots], batch["site"][r, slots] = shown.places, row.tokens + shown.site
            row.contexts, row.tokens, row.sites = row.contexts + 1, end, row.sites + len(shown.places)
        if any(row.contexts for row in filled):
            yield batch, where

    def _asked(self, position_N, time_us_N, transform):
        """Contexts of all prediction times, people as they come."""
        if transform is not None:
            for k, (i, t) in enumerate(zip(position_N, time_us_N, strict=True)):
                changed = transform(self.people.store[int(i)], int(t))
                yield from self._shown(self.people.of(changed), time_us_N, [k])
            return
        for i, places in places_by_person(position_N).items():
            yield from self._shown(self.people[i], time_us_N, places)


class PackedContexts(PackedRows):
    """Rows of contexts whose tokens see those before them: a record that one context holds is shown whole, of another
    one a part that ends anywhere. Rows are less full where a timeline is shorter than the index can say.

    Timelines have `time_K`: when each token is known, those ahead of all events apart, int64 us, in order.

    Args:
      window: how many tokens a token sees, itself and the latest before it. Others: see PackedRows.
    """

    def __init__(
        self, people: People, spec: BatchSpec, need: Need, seed: int, *, context_tokens: int, window: int
    ) -> None:
        super().__init__(people, spec, need, seed, context_tokens)
        self._window = window

    @abc.abstractmethod
    def _n_ahead(self, timeline: Any) -> int:
        """Tokens of a person that stand ahead of the events."""

    @abc.abstractmethod
    def _write(self, row: Batch, at: int, timeline: Any, start: int, stop: int) -> None:
        """Writes a context: what is ahead from position `at` on, then events `start` to `stop`."""

    def _room(self, timeline):
        """Most events of a person in a context."""
        return self._context_tokens - self._n_ahead(timeline)

    def _show(self, row: Batch, number: int, at: int, timeline: Any, *what: int) -> int:
        start, stop = what
        end = at + self._n_ahead(timeline) + stop - start
        position = np.arange(at, end)
        row["segment"][at:end] = number
        begin = np.maximum(at, position + 1 - self._window)
        row["kv_range"][at:end] = np.stack([begin, position + 1], axis=1)
        row["kv_range"][end:] = end  # of padding: keeps both columns non-decreasing
        self._write(row, at, timeline, start, stop)
        return end

    def _contexts(self, g: int) -> Iterator[tuple]:
        """(person, timeline, first event, last event + 1) of each context of row g."""
        for person, _, share in self._planned(g):
            timeline = self.people[person]
            n, room = len(timeline.time_K), self._room(timeline)
            stop = n if n <= room else room + int(share * (n + 1 - room))
            yield person, timeline, max(0, stop - room), stop

    def _shown(self, timeline: Any, time_us_N: np.ndarray, places: list[int]) -> Iterator[Shown]:
        """z is read at the last token at or before a time; before all events, ahead of them.

        Times share a context where it holds all that is known at each of them.
        """
        room, ahead = self._room(timeline), self._n_ahead(timeline)
        known = sorted(((k, self._known(timeline, int(time_us_N[k]))) for k in places), key=lambda x: x[1])
        n_shared, n_sites = sum(n <= room for _, n in known), self.spec.sizes["N"]
        parts = [known[first : min(first + n_sites, n_shared)] for first in range(0, n_shared, n_sites)]
        for part in parts + [[alone] for alone in known[n_shared:]]:
            stop = part[-1][1]
            start = max(0, stop - room)
            site = np.array([ahead - 1 + n - start for _, n in part])
            yield Shown(timeline, (start, stop), ahead + stop - start, [k for k, _ in part], site)

    def _known(self, timeline, time_us):
        return int(np.searchsorted(timeline.time_K, time_us, side="right"))
