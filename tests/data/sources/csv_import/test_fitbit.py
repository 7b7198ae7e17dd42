"""Fitabase's tables and an account's archive: rates and steps at their minutes, on the clock of the place."""

import json
from datetime import datetime, timedelta

import pytest
from csv_exports import assert_reconciled, counts, imported, refused, samples, write

PRESET = "--preset=fitbit"
ARGUMENTS = (PRESET, "--subject=4", "--timezone=America/New_York")


def test_fitabase(tmp_path):
    source = tmp_path / "in"
    seconds = "Id,Time,Value\n2022484408,4/12/2016 7:21:00 AM,97\n2022484408,4/12/2016 7:21:05 AM,102\n"
    seconds += "2022484408,4/12/2016 12:03:05 PM,80\n4020332650,4/12/2016 12:00:00 AM,60\n"
    write(source / "heartrate_seconds_merged.csv", seconds)
    write(source / "minuteStepsNarrow_merged.csv", "Id,ActivityMinute,Steps\n4020332650,4/12/2016 11:59:00 PM,17\n")
    write(source / "minuteSleep_merged.csv", "Id,date,value,logId\n4020332650,4/12/2016 2:47:30 AM,3,1\n")
    rows = imported(source, tmp_path / "out", PRESET)
    noon = datetime(2016, 4, 12, 12)
    assert samples(rows.filter(subject_id=2022484408), "heart_rate") == {
        noon - timedelta(hours=4, minutes=39): 99.5,
        noon + timedelta(minutes=3): 80,
    }
    assert samples(rows.filter(subject_id=4020332650), "heart_rate") == {noon - timedelta(hours=12): 60}
    assert samples(rows, "steps") == {noon + timedelta(hours=11, minutes=59): 17}
    assert "utc_offset_minutes" not in rows.columns
    assert "rows of minuteSleep_merged.csv" not in counts(tmp_path / "out")
    assert_reconciled(tmp_path / "out")


def archive(folder):
    rates = [(0, 70, 0), (5, 80, 2), (30, 90, 3)]
    records = [
        {"dateTime": f"11/01/20 05:59:{s:02d}", "value": {"bpm": bpm, "confidence": sure}} for s, bpm, sure in rates
    ]
    write(folder / "Global Export Data" / "heart_rate-2020-11-01.json", json.dumps(records, indent=2))
    steps = [{"dateTime": f"11/01/20 06:{m:02d}:00", "value": str(m)} for m in range(3)]
    write(folder / "Global Export Data" / "steps-2020-11-01.json", json.dumps(steps))
    newer = "timestamp,beats per minute,data source\n2020-11-01T06:10:04Z,65.0,Watch\n"
    write(folder / "Physical Activity_GoogleData" / "heart_rate_2020-11-01.csv", newer)
    return folder


def test_the_archive_is_in_utc(tmp_path):
    """The night in which New York's clock was set back, at 06:00 UTC."""
    rows = imported(archive(tmp_path / "in"), tmp_path / "out", *ARGUMENTS)
    six = datetime(2020, 11, 1, 6)
    minute = timedelta(minutes=1)
    assert samples(rows, "heart_rate") == {six - minute: 85, six + 10 * minute: 65}
    assert samples(rows, "steps") == {six: 0, six + minute: 1, six + 2 * minute: 2}
    assert dict(zip(rows["start_time"], rows["utc_offset_minutes"], strict=True)) == {
        six - minute: -240, six: -300, six + 10 * minute: -300,
    }  # fmt: skip
    assert set(rows["subject_id"]) == {4} and set(rows["device"]) == {"Fitbit"}
    assert counts(tmp_path / "out")["a heart rate of confidence 0"] == 1
    assert_reconciled(tmp_path / "out")


def test_an_archive_without_a_place_is_refused(tmp_path, capsys):
    source = archive(tmp_path / "in")
    sentence = refused(capsys, source, tmp_path / "out", PRESET, "--subject=4")
    assert "heart_rate-2020-11-01.json: line 2: column 'dateTime': '11/01/20 05:59:00' is in UTC" in sentence
    sentence = refused(capsys, source, tmp_path / "out", PRESET, "--timezone=UTC")
    assert "give --subject=ID or --subject-folders" in sentence


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"bpm": 80', '"bpm": "fast"', "line 9: column 'value.bpm': 'fast' is not a number"),
        ("11/01/20 05:59:05", "01.11.2020", "line 9: column 'dateTime': '01.11.2020' is not a time"),
        ('"dateTime": "11/01/20 05:59:05"', '"when": 1', "line 9: column 'dateTime': '' is no time"),
        ('"bpm": 80,', '"bpm": 80', "line 13: column 7: not JSON (Expecting ',' delimiter)"),
    ],
)
def test_mistakes_in_json(tmp_path, capsys, old, new, words):
    source = archive(tmp_path / "in")
    file = source / "Global Export Data" / "heart_rate-2020-11-01.json"
    assert old in file.read_text()
    write(file, file.read_text().replace(old, new))
    assert refused(capsys, source, tmp_path / "out", *ARGUMENTS).startswith(f"{file}: {words}")


def test_nothing_of_this_format(tmp_path, capsys):
    write(tmp_path / "in" / "a.csv", "a,b\n1,2\n")
    assert "holds no heart rates or steps" in refused(capsys, tmp_path / "in", tmp_path / "out", *ARGUMENTS)
