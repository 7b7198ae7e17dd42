"""Label tables of the MEDS label schema, 0.3.3 and 0.4, in one file or in the shards that ACES writes."""

from datetime import datetime, timedelta

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from meds_0_3_3 import label_table

from ehrwear_jax.data.formats import label_tables

T0 = datetime(2016, 1, 1)
KEYS = pl.DataFrame(
    {"subject_id": [2, 1], "prediction_time": [T0, T0 + timedelta(hours=1)]},
    {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")},
)
VALUES = {
    "boolean_value": [True, False],
    "integer_value": [3, -1],
    "float_value": [0.5, 2.0],
    "categorical_value": ["low", "high"],
}


def labels(column="boolean_value"):
    return KEYS.with_columns(pl.Series(column, VALUES[column], label_tables.VALUE_TYPES[column]))


@pytest.mark.parametrize("column", VALUES)
def test_each_kind_of_value_goes_out_and_comes_in(tmp_path, column):
    path = tmp_path / "task.parquet"
    label_tables.write_labels(path, labels(column))
    assert label_tables.read_labels(path).equals(labels(column).sort("subject_id"))
    schema = pq.read_schema(path).remove_metadata()
    types = {"boolean_value": pa.bool_(), "integer_value": pa.int64(), "float_value": pa.float32()}
    assert schema.names == ["subject_id", "prediction_time", column], "the schema of 0.4 is closed"
    assert schema.field(column).type == types.get(column, pa.string())
    assert not any(schema.field(name).nullable for name in schema.names)
    again = tmp_path / "again.parquet"
    label_tables.write_labels(again, label_tables.read_labels(path))
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("column", VALUES)
def test_the_unused_columns_of_0_3_3_do_not_matter(tmp_path, column):
    pq.write_table(label_table(labels(column)), tmp_path / "task.parquet")
    assert label_tables.read_labels(tmp_path / "task.parquet").equals(labels(column))


def test_a_task_is_a_file_or_a_folder_of_shards_at_any_depth(tmp_path):
    task = tmp_path / "mortality" / "in_icu" / "first_24h"
    for i, (name, part) in enumerate(
        {"train/0": labels()[:1], "train/1": labels()[:0], "held_out/0": labels()[1:]}.items()
    ):
        (task / name).parent.mkdir(parents=True, exist_ok=True)
        path = task / f"{name}.parquet"
        pq.write_table(label_table(part), path) if i else part.write_parquet(path)
    files = label_tables.task_files(tmp_path, "mortality/in_icu/first_24h")
    assert [str(p.relative_to(task)) for p in files] == ["held_out/0.parquet", "train/0.parquet", "train/1.parquet"]
    assert label_tables.read_labels(files).sort("subject_id").equals(labels().sort("subject_id"))
    label_tables.write_labels(tmp_path / "readmission.parquet", labels())
    assert label_tables.task_files(tmp_path, "readmission") == [tmp_path / "readmission.parquet"]
    assert label_tables.task_files(tmp_path, "death") == []
    assert label_tables.tasks(tmp_path) == ["mortality/in_icu/first_24h", "readmission"]


@pytest.mark.parametrize("version", ["0.4", "0.3.3"])
def test_a_task_without_a_single_row_is_an_empty_table(tmp_path, version):
    for name in "ab":
        path, none = tmp_path / f"{name}.parquet", labels()[:0]
        label_tables.write_labels(path, none) if version == "0.4" else pq.write_table(label_table(none), path)
    got = label_tables.read_labels(label_tables.task_files(tmp_path, "") or sorted(tmp_path.glob("*.parquet")))
    assert dict(got.schema) == label_tables.BINARY_LABEL_SCHEMA and got.is_empty()


def test_utc_is_accepted_and_another_zone_is_not(tmp_path):
    zoned = labels().with_columns(pl.col("prediction_time").dt.replace_time_zone("UTC"))
    zoned.write_parquet(tmp_path / "task.parquet")
    assert label_tables.read_labels(tmp_path / "task.parquet").equals(labels())
    labels().with_columns(pl.col("prediction_time").dt.replace_time_zone("Asia/Tokyo")).write_parquet(
        tmp_path / "task.parquet"
    )
    with pytest.raises(ValueError, match="task.parquet: column 'prediction_time' has time zone Asia/Tokyo"):
        label_tables.read_labels(tmp_path / "task.parquet")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([labels(), labels("integer_value").with_columns(subject_id=pl.lit(7))], "1.parquet: holds integer_value, but"),
        ([labels(), labels()[1:]], "1.parquet: subject 1 at 2016-01-01 01:00:00 has a label in another file"),
        ([labels().with_columns(integer_value=pl.lit(1))], "0.parquet: holds both boolean_value and integer_value"),
        ([labels().with_columns(prediction_time=None)], "0.parquet: row 0: column 'prediction_time' is null"),
        ([labels().with_columns(boolean_value=pl.Series([True, None]))], "row 1: column 'boolean_value' is null"),
        ([labels("float_value").with_columns(float_value=pl.lit(float("inf")))], "row 0: column 'float_value' is inf"),
        ([KEYS], "column 'boolean_value' .* is missing"),
        ([labels().drop("prediction_time")], "0.parquet: column 'prediction_time' is missing"),
    ],
)
def test_faulty_tables_are_named(tmp_path, tables, message):
    paths = [tmp_path / f"{i}.parquet" for i in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        table.write_parquet(path)
    with pytest.raises(ValueError, match=message):
        label_tables.read_labels(paths)


def test_no_file_at_all():
    with pytest.raises(FileNotFoundError, match="no label file"):
        label_tables.read_labels([])
