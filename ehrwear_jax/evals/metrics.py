"""Discrimination and calibration metrics, exact under ties and under row weights.

Every metric is a function of sums that are linear in the row weights. A statistic object
(`BinaryRanking`, `Calibration`, `Concordance`) sorts its rows once and keeps those sums as a sparse
matrix; evaluating B weightings (bootstrap resamples) is then a sparse product with the weights as
lanes. Float64 throughout, so integer weights give exact counts.

Array suffixes: N rows, B weightings, K bins. The functions take `weights` as None, [N] (returns a
float) or [B, N] (returns [B]); the statistic objects take the lane layout [N, B].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

# Weightings processed together: wide enough to vectorise, narrow enough to stay in cache.
LANES = 250


def _vector(values, name: str) -> np.ndarray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name} must be a non-empty vector, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        row = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise ValueError(f"{name} is {vector[row]} in row {row}")
    return vector


def _binary(values, name: str) -> np.ndarray:
    vector = _vector(values, name)
    wrong = (vector != 0) & (vector != 1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{name} is {vector[row]} in row {row}, expected 0 or 1")
    return vector.astype(bool)


def _probability(values, name: str) -> np.ndarray:
    vector = _vector(values, name)
    wrong = (vector < 0) | (vector > 1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{name} is {vector[row]} in row {row}, expected a probability")
    return vector


def _same_length(**vectors: np.ndarray) -> None:
    lengths = {name: len(vector) for name, vector in vectors.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"vectors differ in length: {lengths}")


def _group_rows(row_of: np.ndarray, column: np.ndarray, n_rows: int, n_columns: int):
    """Sparse matrix [n_rows, n_columns] with a one at each (row_of[i], column[i])."""
    order = np.argsort(row_of, kind="stable")
    indptr = np.searchsorted(row_of[order], np.arange(n_rows + 1))
    return sp.csr_array((np.ones(len(order)), column[order], indptr), shape=(n_rows, n_columns))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is zero."""
    nan = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=nan, where=denominator > 0)


class BinaryRanking:
    """AUROC and average precision of one score vector under many weightings.

    Only tie groups that contain a positive enter either metric, so the negatives are summed per
    interval between consecutive positive scores.
    """

    def __init__(self, y_N, score_N):
        y_N, score_N = _binary(y_N, "y"), _vector(score_N, "score")
        _same_length(y=y_N, score=score_N)
        levels = np.unique(score_N[y_N])
        left_N = np.searchsorted(levels, score_N, "left")
        tied_N = left_N < np.searchsorted(levels, score_N, "right")
        # Row blocks: positives per level | negatives per level | negatives between levels.
        n_levels = len(levels)
        row_N = np.where(y_N, left_N, np.where(tied_N, n_levels, 2 * n_levels) + left_N)
        self._n_levels = n_levels
        self._sums = _group_rows(row_N, np.arange(len(y_N)), 3 * n_levels + 1, len(y_N))

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        """{"auroc": [B], "auprc": [B]}, NaN where undefined (one class; no positives)."""
        n = self._n_levels
        sums = self._sums @ weight_NxB
        positive, tied, between = sums[:n], sums[n : 2 * n], sums[2 * n :]
        negatives_B = tied.sum(0) + between.sum(0)
        at_most = np.cumsum(between[:n] + tied, axis=0)
        true_positive = np.cumsum(positive[::-1], axis=0)[::-1]
        predicted_positive = true_positive + negatives_B - (at_most - tied)
        precision = np.divide(
            true_positive,
            predicted_positive,
            out=np.zeros_like(positive),
            where=predicted_positive > 0,
        )
        positives_B = positive.sum(0)
        concordant_B = np.einsum("gb,gb->b", positive, at_most - tied / 2)
        return {
            "auroc": _ratio(concordant_B, positives_B * negatives_B),
            "auprc": _ratio(np.einsum("gb,gb->b", positive, precision), positives_B),
        }


class Calibration:
    """Brier score and expected calibration error of one probability vector."""

    def __init__(self, y_N, p_N, *, n_bins: int = 10, edges=None):
        y_N, p_N = _binary(y_N, "y"), _probability(p_N, "p")
        _same_length(y=y_N, p=p_N)
        self.edges = equal_mass_edges(p_N, n_bins) if edges is None else np.asarray(edges, float)
        gap_N, columns, K = p_N - y_N, np.arange(len(y_N)), len(self.edges) - 1
        by_bin = _group_rows(_bin_of(p_N, self.edges), columns, K, len(y_N))
        squared = sp.csr_array((gap_N**2)[None])
        self._sums = sp.vstack([by_bin.multiply(gap_N[None]), squared], format="csr")

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        """{"brier": [B], "ece": [B]}."""
        total_B = weight_NxB.sum(0)
        sums = self._sums @ weight_NxB
        # sum_k (n_k / n) |mean p - mean y| = sum_k |sum (p - y)| / n
        return {
            "brier": _ratio(sums[-1], total_B),
            "ece": _ratio(np.abs(sums[:-1]).sum(0), total_B),
        }


