"""Windows against loops over single samples, cleaning against closed forms and other libraries, what a window knows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
from statsmodels.regression.linear_model import burg as statsmodels_burg

from ehrwear_jax.data.signals import signal

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
SPEC = signal.WindowSpec(("hr", "steps"), window_hours=6, step_minutes=30, min_coverage=0.0)
PERIODS_S = (60.0, 90.0, 7.3, 1800.0, 2000.0, 2400.0, 3600.0, 21600.0, 86400.0, 604800.0)


def edges(start, rate, i):
    return start + round(i * 1e6 / rate), start + round((i + 1) * 1e6 / rate)


def slow_once(rows):
    """[(start, rate, channel, values, device)] without what an earlier stretch of the same source has, by loops."""
    kept = []
    for start, rate, channel, values, device in sorted(rows, key=lambda row: row[0]):
        values = np.array(values, np.float64)
        for i in range(len(values)):
            begin, end = edges(start, rate, i)
            for other_start, other_rate, other_channel, other_values, other_device in kept:
                if (channel, device, rate) != (other_channel, other_device, other_rate):
                    continue
                near = int(((begin + end) // 2 - other_start) * rate / 1e6)
                for j in range(max(near - 2, 0), min(near + 3, len(other_values))):
                    other_begin, other_end = edges(other_start, other_rate, j)
                    if other_begin <= (begin + end) // 2 < other_end <= end and math.isfinite(other_values[j]):
                        values[i] = math.nan
        kept.append((start, rate, channel, values, device))
    return kept


def slow_windows(rows, spec, limits):
    """{window end: [L, C] float64} by loops over samples and steps."""
    step_us, window_us = spec.step_minutes * MINUTE_US, spec.window_hours * HOUR_US
    cells = {}
    for start, rate, channel, values, device in slow_once([(*row, None)[:5] for row in rows]):
        if channel not in spec.channels:
            continue
        low, high = limits.get(channel, (None, None))
        for i, value in enumerate(values):
            if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
                continue
            begin, end = edges(start, rate, i)
            window = (end - 1) // window_us  # the window in which the sample is complete
            at = max(begin, window * window_us)
            last = end - 1 if 1e6 / rate > step_us else at
            source = (device is None, device or "", -rate)
            for step in range(at // step_us, last // step_us + 1):
                mine = cells.setdefault((window, spec.channels.index(channel)), {}).setdefault(source, {})
                total, count = mine.get(step, (0.0, 0))
                mine[step] = (total + value, count + 1)
    out = {}
    for (window, channel), sources in cells.items():
        values = out.setdefault((window + 1) * window_us, np.full((spec.steps, len(spec.channels)), np.nan))
        for source in sorted(sources, key=lambda s: (-len(sources[s]), s)):
            for step, (total, count) in sources[source].items():
                if np.isnan(values[step - window * spec.steps, channel]):
                    values[step - window * spec.steps, channel] = total / count
    return {end: x for end, x in sorted(out.items()) if np.isfinite(x).mean(axis=0).max() >= spec.min_coverage}


@st.composite
def stretches(draw):
    """Recorded rows of one person on both sides of the epoch, at any phase of the clock."""
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        period = draw(st.sampled_from(PERIODS_S))
        start = draw(st.integers(-3 * 24 * HOUR_US, 3 * 24 * HOUR_US))
        if draw(st.booleans()):
            start = start // (15 * MINUTE_US) * 15 * MINUTE_US
        rng = np.random.default_rng(draw(st.integers(0, 10**6)))
        n = int(min(draw(st.integers(1, 400)), 3 * 86400 / period + 2))
        values = rng.normal(70, 30, n)
        values[rng.random(n) < 0.2] = np.nan
        channel, device = (
            draw(st.sampled_from(("hr", "steps", "other"))),
            draw(st.sampled_from((None, "ring", "watch"))),
        )
        rows.append((start, 1.0 / period, channel, values.astype(np.float32), device))
    return rows


LIMITS = {"hr": (30.0, 110.0), "steps": (None, 100.0)}


@settings(max_examples=100)
@given(rows=stretches(), min_coverage=st.sampled_from([0.0, 0.1, 0.5]))
def test_windows_equal_loops_over_samples(rows, min_coverage):
    spec = signal.WindowSpec(SPEC.channels, 6, 30, min_coverage)
    end_M, values_MxLxC = signal.window_subject(rows, spec, LIMITS)
    want = slow_windows(rows, spec, LIMITS)
    assert end_M.tolist() == list(want) and end_M.dtype == np.int64
    assert values_MxLxC.dtype == np.float32 and values_MxLxC.shape[1:] == (12, 2)
    for got, expected in zip(values_MxLxC, want.values(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@settings(max_examples=100)
@given(rows=stretches(), cut=st.integers(-3 * 24 * HOUR_US, 4 * 24 * HOUR_US))
def test_windows_that_ended_do_not_know_what_was_recorded_later(rows, cut):
    """Only samples that were complete at the cut are kept; no bit of a window that ended by then changes."""
    whole_end, whole = signal.window_subject(rows, SPEC, LIMITS)
    known = []
    for start, rate, channel, values, device in rows:
        n = sum(start + round((i + 1) * 1e6 / rate) <= cut for i in range(len(values)))
        known.append((start, rate, channel, values[:n], device))
    part_end, part = signal.window_subject(known, SPEC, LIMITS)
    np.testing.assert_array_equal(part_end[part_end <= cut], whole_end[whole_end <= cut])
    np.testing.assert_array_equal(part[part_end <= cut], whole[whole_end <= cut])


def test_a_long_sample_stands_only_in_the_window_in_which_it_ends():
    day = 24 * HOUR_US
    end_M, values = signal.window_subject([(0, 1 / (7 * 86400), "hr", [3.0])], SPEC, {})
    assert end_M.tolist() == [7 * day] and np.all(values[0, :, 0] == 3.0)
    # a sample from 05:00 to 07:00 is known at 07:00: the steps 06:00-07:00 of the second window
    end_M, values = signal.window_subject([(5 * HOUR_US, 1 / 7200, "hr", [3.0])], SPEC, {})
    assert end_M.tolist() == [12 * HOUR_US]
    np.testing.assert_array_equal(np.isfinite(values[0, :, 0]), [True] * 2 + [False] * 10)
    # one that ends exactly with the window belongs to it
    end_M, _ = signal.window_subject([(5 * HOUR_US, 1 / 3600, "hr", [3.0])], SPEC, {})
    assert end_M.tolist() == [6 * HOUR_US]


def test_a_short_sample_across_the_end_of_a_window_is_known_in_the_next():
    begin = 6 * HOUR_US - 30_000_000  # 05:59:30, one minute long
    end_M, values = signal.window_subject([(begin, 1 / 60, "hr", [3.0])], SPEC, {})
    assert end_M.tolist() == [12 * HOUR_US]
    np.testing.assert_array_equal(np.nonzero(np.isfinite(values[0, :, 0]))[0], [0])


def test_short_samples_are_averaged_by_their_number_also_across_rows():
    rows = [(0, 1 / 60, "hr", [1.0, 2.0, 3.0]), (10 * MINUTE_US, 1 / 60, "hr", [10.0]), (0, 1 / 60, "other", [9.0])]
    _, values = signal.window_subject(rows, SPEC, {})
    assert values[0, 0, 0] == 4.0 and np.isnan(values[0, 1:]).all() and np.isnan(values[0, :, 1]).all()


def test_limits_are_inclusive_and_each_may_be_absent():
    rows = [(0, 1 / 1800, "hr", [29.9, 30.0, 200.0, 200.1])]
    for limit, want in (
        ((30.0, 200.0), [False, True, True, False]),
        ((None, 200.0), [True, True, True, False]),
        ((30.0, None), [False, True, True, True]),
        ((None, None), [True] * 4),
    ):
        _, values = signal.window_subject(rows, SPEC, {"hr": limit})
        np.testing.assert_array_equal(np.isfinite(values[0, :4, 0]), want)


@pytest.mark.parametrize(("n", "kept"), [(2, False), (3, True)])
def test_one_channel_with_the_coverage_makes_a_window(n, kept):
    spec = signal.WindowSpec(("hr", "steps"), 6, 30, min_coverage=0.25)
    end_M, values = signal.window_subject([(0, 1 / 1800, "steps", np.ones(n))], spec, {})
    assert len(end_M) == len(values) == int(kept)


def test_nothing_recorded_gives_no_window():
    for rows in ([], [(0, 1 / 60, "hr", [np.nan, np.nan])], [(0, 1.0, "other", [1.0])], [(0, 1.0, "hr", [])]):
        end_M, values = signal.window_subject(rows, SPEC, {})
        assert end_M.shape == (0,) and values.shape == (0, 12, 2)


@pytest.mark.parametrize(("hours", "minutes"), [(5, 5), (6, 7), (48, 5)])
def test_windows_that_do_not_divide_the_day_are_refused(hours, minutes):
    with pytest.raises(ValueError, match="do not divide a day"):
        signal.WindowSpec(("hr",), hours, minutes)


def slow_summary(x):
    seen = [float(v) for v in x if math.isfinite(v)]
    steps = [abs(float(b) - float(a)) for a, b in zip(x, x[1:], strict=False) if math.isfinite(a) and math.isfinite(b)]
    mean = sum(seen) / len(seen) if seen else math.nan
    return {
        "mean": mean,
        "std": math.sqrt(sum((v - mean) ** 2 for v in seen) / len(seen)) if len(seen) > 1 else math.nan,
        "mean_abs_step": sum(steps) / len(steps) if steps else math.nan,
        "min": min(seen, default=math.nan),
        "max": max(seen, default=math.nan),
        "coverage": len(seen) / len(x),
    }


@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.3, 0.8, 1.0]), level=st.sampled_from([0.0, -5.0, 1e4]))
def test_summaries_equal_loops(seed, share, level):
    rng = np.random.default_rng(seed)
    values = rng.normal(level, 3.0, (3, 7, 2)).astype(np.float32)
    values[rng.random(values.shape) < share] = np.nan
    got = signal.summaries(values)
    for m in range(3):
        for c in range(2):
            for name, want in slow_summary(values[m, :, c]).items():
                assert got[name].dtype == np.float32 and got[name].shape == (3, 2)
                np.testing.assert_allclose(got[name][m, c], want, rtol=1e-5, atol=1e-6, err_msg=name)


def test_summaries_of_no_windows_are_empty():
    assert {k: v.shape for k, v in signal.summaries(np.zeros((0, 4, 3), np.float32)).items()} == dict.fromkeys(
        ("mean", "std", "mean_abs_step", "min", "max", "coverage"), (0, 3)
    )


def pulse_wave(rate, seconds, hz=1.2, noise=0.0, seed=0):
    """A pulse with two harmonics, breathing underneath, and white noise."""
    t = np.arange(int(rate * seconds)) / rate
    wave = sum(a * np.cos(2 * np.pi * k * hz * t) for k, a in ((1, 1.0), (2, 0.4), (3, 0.15)))
    return wave + 0.3 * np.sin(2 * np.pi * 0.2 * t) + noise * np.random.default_rng(seed).standard_normal(len(t))


def test_runs_and_complete_samples_equal_loops():
    assert signal.runs([1, 1, 0, 1, 0, 0, 1]).tolist() == [[0, 2], [3, 4], [6, 7]]
    assert signal.runs([]).shape == signal.runs([0, 0]).shape == (0, 2)
    for start, rate in ((0, 1 / 60), (-5 * HOUR_US + 17, 25.0), (3, 7.3)):
        for end in (start, start + 1, start + 40_000, start + 10 * MINUTE_US):
            want = sum(start + round((i + 1) * 1e6 / rate) <= end for i in range(200))
            assert signal.complete_by(start, rate, 200, end) == want


@pytest.mark.parametrize("rate", [10.0, 25.0, 100.0])
@pytest.mark.parametrize("hz", [0.2, 0.5, 1.0, 2.5, 3.5, 4.5])
def test_a_sine_keeps_its_phase_and_has_the_gain_of_two_passes(rate, hz):
    """The bilinear transform of a Butterworth band-pass: gain 1 / (1 + u^(2 order)) for two passes."""
    t = np.arange(int(120 * rate)) / rate
    low, high, at = (math.tan(math.pi * f / rate) for f in (0.5, 3.5, hz))
    gain = 1 / (1 + ((at**2 - low * high) / (at * (high - low))) ** 4)
    got = signal.band_pass(5.0 + np.sin(2 * np.pi * hz * t), rate)
    middle = slice(int(20 * rate), -int(20 * rate))
    np.testing.assert_allclose(got[middle], gain * np.sin(2 * np.pi * hz * t)[middle], atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_band_pass_agrees_with_neurokit(noise):
    nk = pytest.importorskip("neurokit2")
    x = pulse_wave(50.0, 60, noise=noise)
    theirs = nk.signal_filter(x, sampling_rate=50, lowcut=0.5, highcut=3.5, method="butterworth", order=2)
    np.testing.assert_allclose(signal.band_pass(x, 50.0)[500:-500], theirs[500:-500], atol=1e-4)  # away from the ends


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([-2.0, 1e-3, 1e4]), offset=st.sampled_from([0.0, 7.0, -1e3]))
def test_band_pass_is_linear_and_blind_to_an_offset(seed, scale, offset):
    x = pulse_wave(25.0, 20, noise=1.0, seed=seed)
    want = scale * signal.band_pass(x, 25.0)
    np.testing.assert_allclose(signal.band_pass(scale * x + offset, 25.0), want, atol=1e-6 * (abs(scale) + abs(offset)))


def test_every_stretch_is_filtered_as_if_it_were_alone():
    x = pulse_wave(25.0, 60, noise=0.2)
    x[400] = x[900:930] = np.nan
    x[1000] = np.inf
    got = signal.band_pass(x, 25.0)
    for first, last in ((0, 400), (401, 900), (1001, 1500)):
        np.testing.assert_array_equal(got[first:last], signal.band_pass(x[first:last], 25.0))
    assert np.isnan(got[[400, *range(900, 930), 1000]]).all()
    assert np.isnan(got[930:1000]).all()  # 2.8 s: less than two periods of 0.5 Hz


@pytest.mark.parametrize("rate", [1 / 60, 1.0, 7.0])
def test_a_rate_that_cannot_carry_the_band_gives_nothing(rate):
    assert not signal.holds_band(rate) and np.isnan(signal.band_pass(np.arange(1000.0), rate)).all()
    assert not signal.artefacts(np.ones(100), rate).any()
    assert np.isnan(signal.pulse_snr(np.arange(100.0), rate)).all()


def test_empty_and_missing_input():
    for n in (0, 300):
        x = np.full(n, np.nan)
        assert signal.band_pass(x, 25.0).shape == (n,) and np.isnan(signal.band_pass(x, 25.0)).all()
        bad = signal.artefacts(x, 25.0)
        assert bad.shape == (n,) and not bad.any()
        assert np.isnan(signal.segment_quality(x, 25.0, bad)).all()
        filled, imputed = signal.impute_ar(x, 25.0)
        assert np.isnan(filled).all() and not imputed.any()


@settings(max_examples=25)
@given(cut=st.integers(1, 1499), more=st.integers(1, 400), seed=st.integers(0, 10**6))
def test_cleaning_before_a_window_end_does_not_know_what_follows(cut, more, seed):
    """Changing the samples at and after the end (to others, or to nothing) changes no bit before it."""
    x = pulse_wave(25.0, 60, noise=0.2, seed=seed)
    rng = np.random.default_rng(seed)
    x[rng.integers(0, 1500, 3)] = np.nan
    other = x.copy()
    other[cut:] = np.where(rng.random(1500 - cut) < 0.1, np.nan, rng.normal(0, 50, 1500 - cut))
    ends = [cut, min(cut + more, 1500)]
    a, b = (signal.band_pass(v, 25.0, ends=ends)[:cut] for v in (x, other))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, signal.band_pass(x[:cut], 25.0))


def test_windows_of_a_long_stretch_remember_enough_of_what_was_before():
    x = pulse_wave(25.0, 400, noise=0.5)
    got = signal.band_pass(x, 25.0, ends=[2500, 5000, 7500])
    for end in (2500, 5000, 7500, 10000):
        np.testing.assert_allclose(got[end - 2500 : end], signal.band_pass(x[:end], 25.0)[-2500:], atol=1e-9)


def test_artefacts_are_flagged_beside_the_values():
    x = pulse_wave(25.0, 120, noise=0.02)
    clean = x.copy()
    x[50] = 40.0  # outside the range
    x[400:430] = 1.25  # flat for more than a second
    x[1000:1200] = 0.5 * np.random.default_rng(1).standard_normal(200)  # noise of the pulse's power
    x[2000:2200] *= 8.0  # moved: the fundamental stays
    x[2600:2610] = np.nan
    x.flags.writeable = False
    bad = signal.artefacts(x, 25.0, low=-20.0, high=20.0)
    for first, last in ((50, 51), (400, 430), (1000, 1200), (2000, 2200)):
        assert bad[first:last].all()
    assert not bad[2600:2610].any()
    assert bad.sum() == 1 + 30 + 200 + 200  # no other
    assert not signal.artefacts(clean, 25.0).any()
    assert signal.artefacts([29.0, 30.0, np.nan, 201.0], 1 / 60, 30.0, 200.0).tolist() == [True, False, False, True]


def test_white_noise_is_not_a_pulse_and_a_pulse_in_it_is_one():
    noise = np.random.default_rng(0).standard_normal(25 * 4000)
    pulse, rest = signal.pulse_snr(noise, 25.0)
    assert 10 * np.log10(pulse / rest).max() < 1.5  # of 500 segments
    assert signal.artefacts(noise, 25.0).all()
    pulse, rest = signal.pulse_snr(pulse_wave(25.0, 400, noise=0.1), 25.0)
    assert 10 * np.log10(pulse / rest).min() > 12.0
    # the mean squares are those of the waves: 1, 0.4 and 0.15 across, and the share of the noise below 8 Hz
    np.testing.assert_allclose(pulse, (1 + 0.4**2 + 0.15**2) / 2, rtol=0.1)


def test_where_the_rules_for_artefacts_and_noise_begin():
    x = pulse_wave(25.0, 64)
    x[100:125], x[300:324], x[600:800] = 0.3, 0.3, 2.5 * x[600:800]  # a second; almost; a segment moved a little
    assert np.flatnonzero(signal.artefacts(x, 25.0, min_snr_db=-np.inf)).tolist() == list(range(100, 125))
    x[800:840] = np.nan  # a fifth of a segment
    assert np.flatnonzero(np.isnan(signal.pulse_snr(x, 25.0)[0])).tolist() == [4]
    fast = np.cos(2 * np.pi * 20 * np.arange(3200) / 100)  # beyond the band of the noise
    assert np.all(np.divide(*signal.pulse_snr(pulse_wave(100.0, 32) + fast, 100.0)) > 100)


@settings(max_examples=25)
@given(scale=st.sampled_from([1e-3, -3.0, 1e4]), offset=st.sampled_from([0.0, 10.0]), seed=st.integers(0, 10**6))
def test_flags_and_quality_do_not_depend_on_unit_or_offset(scale, offset, seed):
    x = pulse_wave(25.0, 64, noise=0.6, seed=seed)
    x[700:760] = np.nan
    bad = signal.artefacts(x, 25.0)
    quality = signal.segment_quality(x, 25.0, bad)
    assert quality.shape == (8,) and ((quality >= 0) & (quality <= 1) | np.isnan(quality)).all()
    np.testing.assert_array_equal(signal.artefacts(scale * (x + offset), 25.0), bad)
    np.testing.assert_allclose(signal.segment_quality(scale * (x + offset), 25.0, bad), quality, rtol=1e-6)


def test_quality_falls_with_noise_and_with_holes_and_orders_as_neurokit_does():
    levels = (0.0, 0.2, 0.5, 1.0, 2.0)
    ours = [signal.segment_quality(pulse_wave(25.0, 80, noise=n), 25.0, np.zeros(2000, bool)).mean() for n in levels]
    assert ours[0] > 0.98 and np.all(np.diff(ours) < -0.01) and ours[-1] < 0.5
    waves = [np.where(np.arange(200) < n, np.nan, pulse_wave(25.0, 8)) for n in (0, 10)]
    whole, holed = (signal.segment_quality(x, 25.0, np.arange(200) >= 150)[0] for x in waves)
    assert 0.74 < whole <= 0.75 and 0.6 < holed <= 0.7
    np.testing.assert_array_equal(signal.segment_quality(np.arange(960.0), 1 / 60, np.zeros(960, bool), 8 * 3600), 1.0)
    nk = pytest.importorskip("neurokit2")
    clean = [nk.ppg_clean(pulse_wave(25.0, 80, noise=n), sampling_rate=25) for n in levels]
    theirs = [np.nanmean(nk.ppg_quality(x, sampling_rate=25, method="templatematch")) for x in clean]
    assert np.argsort(theirs).tolist() == np.argsort(ours).tolist()


@pytest.mark.parametrize(("rate", "n", "long"), [(1 / 60, 10, 0), (1 / 60, 11, 1), (1.0, 600, 0), (1.0, 601, 1)])
def test_gaps_are_missing_when_longer_than_ten_minutes(rate, n, long):
    x = np.ones(3 * n)
    x[n : 2 * n] = np.nan
    np.testing.assert_array_equal(signal.long_gaps(x, rate), np.isnan(x) & bool(long))
    filled, imputed = signal.impute_ar(x, rate, order=1)
    np.testing.assert_array_equal(imputed, np.isnan(x) & (not long))
    np.testing.assert_array_equal(filled[imputed], 1.0)


def autoregression(n, seed):
    return 70.0 + lfilter([1.0], [1.0, -1.2, 0.5, -0.1], np.random.default_rng(seed).standard_normal(n + 100))[100:]


@given(seed=st.integers(0, 10**6), order=st.integers(1, 6))
def test_burg_equals_statsmodels_without_gaps(seed, order):
    x = autoregression(200, seed) - 70.0
    np.testing.assert_allclose(
        signal.burg(x, order), statsmodels_burg(x, order, demean=False)[0], rtol=1e-9, atol=1e-12
    )


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.05, 0.3, 0.5]), order=st.integers(1, 3))
def test_imputed_values_are_the_conditional_mean(seed, share, order):
    """Against a dense solve of the Gaussian whose precision is A'A, A the prediction errors of the fitted model."""
    x = autoregression(120, seed)
    x[np.random.default_rng(seed).random(120) < share] = np.nan
    x[0] = 70.0
    filled, imputed = signal.impute_ar(x, 1 / 60, order, max_gap_minutes=200)
    seen = np.isfinite(x)
    mean = x[seen].mean()
    errors = np.eye(120)
    for k, a in enumerate(signal.burg(x - mean, order), 1):
        errors -= a * np.eye(120, k=-k)
    precision = errors.T @ errors
    want = np.linalg.solve(precision[np.ix_(~seen, ~seen)], -precision[np.ix_(~seen, seen)] @ (x[seen] - mean))
    np.testing.assert_allclose(filled[~seen], mean + want, rtol=1e-8)
    np.testing.assert_array_equal(filled[seen], x[seen])
    np.testing.assert_array_equal(imputed, ~seen)
    shifted, _ = signal.impute_ar(1000.0 - 2.0 * x, 1 / 60, order, max_gap_minutes=200)
    np.testing.assert_allclose(shifted, 1000.0 - 2.0 * filled, rtol=1e-7)


def test_imputation_beats_the_mean_and_knows_its_own_limits():
    x = autoregression(4000, seed=3)
    holed = x.copy()
    holed[np.random.default_rng(0).random(4000) < 0.2] = np.nan
    holed[:5] = np.nan  # before the first value
    holed[1000:1030] = np.nan  # half an hour: missing
    holed[-3:] = np.nan
    filled, imputed = signal.impute_ar(holed, 1 / 60)
    assert not imputed[:5].any() and not imputed[1000:1030].any() and imputed[-3:].all()
    np.testing.assert_array_equal(np.isfinite(filled), imputed | np.isfinite(holed))
    few = np.r_[x[:29], np.nan, x[29]]
    assert signal.impute_ar(few, 1 / 60)[1].sum() == 1 and not signal.impute_ar(few[:-1], 1 / 60)[1].any()
    error = np.sqrt(np.mean((filled - x)[imputed] ** 2))
    assert error < 0.65 * x[imputed].std()
