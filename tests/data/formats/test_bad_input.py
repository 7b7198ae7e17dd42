"""Prepare on bad input: a named error, or a quarantine row and counts that add up; nothing is lost silently."""

import json
import logging
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import cohort
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import small_run
from meds_0_3_3 import label_table

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.prepare import dataset
from ehrwear_jax.models import vocabulary
from ehrwear_jax.stages import prepare as stage
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir

CONFIG = PrepareConfig(channels=cohort.CHANNELS, min_subjects=2, step_minutes=30, subjects_per_shard=8)
INF = float("inf")


def run(root, out, config=CONFIG):
    tables, records = out / "tables", out / "records"
    counts = dataset.prepare_tables(root / "meds", root / "wearable", tables, config, None, out / "quarantine")
    (out / "quarantine").mkdir(exist_ok=True)
    counts += dataset.prepare_records(tables, meds.read_codes(root / "meds"), records, config)
    return counts + dataset.fit_split(tables, records, out / "fit", config)


@pytest.fixture
def root(tmp_path):
    return cohort.write_cohort(tmp_path / "raw", 12, wear_days=1)


def change(path, edit):
    edit(pl.read_parquet(path)).write_parquet(path)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def bad_events(events):
    """Four further rows of the last subject of the shard, each with a fault, before its last row."""
    last = events[-1]
    rows = [
        last.with_columns(time=pl.lit(datetime(1066, 10, 14)).cast(pl.Datetime("us"))),
        last.with_columns(time=pl.lit(datetime(9999, 12, 31)).cast(pl.Datetime("us"))),
        last.with_columns(numeric_value=pl.lit(-INF, pl.Float32)),
        last.with_columns(code=pl.lit("")),
    ]
    return pl.concat([events[:-1], *rows, last])


# ------------------------------------------------------------------------------------------------------- quarantine
def test_bad_rows_go_to_the_quarantine_and_change_nothing_else(root, tmp_path):
    clean = run(root, tmp_path / "clean")
    assert list((tmp_path / "clean" / "quarantine").iterdir()) == []
    shard = meds.list_shards(root / "meds")[0]
    height = pl.read_parquet(shard).height
    change(shard, bad_events)
    counts = run(root, tmp_path / "bad")
    for folder in ("tables/events", "tables/windows", "all"):
        whole, got = files(tmp_path / "clean" / folder), files(tmp_path / "bad" / folder)
        assert whole == got
    assert counts[0]["n"] == clean[0]["n"] and counts[0]["dropped"] == clean[0]["dropped"] + 4
    n_read = sum(pl.read_parquet(p).height for p in meds.list_shards(root / "meds"))
    assert counts[0]["n"] + counts[0]["dropped"] == n_read
    assert counts[0]["reason"].startswith(f"{n_read} rows read = {counts[0]['n']} kept + 12 birth rows")
    assert counts[0]["reason"].endswith(" + 4 quarantined")
    aside = [(c["dropped"], c["reason"]) for c in counts if c["step"] == "EHR rows quarantined"]
    assert aside == [
        (1, "column 'code': empty"),
        (1, "column 'numeric_value': infinite"),
        (1, "column 'time': before 1900-01-01"),
        (1, "column 'time': on or after 2300-01-01"),
    ]
    (table,) = (tmp_path / "bad" / "quarantine").iterdir()
    got = pl.read_parquet(table)
    assert got["file"].unique().to_list() == [str(shard)]
    assert got["row"].to_list() == [height - 1 + i for i in range(4)]
    assert got.select("column", "reason").rows() == [
        ("time", "before 1900-01-01"),
        ("time", "on or after 2300-01-01"),
        ("numeric_value", "infinite"),
        ("code", "empty"),
    ]
    assert run(root, tmp_path / "bad") == counts, "also when all is done already"


