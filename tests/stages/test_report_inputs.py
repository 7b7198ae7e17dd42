"""What the report takes from a workdir: the interpret stage's output only where it is current, names, and devices."""

import json

import numpy as np
import polars as pl
import pytest
import report_samples
import small_run

from ehrwear_jax.report import explained, mechanism_figures
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.stages import marks, report_inputs

LABELS = ("LOINC//8480-6//Q4", "ICD10//I10", "ATC//X", "wearable window")


@pytest.fixture
def run(tmp_path):
    """(config, workdir) with the interpret stage's files and the marks of a finished run."""
    config = small_run.small_config(tmp_path)
    config.interpret.enabled = config.interpret.individuals = True
    codes = {"code": ["LOINC//8480-6", "ICD10//I10"], "description": ["Systolic blood pressure", None]}
    (tmp_path / "raw" / "meds" / "metadata").mkdir(parents=True)
    pl.DataFrame(codes).write_parquet(tmp_path / "raw" / "meds" / "metadata" / "codes.parquet")
    workdir = tmp_path / "run"
    folder = workdir / "interpret"
    folder.mkdir(parents=True)
    (workdir / "evaluate").mkdir()
    wanted = marks.fingerprints(config, {})
    for stage in ("evaluate", "interpret"):
        marks.write_mark(workdir / stage, fingerprint=wanted[stage], done=True, seconds=1.0)
    parts = {
        "robustness": [{"task": "readmission", "metric": "auprc"}],
        "geometry": [],
        "retrieval": [],
        "uncertainty": [],
    }
    one = report_samples.person(labels=LABELS[:3], windows=2)
    arrays = {"attention_0": one.attention, "wear_0": one.wear, "wear_days_0": one.wear_days}
    np.savez(folder / "people.npz", channels=np.array(one.signals), **arrays)
    np.savez(folder / "kernels.npz", days_K=np.ones(2), joint=np.ones((1, 2, 2)))
    given = ("risk", "logit", "completeness_gap", "groups", "channels", "histories", "counterfactuals", "tokens")
    parts |= {"mechanisms": report_samples.mechanisms(), "people": [{name: getattr(one, name) for name in given}]}
    for name, content in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return config, workdir


def test_current_output_is_taken_whole_with_what_codes_mean(run):
    found = ReportData(**report_inputs._interpreted(*run))
    assert found.not_interpreted == "" and found.mechanisms == report_samples.mechanisms()
    assert found.codes["event"] == ("HOSPITAL_ADMISSION",) and len(found.kernels) == 1
    (person,) = found.explained
    assert [t["label"] for t in person.tokens] == ["Systolic blood pressure, Q4", "ICD10//I10", "ATC//X",
                                                   *["wearable window"] * 2]  # fmt: skip
    np.testing.assert_array_equal(person.attention, report_samples.person(labels=LABELS[:3], windows=2).attention)
    assert "Systolic blood pressure, Q4, 300 d" in str(explained.explained(found))
    assert len(mechanism_figures.mechanisms(found).blocks) > 5


def stale_settings(config, workdir):
    config.interpret.raised_sd = 2.0


def stale_evaluation(config, workdir):
    marks.write_mark(workdir / "evaluate", **marks.read_mark(workdir / "evaluate") | {"fingerprint": "other"})


def unfinished(config, workdir):
    marks.write_mark(workdir / "interpret", **marks.read_mark(workdir / "interpret") | {"done": False})


def never_run(config, workdir):
    (workdir / "interpret" / "stage.json").unlink()


def switched_off(config, workdir):
    config.interpret.enabled = False
    wanted = marks.fingerprints(config, {})["interpret"]
    marks.write_mark(workdir / "interpret", fingerprint=wanted, done=True, seconds=0.0)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (stale_settings, "The interpret stage is out of date (config or input changed): "),
        (stale_evaluation, "The interpret stage is out of date (config or input changed): "),
        (unfinished, "The interpret stage is not finished: "),
        (never_run, "The interpret stage has not been run: "),
        (switched_off, "The interpret stage is switched off (config.interpret.enabled): "),
    ],
)
def test_nothing_else_is_shown_as_current(run, change, sentence):
    change(*run)
    fields = report_inputs._interpreted(*run)
    assert fields.keys() == {"not_interpreted"} and fields["not_interpreted"].startswith(sentence)
    assert "mechanisms" in fields["not_interpreted"]


def test_people_are_left_out_without_permission(run):
    config, workdir = run
    config.interpret.individuals = False  # as of files that were copied from elsewhere: the mark is made to fit
    wanted = marks.fingerprints(config, {})["interpret"]
    marks.write_mark(workdir / "interpret", fingerprint=wanted, done=True, seconds=0.0)
    found = ReportData(**report_inputs._interpreted(config, workdir))
    assert found.explained == () and found.mechanisms
    config.data.source = "synthetic"
    assert report_inputs._people(config, workdir)


def pretrained(workdir, model, folds):
    for fold, about in folds.items():
        folder = workdir / "pretrain" / fold / model
        folder.mkdir(parents=True)
        (folder / "parameters.json").write_text(json.dumps({"parameters": 1234}))
        (folder / "goodput.json").write_text(json.dumps(about))
        (folder / "metrics.jsonl").write_text(json.dumps({"model_tflops_per_second": 2.0}) + "\n")


def test_device_hours_are_the_devices_seconds_over_folds_and_starts(tmp_path):
    config = small_run.one_row(small_run.small_config(tmp_path), "joint")
    config.data.n_folds = 2
    seconds = {"step": 3600.0, "compiling": 1800.0, "down": 7200.0}
    spent = {"H100": {"count": 4, "seconds": 4 * 5400.0}}
    folds = {f"fold{k}": {"seconds": seconds, "devices": spent} for k in (0, 1)}
    names = [name for name, _ in report_inputs.config_lib.folds(config)]
    pretrained(tmp_path, "joint", dict(zip(names, folds.values(), strict=True)))
    (entry,) = report_inputs._compute(config, tmp_path)
    assert entry["Devices"] == "4 x H100" and entry["Device-hours"] == "12"
    assert entry["Hours"] == "7" and entry["Goodput"] == "29%" and entry["Model FLOPs"] == "1.44e+16"


def test_restarts_on_other_devices_are_told_apart_and_old_runs_said_to_be_unknown(tmp_path):
    config = small_run.one_row(small_run.small_config(tmp_path), "joint")
    devices = {"H100": {"count": 8, "seconds": 36000.0}, "A100": {"count": 2, "seconds": 1800.0}}
    (name,) = [name for name, _ in report_inputs.config_lib.folds(config)]
    pretrained(tmp_path, "joint", {name: {"seconds": {"step": 60.0}, "devices": devices}})
    (entry,) = report_inputs._compute(config, tmp_path)
    assert entry["Devices"] == "8 x H100, 2 x A100" and entry["Device-hours"] == "10 on H100, 0.5 on A100"
    path = tmp_path / "pretrain" / name / "joint" / "goodput.json"
    path.write_text(json.dumps({"seconds": {"step": 60.0}}))
    (entry,) = report_inputs._compute(config, tmp_path)
    assert entry["Device-hours"] == "devices not logged"
