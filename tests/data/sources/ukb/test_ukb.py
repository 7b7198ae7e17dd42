"""UK Biobank's files become the timelines that they were made of, in every style, and rows reconcile by reason."""

import json
import random
from collections import Counter
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from ukb_files import Cohort

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.labels import LabelsConfig
from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.labels import event_tasks, followup
from ehrwear_jax.data.sources import ukb
from ehrwear_jax.data.sources.ukb import coded_events, export_files, linkage

STYLES = {"bulk": ("tab", "dmy"), "csv": ("csv", "dmy"), "platform": ("rap", "iso")}


def events_of(root):
    shards = [meds.read_shard(path) for path in meds.list_shards(root / "meds")]
    return pl.concat(shards).select("subject_id", "time", "code", "numeric_value")


def timelines(rows):
    """{person: sorted [(time, code, value)]}; values as float32."""
    found = {}
    for person, time, code, value in rows:
        found.setdefault(person, []).append((str(time), code, None if value is None else float(np.float32(value))))
    return {person: sorted(events, key=str) for person, events in found.items()}


def truth(cohort):
    return timelines((person, *event) for person, events in cohort.events.items() for event in events)


def counted(records):
    """({table: rows read}, {table: {reason: rows}}, {table: rows kept}) of counts.json."""
    read, lost, kept = {}, {}, {}
    for record in records:
        table, _, step = record["step"].partition(": rows ")
        if step == "read":
            read[table], lost[table] = record["n"], Counter()
        elif step == "kept":
            lost[table][record["reason"]] += record["dropped"]
        if step:
            kept[table] = record["n"]
    return read, lost, kept


def built(folder, cohort, **options):
    source = cohort.write(folder / "source")
    records = ukb.build(source, folder / "out", progress=False, **options)
    return SimpleNamespace(source=source, root=folder / "out", records=records, cohort=cohort)


@pytest.fixture(scope="module")
def bulk(tmp_path_factory):
    return built(tmp_path_factory.mktemp("ukb"), Cohort(120, wear=0.2, wear_days=0.25))


def check(dataset):
    """Timelines, counts, follow-up and recordings are those of the truth."""
    found, expected = timelines(events_of(dataset.root).iter_rows()), truth(dataset.cohort)
    assert found == expected
    read, lost, kept = counted(dataset.records)
    cohort = dataset.cohort
    assert {name: read[name] for name in cohort.read} == cohort.read
    assert {n: dict(+lost[n]) for n in lost} == {n: dict(+cohort.lost[n]) for n in lost}
    assert all(read[n] == kept[n] + sum(lost[n].values()) for n in read)
    table = followup.read_table(followup.find_table("", dataset.root / "meds"))
    assert {person: (start, end) for person, start, end in table.iter_rows()} == cohort.followed
    recorded = {}
    for path in wearable.list_shards(dataset.root / "wearable"):
        for row in wearable.read_shard(path).filter(pl.col("channel") == "acceleration").iter_rows(named=True):
            recorded[row["subject_id"]] = row["start_time"], row["sample_rate_hz"], row["values"]
    assert recorded.keys() == cohort.wear.keys() and recorded
    for person, (start, values) in cohort.wear.items():
        assert recorded[person][:2] == (start, 0.2)
        np.testing.assert_allclose(recorded[person][2], [np.nan if v is None else v for v in values], rtol=1e-6)


@pytest.mark.parametrize("style", STYLES)
def test_timelines_counts_follow_up_and_wear_are_the_truth(tmp_path, monkeypatch, style):
    monkeypatch.setattr(export_files, "BLOCK_BYTES", 15_000)  # rows reach over the ends of blocks
    name, dates = STYLES[style]
    check(built(tmp_path, Cohort(40, seed=1, style=name, dates=dates, wear=0.3, wear_days=0.25)))


def test_the_fixture_has_every_oddity(bulk):
    check(bulk)
    reasons = {reason for table in bulk.cohort.lost.values() for reason, n in table.items() if n}
    assert len(reasons) >= 25, sorted(reasons)


