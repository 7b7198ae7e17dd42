"""Evaluates frozen embeddings by probes, beside tabular baselines: intervals, predictions and results on disk.

predictions/<task>/<model>.parquet  held-out predictions: binary tasks in the MEDS prediction schema;
                                    time_to_event_days, event_observed, predicted_log_hazard and
                                    predicted_survival_<days>d; float_value and predicted_float_value
tuning/<task>/<model>.parquet       the same of the tuning split, binary tasks only: thresholds are chosen there
attributes.parquet                  what is known of the person at every prediction time (evaluate_subgroups.py)
results.json                        the records of all tasks, with q-values over the family (dataset, metric)
details.json                        {subgroups, curves, fractions, prevalence, demographics}
"""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.data.labels import outcomes
from ehrwear_jax.data.prepare import deidentify, specs
from ehrwear_jax.data.sources.simulator import simulate
from ehrwear_jax.evals import classification, meds_predictions, protocol, subgroups, survival
from ehrwear_jax.evals.builders import PredictedCurves
from ehrwear_jax.evals.estimates import Resampling
from ehrwear_jax.evals.survival import FollowUp
from ehrwear_jax.stages import (
    evaluate_curves,
    evaluate_features,
    evaluate_fit,
    evaluate_score,
    evaluate_subgroups,
    fine_tuned,
    prepare,
)
from ehrwear_jax.stages.evaluate_fit import BINARY, REGRESSION, SURVIVAL
from ehrwear_jax.stages.evaluate_score import Cohort
from ehrwear_jax.stages.evaluate_subgroups import KEYS

SPLITS = ("train", "tuning", "held_out")
DETAILS = ("subgroups", "curves", "fractions", "prevalence")
GRID_POINTS = 24  # of the integrated Brier score, beside the horizons


def run(config: Any, workdir: str | os.PathLike) -> None:
    """Writes what the module's docstring lists; tasks that are there already are not computed again."""
    workdir = Path(workdir)
    prepare.prediction_index(config, workdir)  # a label table that is missing is an error before the long work
    features = {fold: evaluate_features.of_fold(config, workdir, fold) for fold, _ in config_lib.folds(config)}
    known = _attributes(config, workdir, next(iter(features.values()))[0])
    records, details = [], {name: [] for name in DETAILS}
    for task in config.evaluate.tasks:
        path = workdir / "evaluate" / f"{task}.json"
        if not path.exists():
            _write_json(_evaluate(config, workdir, task, features, known), path)
        found = json.loads(path.read_text())
        records += found.pop("records")
        for name in DETAILS:
            details[name] += found.get(name, [])
        _log(task, records)
    _write_json(records + protocol.adjust(records), workdir / "evaluate" / "results.json")
    _write_json(_as_meds_evaluation(workdir / "evaluate"), workdir / "evaluate" / "meds_evaluation.json")
    details["demographics"] = evaluate_subgroups.demographics(known)
    _write_json(details, workdir / "evaluate" / "details.json")


def _as_meds_evaluation(folder):
    out = {}
    for path in sorted((folder / "predictions").glob("*/*.parquet")):
        if "boolean_value" in pl.read_parquet_schema(path):
            found = meds_predictions.evaluate_binary(meds_predictions.read(path))
            out.setdefault(path.parent.name, {})[path.stem] = found
    return out


def _attributes(config, workdir, keys):
    """At every prediction time of the first fold's people, with `split`; taken from disk where they are there."""
    path = workdir / "evaluate" / "attributes.parquet"
    if not path.exists():
        table = evaluate_subgroups.attributes(config, workdir, keys)
        table = table.join(keys.select(*KEYS, "split"), on=KEYS)
        table.write_parquet(f"{path}.partial")
        os.replace(f"{path}.partial", path)
    return pl.read_parquet(path)


def _write_json(value, path):
    # written whole or not at all: what is there is not computed again when the stage resumes
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1))
    os.replace(partial, path)


def _log(task, records):
    for r in records:
        if r["task"] == task and r["metric"] in ("auroc", "auprc", "c_index", "rmse"):
            value = "undefined" if r["value"] is None else f"{r['value']:.3f}"
            interval = "" if r["lo"] is None else f"[{r['lo']:.3f}, {r['hi']:.3f}]"
            logging.info("  %-28s %-22s %-8s %s %s", task, r["model"], r["metric"], value, interval)


