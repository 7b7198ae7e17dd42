"""The prepare stage: labels made from events, folds, and what is said when something is missing."""

import json
from datetime import timedelta

import polars as pl
import pytest
import small_run

from ehrwear_jax.data.formats import meds
from ehrwear_jax.stages import model, prepare

FOLDS = pl.DataFrame(
    {"subject_id": range(1, small_run.N_SUBJECTS + 1), "fold": [s % 2 if s % 10 else -1 for s in range(1, 31)]},
    {"subject_id": pl.Int64, "fold": pl.Int32},
)


def run(config, workdir):
    prepare.run(config, workdir)
    return json.loads((workdir / "prepare" / "counts.json").read_text())


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepare")
    small_run.write_inputs(root, folds=FOLDS)
    return root


def test_labels_are_made_from_the_events_where_no_folder_of_labels_is_given(root, tmp_path):
    config = small_run.small_config(root)
    config.data.labels_dir = ""
    config.evaluate.tasks = ("hospitalization_30d", "hospitalization_90d")
    counts = {c["step"]: c for c in run(config, tmp_path)}
    events = pl.concat([meds.read_shard(p) for p in meds.list_shards(root / "raw" / "meds")])
    worn = pl.concat([pl.read_parquet(p) for p in (root / "raw" / "wearable").glob("*.parquet")])
    first_worn = dict(worn.group_by("subject_id").agg(pl.col("start_time").min()).iter_rows())
    last_time = events["time"].max()
    seen = set()
    for days in (30, 90):
        table = prepare.label_table(config, tmp_path, f"hospitalization_{days}d")
        step = counts[f"label rows hospitalization_{days}d"]
        assert step["n"] == table.height > 0
        seen.add(step["n"] + step["dropped"])
        for subject, at, positive in table.iter_rows():
            mine = events.filter(pl.col("subject_id") == subject)
            admitted = mine.filter(
                (pl.col("code") == "HOSPITAL_ADMISSION//INPATIENT")
                & (pl.col("time") > at)
                & (pl.col("time") <= at + timedelta(days=days))
            )
            assert positive == (admitted.height > 0)
            assert at >= first_worn[subject] + timedelta(days=1)
            assert at <= last_time - timedelta(days=90), "the same last day for everyone, whatever follows"
    assert len(seen) == 1, "both horizons start from the same prediction times"
    index = prepare.prediction_index(config, tmp_path)
    assert index.equals(index.unique().sort("subject_id", "prediction_time")) and index.height <= seen.pop()


def test_first_onsets_of_configured_groups_are_labelled(root, tmp_path):
    config = small_run.small_config(root)
    config.data.labels_dir = ""
    config.labels.diagnosis_groups["diabetes"] = ("DX//E11",)
    config.evaluate.tasks = ("onset_diabetes_90d", "time_to_onset_diabetes")
    counts = {c["step"]: c for c in run(config, tmp_path)}
    times = prepare.label_table(config, tmp_path, "time_to_onset_diabetes")
    assert 0 < times.height == counts["label rows time_to_onset_diabetes"]["n"]
    assert counts["label rows time_to_onset_diabetes"]["dropped"] > 0, "some had it before"
    assert (
        counts["label rows onset_diabetes_90d"]["n"] + counts["label rows onset_diabetes_90d"]["dropped"]
        == times.height
    )
    events = pl.concat([meds.read_shard(p) for p in meds.list_shards(root / "raw" / "meds")])
    diabetes = events.filter(pl.col("code") == "DX//E11")
    for subject, at, days, observed in times.iter_rows():
        mine = diabetes.filter(pl.col("subject_id") == subject)["time"]
        assert (mine > at).all(), "nobody at risk has had it"
        assert observed == (len(mine) > 0)
        if observed:
            assert abs((mine.min() - at) / timedelta(days=1) - days) < 1e-6


