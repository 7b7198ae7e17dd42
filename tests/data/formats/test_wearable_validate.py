"""The validator names every bad row and sums up a clean folder; the reader streams and loses nothing."""

import subprocess
import sys
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrwear_jax.data.formats import meds_checks, wearable, wearable_validate

BOUNDS = meds_checks.TimeBounds()
T0 = datetime(2017, 3, 1, 12)
CHANNELS = pl.DataFrame(
    {
        "channel": ["heart_rate", "ppg"],
        "unit": ["bpm", "a.u."],
        "description": [None, None],
        "valid_min": [25.0, -10.0],
        "valid_max": [230.0, 10.0],
    },
    wearable.wearable_checks.CHANNEL_SCHEMA,
)
GOOD = {
    "subject_id": 1,
    "start_time": T0,
    "sample_rate_hz": 1 / 60,
    "channel": "heart_rate",
    "values": [60.0, 300.0, float("nan"), 70.0],
    "unit": "bpm",
    "device": "watch",
}


def table(*changes):
    return pl.DataFrame([GOOD | change for change in changes], wearable.ROW_SCHEMA)


def folder(root, *tables):
    wearable.write_channels(root, CHANNELS)
    for i, rows in enumerate(tables):
        (root / "any" / "depth").mkdir(parents=True, exist_ok=True)
        rows.write_parquet(root / "any" / "depth" / f"{i}.parquet", row_group_size=2)
    return root


def messages(root, bounds=BOUNDS):
    return list(wearable_validate.validate(root, bounds, wearable_validate.Summary()))


CLEAN = table(
    {},
    {"device": "ring", "start_time": T0 + timedelta(minutes=2)},  # two devices at once
    {"sample_rate_hz": 25.0, "channel": "ppg", "unit": "a.u.", "values": [0.0] * 50, "device": None},
    {"sample_rate_hz": 100.0, "channel": "ppg", "unit": "a.u.", "values": [0.0] * 50},
    {"subject_id": 2, "start_time": T0 + timedelta(hours=11, minutes=58)},  # past midnight
)


