"""Computes the Brier score, beside that of the prevalence, and the expected calibration error, under row weights."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ehrwear_jax.evals.weighting import (
    LANES,
    binary,
    evaluate,
    group_rows,
    kept_rows,
    probability,
    ratio,
    same_length,
    vector,
)

# Prefix of the signed gaps among the metrics of `Calibration`.
GAP = "gap_"
_ROWS_AT_ONCE = 2**16


class Calibration:
    """Brier score with its null and skill, and expected calibration error, of one probability vector.

    `edges`: fixed bin edges, the predictions' own `equal_mass_edges` by default. With
    `gaps=True` also the signed gap of every bin, "gap_0" .. "gap_<K-1>": its sum over the bin of
    p - y, divided by the number of rows, as `corrected_ece` wants them; and "mean_gap", mean
    prediction less prevalence (calibration in the large).
    """

    def __init__(
        self,
        y_N: npt.ArrayLike,
        p_N: npt.ArrayLike,
        *,
        n_bins: int = 10,
        edges: npt.ArrayLike | None = None,
        factor_N: npt.ArrayLike | None = None,
        gaps: bool = False,
    ) -> None:
        n_rows = same_length(y=y_N, p=p_N)
        rows, factor_N = kept_rows(factor_N, n_rows)
        y_N, p_N = binary(np.asarray(y_N)[rows], "y"), probability(np.asarray(p_N)[rows], "p")
        self.edges = equal_mass_edges(p_N, n_bins) if edges is None else np.asarray(edges, float)
        self._gaps, gap_N, n_bins = gaps, p_N - y_N, len(self.edges) - 1
        by_bin = group_rows(bin_of(p_N, self.edges), rows, n_bins, n_rows, factor_N * gap_N)
        one_bin = np.zeros(len(rows), np.int64)
        squared = group_rows(one_bin, rows, 1, n_rows, factor_N * gap_N**2)
        total = group_rows(one_bin, rows, 1, n_rows, factor_N)
        positive = group_rows(one_bin, rows, 1, n_rows, factor_N * y_N)
        self._sums = sp.vstack([by_bin, squared, total, positive], format="csr")

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        """{"brier", "brier_null", "brier_skill", "ece"}, [B] each, and the gaps if asked for.

        brier_null is that of the prevalence for everybody, p (1 - p), of the rows themselves; brier_skill (the scaled
        Brier score) is 1 - brier / brier_null: 0 for the prevalence, 1 for perfect predictions, NaN with one class.
        """
        *gap_KxB, squared_B, total_B, positive_B = self._sums @ weight_NxB
        prevalence_B, brier_B = ratio(positive_B, total_B), ratio(squared_B, total_B)
        null_B = prevalence_B * (1 - prevalence_B)
        # sum_k (n_k / n) |mean p - mean y| = sum_k |sum (p - y)| / n
        result = {"brier": brier_B, "ece": ratio(np.abs(gap_KxB).sum(0), total_B)}
        result |= {"brier_null": null_B, "brier_skill": 1 - ratio(brier_B, null_B)}
        if self._gaps:
            result |= {f"{GAP}{k}": ratio(gap_B, total_B) for k, gap_B in enumerate(gap_KxB)}
            result["mean_gap"] = ratio(sum(gap_KxB), total_B)
        return result


def brier(y_N: npt.ArrayLike, p_N: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float | np.ndarray:
    """Brier score mean (p - y)^2 of the probabilities p_N. Shapes as in `auroc`."""
    return evaluate(Calibration(y_N, p_N, n_bins=1), len(np.asarray(y_N)), weights)["brier"]


def ece(
    y_N: npt.ArrayLike,
    p_N: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    n_bins: int = 10,
    edges: npt.ArrayLike | None = None,
) -> float | np.ndarray:
    """Expected calibration error sum_k (n_k / n) |mean p - mean y| over equal-mass bins.

    The bin edges are a property of the predictions alone: they stay fixed over weightings. The
    value is biased upwards in small samples; `ece_floor` gives the value of perfect calibration.

    Args:
      y_N, p_N, weights: as in `brier`.
      n_bins: number of equal-mass bins; ties in p can merge bins.
      edges: [K + 1] increasing edges to use instead.
    """
    statistic = Calibration(y_N, p_N, n_bins=n_bins, edges=edges)
    return evaluate(statistic, len(np.asarray(y_N)), weights)["ece"]


def ece_floor(p_N: npt.ArrayLike, *, n_bins: int = 10, n_draws: int = 200, seed: int = 0) -> float:
    """Mean ECE over labels drawn from Bernoulli(p_N): the expected ECE under perfect calibration."""
    p_N = probability(p_N, "p")
    edges = equal_mass_edges(p_N, n_bins)
    by_bin = group_rows(bin_of(p_N, edges), np.arange(len(p_N)), len(edges) - 1, len(p_N))
    rng, total = np.random.default_rng(seed), 0.0
    for start in range(0, n_draws, LANES):
        lanes = min(LANES, n_draws - start)
        gap_KxB = np.zeros((by_bin.shape[0], lanes))
        for rows in (slice(begin, begin + _ROWS_AT_ONCE) for begin in range(0, len(p_N), _ROWS_AT_ONCE)):
            some = p_N[rows, None]
            gap_KxB += by_bin[:, rows] @ (some - (rng.random((len(some), lanes)) < some))
        total += np.abs(gap_KxB).sum() / len(p_N)
    return total / n_draws


class CorrectedECE(NamedTuple):
    """Calibration error without the part that noise adds; lo = 0 is compatible with calibration."""

    value: float
    lo: float
    hi: float


def corrected_ece(gap_K: npt.ArrayLike, gap_BxK: npt.ArrayLike, level: float = 0.95) -> CorrectedECE:
    """The calibration error under which the observed one would be usual, and its interval.

    Every bin's noise can only add to the sum of absolute gaps: the plain value is biased upwards,
    its bootstrap doubly, and a percentile interval covers too rarely. Instead the true error e is
    varied: gaps of sum e, in the proportions observed (each less its variance), plus the bootstrap's
    deviations, give a distribution of what would be observed. `value` is the e whose mean equals
    the observed error, and the interval holds every e for which the observed error lies inside the
    central `level` of that distribution.

    Args:
      gap_K: signed gaps on the data as it is, `gap_<k>` of `Calibration(..., gaps=True)`.
      gap_BxK: the same under the resamples.
      level: nominal coverage.

    Raises:
      ValueError: fewer than two resamples, or a level outside (0, 1).
    """
    gap_K, gap_BxK = np.asarray(gap_K, np.float64), np.asarray(gap_BxK, np.float64)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    noise_BxK = gap_BxK[np.isfinite(gap_BxK).all(1)] - gap_K
    if len(noise_BxK) < 2:
        raise ValueError("the correction needs two resamples or more")
    variance_K = noise_BxK.var(0)
    # A bin whose gap is smaller than its noise keeps half a standard deviation: with none, all of the error would be
    # attributed to the other bins and underestimated (simulated coverage 77-97% without, 93-98% with).
    shape_K = np.copysign(np.sqrt(np.maximum(gap_K**2 - variance_K, variance_K / 4)), gap_K)
    shape_K /= max(np.abs(shape_K).sum(), np.finfo(float).tiny)
    observed = np.abs(gap_K).sum()

    def solve(summary) -> float:
        """The error at which `summary` of what would be observed equals what was; 0 if below."""
        lo, hi = 0.0, 1.0
        for _ in range(18):  # to 4e-6
            middle = (lo + hi) / 2
            usual_B = np.abs(middle * shape_K + noise_BxK).sum(1)
            lo, hi = (middle, hi) if summary(usual_B) < observed else (lo, middle)
        return lo

    tail = (1 - level) / 2
    bounds = [solve(lambda v, q=q: np.quantile(v, q)) for q in (1 - tail, tail)]
    return CorrectedECE(solve(np.mean), *bounds)


def equal_mass_edges(p_N: npt.ArrayLike, n_bins: int = 10) -> np.ndarray:
    """Increasing float64 edges [K + 1], K <= n_bins, that cut p_N into bins of equal count."""
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    inner = np.quantile(vector(p_N, "p"), np.arange(1, n_bins) / n_bins)
    return np.concatenate([[0.0], np.unique(inner[(inner > 0) & (inner < 1)]), [1.0]])


def bin_of(p_N: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin k holds edges[k] <= p < edges[k + 1]; the outer bins are open-ended."""
    return np.searchsorted(edges[1:-1], p_N, "right")
