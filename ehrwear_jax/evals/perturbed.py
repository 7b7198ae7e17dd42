"""Predictions under several conditions: how much a metric changes from the clean one, paired within resamples."""

from collections.abc import Mapping

import numpy as np

from ehrwear_jax.evals import bootstrap, classification, inference, weighting

COMPARED = ("auroc", "auprc")


def _number(value):
    return float(value) if np.isfinite(value) else None


def score_conditions(
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    y_N,
    group_N,
    *,
    clean: str = "clean",
    n_resamples: int = 1000,
    seed: int = 0,
    universe=None,
) -> list[dict]:
    """Records of auroc and auprc per row and condition, each with its change from the clean condition.

    All rows and conditions share the resamples of patients.

    Args:
      predictions: row -> condition -> score [N]; every row has the clean condition.
      y_N: 0/1. group_N, universe, n_resamples, seed: as in `protocol.score_binary`.

    Returns:
      [{row, condition, metric, value, lo, hi, change, change_lo, change_hi, change_p, n, n_positive, n_degenerate}];
      numbers are None where undefined.

    Raises:
      ValueError: a row without the clean condition, scores that do not fit the labels.
    """
    if lacking := [row for row, by_condition in predictions.items() if clean not in by_condition]:
        raise ValueError(f"row {lacking[0]!r} lacks the condition {clean!r}")
    statistics = {
        (row, condition): classification.BinaryRanking(y_N, score_N)
        for row, by_condition in predictions.items()
        for condition, score_N in by_condition.items()
    }
    samples = bootstrap.resample(statistics, group_N, n_resamples, seed, universe=universe)
    values = {key: weighting.evaluate(statistic, len(y_N)) for key, statistic in statistics.items()}
    nothing, out = np.empty(0), []
    for row, condition in statistics:
        for metric in COMPARED:
            sample_B = samples[row, condition][metric] if samples else nothing
            delta_B = sample_B - (samples[row, clean][metric] if samples else nothing)
            bounds, change = inference.interval(sample_B), inference.interval(delta_B)
            difference = values[row, condition][metric] - values[row, clean][metric]
            p_value = inference.paired_pvalue(delta_B) if condition != clean else np.nan
            out.append(
                {
                    "row": row,
                    "condition": condition,
                    "metric": metric,
                    "value": _number(values[row, condition][metric]),
                    "lo": _number(bounds.lo),
                    "hi": _number(bounds.hi),
                    "change": _number(difference),
                    "change_lo": _number(change.lo),
                    "change_hi": _number(change.hi),
                    "change_p": _number(p_value),
                    "n": len(y_N),
                    "n_positive": int(np.sum(y_N)),
                    "n_degenerate": bounds.n_degenerate,
                }
            )
    return out
