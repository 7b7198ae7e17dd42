"""What a context shows of a patient: the sampled day and its law, one stream without the other."""

import numpy as np
import pytest

from ehrwear_jax.models.joint import patient as patient_lib
from ehrwear_jax.models.joint.patient import DAY_US

START = 20_000 * DAY_US


def make(event_days, tokens, window_days, birth=True):
    """A patient with events and windows at the given days after START."""
    at = np.sort(np.array(event_days, float))
    record = {
        "static_token": np.array([3], np.int32),
        "static_value": np.zeros(1, np.float32),
        "token": np.array(tokens, np.int32),
        "value": np.zeros(len(tokens), np.float32),
        "time_us": START + (at * DAY_US).astype(np.int64),
        "window_end_us": START + (np.array(window_days, float) * DAY_US).astype(np.int64),
        "window": np.random.default_rng(0).normal(size=(len(window_days), 6, 2)).astype(np.float16),
        "summary": np.zeros((len(window_days), 0), np.float16),
        "birth_us": np.int64(START - 9000 * DAY_US if birth else patient_lib.NO_BIRTH),
        "end_us": np.int64(START + 900 * DAY_US),
        "died": np.bool_(False),
    }
    return patient_lib.make_patient(record, ("ehr", "wear"))


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
