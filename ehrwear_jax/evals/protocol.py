"""Fits probes on frozen features, and scores predictions as result records.

Splits are named train, tuning and held_out. Probes are fitted on train, their strengths chosen on tuning, and
predictions scored on held-out rows only. All models of a task are scored on the same resamples. A record is
{dataset, model, task, metric, value, lo, hi, n, n_positive, seed}; value, lo and hi are floats, or None where the
metric is undefined (one class, no comparable pair).
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals import (
    builders,
    calibration,
    concordance,
    cox,
    families,
    inference,
    power,
    probes,
    subgroups,
)
from ehrwear_jax.evals.estimates import NO_SAMPLES, Estimates, Resampling, estimate
from ehrwear_jax.evals.survival import FollowUp
from ehrwear_jax.evals.weighting import Statistic

Record = dict[str, Any]

FIELDS = ("dataset", "model", "task", "metric", "value", "lo", "hi", "n", "n_positive", "seed")
BINARY_METRICS = ("auroc", "auprc", "brier", "ece")
POWERED = ("auroc", "c_index", "rmse")  # metrics of which the smallest difference that can be shown is told


# ------------------------------------------------------------------------------------------------- predictions


def _split(arrays: Mapping[str, Any], split: str, name: str) -> Any:
    if split not in arrays:
        raise ValueError(f"{name} lacks the split {split!r}; it has {sorted(arrays)}")
    return arrays[split]


@dataclasses.dataclass(frozen=True)
class BinaryPredictions:
    """Probe predictions of every split but train."""

    probability: dict[str, np.ndarray]  # split -> float64 [N]
    l2: float
    model: probes.LogisticProbe


def predict_binary(
    x_by_split: Mapping[str, np.ndarray],
    y_by_split: Mapping[str, np.ndarray],
    *,
    l2_grid: Sequence[float] = probes.L2_GRID,
) -> BinaryPredictions:
    """Logistic probe on frozen features: fit on train, strength by tuning log loss.

    Args:
      x_by_split: split -> float [N, D]; needs train and tuning, predicts every other split too.
      y_by_split: split -> 0/1 [N] for train and tuning; further splits are not used.
      l2_grid: strengths to try.

    Raises:
      ValueError: a missing split, bad shapes or values, one class in train.
    """
    model = probes.fit_logistic(
        _split(x_by_split, "train", "x_by_split"),
        _split(y_by_split, "train", "y_by_split"),
        _split(x_by_split, "tuning", "x_by_split"),
        _split(y_by_split, "tuning", "y_by_split"),
        l2_grid=l2_grid,
    )
    predicted = {s: model.predict_proba(x) for s, x in x_by_split.items() if s != "train"}
    return BinaryPredictions(predicted, model.l2, model)


@dataclasses.dataclass(frozen=True)
class SurvivalPredictions:
    """Cox predictions of every split but train; `model.survival` gives probabilities."""

    risk: dict[str, np.ndarray]  # split -> log-hazard float64 [N], higher = earlier event
    l2: float
    model: cox.CoxModel


def predict_survival(
    x_by_split: Mapping[str, np.ndarray],
    time_by_split: Mapping[str, np.ndarray],
    event_by_split: Mapping[str, np.ndarray],
    *,
    l2_grid: Sequence[float] = probes.L2_GRID,
) -> SurvivalPredictions:
    """Ridge Cox on frozen features: fit on train, strength by tuning partial likelihood.

    Arguments as in `predict_binary`, with follow-up times and 0/1 event indicators as labels.
    """
    train, tuning = (
        [
            _split(arrays, split, name)
            for arrays, name in (
                (x_by_split, "x_by_split"),
                (time_by_split, "time_by_split"),
                (event_by_split, "event_by_split"),
            )
        ]
        for split in ("train", "tuning")
    )
    model = cox.fit_cox(*train, *tuning, l2_grid=l2_grid)
    predicted = {s: model.log_hazard(x) for s, x in x_by_split.items() if s != "train"}
    return SurvivalPredictions(predicted, model.l2, model)


# ------------------------------------------------------------------------------------------------- records


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What the records of one task share.

    Attributes:
      dataset, name: of the dataset and of the task, copied into the records.
      reference_model: if given, adds for every other model X the paired differences "<reference_model> - X":
        "<metric>_difference" with intervals, and their two-sided bootstrap p-values as "<metric>_difference_p"
        (`families` corrects them for their number); for AUROC and C-index also the smallest difference that these
        people can show, "<metric>_difference_mdd" (`power`). Without it "<metric>_mdd" tells that of each model.
      resampling: the shared patient bootstrap.
      suppression: which subgroups are too small to show.
    """

    dataset: str
    name: str
    reference_model: str | None = None
    resampling: Resampling = dataclasses.field(default_factory=Resampling)
    suppression: subgroups.Suppression = dataclasses.field(default_factory=subgroups.Suppression)

    def among(self, models: Collection[str]) -> "TaskSpec":
        """The same without a reference model where that is none of the models."""
        return self if self.reference_model in models else dataclasses.replace(self, reference_model=None)

    def common(self, n: int, n_positive: int | None) -> Record:
        """The fields that all records of the task share."""
        counts = {"n": n, "n_positive": n_positive, "seed": self.resampling.seed}
        return {"dataset": self.dataset, "task": self.name, **counts}


