"""What a row holds of raw windows: what there is room for, and nothing that is hidden, lost or later."""

import cohort
import numpy as np
import pytest
from joint_rows import examples_of, row_of, with_patient
from raw_cohort import CONTEXT, PPG, RAW, with_waves

from ehrwear_jax.data import perturbations
from ehrwear_jax.models.joint.batch import INPUTS
from ehrwear_jax.models.joint.batch import RAW as RAW_FIELDS
from ehrwear_jax.models.joint.patient import DAY_US


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    raw_cohort = with_waves(cohort.write_cohort(tmp_path_factory.mktemp("waves")))
    return cohort.prepare_cohort(raw_cohort, subjects_per_shard=8, **PPG)


def examples(root, split=None, modalities=("ehr", "wear"), **options):
    return examples_of(root, CONTEXT | RAW | {"raw_windows": 64} | options, split, modalities=modalities)


@pytest.mark.parametrize("options", [
    {}, {"time_warp": 0.05, "noise": 0.2, "channel_dropout": 0.3}, {"wear_mask_kind": "channel"},
    {"wear_mask_kind": "window"}, {"drop_wear": 1.0},
])  # fmt: skip
def test_nothing_that_is_hidden_is_seen_through_raw_windows(root, options):
    rows = examples(root, "train", raw_windows=32, masked_contexts=1.0, **options)
    n_patches, patch_steps = rows.spec.sizes["P"], CONTEXT["patch_steps"]
    n_hidden = n_seen = 0
    for g in range(2 * rows.rows_per_epoch):
        row = row_of(rows, g)
        rows.spec.check({k: v[None] for k, v in row.items()}, 1)
        real = row["raw_window"] >= 0
        assert not row["raw"][~row["raw_observed"]].any() and not row["raw_observed"][~real].any()
        slot, patch = row["raw_window"][real], row["raw_patch"][real]
        assert (row["window_position"][slot] >= 0).all() and (patch < n_patches).all()
        masked = row["patch_mask"][slot, patch] | row["channel_mask"][slot].any(axis=1)
        seen = row["raw_observed"][real].any(axis=(1, 2))
        assert not seen[masked].any()
        n_hidden, n_seen = n_hidden + masked.sum(), n_seen + seen.sum()
        grid = row["observed"][slot].reshape(len(slot), n_patches, patch_steps * 2).any(axis=2)
        assert grid[np.arange(len(slot)), patch][seen].all()
    assert (n_hidden > 10 and n_seen > 10) or options.get("drop_wear")
    if options.get("drop_wear"):  # people who have wearables alone keep them
        assert n_seen < 40


def test_a_row_without_wearables_has_no_raw_fields(root):
    rows = examples(root, "train", raw_windows=32, modalities=("ehr",))
    assert rows.spec.sizes["N"] == 0 and rows.people[0].raw is None
    assert not set(RAW_FIELDS) & rows.spec.fields.keys() and set(INPUTS) < rows.spec.fields.keys()


def test_room_grows_with_the_windows_seen_whatever_else_is_in_the_row(root):
    few, all_of = (examples(root, raw_windows=n) for n in (8, 64))
    index = [i for i in range(len(few)) if len(all_of.people[i].raw.window_R) > 2][:4]
    time = [int(few.people[i].time_N[-1]) for i in index]
    (together, where), checked, n_left_out = next(few.prediction_batches(index, time, 1)), 0, 0
    assert (where >= 0).sum() > 1
    for k, (i, t) in enumerate(zip(index, time, strict=True)):
        ((alone, _),) = few.prediction_batches([i], [t], 1)
        ((whole, _),) = all_of.prediction_batches([i], [t], 1)
        # the windows up to and with its own give room for one raw window per four of them (8 of 32)
        kept = []
        for r, slot in enumerate(whole["raw_window"][0][whole["raw_window"][0] >= 0]):
            if 4 * (len(kept) + 1) <= slot + 1:
                kept.append(r)
            else:
                n_left_out += 1
        got = alone["raw"][0][alone["raw_window"][0] >= 0]
        np.testing.assert_array_equal(got, whole["raw"][0][kept])
        if k in where:
            segment = together["query_segment"][0][np.flatnonzero(where[0] == k)[0]]
            slots = together["segment"][0][together["window_position"][0]] == segment
            slots &= together["window_position"][0] >= 0
            mine = np.isin(together["raw_window"][0], np.flatnonzero(slots)) & (together["raw_window"][0] >= 0)
            np.testing.assert_array_equal(together["raw"][0][mine], got)
            checked += len(got) > 0
    assert checked > 1 and n_left_out > 2


