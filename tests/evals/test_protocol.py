"""The evaluation protocol: predictions, records with shared resamples, MEDS predictions."""

import json

import numpy as np
import pytest
from lifelines.utils import concordance_index
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ehrwear_jax.evals import bootstrap, calibration, concordance, inference, probes, protocol
from ehrwear_jax.evals.estimates import Resampling
from ehrwear_jax.evals.survival import FollowUp

FIELDS = {"dataset", "model", "task", "metric", "value", "lo", "hi", "n", "n_positive", "seed"}


def scored(n=400, seed=0):
    """Labels, patient of each row, predictions of a better and a worse model."""
    rng = np.random.default_rng(seed)
    y, group = rng.random(n) < 0.3, rng.integers(0, 90, n)
    better, worse = (probes.sigmoid(s * y - 1 + rng.normal(size=n)) for s in (2.0, 0.7))
    return y, group, {"joint": better, "other": np.round(worse, 1)}


def score(y, group, predictions, n_resamples=150, reference_model="joint"):
    task = protocol.TaskSpec("d", "t", reference_model, Resampling(n_resamples, seed=4))
    return protocol.score_binary(task, predictions, y, group)


def find(records, model, metric):
    (record,) = [r for r in records if (r["model"], r["metric"]) == (model, metric)]
    return record


def features(n=600, d=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = rng.random(n) < probes.sigmoid(2 * x[:, 0] + x[:, 1])
    cut = {"train": slice(0, 300), "tuning": slice(300, 450), "held_out": slice(450, n)}
    return {s: x[c] for s, c in cut.items()}, {s: y[c] for s, c in cut.items()}


def test_records_equal_library_metrics_and_resamples_done_by_hand():
    y, group, predictions = scored()
    records = score(y, group, predictions)
    assert all(r.keys() == FIELDS for r in records)
    weight = bootstrap.patient_weights(group, 150, seed=4)
    expanded = [np.repeat(np.arange(len(y)), w) for w in weight]
    for model, p in predictions.items():
        for metric, oracle in (
            ("auroc", roc_auc_score),
            ("auprc", average_precision_score),
            ("brier", brier_score_loss),
        ):
            record = find(records, model, metric)
            assert record["value"] == pytest.approx(oracle(y, p), abs=1e-12)
            samples = [oracle(y[rows], p[rows]) for rows in expanded]
            bounds = np.quantile(samples, [0.025, 0.975])
            np.testing.assert_allclose([record["lo"], record["hi"]], bounds, atol=1e-12)
            assert (record["n"], record["n_positive"], record["seed"]) == (400, y.sum(), 4)
        assert find(records, model, "ece")["value"] == pytest.approx(calibration.ece(y, p))
        assert find(records, model, "ece_floor")["value"] == calibration.ece_floor(p, seed=4)
    samples = [
        roc_auc_score(y[rows], predictions["joint"][rows]) - roc_auc_score(y[rows], predictions["other"][rows])
        for rows in expanded
    ]
    difference = find(records, "joint - other", "auroc_difference")
    bounds = np.quantile(samples, [0.025, 0.975])
    np.testing.assert_allclose([difference["lo"], difference["hi"]], bounds, atol=1e-12)
    p_value = find(records, "joint - other", "auroc_difference_p")
    assert p_value["value"] == pytest.approx(inference.paired_pvalue(samples))
    assert p_value["lo"] is None


def test_paired_interval_is_narrower_than_two_separate_ones():
    y, group, predictions = scored()
    predictions["other"] = np.clip(predictions["joint"] + 0.03, 0, 1) ** 1.1
    noise = np.random.default_rng(1).normal(size=len(y)) * 0.02
    predictions["other"] = np.clip(predictions["other"] + noise, 0, 1)
    records = score(y, group, predictions)
    width = lambda r: r["hi"] - r["lo"]  # noqa: E731
    paired = width(find(records, "joint - other", "auroc_difference"))
    assert paired < width(find(records, "joint", "auroc")) / 2


def test_equal_predictions_differ_by_exactly_nothing():
    y, group, predictions = scored()
    records = score(y, group, {"joint": predictions["joint"], "copy": predictions["joint"]})
    for metric in ("auroc_difference", "auprc_difference"):
        record = find(records, "joint - copy", metric)
        assert record["value"] == record["lo"] == record["hi"] == 0
        assert find(records, "joint - copy", f"{metric}_p")["value"] == 1


def test_row_order_does_not_change_the_records():
    y, group, predictions = scored()
    order = np.random.default_rng(0).permutation(len(y))
    first = score(y, group, predictions)
    second = score(y[order], group[order], {k: p[order] for k, p in predictions.items()})
    for a, b in zip(first, second, strict=True):
        if a["metric"] == "ece_floor":  # simulated row by row
            continue
        assert (a["model"], a["metric"]) == (b["model"], b["metric"])
        for field in ("value", "lo", "hi"):
            assert a[field] == pytest.approx(b[field], abs=1e-12)


def test_one_class_gives_none_and_degenerate_resamples_are_reported():
    y, group, predictions = scored()
    records = score(np.zeros_like(y), group, predictions)
    assert find(records, "joint", "auroc")["value"] is None
    assert find(records, "joint", "auroc")["lo"] is None
    assert find(records, "joint", "brier")["lo"] is not None
    assert find(records, "bootstrap", "degenerate_resamples")["value"] == 150
    json.dumps(records, allow_nan=False)

    few = np.zeros_like(y)
    few[np.flatnonzero(group == group[0])[0]] = True
    records = score(few, group, predictions)
    missing = find(records, "bootstrap", "degenerate_resamples")["value"]
    assert missing == pytest.approx(150 * np.exp(-1), abs=20)
    assert find(records, "joint", "auroc")["lo"] is not None
    assert not [r for r in score(y, group, predictions) if r["model"] == "bootstrap"]


def test_no_resamples_gives_values_without_intervals():
    y, group, predictions = scored()
    records = score(y, group, predictions, n_resamples=0)
    expected = roc_auc_score(y, predictions["joint"])
    assert find(records, "joint", "auroc")["value"] == pytest.approx(expected)
    assert find(records, "joint", "auroc")["lo"] is None
    assert find(records, "joint - other", "auroc_difference")["value"] > 0
    assert find(records, "joint - other", "auroc_difference_p")["value"] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference_model": "nobody"}, "no model 'nobody'"),
        ({"predictions": {}}, "no predictions"),
        ({"predictions": {"joint": np.full(400, 1.5)}}, "task t, model joint: p is 1.5 in row 0"),
        ({"predictions": {"joint": np.full(3, 0.5)}}, "task t, model joint: vectors differ"),
        ({"group": np.zeros(3)}, "group has 3 rows, expected 400"),
    ],
)
def test_bad_input_is_named(settings, message):
    y, group, predictions = scored()
    arguments = {"y": y, "group": group, "predictions": predictions} | settings
    with pytest.raises(ValueError, match=message):
        score(**arguments)


