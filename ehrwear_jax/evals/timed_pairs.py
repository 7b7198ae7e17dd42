"""Harrell's C, Uno's C and the AUC at several horizons of one risk vector from one pass over the pairs.

The number of pairs (event, someone who outlives it) is some millions in a test fold of thousands. For each event the
weight of those who outlive it with a lower risk is a row of a matrix product, and that matrix serves every one of these
metrics: an AUC at a horizon counts the pairs that the horizon lies between. In single precision the product is exact
as long as weights are whole numbers, which those of the bootstrap are; other weights take double precision. Beyond
MAX_CELLS events times subjects the sorted sums of concordance.py and classification.py are faster and need less.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ehrwear_jax.evals.weighting import binary, kept_rows, ratio, same_length, vector

MAX_CELLS = 2**25
_EVENTS_AT_ONCE = 256
_EXACT_BELOW = 2.0**23  # twice this is where float32 stops to hold every whole number


class TimedPairs:
    """{name: [B]} of each concordance index and {"auc_<horizon>": [B]}; NaN without a comparable pair.

    Definitions as in `Concordance` and `survival.dynamic_auc`, without censoring-dependent factors of its own.
    """

    def __init__(
        self,
        time_N,
        event_N,
        risk_N,
        *,
        event_factor: Mapping[str, np.ndarray],
        case_factor_N=None,
        horizons: Sequence[float] = (),
        factor_N=None,
    ):
        """Args:
        time_N, event_N, risk_N: follow-up (any unit), 0/1, risk (higher = earlier event).
        event_factor: name of a concordance index -> multiplier [N] of the pairs of an event.
        case_factor_N: multiplier of the cases of the AUCs; may be anything where it is not needed.
        horizons: of the AUCs.
        factor_N: fixed multiplier of the row weights, see `weighting`.
        """
        same_length(time=time_N, event=event_N, risk=risk_N)
        n = len(time_N)
        rows, factor = kept_rows(factor_N, n)
        time, event, risk = (np.asarray(v)[rows] for v in (time_N, event_N, risk_N))
        time, event, risk = vector(time, "time"), binary(event, "event"), vector(risk, "risk")
        order = np.lexsort((~event, time))  # events precede the censorings of their time
        self._rows, time, event = rows[order], time[order], event[order]
        factor = factor[order]
        self._factor_Mx1 = None if (factor == 1).all() else factor[:, None]
        self._rank_M = np.unique(risk[order], return_inverse=True)[1].astype(np.int32)
        self._tied = self._rank_M.max() + 1 < len(order)
        self._events = np.flatnonzero(event)
        time_E = time[self._events]
        # First position that is comparable: behind the last event of the same time.
        self._start_E = (self._events[np.searchsorted(time_E, time_E, "right") - 1] + 1) if len(time_E) else time_E
        self._horizons = sorted(float(h) for h in horizons)
        self._names = {h: f"auc_{h:g}" for h in self._horizons}
        self._cuts = np.searchsorted(time, self._horizons, "right")  # those beyond the horizon begin here
        self._case = {h: time_E <= h for h in self._horizons}
        self._factors = {k: np.asarray(v, np.float64)[self._rows][self._events] for k, v in event_factor.items()}
        cases = np.ones(n) if case_factor_N is None else np.asarray(case_factor_N, np.float64)
        self._case_factor_E = cases[self._rows][self._events]

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        weight_MxB = weight_NxB[self._rows]
        if self._factor_Mx1 is not None:
            weight_MxB = weight_MxB * self._factor_Mx1
        n_lanes = weight_MxB.shape[1]
        beyond = np.zeros((len(weight_MxB) + 1, n_lanes))
        np.cumsum(weight_MxB[::-1], axis=0, out=beyond[-2::-1])
        whole = beyond[0].max(initial=0) < _EXACT_BELOW and (weight_MxB == np.rint(weight_MxB)).all()
        numbers_MxB = weight_MxB.astype(np.float32) if whole else weight_MxB
        event_ExB = weight_MxB[self._events]
        credit = dict.fromkeys([*self._factors, *self._names.values()], 0.0)
        for first in range(0, len(self._events), _EVENTS_AT_ONCE):
            these = slice(first, first + _EVENTS_AT_ONCE)
            for name, part_B in self._credits(these, numbers_MxB, event_ExB[these]):
                credit[name] = credit[name] + part_B
        outlive_ExB = beyond[self._start_E] if len(self._events) else np.zeros((0, n_lanes))
        result = {}
        for name, factor_E in self._factors.items():
            comparable_B = np.einsum("e,eb,eb->b", factor_E, event_ExB, outlive_ExB)
            result[name] = ratio(np.broadcast_to(credit[name] / 2, n_lanes), comparable_B)
        for h, cut in zip(self._horizons, self._cuts, strict=True):
            is_case = self._case[h]
            pairs_B = (self._case_factor_E[is_case] @ event_ExB[is_case]) * beyond[cut]
            result[self._names[h]] = ratio(np.broadcast_to(credit[self._names[h]] / 2, n_lanes), pairs_B)
        return result

    def _credits(self, these, numbers_MxB, event_exB):
        """(name, twice the credit [B]) of some events: over all who outlive them, and over those beyond a horizon."""
        rank_e, start_e = self._rank_M[self._events[these]][:, None], self._start_E[these]
        first, rank_m = start_e[0], self._rank_M[start_e[0] :]
        if not len(rank_m):
            return
        twice_exm = (rank_e > rank_m).astype(numbers_MxB.dtype)
        twice_exm += (rank_e >= rank_m) if self._tied else twice_exm
        early = start_e[-1] - first  # the columns before are not comparable to all of these events
        twice_exm[:, :early] *= np.arange(early) >= (start_e - first)[:, None]
        cuts = np.clip(self._cuts - first, 0, len(rank_m))
        sum_exB = np.zeros(event_exB.shape)
        for i in range(len(cuts), -1, -1):
            lo, hi = (cuts[i - 1] if i else 0), (cuts[i] if i < len(cuts) else len(rank_m))
            if hi > lo:
                sum_exB += twice_exm[:, lo:hi] @ numbers_MxB[first + lo : first + hi]
            if i:
                h = self._horizons[i - 1]
                is_case = self._case[h][these]
                if is_case.any():
                    factor_c = self._case_factor_E[these][is_case]
                    yield self._names[h], np.einsum("e,eb,eb->b", factor_c, event_exB[is_case], sum_exB[is_case])
        for name, factor_E in self._factors.items():
            yield name, np.einsum("e,eb,eb->b", factor_E[these], event_exB, sum_exB)
