"""Artefacts of heart rates: known ones are found, true changes are kept, and nothing later changes a window."""

import numpy as np
import pytest
from simulated_wear import LIMITS, heart_rate

from ehrwear_jax.data.formats.stretches import Stretch
from ehrwear_jax.data.formats.times import DAY_US, HOUR_US
from ehrwear_jax.data.signals import rate_artefacts

START_US = 18_000 * DAY_US


def cleaned(values, rate_hz=1 / 60, hours=6, start_us=START_US):
    """(values without artefacts, counts) of one stretch."""
    rows = [Stretch(start_us, rate_hz, "heart_rate", np.asarray(values, np.float32), "watch")]
    (row,), counts = rate_artefacts.remove(rows, ("heart_rate",), hours * HOUR_US, LIMITS)
    return row.values_N, counts


@pytest.mark.parametrize("seed", range(3))
def test_known_artefacts_are_taken_out_and_little_else(seed):
    true, read, bad = heart_rate(seed, 6)
    kept, counts = cleaned(read)
    seen, left = np.isfinite(read), np.isfinite(kept)
    error = [np.sqrt(np.mean((x[ok] - true[ok]) ** 2)) for x, ok in ((read, seen), (kept, left))]
    assert error[0] > 7.5 and error[1] < 3.5, error
    assert (left & ~bad).sum() > 0.999 * (seen & ~bad).sum(), "of what is none"
    far = bad & seen & (np.abs(read - true) > 15)
    assert (left & far).sum() < 0.2 * far.sum()
    np.testing.assert_array_equal(kept[left], read[left].astype(np.float32))
    assert sum(counts.values()) == seen.sum() - left.sum() and min(counts["jumps"], counts["noise"]) > 0


def test_by_hand():
    level = np.full(360, 70.0)
    half, up, twice, low = level.copy(), level.copy(), level.copy(), level.copy()
    half[100:107] = 35.0
    up[100:] = 120.0  # exertion that stays
    twice[100:112] = 140.0  # for longer than ten minutes
    low[100:103] = 12.0
    for values, gone, rule in ((half, range(100, 107), "jumps"), (up, (), None), (twice, (), None),
                               (low, range(100, 103), "out of range")):  # fmt: skip
        kept, counts = cleaned(values)
        assert np.flatnonzero(np.isnan(kept)).tolist() == list(gone)
        assert counts == {k: len(gone) if k == rule else 0 for k in rate_artefacts.COUNTS}
    ramp = level + 60 * np.clip((np.arange(360) - 100) / 4, 0, 1) * np.clip((120 - np.arange(360)) / 8 + 1, 0, 1)
    np.testing.assert_array_equal(cleaned(ramp)[0], ramp.astype(np.float32))


def test_noise_of_a_fifth_of_the_level_is_the_limit():
    rng = np.random.default_rng(0)
    white = rng.standard_normal((2, 6 * 360))
    quiet, loud = 70 * (1 + 0.05 * white[0]), 70 * (1 + 0.4 * white[1])
    joined = np.where(np.arange(6 * 360) // 360 % 2 == 0, quiet, loud)
    lost = np.isnan(cleaned(joined)[0]).reshape(6, 360)
    assert lost[::2, 20:-20].mean() < 0.001 and lost[1::2, 20:-20].mean() > 0.9
    end_M = START_US + np.arange(1, 3) * 6 * HOUR_US
    constant = np.tile(np.r_[70.0, 71.0], (2, 180))
    assert not rate_artefacts.noisy_minutes(end_M, constant).any()
    assert not rate_artefacts.noisy_minutes(end_M, np.full((2, 360), np.nan)).any()
    assert not rate_artefacts.noisy_minutes(end_M[:0], constant[:0]).any()


@pytest.mark.parametrize("cut", [360, 720, 1080])
def test_nothing_after_a_windows_end_changes_it(cut):
    _, read, _ = heart_rate(5, 1)
    read[cut - 4 : cut + 4] = 30.0  # a run across the window's end
    other = np.where(np.arange(len(read)) < cut, read, heart_rate(6, 1)[1])
    a, b = cleaned(read)[0], cleaned(other)[0]
    np.testing.assert_array_equal(a[:cut], b[:cut])
    assert np.isfinite(a[cut - 4 : cut]).all() and np.isnan(a[cut : cut + 4]).all()
    np.testing.assert_array_equal(a[:cut], cleaned(read[:cut])[0])


def test_seconds_and_several_stretches_and_devices():
    """At one value a second, in pieces of an hour, a slip of forty seconds; another device's is judged by itself."""
    beats = np.full(2 * 3600, 65.0) + np.random.default_rng(1).standard_normal(2 * 3600)
    beats[3580:3620] *= 2  # across the pieces
    pieces = [Stretch(START_US + k * HOUR_US, 1.0, "heart_rate", x.astype(np.float32), "watch")
              for k, x in enumerate(np.split(beats, 2))]  # fmt: skip
    other = Stretch(START_US, 1.0, "heart_rate", np.full(3600, 130, np.float32), "strap")
    temperature = Stretch(START_US, 1 / 60, "temperature", np.array([33.0, 12.0, 33.0], np.float32), "watch")
    rows, counts = rate_artefacts.remove([*pieces, other, temperature], ("heart_rate",), 6 * HOUR_US, LIMITS)
    lost = np.flatnonzero(np.isnan(np.concatenate([rows[0].values_N, rows[1].values_N])))
    assert lost.tolist() == list(range(3580, 3620)) and counts["jumps"] == 40
    assert rows[2] is other and rows[3] is temperature
    assert rate_artefacts.remove([], ("heart_rate",), HOUR_US, LIMITS) == ([], dict.fromkeys(counts, 0))


def test_which_channels_are_rates():
    units = {"heart_rate": "bpm", "breathing": "breaths/min", "activity": "counts/min", "ppg": "a.u.", "beat": "Hz"}
    assert rate_artefacts.parse(("auto",), units) == ("heart_rate", "breathing")
    assert rate_artefacts.parse(("breathing", "auto"), units) == ("breathing", "heart_rate")
    assert rate_artefacts.parse((), units) == rate_artefacts.parse(("auto",), {}) == ()
    with pytest.raises(ValueError, match="config.prepare.artefacts holds 'ppg', expected 'auto' or a channel in "):
        rate_artefacts.parse(("ppg",), units)
