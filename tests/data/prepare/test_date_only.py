"""Codes without times: judged by the whole dataset, the same for any shards, workers and interruptions."""

import dataclasses
import json
from datetime import datetime, timedelta

import cohort
import polars as pl
import pytest

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds, meds_checks
from ehrwear_jax.data.prepare import dataset, date_only, workers

DAY = datetime(2020, 3, 1)
CONFIG = PrepareConfig(date_only_min_events=4)


def counts(rows):
    """CODES of {code: (events, of them at midnight)}."""
    return pl.DataFrame([(code, *n) for code, n in rows.items()], date_only.CODES, orient="row")


def decided(rows, config=CONFIG):
    return dict(date_only.decide(counts(rows), config).select("code", "date_only").iter_rows())


def test_a_code_is_judged_by_the_share_of_its_events_at_midnight():
    rows = {"DX": (10, 10), "CHART": (100, 25), "MIXED": (10, 3), "LAB": (10, 0)}
    assert decided(rows) == {"DX": True, "CHART": False, "MIXED": True, "LAB": False}
    strict = dataclasses.replace(CONFIG, date_only_share=0.5)
    assert decided(rows, strict)["MIXED"] is False
    off = dataclasses.replace(CONFIG, date_only_at_day_end=False)
    assert not any(decided(rows, off).values())


def test_a_rare_code_is_judged_with_the_codes_that_begin_like_it():
    rows = {
        "PROCEDURE//ICD//10//A": (1, 1), "PROCEDURE//ICD//10//B": (2, 2), "PROCEDURE//ICD//9//C": (1, 1),
        "PROCEDURE//START//X": (1, 1), "PROCEDURE//START//Y": (50, 0),
        "ICD10CM/I21": (1, 1), "ICD10CM/I22": (3, 3),
        "LAB//1//mg": (1, 1), "LAB//2//mg": (40, 1),
        "alone": (2, 2), "once": (2, 1),
    }  # fmt: skip
    got = decided(rows)
    # PROCEDURE//ICD has four events, all dates; PROCEDURE//START//X would be one by itself, but START has times
    assert {code for code, only in got.items() if only} == {
        "PROCEDURE//ICD//10//A", "PROCEDURE//ICD//10//B", "PROCEDURE//ICD//9//C", "ICD10CM/I21", "ICD10CM/I22", "alone",
    }  # fmt: skip


def write_mixed(root, n_people=8):
    """A dataset whose diagnoses carry dates and whose laboratory values carry times, midnight among them."""
    rows = []
    for subject in range(1, n_people + 1):
        rows.append((subject, None, "GENDER//F", None))
        rows.append((subject, datetime(1950, 1, 1), "MEDS_BIRTH", None))
        rows += [(subject, DAY + timedelta(days=d), "DX//I10", None) for d in range(3)]
        rows += [(subject, DAY + timedelta(hours=7 * h), "LAB//a", 1.0) for h in range(20)]
    columns = {k: meds_checks.EVENT_SCHEMA[k] for k in ("subject_id", "time", "code", "numeric_value")}
    events = pl.DataFrame(rows, columns, orient="row")
    splits = pl.DataFrame({"subject_id": range(1, n_people + 1), "split": ["train"] * n_people})
    codes = events.select("code").unique().with_columns(description=pl.lit("x"))
    meds.write_dataset(root, events, meds.Metadata("t", "1", codes, splits), subjects_per_shard=3)
    return root / "meds"


def test_only_events_of_codes_without_times_move_and_they_are_counted(tmp_path):
    root = write_mixed(tmp_path)
    raw = pl.concat([meds.read_shard(p) for p in meds.list_shards(root)])
    steps = dataset.prepare_tables(root, None, tmp_path / "tables", PrepareConfig())
    events = pl.concat([pl.read_parquet(p) for p in sorted((tmp_path / "tables" / "events").glob("*.parquet"))])
    last = timedelta(days=1) - timedelta(microseconds=1)
    for code, later in (("DX//I10", last), ("LAB//a", timedelta(0))):
        was, now = (t.filter(pl.col("code") == code).sort("subject_id", "time")["time"] for t in (raw, events))
        assert (was + later).to_list() == now.to_list()
    (step,) = [s for s in steps if "without times" in s["step"]]
    n_lab = raw.filter((pl.col("code") == "LAB//a") & (pl.col("time").dt.hour() == 0)).height
    assert step["n"] == 24 and n_lab > 0 and step["reason"].startswith(f"1 codes; {n_lab} at midnight of 1 codes")


