"""What observers of the simulated cohort could do at best: known cases, and the cohort by default and its controls."""

import argparse
import dataclasses

import numpy as np
import pytest
import synthetic_risks
from sklearn.metrics import roc_auc_score

from ehrwear_jax.config.data import SIMULATED, SimulateConfig
from ehrwear_jax.data.sources.simulator import bounds, views


def test_expected_auroc_is_that_of_all_pairs_and_of_scikit_learn_for_known_outcomes():
    rng = np.random.default_rng(0)
    risk, score = rng.random(200) ** 3, rng.integers(0, 12, 200)
    assert bounds.expected_auroc(risk, risk) == pytest.approx(synthetic_risks.expected_auroc(risk), abs=1e-12)
    outcome = (rng.random(200) < risk).astype(float)
    assert bounds.expected_auroc(score, outcome) == pytest.approx(roc_auc_score(outcome, score), abs=1e-12)
    times = rng.integers(0, 4, 200)
    again = np.repeat(np.arange(200), times)
    expected = roc_auc_score(outcome[again], score[again])
    assert bounds.expected_auroc(score, outcome, times) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("interaction", [0.0, 1.5])
def test_joint_beats_late_fusion_where_and_only_where_modalities_interact(interaction):
    rng = np.random.default_rng(1)
    n = 4000
    static = np.stack([rng.normal(60, 10, n), rng.random(n) < 0.5], axis=1)
    diagnosis, level = rng.random(n) < 0.5, rng.normal(size=n)
    log_odds = -2.5 + 0.7 * level + interaction * level * np.where(diagnosis, 1, -1) + 0.8 * diagnosis
    risk = 1 / (1 + np.exp(-log_odds))
    ehr, wearable = np.column_stack([static, diagnosis]), np.column_stack([static, level])
    person = np.arange(n) // 2
    found = bounds.summarise(bounds.best_scores(ehr, wearable, risk, person), risk, person)
    assert found["oracle"][0] >= found["joint"][0] > found["oracle"][0] - 0.02
    value, low, high = found["joint - late fusion"]
    assert low < value < high
    assert low > 0.05 if interaction else abs(value) < 0.01
    assert found["joint - best single"][1] > 0.02


def test_views_hold_the_state_and_the_records_of_the_same_people():
    config = SimulateConfig(wear_days=9, horizons_days=(30, 180), admission_per_year=0.3, seed=2)
    seen = views.gather(config, 60)
    assert len(seen.person_N) == len(seen.risk_NxH) == len(seen.wearable_NxF) > 100
    assert (seen.ehr_NxF[:, :2] == seen.wearable_NxF[:, :2]).all()
    assert abs(seen.event_NxH.mean(axis=0) - seen.risk_NxH.mean(axis=0)).max() < 0.12
    assert (seen.risk_NxH[:, 1] > seen.risk_NxH[:, 0] - 1e-3).all()  # both are 1 in those who are very ill
    rate = seen.wearable_NxF[:, views.N_LEVELS + 4]  # at night, the two days before
    worn = ~np.isnan(rate)
    assert worn.mean() > 0.8
    _, _, ehr, disease, drug, *_ = seen.state_ehr_NxF.T
    _, _, visible, shock = seen.state_wearable_NxF.T
    design = np.column_stack([np.ones(len(rate)), drug, visible, shock])[worn]
    _, by_drug, by_state, by_shock = np.linalg.lstsq(design, rate[worn], rcond=None)[0]
    assert -17 < by_drug < -7 and 2.5 < by_state < 8 and 2 < by_shock < 9
    few = views.gather(dataclasses.replace(config, wearable_information=0.0), 30, records=False)
    assert (few.state_wearable_NxF[:, 2:] == 0).all() and few.wearable_NxF.shape[1] == views.N_STATIC


def gains(**changes):
    """{difference: (value, low, high)} at 90 days from the state of 1,500 people, by a cheaper horizon."""
    config = SimulateConfig(horizons_days=(90,), years=1.5, **changes)
    options = argparse.Namespace(people=1500, records=0, held_out=300, workers=1)
    return bounds.bounds(config, (90,), options)["state 90d"]


def test_the_default_is_a_positive_control():
    found = gains()
    assert found["joint - late fusion"][0] > 0.03 and found["joint - best single"][0] > 0.06
    assert found["oracle"][0] >= found["joint"][0]


@pytest.mark.slow
@pytest.mark.parametrize("preset", SIMULATED)
def test_the_negative_controls_leave_a_joint_model_nothing_to_gain(preset):
    found = gains(**SIMULATED[preset])
    assert found["joint - late fusion"][0] < 0.01 and found["joint - best single"][0] < 0.01


@pytest.mark.long
def test_what_the_wearable_adds_can_be_learned_from_records():
    """By a table, from as many people as tiny.py trains on, from outcomes; levels alone do not do it."""
    found = bounds.from_records(SimulateConfig(), 1960)
    for name in ("records 90d", "learned 90d"):
        assert found[name]["joint - EHR"][0] > 0.02 and found[name]["joint - EHR"][1] > 0
        assert found[name]["oracle"][0] > found[name]["joint"][0] + 0.02
        assert found[name]["joint"][0] > found[name]["wearable"][0] + 0.02  # each has what the other lacks
    assert found["records 90d"]["joint - levels only"][1] > 0


def test_outcomes_are_learned_from_the_others_and_levels_are_the_first_columns_of_wear():
    """Scores of one half of the people do not change with their own outcomes."""
    rng = np.random.default_rng(2)
    n = 500
    ehr, extra = rng.normal(size=(n, 4)), rng.normal(size=(n, 5))
    wearable = np.column_stack([ehr[:, : views.N_STATIC], extra])
    risk = 1 / (1 + np.exp(-3 * extra[:, 1]))  # the second of five, a level
    event, person = rng.random(n) < risk, np.arange(n)
    score = bounds.best_scores(ehr, wearable, risk, person, event_N=event, n_levels=views.N_LEVELS)
    assert set(score) == {*bounds.ROWS, bounds.LEVELS_ONLY}
    found = bounds.summarise(score, risk, person)
    assert found["joint - EHR"][1] > 0.1 and abs(found["joint - levels only"][0]) < 0.05
    first = np.isin(person, np.random.default_rng(0).permutation(n)[: n // 2])
    changed = bounds.best_scores(ehr, wearable, risk, person, event_N=np.where(first, ~event, event))
    for name in bounds.ROWS[:-1]:
        np.testing.assert_array_equal(changed[name][first], score[name][first])
        assert (changed[name][~first] != score[name][~first]).any()
        assert np.isfinite(score[name]).all()


def test_controls_are_named():
    assert SimulateConfig().control == SimulateConfig(n_subjects=7).control == "positive"
    assert SimulateConfig(shared=0.9).control == "changed"
    for name, changes in SIMULATED.items():
        assert SimulateConfig(**changes).control == name