def _by_split(times, matrix):
    """{split: the features at its prediction times}."""
    return {s: matrix[times.filter(pl.col("split") == s)["at"].to_numpy()] for s in SPLITS}


def _column(times, name, dtype):
    return {s: times.filter(pl.col("split") == s)[name].to_numpy().astype(dtype) for s in SPLITS}


# ------------------------------------------------------------------------------------------------- one task


@dataclasses.dataclass(frozen=True)
class _Fold:
    """A task in one fold: its labelled prediction times, and by split the labels and, by model, the features.

    features holds the matrices of all prediction times, x those of the labelled ones; the hand-made features are the
    table of all prediction times in both.
    """

    name: str
    times: pl.DataFrame
    target: Mapping[str, Any]
    x: Mapping[str, Any]
    features: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Task:
    """A task over all folds.

    Attributes:
      kind: BINARY, SURVIVAL or REGRESSION. column: of the label.
      train, tuning, held: labelled prediction times; held in the order of the predictions.
      horizons, times_T: of a time-to-event task, see `_horizons`.
    """

    name: str
    kind: str
    column: str
    folds: tuple[_Fold, ...]
    train: pl.DataFrame
    tuning: pl.DataFrame
    held: pl.DataFrame
    horizons: tuple[float, ...] = ()
    times_T: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))

    @property
    def group_N(self) -> np.ndarray:
        return self.held["group_id"].to_numpy()


def _task(config, workdir, name, features) -> _Task:
    table = prepare.label_table(config, workdir, name)
    column = table.columns[2]
    kind, folds = evaluate_fit.VALUE_COLUMN[column], []
    for fold, _ in config_lib.folds(config):
        keys, matrices = features[fold]
        times = table.join(keys, on=KEYS, how="inner").sort(KEYS)
        x = {model: m if model == "tabular" else _by_split(times, m) for model, m in matrices.items()}
        folds.append(_Fold(fold, times, _target(times, kind, column), x, matrices))
    train, tuning, held = (pl.concat([f.times.filter(pl.col("split") == s) for f in folds]) for s in SPLITS)
    train = train.unique(KEYS, maintain_order=True)
    task = _Task(name, kind, column, tuple(folds), train, tuning, held)
    if kind != SURVIVAL:
        return task
    horizons, times_T = _horizons(config, held, train)
    return dataclasses.replace(task, horizons=horizons, times_T=times_T)


def _target(times, kind, column):
    if kind == SURVIVAL:
        time, event = _column(times, "time_to_event_days", np.float64), _column(times, "event_observed", bool)
        return {s: (time[s], event[s]) for s in SPLITS}
    return _column(times, column, np.float64)


def _horizons(config, held, train):
    """(horizons inside the follow-up of training and held-out times, grid of the curves with them)."""
    ends = [t["time_to_event_days"].to_numpy() for t in (train, held)]
    horizons = evaluate_score.usable_horizons(config.evaluate.horizons_days, *ends)
    if not horizons:
        logging.info("  no horizon of config.evaluate.horizons_days lies inside the follow-up: no AUC(t), no Brier(t)")
        return (), np.empty(0)
    return tuple(horizons), np.union1d(np.linspace(0, max(horizons), GRID_POINTS + 1)[1:], horizons)


def _evaluate(config, workdir, name, features, known):
    """{records, subgroups, curves, fractions, prevalence} of a task."""
    task = _task(config, workdir, name, features)
    fitted = _fit_all(config, workdir, task)
    predictions = {model: np.concatenate([f.held_out for f in parts]) for model, parts in fitted.items()}
    at_times = task.held.join(known.drop("split"), on=KEYS, how="left", maintain_order="left")
    cohort, spec = Cohort(task.group_N, evaluate_subgroups.levels(config, at_times)), _spec(config, name, features)
    if task.kind == BINARY:
        found = _binary(config, workdir, task, spec, fitted, predictions, cohort)
        if len(task.folds) == 1 and name in _label_tasks(config, workdir):  # out of fold, training patients differ
            found["fractions"] = evaluate_subgroups.label_efficiency(config, spec, _labelled(task))
    elif task.kind == SURVIVAL:
        found = _survival(workdir, task, spec, fitted, predictions, cohort)
    else:
        found = _regression(workdir, task, spec, predictions, cohort)
    times = pl.concat([task.train, task.tuning, task.held])
    return found | {"prevalence": evaluate_subgroups.prevalence(name, times, task.column)}


