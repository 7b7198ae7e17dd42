"""The simulated cohort: formats, determinism, what its knobs do, and that the oracle is the truth."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from meds_files import count_subjects
from simulated_cohort import read_latent, sample_times
from sklearn.metrics import roc_auc_score
from synthetic_risks import expected_auroc

from ehrwear_jax.config.data import SimulateConfig
from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.labels import task_design
from ehrwear_jax.data.sources.simulator import code_book, latent_process, simulate, truth

SMALL = SimulateConfig(
    n_subjects=40,
    years=2.0,
    wear_days=6,
    seed=3,
    horizons_days=(30, 180),
    ppg_subjects_fraction=0.5,
    subjects_per_shard=12,
    admission_per_year=0.3,
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    counts = simulate.simulate(root, SMALL, progress=False)
    return root, counts


@pytest.fixture(scope="module")
def events(cohort):
    return pl.concat([meds.read_shard(p) for p in meds.list_shards(cohort[0] / "meds")])


@pytest.fixture(scope="module")
def recordings(cohort):
    channels = wearable.read_channels(cohort[0] / "wearable")
    files = wearable.list_shards(cohort[0] / "wearable")
    return pl.concat([wearable.read_shard(p, channels) for p in files])


def tree_bytes(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


# ---------------------------------------------------------------------------------- the process
def test_the_design_of_the_labels_is_told(cohort):
    design = json.loads((cohort[0] / "labels" / "design.json").read_text())
    assert tuple(design) == task_design.PARTS and all(design.values())
    assert f"at least {SMALL.min_history_days} days" in design["eligibility"]


# --------------------------------------------------------------------------- the oracle on disk
@pytest.fixture(scope="module")
def ehr_only_cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("large")
    config = SimulateConfig(n_subjects=700, wear_days=0, seed=5, horizons_days=(30, 365), subjects_per_shard=400)
    simulate.simulate(root, config, progress=False)
    return root


@pytest.mark.parametrize("horizon", [30, 365])
def test_oracle_is_calibrated_on_the_label_table(ehr_only_cohort, horizon):
    """Observed less expected admissions, within 3 standard errors clustered by person."""
    table = meds.read_labels(ehr_only_cohort / "labels" / f"hospitalization_{horizon}d.parquet")
    risk = truth.oracle_risk(ehr_only_cohort / "truth", table, horizon)
    assert np.isfinite(risk).all()
    per_person = (
        table.select("subject_id", d=pl.col("boolean_value").cast(pl.Float64) - pl.Series(risk))
        .group_by("subject_id")
        .agg(pl.col("d").sum())["d"]
    )
    assert len(per_person) > 450
    assert abs(per_person.sum()) < 3 * np.sqrt((per_person**2).sum())
    auroc = roc_auc_score(table["boolean_value"], risk)
    assert abs(auroc - expected_auroc(risk)) < 0.05
    assert 0.75 < auroc < 0.97


def test_stored_truth_gives_the_same_auroc_as_monte_carlo_from_the_stored_state(ehr_only_cohort):
    """The promised AUROC of the stored risks against outcomes simulated anew from the state."""
    truth_dir, horizon, n_paths = ehr_only_cohort / "truth", 30, 150
    table = meds.read_labels(ehr_only_cohort / "labels" / f"hospitalization_{horizon}d.parquet")
    table = table.sample(400, seed=1)
    risk = truth.oracle_risk(truth_dir, table, horizon)
    state = table.join(
        read_latent(truth_dir),
        left_on=["subject_id", "prediction_time"],
        right_on=["subject_id", "time"],
        how="left",
        maintain_order="left",
    )
    rng = np.random.default_rng(2)
    n = n_paths * len(state)

    def repeated(name):
        return np.tile(state[name].cast(pl.Float64).to_numpy(), n_paths)

    paths = latent_process.simulate_paths(
        simulate.health_process(SimulateConfig()),
        repeated("log_risk_offset"),
        repeated("heart_disease").astype(bool),
        rng.standard_normal((n, horizon + 1, 2)),
        rng.random((n, horizon + 1, latent_process.N_UNIFORM)),
        start=(
            repeated("ehr_health"),
            repeated("wearable_health"),
            repeated("shock").astype(np.int64),
        ),
    )
    outcome = paths.admitted_NxD.any(axis=1).reshape(n_paths, len(state))
    shown = [roc_auc_score(y, risk) for y in outcome]
    assert abs(np.mean(shown) - expected_auroc(risk)) < 4 * np.std(shown) / np.sqrt(n_paths)
    z = (outcome.sum() - n_paths * risk.sum()) / np.sqrt(n_paths * (risk * (1 - risk)).sum())
    assert abs(z) < 3.5


def test_oracle_is_nan_in_hospital_and_outside_the_record(cohort):
    truth_dir = cohort[0] / "truth"
    path = read_latent(truth_dir)
    inside = path.filter("in_hospital").head(3)
    index = inside.select("subject_id", prediction_time="time")
    assert np.isnan(truth.oracle_risk(truth_dir, index, 30)).all()
    late = index.with_columns(pl.col("prediction_time").dt.offset_by("20y"))
    assert np.isnan(truth.oracle_risk(truth_dir, late, 30)).all()
    outside = path.filter(~pl.col("in_hospital")).select("subject_id", prediction_time="time")[:2]
    noon = outside.with_columns(pl.col("prediction_time").dt.offset_by("12h"))
    np.testing.assert_array_equal(truth.oracle_risk(truth_dir, outside, 30), truth.oracle_risk(truth_dir, noon, 30))
    with pytest.raises(ValueError, match="horizon of 77 days"):
        truth.oracle_risk(truth_dir, outside, 77)
    with pytest.raises(FileNotFoundError, match="only simulated cohorts"):
        truth.oracle_risk(cohort[0] / "meds", outside, 30)


def test_oracle_takes_rows_in_any_order_and_repeated(cohort):
    truth_dir = cohort[0] / "truth"
    path = read_latent(truth_dir).filter(~pl.col("in_hospital"))
    index = path.select("subject_id", prediction_time="time").sample(60, seed=0)
    risk = truth.oracle_risk(truth_dir, index, 180)
    order = np.random.default_rng(0).integers(0, 60, 100)
    again = truth.oracle_risk(truth_dir, index[order], 180)
    np.testing.assert_allclose(again, risk[order], rtol=1e-12)
    longer = truth.oracle_risk(truth_dir, index, 180) >= truth.oracle_risk(truth_dir, index, 30)
    assert longer.all()


# ----------------------------------------------------------------------- determinism and resume
def test_workers_change_no_byte_and_a_broken_run_resumes(cohort, tmp_path):
    whole = tree_bytes(cohort[0])
    simulate.simulate(tmp_path, SMALL, workers=2, progress=False)
    assert tree_bytes(tmp_path) == whole
    # a run cut off while it wrote a shard: no marker, one file whole, one missing, one half
    name = "0001.parquet"
    (tmp_path / "truth" / "counts" / "train" / "0001.json").unlink()
    (tmp_path / "meds" / "data" / "train" / name).unlink()
    (tmp_path / "wearable" / "train" / name).write_bytes(b"PAR1 half")
    (tmp_path / "counts.json").unlink()
    untouched = tmp_path / "meds" / "data" / "train" / "0000.parquet"
    before = untouched.stat().st_mtime_ns
    simulate.simulate(tmp_path, SMALL, progress=False)
    assert tree_bytes(tmp_path) == whole
    assert untouched.stat().st_mtime_ns == before


def test_sharding_changes_no_person_and_seed_changes_all(cohort, events, tmp_path):
    other = dataclasses.replace(SMALL, subjects_per_shard=40)
    simulate.simulate(tmp_path / "a", other, progress=False)
    same = pl.concat([meds.read_shard(p) for p in meds.list_shards(tmp_path / "a" / "meds")])
    assert same.sort("subject_id", maintain_order=True).equals(events.sort("subject_id", maintain_order=True))
    reseeded = dataclasses.replace(SMALL, seed=4, wear_days=0)
    simulate.simulate(tmp_path / "b", reseeded, progress=False)
    other = pl.concat([meds.read_shard(p) for p in meds.list_shards(tmp_path / "b" / "meds")])
    birth = pl.col("code") == meds.BIRTH_CODE
    assert not (set(events.filter(birth)["time"].to_list()) & set(other.filter(birth)["time"].to_list()))


def test_another_config_in_the_same_folder_is_refused(cohort, tmp_path):
    with pytest.raises(ValueError, match="simulated with another noise, seed"):
        simulate.simulate(cohort[0], dataclasses.replace(SMALL, seed=9, noise=2.0))
    (tmp_path / "meds").mkdir()
    with pytest.raises(ValueError, match="was not written by the simulator"):
        simulate.simulate(tmp_path, SMALL)


@pytest.mark.parametrize(
    "fault",
    [
        {"noise": -1.0},
        {"ehr_information": 1.5},
        {"shared": 1.1},
        {"complementary": -0.1},
        {"interaction": 2.0},
        {"drug_heart_rate": -1.0},
        {"wear_stretches": 0},
        {"n_subjects": 0},
        {"years": 0.1},
        {"train_fraction": 0.9, "tuning_fraction": 0.2},
        {"admission_per_year": 0.0},
        {"first_year": 2018},
    ],
)
def test_config_is_checked(fault):
    with pytest.raises(ValueError, match=next(iter(fault))):
        SimulateConfig(**fault)


# ---------------------------------------------------------------------------------- the content
def test_dataset_is_whole(cohort, events):
    root, counts = cohort
    assert count_subjects(root / "meds") == SMALL.n_subjects
    split = meds.read_splits(root / "meds")["split"].value_counts()
    assert dict(split.iter_rows()) == {"train": 28, "tuning": 4, "held_out": 8}
    assert set(events["code"]) <= set(meds.read_codes(root / "meds")["code"])
    kinds = events["code"].str.split("//").list.first().unique()
    assert {"ICD10", "ATC", "LOINC", "PROC", "GENDER", "MEDS_BIRTH"} <= set(kinds)
    assert json.loads((root / "counts.json").read_text()) == counts
    n = {c["step"]: c["n"] for c in counts}
    assert n["events"] == len(events)
    assert n["admissions"] == (events["code"] == code_book.ADMISSION_CODE).sum() > 10
    assert n["deaths"] == (events["code"] == meds.DEATH_CODE).sum() > 0
    people_without = next(c for c in counts if c["step"] == "people with a wearable")["dropped"]
    assert n["people with a wearable"] + people_without == SMALL.n_subjects


def test_code_table_is_closed_under_parents():
    table = code_book.code_table()
    assert table["code"].is_unique().all()
    parents = table["parent_codes"].explode().drop_nulls()
    assert set(parents) <= set(table["code"])
    leaf = table.filter(pl.col("code").is_in(parents.implode()).not_())
    assert leaf["description"].null_count() == 0


def test_values_are_measured_plausible_and_rounded(ehr_only_cohort):
    events = pl.concat([meds.read_shard(p) for p in meds.list_shards(ehr_only_cohort / "meds")])
    visits = events.filter(pl.col("code") == code_book.VISIT_CODE).select("subject_id", "time")
    at_visits = events.join(visits, on=["subject_id", "time"], how="semi")
    for lab in code_book.LABS:
        value = events.filter(pl.col("code") == f"LOINC//{lab.code}")["numeric_value"]
        assert value.null_count() == 0
        assert value.min() > 0
        assert value.max() <= lab.top
        at_visit = at_visits.filter(pl.col("code") == f"LOINC//{lab.code}")["numeric_value"]  # in hospital all are ill
        assert lab.centre / 2 < at_visit.quantile(0.25) < lab.centre * 2
        scaled = value.to_numpy().astype(float) * 10**lab.decimals
        np.testing.assert_allclose(scaled, np.rint(scaled), atol=2e-4 * scaled.max())
    other = events.filter(~pl.col("code").str.starts_with("LOINC"))
    assert other["numeric_value"].null_count() == len(other)


def test_stays_alternate_and_diagnoses_come_at_discharge(events):
    stays = 0
    for _, person in events.group_by("subject_id", maintain_order=True):
        marks = person.filter(pl.col("code").is_in([code_book.ADMISSION_CODE, code_book.DISCHARGE_CODE]))
        kinds = marks["code"].to_list()
        assert kinds[::2] == [code_book.ADMISSION_CODE] * len(kinds[::2])
        assert kinds[1::2] == [code_book.DISCHARGE_CODE] * len(kinds[1::2])
        assert marks["time"].is_sorted()
        for begin, end in zip(marks["time"][::2], marks["time"][1::2], strict=False):
            stays += 1
            assert begin < end
            during = person.filter(pl.col("time").is_between(begin, end, closed="left"))
            assert not during["code"].str.starts_with("ICD10").any()
            assert (during["code"] == code_book.VISIT_CODE).sum() == 0
            at_end = person.filter(pl.col("time") == end)["code"]
            assert at_end.str.starts_with("ICD10").any()
    assert stays > 10


def test_nothing_after_death_and_a_mark_at_the_end_of_observation(cohort, events):
    subjects = truth.read_subjects(cohort[0] / "truth")
    for subject_id, start, end, _ in subjects.iter_rows():
        person = events.filter(pl.col("subject_id") == subject_id)
        times = person.filter(pl.col("code") != meds.BIRTH_CODE)["time"].drop_nulls()
        assert start <= times.min()
        assert times.max() <= end
        last = person["code"][-1]
        died = (person["code"] == meds.DEATH_CODE).any()
        assert last == (meds.DEATH_CODE if died else code_book.FOLLOWUP_END_CODE)
        if not died:
            assert times.max() == end
    assert subjects["start_time"].dt.year().is_in([2015, 2016]).all()


def test_recordings_fit_the_person(cohort, events, recordings):
    subjects = truth.read_subjects(cohort[0] / "truth")
    death = events.filter(pl.col("code") == meds.DEATH_CODE).select("subject_id", death="time")
    length = (pl.col("values").list.len() / pl.col("sample_rate_hz") * 1e6).cast(pl.Int64)
    rows = (
        recordings.with_columns(stop=pl.col("start_time") + pl.duration(microseconds=length))
        .join(subjects, on="subject_id")
        .join(death, on="subject_id", how="left")
    )
    assert (rows["start_time"] >= rows["start_time_right"]).all()
    assert (rows["stop"] <= rows["scheduled_end"]).all()
    assert (rows["stop"] <= rows["death"]).fill_null(True).all()
    assert rows.filter(rows["stop"] > rows["death"]).is_empty()
    assert set(rows["channel"]) == {"heart_rate", "activity", "ppg"}
    assert rows.group_by("subject_id").agg(pl.col("device").n_unique())["device"].max() == 1
    assert rows["device"].n_unique() == 3
    minute = rows.filter(pl.col("channel") != "ppg").sort("subject_id", "channel", "start_time")
    previous = pl.col("stop").shift(1).over("subject_id", "channel")
    assert minute.filter(pl.col("start_time") < previous).is_empty()
    worn_days = minute.group_by("subject_id", "channel").agg(pl.col("values").list.len().sum())
    assert worn_days["values"].max() <= SMALL.wear_days * 1440
    for channel, unit, _, low, high in wearable.read_channels(cohort[0] / "wearable").iter_rows():
        values = rows.filter(pl.col("channel") == channel)["values"].explode().to_numpy()
        assert (rows.filter(pl.col("channel") == channel)["unit"] == unit).all()
        seen = values[~np.isnan(values)]
        assert low <= seen.min() < seen.max() <= high
        if channel != "ppg":
            assert (seen == np.rint(seen)).all()
            assert 0 < np.isnan(values).mean() < 0.6


def test_heart_rate_is_not_recorded_in_hospital(cohort, recordings):
    """Days that start in hospital hold no heart rate."""
    path = read_latent(cohort[0] / "truth").filter("in_hospital")
    days = set(path.select("subject_id", "time").iter_rows())
    found = 0
    heart = recordings.filter(pl.col("channel") == "heart_rate")
    for row in heart.iter_rows(named=True):
        day = sample_times(row).astype("datetime64[D]")
        values = np.asarray(row["values"])
        for one in np.unique(day):
            if (row["subject_id"], one.astype("datetime64[us]").item()) in days:
                found += 1
                assert np.isnan(values[day == one]).all()
    assert found > 0


def test_circadian_rhythm_and_sleep(recordings):
    by_hour = np.zeros((2, 24))
    for k, channel in enumerate(("heart_rate", "activity")):
        total, count = np.zeros(24), np.zeros(24)
        for row in recordings.filter(pl.col("channel") == channel).iter_rows(named=True):
            time = sample_times(row)
            hour = (time - time.astype("datetime64[D]")).astype(int) // 3_600_000_000
            values = np.asarray(row["values"])
            seen = ~np.isnan(values)
            total += np.bincount(hour[seen], values[seen], 24)
            count += np.bincount(hour[seen], minlength=24)
        by_hour[k] = total / count
    night, afternoon = by_hour[:, 2:5].mean(axis=1), by_hour[:, 13:17].mean(axis=1)
    assert afternoon[0] > night[0] + 8
    assert afternoon[1] > 5 * night[1]


def _wear_and_lab_correlation(root, config):
    """Correlation of activity with the wearable component, of albumin with the EHR component."""
    simulate.simulate(root, config, progress=False)
    path = read_latent(root / "truth")
    rows = pl.concat([wearable.read_shard(p) for p in wearable.list_shards(root / "wearable")])
    activity = (
        rows.filter(pl.col("channel") == "activity")
        .with_columns(
            level=pl.col("values").list.eval(pl.element().drop_nans()).list.mean().log1p(),
            time=pl.col("start_time").dt.truncate("1d"),
        )
        .drop_nulls("level")
        .join(path, on=["subject_id", "time"])
    )
    events = pl.concat([meds.read_shard(p) for p in meds.list_shards(root / "meds")])
    lab = (
        events.filter(pl.col("code") == "LOINC//1751-7")
        .with_columns(pl.col("time").dt.truncate("1d"))
        .join(path, on=["subject_id", "time"])
    )
    return (
        np.corrcoef(activity["level"], activity["wearable_health"])[0, 1],
        np.corrcoef(lab["numeric_value"], lab["ehr_health"])[0, 1],
    )


def test_information_knobs_switch_each_modality(tmp_path):
    base = dataclasses.replace(SMALL, n_subjects=120, wear_days=6, subjects_per_shard=120)
    activity, lab = _wear_and_lab_correlation(tmp_path / "full", base)
    assert activity < -0.3
    assert lab < -0.3
    activity_off, lab_off = _wear_and_lab_correlation(
        tmp_path / "none",
        dataclasses.replace(base, ehr_information=0.0, wearable_information=0.0),
    )
    assert abs(activity_off) < 0.25
    assert abs(lab_off) < 0.2


def test_clinic_and_wearable_measure_the_same_heart(tmp_path):
    """Also without any effect of the state: what is shared is the person's own level."""
    config = dataclasses.replace(
        SMALL, n_subjects=150, wear_days=2, ehr_information=0.0, wearable_information=0.0, subjects_per_shard=150
    )
    simulate.simulate(tmp_path, config, progress=False)
    shards = meds.list_shards(tmp_path / "meds")
    clinic = pl.concat([meds.read_shard(p) for p in shards]).filter(pl.col("code") == "LOINC//8867-4")
    clinic = clinic.group_by("subject_id").agg(pl.col("numeric_value").mean())
    channels = wearable.read_channels(tmp_path / "wearable")
    worn = pl.concat([wearable.read_shard(p, channels) for p in wearable.list_shards(tmp_path / "wearable")])
    worn = worn.filter(pl.col("channel") == "heart_rate").with_columns(
        night=pl.col("values").list.eval(pl.element().filter(pl.element().is_not_nan()).quantile(0.1)).list.first()
    )
    both = clinic.join(worn.group_by("subject_id").agg(pl.col("night").mean()), on="subject_id")
    assert np.corrcoef(both["numeric_value"], both["night"])[0, 1] > 0.6


