"""Tables of text and parquet: values land at their times and in their units, mistakes are named by line and column."""

import gzip
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from csv_exports import assert_reconciled, counts, imported, refused, samples, write

from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.sources.csv_import import convert, text_tables
from ehrwear_jax.data.sources.csv_import.__main__ import main

NOON = datetime(2020, 7, 1, 12)
WIDE = """
[subject]
column = "who"
[time]
column = "t"
[sampling]
step_seconds = 60
[channels.heart_rate]
column = "hr"
unit = "bpm"
valid_min = 25
valid_max = 230
[channels.skin_temperature]
column = "temp"
unit = "degC"
source_unit = "degF"
"""
LONG = """
[subject]
column = "who"
[time]
column = "t"
[channel]
column = "kind"
value = "v"
unit = "u"
[device]
column = "dev"
[sampling]
step_seconds = 60
[channels.heart_rate]
source = "HR"
unit = "bpm"
[channels.acceleration]
unit = "g"
rate_hz = 2
"""
TABLE = "who,t,hr,temp\n7,2020-07-01 12:00:10,60,98.6\n7,2020-07-01 12:01:00,62,\n7,2020-07-01T12:01:30,64,99.5\n"


def at(*minutes):
    return [NOON + timedelta(minutes=m) for m in minutes]


@pytest.fixture
def paths(tmp_path):
    """(folder of the source, destination, function that writes the mapping and returns the option)."""
    return tmp_path / "in", tmp_path / "out", lambda text: f"--mapping={write(tmp_path / 'm.toml', text)}"


def test_a_wide_table(paths):
    source, out, mapping = paths
    write(source / "a.csv", TABLE)
    rows = imported(source, out, mapping(WIDE), "--device=watch")
    assert samples(rows, "heart_rate") == dict(zip(at(0, 1), [60, 63], strict=True))
    assert samples(rows, "skin_temperature") == {NOON: pytest.approx(37), at(1)[0]: pytest.approx(37.5)}
    assert rows["subject_id"].unique().to_list() == [7] and rows["device"].unique().to_list() == ["watch"]
    assert "utc_offset_minutes" not in rows.columns and not (out / "subject_ids.csv").exists()
    channels = wearable.read_channels(out / "wearable")
    assert channels.row(0, named=True) == {
        "channel": "heart_rate", "unit": "bpm", "description": None, "valid_min": 25, "valid_max": 230,
    }  # fmt: skip
    assert counts(out) == {
        "rows of a.csv": 3, "readings in these rows": 6, "no value": 1, "readings kept": 5,
        "samples with a value": 4, "stretches": 2,
    }  # fmt: skip
    assert_reconciled(out)