def test_without_a_wearable_folder_the_labels_need_no_wear(root, tmp_path):
    config = small_run.small_config(root)
    config.data.update({"labels_dir": "", "wearable_dir": ""})
    config.evaluate.tasks = ("hospitalization_30d",)
    run(config, tmp_path)
    unworn = {s for s in range(1, 31) if s % 5 == 0 or s == small_run.EHR_ONLY}
    assert set(prepare.label_table(config, tmp_path, "hospitalization_30d")["subject_id"]) & unworn


def test_a_half_done_stage_resumes_to_the_same_bytes(root, tmp_path):
    config = small_run.small_config(root)
    run(config, tmp_path)
    folder = tmp_path / "prepare"
    whole = tree(folder)
    kept = min((folder / "tables" / "events").glob("*.parquet"))
    kept_time = kept.stat().st_mtime_ns
    for path in ("counts.json", "records/index.parquet", "fit/all/code_statistics.parquet"):
        (folder / path).unlink()
    for record in sorted((folder / "records").glob("*.array_record"))[2:]:
        record.unlink()
    (folder / "records" / "00003.array_record.partial").write_text("half a file")
    window = max((folder / "tables" / "windows").glob("*.json"))
    window.unlink()
    run(config, tmp_path)
    assert tree(folder) == whole and kept.stat().st_mtime_ns == kept_time


def test_each_fold_is_held_out_once_and_its_people_are_in_no_other_split(root, tmp_path):
    config = small_run.small_config(root)
    config.data.n_folds = 2
    run(config, tmp_path)
    for name, fold in (("fold0", 0), ("fold1", 1)):
        subjects = pl.read_parquet(prepare.fit_dir(tmp_path, name) / "subjects.parquet")
        assert subjects.height == small_run.N_SUBJECTS and not subjects["subject_id"].is_duplicated().any()
        of = {s: set(subjects.filter(pl.col("split") == s)["subject_id"]) for s in ("train", "tuning", "held_out")}
        assert of["held_out"] == set(FOLDS.filter(pl.col("fold") == fold)["subject_id"])
        assert set(FOLDS.filter(pl.col("fold") == -1)["subject_id"]) <= of["train"]
        assert of["tuning"] and sum(map(len, of.values())) == small_run.N_SUBJECTS
        for split, people in of.items():  # what a model trains on
            read = model._patients(config, tmp_path, name, "joint", split)
            assert set(read.index["subject_id"]) == people


@pytest.mark.parametrize("n, there", [(3, "0, 1"), (5, "0, 1")])
def test_another_number_of_folds_than_the_dataset_has_is_refused(root, tmp_path, n, there):
    config = small_run.small_config(root)
    config.data.n_folds = n
    with pytest.raises(
        ValueError, match=f"config.data.n_folds is {n} but .*subject_folds.parquet has the folds {there}"
    ):
        prepare.run(config, tmp_path)


def test_folds_without_a_table_of_folds_are_refused(tmp_path):
    small_run.write_inputs(tmp_path)
    config = small_run.small_config(tmp_path)
    config.data.n_folds = 2
    with pytest.raises(ValueError, match="n_folds is set but the dataset has no metadata/subject_folds.parquet"):
        prepare.run(config, tmp_path / "run")


def test_a_missing_label_table_and_no_task_at_all_are_said(root, tmp_path):
    config = small_run.small_config(root)
    with pytest.raises(FileNotFoundError, match="no label table .*death.parquet; there are readmission, relapse$"):
        prepare.label_table(config, tmp_path, "death")
    config.evaluate.tasks = ()
    with pytest.raises(ValueError, match="config.evaluate.tasks is empty"):
        prepare.prediction_index(config, tmp_path)


def test_a_channel_that_the_data_lack_is_named(root, tmp_path):
    config = small_run.small_config(root)
    config.prepare.channels = ("heart_rate", "ppg")
    with pytest.raises(ValueError, match=r"no channel \['ppg'\] in metadata/channels.parquet; there are \['activity'"):
        prepare.run(config, tmp_path)
