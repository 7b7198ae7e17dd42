"""Changed records: what is left, what the noise measures, and that nothing after the read matters."""

import dataclasses

import cohort
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.data import perturbations as robustness
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.models.joint.patient import DAY_US, NO_BIRTH, make_patient, select


def patient(n_windows=40, n_events=30, steps=24, channels=2, birth=None, seed=0, signal=None):
    """A person with a window every 6 h from day 100 and an event every five days from day 3."""
    rng = np.random.default_rng(seed)
    window = rng.normal(size=(n_windows, steps, channels)) if signal is None else signal
    record = {
        "token": 3 + np.arange(n_events, dtype=np.int32) % 5,
        "value": np.zeros(n_events, np.float32),
        "time_us": (3 + 5 * np.arange(n_events, dtype=np.int64)) * DAY_US,
        "static_token": np.array([9], np.int32),
        "static_value": np.zeros(1, np.float32),
        "window_end_us": 100 * DAY_US + (1 + np.arange(len(window), dtype=np.int64)) * DAY_US // 4,
        "window": window.astype(np.float32),
        "summary": np.zeros((len(window), 0), np.float16),
        "birth_us": NO_BIRTH if birth is None else birth,
        "end_us": 400 * DAY_US,
        "died": False,
    }
    return make_patient(record, ("ehr", "wear"))


READ = 108 * DAY_US
TRANSFORMS = {
    "truncate": robustness.truncate(7),
    "drop_wear": robustness.drop_wear(),
    "drop_ehr": robustness.drop_ehr(),
    "drop_codes": robustness.drop_codes(lambda token: token == 4, 60, 10),
    "occlude": robustness.occlude_channels([0, 1], 5, 2),
    "add": robustness.add_to_channel(0, 1.5, 6),
    "relative": robustness.add_noise(6.0),
    "absolute": robustness.add_noise(6.0, mode="absolute"),
    "missing": robustness.missing_stretch(0.4),
    "chain": robustness.chain(robustness.truncate(30), robustness.add_noise(6.0), robustness.missing_stretch(0.2)),
}


def shown(person, time_us):
    """What a read at the time is given of a patient."""
    known = person.time_N <= time_us
    ref, wear = person.ref_N[known], person.is_wear_N[known]
    return [person.time_N[known], wear, person.event_token_K[ref[~wear]], person.window_MxLxC[ref[wear]],
            person.static_token_S, np.array([person.origin_us])]  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("birth", [None, -20_000 * DAY_US])
