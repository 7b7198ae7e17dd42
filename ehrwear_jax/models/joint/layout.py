"""Lays out the contexts of rows one behind the other: what each shows, at what times, and where it predicts.

Work is done for all contexts of several rows at once: a call of numpy costs as much for one short context as for
hundreds. What must look into a person's own arrays is done by person.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.signals import local_time
from ehrwear_jax.models.joint import context
from ehrwear_jax.models.joint.context import Contents
from ehrwear_jax.models.joint.patient import Patient

if TYPE_CHECKING:
    from ehrwear_jax.models.joint.examples import People

_NO_LIMIT = np.iinfo(np.int64).max


@dataclasses.dataclass
class Contexts:
    """All contexts of some rows of a batch while these are filled; what the terms' targets are made from.

    Axes: B rows; C contexts of all of them; N tokens, M windows, Q queries and E events at which predictions are made,
    of all contexts, one behind the other without padding; R places of predictions: of each context its events, then its
    queries. An array of bounds [C + 1] says where the part of each context begins, and where the last one ends. A row
    has the entries of its contexts from its first slot on: `put`, `part`, `gathered` and `slots` go from one to the
    other, and `in_row` counts positions from the beginning of a row, as a batch tells them.

    Attributes:
      people: examples.People. patients, positions: whose contexts they are, at which position in the split.
      row_bound: int64 [B + 1], which contexts are of each row. row_C: the row of each. phase_C: of its row, in [0, 1),
        see context.quotas.
      bound_N, bound_M, bound_Q, bound_E: bounds. of_N, of_Q: context of each token, of each query.
      n_static_C: static tokens, which come first in a context. anchor_C, origin_C: int64 us, when kernel times begin,
        and ages.
      is_static_N, is_wear_N: bool. time_us_N: int64; a static token has the time of the first of the others.
      token_N: tokens, after some were hidden. value_N: float32, standardised values, NaN: none, or hidden.
      windows: of each context the patient's windows that it shows. shown_MxF: their summaries as shown, noise apart.
      query_us_Q: times of the queries, sorted in a context. stop_Q: the first token that a query does not know.
      event_E: tokens at which predictions are made, increasing.
      rngs: generators of further draws, by context; not set at inference.
      hides_C: contexts in which something is hidden.
    """

    people: "People"
    patients: list[Patient]
    positions: list[int]
    row_bound: np.ndarray
    row_C: np.ndarray
    phase_C: np.ndarray
    bound_N: np.ndarray
    bound_M: np.ndarray
    bound_Q: np.ndarray
    of_N: np.ndarray
    of_Q: np.ndarray
    n_static_C: np.ndarray
    anchor_C: np.ndarray
    origin_C: np.ndarray
    is_static_N: np.ndarray
    is_wear_N: np.ndarray
    time_us_N: np.ndarray
    token_N: np.ndarray
    value_N: np.ndarray
    windows: list[np.ndarray]
    query_us_Q: np.ndarray
    stop_Q: np.ndarray
    shown_MxF: np.ndarray = dataclasses.field(init=False)
    event_E: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    bound_E: np.ndarray = dataclasses.field(init=False)
    rngs: list[np.random.Generator] = dataclasses.field(init=False)
    hides_C: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.bound_E = np.zeros(len(self.patients) + 1, np.int64)
        self.hides_C = np.zeros(len(self.patients), bool)

    def __len__(self) -> int:
        return len(self.patients)

    @functools.cached_property
    def timed_N(self) -> np.ndarray:
        """Its timed EHR events among the tokens: int64, increasing."""
        return np.flatnonzero(~(self.is_static_N | self.is_wear_N))

    @functools.cached_property
    def timed_bound(self) -> np.ndarray:
        """Bounds of timed_N."""
        return np.searchsorted(self.timed_N, self.bound_N)

    # ------------------------------------------------------------------------------------- places in the batch

    def in_row(self, bounds: np.ndarray) -> np.ndarray:
        """At which place of its row the part of each context begins: int64 [C]."""
        return bounds[:-1] - bounds[self.row_bound[self.row_C]]

    def _parts(self, field_BxX, bounds):
        """(view of the entries that contexts have in a row, where these begin, where they end) of each row."""
        at = bounds[self.row_bound].tolist()
        return [(row[: b - a], a, b) for row, a, b in zip(field_BxX, at, at[1:], strict=False)]

    def put(self, field_BxX: np.ndarray, bounds: np.ndarray, value_X: np.ndarray) -> None:
        """Writes entries of all contexts into their rows, what is behind them stays."""
        for part, a, b in self._parts(field_BxX, bounds):
            part[...] = value_X[a:b]

    def gathered(self, field_BxX: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """The inverse of `put`: the entries of all contexts, one behind the other; a view where there is one row."""
        parts = [part for part, _, _ in self._parts(field_BxX, bounds)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def part(self, field_BxX: np.ndarray, bounds: np.ndarray, k: int) -> np.ndarray:
        """A view of the entries of context k in its row."""
        r = int(self.row_C[k])
        first, a, b = (int(bounds[at]) for at in (self.row_bound[r], k, k + 1))
        return field_BxX[r, a - first : b - first]

    def slots(self, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, place in it) of the entries of all contexts: int64 [X] both."""
        at = bounds[self.row_bound]
        row_X = np.repeat(np.arange(len(at) - 1), np.diff(at))
        return row_X, np.arange(len(row_X)) - at[row_X]

    @functools.cached_property
    def query_slots(self) -> tuple[np.ndarray, np.ndarray]:
        """`slots` of the queries."""
        return self.slots(self.bound_Q)

    @functools.cached_property
    def row_begin_C(self) -> np.ndarray:
        """The first token of the row of each context: positions in a row count from it."""
        return self.bound_N[self.row_bound[self.row_C]]

    @functools.cached_property
    def worn(self) -> list[tuple[int, np.ndarray, tuple[int, int], tuple[int, int]]]:
        """(place, windows, bounds of them, bounds of its queries) of each context that shows windows."""
        w, q = self.bound_M.tolist(), self.bound_Q.tolist()
        return [
            (k, windows, (w[k], w[k + 1]), (q[k], q[k + 1])) for k, windows in enumerate(self.windows) if len(windows)
        ]

    def quotas(self, capacity: int) -> np.ndarray:
        """context.quotas of the rows: int64 [C]."""
        begin_C, n_C = self.in_row(self.bound_N), np.diff(self.bound_N)
        return context.quotas(capacity, begin_C, begin_C + n_C, self.people.row_tokens, self.phase_C)

    # ------------------------------------------------------------------------------------- places of predictions

    @functools.cached_property
    def bound_R(self) -> np.ndarray:
        """Bounds of the places of predictions; read after events were chosen, as is all that follows."""
        return self.bound_E + self.bound_Q

    @functools.cached_property
    def of_R(self) -> np.ndarray:
        """Context of each place of predictions."""
        return np.repeat(np.arange(len(self)), np.diff(self.bound_R))

    @functools.cached_property
    def at_events_and_queries(self) -> tuple[tuple[str, np.ndarray, np.ndarray], tuple[str, np.ndarray, np.ndarray]]:
        """(name of the fields, bounds of their entries, which of the places of predictions) of the two kinds."""
        of_E = np.repeat(np.arange(len(self)), np.diff(self.bound_E))
        event_R = np.arange(len(self.event_E)) + self.bound_Q[of_E]
        query_R = np.arange(len(self.query_us_Q)) + self.bound_E[self.of_Q + 1]
        return ("event", self.bound_E, event_R), ("query", self.bound_Q, query_R)

    @functools.cached_property
    def times_us_R(self) -> np.ndarray:
        """When predictions are made."""
        (_, _, event_R), (_, _, query_R) = self.at_events_and_queries
        times_us = np.empty(len(event_R) + len(query_R), np.int64)
        times_us[event_R], times_us[query_R] = self.time_us_N[self.event_E], self.query_us_Q
        return times_us

    @functools.cached_property
    def stop_R(self) -> np.ndarray:
        """The first token that is not known at each prediction."""
        (_, _, event_R), (_, _, query_R) = self.at_events_and_queries
        stop = np.empty(len(event_R) + len(query_R), np.int64)
        stop[event_R], stop[query_R] = self.event_E + 1, self.stop_Q
        return stop

    @functools.cached_property
    def future_token_R(self) -> np.ndarray:
        """The patient's first token at the next distinct time, PAD where there is none."""
        return self.by_person(
            self.bound_R,
            lambda p, part: p.next_token_K[p.event_time_K.searchsorted(self.times_us_R[part], "right")],
            np.int32,
        )

    def by_person(self, bounds: np.ndarray, find: Callable[[Patient, slice], np.ndarray], dtype: type) -> np.ndarray:
        """find(patient, their part of what the bounds divide) of all contexts, one behind the other."""
        at = bounds.tolist()
        out = np.empty(at[-1], dtype)
        for p, a, b in zip(self.patients, at, at[1:], strict=False):
            if b > a:
                out[a:b] = find(p, slice(a, b))
        return out

    def begins_at(self, time_us: np.ndarray, bounds: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
        """Where the timed tokens of each context begin that come after (side="right") or at times: int64 [...].

        Args:
          time_us: [X] or [X, S], of which `bounds` say what belongs to a context.
        """
        at, tokens = bounds.tolist(), self.bound_N.tolist()
        firsts = (self.bound_N[:-1] + self.n_static_C).tolist()
        out = np.empty(time_us.shape, np.int64)
        for first, end, a, b in zip(firsts, tokens[1:], at, at[1:], strict=False):
            if b > a:
                out[a:b] = self.time_us_N[first:end].searchsorted(time_us[a:b], side)
                out[a:b] += first
        return out


def lay_out(people: "People", rows: Sequence[Contents]) -> Contexts:
    """The contexts of some rows, with nothing hidden and no event chosen."""
    shown, query_us = [x for row in rows for x in row.shown], [x for row in rows for x in row.query_us]
    n_contexts_B = [len(row.shown) for row in rows]
    row_C = np.repeat(np.arange(len(rows)), n_contexts_B)
    parts = [p.part(span.positions(p)) for p, span, _ in shown]
    begin_Cx2 = np.array([_begin(*x) for x in zip(shown, query_us, strict=True)], np.int64).reshape(-1, 2)
    origin_C, anchor_C = begin_Cx2.T
    n_static_C = np.array([span.n_static for _, span, _ in shown], np.int64)
    bound_N = _bounds([span.n_tokens for _, span, _ in shown])
    bound_M, bound_Q = _bounds([span.n_windows for _, span, _ in shown]), _bounds([len(q) for q in query_us])
    context_C = np.arange(len(shown))
    of_N = np.repeat(context_C, np.diff(bound_N))
    n = len(of_N)
    is_static_N = np.arange(n) < (bound_N[:-1] + n_static_C)[of_N]
    timed_N = ~is_static_N
    is_wear_N, time_us_N = np.zeros(n, bool), anchor_C[of_N]
    token_N, value_N = np.empty(n, np.int32), np.empty(n, np.float32)
    if shown:
        time_us_N[timed_N], is_wear_N[timed_N], token_N[timed_N], value_N[timed_N] = (
            np.concatenate(x) for x in zip(*parts, strict=True)
        )
        token_N[is_static_N] = np.concatenate([p.static_token_S[: span.n_static] for p, span, _ in shown])
        value_N[is_static_N] = np.concatenate([p.static_value_S[: span.n_static] for p, span, _ in shown])
    c = Contexts(
        people, [p for p, _, _ in shown], [i for _, _, i in shown],
        _bounds(n_contexts_B), row_C, np.array([row.phase for row in rows])[row_C], bound_N, bound_M, bound_Q, of_N,
        np.repeat(context_C, np.diff(bound_Q)), n_static_C, anchor_C, origin_C, is_static_N, is_wear_N,
        time_us_N, token_N, value_N,
        [p.window_ref[s.n_windows_out : s.n_windows_out + s.n_windows] for p, s, _ in shown],
        np.concatenate([np.zeros(0, np.int64), *query_us]), np.zeros(0, np.int64),
    )  # fmt: skip
    c.stop_Q = c.begins_at(c.query_us_Q, bound_Q, "right")
    return c


def _bounds(counts):
    bounds = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=bounds[1:])
    return bounds


