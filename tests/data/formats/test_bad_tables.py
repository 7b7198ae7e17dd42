"""Bad metadata, label tables and extreme times: a named error or a quarantine row, through the whole prepare stage."""

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import small_run

from ehrwear_jax.data.formats import meds, meds_checks, wearable, wearable_checks
from ehrwear_jax.data.prepare import deidentify
from ehrwear_jax.stages import prepare as stage
from ehrwear_jax.stages.labels import Labels

TABLES = {
    "splits": "raw/meds/metadata/subject_splits.parquet",
    "folds": "raw/meds/metadata/subject_folds.parquet",
    "codes": "raw/meds/metadata/codes.parquet",
    "channels": "raw/wearable/metadata/channels.parquet",
    "labels": "labels/readmission.parquet",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    n = small_run.N_SUBJECTS
    folds = pl.DataFrame({"subject_id": range(1, n + 1), "fold": [i % 2 for i in range(n)]})
    small_run.write_inputs(root, folds.cast({"fold": pl.Int32}))
    return root


def run(root, out):
    """The stage, then what the next one reads; returns the plan."""
    plan = small_run.plan_of(small_run.small_config(root), out)
    stage.run(plan)
    Labels(plan).prediction_times(plan.config.evaluate.tasks)
    return plan


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def edit(change):
    return lambda path: change(pl.read_parquet(path)).write_parquet(path)


def first_row(**values):
    """The table with other values in its first row."""

    def change(table):
        new = table[:1].with_columns(**{k: pl.lit(v).cast(table.schema[k]) for k, v in values.items()})
        return pl.concat([new, table[1:]])

    return edit(change)


@pytest.mark.parametrize(
    ("table", "fault", "message"),
    [
        *((name, truncate, "not a readable parquet file") for name in TABLES),
        *((name, edit(lambda t: t.drop(t.columns[0])), "column '.*' is missing") for name in TABLES),
        ("splits", edit(lambda t: t.cast({"subject_id": pl.String})), "column 'subject_id' is String, expected Int64"),
        ("folds", edit(lambda t: t.cast({"fold": pl.Float64}) + 0.5), "holds .* in row 0, expected Int"),
        ("codes", edit(lambda t: t.with_columns(code=pl.lit(1))), "column 'code' is Int32, expected String"),
        ("channels", edit(lambda t: t.with_columns(valid_min=pl.lit("0"))), "column 'valid_min' is String"),
        ("labels", edit(lambda t: t.with_columns(boolean_value=pl.lit(1.0))), "'boolean_value' is Float64"),
        ("splits", edit(lambda t: pl.concat([t, t[:1]])), "subject 1 appears more than once"),
        ("splits", first_row(split="other"), "split 'other' is none of train, tuning, held_out"),
        ("splits", first_row(subject_id=None), "row 0: column 'subject_id' is null"),
        ("labels", edit(lambda t: pl.concat([t, t[:1]])), "has more than one label at"),
        ("labels", edit(lambda t: t.with_columns(pl.col("prediction_time").dt.replace_time_zone("Asia/Tokyo"))),
         "has time zone Asia/Tokyo"),
        ("channels", first_row(valid_max=float("nan")), "valid_min must be less than valid_max"),
        ("channels", edit(lambda t: pl.concat([t, t[:1]])), "channel 'activity' has more than one row"),
    ],
)  # fmt: skip
def test_a_bad_table_stops_with_one_sentence_that_names_it(inputs, tmp_path, table, fault, message):
    root = tmp_path / "in"
    shutil.copytree(inputs, root)
    fault(root / TABLES[table])
    with pytest.raises(ValueError, match=message) as error:
        run(root, tmp_path / "run")
    assert str(error.value).startswith(str(root / TABLES[table])) and "\n" not in str(error.value)


@pytest.mark.parametrize("column", ["time_to_event_days", "float_value"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_label_values_that_cannot_be(tmp_path, column, value):
    table = pl.DataFrame({"subject_id": [1], "prediction_time": [datetime(2020, 1, 1)], column: [value]})
    if column == "time_to_event_days":
        table = table.with_columns(event_observed=pl.lit(True))
    table.write_parquet(tmp_path / "x.parquet")
    if value == -1.0 and column == "float_value":
        assert meds.read_labels(tmp_path / "x.parquet")["float_value"].to_list() == [-1.0]
    else:
        with pytest.raises(ValueError, match=f"row 0: column '{column}' is .*, must be finite"):
            meds.read_labels(tmp_path / "x.parquet")


@pytest.mark.parametrize("us", [-(2**63) + 1, -(2**62), -62_135_596_800_000_001, -1, 0, 2**62, 2**63 - 1])
def test_times_at_the_ends_of_what_64_bits_hold(us):
    """Negative times are dates before 1970, which may be; those outside the bounds go to the quarantine."""
    bounds, ok = meds_checks.TimeBounds(), us in (-1, 0)
    time = pl.Series("time", [us]).cast(pl.Datetime("us"))
    events = pl.DataFrame({"subject_id": [1], "code": ["A"], "numeric_value": [1.0], "text_value": ["x"]})
    good, bad = meds_checks.screen(events.with_columns(time), "f", bounds)
    assert (good.height, bad.height) == ((1, 0) if ok else (0, 1))
    deid = deidentify.Deidentifier(b"sixteen bytes or more", pseudonymise=True, shift_days=30)
    good, bad = deid.events(good, bad)
    assert good.height + bad.height == 1 and "x" not in bad["text_value"].to_list()
    rows = pl.DataFrame(
        {"subject_id": [1], "sample_rate_hz": [1.0], "channel": ["c"], "values": [[1.0, 2.0]], "unit": ["u"]}
    ).with_columns(time.alias("start_time"))
    channels = pl.DataFrame({"channel": ["c"], "unit": ["u"], "valid_min": [0.0], "valid_max": [9.0]})
    good, bad = wearable_checks.screen(rows, "f", channels, bounds)
    assert (good.height, bad.height) == ((1, 0) if ok else (0, 1))
    assert deid.recordings_aside(bad).height == bad.height


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e-300])
def test_impossible_rates_are_set_aside(rate):
    rows = pl.DataFrame({"subject_id": [1], "start_time": [datetime(2020, 1, 1)], "sample_rate_hz": [rate],
                         "channel": ["c"], "values": [[1.0, float("nan")]], "unit": ["u"]})  # fmt: skip
    channels = pl.DataFrame({"channel": ["c"], "unit": ["u"], "valid_min": [0.0], "valid_max": [9.0]})
    good, bad = wearable_checks.screen(rows, "f", channels, meds_checks.TimeBounds())
    assert good.is_empty() and bad["column"].to_list() == ["sample_rate_hz"]


def test_a_dataset_without_a_single_row_is_no_crash(inputs, tmp_path):
    root = tmp_path / "in"
    shutil.copytree(inputs, root)
    for path in (*meds.list_shards(root / "raw" / "meds"), *wearable.list_shards(root / "raw" / "wearable")):
        pl.read_parquet(path)[:0].write_parquet(path)
    index = run(root, tmp_path / "run").store("all").index
    assert index.height == small_run.N_SUBJECTS
    assert index.select("n_static", "n_events", "n_windows").sum().row(0) == (0, 0, 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "place",
    [
        "tables/quarantine/ehr__data__train__0.parquet",
        "tables/quarantine/wearable__0.parquet",
        "physiology/activity_entropy_1d.parquet",
        "given/readmission/readmission.parquet",
        "tables/deidentified.json",
    ],
)
def test_a_full_disk_is_named_also_where_rows_are_set_aside_and_labels_made(inputs, tmp_path, place, monkeypatch):
    root, out = tmp_path / "in", tmp_path / "run"
    shutil.copytree(inputs, root)
    early = pl.col(pl.Datetime) - timedelta(days=300_000)
    for shard in (*meds.list_shards(root / "raw" / "meds")[:], wearable.list_shards(root / "raw" / "wearable")[0]):
        edit(lambda t: pl.concat([t[:1].with_columns(early), t]))(shard)
    shard = root / "raw" / "meds" / "data" / "train" / "0.parquet"
    edit(lambda t: pl.concat([t, t[-1:].with_columns(pl.lit("").alias("code"))]))(shard)
    monkeypatch.setenv(deidentify.KEY_VARIABLE, "a secret of sufficient length")
    config = small_run.small_config(root)
    config.prepare.update({"pseudonymise": True, "shift_days": 30})
    config.labels.physiology.update({"measures": ("activity_entropy",), "period_days": (1,), "min_days": 1,
                                     "min_history_days": 0.0})  # fmt: skip
    plan = small_run.plan_of(config, out)
    folders = {"tables": plan.tables.folder} | {name: a.folder for name, a in Labels(plan).groups.items()}
    (name,) = [name for name in folders if place.startswith(f"{name}/")]
    target = folders[name] / place.removeprefix(f"{name}/")
    target.parent.mkdir(parents=True)
    (target.parent / f"{target.name}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as error:
        stage.run(plan)
    assert str(error.value).startswith(f"{target}: cannot be written") and not target.exists()
    stage.run(plan)
    assert target.is_file()


def test_files_that_may_not_be_read_are_named(inputs, tmp_path, monkeypatch):
    refused, read = [], pl.read_parquet

    def refuse(path, *args, **kwargs):  # root may read anything
        if Path(path).name in refused:
            raise PermissionError(13, "Permission denied")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(pl, "read_parquet", refuse)
    for name in ("splits", "channels", "labels"):
        refused[:] = [Path(TABLES[name]).name]
        with pytest.raises(PermissionError, match=f"{refused[0]}: no permission to read it"):
            run(inputs, tmp_path / name)
