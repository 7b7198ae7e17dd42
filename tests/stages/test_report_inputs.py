"""What the report takes from a workdir: the interpret stage's output only where it is current, names, and devices."""

import json
from datetime import datetime

import numpy as np
import polars as pl
import pytest
import report_samples
import small_run

from ehrwear_jax.report import explained, mechanism_figures
from ehrwear_jax.report.report_data import ReportData
from ehrwear_jax.stages import interpret, prepare, report_inputs
from ehrwear_jax.training import embedding

LABELS = ("LAB//glucose//Q4", "DX//I10", "ATC//X", "wearable window")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The root of a run that is prepared, with what its codes mean."""
    root = tmp_path_factory.mktemp("inputs")
    small_run.write_inputs(root)
    path = root / "raw" / "meds" / "metadata" / "codes.parquet"
    known = {"LAB//glucose": "Systolic blood pressure", "DX//I10": None}
    codes = pl.read_parquet(path)
    meaning = pl.col("code").replace_strict(known, default=pl.col("description"), return_dtype=pl.String)
    codes.with_columns(description=meaning).write_parquet(path)
    prepare.run(small_run.plan_of(config_of(root), root / "run"))
    return root


def config_of(root):
    """Of the joint model alone, interpreted."""
    config = small_run.one_model(small_run.small_config(root), "joint")
    config.interpret.enabled = config.interpret.individuals = True
    return config


def write_interpretation(plan):
    """Stands for the interpret stage; returns the artifact of the joint model."""
    parts = {"robustness": [{"task": "readmission", "metric": "auprc"}], "geometry": [], "retrieval": [],
             "uncertainty": []}  # fmt: skip
    one = report_samples.person(labels=LABELS[:3], windows=2)
    given = ("risk", "logit", "completeness_gap", "groups", "channels", "histories", "counterfactuals", "tokens")
    parts |= {"mechanisms": report_samples.mechanisms(), "people": [{name: getattr(one, name) for name in given}]}
    made = interpret.artifact(plan, "joint")
    with made.making() as folder:
        arrays = {"attention_0": one.attention, "wear_0": one.wear, "wear_days_0": one.wear_days}
        np.savez(folder / "people.npz", channels=np.array(one.signals), **arrays)
        np.savez(folder / "kernels.npz", days_K=np.ones(2), kernel=np.ones((1, 2, 2)))
        for name, content in parts.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
    return made


@pytest.fixture
def run(prepared):
    """(config, plan, artifact) with the files of a finished interpret stage."""
    config = config_of(prepared)
    plan = small_run.plan_of(config, prepared / "run")
    return config, plan, write_interpretation(plan)


def test_current_output_is_taken_whole_with_what_codes_mean(run):
    _, plan, _ = run
    found = ReportData(**report_inputs._interpreted(plan))
    assert found.not_interpreted == "" and found.mechanisms == report_samples.mechanisms()
    assert found.codes["event"] == ("HOSPITAL_ADMISSION",) and len(found.kernels) == 1
    (person,) = found.explained
    assert [t["label"] for t in person.tokens] == ["Systolic blood pressure, Q4", "DX//I10", "ATC//X",
                                                   *["wearable window"] * 2]  # fmt: skip
    np.testing.assert_array_equal(person.attention, report_samples.person(labels=LABELS[:3], windows=2).attention)
    assert "Systolic blood pressure, Q4, 300 d" in str(explained.explained(found))
    assert len(mechanism_figures.mechanisms(found).blocks) > 5


def other_settings(config, plan, made):
    config.interpret.raised_sd = 2.0
    return small_run.plan_of(config, plan.workdir.root)


def other_network(config, plan, made):
    config.models.joint.network = {"width": 16}
    return small_run.plan_of(config, plan.workdir.root)


def other_labels(config, plan, made):
    config.interpret.task = config.report.reliability_task = ""
    config.evaluate.tasks = ("relapse",)
    return small_run.plan_of(config, plan.workdir.root)


def unfinished(config, plan, made):
    small_run.interrupted(made)
    return plan


def switched_off(config, plan, made):
    config.interpret.enabled = False
    return small_run.plan_of(config, plan.workdir.root)


NOT_RUN, OFF = "The interpret stage has not been run for joint: ", "The interpret stage is switched off"


@pytest.mark.parametrize(
    "change, sentence",
    [
        (other_settings, NOT_RUN),
        (other_network, NOT_RUN),
        (other_labels, NOT_RUN),
        (unfinished, NOT_RUN),
        (switched_off, f"{OFF}: "),
    ],
)
def test_nothing_else_is_shown_as_current(run, change, sentence):
    _, plan, made = run
    assert report_inputs._interpreted(plan).keys() > {"mechanisms"} and interpret.finished(plan) == ["joint"]
    before = small_run.contents(made.folder)
    now = change(*run)
    fields = report_inputs._interpreted(now)
    assert fields.keys() == {"not_interpreted"} and fields["not_interpreted"].startswith(sentence)
    assert "mechanisms" in fields["not_interpreted"] and interpret.finished(now) == []
    assert small_run.contents(made.folder) == before
    if change not in (unfinished, switched_off):  # what the other config made lies beside it
        assert interpret.artifact(now, "joint").folder.parent == made.folder.parent
        assert interpret.artifact(now, "joint").folder != made.folder


def test_only_some_models_are_interpreted(run):
    config, plan, _ = run
    config.models.second = {"family": "joint", "modalities": ("ehr",)}
    fields = report_inputs._interpreted(small_run.plan_of(config, plan.workdir.root))
    assert fields["not_interpreted"].startswith("The interpret stage has not been run for second: ")


def test_a_run_of_tables_alone_has_a_report_that_says_so(prepared):
    config = config_of(prepared)
    del config.models["joint"]
    config.evaluate.reference_model = "gradient_boosting"
    fields = report_inputs._interpreted(small_run.plan_of(config, prepared / "run"))
    assert fields.keys() == {"not_interpreted"}
    assert fields["not_interpreted"].startswith("The run has no network to interpret")


def test_people_are_left_out_without_permission(run, monkeypatch):
    config, plan, _ = run
    config.interpret.individuals = False
    hidden = small_run.plan_of(config, plan.workdir.root)
    made = write_interpretation(hidden)  # as files that were copied from elsewhere: people are in them
    found = ReportData(**report_inputs._interpreted(hidden))
    assert found.explained == () and found.mechanisms
    config.data.source = "synthetic"
    monkeypatch.setattr(report_inputs, "code_names", lambda _: {})  # nothing is simulated here
    assert report_inputs._people(small_run.plan_of(config, plan.workdir.root), made.folder)


def pretrained(plan, folds):
    """Stands for the pretrain stage: what it notes of a network, by fold."""
    for trained in plan.trained():
        folder = plan.pretrained(trained).folder
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(json.dumps({"parameters": 1234}))
        (folder / "goodput.json").write_text(json.dumps(folds[trained.fold]))
        (folder / "metrics.jsonl").write_text(json.dumps({"model_tflops_per_second": 2.0}) + "\n")


def test_device_hours_are_the_devices_seconds_over_folds_and_starts(prepared, tmp_path):
    config = config_of(prepared)
    config.data.n_folds = 2
    plan = small_run.plan_of(config, tmp_path)
    seconds = {"step": 3600.0, "compiling": 1800.0, "down": 7200.0}
    spent = {"H100": {"count": 4, "seconds": 4 * 5400.0}}
    pretrained(plan, {f"fold{k}": {"seconds": seconds, "devices": spent} for k in (0, 1)})
    (entry,) = report_inputs._compute(plan)
    assert entry["Devices"] == "4 x H100" and entry["Device-hours"] == "12"
    assert entry["Hours"] == "7" and entry["Goodput"] == "29%" and entry["Model FLOPs"] == "1.44e+16"
    assert entry["Parameters"] == "1,234" and entry["Steps"] == "6"


def test_the_step_that_z_is_of_is_told(prepared, tmp_path):
    """A training that ran out of patience ends before the config's last step."""
    plan = small_run.plan_of(config_of(prepared), tmp_path)
    pretrained(plan, {"all": {"seconds": {"step": 60.0}}})
    (trained,) = plan.trained()
    model = plan.pretrained(trained).folder / "model.json"
    model.write_text(json.dumps({"parameters": 1234, "last_step": 4}))
    index = pl.DataFrame({"subject_id": [1], "prediction_time": [datetime(2016, 1, 1)]})
    plan.embeddings(trained).mkdir(parents=True)
    embedding.write(plan.embeddings(trained) / "z.parquet", index, np.zeros((1, 2)), step=4)
    (entry,) = report_inputs._compute(plan)
    assert (entry["Steps"], entry["Step of z"]) == ("4", "4")


def test_restarts_on_other_devices_are_told_apart_and_old_runs_said_to_be_unknown(prepared, tmp_path):
    plan = small_run.plan_of(config_of(prepared), tmp_path)
    devices = {"H100": {"count": 8, "seconds": 36000.0}, "A100": {"count": 2, "seconds": 1800.0}}
    pretrained(plan, {"all": {"seconds": {"step": 60.0}, "devices": devices}})
    (entry,) = report_inputs._compute(plan)
    assert entry["Devices"] == "8 x H100, 2 x A100" and entry["Device-hours"] == "10 on H100, 0.5 on A100"
    (trained,) = plan.trained()
    path = plan.pretrained(trained).folder / "goodput.json"
    path.write_text(json.dumps({"seconds": {"step": 60.0}}))
    (entry,) = report_inputs._compute(plan)
    assert entry["Device-hours"] == "devices not logged"