class Concordance:
    """Harrell's C of one risk vector under many weightings.

    A pair is comparable when the subject with the smaller time had the event; an event and a
    censoring at the same time are comparable (the censored one outlived the event), two events at
    the same time are not. It is concordant when the earlier event has the higher risk; tied risks
    count one half (Harrell, Lee and Mark 1996).

    Events are taken in time order in chunks of about sqrt(#events). All events of a chunk share the
    subjects that outlive the whole chunk: those are summed once per interval between the chunk's
    risks. Pairs inside the chunk's time span are listed one by one. The cost is
    O(N sqrt(#events)) lane operations, with no [events, N] matrix.
    """

    def __init__(self, time_N, event_N, risk_N):
        time_N, event_N = _vector(time_N, "time"), _binary(event_N, "event")
        risk_N = _vector(risk_N, "risk")
        _same_length(time=time_N, event=event_N, risk=risk_N)
        order = np.lexsort((~event_N, time_N))
        time, risk = time_N[order], risk_N[order]
        events = np.flatnonzero(event_N[order])
        # First position (in time order) that outlives each event.
        starts = events[np.searchsorted(time[events], time[events], "right") - 1] + 1
        self._n, self._order = len(time), order
        self._event_rows, self._starts = order[events], starts
        chunk = int(np.clip(np.sqrt(len(events)), 8, 512))
        self._chunks = [
            (order[events[i : i + chunk]], *self._chunk(risk, events[i : i + chunk],
                                                        starts[i : i + chunk]))
            for i in range(0, len(events), chunk)
        ]  # fmt: skip

    def _chunk(self, risk, events, starts):
        end = starts[-1]
        levels, level_of = np.unique(risk[events], return_inverse=True)
        n_levels, later = len(levels), np.arange(end, self._n)
        left = np.searchsorted(levels, risk[end:], "left")
        tied = left < np.searchsorted(levels, risk[end:], "right")
        row = np.where(tied, left, n_levels + left)
        below_all = left < n_levels  # a risk above every event of the chunk is never concordant
        shared = _group_rows(row[below_all], self._order[later[below_all]], 2 * n_levels, self._n)
        lengths = end - starts
        of_event = np.repeat(np.arange(len(events)), lengths)
        offset = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        other = starts[of_event] + offset
        credit = (np.sign(risk[events][of_event] - risk[other]) + 1) / 2
        inside = sp.csr_array((credit, (of_event, self._order[other])), shape=(len(events), self._n))
        return level_of, shared, inside

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        """{"c_index": [B]}, NaN where no pair is comparable."""
        concordant_B = np.zeros(weight_NxB.shape[1])
        for event_rows, level_of, shared, inside in self._chunks:
            tied, between = np.split(shared @ weight_NxB, 2)
            lower = np.cumsum(between + tied, axis=0) - tied / 2
            credit = lower[level_of] + inside @ weight_NxB
            concordant_B += np.einsum("eb,eb->b", weight_NxB[event_rows], credit)
        return {"c_index": _ratio(concordant_B, self._comparable(weight_NxB))}

    def _comparable(self, weight_NxB: np.ndarray) -> np.ndarray:
        if not len(self._starts):
            return np.zeros(weight_NxB.shape[1])
        starts, group = np.unique(self._starts, return_inverse=True)
        segment = np.searchsorted(starts, np.arange(self._n), "right") - 1
        later = segment >= 0
        outlive = _group_rows(segment[later], self._order[later], len(starts), self._n)
        events = _group_rows(group, self._event_rows, len(starts), self._n)
        outlive_sum = np.cumsum((outlive @ weight_NxB)[::-1], axis=0)[::-1]
        return np.einsum("gb,gb->b", events @ weight_NxB, outlive_sum)


Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]


