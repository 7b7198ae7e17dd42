"""The prepare stage: labels made from events, folds, and what is said when something is missing."""

import json
from datetime import timedelta

import polars as pl
import pytest
import small_run
from small_run import FOLDS

from ehrwear_jax.data.formats import meds
from ehrwear_jax.models import registry
from ehrwear_jax.stages import prepare
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.labels import COUNTS, Labels


def run(config, workdir):
    """(plan, {step: its counts}) after the stage."""
    plan = small_run.plan_of(config, workdir)
    prepare.run(plan)
    return plan, {c["step"]: c for c in prepare.counts(plan)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepare")
    small_run.write_inputs(root, folds=FOLDS)
    return root


def test_labels_are_made_from_the_events_where_no_folder_of_labels_is_given(root, tmp_path):
    config = small_run.small_config(root)
    config.data.labels_dir = ""
    config.evaluate.tasks = ("hospitalization_30d", "hospitalization_90d")
    plan, counts = run(config, tmp_path)
    events = pl.concat([meds.read_shard(p) for p in meds.list_shards(root / "raw" / "meds")])
    worn = pl.concat([pl.read_parquet(p) for p in (root / "raw" / "wearable").glob("*.parquet")])
    first_worn = dict(worn.group_by("subject_id").agg(pl.col("start_time").min()).iter_rows())
    last_time = events["time"].max()
    seen = set()
    for days in (30, 90):
        table = Labels(plan).table(f"hospitalization_{days}d")
        step = counts[f"label rows hospitalization_{days}d"]
        assert step["n"] == table.height > 0
        seen.add(step["n"] + step["dropped"])
        for subject, at, positive in table.iter_rows():
            mine = events.filter(pl.col("subject_id") == subject)
            admitted = sorted(mine.filter(pl.col("code") == "HOSPITAL_ADMISSION//INPATIENT")["time"])
            # an admission within a day of the one before goes on with it
            new = [t for before, t in zip([None, *admitted], admitted, strict=False)
                   if before is None or t - before > timedelta(days=1)]  # fmt: skip
            assert positive == any(at < t <= at + timedelta(days=days) for t in new)
            assert at >= first_worn[subject] + timedelta(days=1)
            assert at <= last_time - timedelta(days=90), "the same last day for everyone, whatever follows"
    assert len(seen) == 1, "both horizons start from the same prediction times"
    times = Labels(plan).prediction_times(plan.config.evaluate.tasks)
    assert times.equals(times.unique().sort(KEYS)) and times.height <= seen.pop()


def test_first_onsets_of_configured_groups_are_labelled(root, tmp_path):
    config = small_run.small_config(root)
    config.data.labels_dir = ""
    config.labels.diagnosis_groups["diabetes"] = ("DX//E11",)
    config.evaluate.tasks = ("onset_diabetes_90d", "time_to_onset_diabetes")
    plan, counts = run(config, tmp_path)
    names = [c["step"] for c in prepare.counts(plan)]
    assert len(names) == len(set(names)), "what the groups share is told once"
    times = Labels(plan).table("time_to_onset_diabetes")
    assert 0 < times.height == counts["label rows time_to_onset_diabetes"]["n"]
    assert counts["prediction times at risk of a first diabetes"]["dropped"] > 0, "some had it before"
    assert (
        counts["label rows onset_diabetes_90d"]["n"] + counts["label rows onset_diabetes_90d"]["dropped"]
        == times.height
    )
    events = pl.concat([meds.read_shard(p) for p in meds.list_shards(root / "raw" / "meds")])
    diabetes = events.filter(pl.col("code") == "DX//E11")
    for subject, at, days, observed, died in times.iter_rows():
        mine = diabetes.filter(pl.col("subject_id") == subject)["time"]
        assert (mine > at).all(), "nobody at risk has had it"
        assert observed == (len(mine) > 0) and not (observed and died)
        if observed:
            assert abs((mine.min() - at) / timedelta(days=1) - days) < 1e-6


def test_without_a_wearable_folder_the_labels_need_no_wear(root, tmp_path):
    config = small_run.small_config(root)
    config.data.update({"labels_dir": "", "wearable_dir": ""})
    config.evaluate.tasks = ("hospitalization_30d",)
    plan, _ = run(config, tmp_path)
    unworn = {s for s in range(1, 31) if s % 5 == 0 or s == small_run.EHR_ONLY}
    assert set(Labels(plan).table("hospitalization_30d")["subject_id"]) & unworn


def test_a_half_done_stage_resumes_to_the_same_bytes(root, tmp_path):
    config = small_run.small_config(root)
    plan, counts = run(config, tmp_path)
    whole, times = small_run.contents(tmp_path), small_run.written_at(tmp_path)
    small_run.interrupted(plan.fit("all"), COUNTS, "code_statistics.parquet")
    small_run.interrupted(plan.records, COUNTS, "index.parquet")
    records = plan.records.folder
    for record in sorted(records.glob("*.array_record"))[2:]:
        record.unlink()
    (records / "00003.array_record.partial").write_text("half a file")
    small_run.interrupted(plan.tables, COUNTS)
    tables = plan.tables.folder
    window = max((tables / "windows").glob("*.json"))
    window.unlink()
    assert prepare.missing(plan) == ["tables meds", "records meds", "fit all"]
    plan, again = run(config, tmp_path)
    assert prepare.missing(plan) == [] and again == counts
    left = {p for p in small_run.contents(tmp_path) if p.endswith(".partial")}
    assert {p: b for p, b in small_run.contents(tmp_path).items() if p not in left} == whole
    kept = min((tables / "events").glob("*.parquet")).relative_to(tmp_path)
    assert small_run.written_at(tmp_path)[str(kept)] == times[str(kept)]


def test_a_lost_artifact_alone_is_made_again(root, tmp_path):
    config = small_run.small_config(root)
    config.data.n_folds = 2
    plan, _ = run(config, tmp_path)
    whole, times = small_run.contents(tmp_path), small_run.written_at(tmp_path)
    small_run.interrupted(plan.fit("fold1"), "subjects.parquet")
    assert prepare.missing(plan) == ["fit fold1"]
    prepare.run(plan)
    assert prepare.missing(plan) == []
    after, mine = small_run.written_at(tmp_path), str(plan.fit("fold1").folder.relative_to(tmp_path))
    assert whole.items() <= small_run.contents(tmp_path).items()
    assert all(p.startswith(mine) for p in after if after[p] != times.get(p))


def test_each_fold_is_held_out_once_and_its_people_are_in_no_other_split(root, tmp_path):
    config = small_run.small_config(root)
    config.data.n_folds = 2
    plan, _ = run(config, tmp_path)
    for name, fold in (("fold0", 0), ("fold1", 1)):
        subjects = pl.read_parquet(plan.fit(name).folder / "subjects.parquet")
        assert subjects.height == small_run.N_SUBJECTS and not subjects["subject_id"].is_duplicated().any()
        of = {s: set(subjects.filter(pl.col("split") == s)["subject_id"]) for s in ("train", "tuning", "held_out")}
        assert of["held_out"] == set(FOLDS.filter(pl.col("fold") == fold)["subject_id"])
        assert set(FOLDS.filter(pl.col("fold") == -1)["subject_id"]) <= of["train"]
        assert of["tuning"] and sum(map(len, of.values())) == small_run.N_SUBJECTS
        for split, people in of.items():  # what a model trains on
            store = plan.store(name, split)
            assert set(store.index["subject_id"]) == people
            examples = registry.load("joint").examples(store, plan.config.model_config("joint"))
            assert set(examples.subject_id.tolist()) == people


@pytest.mark.parametrize("n, there", [(3, "0, 1"), (5, "0, 1")])
def test_another_number_of_folds_than_the_dataset_has_is_refused(root, tmp_path, n, there):
    config = small_run.small_config(root)
    config.data.n_folds = n
    with pytest.raises(
        ValueError, match=f"config.data.n_folds is {n} but .*subject_folds.parquet has the folds {there}"
    ):
        run(config, tmp_path)


def test_without_a_table_of_folds_they_are_drawn_and_counted(tmp_path):
    small_run.write_inputs(tmp_path)
    config = small_run.small_config(tmp_path)
    config.data.n_folds = 2
    plan, _ = run(config, tmp_path / "run")
    held = []
    for name in ("fold0", "fold1"):
        subjects = pl.read_parquet(plan.fit(name).folder / "subjects.parquet")
        held.append(set(subjects.filter(pl.col("split") == "held_out")["subject_id"]))
        steps = {c["step"]: c["n"] for c in json.loads((plan.fit(name).folder / COUNTS).read_text())}
        assert steps["people of held_out, by hashes of ids, seed 0"] == len(held[-1])
    assert all(held) and not held[0] & held[1] and len(held[0] | held[1]) == small_run.N_SUBJECTS


def test_a_missing_label_table_and_no_task_at_all_are_said(root, tmp_path):
    config = small_run.small_config(root)
    plan = small_run.plan_of(config, tmp_path)
    with pytest.raises(FileNotFoundError, match="no label table .*death.parquet; there are readmission, relapse$"):
        Labels(plan).table("death")
    with pytest.raises(ValueError, match="config.evaluate.tasks is empty"):
        Labels(plan).prediction_times(())
    config.evaluate.tasks = ("readmission", "death")
    with pytest.raises(FileNotFoundError, match="no label table .*death.parquet; there are readmission, relapse$"):
        Labels(small_run.plan_of(config, tmp_path)).check()
    config.data.labels_dir = ""
    with pytest.raises(FileNotFoundError, match="readmission.parquet is made; there are hospitalization_30d"):
        Labels(small_run.plan_of(config, tmp_path)).check()
    assert not any(tmp_path.rglob("labels*"))


def test_a_channel_that_the_data_lack_is_named(root, tmp_path):
    config = small_run.small_config(root)
    config.prepare.channels = ("heart_rate", "ppg")
    with pytest.raises(ValueError, match=r"no channel \['ppg'\] in metadata/channels.parquet; there are \['activity'"):
        run(config, tmp_path)
