"""Fine-tuned models of the evaluate stage, on a small pretrained model."""

import json

import numpy as np
import polars as pl
import pytest
import small_run

from ehrwear_jax.stages import fine_tuned, runner

pytestmark = pytest.mark.slow
MODES = ("head", "lora")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, workdir, records without fine-tuned models, records with them)."""
    root = tmp_path_factory.mktemp("tuned")
    small_run.write_inputs(root)
    config, workdir = small_run.one_row(small_run.small_config(root), "joint"), root / "run"
    stages, path = ("prepare", "pretrain", "embed", "evaluate"), workdir / "evaluate" / "results.json"
    runner.run(config, workdir, stages)
    frozen = json.loads(path.read_text())
    config.finetune.update({"modes": MODES, "steps": 4, "validate_every": 2, "batch_size": 4, "rank": 2})
    runner.run(config, workdir, stages)
    return config, workdir, frozen, json.loads(path.read_text())


@pytest.mark.parametrize("task", ["readmission", "relapse"])
def test_fine_tuned_models_are_scored_beside_the_frozen_ones(run, task):
    _, workdir, frozen, records = run
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


@pytest.mark.parametrize("task", ["readmission", "relapse"])
def test_predictions_are_those_that_fine_tuning_left(run, task):
    _, workdir, _, _ = run
    folder = workdir / "evaluate" / "finetune" / "all" / task
    column = "predicted_boolean_probability" if task == "readmission" else "predicted_log_hazard"
    frozen = pl.read_parquet(workdir / "evaluate" / "predictions" / task / "joint.parquet")
    for mode in MODES:
        table = pl.read_parquet(workdir / "evaluate" / "predictions" / task / f"joint_{mode}.parquet")
        saved, about = np.load(folder / f"joint_{mode}.npz"), json.loads((folder / f"joint_{mode}.json").read_text())
        np.testing.assert_array_equal(
            table[column].to_numpy(), saved["held_out"].astype(table[column].to_numpy().dtype)
        )
        assert len(saved["tuning"]) > 5 and np.isfinite(saved["tuning"]).all()
        assert about["settings"]["mode"] == mode and (about["n_trained"]["model"] > 0) == (mode == "lora")
        best = min(about["history"], key=lambda x: x["tuning_loss"])
        assert best["step"] == about["best_step"]
        if about["best_step"] == 0:  # then it is the frozen probe
            np.testing.assert_allclose(table[column], frozen[column], rtol=1e-4, atol=1e-5)


def test_a_model_that_is_there_is_not_trained_again(run, monkeypatch):
    config, workdir, _, records = run
    monkeypatch.setattr(fine_tuned, "_finetune", lambda *_: pytest.fail("trained again"))
    (workdir / "evaluate" / "readmission.json").unlink()
    runner.write_mark(workdir / "evaluate", **runner.read_mark(workdir / "evaluate") | {"done": False})
    runner.run(config, workdir, ("evaluate",))
    assert json.loads((workdir / "evaluate" / "results.json").read_text()) == records
