"""The evaluate stage on embeddings that are given: folds, the oracle, fusion, schema and resuming."""

import json

import numpy as np
import polars as pl
import pytest
import small_run
from sklearn.metrics import roc_auc_score

from ehrwear_jax import config as config_lib
from ehrwear_jax.data.sources.simulator import simulate
from ehrwear_jax.evals import protocol
from ehrwear_jax.stages import evaluate, prepare

FOLDS = pl.DataFrame(
    {"subject_id": range(1, small_run.N_SUBJECTS + 1), "fold": [s % 2 if s % 10 else -1 for s in range(1, 31)]},
    {"subject_id": pl.Int64, "fold": pl.Int32},
)


def write_embeddings(config, workdir, width=4):
    """Random embeddings, others in each fold and model, in the format of the embed stage."""
    index = prepare.prediction_index(config, workdir)
    rng = np.random.default_rng(0)
    for fold, _ in config_lib.folds(config):
        subjects = pl.read_parquet(prepare.fit_dir(workdir, fold) / "subjects.parquet")
        keys = index.join(subjects.select("subject_id", "split"), on="subject_id").sort("subject_id", "prediction_time")
        (workdir / "embed" / fold).mkdir(parents=True)
        for model in config.rows:
            z = pl.Series("embedding", rng.normal(size=(keys.height, width)).tolist(), dtype=pl.List(pl.Float32))
            keys.with_columns(z).write_parquet(workdir / "embed" / fold / f"{model}.parquet")
    (workdir / "evaluate").mkdir()


def predictions(workdir, task, model):
    return pl.read_parquet(workdir / "evaluate" / "predictions" / task / f"{model}.parquet")


def value(records, task, model, metric):
    (found,) = [r for r in records if (r["task"], r["model"], r["metric"]) == (task, model, metric)]
    return found["value"]


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """(config, workdir, labels) after an out-of-fold evaluation."""
    root = tmp_path_factory.mktemp("folds")
    labels = small_run.write_inputs(root, folds=FOLDS)
    config, workdir = small_run.small_config(root), root / "run"
    config.data.n_folds = 2
    prepare.run(config, workdir)
    write_embeddings(config, workdir)
    evaluate.run(config, workdir)
    return config, workdir, labels


@pytest.mark.parametrize("task", ["readmission", "relapse"])
def test_out_of_fold_predictions_cover_each_person_once(folded, task):
    config, workdir, labels = folded
    expected = labels[task].join(FOLDS.filter(pl.col("fold") >= 0), on="subject_id", how="semi")
    names = {p.stem for p in (workdir / "evaluate" / "predictions" / task).iterdir()}
    assert {"joint", "ehr_only", "wear_only", "late_fusion"} < names and "oracle" not in names
    for model in names:
        table = predictions(workdir, task, model)
        assert not table.select("subject_id", "prediction_time").is_duplicated().any()
        key = ["subject_id", "prediction_time"]
        assert table.select(key).sort(key).equals(expected.select(key).sort(key))
        truth = "boolean_value" if task == "readmission" else "time_to_event_days"
        assert table.sort(key)[truth].equals(expected.sort(key)[truth])
    records = json.loads((workdir / "evaluate" / "results.json").read_text())
    assert {r["n"] for r in records if r["task"] == task} == {expected.height}


def test_out_of_fold_predictions_come_from_a_probe_that_never_saw_the_person(folded):
    """Refitted here by hand from the embeddings of the fold's own training people."""
    config, workdir, labels = folded
    found = predictions(workdir, "readmission", "joint")
    for fold in (0, 1):
        table = pl.read_parquet(workdir / "embed" / f"fold{fold}" / "joint.parquet")
        table = table.join(labels["readmission"], on=["subject_id", "prediction_time"])
        table = table.join(FOLDS, on="subject_id").sort("subject_id", "prediction_time")
        x, y = {}, {}
        for split in ("train", "tuning", "held_out"):
            mine = table.filter(pl.col("split") == split)
            assert ((mine["fold"] == fold) == (split == "held_out")).all()
            x[split] = np.stack(mine["embedding"].to_numpy())
            y[split] = mine["boolean_value"].to_numpy().astype(float)
        expected = protocol.predict_binary(x, y).probability["held_out"]
        mine = found.join(FOLDS.filter(pl.col("fold") == fold), on="subject_id", how="semi")
        np.testing.assert_allclose(mine["predicted_boolean_probability"], expected, rtol=1e-6)


