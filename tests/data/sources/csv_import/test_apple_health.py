"""Apple Health: records at their times and offsets, steps spread, sleep as states; what is wrong is named by line."""

from datetime import datetime, timedelta

import pytest
from csv_exports import assert_reconciled, counts, imported, refused, samples, write

from ehrwear_jax.data.sources.csv_import import apple_health

ARGUMENTS = ("--preset=apple_health", "--subject=1")
WATCH = "&lt;&lt;HKDevice: 0x1&gt;, name:Apple Watch, manufacturer:Apple Inc., hardware:Watch5,4, software:7.6&gt;"
Q = "HKQuantityTypeIdentifier"
RECORDS = f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE HealthData [
<!ELEMENT HealthData (Record*)>
]>
<HealthData locale="en_GB">
 <Record type="{Q}HeartRate" sourceName="Ada’s Watch" device="{WATCH}" unit="count/min" startDate="2023-01-01 08:00:10 +0100" endDate="2023-01-01 08:00:10 +0100" value="60"/>
 <Record type="{Q}HeartRate" sourceName="Ada’s Watch" device="{WATCH}" unit="count/min" startDate="2023-01-01 08:00:50 +0100" endDate="2023-01-01 08:00:50 +0100" value="70"/>
 <Record type="{Q}HeartRate" sourceName="Ada’s Watch" device="{WATCH}" unit="count/min" startDate="2023-07-01 08:00:00 +0200" endDate="2023-07-01 08:00:00 +0200" value="80">
  <MetadataEntry key="HKMetadataKeyHeartRateMotionContext" value="1"/>
 </Record>
 <Record type="{Q}HeartRateVariabilitySDNN" sourceName="Ada’s Watch" device="{WATCH}" unit="ms" startDate="2023-01-01 08:05:00 +0100" endDate="2023-01-01 08:05:59 +0100" value="45.5"/>
 <Record type="{Q}RestingHeartRate" sourceName="Ada’s Watch" device="{WATCH}" unit="count/min" startDate="2023-01-01 00:00:00 +0100" endDate="2023-01-01 23:59:00 +0100" value="55"/>
 <Record type="{Q}StepCount" sourceName="Ada’s iPhone" unit="count" startDate="2023-01-01 09:00:00 +0100" endDate="2023-01-01 09:04:00 +0100" value="100"/>
 <Record type="{Q}BodyMass" sourceName="Scale" unit="kg" startDate="2023-01-01 09:00:00 +0100" endDate="2023-01-01 09:00:00 +0100" value="70"/>
 <Record type="HKCategoryTypeIdentifierSleepAnalysis" sourceName="Ada’s iPhone" startDate="2023-01-01 23:00:00 +0100" endDate="2023-01-01 23:10:00 +0100" value="HKCategoryValueSleepAnalysisInBed"/>
 <Record type="HKCategoryTypeIdentifierSleepAnalysis" sourceName="Ada’s Watch" device="{WATCH}" startDate="2023-01-01 23:02:00 +0100" endDate="2023-01-01 23:04:00 +0100" value="HKCategoryValueSleepAnalysisAwake"/>
 <Record type="HKCategoryTypeIdentifierSleepAnalysis" sourceName="Ada’s Watch" device="{WATCH}" startDate="2023-01-01 23:04:00 +0100" endDate="2023-01-01 23:06:00 +0100" value="HKCategoryValueSleepAnalysisAsleepDeep"/>
 <Record type="HKCategoryTypeIdentifierSleepAnalysis" sourceName="Ada’s Watch" device="{WATCH}" startDate="2023-01-01 23:06:00 +0100" endDate="2023-01-01 23:07:00 +0100" value="HKCategoryValueSleepAnalysisAsleepUnspecified"/>
