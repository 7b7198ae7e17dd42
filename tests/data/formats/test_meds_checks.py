"""Bad rows are set aside with a reason and bad files stop with a sentence; together nothing is lost."""

import os
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrwear_jax.data.formats import meds, meds_checks

BOUNDS = meds_checks.TimeBounds()
T0 = datetime(2016, 1, 1)
GOOD = pl.DataFrame(
    [(1, None, "SEX", None), (1, T0, "A", 1.0), (1, T0, "B", 2.0), (2, T0, "A", 3.0), (2, T0, "A", None)],
    {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float64},
    orient="row",
)
# what can be wrong with a row: the cells it changes, and what the quarantine then says
FAULTS = {
    "good": ({}, None),
    "early": ({"time": datetime(1899, 12, 31)}, ("time", "before 1900-01-01")),
    "negative": ({"time": datetime(1, 1, 1)}, ("time", "before 1900-01-01")),
    "late": ({"time": datetime(9999, 12, 31)}, ("time", "on or after 2300-01-01")),
    "infinite": ({"numeric_value": float("-inf")}, ("numeric_value", "infinite")),
    "beyond float32": ({"numeric_value": 1e300}, ("numeric_value", "infinite")),
    "no code": ({"code": None}, ("code", "null")),
    "empty code": ({"code": ""}, ("code", "empty")),
    "nobody": ({"subject_id": None}, ("subject_id", "null")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_bad_row_is_set_aside_with_its_place_and_reason(name):
    change, expected = FAULTS[name]
    rows = GOOD.to_dicts()
    rows[2].update(change)
    raw = pl.DataFrame(rows, GOOD.schema)
    good, bad = meds_checks.screen(raw, "0.parquet", BOUNDS)
    if expected is None:
        assert bad.is_empty() and good.height == 5
        return
    assert good.drop("text_value").equals(GOOD[[0, 1, 3, 4]].cast({"numeric_value": pl.Float32}))
    assert bad.select("file", "row", "column", "reason").rows() == [("0.parquet", 2, *expected)]
    column = expected[0]
    assert (bad["value"].item() is None) == (change[column] is None)


@given(st.lists(st.sampled_from(sorted(FAULTS)), max_size=60))
def test_every_row_is_kept_or_set_aside_once(kinds):
    rows = []
    for i, kind in enumerate(kinds):
        row = {"subject_id": i // 5, "time": T0 + timedelta(hours=i), "code": f"C{i}", "numeric_value": float(i)}
        rows.append(row | FAULTS[kind][0])
    raw = pl.DataFrame(rows, GOOD.schema, orient="row")
    good, bad = meds_checks.screen(raw, "x", BOUNDS)
    assert good.height + bad.height == raw.height
    assert bad["row"].to_list() == [i for i, kind in enumerate(kinds) if kind != "good"]
    assert good["code"].to_list() == [f"C{i}" for i, kind in enumerate(kinds) if kind == "good"]
    assert [tuple(r) for r in bad.select("column", "reason").rows()] == [FAULTS[k][1] for k in kinds if k != "good"]


def test_nan_is_missing_and_no_fault():
    good, bad = meds_checks.screen(GOOD.with_columns(numeric_value=pl.lit(np.nan)), "x", BOUNDS)
    assert bad.is_empty() and good["numeric_value"].null_count() == 5


def test_rows_are_numbered_as_in_the_file_also_after_bad_ones():
    raw = pl.concat([GOOD[1:2].with_columns(code=pl.lit("")), GOOD, GOOD[:1]])
    with pytest.raises(ValueError, match="^x: row 6: column 'subject_id': rows of subject 1 are not contiguous$"):
        meds_checks.screen(raw, "x", BOUNDS)
    with pytest.raises(ValueError, match=r"^x: row 3: column 'time' \(null\) is earlier than the row before"):
        meds_checks.screen(pl.concat([GOOD[1:2].with_columns(code=pl.lit("")), GOOD[[1, 2, 0]]]), "x", BOUNDS)


def test_a_bad_time_does_not_count_as_out_of_order():
    raw = GOOD.with_columns(time=pl.Series([None, datetime(9999, 1, 1), T0, T0, T0], dtype=pl.Datetime("us")))
    good, bad = meds_checks.screen(raw, "x", BOUNDS)
    assert good.height == 4 and bad["row"].to_list() == [1]


def test_a_birth_may_lie_a_lifetime_before_the_first_event():
    born = GOOD.with_columns(
        time=pl.Series([None, datetime(1890, 1, 1), T0, datetime(1700, 1, 1), T0], dtype=pl.Datetime("us")),
        code=pl.Series(["SEX", "MEDS_BIRTH", "B", "MEDS_BIRTH//x", "A"]),
    )
    good, bad = meds_checks.screen(born, "x", BOUNDS)
    assert good["code"].to_list() == ["SEX", "MEDS_BIRTH", "B", "A"]
    assert bad.select("row", "reason").rows() == [(3, "before 1800-01-01")]


def test_bounds_follow_the_extraction_by_a_year():
    bounds = meds_checks.time_bounds("1920-05-01", "2024-03-01")
    assert (bounds.first, bounds.end) == (datetime(1920, 5, 1), datetime(2025, 3, 2))
    assert meds_checks.time_bounds("", "") == BOUNDS
    with pytest.raises(ValueError, match="config.prepare.extraction_date is '1 May', expected a date such as"):
        meds_checks.time_bounds("", "1 May")
    with pytest.raises(ValueError, match="first_date 2030-01-01 is not before"):
        meds_checks.time_bounds("2030-01-01", "2020-01-01")


# ------------------------------------------------------------------------------------------------- faults of the file
@pytest.mark.parametrize("unit", ["ns", "us", "ms", "s"])
@pytest.mark.parametrize("zone", [None, "UTC", "Etc/UTC", "+00:00"])
def test_times_without_a_zone_or_in_utc_are_the_same_times(tmp_path, zone, unit):
    path = tmp_path / "0.parquet"
    times = pa.array([None, T0, T0 + timedelta(seconds=1)], pa.timestamp(unit, zone))
    pq.write_table(pa.table({"subject_id": [1, 1, 1], "time": times, "code": ["A", "B", "C"]}), path)
    assert meds.read_shard(path)["time"].to_list() == [None, T0, T0 + timedelta(seconds=1)]


@pytest.mark.parametrize("zone", ["Europe/Paris", "America/New_York", "+02:00"])
def test_times_in_another_zone_are_refused(tmp_path, zone):
    path = tmp_path / "0.parquet"
    times = pa.array([T0], pa.timestamp("us", zone))
    pq.write_table(pa.table({"subject_id": [1], "time": times, "code": ["A"]}), path)
    with pytest.raises(ValueError, match="column 'time' has time zone .*; write times without a zone, or in UTC"):
        meds_checks.screen_shard(path, BOUNDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.cast({"subject_id": pl.String}), "column 'subject_id' is String, expected Int64"),
        (lambda e: e.with_columns(code=pl.lit(7)), "column 'code' is Int32, expected String"),
        (lambda e: e.with_columns(time=pl.lit("2016")), "column 'time' is String, expected Datetime"),
        (lambda e: e.with_columns(time=pl.lit(5)), "column 'time' is Int32, expected Datetime"),
        (lambda e: e.with_columns(numeric_value=pl.lit(True)), "column 'numeric_value' is Boolean, expected Float32"),
        (
            lambda e: e.with_columns(subject_id=pl.Series([1, 1, 2**64 - 1, 2, 2], dtype=pl.UInt64)),
            "column 'subject_id' holds 18446744073709551615 in row 2, which Int64 cannot hold",
        ),
        (lambda e: e.drop("time"), "column 'time' is missing"),
    ],
)
def test_a_wrong_type_or_a_missing_column_stops(tmp_path, change, message):
    path = tmp_path / "0.parquet"
    change(GOOD).write_parquet(path)
    with pytest.raises(ValueError, match=message) as error:
        meds_checks.screen_shard(path, BOUNDS)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_file_stops(tmp_path, share):
    path = tmp_path / "0.parquet"
    GOOD.write_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="0.parquet: not a readable parquet file") as error:
        meds_checks.screen_shard(path, BOUNDS)
    assert "\n" not in str(error.value)


