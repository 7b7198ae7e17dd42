"""Changed records: what is left, what the noise measures, and that nothing after the read matters."""

import dataclasses

import cohort
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_rows import examples_of
from records import make_record, make_scales

from ehrwear_jax.data import perturbations
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.store import NO_BIRTH, Segments
from ehrwear_jax.models.joint import batch as batch_lib

CONTEXT = {"tokens": 64, "windows": 32, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3}
UNIT = make_scales()  # a standard deviation of one, no logarithms


def record(n_windows=40, n_events=30, steps=24, channels=2, birth=NO_BIRTH, seed=0, signal=None, segments=True):
    """A person with a window every 6 h from day 100 and an event every five days from day 3.

    A segment of an hour begins with the third hour of every other window; its channel is on the grid.
    """
    rng = np.random.default_rng(seed)
    window = rng.normal(size=(n_windows, steps, channels)) if signal is None else signal
    end_us = 100 * DAY_US + (1 + np.arange(len(window), dtype=np.int64)) * DAY_US // 4
    start_us = end_us[::2] - 4 * DAY_US // 24
    values = rng.normal(size=(len(start_us), 50, 1)).astype(np.float16)
    found = Segments(start_us, np.ones(len(start_us), np.float32), values, ("heart_rate",), DAY_US // 24)
    return make_record(
        (3 + 5 * np.arange(n_events, dtype=np.int64)) * DAY_US, 3 + np.arange(n_events) % 5, end_us, window,
        static=[9], birth_us=birth, end_us=400 * DAY_US, segments={"ppg": found} if segments else {},
    )  # fmt: skip


AT = 108 * DAY_US
TRANSFORMS = {
    "truncate": perturbations.truncate(7),
    "drop_wear": perturbations.drop_wear(),
    "drop_ehr": perturbations.drop_ehr(),
    "drop_codes": perturbations.drop_codes(lambda code: code == 4),
    "occlude": perturbations.occlude_channels(["heart_rate", "activity"], 5, 2),
    "add": perturbations.add_to_channel("heart_rate", 1.5, UNIT, 6),
    "add_sd": perturbations.add_to_channel("activity", 1.5, make_scales(log=[1], std=2.0), 6),
    "relative": perturbations.add_noise(6.0, UNIT),
    "absolute": perturbations.add_noise(6.0, make_scales(log=[1]), mode="absolute"),
    "missing": perturbations.missing_stretch(0.4),
}


def shown(person, time_us):
    """What a prediction at the time is given of a record."""
    windows, events = person.window_end_M <= time_us, person.time_K <= time_us
    segments = [x for found in person.segments.values() for x in found.select(found.end_us_R <= time_us)[:3]]
    return [person.window_end_M[windows], person.window_MxLxC[windows], person.time_K[events], person.code_K[events],
            person.static_code_S, np.array([person.origin_us]), *segments]  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("birth", [NO_BIRTH, -20_000 * DAY_US])
def test_what_comes_after_the_prediction_changes_nothing_and_the_record_stays(name, birth):
    whole = record(birth=birth)
    before = [x.copy() for x in shown(whole, AT)]
    found = whole.segments["ppg"].select(slice(16))
    cut = record(n_windows=32, n_events=22, birth=birth, signal=whole.window_MxLxC[:32])
    cut = dataclasses.replace(cut, segments={"ppg": found})
    for a, b in zip(*(shown(TRANSFORMS[name](p, AT), AT) for p in (whole, cut)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(before, shown(whole, AT), strict=True):
        np.testing.assert_array_equal(a, b)


def times_of(person):
    return np.sort(np.concatenate([person.time_K, person.window_end_M]))


def test_truncation_keeps_the_last_days_static_events_and_the_birth_date():
    found = perturbations.truncate(7)(record(birth=-5), AT)
    assert times_of(found)[0] > AT - 7 * DAY_US and found.origin_us == -5 and len(found.static_code_S) == 1
    whole = times_of(record())
    assert (times_of(found) <= AT).sum() == ((whole > AT - 7 * DAY_US) & (whole <= AT)).sum() > 20
    assert found.segments["ppg"].end_us_R.min() > AT - 7 * DAY_US and len(found.segments["ppg"].start_us_R) > 10
    unknown = perturbations.truncate(7)(record(), AT)
    assert unknown.origin_us == times_of(unknown)[0]  # not the first record, which is gone
    assert perturbations.truncate(1)(record(n_windows=0), AT + DAY_US).origin_us == AT + DAY_US


def test_a_modality_that_is_dropped_is_gone_and_nothing_may_be_left():
    no_wear, no_ehr = (TRANSFORMS[k](record(birth=-5), AT) for k in ("drop_wear", "drop_ehr"))
    assert not len(no_wear.window_end_M) and no_wear.origin_us == -5 and len(no_wear.static_code_S) == 1
    assert not len(no_wear.segments["ppg"].start_us_R)
    assert not len(no_ehr.time_K) and not len(no_ehr.static_code_S) and no_ehr.birth_us == NO_BIRTH
    assert no_ehr.origin_us == no_ehr.window_end_M[0] and len(no_ehr.segments["ppg"].start_us_R) == 20
    nothing = perturbations.drop_ehr()(record(n_windows=0, birth=-5), AT)
    assert not len(times_of(nothing)) and nothing.origin_us == AT
    over = dataclasses.replace(record(n_windows=0, n_events=3), end_us=50 * DAY_US)  # before the prediction
    assert perturbations.drop_ehr()(over, AT).origin_us == AT


def test_codes_and_channels_of_a_period_only():
    whole, found = record(), TRANSFORMS["drop_codes"](record(), AT)
    days = (AT - whole.time_K) / DAY_US
    gone = (whole.code_K == 4) & (days >= 0)
    np.testing.assert_array_equal(found.time_K, whole.time_K[~gone])
    assert 0 < gone.sum() < (whole.code_K == 4).sum() and len(found.static_code_S) == 1, "what comes later stays"
    ever = perturbations.drop_codes(lambda code: np.isin(code, (4, 9)))(record(), AT)
    assert not len(ever.static_code_S) and not len(ever.static_value_S)
    kept = ever.code_K[ever.time_K <= AT]
    assert 4 not in kept and len(kept)
    one = perturbations.occlude_channels(["activity"], 5, 2)(record(), AT)
    before = (AT - one.window_end_M) / DAY_US
    inside = (before < 5) & (before >= 2)
    assert np.isnan(one.window_MxLxC[inside, :, 1]).all() and np.isfinite(one.window_MxLxC[inside, :, 0]).all()
    assert np.isfinite(one.window_MxLxC[~inside]).all() and len(one.window_end_M) == 40
    both = TRANSFORMS["occlude"](record(), AT)
    np.testing.assert_array_equal(both.window_end_M, whole.window_end_M[~inside])  # nothing in them: no windows
    raised = TRANSFORMS["add"](record(), AT)
    change = raised.window_MxLxC - whole.window_MxLxC
    assert set(np.round(change[..., 0].ravel(), 5)) == {0.0, 1.5} and not change[..., 1].any()
    with pytest.raises(ValueError):
        perturbations.occlude_channels(["glucose"], 5, 2)(record(), AT)


def test_segments_lose_what_the_grid_loses_at_their_step():
    whole = record()
    at, starts = whole.window_end_M, whole.segments["ppg"].start_us_R
    own = perturbations.occlude_channels(["heart_rate"], 5, 2)(whole, AT)
    other = perturbations.occlude_channels(["activity"], 5, 2)(whole, AT)
    both = TRANSFORMS["occlude"](whole, AT)
    before = (AT - at[whole.window_of(starts)]) / DAY_US
    inside = (before < 5) & (before >= 2)
    assert 0 < inside.sum() < len(inside)
    values = own.segments["ppg"].values_RxSxA
    assert np.isnan(values[inside]).all() and np.isfinite(values[~inside]).all(), "their channel is on the grid"
    np.testing.assert_array_equal(other.segments["ppg"].values_RxSxA, whole.segments["ppg"].values_RxSxA)
    np.testing.assert_array_equal(both.segments["ppg"].start_us_R, starts[~inside])
    for seed in range(6):
        found = perturbations.missing_stretch(0.4, seed=seed)(whole, AT)
        left = found.segments["ppg"].start_us_R
        window_R = whole.window_of(starts)
        step_R = (starts - at[window_R] + whole.window_us) // (whole.window_us // 24)
        signal = dict(zip(found.window_end_M.tolist(), found.window_MxLxC, strict=True))
        there = [
            e in signal and np.isfinite(signal[e][s]).any() for e, s in zip(at[window_R].tolist(), step_R, strict=True)
        ]
        np.testing.assert_array_equal(np.isin(starts, left), there)


def test_a_channel_is_raised_in_its_unit_or_in_deviations_on_the_models_scale():
    scales = make_scales(log=[1], mean=3.0, std=0.5)
    whole = record(signal=np.abs(np.random.default_rng(0).normal(size=(40, 24, 2))) * 20)
    found = perturbations.add_to_channel("activity", 2.0, scales)(whole, AT)
    known = whole.window_end_M <= AT
    moved = scales.standardise(found.window_MxLxC) - scales.standardise(whole.window_MxLxC)
    np.testing.assert_allclose(moved[known, :, 1], 2.0, atol=1e-4)
    np.testing.assert_array_equal(found.window_MxLxC[..., 0], whole.window_MxLxC[..., 0])
    np.testing.assert_array_equal(found.window_MxLxC[~known], whole.window_MxLxC[~known])
    linear = perturbations.add_to_channel("heart_rate", 2.0, scales)(whole, AT)
    np.testing.assert_allclose((linear.window_MxLxC - whole.window_MxLxC)[known, :, 0], 1.0, atol=1e-5)


def test_the_noise_estimator_finds_the_noise_beside_a_trend_and_gaps():
    rng = np.random.default_rng(0)
    trend = np.linspace(0, 40, 96)[None, :, None] * np.array([1.0, -0.3])
    noisy = trend + rng.normal(size=(400, 96, 2)) * np.array([0.5, 2.0])
    noisy[rng.random(noisy.shape) < 0.2] = np.nan
    np.testing.assert_allclose(perturbations.noise_variance(noisy), [0.25, 4.0], rtol=0.03)
    np.testing.assert_allclose(perturbations.noise_variance(np.broadcast_to(trend, (3, 96, 2))), 0.0, atol=1e-20)
    assert list(perturbations.noise_variance(np.full((2, 2, 1), 1.0))) == [0.0]


@pytest.mark.parametrize("drop_db", [3.0, 6.0])
def test_the_measured_snr_falls_by_the_named_decibels(drop_db):
    rng = np.random.default_rng(1)
    phase = 2 * np.pi * np.arange(96) / 96
    clean = np.broadcast_to(3 * np.sin(phase)[None, :, None], (400, 96, 1))
    recorded = clean + 0.7 * rng.normal(size=clean.shape)
    person = record(n_windows=400, signal=recorded)
    late, scales = int(person.window_end_M[-1]), make_scales(1)
    noisy = perturbations.add_noise(drop_db, scales)(person, late).window_MxLxC

    def snr(signal):
        return 10 * np.log10(clean.var() / np.mean((signal - clean) ** 2))

    assert snr(recorded) - snr(noisy) == pytest.approx(drop_db, abs=0.1)
    stress = perturbations.add_noise(drop_db, scales, mode="absolute")(person, late).window_MxLxC
    added = np.var(stress.astype(np.float64) - recorded)
    assert 10 * np.log10(recorded.var() / added) == pytest.approx(-drop_db, abs=0.1)


def test_noise_is_gaussian_on_the_models_scale():
    """Of a log channel the logarithm is noisier, also where that makes the channel negative."""
    rng, scales = np.random.default_rng(1), make_scales(log=[0, 1], mean=2.0, std=0.7)
    person = record(n_windows=400, signal=np.expm1(np.abs(2 + rng.normal(size=(400, 24, 2)))))
    late = int(person.window_end_M[-1])
    noisy = perturbations.add_noise(6.0, scales, mode="absolute")(person, late)
    model = scales.standardise(person.window_MxLxC)
    added = scales.standardise(noisy.window_MxLxC) - model
    assert (noisy.window_MxLxC < 0).any()
    np.testing.assert_allclose(added.var((0, 1)), 10**0.6 * model.var((0, 1)), rtol=0.03)
    assert abs(np.mean(added[model < -2])) < 5 * added.std() / np.sqrt((model < -2).sum())


def test_noise_is_the_same_at_every_time_other_for_others_and_keeps_gaps():
    signal = np.random.default_rng(2).normal(size=(40, 24, 2))
    signal[3, 5:9] = np.nan
    person = record(signal=signal)
    noise = perturbations.add_noise(6.0, UNIT, mode="absolute")
    change = [noise(person, AT + d * DAY_US).window_MxLxC - person.window_MxLxC for d in (0, 1)]
    unit = [c[:20] / np.nanstd(c[:20], axis=(0, 1)) for c in change]
    np.testing.assert_allclose(*unit, rtol=1e-4, atol=1e-5)
    assert (np.isnan(change[0]) == np.isnan(signal)).all()
    other = noise(record(seed=5), AT).window_MxLxC - record(seed=5).window_MxLxC
    assert abs(np.corrcoef(other[:20].ravel(), np.nan_to_num(change[0][:20]).ravel())[0, 1]) < 0.2


@given(st.floats(0.05, 0.95), st.integers(0, 50))
@settings(max_examples=20)
def test_one_contiguous_stretch_of_the_named_share_is_missing(share, seed):
    person = record()
    found = perturbations.missing_stretch(share, seed=seed)(person, AT)
    known, left = person.window_end_M <= AT, np.isin(person.window_end_M, found.window_end_M)
    gone = np.ones(person.window_MxLxC.shape[:2], bool)
    gone[left] = np.isnan(found.window_MxLxC)[..., 0]
    assert not gone[~known].any() and gone.sum() == round(share * gone[known].size)
    at = np.flatnonzero(gone.ravel())
    assert len(at) == 0 or at[-1] - at[0] + 1 == len(at)
    np.testing.assert_array_equal(left, ~gone.all(1))


def test_transforms_reach_the_batches(tmp_path):
    """A prediction from a changed record is one from the record that was changed by hand."""
    root = cohort.prepare_cohort(cohort.write_cohort(tmp_path, n_subjects=12))
    rows = examples_of(root, CONTEXT, None)
    people = rows.people
    place = [i for i in range(len(people)) if people.n_windows[i] and people.n_events[i]][:3]
    times = np.array([int(people[i].time_N[-3]) for i in place])
    parts = perturbations.truncate(90), perturbations.add_noise(6.0, people.store.scales)

    def transform(record, time_us):
        return parts[1](parts[0](record, time_us), time_us)

    by_hand = examples_of(root, CONTEXT, None)
    for i, t in zip(place, times.tolist(), strict=True):
        by_hand.people.cache.held[i] = people.of(transform(people.record(i), t))
    got = list(rows.prediction_batches(place, times, 2, transform))
    want = list(by_hand.prediction_batches(place, times, 2))
    plain = list(rows.prediction_batches(place, times, 2))
    assert len(got) == len(want)
    for (a, x), (b, y) in zip(got, want, strict=True):
        assert (x == y).all()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert any((got[0][0][k] != plain[0][0][k]).any() for k in ("wear", "token"))


def test_failure_flags_count_days_before_the_prediction_time():
    people = [record(), record(n_windows=0), record(n_events=0, n_windows=60)]
    times = np.array([AT, 2 * DAY_US, AT, AT, 113 * DAY_US, 114 * DAY_US])
    flags = perturbations.failure_flags(people, [0, 0, 1, 2, 2, 2], times)
    assert flags["encounters"].to_list() == [22, 0, 22, 0, 0, 0]
    assert flags["wear_days"].to_list() == [8, 0, 0, 8, 13, 14]
    half = perturbations.failure_flags(people, [0, 0, 1, 2, 2, 2], times + DAY_US // 4)
    assert half["wear_days"].to_list() == [8, 0, 0, 8, 13, 14], "six hours are no day of wear"
    assert perturbations.failure_flags(people, [2], [AT + DAY_US // 4], min_wear_hours=6.0)["wear_days"].item() == 9
    worn = np.r_[np.full(56, 180), np.full(4, 179)].astype(np.int16)
    worn = [dataclasses.replace(people[2], worn_minutes_M=w) for w in (worn, np.full(60, 18, np.int16))]
    counted = perturbations.failure_flags(worn, [0, 1], [130 * DAY_US] * 2)
    assert counted["wear_days"].to_list() == [14, 0], "72 minutes a day make none"
    assert flags["sparse_ehr"].to_list() == [False, True, False, True, True, True]
    assert flags["short_wear"].to_list() == [True, True, True, True, True, False], "fewer than 14 days"
    assert flags["failure_group"].to_list() == [False, True, False, True, True, False]
    assert isinstance(flags, pl.DataFrame)
    visits = np.isin(people[0].code_K, people[0].code_K[:2])
    known = visits & (people[0].time_K <= AT) & (people[0].time_K > AT - 365 * DAY_US)
    days = {(t - 1) // DAY_US for t in people[0].time_K[known].tolist()}
    of_codes = perturbations.failure_flags(
        people, [0, 2], times[:2], is_encounter=lambda code_K: np.isin(code_K, people[0].code_K[:2])
    )
    assert of_codes["encounters"].to_list() == [len(days), 0] and 0 < len(days) < 22, "other events are no encounters"
    assert of_codes["wear_days"].to_list()[0] == 8
    old = perturbations.failure_flags([record()], [0], np.array([150 * DAY_US + 363 * DAY_US]))
    assert old["encounters"].to_list() == [0] and old["sparse_ehr"].to_list() == [True]


def test_failure_flags_read_a_record_once_for_all_times_of_its_person():
    read = []

    class Store(list):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    people = [record(seed=seed) for seed in range(3)]
    index, times = [2, 2, 0, 0, 0, 1], np.arange(1, 7) * 20 * DAY_US
    flags = perturbations.failure_flags(Store(people), index, times)
    assert read == [2, 0, 1]
    alone = [perturbations.failure_flags(people, [i], [t]) for i, t in zip(index, times, strict=True)]
    assert flags.equals(pl.concat(alone))


def test_settings_that_mean_nothing_are_refused():
    for call in (
        lambda: perturbations.truncate(0),
        lambda: perturbations.add_noise(0.0, UNIT),
        lambda: perturbations.add_noise(6, UNIT, mode="x"),
        lambda: perturbations.missing_stretch(1.0),
    ):
        with pytest.raises(ValueError):
            call()


def test_windows_that_are_left_lie_at_their_slots(tmp_path):
    """Also where windows between them are gone."""
    root = cohort.prepare_cohort(cohort.write_cohort(tmp_path, n_subjects=12))
    rows = examples_of(root, CONTEXT, None)
    people = rows.people

    def every_third(record, time_us):
        return record.select_windows(np.arange(len(record.window_end_M)) % 3 == 0)

    place = [i for i in range(len(people)) if people.n_windows[i] > 3][:4]
    times = np.array([int(people[i].time_N[-1]) for i in place])
    n_seen = 0
    for batch, where in rows.prediction_batches(place, times, 2, every_third):
        for b, q in np.argwhere(where >= 0):
            patient, segment = people[place[where[b, q]]], batch["query_segment"][b, q]
            at = (batch["segment"][b] == segment) & (batch["modality"][b] == batch_lib.MODALITY_WEAR)
            slots = batch["window"][b, at]
            wanted = patient.signal(0, len(patient.window_end_M))[::3][-len(slots) :]
            np.testing.assert_array_equal(batch["observed"][b, slots], np.isfinite(wanted))
            np.testing.assert_array_equal(batch["wear"][b, slots], np.nan_to_num(wanted))
            n_seen += len(slots)
    assert n_seen > 8
