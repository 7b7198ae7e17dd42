"""Movement, posture, non-wear and sleep from acceleration against closed forms and simulated nights.

Tolerances on simulated nights: ends of sleep 10 minutes; sleep efficiency 0.04.
"""

import math

import numpy as np
import pytest
from rest_days import simulated_days, true_efficiency

from ehrwear_jax.data.signals import accelerometry, rest_activity


@pytest.mark.parametrize("seed", range(3))
def test_sleep_is_recovered_from_the_angle_of_the_arm(seed):
    """Awake the arm turns by tens of degrees; asleep it lies still and turns over about every 20 minutes."""
    asleep, ends = simulated_days(seed, n_days=2, step_minutes=1 / 12)
    rng = np.random.default_rng(seed)
    posture = np.repeat(rng.uniform(-80, 80, len(asleep) // 240), 240)
    angle = np.where(asleep, posture + 0.3 * rng.standard_normal(len(asleep)), rng.uniform(-80, 80, len(asleep)))
    angle[rng.integers(0, len(angle), 20)] = np.nan
    found = accelerometry.asleep_angle(angle)
    assert np.isnan(found).sum() == np.isnan(angle).sum()
    windows = rest_activity.sleep_windows(found, 720, step_minutes=1 / 12)
    assert np.abs(windows - ends).max() <= 10 * 12
    np.testing.assert_allclose(rest_activity.sleep_efficiency(found, windows), true_efficiency(asleep, ends), atol=0.04)


def test_angle_rule_by_hand():
    angle = np.r_[np.zeros(60), 40.0, np.full(59, 20.0), 50.0, np.full(30, 51.0), np.nan, np.full(30, 51.0)]
    want = np.r_[np.ones(60), np.zeros(60), np.zeros(31), np.nan, np.zeros(30)]
    np.testing.assert_array_equal(
        accelerometry.asleep_angle(angle), want
    )  # 60 epochs are five minutes, 59 and 31 + 30 are not
    np.testing.assert_array_equal(accelerometry.asleep_angle(np.arange(60) * 5.0), 1.0)
    np.testing.assert_array_equal(accelerometry.asleep_angle(np.arange(60) * 5.1), 0.0)


def test_acceleration_closed_forms():
    g = np.array(
        [[0, 0, 1.0], [0.6, 0.8, 0], [0, 0, 1.2], [0.3, 0, 0], [np.nan, 0, 1], [0, 0, -1.0], [1, 0, 1], [0, 0, 0]]
    )
    np.testing.assert_allclose(
        accelerometry.enmo(g), [0, 0, 200, 0, np.nan, 0, 1000 * (math.sqrt(2) - 1), 0], atol=1e-9
    )
    np.testing.assert_allclose(accelerometry.arm_angle(g), [90, 0, 90, 0, np.nan, -90, 45, np.nan], atol=1e-9)
    np.testing.assert_allclose(accelerometry.arm_angle([[0.0, 1.0, 1.0]]), [45.0])
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    x = np.random.default_rng(1).standard_normal((100, 3))
    np.testing.assert_allclose(accelerometry.enmo(x @ turn), accelerometry.enmo(x), atol=1e-9)  # however it is worn


def test_acceleration_not_worn_is_found_and_sleep_is_not():
    rate, rng = 0.5, np.random.default_rng(0)
    hour = int(3600 * rate)
    x = np.array([0.0, 0.0, 1.0]) + 0.05 * rng.standard_normal((12 * hour, 3))
    x[3 * hour : 6 * hour] = [0.0, 0.0, 1.0] + 0.003 * rng.standard_normal((3 * hour, 3))
    x[8 * hour : 8 * hour + hour // 2] = 0.5  # half an hour is not long enough
    x[10 * hour : 12 * hour] = np.nan
    before = x.copy()
    flag = accelerometry.non_wear_acceleration(x, rate)
    np.testing.assert_array_equal(x, before)
    assert flag.shape == (12 * hour,) and flag.dtype == bool
    first, last = np.flatnonzero(flag)[[0, -1]]
    assert abs(first - 3 * hour) <= hour // 2 and abs(last + 1 - 6 * hour) <= hour // 2 and flag[first : last + 1].all()
    one_axis = x.copy()
    one_axis[3 * hour : 6 * hour, :2] += 0.05 * rng.standard_normal((3 * hour, 2))
    assert not accelerometry.non_wear_acceleration(one_axis, rate).any()
    steady = np.tile([0.0, 0.0, 1.0], (4 * hour, 1))
    spiked, square, short = steady.copy(), steady.copy(), np.full_like(steady, np.nan)
    spiked[::100] += 0.1  # a range of 100 mg, a deviation of 10
    square[::2] += 0.04  # a range of 40 mg, a deviation of 20
    short[hour : hour + hour // 3] = steady[: hour // 3]
    assert accelerometry.non_wear_acceleration(spiked, rate)[hour:-hour].all()
    assert accelerometry.non_wear_acceleration(square, rate)[hour:-hour].all()
    assert not accelerometry.non_wear_acceleration(spiked + square, rate).any()
    assert not accelerometry.non_wear_acceleration(short, rate).any()
    assert accelerometry.non_wear_acceleration(np.zeros((0, 3)), rate).shape == (0,)
    assert not accelerometry.non_wear_acceleration(np.full((hour, 3), np.nan), rate).any()
