"""Turns records into MOTOR's events, and fits on training people what is predicted of them.

A token adds up entries of a dictionary: the value or text of an event, its code and the code's ancestors. Entries for
values are a code's own: what is high of one code says nothing of another.

Axes: V tokens of the vocabulary, G codes and ancestors of codes, A entries of a token, C codes that are predicted; of a
person K tokens, E events, X codes and ancestors of these events, N places of predictions, U codes that follow.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ehrwear_jax.data import ages
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.store import NO_BIRTH, Record, RecordStore
from ehrwear_jax.models import packed_contexts
from ehrwear_jax.models import vocabulary as vocabulary_lib
from ehrwear_jax.models.motor.config import Config

PAD, PERSON = 0, 1  # entries of no code: none, and that of a person's first token
SPECIAL = ("<pad>", "<person>")
NEVER = np.iinfo(np.int64).max
_SEED = 0  # of what is fitted, which no model's seed changes


# ---------------------------------------------------------------------------------------------------- dictionary


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """What tokens are made of.

    Attributes:
      vocabulary: of the training split. names: of the entries.
      groups: names of codes and ancestors, [G]; entry len(SPECIAL) + g is that of group g.
      group_VxG: groups that each token belongs to, -1 fills up. entry_VxA: entries of each token, the nearest to the
        event first, PAD fills up.
    """

    vocabulary: vocabulary_lib.Vocabulary
    names: list[str]
    groups: list[str]
    group_VxG: np.ndarray
    entry_VxA: np.ndarray


def make_dictionary(vocabulary: vocabulary_lib.Vocabulary, most: int) -> Dictionary:
    """The Dictionary of a vocabulary.

    An ancestor that stands for the same codes as a nearer one would say the same and has no entry.

    Args:
      most: entries of a token; of more, the most general are left out.
    """
    members = vocabulary.future_codes(sys.maxsize)
    group_VxG = vocabulary.classes([codes for _, codes in members.values()])
    names, rows = [*SPECIAL, *members], []
    for token, (name, of_bin, of_text) in enumerate(vocabulary.tokens.select("token", "bin", "text_id").iter_rows()):
        own = []
        if of_bin >= 0 or of_text >= 0:
            own = [len(names)]
            names.append(name)
        groups = group_VxG[token][group_VxG[token] >= 0]
        rows.append([*own, *(len(SPECIAL) + groups[::-1]).tolist()][:most])  # the most frequent are the most general
    entry_VxA = np.full((len(rows), max(map(len, rows), default=0)), PAD, np.int32)
    for token, row in enumerate(rows):
        entry_VxA[token, : len(row)] = row
    return Dictionary(vocabulary, names, list(members), group_VxG, entry_VxA)


# ------------------------------------------------------------------------------------------------------ timelines


class Timeline(NamedTuple):
    """One person's events; times int64 us, in order.

    Attributes:
      static_token_S: int32, of events without a time. token_K, time_K: of the events that are tokens.
      group_X, group_time_X: int64, every code and ancestor of every event up to the end of follow-up, and when.
      origin_us: birth, else the first event, as has_birth says; end_us: end of follow-up, or death.
    """

    static_token_S: np.ndarray
    token_K: np.ndarray
    time_K: np.ndarray
    group_X: np.ndarray
    group_time_X: np.ndarray
    origin_us: int
    has_birth: bool
    end_us: int

    @property
    def nbytes(self) -> int:
        """Memory held, bytes."""
        return sum(x.nbytes for x in self[:5])

    def ages(self, time_us: np.ndarray, max_years: float | None) -> np.ndarray:
        """float32 [..., 2]: (whole days, fraction of a day) from the origin; see data/ages.py for max_years."""
        days, rest = np.divmod(time_us - self.origin_us, DAY_US)
        days = ages.whole_days(days, max_years) if self.has_birth else days
        return np.stack([days, rest / DAY_US], axis=-1).astype(np.float32)

    def places(self) -> np.ndarray:
        """Tokens at which times to events are predicted: the last one of its time, and followed up: int64 indices."""
        is_last_K = np.ones(len(self.time_K), bool)
        is_last_K[:-1] = self.time_K[1:] != self.time_K[:-1]
        return np.flatnonzero(is_last_K & (self.time_K < self.end_us))


def make_timeline(record: Record, dictionary: Dictionary, drop_repeats: bool) -> Timeline:
    """The Timeline of a record, without events that the dictionary does not know.

    Args:
      drop_repeats: see Config.
    """
    (static_token, _), (token_E, _, time_E) = dictionary.vocabulary.known(record)
    group_ExG = dictionary.group_VxG[token_E] if len(token_E) else np.zeros((0, 0), np.int64)
    event_X, column_X = np.nonzero((group_ExG >= 0) & (time_E <= record.end_us)[:, None])
    has_birth = record.birth_us != NO_BIRTH
    first_us = int(time_E[0]) if len(time_E) else record.end_us
    kept = _first_of_day(token_E, time_E) if drop_repeats else slice(None)
    return Timeline(
        static_token,
        token_E[kept],
        time_E[kept].copy(),  # a view keeps the whole record in memory
        group_ExG[event_X, column_X],
        time_E[event_X],
        record.birth_us if has_birth else first_us,
        has_birth,
        record.end_us,
    )


def _first_of_day(token_E, time_E):
    """Events that are the first with their token on a day: int64, increasing."""
    pair_Ex2 = np.stack([time_E // DAY_US, token_E.astype(np.int64)], axis=1)
    return np.sort(np.unique(pair_Ex2, axis=0, return_index=True)[1])


def next_times(group_X: np.ndarray, time_X: np.ndarray, place_us_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """When each group next occurs after each of some times: strictly later, since what is simultaneous is known.

    Args:
      group_X, time_X: int64, of all occurrences, in order of time. place_us_N: int64 us, increasing.

    Returns:
      (group_U: those that occur at all; next_NxU: int64 us, NEVER).
    """
    group_U, of_X = np.unique(group_X, return_inverse=True)
    next_NxU, now_U = np.empty((len(place_us_N), len(group_U)), np.int64), np.full(len(group_U), NEVER)
    bound_N = np.searchsorted(time_X, place_us_N, side="right")
    stop = len(time_X)
    for n in reversed(range(len(place_us_N))):
        between = slice(bound_N[n], stop)
        now_U[of_X[between][::-1]] = time_X[between][::-1]  # of several, the earliest is assigned last
        next_NxU[n], stop = now_U, bound_N[n]
    return group_U, next_NxU


class People(packed_contexts.People[Timeline]):
    """The people of a store as timelines."""

    def __init__(
        self, store: RecordStore, dictionary: Dictionary, config: Config, cache_bytes: int | None = None
    ) -> None:
        super().__init__(store, cache_bytes)
        self.dictionary, self.drop_repeats = dictionary, config.drop_repeats
        self.max_age_years = store.max_age_years

    def of(self, record: Record) -> Timeline:
        """The Timeline of a record of the store, changed or not."""
        return make_timeline(record, self.dictionary, self.drop_repeats)


# ---------------------------------------------------------------------------------------- fitted on training people


@dataclasses.dataclass(frozen=True)
class Facts:
    """What training data decide of the network.

    Attributes:
      dictionary, tasks: how many entries, codes whose times are predicted.
      bin_days: when each piece of time begins, days; the first at 0, the last without an end.
      rates: events a day of each task.
      age_days: mean and standard deviation of the ages of tokens.
    """

    dictionary: int
    tasks: int
    bin_days: tuple[float, ...]
    rates: tuple[float, ...]
    age_days: tuple[float, float]


class Fitted(NamedTuple):
    """Facts, the dictionary that they are of, and the task of each group, -1 for none: int64 [G]."""

    facts: Facts
    dictionary: Dictionary
    task_G: np.ndarray

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in order."""
        groups = np.flatnonzero(self.task_G >= 0)
        return [self.dictionary.groups[g] for g in groups[np.argsort(self.task_G[groups])]]

    def next_tasks(self) -> np.ndarray:
        """The task of each token's own code, which is no ancestor of it; -1 for none: int64 [V]."""
        group_VxG = self.dictionary.group_VxG
        own_V = group_VxG.max(axis=1, initial=-1)  # groups are in the order of their counts, and ancestors have more
        return np.where(own_V >= 0, self.task_G[own_V], -1)


