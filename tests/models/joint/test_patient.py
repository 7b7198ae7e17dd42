"""What a context shows of a patient: the sampled day and its law, one stream without the other."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import records

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.store import NO_BIRTH
from ehrwear_jax.models.joint import layout
from ehrwear_jax.models.joint import patient as patient_lib
from ehrwear_jax.models.vocabulary import Vocabulary

START = 20_000 * DAY_US


class EveryCode:
    """A vocabulary in which each code is the token of its number; negative ones are in no vocabulary."""

    known = Vocabulary.known

    def encode(self, code_N, raw_N, text_N):
        return code_N.copy(), raw_N.copy()


STORE = SimpleNamespace(scales=records.make_scales(), derived_scales=records.make_scales(0), step_us=3_600_000_000,
                        max_age_years=None)  # fmt: skip


def make(event_days, tokens, window_days, birth=True):
    """A patient with events and windows at the given days after START."""
    at, ends = np.sort(np.array(event_days, float)), np.array(window_days, float)
    record = records.make_record(
        START + (at * DAY_US).astype(np.int64), tokens, START + (ends * DAY_US).astype(np.int64), static=[3],
        birth_us=START - 9000 * DAY_US if birth else NO_BIRTH, end_us=START + 900 * DAY_US,
    )  # fmt: skip
    return patient_lib.make_patient(record, STORE, EveryCode())


def draws(patient, weight_V, n=20_000):
    rng = np.random.default_rng(0)
    stop = np.array([patient_lib.sample_day(u, patient, np.array(weight_V)) for u in rng.random(n)])
    return np.bincount(stop, minlength=len(patient.time_N) + 1)


def test_a_day_is_drawn_by_the_weight_of_its_tokens():
    # day 0: two events of code 4; day 1: a rare one of code 5; day 2: three windows, the last of which ends at midnight
    patient = make([0.2, 0.6, 1.5], [4, 4, 5], [2.25, 2.5, 3.0])
    n_N = draws(patient, [0, 0, 0, 0, 0.5, 4.0])
    assert set(np.nonzero(n_N)[0]) == {2, 3, 6}, "contexts end with the day"
    share = n_N[[2, 3, 6]] / n_N.sum()
    want = np.array([1.0, 4.0, 3.0]) / 8
    assert np.all(np.abs(share - want) < 5 * np.sqrt(want * (1 - want) / n_N.sum()))


def test_without_weights_every_token_counts_alike():
    patient = make([0.2, 0.6, 1.5], [4, 4, 5], [])
    for weight_V in ([0.0] * 6, [1.0] * 6):
        share = draws(patient, weight_V)[[2, 3]] / 20_000
        assert np.all(np.abs(share - [2 / 3, 1 / 3]) < 5 * np.sqrt(2 / 9 / 20_000))


@pytest.mark.parametrize("birth", [True, False])
def test_a_dropped_stream_leaves_its_targets_and_nothing_else(birth):
    patient = make([5.0, 7.0, 9.0], [4, 5, 4], [6.0, 8.0], birth)
    assert patient_lib.without(patient, True, True) is patient
    ehr, wear = patient_lib.without(patient, True, False), patient_lib.without(patient, False, True)
    assert not ehr.is_wear_N.any() and len(ehr.time_N) == 3 and len(ehr.static_token_S) == 1
    assert wear.is_wear_N.all() and len(wear.time_N) == 2 and not len(wear.static_token_S)
    assert ehr.origin_us == (patient.origin_us if birth else START + 5 * DAY_US)
    assert wear.origin_us == START + 6 * DAY_US, "a birth date is an EHR fact"
    for copy in (ehr, wear):
        np.testing.assert_array_equal(copy.event_token_K, patient.event_token_K)
        np.testing.assert_array_equal(copy.window_end_M, patient.window_end_M)
        np.testing.assert_array_equal(copy.window_MxLxC, patient.window_MxLxC)


def test_events_out_of_the_vocabulary_are_left_out_and_the_record_begins_where_it_did():
    record = records.make_record([5 * DAY_US, 6 * DAY_US, 8 * DAY_US], [-1, 4, -1], [7 * DAY_US], static=[-1, 3])
    patient = patient_lib.make_patient(record, STORE, EveryCode())
    assert patient.time_N.tolist() == [6 * DAY_US, 7 * DAY_US] and patient.is_wear_N.tolist() == [False, True]
    assert patient.event_token_K.tolist() == [4] and patient.static_token_S.tolist() == [3]
    assert patient.origin_us == 5 * DAY_US and not patient.has_birth


def test_what_is_not_given_leaves_no_trace_of_its_times():
    record = records.make_record([5 * DAY_US, 6 * DAY_US], [4, 4], [4 * DAY_US, 9 * DAY_US], static=[3], birth_us=0)
    assert patient_lib.given(record, ("ehr", "wear")) is record
    ehr, wear = patient_lib.given(record, ("ehr",)), patient_lib.given(record, ("wear",))
    assert ehr.origin_us == 0 and ehr.first_us == 5 * DAY_US and not len(ehr.window_end_M)
    assert wear.origin_us == wear.first_us == 4 * DAY_US and not len(wear.code_K) and not len(wear.static_code_S)


def test_static_facts_can_be_given_without_the_events():
    record = records.make_record([3 * DAY_US, 6 * DAY_US], [4, 4], [4 * DAY_US, 9 * DAY_US], static=[3], birth_us=7)
    wear = patient_lib.given(record, ("wear",), static=True)
    assert wear.static_code_S.tolist() == [3] and wear.origin_us == wear.birth_us == 7
    assert not len(wear.code_K) and wear.first_us == 4 * DAY_US, "when the first event was leaves no trace"
    assert patient_lib.given(record, ("ehr", "wear"), static=True) is record


def test_the_signal_is_standardised_as_it_is_read_and_cut_at_ten_deviations():
    window = np.array([[[60.0, 0.0], [np.nan, 9.0], [1e9, 99.0]]])
    record = records.make_record([], [], [DAY_US], window)
    scales = records.make_scales(log=[1], mean=2.0, std=4.0)
    patient = patient_lib.make_patient(
        dataclasses.replace(record), SimpleNamespace(**vars(STORE) | {"scales": scales}), EveryCode()
    )
    want = [[10.0, -0.5], [np.nan, (np.log(10) - 2) / 4], [10.0, (np.log(100) - 2) / 4]]
    np.testing.assert_allclose(patient.signal(0, 1)[0], want, rtol=1e-6)
    np.testing.assert_array_equal(patient.window_MxLxC, window.astype(np.float32))


def ages(patient, time_us, origin_us):
    """layout.ages of one patient."""
    return layout.ages([patient], np.zeros(len(time_us), np.int64), np.asarray(time_us), np.array([origin_us]))


def local_and_utc(birth):
    """The same record on the local clock, and on that of UTC with the offsets of its windows: +2 h, then -5 h."""
    windows, offset_M = np.array([4.0, 4.25, 20.5, 21.0]), np.array([120, 120, -300, -300], np.int16)
    events, of_event = np.array([4.1, 10.4, 20.9, 30.0]), np.array([120, 120, -300, -300])
    made = []
    for utc in (False, True):
        at, ends = (
            (START + np.rint(x * DAY_US) - utc * minutes * 60e6).astype(np.int64)
            for x, minutes in ((events, of_event), (windows, offset_M.astype(int)))
        )
        record = records.make_record(at, [4, 5, 4, 5], ends, birth_us=START - 9000 * DAY_US if birth else NO_BIRTH)
        made.append(dataclasses.replace(record, utc_offset_M=offset_M) if utc else record)
    return made


@pytest.mark.parametrize("birth", [True, False])
def test_ages_follow_the_local_clock_by_what_was_known_then(birth):
    local, utc = (patient_lib.make_patient(record, STORE, EveryCode()) for record in local_and_utc(birth))
    np.testing.assert_array_equal(ages(utc, utc.time_N, utc.origin_us), ages(local, local.time_N, local.origin_us))
    days = ages(local, local.time_N, local.origin_us)
    np.testing.assert_allclose(days.sum(axis=1), (local.time_N - local.origin_us) / DAY_US, rtol=1e-6)
    before = ages(utc, np.array([START]), utc.origin_us)
    if birth:
        np.testing.assert_array_equal(before, [[9000.0, 0.0]], "nothing was known of a place")
    # between the journeys the place is the last one that was known; a later window changes nothing before it
    fewer = patient_lib.make_patient(local_and_utc(birth)[1].select_windows(np.arange(4) < 2), STORE, EveryCode())
    early = utc.time_N[utc.time_N < utc.window_end_M[2]]
    np.testing.assert_array_equal(ages(fewer, early, utc.origin_us), ages(utc, early, utc.origin_us))


def test_without_offsets_or_without_the_wearable_ages_are_those_of_the_clock_of_the_record():
    local, utc = local_and_utc(True)
    zero = dataclasses.replace(local, utc_offset_M=np.zeros(4, np.int16))
    plain, zero = (patient_lib.make_patient(record, STORE, EveryCode()) for record in (local, zero))
    assert zero.utc_offset_M is None
    np.testing.assert_array_equal(ages(plain, plain.time_N, plain.origin_us), ages(zero, plain.time_N, plain.origin_us))
    patient = patient_lib.make_patient(utc, STORE, EveryCode())
    want = (utc.time_K - utc.birth_us) / DAY_US
    for shown in (
        patient_lib.without(patient, True, False),
        patient_lib.make_patient(utc.without_wear(), STORE, EveryCode()),
    ):
        np.testing.assert_allclose(ages(shown, utc.time_K, utc.birth_us).sum(axis=1), want, rtol=0, atol=1e-3)
    kept = patient_lib.without(patient, False, True)
    assert kept.utc_offset_M is patient.utc_offset_M is not None