@pytest.mark.slow
def test_a_thousand_random_people_of_ten_thousand(tmp_path):
    cohort = Cohort(10_000, seed=3, wear=0.02, wear_days=0.25)
    dataset = built(tmp_path, cohort)
    check(dataset)
    found, expected = timelines(events_of(dataset.root).iter_rows()), truth(cohort)
    people = random.Random(0).sample(sorted(cohort.people), 1000)
    assert [found[p] for p in people] == [expected[p] for p in people]


def test_labels_are_those_of_the_truth(bulk, tmp_path):
    """The event tasks make the same tables of the output as of a dataset written from the truth."""
    _write_truth(bulk.cohort, tmp_path)
    labels = LabelsConfig(horizons_days=(365,), after_wearable=False, death=True, shifted_dates="no",
                          diagnosis_groups={"heart": ("ICD10//I",)})  # fmt: skip
    groups = ("hospitalization", "death", "onset_heart")
    found, expected = (
        event_tasks.make(event_tasks.Source(root / "meds", None, labels, PrepareConfig(), 0), groups)
        for root in (bulk.root, tmp_path)
    )
    for group in groups:
        assert found[group].tables.keys() == expected[group].tables.keys()
        for task, table in found[group].tables.items():
            assert table.height > 20 and table.equals(expected[group].tables[task]), task
    for person, time, days, observed, *_ in found["hospitalization"].tables["time_to_hospitalization"].iter_rows():
        admitted = [t for t, c, _ in bulk.cohort.events[person] if c.startswith("HOSPITAL_ADMISSION")]
        assert not observed or any(abs(time + timedelta(days=days) - t) < timedelta(seconds=1) for t in admitted)
    for person, time, days, observed, *_ in found["death"].tables["time_to_death"].iter_rows():
        died = bulk.cohort.people[person]["died"]
        assert observed == (died is not None and datetime(*died.timetuple()[:3]) < bulk.cohort.followed[person][1])
        assert not observed or (time + timedelta(days=days)).date() == died


def _write_truth(cohort, root):
    """A dataset of the truth, by the writer of MEDS and not by the adapter."""
    rows = [(person, *event) for person, events in cohort.events.items() for event in events]
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    events = pl.DataFrame(rows, schema=schema, orient="row")
    codes = pl.DataFrame({"code": sorted(set(events["code"]))})
    splits = pl.DataFrame({"subject_id": sorted(cohort.people)}).with_columns(split=pl.lit("train"))
    meds.write_dataset(root, events, meds.Metadata("truth", "1", codes, splits))
    ends = [(person, *span) for person, span in cohort.followed.items()]
    table = pl.DataFrame(ends, schema=["subject_id", "start", "end"], orient="row")
    table.write_parquet(root / "meds" / "metadata" / followup.TABLE)


def test_follow_up_by_registration(tmp_path):
    cohort = Cohort(60, seed=5, wear=0)
    dataset = built(tmp_path, cohort, ukb_followup="primary_care")
    table = followup.read_table(followup.find_table("", dataset.root / "meds"))
    found = {person: (start, end) for person, start, end in table.iter_rows()}
    expected = {}
    for person, (first, last) in cohort.registered.items():
        about = cohort.people[person]
        start = max(first, linkage.LINKAGE[f"hospital {about['country']}"][0])
        end = min(d for d in (last, about["lost"], about["died"]) if d)
        if end >= start:
            midnight = [datetime(*d.timetuple()[:3]) for d in (start, end)]
            expected[person] = midnight[0], midnight[1] + timedelta(days=1)
    assert found == expected and found


def test_splits_do_not_depend_on_who_else_is_there(bulk, tmp_path):
    few = built(tmp_path, Cohort(30, wear=0))
    both = meds.read_splits(few.root / "meds").join(meds.read_splits(bulk.root / "meds"), on="subject_id")
    assert both.height == 30 and (both["split"] == both["split_right"]).all()


