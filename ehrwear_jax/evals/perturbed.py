"""Scores predictions from perturbed records: how much a metric changes from the clean ones, paired within resamples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals import classification, inference
from ehrwear_jax.evals.estimates import Resampling, estimate
from ehrwear_jax.evals.protocol import number

COMPARED = ("auroc", "auprc")


def score_perturbations(
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    y_N: npt.ArrayLike,
    group_N: npt.ArrayLike,
    *,
    clean: str = "clean",
    resampling: Resampling | None = None,
) -> list[dict]:
    """Records of auroc and auprc of each model and perturbation, each with its change from the clean records.

    All models and perturbations share the resamples of patients.

    Args:
      predictions: model -> perturbation -> score [N]; every model has the clean one.
      y_N: 0/1.
      group_N: unit of resampling.
      clean: name of the records as they are.
      resampling: by default 1,000 resamples.

    Returns:
      [{model, perturbation, metric, value, lo, hi, change, change_lo, change_hi, change_p, n, n_positive,
      n_degenerate}]; numbers are None where undefined.

    Raises:
      ValueError: a model without clean records, scores that do not fit the labels.
    """
    if lacking := [model for model, by_name in predictions.items() if clean not in by_name]:
        raise ValueError(f"model {lacking[0]!r} lacks the perturbation {clean!r}")
    statistics = {
        (model, name): classification.BinaryRanking(y_N, score_N)
        for model, by_name in predictions.items()
        for name, score_N in by_name.items()
    }
    estimates, out = estimate(statistics, group_N, resampling), []
    counts = {"n": len(np.asarray(y_N)), "n_positive": int(np.sum(np.asarray(y_N)))}
    for model, name in statistics:
        for metric in COMPARED:
            difference, delta_B = estimates.difference((model, name), (model, clean), metric)
            bounds, change = inference.interval(estimates.resampled((model, name), metric)), inference.interval(delta_B)
            numbers = {
                "value": estimates.values[model, name][metric],
                "lo": bounds.lo,
                "hi": bounds.hi,
                "change": difference,
                "change_lo": change.lo,
                "change_hi": change.hi,
                "change_p": inference.paired_pvalue(delta_B) if name != clean else None,
            }
            found: dict[str, Any] = {"model": model, "perturbation": name, "metric": metric}
            found |= {k: number(v) for k, v in numbers.items()}
            out.append(found | counts | {"n_degenerate": bounds.n_degenerate})
    return out
