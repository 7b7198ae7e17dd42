"""Empatica E4: samples at start and rate of each file, beats as intervals."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from csv_exports import assert_reconciled, counts, imported, refused, samples, write

ARGUMENTS = ("--preset=empatica", "--timezone=Europe/Zurich")
START = 1544027337.5
T0 = datetime(1970, 1, 1) + timedelta(seconds=START)


def session(folder):
    rng = np.random.default_rng(0)
    acc = rng.integers(-127, 128, (320, 3))
    lines = [
        ", ".join([f"{START:.6f}"] * 3),
        ", ".join(["32.000000"] * 3),
        *(",".join(map(str, r)) for r in acc.tolist()),
    ]
    write(folder / "ACC.csv", "\n".join(lines) + "\n")
    for name, rate, values in (
        ("BVP", 64, rng.normal(size=640).round(2)),
        ("EDA", 4, rng.uniform(0, 2, 40).round(4)),
        ("TEMP", 4, np.full(40, 33.5)),
        ("HR", 1, np.arange(70, 75)),
    ):
        write(folder / f"{name}.csv", "\n".join(map(str, [f"{START:.6f}", f"{rate:.6f}", *values])) + "\n")
    ends = 10 + np.cumsum([0.8, 0.9, 0.85])
    beats = "".join(f"{end:.6f},{interval:.6f}\n" for end, interval in zip(ends, (0.8, 0.9, 0.85), strict=True))
    write(folder / "IBI.csv", f"{START:.6f}, IBI\n{beats}")
    write(folder / "tags.csv", "1544027340.0\n")
    write(folder / "info.txt", "about the files\n")
    return acc


def test_all_files_of_two_people(tmp_path):
    acc = session(tmp_path / "in" / "11" / "morning")
    session(tmp_path / "in" / "12")
    rows = imported(tmp_path / "in", tmp_path / "out", *ARGUMENTS, "--subject-folders")
    mine = rows.filter(subject_id=11)
    for axis, column in zip("xyz", acc.T, strict=True):
        [row] = mine.filter(channel=f"acceleration_{axis}").iter_rows(named=True)
        assert (row["start_time"], row["sample_rate_hz"], row["unit"]) == (T0, 32, "g")
        np.testing.assert_allclose(row["values"], column / 64)
    rates = dict(zip(mine["channel"], mine["sample_rate_hz"], strict=True))
    assert [rates[c] for c in ("ppg", "eda", "skin_temperature", "heart_rate")] == [64, 4, 4, 1]
    assert samples(mine, "heart_rate") == {T0 + timedelta(seconds=k): 70 + k for k in range(5)}
    [beats] = mine.filter(channel="beat_interval").iter_rows(named=True)
    np.testing.assert_allclose(beats["values"], [800, 900, 850])
    end = beats["start_time"] + timedelta(seconds=3 / beats["sample_rate_hz"])
    assert end == T0 + timedelta(seconds=12.55) and set(rows["utc_offset_minutes"]) == {60}
    assert set(rows["device"]) == {"Empatica E4"} and set(rows["subject_id"]) == {11, 12}
    assert counts(tmp_path / "out")["rows of 12/ACC.csv"] == 320
    assert_reconciled(tmp_path / "out")


def test_an_empty_line_is_a_sample_without_a_value(tmp_path):
    file = write(tmp_path / "HR.csv", f"{START}\n1.0\n70\n\n72\n")
    rows = imported(file, tmp_path / "out", *ARGUMENTS, "--subject=1")
    assert samples(rows, "heart_rate") == {T0: 70, T0 + timedelta(seconds=2): 72}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("HR.csv", "soon\n1\n70\n", "line 1: column 1: 'soon' is no start time"),
        ("HR.csv", "12\n1\n70\n", "line 1: column 1: '12' is no start time in seconds since 1970"),
        ("HR.csv", f"{START}\n2\n70\n", "line 2: column 1: 2 Hz; of an E4 it is 1 Hz"),
        ("HR.csv", f"{START}\n", "line 2: column 1: '' is no rate in Hz"),
        ("HR.csv", f"{START}\n1\n70\nx\n", "line 4: column 'heart_rate': 'x' is not a number"),
        ("ACC.csv", f"{START}\n32\n1\n", "line 1: has 1 columns; of an E4 it has 3"),
        (
            "ACC.csv", f"{START},{START},{START}\n32,32,32\n1,2,3\n1,2\n",
            "line 4: column 'acceleration_y': the line has 2 fields",
        ),
        ("IBI.csv", f"{START}, IBI\n1.0,0.8\nlater,0.9\n", "line 3: column 'time': 'later' is not a number"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, capsys, name, text, sentence):
    file = write(tmp_path / "in" / name, text)
    message = refused(capsys, tmp_path / "in", tmp_path / "out", *ARGUMENTS, "--subject=1")
    assert message.startswith(f"{file}: {sentence}")


def test_what_the_command_must_say(tmp_path, capsys):
    session(tmp_path / "in")
    sentence = refused(capsys, tmp_path / "in", tmp_path / "out", ARGUMENTS[0], "--subject=1")
    assert "is in UTC; say with --timezone" in sentence
    assert "give --subject=ID" in refused(capsys, tmp_path / "in", tmp_path / "out", *ARGUMENTS)