def _labelled(task):
    """What label efficiency needs of a task in one fold."""
    (fold,) = task.folds
    groups = fold.times.filter(pl.col("split") == "train")["group_id"].to_numpy()
    x = {model: x for model, x in fold.x.items() if model != "tabular"}
    return evaluate_subgroups.Labelled(x, fold.target, groups, task.group_N)


def _label_tasks(config, workdir):
    """Tasks that are fitted on fractions of the labels: those of the config, else the last binary one."""
    if config.evaluate.label_tasks:
        return config.evaluate.label_tasks
    binary = (t for t in reversed(config.evaluate.tasks)
              if "boolean_value" in prepare.label_table(config, workdir, t).columns)  # fmt: skip
    return (next(binary),)


def _spec(config, name, features):
    universe = evaluate_features.held_out_groups(config, features)
    resampling = Resampling(config.evaluate.n_resamples, config.seed, universe)
    limits = subgroups.Suppression(config.evaluate.min_patients, config.evaluate.min_per_class)
    return protocol.TaskSpec(config.name, name, config.evaluate.reference_model or None, resampling, limits)


def _fit_all(config, workdir, task):
    """{model: [Fitted of each fold]}."""
    fitted = {}
    for fold in task.folds:
        for model, x in fold.x.items():
            for name, found in _fit(config, task, fold, model, x).items():
                strength = "" if found.l2 is None else f": probe with l2 {found.l2:.3g}"
                logging.info("  %s %s, %s%s", fold.name, task.name, name, strength)
                fitted.setdefault(name, []).append(found)
        if task.kind != REGRESSION:
            found = fine_tuned.predictions(config, workdir, fold.name, task.name, fold.times, fold.features)
            for name, predicted in found.items():
                fitted.setdefault(name, []).append(
                    evaluate_fit.finetuned(task.kind, predicted, fold.target, task.times_T)
                )
    return fitted


def _fit(config, task, fold, model, x):
    """{model: Fitted} for a model's embeddings, or for the several models on hand-made features."""
    if model != "tabular":
        return {model: evaluate_fit.probe(config, task.kind, x, fold.target, task.times_T)}
    out = {}
    for suffix, matrix in evaluate_features.tabular_matrices(x, config.evaluate.tabular_by_modality).items():
        x_by_split = _by_split(fold.times, matrix)
        out |= evaluate_fit.from_table(task.kind, suffix, x_by_split, fold.target, task.times_T)
    if task.kind == REGRESSION:
        out["training_mean"] = evaluate_fit.training_mean(fold.target)
    return out


# ------------------------------------------------------------------------------------------------- kinds of task


def _binary(config, workdir, task, spec, fitted, predictions, cohort):
    y_N, points = task.held["boolean_value"].to_numpy(), {}
    for model, parts in fitted.items():
        p_N, y_tuning = np.concatenate([f.tuning for f in parts]), task.tuning["boolean_value"].to_numpy()
        _save(workdir / "evaluate" / "tuning" / task.name, model, task.tuning, p_N)
        if y_tuning.any():
            points[model] = classification.sensitivity_threshold(y_tuning, p_N, config.evaluate.sensitivity)
    if config.data.source == "synthetic" and task.name.startswith("hospitalization_"):
        horizon = int(task.name.removeprefix("hospitalization_").removesuffix("d"))
        truth = prepare.raw_root(config, workdir) / "truth"
        predictions["oracle"] = simulate.oracle_risk(truth, task.held.select(KEYS), horizon)
    for model, p_N in predictions.items():
        _save(workdir / "evaluate" / "predictions" / task.name, model, task.held, p_N)
    behind = _time_behind(config, workdir, task.name, task.held)
    factor_N = behind[0] if behind else None
    found = evaluate_score.score_binary(
        spec, predictions, y_N, cohort, operating_points=points, known_factor_N=factor_N
    )
    for model, p_N in predictions.items() if behind else ():
        found["curves"] += evaluate_curves.by_quartile(spec, model, p_N, behind[1], cohort.group_N)
    seeds = {model: np.concatenate([f.seeds_SxN for f in parts], axis=1)
             for model, parts in fitted.items() if parts[0].seeds_SxN is not None}  # fmt: skip
    found["records"] += evaluate_score.score_seeds(spec, seeds, y_N, found["records"][0]) if seeds else []
    return found


