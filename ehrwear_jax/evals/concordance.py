"""Computes Harrell's and Uno's concordance of one risk vector under many weightings, in O(N log N).

A pair is comparable when the subject with the smaller time had the event; an event and a censoring
at the same time are comparable (the censored one outlived the event), two events at the same time
are not. It is concordant when the earlier event has the higher risk; tied risks count one half
(Harrell, Lee and Mark 1996). Uno's C (Uno et al. 2011) weighs each pair by 1 / G(t_i)^2 of the
earlier event, G the survival function of the censoring, and stops at a time tau. Somebody with a competing event
outlives every event, also later ones (Wolbers et al., Epidemiology 20, 2009; Biostatistics 15, 2014).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ehrwear_jax.evals.survival import Curve, check_codes, inverse_probability
from ehrwear_jax.evals.weighting import Statistic, binary, evaluate, group_rows, kept_rows, ratio, same_length, vector


class Concordance:
    """{"c_index": [B]} or, for several weights of the events, one C under each of their names.

    Rows are taken in time order and split as a merge sort splits them: over the levels of block size
    2^k every pair (event in a left half, subject in the right half beside it) is met once. At a
    level the subjects are summed per interval between the risks of the events, so it costs one
    sparse product and one cumulative sum over at most N / 2 rows. Pairs inside the smallest blocks
    are listed.
    """

    _SMALLEST_LEVEL = 6  # blocks of 64: the fastest where a fifth of the rows are events

    def __init__(
        self,
        time_N: npt.ArrayLike,
        event_N: npt.ArrayLike,
        risk_N: npt.ArrayLike,
        *,
        event_factor: Mapping[str, np.ndarray] | None = None,
        factor_N: npt.ArrayLike | None = None,
        outlives_N: npt.ArrayLike | None = None,
    ) -> None:
        """Args:
        time_N, event_N, risk_N: follow-up (any unit), 0/1, risk (higher = earlier event).
        event_factor: name of the metric -> multiplier [N] of an event's pairs, zero or positive alike for
          equal times; default one metric "c_index" with ones.
        factor_N: fixed multiplier of the row weights, see `weighting`.
        outlives_N: multiplier [N] of a pair by the subject that outlives the event, 0 for none; default ones.
        """
        n = len(np.asarray(time_N))
        rows, factor = kept_rows(factor_N, n)
        time, event, risk = (np.asarray(v)[rows] for v in (time_N, event_N, risk_N))
        time, event, risk = vector(time, "time"), binary(event, "event"), vector(risk, "risk")
        same_length(time=time_N, event=event_N, risk=risk_N)
        # Ascending risk among events of one time: their pairs then add nothing but half ties.
        order = np.lexsort((risk, ~event, time))
        self._n, self._rows, self._factor = n, rows[order], factor[order]
        self._outlives = (np.ones(n) if outlives_N is None else np.asarray(outlives_N, np.float64))[self._rows]
        time, event, risk = time[order], event[order], risk[order]
        factors = {"c_index": np.ones(n)} if event_factor is None else event_factor
        self._names = list(factors)
        event_FxM = np.stack([np.asarray(v, np.float64)[self._rows] for v in factors.values()]) * event
        self._used = event_FxM.any(0)
        rank = np.unique(risk, return_inverse=True)[1].astype(np.int64)
        self._pairs = self._listed_pairs(rank, event_FxM)
        top = int(np.ceil(np.log2(max(len(order), 2))))
        levels = [self._level(rank, event_FxM, level) for level in range(self._SMALLEST_LEVEL, top)]
        self._levels = [level for level in levels if level is not None]
        self._ties = self._tied_events(time, rank, event_FxM)
        self._comparable_sums = self._comparable(time, event_FxM)

    def _sums(self, row_of, positions, n_rows, multiplier=None):
        values = self._factor[positions] if multiplier is None else self._factor[positions] * multiplier
        return group_rows(row_of, self._rows[positions], n_rows, self._n, values)

    def _listed_pairs(self, rank, event_FxM):
        """Credit of each event over the later rows of its smallest block, and the events."""
        size, n = 2**self._SMALLEST_LEVEL, len(rank)
        used = np.flatnonzero(self._used)
        lengths = np.minimum((used // size + 1) * size, n) - used - 1
        event = np.repeat(np.arange(len(used)), lengths)
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        other = used[event] + 1 + within
        credit = (np.sign(rank[used][event] - rank[other]) + 1) / 2
        event, other, credit = (v[credit > 0] for v in (event, other, credit))
        lower = self._sums(event, other, len(used), credit * self._outlives[other])
        return lower, [self._sums(np.arange(len(used)), used, len(used), f[used]) for f in event_FxM]

    def _level(self, rank, event_FxM, level: int):
        """Sums of right halves between the risks of the events in the left half, and those events."""
        position = np.arange(len(rank))
        block, is_right = position >> (level + 1), (position >> level) & 1 == 1
        left = np.flatnonzero(self._used & ~is_right)
        right = np.flatnonzero(is_right)
        if not (len(left) and len(right)):
            return None
        # A cell is one risk among the events of one block; cells are sorted by block, then risk.
        n_ranks = int(rank.max()) + 1
        cells, cell_of = np.unique(block[left] * n_ranks + rank[left], return_inverse=True)
        cell_block = np.append(cells // n_ranks, -1)
        key = block[right] * n_ranks + rank[right]
        # Lower than cell `above` and all later ones of the block; equal to cell `at` if tied.
        above, at = np.searchsorted(cells, key, "right"), np.searchsorted(cells, key, "left")
        counted, tied = cell_block[above] == block[right], above > at
        if not (counted.any() or tied.any()):
            return None
        outlives = self._outlives[right]
        lower = self._sums(above[counted], right[counted], len(cells), outlives[counted])
        blocks, first, block_of = np.unique(cell_block[:-1], return_index=True, return_inverse=True)
        tied_cells, tied_of = np.unique(at[tied], return_inverse=True)
        tied_sums = self._sums(tied_of, right[tied], len(tied_cells), outlives[tied]) if len(tied_cells) else None
        events = [
            (
                self._sums(cell_of, left, len(cells), factor_M[left]),
                self._sums(block_of[cell_of], left, len(blocks), factor_M[left]),
            )
            for factor_M in event_FxM
        ]
        return lower, first, tied_cells, tied_sums, events

    def _tied_events(self, time, rank, event_FxM):
        """Groups of events at one time with one risk: what the levels count and should not."""
        used = np.flatnonzero(self._used)
        same = np.zeros(len(used), bool)
        if len(used) > 1:
            same[1:] = (time[used][1:] == time[used][:-1]) & (rank[used][1:] == rank[used][:-1])
        tied = same | np.append(same[1:], False)
        members = used[tied]
        group = np.cumsum(~same[tied]) - 1
        n_groups = int(group[-1]) + 1 if len(group) else 0
        rows = self._sums(np.arange(len(members)), members, len(members))
        first = np.flatnonzero(~same[tied])
        factors, outlives = event_FxM[:, members], self._outlives[members]
        if (factors == factors[:, first][:, group]).all() and (outlives == 1).all():
            return _EqualTies(self._sums(group, members, n_groups), rows, first, factors[:, first])
        return _UnequalTies(rows, np.append(first[1:], len(members))[group] - 1, factors, outlives)

    def _comparable(self, time, event_FxM):
        """Events by time, and those who outlive each such time, counted between those times."""
        used = np.flatnonzero(self._used)
        # Events precede censorings of the same time, so all that follows the last event outlives it.
        last = np.searchsorted(time[used], time[used], "right") - 1
        starts, group = np.unique(used[last] + 1, return_inverse=True)
        segment = np.searchsorted(starts, np.arange(len(time)), "right") - 1
        later = np.flatnonzero(segment >= 0)
        outlive = self._sums(segment[later], later, len(starts), self._outlives[later])
        return outlive, [self._sums(group, used, len(starts), f[used]) for f in event_FxM]

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        """{name: [B]}, NaN where no pair is comparable."""
        return {name: ratio(*both) for name, both in self.pairs(weight_NxB).items()}

    def pairs(self, weight_NxB: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{name: (weight of the concordant pairs [B], of the comparable ones [B])}."""
        concordant = [np.zeros(weight_NxB.shape[1]) for _ in self._names]
        lower_sums, events = self._pairs
        credit = lower_sums @ weight_NxB
        for i, by_event in enumerate(events):
            concordant[i] += np.einsum("eb,eb->b", by_event @ weight_NxB, credit)
        for lower_sums, first, tied_cells, tied_sums, events in self._levels:
            lower = lower_sums @ weight_NxB
            np.cumsum(lower, axis=0, out=lower)
            # The running sum goes on over the blocks: what earlier blocks left in it is taken off.
            before = lower[first[1:] - 1]
            tied = None if tied_sums is None else tied_sums @ weight_NxB / 2
            for i, (by_cell, by_block) in enumerate(events):
                event = by_cell @ weight_NxB
                concordant[i] += np.einsum("eb,eb->b", event, lower)
                if len(first) > 1:
                    concordant[i] -= np.einsum("eb,eb->b", (by_block @ weight_NxB)[1:], before)
                if tied is not None:
                    concordant[i] += np.einsum("eb,eb->b", event[tied_cells], tied)
        outlive, by_time = self._comparable_sums
        outlive_sum = np.cumsum((outlive @ weight_NxB)[::-1], axis=0)[::-1]
        tied_FxB = self._ties(weight_NxB)
        return {
            name: (concordant[i] - tied_FxB[i], np.einsum("gb,gb->b", by_time[i] @ weight_NxB, outlive_sum))
            for i, name in enumerate(self._names)
        }


