"""The MEDS reader and writer: round trips, both versions in the field, a message per fault."""

import json
from datetime import datetime

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meds_files import count_subjects

from ehrwear_jax.data.formats import meds

T0, T1 = datetime(2016, 1, 1), datetime(2016, 1, 2, 3, 4, 5, 678901)
CODES = pl.DataFrame(
    {
        "code": ["A", "GENDER//F", "B"],
        "description": ["first", None, "second"],
        "parent_codes": [["P"], None, ["P", "Q"]],
    }
)


def make_events(n_subjects=3):
    rows = []
    for subject in range(n_subjects):
        rows += [(subject, T1, "B", None), (subject, T0, "A", 1.5), (subject, T1, "A", 2.5)]
        rows.append((subject, None, "GENDER//F", None))
    schema = {k: meds.EVENT_SCHEMA[k] for k in ("subject_id", "time", "code", "numeric_value")}
    return pl.DataFrame(rows, schema=schema, orient="row")


def make_splits(n_subjects=3):
    return pl.DataFrame(
        {
            "subject_id": list(range(n_subjects)),
            "split": [meds.SPLITS[i % 3] for i in range(n_subjects)],
        }
    )


def write(tmp_path, events=None, splits=None, subjects_per_shard=2000, **tables):
    events = make_events() if events is None else events
    splits = make_splits() if splits is None else splits
    meds.write_dataset(tmp_path, events, meds.Metadata("test", "1", CODES, splits, **tables), subjects_per_shard)
    return tmp_path / "meds"


def test_round_trip_sorts_and_keeps_source_order_of_ties(tmp_path):
    root = write(tmp_path, make_events().sample(fraction=1.0, shuffle=False))
    got = pl.concat([meds.read_shard(p) for p in meds.list_shards(root)]).sort("subject_id", maintain_order=True)
    assert dict(got.schema) == meds.EVENT_SCHEMA
    one = got.filter(pl.col("subject_id") == 1)
    assert one["code"].to_list() == ["GENDER//F", "A", "B", "A"]
    assert one["time"].to_list() == [None, T0, T1, T1]
    assert one["numeric_value"].to_list() == [None, 1.5, None, 2.5]
    assert count_subjects(root) == 3
    assert meds.read_splits(root).equals(make_splits())
    assert meds.read_codes(root).equals(CODES.sort("code"))


def test_files_have_the_arrow_types_that_meds_prescribes(tmp_path):
    events = make_events().with_columns(text_value=pl.lit("x"))
    root = write(tmp_path, events)
    schema = pq.read_schema(meds.list_shards(root)[0])
    expected = pa.schema(
        [
            pa.field("subject_id", pa.int64(), nullable=False),
            pa.field("time", pa.timestamp("us")),
            pa.field("code", pa.string(), nullable=False),
            pa.field("numeric_value", pa.float32()),
            pa.field("text_value", pa.large_string()),
        ]
    )
    assert schema.remove_metadata().equals(expected)


@settings(max_examples=25, deadline=None)
@given(n_subjects=st.integers(1, 23), per_shard=st.integers(1, 9))
def test_every_subject_is_in_one_shard_of_its_split(tmp_path_factory, n_subjects, per_shard):
    root = write(
        tmp_path_factory.mktemp("meds"),
        make_events(n_subjects),
        make_splits(n_subjects),
        subjects_per_shard=per_shard,
    )
    split = dict(meds.read_splits(root).iter_rows())
    seen = []
    for path in meds.list_shards(root):
        ids = meds.read_shard(path)["subject_id"].unique().to_list()
        assert len(ids) <= per_shard
        assert {split[i] for i in ids} == {path.parent.name}
        seen += ids
    assert sorted(seen) == list(range(n_subjects))


