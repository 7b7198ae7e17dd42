"""Fine-tuned models of the evaluate stage, on a small pretrained model."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import small_run

from ehrwear_jax.runtime import run_dir
from ehrwear_jax.stages import evaluate, finetuned, predictors, runner, tasks

pytestmark = pytest.mark.slow
MODES = ("head", "lora", "scratch")
STAGES = ("prepare", "pretrain", "embed", "evaluate")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(plan with fine-tuned models, records without them, records with them), and what lay there before them."""
    root = tmp_path_factory.mktemp("tuned")
    small_run.write_inputs(root)
    config, workdir = small_run.one_model(small_run.small_config(root), "joint"), root / "run"
    frozen = small_run.plan_of(config, workdir)
    runner.run(frozen.config, workdir, STAGES)
    before = small_run.written_at(workdir), small_run.contents(workdir)
    config.finetune.update({"modes": MODES, "steps": 4, "validate_every": 2, "batch_size": 4, "rank": 2,
                            "scratch_steps": 4})  # fmt: skip
    plan = small_run.plan_of(config, workdir)
    runner.run(plan.config, workdir, STAGES)
    return plan, evaluate.results(frozen)[0], evaluate.results(plan)[0], before


def predictions(plan, task, model):
    return pl.read_parquet(evaluate.scores(plan, tasks.read(plan, task)).folder / "predictions" / f"{model}.parquet")


@pytest.mark.parametrize("task", ["readmission", "relapse"])
def test_fine_tuned_models_are_scored_beside_the_frozen_ones(run, task):
    _, frozen, records, _ = run
    names = {f"joint_{m}" for m in MODES}
    mine = [r for r in records if r["task"] == task]
    assert names == {r["model"] for r in mine} - {r["model"] for r in frozen} - {f"joint - {n}" for n in names}
    # the same people and resamples: what was there before is the same with its intervals
    # (but q-values, whose family has grown)
    both = [[r for r in x if not r["metric"].endswith("_q")] for x in (mine, frozen)]
    assert [r for r in both[0] if not any(n in r["model"] for n in names)] == [r for r in both[1] if r["task"] == task]
    metric = "auroc" if task == "readmission" else "c_index"
    for name in names:
        (difference,) = [r for r in mine if (r["model"], r["metric"]) == (f"joint - {name}", f"{metric}_difference")]
        assert difference["n"] == mine[0]["n"] and difference["lo"] <= difference["hi"]


def test_what_was_there_without_them_is_not_touched(run):
    plan, _, _, (times, contents) = run
    root = plan.workdir.root
    inside = {p for p in times if "/" in p}  # what lies beside the artifacts tells of the last start
    assert {p: times[p] for p in inside}.items() <= small_run.written_at(root).items()
    assert {p: contents[p] for p in inside & contents.keys()}.items() <= small_run.contents(root).items()


@pytest.mark.parametrize("task", ["readmission", "relapse"])
def test_predictions_are_those_that_fine_tuning_left(run, task):
    plan, *_ = run
    read = tasks.read(plan, task)
    column = "predicted_boolean_probability" if task == "readmission" else "predicted_log_hazard"
    frozen = predictions(plan, task, "joint")
    for mode in MODES:
        folder = finetuned.artifact(plan, read, read.folds[0], "joint", mode).folder
        table = predictions(plan, task, f"joint_{mode}")
        saved = np.load(folder / finetuned.PREDICTIONS)
        about = json.loads((folder / finetuned.ABOUT).read_text())
        np.testing.assert_array_equal(
            table[column].to_numpy(), saved["held_out"].astype(table[column].to_numpy().dtype)
        )
        assert len(saved["tuning"]) > 5 and np.isfinite(saved["tuning"]).all()
        assert (about["n_trained"]["model"] > 0) == (mode != "head")
        assert about["settings"]["modes"] == list(MODES) and about["last_step"] == 4
        looks = [x for x in run_dir.read_lines(folder / "metrics.jsonl") if "validation/loss/total" in x]
        losses = {x["step"]: x["validation/loss/total"] for x in looks}
        assert set(losses) == {0, 2, 4} and min(losses, key=losses.get) == about["best_step"]
        if about["best_step"] == 0 and mode != "scratch":  # then it is the frozen probe
            np.testing.assert_allclose(table[column], frozen[column], rtol=1e-4, atol=1e-5)


def test_from_scratch_no_pretrained_model_is_read(run, monkeypatch):
    """Made again it is the same, where pretraining, embeddings and how the model was trained are out of reach."""
    plan, *_ = run
    task = tasks.read(plan, "readmission")
    (fold,) = task.folds
    made = finetuned.artifact(plan, task, fold, "joint", "scratch")
    before = {k: v.tobytes() for k, v in np.load(made.folder / finetuned.PREDICTIONS).items()}
    for name in ("pretrained", "embeddings"):
        monkeypatch.setattr(plan, name, lambda *_, name=name: pytest.fail(f"asked for the {name}"))
    small_run.interrupted(made, finetuned.PREDICTIONS)
    (made.folder / "metrics.jsonl").unlink()
    shutil.rmtree(made.folder / "checkpoints")
    again = finetuned.predictions(plan, task, fold, "joint", "scratch")
    assert {k: v.tobytes() for k, v in again.items()} == before


def test_a_model_that_is_there_is_not_trained_again(run, monkeypatch):
    plan, _, records, _ = run
    monkeypatch.setattr(finetuned, "_finetune", lambda *_: pytest.fail("trained again"))
    task = tasks.read(plan, "readmission")
    small_run.interrupted(evaluate.scores(plan, task), evaluate.SCORES)
    for predictor in predictors.finetuned_predictors(plan, task):
        small_run.interrupted(predictors.predictions_artifact(plan, task, predictor), predictors.PREDICTIONS)
    runner.run(plan.config, plan.workdir.root, ("evaluate",))
    assert evaluate.missing(plan) == [] and evaluate.results(plan)[0] == records


def test_a_fine_tuning_that_was_not_finished_goes_on_to_the_same_predictions(run):
    plan, _, records, _ = run
    task = tasks.read(plan, "readmission")
    (fold,) = task.folds
    half = finetuned.artifact(plan, task, fold, "joint", "lora")
    (predictor,) = [p for p in predictors.finetuned_predictors(plan, task) if p.name == "joint_lora"]
    predicted, whole = half.folder / finetuned.PREDICTIONS, small_run.contents(plan.workdir.root)
    bytes_of_it = predicted.read_bytes()
    small_run.interrupted(half, finetuned.PREDICTIONS)
    small_run.interrupted(predictors.predictions_artifact(plan, task, predictor), predictors.PREDICTIONS)
    small_run.interrupted(evaluate.scores(plan, task), evaluate.SCORES)
    runner.run(plan.config, plan.workdir.root, ("evaluate",))
    assert half.done and predicted.read_bytes() == bytes_of_it and evaluate.results(plan)[0] == records
    other = str(finetuned.artifact(plan, task, fold, "joint", "head").folder.relative_to(plan.workdir.root))
    after = small_run.contents(plan.workdir.root)
    assert {p: b for p, b in after.items() if p.startswith(other)} == {
        p: b for p, b in whole.items() if p.startswith(other)
    }
