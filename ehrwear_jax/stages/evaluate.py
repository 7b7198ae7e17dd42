"""The evaluate stage: frozen probes on embeddings, tabular baselines, intervals; predictions and results on disk."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.data import synthetic, tabular
from ehrwear_jax.evals import meds_predictions, protocol
from ehrwear_jax.models.baselines import tabular as tabular_models
from ehrwear_jax.stages import finetune, prepare

SPLITS = ("train", "tuning", "held_out")


def run(config, workdir):
    """Writes evaluate/predictions/<task>/<row>.parquet and evaluate/results.json."""
    workdir = Path(workdir)
    records = []
    index = prepare.prediction_index(config, workdir)
    features = {fold: _features(config, workdir, fold, index) for fold, _ in config_lib.folds(config)}
    for task in config.evaluate.tasks:
        table = prepare.label_table(config, workdir, task)
        path = workdir / "evaluate" / f"{task}.json"
        if not path.exists():
            survival = "event_observed" in table.columns
            found = (_survival if survival else _binary)(config, workdir, task, table, features)
            _write_json(found, path)
        records += json.loads(path.read_text())
        _log(task, records)
    _write_json(records, workdir / "evaluate" / "results.json")


def _write_json(value, path):
    # written whole or not at all: what is there is not computed again when the stage resumes
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1))
    os.replace(partial, path)


def _log(task, records):
    for r in records:
        if r["task"] == task and r["metric"] in ("auroc", "auprc", "c_index"):
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
            tables, split = workdir / "prepare" / "tables", workdir / "prepare" / fold
            subjects = pl.read_parquet(split / "subjects.parquet")
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
    subjects = pl.read_parquet(workdir / "prepare" / fold / "subjects.parquet")
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


def _binary(config, workdir, task, table, features):
    held, predictions = [], {}
    for fold, _ in config_lib.folds(config):
        keys, matrices = features[fold]
        rows = _joined(table, keys)
        y = _column(rows, "boolean_value", np.float64)
        held.append(rows.filter(pl.col("split") == "held_out"))
        for row, matrix in matrices.items():
            if row == "tabular":
                for suffix, m in _tabular_matrices(matrix, config.evaluate.tabular_by_modality).items():
                    x = _by_split(rows, m)
                    for name, fit in (
                        ("gradient_boosting", tabular_models.fit_gradient_boosting),
                        ("logistic_regression", tabular_models.fit_logistic_regression),
                    ):
                        if suffix and name == "logistic_regression":
                            continue
                        model = fit(x["train"], y["train"], x["tuning"], y["tuning"])
                        predictions.setdefault(name + suffix, []).append(model.predict_proba(x["held_out"]))
            else:
                fitted = protocol.predict_binary(_by_split(rows, matrix), y)
                predictions.setdefault(row, []).append(fitted.probability["held_out"])
                logging.info("  %s, %s: probe with l2 %.3g", task, row, fitted.l2)
        for row, found in finetune.predictions(config, workdir, fold, task, rows, matrices).items():
            predictions.setdefault(row, []).append(found["held_out"])
    rows = pl.concat(held)
    predictions = {k: np.concatenate(v) for k, v in predictions.items()}
    y_N, group_N = rows["boolean_value"].to_numpy(), rows["group_id"].to_numpy()
    folder = workdir / "evaluate" / "predictions" / task
    folder.mkdir(parents=True, exist_ok=True)
    if config.data.source == "synthetic" and task.startswith("hospitalization_"):
        horizon = int(task.removeprefix("hospitalization_").removesuffix("d"))
        truth = prepare.raw_root(config, workdir) / "truth"
        predictions["oracle"] = synthetic.oracle_risk(truth, rows.select("subject_id", "prediction_time"), horizon)
    for row, p_N in predictions.items():
        table = meds_predictions.predictions(rows["subject_id"], rows["prediction_time"], y_N, p_N)
        meds_predictions.write(table, folder / f"{row}.parquet")
    return protocol.score_binary(
        dataset=config.name,
        task=task,
        predictions=predictions,
        y_N=y_N,
        group_N=group_N,
        n_resamples=config.evaluate.n_resamples,
        seed=config.seed,
        reference_row=config.evaluate.reference_row or None,
        universe=_held_out_groups(config, features),
    )


def _survival(config, workdir, task, table, features):
    held, predictions = [], {}
    for fold, _ in config_lib.folds(config):
        keys, matrices = features[fold]
        rows = _joined(table, keys)
        time, event = _column(rows, "time_to_event_days", np.float64), _column(rows, "event_observed", bool)
        held.append(rows.filter(pl.col("split") == "held_out"))
        for row, matrix in matrices.items():
            if row == "tabular":
                for suffix, m in _tabular_matrices(matrix, config.evaluate.tabular_by_modality).items():
                    x = _by_split(rows, m)
                    encoder = tabular_models.TableEncoder(x["train"])
                    x = {s: encoder(v) for s, v in x.items()}
                    risk = protocol.predict_survival(x, time, event).risk["held_out"]
                    predictions.setdefault("cox_table" + suffix, []).append(risk)
            else:
                fitted = protocol.predict_survival(_by_split(rows, matrix), time, event)
                predictions.setdefault(row, []).append(fitted.risk["held_out"])
                logging.info("  %s %s, %s: probe with l2 %.3g", fold, task, row, fitted.l2)
        for row, found in finetune.predictions(config, workdir, fold, task, rows, matrices).items():
            predictions.setdefault(row, []).append(found["held_out"])
    rows = pl.concat(held)
    predictions = {k: np.concatenate(v) for k, v in predictions.items()}
    folder = workdir / "evaluate" / "predictions" / task
    folder.mkdir(parents=True, exist_ok=True)
    for row, risk_N in predictions.items():
        rows.select("subject_id", "prediction_time", "time_to_event_days", "event_observed").with_columns(
            pl.Series("predicted_log_hazard", risk_N)
        ).write_parquet(folder / f"{row}.parquet")
    return protocol.score_survival(
        dataset=config.name,
        task=task,
        predictions=predictions,
        time_N=rows["time_to_event_days"].to_numpy(),
        event_N=rows["event_observed"].to_numpy(),
        group_N=rows["group_id"].to_numpy(),
        n_resamples=config.evaluate.n_resamples,
        seed=config.seed,
        reference_row=config.evaluate.reference_row or None,
        universe=_held_out_groups(config, features),
    )
