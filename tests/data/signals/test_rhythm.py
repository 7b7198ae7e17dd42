"""The daily rhythm against loops, other libraries and closed forms."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from statsmodels.stats.stattools import durbin_watson

from ehrwear_jax.data.signals import rhythm


def week(seed, days=7, lost=0.0, bins=24):
    rng = np.random.default_rng(seed)
    x = np.exp(np.sin(2 * np.pi * np.arange(bins) / bins) + 0.5 * rng.standard_normal((days, bins)))
    x[rng.random(x.shape) < lost] = np.nan
    return x


def test_bins_of_the_day_equal_loops():
    rng = np.random.default_rng(0)
    values = rng.random(700)
    values[rng.random(700) < 0.4] = np.nan
    got = rhythm.by_day(values, start_minute=605, step_minutes=5)
    assert got.shape == (3, 24)
    for day, hour in np.ndindex(3, 24):
        inside = [v for i, v in enumerate(values) if (605 + 5 * i) // 60 == 24 * day + hour and np.isfinite(v)]
        assert got[day, hour] == pytest.approx(np.mean(inside) if len(inside) >= 6 else np.nan, nan_ok=True)
    assert rhythm.by_day([], 0).shape == (0, 24)
    for bad in ({"start_minute": 1440}, {"start_minute": 3, "step_minutes": 5}, {"start_minute": 0, "step_minutes": 7}):
        with pytest.raises(ValueError, match=r"daily grid|do not divide"):
            rhythm.by_day(values, **bad)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), lost=st.sampled_from([0.0, 0.2]), scale=st.sampled_from([0.01, 50.0]))
def test_stability_and_variability_agree_with_statsmodels_and_ignore_the_unit(seed, lost, scale):
    """IS is the share of variance that a regression on the hour explains; IV is von Neumann's ratio."""
    x = week(seed, days=10, lost=lost)
    seen = np.isfinite(x)
    got = rhythm.interdaily_stability(x)
    hour = np.broadcast_to(np.arange(24), x.shape)[seen]
    assert got == pytest.approx(sm.OLS(x[seen], np.eye(24)[hour]).fit().rsquared, rel=1e-9) and 0 <= got <= 1
    variability = rhythm.intradaily_variability(x)
    if not lost:
        assert variability == pytest.approx(durbin_watson((x - x.mean()).ravel()) * x.size / (x.size - 1), rel=1e-9)
    for measure, want in ((rhythm.interdaily_stability, got), (rhythm.intradaily_variability, variability)):
        assert measure(scale * x + 3.0) == pytest.approx(want, rel=1e-7)
    assert rhythm.relative_amplitude(scale * x) == pytest.approx(rhythm.relative_amplitude(x), rel=1e-9, nan_ok=True)
    assert rhythm.activity_entropy(scale * x) == pytest.approx(rhythm.activity_entropy(x), rel=1e-9, nan_ok=True)
    assert rhythm.interdaily_stability(np.r_[x, np.full((1, 24), np.nan)]) == got


def test_closed_forms_of_the_rhythm():
    wave = np.tile(1 + np.cos(2 * np.pi * np.arange(24) / 24), (20, 1))
    assert rhythm.interdaily_stability(wave) == pytest.approx(1.0)
    want = 2 * (1 - math.cos(2 * math.pi / 24))  # the mean squared step of a wave over its variance
    assert rhythm.intradaily_variability(wave) == pytest.approx(want, rel=0.01)
    noise = np.random.default_rng(0).standard_normal((400, 24))
    assert rhythm.intradaily_variability(noise) == pytest.approx(2.0, abs=0.1)
    assert rhythm.interdaily_stability(noise) == pytest.approx(1 / 400, abs=0.002)
    flat, spike = np.full((3, 24), 0.1), np.zeros((3, 24))
    spike[:, 5] = 7.0
    assert rhythm.activity_entropy(flat) == pytest.approx(1.0) and rhythm.activity_entropy(spike) == 0.0
    assert rhythm.relative_amplitude(flat) == pytest.approx(0.0) and rhythm.relative_amplitude(spike) == 1.0
    for measure in (rhythm.interdaily_stability, rhythm.intradaily_variability):
        assert np.isnan(measure(flat))


def test_variability_uses_only_steps_between_hours_that_were_seen():
    x = np.random.default_rng(0).random((3, 24))
    x[0, 5] = x[2, 0] = np.nan
    few = x.copy()
    few[1, 1:] = few[2] = np.nan
    flat = x.ravel()
    steps = [b - a for a, b in zip(flat, flat[1:], strict=False) if np.isfinite(a) and np.isfinite(b)]
    assert rhythm.intradaily_variability(x) == pytest.approx(np.mean(np.square(steps)) / np.nanvar(flat))
    assert len(steps) == 67
    assert np.isfinite(few).sum() == 24 and np.isnan(rhythm.intradaily_variability(few))  # 22 steps
    few[1, 1:3] = x[1, 1:3]
    assert np.isfinite(rhythm.intradaily_variability(few))  # 24


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), bins=st.sampled_from([24, 48, 288]), turn=st.integers(0, 287))
def test_ten_and_five_hours_equal_loops_and_turn_with_the_clock(seed, bins, turn):
    x = week(seed, bins=bins)
    got = rhythm.most_and_least_active(x)
    profile, per_hour = x.mean(axis=0), bins // 24
    for name, hours, best in (("m10", 10, max), ("l5", 5, min)):
        means = [np.mean([profile[(s + k) % bins] for k in range(hours * per_hour)]) for s in range(bins)]
        assert got[name] == pytest.approx(best(means))
        assert means[round(got[f"{name}_start_hour"] * per_hour)] == pytest.approx(best(means))
    turned = rhythm.most_and_least_active(np.roll(x, turn, axis=1))
    assert turned["m10"] == pytest.approx(got["m10"]) and turned["l5"] == pytest.approx(got["l5"])
    assert turned["l5_start_hour"] == pytest.approx((got["l5_start_hour"] + turn / per_hour) % 24)
    assert rhythm.relative_amplitude(x) == pytest.approx((got["m10"] - got["l5"]) / (got["m10"] + got["l5"]))
    assert rhythm.activity_entropy(x) == pytest.approx(entropy(profile) / np.log(bins))


def test_too_few_days_give_no_number():
    x = week(0)
    x[:, 3] = np.nan
    never = x.copy()
    x[0, 3] = 1.0
    twice = x.copy()
    twice[1, 3] = 1.0
    for measure in (rhythm.interdaily_stability, rhythm.relative_amplitude):
        assert np.isnan(measure(x)) and np.isfinite(measure(twice)) and np.isnan(measure(np.zeros((0, 24))))
    assert np.isfinite(rhythm.activity_entropy(x)) and np.isnan(rhythm.activity_entropy(never))
    assert np.isnan(rhythm.activity_entropy(np.zeros((3, 24)))) and np.isnan(
        rhythm.relative_amplitude(np.zeros((3, 24)))
    )
    assert all(np.isnan(v) for v in rhythm.most_and_least_active(x).values())
    assert np.isnan(rhythm.intradaily_variability(np.zeros((0, 24))))
    with pytest.raises(ValueError, match="no whole number an hour"):
        rhythm.most_and_least_active(np.ones((2, 36)))
