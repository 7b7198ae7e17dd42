"""prepare on a small random cohort: known times, what is fitted on whom, counts, records, resuming."""

import dataclasses
import json
import math
import os
from datetime import datetime, time, timedelta

import cohort
import numpy as np
import polars as pl
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data import record_bytes, store
from ehrwear_jax.data.formats import meds, meds_checks, wearable
from ehrwear_jax.data.prepare import dataset, events, record_shards, signal_statistics, specs, statistics
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.prepare.division import Division
from ehrwear_jax.data.signals import grid
from ehrwear_jax.models import vocabulary

CONFIG = PrepareConfig(
    channels=cohort.CHANNELS,
    log_channels=("activity",),
    min_subjects=2,
    min_values=10,
    value_bins=4,
    subjects_per_shard=8,
    step_minutes=30,
)
N_SUBJECTS = 36  # 35 has neither events nor a wearable
US = timedelta(microseconds=1)


def run(root, out=None, config=CONFIG):
    """(counts of the tables, of the records, of the fit)."""
    out = out or root
    wear, described = root / "wearable", meds.read_codes(root / "meds")
    tables, records = out / "tables", out / "records"
    return (
        dataset.prepare_tables(root / "meds", wear if wear.exists() else None, tables, config),
        dataset.prepare_records(tables, described, records, config),
        dataset.fit_split(tables, records, out / "fit" / "all", config),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return cohort.write_cohort(tmp_path_factory.mktemp("cohort"), N_SUBJECTS, wear_days=2)


@pytest.fixture(scope="module")
def counts(root):
    return run(root)


def raw_events(root):
    return pl.concat([meds.read_shard(p) for p in meds.list_shards(root / "meds")])


def raw_rows(root):
    return pl.concat([wearable.read_shard(p) for p in wearable.list_shards(root / "wearable")])


def read_records(root):
    """{subject: (index row, arrays)} in the order of the index."""
    folder = root / "records"
    meta, data = json.loads((folder / "meta.json").read_text()), []
    for name in meta["shards"]:
        reader = ArrayRecordReader(str(folder / name))
        data += reader.read_all()
        reader.close()
    index = pl.read_parquet(folder / "index.parquet")
    assert index["position"].to_list() == list(range(len(data)))
    rows = index.iter_rows(named=True)
    return {row["subject_id"]: (row, record_bytes.decode(d)) for row, d in zip(rows, data, strict=True)}


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------------- times
def test_a_date_without_a_time_is_known_at_the_days_end():
    day = datetime(2020, 2, 29)
    rows = [
        (1, None, "GENDER//F", None, None),
        (1, datetime(1950, 5, 5), "MEDS_BIRTH", None, None),
        (1, day, "DX//I10", None, "left"),
        (1, day, "LAB//a", 1.0, None),
        (1, day + timedelta(hours=8), "LAB//b", 2.0, None),
        (1, day + timedelta(days=1), "MEDS_DEATH", None, None),
        (1, day + timedelta(days=2), "FOLLOWUP_END", None, None),
    ]
    schema = meds_checks.EVENT_SCHEMA
    without = pl.Series(["DX//I10", "LAB//a", "MEDS_DEATH", "FOLLOWUP_END"])
    kept, births, ends = events.harmonise_events(pl.DataFrame(rows, schema, orient="row"), CONFIG, without)
    assert kept.select("time", "code", "text_value").rows() == [
        (None, "GENDER//F", None),
        (day + timedelta(hours=8), "LAB//b", None),
        (day + timedelta(days=1) - US, "DX//I10", "left"),
        (day + timedelta(days=1) - US, "LAB//a", None),
        (day + timedelta(days=2) - US, "MEDS_DEATH", None),
    ]
    assert births.rows() == [(1, datetime(1950, 5, 5))], "the birth is an age, not an event"
    assert ends.rows() == [(1, day + timedelta(days=3) - US, True)], "follow-up ends with the administrative row"
    kept, _, _ = events.harmonise_events(pl.DataFrame(rows, schema, orient="row"), CONFIG, without.filter([False] * 4))
    assert kept["time"].to_list()[1:3] == [day, day], "codes that carry times keep their midnight"


# ------------------------------------------------------------------------------------------------------- counts
def test_counts_reconcile_with_the_raw_rows(root, counts):
    raw, (tables, records, split) = raw_events(root), counts
    n_admin = raw.filter(pl.col("code") == "FOLLOWUP_END").height
    n_birth = raw.filter(pl.col("code") == "MEDS_BIRTH").height
    assert n_birth == N_SUBJECTS and n_admin > 20
    assert tables[0]["n"] == raw.height - n_admin - n_birth and tables[0]["dropped"] == n_admin + n_birth
    assert f"{n_birth} birth rows" in tables[0]["reason"] and f"{n_admin} administrative" in tables[0]["reason"]
    assert split[0]["n"] + split[0]["dropped"] == tables[0]["n"] and not records, "nobody is left out"
    index = pl.read_parquet(root / "records" / "index.parquet")
    assert index.select(pl.col("n_static", "n_events").sum()).row(0) == (
        raw["time"].null_count(), tables[0]["n"] - raw["time"].null_count()
    )  # fmt: skip
    assert tables[1]["n"] == index["n_windows"].sum() > 100
    windows = pl.concat([pl.read_parquet(p) for p in sorted((root / "tables" / "windows").glob("*.parquet"))])
    assert tables[2]["step"] == "hours of wear" and tables[2]["dropped"] == 0
    assert 0 <= tables[2]["n"] - windows["worn_minutes"].sum() / 60 < 20, "windows that are left out have little"
    assert tables[3]["n"] == n_admin + raw.filter(pl.col("code") == "MEDS_DEATH").height, "the codes without times"
    assert tables[4]["n"] == index.height == N_SUBJECTS and tables[4]["dropped"] == 0


def test_user_tables_harmonise_codes_and_values_and_counts_reconcile(root, counts, tmp_path):
    mapping, ranges = tmp_path / "mapping.csv", tmp_path / "ranges.csv"
    mapping.write_text(
        "code,target,factor\nLAB//glucose,LAB//mmol,0.0555\nDX//E11,ICD10CM/E11.9,\nDX//I10,ICD10CM/I10,\n"
    )
    ranges.write_text("code,low,high\nLAB//mmol,,4.0\nLAB//mmol,4.0,7.0\n")
    config = dataclasses.replace(
        CONFIG, mapping_files=(str(mapping),), ranges_file=str(ranges), implied_parents=True, max_per_day=1
    )
    tables, _, split = run(root, tmp_path, config)
    raw = raw_events(root)
    n_mapped = raw.filter(pl.col("code").is_in(["LAB//glucose", "DX//E11", "DX//I10"])).height
    by_step = {c["step"]: c for c in tables}
    assert by_step["EHR rows mapped to other codes"]["n"] == n_mapped > 100
    kept = by_step["EHR rows kept as events"]
    capped = counts[0][0]["n"] - kept["n"]
    assert capped > 20 and f"{capped:,} beyond the cap per code and day" in kept["reason"]
    assert split[0]["n"] + split[0]["dropped"] == kept["n"]
    v = vocabulary.of_store(cohort.open_store(tmp_path))
    assert v.tokens.filter(pl.col("code") == "LAB//mmol")["high"].drop_nulls().to_list() == [4.0, 7.0, math.inf]
    assert "LAB//glucose" not in v.tokens["code"].to_list()
    lineage = dict(v.codes.select("code", "ancestors").iter_rows())
    assert lineage["ICD10CM/E11.9"] == ["ICD10CM/E11", "ICD10CM/CHAPTER IV", "ICD10CM"]
    assert "ICD10CM" in v.future_codes(99)  # any diagnosis


def test_values_of_known_tests_are_binned_by_clinical_ranges_and_the_others_counted(root, tmp_path):
    named = {"LAB//glucose": "glucose [mg/dL]", "LAB//hdl": "HDL cholesterol"}
    _, _, split = run(root, tmp_path, dataclasses.replace(CONFIG, ranges_file="clinical", ranges_codes=named))
    v = vocabulary.of_store(cohort.open_store(tmp_path))
    people = meds.read_splits(root / "meds").filter(pl.col("split") == "train")["subject_id"]
    values = raw_events(root).filter(pl.col("subject_id").is_in(people.implode()))
    glucose, hdl = (values.filter(pl.col("code") == code)["numeric_value"].drop_nulls() for code in named)
    inside = {"very low": (0, 54), "low": (54, 70), "normal": (70, 100), "above fasting normal": (100, 140),
              "above normal after a meal": (140, 200)}  # fmt: skip
    want = {f"LAB//glucose//{name}": ((glucose >= a) & (glucose < b)).sum() for name, (a, b) in inside.items()}
    found = {t: n for t, n in v.tokens.select("token", "count").iter_rows() if t.startswith("LAB//glucose")}
    assert found == {name: n for name, n in want.items() if n} and sum(found.values()) == len(glucose) > 50
    quantiles = v.tokens.filter(pl.col("code") == "LAB//hdl")["token"].to_list()
    assert quantiles == [f"LAB//hdl//Q{b}" for b in range(4)], "its unit is nowhere said"
    (step,) = [c for c in split if "in clinical ranges" in c["step"]]
    assert (step["n"], step["dropped"]) == (len(glucose), len(hdl)) and "of 1 codes" in step["step"]
    assert "none is left out" in step["reason"] and "1 codes of unknown unit, such as LAB//hdl" in step["reason"]
    counted = manifest.require(tmp_path / "fit" / "all")["counts"]["values of tests with clinical ranges"]
    assert counted["in"] == len(glucose) + len(hdl) and counted["out"]["in clinical ranges"] == len(glucose)
    record_store = cohort.open_store(tmp_path)
    assert any(name.endswith("value_ranges.parquet") for name in record_store.files())
    # at the borders, as float32 values of any people
    code_id = v.codes["code"].to_list().index("LAB//glucose")
    raw = np.float32([69.9, 70, 99.9, 100, 139.9])
    token, _ = v.encode(np.full(5, code_id), raw, np.full(5, -1))
    assert [v.tokens["token"][int(t)].split("//")[-1] for t in token] == [
        "low", "normal", "normal", "above fasting normal", "above fasting normal"]  # fmt: skip


def test_drugs_become_classes_and_are_counted(root, counts, tmp_path):
    mapping = tmp_path / "mapping.csv"
    mapping.write_text("code,target\nDX//I10,ATC//C09AA05\n")
    tables, *_ = run(root, tmp_path, dataclasses.replace(CONFIG, mapping_files=(str(mapping),), atc_level=3))
    n = raw_events(root).filter(pl.col("code") == "DX//I10").height
    by_step = {c["step"]: c["n"] for c in tables}
    assert by_step["EHR rows of drugs as ATC classes of level 3"] == n > 20
    codes = pl.read_parquet(tmp_path / "records" / "codes.parquet")["code"].to_list()
    assert "ATC//C09A" in codes and "ATC//C09AA05" not in codes
    assert tables[0] == counts[0][0] | {"reason": tables[0]["reason"]}, "no event is lost"


def test_rare_codes_are_counted_as_left_out(root, counts, tmp_path):
    config = PrepareConfig(min_subjects=10**6)
    dataset.prepare_tables(root / "meds", None, tmp_path / "tables", config)
    dataset.prepare_records(tmp_path / "tables", None, tmp_path / "records", config)
    left, *_ = dataset.fit_split(tmp_path / "tables", tmp_path / "records", tmp_path / "fit", config)
    assert left["n"] == 0 and left["dropped"] == counts[0][0]["n"]


def test_people_without_a_split_are_counted_also_those_with_a_wearable_only(tmp_path):
    root = cohort.write_cohort(tmp_path, 12, wear_days=1)
    path = root / "meds" / "metadata" / "subject_splits.parquet"
    splits = pl.read_parquet(path)
    splits.filter(~pl.col("subject_id").is_in([3, 7])).write_parquet(path)
    for shard in meds.list_shards(root / "meds"):
        meds.write_shard(shard, meds.read_shard(shard).filter(pl.col("subject_id") != 7))  # a wearable only
    tables, (left_out,), _ = run(root)
    assert tables[4]["n"] == 10 and tables[4]["dropped"] == 2 and left_out["dropped"] > 0
    assert set(read_records(root)) == set(range(1, 13)) - {3, 7}


# ------------------------------------------------------------------------------------------------------- records
def test_records_equal_the_raw_tables(root, counts):
    raw, rows = raw_events(root), raw_rows(root)
    splits = dict(meds.read_splits(root / "meds").iter_rows())
    limits = {"heart_rate": (25.0, 230.0), "activity": (0.0, 1e5)}
    windows = {}
    for subject in splits:
        stretches = [
            (*row, None)
            for row in rows.filter(pl.col("subject_id") == subject)
            .select(pl.col("start_time").to_physical(), "sample_rate_hz", "channel", "values")
            .iter_rows()
        ]
        windows[subject] = grid.window_person(stretches, specs.window_spec(CONFIG), limits)[:2]
    flat = np.concatenate([windows[s][1].reshape(-1, 2) for s, split in splits.items() if split == "train"])
    flat = np.stack([flat[:, 0], np.log1p(flat[:, 1])], axis=1).astype(np.float64)
    fitted = json.loads((root / "fit" / "all" / "signal_statistics.json").read_text())
    np.testing.assert_allclose(fitted["mean"], np.nanmean(flat, axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted["std"], np.nanstd(flat, axis=0), rtol=1e-6)
    meta = json.loads((root / "records" / "meta.json").read_text())
    assert meta["steps"] == 12 and meta["channels"] == list(cohort.CHANNELS) and meta["log_channels"] == ["activity"]

    codes = pl.read_parquet(root / "records" / "codes.parquet")
    assert codes["code"].is_sorted() and codes["code_id"].to_list() == list(range(codes.height))
    assert {*raw["code"]} - {"MEDS_BIRTH", "FOLLOWUP_END"} | {"DX"} == set(codes["code"]), "ancestors are codes too"
    midnight, code_of = time(0), codes["code"].to_list()
    found = read_records(root)
    assert list(found) == sorted(splits)
    for subject, (row, record) in found.items():
        mine = raw.filter((pl.col("subject_id") == subject) & (pl.col("code") != "MEDS_BIRTH"))
        known_at = [t and (t + timedelta(days=1) - US if t.time() == midnight else t) for t in mine["time"]]
        mine = mine.with_columns(pl.Series("time", known_at, pl.Datetime("us")))
        static = mine.filter(pl.col("time").is_null())["code"].to_list()
        timed = mine.filter(pl.col("time").is_not_null() & (pl.col("code") != "FOLLOWUP_END"))
        assert [code_of[k] for k in record["static_code"]] == static
        assert [code_of[k] for k in record["code"]] == timed["code"].to_list()
        np.testing.assert_array_equal(record["time_us"], timed["time"].to_physical())
        np.testing.assert_array_equal(record["value"], timed["numeric_value"].fill_null(math.nan).to_numpy())
        assert (record["text"] == -1).all() and record["value"].dtype == np.float32
        end, values = windows[subject]
        np.testing.assert_array_equal(record["window_end_us"], end)
        np.testing.assert_array_equal(record["window"], values, strict=True)  # float32, in the channels' units
        times = [*mine["time"].drop_nulls().to_physical().to_list(), *end.tolist()]
        assert record["end_us"] == max(times, default=store.NO_BIRTH) == row["end_us"]
        assert bool(record["died"]) == ("MEDS_DEATH" in mine["code"].to_list())
        assert row["group_id"] == subject
        n = (len(record["static_code"]), len(record["code"]), len(end))
        assert (row["n_static"], row["n_events"], row["n_windows"]) == n
        first = min([*timed["time"].to_physical().to_list(), *end.tolist()], default=record["end_us"])
        assert row["first_us"] == first
        np.testing.assert_allclose(row["days"], (record["end_us"] - first) / 86_400_000_000)


def test_people_with_one_modality_or_none_keep_their_place(root, counts):
    found = read_records(root)
    kinds = {s: (row["n_events"] > 0, row["n_windows"] > 0) for s, (row, _) in found.items()}
    for subject, kind in kinds.items():
        assert kind == (subject % 7 != 0, subject % 5 != 0)
    assert set(kinds.values()) == {(True, True), (True, False), (False, True), (False, False)}
    assert found[35][1]["birth_us"] != store.NO_BIRTH and found[35][1]["end_us"] == store.NO_BIRTH


def test_no_wearables_at_all(root, tmp_path):
    dataset.prepare_tables(root / "meds", None, tmp_path / "tables", PrepareConfig())
    dataset.prepare_records(tmp_path / "tables", None, tmp_path / "records", PrepareConfig())
    for row, record in read_records(tmp_path).values():
        assert row["n_windows"] == 0 and record["window"].shape == (0, 72, 0)


# ------------------------------------------------------------------------------------------------------- fitting
def altered(root, target, subjects):
    """The cohort with other codes, values and signals for the given people."""
    for path in meds.list_shards(root / "meds"):
        events = meds.read_shard(path)
        hit = pl.col("subject_id").is_in(subjects) & pl.col("code").str.contains("LAB|DX")
        events = events.with_columns(
            pl.when(hit & pl.col("code").str.contains("DX")).then(pl.lit("DX//new")).otherwise("code").alias("code"),
            pl.when(hit).then(pl.col("numeric_value") * 1000).otherwise("numeric_value").alias("numeric_value"),
        )
        meds.write_shard(target / path.relative_to(root), events)
    for path in wearable.list_shards(root / "wearable"):
        rows = wearable.read_shard(path)
        louder = pl.when(pl.col("subject_id").is_in(subjects)).then(pl.col("values") * 1.5).otherwise("values")
        wearable.write_shard(target / path.relative_to(root), rows.with_columns(louder.alias("values")))
    for path in [*(root / "meds" / "metadata").iterdir(), *(root / "wearable" / "metadata").iterdir()]:
        (target / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        (target / path.relative_to(root)).write_bytes(path.read_bytes())
    run(target)
    return fitted_files(target)


def fitted_files(root):
    """{name: content}; split and counts of people do not depend on what is fitted alone."""
    names = ("code_statistics.parquet", "signal_statistics.json")
    return {name: (root / "fit" / "all" / name).read_bytes() for name in names}


def test_fitted_parts_depend_on_training_people_only(root, counts, tmp_path):
    fitted, splits = fitted_files(root), meds.read_splits(root / "meds")
    others = splits.filter(pl.col("split") != "train")["subject_id"].to_list()
    there = altered(root, tmp_path / "others", others)
    assert there["signal_statistics.json"] == fitted["signal_statistics.json"]
    one, two = (pl.read_parquet(r / "fit" / "all" / "code_statistics.parquet") for r in (root, tmp_path / "others"))
    assert two.filter(pl.col("code") == "DX//new")["count"].to_list() == [0], "the others' code has an id"
    known = two.filter(pl.col("code") != "DX//new").drop("code_id", "alias")
    assert known.equals(one.drop("code_id", "alias"), null_equal=True)
    before, after = read_records(root), read_records(tmp_path / "others")
    names = {
        r: pl.read_parquet(r / "records" / "codes.parquet")["code"].to_numpy() for r in (root, tmp_path / "others")
    }
    for subject, (_, record) in before.items():
        arrays, changed = ({**x, "code": c[x["code"]], "static_code": c[x["static_code"]]} for x, c in zip(
            (record, after[subject][1]), names.values(), strict=True))  # fmt: skip
        same = all(np.array_equal(arrays[k], changed[k], equal_nan=arrays[k].dtype.kind == "f") for k in arrays)
        assert same == (subject not in others)
    changed = altered(root, tmp_path / "train", splits.filter(pl.col("split") == "train")["subject_id"].to_list())
    assert all(changed[name] != fitted[name] for name in fitted), "the comparison can fail"


def test_folds_share_the_records_and_are_fitted_apart(root, counts, tmp_path):
    subjects = pl.read_parquet(root / "tables" / "subjects.parquet")
    for name in ("events", "windows", "window_values", "wearers"):
        (tmp_path / "tables" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "tables" / name).symlink_to(root / "tables" / name)
    subjects.with_columns((pl.col("subject_id") % 3).alias("fold")).write_parquet(tmp_path / "tables/subjects.parquet")
    before, fitted = files(root / "records"), {}
    for fold in range(2):
        out = tmp_path / f"fold{fold}"
        dataset.fit_split(tmp_path / "tables", root / "records", out, CONFIG, Division(fold))
        there = store.RecordStore(root / "records", out)
        assert ((there.index["split"] == "held_out") == (there.index["subject_id"] % 3 == fold)).all()
        assert len(there.view("held_out")) == (subjects["subject_id"] % 3 == fold).sum() < len(there)
        fitted[fold] = json.loads((out / "signal_statistics.json").read_text())
    assert fitted[0]["mean"] != fitted[1]["mean"], "statistics are fitted per fold"
    assert files(root / "records") == before


# ------------------------------------------------------------------------------------------------------- resuming
class Killed(BaseException):
    pass


def failing(function, after):
    """The function, killed in the call numbered `after` (from 0)."""
    calls = iter(range(10**6))

    def call(*args, **kwargs):
        if next(calls) == after:
            raise Killed
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("module", "name", "after"),
    [
        (meds_checks, "screen_pieces", 1),
        (wearable, "read_subjects", 1),
        (events, "write_json", 2),  # a shard written, its tally not
        (os, "replace", 8),
        (record_shards, "_code", 2),
        (record_shards, "_record", 11),  # in the middle of a shard of records
        (record_shards, "write_json", 2),  # a shard of records written, its tally not
        (statistics, "_count", 2),
        (signal_statistics, "fit_signals", 0),  # codes are fitted, and nothing of it is written yet
        (dataset, "write_frame", 6),
        (manifest, "write", 1),  # all records, but no manifest of them
        (manifest, "write", 2),  # everything but the last manifest
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(root, counts, tmp_path, monkeypatch, module, name, after):
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing(getattr(module, name), after))
        with pytest.raises(Killed):
            run(root, tmp_path)
    resumed = run(root, tmp_path)
    assert resumed == counts
    for folder in ("tables", "records", "fit"):
        whole, parts = files(root / folder), files(tmp_path / folder)
        assert {k for k in parts if not k.endswith(".partial")} == set(whole)
        assert [k for k in whole if whole[k] != parts[k]] == []


def test_what_is_done_is_not_done_again(root, counts, monkeypatch):
    before = files(root)
    for module, name in ((record_shards, "_record"), (statistics, "_count"), (events, "harmonise_events")):
        monkeypatch.setattr(module, name, failing(getattr(module, name), 0))
    assert run(root) == counts
    after = files(root)
    assert [k for k in before if not k.endswith("manifest.json") and before[k] != after[k]] == []


# ------------------------------------------------------------------------------------------------------- bad input
def test_a_channel_that_is_not_there_is_named(root, tmp_path):
    config = PrepareConfig(channels=("heart_rate", "glucose"))
    with pytest.raises(ValueError, match=r"no channel \['glucose'\].*there are \['activity', 'heart_rate'\]"):
        dataset.prepare_tables(root / "meds", root / "wearable", tmp_path, config)


def test_a_subject_in_two_shards_is_named(tmp_path):
    root = cohort.write_cohort(tmp_path, 12, wear_days=1)
    first = meds.list_shards(root / "meds")[0]
    events = meds.read_shard(first)
    meds.write_shard(first.with_name("9.parquet"), events.filter(pl.col("subject_id") == events["subject_id"][0]))
    with pytest.raises(ValueError, match=f"subject {events['subject_id'][0]} is in more than one shard"):
        run(root)


def test_wearable_rows_of_a_subject_in_two_files_are_named(tmp_path):
    root = cohort.write_cohort(tmp_path, 12, wear_days=1)
    rows = raw_rows(root)
    wearable.write_shard(root / "wearable" / "9.parquet", rows.filter(pl.col("subject_id") == rows["subject_id"][0]))
    with pytest.raises(ValueError, match=f"subject {rows['subject_id'][0]} has wearable rows in more than one file"):
        run(root)
