"""Ages above the limit are told as the limit, wherever a birth date becomes an age."""

from datetime import datetime

import cohort
import numpy as np
import polars as pl
import pytest
from repo import REPO

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data import ages, store
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.prepare import dataset
from ehrwear_jax.models.joint.config import Config
from ehrwear_jax.models.joint.examples import JointExamples
from ehrwear_jax.models.tabular import features

LIMIT = 40.0  # of the people of cohort.py about half are older, and some become so
DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = cohort.write_cohort(tmp_path_factory.mktemp("ages"), 40, wear_days=2)
    return cohort.prepare_cohort(root, max_age_years=LIMIT)


def births_of(root):
    """{subject: birth} of the raw data."""
    events = pl.concat([meds.read_shard(p) for p in meds.list_shards(root / "meds")])
    return dict(events.filter(pl.col("code") == "MEDS_BIRTH").select("subject_id", "time").rows())


def test_ages_of_a_table():
    table = pl.DataFrame(
        {
            "birth": [datetime(1920, 1, 1), datetime(1920, 1, 1), datetime(1920, 1, 1), None],
            "time": [datetime(2000, 1, 1), datetime(2020, 1, 1), datetime(2020, 1, 1), datetime(2020, 1, 1)],
            "limit": [90.0, 90.0, None, 90.0],
        }
    )
    got = table.select(ages.years(pl.col("birth"), pl.col("time"), pl.col("limit"))).to_series().to_list()
    assert got == [pytest.approx(80.0, abs=0.01), 90.0, pytest.approx(100.0, abs=0.01), None]
    days = np.array([20_000, 32_872, 32_873, 40_000])  # 90 years are 32,872.5 days
    np.testing.assert_array_equal(ages.whole_days(days, 90.0), [20_000, 32_872, 32_872, 32_872])
    np.testing.assert_array_equal(ages.whole_days(days, None), days)


def test_no_age_of_a_token_or_a_query_is_above_the_limit_and_the_others_are_true(root):
    examples = JointExamples(cohort.open_store(root), Config(), augmented=False)
    raw, above, below = births_of(root), 0, 0
    ids = examples.people.index["subject_id"].to_list()
    for i, subject in enumerate(ids):
        patient = examples.people[i]
        if not len(patient.time_N):
            continue
        end_us = int(patient.time_N[-1])
        batch, where = next(iter(examples.prediction_batches(np.array([i]), np.array([end_us]), 1)))
        n = int((batch["segment"][0] > 0).sum())
        age = float(batch["query_age"][where >= 0].astype(np.float64).sum())
        assert max(batch["age"][0, :n, 0].max(), batch["query_age"][..., 0].max()) <= LIMIT * 365.25
        true = (end_us - int(np.datetime64(raw[subject], "us").astype(np.int64))) / DAY_US
        if true > LIMIT * 365.25 + 1:
            above += 1
            assert age == pytest.approx(LIMIT * 365.25 + end_us % DAY_US / DAY_US, abs=0.01), "the time of day stays"
        elif true < LIMIT * 365.25 - 1:
            below += 1
            assert age == pytest.approx(true, abs=1e-3)
    assert above > 5 and below > 5


def test_the_age_of_tabular_features_is_told_likewise(root, tmp_path):
    subjects = pl.read_parquet(root / "fit" / "all" / "subjects.parquet")
    times = subjects.select("subject_id").with_columns(
        prediction_time=pl.lit(datetime(2016, 6, 1)).cast(pl.Datetime("us"))
    )
    codes = pl.read_parquet(root / "records" / "codes.parquet", columns=["code", "ancestors"])
    events = tuple(sorted((root / "tables" / "events").glob("*.parquet")))
    features.build(features.Sources(events, (), subjects, codes, min_subjects=2), times, tmp_path)
    read = features.Features(tmp_path, times).read(times, [features.AGE]).toarray()[:, 0]
    age, raw = dict(zip(times["subject_id"], read, strict=True)), births_of(root)
    true = {s: (datetime(2016, 6, 1) - birth).days / 365.25 for s, birth in raw.items()}
    assert sum(years > LIMIT + 0.01 for years in true.values()) > 5
    for s, years in true.items():
        if abs(years - LIMIT) > 0.01:
            assert age[s] == pytest.approx(min(years, LIMIT), abs=0.005)


def test_tables_hold_no_birth_of_who_is_above_the_limit_from_the_beginning(root):
    subjects = pl.read_parquet(root / "tables" / "subjects.parquet")
    assert set(subjects[ages.LIMIT]) == {LIMIT}
    events = pl.read_parquet(root / "tables" / "events" / "*.parquet")
    first = dict(events.group_by("subject_id").agg(pl.col("time").min()).rows())
    raw, moved = births_of(root), 0
    for subject, birth in subjects.select("subject_id", "birth_time").rows():
        if first.get(subject) is None:
            continue
        at_first = (first[subject] - raw[subject]).days / 365.25
        if at_first > LIMIT + 0.01:
            moved += 1
            assert birth != raw[subject] and (first[subject] - birth).days / 365.25 == pytest.approx(LIMIT, abs=0.01)
        elif at_first < LIMIT - 0.01:
            assert birth == raw[subject]
    assert moved > 5


def test_who_is_told_as_of_the_limit_is_counted(root, tmp_path):
    config = PrepareConfig(max_age_years=LIMIT)
    steps = dataset.prepare_tables(root / "meds", None, tmp_path / "tables", config)
    subjects = pl.read_parquet(tmp_path / "tables" / "subjects.parquet")
    raw = births_of(root)
    ends = subjects.drop_nulls("end_time").select("subject_id", "end_time").rows()
    old = sum((end - raw[s]).total_seconds() >= LIMIT * 365.25 * 86_400 for s, end in ends)
    assert steps[-1] == {"step": "people told as 40 years old in some or all of their record", "n": old, "dropped": 0,
                         "reason": ""}  # fmt: skip
    assert 5 < old < len(ends)


def test_without_a_limit_births_and_ages_are_as_they_were(root, tmp_path):
    config = PrepareConfig(min_subjects=2, min_values=10)
    dataset.prepare_tables(root / "meds", None, tmp_path / "tables", config)
    dataset.prepare_records(tmp_path / "tables", None, tmp_path / "records", config)
    dataset.fit_split(tmp_path / "tables", tmp_path / "records", tmp_path / "fit", config)
    opened = store.RecordStore(tmp_path / "records", tmp_path / "fit")
    assert opened.max_age_years is None
    births = dict(pl.read_parquet(tmp_path / "tables" / "subjects.parquet").select("subject_id", "birth_time").rows())
    assert births == births_of(root)


def test_nobody_makes_an_age_of_a_birth_date_by_hand():
    """What reads birth dates outside the preparation of data asks ages.py for the age."""
    package = REPO / "ehrwear_jax"
    folders = ("models", "stages", "training", "interpret", "report")
    paths = [p for folder in folders for p in (package / folder).rglob("*.py")]
    readers = [p for p in paths if "birth_time" in p.read_text(encoding="utf-8")]
    assert readers
    for path in readers:
        assert "ages.years(" in path.read_text(encoding="utf-8"), (
            f"{path}: an age that config.prepare.max_age_years misses"
        )
