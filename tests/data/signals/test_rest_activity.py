"""Rest and activity against loops, other libraries, closed forms, and simulated days whose truth is known.

Tolerances on simulated nights: ends of sleep 10 minutes; sleep efficiency from counts 0.03 with two wakings and 0.08
with six (the rule widens each), from the angle 0.04; resting heart rate 1 beat a minute.
"""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from rest_days import simulated_counts, simulated_days, true_efficiency
from scipy.stats import entropy
from statsmodels.stats.stattools import durbin_watson

from ehrwear_jax.data.signals import rest_activity as ra

DAY = 1440


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("wakings", "lost", "tolerance"), [(6, 0.0, 0.08), (6, 0.01, 0.08), (2, 0.0, 0.03)])
def test_sleep_is_recovered_from_counts(seed, wakings, lost, tolerance):
    asleep, ends = simulated_days(seed, wakings=wakings)
    counts = simulated_counts(asleep, seed)
    counts[np.random.default_rng(seed).random(len(counts)) < lost] = np.nan
    found = ra.asleep_counts(counts)
    windows = ra.sleep_windows(found, start_minute=720)
    assert windows.shape == (4, 2)
    assert np.abs(windows - ends).max() <= 10
    efficiency = ra.sleep_efficiency(found, windows, min_coverage=0.8)
    np.testing.assert_allclose(efficiency, true_efficiency(asleep, ends), atol=tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_sleep_is_recovered_from_the_angle_of_the_arm(seed):
    """Awake the arm turns by tens of degrees; asleep it lies still and turns over about every 20 minutes."""
    asleep, ends = simulated_days(seed, n_days=2, step_minutes=1 / 12)
    rng = np.random.default_rng(seed)
    posture = np.repeat(rng.uniform(-80, 80, len(asleep) // 240), 240)
    angle = np.where(asleep, posture + 0.3 * rng.standard_normal(len(asleep)), rng.uniform(-80, 80, len(asleep)))
    angle[rng.integers(0, len(angle), 20)] = np.nan
    found = ra.asleep_angle(angle)
    assert np.isnan(found).sum() == np.isnan(angle).sum()
    windows = ra.sleep_windows(found, 720, step_minutes=1 / 12)
    assert np.abs(windows - ends).max() <= 10 * 12
    np.testing.assert_allclose(ra.sleep_efficiency(found, windows), true_efficiency(asleep, ends), atol=0.04)


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
    np.testing.assert_array_equal(ra.asleep_counts(counts, scale, 3.0), slow_cole_kripke(counts, scale, 3.0))


def test_angle_rule_by_hand():
    angle = np.r_[np.zeros(60), 40.0, np.full(59, 20.0), 50.0, np.full(30, 51.0), np.nan, np.full(30, 51.0)]
    want = np.r_[np.ones(60), np.zeros(60), np.zeros(31), np.nan, np.zeros(30)]
    np.testing.assert_array_equal(ra.asleep_angle(angle), want)  # 60 epochs are five minutes, 59 and 31 + 30 are not
    np.testing.assert_array_equal(ra.asleep_angle(np.arange(60) * 5.0), 1.0)
    np.testing.assert_array_equal(ra.asleep_angle(np.arange(60) * 5.1), 0.0)


def test_main_sleep_joins_over_short_wakings_and_needs_both_ends():
    asleep = np.zeros(DAY)
    asleep[600:660] = 1  # joined to the next: 59 minutes awake
    asleep[719:900] = 1
    asleep[960:1080] = 1  # an hour awake: not joined
    asleep[1200:1210] = 1  # too short to count
    windows = ra.sleep_windows(asleep, 720)
    assert windows.tolist() == [[600, 900]]
    assert ra.sleep_efficiency(asleep, windows)[0] == pytest.approx((60 + 181) / 300)
    assert ra.sleep_windows(asleep[:850], 720).tolist() == [[-1, -1]]  # still asleep at the end
    assert ra.sleep_windows(asleep[610:], 720 + 610).tolist() == [[-1, -1]]  # asleep from the start
    assert ra.sleep_windows(np.zeros(DAY), 720).tolist() == [[-1, -1]]
    assert ra.sleep_windows([], 720).shape == (0, 2)
    assert ra.sleep_windows(asleep, 0).tolist() == [[600, 660], [-1, -1]]  # noon cuts the night in two
    assert np.isnan(ra.sleep_efficiency(asleep, [(-1, -1)])).all()


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 700), persistence=st.sampled_from([0.5, 0.9, 0.99]))
def test_main_sleep_begins_and_ends_with_sleep(seed, n, persistence):
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.random(n) > persistence) % 2
    asleep = np.where(rng.random(n) < 0.1, np.nan, state)
    for first, last in ra.sleep_windows(asleep, 720, step_minutes=2.0):
        if first >= 0:
            assert 0 < first < last < n and asleep[first] == asleep[last - 1] == 1
            assert asleep[first - 1] != 1 and asleep[last] != 1
            assert 0 < ra.sleep_efficiency(asleep, [(first, last)], min_coverage=0.0)[0] <= 1
        else:
            assert last == -1


