"""Makes MOTOR's batches: rows packed with people's events, places of predictions in them, and what follows there.

A *context* is a person's first token, which adds up their static events at age zero, and the latest of their events
before some end. A row is a function of (seed, its number).
"""

import dataclasses

import numpy as np

from ehrwear_jax.data import random_streams
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import Batch, BatchSpec, Field, places_by_person
from ehrwear_jax.models.motor import timelines
from ehrwear_jax.models.motor.config import Config
from ehrwear_jax.models.motor.timelines import PAD, PERSON, Facts
from ehrwear_jax.models.packed_contexts import Need, PackedContexts

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
_TIMES = ("site_days", "pair_site", "pair_task", "pair_days")  # of the fields, those of times to codes
_NEXT = {"next_task": Field("T", np.int32, -1, "number of the next token's code among the tasks; -1: not predicted")}
_LEAST_SITES = 5  # of a context, where it has as many places


def batch_spec(config: Config, facts: Facts) -> BatchSpec:
    """The fields of a batch."""
    sizes = {"T": config.tokens, "A": config.features, "N": config.sites, "P": config.pairs, "2": 2}
    fields = FIELDS
    if config.predicts == "next_code":
        fields = {name: field for name, field in FIELDS.items() if name not in _TIMES} | _NEXT
    return BatchSpec(sizes, fields, facts)


class MotorExamples(PackedContexts):
    """Training rows at random access, and batches for prediction times, see models/packed_contexts.py.

    Rows are planned with repeated events, so that those of records with many repeats are less full.
    """

    people: timelines.People

    def __init__(self, store: RecordStore, config: Config, seed: int = 0) -> None:
        self.config = config
        self.fitted = timelines.fit(store, config)
        n_events = store.index["known_events"].to_numpy()
        super().__init__(
            timelines.People(store, self.fitted.dictionary, config), batch_spec(config, self.fitted.facts),
            Need(np.ones_like(n_events), n_events), seed,
            context_tokens=config.context_tokens, window=config.attention_window,
        )  # fmt: skip

    def family_facts(self) -> dict:
        """The facts, and the task of each group of the dictionary."""
        return {"facts": dataclasses.asdict(self.fitted.facts), "task_G": self.fitted.task_G.tolist()}

    # ----------------------------------------------------------------------------------------------- training rows

    def fill(self, row: Batch, g: int) -> None:
        """Writes training row g into the empty arrays of a row."""
        if self.config.predicts == "next_code":
            self._fill_next(row, g)
            return
        rng, at, places = np.random.default_rng(random_streams.words([self.seed, int(g)])), 0, []
        for number, (_, timeline, start, stop) in enumerate(self._contexts(g), start=1):
            end = self._show(row, number, at, timeline, start, stop)
            inside = timeline.places()
            inside = inside[(inside >= start) & (inside < stop)]
            wanted = max(_LEAST_SITES, (1 + stop - start) * self.config.sites // self.config.tokens)
            inside = np.sort(rng.permutation(inside)[:wanted])
            found = timelines.pairs(timeline, timeline.time_K[inside], self.fitted.task_G)
            for place, (_, task_U, day_U) in zip(inside, found, strict=True):
                rest = (timeline.end_us - int(timeline.time_K[place])) / DAY_US
                places.append((at + 1 + int(place) - start, rest, task_U, day_U))
            at = end
        self._predict(row, rng, places)

    def _fill_next(self, row, g):
        task_V, at = self.fitted.next_tasks(), 0
        for number, (_, timeline, start, stop) in enumerate(self._contexts(g), start=1):
            end = self._show(row, number, at, timeline, start, stop)
            following = task_V[timeline.token_K[start : stop + 1]]  # behind the first token, that of the first event
            row["next_task"][at : at + len(following)] = following
            at = end

    def _n_ahead(self, timeline: timelines.Timeline) -> int:
        return 1

    def _write(self, row: Batch, at: int, timeline: timelines.Timeline, start: int, stop: int) -> None:
        n, entry_VxA = stop - start, self.fitted.dictionary.entry_VxA
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

    # ------------------------------------------------------------------------------------------------- for others

    def tokens_seen(self, position_N: np.ndarray, time_us_N: np.ndarray) -> dict[str, np.ndarray]:
        """Events and static events that z depends on, see models/family.py; repeats that are no tokens do not count."""
        names = ("static", "static_left_out", "events", "events_left_out")
        seen = np.zeros((len(names), len(position_N)), np.int64)
        for i, of_person in places_by_person(position_N).items():
            timeline = self.people[i]
            for k in of_person:
                known = self._known(timeline, int(time_us_N[k]))
                shown = min(known, self._room(timeline))
                events, first = min(shown, self.config.reach), shown < self.config.reach
                static = self._n_static(timeline) if first else 0
                seen[:, k] = static, len(timeline.static_token_S) - static, events, known - events
        return dict(zip(names, seen, strict=True))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Contexts, tokens, patient-days, places, and the keys that tokens see in all."""
        segment, day = batch["segment"], batch["age"][..., 0]
        begins = np.ones(segment.shape, bool)
        begins[:, 1:] = (segment[:, 1:] != segment[:, :-1]) | (day[:, 1:] != day[:, :-1])
        contexts = int(segment.max(axis=1, initial=0).sum())
        found = {
            "contexts": contexts,
            "tokens": int((segment > 0).sum()),
            "patient_days": int((begins & (segment > 0)).sum()) - contexts,  # a first token is of no day
            "sites": int((batch["site"] >= 0).sum()),
            "seen": int(np.diff(batch["kv_range"], axis=-1).sum(dtype=np.int64)),
        }
        if "next_task" in batch:
            found["targets"] = int((batch["next_task"] >= 0).sum())
        return found

    def place_names(self) -> dict[str, list[str]]:
        """Names of the dictionary's entries and of the predicted codes, in order."""
        return {"token": self.fitted.dictionary.names, "future_code": self.fitted.task_names}

    def content_names(self) -> dict[str, list[str]]:
        """Where pieces of time begin, days."""
        return {"time_bin": [f"{x:.6g}" for x in self.fitted.facts.bin_days]}
