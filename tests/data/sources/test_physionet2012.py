"""The PhysioNet 2012 adapter: what is known when, what happens to odd values, counts that add up, messages."""

import io
import json
import tarfile
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.labels import task_design
from ehrwear_jax.data.sources import physionet2012, physionet2012_files

ADMISSION = datetime.fromisoformat(physionet2012.ADMISSION)
FIRST = [("00:00", "Age", 54), ("00:00", "Gender", 0), ("00:00", "Height", -1), ("00:00", "ICUType", 4),
         ("00:00", "Weight", 80)]  # fmt: skip
STAYS = {
    "a": {
        101: [
            *FIRST,
            ("00:07", "HR", 73), ("00:07", "GCS", 15), ("00:09", "HR", 75), ("00:10", "HR", 77), ("00:11", "HR", 90),
            ("00:37", "Weight", 80), ("01:37", "Weight", 80.5), ("02:37", "Weight", 80),
            ("01:00", "pH", 735), ("02:00", "pH", 7.25), ("03:00", "pH", 3), ("01:00", "Urine", 100),
            ("01:00", "Urine", 40), ("01:00", "K", 4), ("01:00", "K", 5), ("05:00", "Temp", -17.8),
            ("05:00", "Temp", 36.5), ("06:00", "SysABP", 0), ("06:00", "DiasABP", 0), ("48:00", "HR", 60),
            ("48:00", "Lactate", 2.5), ("07:00", "MechVent", 1),
        ],
        102: [*FIRST[:1], ("00:00", "Gender", 1), ("00:00", "Height", 431.8), *FIRST[3:]],
        103: [("00:00", "Age", 90), ("00:00", "Gender", -1), ("00:00", "Height", 1.8), ("00:00", "ICUType", 1),
              ("00:00", "Weight", -1)],
    },
    "b": {201: [*FIRST, ("10:00", "NISysABP", 120)]},
}  # fmt: skip
DIED = {"a": {101: 1, 102: 0, 103: 0}, "b": {201: 1}}


def text_of(stay, rows):
    rows = [("00:00", "RecordID", stay), *rows]
    return "Time,Parameter,Value\n" + "".join(f"{t},{p},{v}\n" for t, p, v in rows)


