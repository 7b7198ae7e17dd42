"""The evaluate stage: frozen probes on embeddings, tabular baselines, intervals; predictions and results on disk.

predictions/<task>/<row>.parquet  held-out predictions: binary tasks in the MEDS prediction schema; time_to_event_days,
                                  event_observed, predicted_log_hazard and predicted_survival_<days>d; float_value and
                                  predicted_float_value
tuning/<task>/<row>.parquet       the same of the tuning split, binary tasks only: thresholds are chosen there
attributes.parquet                what is known of the person at every read (stages/evaluate_subgroups.py)
results.json                      the records of all tasks, with q-values over the family (dataset, metric)
details.json                      {subgroups, curves, fractions, prevalence, demographics}
"""

import json
import logging
import os
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.data.labels import outcomes as labels
from ehrwear_jax.data.prepare import deidentify, specs
from ehrwear_jax.data.sources.simulator import simulate as synthetic
from ehrwear_jax.evals import classification, meds_predictions, protocol, subgroups, survival
from ehrwear_jax.models.tabular import features as tabular
from ehrwear_jax.stages import evaluate_curves, evaluate_fit, evaluate_score, evaluate_subgroups, prepare
from ehrwear_jax.stages import fine_tuned as finetune
from ehrwear_jax.stages.evaluate_fit import BINARY, REGRESSION, SURVIVAL

SPLITS = ("train", "tuning", "held_out")
DETAILS = ("subgroups", "curves", "fractions", "prevalence")
GRID_POINTS = 24  # of the integrated Brier score, beside the horizons


def run(config, workdir):
    """Writes what the module's docstring lists; tasks that are there already are not computed again."""
    workdir = Path(workdir)
    index = prepare.prediction_index(config, workdir)
    features = {fold: _features(config, workdir, fold, index) for fold, _ in config_lib.folds(config)}
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
    """Of every read of the first fold's people, with `split`; read again where they are there."""
    path = workdir / "evaluate" / "attributes.parquet"
    if not path.exists():
        table = evaluate_subgroups.attributes(config, workdir, keys)
        table = table.join(keys.select("subject_id", "prediction_time", "split"), on=evaluate_subgroups.KEYS)
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
            logging.info("  %-28s %-22s %-8s %s %s", task, r["row"], r["metric"], value, interval)


def _features(config, workdir, fold, index):
    """{row: float matrix} for all rows of `index` that belong to people of the dataset, and their keys."""
    folder = workdir / "embed" / fold
    keys, out = None, {}
    for row in config.rows:
        table = pl.read_parquet(folder / f"{row}.parquet")
        keys = table.select("subject_id", "prediction_time", "split") if keys is None else keys
        out[row] = np.stack(table["embedding"].to_numpy())
    if config.evaluate.late_fusion and set(config.evaluate.late_fusion) <= set(config.rows):
        out["late_fusion"] = np.concatenate([out[r] for r in config.evaluate.late_fusion], axis=1)
    if config.evaluate.tabular:
        path = workdir / "evaluate" / f"tabular_{fold}.parquet"
        if not path.exists():
            tables = prepare.tables_dir(workdir)
            subjects = pl.read_parquet(prepare.fit_dir(workdir, fold) / "subjects.parquet")
            windows = sorted((tables / "windows").glob("*.parquet"))
            tabular.build_features(
                pl.concat([pl.read_parquet(p) for p in sorted((tables / "events").glob("*.parquet"))]),
                subjects,
                pl.concat([pl.read_parquet(p) for p in windows]) if windows else None,
                keys.select("subject_id", "prediction_time"),
                train_subject_ids=subjects.filter(pl.col("split") == "train")["subject_id"],
                max_codes=config.evaluate.tabular_codes,
            ).write_parquet(f"{path}.partial")
            os.replace(f"{path}.partial", path)
        out["tabular"] = pl.read_parquet(path)
    subjects = pl.read_parquet(prepare.fit_dir(workdir, fold) / "subjects.parquet")
    return keys.join(subjects.select("subject_id", "group_id"), on="subject_id", how="left").with_row_index("at"), out


def _held_out_groups(config, features):
    """Groups of all held-out people with a prediction time, so that the tasks share their resamples."""
    held = [features[fold][0].filter(pl.col("split") == "held_out")["group_id"] for fold, _ in config_lib.folds(config)]
    return pl.concat(held).unique().sort().to_numpy()


