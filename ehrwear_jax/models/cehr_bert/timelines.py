"""Turns records into CEHR-BERT's tokens: events, begins and ends of visits, and the time between them.

    <cls> [static events] VS event event VE W2 VS event i-D1 event VE ...

A visit is a stay from an admission to its discharge, as far as the dataset has codes of both, and otherwise what
happens in a day. What tokens up to a time are follows from what is known then: a stay that goes on has no end, the end
of a day stands behind the last of its events so far. Stays are told apart as data/labels/episodes.py says, but a stay
that begins soon after another one is its own, for nobody knows at a discharge that it will.

Axes: V tokens of the vocabulary, C codes of the data, E events that are tokens, K tokens of a person, U visits.
"""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ehrwear_jax.data import ages
from ehrwear_jax.data.formats.times import DAY_US, YEAR_DAYS
from ehrwear_jax.data.store import NO_BIRTH, Record, RecordStore
from ehrwear_jax.models import packed_contexts
from ehrwear_jax.models import vocabulary as vocabulary_lib
from ehrwear_jax.models.cehr_bert import time_tokens
from ehrwear_jax.models.cehr_bert.config import Config

SPECIAL = ("<pad>", "<mask>", "<cls>", "<visit>", "</visit>")
PAD, MASK, CLS, VISIT_START, VISIT_END = range(len(SPECIAL))
VISIT_SPECIAL = ("<pad>", "<mask>", "<other>")  # what is no type, and the type of a visit that no code names
VISIT_PAD, VISIT_MASK, VISIT_OTHER = range(len(VISIT_SPECIAL))
NEVER = np.iinfo(np.int64).max
_WEEK_DAYS = 7.0


# --------------------------------------------------------------------------------------------------- table of tokens


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """What tokens there are, and what codes say of visits.

    Attributes:
      vocabulary: of the training split. names: of the tokens: SPECIAL, times between visits, times inside, codes.
      first_between, first_inside: where the times begin.
      entry_V: token of each token of the vocabulary, int32.
      is_admission_C, is_discharge_C: bool, of each code_id of the data; all False where a visit is a day.
      type_C: type of visit that a code names, else VISIT_PAD: int32. visit_types: names of the types.
      has_start, has_end: whether visits have tokens of it. scheme: of the time between them.
      longest_stay_us: see Config.
    """

    vocabulary: vocabulary_lib.Vocabulary
    names: list[str]
    first_between: int
    first_inside: int
    entry_V: np.ndarray
    is_admission_C: np.ndarray
    is_discharge_C: np.ndarray
    type_C: np.ndarray
    visit_types: list[str]
    has_start: bool
    has_end: bool
    scheme: str
    longest_stay_us: int


