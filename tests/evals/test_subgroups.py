"""Subgroup metrics, gaps and suppression against the same computed by hand; label fractions."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ehrwear_jax.evals import bootstrap, calibration, classification, inference, subgroups, weighting
from ehrwear_jax.evals.estimates import Resampling


def problem(n=900, seed=0):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 400, n)
    sex = np.where(rng.random(400) < 0.6, "female", "male").astype(object)[group]
    device = np.where(rng.random(400) < 0.03, "rare", "watch").astype(object)[group]
    device[group == 7] = None
    y = rng.random(n) < 0.3
    # Worse for men.
    predictions = {
        name: 1 / (1 + np.exp(1 - strength * y * np.where(sex == "male", 0.6, 1) - rng.normal(size=n)))
        for name, strength in (("joint", 2.0), ("other", 1.2))
    }
    return y, group, {"sex": sex, "device": device}, predictions


def build(y, predictions):
    def make(p):
        edges = calibration.equal_mass_edges(p)
        return lambda factor: weighting.merge(
            classification.BinaryRanking(y, p, factor_N=factor),
            calibration.Calibration(y, p, edges=edges, factor_N=factor, gaps=True),
        )

    return {model: make(p) for model, p in predictions.items()}


def find(records, **wanted):
    (record,) = [r for r in records if all(r[k] == v for k, v in wanted.items())]
    return record


def test_cells_gaps_and_differences_equal_sklearn_on_the_shared_resamples():
    y, group, attributes, predictions = problem()
    found = subgroups.cells(attributes, y, group)
    comparison = subgroups.Comparison(reference_model="joint")
    records = subgroups.score(build(y, predictions), found, group, Resampling(60, seed=3), comparison)
    weight = bootstrap.patient_weights(group, 60, seed=3)

    def auroc(model, mask, w):
        rows = np.repeat(np.arange(len(y)), w * mask)
        return roc_auc_score(y[rows], predictions[model][rows])

    masks = {v: attributes["sex"] == v for v in ("female", "male")}
    for level, mask in masks.items():
        samples = [auroc("joint", mask, w) for w in weight]
        record = find(records, model="joint", attribute="sex", level=level, metric="auroc")
        assert record["value"] == pytest.approx(roc_auc_score(y[mask], predictions["joint"][mask]))
        np.testing.assert_allclose([record["lo"], record["hi"]], np.quantile(samples, [0.025, 0.975]), atol=1e-12)
        assert record["n_patients"] == len(np.unique(group[mask])) and record["p"] is None
        difference = [auroc("joint", mask, w) - auroc("other", mask, w) for w in weight]
        record = find(records, model="joint - other", attribute="sex", level=level, metric="auroc_difference")
        assert record["hi"] == pytest.approx(np.quantile(difference, 0.975))
        assert record["p"] == inference.paired_pvalue(difference)
    gap = find(records, model="joint", level="male", metric="auroc_gap")
    samples = [auroc("joint", masks["male"], w) - auroc("joint", masks["female"], w) for w in weight]
    assert gap["value"] < 0 and gap["lo"] == pytest.approx(np.quantile(samples, 0.025))
    assert not [r for r in records if r["level"] == "female" and r["metric"] == "auroc_gap"]
    whole = find(records, model="other", attribute="all", metric="auroc")
    assert whole["value"] == pytest.approx(roc_auc_score(y, predictions["other"]))
    men = find(records, model="joint", level="male", metric="mean_gap")
    p, mask = predictions["joint"], masks["male"]
    assert men["value"] == pytest.approx(p[mask].mean() - y[mask].mean())


def test_small_cells_are_suppressed_and_cannot_be_derived():
    y, group, attributes, predictions = problem()
    found = subgroups.cells(attributes, y, group)
    rare, watch = found["device", "rare"], found["device", "watch"]
    assert rare.suppressed and rare.n_patients is None and rare.n_positive is None
    # With one cell left the total less it would reveal the rare one.
    assert not watch.suppressed and watch.n_patients is None
    assert not found["sex", "male"].suppressed and found["sex", "male"].n_patients > 100
    assert not rare.mask_N[group == 7].any() and not watch.mask_N[group == 7].any()
    records = subgroups.score(build(y, predictions), found, group, Resampling(20))
    hidden = [r for r in records if r["level"] == "rare"]
    assert {r["metric"] for r in hidden} == {"suppressed"} and len(hidden) == len(predictions)
    assert all(np.isnan(r["value"]) and r["suppressed"] for r in hidden)
    loose = subgroups.cells(attributes, y, group, subgroups.Suppression(min_patients=2, min_per_class=1))
    assert not loose["device", "rare"].suppressed and loose["device", "watch"].n_patients is not None
    one_class = subgroups.cells({"a": np.where(y, "yes", "no")}, y, group)
    assert one_class["a", "yes"].suppressed and one_class["a", "no"].suppressed


def test_gaps_are_to_the_largest_level_and_no_resamples_give_no_intervals():
    y, group, attributes, predictions = problem()
    found = subgroups.cells(attributes, y, group)
    records = subgroups.score(build(y, predictions), found, group, Resampling(0))
    assert (attributes["sex"] == "female").sum() > (attributes["sex"] == "male").sum()
    gap = find(records, model="joint", level="male", metric="auroc_gap")
    assert gap["value"] < 0 and np.isnan(gap["lo"]) and np.isnan(gap["p"])
    women, men = (find(records, model="joint", level=x, metric="auroc")["value"] for x in ("female", "male"))
    assert gap["value"] == pytest.approx(men - women)
    with pytest.raises(ValueError, match="attribute sex has 3 rows"):
        subgroups.cells({"sex": np.array(["a", "b", "c"])}, y, group)


def test_the_papers_groups():
    assert subgroups.age_bands([49.9, 50, 65, 65.1, np.nan]).tolist() == ["<50", "50-65", "50-65", ">65", None]
    assert subgroups.age_bands([30, 50, 60, 64, 90], edges=(40, 60, 80)).tolist() == [
        "<40", "40-60", "60-80", "60-80", ">80",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="two edges or more"):
        subgroups.age_bands([30, 60], edges=[50])
    groups = subgroups.coverage_groups([0, 1, 2, 5], [13, 14, 13.9, 400])
    assert subgroups.coverage_groups([5, 5], [29.9, 30])["wear_month"].tolist() == ["under a month", "a month or more"]
    assert groups["ehr"].tolist() == ["sparse", "sparse", "rich", "rich"]
    assert groups["wear"].tolist() == ["short", "long", "short", "long"]
    assert groups["ehr_and_wear"].tolist() == ["sparse and short", "other", "other", "other"]


def test_label_fractions_are_nested_stratified_and_by_patient():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2000, 5000)
    y = (group % 20 == 0) & (rng.random(5000) < 0.9)
    chosen = subgroups.label_fractions(y, group, n_draws=3, seed=1)
    assert set(chosen) == {(f, d) for f in (0.01, 0.1, 1.0) for d in range(3)}
    patients = {k: set(group[v]) for k, v in chosen.items()}
    positive = set(group[y])
    for draw in range(3):
        assert patients[0.01, draw] < patients[0.1, draw] < patients[1.0, draw]
        np.testing.assert_array_equal(chosen[1.0, draw], np.arange(5000))
        for fraction in (0.01, 0.1):
            rows = chosen[fraction, draw]
            # All rows of a chosen patient, and the cohort's share of positive patients.
            np.testing.assert_array_equal(rows, np.flatnonzero(np.isin(group, list(patients[fraction, draw]))))
            assert len(patients[fraction, draw] & positive) == max(1, round(fraction * len(positive)))
    assert patients[0.1, 0] != patients[0.1, 1]
    again = subgroups.label_fractions(y, group, fractions=[0.1], n_draws=1, seed=1)
    np.testing.assert_array_equal(again[0.1, 0], chosen[0.1, 0])
    other_seed = subgroups.label_fractions(y, group, seed=2)[0.1, 0]
    assert not np.array_equal(other_seed, chosen[0.1, 0])
    with pytest.raises(ValueError, match="fractions must lie"):
        subgroups.label_fractions(y, group, fractions=[10])
