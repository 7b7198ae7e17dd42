"""Makes MOTOR's batches: rows packed with people's events, places of predictions in them, and what follows there.

A *context* is a person's first token, which adds up their static events at age zero, and the latest of their events
before some end. A row is a function of (seed, its number).
"""

import dataclasses
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from ehrwear_jax.data import random_streams
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import Batch, BatchSpec, Examples, Field, Transform, places_by_person
from ehrwear_jax.models.motor import timelines
from ehrwear_jax.models.motor.config import Config
from ehrwear_jax.models.motor.timelines import PAD, PERSON, Facts
from ehrwear_jax.models.row_packing import pack

FIELDS = {
    "entry": Field("TA", np.int32, PAD, "entries of the dictionary that a token adds up"),
    "weight": Field("TA", np.float32, 0, "share of each in its event, 1 / number of the event's entries"),
    "age": Field("T2", np.float32, 0, "days since birth, else since the first event: (whole days, fraction)"),
    "segment": Field("T", np.int32, 0, "context of the token, 1, 2, ... along the row; 0 is padding"),
    "kv_range": Field("T2", np.int32, 0, "half-open range of the token positions that the token sees"),
    "site": Field("N", np.int32, -1, "token position of a place where z is read; -1: none"),
    "site_days": Field("N", np.float32, 0, "days from there to the end of follow-up; 0: nothing is predicted"),
    "pair_site": Field("P", np.int32, -1, "place, along N, that a code follows; -1: padding"),
    "pair_task": Field("P", np.int32, 0, "the code's number among the tasks"),
    "pair_days": Field("P", np.float32, 0, "days from the place to the code's next occurrence, strictly later"),
}
_LEAST_SITES = 5  # of a context, where it has as many places


def batch_spec(config: Config, facts: Facts) -> BatchSpec:
    """The fields of a batch."""
    sizes = {"T": config.tokens, "A": config.features, "N": config.sites, "P": config.pairs, "2": 2}
    return BatchSpec(sizes, FIELDS, facts)


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


