"""Training examples whose signal or modalities are changed at random: what that changes, how often, what it leaves."""

import cohort
import numpy as np
import pytest
from context_rows import INPUTS_BUT_SIGNAL, hidden_steps, make_rows
from joint_rows import assert_same, contexts, row_of, rows_of

from ehrwear_jax.models.joint import batch as batch_lib


@pytest.fixture(scope="module")
def plain_rows(many_people):
    return rows_of(make_rows(many_people))


@pytest.mark.parametrize(
    "neutral",
    [
        {"administrative_codes": ("DX//",), "administrative_weight": 1.0},
        {"administrative_codes": ("no such code",)},
        {"interest_codes": ("no such code",), "interest_factor": 9.0},
        {"interest_factor": 9.0, "interest_days": 99.0, "administrative_weight": 0.0, "day_temperature": 2.0},
        {"noise_steps": 2},
    ],
)
def test_options_that_ask_for_nothing_change_nothing(many_people, plain_rows, neutral):
    assert_same(plain_rows, rows_of(make_rows(many_people, **neutral)))


def test_what_is_not_augmented_is_not_changed(many_people, plain_rows):
    assert_same(plain_rows, rows_of(make_rows(many_people, augmented=False, noise=1.0, drop_ehr=0.5)))


# ----------------------------------------------------------------------------------------------------------- signal


@pytest.mark.parametrize("kind", ["contiguous", "random", "channel"])
def test_noise_is_on_what_the_model_sees_and_leaves_every_target_but_the_next_windows(many_people, kind):
    plain, noisy = (rows_of(make_rows(many_people, noise=0.5, wear_mask_kind=kind, augmented=a)) for a in (False, True))
    assert_same(plain, noisy, plain[0].keys() - {"wear"})
    moved = seen = 0
    for one, two in zip(plain, noisy, strict=True):
        hidden = hidden_steps(one)
        np.testing.assert_array_equal(one["wear"][hidden], two["wear"][hidden], err_msg="targets stay clean")
        np.testing.assert_array_equal(one["wear"][~one["observed"]], 0.0)
        np.testing.assert_array_equal(two["wear"][~one["observed"]], 0.0)
        visible = one["observed"] & ~hidden
        moved, seen = moved + np.sum(one["wear"][visible] != two["wear"][visible]), seen + visible.sum()
    assert seen > 1000 and moved > 0.99 * seen, "all but what lies alone among missing and hidden steps"


@pytest.mark.parametrize("kind", ["contiguous", "channel"])
def test_noise_does_not_tell_what_is_hidden(many_people, kind):
    """Other signal behind the masks and the same draws: the same visible steps."""
    options = {"noise": 0.5, "masked_contexts": 1.0, "wear_mask_kind": kind}
    rows, other = make_rows(many_people, **options), make_rows(many_people, **options)
    plan = rows.plan(0)
    hidden_anywhere = 0
    for g in range(rows.rows_per_epoch):
        row = row_of(rows, g)
        for s, i in enumerate(plan.patient_N[plan.members(g)], start=1):
            slots = np.nonzero((row["window_position"] >= 0) & (row["segment"][row["window_position"]] == s))[0]
            if not len(slots) or len(slots) < len(other.people[int(i)].window_MxLxC):
                continue
            hidden = hidden_steps(row)[slots]
            patient = other.people[int(i)]
            patient.window_MxLxC = np.where(hidden, 100 * patient.window_MxLxC + 7, patient.window_MxLxC)
            changed = row_of(other, g)
            np.testing.assert_array_equal(changed["wear"][slots][~hidden], row["wear"][slots][~hidden])
            assert np.all(changed["wear"][slots][hidden] != row["wear"][slots][hidden])
            hidden_anywhere += hidden.sum()
    assert hidden_anywhere > 200


@pytest.mark.parametrize("chance", [0.2, 0.5])
def test_lost_channels_are_missing_for_the_model_and_for_the_targets(many_people, chance):
    plain, lossy = (rows_of(make_rows(many_people, channel_dropout=chance, augmented=a), 4) for a in (False, True))
    assert_same(plain, lossy, INPUTS_BUT_SIGNAL)
    n = hit = 0
    for one, two in zip(plain, lossy, strict=True):
        gone = one["observed"] & ~two["observed"]
        assert not np.any(two["observed"] & ~one["observed"]) and not two["wear"][gone].any()
        np.testing.assert_array_equal(one["wear"][two["observed"]], two["wear"][two["observed"]])
        real = one["window_position"] >= 0
        assert two["observed"][real].any(axis=(1, 2)).all()
        whole = gone.any(axis=1)[real]
        n, hit = n + whole.size, hit + whole.sum()
        assert_same([one], [two], ["query_summary", "event_summary", "query_next"])
        assert not np.any(two["query_past_mask"] & ~one["query_past_mask"])
    # of two channels both are lost as a whole with chance ** 2 / 4, and then neither is
    low, high = chance - chance**2 / 2, chance
    slack = 5 * np.sqrt(chance / n)
    assert n > 500 and low - slack < hit / n < high + slack


