"""Tables of days: values become samples from one midnight of the place to the next."""

from datetime import datetime

import pytest
from csv_exports import assert_reconciled, counts, imported, refused, samples, write

from ehrwear_jax.data.sources.csv_import import daily

OURA = """date,Sleep Score,Total Sleep Duration,Average Resting Heart Rate,Average HRV,Temperature Deviation (°C),Steps
2023-03-25,80,25200,55.5,42,-0.1,8000
2023-03-26,81,24600,,45,0.2,9000
2023-03-26,82,600,70,1,0.2,1
"""
GARMIN = (
    "user_id;calendarDate;totalSteps;restingHeartRate;averageStressLevel\nx;2023-03-25;7000;50;30\ny;2023-03-25;1;60;\n"
)


def test_oura(tmp_path):
    write(tmp_path / "in" / "trends.csv", OURA)
    rows = imported(tmp_path / "in", tmp_path / "out", "--preset=daily", "--subject=3", "--device=ring")
    first, second = datetime(2023, 3, 25), datetime(2023, 3, 26)
    assert samples(rows, "sleep_duration") == {first: 420, second: 410}
    assert samples(rows, "resting_heart_rate") == {first: 55.5, second: 70}
    assert samples(rows, "hrv_rmssd") == {first: 42, second: 45} and samples(rows, "daily_steps")[second] == 9000
    assert samples(rows, "temperature_deviation")[first] == pytest.approx(-0.1)
    assert set(rows["device"]) == {"ring"} and "utc_offset_minutes" not in rows.columns
    found = counts(tmp_path / "out")
    assert found["readings in these rows"] == 15 and found["no value"] == 1
    assert found["the same time as another reading, with another value"] == 3
    assert found["the same time and value as another reading"] == 1
    assert_reconciled(tmp_path / "out")


def test_days_are_those_of_the_place(tmp_path):
    """London's clock was set forward on the second day, which had 23 hours."""
    write(tmp_path / "in" / "trends.csv", OURA + "2023-03-27,,1,1,1,0,5\n")
    rows = imported(tmp_path / "in", tmp_path / "out", "--preset=daily", "--subject=3", "--timezone=Europe/London")
    days = (datetime(2023, 3, 25), datetime(2023, 3, 26), datetime(2023, 3, 26, 23))
    assert samples(rows, "daily_steps") == dict(zip(days, (8000, 9000, 5), strict=True))


def test_garmin(tmp_path):
    write(tmp_path / "in" / "daily.csv", GARMIN)
    write(tmp_path / "in" / "other.csv", "date,mood\n2023-03-25,good\n")
    rows = imported(tmp_path / "in", tmp_path / "out", "--preset=daily")
    assert rows.filter(channel="daily_steps").sort("subject_id")["values"].list.first().to_list() == [7000, 1]
    assert (tmp_path / "out" / "subject_ids.csv").read_text() == "source_id,subject_id\nx,1\ny,2\n"


def test_mistakes(tmp_path, capsys):
    file = write(tmp_path / "in" / "daily.csv", GARMIN.replace("7000", "many"))
    sentence = refused(capsys, tmp_path / "in", tmp_path / "out", "--preset=daily")
    assert sentence == f"{file}: line 2: column 'totalSteps': 'many' is not a number"
    write(file, GARMIN.replace("2023-03-25;1", "25.3.23;1"))
    sentence = refused(capsys, tmp_path / "in", tmp_path / "out", "--preset=daily")
    assert sentence == f"{file}: line 3: column 'calendarDate': '25.3.23' is not a time of the given format"
    write(file, "date,mood\n2023-03-25,good\n")
    assert "holds no table of days" in refused(capsys, tmp_path / "in", tmp_path / "out", "--preset=daily")


def test_every_column_has_a_channel_and_a_plain_name():
    assert all(daily.plain(name) == name and channel in daily.CHANNELS for name, (channel, _) in daily.COLUMNS.items())
