"""Turns records into sequences of tokens: codes, codes with a value's range or a text, and days between events.

Tokens are those of models/vocabulary.py, fitted on training people. Ranges are of one code, and a code has one unit: a
value is never put into the ranges of another unit.

Axes: of a person S static events, E timed events, K tokens of these.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.store import Record, RecordStore
from ehrwear_jax.models import packed_contexts
from ehrwear_jax.models import vocabulary as vocabulary_lib

PAD, BEGIN, END = range(3)  # in the places of the vocabulary's own: none, what each context begins with, a record's end
SPECIAL = ("<pad>", "<begin>", "<end>")
MOST_DAYS = 1080  # between events that a token of its own says


@dataclasses.dataclass(frozen=True)
class Facts:
    """What training data decide of the network.

    Attributes:
      dictionary: number of tokens, special ones and days included.
    """

    dictionary: int


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """All tokens.

    Attributes:
      vocabulary: of the training split. names: of the tokens. first_day: the token of one day between events; -1
        without such tokens.
    """

    vocabulary: vocabulary_lib.Vocabulary
    names: list[str]
    first_day: int


def make_dictionary(vocabulary: vocabulary_lib.Vocabulary, day_tokens: bool) -> Dictionary:
    """The Dictionary of a vocabulary, with tokens of days or without."""
    names = [*SPECIAL, *vocabulary.tokens["token"].to_list()[vocabulary_lib.N_SPECIAL :]]
    days = [*(f"<{n} days>" for n in range(1, MOST_DAYS + 1)), "<later>"] if day_tokens else []
    return Dictionary(vocabulary, [*names, *days], len(names) if day_tokens else -1)


class Timeline(NamedTuple):
    """One person's tokens; times int64 us, in order.

    Attributes:
      static_token_S: int32, of events without a time. token_K: int32. time_K: when each is known: of days between
        events that is when the later event is. is_event_K: bool, False for these days.
    """

    static_token_S: np.ndarray
    token_K: np.ndarray
    time_K: np.ndarray
    is_event_K: np.ndarray

    @property
    def nbytes(self) -> int:
        """Memory held, bytes."""
        return sum(x.nbytes for x in self)


def make_timeline(record: Record, dictionary: Dictionary) -> Timeline:
    """The Timeline of a record, without events that the dictionary does not know."""
    (static_token, _), (token_E, _, time_E) = dictionary.vocabulary.known(record)
    gap_E = np.diff(time_E // DAY_US, prepend=time_E[:1] // DAY_US)
    at = np.flatnonzero(gap_E) if dictionary.first_day >= 0 else np.zeros(0, np.int64)
    day = dictionary.first_day + np.minimum(gap_E[at], MOST_DAYS + 1) - 1
    return Timeline(
        static_token,
        np.insert(token_E, at, day),  # in front of the event; a view would keep the whole record in memory
        np.insert(time_E, at, time_E[at]),
        np.insert(np.ones(len(time_E), bool), at, False),
    )


class People(packed_contexts.People[Timeline]):
    """The people of a store as timelines."""

    def __init__(self, store: RecordStore, dictionary: Dictionary, cache_bytes: int | None = None) -> None:
        super().__init__(store, cache_bytes)
        self.dictionary = dictionary

    def of(self, record: Record) -> Timeline:
        """The Timeline of a record of the store, changed or not."""
        return make_timeline(record, self.dictionary)
