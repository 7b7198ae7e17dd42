"""Runs the evaluate stage: predictions of every model for every task, and their scores.

A task's scores are an artifact that depends on all models' predictions. Its folder holds

scores.json                 {records, subgroups, curves, fractions, prevalence, trials} of the task, and too_few
                            where it has too few people for numbers
meds_evaluation.json        {model: numbers by meds-evaluation's definitions} of a binary task
predictions/<model>.parquet held-out predictions: binary tasks in the MEDS prediction schema; time_to_event_days,
                            event_observed, competing_event where there is one, predicted_log_hazard and
                            predicted_survival_<days>d (P(no event by then)); float_value and predicted_float_value
tuning/<model>.parquet      the same of the tuning split, binary tasks only: thresholds are chosen there
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.config.evaluation import EvaluateConfig
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.formats.label_tables import COMPETING
from ehrwear_jax.data.sources.simulator import truth
from ehrwear_jax.evals import classification, families, meds_predictions, seeds, subgroups
from ehrwear_jax.evals.builders import PredictedCurves
from ehrwear_jax.evals.estimates import Resampling
from ehrwear_jax.evals.protocol import TaskSpec
from ehrwear_jax.evals.survey import Design
from ehrwear_jax.evals.survival import TrainingCurves
from ehrwear_jax.report.result_records import horizon_of
from ehrwear_jax.runtime import files, memory
from ehrwear_jax.stages import (
    evaluate_censoring,
    evaluate_curves,
    evaluate_fractions,
    evaluate_score,
    evaluate_subgroups,
    evaluate_too_few,
    predictors,
    target_trial,
    tasks,
)
from ehrwear_jax.stages.artifacts import Artifact
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.evaluate_score import Cohort
from ehrwear_jax.stages.labels import HOSPITALIZATION
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.predictors import Predicted
from ehrwear_jax.stages.tasks import BINARY, REGRESSION, SPLITS, SURVIVAL, Task

SURVIVAL_COLUMNS = ("time_to_event_days", "event_observed", COMPETING)
SCORES, MEDS_EVALUATION = "scores.json", "meds_evaluation.json"
_TRUTHS_AT_ONCE = 2048  # prediction times
DETAILS = ("subgroups", "curves", "fractions", "prevalence", "trials", "too_few")
# Options of config.evaluate that the scores do not depend on; those of probes, their predictions do, and the horizons
# that a task has are named beside.
NOT_SCORES = ("tasks", "probe", "probe_hidden", "probe_seeds", "label_tasks", "sex_prefixes",
              "horizons_days", "task_horizons_days", "min_horizon_events")  # fmt: skip


def missing(plan: Plan) -> list[str]:
    """Names of the tasks that are not scored; those that cannot be are not among them, unless there is no other."""
    found = tasks.evaluated(plan)
    return [t.name for t in found if not scores(plan, t).done] if found else list(plan.config.evaluate.tasks)


def run(plan: Plan) -> None:
    """Computes what is missing, and says which tasks are left out.

    Raises:
      ValueError: no task is left, or a model cannot be fitted.
    """
    left_out = tasks.left_out(plan)
    for name, why in left_out.items():
        logging.warning("  %s is left out: %s", name, why)
    if len(left_out) == len(plan.config.evaluate.tasks):
        told = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise ValueError(f"config.evaluate.tasks: no task can be evaluated ({told})")
    evaluate_subgroups.held_out_attributes(plan)
    memory.give_back()
    for task in tasks.evaluated(plan):
        for note in task.notes:
            logging.info(note)
        predicted = predictors.predict(plan, task)
        artifact = scores(plan, task)
        if not artifact.done:
            with artifact.making() as folder:
                found = _Scoring(plan, task, predicted, folder).score()
                files.write_json(folder / SCORES, found, indent=1)
            memory.give_back()
        _log(task, json.loads((artifact.folder / SCORES).read_text())["records"])


def results(plan: Plan) -> tuple[list[dict], dict[str, list]]:
    """(records of all tasks, with q within their families, {subgroups, ..., demographics, families})."""
    records: list[dict] = []
    details: dict[str, list] = {name: [] for name in DETAILS}
    for task in tasks.evaluated(plan):
        found = json.loads((scores(plan, task).folder / SCORES).read_text())
        records += found["records"]
        for name in DETAILS:
            details[name] += found.get(name, [])
    details["demographics"] = evaluate_subgroups.demographics(
        evaluate_subgroups.described(plan), plan.config.evaluate.min_per_class
    )
    adjusted, primary = families.primary(records)
    details["subgroups"], of_subgroups = families.of_subgroups(details["subgroups"])
    details["families"] = primary + of_subgroups
    return records + adjusted, details


def scores(plan: Plan, task: Task) -> Artifact:
    """Where a task's scores lie."""
    made = [(p.name, p.seed, predictors.predictions_artifact(plan, task, p)) for p in predictors.predictors(plan, task)]
    settings = {k: v for k, v in dataclasses.asdict(plan.config.evaluate).items() if k not in NOT_SCORES}
    of = {
        "dataset": plan.config.name,
        "predictions": [(name, seed, artifact.digest) for name, seed, artifact in made],
        "evaluate": settings | {"fractions": task.name in label_tasks(plan), "horizons": task.horizons},
        "attributes": [evaluate_subgroups.attributes_artifact(plan, fold).digest for fold, _ in plan.config.folds],
        "times": evaluate_censoring.identity(plan, task) if task.kind == BINARY else None,
        "people": files.digest(tasks.held_out_groups(plan).tolist()),
        "seed": plan.config.data.seed,
    }
    if plan.config.evaluate.survey_weight:
        table = meds.survey_path(plan.meds_dir)
        of["survey"] = files.digest_file(table) if table.exists() else None
    return plan.artifact("scores", task.name, of)


