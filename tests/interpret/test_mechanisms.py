"""Profiles, rises and event-locked means on data with a known answer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.interpret import mechanisms


def test_profile_is_the_mean_of_what_is_there_and_resamples_patients():
    rng = np.random.default_rng(0)
    value = rng.normal(2.0, 1.0, (80, 3))
    value[:40, 1], value[:, 2] = np.nan, np.nan
    found = mechanisms.profile(value, np.arange(80), n_resamples=2000)
    np.testing.assert_allclose(found.mean_K[:2], [value[:, 0].mean(), value[40:, 1].mean()])
    assert list(found.n_K) == [80, 40, 0] and np.isnan(found.mean_K[2]) and np.isnan(found.lo_K[2])
    expected = 1.96 * value[:, 0].std() / np.sqrt(80)
    assert (found.hi_K[0] - found.lo_K[0]) / 2 == pytest.approx(expected, rel=0.1)
    # ten copies of each patient's row are no more information
    copied = mechanisms.profile(np.repeat(value, 10, axis=0), np.repeat(np.arange(80), 10), n_resamples=2000)
    np.testing.assert_allclose([copied.lo_K[0], copied.hi_K[0]], [found.lo_K[0], found.hi_K[0]], atol=1e-9)


def test_intervals_of_profiles_cover():
    rng = np.random.default_rng(1)
    hits = []
    for seed in range(300):
        level = rng.normal(0, 1, 40)
        rows = np.repeat(level, 3) + rng.normal(0, 0.2, 120)
        found = mechanisms.profile(rows[:, None], np.repeat(np.arange(40), 3), n_resamples=300, seed=seed)
        hits.append(found.lo_K[0] <= 0 <= found.hi_K[0])
    assert 0.89 <= np.mean(hits) <= 0.98


def test_displacement_is_the_distance_from_the_reference_read():
    z = np.zeros((1, 3, 2))
    z[0, 1], z[0, 2] = (3, 4), (6, 8)
    assert mechanisms.displacement(z).tolist() == [[0, 5, 10]]


@given(st.floats(0.1, 10), st.integers(2, 8))
@settings(max_examples=20)
def test_a_jump_rises_at_once_and_a_drift_halfway(size, n):
    offsets = np.arange(1.0, n + 1)
    found = mechanisms.rise(size * np.stack([np.ones(n), offsets / n, 1 - 0.5 * offsets / n, np.zeros(n)]), offsets)
    np.testing.assert_allclose(found.first_share_N[:3], [1.0, 1 / n, 1.0])
    np.testing.assert_allclose(found.half_days_N[:2], [0.5, n / 2])
    assert np.isnan(found.first_share_N[3]) and np.isnan(found.half_days_N[3])
    with pytest.raises(ValueError, match="increasing"):
        mechanisms.rise(np.ones((1, 2)), [0.0, 1.0])


def test_precursors_find_the_period_that_matters_and_no_other():
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(100), 2)
    noise = rng.normal(0, 0.1, (3, 200))
    found = mechanisms.precursors(
        {"near": 0.5 * rng.choice([-1, 1], 200) + noise[0], "far": noise[1], "control": noise[2]}, "control", group
    )
    assert found["near"].mean == pytest.approx(0.5, abs=0.05) and found["near"].p_value < 0.01
    assert found["near"].difference_lo > 0.3 and found["near"].n == 200
    assert found["far"].difference_lo < 0 < found["far"].difference_hi and found["far"].p_value > 0.05
    assert found["control"].difference == 0 and np.isnan(found["control"].p_value)
    gaps = {"a": np.r_[np.nan, noise[0][1:]], "b": noise[1]}
    assert mechanisms.precursors(gaps, "b", group)["b"].n == 199
    with pytest.raises(ValueError, match="all effects"):
        mechanisms.precursors({"a": [np.nan], "b": [1.0]}, "b", [0])


def test_event_locked_means_align_on_the_onset_and_on_the_own_baseline():
    days = np.arange(100.0)
    series = []
    onset = np.array([30.0, 60.0, 99.0])
    for i, start in enumerate(onset):
        value = 10.0 * i + 2.0 * (days >= start)
        value[5] = np.nan
        series.append((days, value))
    edges = [-20.0, -10.0, 0.0, 10.0]
    found = mechanisms.around_event(series, onset, edges, baseline=(-20.0, 0.0))
    np.testing.assert_allclose(found, [[0, 0, 2], [0, 0, 2], [0, 0, 2]], atol=1e-12)
    raw = mechanisms.around_event(series, onset, edges, baseline=None)
    np.testing.assert_allclose(raw[1], [10, 10, 12])
    late = mechanisms.around_event(series[:1], [-5.0], edges, baseline=(-20.0, 0.0))
    assert np.isnan(late).all()
    assert np.isnan(mechanisms.around_event(series[:1], [-5.0], edges, baseline=None)).tolist() == [[True, True, False]]
