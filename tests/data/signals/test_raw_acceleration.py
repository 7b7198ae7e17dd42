"""ENMO and the arm's angle from raw acceleration: known truth, gaps, axes that do not begin together, causality."""

import numpy as np
import pytest
from simulated_wear import AXES, LIMITS, acceleration

from ehrwear_jax.data.formats.stretches import Stretch, sample_edges
from ehrwear_jax.data.formats.times import HOUR_US
from ehrwear_jax.data.signals import accelerometry, raw_acceleration

IN_G = dict.fromkeys(AXES, 1.0)
START_US = 500_000 * HOUR_US


def made(rows, in_g=IN_G, hours=1):
    """({channel: {start of its epoch, s after START_US: value}}, counts)."""
    found, counts = raw_acceleration.of_person(rows, AXES, in_g, hours * HOUR_US, LIMITS)
    out = {"enmo": {}, "arm_angle": {}}
    for row in found:
        assert row.rate_hz == 0.2 and row.start_us % 5_000_000 == 0
        edges = sample_edges(row.start_us, row.rate_hz, len(row.values_N))
        out[row.channel] |= {
            (t - START_US) / 1e6: v for t, v in zip(edges[:-1].tolist(), row.values_N.tolist(), strict=True)
        }
    return out, counts


def stretches(read_Nx3, rate_hz, start_us=START_US, device="watch"):
    return [
        Stretch(start_us, rate_hz, axis, x.astype(np.float32), device) for axis, x in zip(AXES, read_Nx3.T, strict=True)
    ]


def test_by_hand():
    """Ten seconds: upright and still, then 1.5 g for half of five seconds, sideways."""
    read = np.zeros((100, 3))
    read[:50, 2], read[50:, 0] = 1.0, 1.0
    read[75:, 0] = 1.5
    found, counts = made(stretches(read, 10.0))
    assert found["enmo"] == {0.0: 0.0, 5.0: pytest.approx(250.0)}
    assert found["arm_angle"] == {0.0: pytest.approx(90.0), 5.0: pytest.approx(0.0)}
    assert counts == {"samples of an axis alone": 0, "samples of slow axes": 0,
                      raw_acceleration.CALIBRATED: 0, raw_acceleration.NOT_CALIBRATED: 1}  # fmt: skip
    in_mg = stretches(1000 * read, 10.0)
    none, _ = made(in_mg, dict.fromkeys(AXES, 0.001))
    assert none == {"enmo": {}, "arm_angle": {}}, "1000 is beyond the plausible 8"


def test_calibration_lowers_the_error_and_nothing_later_changes_a_window():
    enmo_T, angle_T, read = acceleration(0, 4, 10.0)
    found, counts = made(stretches(read, 10.0), hours=2)
    raw = {"enmo": accelerometry.enmo(read).reshape(-1, 600).mean(axis=1)}
    raw["arm_angle"] = accelerometry.arm_angle(read.reshape(-1, 50, 3).mean(axis=1)).reshape(-1, 12).mean(axis=1)
    error = {}
    for channel, true_T in (("enmo", enmo_T), ("arm_angle", angle_T)):
        mine = np.array([found[channel][5.0 * k] for k in range(4 * 720)]).reshape(-1, 12).mean(axis=1)
        error[channel] = [np.abs(x - true_T).mean() for x in (raw[channel], mine)]
    assert error["enmo"][0] > 8.0 and error["enmo"][1] < 1.5, error
    assert error["arm_angle"][0] > 0.8 and error["arm_angle"][1] < 0.1, error
    assert counts[raw_acceleration.CALIBRATED] == 2 and counts[raw_acceleration.NOT_CALIBRATED] == 0
    later = read.copy()
    later[2 * 36_000 :] = acceleration(1, 2, 10.0)[2] + 0.05
    changed, _ = made(stretches(later, 10.0), hours=2)
    for channel in found:
        assert {t: v for t, v in found[channel].items() if t < 7200} == {
            t: v for t, v in changed[channel].items() if t < 7200
        }
        assert found[channel] != changed[channel]


def test_axes_need_not_begin_together_nor_be_cut_alike():
    _, _, read = acceleration(2, 0.5, 20.0)
    whole, _ = made(stretches(read, 20.0))
    x, y, z = read.T.astype(np.float32)
    rows = [Stretch(START_US, 20.0, "acc_x", x, "watch")]
    rows += [Stretch(START_US + k * 50_000, 20.0, "acc_y", y[k : k + 7000], "watch") for k in range(0, len(y), 7000)]
    rows += [Stretch(START_US + 10_000 * 50_000, 20.0, "acc_z", z[10_000:], "watch"),
             Stretch(START_US, 20.0, "acc_z", z[:10_000], "watch")]  # fmt: skip
    pieces, counts = made(rows)
    assert pieces == whole and counts["samples of an axis alone"] == 0


def test_another_axis_is_never_ahead_of_the_first():
    """A y that begins a third of a sample late: beside each x the y before, which was complete."""
    x, z, n = np.zeros(100, np.float32), np.zeros(100, np.float32), 100
    rows = [Stretch(START_US, 10.0, "acc_x", x, "w"), Stretch(START_US, 10.0, "acc_z", z, "w")]
    rows.append(Stretch(START_US + 33_000, 10.0, "acc_y", np.r_[np.ones(49), np.full(51, 2.0)].astype(np.float32), "w"))
    found, counts = made(rows)
    assert counts["samples of an axis alone"] == 3  # the first x and z, the last y
    # y of 2 begins at 4.933 s and is complete at 5.033: the x that ends at 5.1 has it first
    assert found["enmo"] == {0.0: 0.0, 5.0: pytest.approx(1000.0)} and len(x) == n


def test_gaps_stay_and_what_cannot_be_used_is_counted():
    _, _, read = acceleration(3, 0.5, 10.0)
    read[3000:9000, 1] = np.nan
    found, counts = made(stretches(read, 10.0))
    assert not any(300 <= t < 900 for t in found["enmo"]) and len(found["enmo"]) == 360 - 120
    assert found["enmo"].keys() == found["arm_angle"].keys()
    assert counts["samples of an axis alone"] == 2 * 6000
    slow, counts = made(stretches(read, 1.0))
    assert slow == {"enmo": {}, "arm_angle": {}} and counts["samples of slow axes"] == 3 * len(read) - 6000
    alone, counts = made(stretches(read, 10.0)[:2])
    assert alone == {"enmo": {}, "arm_angle": {}} and counts["samples of an axis alone"] == 2 * len(read) - 6000
    assert raw_acceleration.of_person([], AXES, IN_G, HOUR_US, LIMITS)[0] == []
