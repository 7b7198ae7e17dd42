"""A report of saved predictions of any model: <predictions_dir>/<task>/<row>.parquet, and nothing else.

Three kinds of task, told by the columns of the files:

  boolean_value, predicted_boolean_probability          the MEDS prediction schema
  time_to_event_days, event_observed, predicted_log_hazard (higher = earlier), and where the model has them
      predicted_survival_<days>d, P(no event by then)
  float_value, predicted_float_value

each with subject_id and prediction_time. Beside the tasks may lie attributes.parquet: subject_id, prediction_time, and
age_years, sex, device or other columns of text, which become subgroups. config.report.tuning_dir holds the binary
tasks' predictions of the tuning split in the same layout. All rows of a task have to be of the same reads.
"""

import re
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.evals import classification, meds_predictions, protocol, subgroups
from ehrwear_jax.report.build import ReportInputs
from ehrwear_jax.report.paper import horizon_of
from ehrwear_jax.report.report_data import Evidence
from ehrwear_jax.report.result_records import main_row
from ehrwear_jax.stages import evaluate_score, evaluate_subgroups

KEYS = evaluate_subgroups.KEYS
ATTRIBUTES = "attributes.parquet"
NOT_INTERPRETED = "Saved predictions alone say nothing of mechanisms, or of what single predictions rest on."


def inputs(config) -> ReportInputs:
    """Everything that predictions and labels alone say.

    Raises:
      ValueError: a file without the columns of a kind, rows of a task that differ in their reads or labels.
    """
    folder = Path(config.report.predictions_dir)
    folders = [p for p in folder.iterdir() if p.is_dir() and any(p.glob("*.parquet"))]
    tasks = {p.name: read_task(p) for p in sorted(folders, key=lambda p: horizon_of(p.name) or (p.name, 0.0))}
    if not tasks:
        raise ValueError(f"config.report.predictions_dir: {folder} holds no <task>/<row>.parquet")
    everyone = np.unique(np.concatenate([reads["subject_id"].to_numpy() for reads, _ in tasks.values()]))
    known = pl.read_parquet(folder / ATTRIBUTES) if (folder / ATTRIBUTES).exists() else None
    records, details = [], {"subgroups": [], "curves": [], "prevalence": []}
    for task, (reads, rows) in tasks.items():
        found = _score(config, task, reads, rows, _levels(config, reads, known), everyone)
        records += found["records"]
        details["subgroups"] += found["subgroups"]
        details["curves"] += found["curves"]
        column = reads.columns[2]
        held = reads.with_columns(split=pl.lit("held_out"))
        details["prevalence"] += evaluate_subgroups.prevalence(task, held, column)
    binary = {t: (reads, rows) for t, (reads, rows) in tasks.items() if "boolean_value" in reads.columns}
    return ReportInputs(
        title=config.report.title,
        subtitle=f"dataset {config.name}, from saved predictions",
        dataset=config.name,
        results=records + protocol.adjust(records),
        predictions={
            t: {r: (reads["boolean_value"].to_numpy().astype(int), v["p"]) for r, v in rows.items()}
            for t, (reads, rows) in binary.items()
        },
        facts={"predictions": f"{len(tasks)} tasks, {len(everyone):,} patients", "seed": str(config.seed),
               "resamples of patients": f"{config.evaluate.n_resamples:,}"},
        notes=_notes(tasks),
        evidence=Evidence(main_task=config.report.reliability_task, not_interpreted=NOT_INTERPRETED, **details),
    )  # fmt: skip


def read_task(folder: Path) -> tuple[pl.DataFrame, dict[str, dict[str, np.ndarray]]]:
    """(reads with their label, {row: {"p": predictions [N], and of survival "curves": [N, T], "days": [T]}})."""
    reads, rows, first = None, {}, None
    for path in sorted(folder.glob("*.parquet")):
        table, label, prediction = _read(path)
        table = table.sort(KEYS)
        mine = table.select(*KEYS, *label)
        if reads is None:
            reads, first = mine, path
        elif not mine.equals(reads):
            raise ValueError(
                f"{path}: its reads or labels differ from those of {first.name}; rows of a task share them"
            )
        found = {"p": table[prediction].to_numpy().astype(np.float64)}
        if not np.isfinite(found["p"]).all():
            raise ValueError(f"{path}: column {prediction} holds a value that is not finite")
        at = {float(m[1]): c for c in table.columns if (m := re.fullmatch(r"predicted_survival_([\d.]+)d", c))}
        if at:
            days = sorted(at)
            found |= {"days": np.array(days), "curves": table.select([at[d] for d in days]).to_numpy()}
        rows[path.stem] = found
    if reads.select(KEYS).is_duplicated().any():
        raise ValueError(f"{first}: a read (subject_id, prediction_time) is there twice")
    return reads, rows


