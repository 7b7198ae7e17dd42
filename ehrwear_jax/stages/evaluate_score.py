"""From predictions of held-out reads to records, subgroups and curves: of a run, or of anybody's saved predictions."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ehrwear_jax.evals import (
    bootstrap,
    builders,
    calibration,
    classification,
    decision,
    inference,
    protocol,
    subgroups,
    survival,
    weighting,
)
from ehrwear_jax.stages import evaluate_curves

NO_LIMITS = subgroups.Suppression(min_patients=0, min_per_class=0)
CONFUSION = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "tp", "fp", "tn", "fn")


@dataclasses.dataclass(frozen=True)
class Options:
    """What all tasks of a dataset share.

    Attributes:
      universe: all groups of the held-out set, so that tasks share their resamples; None: those of the task.
    """

    dataset: str
    n_resamples: int = 1000
    seed: int = 0
    reference_row: str | None = None
    universe: np.ndarray | None = None
    suppression: subgroups.Suppression = dataclasses.field(default_factory=subgroups.Suppression)

    def resampling(self) -> dict:
        return {"n_resamples": self.n_resamples, "seed": self.seed, "universe": self.universe}


def _number(value):
    return float(value) if value is not None and math.isfinite(value) else None


def _merge(options, task, base, found, wanted):
    """Records of the whole cohort from `subgroups.score`, after those of the protocol, which `base` holds."""
    like = {"dataset": options.dataset, "task": task, "n": base[0]["n"], "n_positive": base[0]["n_positive"]}
    known = {(r["row"], r["metric"]) for r in base}
    return [
        {"dataset": options.dataset, "row": r["row"], "task": task, "metric": r["metric"]}
        | {k: _number(r[k]) for k in ("value", "lo", "hi")}
        | {k: like[k] for k in ("n", "n_positive")}
        | {"seed": options.seed}
        for r in found
        if wanted(r["metric"]) and (r["row"], r["metric"]) not in known
    ]


def _everyone(options, build, y_N, group_N, **arguments):
    """All metrics of the whole cohort, which is never suppressed."""
    return subgroups.score(build, {}, y_N, group_N, suppression=NO_LIMITS, compared=(), **arguments,
                           **options.resampling())  # fmt: skip


def _by_subgroup(options, task, build, attributes, y_N, group_N, compared, **arguments):
    """Records with `task` and `dataset`, values None where undefined; [] without attributes."""
    if not attributes:
        return []
    found = subgroups.score(
        build, attributes, y_N, group_N, suppression=options.suppression, compared=compared,
        reference_row=options.reference_row if options.reference_row in build else None,
        **arguments, **options.resampling(),
    )  # fmt: skip
    return [
        {"dataset": options.dataset, "task": task, **r} | {k: _number(r[k]) for k in ("value", "lo", "hi", "p")}
        for r in found
    ]


def score_binary(
    options: Options,
    task: str,
    predictions: Mapping[str, np.ndarray],
    y_N,
    group_N,
    *,
    attributes: Mapping[str, np.ndarray] | None = None,
    operating_points: Mapping[str, float] | None = None,
    known_factor_N=None,
) -> dict:
    """{"records", "subgroups", "curves"} of a binary task.

    Args:
      predictions: row -> probability [N] of the same held-out reads.
      attributes: name -> level of each read, see `subgroups.score`.
      operating_points: row -> threshold that was chosen on other reads; rows without one have no confusion matrix.
      known_factor_N: inverse probability of each read's label being known (`survival.horizon_factor`): adds
        "<metric>_ipcw", which estimate the whole cohort and not only those whose label is known.
    """
    records = protocol.score_binary(
        dataset=options.dataset, task=task, predictions=predictions, y_N=y_N, group_N=group_N,
        reference_row=options.reference_row if options.reference_row in predictions else None, **options.resampling(),
    )  # fmt: skip
    points = operating_points or {}
    found = []
    for rows, at in (
        ({r: p for r, p in predictions.items() if r in points}, points),
        ({r: p for r, p in predictions.items() if r not in points}, None),
    ):
        if rows:
            found += _everyone(options, builders.binary(y_N, rows, operating_points=at), y_N, group_N)
    wanted = ("prevalence", "ece_corrected", "mean_gap", *CONFUSION)
    records += _merge(options, task, records, found, wanted.__contains__)
    records += [{**records[0], "row": row, "metric": "threshold", "value": points[row], "lo": None, "hi": None}
                for row in predictions if row in points]  # fmt: skip
    records += _effect_sizes(options, task, records, predictions, y_N, group_N)
    if known_factor_N is not None:
        build = builders.binary(y_N, predictions, factor_N=known_factor_N)
        weighted = _everyone(options, build, y_N, group_N)
        weighted = [r | {"metric": f"{r['metric']}_ipcw"} for r in weighted]
        names = [f"{m}_ipcw" for m in ("auroc", "auprc", "brier", "prevalence")]
        records += _merge(options, task, records, weighted, names.__contains__)

    def in_cells(row, p_N):
        edges = calibration.equal_mass_edges(p_N)

        def build(cell_N):
            return weighting.merge(
                classification.BinaryRanking(y_N, p_N, factor_N=cell_N),
                calibration.Calibration(y_N, p_N, edges=edges, gaps=True, factor_N=cell_N),
            )

        return build

    build = {row: in_cells(row, np.asarray(p_N)) for row, p_N in predictions.items()}
    by_group = _by_subgroup(options, task, build, attributes, y_N, group_N, ("auroc",))
    return {"records": records, "subgroups": by_group, "curves": _decision_curves(task, found)}


def _effect_sizes(options, task, base, predictions, y_N, group_N):
    """Differences of AUROC in units of their bootstrap standard error."""
    reference = options.reference_row
    if reference not in predictions or not options.n_resamples:
        return []
    statistics = {r: classification.BinaryRanking(y_N, p_N, auprc=False) for r, p_N in predictions.items()}
    samples = bootstrap.resample(statistics, group_N, options.n_resamples, options.seed, universe=options.universe)
    value = {(r["row"], r["metric"]): r["value"] for r in base}
    out = []
    for row in predictions:
        difference = value.get((f"{reference} - {row}", "auroc_difference"))
        if difference is not None:
            delta_B = samples[reference]["auroc"] - samples[row]["auroc"]
            z = {"row": f"{reference} - {row}", "metric": "auroc_difference_z", "lo": None, "hi": None}
            out.append({**base[0], **z, "value": _number(inference.bootstrap_z(difference, delta_B))})
    return out


def score_seeds(options: Options, task: str, seeds: Mapping[str, np.ndarray], y_N, like) -> list[dict]:
    """Spread of AUROC over the seeds of trained probes, and Cohen's d across them.

    Args:
      seeds: row -> probability [S, N].
      like: a record of the task, for its counts.
    """
    by_row = {row: [classification.auroc(y_N, p_N) for p_N in p_SxN] for row, p_SxN in seeds.items()}
    common = {**like, "lo": None, "hi": None}
    out = [{**common, "row": r, "metric": "auroc_seed_sd", "value": _number(np.std(v, ddof=1))}
           for r, v in by_row.items() if len(v) > 1]  # fmt: skip
    reference = by_row.get(options.reference_row, ())
    for row, values in by_row.items():
        if row != options.reference_row and min(len(values), len(reference)) > 1:
            d = inference.seed_cohens_d(reference, values)
            name = f"{options.reference_row} - {row}"
            out.append({**common, "row": name, "metric": "auroc_difference_d", "value": _number(d)})
    return out


def _decision_curves(task, found):
    """[{kind: "decision", task, row, x: thresholds, value, lo, hi}] with "treat all" as a row."""
    by_row = {}
    for r in found:
        if r["metric"].startswith("net_benefit_"):
            row = "treat_all" if r["metric"].startswith("net_benefit_all_") else r["row"]
            by_row.setdefault(row, {})[int(r["metric"].rpartition("_")[2])] = r
    return [
        {"kind": "decision", "task": task, "row": row, "x": list(decision.THRESHOLDS)}
        | {k: [_number(points[i][k]) for i in range(len(points))] for k in ("value", "lo", "hi")}
        for row, points in by_row.items()
    ]


def usable_horizons(horizons, *times) -> list[float]:
    """The horizons before the end of follow-up of every group of people given."""
    return [float(h) for h in horizons if all(h < np.max(t) for t in times)]


def score_time(
    options: Options,
    task: str,
    predictions: Mapping[str, np.ndarray],
    time_N,
    event_N,
    group_N,
    *,
    train: tuple[np.ndarray, np.ndarray],
    horizons=(),
    curves: Mapping[str, np.ndarray] | None = None,
    times_T=(),
    attributes: Mapping[str, np.ndarray] | None = None,
) -> dict:
    """{"records", "subgroups", "curves"} of a time-to-event task.

    Args:
      predictions: row -> risk [N], higher = earlier event.
      train: (time, event) of the reads on which censoring and the null are estimated.
      horizons: days of AUC(t), inside the follow-up of both (`usable_horizons`); the last one ends Uno's C.
      curves: row -> P(T > t) [N, T] at times_T; adds Brier(t) and its integral beside the Kaplan-Meier null.
    """
    records = protocol.score_survival(
        dataset=options.dataset, task=task, predictions=predictions, time_N=time_N, event_N=event_N, group_N=group_N,
        reference_row=options.reference_row if options.reference_row in predictions else None, **options.resampling(),
    )  # fmt: skip
    censoring, null = survival.censoring_survival(*train), survival.kaplan_meier(*train)
    tau = max(horizons) if len(horizons) else np.inf
    build = builders.time_to_event(
        censoring, time_N, event_N, predictions, horizons=horizons, tau=tau,
        curves=curves if len(times_T) else None, times_T=times_T, null=null,
    )  # fmt: skip
    shown = {f"{kind}_{h:g}{end}" for h in horizons for kind in ("auc", "brier") for end in ("", "_null")}
    shown |= {"uno_c", "ibs", "ibs_null", "ibs_skill"}
    records += _merge(options, task, records, _everyone(options, build, event_N, group_N), shown.__contains__)
    light = builders.time_to_event(censoring, time_N, event_N, predictions, horizons=(), tau=tau)
    by_group = _by_subgroup(options, task, light, attributes, event_N, group_N, ("c_index",))
    drawn = []
    for row, risk_N in predictions.items():
        drawn += evaluate_curves.by_quartile(options, task, row, risk_N, time_N, event_N, group_N)
    if curves and len(horizons):
        at = {row: np.asarray(v)[:, list(times_T).index(tau)] for row, v in curves.items()}
        drawn += evaluate_curves.censored_decision(options, task, at, tau, time_N, event_N, group_N)
    return {"records": records, "subgroups": by_group, "curves": drawn}


def score_regression(
    options: Options, task: str, predictions: Mapping[str, np.ndarray], y_N, group_N, *, attributes=None, train_sd=None
) -> dict:
    """{"records", "subgroups", "curves": []} of a continuous task, in the target's unit.

    Args:
      train_sd: standard deviation of the training reads: adds "rmse_sd", the RMSE in units of it.
    """
    build = builders.continuous(y_N, predictions)
    group_N, everyone = np.asarray(group_N), np.ones(len(y_N))
    reference = options.reference_row if options.reference_row in predictions else None
    found = subgroups.score(build, {}, everyone, group_N, suppression=NO_LIMITS, compared=("rmse",),
                            reference_row=reference, **options.resampling())  # fmt: skip
    base = [{"n": len(y_N), "n_positive": None, "row": "", "metric": ""}]
    records = _merge(options, task, base, found, lambda metric: True)
    p_of = {(r["row"], r["metric"]): r["p"] for r in found if r["p"] is not None}
    for r in list(records):
        if r["metric"] == "rmse_difference":
            p = _number(p_of[r["row"], "rmse_difference"])
            records.append(r | {"metric": "rmse_difference_p", "value": p, "lo": None, "hi": None})
        if r["metric"] == "rmse" and train_sd:
            scaled = {k: None if r[k] is None else r[k] / train_sd for k in ("value", "lo", "hi")}
            records.append(r | {"metric": "rmse_sd"} | scaled)
    # cells are suppressed by their patients alone: a continuous target has no classes
    limits = dataclasses.replace(options.suppression, min_per_class=0)
    by_group = _by_subgroup(
        dataclasses.replace(options, suppression=limits), task, build, attributes, everyone, group_N, ("rmse",)
    )
    by_group = [r | {"n_positive": None} for r in by_group]
    return {"records": records, "subgroups": by_group, "curves": []}