def test_reads_meds_0_3_3_and_nested_shards(tmp_path):
    """0.3.3: large_string codes, no text_value, an extra float64 column; any folder depth."""
    path = tmp_path / "data" / "site" / "2016" / "0.parquet"
    path.parent.mkdir(parents=True)
    table = pa.table(
        {
            "subject_id": pa.array([7, 7], pa.int64()),
            "time": pa.array([None, T0], pa.timestamp("us")),
            "code": pa.array(["GENDER//F", "A"], pa.large_string()),
            "numeric_value": pa.array([None, 0.1], pa.float64()),
            "float_value": pa.array([None, 0.1], pa.float64()),
        }
    )
    pq.write_table(table, path)
    (tmp_path / "data" / ".half.parquet").write_bytes(b"torn")
    assert meds.list_shards(tmp_path) == [path]
    got = meds.read_shard(path)
    assert dict(got.schema) == meds.EVENT_SCHEMA
    assert got["numeric_value"].to_list() == [None, float(np.float32(0.1))]


def test_optional_numeric_value_may_be_absent(tmp_path):
    path = tmp_path / "0.parquet"
    make_events(1).drop("numeric_value").sort("time", nulls_last=False).write_parquet(path)
    assert meds.read_shard(path)["numeric_value"].null_count() == 4


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda e: e.drop("code"), "column 'code' is missing"),
        (lambda e: e.with_columns(code=pl.lit("")), "row 0: column 'code' is empty"),
        (lambda e: e.with_columns(subject_id=None), "row 0: column 'subject_id' is null"),
        (lambda e: e.reverse(), r"row 2: column 'time' .* is earlier"),
        (lambda e: pl.concat([e, make_events(2)[4:5], e[1:]]), "not contiguous"),
        (lambda e: e.with_columns(numeric_value=pl.lit(np.inf)), "row 0: .* infinite"),
        (lambda e: e.with_columns(pl.col("time").dt.date()), "column 'time' is Date, expected"),
        (lambda e: e.with_columns(pl.col("time").dt.replace_time_zone("Europe/Paris")), "time zone Europe/Paris"),
        (
            lambda e: e.with_columns(subject_id=pl.lit(0.5)),
            "column 'subject_id' holds 0.5 in row 0",
        ),
        (
            lambda e: e.with_columns(numeric_value=pl.lit("high")),
            "column 'numeric_value' is String",
        ),
    ],
)
def test_faulty_shard_is_named(tmp_path, fault, message):
    path = tmp_path / "bad.parquet"
    events = make_events(1).sort("time", nulls_last=False)
    meds.validate_events(events, "good")
    fault(events).write_parquet(path)
    with pytest.raises(ValueError, match=message) as error:
        meds.read_shard(path)
    assert str(path) in str(error.value)


