"""Prepare's steps of appendix A.2, each against a truth: simulated recordings, noisy and with gaps, and real ones.

Each step lowers the error; assertions hold the figures without it and with it.
"""

import dataclasses
import json

import cohort
import numpy as np
import polars as pl
import pytest
import simulated_wear as wear
from pulse_wave import simulated, truth

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.prepare import specs
from ehrwear_jax.data.signals import accelerometry

CONFIG = PrepareConfig(min_subjects=1, min_values=5, step_minutes=1, window_hours=1, min_coverage=0.05)
MOVED = dataclasses.replace(CONFIG, acceleration=wear.AXES)


def at_minutes(table, values, column=0):
    """{minute after wear.START: value} of a channel."""
    start = (table["time"].dt.epoch("us").to_numpy() - wear.START_US) // 60_000_000 - values.shape[1]
    minutes = start[:, None] + np.arange(values.shape[1])
    seen = np.isfinite(values[..., column])
    return dict(zip(minutes[seen].tolist(), values[..., column][seen].tolist(), strict=True))


def errors(found, true_T):
    """Mean absolute error over the minutes that are found."""
    return float(np.mean([abs(v - true_T[t]) for t, v in found.items()]))


# ---------------------------------------------------------------------------------------------------- acceleration
def test_raw_acceleration_alone_gives_the_model_movement_and_posture_of_the_time_worn(tmp_path):
    hours, rate_hz = 8, 10.0
    enmo_T, angle_T, read = wear.acceleration(0, hours, rate_hz)
    per_minute = round(60 * rate_hz)
    drawer, lost = slice(300, 420), slice(100, 125)  # minutes
    at = slice(drawer.start * per_minute, drawer.stop * per_minute)
    read[at] = read[at.start] + 0.003 * np.random.default_rng(0).standard_normal((at.stop - at.start, 3))
    read[lost.start * per_minute : lost.stop * per_minute] = np.nan
    rows = [(0, rate_hz, axis, x) for axis, x in zip(wear.AXES, read.T, strict=True)]
    steps, table, values = wear.prepared(tmp_path, rows, MOVED)
    found = [at_minutes(table, values, k) for k in range(2)]
    assert values.shape[2] == 2 and MOVED.channels == ("enmo", "arm_angle")
    worn = sorted(set(range(hours * 60)) - {*range(lost.start, lost.stop)} - {*range(300, 420)})
    assert found[0].keys() == found[1].keys() and not found[0].keys() & {*range(330, 420), *range(100, 125)}
    assert len(found[0].keys() & set(worn)) > 0.9 * len(worn)
    plain = {t: accelerometry.enmo(read[t * per_minute : (t + 1) * per_minute]).mean() for t in worn}
    angle = {t: accelerometry.arm_angle(read[t * per_minute : (t + 1) * per_minute].mean(axis=0)) for t in worn}
    kept = [{t: v for t, v in of.items() if t in plain} for of in found]
    later = [{t: v for t, v in of.items() if t >= 60} for of in kept]
    assert errors(plain, enmo_T) > 15.0 and errors(kept[0], enmo_T) < 4.0 and errors(later[0], enmo_T) < 1.2
    assert errors(angle, angle_T) > 0.8 and errors(kept[1], angle_T) < 0.3 and errors(later[1], angle_T) < 0.1
    assert steps["windows of acceleration calibrated by gravity"]["n"] == hours - 1, "not the first: too few postures"
    assert steps["windows of acceleration not calibrated"]["n"] == 1
    assert steps["hours of wear"]["dropped"] >= 1.5


