"""Entries for MEDS-DEV: every entry is whole, and its commands predict a task of the MIMIC-IV demo."""

import os
import re
import runpy
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from meds_evaluation.schema import PredictionSchema
from repo import REPO

from ehrwear_jax import config as config_lib

ENTRIES = REPO / "integrations" / "meds_dev"
MODELS = sorted(path.parent.name for path in ENTRIES.glob("*/model.yaml"))
# what MEDS-DEV fills in
PLACEHOLDERS = {"output_dir", "dataset_dir", "labels_dir", "model_initialization_dir", "split", "demo", "model_dir"}
COMMANDS = (("unsupervised", "train"), ("supervised", "train"), ("supervised", "predict"))


def commands_of(model):
    return yaml.safe_load((ENTRIES / model / "model.yaml").read_text())["commands"]


def test_there_are_three_entries():
    assert MODELS == ["context_clues", "joint", "motor"]


@pytest.mark.parametrize("model", MODELS)
def test_an_entry_has_all_files_and_commands_and_its_configs_are_valid(model):
    found = commands_of(model)
    for kind, mode in COMMANDS:
        assert set(re.findall(r"{(\w*)}", found[kind][mode])) <= PLACEHOLDERS
    assert all((ENTRIES / model / name).stat().st_size for name in ("README.md", "requirements.txt"))
    get_config = runpy.run_path(str(ENTRIES / "experiment.py"))["get_config"]
    configs = [config_lib.parse(get_config(f"{model},demo={demo}")) for demo in (True, False)]
    assert [list(config.networks) for config in configs] == [[model], [model]]
    with pytest.raises(ValueError, match="the argument is one of motor"):
        get_config(f"{model},small")


def readmission(root, folder):
    """Labels of an admission within 30 days of a discharge, sharded by split as ACES writes them; {split: table}."""
    events = pl.concat(pl.read_parquet(p) for p in sorted((root / "data").glob("*/*.parquet")))
    splits = pl.read_parquet(root / "metadata" / "subject_splits.parquet")

    def times(prefix, name):
        chosen = events.filter(pl.col("code").str.starts_with(prefix) & pl.col("time").is_not_null())
        return chosen.select("subject_id", pl.col("time").alias(name)).unique()

    left, admitted = times("HOSPITAL_DISCHARGE", "prediction_time"), times("HOSPITAL_ADMISSION", "admitted")
    after = pl.col("admitted") - pl.col("prediction_time")
    back = left.join(admitted, on="subject_id").filter(after.is_between(timedelta(0), timedelta(days=30), "right"))
    back = back.select("subject_id", "prediction_time").unique().with_columns(boolean_value=True)
    labels = left.join(back, on=["subject_id", "prediction_time"], how="left")
    labels = labels.with_columns(pl.col("boolean_value").fill_null(False)).join(splits, on="subject_id")
    out = {}
    for (split,), table in labels.sort("subject_id", "prediction_time").group_by("split"):
        (folder / split).mkdir(parents=True)
        out[split] = table.drop("split")
        out[split].write_parquet(folder / split / "0.parquet")
    return out


@pytest.mark.slow
@pytest.mark.parametrize("model", [m if m == "motor" else pytest.param(m, marks=pytest.mark.long) for m in MODELS])
def test_the_commands_predict_a_task_of_the_mimic_demo(model, shared_data, tmp_path):
    """In the order of MEDS-DEV, each in a folder of its own that the next one is told; minutes each."""
    root, labels_dir = shared_data("mimic4_demo_meds"), tmp_path / "readmission" / "general_hospital" / "30d"
    labels, before = readmission(root, labels_dir), None
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(REPO)}

    def run(kind, mode, split):
        out = tmp_path / f"{kind}-{mode}-{split}"
        command = commands_of(model)[kind][mode].format(
            output_dir=out, dataset_dir=root, labels_dir=labels_dir, model_initialization_dir=before, split=split,
            demo=True, model_dir=ENTRIES / model,
        )  # fmt: skip
        done = subprocess.run(["bash", "-e", "-c", command], env=env, capture_output=True, text=True, cwd=tmp_path)
        return out, done.returncode, done.stdout + done.stderr

    for kind, mode in COMMANDS[:2]:
        before, code, said = run(kind, mode, "held_out")
        assert code == 0, said[-3000:]
    for split in ("held_out", "tuning"):
        out, code, said = run(*COMMANDS[2], split)
        assert code == 0, said
        table = pq.read_table(out / "predictions.parquet")
        PredictionSchema.validate(table)
        predicted, keys = pl.from_arrow(table).sort("subject_id", "prediction_time"), labels[split].columns
        assert predicted.select(keys).equals(labels[split])
        assert predicted["predicted_boolean_probability"].is_between(0, 1).all()
        assert predicted["predicted_boolean_probability"].n_unique() > 1
    _, code, said = run(*COMMANDS[2], "train")
    assert code == 2 and "not the split train" in said
