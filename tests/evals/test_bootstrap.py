"""Patient bootstrap: the resamples, intervals and p-values."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ehrwear_jax.evals import bootstrap, builders, classification, inference, weighting


def test_rows_of_a_group_share_a_weight_and_groups_are_drawn_with_replacement():
    group = np.array([7, 3, 7, 9, 3, 7])
    weight = bootstrap.patient_weights(group, 400, seed=1)
    assert weight.shape == (400, 6)
    np.testing.assert_array_equal(weight[:, 0], weight[:, 2])
    np.testing.assert_array_equal(weight[:, 1], weight[:, 4])
    np.testing.assert_array_equal(weight[:, [0, 1, 3]].sum(1), 3)
    # Multiplicity of each of 3 groups is binomial(3, 1/3).
    np.testing.assert_allclose(weight[:, [0, 1, 3]].mean(0), 1, atol=0.15)
    assert np.mean(weight[:, 3] == 0) == pytest.approx((2 / 3) ** 3, abs=0.08)


@given(st.integers(1, 600), st.integers(0, 5))
def test_first_resamples_do_not_depend_on_how_many_follow(n_resamples, seed):
    group = np.arange(6)
    whole = bootstrap.patient_weights(group, 700, seed)
    part = bootstrap.patient_weights(group, n_resamples, seed)
    np.testing.assert_array_equal(part, whole[:n_resamples])


def test_weights_depend_on_the_set_of_groups_only():
    group = np.array([4, 4, 1, 8, 6])
    order = np.array([3, 0, 4, 2, 1])
    weight = bootstrap.patient_weights(group, 20, seed=2)
    np.testing.assert_array_equal(bootstrap.patient_weights(group[order], 20, seed=2), weight[:, order])
    # A task without rows of group 1 sees the same resamples when told the universe.
    some = group != 1
    shared = bootstrap.patient_weights(group[some], 20, seed=2, universe=group)
    np.testing.assert_array_equal(shared, weight[:, some])
    assert (bootstrap.patient_weights(group, 20, seed=3) != weight).any()


def test_resampled_metric_equals_sklearn_on_the_expanded_rows():
    rng = np.random.default_rng(0)
    y, score = rng.random(80) < 0.4, rng.integers(0, 9, 80) / 9
    group = rng.integers(0, 30, 80)
    samples = bootstrap.resample({"one": classification.BinaryRanking(y, score)}, group, 40, seed=0)
    weight = bootstrap.patient_weights(group, 40, seed=0)
    expected = [roc_auc_score(np.repeat(y, w), np.repeat(score, w)) for w in weight]
    np.testing.assert_allclose(samples["one"]["auroc"], expected, atol=1e-12)


@pytest.mark.slow
def test_processes_give_the_same_numbers_as_one(monkeypatch):
    rng = np.random.default_rng(0)
    y, group = rng.random(80) < 0.4, rng.integers(0, 30, 80)
    # statistics as the builders make them, functions inside functions
    built = builders.binary(
        y, {f"m{i}": rng.random(80) for i in range(5)}, operating_points={f"m{i}": 0.4 for i in range(5)}
    )
    statistics = {(name, "all"): build(None) for name, build in built.items()}
    one = bootstrap.resample(statistics, group, 300, seed=3)
    called = []
    monkeypatch.setattr(bootstrap, "PARALLEL_CELLS", 0)
    monkeypatch.setattr(bootstrap.os, "cpu_count", lambda: 2)
    parallel = bootstrap.joblib.Parallel
    monkeypatch.setattr(bootstrap.joblib, "Parallel", lambda n: called.append(n) or parallel(n))
    several = bootstrap.resample(statistics, group, 300, seed=3)
    assert called == [2] and list(several) == list(one)
    for name, metrics in one.items():
        assert metrics.keys() == several[name].keys()
        for metric, samples_B in metrics.items():
            np.testing.assert_array_equal(several[name][metric], samples_B)


def test_resampling_groups_is_wider_than_resampling_their_copied_rows():
    rng = np.random.default_rng(0)
    y, score = rng.random(100) < 0.5, rng.random(100)
    copies = np.repeat(np.arange(100), 9)
    statistic = {"r": classification.BinaryRanking(y[copies], score[copies])}
    width = {}
    for name, group in (("patients", copies), ("rows", np.arange(900))):
        bounds = inference.interval(bootstrap.resample(statistic, group, 500, 0)["r"]["auroc"])
        width[name] = bounds.hi - bounds.lo
    assert width["patients"] == pytest.approx(3 * width["rows"], rel=0.2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="group 5 is not in the universe"):
        bootstrap.patient_weights([1, 5], 3, 0, universe=[1, 2])
    with pytest.raises(ValueError, match="non-empty"):
        bootstrap.patient_weights([], 3, 0)
    with pytest.raises(ValueError, match="level"):
        inference.interval([1.0], level=95)


def test_blocks_of_resamples_are_independent_draws():
    weight = bootstrap.patient_weights(np.arange(40), 3 * weighting.LANES, seed=0)
    assert len(np.unique(weight, axis=0)) == len(weight)


def test_narrow_blocks_hold_the_same_resamples(monkeypatch):
    group = np.random.default_rng(0).integers(0, 40, 90)
    wide = bootstrap.patient_weights(group, 300, seed=5)
    assert next(bootstrap.weight_blocks(group, 300, 5)).shape == (90, 250)
    monkeypatch.setattr(weighting, "MAX_BLOCK_CELLS", 90 * 7)
    assert next(bootstrap.weight_blocks(group, 300, 5)).shape == (90, 7)
    np.testing.assert_array_equal(bootstrap.patient_weights(group, 300, seed=5), wide)


def test_the_jackknife_leaves_out_one_group_or_one_set_of_groups_at_a_time():
    group = np.array([7, 3, 7, 9])
    weight = np.concatenate(list(bootstrap.jackknife_blocks(group)), axis=1)
    np.testing.assert_array_equal(weight.T, [[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]])
    grouped = np.concatenate(list(bootstrap.jackknife_blocks(np.arange(1000), max_parts=30)), axis=1)
    assert grouped.shape == (1000, 30)
    left_out = (grouped == 0).sum(0)
    assert left_out.sum() == 1000 and set(left_out) == {33, 34}
    assert ((grouped == 0).sum(1) == 1).all()


def test_a_failing_statistic_is_heard_through_the_threads():
    def broken(weight_NxB):
        raise ValueError("cannot be computed")

    with pytest.raises(ValueError, match="cannot be computed"):
        bootstrap.resample({"a": broken}, np.arange(9), 600, 0)


def test_statistics_that_are_made_some_at_a_time_give_the_same_numbers_and_are_let_go(monkeypatch):
    rng = np.random.default_rng(0)
    y, group, held, most = rng.random(200) < 0.4, np.arange(200) // 2, set(), []

    class Counted:
        def __init__(self, k):
            self.k, self.ranking = k, classification.BinaryRanking(y, np.random.default_rng(k).random(200))
            held.add(k)
            most.append(len(held))

        def __call__(self, weight_NxB):
            return self.ranking(weight_NxB)

        def __del__(self):
            held.discard(self.k)

    def run(rows_at_once):
        most.clear()
        monkeypatch.setattr(bootstrap, "ROWS_AT_ONCE", rows_at_once)
        made = {k: weighting.Deferred(functools.partial(Counted, k), 100 * (k + 1)) for k in range(5)}
        return bootstrap.resample(made, group, 30, seed=1, whole=True), max(most)

    (together, n_together), (apart, n_apart), (some, n_some) = (run(rows) for rows in (10**6, 1, 600))
    assert (n_together, n_apart, n_some) == (5, 1, 3) and not held, "of 100, 200, 300, 400 and 500 rows"
    for found in (apart, some):
        assert list(found) == list(together)
        for k in found:
            np.testing.assert_array_equal(found[k]["auprc"], together[k]["auprc"])
    alone = bootstrap.resample({2: Counted(2)}, group, 30, seed=1)[2]["auroc"]
    np.testing.assert_array_equal(together[2]["auroc"][1:], alone)
    assert together[2]["auroc"][0] == weighting.evaluate(Counted(2), 200)["auroc"]
