"""configs/paper.py names everything that the paper compares, in all its sizes."""

import runpy

import pytest
from repo import REPO

from ehrwear_jax import config as config_lib
from ehrwear_jax.config import bases, options
from ehrwear_jax.config.variants import TABLES
from ehrwear_jax.stages import interpret
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir
from ehrwear_jax.training import compile_only
from ehrwear_jax.training.pretrain import Model

BASELINES = {"motor", "cehr_bert", "context_clues", "himae", "papagei", "pulse_ppg"}
ABLATIONS = {*TABLES["table4"], *TABLES["a6"]}


def study(variant):
    config = config_lib.parse(runpy.run_path(str(REPO / "configs" / "paper.py"))["get_config"](variant))
    config_lib.check(config)
    return config


@pytest.mark.parametrize("variant, seeds", [("", 5), ("demo", 1), ("quick", 1), ("quick+noise", 1)])
def test_every_size_has_every_model_and_kind_of_task(variant, seeds):
    config = study(variant)
    assert set(config.networks) == {"joint", "ehr_only", "wear_only"} | BASELINES | ABLATIONS
    assert {"late_fusion", "best_fusion", "stacked"} <= set(config.models)
    assert set(config.model_config("best_fusion").networks) == {"ehr_only", "wear_only"} | BASELINES
    trained = {(t.steps, t.batch_size) for t in map(config.train_config, config.networks)}
    assert {steps for steps, _ in trained} == {config.train.steps}, "of every model"
    assert bases.added(options.as_dict(config.model_config("joint"))) == [], "the paper's model"
    assert len(config.seeds) == seeds
    tasks = config.evaluate.tasks
    assert {f"hospitalization_{h}d" for h in (30, 90, 180, 365)} <= set(tasks) and "time_to_hospitalization" in tasks
    assert {"sleep_efficiency_7d", "hrv_rmssd_7d", "activity_regularity_7d"} <= set(tasks), "Table 2"
    assert {"onset_cardiovascular_365d", "onset_metabolic_365d"} <= set(tasks), "Table 5"
    ours = [m for m in config.networks if config.family(m) == "joint"]
    ramps = [config.model_config(m).weights["wear_to_ehr"][2] for m in ours]
    assert max(ramps) <= config.train.steps // 10


@pytest.mark.parametrize("variant", ["", "demo", "quick"])
def test_no_baseline_is_much_smaller_than_the_model_that_it_is_compared_with(variant):
    config, sizes = study(variant), {}
    for name in ("joint", *BASELINES):
        model = Model(**config.model(name, 0))
        spec, _ = compile_only.assumed(model, config.prepare, vocabulary=512)
        sizes[name] = sum(compile_only.parameters(model, spec).values())
    assert min(sizes.values()) > 0.6 * sizes["joint"], sizes
    assert max(sizes.values()) < 2.0 * sizes["joint"], sizes


def test_sizes_differ_by_size_and_extended_adds_what_is_ours():
    quick, demo, full = (study(v) for v in ("quick", "demo", ""))
    assert quick.train.steps < demo.train.steps < full.train.steps
    assert quick.simulate.n_subjects < demo.simulate.n_subjects < full.simulate.n_subjects
    ours = study("quick+extended").model_config("joint")
    assert bases.added(options.as_dict(ours)) and "joint_paper" in study("quick+paper+extended").models


def test_the_larger_simulation_has_physiology_too():
    config = config_lib.parse(runpy.run_path(str(REPO / "configs" / "small.py"))["get_config"](""))
    config_lib.check(config)
    assert set(config.labels.physiology.tasks()) <= set(config.evaluate.tasks) and config.labels.physiology.measures


def test_a_part_can_be_chosen(monkeypatch):
    """With only some models the rest of the config follows; what is trained is called the same."""
    values = runpy.run_path(str(REPO / "configs" / "paper.py"))["get_config"]("quick")
    whole = Plan(config_lib.parse(values), Workdir("run"))
    values.only = ("joint", "ehr_only", "r1")
    part = Plan(config_lib.parse(values), Workdir("run"))
    assert part.config.networks == ["ehr_only", "joint", "r1"] and part.config.interpret.models == ("joint", "ehr_only")
    for trained in part.trained():
        assert part.model(trained).identity() == whole.model(trained).identity()
    monkeypatch.setattr(interpret, "artifact", lambda plan, name: plan.artifact("interpret", name, {}))
    assert interpret.missing(part) == ["ehr_only", "joint"]
    assert set(interpret.missing(whole)) == {"joint", "ehr_only", "wear_only", "late_fusion"}, "no ablation"


def test_a_simulation_labels_what_else_is_asked_for(tmp_path):
    """Hospitalisation is the simulation's own; times to it, first diagnoses and physiology are made if a task asks."""
    config = study("quick")
    labels = Labels(Plan(config, Workdir(tmp_path)))
    assert sorted(labels.groups) == ["hospitalization", "onset_cardiovascular", "onset_metabolic", "physiology"]
    folders = [str(f.relative_to(tmp_path)).split("/")[0] for f in labels.folders()]
    assert folders == ["raw", *["labels"] * 4], "tables of the simulation come first"
    tiny = config_lib.parse(runpy.run_path(str(REPO / "configs" / "tiny.py"))["get_config"](""))
    assert Labels(Plan(tiny, Workdir(tmp_path))).groups == {}