def test_later_raw_windows_take_no_room_from_earlier_ones(root):
    """Nor does anything else that follows: what is there before depends on the past alone, also where room is short."""
    (plain, more), checked = (examples(root, raw_windows=12) for _ in range(2)), 0
    for i in range(len(plain)):
        person = plain.people[i]
        n, t = len(person.window_end_M), int(person.time_N[-1])
        (batch, _) = next(plain.prediction_batches([i], [t], 1))
        n_shown = (batch["window_position"][0] >= 0).sum()
        if n_shown < 12 or t < person.window_end_M[-1]:
            continue
        half, found = n_shown // 2, []
        for rows, later in ((plain, 1), (more, 10)):  # one in each window; in the second half of the context more
            window_R = np.repeat(np.arange(n), np.where(np.arange(n) < n - half, 1, later)).astype(np.int32)
            values = np.random.default_rng(0).normal(size=(n, 750, 1)).astype(np.float16)[window_R]
            with_patient(rows, i, raw=type(person.raw)(window_R, np.zeros_like(window_R), values))
            (batch, _) = next(rows.prediction_batches([i], [t], 1))
            slot = batch["raw_window"][0]
            found.append(batch["raw"][0][(slot >= 0) & (slot < n_shown - half)])
            assert (slot >= n_shown - half).any() and len(found[-1]) < n_shown - half, "room is short"
        np.testing.assert_array_equal(*found)
        checked += len(found[0]) > 0
    assert checked > 1


def test_transforms_of_the_record_reach_the_raw_windows(root):
    rows = examples(root)
    people = rows.people
    i = next(i for i in range(len(people)) if len(people[i].raw.window_R) > 4)
    t = int(people[i].window_end_M[-1])

    def read(transform):
        ((batch, _),) = rows.prediction_batches([i], [t], 1, transform)
        return batch["raw"][0], batch["raw_observed"][0].any(axis=(1, 2))

    before, seen = read(None)
    assert seen.sum() > 4
    assert not read(perturbations.drop_wear())[1].any()
    left = [read(perturbations.missing_stretch(0.6, seed=s))[1].sum() for s in range(6)]
    assert 0 <= min(left) < seen.sum() and max(left) <= seen.sum()
    assert not read(perturbations.occlude_channels(people.channels, 1e6, -1.0))[1].any()
    noisy, still = read(perturbations.add_noise(6.0, people.store.scales))
    np.testing.assert_array_equal(still, seen)
    assert np.any(noisy[seen] != before[seen]) and np.abs(noisy - before)[seen].std() < 0.5
    absolute, _ = read(perturbations.add_noise(6.0, people.store.scales, mode="absolute"))
    assert np.var((absolute - before)[seen]) == pytest.approx(10**0.6, rel=0.2)
    truncated = read(perturbations.truncate(0.3))
    assert truncated[1].sum() < seen.sum() and people.window_us < DAY_US


def changed(rows, i, where_R):
    """Examples whose person i has other raw samples where it says."""
    raw = rows.people[i].raw
    values = raw.values_RxSxA.copy()
    values[where_R] = np.random.default_rng(0).normal(size=values[where_R].shape)
    return with_patient(rows, i, raw=raw._replace(values_RxSxA=values))


def test_other_samples_behind_a_mask_or_after_the_prediction_time_change_no_input(root):
    rows, n_hidden, n_changed = examples(root, "train", masked_contexts=1.0), 0, 0
    for g in range(rows.rows_per_epoch):
        row = row_of(rows, g)
        for s, (drawn, span) in enumerate(rows.contexts(g), start=1):
            raw, shown = drawn.patient.raw, span.positions(drawn.patient)
            windows = drawn.patient.ref_N[shown][drawn.patient.is_wear_N[shown]]
            if not len(windows) or not len(raw.window_R):
                continue
            first = row["window"][np.flatnonzero(row["segment"] == s)].clip(-1)
            first = first[first >= 0][0]
            inside = np.isin(raw.window_R, windows)
            slot = first + np.searchsorted(windows, np.where(inside, raw.window_R, windows[0]))
            hidden = inside & row["patch_mask"][slot, raw.step_R // 3]
            for where in (hidden, inside & ~hidden):
                if [d.position for d, _ in rows.contexts(g)].count(drawn.position) > 1 or not where.any():
                    continue
                other = row_of(changed(examples(root, "train", masked_contexts=1.0), drawn.position, where), g)
                same = all(np.array_equal(row[name], value) for name, value in other.items())
                assert same == (where is hidden)
                n_hidden, n_changed = n_hidden + (where is hidden), n_changed + (where is not hidden)
    assert n_hidden > 3 and n_changed > 3

    plain, n_later = examples(root, "train"), 0
    for i in range(len(plain)):
        raw, end_M = plain.people[i].raw, plain.people[i].window_end_M
        if len(raw.window_R) and raw.window_R[-1] > raw.window_R[0]:
            t = int(end_M[raw.window_R[0]])
            later = end_M[raw.window_R] > t
            for where, same in ((later, True), (~later, False)):
                ((before, _),), ((after, _),) = (
                    r.prediction_batches([i], [t], 1) for r in (plain, changed(examples(root, "train"), i, where))
                )
                assert all(np.array_equal(before[name], after[name]) for name in before) == same
            n_later += 1
    assert n_later > 3


def test_room_for_raw_windows_that_were_not_prepared_is_refused(few_people):
    said = "has no segments 'ppg', for which config.joint.context.raw_windows makes room"
    with pytest.raises(ValueError, match=said):
        examples(few_people)