def test_a_long_table_with_units_devices_and_ids_of_text(paths):
    source, out, mapping = paths
    text = "who;kind;t;v;u;dev\n"
    text += "zoe;HR;2020-07-01T12:00:00+02:00;1,5;Hz;watch\nadam;HR;2020-07-01T12:00:00+02:00;70;bpm;\n"
    text += "".join(
        f"zoe;acceleration;2020-07-01T12:00:0{k}.{5 * h}+02:00;{k + h};mg;belt\n" for k in range(3) for h in (0, 1)
    )
    write(source / "deep" / "a.csv", text + "zoe;Weight;2020-07-01T12:00:00+02:00;70;kg;\n")
    layout = '[table]\ndelimiter = ";"\ndecimal = ","\n'
    rows = imported(source, out, mapping(layout + LONG))
    ids = dict(pl.read_csv(out / "subject_ids.csv").iter_rows())
    assert ids == {"adam": 1, "zoe": 2}
    zoe = rows.filter(pl.col("subject_id") == 2)
    two_hours_ago = NOON - timedelta(hours=2)
    assert samples(zoe, "heart_rate") == {two_hours_ago: 90}
    half = timedelta(seconds=0.5)
    expected = {two_hours_ago + n * half: pytest.approx((n // 2 + n % 2) / 1000) for n in range(6)}
    assert samples(zoe, "acceleration") == expected
    assert set(rows["utc_offset_minutes"]) == {120}
    assert set(zip(rows["channel"], rows["device"], strict=True)) == {
        ("heart_rate", "watch"), ("heart_rate", None), ("acceleration", "belt"),
    }  # fmt: skip
    assert counts(out)["channel 'Weight' is not in the mapping"] == 1
    assert_reconciled(out)


def test_the_same_from_text_gzip_and_parquet(paths):
    source, out, mapping = paths
    table = pl.read_csv(TABLE.encode(), try_parse_dates=False)
    typed = table.with_columns(pl.col("t").str.replace("T", " ").str.to_datetime(time_unit="ms"))
    write(source / "text" / "a.csv", "\ufeff" + TABLE.replace("\n", "\r\n"))
    (source / "zipped").mkdir()
    (source / "zipped" / "a.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    (source / "parquet").mkdir()
    typed.write_parquet(source / "parquet" / "a.parquet")
    found = [imported(source / kind, out / kind, mapping(WIDE)) for kind in ("text", "zipped", "parquet")]
    assert found[0].equals(found[1]) and found[0].equals(found[2])


def test_intervals_are_spread_and_times_may_stand_in_two_columns(paths):
    source, out, mapping = paths
    text = "day,time,until,n\n01/07/2020,12:00,01/07/2020 12:10,50\n01/07/2020,12:10,01/07/2020 12:10,4\n"
    write(source / "a.csv", text)
    plan = '[subject]\nid = "3"\n[time]\ncolumn = ["day", "time"]\nend = "until"\nformat = "%d/%m/%Y %H:%M"\n'
    plan += 'utc_offset_minutes = 60\n[channels.steps]\ncolumn = "n"\nunit = "steps/min"\nstep_seconds = 300\n'
    rows = imported(source, out, mapping(plan + 'combine = "sum_per_minute"\n'))
    start = NOON - timedelta(hours=1)
    last = pytest.approx(0.8)
    assert samples(rows, "steps") == {start: 5, start + timedelta(minutes=5): 5, start + timedelta(minutes=10): last}


BAD = [
    ("7,2020-07-01 12:02,x,1", "line 5: column 'hr': 'x' is not a number"),
    ("7,2020-07-01 12:02,inf,1", "line 5: column 'hr': 'inf' is not a finite number"),
    ("7,2020-07-01 12:02,61,1e999", "line 5: column 'temp': '1e999' is not a finite number"),
    ("7,2020-13-01 12:02,61,1", "line 5: column 't': '2020-13-01 12:02' is not a time of the given format"),
    ("7,,61,1", "line 5: column 't': '' is no time"),
    (",2020-07-01 12:02,61,1", "line 5: column 'who': '' is no subject"),
    (
        "7,2020-07-01T12:02+01:00,61,1",
        "line 5: column 't': '2020-07-01T12:02+01:00' has a UTC offset, others have none",
    ),
    ("7,2020-07-01 12:02,61", "line 5: column 'hr': the line has 3 fields, the table 4 columns"),
    ("7,2020-07-01 12:02,61,1,9", "line 5: column 'temp': the line has 5 fields, the table 4 columns"),
]


@pytest.mark.parametrize(("line", "sentence"), BAD)
def test_a_bad_row_is_named_or_dropped_and_counted(paths, capsys, line, sentence):
    source, out, mapping = paths
    write(source / "a.csv", TABLE + line + "\n7,2020-07-01 12:03,70,100.4\n")
    assert refused(capsys, source, out, mapping(WIDE)) == f"{source}/a.csv: {sentence}"
    rows = imported(source, out, mapping(WIDE), "--drop-bad")
    assert samples(rows, "heart_rate")[at(3)[0]] == 70 and samples(rows, "skin_temperature")[at(3)[0]] == 38
    found = counts(out)
    assert found["rows of a.csv"] == 5 and found["readings in these rows"] == 10
    assert sum(n for reason, n in found.items() if reason.startswith(("column", "another number"))) in (1, 2)
    assert_reconciled(out)


def test_a_line_is_that_of_the_file_even_behind_quoted_and_empty_lines(paths, capsys):
    source, out, mapping = paths
    write(source / "a.csv", "note," + TABLE.replace("\n", '\n"two\nlines",', 3).rstrip(",") + "\nz,7,2020-07-01,y,1\n")
    assert refused(capsys, source, out, mapping(WIDE)).startswith(f"{source}/a.csv: line 9: column 'hr': 'y'")


def test_other_mistakes(paths, capsys, monkeypatch):
    source, out, mapping = paths

    def sentence(text, plan=WIDE, *arguments):
        write(source / "a.csv", text)
        return refused(capsys, source, out, mapping(plan), *arguments).removeprefix(f"{source}/a.csv: ")

    assert sentence(TABLE.replace("hr", "HR")).startswith("line 1: column 'hr' is missing (found ['who', 't', 'HR'")
    assert sentence("") == "line 1: there is no header"
    assert "no reading is left of 0" in sentence("who,t,hr,temp\n")
    assert sentence(TABLE, WIDE, "--subject=9") == "column 'who' says whose readings these are; leave --subject out"
    nobody = WIDE.replace('[subject]\ncolumn = "who"', "")
    assert sentence(TABLE, nobody) == "does not say whose recording it is; give --subject=ID or --subject-folders"
    assert "lies in no person's folder" in sentence(TABLE, nobody, "--subject-folders")
    utc = sentence(TABLE.replace("10,60", "10Z,60"))
    assert utc.startswith("line 2: column 't': '2020-07-01 12:00:10Z' is in UTC; say with --timezone")
    infer = WIDE.replace("step_seconds = 60", "gap_seconds = 9")
    assert "channel 'heart_rate' of subject '7': its times are irregular" in sentence(
        TABLE + "".join(f"7,2020-07-02 12:{k * k:02d},1,1\n" for k in range(8)), infer
    )
    (source / "a.csv").write_bytes(TABLE.encode() + b"7,2020-07-01,\xff,1\n")
    assert "not text in utf-8" in refused(capsys, source, out, mapping(WIDE))
    units = sentence("who,kind,t,v,u,dev\n1,HR,2020-07-01,70,mmHg,\n", LONG)
    assert units == "line 2: column 'u': 'mmHg' cannot be turned into 'bpm'"
    assert "--timezone 'Mars'" in sentence(TABLE, WIDE, "--timezone=Mars")
    monkeypatch.chdir(source.parent)
    assert "no such file or folder" in refused(capsys, source / "none", out, mapping(WIDE))


def test_a_long_file_is_read_in_parts(paths, monkeypatch):
    """No batch is larger than a block, however long the file; the parts are the whole, in order."""
    source, out, mapping = paths
    monkeypatch.setattr(text_tables, "BLOCK_BYTES", 1 << 13)
    seen = []
    monkeypatch.setattr(convert.Sorter, "add", lambda self, batch: seen.append(batch))
    n = 6_000
    lines = [f"1,{(NOON + timedelta(seconds=k)).isoformat()},{k},98" for k in range(n)]
    write(source / "a.csv", "who,t,hr,temp\n" + "\n".join(lines) + "\n")
    assert main([str(source), str(out), mapping(WIDE)]) == 1  # nothing reaches the result
    rates = pl.concat(seen).filter(channel="heart_rate")["value"]
    assert rates.to_list() == list(range(n))
    assert max(batch.height for batch in seen) < 2 * (1 << 13) / len(lines[0]) and len(seen) > 10


def test_people_of_many_groups_are_each_in_one_file(paths, monkeypatch):
    source, out, mapping = paths
    monkeypatch.setattr(convert, "GROUP_BYTES", 200)
    rng = np.random.default_rng(0)
    people, minutes = rng.integers(0, 20, 300), rng.permutation(300)
    lines = [
        f"{p},{(NOON + timedelta(minutes=int(m))).isoformat()},{m},{m}" for p, m in zip(people, minutes, strict=True)
    ]
    write(source / "a.csv", "who,t,hr,temp\n" + "\n".join(lines) + "\n")
    rows = imported(source, out, mapping(WIDE))
    assert len(list((out / "wearable").glob("*.parquet"))) > 5
    for person in range(20):
        mine = samples(rows.filter(pl.col("subject_id") == person), "heart_rate")
        assert mine == {NOON + timedelta(minutes=int(m)): m for m in minutes[people == person]}


def test_real_pulse_oximetry(shared_data, paths):
    """10 minutes at 100 Hz with times in ms since the start."""
    file, (_, out, mapping) = shared_data("signals/ppg_smartcare.csv"), paths
    plan = '[time]\ncolumn = "TIMESTAMP_MS"\nformat = "epoch_ms"\nstart = "2020-01-31T08:00:00"\n'
    plan += '[channels.ppg]\ncolumn = "PLETH"\nunit = "a.u."\n[channels.pulse]\ncolumn = "PULSE_BPM"\nunit = "bpm"\n'
    rows = imported(file, out, mapping(plan), "--subject=1", "--timezone=Europe/Amsterdam")
    ppg = rows.filter(pl.col("channel") == "ppg")
    raw = pl.read_csv(file)
    assert ppg["sample_rate_hz"].unique().to_list() == [100] and ppg["utc_offset_minutes"].unique().to_list() == [60]
    assert ppg["start_time"][0] == datetime(2020, 1, 31, 7) + timedelta(milliseconds=raw["TIMESTAMP_MS"][0])
    start_ms = (ppg["start_time"] - datetime(2020, 1, 31, 7)).dt.total_milliseconds()
    at = [
        (start + 10 * k, v) for start, values in zip(start_ms, ppg["values"], strict=True) for k, v in enumerate(values)
    ]
    seen = [(ms, v) for ms, v in at if v == v]
    assert seen == list(zip(raw["TIMESTAMP_MS"], raw["PLETH"].cast(pl.Float32), strict=True))
    assert_reconciled(out)