def fit(store: RecordStore, config: Config) -> Fitted:
    """What is fitted on the training people of a store of any split.

    Raises:
      ValueError: nobody in training has an event that is followed by one of a task.
    """
    options = dataclasses.replace(config, attention=None, remat="none")
    return _fit(store.records_dir, store.fit_dir, store.digest(), options)


@functools.lru_cache(maxsize=4)  # examples of each split ask for the same
def _fit(records_dir: Path, fit_dir: Path, digest: str, config: Config) -> Fitted:
    del digest
    store = RecordStore(records_dir, fit_dir, "train", pretraining=True)
    dictionary = make_dictionary(vocabulary_lib.of_store(store), config.features)
    if kept := store.family_facts:
        return Fitted(Facts(**{k: _tuples(v) for k, v in kept["facts"].items()}), dictionary, np.array(kept["task_G"]))
    people = People(store, dictionary, config)
    chosen = np.unique(np.linspace(0, len(people) - 1, min(len(people), config.fit_people)).astype(int))
    timelines = [people[int(i)] for i in chosen] if len(people) else []
    task_G = informative(dictionary, timelines, config)
    waits, events_C, exposure_C = _follow(timelines, task_G, config.fit_sites)
    if not len(waits):
        raise ValueError(f"{fit_dir}: no training person has an event that one of a predicted code follows")
    kept_C = events_C > 0
    renamed_C = np.append(np.where(kept_C, np.cumsum(kept_C) - 1, -1), -1)  # the last one: no task stays none
    task_G, rates_C = renamed_C[task_G], events_C[kept_C] / exposure_C[kept_C]
    facts = Facts(
        len(dictionary.names), int(kept_C.sum()), time_bins(waits, config.time_bins), tuple(rates_C.tolist()),
        _age_scale(timelines, store.max_age_years),
    )  # fmt: skip
    return Fitted(facts, dictionary, task_G)


