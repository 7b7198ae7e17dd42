"""The plan of an epoch against slow greedy packing, and the law of how often patients appear."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joint_rows import examples_of, row_of

from ehrwear_jax.models.joint import packing
from ehrwear_jax.models.joint.config import ContextConfig

OPTIONS = {"tokens": 64, "windows": 32, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3}


# ------------------------------------------------------------------------------------------ who appears how often


@given(weights=st.lists(st.floats(0.001, 100.0), min_size=1, max_size=12))
def test_the_expected_number_of_appearances_is_the_weight(weights):
    n_draws, want_N = 500, np.array(weights) / np.mean(weights)
    counts = np.array([packing.appearances(weights, (k + 0.5) / n_draws) for k in range(n_draws)])
    assert np.all(counts.sum(axis=1) == len(weights)) and np.all(np.abs(counts - want_N) < 1 + 1e-6)
    # a count is one of two neighbouring numbers for an interval of draws: a grid resolves its length to two cells
    np.testing.assert_allclose(counts.mean(axis=0), want_N, atol=2.5 / n_draws)


@pytest.mark.parametrize("draw", [1e-6, 0.3, 0.999999])
def test_equal_weights_appear_once_each(draw):
    for n in (1, 7, 100_003):
        np.testing.assert_array_equal(packing.appearances(np.full(n, 0.1), draw), 1)


def test_weights_are_the_geometric_mean_of_the_tokens_weights():
    share = [np.array([0.1, 0.02]), np.array([0.5]), np.array([0.001, 0.001, 0.2])]
    rarity = [-np.log(s).mean() for s in share]
    got = packing.patient_weights([*rarity, np.nan], 0.3)
    want = np.array([np.prod(s**-0.3) ** (1 / len(s)) for s in share])
    np.testing.assert_allclose(got[:3] / got[0], want / want[0], rtol=1e-12)
    np.testing.assert_allclose(got[3], got[:3].mean(), rtol=1e-12)
    np.testing.assert_allclose(got.mean(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(packing.patient_weights([3.0, 9.0, np.nan], 0.0), 1.0)
    np.testing.assert_array_equal(packing.patient_weights([np.nan, np.nan], 2.0), 1.0)


# ------------------------------------------------------------------------------------------ who sits where


@given(needs=st.lists(st.integers(0, 30), max_size=8), capacity=st.integers(0, 60))
def test_the_level_is_the_highest_that_fits(needs, capacity):
    got = packing.waterfill(needs, capacity)
    if sum(needs) <= capacity:
        assert got == np.inf
    else:
        assert sum(min(n, got) for n in needs) <= capacity < sum(min(n, got + 1) for n in needs)


def planned(parts, window_N):
    """(limits, [windows of each context] of each row): people of 22 EHR tokens in rows of 128, 64 of them windows."""
    n = len(window_N)
    lengths = packing.Lengths(np.full(n, 2), np.full(n, 20), window_N)
    config = ContextConfig(tokens=64, windows=64, context_tokens=40, window_parts=parts)
    limits = packing.row_limits(config, 128, 64, lengths)
    plan = packing.plan_epoch(np.random.default_rng(0), config, limits, (np.arange(n), None), lengths)
    return limits, [window_N[plan.patient_N[plan.members(r)]] for r in range(plan.n_rows)]


def test_rows_share_the_parts_that_they_fill_on_average_and_one_person_may_have_more():
    window_N = np.random.default_rng(0).choice([0, 4, 40, 100], 2000, p=[0.5, 0.4, 0.09, 0.01])
    limits, rows = planned(4, window_N)
    # 128 tokens x 5.84 windows of 27.84 tokens: 26.9 on average
    assert limits == (128, 64, 32)
    shown = [np.minimum(row, 64) for row in rows]
    assert all(r.sum() <= 32 or np.count_nonzero(r) == 1 for r in shown)
    assert all(np.sum(r + 22) <= 128 or len(r) == 1 for r in shown)
    assert any(r.sum() > 32 and len(r) > 1 for r in shown), "people without windows join one who has many"
    loose, uneven = planned(1, window_N)
    assert loose == (128, 64, 64)
    # with a limit of half the slots, rows fill more of those that they have, and there are few more rows
    spared = [np.sum([-(-np.minimum(r, 64).sum() // 16) for r in some]) for some in (rows, uneven)]
    assert np.mean([np.minimum(r, 64).sum() > 32 for r in uneven]) > 0.2 and len(rows) < 1.15 * len(uneven)
    assert spared[0] < 1.1 * spared[1]


def test_nobody_has_windows():
    limits, rows = planned(2, np.zeros(50, np.int64))
    assert limits == (128, 64, 32) and sum(len(r) for r in rows) == 50


# ------------------------------------------------------------------------------------------ on a cohort


def make_rows(root, augmented=True, seed=0, modalities=("ehr", "wear"), **options):
    return examples_of(root, OPTIONS | options, seed=seed, augmented=augmented, modalities=modalities)


@pytest.fixture
def with_rarity(many_people):
    """The folder with another rarity for the time of a test: every third person has rare codes, every tenth none."""
    path = many_people / "fit" / "all" / "subject_statistics.parquet"
    fitted = pl.read_parquet(path)
    rarity = np.where(np.arange(fitted.height) % 3 == 0, 6.0, 3.0).astype(np.float32)
    rarity = pl.Series("rarity", rarity).set(pl.Series(np.arange(fitted.height) % 10 == 0), None)
    fitted.with_columns(rarity).write_parquet(path)
    yield many_people
    fitted.write_parquet(path)


@pytest.mark.parametrize("patient_days", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("augmented", [True, False])
def test_nine_slots_of_ten_are_filled_and_no_budget_is_exceeded(many_people, patient_days, augmented):
    """Short histories, of which many share a row, and ends drawn from the codes, which the plan cannot know."""
    options = {"drop_ehr": 0.2, "drop_wear": 0.2, "day_temperature": 0.8}
    rows = make_rows(many_people, augmented, patient_days=patient_days, **options)
    filled = []
    for g in range(2 * rows.rows_per_epoch):
        row = row_of(rows, g)
        filled.append(np.mean(row["segment"] > 0))
        planned = rows.plan(g // rows.rows_per_epoch).members(g % rows.rows_per_epoch)
        assert row["segment"].max() >= planned.stop - planned.start, "nobody who was planned is left out"
        spans = [span for _, span in rows.contexts(g)]
        assert sum(s.n_tokens for s in spans) == np.count_nonzero(row["segment"]) <= 64 + 32
        assert all(s.stop > s.start and s.n_ehr <= 40 for s in spans)
        assert sum(s.n_windows for s in spans) <= 32
        # predictions are shared out by length: a full row has all of them
        n_queries = np.count_nonzero(row["query_segment"])
        assert abs(n_queries - 8 * filled[-1]) < 1 + 1e-9
    assert np.mean(filled) >= 0.9


def test_rows_of_a_cohort_keep_to_the_windows_that_they_share(many_people):
    rows = make_rows(many_people, window_parts=8)
    assert rows.limits.shared_windows < 32
    n_windows, filled = [], []
    for g in range(2 * rows.rows_per_epoch):
        spans = [span for _, span in rows.contexts(g)]
        n_windows.append(sum(s.n_windows for s in spans))
        filled.append(sum(s.n_tokens for s in spans) / (64 + 32))
        assert n_windows[-1] <= rows.limits.of_row([s.n_windows for s in spans])
    assert np.mean(filled) >= 0.8 and np.mean(n_windows) > 0.6 * rows.limits.shared_windows


def test_queries_are_as_frequent_in_short_contexts_as_in_long_ones(many_people):
    rows = make_rows(many_people, patient_days=1.0)
    n_Q, n_T = [], []
    for g in range(20 * rows.rows_per_epoch):
        row = row_of(rows, g)
        for s in range(1, row["segment"].max() + 1):
            n_Q.append(np.count_nonzero(row["query_segment"] == s))
            n_T.append(np.count_nonzero(row["segment"] == s))
    n_Q, n_T = np.array(n_Q), np.array(n_T)
    for low, high in ((1, 10), (10, 25), (25, 41)):
        mine = (n_T >= low) & (n_T < high)
        assert mine.sum() > 50
        slack = 5 * np.sqrt(0.25 * mine.sum()) / n_T[mine].sum()
        assert abs(n_Q[mine].sum() / n_T[mine].sum() - 8 / (64 + 32)) < slack


def test_without_a_temperature_everybody_appears_once(with_rarity):
    rows = make_rows(with_rarity)
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(rows.plan(epoch).patient_N), rows.eligible)
        assert not rows.plan(epoch).copy_N.any()


def test_patients_with_rare_codes_appear_more_often(with_rarity):
    rows, n_epochs = make_rows(with_rarity, patient_temperature=0.4), 400
    want = packing.patient_weights(
        rows.people.index["rarity"].cast(pl.Float64).fill_null(np.nan).to_numpy()[rows.eligible], 0.4
    )
    assert want.max() / want.min() > 2
    counts = np.zeros((n_epochs, len(rows.eligible)))
    for epoch in range(n_epochs):
        plan = rows.plan(epoch)
        counts[epoch] = np.bincount(plan.patient_N, minlength=len(rows.people))[rows.eligible]
        assert len(set(zip(plan.patient_N.tolist(), plan.copy_N.tolist(), strict=True))) == len(plan.patient_N)
    assert np.all(np.abs(counts - want) < 1 + 1e-6)
    chance = want - np.floor(want)
    assert np.all(np.abs(counts.mean(axis=0) - want) <= 5 * np.sqrt(chance * (1 - chance) / n_epochs) + 1e-6)


def test_two_appearances_of_a_patient_are_different_draws(with_rarity):
    rows = make_rows(with_rarity, patient_temperature=2.0, patient_days=1.0)
    plan = rows.plan(0)
    again = np.flatnonzero(plan.copy_N == 1)
    assert len(again) > 5
    firsts = [np.flatnonzero((plan.patient_N == plan.patient_N[k]) & (plan.copy_N == 0))[0] for k in again]
    assert np.all(plan.end_N[again] != plan.end_N[firsts])
    drawn = {}
    for g in range(rows.rows_per_epoch):
        for k, (sample, _) in zip(range(*plan.members(g).indices(10**9)), rows.contexts(g), strict=False):
            drawn[k] = sample.draws.rng.random()
    assert all(drawn[a] != drawn[b] for a, b in zip(again, firsts, strict=True))


def test_wearables_alone_have_no_weights(many_people):
    """Rarity is of codes."""
    weight = make_rows(many_people, patient_temperature=0.5).weight
    assert weight.min() > 0 and len(set(weight.tolist())) > 10
    assert make_rows(many_people, patient_temperature=0.5, modalities=("wear",)).weight is None