@dataclasses.dataclass(frozen=True)
class _EqualTies:
    """Half the weight of the pairs within groups of tied events that share a factor: [F, B].

    Attributes:
      group_sums: sparse, rows to groups. rows: sparse, rows to the G members of all groups, group by group.
      first: where each group begins among the members. factor_FxG: of each group.
    """

    group_sums: sp.csr_array
    rows: sp.csr_array
    first: np.ndarray
    factor_FxG: np.ndarray

    def __call__(self, weight_NxB: np.ndarray) -> np.ndarray:
        if not len(self.first):
            return np.zeros((len(self.factor_FxG), weight_NxB.shape[1]))
        squares = (self.rows @ weight_NxB) ** 2
        pairs = ((self.group_sums @ weight_NxB) ** 2 - np.add.reduceat(squares, self.first, axis=0)) / 4
        return self.factor_FxG @ pairs


@dataclasses.dataclass(frozen=True)
class _UnequalTies:
    """The same where factors differ within a group: a pair counts with the factor of the member met first.

    Attributes:
      rows: as in _EqualTies. last_M: of each member, the last one of its group.
      factor_FxM, outlives_M: multipliers of a member as the event, and as the one who outlives.
    """

    rows: sp.csr_array
    last_M: np.ndarray
    factor_FxM: np.ndarray
    outlives_M: np.ndarray

    def __call__(self, weight_NxB: np.ndarray) -> np.ndarray:
        weight_MxB = self.rows @ weight_NxB
        so_far = np.cumsum(weight_MxB * self.outlives_M[:, None], axis=0)
        return self.factor_FxM @ (weight_MxB * (so_far[self.last_M] - so_far)) / 2