def test_missing_and_torn_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        meds.list_shards(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError, match="no parquet"):
        meds.list_shards(tmp_path)
    (tmp_path / "data" / "0.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match=r"0\.parquet: not a readable parquet"):
        meds.read_shard(tmp_path / "data" / "0.parquet")


def test_writer_refuses_undeclared_codes_subjects_and_a_second_dataset(tmp_path):
    with pytest.raises(ValueError, match="code 'Z' is not in the table of codes"):
        write(tmp_path, make_events().with_columns(code=pl.lit("Z")))
    with pytest.raises(ValueError, match="subject_id '2' is not in the table of splits"):
        write(tmp_path, splits=make_splits(2))
    write(tmp_path)
    with pytest.raises(ValueError, match="already holds shards"):
        write(tmp_path)


def test_groups_and_folds(tmp_path):
    ids = [0, 1, 2]
    groups = pl.DataFrame({"subject_id": ids, "group_id": [5, 6, 7]})
    folds = pl.DataFrame({"subject_id": ids, "fold": [0, 1, -1]})
    root = write(tmp_path, groups=groups, folds=folds)
    assert meds.read_groups(root).equals(groups)
    assert meds.read_folds(root)["fold"].to_list() == [0, 1, -1]
    other = write(tmp_path / "other")
    assert meds.read_groups(other) is None
    assert meds.read_folds(other) is None
    with pytest.raises(ValueError, match="group 5 is in more than one split"):
        write(tmp_path / "torn", groups=groups.with_columns(group_id=pl.lit(5)))
    with pytest.raises(ValueError, match="subject 2 has a split but no fold"):
        write(tmp_path / "short", folds=folds[:2])


def test_a_null_among_the_parents_is_no_parent(tmp_path):
    codes = pl.DataFrame({"code": ["A", "B"], "description": ["", ""], "parent_codes": [[None, "P", None], [None]]})
    (tmp_path / "metadata").mkdir()
    codes.write_parquet(tmp_path / "metadata" / "codes.parquet")
    assert meds.read_codes(tmp_path)["parent_codes"].to_list() == [["P"], []]


def test_repeated_codes_are_merged_as_meds_0_4_allows(tmp_path):
    (tmp_path / "metadata").mkdir()
    pl.DataFrame(
        {
            "code": ["A", "A", "B"],
            "description": [None, "later", None],
            "parent_codes": [["P"], ["P", "Q"], None],
        }
    ).write_parquet(tmp_path / "metadata" / "codes.parquet")
    assert meds.read_codes(tmp_path).rows() == [("A", "later", ["P", "Q"]), ("B", None, None)]


def test_splits_are_validated(tmp_path):
    (tmp_path / "metadata").mkdir()
    path = tmp_path / "metadata" / "subject_splits.parquet"
    pl.DataFrame({"subject_id": [1, 2], "split": ["train", "site B"]}).write_parquet(path)
    with pytest.raises(ValueError, match="row 1: split 'site B'"):
        meds.read_splits(tmp_path)
    pl.DataFrame({"subject_id": [1, 1], "split": ["train", "tuning"]}).write_parquet(path)
    with pytest.raises(ValueError, match="subject 1 appears more than once"):
        meds.read_splits(tmp_path)


BINARY = pl.DataFrame({"subject_id": [2, 1], "prediction_time": [T0, T1], "boolean_value": [True, False]})
SURVIVAL = BINARY.drop("boolean_value").with_columns(
    time_to_event_days=pl.Series([1.5, 0.0]), event_observed=pl.Series([True, False])
)


@pytest.mark.parametrize(
    ("labels", "schema"),
    [(BINARY, meds.BINARY_LABEL_SCHEMA), (SURVIVAL, meds.SURVIVAL_LABEL_SCHEMA)],
)
def test_labels_round_trip(tmp_path, labels, schema):
    path = tmp_path / "labels" / "task.parquet"
    meds.write_labels(path, labels)
    got = meds.read_labels(path)
    assert dict(got.schema) == schema
    assert got.equals(labels.sort("subject_id"))


def test_survival_labels_may_say_who_had_a_competing_event(tmp_path):
    """Shards without the column say that nobody had one."""
    path = tmp_path / "task"
    died = SURVIVAL.with_columns(event_observed=pl.Series([False, True]), competing_event=pl.Series([True, False]))
    meds.write_labels(path / "0.parquet", died)
    other = SURVIVAL.with_columns(subject_id=pl.col("subject_id") + 10)
    meds.write_labels(path / "1.parquet", other)
    assert meds.read_labels(path / "0.parquet").equals(died.sort("subject_id"))
    got = meds.read_labels([path / "0.parquet", path / "1.parquet"])
    assert got.columns == died.columns and got["competing_event"].to_list() == [False, True, False, False]
    assert "competing_event" not in meds.read_labels(path / "1.parquet").columns


def test_labels_of_other_writers_with_unused_value_columns(tmp_path):
    path = tmp_path / "task.parquet"
    BINARY.with_columns(integer_value=pl.lit(None, pl.Int64)).write_parquet(path)
    assert meds.read_labels(path).equals(BINARY)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (BINARY.drop("boolean_value"), "'boolean_value' .* is missing"),
        (BINARY.with_columns(boolean_value=pl.Series([True, None])), "row 1: .* is null"),
        (BINARY.with_columns(boolean_value=pl.Series([1, 0])), "is Int64, expected Boolean"),
        (pl.concat([BINARY, BINARY]), "subject 2 has more than one label"),
        (SURVIVAL.with_columns(boolean_value=True), "holds both"),
        (SURVIVAL.with_columns(time_to_event_days=pl.Series([1.0, -1.0])), "row 1: .* is -1.0"),
        (SURVIVAL.with_columns(time_to_event_days=pl.lit(np.nan)), "row 0: .* is nan"),
        (SURVIVAL.with_columns(competing_event=True), "row 0: event_observed and competing_event are both true"),
        (SURVIVAL.with_columns(competing_event=pl.Series([False, None])), "row 1: .* is null"),
        (SURVIVAL.with_columns(competing_event=pl.Series([0, 1])), "is Int64, expected Boolean"),
    ],
)
def test_faulty_labels_are_named(tmp_path, labels, message):
    path = tmp_path / "task.parquet"
    labels.write_parquet(path)
    with pytest.raises(ValueError, match=message) as error:
        meds.read_labels(path)
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match=message):
        meds.write_labels(tmp_path / "out.parquet", labels)
    assert not (tmp_path / "out.parquet").exists()