def test_bad_recordings_go_to_the_quarantine_and_change_nothing_else(root, tmp_path):
    clean = run(root, tmp_path / "clean")
    shard = wearable.list_shards(root / "wearable")[0]

    def with_bad(rows):
        first = rows[0]
        bad = [
            first.with_columns(unit=pl.lit("mmHg")),
            first.with_columns(start_time=pl.lit(datetime(1, 1, 1)).cast(pl.Datetime("us"))),
            first.with_columns(values=pl.lit([1.0, INF], pl.List(pl.Float32))),
            first.with_columns(sample_rate_hz=pl.lit(-1.0)),
        ]
        return pl.concat([first, *bad, rows[1:]])

    change(shard, with_bad)
    counts = run(root, tmp_path / "bad")
    for folder in ("tables/windows", "tables/window_values", "all"):
        whole, got = files(tmp_path / "clean" / folder), files(tmp_path / "bad" / folder)
        assert {k: v for k, v in whole.items() if not k.endswith(".json")} == {
            k: v for k, v in got.items() if not k.endswith(".json")
        }
    assert counts[1]["n"] == clean[1]["n"] and counts[1]["dropped"] == clean[1]["dropped"] + 4
    assert counts[1]["reason"].endswith("+ 4 quarantined")
    (table,) = (tmp_path / "bad" / "quarantine").iterdir()
    assert pl.read_parquet(table).select("row", "column").rows() == [
        (1, "unit"), (2, "start_time"), (3, "values"), (4, "sample_rate_hz"),
    ]  # fmt: skip
    assert len([c for c in counts if c["step"] == "wearable rows quarantined"]) == 4


def test_an_upload_that_arrived_twice_changes_no_window_and_is_counted(root, tmp_path):
    clean = run(root, tmp_path / "clean")
    n_seen = 0
    for shard in wearable.list_shards(root / "wearable"):
        rows = pl.read_parquet(shard)
        n_seen += int(rows["values"].explode().is_not_nan().sum())
        pl.concat([rows, rows]).sort("subject_id", maintain_order=True).write_parquet(shard)
    counts = run(root, tmp_path / "twice")
    assert files(tmp_path / "clean" / "tables" / "window_values") == files(
        tmp_path / "twice" / "tables" / "window_values"
    )
    (said,) = [c for c in counts if c["step"] == "wearable samples of overlapping stretches"]
    assert said["dropped"] == n_seen and [c for c in counts if c is not said][2:] == clean[2:]


def test_two_devices_are_never_averaged(root, tmp_path):
    shard = wearable.list_shards(root / "wearable")[0]
    one = pl.read_parquet(shard)[:1].with_columns(start_time=pl.lit(datetime(2015, 6, 1)).cast(pl.Datetime("us")))
    day = np.full(1440, 60.0, np.float32)
    holes = day + 40
    holes[:30] = np.nan  # this device misses the first step, the other the whole third window
    short = day[:720]

    def device(name, values):
        return one.with_columns(device=pl.lit(name), values=pl.Series([values.tolist()], dtype=pl.List(pl.Float32)))

    pl.concat([device("a", short), device("b", holes)]).write_parquet(shard)
    for other in wearable.list_shards(root / "wearable")[1:]:
        other.unlink()
    counts = run(root, tmp_path / "out")
    (path,) = (tmp_path / "out" / "tables" / "window_values").iterdir()
    values = np.load(path)[..., 0]
    assert values.shape == (4, 12)
    np.testing.assert_array_equal(values[0], 60.0)  # a has 12 steps, b 11
    np.testing.assert_array_equal(values[1], 60.0)  # both have 12: the name that sorts first
    np.testing.assert_array_equal(values[2:], 100.0)
    (said,) = [c for c in counts if c["step"] == "wearable steps of a further device"]
    assert said["dropped"] == 23


# ------------------------------------------------------------------------------------------------------- files
def test_a_shard_without_rows_is_no_fault(root, tmp_path):
    clean = run(root, tmp_path / "clean")
    first = meds.list_shards(root / "meds")[0]
    pl.read_parquet(first)[:0].write_parquet(first.with_name("empty.parquet"))
    worn = wearable.list_shards(root / "wearable")[0]
    pl.read_parquet(worn)[:0].write_parquet(worn.with_name("empty.parquet"))
    assert run(root, tmp_path / "more") == clean
    for folder in ("records", "fit"):
        assert files(tmp_path / "clean" / folder) == files(tmp_path / "more" / folder)


