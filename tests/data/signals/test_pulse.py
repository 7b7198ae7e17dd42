"""Beats and their variability against neurokit2, closed forms, and simulated waves whose beats are known.

Tolerances on simulated waves: without noise, rate 0.5 %, RMSSD and SDNN 2 % or 1 ms; with noise, a movement and gaps,
rate 1 %, RMSSD and SDNN 10 %. Beats so irregular that the 20 % rule takes true ones out lose up to 8 % of RMSSD.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pulse_wave import simulated, simulated_ecg, truth

from ehrwear_jax.data.signals import pulse
from ehrwear_jax.data.signals.filters import band_pass


@pytest.mark.parametrize("rate", [25.0, 50.0, 100.0])
@pytest.mark.parametrize(("mean_s", "sd_s"), [(0.85, 0.03), (1.2, 0.03), (0.6, 0.012)])
def test_rate_and_variability_are_recovered_from_a_clean_wave(rate, mean_s, sd_s):
    wave, beat_s = simulated(rate, 300, mean_s, sd_s, seed=1)
    got, want = pulse.summarise([(rate, wave)]), truth(beat_s)
    assert got["heart_rate_bpm"] == pytest.approx(want["heart_rate_bpm"], rel=0.005)
    assert got["sdnn_ms"] == pytest.approx(want["sdnn_ms"], rel=0.02, abs=1.0)
    assert got["rmssd_ms"] == pytest.approx(want["rmssd_ms"], rel=0.02, abs=1.0)
    assert abs(got["n_intervals"] - (len(beat_s) - 1)) <= 3


@pytest.mark.parametrize(("mean_s", "sd_s"), [(1.1, 0.06), (0.85, 0.06)])
def test_very_irregular_beats_lose_what_the_rule_takes_out(mean_s, sd_s):
    wave, beat_s = simulated(50.0, 300, mean_s, sd_s, seed=1)
    found_s, _ = pulse.find_beats(band_pass(wave, 50.0), 50.0)
    strict, lenient = (pulse.hrv(x)["rmssd_ms"] for x in (pulse.beat_intervals(found_s), 1000 * np.diff(found_s)))
    want = truth(beat_s)["rmssd_ms"]
    assert 0.92 * want < strict < 0.99 * want
    assert lenient == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize(("rate", "noise"), [(25.0, 0.1), (100.0, 0.2)])
def test_rate_and_variability_are_recovered_from_a_noisy_wave_with_gaps(rate, noise):
    wave, beat_s = simulated(rate, 300, noise=noise, seed=2)
    rng = np.random.default_rng(0)
    for begin in rng.uniform(10, 280, 6):
        wave[int(begin * rate) : int((begin + 4) * rate)] = np.nan
    moved = slice(int(160 * rate), int(164 * rate))
    wave[moved] += np.cumsum(rng.standard_normal(int(4 * rate))) * 3 / np.sqrt(rate)
    got, want = pulse.summarise([(rate, wave)]), truth(beat_s)
    assert got["heart_rate_bpm"] == pytest.approx(want["heart_rate_bpm"], rel=0.01)
    assert got["sdnn_ms"] == pytest.approx(want["sdnn_ms"], rel=0.1)
    assert got["rmssd_ms"] == pytest.approx(want["rmssd_ms"], rel=0.1)
    assert 0.6 * len(beat_s) < got["n_intervals"] < 0.95 * len(beat_s)
    assert got["n_differences"] <= got["n_intervals"] - 6


@pytest.mark.parametrize("rate", [100.0, 250.0])
@pytest.mark.parametrize(("noise", "gap", "share"), [(0.0, False, 0.02), (0.05, False, 0.05), (0.05, True, 0.10)])
def test_an_electrocardiogram_gives_its_r_peaks_also_with_noise_and_gaps(rate, noise, gap, share):
    ecg, beat_s = simulated_ecg(rate, 180, noise=noise, seed=2)
    if gap:
        ecg[int(60 * rate) : int(75 * rate)] = np.nan
        ecg[int(120 * rate) : int(124 * rate)] = 0.0  # a loose electrode
    for sign in (1, -1):  # electrodes swapped
        got, want = pulse.summarise([(rate, sign * ecg)], wave=pulse.ECG), truth(beat_s)
        assert got["heart_rate_bpm"] == pytest.approx(want["heart_rate_bpm"], rel=0.01)
        assert got["rmssd_ms"] == pytest.approx(want["rmssd_ms"], rel=share, abs=1.0)
        assert got["sdnn_ms"] == pytest.approx(want["sdnn_ms"], rel=max(share, 0.02), abs=1.0)
        assert got["quality"] > (0.85 if gap else 0.97)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_r_peaks_agree_with_neurokit(noise):
    neurokit = pytest.importorskip("neurokit2")
    ecg, beat_s = simulated_ecg(250.0, 60, noise=noise, seed=1)
    _, found = neurokit.ecg_peaks(neurokit.ecg_clean(ecg, sampling_rate=250), sampling_rate=250)
    theirs = np.asarray(found["ECG_R_Peaks"]) / 250
    mine, _ = pulse.find_beats(band_pass(ecg, 250.0, *pulse.ECG.band_hz), 250.0, wave=pulse.ECG)
    nearest = np.abs(theirs[:, None] - mine[None]).min(axis=1)
    assert len(mine) == pytest.approx(len(theirs), abs=1) and np.median(nearest) < 0.006
    assert (np.abs(mine[:, None] - beat_s[None]).min(axis=1) < 0.006).mean() > 0.98


def test_noise_is_no_electrocardiogram():
    noise = np.random.default_rng(0).standard_normal(250 * 120)
    got = pulse.summarise([(250.0, noise)], wave=pulse.ECG)
    assert got["quality"] < 0.5 and np.isnan([got["heart_rate_bpm"], got["rmssd_ms"]]).all()
    too_slow = pulse.summarise([(25.0, simulated_ecg(25.0, 60)[0])], wave=pulse.ECG)
    assert too_slow["quality"] == 0 and np.isnan(too_slow["heart_rate_bpm"])


def test_a_parabola_finds_peaks_between_the_samples():
    wave, beat_s = simulated(25.0, 120)
    found_s, _ = pulse.find_beats(band_pass(wave, 25.0), 25.0)
    off = np.abs(found_s[:, None] - beat_s).min(axis=1)
    off_sampled = np.abs(np.round(found_s * 25)[:, None] / 25 - beat_s).min(axis=1)
    assert np.ptp(off) < 0.02 and off.max() < 0.04  # the filter moves all of them alike
    assert off.std() < 0.5 * off_sampled.std()


@pytest.mark.parametrize("rate", [50, 100])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2])
def test_beats_agree_with_neurokit(rate, noise):
    """All but those at the ends, to less than a sample, on the same filtered wave."""
    nk = pytest.importorskip("neurokit2")
    wave, _ = simulated(rate, 120, noise=noise, seed=3)
    filtered = band_pass(wave, rate, 0.5, 8.0)
    theirs = nk.ppg_findpeaks(filtered, sampling_rate=rate, method="elgendi")["PPG_Peaks"] / rate
    ours, stretch = pulse.find_beats(filtered, rate)
    assert (stretch == 0).all()
    ours, theirs = (b[(b > 2) & (b < 118)] for b in (ours, theirs))
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(ours, theirs, atol=1 / rate)


def test_beats_of_neurokits_own_simulation_have_its_rate():
    nk = pytest.importorskip("neurokit2")
    for rate in (55, 70, 110):
        wave = nk.ppg_simulate(duration=60, sampling_rate=100, heart_rate=rate, random_state=1)
        got = pulse.summarise([(100.0, wave)])["heart_rate_bpm"]
        clean = nk.ppg_clean(wave, sampling_rate=100)
        peaks = nk.ppg_findpeaks(clean, sampling_rate=100)["PPG_Peaks"]
        assert got == pytest.approx(6000 / np.diff(peaks).mean(), rel=0.01) == pytest.approx(rate, rel=0.03)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 1e4]), shift=st.integers(1, 500))
def test_beats_do_not_depend_on_unit_and_move_with_the_wave(seed, scale, shift):
    wave, _ = simulated(25.0, 40, noise=0.1, seed=seed)
    filtered = band_pass(wave, 25.0)
    beat_s, stretch = pulse.find_beats(filtered, 25.0)
    np.testing.assert_allclose(pulse.find_beats(scale * filtered, 25.0)[0], beat_s, rtol=1e-9)
    moved_s, moved_stretch = pulse.find_beats(np.concatenate([np.full(shift, np.nan), filtered]), 25.0)
    np.testing.assert_allclose(moved_s, beat_s + shift / 25.0, rtol=1e-9)
    np.testing.assert_array_equal(moved_stretch, stretch)


def test_nothing_to_find_gives_empty_arrays_and_nan():
    for x in (np.zeros(0), np.full(100, np.nan), np.zeros(500), np.r_[np.nan, 1.0, np.nan]):
        beat_s, stretch = pulse.find_beats(x, 25.0)
        assert beat_s.shape == stretch.shape == (0,)
    assert pulse.beat_intervals([]).shape == pulse.beat_intervals([1.0]).shape == (0,)
    got = pulse.summarise([(25.0, np.zeros(0))])
    assert np.isnan([got[k] for k in ("heart_rate_bpm", "quality", "sdnn_ms", "rmssd_ms", "pnn50_percent")]).all()
    assert got["n_intervals"] == got["n_differences"] == 0


def test_no_beat_at_an_edge_and_none_too_soon():
    t = np.arange(1001) / 100
    slow_s, _ = pulse.find_beats(np.cos(2 * np.pi * t), 100.0)  # peaks at both ends
    np.testing.assert_allclose(slow_s, np.arange(1, 10), atol=1e-6)
    for hz, apart_s in ((3, 1 / 3), (4, 1 / 2)):  # a beat every quarter of a second is too soon
        fast_s, _ = pulse.find_beats(np.cos(2 * np.pi * hz * t), 100.0)
        assert np.diff(fast_s).min() == pytest.approx(apart_s, abs=0.01)


@pytest.mark.parametrize(("seconds", "kept_s", "enough"), [(60, 24.0, False), (60, 40.0, True), (6, 6.0, False)])
def test_too_little_signal_gives_no_number(seconds, kept_s, enough):
    """Less than half of the time, or fewer than ten intervals."""
    wave, _ = simulated(25.0, seconds)
    wave[int(kept_s * 25) :] = np.nan
    got = pulse.summarise([(25.0, wave)])
    assert (np.isfinite([got[k] for k in ("heart_rate_bpm", "sdnn_ms", "rmssd_ms", "pnn50_percent")]) == enough).all()
    assert got["n_intervals"] >= 3


def test_an_interval_exists_only_between_neighbours_of_one_stretch():
    beat_s = np.r_[np.arange(10) * 0.8, 8.0 + np.arange(10) * 0.9]
    stretch = np.repeat([0, 1], 10)
    got = pulse.beat_intervals(beat_s, stretch)
    np.testing.assert_allclose(got, np.r_[np.full(9, 800.0), np.nan, np.full(9, 900.0)])
    assert pulse.hrv(got)["rmssd_ms"] == pytest.approx(0.0, abs=1e-9)  # the step of 100 ms is no difference
    assert pulse.hrv(got)["n_differences"] == 16


def test_ectopic_and_missed_beats_take_their_intervals_out():
    beat_s = np.arange(40) * 0.8
    early = beat_s.copy()
    early[20] -= 0.3  # intervals of 500 and 1100 ms
    missed = np.delete(beat_s, 20)
    twice = np.insert(beat_s, 20, beat_s[20] - 0.4)
    for beats, gone in ((early, [19, 20]), (missed, [19]), (twice, [19, 20])):
        got = pulse.beat_intervals(beats)
        assert np.flatnonzero(np.isnan(got)).tolist() == gone
        measures = pulse.hrv(got)
        assert measures["rmssd_ms"] == pytest.approx(0.0, abs=1e-9) and measures["sdnn_ms"] == pytest.approx(
            0.0, abs=1e-9
        )
        assert measures["n_differences"] == len(got) - 1 - len(gone) - 1
    assert np.isnan(pulse.beat_intervals(np.arange(20) * 0.25)).all()  # 240 beats a minute
    assert np.isnan(pulse.beat_intervals(np.arange(20) * 2.5)).all()


def test_local_median_ignores_what_is_missing():
    interval = np.random.default_rng(0).normal(800, 120, 200)
    beat_s = np.r_[0, np.cumsum(interval)] / 1000
    stretch = np.cumsum(np.random.default_rng(1).random(201) < 0.3)
    kept = np.where((np.diff(stretch) == 0) & (interval >= 300), interval, np.nan)
    want = kept.copy()
    for i in range(200):
        around = [v for v in kept[max(i - 2, 0) : i + 3] if np.isfinite(v)]
        if not around or not abs(kept[i] - np.median(around)) <= 0.2 * np.median(around):
            want[i] = np.nan
    np.testing.assert_allclose(pulse.beat_intervals(beat_s, stretch), want, rtol=1e-9)


def test_closed_forms():
    """Alternating intervals m - d, m + d: every difference is 2 d."""
    interval = 800.0 + 30.0 * (-1.0) ** np.arange(100)
    got = pulse.hrv(interval)
    assert got["rmssd_ms"] == pytest.approx(60.0) and got["pnn50_percent"] == 100.0
    assert got["sdnn_ms"] == pytest.approx(30.0 * np.sqrt(100 / 99))
    assert pulse.heart_rate(interval) == pytest.approx(75.0)
    assert pulse.hrv(800.0 + 25.0 * (-1.0) ** np.arange(100))["pnn50_percent"] == 0.0  # 50 ms is not more than 50


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), lost=st.sampled_from([0.0, 0.05, 0.5]), scale=st.sampled_from([0.5, 2.0]))
def test_variability_shifts_and_scales_as_a_spread_and_agrees_with_neurokit(seed, lost, scale):
    nk = pytest.importorskip("neurokit2")
    rng = np.random.default_rng(seed)
    interval = rng.normal(850, 60, 120)
    time_s = np.cumsum(interval) / 1000
    keep = rng.random(120) >= lost
    holed = np.where(keep, interval, np.nan)
    got = pulse.hrv(holed)
    theirs = nk.hrv_time({"RRI": interval[keep], "RRI_Time": time_s[keep]})
    assert got["rmssd_ms"] == pytest.approx(theirs["HRV_RMSSD"][0], rel=1e-9)
    assert got["sdnn_ms"] == pytest.approx(theirs["HRV_SDNN"][0], rel=1e-9)
    assert got["n_intervals"] == keep.sum() and got["n_differences"] == (keep[1:] & keep[:-1]).sum()
    share = got["pnn50_percent"] * got["n_differences"] / (got["n_differences"] + 1)  # neurokit2 divides by one more
    assert share == pytest.approx(theirs["HRV_pNN50"][0], rel=1e-9)
    moved, scaled = pulse.hrv(holed + 100.0), pulse.hrv(holed * scale)
    for name in ("sdnn_ms", "rmssd_ms"):
        assert moved[name] == pytest.approx(got[name]) and scaled[name] == pytest.approx(scale * got[name])
    with_nothing = pulse.hrv(np.r_[np.nan, holed, np.nan])
    assert with_nothing == pytest.approx(got, nan_ok=True)


def test_batches_equal_rows_and_few_intervals_give_nan():
    interval = np.random.default_rng(0).normal(850, 60, (3, 4, 50))
    interval[np.random.default_rng(1).random(interval.shape) < 0.3] = np.nan
    interval[0, 0, 9:] = np.nan
    got = pulse.hrv(interval)
    rate = pulse.heart_rate(interval)
    for at in np.ndindex(3, 4):
        row = pulse.hrv(interval[at])
        assert {k: v[at] for k, v in got.items()} == pytest.approx(row, nan_ok=True)
        assert rate[at] == pytest.approx(pulse.heart_rate(interval[at]), nan_ok=True)
    assert np.isnan(rate[0, 0]) and np.isnan(got["sdnn_ms"][0, 0]) and np.isfinite(rate[0, 1])
    lone = pulse.hrv([800.0, np.nan, 900.0], min_intervals=1)
    assert np.isfinite(lone["sdnn_ms"]) and np.isnan(lone["rmssd_ms"]) and np.isnan(lone["pnn50_percent"])
    assert np.isnan(pulse.hrv([800.0], min_intervals=0)["sdnn_ms"])