def _time_behind(config, workdir, task, held):
    """(inverse probability of a known label [N], FollowUp of the event) of a horizon task, or None.

    The times come from the label table time_to_<name>; those of hospitalisation from the events, where a death before
    the event is known too. The censoring is that of the prediction times themselves and of those whose label is
    unknown.
    """
    name, _, horizon = task.rpartition("_")
    if not horizon.removesuffix("d").isdigit() or not name:
        return None
    everyone = pl.read_parquet(workdir / "evaluate" / "attributes.parquet").filter(pl.col("split") != "tuning")
    times = _event_times(config, workdir, name, everyone)
    if times is None:
        return None
    mine = held.select(KEYS).join(times, on=KEYS, how="left", maintain_order="left")
    if mine["time_to_event_days"].null_count():
        return None  # the labels were not made from these times
    fitted_on = times.join(everyone, on=KEYS, how="semi")
    censoring = survival.censoring_survival(
        fitted_on["time_to_event_days"].to_numpy(), fitted_on["code"].to_numpy() > 0
    )
    time_N, code_N = mine["time_to_event_days"].to_numpy(), mine["code"].to_numpy()
    days = float(horizon.removesuffix("d"))
    y_N, known_N = survival.horizon_labels(time_N, code_N, days)
    if not known_N.all() or (y_N != held["boolean_value"].to_numpy()).any():
        logging.info("  %s: the labels differ from time_to_%s at the horizon: no weighted variant", task, name)
        return None
    try:
        return survival.horizon_factor(censoring, time_N, code_N, days), FollowUp(time_N, code_N == 1)
    except ValueError as error:
        logging.info("  %s: no weighted variant: %s", task, error)
        return None


def _event_times(config, workdir, name, everyone):
    """Label table time_to_<name> with `code` (0 censored, 1 event, 2 a death before it), or None where unknown."""
    try:
        times = prepare.label_table(config, workdir, f"time_to_{name}").with_columns(died=pl.lit(False))
    except FileNotFoundError:
        prepared = config_lib.prepare_config(config)
        if name != "hospitalization" or deidentify.of(prepared).active:
            return None
        path = workdir / "evaluate" / "time_to_hospitalization.parquet"  # of all horizons
        if not path.exists():
            outcomes.time_to_admission(
                prepare.meds_dir(config, workdir), index=everyone.select(KEYS), bounds=specs.time_bounds(prepared),
                admission_code_prefix=config.labels.admission_code_prefix,
            ).write_parquet(path)  # fmt: skip
        times = pl.read_parquet(path)
    return times.with_columns(pl.when("event_observed").then(1).when("died").then(2).otherwise(0).alias("code"))


def _save(folder, model, times, p_N):
    folder.mkdir(parents=True, exist_ok=True)
    table = meds_predictions.predictions(times["subject_id"], times["prediction_time"], times["boolean_value"], p_N)
    meds_predictions.write(table, folder / f"{model}.parquet")


def _save_columns(workdir, task, model, labels, columns):
    folder = workdir / "evaluate" / "predictions" / task.name
    folder.mkdir(parents=True, exist_ok=True)
    table = task.held.select(*KEYS, *labels).with_columns(
        **{k: pl.Series(v, dtype=pl.Float64) for k, v in columns.items()}
    )
    table.write_parquet(folder / f"{model}.parquet")


def _survival(workdir, task, spec, fitted, predictions, cohort):
    curves = {model: np.concatenate([f.curve_NxT for f in parts]) for model, parts in fitted.items()}
    for model, risk_N in predictions.items():
        at = {f"predicted_survival_{t:g}d": curves[model][:, k] for k, t in enumerate(task.times_T)
              if t in task.horizons}  # fmt: skip
        columns = {"predicted_log_hazard": risk_N, **at}
        _save_columns(workdir, task, model, ("time_to_event_days", "event_observed"), columns)
    train, held = (FollowUp(t["time_to_event_days"].to_numpy(), t["event_observed"].to_numpy())
                   for t in (task.train, task.held))  # fmt: skip
    predicted = PredictedCurves(task.times_T, curves) if len(task.times_T) else None
    return evaluate_score.score_time(
        spec, predictions, held, cohort, train=train, horizons=task.horizons, curves=predicted
    )


def _regression(workdir, task, spec, predictions, cohort):
    for model, value_N in predictions.items():
        _save_columns(workdir, task, model, ("float_value",), {"predicted_float_value": value_N})
    y_N, train_sd = task.held["float_value"].to_numpy().astype(np.float64), task.train["float_value"].std() or 0.0
    return evaluate_score.score_regression(spec, predictions, y_N, cohort, train_sd=float(train_sd))