def test_a_clean_folder_is_summed_up_and_exits_with_0(tmp_path):
    root = folder(tmp_path, CLEAN)
    run = subprocess.run(
        [sys.executable, "-m", "ehrwear_jax.data.formats.wearable_validate", str(root)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stderr == ""
    assert run.stdout.splitlines() == [
        "2 people, 3 person-days, 2 channels, 3 devices, 5 rows in 1 files",
        "  heart_rate [bpm]: 2 people, 3 rows, 0.0166667 Hz, 2 devices, 12 samples (25.0% missing, 25.0% outside the "
        "valid range), 1 rows overlap an earlier one",
        "  ppg [a.u.]: 1 people, 2 rows, 25 to 100 Hz, 2 devices, 100 samples (0.0% missing, 0.0% outside the valid "
        "range), 1 rows overlap an earlier one",
        "  first time per person: 2017-03-01 (subject 1) to 2017-03-01 (subject 2); quartiles 2017-03-01, 2017-03-01, "
        "2017-03-01",
        "  last time per person: 2017-03-01 (subject 1) to 2017-03-02 (subject 2); quartiles 2017-03-01, 2017-03-01, "
        "2017-03-02",
        "  hours of wear per person: 0.1 (subject 2) to 0.1 (subject 1); quartiles 0.1, 0.1, 0.1",
        f"{root}: no fault found",
    ]


FAULTS = [
    ({"start_time": datetime(1850, 1, 1)}, "column 'start_time': before 1900-01-01"),
    ({"start_time": datetime(2400, 1, 1)}, "column 'start_time': on or after 2300-01-01"),
    ({"sample_rate_hz": -1.0}, "column 'sample_rate_hz': -1.0 Hz, must be positive and finite"),
    ({"sample_rate_hz": float("nan")}, "column 'sample_rate_hz': NaN Hz, must be positive and finite"),
    ({"sample_rate_hz": 1e-12}, "column 'sample_rate_hz': 4 samples end on or after 2300-01-01"),
    ({"sample_rate_hz": 1e-300}, "column 'sample_rate_hz': 4 samples end on or after 2300-01-01"),
    ({"channel": "steps"}, "column 'channel': channel 'steps' is not in metadata/channels.parquet"),
    ({"channel": None}, "column 'channel': null"),
    ({"unit": "mmHg"}, "column 'unit': 'mmHg' is not 'bpm', the unit of channel 'heart_rate'"),
    ({"values": []}, "column 'values': holds no sample"),
    ({"values": None}, "column 'values': null"),
    ({"values": [1.0, float("inf")]}, "column 'values': holds an infinite sample"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_a_bad_row_is_named_and_set_aside(tmp_path, change, message):
    root = folder(tmp_path, table({}, {}, {}, change, {"subject_id": 2}))
    (path,) = wearable.list_shards(root)
    assert messages(root) == [f"{path}: row 3 (subject 1): {message}"]
    aside = []
    kept = [(s, r.height) for s, r in wearable.read_subjects(path, CHANNELS, BOUNDS, aside)]
    bad = pl.concat(aside)
    assert kept == [(1, 3), (2, 1)] and bad["row"].to_list() == [3] and bad["file"].to_list() == [str(path)]
    assert f"column '{bad['column'].item()}': {bad['reason'].item()}" == message


def test_all_faults_are_listed_up_to_the_limit_and_the_exit_code_is_1(tmp_path, capsys):
    root = folder(tmp_path, table(*(change for change, _ in FAULTS)), table({"subject_id": 1}))
    assert len(messages(root)) == len(FAULTS)
    assert wearable_validate.main([str(root), "--max-messages", "2"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert len([line for line in out if ": row " in line]) == 2 and f"... and {len(FAULTS) - 2} more" in out
    assert out[-1] == f"{root}: {len(FAULTS)} faults"


def test_the_day_of_extraction_bounds_the_recordings(tmp_path, capsys):
    root = folder(tmp_path, CLEAN)
    assert wearable_validate.main([str(root), "--extraction-date", "2015-01-01"]) == 1
    assert "column 'start_time': on or after 2016-01-02" in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        wearable_validate.main([str(root), "--extraction-date", "soon"])
    assert error.value.code == 2 and "extraction_date is 'soon'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (CLEAN.drop("unit"), "column 'unit' is missing"),
        (CLEAN.with_columns(values=pl.lit(1.0)), "column 'values' is Float64, expected a list of numbers"),
        (CLEAN.with_columns(values=pl.lit(["a"], pl.List(pl.String))), "column 'values' is List.String."),
        (CLEAN.with_columns(channel=pl.lit(3)), "column 'channel' is Int32, expected String"),
        (CLEAN.with_columns(pl.col("start_time").dt.replace_time_zone("Asia/Tokyo")), "has time zone Asia/Tokyo"),
        (CLEAN[[0, 4, 1, 2]], "row 2: column 'subject_id': rows of subject 1 are not contiguous"),
        (CLEAN[[0, 1, 4, 2]], "row 3: column 'subject_id': rows of subject 1 are not contiguous"),
    ],
)
def test_a_fault_of_the_file_is_one_message_and_stops_the_reader(tmp_path, rows, message):
    root = folder(tmp_path, rows, table({"subject_id": 9}))
    (path, _) = wearable.list_shards(root)
    (said,) = messages(root)
    assert said.startswith(f"{path}: ")
    with pytest.raises(ValueError, match=message) as error:
        list(wearable.read_subjects(path, CHANNELS, BOUNDS, []))
    assert str(error.value) == said


def test_torn_missing_and_repeated_files(tmp_path):
    assert "metadata/channels.parquet: no such file" in messages(tmp_path)[0]
    wearable.write_channels(tmp_path, CHANNELS)
    assert messages(tmp_path) == [f"{tmp_path}: holds no parquet file of recordings"]
    root = folder(tmp_path, CLEAN, CLEAN[4:])
    one, two = wearable.list_shards(root)
    assert messages(root) == [f"{two}: column 'subject_id': subject 2 is also in {one}"]
    content = two.read_bytes()
    two.write_bytes(content[: len(content) // 2])
    (said,) = messages(root)
    assert said.startswith(f"{two}: not a readable parquet file") and "\n" not in said


def test_utc_is_the_same_clock_and_a_file_without_rows_is_no_fault(tmp_path):
    zoned = CLEAN.with_columns(pl.col("start_time").dt.replace_time_zone("UTC"))
    root = folder(tmp_path, zoned, CLEAN[:0])
    assert messages(root) == []
    path, empty = wearable.list_shards(root)
    got = pl.concat([r for _, r in wearable.read_subjects(path, CHANNELS, BOUNDS, [])])
    assert got["start_time"].to_list() == CLEAN["start_time"].to_list()
    aside = []
    assert list(wearable.read_subjects(empty, CHANNELS, BOUNDS, aside)) == [] and pl.concat(aside).is_empty()


@pytest.mark.parametrize("group", [1, 2, 3, 7, 100])
def test_the_reader_gives_the_rows_of_read_shard_one_row_group_at_a_time(tmp_path, group, monkeypatch):
    rng = np.random.default_rng(group)
    changes = [{"subject_id": s, "values": [float(i)]} for s in range(20) for i in range(int(rng.integers(1, 9)))]
    rows = table(*changes)
    path = tmp_path / "0.parquet"
    rows.write_parquet(path, row_group_size=group)
    sizes = [part.height for _, part in wearable.row_groups(path)]
    assert max(sizes) <= group and sum(sizes) == rows.height
    opened = []
    groups = wearable.row_groups

    def watched(path):
        for item in groups(path):
            opened.append(item[1].height)
            yield item

    monkeypatch.setattr(wearable, "row_groups", watched)
    got, ahead = [], []
    for subject, mine in wearable.read_subjects(path, CHANNELS, BOUNDS, []):
        assert mine["subject_id"].unique().to_list() == [subject]
        got.append(mine)
        ahead.append(sum(opened) - sum(map(len, got)))
    assert pl.concat(got).equals(wearable.read_shard(path, CHANNELS))
    assert max(ahead) <= group, "never more than one row group beyond what has been given out"


def test_long_recordings_are_written_in_small_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(wearable, "_SAMPLES_PER_GROUP", 100)
    wearable.write_shard(tmp_path / "0.parquet", table(*[{"values": [1.0] * 30}] * 10))
    assert [part.height for _, part in wearable.row_groups(tmp_path / "0.parquet")] == [3, 3, 3, 1]
    wearable.write_shard(tmp_path / "1.parquet", table(*[{"values": [1.0] * 300}] * 2))
    assert [part.height for _, part in wearable.row_groups(tmp_path / "1.parquet")] == [1, 1]


def test_an_offset_that_no_place_has_is_named_and_its_row_set_aside(tmp_path):
    rows = table({}, {}, {}, {"subject_id": 2}).with_columns(
        utc_offset_minutes=pl.Series([-840, 841, None, 840], dtype=pl.Int16)
    )
    root = folder(tmp_path, rows)
    (path,) = wearable.list_shards(root)
    message = "column 'utc_offset_minutes': 841 minutes, must lie between -840 and 840"
    assert messages(root) == [f"{path}: row 1 (subject 1): {message}"]
    aside = []
    kept = pl.concat([mine for _, mine in wearable.read_subjects(path, CHANNELS, BOUNDS, aside)])
    assert kept["utc_offset_minutes"].to_list() == [-840, None, 840]
    assert pl.concat(aside)["utc_offset_minutes"].to_list() == [841]


# ------------------------------------------------------------------------------------------------ what is unlikely


def warned(root, *changes):
    summary = wearable_validate.Summary()
    assert list(wearable_validate.validate(folder(root, table(*changes)), BOUNDS, summary)) == []
    return summary.warnings()


def hours_of(*starts, **more):
    """Recordings of an hour of minutes."""
    return [{"start_time": T0 + timedelta(hours=h), "values": [60.0 + h] * 60, **more} for h in starts]


def test_recordings_that_follow_one_another_are_not_warned_of(tmp_path):
    assert warned(tmp_path, *hours_of(0, 1, 2, 5), *hours_of(0, 1, device="ring")) == []


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (hours_of(0, 1) + [{"start_time": datetime(1970, 1, 18), "device": "ring"}],
         "heart_rate: 1 of 3 rows begin in 1970: is start_time in another unit, or not set?"),
        (hours_of(0, 1, 2, sample_rate_hz=60.0),
         "heart_rate: 2 of 2 rows are followed as if their rate was one over the written one (60 Hz): a sample every "
         "60 s is 1/60 Hz"),
        (hours_of(0, sample_rate_hz=60.0), "heart_rate: 60 Hz is much for bpm: a sample every 60 s is 1/60 Hz"),
        (hours_of(0, 0.25, 0.5, 0.75), "heart_rate: 3 of 4 rows begin before an earlier one has ended: is the rate too "
         "low, or is every recording there twice?"),
        ([{"values": [1.2, 1.3, 70.0, float("nan")]}],
         "heart_rate: 2 of 3 values lie outside valid_min to valid_max: are they in bpm?"),
        ([{"values": [float("nan")] * 3}], "heart_rate: all of 3 samples are missing"),
        (hours_of(0, 1, 2) + [{"start_time": T0 + timedelta(hours=9), "values": [float("nan")] * 3}],
         "heart_rate: 1 of 4 rows hold no value"),
        (hours_of(0, 1, 2) + hours_of(1), "heart_rate: 1 of 4 rows are exact copies of another one"),
    ],
)  # fmt: skip
def test_what_is_well_formed_and_unlikely_is_warned_of(tmp_path, changes, sentence):
    assert warned(tmp_path, *changes) == [sentence]


def test_wear_is_told_by_person_and_warnings_are_no_faults(tmp_path, capsys):
    rows = table(*hours_of(0, 1), *({"subject_id": 2} | h for h in hours_of(100, sample_rate_hz=60.0)))
    assert wearable_validate.main([str(folder(tmp_path, rows))]) == 0
    told = capsys.readouterr().out
    assert "hours of wear per person: 0.0 (subject 2) to 2.0 (subject 1)" in told
    assert "first time per person: 2017-03-01 (subject 1) to 2017-03-05 (subject 2)" in told
    assert "\nwarning: heart_rate: 60 Hz is much for bpm" in told and told.endswith("no fault found\n")
