"""The shape of pulse waves by hand and by scipy, and waves that have none."""

import numpy as np
import pytest
import scipy.stats

from ehrwear_jax.models.papagei import morphology as lib
from ehrwear_jax.models.papagei.morphology import Morphology, morphology


def pulse(rate_hz=125.0, seconds=10.0, beat_s=0.9):
    """Beats that rise fast to a peak, with a notch and a second, lower wave."""
    phase = np.arange(round(rate_hz * seconds)) / rate_hz / beat_s % 1.0
    return np.exp(-(((phase - 0.2) / 0.08) ** 2)) + 0.5 * np.exp(-(((phase - 0.46) / 0.1) ** 2)) - 0.2 * phase


def test_svri_by_hand():
    assert lib.svri(np.array([0.0, 1.0, 4.0, 3.0, 1.0])) == pytest.approx(((4 + 3 + 1) / 12) / (1 / 8))
    assert np.isnan(lib.svri(np.array([4.0, 1.0, 0.0]))), "nothing is before the peak"
    assert np.isnan(lib.svri(np.ones(5))) and np.isnan(lib.svri(np.array([0.0, 0.0, 1.0])))
    wave = np.random.default_rng(0).normal(size=300)
    assert lib.svri(3 * wave + 7) == pytest.approx(lib.svri(wave))


def test_ipa_is_the_ratio_of_areas_about_the_first_notch():
    wave = pulse()
    z = (wave - wave.mean()) / wave.std()
    near = [(i, [z[k] for k in range(max(i - 25, 0), i + 26) if k != i]) for i in range(1, 400)]
    first, later = [i for i, others in near if z[i] < min(others)][:2]
    assert 110 <= later - first <= 115, "a beat of 0.9 s"
    notch = next(i for i in range(first + 1, later) if z[i] < min(z[i - 1], z[i + 1]))
    area = [sum((z[i] + z[i + 1]) / 2 for i in range(a, b - 1)) for a, b in ((first, notch), (notch, later))]
    assert lib.ipa(wave, 125.0) == pytest.approx(area[0] / area[1], rel=1e-9)
    assert lib.ipa(5 * wave - 2, 125.0) == pytest.approx(lib.ipa(wave, 125.0))
    assert np.isnan(lib.ipa(np.sin(np.arange(1250) / 20), 125.0)), "a sine has no notch"
    assert np.isnan(lib.ipa(np.ones(1250), 125.0)) and np.isnan(lib.ipa(np.arange(50.0), 125.0))


def test_skewness_is_that_of_scipy_over_chunks():
    wave = np.random.default_rng(1).gamma(2.0, size=1300)
    want = np.mean([scipy.stats.skew(wave[:625]), scipy.stats.skew(wave[625:1250])])
    assert lib.sqi(wave, 125.0) == pytest.approx(want)
    assert lib.sqi(wave[:300], 125.0) == pytest.approx(scipy.stats.skew(wave[:300]))
    assert np.isnan(lib.sqi(np.ones(1250), 125.0))


def test_what_is_plausible():
    assert morphology(pulse(), 125.0).is_plausible
    good = Morphology(1.0, 2.0, 0.5)
    assert good.is_plausible and good._replace(ipa=np.nan).is_plausible, "no notch is no fault"
    for change in ({"svri": 0.0}, {"svri": 2.0}, {"svri": np.nan}, {"ipa": 10.0}, {"ipa": -11.0}, {"sqi": 3.0},
                   {"sqi": np.nan}):  # fmt: skip
        assert not good._replace(**change).is_plausible


def test_gaps_are_bridged():
    wave = pulse()
    gaps = wave.copy()
    gaps[300:304] = np.nan
    for a, b in zip(morphology(gaps, 125.0), morphology(wave, 125.0), strict=True):
        assert a == pytest.approx(b, rel=0.02)
    assert all(np.isnan(x) for x in morphology(np.full(1250, np.nan), 125.0))


def test_bins_are_equal_and_the_last_one_holds_its_end():
    """The original's edges put the highest value into a ninth."""
    assert [lib.svri_bin(x, 8) for x in (0.01, 0.24, 0.26, 1.0, 1.99, 2.0)] == [0, 0, 1, 4, 7, 7]