def torn(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("kind", ["meds", "wearable"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (torn, "not a readable parquet file"),
        (lambda p: change(p, lambda t: t.drop("subject_id")), "column 'subject_id' is missing"),
        (lambda p: change(p, lambda t: t.cast({"subject_id": pl.String})), "column 'subject_id' is String"),
        (lambda p: change(p, lambda t: pl.concat([t, t[:1]])), "row .*subject .* not contiguous"),
        (lambda p: p.with_name("copy.parquet").write_bytes(p.read_bytes()), "in more than one .*copy"),
    ],
)
def test_a_fault_of_a_file_stops_and_names_it(root, tmp_path, kind, fault, message):
    shards = meds.list_shards(root / "meds") if kind == "meds" else wearable.list_shards(root / "wearable")
    fault(shards[0])
    with pytest.raises(ValueError, match=message) as error:
        run(root, tmp_path / "out")
    assert str(root / kind) in str(error.value) and "\n" not in str(error.value)


def test_people_with_one_kind_of_data_or_none_are_all_there(root, tmp_path):
    run(root, tmp_path)
    index = pl.read_parquet(tmp_path / "records" / "index.parquet")
    assert index["subject_id"].to_list() == list(range(1, 13))
    only_wear = index.filter(pl.col("subject_id") == 7)
    assert only_wear["n_events"].item() == 0 < only_wear["n_windows"].item()
    only_ehr = index.filter(pl.col("subject_id") == 5)
    assert only_ehr["n_windows"].item() == 0 < only_ehr["n_events"].item()
    splits = root / "meds" / "metadata" / "subject_splits.parquet"
    change(splits, lambda t: pl.concat([t, pl.DataFrame({"subject_id": [99], "split": ["train"]})]))
    run(root, tmp_path / "more")
    nothing = pl.read_parquet(tmp_path / "more" / "records" / "index.parquet").filter(pl.col("subject_id") == 99)
    assert nothing.select("n_static", "n_events", "n_windows", "days").row(0) == (0, 0, 0, 0.0)


# ------------------------------------------------------------------------------------------------------- disk
PLACES = (
    "tables/events/data__train__0.parquet",
    "tables/people/data__train__0.json",
    "tables/window_values/0.npy",
    "tables/windows/0.parquet",
    "tables/texts.parquet",
    "tables/subjects.parquet",
    "records/codes.parquet",
    "records/meta.json",
    "records/00000.array_record",
    "records/index.parquet",
    "fit/subjects.parquet",
    "fit/code_statistics.parquet",
    "fit/signal_statistics.json",
)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_names_the_file_and_the_run_resumes_to_the_same_bytes(root, tmp_path, place):
    whole = run(root, tmp_path / "whole")
    out = tmp_path / "out"
    assert (tmp_path / "whole" / place).is_file(), sorted(files(tmp_path / "whole"))
    (out / place).parent.mkdir(parents=True)
    (out / f"{place}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as error:
        run(root, out)
    assert str(error.value).startswith(f"{out / place}: cannot be written") and "\n" not in str(error.value)
    assert not (out / place).exists() and not (out / f"{place}.partial").exists()
    assert run(root, out) == whole
    assert files(out) == files(tmp_path / "whole")


def test_a_folder_that_may_not_be_written_is_named(root, tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(os, "replace", refuse)  # root may write anywhere
    with pytest.raises(PermissionError, match="tables/.*parquet: no permission to write it"):
        run(root, tmp_path / "out")


# ------------------------------------------------------------------------------------------------------- the stage
def run_stage(config, out):
    """The plan of the stage after it ran."""
    plan = small_run.plan_of(config, out)
    stage.run(plan)
    return plan


def test_labels_do_not_see_absurd_times(tmp_path):
    small_run.write_inputs(tmp_path)
    config = small_run.small_config(tmp_path)
    config.data.labels_dir = ""
    config.evaluate.tasks = ("hospitalization_30d",)
    clean = run_stage(config, tmp_path / "clean")
    root = Path(config.data.meds_dir)
    change(meds.list_shards(root)[0], bad_events)
    worn = wearable.list_shards(Path(config.data.wearable_dir))[0]
    early = pl.col("start_time") - timedelta(days=100_000)
    change(worn, lambda t: pl.concat([t[:1].with_columns(early), t]))
    bad = run_stage(config, tmp_path / "bad")
    made, same = (Labels(plan).groups["hospitalization"].folder for plan in (clean, bad))
    names = [path.name for path in made.glob("*.parquet")]
    assert names
    for name in names:
        assert (made / name).read_bytes() == (same / name).read_bytes()
    assert len(list((bad.tables.folder / stage.QUARANTINE).iterdir())) == 2


def test_the_limit_of_times_is_said_and_comes_from_the_dataset(tmp_path, caplog):
    small_run.write_inputs(tmp_path)
    config = small_run.small_config(tmp_path)
    path = Path(config.data.meds_dir) / "metadata" / "dataset.json"
    shard = meds.list_shards(Path(config.data.meds_dir))[0]
    change(
        shard, lambda t: pl.concat([t, t[-1:].with_columns(time=pl.lit(datetime(2031, 1, 1)).cast(pl.Datetime("us")))])
    )
    for created, day, n_aside in ((None, "unknown", 0), ("2022-02-02T00:00:00", "2022-02-02", 1)):
        if created:
            path.write_text(json.dumps(json.loads(path.read_text()) | {"created_at": created}))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            plan = run_stage(config, tmp_path / day)
        (said,) = [r.getMessage() for r in caplog.records if "day of extraction" in r.getMessage()]
        assert (
            f"on or after {'2023-02-03' if created else '2300-01-01'} are set aside; day of extraction: {day}" in said
        )
        found = list((plan.tables.folder / stage.QUARANTINE).iterdir())
        assert len(found) == n_aside


@pytest.mark.parametrize("kind", ["meds_dir", "wearable_dir"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (torn, "not a readable parquet file"),
        (lambda p: change(p, lambda t: t.rename({"subject_id": "patient_id"})), "column 'subject_id' is missing"),
        (
            lambda p: change(p, lambda t: t.with_columns(pl.col(pl.Datetime).dt.replace_time_zone("Asia/Tokyo"))),
            "time' has time zone Asia/Tokyo",
        ),
    ],
)
def test_a_fault_of_a_file_is_named_also_where_labels_are_made(tmp_path, kind, fault, message):
    small_run.write_inputs(tmp_path)
    config = small_run.small_config(tmp_path)
    config.data.labels_dir = ""
    folder = Path(config.data[kind])
    path = (meds.list_shards(folder) if kind == "meds_dir" else wearable.list_shards(folder))[0]
    fault(path)
    with pytest.raises(ValueError, match=message) as error:
        run_stage(config, tmp_path / "run")
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_labels_in_folders_and_those_that_cannot_be_evaluated(tmp_path):
    small_run.write_inputs(tmp_path)
    config = small_run.small_config(tmp_path)
    folder = Path(config.data.labels_dir)
    whole = meds.read_labels(folder / "readmission.parquet")
    for name, part in {"train/0": whole[:5], "held_out/0": whole[5:]}.items():
        path = folder / "icu" / "death" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(label_table(part), path)
    labels = Labels(small_run.plan_of(config, tmp_path))
    got = labels.table("icu/death")
    assert got.sort("subject_id", "prediction_time").equals(whole.sort("subject_id", "prediction_time"))
    counted = whole.select("subject_id", "prediction_time", integer_value=pl.lit(3, pl.Int64))
    meds.write_labels(folder / "stays.parquet", counted)
    with pytest.raises(ValueError, match="stays holds integer_value; boolean, float and survival labels are evaluated"):
        labels.table("stays")


@pytest.mark.slow
def test_the_mimic_demo_goes_in_unchanged(shared_data, tmp_path):
    root = shared_data("mimic4_demo_meds")
    run = subprocess.run(
        [sys.executable, "-m", "ehrwear_jax.main", "--config=configs/full.py", "--stages=prepare",
         f"--config.data.meds_dir={root}", f"--workdir={tmp_path}", "--config.prepare.min_subjects=3"],
        capture_output=True, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    said = run.stdout + run.stderr
    # full.py holds at most its cap of records of one code on one day
    sums = (
        "916,166 rows read = 887,046 kept + 100 birth rows (they give the age) + 0 administrative rows"
        " + 29,020 beyond the cap per code and day + 0 quarantined"
    )
    assert said.count(sums) == 1
    (undescribed,) = [line for line in said.splitlines() if "codes.parquet" in line]
    assert undescribed.strip().startswith("4,374 of 7,035 codes are used by name")
    workdir = Workdir(tmp_path)
    plan = Plan(workdir.read_config(), workdir)
    counts, index = stage.counts(plan), plan.store("all").index
    assert index.height == 100 and index["n_events"].sum() + index["n_static"].sum() == 887_046
    by_step = {c["step"]: c for c in counts}
    assert by_step["events of frequent codes"]["n"] > 800_000
    of_text = by_step["events with a text as their only result"]
    assert of_text["n"] + of_text["dropped"] == 399_577 and of_text["n"] > 360_000
    records = plan.store("all")
    n_texts = sum((records[i].text_K >= 0).sum() + (records[i].static_text_S >= 0).sum() for i in range(len(records)))
    assert n_texts == of_text["n"] and len(records.texts) > 1000
    v = vocabulary.of_store(records)
    n_tokens = 0
    for i in range(len(records)):
        token_N, _ = v.encode(records[i].code_K, records[i].value_K, records[i].text_K)
        text_N = v.tokens["text_id"].to_numpy()[np.maximum(token_N, 0)]
        # of its own text: what has a rarer one is shown as the code's most frequent token
        n_tokens += ((token_N >= 0) & (text_N >= 0) & (text_N == records[i].text_K)).sum()
    assert n_tokens == by_step["text results that are frequent"]["n"] > 360_000