class MotorExamples(Examples):
    """Training rows at random access, and batches for prediction times.

    In an epoch a person appears once for each context that their events fill, the last one begun; a record that one
    context holds is shown whole, of another one a part that ends anywhere. Rows are planned by the index, which counts
    repeated events too, so that rows of records with many repeats are less full. Every epoch has as many rows as epoch
    0; what does not fit is left out of that epoch, another part each time.
    """

    def __init__(self, store: RecordStore, config: Config, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.fitted = timelines.fit(store, config)
        self.people = timelines.People(store, self.fitted.dictionary, config)
        self.spec = batch_spec(config, self.fitted.facts)
        self.subject_id = store.index["subject_id"].to_numpy()
        self._room = config.context_tokens - 1  # for events, behind a person's first token
        self._n_events = store.index["known_events"].to_numpy()
        self._source = str(store.records_dir)
        self._plans: dict[int, _Plan] = {}
        self._lock = threading.Lock()

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
                rng = np.random.default_rng([self.seed, epoch])
                copies = -(-self._n_events[eligible] // self._room)
                person_N = rng.permutation(np.repeat(eligible, copies))
                need_N = 1 + np.minimum(self._n_events[person_N], self._room)
                plan = _Plan(person_N, rng.random(len(person_N)), pack([need_N], [self.config.tokens]))
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
            n = len(timeline.time_K)
            stop = n if n <= self._room else self._room + int(plan.end_N[k] * (n + 1 - self._room))
            yield person, timeline, max(0, stop - self._room), stop

    def fill(self, row: Batch, g: int) -> None:
        """Writes training row g into the empty arrays of a row."""
        rng, at, places = np.random.default_rng(random_streams.words([self.seed, int(g)])), 0, []
        for number, (_, timeline, start, stop) in enumerate(self._contexts(g), start=1):
            self._show(row, number, at, timeline, start, stop)
            inside = timeline.places()
            inside = inside[(inside >= start) & (inside < stop)]
            wanted = max(_LEAST_SITES, (1 + stop - start) * self.config.sites // self.config.tokens)
            inside = np.sort(rng.permutation(inside)[:wanted])
            found = timelines.pairs(timeline, timeline.time_K[inside], self.fitted.task_G)
            for place, (_, task_U, day_U) in zip(inside, found, strict=True):
                rest = (timeline.end_us - int(timeline.time_K[place])) / DAY_US
                places.append((at + 1 + int(place) - start, rest, task_U, day_U))
            at += 1 + stop - start
        self._predict(row, rng, places)

    def _show(self, row, number, at, timeline, start, stop):
        """Writes a context's tokens from position `at` on."""
        n, entry_VxA = stop - start, self.fitted.dictionary.entry_VxA
        mine = slice(at, at + 1 + n)
        row["segment"][mine] = number
        begin = np.maximum(at, np.arange(at, at + 1 + n) + 1 - self.config.attention_window)
        row["kv_range"][mine] = np.stack([begin, np.arange(at, at + 1 + n) + 1], axis=1)
        row["kv_range"][at + 1 + n :] = at + 1 + n  # of padding: keeps both columns non-decreasing
        entry, weight = self._first(timeline)
        row["entry"][at, : len(entry)], row["weight"][at, : len(entry)] = entry, weight
        events = slice(at + 1, at + 1 + n)
        entry_NxA = entry_VxA[timeline.token_K[start:stop]]
        width = entry_NxA.shape[1]
        row["entry"][events, :width] = entry_NxA
        there_NxA = entry_NxA != PAD
        row["weight"][events, :width] = there_NxA / np.maximum(there_NxA.sum(axis=1, keepdims=True), 1)
        row["age"][events] = timeline.ages(timeline.time_K[start:stop], self.people.max_age_years)

    def _first(self, timeline):
        """(entries, weights) of a person's first token: static events as far as there is room for whole ones."""
        entry, weight = [PERSON], [1.0]
        for entry_A in self.fitted.dictionary.entry_VxA[timeline.static_token_S[: self._n_static(timeline)]]:
            own = entry_A[entry_A != PAD].tolist()
            entry += own
            weight += [1.0 / len(own)] * len(own)
        return entry, weight

    def _n_static(self, timeline):
        """How many static events the first token says."""
        n_S = (self.fitted.dictionary.entry_VxA[timeline.static_token_S] != PAD).sum(axis=1)
        return int((1 + np.cumsum(n_S) <= self.config.features).sum())

    def _predict(self, row, rng, places):
        """Writes the places of a row, in random order until one finds no room for itself or what follows it."""
        order = rng.permutation(len(places))[: self.config.sites]
        total = np.cumsum([len(places[k][2]) for k in order])
        order = np.sort(order[: int((total <= self.config.pairs).sum())])
        used = 0
        for n, (position, rest, task_U, day_U) in enumerate(places[k] for k in order):
            row["site"][n], row["site_days"][n] = position, rest
            mine = slice(used, used + len(task_U))
            row["pair_site"][mine], row["pair_task"][mine], row["pair_days"][mine] = n, task_U, day_U
            used += len(task_U)

    def subjects(self, rows: Sequence[int]) -> list[int]:
        """Sorted subject ids in the rows of the given global numbers."""
        people = {person for g in rows for person, *_ in self._contexts(g)}
        return sorted(self.subject_id[sorted(people)].tolist())

    # -------------------------------------------------------------------------------------------- prediction times

    def prediction_batches(
        self, position_N: np.ndarray, time_us_N: np.ndarray, batch_size: int, transform: Transform | None = None
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """See models/family.py: z is read at the last token at or before a time; before all of them, at the first one.

        Times of a person share a context where it holds all that is known at each of them.
        """
        batch, where = self.spec.empty(batch_size), np.full((batch_size, self.config.sites), -1)
        filled = [_Filled() for _ in range(batch_size)]
        for timeline, stop, asked in self._asked(position_N, np.asarray(time_us_N, np.int64), transform):
            start = max(0, stop - self._room)
            n = 1 + stop - start

            def fits(row, n=n, asked=asked):
                return row.tokens + n <= self.config.tokens and row.sites + len(asked) <= self.config.sites

            r = next((r for r, row in enumerate(filled) if fits(row)), None)
            if r is None:
                yield batch, where
                batch, where = self.spec.empty(batch_size), np.full((batch_size, self.config.sites), -1)
                filled, r = [_Filled() for _ in range(batch_size)], 0
            row = filled[r]
            self._show({k: v[r] for k, v in batch.items()}, row.contexts + 1, row.tokens, timeline, start, stop)
            slots = slice(row.sites, row.sites + len(asked))
            where[r, slots] = [k for k, _ in asked]
            batch["site"][r, slots] = [row.tokens + known - start for _, known in asked]
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
            shared = [x for x in known if x[1] <= self._room]
            for first in range(0, len(shared), self.config.sites):
                part = shared[first : first + self.config.sites]
                yield timeline, part[-1][1], part
            yield from ((timeline, x[1], [x]) for x in known[len(shared) :])

    def _known(self, timeline, time_us):
        return int(np.searchsorted(timeline.time_K, time_us, side="right"))

    def tokens_seen(self, position_N: np.ndarray, time_us_N: np.ndarray) -> dict[str, np.ndarray]:
        """Events and static events that z depends on, see models/family.py; repeats that are no tokens do not count."""
        names = ("static", "static_left_out", "events", "events_left_out")
        seen = np.zeros((len(names), len(position_N)), np.int64)
        for i, of_person in places_by_person(position_N).items():
            timeline = self.people[i]
            for k in of_person:
                known = self._known(timeline, int(time_us_N[k]))
                events, first = min(known, self._room, self.config.reach), min(known, self._room) < self.config.reach
                static = self._n_static(timeline) if first else 0
                seen[:, k] = static, len(timeline.static_token_S) - static, events, known - events
        return dict(zip(names, seen, strict=True))

    # ------------------------------------------------------------------------------------------------- for others

    def counts(self, batch: Batch) -> dict[str, int]:
        """Contexts, tokens, patient-days, places, and the keys that tokens see in all."""
        segment, day = batch["segment"], batch["age"][..., 0]
        begins = np.ones(segment.shape, bool)
        begins[:, 1:] = (segment[:, 1:] != segment[:, :-1]) | (day[:, 1:] != day[:, :-1])
        contexts = int(segment.max(axis=1, initial=0).sum())
        return {
            "contexts": contexts,
            "tokens": int((segment > 0).sum()),
            "patient_days": int((begins & (segment > 0)).sum()) - contexts,  # a first token is of no day
            "sites": int((batch["site"] >= 0).sum()),
            "seen": int(np.diff(batch["kv_range"], axis=-1).sum(dtype=np.int64)),
        }

    def place_names(self) -> dict[str, list[str]]:
        """Names of the dictionary's entries and of the predicted codes, in order."""
        return {"token": self.fitted.dictionary.names, "future_code": self.fitted.task_names}

    def content_names(self) -> dict[str, list[str]]:
        """Where pieces of time begin, days."""
        return {"time_bin": [f"{x:.6g}" for x in self.fitted.facts.bin_days]}