def test_survival_records_equal_lifelines_on_shared_resamples():
    rng = np.random.default_rng(0)
    time, event = rng.integers(1, 60, 200), rng.random(200) < 0.5
    risks = {"joint": -time + rng.normal(size=200) * 20, "cox_table": rng.normal(size=200)}
    group = np.arange(200)
    task = protocol.TaskSpec("d", "death", "joint", Resampling(60, seed=1))
    records = protocol.score_survival(task, risks, FollowUp(time, event), group)
    weight = bootstrap.patient_weights(group, 60, seed=1)
    samples = {
        model: [concordance_index(time[i], -risk[i], event[i]) for i in (np.repeat(group, w) for w in weight)]
        for model, risk in risks.items()
    }
    for model, risk in risks.items():
        record = find(records, model, "c_index")
        assert record["value"] == pytest.approx(concordance_index(time, -risk, event))
        assert record["lo"] == pytest.approx(np.quantile(samples[model], 0.025))
    delta = np.subtract(samples["joint"], samples["cox_table"])
    difference = find(records, "joint - cox_table", "c_index_difference")
    assert difference["hi"] == pytest.approx(np.quantile(delta, 0.975))
    p_value = find(records, "joint - cox_table", "c_index_difference_p")["value"]
    assert p_value == pytest.approx(inference.paired_pvalue(delta))
    assert difference["n_positive"] == event.sum()


def test_predict_binary_never_sees_held_out_labels_and_predicts_all_but_train():
    x, y = features()
    fitted = protocol.predict_binary(x, {s: y[s] for s in ("train", "tuning")})
    assert fitted.probability.keys() == {"tuning", "held_out"}
    assert roc_auc_score(y["held_out"], fitted.probability["held_out"]) > 0.8
    direct = probes.fit_logistic(x["train"], y["train"], x["tuning"], y["tuning"])
    assert fitted.l2 == direct.l2
    np.testing.assert_array_equal(fitted.probability["held_out"], direct.predict_proba(x["held_out"]))
    moved = x | {"held_out": x["held_out"] * 50}
    again = protocol.predict_binary(moved, y)
    np.testing.assert_array_equal(again.model.coef_D, fitted.model.coef_D)
    with pytest.raises(ValueError, match="lacks the split 'tuning'"):
        protocol.predict_binary({"train": x["train"]}, y)


def survival_features():
    x, _ = features()
    rng = np.random.default_rng(2)
    time = {s: rng.exponential(np.exp(-2 * v[:, 0])) for s, v in x.items()}
    event = {s: rng.random(len(v)) < 0.7 for s, v in x.items()}
    return x, time, event


def test_predict_survival_ranks_the_held_out_rows():
    x, time, event = survival_features()
    fitted = protocol.predict_survival(x, time, event)
    assert fitted.risk.keys() == {"tuning", "held_out"}
    risk = fitted.risk["held_out"]
    assert concordance.concordance_index(time["held_out"], event["held_out"], risk) > 0.75
