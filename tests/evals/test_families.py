"""Families of tests: who is in them, and what the correction within them gives."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from ehrwear_jax.evals import families, protocol
from ehrwear_jax.evals.estimates import Resampling


def p_record(model, p, metric="auroc", task="t", dataset="d"):
    common = {"dataset": dataset, "task": task, "n": 100, "n_positive": 20, "seed": 0}
    return protocol.record(common, f"joint - {model}", f"{metric}_difference_p", p)


def q_of(records, model, task="t"):
    (found,) = [r for r in records if r["model"] == f"joint - {model}" and r["task"] == task]
    return found["value"]


def test_the_oracle_does_not_lower_the_q_of_the_others():
    """Six comparisons with the oracle's among them would call joint minus EHR-only significant: q .036 for .060."""
    p = {"ehr_only": 0.012, "wear_only": 0.3, "late_fusion": 0.5, "gradient_boosting": 0.7, "linear_table": 0.9}
    records = [p_record(model, value) for model, value in p.items()]
    with_oracle = multipletests([0.0004, *p.values()], method="fdr_bh")[1]
    assert with_oracle[1] == pytest.approx(0.036)
    found, declared = families.primary([p_record("oracle", 0.0004), *records, p_record("training_mean", 0.0004)])
    assert q_of(found, "ehr_only") == pytest.approx(0.060)
    assert {r["model"] for r in found} == {f"joint - {model}" for model in p}
    assert declared == [{"kind": "primary", "metric": "auroc", "of": "models x tasks of d", "tests": 5}]


def test_q_equals_statsmodels_within_each_family_of_records():
    rng = np.random.default_rng(5)
    y, group = rng.random(400) < 0.3, rng.integers(0, 90, 400)
    scores = {name: 1 / (1 + np.exp(1 - k * y - rng.normal(size=400))) for name, k in
              {"joint": 2.0, "a": 1.7, "b": 1.9, "c": 0.7, "oracle": 3.0}.items()}  # fmt: skip
    records = []
    for task, labels in (("first_30d", y), ("second", rng.permutation(y))):
        spec = protocol.TaskSpec("d", task, "joint", Resampling(150, seed=4))
        records += protocol.score_binary(spec, scores, labels, group)
    found, declared = families.primary(records)
    metrics = {f["metric"]: f["tests"] for f in declared}
    assert metrics == dict.fromkeys(("auroc", "auprc", "brier", "ece"), 6)  # three models, two tasks
    for metric in metrics:
        p = {(r["task"], r["model"]): r["value"] for r in records
             if r["metric"] == f"{metric}_difference_p" and "oracle" not in r["model"]}  # fmt: skip
        q = {(r["task"], r["model"]): r["value"] for r in found if r["metric"] == f"{metric}_difference_q"}
        assert p.keys() == q.keys()
        expected = multipletests(list(p.values()), method="fdr_bh")[1]
        np.testing.assert_allclose([q[k] for k in p], expected, atol=1e-12)


def test_horizons_of_a_metric_are_one_family_and_undefined_tests_are_in_none():
    records = [p_record("a", 0.01, "auc_30"), p_record("a", 0.04, "auc_365.5"), p_record("a", 0.02, "c_index"),
               p_record("b", None, "c_index")]  # fmt: skip
    found, declared = families.primary(records)
    assert [(f["metric"], f["tests"]) for f in declared] == [("auc_t", 2), ("c_index", 1)]
    assert [r["value"] for r in found] == pytest.approx([0.02, 0.04, 0.02, None])
    assert [r["metric"] for r in found] == [
        "auc_30_difference_q", "auc_365.5_difference_q", "c_index_difference_q", "c_index_difference_q"
    ]  # fmt: skip


def test_subgroups_leave_out_the_whole_cohort_and_bounds():
    base = {"dataset": "d", "task": "t", "attribute": "sex", "level": "f", "metric": "auroc_gap", "model": "joint"}
    entries = [base | {"p": 0.01}, base | {"p": 0.04, "model": "a"}, base | {"p": 0.001, "model": "oracle"},
               base | {"p": 0.001, "attribute": "all", "metric": "auroc_difference"},
               base | {"p": 0.03, "metric": "auroc_difference"}, base | {"p": None, "metric": "auroc"}]  # fmt: skip
    found, declared = families.of_subgroups(entries)
    assert [e["q"] for e in found] == pytest.approx([0.02, 0.04, None, None, 0.03, None])
    assert [{**e, "q": None} for e in found] == [{**e, "q": None} for e in entries]
    assert [(f["metric"], f["tests"]) for f in declared] == [("auroc_gap", 2), ("auroc_difference", 1)]


def test_a_perturbation_that_changes_no_input_is_no_test():
    base = {"metric": "auroc", "change_lo": -0.1, "change_hi": 0.1}
    entries = [base | {"change_p": 0.02}, base | {"change_p": 1.0, "change_lo": 0.0, "change_hi": 0.0},
               base | {"change_p": None}, base | {"change_p": 0.03}]  # fmt: skip
    found, declared = families.of_robustness(entries)
    assert [e["change_q"] for e in found] == pytest.approx([0.03, None, None, 0.03])
    assert declared == [{"kind": "robustness", "metric": "auroc", "of": "models x perturbations", "tests": 2}]


def test_geometry_and_mechanisms_are_a_family_each():
    found, (declared,) = families.of_geometry([{"p_value": 0.01}, {"p_value": None}, {"p_value": 0.02}])
    assert [e["q_value"] for e in found] == pytest.approx([0.02, None, 0.02]) and declared["tests"] == 2
    effects, (declared,) = families.of_precursors({"a": {"p_value": 0.01}, "control": {"p_value": None}})
    assert effects["a"]["q_value"] == 0.01 and effects["control"]["q_value"] is None
    assert declared["kind"] == "mechanisms" and declared["tests"] == 1
