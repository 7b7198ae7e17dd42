"""Computes net benefit and decision curves (Vickers and Elkin 2006), with the version for censored follow-up.

At a threshold t the people with predicted risk p >= t are treated; the net benefit is
TP / n - FP / n * t / (1 - t): true positives per person, less false positives weighted by the odds of the threshold.
Every curve is accompanied by "treat all"; "treat none" is zero. Predictions are assumed to be calibrated.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals.survival import horizon_labels
from ehrwear_jax.evals.weighting import binary, group_rows, kept_rows, probability, ratio, same_length, vector

# The range that the paper calls clinically plausible (section 5.1).
THRESHOLDS = tuple(round(0.01 * i, 2) for i in range(5, 31))


def check_thresholds(thresholds: Sequence[float]) -> np.ndarray:
    """Float64 [K], increasing; ValueError unless inside (0, 1) and increasing."""
    thresholds_K = vector(thresholds, "thresholds")
    if (np.diff(thresholds_K) <= 0).any() or thresholds_K[0] <= 0 or thresholds_K[-1] >= 1:
        raise ValueError("thresholds must increase inside (0, 1)")
    return thresholds_K


def _curves(true_KxB, false_KxB, event_B, thresholds_K) -> dict[str, np.ndarray]:
    """Net benefits from rates per person; `event_B` is the rate of events among all."""
    odds_Kx1 = (thresholds_K / (1 - thresholds_K))[:, None]
    model_KxB, all_KxB = true_KxB - false_KxB * odds_Kx1, event_B - (1 - event_B) * odds_Kx1
    result = {f"net_benefit_{k}": v for k, v in enumerate(model_KxB)}
    return result | {f"net_benefit_all_{k}": v for k, v in enumerate(all_KxB)}


class NetBenefit:
    """Decision curve of known labels: {"net_benefit_<k>": [B], "net_benefit_all_<k>": [B]}."""

    def __init__(
        self,
        y_N: npt.ArrayLike,
        p_N: npt.ArrayLike,
        thresholds: Sequence[float] = THRESHOLDS,
        *,
        factor_N: npt.ArrayLike | None = None,
    ) -> None:
        n_rows = same_length(y=y_N, p=p_N)
        rows, factor_N = kept_rows(factor_N, n_rows)
        y_N, p_N = binary(np.asarray(y_N)[rows], "y"), probability(np.asarray(p_N)[rows], "p")
        self.thresholds_K = check_thresholds(thresholds)
        n_bins = len(self.thresholds_K) + 1
        bin_N = np.searchsorted(self.thresholds_K, p_N, "right")
        self._sums = group_rows(np.where(y_N, bin_N, n_bins + bin_N), rows, 2 * n_bins, n_rows, factor_N)

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        counts_2xKxB = (self._sums @ weight_NxB).reshape(2, -1, weight_NxB.shape[1])
        above_2xKxB = np.cumsum(counts_2xKxB[:, ::-1], axis=1)[:, ::-1]
        total_B = above_2xKxB[:, 0].sum(0)
        true_KxB, false_KxB = ratio(above_2xKxB, total_B)
        return _curves(true_KxB[1:], false_KxB[1:], true_KxB[0], self.thresholds_K)


class CensoredNetBenefit:
    """Decision curve at a horizon from censored follow-up (Vickers et al. 2008).

    Among the treated, the rate of events by the horizon is estimated by the cumulative incidence:
    1 - Kaplan-Meier, or Aalen and Johansen's estimate where competing events (code 2) are present.
    Where nobody is treated, both rates are zero. Metrics as in `NetBenefit`.
    """

    def __init__(
        self,
        time_N: npt.ArrayLike,
        event_N: npt.ArrayLike,
        p_N: npt.ArrayLike,
        horizon: float,
        thresholds: Sequence[float] = THRESHOLDS,
        *,
        factor_N: npt.ArrayLike | None = None,
    ) -> None:
        """Args:
        time_N, event_N: follow-up, and 0 censored, 1 event, 2 competing event.
        p_N: predicted probability of the event by the horizon.
        horizon: unit of time_N.
        thresholds, factor_N: as in `NetBenefit`.

        Raises:
          ValueError: bad shapes or values, or nobody of the rows is followed to the horizon.
        """
        n_rows = same_length(time=time_N, event=event_N, p=p_N)
        rows, factor = kept_rows(factor_N, n_rows)
        time, code, p = (np.asarray(v)[rows] for v in (time_N, event_N, p_N))
        p, self.thresholds_K = probability(p, "p"), check_thresholds(thresholds)
        had, _ = horizon_labels(time, code, horizon)
        if not (time >= horizon).any():
            raise ValueError(f"nobody is followed to the horizon {horizon}")
        competing = (code == 2) & (time <= horizon)
        # Risk sets change at event times up to the horizon only.
        self._times = np.unique(time[had | competing])
        n_bins, n_times = len(self.thresholds_K) + 1, len(self._times)
        bin_N = np.searchsorted(self.thresholds_K, p, "right")

        def sums(column_N, members, n_columns):
            cell = bin_N[members] * n_columns + column_N[members]
            return group_rows(cell, rows[members], n_bins * n_columns, n_rows, factor[members])

        at_N = np.searchsorted(self._times, time, "left")
        # A row is at risk at the event times up to its own time.
        last_N = np.searchsorted(self._times, time, "right")
        self._shape = n_bins, n_times
        self._leaving = sums(last_N, np.arange(len(rows)), n_times + 1)
        self._events = sums(at_N, np.flatnonzero(had), n_times)
        self._competing = sums(at_N, np.flatnonzero(competing), n_times) if competing.any() else None

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        (n_bins, n_times), n_lanes = self._shape, weight_NxB.shape[1]
        leaving = (self._leaving @ weight_NxB).reshape(n_bins, n_times + 1, n_lanes)
        events = (self._events @ weight_NxB).reshape(n_bins, n_times, n_lanes)
        competing = None if self._competing is None else (self._competing @ weight_NxB).reshape(events.shape)
        risk, rate_KxB = np.zeros((n_times, n_lanes)), np.zeros((2, n_bins, n_lanes))
        event_sum, competing_sum, size_B = np.zeros_like(risk), np.zeros_like(risk), np.zeros(n_lanes)
        for k in reversed(range(n_bins)):  # the groups above a threshold grow as it falls
            # last_N = i: at risk at times 0 .. i - 1.
            risk += np.cumsum(leaving[k, :0:-1], axis=0)[::-1]
            event_sum += events[k]
            size_B += leaving[k].sum(0)
            rate_KxB[1, k] = size_B
            if competing is None:
                rate_KxB[0, k] = 1 - np.prod(1 - _hazard(event_sum, risk), axis=0)
                continue
            competing_sum += competing[k]
            survival = np.cumprod(1 - _hazard(event_sum + competing_sum, risk), axis=0)
            before = np.concatenate([np.ones((1, n_lanes)), survival[:-1]])
            rate_KxB[0, k] = np.sum(before * _hazard(event_sum, risk), axis=0)
        incidence_KxB, share_KxB = rate_KxB[0], ratio(rate_KxB[1], size_B)
        true_KxB, false_KxB = incidence_KxB * share_KxB, (1 - incidence_KxB) * share_KxB
        return _curves(true_KxB[1:], false_KxB[1:], incidence_KxB[0], self.thresholds_K)


def _hazard(events, at_risk):
    return np.divide(events, at_risk, out=np.zeros_like(at_risk), where=at_risk > 0)
