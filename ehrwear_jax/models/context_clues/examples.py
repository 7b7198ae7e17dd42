"""Makes the batches of ContextClues: rows packed with people's tokens, each with the token that follows.

A context is a first token, a person's static events and the latest of their tokens before some end; behind the last
token of a whole record its end is predicted.
"""

import logging

import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models import vocabulary as vocabulary_lib
from ehrwear_jax.models.context_clues import timelines
from ehrwear_jax.models.context_clues.config import Config
from ehrwear_jax.models.context_clues.timelines import BEGIN, END, PAD, Facts
from ehrwear_jax.models.family import Batch, BatchSpec, Field, places_by_person
from ehrwear_jax.models.packed_contexts import Need, PackedContexts

FIELDS = {
    "token": Field("T", np.int32, PAD, "place in the dictionary"),
    "target": Field("T", np.int32, -1, "the token that follows in the person's record; -1: nothing is predicted"),
    "segment": Field("T", np.int32, 0, "context of the token, 1, 2, ... along the row; 0 is padding"),
    "kv_range": Field("T2", np.int32, 0, "half-open range of the token positions that the token sees"),
    "begins_day": Field("T", np.bool_, 0, "whether the token is the first of its day in the context; for counts alone"),
    "site": Field("N", np.int32, -1, "token position where z is read; -1: none"),
}


def batch_spec(config: Config, facts: Facts) -> BatchSpec:
    """The fields of a batch."""
    return BatchSpec({"T": config.tokens, "N": config.sites, "2": 2}, FIELDS, facts)


class ContextCluesExamples(PackedContexts):
    """Training rows at random access, and batches for prediction times, see models/packed_contexts.py.

    Attributes:
      outside: {"static", "events": how many of the split's are left out, being of no code of the vocabulary}.
    """

    people: timelines.People

    def __init__(self, store: RecordStore, config: Config, seed: int = 0) -> None:
        self.config, index = config, store.index
        self.dictionary = timelines.make_dictionary(vocabulary_lib.of_store(store), config.day_tokens)
        of_all = {name: int(index[f"n_{name}"].sum()) for name in ("static", "events")}
        self.outside = {name: n - int(index[f"known_{name}"].sum()) for name, n in of_all.items()}
        for name, n in self.outside.items():
            logging.info("%s: %d of %d %s are of no code of the vocabulary", store.records_dir, n, of_all[name], name)
        n_events = index["known_events"].to_numpy()
        # at most one token of days for each day that the record spans
        n_days = np.minimum(np.maximum(n_events - 1, 0), np.ceil(index["days"].to_numpy()).astype(np.int64) + 1)
        super().__init__(
            timelines.People(store, self.dictionary),
            batch_spec(config, Facts(len(self.dictionary.names))),
            Need(
                1 + np.minimum(index["known_static"].to_numpy(), config.static_tokens),
                n_events + n_days * config.day_tokens,
            ),
            seed,
            context_tokens=config.context_tokens,
            window=config.context_tokens,
        )

    def fill(self, row: Batch, g: int) -> None:
        """Writes training row g into the empty arrays of a row."""
        at = 0
        for number, (_, timeline, start, stop) in enumerate(self._contexts(g), start=1):
            end = self._show(row, number, at, timeline, start, stop)
            row["target"][at : end - 1] = row["token"][at + 1 : end]
            row["target"][end - 1] = timeline.token_K[stop] if stop < len(timeline.token_K) else END
            at = end

    def _n_ahead(self, timeline: timelines.Timeline) -> int:
        return 1 + self._n_static(timeline)

    def _n_static(self, timeline):
        return min(len(timeline.static_token_S), self.config.static_tokens)

    def _write(self, row: Batch, at: int, timeline: timelines.Timeline, start: int, stop: int) -> None:
        n = self._n_static(timeline)
        row["token"][at], row["token"][at + 1 : at + 1 + n] = BEGIN, timeline.static_token_S[:n]
        events = slice(at + 1 + n, at + 1 + n + stop - start)
        row["token"][events] = timeline.token_K[start:stop]
        day = timeline.time_K[start:stop] // DAY_US
        row["begins_day"][events] = np.diff(day, prepend=-1 if not len(day) else day[0] - 1) > 0

    # ------------------------------------------------------------------------------------------------- for others

    def tokens_seen(self, position_N: np.ndarray, time_us_N: np.ndarray) -> dict[str, np.ndarray]:
        """Events and static events that z is read from, see models/family.py; days between events are no events."""
        names = ("static", "static_left_out", "events", "events_left_out")
        seen = np.zeros((len(names), len(position_N)), np.int64)
        for i, of_person in places_by_person(position_N).items():
            timeline = self.people[i]
            static, room = self._n_static(timeline), self._room(timeline)
            for k in of_person:
                known = self._known(timeline, int(time_us_N[k]))
                start = max(0, known - room)
                events, older = (int(timeline.is_event_K[s].sum()) for s in (slice(start, known), slice(start)))
                seen[:, k] = static, len(timeline.static_token_S) - static, events, older
        return dict(zip(names, seen, strict=True))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Contexts, tokens, patient-days, targets, and the tokens that tokens see in all."""
        return {
            "contexts": int(batch["segment"].max(axis=1, initial=0).sum()),
            "tokens": int((batch["segment"] > 0).sum()),
            "patient_days": int(batch["begins_day"].sum()),
            "targets": int((batch["target"] >= 0).sum()),
            "seen": int(np.diff(batch["kv_range"], axis=-1).sum(dtype=np.int64)),
        }

    def place_names(self) -> dict[str, list[str]]:
        """Names of the tokens, in order."""
        return {"token": self.dictionary.names}