def test_sleep_by_the_angle_is_among_the_summaries(tmp_path):
    """Ten hours: awake the arm turns every minute, asleep from the third to the ninth it keeps still."""
    rng, rate_hz, hours = np.random.default_rng(0), 5.0, 10
    n = round(3600 * rate_hz)
    direction = rng.standard_normal((hours * 60, 3))
    direction[3 * 60 : 9 * 60] = np.repeat(rng.standard_normal((12, 3)), 30, axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    read = np.repeat(direction, n // 60, axis=0) + 0.02 * rng.standard_normal((hours * n, 3))
    rows = [(0, rate_hz, axis, x) for axis, x in zip(wear.AXES, read.T, strict=True)]
    config = dataclasses.replace(CONFIG, acceleration=("auto",), summaries=("auto",))
    _, table, _ = wear.prepared(tmp_path, rows, config)
    asleep = table["arm_angle__asleep"].to_list()
    assert len(asleep) == 10 and max(asleep[:3] + asleep[9:]) < 0.1 and min(asleep[3:9]) > 0.95
    assert table["enmo__entropy"].is_not_null().all()
    noted = json.loads((tmp_path / "tables" / specs.RESOLVED).read_text())
    assert noted == {"acceleration": list(wear.AXES), "summaries": ["enmo:entropy", "arm_angle:sleep"]}
    whole = cohort.prepare(tmp_path, config, tmp_path / "whole")
    store = cohort.open_store(whole)
    assert store.channels == ("enmo", "arm_angle")
    assert store.derived == ("enmo__entropy", "arm_angle__asleep")
    record = store[store.index["subject_id"].to_list().index(wear.SUBJECT)]
    assert record.window_MxLxC.shape == (10, 60, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"acceleration": ("acc_x", "acc_y", "heart_rate")}, "names 'heart_rate', which is in bpm: no unit of acceler"),
        ({"acceleration": ("acc_x", "acc_y", "acc_q")}, r"no channel \['acc_q'\] in metadata/channels.parquet"),
        ({"acceleration": ("acc_x", "acc_y")}, "it must be three axes, \\('auto',\\) or empty"),
        ({"channels": ("enmo",)}, r"no channel \['enmo'\] in metadata/channels.parquet"),
        ({"channels": ("heart_rate",), "artefacts": ("acc_x",)}, "config.prepare.artefacts holds 'acc_x'"),
    ],
)
def test_what_cannot_be_is_refused(options, message, tmp_path):
    rows = [(0, 10.0, axis, np.ones(600)) for axis in wear.AXES] + [(0, 1 / 60, "heart_rate", np.full(60, 70.0))]
    with pytest.raises(ValueError, match=message):
        wear.prepared(tmp_path, rows, dataclasses.replace(CONFIG, **options))


# ------------------------------------------------------------------------------------------------------- heart rate
def test_artefacts_of_the_heart_rate_are_taken_out_of_the_grid_and_counted(tmp_path):
    true, read, bad = wear.heart_rate(0, 4)
    rows = [(0, 1 / 60, "heart_rate", read)]
    config, found, counts = dataclasses.replace(CONFIG, channels=("heart_rate",)), [], []
    for name, artefacts in (("off", ()), ("on", ("auto",))):
        (tmp_path / name).mkdir()
        steps, table, values = wear.prepared(tmp_path / name, rows, dataclasses.replace(config, artefacts=artefacts))
        found.append(at_minutes(table, values))
        counts.append({k: s["dropped"] for k, s in steps.items() if k.startswith("samples of rates")})
    square = [np.sqrt(np.mean([(v - true[t]) ** 2 for t, v in of.items()])) for of in found]
    assert square[0] > 7.0 and square[1] < 4.0, square
    clean = set(np.flatnonzero(~bad).tolist()) & found[0].keys()
    assert len(found[1].keys() & clean) > 0.995 * len(clean)
    assert counts[0] == {} and len(counts[1]) == 3
    out_of_range = counts[1]["samples of rates that are artefacts: out of range"]
    assert sum(counts[1].values()) - out_of_range == len(found[0]) - len(found[1]) > 100