def concordance_index(
    time_N: npt.ArrayLike, event_N: npt.ArrayLike, risk_N: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float | np.ndarray:
    """Harrell's concordance index; see the module's docstring for the definition.

    Args:
      time_N: follow-up times, any unit.
      event_N: bool or 0/1, 1 = event observed at time_N, 0 = censored.
      risk_N: predicted risk, higher means an earlier event.
      weights: None, [N] or [B, N]; a pair counts with the product of its weights.

    Returns:
      float, or float64 [B]; NaN where no pair is comparable.
    """
    return evaluate(Concordance(time_N, event_N, risk_N), len(np.asarray(time_N)), weights)["c_index"]


def harrell_c(
    time_N: npt.ArrayLike, event_N: npt.ArrayLike, risk_N: npt.ArrayLike, *, factor_N: npt.ArrayLike | None = None
) -> Statistic:
    """Harrell's C: {"c_index": [B]}; arguments as in `survival.dynamic_auc`.

    Someone with a competing event counts as outliving every event (Wolbers et al. 2009).
    """
    time_N, event_N = check_codes(time_N, event_N)
    ones = {"c_index": np.ones(len(time_N))}
    return _concordance((time_N, event_N), risk_N, ones, ones, factor_N)


def uno_c(
    censoring: Curve,
    time_N: npt.ArrayLike,
    event_N: npt.ArrayLike,
    risk_N: npt.ArrayLike,
    *,
    tau: float = np.inf,
    factor_N: npt.ArrayLike | None = None,
) -> Statistic:
    """Harrell's C and Uno's C truncated at tau, from one pass: {"c_index": [B], "uno_c": [B]}.

    Events at or after tau enter Uno's C only as those who outlive earlier ones. An event at t_i weighs
    1 / G(t_i)^2 in pairs with those followed beyond it, and 1 / (G(t_i) G(t_j)) in pairs with a competing
    event at t_j before it (Wolbers et al. 2014). Arguments as in `survival.dynamic_auc`.

    Raises:
      ValueError: G is zero at an event before tau.
    """
    time_N, event_N = check_codes(time_N, event_N)
    inverse_N = inverse_probability(censoring, time_N, (event_N > 0) & (time_N < tau))
    once, ones_N = inverse_N * (event_N == 1), np.ones(len(time_N))
    beyond, before = {"c_index": ones_N, "uno_c": once**2}, {"c_index": ones_N, "uno_c": inverse_N}
    return _concordance((time_N, event_N), risk_N, beyond, before, factor_N)


def _concordance(
    labels: tuple[np.ndarray, np.ndarray],
    risk_N: npt.ArrayLike,
    beyond: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray],
    factor_N: npt.ArrayLike | None,
) -> Statistic:
    """Concordance of events with those followed beyond them and with competing events before them.

    Args:
      labels: (time [N], code [N]).
      beyond: metric -> factor of an event's pairs of the first kind.
      before: metric -> factor of an event, and of a competing event, in a pair of the second kind.
    """
    time_N, code_N = labels
    later = Concordance(time_N, code_N == 1, risk_N, event_factor=beyond, factor_N=factor_N)
    rows, factor = kept_rows(factor_N, len(time_N))
    ended = np.zeros(len(time_N))
    ended[rows] = factor * (code_N[rows] > 0)
    if not (code_N[ended > 0] == 2).any():
        return later
    # Turned round, those with an earlier competing event outlive. Twice the rank keeps ties out: they are in `later`.
    turned_N = -2.0 * np.unique(time_N, return_inverse=True)[1] + (code_N == 1)
    turned_N -= turned_N.min()
    earlier = [
        Concordance(turned_N, code_N == 1, risk_N, event_factor={name: factor_M}, factor_N=ended,
                    outlives_N=factor_M * (code_N == 2))
        for name, factor_M in before.items()
    ]  # fmt: skip

    def statistic(weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        sums = later.pairs(weight_NxB)
        for part in earlier:
            for name, (concordant, comparable) in part.pairs(weight_NxB).items():
                sums[name] = sums[name][0] + concordant, sums[name][1] + comparable
        return {name: ratio(*both) for name, both in sums.items()}

    return statistic