def _joined(table, keys):
    """Labelled rows with their split, group and place among the features."""
    return table.join(keys, on=["subject_id", "prediction_time"], how="inner").sort("subject_id", "prediction_time")


def _by_split(rows, matrix):
    """{split: the rows' features}."""
    return {s: matrix[rows.filter(pl.col("split") == s)["at"].to_numpy()] for s in SPLITS}


def _column(rows, name, dtype):
    return {s: rows.filter(pl.col("split") == s)[name].to_numpy().astype(dtype) for s in SPLITS}


def _tabular_matrices(table, by_modality):
    """{row suffix: matrix}: all hand-made features, and those of one modality where both are there."""
    groups = tabular.feature_groups(table)
    out = {"": [*groups["ehr"], *groups["wear"]]}
    if by_modality and groups["wear"] and groups["ehr"]:
        out |= {"_ehr": groups["ehr"], "_wear": groups["wear"]}
    return {k: table.select(v).cast(pl.Float64).fill_null(float("nan")).to_numpy() for k, v in out.items()}


# ------------------------------------------------------------------------------------------------- one task


def _evaluate(config, workdir, task, features, known):
    """{records, subgroups, curves, fractions, prevalence} of a task."""
    table = prepare.label_table(config, workdir, task)
    column = table.columns[2]
    kind = evaluate_fit.VALUE_COLUMN[column]
    held, x_of_fold, targets = [], [], []
    for fold, _ in config_lib.folds(config):
        keys, matrices = features[fold]
        rows = _joined(table, keys)
        target = _target(rows, kind, column)
        x_of_fold.append({row: m if row == "tabular" else _by_split(rows, m) for row, m in matrices.items()})
        targets.append((rows, target))
        held.append(rows.filter(pl.col("split") == "held_out"))
    reads = pl.concat(held)
    train = pl.concat([rows.filter(pl.col("split") == "train") for rows, _ in targets])
    train = train.unique(evaluate_subgroups.KEYS, maintain_order=True)
    horizons, times_T = _times(config, reads, train) if kind == SURVIVAL else ((), ())
    fitted = {}
    for (fold, _), x_by_row, (rows, target) in zip(config_lib.folds(config), x_of_fold, targets, strict=True):
        fold_features = features[fold][1]
        for row, x in x_by_row.items():
            for name, found in _fit(config, kind, row, x, rows, target, times_T).items():
                strength = "" if found.l2 is None else f": probe with l2 {found.l2:.3g}"
                logging.info("  %s %s, %s%s", fold, task, name, strength)
                fitted.setdefault(name, []).append(found)
        if kind != REGRESSION:
            for name, found in finetune.predictions(config, workdir, fold, task, rows, fold_features).items():
                fitted.setdefault(name, []).append(evaluate_fit.finetuned(kind, found, target, times_T))
    predictions = {row: np.concatenate([f.held_out for f in parts]) for row, parts in fitted.items()}
    attributes = evaluate_subgroups.levels(config, reads.join(known.drop("split"), on=evaluate_subgroups.KEYS,
                                                              how="left", maintain_order="left"))  # fmt: skip
    options = _options(config, features)
    tuning = pl.concat([rows.filter(pl.col("split") == "tuning") for rows, _ in targets])
    if kind == BINARY:
        found = _binary(config, workdir, task, options, reads, tuning, fitted, predictions, attributes)
        x_by_row = {row: x for row, x in x_of_fold[0].items() if row != "tabular"}
        if len(targets) == 1 and task in _label_tasks(config, workdir):  # out of fold, training patients differ
            y, groups = targets[0][1], rows.filter(pl.col("split") == "train")["group_id"].to_numpy()
            found["fractions"] = evaluate_subgroups.label_efficiency(
                config, options, task, x_by_row, y, groups, reads["group_id"].to_numpy()
            )
    elif kind == SURVIVAL:
        curves = {row: np.concatenate([f.curve_NxT for f in parts]) for row, parts in fitted.items()}
        found = _survival(workdir, task, options, reads, train, horizons, times_T, predictions, curves, attributes)
    else:
        found = _regression(workdir, task, options, reads, train, predictions, attributes)
    return found | {"prevalence": evaluate_subgroups.prevalence(task, pl.concat([train, tuning, reads]), column)}