def _begin(shown, query_us):
    """(origin of ages, when kernel times begin)."""
    p, span, _ = shown
    # without a birth date, the first record may be yet to come: when it comes, or that none does, must not show
    origin_us = p.origin_us if p.has_birth or span.stop else int(query_us.min())
    return origin_us, int(p.time_N[span.start]) if span.stop > span.start else origin_us


def ages(
    patients: Sequence[Patient], of_X: np.ndarray, time_us_X: np.ndarray, origin_us_C: np.ndarray
) -> np.ndarray:
    """float32 [X, 2]: (whole days, fraction of a day) from an origin to each time, both on the local clock.

    Whole days of who has a birth date stop at the highest age that is told.

    Args:
      patients: C of them. of_X: whose each time is. time_us_X, origin_us_C: int64 us.
    """
    if any(p.utc_offset_M is not None for p in patients):
        time_us_X, origin_us_C = time_us_X.copy(), origin_us_C.copy()
        for k, p in enumerate(patients):
            if p.utc_offset_M is not None:
                mine = np.flatnonzero(of_X == k)
                time_us_X[mine] += local_time.latest(p.window_end_M, p.utc_offset_M, time_us_X[mine])
                origin_us_C[k] += local_time.latest(p.window_end_M, p.utc_offset_M, origin_us_C[k : k + 1])[0]
    days, rest = np.divmod(time_us_X - origin_us_C[of_X], DAY_US)
    limits = [p.max_days for p in patients]
    if any(limit is not None for limit in limits):
        limit_C = np.array([_NO_LIMIT if limit is None else limit for limit in limits], np.int64)
        days = np.minimum(days, limit_C[of_X])
    out = np.empty((len(of_X), 2), np.float32)
    out[:, 0], out[:, 1] = days, rest / DAY_US
    return out