</HealthData>
"""  # noqa: E501
DAY = datetime(2022, 12, 31, 23)  # midnight at the place, in UTC


def after(hours, minutes):
    return DAY + timedelta(hours=hours, minutes=minutes)


def export(folder, text=RECORDS):
    return write(folder / "apple_health_export" / "export.xml", text)


def test_records_become_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(apple_health, "_CHUNK_BYTES", 100)  # elements reach over parts of the file
    monkeypatch.setattr(apple_health, "_BATCH", 3)
    export(tmp_path)
    rows = imported(tmp_path, tmp_path / "out", *ARGUMENTS)
    assert samples(rows, "heart_rate") == {after(8, 0): 65, datetime(2023, 7, 1, 6): 80}
    assert samples(rows, "hrv_sdnn") == {after(8, 5): 45.5} and samples(rows, "resting_heart_rate") == {DAY: 55}
    assert samples(rows, "steps") == {after(9, m): 25 for m in range(4)}
    assert samples(rows, "in_bed") == {after(23, m): 1 for m in range(10)}
    states = zip(range(2, 7), [0, 0, 1, 1, 1], strict=True)
    assert samples(rows, "asleep") == {after(23, m): state for m, state in states}
    assert samples(rows, "sleep_stage") == {
        after(23, m): stage for m, stage in zip(range(2, 6), (0, 0, 3, 3), strict=True)
    }
    offsets = dict(zip(rows["start_time"], rows["utc_offset_minutes"], strict=True))
    assert offsets[datetime(2023, 7, 1, 6)] == 120 and offsets[DAY] == 60
    assert set(rows["device"]) == {"Watch5,4", "source 1"}, "names of people are left out"
    daily = rows.filter(channel="resting_heart_rate")
    assert daily["sample_rate_hz"].to_list() == [pytest.approx(1 / 86_400)]
    found = counts(tmp_path / "out")
    assert found["rows of apple_health_export/export.xml"] == 11 and found["readings in these rows"] == 13
    assert found[f"type {Q}BodyMass is not read"] == 1
    assert_reconciled(tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            'value="70"/>\n <Record type="HKQ', 'value="x"/>\n <Record type="HKQ',
            "line 7: column 'value': 'x' is not a number",
        ),
        ('unit="ms"', 'unit="s"', "line 11: column 'unit': 's' is not the unit of this type"),
        (
            "2023-01-01 08:00:50 +0100", "2023-01-01 08:00:50",
            "line 7: column 'startDate': '2023-01-01 08:00:50' has no UTC offset",
        ),
        (
            "09:04:00 +0100", "08:04:00 +0100",
            "line 13: column 'endDate': '2023-01-01 08:04:00 +0100' is before the begin",
        ),
        (
            "2023-01-01 09:04", "2033-01-01 09:04",
            "line 13: column 'endDate': '2033-01-01 09:04:00 +0100' is more than 7 days later",
        ),
        ("AsleepDeep", "AsleepN3", "line 17: column 'value': 'HKCategoryValueSleepAnalysisAsleepN3' is not a number"),
        (' value="45.5"', "", None),
        ("</HealthData>", "</Health>", "line 19: column 3: not XML (mismatched tag)"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, capsys, old, new, sentence):
    assert old in RECORDS
    file = export(tmp_path, RECORDS.replace(old, new, 1))
    if sentence is None:
        imported(tmp_path, tmp_path / "out", *ARGUMENTS)
        assert counts(tmp_path / "out")["no value"] == 1
    else:
        assert refused(capsys, tmp_path, tmp_path / "out", *ARGUMENTS) == f"{file}: {sentence}"


def test_what_the_command_must_say(tmp_path, capsys):
    file = export(tmp_path)
    assert "give --subject=ID" in refused(capsys, file, tmp_path / "out", ARGUMENTS[0])
    assert "leave --timezone out" in refused(capsys, file, tmp_path / "out", *ARGUMENTS, "--timezone=Europe/Paris")
    (tmp_path / "empty").mkdir()
    assert "holds no file export.xml" in refused(capsys, tmp_path / "empty", tmp_path / "out", *ARGUMENTS)
