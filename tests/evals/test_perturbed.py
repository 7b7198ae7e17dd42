"""Changes under perturbations: paired, exact, right under shuffled and leaked labels."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ehrwear_jax.evals import perturbed, probes, protocol
from ehrwear_jax.evals.estimates import Resampling


def find(records, model, perturbation, metric="auroc"):
    wanted = model, perturbation, metric
    (found,) = [r for r in records if (r["model"], r["perturbation"], r["metric"]) == wanted]
    return found


def test_values_equal_the_library_and_changes_are_paired():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    score = y + rng.normal(0, 1.5, 400)
    noisy = score + rng.normal(0, 2.0, 400)
    group = np.arange(400) // 2
    records = perturbed.score_perturbations({"joint": {"clean": score, "noise": noisy, "same": score}}, y, group)
    noise, same, clean = (find(records, "joint", c) for c in ("noise", "same", "clean"))
    assert noise["value"] == pytest.approx(roc_auc_score(y, noisy))
    assert noise["change"] == pytest.approx(roc_auc_score(y, noisy) - roc_auc_score(y, score))
    assert noise["change_hi"] < 0 and noise["change_p"] < 0.01 and noise["n_degenerate"] == 0
    assert same["change"] == same["change_lo"] == same["change_hi"] == 0 and same["change_p"] == 1
    assert clean["change_p"] is None and clean["lo"] < clean["value"] < clean["hi"]
    # paired: narrower than the intervals of the two values would allow
    assert noise["change_hi"] - noise["change_lo"] < 0.8 * ((noise["hi"] - noise["lo"]) + (clean["hi"] - clean["lo"]))


def test_no_resamples_give_values_only_and_missing_clean_records_are_refused():
    y, score = np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.4, 0.4])
    records = perturbed.score_perturbations({"a": {"clean": score}}, y, np.arange(4), resampling=Resampling(0))
    assert find(records, "a", "clean")["value"] == 0.875 and find(records, "a", "clean")["lo"] is None
    with pytest.raises(ValueError, match="lacks the perturbation 'clean'"):
        perturbed.score_perturbations({"a": {"noise": score}}, y, np.arange(4))


def splits(rng, n=300, width=12):
    x = {s: rng.normal(size=(n, width)) for s in ("train", "tuning", "held_out")}
    return x, {s: rng.integers(0, 2, n).astype(float) for s in x}


def test_shuffled_labels_cover_one_half_in_nearly_all_cells():
    """A probe fitted and scored on labels that mean nothing: 60 combinations of models and tasks."""
    rng = np.random.default_rng(1)
    covered = []
    for task in range(20):
        x, y = splits(rng)
        predictions = {}
        for model, columns in (("wide", slice(None)), ("narrow", slice(0, 3)), ("single", slice(3, 4))):
            fitted = protocol.predict_binary({s: v[:, columns] for s, v in x.items()}, y)
            predictions[model] = {"clean": fitted.probability["held_out"]}
        resampling = Resampling(300, seed=task)
        records = perturbed.score_perturbations(predictions, y["held_out"], np.arange(300), resampling=resampling)
        covered += [r["lo"] <= 0.5 <= r["hi"] for r in records if r["metric"] == "auroc"]
    assert len(covered) == 60 and np.mean(covered) >= 0.9


def test_a_leaked_label_is_caught():
    """The label itself among the features must score 1.0: what a leak looks like."""
    rng = np.random.default_rng(2)
    x, y = splits(rng)
    leaked = {s: np.concatenate([x[s], y[s][:, None]], axis=1) for s in x}
    fitted = protocol.predict_binary(leaked, y, l2_grid=[probes.L2_GRID[0]])
    records = perturbed.score_perturbations(
        {"leak": {"clean": fitted.probability["held_out"]}}, y["held_out"], np.arange(300), resampling=Resampling(100)
    )
    found = find(records, "leak", "clean")
    assert found["value"] == found["lo"] == found["hi"] == 1.0
