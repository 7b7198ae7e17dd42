"""What two runs differ in is said once, and what they share is counted."""

import json

import pytest

from ehrwear_jax.runtime import compare


def record(model, value, metric="auroc"):
    return {"task": "death_365d", "model": model, "metric": metric, "value": value}


def write(root, steps, loss, records):
    network = root / "models" / "joint" / f"all-seed0-{steps}"
    (root / "report").mkdir(parents=True)
    network.mkdir(parents=True)
    (root / "config.json").write_text(json.dumps({"name": "tiny", "train": {"steps": steps, "keep": 2}}))
    (root / "report" / "results.json").write_text(json.dumps(records))
    (network / "artifact.json").write_text(json.dumps({"name": "joint/all-seed0"}))
    lines = [{"step": 1, "loss/total": 9.0}, {"step": steps, "loss/total": loss, "validation/loss/total": loss + 1}]
    (network / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return root


def test_configs_losses_and_results_are_compared(tmp_path, capsys):
    a = write(tmp_path / "a", 10, 2.0, [record("joint", 0.75), record("age_sex", 0.6), record("motor", None)])
    b = write(tmp_path / "b", 20, 1.5, [record("joint", 0.8), record("age_sex", 0.6), record("joint", 0.2, "auprc"),
                                        record("joint - age_sex", 0.2, "auroc_difference")])  # fmt: skip
    compare.main([str(a), str(b)])
    told = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert told[3:5] == ["config, A -> B:", "config.train.steps: 10 -> 20"] and "config.train.keep" not in " ".join(
        told
    )
    assert "joint/all-seed0 loss/total 2 1.5 -0.5" in told and "joint/all-seed0 step 10 20 +10" in told
    assert "joint/all-seed0 validation/loss/total 3 2.5 -0.5" in told
    at = told.index("results:")
    assert told[at + 1 :] == [
        "A B B - A",
        "death_365d joint auroc 0.75 0.8 +0.05",
        "death_365d joint auprc - 0.2",
        "1 are the same",
    ]
    compare.main([str(a), str(a)])
    assert "config, A -> B:\n  the same" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match=f"{tmp_path}: no run; name a --workdir of main"):
        compare.main([str(tmp_path), str(tmp_path)])