def test_gaps_are_filled_for_the_scale_alone(tmp_path):
    """Every exertion loses a third of its minutes in short gaps: without them the mean is too low."""
    rng, n = np.random.default_rng(0), 6 * 1440
    effort = np.convolve((rng.random(n) < 0.006).astype(float), np.hanning(41), "same")
    true = 65 + 12 * np.sin(2 * np.pi * np.arange(n) / 1440) + 60 * np.minimum(effort, 1.2)
    lost = (effort > 0.2) & (np.arange(n) % 6 >= 4)
    lost[1000:1500] = True  # a long one, and a window or more of nothing
    rows = [(0, 1 / 60, "heart_rate", np.where(lost, np.nan, true))]
    fitted, arrays = [], []
    for name, minutes in (("off", 0.0), ("on", 10.0)):
        (tmp_path / name).mkdir()
        wear.write(tmp_path / name, rows)
        config = dataclasses.replace(CONFIG, channels=("heart_rate",), impute_gap_minutes=minutes)
        cohort.prepare(tmp_path / name, config)
        fitted.append(json.loads((tmp_path / name / "fit" / "all" / "signal_statistics.json").read_text()))
        arrays.append(np.load(tmp_path / name / "tables" / "window_values" / "0.npy"))
    np.testing.assert_array_equal(*arrays)
    there = np.delete(true, np.s_[1000:1500])
    for key, want, before, after in (("mean", there.mean(), 1.5, 0.05), ("std", there.std(), 1.5, 0.05)):
        off, on = (abs(f[key][0] - want) for f in fitted)
        assert off > before and on < after, (key, off, on)
    assert fitted[1]["n_values"] == fitted[0]["n_values"] == [int((~lost).sum())] and "n_imputed" not in fitted[0]
    assert fitted[1]["n_imputed"] == [int(lost.sum()) - 500]


# -------------------------------------------------------------------------------------------------------- raw pulse
SPEC = {"channels": ("ppg",), "rate_hz": 25.0, "per_window": 40}


def kept_segments(root):
    """The segments of the one person."""
    return np.load(root / "tables" / "segments" / "ppg" / "0.npy")


