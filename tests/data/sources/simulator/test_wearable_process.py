"""What wearables show of the state: shocks days before an admission, and a drug that only the EHR tells of."""

import dataclasses

import numpy as np
import pytest

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.sources.simulator import ehr_process, latent_process, people, wearable_process

CONFIG = SimulateConfig(wear_days=20, ppg_subjects_fraction=0.0, missingness=0.0)
N_DAYS, FIRST, ONSET = 60, 20, 32  # the device is worn from FIRST on, a shock sets in on ONSET


def path(shock):
    quiet = np.zeros(N_DAYS)
    level_D = np.where(np.arange(N_DAYS) >= ONSET, shock, 0).astype(np.int8)
    no = np.zeros(N_DAYS, bool)
    return latent_process.PersonPath(quiet, quiet, quiet, level_D, ~no, no, no, no)


def person(subject_id, **changes):
    rng = next(people.generators(0, subject_id))
    drawn = dataclasses.replace(people.draw_person(rng, subject_id, CONFIG), end_day=N_DAYS)
    return dataclasses.replace(drawn, **changes)


def recorded(one, shock=0, config=CONFIG):
    """(day [N], hour [N], heart rate [N], activity [N]) of the minutes recorded."""
    *_, rng, _ = people.generators(0, one.subject_id)
    rows = wearable_process.person_recordings(rng, one, path(shock), [(FIRST, 20)], config)
    values = {row[3]: row[4] for row in rows}
    minute = (rows[0][1] - one.start_us) // 60_000_000 + np.arange(len(values["activity"]))
    return minute // 1440, minute % 1440 // 60, values["heart_rate"], values["activity"]


def test_a_shock_shows_from_its_first_day_on_in_heart_rate_activity_and_sleep():
    change = []
    for subject_id in range(1, 16):
        day, hour, heart, activity = recorded(person(subject_id), shock=3)
        after, night = day >= ONSET, (hour >= 1) & (hour < 5)
        moving = [np.mean(activity[night & part] > 0) for part in (~after, after)]
        change.append(
            (
                np.nanmean(heart[after]) - np.nanmean(heart[~after]),
                np.log(activity[after].mean() / activity[~after].mean()),
                moving[1] / moving[0],
            )
        )
    rate, moved, restless = np.mean(change, axis=0)
    assert 6 < rate < 18 and moved < -0.4 and restless > 1.2
    calm = [np.nanmean(h[d >= ONSET]) - np.nanmean(h[d < ONSET]) for d, _, h, _ in [recorded(person(3))]]
    assert abs(calm[0]) < 4


def test_an_admission_is_likelier_during_a_shock_and_most_shocks_pass():
    process = latent_process.HealthProcess()
    zero = np.zeros(2)
    disease = np.array([False, True])
    calm, _ = process.hazards(zero, zero, zero, zero, disease)
    acute, _ = process.hazards(zero, zero, zero, zero + 3, disease)
    assert 3 < acute[0] / calm[0] < 5 and 10 < acute[1] / calm[1] < 30
    assert 1 - np.exp(-20 * acute[1]) < 0.3  # of a person otherwise well, in twenty days


def test_what_wearables_show_means_more_with_heart_disease():
    process = latent_process.HealthProcess()
    zero, disease = np.zeros(2), np.array([False, True])
    low, _ = process.hazards(zero, zero, zero - 1, zero, disease)
    high, _ = process.hazards(zero, zero, zero + 1, zero, disease)
    np.testing.assert_allclose(np.log(high / low), [0.0, 4.8], atol=1e-12)


@pytest.mark.parametrize("information", [1.0, 0.0])
def test_the_drug_lowers_the_heart_rate_and_only_the_ehr_tells(information):
    config = dataclasses.replace(CONFIG, ehr_information=information, wearable_information=information)
    code = ehr_process.CODES.index("ATC//C07AB02")
    told = 0
    for subject_id in range(1, 9):
        with_drug, without = (person(subject_id, beta_blocker=taken) for taken in (True, False))
        (_, _, slow, moved), (_, _, fast, same) = (recorded(one, config=config) for one in (with_drug, without))
        np.testing.assert_array_equal(moved, same)
        assert np.nanmedian(fast - slow) == pytest.approx(12 * information, abs=0.5)
        for one in (with_drug, without):
            _, _, rng, *_ = people.generators(0, subject_id)
            _, codes, _ = ehr_process.person_events(rng, one, path(0), config)
            assert one.beta_blocker or code not in codes
            told += code in codes
    assert told > 0 if information else told == 0