def test_damaged_pages_stop(tmp_path):
    path = tmp_path / "0.parquet"
    GOOD.write_parquet(path)
    content = bytearray(path.read_bytes())
    content[4:200] = np.random.default_rng(0).bytes(196)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="0.parquet: not a readable parquet file"):
        meds_checks.screen_shard(path, BOUNDS)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "0.parquet"
    GOOD.write_parquet(path)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read anything

        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(pl, "read_parquet", refuse)
    with pytest.raises(PermissionError, match="0.parquet: no permission to read it"):
        meds.read_shard(path)


def test_a_shard_without_rows_is_an_empty_shard(tmp_path):
    path = tmp_path / "0.parquet"
    GOOD[:0].write_parquet(path)
    good, bad = meds_checks.screen_shard(path, BOUNDS)
    assert good.is_empty() and bad.is_empty() and dict(good.schema) == meds.EVENT_SCHEMA


# ---------------------------------------------------------------------------------------------------- in pieces
@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    bad=st.sets(st.integers(0, 40), max_size=5),
    max_rows=st.integers(1, 50),
    group_size=st.integers(1, 20),
)
def test_pieces_of_a_shard_are_the_whole_shard(tmp_path_factory, sizes, bad, max_rows, group_size):
    """Whatever the row groups are: whole subjects, no piece empty, rows and quarantine as in one go."""
    path = tmp_path_factory.mktemp("pieces") / "0.parquet"
    subject = np.repeat(np.arange(len(sizes)) * 7, sizes)
    time = [datetime(2020, 1, 1) + timedelta(hours=i) for i in range(len(subject))]
    value = [np.inf if i in bad else float(i) for i in range(len(subject))]
    events = pl.DataFrame({"subject_id": subject, "time": time, "code": "x", "numeric_value": value})
    events.write_parquet(path, row_group_size=group_size)
    whole, quarantined = meds_checks.screen_shard(path, BOUNDS)
    pieces = list(meds_checks.screen_pieces(path, BOUNDS, max_rows))
    assert pl.concat([good for good, _ in pieces]).equals(whole)
    assert pl.concat([aside for _, aside in pieces]).equals(quarantined)
    homes = [set(good["subject_id"]) for good, _ in pieces]
    assert sum(map(len, homes)) == whole["subject_id"].n_unique()
    largest = max(sizes)
    assert all(good.height <= 2 * max(max_rows, largest) + largest for good, _ in pieces)
    assert len(pieces) > 1 or whole.height <= 2 * (max_rows + largest)


def test_a_subject_that_comes_back_in_a_later_piece_is_named(tmp_path):
    subject = np.repeat([1, 2, 3, 1], 5)
    time = [datetime(2020, 1, 1) + timedelta(hours=i) for i in range(20)]
    events = pl.DataFrame({"subject_id": subject, "time": time, "code": "x", "numeric_value": 1.0})
    events.write_parquet(tmp_path / "0.parquet", row_group_size=5)
    with pytest.raises(
        ValueError, match="0.parquet: row 15: column 'subject_id': rows of subject 1 are not contiguous"
    ):
        list(meds_checks.screen_pieces(tmp_path / "0.parquet", BOUNDS, 5))
