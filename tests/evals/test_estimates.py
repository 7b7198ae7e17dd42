"""Values, resampled values and paired differences of statistics against scikit-learn on the expanded rows."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ehrwear_jax.evals import bootstrap, classification
from ehrwear_jax.evals.estimates import Resampling, estimate


def problem(n=120):
    rng = np.random.default_rng(0)
    y, group = rng.random(n) < 0.4, rng.integers(0, 50, n)
    return y, group, {name: rng.integers(0, 9, n) / 9 for name in ("a", "b")}


def test_values_and_differences_equal_the_library_on_shared_resamples():
    y, group, scores = problem()
    statistics = {name: classification.BinaryRanking(y, s) for name, s in scores.items()}
    found = estimate(statistics, group, Resampling(30, seed=2))
    rows = [np.repeat(np.arange(len(y)), w) for w in bootstrap.patient_weights(group, 30, seed=2)]
    expected = {name: np.array([roc_auc_score(y[r], s[r]) for r in rows]) for name, s in scores.items()}
    whole = {name: roc_auc_score(y, s) for name, s in scores.items()}
    for name in scores:
        assert found.values[name]["auroc"] == pytest.approx(whole[name])
        np.testing.assert_allclose(found.resampled(name, "auroc"), expected[name], atol=1e-12)
    value, delta_B = found.difference("a", "b", "auroc")
    assert value == pytest.approx(whole["a"] - whole["b"])
    np.testing.assert_allclose(delta_B, expected["a"] - expected["b"], atol=1e-12)


def test_groups_without_a_row_share_the_resamples_of_the_universe():
    y, group, scores = problem()
    some = group != group[0]
    part = {"a": classification.BinaryRanking(y[some], scores["a"][some])}
    found = estimate(part, group[some], Resampling(5, seed=1, universe=np.unique(group)))
    weight = bootstrap.patient_weights(group, 5, seed=1)[:, some]
    np.testing.assert_allclose(
        found.resampled("a", "auroc"), classification.auroc(y[some], scores["a"][some], weight)
    )
    assert (found.resampled("a", "auroc") != estimate(part, group[some], Resampling(5, seed=1)).resampled(
        "a", "auroc")).any()  # fmt: skip


def test_other_keys_and_no_resamples():
    y, group, scores = problem()
    statistics = {(name, "all"): classification.BinaryRanking(y, s) for name, s in scores.items()}
    bare = estimate(statistics, group, Resampling(0))
    renamed = bare.under({"a": ("a", "all")})
    assert set(renamed.values) == {"a"} and renamed.values["a"] == bare.values["a", "all"]
    assert renamed.resampled("a", "auroc").size == 0
    value, delta_B = bare.difference(("a", "all"), ("b", "all"), "auroc")
    assert np.isfinite(value) and delta_B.size == 0
