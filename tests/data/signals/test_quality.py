"""Artefacts and quality of pulse waves: closed forms, other libraries, where the rules begin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pulse_wave import harmonic_wave

from ehrwear_jax.data.signals import quality


@pytest.mark.parametrize("rate", [1 / 60, 1.0, 7.0])
def test_a_rate_that_cannot_carry_the_band_gives_nothing(rate):
    assert not quality.artefacts(np.ones(100), rate).any()
    assert np.isnan(quality.pulse_snr(np.arange(100.0), rate)).all()


def test_empty_and_missing_input():
    for n in (0, 300):
        x = np.full(n, np.nan)
        bad = quality.artefacts(x, 25.0)
        assert bad.shape == (n,) and not bad.any()
        assert np.isnan(quality.segment_quality(x, 25.0, bad)).all()


def test_artefacts_are_flagged_beside_the_values():
    x = harmonic_wave(25.0, 120, noise=0.02)
    clean = x.copy()
    x[50] = 40.0  # outside the range
    x[400:430] = 1.25  # flat for more than a second
    x[1000:1200] = 0.5 * np.random.default_rng(1).standard_normal(200)  # noise of the pulse's power
    x[2000:2200] *= 8.0  # moved: the fundamental stays
    x[2600:2610] = np.nan
    x.flags.writeable = False
    bad = quality.artefacts(x, 25.0, low=-20.0, high=20.0)
    for first, last in ((50, 51), (400, 430), (1000, 1200), (2000, 2200)):
        assert bad[first:last].all()
    assert not bad[2600:2610].any()
    assert bad.sum() == 1 + 30 + 200 + 200  # no other
    assert not quality.artefacts(clean, 25.0).any()
    assert quality.artefacts([29.0, 30.0, np.nan, 201.0], 1 / 60, 30.0, 200.0).tolist() == [True, False, False, True]


def test_without_the_pulse_only_range_and_flat_runs_are_judged():
    x = np.random.default_rng(0).standard_normal(2000)
    x[100], x[300:330] = 9.0, 0.5
    bad = quality.artefacts(x, 25.0, high=8.0, judge_pulse=False)
    assert np.flatnonzero(bad).tolist() == [100, *range(300, 330)]
    assert quality.artefacts(x, 25.0, high=8.0).mean() > 0.9


def test_white_noise_is_not_a_pulse_and_a_pulse_in_it_is_one():
    noise = np.random.default_rng(0).standard_normal(25 * 4000)
    pulse, rest = quality.pulse_snr(noise, 25.0)
    assert 10 * np.log10(pulse / rest).max() < 1.5  # of 500 segments
    assert quality.artefacts(noise, 25.0).all()
    pulse, rest = quality.pulse_snr(harmonic_wave(25.0, 400, noise=0.1), 25.0)
    assert 10 * np.log10(pulse / rest).min() > 12.0
    # the mean squares are those of the waves: 1, 0.4 and 0.15 across, and the share of the noise below 8 Hz
    np.testing.assert_allclose(pulse, (1 + 0.4**2 + 0.15**2) / 2, rtol=0.1)


def test_where_the_rules_for_artefacts_and_noise_begin():
    x = harmonic_wave(25.0, 64)
    x[100:125], x[300:324], x[600:800] = 0.3, 0.3, 2.5 * x[600:800]  # a second; almost; a segment moved a little
    assert np.flatnonzero(quality.artefacts(x, 25.0)).tolist() == list(range(100, 125))
    x[800:840] = np.nan  # a fifth of a segment
    assert np.flatnonzero(np.isnan(quality.pulse_snr(x, 25.0)[0])).tolist() == [4]
    fast = np.cos(2 * np.pi * 20 * np.arange(3200) / 100)  # beyond the band of the noise
    assert np.all(np.divide(*quality.pulse_snr(harmonic_wave(100.0, 32) + fast, 100.0)) > 100)


@settings(max_examples=25)
@given(scale=st.sampled_from([1e-3, -3.0, 1e4]), offset=st.sampled_from([0.0, 10.0]), seed=st.integers(0, 10**6))
def test_flags_and_quality_do_not_depend_on_unit_or_offset(scale, offset, seed):
    x = harmonic_wave(25.0, 64, noise=0.6, seed=seed)
    x[700:760] = np.nan
    bad = quality.artefacts(x, 25.0)
    judged = quality.segment_quality(x, 25.0, bad)
    assert judged.shape == (8,) and ((judged >= 0) & (judged <= 1) | np.isnan(judged)).all()
    np.testing.assert_array_equal(quality.artefacts(scale * (x + offset), 25.0), bad)
    np.testing.assert_allclose(quality.segment_quality(scale * (x + offset), 25.0, bad), judged, rtol=1e-6)


def test_quality_falls_with_noise_and_with_holes_and_orders_as_neurokit_does():
    levels = (0.0, 0.2, 0.5, 1.0, 2.0)
    ours = [
        quality.segment_quality(harmonic_wave(25.0, 80, noise=n), 25.0, np.zeros(2000, bool)).mean() for n in levels
    ]
    assert ours[0] > 0.98 and np.all(np.diff(ours) < -0.01) and ours[-1] < 0.5
    waves = [np.where(np.arange(200) < n, np.nan, harmonic_wave(25.0, 8)) for n in (0, 10)]
    whole, holed = (quality.segment_quality(x, 25.0, np.arange(200) >= 150)[0] for x in waves)
    assert 0.74 < whole <= 0.75 and 0.6 < holed <= 0.7
    np.testing.assert_array_equal(quality.segment_quality(np.arange(960.0), 1 / 60, np.zeros(960, bool), 8 * 3600), 1.0)
    nk = pytest.importorskip("neurokit2")
    clean = [nk.ppg_clean(harmonic_wave(25.0, 80, noise=n), sampling_rate=25) for n in levels]
    theirs = [np.nanmean(nk.ppg_quality(x, sampling_rate=25, method="templatematch")) for x in clean]
    assert np.argsort(theirs).tolist() == np.argsort(ours).tolist()


@pytest.mark.parametrize(("rate", "n", "long"), [(1 / 60, 10, 0), (1 / 60, 11, 1), (1.0, 600, 0), (1.0, 601, 1)])
def test_gaps_are_missing_when_longer_than_ten_minutes(rate, n, long):
    x = np.ones(3 * n)
    x[n : 2 * n] = np.nan
    np.testing.assert_array_equal(quality.long_gaps(x, rate), np.isnan(x) & bool(long))