def make_table(vocabulary: vocabulary_lib.Vocabulary, config: Config) -> TokenTable:
    """The TokenTable of a vocabulary.

    Types of visits are the codes in the vocabulary, and so of training people, that name one.
    """
    between = time_tokens.names(config.time_tokens)
    inside = [time_tokens.IN_VISIT + name for name in time_tokens.names("mix")] if between else []
    names = [*SPECIAL, *between, *inside]
    entry_of: dict[str, int] = {}
    entry_V = np.full(len(vocabulary), PAD, np.int32)
    rows = vocabulary.tokens.select("token", "code", "text_id").iter_rows()
    for token, (name, code, text) in enumerate(rows):
        if token < vocabulary_lib.N_SPECIAL:
            continue
        # of its code alone where values are merged; a text is part of what a token says
        said = name if config.value_bins or text >= 0 else code
        entry_V[token] = entry_of.setdefault(said, len(names) + len(entry_of))
    codes = vocabulary.codes["code"].to_list()
    admission_C = _begin_with(codes, config.admission_codes)
    discharge_C = _begin_with(codes, config.discharge_codes)
    type_C = np.full(len(codes), VISIT_PAD, np.int32)
    visit_types = list(VISIT_SPECIAL)
    for c in np.flatnonzero(admission_C | _begin_with(codes, config.encounter_codes)):
        if vocabulary.codes["alias"][int(c)] == codes[c]:
            type_C[c] = len(visit_types)
            visit_types.append(codes[c])
    if not (admission_C.any() and discharge_C.any()):
        admission_C, discharge_C = np.zeros((2, len(codes)), bool)
    first_inside = len(SPECIAL) + len(between)
    longest_us = int(min(config.longest_stay_days * DAY_US, NEVER // 4))
    has_start, has_end = config.visit_tokens == "both", config.visit_tokens != "none"
    return TokenTable(
        vocabulary, names + list(entry_of), len(SPECIAL), first_inside, entry_V, admission_C, discharge_C, type_C,
        visit_types, has_start, has_end, config.time_tokens, longest_us,
    )  # fmt: skip


def _begin_with(codes, wanted):
    """Which codes are among those wanted, or begin with one of them before "//": bool [C]."""
    return np.array([any(c == w or c.startswith(f"{w}//") for w in wanted) for c in codes], bool)


# ---------------------------------------------------------------------------------------------------------- timelines


class Part(NamedTuple):
    """Tokens of a person, in order.

    Attributes:
      entry_K: int32. value_K: float32, standard deviations, NaN: none. time_K: int64 us.
      visit_K: int32, number of the token's visit; of the time between two, the later one.
      is_between_K, is_event_K: bool, times between visits and events; what is neither begins or ends a visit, or tells
        a time inside it.
      names_type_K: bool, events from which a visit's type can be read.
    """

    entry_K: np.ndarray
    value_K: np.ndarray
    time_K: np.ndarray
    visit_K: np.ndarray
    is_between_K: np.ndarray
    is_event_K: np.ndarray
    names_type_K: np.ndarray

    def between(self, start: int, stop: int) -> "Part":
        """Tokens start to stop - 1."""
        return Part(*(x[start:stop] for x in self))


@dataclasses.dataclass(frozen=True)
class Timeline:
    """One person.

    Attributes:
      static_S: int32, tokens of static events.
      tokens: all tokens but for the end of the last visit. known_K: int64 us, when each is known, in order.
      type_U: int32, types of visits.
      closed_U: int64 us, when the token of each visit's end is known: for a day from its first event on, NEVER for a
        stay without a discharge and where ends have no tokens.
      stay_us_U: int64, from a stay's begin to its discharge; 0 of others.
      origin_us: birth, else the first event, as has_birth says.
    """

    static_S: np.ndarray
    tokens: Part
    known_K: np.ndarray
    type_U: np.ndarray
    closed_U: np.ndarray
    stay_us_U: np.ndarray
    origin_us: int
    has_birth: bool

    @property
    def nbytes(self) -> int:
        """Memory held, bytes."""
        arrays = (self.static_S, *self.tokens, self.known_K, self.type_U, self.closed_U, self.stay_us_U)
        return sum(x.nbytes for x in arrays)

    def known(self, time_us: int) -> tuple[int, bool]:
        """(how many tokens are known at a time, whether the end of the last one's visit is too)."""
        n = int(np.searchsorted(self.known_K, time_us, side="right"))
        return n, n > 0 and int(self.closed_U[self.tokens.visit_K[n - 1]]) <= time_us

    @property
    def whole(self) -> tuple[int, bool]:
        """As `known`, in the end."""
        return self.known(NEVER - 1)

    def part(self, start: int, stop: int, is_closed: bool) -> Part:
        """Tokens start to stop - 1, and behind them the end of their last visit, if it is known."""
        found = self.tokens.between(start, stop)
        if not (is_closed and stop > start):
            return found
        return Part(*(np.append(x, x.dtype.type(y)) for x, y in zip(found, _end_of(found, -1), strict=True)))

    def dates(self, time_us: np.ndarray) -> np.ndarray:
        """Weeks since 1970, float32."""
        return (time_us / (_WEEK_DAYS * DAY_US)).astype(np.float32)

    def age_years(self, time_us: np.ndarray, max_years: float | None) -> np.ndarray:
        """Years since the origin, float32; see data/ages.py for max_years."""
        days, rest = np.divmod(time_us - self.origin_us, DAY_US)
        days = ages.whole_days(days, max_years) if self.has_birth else days
        return ((days + rest / DAY_US) / YEAR_DAYS).astype(np.float32)


def _end_of(tokens, k):
    """The fields of the token that ends the visit of token k."""
    return VISIT_END, np.nan, tokens.time_K[k], tokens.visit_K[k], False, False, False


def make_timeline(record: Record, table: TokenTable) -> Timeline:
    """The Timeline of a record, without events that the vocabulary does not know."""
    vocabulary = table.vocabulary
    static_S, _ = vocabulary.encode(record.static_code_S, record.static_value_S, record.static_text_S)
    token_K, value_K = vocabulary.encode(record.code_K, record.value_K, record.text_K)
    at = np.flatnonzero(token_K >= 0)
    code_E, time_E = record.code_K[at], record.time_K[at]
    stays = _stays(record, table)
    visit_E, begins_E, of_visit_E = _visits(time_E, stays)
    type_U = np.full(len(of_visit_E), VISIT_OTHER, np.int32)
    says = table.type_C[code_E] if len(at) else np.zeros(0, np.int32)
    for e in np.flatnonzero(says != VISIT_PAD)[::-1]:  # of several, the first is assigned last
        type_U[visit_E[e]] = says[e]
    closed_U = np.array([time_E[e] if s < 0 else stays[s][2] for e, s in of_visit_E], np.int64)
    stay_us_U = np.array([0 if s < 0 or stays[s][2] == NEVER else stays[s][2] - stays[s][0] for _, s in of_visit_E])
    closed_U = closed_U if table.has_end else np.full_like(closed_U, NEVER)
    names_E = (says != VISIT_PAD) | table.is_discharge_C[code_E] if len(at) else np.zeros(0, bool)
    no_E, yes_E = np.zeros(len(at), bool), np.ones(len(at), bool)
    events = Part(table.entry_V[token_K[at]], value_K[at], time_E, visit_E, no_E, yes_E, names_E)
    tokens, known_K = _with_visits(events, begins_E, of_visit_E, closed_U, table)
    has_birth = record.birth_us != NO_BIRTH
    first_us = int(time_E[0]) if len(time_E) else record.end_us
    origin_us = record.birth_us if has_birth else first_us
    static_S = table.entry_V[static_S[static_S >= 0]]
    stay_us_U = stay_us_U.astype(np.int64)
    return Timeline(static_S, tokens, known_K, type_U, closed_U, stay_us_U, origin_us, has_birth)


def _stays(record, table):
    """[(admission, until when events belong to it, when its end is known or NEVER)], us, in order."""
    found: list[tuple[int, int, int]] = []
    is_admission_K, is_discharge_K = table.is_admission_C[record.code_K], table.is_discharge_C[record.code_K]
    at = np.flatnonzero(is_admission_K | is_discharge_K)
    # at the same time an admission comes before a discharge
    at = at[np.lexsort((is_discharge_K[at], record.time_K[at]))]
    for time, discharges in zip(record.time_K[at].tolist(), is_discharge_K[at].tolist(), strict=True):
        is_open = bool(found) and found[-1][2] == NEVER and time <= found[-1][1]
        if discharges and is_open:
            found[-1] = (found[-1][0], time, time)
        elif not discharges and not is_open:
            found.append((time, time + table.longest_stay_us, NEVER))
    return found


def _visits(time_E, stays):
    """(visit of each event, whether it begins one, [(first event, stay or -1)] of each visit)."""
    if not len(time_E):
        return np.zeros(0, np.int64), np.zeros(0, bool), []
    start_S = np.array([s[0] for s in stays], np.int64)
    until_S = np.array([s[1] for s in stays] + [0], np.int64)
    stay_E = np.searchsorted(start_S, time_E, side="right") - 1
    stay_E = np.where((stay_E >= 0) & (time_E <= until_S[stay_E]), stay_E, -1)
    day_E = np.where(stay_E < 0, time_E // DAY_US, -1)
    begins_E = np.ones(len(time_E), bool)
    begins_E[1:] = (stay_E[1:] != stay_E[:-1]) | (day_E[1:] != day_E[:-1])
    first = np.flatnonzero(begins_E)
    return np.cumsum(begins_E) - 1, begins_E, list(zip(first.tolist(), stay_E[first].tolist(), strict=True))


def _with_visits(events, begins_E, of_visit_E, closed_U, table):
    """(Part with tokens of visits and of time put before events, when each is known)."""
    n, time_E, visit_E = len(events.entry_K), events.time_K, events.visit_K
    if not n:
        return events, np.zeros(0, np.int64)
    passed_E = np.diff(time_E // DAY_US, prepend=time_E[0] // DAY_US)  # days since the last event
    has_times, later_E = table.scheme != "none", begins_E & (np.arange(n) > 0)
    start_E, between_E, inside_E = (
        begins_E & table.has_start,
        later_E & has_times,
        ~begins_E & (passed_E > 0) & has_times,
    )
    # the end of a visit is not known where another one begins without a discharge
    ended_E = later_E & (closed_U[np.maximum(visit_E - 1, 0)] != NEVER)
    before_E = np.sum([start_E, between_E, ended_E, inside_E], axis=0)
    at_E = np.cumsum(1 + before_E) - 1
    tokens = Part(*(np.repeat(x, 1 + before_E) for x in events))
    is_put = np.ones(len(tokens.entry_K), bool)
    is_put[at_E] = False
    tokens.value_K[is_put], tokens.is_event_K[is_put], tokens.names_type_K[is_put] = np.nan, False, False
    known_K = tokens.time_K.copy()
    tokens.entry_K[at_E[start_E] - 1] = VISIT_START
    if has_times:
        between = (at_E - 1 - start_E)[between_E]
        tokens.entry_K[between] = table.first_between + time_tokens.numbers(passed_E[between_E], table.scheme)
        tokens.is_between_K[between] = True
        tokens.entry_K[at_E[inside_E] - 1] = table.first_inside + time_tokens.numbers(passed_E[inside_E], "mix")
    end, last = (at_E - before_E)[ended_E], np.flatnonzero(ended_E) - 1
    tokens.entry_K[end], tokens.time_K[end], tokens.visit_K[end] = VISIT_END, time_E[last], visit_E[last]
    return tokens, known_K


class People(packed_contexts.People[Timeline]):
    """The people of a store as timelines, at random access."""

    def __init__(self, store: RecordStore, table: TokenTable) -> None:
        super().__init__(store)
        self.table, self.max_age_years = table, store.max_age_years

    def of(self, record: Record) -> Timeline:
        """The Timeline of a record of the store, changed or not."""
        return make_timeline(record, self.table)


# ---------------------------------------------------------------------------------------- fitted on training people


@dataclasses.dataclass(frozen=True)
class Facts:
    """What training data decide of the network.

    Attributes:
      tokens: how many there are. visit_types: with VISIT_SPECIAL.
    """

    tokens: int
    visit_types: int


class Fitted(NamedTuple):
    """Facts, the table of tokens that they are of, and how many tokens an event takes in most people's records."""

    facts: Facts
    table: TokenTable
    tokens_per_event: float


_MOST = 0.9  # quantile over people


def fit(store: RecordStore, config: Config) -> Fitted:
    """What is fitted on the training people of a store of any split.

    Raises:
      ValueError: nobody in training has an event of a known code.
    """
    options = dataclasses.replace(config, attention=None, remat="none")
    return _fit(store.records_dir, store.fit_dir, store.digest(), options)


@functools.lru_cache(maxsize=4)  # examples of each split ask for the same
def _fit(records_dir: Path, fit_dir: Path, digest: str, config: Config) -> Fitted:
    del digest
    store = RecordStore(records_dir, fit_dir, "train", pretraining=True)
    table = make_table(vocabulary_lib.of_store(store), config)
    if kept := store.family_facts:
        return Fitted(Facts(len(table.names), len(table.visit_types)), table, kept["tokens_per_event"])
    people = People(store, table)
    eligible = np.flatnonzero(store.index["known_events"].to_numpy() > 0)
    if not len(eligible):
        raise ValueError(f"{fit_dir}: no training person has an event of a known code")
    n = min(len(eligible), config.fit_people)
    chosen = eligible[np.unique(np.linspace(0, len(eligible) - 1, n).astype(int))]
    found = [people[int(i)].tokens for i in chosen]
    ratio = [(len(x.entry_K) + 1) / max(int(x.is_event_K.sum()), 1) for x in found]
    facts = Facts(len(table.names), len(table.visit_types))
    return Fitted(facts, table, float(np.quantile(ratio, _MOST)))


def predicts_visits(config: Config, facts: Facts) -> bool:
    """Whether there is a loss of visit types: that of a visit can be one of several."""
    return config.visit_weight > 0 and facts.visit_types > len(VISIT_SPECIAL)