def _read(path):
    """(table, label columns, prediction column)."""
    columns = pl.read_parquet_schema(path)
    if "time_to_event_days" in columns:
        label, prediction = ("time_to_event_days", "event_observed"), "predicted_log_hazard"
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


def _levels(config, reads, known):
    """Attribute -> level [N]; ages in bands, histories as the paper's groups, other columns of text as they are."""
    if known is None:
        return {}
    table = reads.select(KEYS).join(known.unique(KEYS), on=KEYS, how="left", maintain_order="left")
    out = {}
    if "age_years" in table.columns:
        age_N = table["age_years"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        out["age"] = subgroups.age_bands(age_N, config.evaluate.age_edges)
    if {"encounters", "wear_days"} <= set(table.columns):
        counts = [table[c].cast(pl.Float64).fill_null(float("nan")).to_numpy() for c in ("encounters", "wear_days")]
        unknown_N = np.isnan(counts).any(0)
        covered = subgroups.coverage_groups(*counts)
        out |= {k: np.where(unknown_N, None, v.astype(object)) for k, v in covered.items()}
    texts = [c for c in table.columns if c not in (*KEYS, "split") and table[c].dtype == pl.String]
    return out | {c: np.array(table[c].to_list(), object) for c in texts}


def _score(config, task, reads, rows, attributes, everyone):
    predictions = {row: v["p"] for row, v in rows.items()}
    wanted = config.evaluate.reference_row
    options = evaluate_score.Options(
        dataset=config.name, n_resamples=config.evaluate.n_resamples, seed=config.seed, universe=everyone,
        reference_row=wanted if wanted in predictions else main_row(predictions),
        suppression=subgroups.Suppression(config.evaluate.min_patients, config.evaluate.min_per_class),
    )  # fmt: skip
    group_N = reads["subject_id"].to_numpy()
    if "boolean_value" in reads.columns:
        y_N, points = reads["boolean_value"].to_numpy(), _operating_points(config, task, predictions)
        return evaluate_score.score_binary(
            options, task, predictions, y_N, group_N, attributes=attributes, operating_points=points
        )
    if "float_value" in reads.columns:
        y_N = reads["float_value"].to_numpy().astype(np.float64)
        return evaluate_score.score_regression(options, task, predictions, y_N, group_N, attributes=attributes)
    time_N, event_N = reads["time_to_event_days"].to_numpy(), reads["event_observed"].to_numpy()
    with_curves = {row: v for row, v in rows.items() if "curves" in v}
    days = [set(v["days"]) for v in with_curves.values()]
    times = evaluate_score.usable_horizons(sorted(set.intersection(*days)) if days else (), time_N)
    curves = {
        row: v["curves"][:, np.searchsorted(v["days"], times)] for row, v in with_curves.items()
    } if times else None  # fmt: skip
    horizons = times or evaluate_score.usable_horizons(config.evaluate.horizons_days, time_N)
    # nobody else's follow-up is known: censoring and the null are those of the reads that are scored
    return evaluate_score.score_time(
        options, task, predictions, time_N, event_N, group_N, train=(time_N, event_N), horizons=horizons,
        curves=curves, times_T=times, attributes=attributes,
    )  # fmt: skip


def _operating_points(config, task, predictions):
    """row -> threshold at the wanted sensitivity of the tuning predictions, for the rows that have them."""
    folder, out = Path(config.report.tuning_dir or "") / task, {}
    if not config.report.tuning_dir or not folder.is_dir():
        return out
    reads, rows = read_task(folder)
    for row in (r for r in rows if r in predictions):
        y_N = reads["boolean_value"].to_numpy()
        out[row] = classification.sensitivity_threshold(y_N, rows[row]["p"], config.evaluate.sensitivity)
    return out


def _notes(tasks):
    notes = [
        "Made from saved predictions: nothing is known here of how they were made, of training, or of how the people "
        "were chosen.",
        "Intervals are 95% percentile intervals over resampled patients; all rows and tasks share the resamples.",
        "q-values: Benjamini and Hochberg over all comparisons of one measure in this report, false discovery rate 5%.",
    ]
    if any("time_to_event_days" in reads.columns for reads, _ in tasks.values()):
        notes.append("Censoring, and the Kaplan-Meier null, are estimated on the people who are scored.")
    return notes