def label_tasks(plan: Plan) -> tuple[str, ...]:
    """Tasks that are fitted on fractions of the labels: those of the config, else the last binary one, or survival."""
    if plan.config.evaluate.label_tasks:
        return plan.config.evaluate.label_tasks
    found = tasks.evaluated(plan)
    of_kind = [[t.name for t in found if t.kind == kind] for kind in (BINARY, SURVIVAL)]
    return tuple((of_kind[0] or of_kind[1])[-1:])


def _log(task, records):
    if not records:
        logging.warning("  %s: too few held-out people or events: no numbers", task.name)
    for r in records:
        if r["metric"] in ("auroc", "auprc", "c_index", "rmse"):
            value = "undefined" if r["value"] is None else f"{r['value']:.3f}"
            interval = "" if r["lo"] is None else f"[{r['lo']:.3f}, {r['hi']:.3f}]"
            logging.info("  %-28s %-22s %-8s %s %s", task.name, r["model"], r["metric"], value, interval)


# ------------------------------------------------------------------------------------------------- one task


def task_spec(
    config: EvaluateConfig, dataset: str, name: str, seed: int, universe: np.ndarray, design: Design | None = None
) -> TaskSpec:
    """What the protocol takes of a task; universe: groups that are resampled. design: see Resampling."""
    resampling = Resampling(config.n_resamples, seed, universe, design)
    limits = subgroups.Suppression(config.min_patients, config.min_per_class)
    return TaskSpec(dataset, name, config.reference_model or None, resampling, limits)


