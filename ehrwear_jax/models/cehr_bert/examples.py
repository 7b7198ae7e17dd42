"""Makes CEHR-BERT's batches: rows packed with people's tokens, some of them hidden, and what was there.

A *context* is a first token <cls>, a person's static events and the latest of their tokens before some end, all of
which see one another and nobody else. A row is a function of (seed, its number).
"""

import collections
from collections.abc import Iterator

import numpy as np

from ehrwear_jax.data import random_streams
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.cehr_bert import timelines
from ehrwear_jax.models.cehr_bert.config import Config
from ehrwear_jax.models.cehr_bert.timelines import CLS, MASK, PAD, VISIT_MASK, VISIT_PAD, Facts, Part, Timeline
from ehrwear_jax.models.family import Batch, BatchSpec, Field, places_by_person
from ehrwear_jax.models.packed_contexts import Need, PackedRows, Shown

FIELDS = {
    "token": Field("T", np.int32, PAD, "token, as the network is given it"),
    "value": Field("T", np.float32, 0, "its value, standard deviations of its code"),
    "has_value": Field("T", np.bool_, 0, "whether it has one, and it is shown"),
    "date": Field("T", np.float32, 0, "weeks since 1970"),
    "age": Field("T", np.float32, 0, "years since birth, else since the first event"),
    "visit": Field("T", np.int32, 0, "number of the token's visit among those of its context that are shown"),
    "visit_segment": Field("T", np.int32, 0, "1 and 2 in turn along a person's visits, 0 outside of them"),
    "segment": Field("T", np.int32, 0, "context of the token, 1, 2, ... along the row; 0 is padding"),
    "kv_range": Field("T2", np.int32, 0, "half-open range of the token positions of its context"),
    "target": Field("T", np.int32, -1, "token that is predicted here; -1: none"),
    "value_target": Field("T", np.float32, 0, "its value"),
    "has_value_target": Field("T", np.bool_, 0, "whether it has one"),
    "site": Field("N2", np.int32, 0, "half-open range of the token positions that z is read from; empty: none"),
}
VISIT_FIELDS = {
    "visit_type": Field("U", np.int32, VISIT_PAD, "type of a visit, as the decoder is given it"),
    "visit_target": Field("U", np.int32, -1, "type that is predicted; -1: none"),
    "visit_at": Field("U", np.int32, 0, "position of its first token"),
    "visit_sees": Field("U2", np.int32, 0, "half-open range of the token positions of its context"),
    "visit_peers": Field("U2", np.int32, 0, "half-open range of the visits of its context, along U"),
}
LONG_STAY_FIELDS = {
    "first_at": Field("N", np.int32, 0, "position of a context's first token"),
    "long_stay": Field("N", np.int32, -1, "whether the context holds a long stay, 0 or 1; -1: not predicted"),
}
_HIDDEN, _REPLACED = 0.8, 0.1  # shares of what is predicted; the rest stays as it is


def batch_spec(config: Config, facts: Facts) -> BatchSpec:
    """The fields of a batch."""
    sizes = {"T": config.tokens, "N": config.sites, "U": config.visits, "2": 2}
    fields = FIELDS | (VISIT_FIELDS if timelines.predicts_visits(config, facts) else {})
    return BatchSpec(sizes, fields | (LONG_STAY_FIELDS if config.long_stay_weight > 0 else {}), facts)


