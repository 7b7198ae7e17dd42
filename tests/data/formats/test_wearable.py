"""The wearable tables: round trip and one message per fault."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrwear_jax.data.formats import wearable

CHANNELS = pl.DataFrame(
    {
        "channel": ["heart_rate", "activity"],
        "unit": ["bpm", "counts/min"],
        "description": ["beats per minute", None],
        "valid_min": [25.0, 0.0],
        "valid_max": [230.0, 2e4],
    }
)
T0 = datetime(2017, 3, 1, 12)


def make_rows():
    return pl.DataFrame(
        {
            "subject_id": [1, 1, 2],
            "start_time": [T0, T0, T0 + timedelta(days=1)],
            "sample_rate_hz": [1 / 60] * 3,
            "channel": ["heart_rate", "activity", "heart_rate"],
            "values": [[60.0, float("nan"), 61.0], [0.0, 5.0], [70.0]],
            "unit": ["bpm", "counts/min", "bpm"],
            "device": ["watch", None, "ring"],
        },
        schema=wearable.ROW_SCHEMA,
    )


def test_round_trip_and_arrow_types(tmp_path):
    path = tmp_path / "train" / "0.parquet"
    wearable.write_channels(tmp_path, CHANNELS)
    wearable.write_shard(path, make_rows(), CHANNELS)
    assert wearable.list_shards(tmp_path) == [path]
    got = wearable.read_shard(path, wearable.read_channels(tmp_path))
    assert dict(got.schema) == wearable.ROW_SCHEMA
    assert got.equals(make_rows())
    schema = pq.read_schema(path)
    assert schema.field("values").type == pa.list_(pa.float32())
    assert schema.field("channel").type == pa.string()
    assert wearable.read_channels(tmp_path).equals(CHANNELS.sort("channel"))
    assert wearable.plausible_limits(CHANNELS) == {"heart_rate": (25.0, 230.0), "activity": (0.0, 2e4)}


def test_rows_become_arrays():
    one, two, three = wearable.stretches(make_rows())
    start_us = int(np.datetime64(T0, "us").astype(np.int64))
    assert one[:3] == (start_us, 1 / 60, "heart_rate") and (one.device, two.device) == ("watch", None)
    np.testing.assert_array_equal(one.values_N, np.float32([60.0, np.nan, 61.0]))
    assert one.values_N.dtype == np.float32 and three.start_us == start_us + 86_400_000_000


def test_other_writers_types_are_normalised(tmp_path):
    """float64 or fixed-size values, nulls for missing, integer rate, no device column."""
    path = tmp_path / "0.parquet"
    table = pa.table(
        {
            "subject_id": pa.array([1, 2], pa.int32()),
            "start_time": pa.array([T0, T0], pa.timestamp("ns")),
            "sample_rate_hz": pa.array([25, 25], pa.int64()),
            "channel": ["ppg", "ppg"],
            "values": pa.array([[1.0, None], [2.0, 3.0]], pa.list_(pa.float64(), 2)),
            "unit": ["a.u.", "a.u."],
        }
    )
    pq.write_table(table, path)
    got = wearable.read_shard(path)
    assert dict(got.schema) == wearable.ROW_SCHEMA
    np.testing.assert_array_equal(got["values"].explode().to_numpy(), np.float32([1.0, np.nan, 2.0, 3.0]))
    assert got["device"].null_count() == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda r: r.drop("unit"), "column 'unit' is missing"),
        (lambda r: r.with_columns(channel=None), "row 0: column 'channel' is null"),
        (lambda r: r.with_columns(sample_rate_hz=pl.lit(0.0)), "row 0 .*sample_rate_hz"),
        (lambda r: r.with_columns(sample_rate_hz=pl.lit(np.nan)), "row 0 .*sample_rate_hz"),
        (lambda r: r[[0, 2, 1]], "row 2: column .subject_id.: rows of subject 1 are not contiguous"),
        (lambda r: r.with_columns(channel=pl.lit("steps")), "channel 'steps' is not in"),
        (lambda r: r.with_columns(unit=pl.lit("bpm")), r"row 1 \(subject 1\): column 'unit'"),
        (
            lambda r: r.with_columns(values=pl.Series([[1.0], [], [1.0]])),
            r"row 1 \(subject 1\): .* no sample",
        ),
        (
            lambda r: r.with_columns(values=pl.Series([[1.0], [1.0], [0.0, -np.inf]])),
            r"row 2 \(subject 2\): .* infinite",
        ),
    ],
)
def test_faulty_rows_are_named(tmp_path, fault, message):
    path = tmp_path / "bad.parquet"
    fault(make_rows()).write_parquet(path)
    with pytest.raises(ValueError, match=message) as error:
        wearable.read_shard(path, CHANNELS)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (pl.concat([CHANNELS, CHANNELS]), "'heart_rate' has more than one row"),
        (CHANNELS.with_columns(valid_max=pl.lit(0.0)), "row 0: valid_min must be less"),
        (CHANNELS.drop("unit"), "column 'unit' is missing"),
    ],
)
def test_faulty_channels_are_named(tmp_path, channels, message):
    with pytest.raises(ValueError, match=message):
        wearable.write_channels(tmp_path, channels)


def test_missing_folder_and_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        wearable.list_shards(tmp_path / "absent")
    wearable.write_channels(tmp_path, CHANNELS)
    with pytest.raises(FileNotFoundError, match="no parquet file of recordings"):
        wearable.list_shards(tmp_path)


def test_the_offset_column_is_kept_where_it_is_and_nothing_is_added_where_it_is_not(tmp_path):
    wearable.write_shard(tmp_path / "plain.parquet", make_rows(), CHANNELS)
    assert pq.read_schema(tmp_path / "plain.parquet").names == list(wearable.ROW_SCHEMA)
    rows = make_rows().with_columns(utc_offset_minutes=pl.Series([60, None, -570], dtype=pl.Int64))
    wearable.write_shard(tmp_path / "offset.parquet", rows, CHANNELS)
    assert pq.read_schema(tmp_path / "offset.parquet").field("utc_offset_minutes").type == pa.int16()
    got = wearable.read_shard(tmp_path / "offset.parquet", CHANNELS)
    assert got["utc_offset_minutes"].to_list() == [60, None, -570]
    assert [row.utc_offset_minutes for row in wearable.stretches(got)] == [60, None, -570]
    assert [row.utc_offset_minutes for row in wearable.stretches(make_rows())] == [None] * 3
    assert got.drop("utc_offset_minutes").equals(wearable.read_shard(tmp_path / "plain.parquet", CHANNELS))
    for minutes, message in ((841, "row 2.*utc_offset_minutes': 841 minutes, must lie between -840 and 840"),
                             (10**6, "holds 1000000.0 in row 2"), (0.5, "holds 0.5 in row 2")):  # fmt: skip
        wrong = make_rows().with_columns(utc_offset_minutes=pl.Series([0, 840, minutes], dtype=pl.Float64))
        with pytest.raises(ValueError, match=message):
            wearable.write_shard(tmp_path / "bad.parquet", wrong, CHANNELS)