class _Scoring:
    """Scores the predictions of one task.

    Args:
      predicted: of every model. Of a network with several seeds, metrics are means over them, and the predictions that
        are written those of the first.
      folder: receives the predictions in the formats of the module's docstring.
    """

    def __init__(self, plan: Plan, task: Task, predicted: list[Predicted], folder: Path) -> None:
        self._plan, self._task, self._folder, self._config = plan, task, folder, plan.config.evaluate
        first = {None, plan.config.seeds[0]}
        self._models = {p.name: p for p in predicted if p.seed in first}
        self._further = [p for p in predicted if p.seed not in first]
        self._held = task.of("held_out")
        universe = tasks.held_out_groups(plan)
        seed, design = plan.config.data.seed, tasks.survey_design(plan)
        self._spec = task_spec(self._config, plan.config.name, task.name, seed, universe, design)

    def score(self) -> dict[str, Any]:
        """{records, subgroups, curves, fractions, prevalence, trials}."""
        plan, task = self._plan, self._task
        known = evaluate_subgroups.held_out_attributes(plan)
        at_times = self._held.join(known.drop("split"), on=KEYS, how="left", maintain_order="left")
        cohort = Cohort(task.group_N, evaluate_subgroups.levels(self._config, at_times))
        found = {BINARY: self._binary, SURVIVAL: self._survival}.get(task.kind, self._regression)(cohort)
        limit, label = self._config.min_per_class, None
        if task.kind != REGRESSION:
            label = self._held["boolean_value" if task.kind == BINARY else "event_observed"].to_numpy()
            found = evaluate_score.protected(found, label, cohort, limit)
        few = evaluate_too_few.counted(self._config, task.name, task.kind, label, cohort.group_N)
        found = evaluate_too_few.withheld(found, few)
        if few is None and task.name in label_tasks(plan):
            found["fractions"] = evaluate_fractions.label_efficiency(plan, task, self._spec)
        times = pl.concat([task.of(s) for s in SPLITS])
        found["trials"] = [target_trial.counts(plan, task)]
        return found | {"prevalence": evaluate_subgroups.prevalence(task.name, times, task.column, limit)}

    def _binary(self, cohort):
        plan, task, y_N = self._plan, self._task, self._held["boolean_value"].to_numpy()
        predictions = self._by_seed("held_out")
        for name, p in self._models.items():
            _save(self._folder / "tuning", name, task.of("tuning"), p.tuning)
        tuned = {name: p.tuning for name, p in self._models.items()}
        points = operating_points(task, tuned, self._config.sensitivity)
        name, days = horizon_of(task.name) or (task.name, 0.0)
        simulated = plan.config.data.source == "synthetic" and name == HOSPITALIZATION
        if simulated and days in plan.simulate.horizons_days:
            predictions["oracle"] = _oracle(plan.raw.folder / "truth", self._held.select(KEYS), int(days))
        first = seeds.first_of(predictions)
        for name, p_N in first.items():
            _save(self._folder / "predictions", name, self._held, p_N)
        meds = {
            path.stem: meds_predictions.evaluate_binary(meds_predictions.read(path))
            for path in sorted((self._folder / "predictions").glob("*.parquet"))
        }
        files.write_json(self._folder / MEDS_EVALUATION, meds, indent=1)
        known_factor_N, follow_up = evaluate_censoring.time_behind(plan, task) or (None, None)
        found = evaluate_score.score_binary(
            self._spec, predictions, y_N, cohort, operating_points=points, known_factor_N=known_factor_N
        )
        if follow_up is not None:
            for name, p_N in first.items():
                found["curves"] += evaluate_curves.by_quartile(
                    self._spec, name, p_N, follow_up, cohort.group_N, known_factor_N
                )
        probes = {name: p.seeds_SxN for name, p in self._models.items() if p.seeds_SxN is not None}
        found["records"] += evaluate_score.probe_spread(self._spec, probes, y_N, found["records"][0])
        return found

    def _by_seed(self, what: str) -> dict[str, np.ndarray]:
        """model -> its predictions ("held_out") or curves ("curve_NxT"), stacked over seeds where there are several."""
        out = {}
        for name, p in self._models.items():
            parts = [getattr(q, what) for q in (p, *(q for q in self._further if q.name == name))]
            if all(part is not None for part in parts):
                out[name] = parts[0] if len(parts) == 1 else np.stack(parts)
        return out

    def _survival(self, cohort):
        task, predictions, curves = self._task, self._by_seed("held_out"), self._by_seed("curve_NxT")
        first_curves = seeds.first_of(curves, 2)
        for name, risk_N in seeds.first_of(predictions).items():
            at = {f"predicted_survival_{t:g}d": first_curves[name][:, k] for k, t in enumerate(task.times_T)
                  if t in task.horizons}  # fmt: skip
            labels = [c for c in SURVIVAL_COLUMNS if c in self._held.columns]
            self._save_columns(name, labels, {"predicted_log_hazard": risk_N, **at})
        by_fold = [tasks.follow_up_of(fold.of("train")) for fold in task.folds]
        train, held = TrainingCurves.fit_folds(by_fold, task.fold_N), tasks.follow_up_of(self._held)
        predicted = PredictedCurves(task.times_T, curves) if len(task.times_T) else None
        return evaluate_score.score_time(
            self._spec, predictions, held, cohort, train=train, horizons=task.horizons, curves=predicted
        )

    def _regression(self, cohort):
        predictions = self._by_seed("held_out")
        for name, value_N in seeds.first_of(predictions).items():
            self._save_columns(name, ("float_value",), {"predicted_float_value": value_N})
        y_N = self._held["float_value"].to_numpy().astype(np.float64)
        spreads = [fold.of("train")["float_value"].cast(pl.Float64).std() for fold in self._task.folds]
        sd_F = np.array([s if isinstance(s, float) else 0.0 for s in spreads])  # None of fewer than two
        sd_N = sd_F[self._task.fold_N]
        return evaluate_score.score_regression(self._spec, predictions, y_N, cohort, train_sd=sd_N)

    def _save_columns(self, model: str, labels: Sequence[str], columns: Mapping[str, np.ndarray]) -> None:
        folder = self._folder / "predictions"
        folder.mkdir(exist_ok=True)
        values = {k: pl.Series(v, dtype=pl.Float64) for k, v in columns.items()}
        self._held.select(*KEYS, *labels).with_columns(**values).write_parquet(folder / f"{model}.parquet")


def operating_points(task: Task, tuning: Mapping[str, np.ndarray], sensitivity: float) -> dict[str, float | np.ndarray]:
    """model -> threshold on each fold's own tuning people, for the fold's held-out ones: one, or [N] of several folds.

    Without a positive in the tuning split of every fold there is none.

    Args:
      tuning: model -> probability [N] in the order of task.of("tuning").
    """
    y_F = [fold.of("tuning")["boolean_value"].to_numpy() for fold in task.folds]
    if not all(y_N.any() for y_N in y_F):
        return {}
    ends, out = np.cumsum([len(y_N) for y_N in y_F])[:-1], {}
    for model, p_N in tuning.items():
        parts = zip(y_F, np.split(p_N, ends), strict=True)
        threshold_F = np.array([classification.sensitivity_threshold(y, p, sensitivity) for y, p in parts])
        out[model] = float(threshold_F[0]) if len(y_F) == 1 else threshold_F[task.fold_N]
    return out


def _oracle(folder, times, days):
    """The true risk at prediction times, some at a time: what lies behind it is a row a day of each of their people."""
    parts = [truth.oracle_risk(folder, part, days) for part in times.iter_slices(_TRUTHS_AT_ONCE)]
    return np.concatenate(parts) if parts else np.empty(0)


def _save(folder, model, times, p_N):
    folder.mkdir(exist_ok=True)
    table = meds_predictions.predictions(times["subject_id"], times["prediction_time"], times["boolean_value"], p_N)
    meds_predictions.write(table, folder / f"{model}.parquet")