def write_source(folder, stays=STAYS, archives=("a",), outcomes=("a", "b")):
    """Sets as archives, else as folders, and the outcomes of some."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, of in stays.items():
        if name in archives:
            with tarfile.open(folder / f"set-{name}.tar.gz", "w:gz") as archive:
                for stay, rows in of.items():
                    content = text_of(stay, rows).encode()
                    member = tarfile.TarInfo(f"set-{name}/{stay}.txt")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        else:
            (folder / f"set-{name}").mkdir()
            for stay, rows in of.items():
                (folder / f"set-{name}" / f"{stay}.txt").write_text(text_of(stay, rows))
        if name in outcomes:
            rows = "".join(f"{stay},5,3,4,-1,{DIED[name][stay]}\n" for stay in of)
            header = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
            (folder / f"Outcomes-{name}.txt").write_text(header + rows)
    return folder


def build(source, root, **options):
    return physionet2012.build(source, root, progress=False, strict=False, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("physionet2012")
    records = build(write_source(folder / "source"), folder / "root")
    return folder / "root", records


def events_of(root):
    return pl.concat([meds.read_shard(path) for path in meds.list_shards(root / "meds")])


def samples(root, stay, channel):
    """{minute after admission at which a sample ends: its value}."""
    rows = pl.concat([wearable.read_shard(path) for path in wearable.list_shards(root / "wearable")])
    out = {}
    for row in rows.filter((pl.col("subject_id") == stay) & (pl.col("channel") == channel)).iter_rows(named=True):
        period = timedelta(seconds=1 / row["sample_rate_hz"])
        for k, value in enumerate(row["values"]):
            if np.isfinite(value):
                out[round((row["start_time"] + (k + 1) * period - ADMISSION) / timedelta(minutes=1))] = value
    return out


def test_a_vital_sign_is_known_at_the_end_of_its_five_minutes_and_never_before_it_was_read(built):
    root, _ = built
    assert samples(root, 101, "heart_rate") == {10: 75.0, 15: 90.0, 2880: 60.0}, "73, 75 and 77 are one sample"
    assert samples(root, 101, "temperature") == {300: 36.5}, "-17.8 is no part of the mean"
    assert samples(root, 101, "systolic_bp") == samples(root, 101, "diastolic_bp") == {}


def test_events_stand_at_their_own_time_with_their_values(built):
    root, _ = built
    events = events_of(root).filter(pl.col("subject_id") == 101)
    assert not events["code"].str.starts_with("VITAL//").any()
    found = {}
    for _, time, code, value in events.filter(pl.col("time") >= ADMISSION).select(
        "subject_id", "time", "code", "numeric_value"
    ).iter_rows():  # fmt: skip
        found.setdefault(code, []).append(((time - ADMISSION) / timedelta(hours=1), value))
    assert found == {
        "ICU_ADMISSION//surgical": [(0.0, None)],
        "BODY//weight": [(0.0, 80.0), (pytest.approx(1 + 37 / 60), 80.5), (pytest.approx(2 + 37 / 60), 80.0)],
        "SCORE//glasgow_coma": [(pytest.approx(7 / 60), 15.0)],
        "LAB//ph_arterial": [(1.0, pytest.approx(7.35)), (2.0, 7.25)],
        "OUTPUT//urine": [(1.0, 140.0)],
        "LAB//potassium": [(1.0, 4.5)],
        "LAB//lactate": [(48.0, 2.5)],
        "VENTILATION//mechanical": [(7.0, None)],
    }
    assert events.filter(pl.col("time").is_null())["code"].to_list() == ["GENDER//F"]


def test_ages_sex_and_height_are_those_of_the_descriptors(built):
    root, _ = built
    events = events_of(root)
    births = events.filter(pl.col("code") == meds.BIRTH_CODE).select("subject_id", "time")
    years = {i: (ADMISSION - t) / timedelta(days=365.25) for i, t in births.iter_rows()}
    assert years == {101: pytest.approx(54.5, abs=0.003), 102: years[101], 103: pytest.approx(90.5, abs=0.003)}
    assert (births["time"].dt.hour() == 0).all(), "a whole number of days before admission"
    heights = events.filter(pl.col("code") == "BODY//height").select("subject_id", "numeric_value")
    assert dict(heights.iter_rows()) == {102: pytest.approx(170.0), 103: pytest.approx(180.0)}
    statics = events.filter(pl.col("time").is_null()).select("subject_id", "code")
    assert dict(statics.iter_rows()) == {101: "GENDER//F", 102: "GENDER//M"}


def test_counts_add_up_to_the_rows_that_were_read(built):
    root, records = built
    assert json.loads((root / "counts.json").read_text()) == records
    by_step = {record["step"]: record for record in records}
    rows = sum(len(of) + 1 for of in STAYS["a"].values())
    assert by_step["rows read"]["n"] == rows
    kinds = ("of measurements", "with a known value", "with a plausible value", "of different times",
             "without repeated weights")  # fmt: skip
    chain = [f"rows {kind}" for kind in kinds]
    for before, step in zip(["rows read", *chain[:-1]], chain, strict=True):
        assert by_step[before]["n"] == by_step[step]["n"] + by_step[step]["dropped"], step
    grid = by_step["vital signs on the grid"]
    codes = [p.name for p in physionet2012_files.MEASURED.values()]
    written = events_of(root).filter(pl.col("code").is_in(codes))
    assert by_step[chain[-1]]["n"] == len(written) + grid["n"] + grid["dropped"]
    drops = {step: by_step[step]["dropped"] for step in (*chain, "vital signs on the grid")}
    assert list(drops.values()) == [12, 2, 4, 2, 1, 2]
    assert by_step["rows with a plausible value"]["reason"] == "artefacts: 1 DiasABP, 1 SysABP, 1 Temp, 1 pH"
    repaired = {r["step"].removeprefix("rows repaired: "): r["n"] for r in records if "repaired" in r["step"]}
    assert {what.split(",")[0] for what, n in repaired.items() if n} == {"pH", "Height"} and sum(repaired.values()) == 3
    last = [record for record in records if " read = " in record["reason"]][-1]
    assert last["reason"].startswith(f"{rows:,} rows read = ") and last["dropped"] + last["n"] == rows


def test_labels_folds_and_design(built):
    root, _ = built
    for hours in physionet2012.PREDICTION_HOURS:
        labels = meds.read_labels(root / "labels" / f"in_hospital_death_at_{hours}h.parquet")
        assert labels["subject_id"].to_list() == [101, 102, 103]
        assert labels["boolean_value"].to_list() == [True, False, False]
        assert set(labels["prediction_time"]) == {ADMISSION + timedelta(hours=hours)}
    folds = meds.read_folds(root / "meds")
    assert set(folds["fold"]) <= set(range(5)) and len(folds) == 3
    follow_up = pl.read_parquet(root / "meds" / "metadata" / "subject_followup.parquet")
    assert set(follow_up["end"] - follow_up["start"]) == {timedelta(hours=48)}
    assert set(json.loads((root / "labels" / "design.json").read_text())) == set(task_design.PARTS)
    assert not events_of(root)["code"].str.contains("DEATH").any()


def test_a_folder_gives_what_the_archive_gives(tmp_path, built):
    records = build(write_source(tmp_path / "source", archives=()), tmp_path / "root")
    assert records == built[1] and events_of(tmp_path / "root").equals(events_of(built[0]))


def test_vital_signs_as_events_too(tmp_path, built):
    build(write_source(tmp_path / "source"), tmp_path / "root", vitals_as_events=True)
    events, before = events_of(tmp_path / "root"), events_of(built[0])
    further = events.join(before, on=["subject_id", "time", "code"], how="anti", nulls_equal=True)
    assert set(further["code"]) == {"VITAL//heart_rate", "VITAL//temperature"} and len(further) == 6
    rates = further.filter(pl.col("code") == "VITAL//heart_rate").select("time", "numeric_value")
    assert [(round((t - ADMISSION) / timedelta(minutes=1)), v) for t, v in rates.iter_rows()] == [
        (7, 73.0), (9, 75.0), (10, 77.0), (11, 90.0), (2880, 60.0),
    ]  # fmt: skip
    assert len(events) == len(before) + 6
    assert samples(tmp_path / "root", 101, "heart_rate") == samples(built[0], 101, "heart_rate")


def test_sets_stand_beside_each_other_and_one_can_be_held_out(tmp_path):
    source = write_source(tmp_path / "source")
    build(source, tmp_path / "root", sets=("a", "b"), n_folds=0)
    splits = pl.read_parquet(meds.splits_path(tmp_path / "root" / "meds"))
    assert dict(splits.select("subject_id", "set").iter_rows()) == {101: "a", 102: "a", 103: "a", 201: "b"}
    assert meds.read_folds(tmp_path / "root" / "meds") is None
    assert len(meds.read_labels(tmp_path / "root" / "labels" / "in_hospital_death_at_48h.parquet")) == 4
    (source / "Outcomes-b.txt").unlink()
    build(source, tmp_path / "without", sets=("a", "b"))
    assert len(meds.read_labels(tmp_path / "without" / "labels" / "in_hospital_death_at_48h.parquet")) == 3
    folds = dict(meds.read_folds(tmp_path / "without" / "meds").iter_rows())
    assert folds.pop(201) == -1 and min(folds.values()) >= 0


@pytest.mark.parametrize(
    "row, message",
    [
        (("1:00", "HR", 80), r"set-a: stay 101: row 7: column 'Time' is '1:00', not hh:mm up to 48:00"),
        (("48:01", "HR", 80), r"column 'Time' is '48:01'"),
        (("01:00", "Pulse", 80), r"stay 101: row 7: column 'Parameter' is 'Pulse', not a parameter of the challenge"),
        (("01:00", "HR", "x"), r"stay 101: row 7: column 'Value' is 'x', not a finite number"),
        (("01:00", "HR", ""), r"column 'Value' is 'None'"),
        (("00:00", "Age", 60), r"stay 101: Age must be there once, at 00:00"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named(tmp_path, row, message):
    source = write_source(tmp_path / "source", {"a": {101: [*FIRST, row]}}, archives=())
    with pytest.raises(ValueError, match=message):
        build(source, tmp_path / "root")


@pytest.mark.parametrize(
    "stays, message",
    [
        ({101: FIRST[1:]}, "stay 101: Age must be there once"),
        ({101: [*FIRST[:1], ("00:00", "Gender", 2), *FIRST[2:]]}, "stay 101: Gender is 2, which cannot be"),
        ({101: [*FIRST[:3], ("00:00", "ICUType", 7), FIRST[4]]}, "stay 101: ICUType is 7, which cannot be"),
        ({101: [("00:00", "Age", -1), *FIRST[1:]]}, "stay 101: Age is -1, which cannot be"),
    ],
)
def test_a_malformed_stay_is_named(tmp_path, stays, message):
    with pytest.raises(ValueError, match=message):
        build(write_source(tmp_path / "source", {"a": stays}), tmp_path / "root")


def test_what_is_missing_or_not_as_published_is_said(tmp_path):
    source = write_source(tmp_path / "source")
    with pytest.raises(ValueError, match=r"set a: stays: found 3, published 4,000"):
        physionet2012.build(source, tmp_path / "root", progress=False)
    with pytest.raises(FileNotFoundError, match=r"neither set-c nor set-c\.tar\.gz"):
        build(source, tmp_path / "root", sets=("a", "c"))
    with pytest.raises(ValueError, match="sets are .*; they can be a, b, c"):
        build(source, tmp_path / "root", sets=("a", "d"))
    (source / "set-b" / "202.txt").write_text(text_of(203, FIRST))
    with pytest.raises(ValueError, match="stay 202: RecordID is 203"):
        build(source, tmp_path / "root", sets=("b",))
    (source / "set-b" / "202.txt").write_text(text_of(202, FIRST))
    with pytest.raises(ValueError, match="stay 202 is in one of set-b and Outcomes-b"):
        build(source, tmp_path / "root", sets=("b",))
    (source / "set-b" / "202.txt").write_text("Time,Value\n00:00,1\n")
    with pytest.raises(ValueError, match=r"202\.txt: the header is Time,Value"):
        build(source, tmp_path / "root", sets=("b",))
    (source / "set-a.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"set-a\.tar\.gz: not a readable archive"):
        build(source, tmp_path / "root")


def test_published_counts(shared_data, tmp_path):
    """Of set a as published; skips where it is not there."""
    records = physionet2012.build(shared_data("physionet2012"), tmp_path / "root", progress=False)
    by_step = {record["step"]: record for record in records}
    assert by_step["stays labelled (554 deaths in hospital)"]["n"] == 4000
    assert by_step["rows repaired: pH, without its point: 735"]["n"] == 3
    (last,) = (record for record in records if " rows read = " in record["reason"])
    assert last["n"] + last["dropped"] == by_step["rows read"]["n"] == 1_757_980
    temperature = next(p for p in physionet2012_files.VITALS.values() if p.name == "temperature")
    rows = pl.concat([wearable.read_shard(path) for path in wearable.list_shards(tmp_path / "root" / "wearable")])
    known = rows.filter(pl.col("channel") == "temperature")["values"].explode().drop_nans()
    assert known.min() >= temperature.low and known.max() <= temperature.high