def evaluate(statistic: Statistic, n_rows: int, weights=None) -> dict[str, np.ndarray | float]:
    """A statistic under `weights`: None or [N] gives floats, [B, N] gives [B].

    Raises:
      ValueError: weights of another shape, negative, or not finite.
    """
    weights = np.ones(n_rows) if weights is None else np.asarray(weights)
    if weights.ndim not in (1, 2) or weights.shape[-1] != n_rows:
        raise ValueError(f"weights must be [{n_rows}] or [B, {n_rows}], got {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("weights must be finite and not negative")
    weight_BxN = np.atleast_2d(weights)
    blocks = [
        statistic(np.ascontiguousarray(weight_BxN[i : i + LANES].T, dtype=np.float64))
        for i in range(0, len(weight_BxN), LANES)
    ]
    if not blocks:
        raise ValueError("weights hold no weighting (B = 0)")
    result = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return {name: float(v[0]) for name, v in result.items()} if weights.ndim == 1 else result


def auroc(y_N, score_N, weights=None):
    """Area under the ROC curve: P(score of a positive > score of a negative), ties one half.

    Args:
      y_N: labels, bool or 0/1.
      score_N: any real scores, higher means more likely positive.
      weights: None, [N] or [B, N], not negative.

    Returns:
      float, or float64 [B]; NaN where only one class has weight.
    """
    return evaluate(BinaryRanking(y_N, score_N), len(y_N), weights)["auroc"]


def auprc(y_N, score_N, weights=None):
    """Average precision: sum over thresholds of (recall step) * precision, no interpolation.

    Tied scores form one threshold. Arguments and result as in `auroc`; NaN without positives.
    """
    return evaluate(BinaryRanking(y_N, score_N), len(y_N), weights)["auprc"]


def brier(y_N, p_N, weights=None):
    """Brier score mean (p - y)^2 of the probabilities p_N. Shapes as in `auroc`."""
    return evaluate(Calibration(y_N, p_N, n_bins=1), len(y_N), weights)["brier"]


def ece(y_N, p_N, weights=None, *, n_bins: int = 10, edges=None):
    """Expected calibration error sum_k (n_k / n) |mean p - mean y| over equal-mass bins.

    The bin edges are a property of the predictions alone: they stay fixed over weightings. The
    value is biased upwards in small samples; `ece_floor` gives what perfect calibration would show.

    Args:
      y_N, p_N, weights: as in `brier`.
      n_bins: number of equal-mass bins; ties in p can merge bins.
      edges: [K + 1] increasing edges to use instead.
    """
    statistic = Calibration(y_N, p_N, n_bins=n_bins, edges=edges)
    return evaluate(statistic, len(y_N), weights)["ece"]


def ece_floor(p_N, *, n_bins: int = 10, edges=None, n_draws: int = 200, seed: int = 0) -> float:
    """Mean ECE over labels drawn from Bernoulli(p_N): the ECE that perfect calibration shows."""
    p_N = _probability(p_N, "p")
    edges = equal_mass_edges(p_N, n_bins) if edges is None else np.asarray(edges, float)
    by_bin = _group_rows(_bin_of(p_N, edges), np.arange(len(p_N)), len(edges) - 1, len(p_N))
    rng, total = np.random.default_rng(seed), 0.0
    for start in range(0, n_draws, LANES):
        lanes = min(LANES, n_draws - start)
        gap_NxB = p_N[:, None] - (rng.random((len(p_N), lanes)) < p_N[:, None])
        total += np.abs(by_bin @ gap_NxB).sum() / len(p_N)
    return total / n_draws


def equal_mass_edges(p_N, n_bins: int = 10) -> np.ndarray:
    """Increasing float64 edges [K + 1], K <= n_bins, that cut p_N into bins of equal count."""
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    inner = np.quantile(_vector(p_N, "p"), np.arange(1, n_bins) / n_bins)
    return np.concatenate([[0.0], np.unique(inner[(inner > 0) & (inner < 1)]), [1.0]])


def _bin_of(p_N: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin k holds edges[k] <= p < edges[k + 1]; the outer bins are open-ended."""
    return np.searchsorted(edges[1:-1], p_N, "right")


class ReliabilityCurve(NamedTuple):
    """Binned observed against predicted risk; float64, [K] or [B, K] with weights [B, N]."""

    edges: np.ndarray  # [K + 1]
    weight: np.ndarray  # total weight in the bin
    mean_predicted: np.ndarray  # NaN in an empty bin
    observed: np.ndarray  # event rate, NaN in an empty bin


def reliability_curve(y_N, p_N, weights=None, *, n_bins: int = 10, edges=None) -> ReliabilityCurve:
    """The reliability diagram's points over the bins that `ece` uses. Arguments as in `ece`."""
    y_N, p_N = _binary(y_N, "y"), _probability(p_N, "p")
    _same_length(y=y_N, p=p_N)
    edges = equal_mass_edges(p_N, n_bins) if edges is None else np.asarray(edges, float)
    by_bin = _group_rows(_bin_of(p_N, edges), np.arange(len(p_N)), len(edges) - 1, len(p_N))

    def sums(weight_NxB):
        weight_KxB = by_bin @ weight_NxB
        predicted = _ratio(by_bin @ (weight_NxB * p_N[:, None]), weight_KxB)
        observed = _ratio(by_bin @ (weight_NxB * y_N[:, None]), weight_KxB)
        return {"stacked": np.stack([weight_KxB, predicted, observed]).transpose(2, 0, 1)}

    single = weights is None or np.ndim(weights) == 1
    weight_BxN = np.ones((1, len(p_N))) if weights is None else np.atleast_2d(weights)
    stacked_Bx3xK = evaluate(sums, len(p_N), weight_BxN)["stacked"]
    parts = stacked_Bx3xK[0] if single else stacked_Bx3xK.transpose(1, 0, 2)
    return ReliabilityCurve(edges, *parts)


def concordance_index(time_N, event_N, risk_N, weights=None):
    """Harrell's concordance index; see `Concordance` for the definition.

    Args:
      time_N: follow-up times, any unit.
      event_N: bool or 0/1, 1 = event observed at time_N, 0 = censored.
      risk_N: predicted risk, higher means an earlier event.
      weights: None, [N] or [B, N]; a pair counts with the product of its weights.

    Returns:
      float, or float64 [B]; NaN where no pair is comparable.
    """
    return evaluate(Concordance(time_N, event_N, risk_N), len(time_N), weights)["c_index"]
