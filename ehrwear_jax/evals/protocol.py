"""The evaluation protocol: frozen features to predictions, predictions to result records.

Splits are named train, tuning and held_out. Models are fitted on train, their strengths chosen on
tuning, and scored on held_out rows only. All rows of a task are scored on the same bootstrap
resamples. A record is {dataset, row, task, metric, value, lo, hi, n, n_positive, seed}; value, lo
and hi are floats or None where the metric is undefined (one class, no comparable pair).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ehrwear_jax.evals import (
    bootstrap,
    calibration,
    classification,
    concordance,
    cox,
    inference,
    probes,
    weighting,
)

Record = dict[str, Any]


def _split(arrays: Mapping[str, Any], split: str, name: str):
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
      y_by_split: split -> 0/1 [N] for train and tuning; further splits are not looked at.

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


def score_binary(
    *,
    dataset: str,
    task: str,
    predictions: Mapping[str, np.ndarray],
    y_N: np.ndarray,
    group_N: np.ndarray,
    n_resamples: int = 1000,
    seed: int = 0,
    reference_row: str | None = None,
    universe=None,
) -> list[Record]:
    """Records of auroc, auprc, brier and ece (10 equal-mass bins, fixed edges) per row.

    Args:
      dataset, task: copied into the records.
      predictions: row name -> probability [N], all of the same held-out rows.
      y_N: 0/1 labels.
      group_N: unit of resampling (patient or matched set).
      n_resamples: bootstrap resamples; 0 gives no intervals and no p-values.
      seed: of the resamples.
      reference_row: if given, adds for every other row X the paired differences
        "<reference_row> - X": auroc_difference, auprc_difference with intervals, and their
        two-sided bootstrap p-values as auroc_difference_p, auprc_difference_p.
      universe: all groups of the held-out set, to share resamples between tasks in which some
        groups have no row; default: the groups of group_N.

    Also per row ece_floor (what perfect calibration would show, see `calibration.ece_floor`), and, when
    resamples had one class only, one record of row "bootstrap", metric "degenerate_resamples".

    Raises:
      ValueError: vectors of different lengths, a value that is no probability (names the row).
    """
    statistics = {}
    for row, p_N in predictions.items():
        try:
            parts = classification.BinaryRanking(y_N, p_N), calibration.Calibration(y_N, p_N)
        except ValueError as error:
            raise ValueError(f"task {task}, row {row}: {error}") from error
        statistics[row] = weighting.merge(*parts)
    common = {"dataset": dataset, "task": task}
    common |= {"n": len(y_N), "n_positive": int(np.sum(y_N)), "seed": seed}
    compared = "auroc", "auprc"
    records = _score(common, statistics, group_N, n_resamples, reference_row, compared, universe)
    for row, p_N in predictions.items():
        floor = {"metric": "ece_floor", "value": calibration.ece_floor(p_N, seed=seed)}
        records.append({**records[0], "row": row, "lo": None, "hi": None, **floor})
    return records


def score_survival(
    *,
    dataset: str,
    task: str,
    predictions: Mapping[str, np.ndarray],
    time_N: np.ndarray,
    event_N: np.ndarray,
    group_N: np.ndarray,
    n_resamples: int = 1000,
    seed: int = 0,
    reference_row: str | None = None,
    universe=None,
) -> list[Record]:
    """Records of Harrell's c_index per row; predictions are risks (higher = earlier event).

    Arguments, paired differences (c_index_difference, c_index_difference_p) and errors as in
    `score_binary`; n_positive is the number of events.
    """
    statistics = {}
    for row, risk_N in predictions.items():
        try:
            statistics[row] = concordance.Concordance(time_N, event_N, risk_N)
        except ValueError as error:
            raise ValueError(f"task {task}, row {row}: {error}") from error
    common = {"dataset": dataset, "task": task}
    common |= {"n": len(time_N), "n_positive": int(np.sum(event_N)), "seed": seed}
    compared = ("c_index",)
    return _score(common, statistics, group_N, n_resamples, reference_row, compared, universe)


def _number(value: float) -> float | None:
    """JSON has no NaN: an undefined metric is None."""
    return float(value) if math.isfinite(value) else None


def _score(common, statistics, group_N, n_resamples, reference_row, compared, universe) -> list[Record]:
    task, n, seed = common["task"], common["n"], common["seed"]
    if not statistics:
        raise ValueError(f"task {task}: no predictions to score")
    if len(group_N) != n:
        raise ValueError(f"task {task}: group has {len(group_N)} rows, expected {n}")
    if reference_row is not None and reference_row not in statistics:
        raise ValueError(f"task {task}: no row {reference_row!r} among {list(statistics)}")
    samples = bootstrap.resample(statistics, group_N, n_resamples, seed, universe=universe)
    nothing = np.empty(0)
    records, values, n_degenerate = [], {}, 0

    def add(row, metric, value, samples_B=nothing):
        bounds = inference.interval(samples_B)
        record = {"row": row, "metric": metric, "value": _number(value)}
        record |= {"lo": _number(bounds.lo), "hi": _number(bounds.hi)}
        records.append({"dataset": common["dataset"], **record, **common})
        return bounds.n_degenerate

    for row, statistic in statistics.items():
        values[row] = weighting.evaluate(statistic, n)
        for metric, value in values[row].items():
            samples_B = samples[row][metric] if samples else nothing
            n_degenerate = max(n_degenerate, add(row, metric, value, samples_B))
    for other in statistics:
        if reference_row is None or other == reference_row:
            continue
        for metric in compared:
            difference = values[reference_row][metric] - values[other][metric]
            delta_B = nothing
            if samples:
                delta_B = samples[reference_row][metric] - samples[other][metric]
            name = f"{reference_row} - {other}"
            add(name, f"{metric}_difference", difference, delta_B)
            add(name, f"{metric}_difference_p", inference.paired_pvalue(delta_B))
    if n_degenerate:
        add("bootstrap", "degenerate_resamples", n_degenerate)
    return records


def adjust(records: Sequence[Record]) -> list[Record]:
    """False discovery control of the paired p-values: one "<metric>_difference_q" record per p.

    A family of tests is all rows and tasks of one dataset and metric.

    Args:
      records: from `score_binary` and `score_survival`, of all tasks that are reported together.

    Returns:
      New records: `value` is Benjamini and Hochberg's q, to be called significant where it is at
      most `rate`; None where p is undefined.
    """
    families: dict[tuple[str, str], dict[int, float]] = {}
    for i, record in enumerate(records):
        if record["metric"].endswith("_difference_p"):
            p = math.nan if record["value"] is None else record["value"]
            families.setdefault((record["dataset"], record["metric"]), {})[i] = p
    found = {}
    for p_by_record in families.values():
        found |= inference.benjamini_hochberg(p_by_record)
    return [
        records[i] | {"metric": records[i]["metric"].removesuffix("p") + "q", "value": _number(found[i].q)}
        for i in sorted(found)
    ]