def test_late_fusion_is_a_probe_on_the_concatenated_embeddings(folded):
    config, workdir, labels = folded
    found = predictions(workdir, "readmission", "late_fusion")
    parts = [pl.read_parquet(workdir / "embed" / "fold1" / f"{r}.parquet") for r in ("ehr_only", "wear_only")]
    both = parts[0].with_columns(
        pl.Series("embedding", np.concatenate([np.stack(p["embedding"].to_numpy()) for p in parts], 1).tolist())
    )
    both = both.join(labels["readmission"], on=["subject_id", "prediction_time"]).sort("subject_id", "prediction_time")
    by = {s: both.filter(pl.col("split") == s) for s in ("train", "tuning", "held_out")}
    x = {s: np.asarray(t["embedding"].to_list(), np.float32) for s, t in by.items()}
    assert x["train"].shape[1] == 8
    y = {s: t["boolean_value"].to_numpy().astype(float) for s, t in by.items()}
    expected = protocol.predict_binary(x, y).probability["held_out"]
    mine = found.join(by["held_out"], on="subject_id", how="semi")
    np.testing.assert_allclose(mine["predicted_boolean_probability"], expected, rtol=1e-6)


def test_predictions_are_in_the_meds_prediction_schema_and_give_the_result(folded):
    config, workdir, _ = folded
    records = json.loads((workdir / "evaluate" / "results.json").read_text())
    for path in (workdir / "evaluate" / "predictions" / "readmission").iterdir():
        table = pl.read_parquet(path)
        assert table.schema == {
            "subject_id": pl.Int64,
            "prediction_time": pl.Datetime("us"),
            "boolean_value": pl.Boolean,
            "predicted_boolean_value": pl.Boolean,
            "predicted_boolean_probability": pl.Float32,
        }
        auroc = roc_auc_score(table["boolean_value"], table["predicted_boolean_probability"])
        assert value(records, "readmission", path.stem, "auroc") == pytest.approx(auroc, abs=1e-6)
    table = predictions(workdir, "relapse", "joint")
    assert {"predicted_log_hazard", "time_to_event_days", "event_observed"} < set(table.columns)


def test_a_half_done_evaluation_resumes_with_the_tasks_that_are_missing(folded):
    config, workdir, _ = folded
    folder = workdir / "evaluate"
    whole = (folder / "results.json").read_bytes()
    kept = folder / "readmission.json", folder / "tabular_fold0.parquet"
    times = [p.stat().st_mtime_ns for p in kept]
    for name in ("relapse.json", "results.json", "tabular_fold1.parquet"):
        (folder / name).unlink()
    (folder / "relapse.json.partial").write_text('[{"half')
    (folder / "tabular_fold1.parquet.partial").write_text("half")
    evaluate.run(config, workdir)
    assert (folder / "results.json").read_bytes() == whole
    assert [p.stat().st_mtime_ns for p in kept] == times


def test_the_oracle_is_a_model_of_simulated_data_only(folded, tmp_path):
    _, workdir, _ = folded
    assert "oracle" not in (workdir / "evaluate" / "results.json").read_text()

    config = small_run.small_config(tmp_path)
    config.data.update({"source": "synthetic", "meds_dir": "", "wearable_dir": "", "labels_dir": ""})
    config.simulate.update({"n_subjects": 80, "wear_days": 2, "ppg_subjects_fraction": 0.0,
                            "admission_per_year": 0.3, "train_fraction": 0.4, "tuning_fraction": 0.2})  # fmt: skip
    config.rows = {"ehr_only": ("ehr",)}
    config.evaluate.update({"tasks": ("hospitalization_365d",), "late_fusion": (), "reference_model": "ehr_only",
                            "tabular": False})  # fmt: skip
    prepare.run(config, tmp_path)
    write_embeddings(config, tmp_path)
    evaluate.run(config, tmp_path)
    records = json.loads((tmp_path / "evaluate" / "results.json").read_text())
    labels = prepare.label_table(config, tmp_path, "hospitalization_365d")
    held = pl.read_parquet(prepare.fit_dir(tmp_path, "all") / "subjects.parquet").filter(pl.col("split") == "held_out")
    labels = labels.join(held, on="subject_id", how="semi").sort("subject_id", "prediction_time")
    risk = simulate.oracle_risk(
        prepare.raw_root(config, tmp_path) / "truth", labels.select("subject_id", "prediction_time"), 365
    )
    auroc = roc_auc_score(labels["boolean_value"], risk)
    assert value(records, "hospitalization_365d", "oracle", "auroc") == pytest.approx(auroc, abs=1e-9)
    assert 0.6 < auroc < 1.0 and {r["n"] for r in records} == {labels.height}
    differences = {r["model"] for r in records if r["metric"] == "auroc_difference"}
    assert differences == {"ehr_only - oracle"}