def test_mimic_demo(shared_data):
    root = shared_data("mimic4_demo_meds")
    shards = [meds.read_shard(path) for path in meds.list_shards(root)]
    assert sum(map(len, shards)) == 916_166
    assert count_subjects(root) == 100
    assert meds.read_splits(root)["split"].value_counts().sort("count")["count"].to_list() == [
        10, 10, 80,
    ]  # fmt: skip
    n_codes, undescribed = meds.undescribed_codes(root, meds.read_codes(root))
    assert (n_codes, len(undescribed)) == (7_035, 4_374)
    assert meds.undescribed_codes(root, None)[1][:1] != [] and len(meds.undescribed_codes(root, None)[1]) == 7_035


# ------------------------------------------------------------------------------------------------------- extraction
def dated(root, created_at, years):
    """A dataset with an event in each of the years, whose dataset.json says when it was created."""
    events = pl.DataFrame(
        {"subject_id": 1, "time": [datetime(y, 6, 1) for y in years], "code": "A", "numeric_value": None},
        {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32},
    )
    codes = pl.DataFrame({"code": ["A"], "description": [None], "parent_codes": [None]})
    splits = pl.DataFrame({"subject_id": [1], "split": ["train"]})
    meds.write_dataset(root, events, meds.Metadata("x", "1", codes, splits))
    path = root / "meds" / "metadata" / "dataset.json"
    if created_at is not None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"created_at": created_at}))
    return root / "meds"


@pytest.mark.parametrize("written", ["2024-03-05T10:11:12.131415", "2024-03-05T10:11:12+00:00", "2024-03-05"])
def test_the_day_of_extraction_is_that_of_dataset_json(tmp_path, written):
    root = dated(tmp_path, written, [2001, 2023, 2024])
    assert meds.extraction_date(root) == ("2024-03-05", "created_at of metadata/dataset.json")
    assert meds.extraction_date(root, "2020-01-01") == ("2020-01-01", "given")
    assert meds.extraction_date(root, "none")[0] == ""


def test_a_day_that_says_nothing_of_the_dates_is_not_used(tmp_path):
    shifted = dated(tmp_path / "a", "2024-03-05", [2111, 2150, 2024])
    assert meds.extraction_date(shifted) == (
        "", "2 of 3 rows are later than created_at 2024-03-05: their dates are shifted",
    )  # fmt: skip
    typo = dated(tmp_path / "b", "2024-03-05", [2020] * 1999 + [2999])
    assert meds.extraction_date(typo)[0] == "2024-03-05", "one row in two thousand is a slip"
    assert meds.extraction_date(dated(tmp_path / "c", None, [2020])) == ("", "no created_at in metadata/dataset.json")
    day, why = meds.extraction_date(dated(tmp_path / "d", "last spring", [2020]))
    assert day == "" and "'last spring' of metadata/dataset.json is no ISO date" in why
    root = dated(tmp_path / "e", None, [2020])
    (root / "metadata" / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="dataset.json: not a JSON object"):
        meds.extraction_date(root)