def _tuples(value):
    return tuple(value) if isinstance(value, list) else value


def informative(dictionary: Dictionary, timelines: list[Timeline], config: Config) -> np.ndarray:
    """The groups that are predicted, most informative first: their number or -1, int64 [G].

    Those of the highest P(parent) H(p): H the entropy of a coin with p = P(group) / P(parent), P the share of people
    with a group and the parent its rarest ancestor; everybody, where it has none.
    """
    count_G = np.zeros(len(dictionary.groups))
    for timeline in timelines:
        count_G[np.unique(timeline.group_X)] += 1
    share_G = count_G / max(len(timelines), 1)
    at = {name: g for g, name in enumerate(dictionary.groups)}
    lineage = dict(dictionary.vocabulary.codes.select("code", "ancestors").iter_rows())
    parent_G = np.array(
        [min((share_G[at[a]] for a in lineage.get(name) or () if a in at), default=1.0) for name in dictionary.groups]
    )
    p_G = np.clip(share_G / np.maximum(parent_G, 1e-12), 1e-12, 1.0)
    rest_G = 1.0 - p_G
    score_G = -parent_G * (p_G * np.log(p_G) + rest_G * np.log(np.maximum(rest_G, 1e-12)))
    order = np.lexsort((np.arange(len(at)), -score_G))
    order = order[(count_G[order] > 0) & (share_G[order] >= config.min_task_share)][: config.tasks]
    task_G = np.full(len(at), -1)
    task_G[order] = np.arange(len(order))
    return task_G


def _follow(timelines, task_G, most):
    """(days to events [...], events [C], days of exposure [C]) from up to so many places of each person."""
    n_tasks = int(task_G.max(initial=-1)) + 1
    waits, events_C, exposure_C, total = [np.zeros(0)], np.zeros(n_tasks), np.zeros(n_tasks), 0.0
    for i, timeline in enumerate(timelines):
        places = timeline.places()
        places = np.sort(np.random.default_rng([_SEED, i]).permutation(places)[:most])
        place_us_N = timeline.time_K[places]
        total += float((timeline.end_us - place_us_N).sum()) / DAY_US
        for n, task_U, wait_U in pairs(timeline, place_us_N, task_G):
            waits.append(wait_U)
            events_C[task_U] += 1
            exposure_C[task_U] += wait_U - (timeline.end_us - place_us_N[n]) / DAY_US
    return np.concatenate(waits), events_C, total + exposure_C


def pairs(
    timeline: Timeline, place_us_N: np.ndarray, task_G: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each of some times, (its number, tasks that follow: int64 [U], days to them: float64 [U])."""
    task_X = task_G[timeline.group_X]
    known_X = task_X >= 0
    task_U, next_NxU = next_times(task_X[known_X], timeline.group_time_X[known_X], place_us_N)
    for n, next_U in enumerate(next_NxU):
        follows_U = next_U != NEVER
        yield n, task_U[follows_U], (next_U[follows_U] - place_us_N[n]) / DAY_US


def time_bins(wait_days: np.ndarray, n: int) -> tuple[float, ...]:
    """Where n pieces of time begin, days: at 0 and at quantiles of the times to events; equal ones are one."""
    inner = np.quantile(wait_days, np.arange(1, n) / n).astype(np.float32)
    return (0.0, *np.unique(inner[inner > 0]).tolist())


def _age_scale(timelines, max_years):
    """Mean and standard deviation of the ages of tokens, days."""
    days = np.concatenate([t.ages(t.time_K, max_years).sum(-1, dtype=np.float64) for t in timelines])
    return float(days.mean()), max(float(days.std()), 1.0)