def test_what_comes_after_the_read_changes_nothing_and_the_patient_stays(name, birth):
    whole = patient(birth=birth)
    before = [x.copy() for x in shown(whole, READ)]
    cut = patient(n_windows=32, n_events=22, birth=birth, signal=whole.window_MxLxC[:32])
    for a, b in zip(*(shown(TRANSFORMS[name](p, READ), READ) for p in (whole, cut)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(before, shown(whole, READ), strict=True):
        np.testing.assert_array_equal(a, b)


def test_truncation_keeps_the_last_days_static_tokens_and_the_birth_date():
    found = robustness.truncate(7)(patient(birth=-5), READ)
    assert found.time_N.min() > READ - 7 * DAY_US and found.origin_us == -5 and len(found.static_token_S) == 1
    assert (found.time_N <= READ).sum() == (np.abs(patient().time_N - READ + 3.5 * DAY_US) <= 3.5 * DAY_US).sum() - 1
    unknown = robustness.truncate(7)(patient(), READ)
    assert unknown.origin_us == unknown.time_N[0]  # not the first record, which is gone
    assert robustness.truncate(1)(patient(n_windows=0), READ + DAY_US).origin_us == READ + DAY_US


def test_a_stream_that_is_dropped_is_gone_and_nothing_may_be_left():
    no_wear, no_ehr = (TRANSFORMS[k](patient(birth=-5), READ) for k in ("drop_wear", "drop_ehr"))
    assert not no_wear.is_wear_N.any() and no_wear.origin_us == -5 and len(no_wear.static_token_S) == 1
    assert no_ehr.is_wear_N.all() and len(no_ehr.static_token_S) == 0 and no_ehr.origin_us == no_ehr.time_N[0]
    nothing = robustness.drop_ehr()(patient(n_windows=0, birth=-5), READ)
    assert not len(nothing.time_N) and nothing.origin_us == READ


def test_codes_and_channels_of_a_period_only():
    found = TRANSFORMS["drop_codes"](patient(), READ)
    days = (READ - patient().event_time_K) / DAY_US
    gone = (patient().event_token_K == 4) & (days < 60) & (days >= 10)
    left = found.event_time_K[found.ref_N[~found.is_wear_N]]
    np.testing.assert_array_equal(left, patient().event_time_K[~gone])
    assert 0 < gone.sum() < (patient().event_token_K == 4).sum()
    assert len(found.static_token_S) == 1
    ever = robustness.drop_codes(lambda token: np.isin(token, (4, 9)))(patient(), READ)
    assert not len(ever.static_token_S) and not len(ever.static_value_S)
    kept = ever.event_token_K[ever.ref_N[~ever.is_wear_N & (ever.time_N <= READ)]]
    assert 4 not in kept and len(kept)
    one = robustness.occlude_channels([1], 5, 2)(patient(), READ)
    before = (READ - one.window_end_M) / DAY_US
    inside = (before < 5) & (before >= 2)
    assert np.isnan(one.window_MxLxC[inside, :, 1]).all() and np.isfinite(one.window_MxLxC[inside, :, 0]).all()
    assert np.isfinite(one.window_MxLxC[~inside]).all() and one.is_wear_N.sum() == 40
    both = TRANSFORMS["occlude"](patient(), READ)
    assert both.is_wear_N.sum() == 40 - inside.sum()  # a window without anything is no token
    raised = TRANSFORMS["add"](patient(), READ)
    change = raised.window_MxLxC - patient().window_MxLxC
    assert set(np.round(change[..., 0].ravel(), 5)) == {0.0, 1.5} and not change[..., 1].any()


def test_the_noise_estimator_finds_the_noise_beside_a_trend_and_gaps():
    rng = np.random.default_rng(0)
    trend = np.linspace(0, 40, 96)[None, :, None] * np.array([1.0, -0.3])
    noisy = trend + rng.normal(size=(400, 96, 2)) * np.array([0.5, 2.0])
    noisy[rng.random(noisy.shape) < 0.2] = np.nan
    np.testing.assert_allclose(robustness.noise_variance(noisy), [0.25, 4.0], rtol=0.03)
    np.testing.assert_allclose(robustness.noise_variance(np.broadcast_to(trend, (3, 96, 2))), 0.0, atol=1e-20)
    assert list(robustness.noise_variance(np.full((2, 2, 1), 1.0))) == [0.0]


@pytest.mark.parametrize("drop_db", [3.0, 6.0])
def test_the_measured_snr_falls_by_the_named_decibels(drop_db):
    rng = np.random.default_rng(1)
    phase = 2 * np.pi * np.arange(96) / 96
    clean = np.broadcast_to(3 * np.sin(phase)[None, :, None], (400, 96, 1))
    recorded = clean + 0.7 * rng.normal(size=clean.shape)
    person = patient(n_windows=400, signal=recorded)
    late = int(person.window_end_M[-1])
    noisy = robustness.add_noise(drop_db)(person, late).window_MxLxC

    def snr(signal):
        return 10 * np.log10(clean.var() / np.mean((signal - clean) ** 2))

    assert snr(recorded) - snr(noisy) == pytest.approx(drop_db, abs=0.1)
    stress = robustness.add_noise(drop_db, mode="absolute")(person, late).window_MxLxC
    added = np.var(stress.astype(np.float64) - recorded)
    assert 10 * np.log10(recorded.var() / added) == pytest.approx(-drop_db, abs=0.1)


def test_noise_is_the_same_at_every_read_other_for_others_and_keeps_gaps():
    signal = np.random.default_rng(2).normal(size=(40, 24, 2))
    signal[3, 5:9] = np.nan
    person = patient(signal=signal)
    noise = robustness.add_noise(6.0, mode="absolute")
    change = [noise(person, READ + d * DAY_US).window_MxLxC - person.window_MxLxC for d in (0, 1)]
    unit = [c[:20] / np.nanstd(c[:20], axis=(0, 1)) for c in change]
    np.testing.assert_allclose(*unit, rtol=1e-4, atol=1e-5)
    assert (np.isnan(change[0]) == np.isnan(signal)).all()
    other = noise(patient(seed=5), READ).window_MxLxC - patient(seed=5).window_MxLxC
    assert abs(np.corrcoef(other[:20].ravel(), np.nan_to_num(change[0][:20]).ravel())[0, 1]) < 0.2


@given(st.floats(0.05, 0.95), st.integers(0, 50))
@settings(max_examples=20)
def test_one_contiguous_stretch_of_the_named_share_is_missing(share, seed):
    person = patient()
    found = robustness.missing_stretch(share, seed=seed)(person, READ)
    known = person.window_end_M <= READ
    gone = np.isnan(found.window_MxLxC)[..., 0]
    assert not gone[~known].any() and gone.sum() == round(share * gone[known].size)
    at = np.flatnonzero(gone.ravel())
    assert len(at) == 0 or at[-1] - at[0] + 1 == len(at)
    assert found.is_wear_N.sum() == (~gone.all(1)).sum()


def test_transforms_reach_the_batches(tmp_path):
    """A read of a changed patient is a read of the record that was changed by hand."""
    root = cohort.prepare_cohort(cohort.write_cohort(tmp_path, n_subjects=12))
    people = pipeline.Patients(root / "all", pipeline.ContextConfig(tokens=64, windows=32, context_tokens=40,
                               queries=8, events=8, patch_steps=3))  # fmt: skip
    place = [i for i in range(len(people)) if people.n_windows[i] and people.n_events[i]][:3]
    times = np.array([int(people[i].time_N[-3]) for i in place])
    transform = robustness.chain(robustness.truncate(90), robustness.add_noise(6.0))

    class Changed:
        def __init__(self):
            self.__dict__.update(people.__dict__)

        batch_shape = people.batch_shape

        def __getitem__(self, i):
            return transform(people[i], int(times[place.index(i)]))

    got = list(pipeline.inference_batches(people, place, times, 2, transform))
    want = list(pipeline.inference_batches(Changed(), place, times, 2))
    plain = list(pipeline.inference_batches(people, place, times, 2))
    assert len(got) == len(want)
    for (a, x), (b, y) in zip(got, want, strict=True):
        assert (x == y).all()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert any((got[0][0][k] != plain[0][0][k]).any() for k in ("wear", "token"))


def test_failure_flags_count_days_before_the_read():
    people = [patient(), patient(n_windows=0), dataclasses.replace(patient(n_events=0))]
    flags = robustness.failure_flags(people, [0, 0, 1, 2, 2], np.array([READ, 2 * DAY_US, READ, READ, 115 * DAY_US]),
                                     min_wear_days=9)  # fmt: skip
    assert flags["encounters"].to_list() == [22, 0, 22, 0, 0]
    assert flags["wear_days"].to_list() == [8, 0, 0, 8, 10]
    assert flags["sparse_ehr"].to_list() == [False, True, False, True, True]
    assert flags["failure_group"].to_list() == [False, True, False, True, False]
    assert isinstance(flags, pl.DataFrame)
    old = robustness.failure_flags([patient()], [0], np.array([150 * DAY_US + 363 * DAY_US]))
    assert old["encounters"].to_list() == [0] and old["sparse_ehr"].to_list() == [True]


def test_settings_that_mean_nothing_are_refused():
    for call in (
        lambda: robustness.truncate(0),
        lambda: robustness.add_noise(0.0),
        lambda: robustness.add_noise(6, mode="x"),
        lambda: robustness.missing_stretch(1.0),
    ):
        with pytest.raises(ValueError):
            call()


def test_windows_that_are_left_lie_at_their_slots(tmp_path):
    """Also where windows between them are gone."""
    root = cohort.prepare_cohort(cohort.write_cohort(tmp_path, n_subjects=12))
    people = pipeline.Patients(root / "all", pipeline.ContextConfig(tokens=64, windows=32, context_tokens=40,
                               queries=8, events=8, patch_steps=3))  # fmt: skip

    def every_third(patient, time_us):
        return select(patient, ~patient.is_wear_N | (patient.ref_N % 3 == 0), True, patient.origin_us)

    place = [i for i in range(len(people)) if people.n_windows[i] > 3][:4]
    times = np.array([int(people[i].time_N[-1]) for i in place])
    n_seen = 0
    for batch, where in pipeline.inference_batches(people, place, times, 2, every_third):
        for b, q in np.argwhere(where >= 0):
            patient, segment = people[place[where[b, q]]], batch["query_segment"][b, q]
            at = (batch["segment"][b] == segment) & (batch["modality"][b] == batch_lib.MODALITY_WEAR)
            slots = batch["window"][b, at]
            wanted = patient.signal(0, len(patient.window_end_M))[::3][-len(slots) :]
            np.testing.assert_array_equal(batch["observed"][b, slots], np.isfinite(wanted))
            np.testing.assert_array_equal(batch["wear"][b, slots], np.nan_to_num(wanted))
            n_seen += len(slots)
    assert n_seen > 8
