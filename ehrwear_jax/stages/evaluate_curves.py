"""Computes curves with bands for the report: survival by risk quartile, decision curves under censoring.

With competing events the curves by quartile are Aalen and Johansen's: 1 less the cumulative incidence.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals import decision, inference
from ehrwear_jax.evals.estimates import estimate
from ehrwear_jax.evals.protocol import TaskSpec, number
from ehrwear_jax.evals.survival import FollowUp
from ehrwear_jax.evals.weighting import Statistic, group_rows

POINTS = 60
BAND_RESAMPLES = 200  # a band is drawn, not tested


class EventFreeGrid:
    """P(the event has not come by t) at fixed times under row weights: {"s_<k>": [B]}, for rows of one group.

    Kaplan and Meier's estimate; with competing events Aalen and Johansen's.
    """

    def __init__(self, follow_up: FollowUp, factor_N: np.ndarray, grid_K: np.ndarray) -> None:
        """Args:
        factor_N: fixed multiplier of the row weights, 0 outside the group.
        """
        rows = np.flatnonzero(factor_N)
        time, code, factor = np.asarray(follow_up.time_N)[rows], follow_up.code_N[rows], factor_N[rows]
        self._times, at = np.unique(time, return_inverse=True)
        n_times, n_rows = len(self._times), len(factor_N)

        def sums(members):
            return group_rows(at[members], rows[members], n_times, n_rows, factor[members])

        self._leaving, self._events = sums(code >= 0), sums(code == 1)
        self._ends = sums(code > 0) if (code == 2).any() else None
        self._at_K = np.searchsorted(self._times, grid_K, "right")

    def __call__(self, weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
        leaving, events = self._leaving @ weight_NxB, self._events @ weight_NxB
        at_risk, ones = np.cumsum(leaving[::-1], axis=0)[::-1], np.ones((1, weight_NxB.shape[1]))
        hazard = np.divide(events, at_risk, out=np.zeros_like(at_risk), where=at_risk > 0)
        if self._ends is None:
            free = np.concatenate([ones, np.cumprod(1 - hazard, axis=0)])
        else:
            ending = np.divide(self._ends @ weight_NxB, at_risk, out=np.zeros_like(at_risk), where=at_risk > 0)
            before = np.concatenate([ones, np.cumprod(1 - ending, axis=0)[:-1]])
            free = np.concatenate([ones, 1 - np.cumsum(before * hazard, axis=0)])
        return {f"s_{k}": free[at] for k, at in enumerate(self._at_K)}


def by_quartile(
    task: TaskSpec,
    model: str,
    risk_N: npt.ArrayLike,
    follow_up: FollowUp,
    group_N: npt.ArrayLike,
    factor_N: npt.ArrayLike | None = None,
) -> list[dict]:
    """[{kind: "kaplan_meier", task, model, level, n, n_events, n_competing, x: days, value, lo, hi}] of risk quartiles.

    Equal risks share a quartile. A quartile is drawn as far as ten of its prediction times are under observation; one
    of fewer than config.evaluate.min_patients patients is left out.

    Args:
      factor_N: weights of rows that were selected by their follow-up (`survival.horizon_factor`); None: ones.
    """
    risk_N, time_N, event_N = np.asarray(risk_N), np.asarray(follow_up.time_N), np.asarray(follow_up.event_N, bool)
    code_N, factor_N = follow_up.code_N, np.ones(len(time_N)) if factor_N is None else np.asarray(factor_N)
    quartile_N = np.searchsorted(np.quantile(risk_N, (0.25, 0.5, 0.75)), risk_N, "left")
    out = []
    for q in range(4):
        mask_N = quartile_N == q
        if len(np.unique(np.asarray(group_N)[mask_N])) < max(task.suppression.min_patients, 1):
            continue
        last = np.sort(time_N[mask_N])[-min(10, mask_N.sum())]
        grid_K = np.linspace(0, last, POINTS)
        statistic = EventFreeGrid(follow_up, mask_N * factor_N, grid_K)
        level = {"level": f"quartile {q + 1}", "n": int(mask_N.sum()), "n_events": int(event_N[mask_N].sum())}
        level |= {"n_competing": int((code_N[mask_N] == 2).sum())}
        curve = {"kind": "kaplan_meier", "task": task.name, "model": model, **level, "x": grid_K.tolist()}
        out.append(curve | _bands(task, statistic, {"s_": POINTS}, group_N)["s_"])
    return out


def censored_decision(
    task: TaskSpec, survival: Mapping[str, np.ndarray], horizon: float, follow_up: FollowUp, group_N: npt.ArrayLike
) -> list[dict]:
    """[{kind: "decision", task, model, horizon, x, value, lo, hi}] from survival predictions at a horizon.

    Args:
      survival: model -> P(no event by the horizon) [N]; with competing events 1 less the cumulative incidence.
    """
    out, k = [], len(decision.THRESHOLDS)
    for model, survival_N in survival.items():
        statistic = decision.CensoredNetBenefit(follow_up.time_N, follow_up.code_N, 1 - np.asarray(survival_N), horizon)
        curve = {"kind": "decision", "task": task.name, "horizon": float(horizon), "x": list(decision.THRESHOLDS)}
        bands = _bands(task, statistic, {"net_benefit_": k, "net_benefit_all_": k}, group_N)
        out.append({**curve, "model": model} | bands["net_benefit_"])
        if len(out) == len(survival):
            out.append({**curve, "model": "treat_all"} | bands["net_benefit_all_"])
    return out


def _bands(task: TaskSpec, statistic: Statistic, points: Mapping[str, int], group_N) -> dict[str, dict[str, list]]:
    """{prefix: {value, lo, hi}} of a statistic's points "<prefix>0" .., None where undefined."""
    resampling = dataclasses.replace(task.resampling, n_resamples=min(task.resampling.n_resamples, BAND_RESAMPLES))
    found = estimate({"": statistic}, group_N, resampling)
    out = {}
    for prefix, n_points in points.items():
        names = [f"{prefix}{k}" for k in range(n_points)]
        bounds = [inference.interval(found.resampled("", name)) for name in names]
        numbers = {
            "value": [found.values[""][name] for name in names],
            "lo": [b.lo for b in bounds],
            "hi": [b.hi for b in bounds],
        }
        out[prefix] = {k: [number(x) for x in v] for k, v in numbers.items()}
    return out
