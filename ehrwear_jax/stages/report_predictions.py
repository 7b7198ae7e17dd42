"""Reports saved predictions of any model: <predictions_dir>/<task>/<model>.parquet, and nothing else.

Three kinds of task, told by the columns of the files:

  boolean_value, predicted_boolean_probability          the MEDS prediction schema
  time_to_event_days, event_observed, competing_event (may be left out), predicted_log_hazard (higher = earlier), and
      where the model has them predicted_survival_<days>d, P(no event by then)
  float_value, predicted_float_value

each with subject_id and prediction_time. Beside the tasks may lie attributes.parquet: subject_id, prediction_time, and
age_years, sex, device or other columns of text, which become subgroups. config.report.tuning_dir holds the binary
tasks' predictions of the tuning split in the same layout. All models of a task have to share their prediction times.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.config.run import RunConfig
from ehrwear_jax.data.formats.label_tables import COMPETING
from ehrwear_jax.evals import classification, disclosure, families, meds_predictions, protocol, subgroups
from ehrwear_jax.evals.builders import PredictedCurves
from ehrwear_jax.evals.estimates import Resampling
from ehrwear_jax.evals.survival import TrainingCurves
from ehrwear_jax.report.build import ReportInputs
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.report.result_records import horizon_of, main_model
from ehrwear_jax.runtime import software
from ehrwear_jax.stages import evaluate_score, evaluate_subgroups, evaluate_too_few, report_inputs, target_trial
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.evaluate_score import Cohort
from ehrwear_jax.stages.tasks import KIND_OF_COLUMN, SURVIVAL, follow_up_of

ATTRIBUTES = "attributes.parquet"
NOT_INTERPRETED = "Mechanisms and attributions of single predictions cannot be computed from saved predictions alone."

# model -> {"p": predictions [N], and of survival "curves": P(T > t) [N, T], "days": [T]}
Predictions = Mapping[str, Mapping[str, np.ndarray]]


def inputs(config: RunConfig) -> ReportInputs:
    """Everything that can be computed from predictions and labels alone.

    Raises:
      ValueError: a file without the columns of a kind, models of a task that differ in their prediction times or
        labels; weights of a survey are asked for.
    """
    if config.evaluate.survey_weight:
        raise ValueError("config.evaluate.survey_weight: of saved predictions people count alike; weigh them in a run")
    folder = Path(config.report.predictions_dir)
    folders = [p for p in folder.iterdir() if p.is_dir() and any(p.glob("*.parquet"))]
    tasks = {p.name: read_task(p) for p in sorted(folders, key=lambda p: horizon_of(p.name) or (p.name, 0.0))}
    if not tasks:
        raise ValueError(f"config.report.predictions_dir: {folder} holds no <task>/<model>.parquet")
    everyone = np.unique(np.concatenate([times["subject_id"].to_numpy() for times, _ in tasks.values()]))
    known = pl.read_parquet(folder / ATTRIBUTES) if (folder / ATTRIBUTES).exists() else None
    records: list[dict] = []
    limit = config.evaluate.min_per_class
    details: dict[str, Any] = {k: [] for k in ("subgroups", "curves", "prevalence", "trials", "too_few")}
    for task, (times, by_model) in tasks.items():
        cohort = Cohort(times["subject_id"].to_numpy(), _levels(config, times, known))
        found = _score(config, _spec(config, task, by_model, everyone), times, by_model, cohort)
        label_N = None
        if (label := next((c for c in ("boolean_value", "event_observed") if c in times.columns), None)) is not None:
            label_N = times[label].to_numpy()
            found = evaluate_score.protected(found, label_N, cohort, limit)
        kind = KIND_OF_COLUMN.get(times.columns[2], SURVIVAL)
        few = evaluate_too_few.counted(config.evaluate, task, kind, label_N, cohort.group_N)
        found = evaluate_too_few.withheld(found, few)
        records += found["records"]
        held = times.with_columns(split=pl.lit("held_out"))
        found["prevalence"] = evaluate_subgroups.prevalence(task, held, times.columns[2], limit)
        found["trials"] = [target_trial.of_saved(task, times, limit, config.evaluate.horizons_of(task))]
        for part in details:
            details[part] += found.get(part, [])
    adjusted, primary = families.primary(records)
    details["subgroups"], of_subgroups = families.of_subgroups(details["subgroups"])
    binary = {t: found for t, found in tasks.items() if "boolean_value" in found[0].columns}
    return ReportInputs(
        title=config.report.title or config.name,
        subtitle=f"dataset {config.name}, from saved predictions; made on {datetime.now(UTC):%Y-%m-%d} with "
        f"ehrwear_jax {software.version()}",
        dataset=config.name,
        results=records + adjusted,
        predictions={
            t: {m: (times["boolean_value"].to_numpy().astype(int), v["p"]) for m, v in by_model.items()}
            for t, (times, by_model) in binary.items()
            if not disclosure.tells_few(times["boolean_value"], times["subject_id"], limit)
            and t not in {few["task"] for few in details["too_few"]}
        },
        facts={"predictions": f"{len(tasks)} tasks, {len(everyone):,} patients", "seed": str(config.data.seed),
               "resamples of patients": f"{config.evaluate.n_resamples:,}"},
        notes=_notes(config, tasks),
        data=ReportData(**details, not_interpreted=NOT_INTERPRETED, families=primary + of_subgroups,
                        main_task=config.report.reliability_task),
    )  # fmt: skip


def read_task(folder: Path) -> tuple[pl.DataFrame, Predictions]:
    """(prediction times with their label, predictions) of a task.

    Raises:
      ValueError: as `inputs`; a prediction that is not finite, a prediction time that occurs twice.
    """
    paths = sorted(folder.glob("*.parquet"))
    first, by_model, times = paths[0], {}, pl.DataFrame()
    for path in paths:
        table, label, prediction = _read(path)
        table = table.sort(KEYS)
        mine = table.select(*KEYS, *label)
        if path == first:
            times = mine
        elif not mine.equals(times):
            raise ValueError(
                f"{path}: its prediction times or labels differ from those of {first.name}; models of a task share them"
            )
        found = {"p": table[prediction].to_numpy().astype(np.float64)}
        if not np.isfinite(found["p"]).all():
            raise ValueError(f"{path}: column {prediction} holds a value that is not finite")
        at = {float(m[1]): c for c in table.columns if (m := re.fullmatch(r"predicted_survival_([\d.]+)d", c))}
        if at:
            days = sorted(at)
            found |= {"days": np.array(days), "curves": table.select([at[d] for d in days]).to_numpy()}
        by_model[path.stem] = found
    if times.select(KEYS).is_duplicated().any():
        raise ValueError(f"{first}: a prediction time (subject_id, prediction_time) occurs twice")
    return times, by_model


def _read(path):
    """(table, label columns, prediction column)."""
    columns = pl.read_parquet_schema(path)
    label: tuple[str, ...]
    if "time_to_event_days" in columns:
        label = ("time_to_event_days", "event_observed", *([COMPETING] if COMPETING in columns else []))
        prediction = "predicted_log_hazard"
    elif "float_value" in columns and "predicted_float_value" in columns:
        label, prediction = ("float_value",), "predicted_float_value"
    else:
        table = meds_predictions.read(path)
        if "predicted_boolean_probability" not in table.columns:
            raise ValueError(f"{path}: column predicted_boolean_probability is missing: scores are needed, not calls")
        return table, ("boolean_value",), "predicted_boolean_probability"
    if missing := [c for c in (*KEYS, *label, prediction) if c not in columns]:
        raise ValueError(f"{path}: column {missing[0]} is missing; it has {', '.join(columns)}")
    return pl.read_parquet(path), label, prediction


def _levels(config, times, known):
    """Attribute -> level [N]; ages in bands, histories as the paper's groups, other columns of text as they are."""
    if known is None:
        return {}
    table = times.select(KEYS).join(known.unique(KEYS), on=KEYS, how="left", maintain_order="left")
    out = {}
    if "age_years" in table.columns:
        age_N = table["age_years"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        out["age"] = subgroups.age_bands(age_N, config.evaluate.age_edges)
    if {"encounters", "wear_days"} <= set(table.columns):
        counts = [table[c].cast(pl.Float64).fill_null(float("nan")).to_numpy() for c in ("encounters", "wear_days")]
        unknown_N = np.isnan(np.stack(counts)).any(0)
        covered = subgroups.coverage_groups(*counts)
        out |= {k: np.where(unknown_N, np.array(None, object), v.astype(object)) for k, v in covered.items()}
    texts = [c for c in table.columns if c not in (*KEYS, "split") and table[c].dtype == pl.String]
    return out | {c: np.array(table[c].to_list(), object) for c in texts}


def _spec(config, task, by_model, everyone):
    wanted = config.evaluate.reference_model
    return protocol.TaskSpec(
        dataset=config.name,
        name=task,
        reference_model=wanted if wanted in by_model else main_model(by_model),
        resampling=Resampling(config.evaluate.n_resamples, config.data.seed, everyone),
        suppression=subgroups.Suppression(config.evaluate.min_patients, config.evaluate.min_per_class),
    )


def _score(config, spec, times, by_model, cohort):
    predictions = {model: v["p"] for model, v in by_model.items()}
    if "boolean_value" in times.columns:
        y_N, points = times["boolean_value"].to_numpy(), _operating_points(config, spec.name, predictions)
        return evaluate_score.score_binary(spec, predictions, y_N, cohort, operating_points=points)
    if "float_value" in times.columns:
        return evaluate_score.score_regression(
            spec, predictions, times["float_value"].to_numpy().astype(np.float64), cohort
        )
    follow_up = follow_up_of(times)
    with_curves = {model: v for model, v in by_model.items() if "curves" in v}
    days = [set(v["days"]) for v in with_curves.values()]
    known = sorted(set.intersection(*days)) if days else ()
    people, least = times["subject_id"].to_numpy(), config.evaluate.min_horizon_events
    at = evaluate_score.usable_horizons(known, follow_up, people, min_events=least)
    wanted = config.evaluate.horizons_of(spec.name)
    curves = {m: v["curves"][:, np.searchsorted(v["days"], at)] for m, v in with_curves.items()}
    # nobody else's follow-up is known: censoring and the null are those of the prediction times that are scored
    return evaluate_score.score_time(
        spec, predictions, follow_up, cohort, train=TrainingCurves.fit(follow_up),
        horizons=at or evaluate_score.usable_horizons(wanted, follow_up, people, min_events=least),
        curves=PredictedCurves(np.array(at), curves) if at else None,
    )  # fmt: skip


def _operating_points(config, task, predictions):
    """model -> threshold at the wanted sensitivity of the tuning predictions, for the models that have them."""
    folder = Path(config.report.tuning_dir or "") / task
    out: dict[str, float] = {}
    if not config.report.tuning_dir or not folder.is_dir():
        return out
    times, by_model = read_task(folder)
    for model in (m for m in by_model if m in predictions):
        y_N = times["boolean_value"].to_numpy()
        out[model] = classification.sensitivity_threshold(y_N, by_model[model]["p"], config.evaluate.sensitivity)
    return out


def _notes(config, tasks):
    notes = [
        "Made from saved predictions: how they were made, the training, and the selection of the people are not known.",
        "Intervals are 95% percentile intervals over resampled patients; all models and tasks share the resamples.",
        "q-values: Benjamini and Hochberg within the families named below the tables, false discovery rate 5%.",
    ]
    notes.append(report_inputs.privacy_note(config.evaluate.min_per_class))
    if any("time_to_event_days" in times.columns for times, _ in tasks.values()):
        notes.append("Censoring, and the null without covariates, are estimated on the people who are scored.")
    return notes
