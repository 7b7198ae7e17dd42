"""Curves with bands for the report: Kaplan-Meier by quartile of predicted risk, decision curves under censoring."""

import numpy as np

from ehrwear_jax.evals import bootstrap, decision, inference
from ehrwear_jax.evals.weighting import evaluate, group_rows

POINTS = 60
BAND_RESAMPLES = 200  # a band is drawn, not tested


class KaplanMeierGrid:
    """P(T > t) at fixed times under row weights: {"s_<k>": [B]}, for rows of one group."""

    def __init__(self, time_N, event_N, mask_N, grid_K):
        rows = np.flatnonzero(mask_N)
        time, event = np.asarray(time_N)[rows], np.asarray(event_N, bool)[rows]
        self._times, at = np.unique(time, return_inverse=True)
        n_times, n_rows = len(self._times), len(mask_N)
        self._leaving = group_rows(at, rows, n_times, n_rows)
        self._events = group_rows(at[event], rows[event], n_times, n_rows)
        self._at_K = np.searchsorted(self._times, grid_K, "right")

    def __call__(self, weight_NxB):
        leaving, events = self._leaving @ weight_NxB, self._events @ weight_NxB
        at_risk = np.cumsum(leaving[::-1], axis=0)[::-1]
        hazard = np.divide(events, at_risk, out=np.zeros_like(at_risk), where=at_risk > 0)
        survival = np.concatenate([np.ones((1, weight_NxB.shape[1])), np.cumprod(1 - hazard, axis=0)])
        return {f"s_{k}": survival[at] for k, at in enumerate(self._at_K)}


def by_quartile(options, task, row, risk_N, time_N, event_N, group_N) -> list[dict]:
    """[{kind: "kaplan_meier", task, row, level, n, n_events, x: days, value, lo, hi}] of a row's risk quartiles.

    Equal risks share a quartile. A quartile is drawn as far as ten of its reads are under observation; one of fewer
    than config.evaluate.min_patients patients is left out.
    """
    risk_N, time_N, event_N = np.asarray(risk_N), np.asarray(time_N), np.asarray(event_N, bool)
    quartile_N = np.searchsorted(np.quantile(risk_N, (0.25, 0.5, 0.75)), risk_N, "left")
    out = []
    for q in range(4):
        mask_N = quartile_N == q
        if len(np.unique(np.asarray(group_N)[mask_N])) < max(options.suppression.min_patients, 1):
            continue
        last = np.sort(time_N[mask_N])[-min(10, mask_N.sum())]
        grid_K = np.linspace(0, last, POINTS)
        statistic = KaplanMeierGrid(time_N, event_N, mask_N, grid_K)
        level = {"level": f"quartile {q + 1}", "n": int(mask_N.sum()), "n_events": int(event_N[mask_N].sum())}
        curve = {"kind": "kaplan_meier", "task": task, "row": row, **level, "x": grid_K.tolist()}
        out.append(curve | _bands(options, statistic, "s_", POINTS, group_N))
    return out


def censored_decision(options, task, probability, horizon, time_N, event_N, group_N) -> list[dict]:
    """[{kind: "decision", task, row, horizon, x, value, lo, hi}] from survival predictions at a horizon.

    Args:
      probability: row -> P(T > horizon) [N].
    """
    out = []
    for row, survival_N in probability.items():
        statistic = decision.CensoredNetBenefit(time_N, event_N, 1 - np.asarray(survival_N), horizon)
        k = len(decision.THRESHOLDS)
        curve = {"kind": "decision", "task": task, "horizon": float(horizon), "x": list(decision.THRESHOLDS)}
        out.append({**curve, "row": row} | _bands(options, statistic, "net_benefit_", k, group_N))
        if len(out) == len(probability):
            out.append({**curve, "row": "treat_all"} | _bands(options, statistic, "net_benefit_all_", k, group_N))
    return out


def _bands(options, statistic, prefix, n_points, group_N):
    """value, lo and hi of a statistic's points "<prefix>0" .., None where undefined."""
    n_resamples = min(options.n_resamples, BAND_RESAMPLES)
    values = evaluate(statistic, len(np.asarray(group_N)))
    samples = bootstrap.resample({"": statistic}, group_N, n_resamples, options.seed, universe=options.universe)
    bounds = [inference.interval(samples[""][f"{prefix}{k}"] if samples else ()) for k in range(n_points)]
    found = {
        "value": [values[f"{prefix}{k}"] for k in range(n_points)],
        "lo": [b.lo for b in bounds],
        "hi": [b.hi for b in bounds],
    }
    return {k: [float(x) if np.isfinite(x) else None for x in v] for k, v in found.items()}