@pytest.mark.parametrize("options", [{"channel_dropout": 0.6}, {"time_warp": 0.1}])
def test_the_history_to_be_reconstructed_is_the_one_that_was_shown(many_people, options):
    checked = 0
    for row in rows_of(make_rows(many_people, summary_days=10_000.0, **options), 4):
        for (lo, hi), past, mask in zip(row["query_kv_range"], row["query_past"], row["query_past_mask"], strict=True):
            slots = np.nonzero((row["window_position"] >= lo) & (row["window_position"] < hi))[0]
            shown = np.where(row["observed"][slots], row["wear"][slots], np.nan).astype(np.float64)
            for c in range(len(cohort.CHANNELS)):
                means = [np.nanmean(w[:, c]) for w in shown if np.isfinite(w[:, c]).any()]
                assert mask[c] == bool(means)
                if means:
                    np.testing.assert_allclose(past[c], np.mean(means), atol=1e-4)
                    checked += 1
    assert checked > 100


def test_a_warp_changes_signal_and_target_alike_and_keeps_the_ends(many_people):
    plain, warped = (rows_of(make_rows(many_people, time_warp=0.05, augmented=a)) for a in (False, True))
    assert_same(plain, warped, INPUTS_BUT_SIGNAL)
    changed = 0
    for one, two in zip(plain, warped, strict=True):
        np.testing.assert_allclose(one["wear"][:, [0, -1]], two["wear"][:, [0, -1]], atol=1e-5)
        np.testing.assert_array_equal(one["observed"][:, [0, -1]], two["observed"][:, [0, -1]])
        bound = np.abs(one["wear"]).max(axis=(1, 2), initial=0.0)
        assert np.all(np.abs(two["wear"]).max(axis=(1, 2), initial=0.0) <= bound + 1e-5)
        changed += np.any(one["wear"] != two["wear"])
    assert changed > len(plain) / 2


# ------------------------------------------------------------------------------------------------- modalities, days


def test_modalities_are_dropped_by_chance_and_their_targets_stay(many_people):
    options = {"drop_ehr": 0.25, "drop_wear": 0.25, "masked_contexts": 0.0, "context_tokens": 16}
    rows, lossy = (make_rows(many_people, augmented=a, **options) for a in (False, True))
    n = no_ehr = no_wear = wear_to_ehr = ehr_to_wear = n_queries = 0
    for g in range(12 * rows.rows_per_epoch):
        one, two = row_of(rows, g), row_of(lossy, g)
        planned = rows.plan(g // rows.rows_per_epoch).members(g % rows.rows_per_epoch)
        assert min(one["segment"].max(), two["segment"].max()) >= planned.stop - planned.start, "nobody is left out"
        pairs = list(zip(contexts(one), contexts(two), strict=False))[: planned.stop - planned.start]
        for s, (before, after) in enumerate(pairs, start=1):
            had, has = ({*r["modality"][own].tolist()} for r, own in ((one, before), (two, after)))
            assert has and has <= had
            queries = two["query_segment"] == s
            n_queries += queries.sum()
            if len(had) == 1:
                continue
            n += 1
            no_ehr += has == {batch_lib.MODALITY_WEAR}
            no_wear += has == {batch_lib.MODALITY_EHR}
            if has == {batch_lib.MODALITY_WEAR}:
                assert two["age"][after][:, 0].max() < 10, "a birth date is an EHR fact"
                wear_to_ehr += np.any(two["query_next"][queries] > 0)
            if has == {batch_lib.MODALITY_EHR}:
                ehr_to_wear += two["query_summary_mask"][queries].any()
                assert not two["query_past_mask"][queries].any()
    assert n > 200 and wear_to_ehr > 10 and ehr_to_wear > 0 and n_queries > n
    bound = 5 * np.sqrt(0.25 * 0.75 / n)
    assert abs(no_ehr / n - 0.25) < bound and abs(no_wear / n - 0.25) < bound
