"""Splits: drawn, mapped, by fold, by site and by time; and that what is learned ends at the cut-off."""

import dataclasses
import json
import math
from datetime import datetime, timedelta

import cohort
import numpy as np
import polars as pl
import pytest

from ehrwear_jax.config.data import CohortConfig, DataConfig, PrepareConfig
from ehrwear_jax.data import store
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.prepare import dataset, division
from ehrwear_jax.data.prepare.division import Division
from ehrwear_jax.models.joint.config import Config
from ehrwear_jax.models.joint.examples import JointExamples

CONFIG = PrepareConfig(
    channels=cohort.CHANNELS, log_channels=("activity",), min_subjects=2, min_values=10, step_minutes=30
)
N_SUBJECTS = 40
CUTOFF = datetime(2015, 10, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Raw data, and the tables and records of them."""
    root = cohort.write_cohort(tmp_path_factory.mktemp("division"), N_SUBJECTS, wear_days=2)
    return prepared(root)


def prepared(root, data=None):
    dataset.prepare_tables(root / "meds", root / "wearable", root / "tables", CONFIG, data)
    dataset.prepare_records(root / "tables", None, root / "records", CONFIG)
    return root


def sizes(subjects):
    return dict(subjects["split"].value_counts().iter_rows())


# ------------------------------------------------------------------------------------------------------- drawn splits
def unsplit(n=20_000, n_groups=None):
    group = np.arange(n) if n_groups is None else np.random.default_rng(0).integers(0, n_groups, n)
    table = pl.DataFrame({"subject_id": np.arange(n) * 7 + 3, "group_id": group})
    return table.with_columns(pl.lit(None, pl.String).alias("split"))


def test_without_splits_people_are_divided_by_hashes_of_their_ids():
    subjects = unsplit()
    out = division.assign(subjects, Division())
    for split, share in zip(meds.SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs(sizes(out)[split] - share * out.height) < 5 * math.sqrt(share * (1 - share) * out.height)
    shuffled = subjects.sample(fraction=0.5, shuffle=True, seed=1)
    again = division.assign(shuffled, Division()).join(out, on="subject_id", suffix="_before")
    assert (again["split"] == again["split_before"]).all(), "neither the order nor who else is there matters"
    other = division.assign(subjects, Division(data=DataConfig(seed=1)))
    assert 0.5 < (other["split"] == out["split"]).mean() < 0.75, "the seed of the data draws another"
    halves = division.assign(subjects, Division(data=DataConfig(split_fractions=(0.5, 0.0, 0.5))))
    assert set(sizes(halves)) == {"train", "held_out"} and abs(sizes(halves)["train"] - 10_000) < 400


def test_groups_are_drawn_whole():
    out = division.assign(unsplit(3000, 400), Division())
    assert out.group_by("group_id").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(out["split"]) == set(meds.SPLITS)


def test_a_dataset_without_splits_is_prepared_with_everybody_and_counted(root, tmp_path):
    raw = cohort.write_cohort(tmp_path, N_SUBJECTS, wear_days=1)
    meds.splits_path(raw / "meds").unlink()
    steps = dataset.prepare_tables(raw / "meds", raw / "wearable", raw / "tables", CONFIG)
    assert steps[-1]["step"] == "people" and steps[-1]["dropped"] == 0
    dataset.prepare_records(raw / "tables", None, raw / "records", CONFIG)
    with_splits = pl.read_parquet(root / "tables" / "subjects.parquet")
    has_data = with_splits.filter(pl.col("subject_id") % 35 != 0)  # 35 has neither events but a birth nor a wearable
    assert steps[-1]["n"] >= has_data.height
    one, two = (
        dataset.fit_split(raw / "tables", raw / "records", raw / name, CONFIG, Division(data=DataConfig(seed=seed)))
        for name, seed in (("one", 0), ("two", 1))
    )
    assert [s["n"] for s in one[:3]] != [s["n"] for s in two[:3]]
    assert one[0]["step"] == "people of train, by hashes of ids, seed 0"
    there = pl.read_parquet(raw / "one" / "subjects.parquet")
    assert [s["n"] for s in one[:3]] == [(there["split"] == s).sum() for s in meds.SPLITS]
    assert sum(s["n"] for s in one[:3]) == there.height == steps[-1]["n"]


# ------------------------------------------------------------------------------------------------------- names
def test_other_names_of_splits_are_known_or_mapped(tmp_path):
    (tmp_path / "metadata").mkdir()
    names = ["train", "Val", "TEST", "validation", "held-out", "internal", "external"]
    table = pl.DataFrame({"subject_id": range(7), "split": names})
    table.write_parquet(meds.splits_path(tmp_path))
    with pytest.raises(ValueError, match="row 5: split 'internal' is none of .* config.data.split_names"):
        meds.read_splits(tmp_path)
    got = meds.read_splits(tmp_path, {"internal": "tuning", "external": "", "TEST": "train"})
    assert got["split"].to_list() == ["train", "tuning", "train", "tuning", "held_out", "tuning"]
    assert got["subject_id"].to_list() == [0, 1, 2, 3, 4, 5], "people of an unwanted split are in none"


@pytest.mark.parametrize(("options", "message"), [
    ({"split_names": {"x": "test"}}, "config.data.split_names.x is 'test'"),
    ({"split_fractions": (0.8, 0.3, 0.1)}, "three shares that add up to 1"),
    ({"holdout": "2019-01-01"}, "config.data.holdout is '2019-01-01'; it can be"),
    ({"holdout": "temporal:soon"}, "config.data.holdout is 'soon', which is no ISO date"),
    ({"holdout": "site:SITE//", "n_folds": 2}, "a site is held out once"),
])  # fmt: skip
def test_impossible_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


# ------------------------------------------------------------------------------------------------------- folds
def subjects_table(n=3000, n_groups=400, n_folds=5):
    group = np.random.default_rng(0).integers(0, n_groups, n)
    return pl.DataFrame(
        {
            "subject_id": np.arange(n),
            "split": ["train"] * n,
            "group_id": group,
            "fold": (group % (n_folds + 1) - 1).astype(np.int32),
        }
    )


def test_a_fold_is_held_out_whole_and_groups_are_never_divided():
    subjects, tuning = subjects_table(), []
    for fold in range(5):
        out = division.assign(subjects, Division(fold))
        assert out.drop("split").equals(subjects.drop("split"))
        assert ((out["split"] == "held_out") == (out["fold"] == fold)).all()
        assert out.group_by("group_id").agg(pl.col("split").n_unique())["split"].max() == 1
        assert (out.filter(pl.col("fold") == -1)["split"] == "train").all(), "these are only ever pretrained on"
        eligible = out.filter((pl.col("fold") >= 0) & (pl.col("fold") != fold)).unique("group_id")
        chosen = eligible.filter(pl.col("split") == "tuning")["group_id"]
        assert abs(len(chosen) - 0.1 * eligible.height) < 5 * math.sqrt(0.09 * eligible.height)
        tuning.append((set(chosen.to_list()), set(eligible["group_id"].to_list())))
    (one, eligible_one), (two, eligible_two) = tuning[:2]
    assert one & eligible_two != two & eligible_one, "every fold draws its own"
    assert division.assign(subjects, Division()).equals(subjects)


def test_a_group_in_two_splits_is_refused():
    subjects = subjects_table().with_columns(fold=pl.when(pl.col("subject_id") == 5).then(3).otherwise(1))
    with pytest.raises(ValueError, match=r"subject_groups.parquet: group \d+ is in held_out and (train|tuning)"):
        division.assign(subjects, Division(3))
    subjects = subjects_table(20, 4).with_columns(
        split=pl.when(pl.col("subject_id") == 5).then(pl.lit("held_out")).otherwise("split")
    )
    with pytest.raises(ValueError, match="is in held_out and train"):
        division.assign(subjects, Division())


def test_without_folds_of_the_dataset_whole_groups_are_drawn():
    """Everybody is held out once; the seed of the data decides when, and no other person."""
    subjects = subjects_table().drop("fold")

    def held_in(seed, of=subjects):
        parts = [division.assign(of, Division(k, DataConfig(seed=seed, n_folds=3))) for k in range(3)]
        assert all(set(p["split"]) == {"train", "tuning", "held_out"} for p in parts)
        held = np.array([(p["split"] == "held_out").to_numpy() for p in parts])
        assert (held.sum(axis=0) == 1).all(), "each one in one fold"
        return held.argmax(axis=0)

    fold = held_in(0)
    assert pl.DataFrame({"group": subjects["group_id"], "fold": fold}).group_by("group").n_unique()["fold"].max() == 1
    assert np.bincount(fold).min() > 0.25 * len(fold)
    np.testing.assert_array_equal(held_in(0, subjects[::2]), fold[::2])
    assert (held_in(1) != fold).mean() > 0.5


def test_the_number_of_drawn_folds_is_part_of_what_a_fit_depends_on():
    def identity(n, has_folds):
        return Division(0, DataConfig(n_folds=n)).identity(True, has_folds)

    assert identity(3, False) != identity(5, False) and identity(3, True) == identity(5, True)


def test_the_seed_of_the_data_draws_the_tuning_people_of_a_fold():
    subjects = subjects_table()
    one, again, two = (division.assign(subjects, Division(0, DataConfig(seed=s)))["split"] for s in (0, 0, 1))
    assert one.equals(again) and not one.equals(two)
    assert ((one == "held_out") == (two == "held_out")).all(), "folds are those of the dataset"


# ------------------------------------------------------------------------------------------------------- by site
def test_a_site_is_held_out_with_everybody_seen_there_and_nobody_else():
    subjects = subjects_table(600, 200).with_columns(
        split=pl.col("group_id").replace_strict({0: "held_out", 1: "tuning"}, default="train")
    )
    site = pl.Series([3, 4, 5, 400])
    out = division.assign(subjects, Division(data=DataConfig(holdout="site:SITE//B")), site)
    there = set(subjects.filter(pl.col("subject_id").is_in(site.to_list()))["group_id"])
    held = out.filter(pl.col("split") == "held_out")
    assert set(held["group_id"]) == there and held.height > 4, "with all of their groups"
    left = out.filter(~pl.col("group_id").is_in(list(there)))
    assert (left.filter(pl.col("group_id") == 1)["split"] == "tuning").all()
    assert (left.filter(pl.col("group_id") != 1)["split"] == "train").all()
    with pytest.raises(ValueError, match="nobody is of the site 'SITE//B'"):
        division.assign(subjects, Division(data=DataConfig(holdout="site:SITE//B")), pl.Series([], dtype=pl.Int64))


def test_a_site_is_told_by_codes_or_by_a_column_of_the_splits(root, tmp_path):
    raw = cohort.write_cohort(tmp_path, N_SUBJECTS, wear_days=1)
    path = meds.splits_path(raw / "meds")
    pl.read_parquet(path).with_columns(hospital=pl.col("subject_id") % 4).write_parquet(path)
    data = DataConfig(holdout="site:hospital=3")
    prepared(raw, data)
    steps = dataset.fit_split(raw / "tables", raw / "records", raw / "fit", CONFIG, Division(data=data))
    out = pl.read_parquet(raw / "fit" / "subjects.parquet")
    assert ((out["split"] == "held_out") == (out["subject_id"] % 4 == 3)).all()
    assert steps[2] == {"step": "people of held_out, by site hospital=3", "n": 10, "dropped": 0, "reason": ""}
    by_code = division.divide(root / "tables", Division(data=DataConfig(holdout="site:GENDER//F")), 6)[0]
    events = pl.read_parquet(root / "tables" / "events" / "*.parquet")
    women = set(events.filter(pl.col("code") == "GENDER//F")["subject_id"])
    assert set(by_code.filter(pl.col("split") == "held_out")["subject_id"]) == women
    with pytest.raises(ValueError, match="names a column 'clinic', which is not there"):
        dataset.prepare_tables(raw / "meds", None, tmp_path / "none", CONFIG, DataConfig(holdout="site:clinic=1"))


# ------------------------------------------------------------------------------------------------------- a cut-off
def fitted(root, out, **options):
    cut = Division(cohort=CohortConfig(cutoff=CUTOFF.isoformat(), **options))
    return dataset.fit_split(root / "tables", root / "records", out, CONFIG, cut)


def index_of(record):
    return len(record.time_K), len(record.window_end_M)


def test_pretraining_sees_the_records_until_the_cut_off_and_evaluation_all_of_them(root, tmp_path):
    steps = fitted(root, tmp_path / "fit")
    everything = store.RecordStore(root / "records", tmp_path / "fit")
    cut = everything.view("train", pretraining=True)
    at = int(np.datetime64(CUTOFF, "us").astype(np.int64))
    whole = {s: everything[i] for i, s in enumerate(everything.index["subject_id"])}
    shortened = 0
    for i, row in enumerate(cut.index.iter_rows(named=True)):
        record, full = cut[i], whole[row["subject_id"]]
        assert (record.time_K <= at).all() and (record.window_end_M <= at).all() and record.end_us <= at
        assert index_of(record) == (row["n_events"], row["n_windows"])
        assert index_of(record) == ((full.time_K <= at).sum(), (full.window_end_M <= at).sum())
        assert (row["first_us"], row["end_us"]) == (record.first_us, record.end_us)
        assert record.birth_us == full.birth_us and len(record.static_code_S) == len(full.static_code_S)
        assert not (record.died and full.end_us > at)
        shortened += index_of(record) != index_of(full)
    assert shortened > 5
    split = pl.read_parquet(tmp_path / "fit" / "subjects.parquet")
    assert set(cut.index["subject_id"]) == set(split.filter(pl.col("split") == "train")["subject_id"])
    tally = {s["step"]: s for s in steps}["pretraining: events of training and tuning people"]
    learned = [r for s, r in whole.items() if s in set(split.filter(pl.col("split") != "held_out")["subject_id"])]
    assert tally["n"] == sum((r.time_K <= at).sum() for r in learned)
    assert tally["n"] + tally["dropped"] == sum(len(r.time_K) for r in learned)
    assert tally["reason"] == "later than 2015-10-01"
    # scales of signals are of the training people's windows until then
    fitted_on = json.loads((tmp_path / "fit" / "signal_statistics.json").read_text())["n_values"]
    samples = sum(np.isfinite(cut[i].window_MxLxC).sum((0, 1)) for i in range(len(cut)))
    assert fitted_on == samples.tolist() and min(fitted_on) > 0
    assert any(len(whole[s].window_end_M) > len(cut[i].window_end_M) for i, s in enumerate(cut.index["subject_id"]))


def test_nothing_after_the_cut_off_changes_what_is_learned(root, tmp_path):
    """The fit, the index and every training example of a dataset whose later part is another."""
    raw = cohort.write_cohort(tmp_path / "raw", N_SUBJECTS, wear_days=2)
    for path in meds.list_shards(raw / "meds"):
        events = meds.read_shard(path)
        later = (pl.col("time") > CUTOFF + timedelta(days=1)) & ~pl.col("code").str.starts_with("MEDS_")
        changed = events.with_columns(
            pl.when(later).then(pl.lit("DX//I10")).otherwise("code").alias("code"),
            pl.when(later).then(None).otherwise("numeric_value").alias("numeric_value"),
            pl.when(later).then(pl.col("time") + timedelta(hours=5)).otherwise("time").alias("time"),
        )
        meds.write_shard(path, changed.sort("subject_id", "time", nulls_last=False, maintain_order=True))
    prepared(raw)
    stores = {}
    for name, where in (("before", root), ("after", raw)):
        fitted(where, tmp_path / name)
        stores[name] = store.RecordStore(where / "records", tmp_path / name)
    files = ("code_statistics", "text_statistics", "pretraining")
    before, after = ([pl.read_parquet(tmp_path / n / f"{f}.parquet") for f in files] for n in ("before", "after"))
    assert all(a.equals(b, null_equal=True) for a, b in zip(before, after, strict=True))
    one, two = (JointExamples(s.view("train", pretraining=True), small(), 0) for s in stores.values())
    assert one.rows_per_epoch == two.rows_per_epoch and one.facts == two.facts
    for g in range(2 * one.rows_per_epoch):
        rows = [{k: v[0] for k, v in e.spec.empty(1).items()} for e in (one, two)]
        one.fill(rows[0], g), two.fill(rows[1], g)
        for name in rows[0]:
            np.testing.assert_array_equal(rows[0][name], rows[1][name], err_msg=name)
    whole = [JointExamples(s.view("train"), small(), 0) for s in stores.values()]
    assert any(not np.array_equal(a, b) for a, b in zip(*(row_arrays(e) for e in whole), strict=True))


def small():
    config = Config()
    context = dataclasses.replace(
        config.context, tokens=48, windows=16, context_tokens=40, queries=8, events=8, patch_steps=3,
        future_windows=2, future_codes=5,
    )  # fmt: skip
    return dataclasses.replace(config, context=context)


def row_arrays(examples):
    row = {k: v[0] for k, v in examples.spec.empty(1).items()}
    examples.fill(row, 0)
    return list(row.values())


def test_who_is_not_eligible_at_the_cut_off_is_not_pretrained_on_but_stays_in_the_evaluation(root, tmp_path):
    steps = fitted(root, tmp_path / "fit", min_ehr_days=100.0, min_wear_days=1, min_wear_hours=6.0)
    subjects = pl.read_parquet(tmp_path / "fit" / "subjects.parquet")
    opened = store.RecordStore(root / "records", tmp_path / "fit")
    cut, everybody = opened.view("train", pretraining=True), opened.view("train")
    chosen = subjects.filter((pl.col("split") == "train") & pl.col("pretraining"))["subject_id"]
    assert cut.index["subject_id"].to_list() == chosen.to_list()
    assert 0 < len(cut) < len(everybody) == (subjects["split"] == "train").sum()
    for i in range(len(cut)):
        record = cut[i]
        assert record.end_us - record.time_K[0] >= 0 and len(record.window_end_M)
        assert (int(np.datetime64(CUTOFF, "us").astype(np.int64)) - record.time_K[0]) / 86_400e6 >= 100
    names = [s["step"] for s in steps]
    assert names[:3] == [
        "pretraining, at 2015-10-01: people with a prediction time",
        "pretraining, at 2015-10-01: people with enough EHR history",
        "pretraining, at 2015-10-01: people with enough wear",
    ]
    assert steps[2]["n"] == steps[3]["n"] == subjects["pretraining"].sum()
    with pytest.raises(ValueError, match="lets nobody of the training people in at 2015-10-01: .*right age 0"):
        fitted(root, tmp_path / "none", min_age_years=150.0)
    whole = dataset.fit_split(root / "tables", root / "records", tmp_path / "whole", CONFIG)
    assert whole[0]["step"] == "events of frequent codes"
    statistics = [pl.read_parquet(tmp_path / n / "code_statistics.parquet") for n in ("fit", "whole")]
    assert statistics[0]["subjects"].max() <= len(cut) < statistics[1]["subjects"].max()


def test_a_temporal_hold_out_cuts_as_an_earlier_cut_off_does():
    data = DataConfig(holdout="temporal:2019-01-01")
    assert Division(data=data).cutoff == datetime(2019, 1, 1)
    assert Division(data=data, cohort=CohortConfig(cutoff="2018-06-01")).cutoff == datetime(2018, 6, 1)
    assert Division(data=data, cohort=CohortConfig(cutoff="2020-06-01")).cutoff == datetime(2019, 1, 1)
    assert Division().cutoff is None
