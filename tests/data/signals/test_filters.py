"""The band-pass against the closed form of its gain and neurokit2, and how it treats stretches."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pulse_wave import harmonic_wave

from ehrwear_jax.data.signals.filters import band_pass, holds_band


@pytest.mark.parametrize("rate", [10.0, 25.0, 100.0])
@pytest.mark.parametrize("hz", [0.2, 0.5, 1.0, 2.5, 3.5, 4.5])
def test_a_sine_keeps_its_phase_and_has_the_gain_of_two_passes(rate, hz):
    """The bilinear transform of a Butterworth band-pass: gain 1 / (1 + u^(2 order)) for two passes."""
    t = np.arange(int(120 * rate)) / rate
    low, high, at = (math.tan(math.pi * f / rate) for f in (0.5, 3.5, hz))
    gain = 1 / (1 + ((at**2 - low * high) / (at * (high - low))) ** 4)
    got = band_pass(5.0 + np.sin(2 * np.pi * hz * t), rate)
    middle = slice(int(20 * rate), -int(20 * rate))
    np.testing.assert_allclose(got[middle], gain * np.sin(2 * np.pi * hz * t)[middle], atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_band_pass_agrees_with_neurokit(noise):
    nk = pytest.importorskip("neurokit2")
    x = harmonic_wave(50.0, 60, noise=noise)
    theirs = nk.signal_filter(x, sampling_rate=50, lowcut=0.5, highcut=3.5, method="butterworth", order=2)
    np.testing.assert_allclose(band_pass(x, 50.0)[500:-500], theirs[500:-500], atol=1e-4)  # away from the ends


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([-2.0, 1e-3, 1e4]), offset=st.sampled_from([0.0, 7.0, -1e3]))
def test_band_pass_is_linear_and_blind_to_an_offset(seed, scale, offset):
    x = harmonic_wave(25.0, 20, noise=1.0, seed=seed)
    want = scale * band_pass(x, 25.0)
    np.testing.assert_allclose(band_pass(scale * x + offset, 25.0), want, atol=1e-6 * (abs(scale) + abs(offset)))


def test_every_stretch_is_filtered_as_if_it_were_alone():
    x = harmonic_wave(25.0, 60, noise=0.2)
    x[400] = x[900:930] = np.nan
    x[1000] = np.inf
    got = band_pass(x, 25.0)
    for first, last in ((0, 400), (401, 900), (1001, 1500)):
        np.testing.assert_array_equal(got[first:last], band_pass(x[first:last], 25.0))
    assert np.isnan(got[[400, *range(900, 930), 1000]]).all()
    assert np.isnan(got[930:1000]).all()  # 2.8 s: less than two periods of 0.5 Hz


@pytest.mark.parametrize("rate", [1 / 60, 1.0, 7.0])
def test_a_rate_that_cannot_carry_the_band_gives_nothing(rate):
    assert not holds_band(rate) and np.isnan(band_pass(np.arange(1000.0), rate)).all()


def test_empty_and_missing_input():
    for n in (0, 300):
        assert band_pass(np.full(n, np.nan), 25.0).shape == (n,) and np.isnan(band_pass(np.full(n, np.nan), 25.0)).all()
