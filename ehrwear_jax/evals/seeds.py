"""Averages statistics over the seeds of a model, and measures how far its seeds lie apart.

Predictions of a model are [N], or [S, N] where it was trained with several seeds on the same people. Its metric is the
mean over the seeds, on the data and on every resample of patients alike: intervals and p-values are of that mean, so of
the people, and the spread over seeds is told apart. Models with one seed are compared with such means as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ehrwear_jax.evals import calibration, disclosure, inference
from ehrwear_jax.evals.builders import Build
from ehrwear_jax.evals.weighting import Statistic, evaluate

LEAST_SEEDS = 3  # for an effect size over seeds
Make = Callable[[Mapping[str, np.ndarray], int], dict[str, Build]]


def first_of(by_model: Mapping[str, np.ndarray], dimensions: int = 1) -> dict[str, np.ndarray]:
    """model -> array of its first seed; dimensions: of one seed's array."""
    return {m: v if np.ndim(v) == dimensions else np.asarray(v)[0] for m, v in by_model.items()}


def by_seed(predictions: Mapping[str, np.ndarray], make: Make) -> dict[str, list[Build]]:
    """model -> builds of its statistics, one for each seed.

    Args:
      predictions: model -> [N] or [S, N].
      make: (model -> [N], number of the seed from 0) -> model -> build, see `builders`.
    """
    found = {m: [build] for m, build in make(first_of(predictions), 0).items()}
    for s in range(1, max((len(v) for v in predictions.values() if np.ndim(v) == 2), default=1)):
        more = {m: np.asarray(v)[s] for m, v in predictions.items() if np.ndim(v) == 2 and s < len(v)}
        for model, build in make(more, s).items():
            found[model].append(build)
    return found


def averaged(builds: Mapping[str, Sequence[Build]]) -> dict[str, Build]:
    """model -> build of the means over its seeds.

    Confusion matrices, and the gaps of bins that are each seed's own, stay those of the first seed.
    """
    return {model: mine[0] if len(mine) == 1 else _mean(mine) for model, mine in builds.items()}


def _mean(builds: Sequence[Build]) -> Build:
    def build(cell_N: np.ndarray | None) -> Statistic:
        parts = [one(cell_N) for one in builds]

        def statistic(weight_NxB: np.ndarray) -> dict[str, np.ndarray]:
            found = [part(weight_NxB) for part in parts]
            return {
                metric: value_B if _of_first(metric) else np.mean([f[metric] for f in found], axis=0)
                for metric, value_B in found[0].items()
            }

        return statistic

    return build


def _of_first(metric: str) -> bool:
    return metric.startswith(calibration.GAP) or metric in disclosure.TELL_MATRIX


def spread(
    builds: Mapping[str, Sequence[Build]], n_rows: int, metrics: Sequence[str], reference: str | None = None
) -> list[dict[str, Any]]:
    """[{model, metric, value}] over the seeds of models that have several.

    "<metric>_seed_sd": standard deviation (ddof 1). "<metric>_difference_d" of "reference - model", where both have
    three seeds or more, as many: Cohen's d of the differences seed by seed, see `inference.seed_cohens_d`.

    Args:
      n_rows: of the predictions.
      metrics: those to tell.
    """
    several = {model: mine for model, mine in builds.items() if len(mine) > 1}
    values = {model: [evaluate(build(None), n_rows) for build in mine] for model, mine in several.items()}
    out: list[dict[str, Any]] = []
    for metric in metrics:
        by_model = {m: [v[metric] for v in found] for m, found in values.items() if metric in found[0]}
        for model, value_S in by_model.items():
            out.append({"model": model, "metric": f"{metric}_seed_sd", "value": float(np.std(value_S, ddof=1))})
        for model, value_S in by_model.items():
            if model == reference or reference not in by_model or len(value_S) < LEAST_SEEDS:
                continue
            if len(first_S := by_model[reference]) == len(value_S):
                d = inference.seed_cohens_d(first_S, value_S)
                out.append({"model": f"{reference} - {model}", "metric": f"{metric}_difference_d", "value": d})
    return out