def _label_tasks(config, workdir):
    """Tasks that are fitted on fractions of the labels: those of the config, else the last binary one."""
    if config.evaluate.label_tasks:
        return config.evaluate.label_tasks
    binary = (t for t in reversed(config.evaluate.tasks)
              if "boolean_value" in prepare.label_table(config, workdir, t).columns)  # fmt: skip
    return (next(binary),)


def _options(config, features):
    limits = subgroups.Suppression(config.evaluate.min_patients, config.evaluate.min_per_class)
    return evaluate_score.Options(
        dataset=config.name,
        n_resamples=config.evaluate.n_resamples,
        seed=config.seed,
        reference_row=config.evaluate.reference_row or None,
        universe=_held_out_groups(config, features),
        suppression=limits,
    )


def _target(rows, kind, column):
    if kind == SURVIVAL:
        time, event = _column(rows, "time_to_event_days", np.float64), _column(rows, "event_observed", bool)
        return {s: (time[s], event[s]) for s in SPLITS}
    return _column(rows, column, np.float64)


def _times(config, reads, train):
    """(horizons inside the follow-up of training and held-out reads, grid of the curves with them)."""
    times = [t["time_to_event_days"].to_numpy() for t in (train, reads)]
    horizons = evaluate_score.usable_horizons(config.evaluate.horizons_days, *times)
    if not horizons:
        logging.info("  no horizon of config.evaluate.horizons_days lies inside the follow-up: no AUC(t), no Brier(t)")
        return (), ()
    return horizons, np.union1d(np.linspace(0, max(horizons), GRID_POINTS + 1)[1:], horizons)


def _fit(config, kind, row, x, rows, target, times_T):
    """{row: Fitted} for a row of embeddings, or for the several models on hand-made features."""
    if row != "tabular":
        return {row: evaluate_fit.probe(config, kind, x, target, times_T)}
    out = {}
    for suffix, m in _tabular_matrices(x, config.evaluate.tabular_by_modality).items():
        out |= evaluate_fit.from_table(kind, suffix, _by_split(rows, m), target, times_T)
    if kind == REGRESSION:
        out["training_mean"] = evaluate_fit.training_mean(target)
    return out


def _binary(config, workdir, task, options, reads, tuning, fitted, predictions, attributes):
    y_N = reads["boolean_value"].to_numpy()
    points = {}
    for row, parts in fitted.items():
        p_N = np.concatenate([f.tuning for f in parts])
        _save(workdir / "evaluate" / "tuning" / task, row, tuning, p_N)
        if tuning["boolean_value"].any():
            points[row] = classification.sensitivity_threshold(
                tuning["boolean_value"].to_numpy(), p_N, config.evaluate.sensitivity
            )
    if config.data.source == "synthetic" and task.startswith("hospitalization_"):
        horizon = int(task.removeprefix("hospitalization_").removesuffix("d"))
        truth = prepare.raw_root(config, workdir) / "truth"
        keys = reads.select(evaluate_subgroups.KEYS)
        predictions["oracle"] = synthetic.oracle_risk(truth, keys, horizon)
    for row, p_N in predictions.items():
        _save(workdir / "evaluate" / "predictions" / task, row, reads, p_N)
    group_N, factor_N, timed = reads["group_id"].to_numpy(), None, _time_behind(config, workdir, task, reads)
    if timed is not None:
        factor_N, time_N, code_N = timed
    found = evaluate_score.score_binary(
        options, task, predictions, y_N, group_N,
        attributes=attributes, operating_points=points, known_factor_N=factor_N,
    )  # fmt: skip
    if timed is not None:
        for row, p_N in predictions.items():
            found["curves"] += evaluate_curves.by_quartile(options, task, row, p_N, time_N, code_N == 1, group_N)
    seeds = {row: np.concatenate([f.seeds_SxN for f in parts], axis=1)
             for row, parts in fitted.items() if parts[0].seeds_SxN is not None}  # fmt: skip
    found["records"] += evaluate_score.score_seeds(options, task, seeds, y_N, found["records"][0]) if seeds else []
    return found