def test_efficiency_is_of_what_is_known():
    asleep = np.r_[0.0, np.ones(80), np.full(20, np.nan), np.zeros(20), np.ones(10), 0.0]
    assert ra.sleep_efficiency(asleep, [(1, 131)])[0] == pytest.approx(90 / 110)
    assert np.isnan(ra.sleep_efficiency(asleep, [(1, 131)], min_coverage=0.9)[0])


@settings(max_examples=20)
@given(cut=st.integers(1, 4 * DAY), seed=st.integers(0, 100))
def test_nights_that_ended_do_not_know_later_counts(cut, seed):
    asleep, _ = simulated_days(seed)
    counts = simulated_counts(asleep, seed)
    part = ra.asleep_counts(counts[:cut])
    whole = ra.asleep_counts(counts)
    np.testing.assert_array_equal(part[: max(cut - 2, 0)], whole[: max(cut - 2, 0)])
    done = cut // DAY
    a, b = (ra.sleep_windows(v, 722)[:done] for v in (part, whole))  # days end two minutes before the cut
    np.testing.assert_array_equal(a, b)


def test_acceleration_closed_forms():
    g = np.array(
        [[0, 0, 1.0], [0.6, 0.8, 0], [0, 0, 1.2], [0.3, 0, 0], [np.nan, 0, 1], [0, 0, -1.0], [1, 0, 1], [0, 0, 0]]
    )
    np.testing.assert_allclose(ra.enmo(g), [0, 0, 200, 0, np.nan, 0, 1000 * (math.sqrt(2) - 1), 0], atol=1e-9)
    np.testing.assert_allclose(ra.arm_angle(g), [90, 0, 90, 0, np.nan, -90, 45, np.nan], atol=1e-9)
    np.testing.assert_allclose(ra.arm_angle([[0.0, 1.0, 1.0]]), [45.0])
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    x = np.random.default_rng(1).standard_normal((100, 3))
    np.testing.assert_allclose(ra.enmo(x @ turn), ra.enmo(x), atol=1e-9)  # however it is worn
    np.testing.assert_array_equal(ra.epoch_mean([1.0, 3.0, np.nan, 5.0, np.nan, np.nan, 9.0], 2), [2.0, 5.0, np.nan])
    assert ra.epoch_mean(x, 5).shape == (20, 3)