def test_band_pass_and_rejection_bring_raw_windows_closer_to_the_pulse(tmp_path):
    """A pulse with baseline wander and white noise; a third of the windows begin with seven seconds of movement."""
    rng, rate_hz, seconds = np.random.default_rng(0), 25.0, 900
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    clean = np.cos(2 * np.pi * 1.2 * t) + 0.3 * np.cos(2 * np.pi * 2.4 * t)
    wave = clean + 1.5 * np.sin(2 * np.pi * 0.12 * t) + 0.8 * rng.standard_normal(len(t))
    moved = (t // 30 % 3 == 1) & (t % 30 < 7)
    wave[moved] += 15 * np.cumsum(rng.standard_normal(moved.sum())) / np.sqrt(50)
    rows = [(0, rate_hz, "ppg", wave), (0, 1 / 60, "activity", np.ones(60))]
    error = {}
    for name, options in (("plain", {}), ("filtered", {"filter": "bandpass:0.5-3.5"}),
                          ("both", {"filter": "bandpass:0.5-3.5", "reject": True})):  # fmt: skip
        (tmp_path / name).mkdir()
        config = dataclasses.replace(CONFIG, channels=("activity",), segments={"ppg": SPEC | options})
        wear.prepared(tmp_path / name, rows, config)
        found = kept_segments(tmp_path / name)
        error[name] = []
        for row in found:
            first = round((row["start"] - wear.START_US) / 1e6 * rate_hz)
            want, got = clean[first : first + 750], row["values"][:, 0].astype(np.float64)
            seen = np.isfinite(got)
            gain = got[seen] @ want[seen] / (want[seen] @ want[seen])  # as segments are standardised
            error[name].append(np.sqrt(np.mean((got[seen] / gain - want[seen]) ** 2)))
        assert len(found) >= 20
    mean = {name: float(np.median(x)) for name, x in error.items()}
    worst = {name: float(np.mean(np.sort(x)[-8:])) for name, x in error.items()}
    assert mean["plain"] > 1.2 and mean["filtered"] < 0.5, mean
    assert worst["filtered"] > 2.0 and worst["both"] < 1.0, worst


def test_a_segment_of_noise_is_no_segment_and_is_counted(tmp_path):
    wave = np.concatenate([simulated(25.0, 300)[0], np.random.default_rng(0).standard_normal(300 * 25)])
    rows = [(0, 25.0, "ppg", wave), (0, 1 / 60, "activity", np.ones(60))]
    config = dataclasses.replace(CONFIG, channels=("activity",), segments={"ppg": SPEC | {"reject": True}})
    steps, *_ = wear.prepared(tmp_path, rows, config)
    found = kept_segments(tmp_path)
    assert (found["start"] < wear.START_US + 300_000_000).all() and len(found) == 10
    assert steps["ppg: segments noisy"]["dropped"] == 10 == steps["ppg: segments of 30 s"]["n"]


def test_variability_is_among_the_summaries_wherever_there_are_beats(tmp_path):
    wave, beat_s = simulated(25.0, 600, seed=3)
    rows = [(5, 25.0, "ppg", wave), (70, 1.0, "ppi", 1000 * np.diff(beat_s)), (0, 1 / 60, "activity", np.ones(130))]
    config = dataclasses.replace(CONFIG, channels=("activity",), summaries=("activity:entropy", "auto"))
    _, table, _ = wear.prepared(tmp_path, rows, config)
    noted = json.loads((tmp_path / "tables" / specs.RESOLVED).read_text())
    assert noted["summaries"] == ["activity:entropy", "ppg:pulse", "ppi:intervals"] and noted["acceleration"] == []
    want = truth(beat_s)
    for hour, channel in ((0, "ppg"), (1, "ppi")):
        for name in ("heart_rate_bpm", "rmssd_ms", "sdnn_ms"):
            assert table[f"{channel}__{name}"][hour] == pytest.approx(want[name], rel=0.03)
    assert table["ppg__rmssd_ms"][1] is None and table["ppi__rmssd_ms"][0] is None


# ------------------------------------------------------------------------------------------------------------- real
def test_an_axivity_recording_keeps_its_movement_and_angle(shared_data, tmp_path):
    """Ten minutes at 100 Hz: every minute of the grid against the definitions, computed on the whole arrays."""
    recorded = np.load(shared_data("signals") / "ax3_data.npz")
    x_Tx3, time_T = recorded["accel"], recorded["time"]
    rate_hz = (len(time_T) - 1) / (time_T[-1] - time_T[0])
    rows = [(0, rate_hz, axis, x) for axis, x in zip(wear.AXES, x_Tx3.T, strict=True)]
    _, table, values = wear.prepared(tmp_path, rows, dataclasses.replace(MOVED, min_coverage=0.0))
    enmo, angle = (at_minutes(table, values, k) for k in range(2))
    minute_T = ((np.arange(len(x_Tx3))) / rate_hz // 60).astype(int)
    assert len(enmo) >= minute_T[-1] >= 4
    norm_T = 1000 * np.maximum(np.linalg.norm(x_Tx3, axis=1) - 1, 0)
    for minute in range(minute_T[-1]):
        mine = x_Tx3[minute_T == minute]
        epochs = np.array_split(mine, 12)
        of_epoch = [np.degrees(np.arctan2(e[:, 2].mean(), np.hypot(e[:, 0].mean(), e[:, 1].mean()))) for e in epochs]
        assert enmo[minute] == pytest.approx(norm_T[minute_T == minute].mean(), abs=0.2)
        assert angle[minute] == pytest.approx(np.mean(of_epoch), abs=0.2)


def test_beats_of_a_wrist_sensor_agree_with_the_intervals_that_it_reports(shared_data, tmp_path):
    """Polar, 514 s on the wrist: the rate from raw PPG, and from the device's own intervals, against its heart rate."""
    folder = shared_data("signals")
    ppg = pl.read_csv(folder / "polar_PPG.txt", separator=";", truncate_ragged_lines=True)
    ns, wave = ppg["sensor timestamp [ns]"].to_numpy(), -ppg["channel 0"].to_numpy().astype(np.float64)
    ppi = pl.read_csv(folder / "polar_PPI.txt", separator=";")
    told = pl.read_csv(folder / "polar_HR.txt", separator=";")["HR [bpm]"].to_numpy()
    told = told[told > 0]  # 0: none yet
    rate_hz, interval = (len(ns) - 1) / (ns[-1] - ns[0]) * 1e9, ppi["PP-interval [ms]"].to_numpy()
    rows = [(1, rate_hz, "ppg", wave), (1, 1.0, "ppi", interval), (0, 1 / 60, "activity", np.ones(60))]
    config = dataclasses.replace(CONFIG, channels=("activity",), summaries=("auto",))
    _, table, _ = wear.prepared(tmp_path, rows, config)
    for channel in ("ppg", "ppi"):
        assert table[f"{channel}__heart_rate_bpm"][0] == pytest.approx(told.mean(), abs=1.0)
    assert table["ppg__rmssd_ms"][0] == pytest.approx(table["ppi__rmssd_ms"][0], rel=0.3)