class CehrBertExamples(PackedRows):
    """Training rows at random access, and batches for prediction times.

    A record that one context holds is shown whole, of another one a part that ends anywhere. Rows are planned from
    numbers of events: whose events take more tokens than most people's is shown in part.
    """

    people: timelines.People

    def __init__(self, store: RecordStore, config: Config, seed: int = 0) -> None:
        self.config = config
        self.fitted = timelines.fit(store, config)
        self.with_visits = timelines.predicts_visits(config, self.fitted.facts)
        n_static = np.minimum(store.index["known_static"].to_numpy(), config.static_tokens)
        n_tokens = np.ceil(self.fitted.tokens_per_event * store.index["known_events"].to_numpy()).astype(np.int64)
        people, spec = timelines.People(store, self.fitted.table), batch_spec(config, self.fitted.facts)
        super().__init__(people, spec, Need(1 + n_static, n_tokens), seed, config.context_tokens)

    def family_facts(self) -> dict:
        """How many tokens an event takes in most people's records."""
        return {"tokens_per_event": self.fitted.tokens_per_event}

    # ----------------------------------------------------------------------------------------------- training rows

    def _contexts(self, g: int) -> Iterator[tuple]:
        """(person, timeline, first token, last + 1, whether the end of its visit is known) of contexts of row g."""
        for person, need, share in self._planned(g):
            timeline = self.people[person]
            n, is_closed = timeline.whole
            room = need - 1 - self._static(timeline)
            # one end is the record's, the others are anywhere
            stop = n if n + is_closed <= room else room + int(share * (n + 1 - room))
            ends = is_closed and stop == n
            yield person, timeline, max(0, stop + ends - room), stop, ends

    def fill(self, row: Batch, g: int) -> None:
        """Writes training row g into the empty arrays of a row."""
        rng, at, n_visits = np.random.default_rng(random_streams.words([self.seed, int(g)])), 0, 0
        for number, (_, timeline, start, stop, is_closed) in enumerate(self._contexts(g), start=1):
            part = timeline.part(start, stop, is_closed)
            begin, at = at, self._show(row, number, at, timeline, part)
            self._hide(row, rng, slice(begin + 1, at))
            if self.config.long_stay_weight > 0 and number <= self.config.sites:
                longest_us = timeline.stay_us_U[np.unique(part.visit_K)].max(initial=0)
                row["first_at"][number - 1] = begin
                row["long_stay"][number - 1] = longest_us > self.config.long_stay_days * DAY_US
            if self.with_visits:
                n_visits = self._ask_visits(row, rng, (begin, at), n_visits, timeline, part)

    def _static(self, timeline):
        """How many static events are shown."""
        return min(len(timeline.static_S), self.config.static_tokens)

    def _show(self, row: Batch, number: int, at: int, timeline: Timeline, *what: Part) -> int:
        (part,) = what
        n_first = 1 + self._static(timeline)
        end = at + n_first + len(part.entry_K)
        own, rest = slice(at, end), slice(at + n_first, end)
        row["segment"][own], row["kv_range"][own] = number, (at, end)
        row["kv_range"][end:] = end  # of padding: keeps both columns non-decreasing
        row["token"][at], row["token"][at + 1 : at + n_first] = CLS, timeline.static_S[: n_first - 1]
        if not len(part.entry_K):
            return end
        # what has no time is as old as what follows it
        time_us = np.concatenate([np.full(n_first, part.time_K[0]), part.time_K])
        row["date"][own] = timeline.dates(time_us)
        row["age"][own] = timeline.age_years(time_us, self.people.max_age_years)
        row["token"][rest], row["visit"][rest] = part.entry_K, part.visit_K - part.visit_K[0]
        row["visit_segment"][rest] = np.where(part.is_between_K, 0, part.visit_K % 2 + 1)
        there = np.isfinite(part.value_K)
        row["has_value"][rest], row["value"][rest] = there, np.where(there, part.value_K, 0.0)
        return end

    def _hide(self, row, rng, own):
        """Draws what is predicted of a context behind its first token, and hides it."""
        token, n = row["token"][own], own.stop - own.start
        chosen, how, other = rng.random(n) < self.config.masked, rng.random(n), rng.random(n)
        n_special, n_tokens = len(timelines.SPECIAL) - 2, self.fitted.facts.tokens
        replacement = n_special + (other * (n_tokens - n_special)).astype(np.int32)
        row["target"][own] = np.where(chosen, token, -1)
        row["has_value_target"][own] = chosen & row["has_value"][own]
        row["value_target"][own] = np.where(chosen, row["value"][own], 0.0)
        token[chosen & (how < _HIDDEN)] = MASK
        is_replaced = chosen & (how >= _HIDDEN) & (how < _HIDDEN + _REPLACED)
        token[is_replaced] = replacement[is_replaced]
        # even beside a token that stays: its value is predicted
        row["has_value"][own] &= ~chosen
        row["value"][own][chosen] = 0.0

    def _ask_visits(self, row, rng, context, used, timeline, part):
        """Writes a context's visits from slot `used` on, as far as there is room, the latest; returns where they end.

        What names a type that is hidden is hidden among the tokens too, from which the decoder reads.
        """
        begin, end = context
        shown, first = np.unique(part.visit_K, return_index=True)
        is_hidden = rng.random(len(shown)) < self.config.visits_masked
        kept = slice(max(0, len(shown) - (self.config.visits - used)), None)
        shown, first, is_hidden = shown[kept], first[kept], is_hidden[kept]
        stop, offset = used + len(shown), end - len(part.entry_K)
        type_U = timeline.type_U[shown]
        row["visit_type"][used:stop] = np.where(is_hidden, VISIT_MASK, type_U)
        row["visit_target"][used:stop] = np.where(is_hidden, type_U, -1)
        row["visit_at"][used:stop] = offset + first
        row["visit_sees"][used:stop], row["visit_peers"][used:stop] = (begin, end), (used, stop)
        row["visit_sees"][stop:], row["visit_peers"][stop:] = end, stop  # non-decreasing columns
        tells = offset + np.flatnonzero(part.names_type_K & np.isin(part.visit_K, shown[is_hidden]))
        row["token"][tells], row["has_value"][tells], row["value"][tells] = MASK, False, 0.0
        return stop

    # -------------------------------------------------------------------------------------------- prediction times

    def _start(self, timeline, known):
        """First token of a context that ends with what is known."""
        return max(0, sum(known) - (self.config.context_tokens - 1 - self._static(timeline)))

    def _shown(self, timeline: Timeline, time_us_N: np.ndarray, places: list[int]) -> Iterator[Shown]:
        """Each time has a context that ends there, with nothing hidden, of which z is read as a whole.

        Times share a context if the same tokens are known at them, and no other.
        """
        alike = collections.defaultdict(list)
        for k in places:
            alike[timeline.known(int(time_us_N[k]))].append(k)
        for known, asked in sorted(alike.items()):
            part = timeline.part(self._start(timeline, known), *known)
            n = 1 + self._static(timeline) + len(part.entry_K)
            for first in range(0, len(asked), self.config.sites):
                some = asked[first : first + self.config.sites]
                yield Shown(timeline, (part,), n, some, np.tile([0, n], (len(some), 1)))

    def tokens_seen(self, position_N: np.ndarray, time_us_N: np.ndarray) -> dict[str, np.ndarray]:
        """Events and static events that z depends on, see models/family.py."""
        names = ("static", "static_left_out", "events", "events_left_out")
        seen = np.zeros((len(names), len(position_N)), np.int64)
        for i, of_person in places_by_person(position_N).items():
            timeline = self.people[i]
            is_event_K, static = timeline.tokens.is_event_K, self._static(timeline)
            for k in of_person:
                known = timeline.known(int(time_us_N[k]))
                start = self._start(timeline, known)
                older = int(is_event_K[:start].sum())
                seen[:, k] = static, len(timeline.static_S) - static, int(is_event_K[start : known[0]].sum()), older
        return dict(zip(names, seen, strict=True))

    # ------------------------------------------------------------------------------------------------- for others

    def counts(self, batch: Batch) -> dict[str, int]:
        """Contexts, tokens, patient-days, predicted tokens, what tokens see in all, visits and what these see."""
        segment, day = batch["segment"], np.floor(batch["date"] * 7.0)
        begins = np.ones(segment.shape, bool)
        begins[:, 1:] = (segment[:, 1:] != segment[:, :-1]) | (day[:, 1:] != day[:, :-1])
        found = {
            "contexts": int(segment.max(axis=1, initial=0).sum()),
            "tokens": int((segment > 0).sum()),
            "patient_days": int((begins & (segment > 0)).sum()),
            "targets": int((batch["target"] >= 0).sum()),
            "seen": int(np.diff(batch["kv_range"], axis=-1).sum(dtype=np.int64)),
        }
        if self.with_visits:
            ranges = np.diff(batch["visit_sees"], axis=-1), np.diff(batch["visit_peers"], axis=-1)
            found["visits"] = int((batch["visit_type"] != VISIT_PAD).sum())
            found["visit_seen"] = sum(int(x.sum(dtype=np.int64)) for x in ranges)
        return found

    def place_names(self) -> dict[str, list[str]]:
        """Names of the tokens and of the types of visits, in order."""
        return {"token": self.fitted.table.names, "visit_type": self.fitted.table.visit_types}