def test_users_tables_replace_codes(tmp_path):
    cohort = Cohort(30, wear=0)
    source = cohort.write(tmp_path / "source")
    (source / "code_maps").mkdir()
    table = source / "code_maps" / "mine.csv"
    table.write_text("vocabulary,code,mapped_code\nREAD2,44I4.,LOINC//2823-3\nicd10,I219,SNOMED//22298006\n")
    ukb.build(source, tmp_path / "out", progress=False)
    codes = set(events_of(tmp_path / "out")["code"])
    assert {"LOINC//2823-3//mmol/L", "SNOMED//22298006"} <= codes
    assert not any(c.startswith(("READ2//44I4.", "ICD10//I219")) for c in codes)
    table.write_text("vocabulary,code,mapped_code\nREAD2,44I4.,A\nREAD2,44I4.,B\n")
    with pytest.raises(ValueError, match=r"mine.csv: READ2//44I4. is mapped more than once"):
        ukb.build(source, tmp_path / "other", progress=False)


def test_first_occurrences_are_named_by_the_data_dictionary(tmp_path):
    cohort = Cohort(40, wear=0)
    source = cohort.write(tmp_path / "source")
    text = "entity,name,title\nparticipant,p130000,Date A00 first reported (cholera)\nparticipant,p31,Sex\n"
    (source / "app12345.data_dictionary.csv").write_text(text)
    ukb.build(source, tmp_path / "out", progress=False)
    assert "FIRST_OCCURRENCE//ICD10//A00" in set(events_of(tmp_path / "out")["code"])
    codes = meds.read_codes(tmp_path / "out" / "meds")
    parents = dict(codes.select("code", "parent_codes").iter_rows())
    assert parents["FIRST_OCCURRENCE//ICD10//A00"] == ["ICD10//A00"]


@pytest.mark.parametrize(
    ("code", "ancestors"),
    [
        ("READ2//C10F.", ["READ2//C10..", "READ2//C1...", "READ2//C...."]),
        ("READ2//44I4.//mmol/L", ["READ2//44I4.", "READ2//44I..", "READ2//44...", "READ2//4...."]),
        ("READ2//246..//2", []),
        ("BNF//020201", ["BNF//0202", "BNF//02"]),
        ("OPCS4//K401", ["OPCS4//K40"]),
        ("ICD9//4109", ["ICD9//410"]),
        ("CTV3//XE0Uc", []),
        ("FIRST_OCCURRENCE//130000", []),
    ],
)  # fmt: skip
def test_ancestors(code, ancestors):
    assert coded_events.ancestors(code) == ancestors


def test_what_is_wrong_is_named(bulk, tmp_path):
    source = Cohort(5, wear=0).write(tmp_path / "source")
    with pytest.raises(FileNotFoundError, match="no file of participants"):
        (tmp_path / "empty").mkdir()
        ukb.build(tmp_path / "empty", tmp_path / "out")
    (source / "linkage.csv").write_text("source,start,end\nhospital Mars,2000-01-01,2020-01-01\n")
    with pytest.raises(ValueError, match="linkage.csv: row 1: source 'hospital Mars' is none of"):
        ukb.build(source, tmp_path / "out", progress=False)
    (source / "linkage.csv").unlink()
    (source / "hesin.csv").write_text("eid,ins_index\n")
    with pytest.raises(ValueError, match="both are the table hesin"):
        ukb.build(source, tmp_path / "out", progress=False)
    (source / "hesin.csv").unlink()
    (source / "gp_clinical.txt").write_text("eid\tevent_dt\n1\t2\t3\t4\n")
    with pytest.raises(ValueError, match="gp_clinical.txt: rows from 1 on"):
        ukb.build(source, tmp_path / "out", progress=False)
    (source / "hesin.txt").unlink()
    with pytest.raises(ValueError, match="hesin_diag.txt: the dates of its episodes are in hesin"):
        ukb.build(source, tmp_path / "out", progress=False)
    assert json.loads((bulk.root / "counts.json").read_text()) == bulk.records
