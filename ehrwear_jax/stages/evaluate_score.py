"""Scores predictions at held-out prediction times: records, subgroups and curves, of a run or of saved predictions.

Every statistic of a task is evaluated once on each resample; values, intervals, differences, p-values and bootstrap z
are all derived from the same arrays.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ehrwear_jax.evals import (
    builders,
    classification,
    decision,
    disclosure,
    inference,
    protocol,
    seeds,
    subgroups,
)
from ehrwear_jax.evals.builders import Build, PredictedCurves
from ehrwear_jax.evals.estimates import Estimates, estimate
from ehrwear_jax.evals.protocol import Record, TaskSpec, number
from ehrwear_jax.evals.subgroups import Cell, CellKey, Comparison
from ehrwear_jax.evals.survival import FollowUp, TrainingCurves
from ehrwear_jax.evals.weighting import Deferred, Statistic
from ehrwear_jax.stages import evaluate_curves

NO_LIMITS = subgroups.Suppression(min_patients=0, min_per_class=0)
CONFUSION = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "tp", "fp", "tn", "fn")
WEIGHTED = ("auroc", "auprc", "brier", "prevalence")  # with inverse probabilities of a known label
IPCW, IN_SD = "ipcw", "rmse_sd"


@dataclasses.dataclass(frozen=True)
class Cohort:
    """The people behind the N held-out prediction times of a task.

    Attributes:
      group_N: unit of resampling of each prediction time.
      attributes: name -> level at each prediction time [N], see `subgroups.cells`; {} for no subgroups.
    """

    group_N: np.ndarray
    attributes: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Scored:
    """Estimates of a task: of the whole cohort, of its subgroups, and of further statistics under their own keys."""

    models: Sequence[str]
    whole: Mapping[CellKey, Cell]
    cells: Mapping[CellKey, Cell]
    estimates: Estimates

    def of_cohort(self) -> Estimates:
        """By model, of the whole cohort."""
        return self.estimates.under({model: (model, *subgroups.WHOLE_COHORT) for model in self.models})


def _estimate(
    task: TaskSpec,
    y_N,
    cohort: Cohort,
    whole: Mapping[str, Build],
    by_cell: Mapping[str, Build],
    further: Mapping[tuple[str, str], Statistic] | None = None,
) -> _Scored:
    """Evaluates all statistics of a task on one set of resamples.

    Args:
      whole: of the whole cohort, which is never suppressed.
      by_cell: of the subgroups; the whole cohort's statistics hold its metrics too.
      further: statistics under other keys.
    """
    everyone = {subgroups.WHOLE_COHORT: subgroups.cells({}, y_N, cohort.group_N, NO_LIMITS)[subgroups.WHOLE_COHORT]}
    cells = subgroups.cells(cohort.attributes, y_N, cohort.group_N, task.suppression) if cohort.attributes else {}
    inner = {key: cell for key, cell in cells.items() if key != subgroups.WHOLE_COHORT}
    statistics = subgroups.statistics_by_cell(whole, everyone) | subgroups.statistics_by_cell(by_cell, inner)
    estimates = estimate(statistics | dict(further or {}), cohort.group_N, task.resampling)
    return _Scored(list(whole), everyone, cells, estimates)


def _deferred(name: str, builds: Mapping[str, Build], n_rows: int) -> dict[tuple[str, str], Statistic]:
    """Statistics of the whole cohort under keys of their own: (name, model)."""
    return {(name, model): Deferred(functools.partial(make, None), n_rows) for model, make in builds.items()}


def _cohort_records(task: TaskSpec, base: list[Record], scored: _Scored, wanted: Callable[[str], bool]) -> list[Record]:
    """Further metrics of the whole cohort, after the records that `base` holds."""
    known = {(r["model"], r["metric"]) for r in base}
    common = task.common(base[0]["n"], base[0]["n_positive"])
    found = subgroups.cell_records(scored.models, scored.whole, scored.estimates, Comparison(metrics=()))
    return [
        protocol.from_numbers(common, r["model"], r["metric"], (r["value"], r["lo"], r["hi"]))
        for r in found
        if wanted(r["metric"]) and (r["model"], r["metric"]) not in known
    ]


def _subgroup_records(
    task: TaskSpec, scored: _Scored, metrics: Sequence[str], compared: tuple[str, ...]
) -> list[Record]:
    """Records with `task` and `dataset`, values None where undefined; [] without attributes."""
    comparison = Comparison(compared, task.reference_model)
    found = subgroups.cell_records(scored.models, scored.cells, scored.estimates, comparison, metrics)
    return [
        {"dataset": task.dataset, "task": task.name, **r} | {k: number(r[k]) for k in ("value", "lo", "hi", "p")}
        for r in found
    ]


def protected(found: dict[str, list[dict]], y_N: npt.ArrayLike, cohort: Cohort, limit: int) -> dict[str, list[dict]]:
    """The scores of a task without what tells how many are positive, where they are few people (or all but few).

    Args:
      found: of `score_binary` or `score_time`.
      y_N: 0/1: label, or event.
      limit: of people, config.evaluate.min_per_class.
    """
    if not disclosure.tells_few(y_N, cohort.group_N, limit):
        return found
    return found | {"records": disclosure.without_positives(found["records"]), "curves": []}


# ------------------------------------------------------------------------------------------------- binary tasks


def score_binary(
    task: TaskSpec,
    predictions: Mapping[str, np.ndarray],
    y_N: npt.ArrayLike,
    cohort: Cohort,
    *,
    operating_points: Mapping[str, float | np.ndarray] | None = None,
    known_factor_N: npt.ArrayLike | None = None,
) -> dict[str, list[dict]]:
    """{"records", "subgroups", "curves"} of a binary task.

    Args:
      predictions: model -> probability [N] at the same held-out prediction times, or [S, N] of several seeds, over
        which metrics are averaged (`seeds`); confusion matrices are of the first.
      y_N: 0/1 labels.
      cohort: the people.
      operating_points: model -> threshold that was chosen on other prediction times, or one for each row, of its fold
        [N]; models without one have no confusion matrix. "threshold" records their mean. A matrix with a cell of fewer
        people than task.suppression.min_per_class is hidden.
      known_factor_N: inverse probability of each label being known (`survival.horizon_factor`): adds "<metric>_ipcw",
        which estimate the whole cohort and not only those whose label is known; so do the decision curves then.
    """
    task, points = task.among(predictions), operating_points or {}
    weighted, plain = {}, decision.THRESHOLDS if known_factor_N is None else ()
    if known_factor_N is not None:
        build = seeds.averaged(
            seeds.by_seed(predictions, lambda p, _: builders.binary(y_N, p, factor_N=known_factor_N))
        )
        weighted = _deferred(IPCW, build, len(np.asarray(y_N)))
    whole = seeds.by_seed(
        predictions,
        lambda p, _: builders.binary(y_N, p, operating_points=points, thresholds=plain, slopes=True),
    )
    by_cell = seeds.by_seed(predictions, lambda p, _: builders.binary(y_N, p, thresholds=()))
    scored = _estimate(task, y_N, cohort, seeds.averaged(whole), seeds.averaged(by_cell), weighted)
    predictions = seeds.first_of(predictions)
    records = protocol.binary_records(task, predictions, y_N, scored.of_cohort())
    records += _spread_records(task, records[0], by_cell, protocol.BINARY_METRICS)
    common = task.common(records[0]["n"], records[0]["n_positive"])
    wanted = ("prevalence", "brier_null", "brier_skill", "calibration_slope", "calibration_intercept", "ece_corrected",
              "mean_gap", *CONFUSION)  # fmt: skip
    records += _cohort_records(task, records, scored, wanted.__contains__)
    few = {m for m, threshold in points.items() if m in predictions and disclosure.matrix_tells_few(
        y_N, np.asarray(predictions[m]) >= threshold, cohort.group_N, task.suppression.min_per_class)}  # fmt: skip
    records = disclosure.without(records, disclosure.TELL_MATRIX, frozenset(few))
    records += [protocol.record(common, m, "threshold", float(np.mean(points[m]))) for m in predictions if m in points]
    records += _bootstrap_z(task, common, scored.of_cohort())
    for key in weighted:
        for metric in (m for m in scored.estimates.values[key] if m in WEIGHTED):
            value, samples_B = scored.estimates.values[key][metric], scored.estimates.resampled(key, metric)
            records.append(protocol.record(common, key[1], f"{metric}_{IPCW}", value, samples_B))
    metrics = ("auroc", "auprc", "brier", "ece", "mean_gap")
    by_group = _subgroup_records(task, scored, metrics, ("auroc",))
    if weighted:
        for_everybody = scored.estimates.under({model: (IPCW, model) for model in scored.models})
        curves = [c | {"weighted": True} for c in _decision_curves(task, for_everybody)]
    else:
        curves = _decision_curves(task, scored.of_cohort())
    return {"records": records, "subgroups": by_group, "curves": curves}


def _bootstrap_z(task: TaskSpec, common: Record, estimates: Estimates) -> list[Record]:
    """Differences of AUROC in units of their bootstrap standard error."""
    reference, out = task.reference_model, []
    for model in estimates.values if reference is not None and estimates.samples else ():
        difference, delta_B = estimates.difference(reference, model, "auroc")
        if model != reference and np.isfinite(difference):
            z = inference.bootstrap_z(difference, delta_B)
            out.append(protocol.record(common, f"{reference} - {model}", "auroc_difference_z", z))
    return out


def probe_spread(task: TaskSpec, seeds: Mapping[str, np.ndarray], y_N: npt.ArrayLike, like: Record) -> list[Record]:
    """ "auroc_probe_sd": spread of AUROC over the seeds of trained probes (initialisation and order of rows).

    Args:
      seeds: model -> probability [S, N].
      like: a record of the task, for its counts.
    """
    common, out = task.common(like["n"], like["n_positive"]), []
    for model, p_SxN in seeds.items():
        if len(p_SxN) > 1:
            sd = float(np.std([float(classification.auroc(y_N, p_N)) for p_N in p_SxN], ddof=1))
            out.append(protocol.record(common, model, "auroc_probe_sd", sd))
    return out


def _spread_records(task: TaskSpec, like: Record, builds: Mapping[str, Sequence[Build]], metrics) -> list[Record]:
    """How far the seeds of the models lie apart, see `seeds.spread`."""
    common = task.common(like["n"], like["n_positive"])
    found = seeds.spread(builds, like["n"], metrics, task.reference_model)
    return [protocol.record(common, f["model"], f["metric"], f["value"]) for f in found]


def _decision_curves(task: TaskSpec, estimates: Estimates) -> list[dict]:
    """[{kind: "decision", task, model, x: thresholds, value, lo, hi}] with "treat all" as a model."""
    out: list[dict] = []
    for model in map(str, estimates.values):
        out.append(_decision_curve(task, estimates, model, "net_benefit_"))
        if len(out) == 1:
            out.append(_decision_curve(task, estimates, model, "net_benefit_all_") | {"model": "treat_all"})
    return out


def _decision_curve(task: TaskSpec, estimates: Estimates, model: str, prefix: str) -> dict:
    names = [f"{prefix}{k}" for k in range(len(decision.THRESHOLDS))]
    bounds = [inference.interval(estimates.resampled(model, name)) for name in names]
    return {
        "kind": "decision", "task": task.name, "model": model, "x": list(decision.THRESHOLDS),
        "value": [number(estimates.values[model][name]) for name in names],
        "lo": [number(b.lo) for b in bounds], "hi": [number(b.hi) for b in bounds],
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- other tasks


def usable_horizons(
    wanted: Sequence[float],
    held_out: FollowUp,
    group_N: npt.ArrayLike,
    train: Sequence[FollowUp] = (),
    min_events: int = 0,
    note: Callable[[str], None] = logging.info,
) -> list[float]:
    """The horizons at which a time-to-event task can be scored.

    A horizon lies before the end of the follow-up of the held-out rows and of every fold's training rows (so that the
    censoring can be weighted), and enough of the held-out people have had the event by then.

    Args:
      wanted: days. held_out: of the rows that are scored. group_N: their people.
      train: of each fold. min_events: fewest people with the event.
      note: is told of each horizon that is left out, and why.
    """
    ends, out = [float(np.max(f.time_N)) for f in (held_out, *train)], []
    time_N, had_N = np.asarray(held_out.time_N), np.asarray(held_out.event_N, bool)
    for horizon in sorted({float(h) for h in wanted}):
        people = len(np.unique(np.asarray(group_N)[had_N & (time_N <= horizon)]))
        if horizon >= min(ends):
            note(f"  horizon of {horizon:g} days left out: follow-up ends after {min(ends):.0f}")
        elif people < min_events:
            note(f"  horizon of {horizon:g} days left out: {people} people have the event by then")
        else:
            out.append(horizon)
    return out


def score_time(
    task: TaskSpec,
    predictions: Mapping[str, np.ndarray],
    follow_up: FollowUp,
    cohort: Cohort,
    *,
    train: TrainingCurves,
    horizons: Sequence[float] = (),
    curves: PredictedCurves | None = None,
) -> dict[str, list[dict]]:
    """{"records", "subgroups", "curves"} of a time-to-event task.

    With competing events people are ranked by the predicted incidence at the last horizon where a model has curves:
    whoever is likely to die first may have a high hazard of the event and a low risk of ever having it.

    Args:
      predictions: model -> risk [N], higher = earlier event, or [S, N] of several seeds (`seeds`).
      follow_up: of the held-out prediction times.
      cohort: the people.
      train: censoring and null, estimated on the training rows, of each row's own fold.
      horizons: days of AUC(t), inside the follow-up of both (`usable_horizons`); the last one is tau, where Uno's C
        ends. Without one, tau is the last time at which somebody in training is under observation. It is recorded.
      curves: adds Brier(t) and its integral beside the null; [N, T], or [S, N, T] of several seeds.
    """
    task, tau = task.among(predictions), min(max(horizons, default=np.inf), train.last_time())
    if tau < max(horizons, default=np.inf):
        logging.info("  %s: Uno's C ends at tau = %g days, where the censoring leaves nobody", task.name, tau)
    at_tau = {}
    if curves is not None and tau in horizons:  # [N], or [S, N]
        at_tau = {m: np.asarray(v)[..., list(curves.times_T).index(tau)] for m, v in curves.by_model.items()}
    if follow_up.any_competing:
        predictions = {m: 1 - at_tau[m] if m in at_tau else risk for m, risk in predictions.items()}

    def make(p, seed):
        return builders.time_to_event(
            train, follow_up, p, horizons=horizons, tau=tau, curves=_curves_of(curves, list(p), seed)
        )

    whole = seeds.by_seed(predictions, make)
    by_cell = seeds.by_seed(predictions, lambda p, _: builders.time_to_event(train, follow_up, p, tau=tau))
    scored = _estimate(task, follow_up.event_N, cohort, seeds.averaged(whole), seeds.averaged(by_cell))
    predictions = seeds.first_of(predictions)
    at_tau = seeds.first_of(at_tau)
    records = protocol.survival_records(task, follow_up, scored.of_cohort())
    records += _spread_records(task, records[0], by_cell, ("c_index", "uno_c"))
    shown = {f"{kind}_{h:g}{end}" for h in horizons for kind in ("auc", "brier") for end in ("", "_null")}
    shown |= {"uno_c", "ibs", "ibs_null", "ibs_skill"}
    records += _cohort_records(task, records, scored, shown.__contains__)
    common = task.common(records[0]["n"], records[0]["n_positive"])
    records += [protocol.record(common, m, "tau", tau) for m in predictions if np.isfinite(tau)]
    compared = ("uno_c", *(f"auc_{h:g}" for h in horizons), "ibs", "ibs_skill")
    records += protocol.paired(task, common, scored.of_cohort(), compared)
    by_group = _subgroup_records(task, scored, ("c_index", "uno_c"), ("c_index",))
    drawn = []
    for model, risk_N in predictions.items():
        drawn += evaluate_curves.by_quartile(task, model, risk_N, follow_up, cohort.group_N)
    if at_tau:
        drawn += evaluate_curves.censored_decision(task, at_tau, tau, follow_up, cohort.group_N)
    return {"records": records, "subgroups": by_group, "curves": drawn}


def _curves_of(curves: PredictedCurves | None, models: Sequence[str], seed: int) -> PredictedCurves | None:
    """The curves of one seed of some models."""
    if curves is None:
        return None
    found = {m: np.asarray(curves.by_model[m]) for m in models if m in curves.by_model}
    return dataclasses.replace(curves, by_model={m: v if v.ndim == 2 else v[seed] for m, v in found.items()})


def score_regression(
    task: TaskSpec,
    predictions: Mapping[str, np.ndarray],
    y_N: np.ndarray,
    cohort: Cohort,
    *,
    train_sd: npt.ArrayLike | None = None,
) -> dict[str, list[dict]]:
    """{"records", "subgroups", "curves": []} of a continuous task, in the target's unit.

    Args:
      predictions: model -> value [N], or [S, N] of several seeds (`seeds`).
      y_N: targets.
      cohort: the people.
      train_sd: standard deviation at the training prediction times, of all or of each row's own fold [N]: adds
        "rmse_sd", the RMSE in units of it.
    """
    # cells are suppressed by their patients alone: a continuous target has no classes
    limits = dataclasses.replace(task.suppression, min_per_class=0)
    task = dataclasses.replace(task.among(predictions), suppression=limits)
    builds = seeds.by_seed(predictions, lambda p, _: builders.continuous(y_N, p))
    build = seeds.averaged(builds)
    sd_N = np.broadcast_to(np.asarray(0.0 if train_sd is None else train_sd, np.float64), (len(y_N),))
    scaled = {}
    if (sd_N > 0).all():
        in_sd = seeds.by_seed(
            predictions,
            lambda p, _: builders.continuous(y_N / sd_N, {m: p_N / sd_N for m, p_N in p.items()}),
        )
        scaled = _deferred(IN_SD, seeds.averaged(in_sd), len(y_N))
    scored = _estimate(task, np.ones(len(y_N)), cohort, build, build, scaled)
    estimates, common, records = scored.of_cohort(), task.common(len(y_N), None), []
    for model in predictions:
        for metric, value in estimates.values[model].items():
            records.append(protocol.record(common, model, metric, value, estimates.resampled(model, metric)))
    records += protocol.paired(task, common, estimates, ("rmse",))
    for key in scaled:
        value, samples_B = scored.estimates.values[key]["rmse"], scored.estimates.resampled(key, "rmse")
        records.append(protocol.record(common, key[1], IN_SD, value, samples_B))
    if records:
        records += _spread_records(task, records[0], builds, ("rmse", "r2"))
    by_group = _subgroup_records(task, scored, ("rmse", "mae", "r2"), ("rmse",))
    return {"records": records, "subgroups": [r | {"n_positive": None} for r in by_group], "curves": []}
