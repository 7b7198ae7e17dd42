"""Gain and offset of accelerometers: recovered from still postures, left alone where these do not say them."""

import numpy as np
import pytest

from ehrwear_jax.data.signals import gravity_calibration as calibration

GAIN, OFFSET = np.array([1.04, 0.98, 1.01]), np.array([0.05, -0.02, 0.03])


def directions(seed, n):
    x = np.random.default_rng(seed).standard_normal((n, 3))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def readings(true_Nx3):
    return true_Nx3 / GAIN + OFFSET


@pytest.mark.parametrize(("noise_g", "tolerance"), [(0.0, 1e-9), (0.002, 0.002)])
def test_gain_and_offset_are_recovered(noise_g, tolerance):
    noise = noise_g * np.random.default_rng(9).standard_normal((400, 3))
    found = calibration.fit(calibration.postures(readings(directions(0, 400)) + noise))
    np.testing.assert_allclose(found, [GAIN, OFFSET], atol=tolerance)


def test_windows_add_up_to_what_they_are_together():
    """One that holds the postures of two, which lie in other cubes, and the sum of both."""
    read = readings(directions(1, 300))
    above = read[:, 2] >= 0
    whole, parts = calibration.postures(read), [calibration.postures(read[at]) for at in (above, ~above)]
    for x, y in zip(whole, calibration.add(*parts), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    np.testing.assert_array_equal(calibration.add(calibration.NONE, whole).terms_6, whole.terms_6)


def test_a_night_in_one_posture_counts_once():
    read = readings(directions(2, 200))
    long = np.concatenate([read, np.tile(read[:1] + 0.004, (5000, 1))])  # somewhat wrong, for hours
    np.testing.assert_allclose(calibration.fit(calibration.postures(long)), [GAIN, OFFSET], atol=0.002)


def test_readings_stay_as_they_are_where_postures_do_not_say_what_is_wrong():
    around = readings(directions(3, 400))
    cases = {
        "few": around[:8],
        "one side": around[around[:, 2] > -0.25],
        "no sphere": around * np.random.default_rng(0).uniform(0.9, 1.1, (400, 1)),
        "another unit": 1.5 * around,
        "nothing": around[:0],
    }
    for name, still in cases.items():
        np.testing.assert_array_equal(calibration.fit(calibration.postures(still)), calibration.IDENTITY, name)
    assert (calibration.fit(calibration.postures(around)) != calibration.IDENTITY).all()


def test_only_cells_without_movement_and_gaps_are_still():
    rng, n = np.random.default_rng(0), 250
    cells = [0.003, 0.003, 0.03, 0.003]
    counts = np.array([n, n, n, int(0.8 * n)])
    x = [np.array([0.1, 0.2, 0.9]) + sd * rng.standard_normal((m, 3)) for sd, m in zip(cells, counts, strict=True)]
    x[1][:, 0] += 0.1 * np.sin(np.arange(n))  # one axis moves
    total, square = np.array([p.sum(0) for p in x]), np.array([(p**2).sum(0) for p in x])
    np.testing.assert_allclose(calibration.still(counts, total, square, n), [x[0].mean(axis=0)])
