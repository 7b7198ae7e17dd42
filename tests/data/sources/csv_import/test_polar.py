"""Polar: samples by the sensor's clock, beats as intervals, sessions of Flow; on real recordings where they are."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from csv_exports import assert_reconciled, counts, imported, refused, samples, write

from ehrwear_jax.data.sources.csv_import import polar, text_tables

ARGUMENTS = ("--preset=polar", "--subject=1")
T0 = datetime(2022, 4, 25, 11, 39, 36, 978_000)
STEP_NS = 19_340_401


def accelerometer(n=500, pause_at=None, pause_s=60):
    """Phone times come late and uneven, as over the air; the sensor's own are exact."""
    late = np.random.default_rng(0).uniform(0, 0.3, n)
    late[0] = 0
    lines = ["Phone timestamp;sensor timestamp [ns];X [mg];Y [mg];Z [mg]"]
    for k in range(n):
        seconds = k * STEP_NS / 1e9 + (pause_s if pause_at is not None and k >= pause_at else 0)
        phone = T0 + timedelta(seconds=seconds + (0 if k == pause_at else late[k]))
        stamp = phone.isoformat(timespec="milliseconds")
        lines.append(f"{stamp};{704201974831254116 + k * STEP_NS};{k};{-k};{1000}")
    return "\n".join(lines) + "\n"


def test_samples_stand_by_the_clock_of_the_sensor(tmp_path, monkeypatch):
    monkeypatch.setattr(text_tables, "BLOCK_BYTES", 4096)
    write(tmp_path / "in" / "Polar_ACC.txt", accelerometer())
    rows = imported(tmp_path / "in", tmp_path / "out", *ARGUMENTS)
    [x] = rows.filter(channel="acceleration_x").iter_rows(named=True)
    assert x["start_time"] == T0 and x["unit"] == "mg"
    assert x["sample_rate_hz"] == pytest.approx(1e9 / STEP_NS, rel=1e-6)
    np.testing.assert_array_equal(x["values"], np.arange(500))
    assert rows.filter(channel="acceleration_y")["values"][0].to_list() == [-k for k in range(500)]
    assert_reconciled(tmp_path / "out")


def test_a_pause_that_the_sensor_does_not_count_is_one(tmp_path):
    write(tmp_path / "in" / "Polar_ACC.txt", accelerometer(pause_at=200))
    rows = imported(tmp_path / "in", tmp_path / "out", *ARGUMENTS).filter(channel="acceleration_x")
    second = T0 + timedelta(seconds=200 * STEP_NS / 1e9 + 60)
    assert rows["values"].list.len().to_list() == [200, 300]
    assert abs(rows["start_time"][1] - second) < timedelta(milliseconds=2)


def test_heart_rate_intervals_light_and_ecg(tmp_path):
    folder = tmp_path / "in"
    write(folder / "HR.txt", "Phone timestamp;HR [bpm]\n2022-04-25T11:39:02.323;66\n2022-04-25T11:39:03.274;0\n")
    ppi = "Phone timestamp;PP-interval [ms];error estimate [ms];blocker;contact;contact;hr [bpm]\n"
    at, clean = T0.replace(microsecond=0), (1000, 1010, 990, 1005)
    for blocker, interval in ((1, 700), *((0, i) for i in clean)):
        ppi += f"{at.isoformat(timespec='milliseconds')};{interval};9;{blocker};1;1;0\n"
        at += timedelta(milliseconds=interval)
    write(folder / "PPI.txt", ppi)
    light = "Phone timestamp;sensor timestamp [ns];channel 0;channel 1;channel 2;ambient\n"
    ecg = "Phone timestamp;sensor timestamp [ns];timestamp [ms];ecg [uV]\n"
    for k in range(20):
        stamp = (T0 + timedelta(milliseconds=10 * k)).isoformat(timespec="milliseconds")
        light += f"{stamp};{k * 10_000_000 + 5};{k};{2 * k};{3 * k};-1;\n"
        ecg += f"{stamp};0;{10 * k};{k}\n"  # some apps write no sensor time
    write(folder / "PPG.txt", light)
    write(folder / "ECG.txt", ecg)
    write(folder / "marker.txt", "nothing\n")
    rows = imported(folder, tmp_path / "out", *ARGUMENTS, "--utc-offset-minutes=120")
    assert samples(rows, "heart_rate") == {datetime(2022, 4, 25, 9, 39, 2): 66}
    [beats] = rows.filter(channel="beat_interval").iter_rows(named=True)
    np.testing.assert_array_equal(beats["values"], clean)
    end = beats["start_time"] + timedelta(seconds=len(clean) / beats["sample_rate_hz"])
    assert end == at - timedelta(hours=2)
    assert rows.filter(channel="ppg_2")["values"][0].to_list() == [3 * k for k in range(20)]
    assert rows.filter(channel="ppg_ambient")["values"][0].to_list() == [-1] * 20
    [row] = rows.filter(channel="ecg").iter_rows(named=True)
    assert row["sample_rate_hz"] == pytest.approx(100) and row["values"] == list(range(20))
    found = counts(tmp_path / "out")
    assert found["a heart rate of 0"] == found["an interval with the blocker set"] == 1
    assert_reconciled(tmp_path / "out")


