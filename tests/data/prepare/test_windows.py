"""What prepare does with time not worn: taken out before windows are cut, counted, and no wear."""

import dataclasses
from datetime import datetime, timedelta

import cohort
import numpy as np
import polars as pl
import pytest

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.labels import cohort as inclusion
from ehrwear_jax.data.prepare import dataset

CONFIG = PrepareConfig(channels=cohort.CHANNELS, min_subjects=1, min_values=5, step_minutes=30, min_coverage=0.05)
DRAWER, SHORT, WHOLE, ZERO_OFF = 1, 2, 3, 4
START = datetime(2020, 3, 1)
DAYS = 4


def rows_of(subject):
    """Recordings of DAYS days: in a drawer, 72 minutes a day, all day, zeros for the last six hours of a day."""
    rng, n = np.random.default_rng(subject), DAYS * 1440
    minute = np.arange(n) % 1440
    activity, heart = rng.integers(1, 200, n).astype(np.float32), np.full(n, np.nan, np.float32)
    if subject == DRAWER:
        activity[:] = 0
    if subject == SHORT:
        activity[~np.isin(minute % 360, range(18))] = np.nan
    if subject in (WHOLE, ZERO_OFF):
        heart[:] = 70.0
    if subject == ZERO_OFF:
        activity[minute >= 1080], heart[minute >= 1080] = 0, np.nan
    values = {"activity": (activity, "counts/min"), "heart_rate": (heart, "bpm")}
    return [(subject, START, 1 / 60, c, x, unit, "watch") for c, (x, unit) in values.items() if not np.isnan(x).all()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The cohort of cohort.py with other recordings of the first four people."""
    root = cohort.write_cohort(tmp_path_factory.mktemp("worn"), 12, wear_days=1)
    for shard in wearable.list_shards(root / "wearable"):
        shard.unlink()
    rows = [row for subject in (DRAWER, SHORT, WHOLE, ZERO_OFF) for row in rows_of(subject)]
    table = pl.DataFrame(rows, list(wearable.ROW_SCHEMA)[: len(rows[0])], orient="row")
    wearable.write_shard(
        root / "wearable" / "0.parquet", table.with_columns(pl.col("values").cast(pl.List(pl.Float32)))
    )
    return root


def prepared(root, out, **options):
    """(steps by name, records by subject) of the cohort with options."""
    config = dataclasses.replace(CONFIG, **options)
    steps = dataset.prepare_tables(root / "meds", root / "wearable", out / "tables", config)
    dataset.prepare_records(out / "tables", None, out / "records", config)
    dataset.fit_split(out / "tables", out / "records", out / "fit" / "all", config)
    records = cohort.open_store(out)
    by_subject = {s: records[i] for i, s in enumerate(records.index["subject_id"].to_list())}
    return {step["step"]: step for step in steps}, by_subject


def test_time_not_worn_is_taken_out_and_counted(root, tmp_path):
    steps, records = prepared(root, tmp_path / "found")
    raw_steps, raw = prepared(root, tmp_path / "raw", non_wear=())
    worn, minutes = steps["hours of wear"], {s: r.worn_minutes_M.astype(int).sum() for s, r in records.items()}
    per_day = {DRAWER: 0, SHORT: 72, WHOLE: 1440, ZERO_OFF: 1080}
    assert {s: minutes[s] for s in per_day} == {s: DAYS * n for s, n in per_day.items()}
    assert worn["n"] == round(DAYS * sum(per_day.values()) / 60) and worn["dropped"] == DAYS * (24 + 6)
    assert raw_steps["hours of wear"]["dropped"] == 0
    assert raw_steps["hours of wear"]["n"] == worn["n"] + worn["dropped"]
    assert len(records[DRAWER].window_end_M) == 0 and len(raw[DRAWER].window_end_M) == 4 * DAYS
    assert len(records[ZERO_OFF].window_end_M) == 3 * DAYS, "no window of zeros"
    for subject in (SHORT, WHOLE):
        np.testing.assert_array_equal(records[subject].window_MxLxC, raw[subject].window_MxLxC)
        assert len(records[subject].window_end_M) == 4 * DAYS, "a window of eighteen minutes is still one"


def test_neither_a_drawer_nor_72_minutes_a_day_are_days_of_wear(root, tmp_path):
    def worn(out, days, hours, **options):
        config = dataclasses.replace(CONFIG, **options)
        dataset.prepare_tables(root / "meds", root / "wearable", tmp_path / out, config)
        windows = pl.concat([pl.read_parquet(p) for p in sorted((tmp_path / out / "windows").glob("*.parquet"))])
        until = pl.DataFrame({"subject_id": [DRAWER, SHORT, WHOLE, ZERO_OFF]}, {"subject_id": pl.Int64})
        until = until.with_columns(reference_time=pl.lit(datetime(2021, 1, 1), pl.Datetime("us")))
        found = inclusion.wear_days(windows, config.window_hours, hours, until)
        return set(found.filter(pl.col("wear_days") >= days)["subject_id"])

    assert worn("default", DAYS, 12.0) == {WHOLE, ZERO_OFF}
    assert worn("longer", DAYS, 20.0) == {WHOLE}
    assert worn("shorter", DAYS, 1.2) == {SHORT, WHOLE, ZERO_OFF}
    assert worn("off", DAYS, 12.0, non_wear=()) == {DRAWER, WHOLE, ZERO_OFF}


def test_a_rule_that_cannot_be_is_refused(root, tmp_path):
    for options, message in (
        ({"non_wear": ("aktivity:counts",)}, "config.prepare.non_wear holds 'aktivity:counts': no channel"),
        ({"non_wear_minutes": 0}, "config.prepare.non_wear_minutes is 0; it must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            config = dataclasses.replace(CONFIG, **options)
            dataset.prepare_tables(root / "meds", root / "wearable", tmp_path / "bad", config)


def test_what_is_recorded_later_changes_no_window(root, tmp_path):
    """Zeros that begin before a window's end and go on, or do not: the window is the same."""
    found = []
    for k, still in enumerate((True, False)):
        rows = wearable.read_shard(root / "wearable" / "0.parquet")
        values = rows.filter((pl.col("subject_id") == WHOLE) & (pl.col("channel") == "activity"))["values"][
            0
        ].to_numpy()
        values = values.copy()
        values[1000 : 1400 if still else 1080] = 0
        table = rows.filter((pl.col("subject_id") == WHOLE) & (pl.col("channel") == "activity"))
        table = table.with_columns(pl.Series("values", [values], pl.List(pl.Float32)))
        (tmp_path / f"{k}").mkdir()
        wearable.write_channels(tmp_path / f"{k}", wearable.read_channels(root / "wearable"))
        wearable.write_shard(tmp_path / f"{k}" / "0.parquet", table)
        dataset.prepare_tables(root / "meds", tmp_path / f"{k}", tmp_path / f"out{k}", CONFIG)
        found.append(pl.read_parquet(tmp_path / f"out{k}" / "windows" / "0.parquet"))
    until = START + timedelta(hours=18)
    early = [table.filter(pl.col("time") <= until) for table in found]
    assert early[0].equals(early[1]) and early[0]["worn_minutes"].to_list() == [360, 360, 360]
    later = [table.filter(pl.col("time") == until + timedelta(hours=6))["worn_minutes"].item() for table in found]
    assert later == [40, 360], "from the beginning of the window on, as the run began before"


def files_of(out):
    return {
        str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.suffix != ".json"
    }


def with_offsets(root, out, minutes):
    """A copy of the recordings with the column: minutes[subject] of each."""
    table = wearable.read_shard(root / "wearable" / "0.parquet")
    wearable.write_channels(out, wearable.read_channels(root / "wearable"))
    offset = pl.col("subject_id").replace_strict(minutes, default=None, return_dtype=pl.Int16)
    wearable.write_shard(out / "0.parquet", table.with_columns(utc_offset_minutes=offset))
    return out


def test_offsets_go_with_the_windows_and_change_nothing_else(root, tmp_path):
    found = {}
    for name, minutes in {"none": {}, "zero": dict.fromkeys(range(1, 13), 0), "some": {WHOLE: 330, SHORT: -60}}.items():
        worn, out = with_offsets(root, tmp_path / f"{name}_in", minutes), tmp_path / name
        dataset.prepare_tables(root / "meds", worn, out / "tables", CONFIG)
        dataset.prepare_records(out / "tables", None, out / "records", CONFIG)
        found[name] = files_of(out)
    dataset.prepare_tables(root / "meds", root / "wearable", tmp_path / "plain" / "tables", CONFIG)
    dataset.prepare_records(tmp_path / "plain" / "tables", None, tmp_path / "plain" / "records", CONFIG)
    plain = files_of(tmp_path / "plain")
    assert found["none"] == plain == found["zero"], "bit for bit"
    windows = pl.read_parquet(tmp_path / "some" / "tables" / "windows" / "0.parquet")
    of_subject = dict(windows.group_by("subject_id").agg(pl.col("utc_offset_minutes").unique()).iter_rows())
    assert of_subject == {SHORT: [-60], WHOLE: [330], ZERO_OFF: [0]}
    without = pl.read_parquet(tmp_path / "plain" / "tables" / "windows" / "0.parquet").drop("utc_offset_minutes")
    assert windows.drop("utc_offset_minutes").equals(without)
    dataset.fit_split(tmp_path / "some" / "tables", tmp_path / "some" / "records", tmp_path / "some/fit/all", CONFIG)
    records = cohort.open_store(tmp_path / "some")
    at = records.index["subject_id"].to_list().index(WHOLE)
    assert records[at].utc_offset_M.tolist() == [330] * 4 * DAYS
