"""Predicted curves under competing events, and whose labels the baseline of a fine-tuned model is of."""

import numpy as np
import pytest

from ehrwear_jax.config.evaluation import EvaluateConfig
from ehrwear_jax.evals import classification, cox
from ehrwear_jax.evals.builders import PredictedCurves
from ehrwear_jax.evals.estimates import Resampling
from ehrwear_jax.evals.protocol import TaskSpec
from ehrwear_jax.evals.survival import FollowUp, TrainingCurves
from ehrwear_jax.stages import evaluate_fit, evaluate_score

SPLITS = ("train", "tuning", "held_out")


def cohort(n=4000, seed=0):
    """(x, target, competing) by split; both hazards rise with the second feature, as with age. And the truth."""
    rng = np.random.default_rng(seed)
    split = np.repeat(np.arange(3), n)
    x = rng.normal(size=(3 * n, 2))
    event = rng.exponential(1 / (0.01 * np.exp(x @ [0.8, 0.7])))
    death = rng.exponential(1 / (0.01 * np.exp(x @ [0.0, 1.2])))
    end = rng.uniform(0, 200, 3 * n)
    time = np.minimum(np.minimum(event, death), end)
    whole = (event, death)
    by = [{s: v[split == k] for k, s in enumerate(SPLITS)} for v in (x, time, time == event, time == death)]
    target = {s: (by[1][s], by[2][s]) for s in SPLITS}
    return by[0], target, by[3], [v[split == 2] for v in whole]


@pytest.mark.parametrize(("probe", "within"), [("exact", 0.03), ("adam", 0.05)])  # adam stops before the optimum
def test_predicted_incidence_is_calibrated_under_competing_events(probe, within):
    """Among those likely to die first the hazard of the event alone says far too much."""
    x, target, competing, (event, death) = cohort()
    config, times = EvaluateConfig(probe=probe, probe_seeds=(0, 1)), np.array([40.0, 120.0])
    found = evaluate_fit.probe(config, "survival", x, target, times, competing)
    alone = evaluate_fit.probe(config, "survival", x, target, times)
    np.testing.assert_array_equal(found.held_out, alone.held_out)  # the risk is the log-hazard of the event
    old = x["held_out"][:, 1] > 0.7
    for k, t in enumerate(times):
        for rows in (old, ~old):
            truth = np.mean((event <= t) & (event < death) & rows) / rows.mean()
            assert np.mean(1 - found.curve_NxT[rows, k]) == pytest.approx(truth, abs=within)
    truth = np.mean(((event <= 120) & (event < death))[old])
    assert np.mean(1 - alone.curve_NxT[old, 1]) > truth + 0.15


def test_people_are_ranked_by_what_is_predicted_under_competing_events():
    """By the incidence, not by the hazard: the known truth is ranked better."""
    x, target, competing, (event, death) = cohort()
    found = evaluate_fit.exact("survival", x, target, [40.0, 120.0], competing)
    follow_up = {s: FollowUp(*target[s], competing[s]) for s in SPLITS}
    curves = PredictedCurves(np.array([40.0, 120.0]), {"curve": found.curve_NxT})
    records = evaluate_score.score_time(
        TaskSpec("d", "t", resampling=Resampling(0)), {"curve": found.held_out, "hazard": found.held_out},
        follow_up["held_out"], evaluate_score.Cohort(np.arange(len(event))), curves=curves, horizons=(40.0, 120.0),
        train=TrainingCurves.fit(follow_up["train"]),
    )["records"]  # fmt: skip
    auc = {r["model"]: r["value"] for r in records if r["metric"] == "auc_120"}
    y = (event <= 120) & (event < death)
    assert auc["curve"] == pytest.approx(classification.auroc(y, 1 - found.curve_NxT[:, 1]), abs=0.02)
    assert auc["hazard"] == pytest.approx(classification.auroc(y, found.held_out), abs=0.02)
    assert auc["curve"] > auc["hazard"] + 0.02


def test_without_competing_events_the_curve_is_that_of_the_hazard_bit_by_bit():
    x, target, competing, _ = cohort(n=300)
    nobody = {s: np.zeros_like(v) for s, v in competing.items()}
    plain, same = (evaluate_fit.exact("survival", x, target, [50.0], c) for c in (None, nobody))
    assert plain.curve_NxT.tobytes() == same.curve_NxT.tobytes()


def test_competing_events_that_tuning_lacks_have_a_hazard_without_covariates():
    x, target, competing, _ = cohort(n=300)
    found = evaluate_fit.competing_hazard(x, target, competing | {"tuning": np.zeros(300, bool)})
    times, hazard = cox.breslow(target["train"][0], competing["train"], np.zeros(300))
    assert not found.eta_N.any()
    np.testing.assert_array_equal(found.cumulative_K, hazard)
    np.testing.assert_array_equal(found.times_K, times)


def test_the_baseline_of_a_fine_tuned_model_is_of_the_training_people():
    x, target, competing, (event, death) = cohort(n=3000)
    log_hazard = {s: x[s] @ [0.8, 0.7] for s in SPLITS}
    found = evaluate_fit.finetuned("survival", log_hazard, target, [40.0], competing)
    assert np.mean(1 - found.curve_NxT) == pytest.approx(np.mean((event <= 40) & (event < death)), abs=0.02)
    for split, changes in (("tuning", False), ("held_out", False), ("train", True)):
        faulty = target | {split: (target[split][0], np.zeros_like(target[split][1]))}
        got = evaluate_fit.finetuned("survival", log_hazard, faulty, [40.0])
        same = evaluate_fit.finetuned("survival", log_hazard, target, [40.0])
        assert (got.curve_NxT.tobytes() != same.curve_NxT.tobytes()) == changes, split