def test_acceleration_not_worn_is_found_and_sleep_is_not():
    rate, rng = 0.5, np.random.default_rng(0)
    hour = int(3600 * rate)
    x = np.array([0.0, 0.0, 1.0]) + 0.05 * rng.standard_normal((12 * hour, 3))
    x[3 * hour : 6 * hour] = [0.0, 0.0, 1.0] + 0.003 * rng.standard_normal((3 * hour, 3))
    x[8 * hour : 8 * hour + hour // 2] = 0.5  # half an hour is not long enough
    x[10 * hour : 12 * hour] = np.nan
    before = x.copy()
    flag = ra.non_wear_acceleration(x, rate)
    np.testing.assert_array_equal(x, before)
    assert flag.shape == (12 * hour,) and flag.dtype == bool
    first, last = np.flatnonzero(flag)[[0, -1]]
    assert abs(first - 3 * hour) <= hour // 2 and abs(last + 1 - 6 * hour) <= hour // 2 and flag[first : last + 1].all()
    one_axis = x.copy()
    one_axis[3 * hour : 6 * hour, :2] += 0.05 * rng.standard_normal((3 * hour, 2))
    assert not ra.non_wear_acceleration(one_axis, rate).any()
    steady = np.tile([0.0, 0.0, 1.0], (4 * hour, 1))
    spiked, square, short = steady.copy(), steady.copy(), np.full_like(steady, np.nan)
    spiked[::100] += 0.1  # a range of 100 mg, a deviation of 10
    square[::2] += 0.04  # a range of 40 mg, a deviation of 20
    short[hour : hour + hour // 3] = steady[: hour // 3]
    assert ra.non_wear_acceleration(spiked, rate)[hour:-hour].all()
    assert ra.non_wear_acceleration(square, rate)[hour:-hour].all()
    assert not ra.non_wear_acceleration(spiked + square, rate).any()
    assert not ra.non_wear_acceleration(short, rate).any()
    assert ra.non_wear_acceleration(np.zeros((0, 3)), rate).shape == (0,)
    assert not ra.non_wear_acceleration(np.full((hour, 3), np.nan), rate).any()


def test_counts_not_worn_by_hand():
    counts = np.r_[
        np.full(40, 50.0), np.zeros(100), [7.0, 7.0], np.zeros(40), [3.0] * 3, np.zeros(89), 8.0, np.zeros(90)
    ]
    flag = ra.non_wear_counts(counts)
    want = np.zeros(len(counts), bool)
    want[40:182] = True  # the spike of two minutes lies between half hours of nothing
    want[185:] = True  # one minute between long quiet times
    np.testing.assert_array_equal(flag, want)
    assert not ra.non_wear_counts(np.zeros(89)).any() and ra.non_wear_counts(np.zeros(90)).all()
    holed = np.zeros(170)
    holed[85] = np.nan
    assert not ra.non_wear_counts(holed).any()
    near = np.zeros(140)
    near[[50, 75]] = 4.0  # two spikes within half an hour
    assert not ra.non_wear_counts(near).any()
    near = np.zeros(200)
    near[[100, 125]] = 4.0
    np.testing.assert_array_equal(ra.non_wear_counts(near), np.arange(200) < 100)
    np.testing.assert_array_equal(ra.non_wear_counts(near[::-1]), np.arange(200) >= 100)
    assert ra.non_wear_counts([]).shape == (0,)


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
    assert ra.resting_heart_rate(heart, activity) == pytest.approx(58.0, abs=1.0)
    assert np.nanmedian(heart) > 60.0  # what it would be without the rule
    asleep = np.arange(2880) < 1440
    lower = heart - 6.0 * asleep
    assert ra.resting_heart_rate(lower, activity, asleep_T=asleep) == pytest.approx(58.0, abs=1.0)
    assert ra.resting_heart_rate(heart + 7, activity * 3) == pytest.approx(ra.resting_heart_rate(heart, activity) + 7)


def test_resting_heart_rate_counts_only_minutes_with_twelve_still_ones_before():
    heart, activity = np.arange(100.0), np.zeros(100)
    activity[[0, 50]] = 1.0
    activity[80] = np.nan
    rest = [t for t in range(100) if t >= 12 and np.all(activity[t - 12 : t + 1] == 0)]
    assert ra.resting_heart_rate(heart, activity) == np.median(rest)
    assert np.isnan(ra.resting_heart_rate(heart, activity, min_samples=len(rest) + 1))
    assert np.isnan(ra.resting_heart_rate([], []))


def week(seed, days=7, lost=0.0, bins=24):
    rng = np.random.default_rng(seed)
    x = np.exp(np.sin(2 * np.pi * np.arange(bins) / bins) + 0.5 * rng.standard_normal((days, bins)))
    x[rng.random(x.shape) < lost] = np.nan
    return x


def test_bins_of_the_day_equal_loops():
    rng = np.random.default_rng(0)
    values = rng.random(700)
    values[rng.random(700) < 0.4] = np.nan
    got = ra.by_day(values, start_minute=605, step_minutes=5)
    assert got.shape == (3, 24)
    for day, hour in np.ndindex(3, 24):
        inside = [v for i, v in enumerate(values) if (605 + 5 * i) // 60 == 24 * day + hour and np.isfinite(v)]
        assert got[day, hour] == pytest.approx(np.mean(inside) if len(inside) >= 6 else np.nan, nan_ok=True)
    assert ra.by_day([], 0).shape == (0, 24)
    for bad in ({"start_minute": 1440}, {"start_minute": 3, "step_minutes": 5}, {"start_minute": 0, "bin_minutes": 7}):
        with pytest.raises(ValueError, match=r"daily grid|do not divide"):
            ra.by_day(values, **bad)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), lost=st.sampled_from([0.0, 0.2]), scale=st.sampled_from([0.01, 50.0]))
def test_stability_and_variability_agree_with_statsmodels_and_ignore_the_unit(seed, lost, scale):
    """IS is the share of variance that a regression on the hour explains; IV is von Neumann's ratio."""
    x = week(seed, days=10, lost=lost)
    seen = np.isfinite(x)
    got = ra.interdaily_stability(x)
    hour = np.broadcast_to(np.arange(24), x.shape)[seen]
    assert got == pytest.approx(sm.OLS(x[seen], np.eye(24)[hour]).fit().rsquared, rel=1e-9) and 0 <= got <= 1
    variability = ra.intradaily_variability(x)
    if not lost:
        assert variability == pytest.approx(durbin_watson((x - x.mean()).ravel()) * x.size / (x.size - 1), rel=1e-9)
    for measure, want in ((ra.interdaily_stability, got), (ra.intradaily_variability, variability)):
        assert measure(scale * x + 3.0) == pytest.approx(want, rel=1e-7)
    assert ra.relative_amplitude(scale * x) == pytest.approx(ra.relative_amplitude(x), rel=1e-9, nan_ok=True)
    assert ra.activity_entropy(scale * x) == pytest.approx(ra.activity_entropy(x), rel=1e-9, nan_ok=True)
    assert ra.interdaily_stability(np.r_[x, np.full((1, 24), np.nan)]) == got


def test_closed_forms_of_the_rhythm():
    wave = np.tile(1 + np.cos(2 * np.pi * np.arange(24) / 24), (20, 1))
    assert ra.interdaily_stability(wave) == pytest.approx(1.0)
    want = 2 * (1 - math.cos(2 * math.pi / 24))  # the mean squared step of a wave over its variance
    assert ra.intradaily_variability(wave) == pytest.approx(want, rel=0.01)
    noise = np.random.default_rng(0).standard_normal((400, 24))
    assert ra.intradaily_variability(noise) == pytest.approx(2.0, abs=0.1)
    assert ra.interdaily_stability(noise) == pytest.approx(1 / 400, abs=0.002)
    flat, spike = np.full((3, 24), 0.1), np.zeros((3, 24))
    spike[:, 5] = 7.0
    assert ra.activity_entropy(flat) == pytest.approx(1.0) and ra.activity_entropy(spike) == 0.0
    assert ra.relative_amplitude(flat) == pytest.approx(0.0) and ra.relative_amplitude(spike) == 1.0
    for measure in (ra.interdaily_stability, ra.intradaily_variability):
        assert np.isnan(measure(flat))


def test_variability_uses_only_steps_between_hours_that_were_seen():
    x = np.random.default_rng(0).random((3, 24))
    x[0, 5] = x[2, 0] = np.nan
    flat = x.ravel()
    steps = [b - a for a, b in zip(flat, flat[1:], strict=False) if np.isfinite(a) and np.isfinite(b)]
    assert ra.intradaily_variability(x) == pytest.approx(np.mean(np.square(steps)) / np.nanvar(flat))
    assert len(steps) == 67
    assert np.isnan(ra.intradaily_variability(x, min_pairs=68))


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), bins=st.sampled_from([24, 48, 288]), turn=st.integers(0, 287))
def test_ten_and_five_hours_equal_loops_and_turn_with_the_clock(seed, bins, turn):
    x = week(seed, bins=bins)
    got = ra.most_and_least_active(x)
    profile, per_hour = x.mean(axis=0), bins // 24
    for name, hours, best in (("m10", 10, max), ("l5", 5, min)):
        means = [np.mean([profile[(s + k) % bins] for k in range(hours * per_hour)]) for s in range(bins)]
        assert got[name] == pytest.approx(best(means))
        assert means[round(got[f"{name}_start_hour"] * per_hour)] == pytest.approx(best(means))
    turned = ra.most_and_least_active(np.roll(x, turn, axis=1))
    assert turned["m10"] == pytest.approx(got["m10"]) and turned["l5"] == pytest.approx(got["l5"])
    assert turned["l5_start_hour"] == pytest.approx((got["l5_start_hour"] + turn / per_hour) % 24)
    assert ra.relative_amplitude(x) == pytest.approx((got["m10"] - got["l5"]) / (got["m10"] + got["l5"]))
    assert ra.activity_entropy(x) == pytest.approx(entropy(profile) / np.log(bins))


def test_too_few_days_give_no_number():
    x = week(0)
    x[:, 3] = np.nan
    x[0, 3] = 1.0
    for measure in (ra.interdaily_stability, ra.relative_amplitude):
        assert np.isnan(measure(x)) and np.isfinite(measure(x, min_days=1)) and np.isnan(measure(np.zeros((0, 24))))
    assert np.isfinite(ra.activity_entropy(x)) and np.isnan(ra.activity_entropy(x, min_days=2))
    assert np.isnan(ra.activity_entropy(np.zeros((3, 24)))) and np.isnan(ra.relative_amplitude(np.zeros((3, 24))))
    assert all(np.isnan(v) for v in ra.most_and_least_active(x).values())
    assert np.isnan(ra.intradaily_variability(np.zeros((0, 24))))
    with pytest.raises(ValueError, match="no whole number an hour"):
        ra.most_and_least_active(np.ones((2, 36)))
