"""Sleep and rest from counts against loops and simulated days whose truth is known.

Tolerances on simulated nights: ends of sleep 10 minutes; sleep efficiency 0.03 with two wakings and 0.08 with six (the
rule widens each); resting heart rate 1 beat a minute.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rest_days import simulated_counts, simulated_days, true_efficiency

from ehrwear_jax.data.signals import rest_activity

DAY = 1440


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("wakings", "lost", "tolerance"), [(6, 0.0, 0.08), (6, 0.01, 0.08), (2, 0.0, 0.03)])
def test_sleep_is_recovered_from_counts(seed, wakings, lost, tolerance):
    asleep, ends = simulated_days(seed, wakings=wakings)
    counts = simulated_counts(asleep, seed)
    counts[np.random.default_rng(seed).random(len(counts)) < lost] = np.nan
    found = rest_activity.asleep_counts(counts)
    windows = rest_activity.sleep_windows(found, start_minute=720)
    assert windows.shape == (4, 2)
    assert np.abs(windows - ends).max() <= 10
    efficiency = rest_activity.sleep_efficiency(found, windows)
    np.testing.assert_allclose(efficiency, true_efficiency(asleep, ends), atol=tolerance)


def slow_cole_kripke(counts, scale, cap):
    weights = (106, 54, 58, 76, 230, 74, 67)
    out = []
    for t in range(len(counts)):
        around = [counts[t + k] if 0 <= t + k < len(counts) else math.nan for k in range(-4, 3)]
        score = (
            sum(w * min(c * scale, cap) if c == c else math.nan for w, c in zip(weights, around, strict=True)) / 1000
        )
        out.append(math.nan if score != score else float(score < 1))
    return out


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 60), scale=st.sampled_from([1.0, 0.01]))
def test_cole_kripke_equals_loops(seed, n, scale):
    rng = np.random.default_rng(seed)
    counts = rng.exponential(150, n) * (rng.random(n) < 0.5)
    counts[rng.random(n) < 0.05] = np.nan
    np.testing.assert_array_equal(rest_activity.asleep_counts(counts, scale, 3.0), slow_cole_kripke(counts, scale, 3.0))


def test_main_sleep_joins_over_short_wakings_and_needs_both_ends():
    asleep = np.zeros(DAY)
    asleep[600:660] = 1  # joined to the next: 59 minutes awake
    asleep[719:900] = 1
    asleep[960:1080] = 1  # an hour awake: not joined
    asleep[1200:1210] = 1  # too short to count
    windows = rest_activity.sleep_windows(asleep, 720)
    assert windows.tolist() == [[600, 900]]
    assert rest_activity.sleep_efficiency(asleep, windows)[0] == pytest.approx((60 + 181) / 300)
    assert rest_activity.sleep_windows(asleep[:850], 720).tolist() == [[-1, -1]]  # still asleep at the end
    assert rest_activity.sleep_windows(asleep[610:], 720 + 610).tolist() == [[-1, -1]]  # asleep from the start
    assert rest_activity.sleep_windows(np.zeros(DAY), 720).tolist() == [[-1, -1]]
    assert rest_activity.sleep_windows([], 720).shape == (0, 2)
    assert rest_activity.sleep_windows(asleep, 0).tolist() == [[600, 660], [-1, -1]]  # noon cuts the night in two
    assert np.isnan(rest_activity.sleep_efficiency(asleep, [(-1, -1)])).all()


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 700), persistence=st.sampled_from([0.5, 0.9, 0.99]))
def test_main_sleep_begins_and_ends_with_sleep(seed, n, persistence):
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.random(n) > persistence) % 2
    asleep = np.where(rng.random(n) < 0.1, np.nan, state)
    for first, last in rest_activity.sleep_windows(asleep, 720, step_minutes=2.0):
        if first >= 0:
            assert 0 < first < last < n and asleep[first] == asleep[last - 1] == 1
            assert asleep[first - 1] != 1 and asleep[last] != 1
            (efficiency,) = rest_activity.sleep_efficiency(asleep, [(first, last)])
            known = np.isfinite(asleep[first:last]).mean() >= 0.8
            assert 0 < efficiency <= 1 if known else np.isnan(efficiency)
        else:
            assert last == -1


def test_efficiency_is_of_what_is_known():
    asleep = np.r_[0.0, np.ones(80), np.full(20, np.nan), np.zeros(20), np.ones(10), 0.0]
    assert rest_activity.sleep_efficiency(asleep, [(1, 131)])[0] == pytest.approx(90 / 110)
    asleep[1:8] = np.nan  # 103 of 130 minutes: less than four fifths
    assert np.isnan(rest_activity.sleep_efficiency(asleep, [(1, 131)])[0])


@settings(max_examples=20)
@given(cut=st.integers(1, 4 * DAY), seed=st.integers(0, 100))
def test_nights_that_ended_do_not_know_later_counts(cut, seed):
    asleep, _ = simulated_days(seed)
    counts = simulated_counts(asleep, seed)
    part = rest_activity.asleep_counts(counts[:cut])
    whole = rest_activity.asleep_counts(counts)
    np.testing.assert_array_equal(part[: max(cut - 2, 0)], whole[: max(cut - 2, 0)])
    done = cut // DAY
    a, b = (rest_activity.sleep_windows(v, 722)[:done] for v in (part, whole))  # days end two minutes before the cut
    np.testing.assert_array_equal(a, b)


def test_counts_not_worn_by_hand():
    counts = np.r_[
        np.full(40, 50.0), np.zeros(100), [7.0, 7.0], np.zeros(40), [3.0] * 3, np.zeros(89), 8.0, np.zeros(90)
    ]
    flag = rest_activity.non_wear_counts(counts)
    want = np.zeros(len(counts), bool)
    want[40:182] = True  # the spike of two minutes lies between half hours of nothing
    want[185:] = True  # one minute between long quiet times
    np.testing.assert_array_equal(flag, want)
    assert not rest_activity.non_wear_counts(np.zeros(89)).any() and rest_activity.non_wear_counts(np.zeros(90)).all()
    holed = np.zeros(170)
    holed[85] = np.nan
    assert not rest_activity.non_wear_counts(holed).any()
    near = np.zeros(140)
    near[[50, 75]] = 4.0  # two spikes within half an hour
    assert not rest_activity.non_wear_counts(near).any()
    near = np.zeros(200)
    near[[100, 125]] = 4.0
    np.testing.assert_array_equal(rest_activity.non_wear_counts(near), np.arange(200) < 100)
    np.testing.assert_array_equal(rest_activity.non_wear_counts(near[::-1]), np.arange(200) >= 100)
    assert rest_activity.non_wear_counts([]).shape == (0,)


@pytest.mark.parametrize("seed", range(3))
def test_resting_heart_rate_is_recovered(seed):
    """Heart rate follows exertion with a lag of minutes; the truth is the level without any."""
    rng = np.random.default_rng(seed)
    active = np.repeat(rng.random(288) < 0.4, 10) & (rng.random(2880) < 0.8)
    activity = np.where(active, rng.lognormal(5, 1, 2880), 0.0)
    effort = np.zeros(2880)
    for t in range(1, 2880):
        effort[t] = 0.65 * effort[t - 1] + 0.35 * min(np.log1p(activity[t] / 150), 3.0)
    heart = 58.0 + 30 * effort + 2 * rng.standard_normal(2880)
    heart[rng.random(2880) < 0.1] = np.nan
    activity[rng.random(2880) < 0.02] = np.nan
    assert rest_activity.resting_heart_rate(heart, activity) == pytest.approx(58.0, abs=1.0)
    assert np.nanmedian(heart) > 60.0  # what it would be without the rule
    asleep = np.arange(2880) < 1440
    lower = heart - 6.0 * asleep
    assert rest_activity.resting_heart_rate(lower, activity, asleep_T=asleep) == pytest.approx(58.0, abs=1.0)
    assert rest_activity.resting_heart_rate(heart + 7, activity * 3) == pytest.approx(
        rest_activity.resting_heart_rate(heart, activity) + 7
    )


def test_resting_heart_rate_counts_only_minutes_with_twelve_still_ones_before():
    heart, activity = np.arange(100.0), np.zeros(100)
    activity[[0, 50]] = 1.0
    activity[80] = np.nan
    rest = [t for t in range(100) if t >= 12 and np.all(activity[t - 12 : t + 1] == 0)]
    assert rest_activity.resting_heart_rate(heart, activity) == np.median(rest)
    for n, enough in ((29, False), (30, True)):
        got = rest_activity.resting_heart_rate(np.full(n + 12, 60.0), np.zeros(n + 12))
        assert got == 60.0 if enough else np.isnan(got)
    assert np.isnan(rest_activity.resting_heart_rate([], []))