def test_sicker_people_are_seen_more(ehr_only_cohort):
    path = read_latent(ehr_only_cohort / "truth")
    visit = (
        pl.concat([meds.read_shard(p) for p in meds.list_shards(ehr_only_cohort / "meds")])
        .filter(pl.col("code") == code_book.VISIT_CODE)
        .select("subject_id", pl.col("time").dt.truncate("1d"), seen=1)
        .unique()
    )
    days = path.join(visit, on=["subject_id", "time"], how="left").fill_null(0)
    rate = days.group_by(pl.col("shock") > 0).agg(pl.col("seen").mean()).sort("shock")["seen"]
    assert rate[1] > 1.2 * rate[0]
    weekend = days["time"].dt.weekday() >= 6
    assert days.filter(weekend)["seen"].mean() < 0.2 * days.filter(~weekend)["seen"].mean()


def test_missingness_and_share_of_wearers(tmp_path):
    config = dataclasses.replace(SMALL, n_subjects=30, missingness=0.0, wearable_subjects_fraction=1.0, wear_days=3)
    simulate.simulate(tmp_path, config, progress=False)
    rows = pl.concat([wearable.read_shard(p) for p in wearable.list_shards(tmp_path / "wearable")])
    path = read_latent(tmp_path / "truth").filter("in_hospital")
    home = rows.filter(~pl.col("subject_id").is_in(path["subject_id"].unique().implode()))
    assert not home["values"].explode().is_nan().any()
    assert rows["subject_id"].n_unique() >= 28