def number(value: float | None) -> float | None:
    """`value` as JSON holds it, which has no NaN: an undefined number is None."""
    return float(value) if value is not None and math.isfinite(value) else None


def record(common: Record, model: str, metric: str, value: float | None, samples_B: np.ndarray = NO_SAMPLES) -> Record:
    """A record with the percentile interval of the resampled values; no interval without them."""
    bounds = inference.interval(samples_B)
    return from_numbers(common, model, metric, (value, bounds.lo, bounds.hi))


def from_numbers(
    common: Record, model: str, metric: str, numbers: tuple[float | None, float | None, float | None]
) -> Record:
    """A record of (value, lo, hi); numbers that are not finite become None."""
    value, lo, hi = (number(x) for x in numbers)
    found = {**common, "model": model, "metric": metric, "value": value, "lo": lo, "hi": hi}
    return {field: found[field] for field in FIELDS}


def score_binary(
    task: TaskSpec, predictions: Mapping[str, np.ndarray], y_N: npt.ArrayLike, group_N: npt.ArrayLike
) -> list[Record]:
    """Records of auroc, auprc, brier and ece (10 equal-mass bins, fixed edges) of each model.

    Args:
      task: names, reference model and resampling.
      predictions: model -> probability [N], all of the same held-out rows.
      y_N: 0/1 labels.
      group_N: unit of resampling (patient or matched set).

    Also, for each model, ece_floor (what perfect calibration would show, see `calibration.ece_floor`), and, when
    resamples had one class only, one record of model "bootstrap", metric "degenerate_resamples".

    Raises:
      ValueError: no predictions, an unknown reference model, vectors of different lengths, a value that is no
        probability (names the model).
    """
    _check(task, predictions, len(np.asarray(y_N)), group_N)
    try:
        built = builders.binary(y_N, predictions, thresholds=())
        statistics = {model: build(None) for model, build in built.items()}
    except ValueError as error:
        raise ValueError(f"task {task.name}, {error}") from error
    return binary_records(task, predictions, y_N, estimate(statistics, group_N, task.resampling))


def binary_records(
    task: TaskSpec, predictions: Mapping[str, np.ndarray], y_N: npt.ArrayLike, estimates: Estimates
) -> list[Record]:
    """The records of `score_binary` from estimates by model, which may hold further metrics."""
    common = task.common(len(np.asarray(y_N)), int(np.sum(np.asarray(y_N))))
    records = _records(task, common, estimates, BINARY_METRICS, BINARY_METRICS)
    for model, p_N in predictions.items():
        floor = calibration.ece_floor(p_N, seed=task.resampling.seed)
        records.append(record(common, model, "ece_floor", floor))
    return records