FLOW = """Name,Sport,Date,Start time,Duration,Average heart rate (bpm)
Ada Lovelace,Running,25-04-2022,22:00:00,05:58:12,112

Sample rate,Time,HR (bpm),Speed (km/h),Cadence,
1,00:00:00,85,,,
1,00:00:01,86,,,
1,00:00:02,,,,
1,03:00:00,90,,,
"""


def test_a_session_of_flow(tmp_path):
    file = write(tmp_path / "session.csv", FLOW)
    rows = imported(file, tmp_path / "out", *ARGUMENTS, "--timezone=Europe/Helsinki")
    start = datetime(2022, 4, 25, 19)
    expected = dict(zip((0, 1, 10_800), (85, 86, 90), strict=True))
    assert samples(rows, "heart_rate") == {start + timedelta(seconds=s): v for s, v in expected.items()}
    assert not any(b"Lovelace" in p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert counts(tmp_path / "out")["no value"] == 1
    assert_reconciled(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (accelerometer(3).replace(";1;", ";x;"), "line 3: column 'X [mg]': 'x' is not a number"),
        (
            accelerometer(3).replace(";704201974850594517", ";soon"),
            "line 3: column 'sensor timestamp [ns]': 'soon' is no whole number",
        ),
        (
            accelerometer(3).replace("2022-04-25T11:39:36.978", "now"),
            "line 2: column 'Phone timestamp': 'now' is not a time",
        ),
        (FLOW.replace("25-04-2022", "April 25"), "line 2: column 'Date': 'April 25 22:00:00' is no Date dd-mm-yyyy"),
        (FLOW.replace("00:00:01", "1 s"), "line 6: column 'Time': '1 s' is not a time of the given format"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, capsys, text, sentence):
    file = write(tmp_path / "in" / "a.csv", text)
    assert refused(capsys, tmp_path / "in", tmp_path / "out", *ARGUMENTS).startswith(f"{file}: {sentence}")


def test_nothing_of_this_format(tmp_path, capsys):
    write(tmp_path / "in" / "a.csv", "Phone timestamp;Markers\n")
    assert "holds no file of Polar" in refused(capsys, tmp_path / "in", tmp_path / "out", *ARGUMENTS)


@pytest.mark.parametrize("name", ["ACC", "PPG"])
def test_real_recordings_keep_every_sample(shared_data, tmp_path, name):
    file = shared_data(f"signals/polar_{name}.txt")
    rows = imported(file, tmp_path / "out", *ARGUMENTS)
    text = file.read_text().splitlines()
    names = text[0].split(";")
    raw = pl.DataFrame([line.split(";")[: len(names)] for line in text[1:]], names, orient="row")
    sensor_s = (raw[polar.SENSOR].cast(pl.Int64) - int(raw[polar.SENSOR][0])).to_numpy() / 1e9
    for column, channel in polar.columns_of(names).items():
        mine = rows.filter(channel=channel).sort("start_time")
        starts = (mine["start_time"] - mine["start_time"][0]).dt.total_microseconds().to_numpy() / 1e6
        parts = [
            np.stack([start + np.arange(len(v)) / rate, v.to_numpy()])
            for start, rate, v in zip(starts, mine["sample_rate_hz"], mine["values"], strict=True)
        ]
        at_s, value = np.concatenate(parts, axis=1)
        seen = np.isfinite(value)
        truth = raw[column].cast(pl.Float64).to_numpy()
        assert seen.sum() >= 0.999 * len(truth)
        nearest = (
            np.abs(sensor_s - at_s[seen][:, None]).argmin(axis=1)
            if len(truth) < 100
            else np.searchsorted((sensor_s[1:] + sensor_s[:-1]) / 2, at_s[seen])
        )
        assert np.abs(sensor_s[nearest] - at_s[seen]).max() < 0.012  # half a sample and some
        assert (np.abs(truth[nearest] - value[seen]) < 1e-2).mean() > 0.99
    assert_reconciled(tmp_path / "out")


def test_real_intervals_and_heart_rates(shared_data, tmp_path):
    for name, channel in (("PPI", "beat_interval"), ("HR", "heart_rate")):
        file = shared_data(f"signals/polar_{name}.txt")
        rows = imported(file, tmp_path / name, *ARGUMENTS)
        lines = [line.split(";") for line in file.read_text().splitlines()[1:]]
        if name == "PPI":
            intervals = [float(fields[1]) for fields in lines if fields[3] == "0"]
            assert np.concatenate(rows["values"].to_list()).tolist() == [i for i in intervals if i >= 250]
            assert rows.height < 15  # few blocked intervals in between, and pieces of up to 128 beats
        else:
            rates = [float(fields[1]) for fields in lines if fields[1] != "0"]
            assert np.mean(list(samples(rows, channel).values())) == pytest.approx(np.mean(rates), rel=0.01)
        assert_reconciled(tmp_path / name)