def of_dataset(root, config):
    """What is decided of a dataset, shard by shard."""
    parts = [date_only.count(path, config.rows_per_piece) for path in meds.list_shards(root)]
    return date_only.decide(date_only.add_up(parts), config)


@pytest.mark.parametrize("rows_per_piece", [2_000_000, 11])
def test_the_decision_is_that_of_the_whole_dataset_in_any_pieces(tmp_path, rows_per_piece):
    root = cohort.write_cohort(tmp_path, 20) / "meds"
    raw = pl.concat([meds.read_shard(p) for p in meds.list_shards(root)])
    timed = raw.filter(pl.col("time").is_not_null() & (pl.col("code") != "MEDS_BIRTH"))
    midnight = pl.col("time").dt.time() == pl.time(0)
    want = timed.group_by("code").agg(n=pl.len(), at_midnight=midnight.sum()).cast(date_only.CODES).sort("code")
    config = PrepareConfig(rows_per_piece=rows_per_piece)
    got = of_dataset(root, config)
    assert got.select(*date_only.CODES).equals(want)
    shards = meds.list_shards(root)
    out = tmp_path / "out"
    out.mkdir()
    with workers.Pool(workers=1) as pool:
        assert date_only.prepared(shards, [p.parent.name + p.stem for p in shards], out, config, pool).equals(got)
    assert not (out / "midnight_counts").exists() and (out / "date_only.parquet").exists()


def test_an_interrupted_count_goes_on_from_its_parts(tmp_path, monkeypatch):
    root, done = write_mixed(tmp_path), []
    count = date_only.count

    def third_fails(path, rows_per_piece):
        done.append(path)
        if len(done) == 3:
            raise KeyboardInterrupt
        return count(path, rows_per_piece)

    monkeypatch.setattr(date_only, "count", third_fails)
    with pytest.raises(KeyboardInterrupt):
        dataset.prepare_tables(root, None, tmp_path / "tables", PrepareConfig())
    dataset.prepare_tables(root, None, tmp_path / "tables", PrepareConfig())
    assert sorted(done) == sorted([*meds.list_shards(root), done[2]]), "only the shard that failed was read again"
    dataset.prepare_tables(root, None, tmp_path / "fresh", PrepareConfig())
    names = [json.loads((tmp_path / x / "manifest.json").read_text())["files"] for x in ("tables", "fresh")]
    assert names[0] == names[1] and "date_only.parquet" in names[0]


def test_times_of_no_calendar_do_not_disturb_the_count(tmp_path):
    path = tmp_path / "0.parquet"
    far = pl.Series([0, 2**62, -(2**62), 3_600_000_000]).cast(pl.Datetime("us"))
    pl.DataFrame({"subject_id": [1] * 4, "time": far, "code": ["A"] * 4}).write_parquet(path)
    assert date_only.count(path, 100).select("n").item() == 4


def test_mimic_demo(shared_data):
    """Laboratory values and charts carry times; procedures and measurements of the outpatient table do not."""
    root = shared_data("mimic4_demo_meds")
    got = of_dataset(root, PrepareConfig())
    only = got.filter("date_only")
    assert got["at_midnight"].sum() == 48_132
    assert only["at_midnight"].sum() == 3_666, "most midnights are times"
    assert set(got.filter(pl.col("code").is_in(["Blood Pressure", "BMI (kg/m2)", "MEDS_DEATH"]))["date_only"]) == {True}
    procedures = got.filter(pl.col("code").str.starts_with("PROCEDURE//ICD"))
    assert procedures["date_only"].all() and not got.filter(pl.col("code").str.starts_with("LAB//2"))["date_only"].any()
