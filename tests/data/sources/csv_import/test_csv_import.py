"""The command: counts add up whatever the table, a dry run writes nothing, ids are kept or given, faults reported."""

import json
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from csv_exports import assert_reconciled, counts, imported, refused, samples, write
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.data.sources.csv_import.__main__ import main

T0 = datetime(2021, 5, 1)
PLAN = """
[subject]
column = "who"
[time]
column = "t"
[channel]
column = "kind"
value = "v"
[channels.heart_rate]
source = "hr"
unit = "bpm"
step_seconds = 60
valid_min = 25
valid_max = 230
[channels.ecg]
unit = "mV"
rate_hz = 0.1
"""
HEADER = "who,t,kind,v\n"


@pytest.fixture
def plan(tmp_path):
    return f"--mapping={write(tmp_path / 'm.toml', PLAN)}"


def row(who="1", minute=0, kind="hr", value=60):
    return f"{who},{(T0 + timedelta(minutes=minute)).isoformat()},{kind},{value}\n"


VALUES = st.sampled_from(["60", "61.5", "", "NA", "x", "inf"])
KINDS = st.sampled_from(["hr", "hr", "ecg", "other", ""])
SECONDS = st.one_of(st.integers(0, 100), st.integers(0, 200_000))


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(["1", "2", ""]), SECONDS, KINDS, VALUES), max_size=40))
def test_counts_add_up_and_each_value_stands_in_its_step(table):
    """Against a plain count of the rows of any table with gaps, repeats, empty fields and rows that cannot be read."""
    lines = [f"{who},{(T0 + timedelta(seconds=s)).isoformat()},{kind},{v}\n" for who, s, kind, v in table]
    kept: dict[tuple, float] = {}
    for who, s, kind, v in table:
        if who and kind in ("hr", "ecg") and v in ("60", "61.5"):
            kept.setdefault((who, kind, s), float(v))
    with tempfile.TemporaryDirectory() as folder:
        source, out = write(Path(folder) / "a.csv", HEADER + "".join(lines)), Path(folder) / "out"
        mapping = f"--mapping={write(Path(folder) / 'm.toml', PLAN)}"
        if not kept:
            assert main([str(source), str(out), mapping, "--drop-bad"]) == 1
            return
        rows = imported(source, out, mapping, "--drop-bad")
        found = counts(out)
        assert found["rows of a.csv"] == found["readings in these rows"] == len(table)
        assert found["readings kept"] == len(kept)
        assert_reconciled(out)
        for who in ("1", "2"):
            steps: dict[datetime, list[float]] = {}
            for (other, kind, s), value in kept.items():
                if (other, kind) == (who, "hr"):
                    steps.setdefault(T0 + timedelta(seconds=s // 60 * 60), []).append(value)
            mine = rows.filter(pl.col("subject_id") == int(who))
            expected = {t: pytest.approx(sum(v) / len(v)) for t, v in steps.items()}
            assert samples(mine, "heart_rate") == expected


def test_a_dry_run_says_what_it_understood_and_writes_nothing(tmp_path, plan, capsys, monkeypatch):
    source = write(tmp_path / "in" / "a.csv", HEADER + row() + row(minute=1) + row("2", 2, "other"))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert main([str(source.parent), plan, "--dry-run", "--utc-offset-minutes=-90"]) == 0
    assert main([str(source.parent), str(tmp_path / "out"), plan, "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert capsys.readouterr().out.splitlines()[:9] == [
        "1 files: a.csv",
        "1 people (ids as they are)",
        "  heart_rate [bpm]: 1 people, a sample every 60 s, 2 samples (0 missing) in 1 stretches, "
        "2021-05-01 01:30:00 to 2021-05-01 01:31:00 in UTC, no device named",
        "3 rows, 3 readings: 2 kept",
        "  1 dropped: channel 'other' is not in the mapping",
        "first readings as understood:",
        "  subject 1: 2021-05-01 00:00:00 (UTC-01:30): heart_rate 60 bpm",
        "  subject 1: 2021-05-01 00:01:00 (UTC-01:30): heart_rate 60 bpm",
        "1 files: a.csv",
    ]


def test_ids(tmp_path, plan, capsys):
    source = write(tmp_path / "a.csv", HEADER + row("p10") + row("p9") + row("12"))
    rows = imported(source, tmp_path / "numbered", plan)
    assert sorted(set(rows["subject_id"])) == [1, 2, 3]
    table = pl.read_csv(tmp_path / "numbered" / "subject_ids.csv", infer_schema=False)
    assert table.rows() == [("12", "1"), ("p10", "2"), ("p9", "3")]

    given_ids = write(tmp_path / "ids.csv", "source_id,subject_id\np9,900\n12,55\nsomebody,1\n")
    rows = imported(source, tmp_path / "given", plan, f"--subject-ids={given_ids}")
    assert sorted(set(rows["subject_id"])) == [55, 900]
    assert counts(tmp_path / "given")["the subject is not in the table of ids"] == 1
    assert_reconciled(tmp_path / "given")
    write(given_ids, "source_id,subject_id\np9,900\np9,901\n")
    sentence = refused(capsys, source, tmp_path / "twice", plan, f"--subject-ids={given_ids}")
    assert sentence == f"{given_ids}: row 1: column 'source_id' holds p9 more than once"

    write(source, HEADER + row("-4") + row("1503960366") + row("0"))
    rows = imported(source, tmp_path / "kept", plan)
    assert sorted(set(rows["subject_id"])) == [-4, 0, 1503960366]
    assert not (tmp_path / "kept" / "subject_ids.csv").exists()


def test_a_folder_for_each_person(tmp_path):
    plan = PLAN.replace('[subject]\ncolumn = "who"\n', "")
    for who in ("5", "6"):
        write(tmp_path / "in" / who / "deep" / "a.csv", "t,kind,v\n2021-05-01,hr,6" + who + "\n")
    rows = imported(
        tmp_path / "in", tmp_path / "out", f"--mapping={write(tmp_path / 'm.toml', plan)}", "--subject-folders"
    )
    assert dict(zip(rows["subject_id"], rows["values"].list.first(), strict=True)) == {5: 65, 6: 66}


def test_the_local_clock_instead_of_utc(tmp_path, plan):
    source = write(tmp_path / "a.csv", HEADER + row())
    utc = imported(source, tmp_path / "utc", plan, "--timezone=Asia/Tokyo")
    local = imported(source, tmp_path / "local", plan, "--timezone=Asia/Tokyo", "--clock=local")
    assert utc["start_time"].to_list() == [T0 - timedelta(hours=9)] and utc["utc_offset_minutes"].to_list() == [540]
    assert local["start_time"].to_list() == [T0] and "utc_offset_minutes" not in local.columns


def test_files_on_different_clocks_are_not_mixed(tmp_path, plan, capsys):
    write(tmp_path / "in" / "a.csv", HEADER + row())
    write(tmp_path / "in" / "b.csv", HEADER + "1,2021-05-01T12:00:00+02:00,hr,60\n")
    sentence = refused(capsys, tmp_path / "in", tmp_path / "out", plan)
    assert sentence.startswith("some times have a UTC offset and others have none")


def test_what_the_validator_finds_is_printed_and_ends_with_1(tmp_path, plan, capsys):
    source = write(tmp_path / "a.csv", HEADER + row() + row(minute=10 * 525_600))
    assert main([str(source), str(tmp_path / "out"), plan, "--extraction-date=2022-01-01"]) == 1
    out = capsys.readouterr().out.splitlines()
    folder = tmp_path / "out" / "wearable"
    assert f"{folder}/0000.parquet: row 1 (subject 1): column 'start_time': on or after 2023-01-02" in out
    assert out[-1] == f"{folder}: 1 faults"


def test_an_import_begins_in_an_empty_folder_and_a_failed_one_leaves_it_usable(tmp_path, plan, capsys):
    source, out = write(tmp_path / "a.csv", HEADER + row() + row(value="x")), tmp_path / "out"
    refused(capsys, source, out, plan)
    assert not (out / "counts.json").exists()
    imported(source, out, plan, "--drop-bad")
    assert sorted(p.name for p in out.iterdir()) == ["counts.json", "wearable"]
    assert main([str(source), str(out), plan]) == 1
    assert "already exists" in capsys.readouterr().err
    assert json.loads((out / "counts.json").read_text())


@pytest.mark.parametrize(
    "arguments",
    [
        ["in"],
        ["in", "out"],
        ["in", "--preset=fitbit"],
        ["in", "out", "--preset=fitbit", "--mapping=m.toml"],
        ["in", "out", "--preset=fitbit", "--subject=1", "--subject-folders"],
        ["in", "out", "--preset=fitbit", "--first-date=soon"],
    ],
)
def test_a_wrong_command_ends_with_2(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_it_runs_as_a_module():
    module = "ehrwear_jax.data.sources.csv_import"
    run = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == "" and "--preset {fitbit,apple_health" in run.stdout