def score_survival(
    task: TaskSpec, predictions: Mapping[str, np.ndarray], follow_up: FollowUp, group_N: npt.ArrayLike
) -> list[Record]:
    """Records of Harrell's c_index of each model; predictions are risks (higher = earlier event).

    Arguments, paired differences (c_index_difference, c_index_difference_p) and errors as in
    `score_binary`; n_positive is the number of events.
    """
    _check(task, predictions, len(follow_up.time_N), group_N)
    statistics: dict[str, Statistic] = {}
    for model, risk_N in predictions.items():
        try:
            statistics[model] = concordance.harrell_c(follow_up.time_N, follow_up.code_N, risk_N)
        except ValueError as error:
            raise ValueError(f"task {task.name}, model {model}: {error}") from error
    return survival_records(task, follow_up, estimate(statistics, group_N, task.resampling))


def survival_records(task: TaskSpec, follow_up: FollowUp, estimates: Estimates) -> list[Record]:
    """The records of `score_survival` from estimates by model, which may hold further metrics."""
    common = task.common(len(follow_up.time_N), int(np.sum(follow_up.event_N)))
    return _records(task, common, estimates, ("c_index",), ("c_index",))


def _check(task: TaskSpec, predictions: Mapping[str, np.ndarray], n: int, group_N: npt.ArrayLike) -> None:
    if not predictions:
        raise ValueError(f"task {task.name}: no predictions to score")
    if (n_groups := len(np.asarray(group_N))) != n:
        raise ValueError(f"task {task.name}: group has {n_groups} rows, expected {n}")
    if task.reference_model is not None and task.reference_model not in predictions:
        raise ValueError(f"task {task.name}: no model {task.reference_model!r} among {list(predictions)}")


def _records(
    task: TaskSpec, common: Record, estimates: Estimates, metrics: Sequence[str], compared: Sequence[str]
) -> list[Record]:
    """The metrics of each model, the paired differences, and how many resamples were degenerate."""
    records, n_degenerate = [], 0
    for model, values in estimates.values.items():
        for metric in (m for m in values if m in metrics):
            samples_B = estimates.resampled(model, metric)
            records.append(record(common, str(model), metric, values[metric], samples_B))
            n_degenerate = max(n_degenerate, int((~np.isfinite(samples_B)).sum()))
    records += differences(task, common, estimates, compared)
    if n_degenerate:
        records.append(record(common, "bootstrap", "degenerate_resamples", n_degenerate))
    return records


def differences(task: TaskSpec, common: Record, estimates: Estimates, metrics: Sequence[str]) -> list[Record]:
    """As `paired`; where no two candidates are compared, the smallest difference that could be shown of each model."""
    records = paired(task, common, estimates, metrics)
    if not any(r["metric"].endswith("_difference_mdd") for r in records):
        records += _powers_alone(common, estimates)
    return records


def paired(task: TaskSpec, common: Record, estimates: Estimates, metrics: Sequence[str]) -> list[Record]:
    """The paired differences of the reference model to each other one, their p-values, and what could be shown.

    Args:
      common: fields that the records share, as `TaskSpec.common` gives them.
      metrics: those that are compared, of models that have them.
    """
    records, reference = [], task.reference_model
    for other in estimates.values if reference is not None else ():
        for metric in metrics:
            if other == reference or not all(metric in estimates.values[m] for m in (reference, other)):
                continue  # a model without curves has no Brier score to compare
            value, delta_B = estimates.difference(reference, other, metric)
            name = f"{reference} - {other}"
            records.append(record(common, name, f"{metric}_difference", value, delta_B))
            p_value = inference.paired_pvalue(delta_B)
            records.append(record(common, name, f"{metric}_difference_p", p_value))
            if metric in POWERED and not families.is_bound(name):
                records.append(record(common, name, f"{metric}_difference_mdd", power.of_resamples(delta_B)))
    return records


def _powers_alone(common: Record, estimates: Estimates) -> list[Record]:
    """The smallest difference between two models like each one, where no two candidates are compared."""
    records = []
    for model, values in estimates.values.items():
        for metric in (m for m in POWERED if m in values and not families.is_bound(str(model))):
            samples_B = estimates.resampled(model, metric)
            if metric == "auroc":
                n_positive = common["n_positive"]
                error = power.auroc_standard_error(values[metric], n_positive, common["n"] - n_positive)
            else:
                defined_B = samples_B[np.isfinite(samples_B)]
                error = float(defined_B.std(ddof=1)) if len(defined_B) > 1 else math.nan
            records.append(record(common, str(model), f"{metric}_mdd", power.of_one_model(error)))
    return records