def _time_behind(config, workdir, task, reads):
    """(inverse probability of a known label [N], time [N], code [N]) of a horizon task, or None.

    The times come from the label table time_to_<name>; those of hospitalisation from the events. Code 2 is a death
    that came first, known for hospitalisation only. The censoring is that of the reads themselves and of those whose
    label is unknown.
    """
    name, _, horizon = task.rpartition("_")
    if not horizon.removesuffix("d").isdigit() or not name:
        return None
    keys = evaluate_subgroups.KEYS
    everyone = pl.read_parquet(workdir / "evaluate" / "attributes.parquet").filter(pl.col("split") != "tuning")
    try:
        times = prepare.label_table(config, workdir, f"time_to_{name}").with_columns(died=pl.lit(False))
    except FileNotFoundError:
        prepared = config_lib.prepare_config(config)
        if name != "hospitalization" or deidentify.of(prepared).active:
            return None
        path = workdir / "evaluate" / "time_to_hospitalization.parquet"  # of all horizons
        if not path.exists():
            labels.time_to_admission(
                prepare.meds_dir(config, workdir), index=everyone.select(keys), bounds=specs.time_bounds(prepared),
                admission_code_prefix=config.labels.admission_code_prefix,
            ).write_parquet(path)  # fmt: skip
        times = pl.read_parquet(path)
    code = pl.when("event_observed").then(1).when("died").then(2).otherwise(0).alias("code")
    times = times.with_columns(code)
    mine = reads.select(keys).join(times, on=keys, how="left", maintain_order="left")
    if mine["time_to_event_days"].null_count():
        return None  # the labels were not made from these times
    fitted_on = times.join(everyone, on=keys, how="semi")
    censoring = survival.censoring_survival(
        fitted_on["time_to_event_days"].to_numpy(), fitted_on["code"].to_numpy() > 0
    )
    time_N, code_N = mine["time_to_event_days"].to_numpy(), mine["code"].to_numpy()
    days = float(horizon.removesuffix("d"))
    y_N, known_N = survival.horizon_labels(time_N, code_N, days)
    if not known_N.all() or (y_N != reads["boolean_value"].to_numpy()).any():
        logging.info("  %s: the labels differ from time_to_%s at the horizon: no weighted variant", task, name)
        return None
    try:
        return survival.horizon_factor(censoring, time_N, code_N, days), time_N, code_N
    except ValueError as error:
        logging.info("  %s: no weighted variant: %s", task, error)
        return None


def _save(folder, row, reads, p_N):
    folder.mkdir(parents=True, exist_ok=True)
    table = meds_predictions.predictions(reads["subject_id"], reads["prediction_time"], reads["boolean_value"], p_N)
    meds_predictions.write(table, folder / f"{row}.parquet")


def _save_columns(workdir, task, row, reads, columns):
    folder = workdir / "evaluate" / "predictions" / task
    folder.mkdir(parents=True, exist_ok=True)
    reads.with_columns(**{k: pl.Series(v, dtype=pl.Float64) for k, v in columns.items()}).write_parquet(
        folder / f"{row}.parquet"
    )


def _survival(workdir, task, options, reads, train, horizons, times_T, predictions, curves, attributes):
    kept = reads.select(*evaluate_subgroups.KEYS, "time_to_event_days", "event_observed")
    for row, risk_N in predictions.items():
        at = {f"predicted_survival_{t:g}d": curves[row][:, k] for k, t in enumerate(times_T) if t in horizons}
        _save_columns(workdir, task, row, kept, {"predicted_log_hazard": risk_N, **at})
    return evaluate_score.score_time(
        options, task, predictions, reads["time_to_event_days"].to_numpy(), reads["event_observed"].to_numpy(),
        reads["group_id"].to_numpy(), horizons=horizons, curves=curves, times_T=times_T, attributes=attributes,
        train=(train["time_to_event_days"].to_numpy(), train["event_observed"].to_numpy()),
    )  # fmt: skip


def _regression(workdir, task, options, reads, train, predictions, attributes):
    kept = reads.select(*evaluate_subgroups.KEYS, "float_value")
    for row, value_N in predictions.items():
        _save_columns(workdir, task, row, kept, {"predicted_float_value": value_N})
    return evaluate_score.score_regression(
        options, task, predictions, reads["float_value"].to_numpy().astype(np.float64), reads["group_id"].to_numpy(),
        attributes=attributes, train_sd=float(train["float_value"].std() or 0.0),
    )  # fmt: skip
