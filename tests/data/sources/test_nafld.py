"""The NAFLD adapter: labels by their definition, dates that give nothing away, published counts."""

import csv
import datetime
import json
import random

import polars as pl
import pytest

from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.labels import task_design
from ehrwear_jax.data.prepare import code_table
from ehrwear_jax.data.sources import nafld, nafld_files

DAY = datetime.timedelta(days=1)
PEOPLE_HEADER = ["id", "age", "male", "weight", "height", "bmi", "case.id", "futime", "status"]


def write_csv(path, header, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([["NA" if cell is None else cell for cell in row] for row in rows])


def write_source(folder, people, values, diagnoses):
    """The three CSV files, as R would write them."""
    folder.mkdir(exist_ok=True)
    write_csv(folder / "nafld1.csv", PEOPLE_HEADER, people)
    write_csv(folder / "nafld2.csv", ["id", "days", "test", "value"], values)
    write_csv(folder / "nafld3.csv", ["id", "days", "event"], diagnoses)
    return folder


def random_cohort(n_people=120, seed=0):
    """People in matched sets of four with values and diagnoses on both sides of the index date."""
    rng = random.Random(seed)
    people, values, diagnoses = [], [], []
    for person in range(1, n_people + 1):
        matched_set = None if person % 29 == 0 else person - (person - 1) % 4
        futime, died = rng.randint(1, 1500), int(rng.random() < 0.3)
        bmi = None if rng.random() < 0.3 else round(rng.uniform(18, 40), 2)
        people.append([person, rng.randint(18, 90), rng.randint(0, 1), 80.5, 170, bmi, matched_set, futime, died])
        for _ in range(rng.randint(0, 12)):
            day = min(futime, rng.randint(-900, 1500))
            if rng.random() < 0.8:
                level = rng.randint(20, 90)
                values += [[person, day, "hdl", level], [person, day, "chol", level]]
            else:
                level = rng.randint(90, 180)
                values += [[person, day, "sbp", level], [person, day, "dbp", level]]
        for _ in range(rng.randint(0, 4)):
            event = rng.choice([name for name in nafld_files.DIAGNOSES if name != "nafld"])
            on_lab_day = [row[1] for row in values if row[0] == person and rng.random() < 0.3]
            day = on_lab_day[0] if on_lab_day else rng.randint(-900, 1500)
            diagnoses.append([person, min(futime, day), event])
        if matched_set == person:
            diagnoses.append([person, 0, "nafld"])
        elif rng.random() < 0.1:
            diagnoses.append([person, rng.randint(0, futime), "nafld"])
    return people, values, diagnoses


def read_events(root):
    return pl.concat([meds.read_shard(path) for path in meds.list_shards(root / "meds")])


def index_dates(root, people):
    """Index date of each person, from the end of follow-up, which lies futime days after it."""
    ends = read_events(root).filter(pl.col("code") == nafld_files.FOLLOWUP_END)
    futime = {row[0]: row[7] for row in people}
    return {i: t.date() - futime[i] * DAY for i, t in ends.select("subject_id", "time").iter_rows()}


@pytest.fixture(scope="module")
def cohort():
    return random_cohort()


@pytest.fixture(scope="module")
def built(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nafld")
    records = nafld.build(write_source(folder / "source", *cohort), folder / "root", strict=False, progress=False)
    return folder / "root", records


def brute_force(people, values, diagnoses, horizon):
    """(person, day) -> label, straight from the definition."""
    labels = {}
    for person, *_, futime, status in people:
        mine = sorted((day, name) for i, day, name in diagnoses if i == person and name != "nafld")
        events = [(day, name) for day, name in mine if day == min(d for d, n in mine if n == name)]  # never had before
        for day in {d for i, d, *_ in values if i == person and d >= 0}:
            if futime <= day:
                continue
            diagnosed = any(day < d <= day + horizon for d, _ in events)
            died = status == 1 and futime <= day + horizon
            if diagnosed:
                labels[person, day] = True
            elif futime >= day + horizon or died:
                labels[person, day] = False
    return labels


@pytest.mark.parametrize("horizon", nafld.HORIZONS_DAYS)
def test_labels_are_those_of_the_definition(cohort, horizon):
    people, values, diagnoses = (
        pl.DataFrame(rows, schema=columns, orient="row")
        for rows, columns in zip(
            cohort, (PEOPLE_HEADER, ["id", "days", "test", "value"], ["id", "days", "event"]), strict=True
        )
    )
    days = values.filter(pl.col("days") >= 0).select("id", "days").unique()
    times = nafld.time_to_diagnosis(days, diagnoses, people)
    labels = nafld.new_diagnosis_labels(times, horizon)
    expected = brute_force(*cohort, horizon)
    assert {(i, d): label for i, d, label in labels.iter_rows()} == expected
    assert 0 < sum(expected.values()) < len(expected)
    assert (times["event_observed"] & times["competing_event"]).sum() == 0
    died = {row[0]: row[8] for row in cohort[0]}
    for person, _, _, observed, competing in times.iter_rows():
        assert competing == (not observed and died[person] == 1)


def test_a_repeated_diagnosis_is_never_a_target(tmp_path):
    people = [[1, 50, 1, None, None, None, 1, 900, 0]]
    values = [[1, day, "hdl", 50] for day in (10, 150, 250, 400)]
    diagnoses = [[1, 100, "stroke"], [1, 200, "stroke"], [1, 300, "htn"], [1, 500, "stroke"]]
    source = write_source(tmp_path / "source", people, values, diagnoses)
    records = nafld.build(source, tmp_path / "root", strict=False, progress=False)
    table = meds.read_labels(tmp_path / "root" / "labels" / "new_diagnosis_90d.parquet")
    assert table["boolean_value"].to_list() == [True, False, True, False], "the second and third stroke are none"
    (step,) = [r for r in records if r["step"] == "first diagnoses"]
    assert (step["n"], step["dropped"]) == (2, 2)
    codes = read_events(tmp_path / "root")["code"].to_list()
    assert codes.count("DX//stroke") == 3, "they are events all the same"


def test_designs_are_written_for_every_label_table(built):
    folder = built[0] / "labels"
    designs = json.loads((folder / "design.json").read_text())
    for path in folder.glob("*.parquet"):
        (begins,) = [task for task in designs if path.stem.startswith(task)]
        assert tuple(designs[begins]) == task_design.PARTS


def test_label_tables_are_dated_at_the_end_of_the_lab_day(cohort, built):
    root, _ = built
    index = index_dates(root, cohort[0])
    for horizon in nafld.HORIZONS_DAYS:
        table = meds.read_labels(root / "labels" / f"new_diagnosis_{horizon}d.parquet")
        assert table["prediction_time"].dt.time().unique().to_list() == [datetime.time.max]
        found = {(i, (t.date() - index[i]).days): label for i, t, label in table.iter_rows()}
        assert found == brute_force(*cohort, horizon)


def test_death_labels_count_from_the_end_of_the_index_day(cohort, built):
    root, _ = built
    index = index_dates(root, cohort[0])
    table = meds.read_labels(root / "labels" / "death.parquet")
    assert {(i, t.date() - index[i], days, died) for i, t, days, died in table.iter_rows()} == {
        (row[0], 0 * DAY, float(row[7]), row[8] == 1) for row in cohort[0]
    }
    assert table["prediction_time"].dt.time().unique().to_list() == [datetime.time.max]
    deaths = read_events(root).filter(pl.col("code") == meds.DEATH_CODE)
    by_label = table.filter("event_observed").with_columns(
        time=pl.col("prediction_time") + pl.duration(days=pl.col("time_to_event_days"))
    )
    assert sorted(deaths.select("subject_id", "time").rows()) == sorted(by_label.select("subject_id", "time").rows())


def test_events_are_the_rows_of_the_source(cohort, built):
    root, _ = built
    people, values, diagnoses = cohort
    index = index_dates(root, people)
    expected = {
        (i, day, nafld_files.TESTS[test][0], float(value)) for i, day, test, value in values if test in ("hdl", "sbp")
    } | {(i, day, nafld_files.DIAGNOSES[event][0], None) for i, day, event in diagnoses}
    events = read_events(root)
    dated = events.filter(pl.col("code").str.contains("^LAB|^DX|sbp|dbp|SMOKE"))
    assert dated["time"].dt.time().unique().to_list() == [datetime.time.max]
    found = {(i, (t.date() - index[i]).days, code, x) for i, t, code, x, _ in dated.iter_rows()}
    assert found == expected
    repeated = len(diagnoses) - len({tuple(row) for row in diagnoses})
    assert len(dated) == len(expected) + repeated
    sex = events.filter(pl.col("time").is_null())
    assert dict(sex.select("subject_id", "code").iter_rows()) == {
        row[0]: "GENDER//M" if row[2] else "GENDER//F" for row in people
    }


def test_diagnoses_and_nothing_else_descend_from_icd10(built):
    codes = meds.read_codes(built[0] / "meds")
    parents = {c: p or [] for c, p in codes.select("code", "parent_codes").iter_rows()}
    assert {p for ps in parents.values() for p in ps} <= parents.keys(), "every parent is described"
    lineage = code_table.ancestors(parents)
    for code in set(read_events(built[0])["code"]):
        assert (nafld_files.ICD10 in lineage[code]) == code.startswith("DX//")
    assert lineage["DX//mi"] == ["ICD10//IX", nafld_files.ICD10]


def test_body_mass_is_not_visible_before_the_index_date(cohort, built):
    root, _ = built
    index = index_dates(root, cohort[0])
    body = read_events(root).filter(pl.col("code").is_in([code for code, _ in nafld_files.BASELINE.values()]))
    known = {row[0]: row[5] for row in cohort[0] if row[5] is not None}
    bmi = body.filter(pl.col("code") == "VITAL//bmi")
    assert dict(bmi.select("subject_id", "numeric_value").iter_rows()) == pytest.approx(known)
    for person, time in body.select("subject_id", "time").iter_rows():
        assert time == datetime.datetime.combine(index[person], datetime.time.max)


def test_no_date_gives_the_distance_to_the_index_away(cohort, built, tmp_path):
    """Index dates and birthdays are spread out, whole-year age is kept, and neither follows the other."""
    root, _ = built
    index = index_dates(root, cohort[0])
    assert len(set(index.values())) > 0.9 * len(index)
    births = read_events(root).filter(pl.col("code") == meds.BIRTH_CODE)
    ages = {row[0]: row[1] for row in cohort[0]}
    past_birthday = []
    for person, time in births.select("subject_id", "time").iter_rows():
        years = (datetime.datetime.combine(index[person], datetime.time()) - time) / DAY / 365.25
        assert int(years) == ages[person]
        past_birthday.append(years - ages[person])
    quarters = [sum(q <= 4 * x < q + 1 for x in past_birthday) for q in range(4)]
    assert min(quarters) > len(past_birthday) / 8


def test_matched_sets_share_a_split(cohort, built):
    root, _ = built
    groups, splits = meds.read_groups(root / "meds"), meds.read_splits(root / "meds")
    both = groups.join(splits, on="subject_id")
    assert both.group_by("group_id").agg(pl.col("split").n_unique())["split"].max() == 1
    expected = {row[0]: -row[0] if row[6] is None else row[6] for row in cohort[0]}
    assert dict(groups.iter_rows()) == expected
    assert set(splits["split"]) == set(meds.SPLITS)


def test_seed_moves_splits_and_dates(cohort, built, tmp_path):
    source = write_source(tmp_path / "source", *cohort)
    nafld.build(source, tmp_path / "again", strict=False, progress=False)
    nafld.build(source, tmp_path / "other", seed=1, strict=False, progress=False)
    first, again, other = (read_events(root) for root in (built[0], tmp_path / "again", tmp_path / "other"))
    assert first.equals(again)
    splits = [meds.read_splits(root / "meds") for root in (built[0], tmp_path / "again", tmp_path / "other")]
    assert splits[0].equals(splits[1])
    assert not splits[0].equals(splits[2])
    assert index_dates(built[0], cohort[0]) != index_dates(tmp_path / "other", cohort[0])
    assert len(first) == len(other)


def test_a_record_cut_at_a_day_keeps_its_past(cohort, built, tmp_path):
    """Rows of the source after a day, and other people, change no event up to that day and no split."""
    people, values, diagnoses = cohort
    cut = 200
    some = [row for row in people if row[0] % 2]
    kept = {row[0] for row in some}
    rows = ([r for r in part if r[0] in kept and r[1] <= cut] for part in (values, diagnoses))
    source = write_source(tmp_path / "source", some[::-1], *rows)
    nafld.build(source, tmp_path / "root", strict=False, progress=False)
    index = index_dates(built[0], people)
    until = pl.DataFrame(
        {
            "subject_id": sorted(kept),
            "until": [datetime.datetime.combine(index[i] + cut * DAY, datetime.time.max) for i in sorted(kept)],
        }
    )
    administrative = [nafld_files.FOLLOWUP_END, meds.DEATH_CODE]

    def past(root):
        events = read_events(root).filter(~pl.col("code").is_in(administrative))
        events = events.join(until, on="subject_id").filter(
            pl.col("time").is_null() | (pl.col("time") <= pl.col("until"))
        )
        return events.sort("subject_id", "time", "code", "numeric_value")

    assert past(tmp_path / "root").equals(past(built[0]))
    splits = meds.read_splits(built[0] / "meds").filter(pl.col("subject_id").is_in(sorted(kept)))
    assert meds.read_splits(tmp_path / "root" / "meds").equals(splits)


def test_a_test_that_differs_from_the_other_on_one_day_is_no_copy(cohort, tmp_path):
    people, values, diagnoses = cohort
    at = next(i for i, row in enumerate(values) if row[2] == "chol")
    changed = [list(row) for row in values]
    changed[at][3] += 1
    source = write_source(tmp_path / "source", people, changed, diagnoses)
    nafld.build(source, tmp_path / "root", strict=False, progress=False)
    codes = set(read_events(tmp_path / "root")["code"])
    assert "LAB//chol" in codes and "VITAL//dbp" not in codes


def test_impossible_pressure_loses_its_number_and_rows_outside_follow_up_are_counted(tmp_path):
    people = [[1, 50, 1, None, None, None, 1, 100, 0]]
    values = [[1, 5, "sbp", 13682], [1, 6, "sbp", 120], [1, 101, "sbp", 120], [9, 0, "sbp", 120], [1, 6, "sbp", 120]]
    source = write_source(tmp_path / "source", people, values, [[1, 100, "MI"]])
    records = nafld.build(source, tmp_path / "root", strict=False, progress=False)
    pressure = read_events(tmp_path / "root").filter(pl.col("code") == "VITAL//sbp")
    assert pressure["numeric_value"].to_list() == [None, 120.0]
    dropped = {record["step"]: (record["n"], record["dropped"], record["reason"]) for record in records}
    assert dropped["dated values of known people within follow-up"] == (
        3, 2, "1 of people not in nafld1.csv, 1 after futime",
    )  # fmt: skip
    assert dropped["distinct dated values"][:2] == (2, 1)
    assert dropped["dated values with a number"][:2] == (1, 1)
    assert json.loads((tmp_path / "root" / "counts.json").read_text()) == records


def test_progress_lines_name_what_was_dropped(tmp_path, capsys):
    source = write_source(tmp_path / "source", *random_cohort(12, seed=3))
    nafld.build(source, tmp_path / "root", strict=False)
    printed = capsys.readouterr().out
    assert "copy 'chol'" in printed and "before the index date" in printed


@pytest.mark.parametrize("name", ["nafld1.csv", "nafld2.csv", "nafld3.csv"])
def test_a_missing_file_says_how_to_get_it(cohort, tmp_path, name):
    source = write_source(tmp_path / "source", *cohort)
    (source / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}: no such file; export .* R package survival"):
        nafld.build(source, tmp_path / "root", strict=False, progress=False)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("nafld1.csv", "case.id", "case", r"nafld1.csv: column 'case.id' is missing"),
        ("nafld2.csv", "value", "result", r"nafld2.csv: column 'value' is missing"),
        ("nafld1.csv", "\n2,", "\n1,", r"nafld1.csv: row 1: column 'id' holds 1 more than once"),
        ("nafld1.csv", "\n2,", "\ntwo,", r"nafld1.csv: row 2: column 'id' is 'two', not a finite number"),
        ("nafld1.csv", "\n2,", "\nNA,", r"nafld1.csv: row 2: column 'id' is missing"),
        ("nafld1.csv", "\n2,", "\n2.5,", r"nafld1.csv: row 2: column 'id' is '2.5', not a whole number"),
        ("nafld2.csv", "hdl", "ldl", r"nafld2.csv: row \d+: column 'test' is 'ldl', none of chol"),
        ("nafld3.csv", ",nafld", ",gout", r"nafld3.csv: row \d+: column 'event' is 'gout', none of nafld"),
    ],
)
def test_a_malformed_file_is_named_with_its_column(cohort, tmp_path, file, old, new, message):
    source = write_source(tmp_path / "source", *cohort)
    text = (source / file).read_text().replace("\r", "")
    assert old in text
    (source / file).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        nafld.build(source, tmp_path / "root", strict=False, progress=False)


def test_counts_that_are_not_the_published_ones_are_an_error(cohort, tmp_path):
    source = write_source(tmp_path / "source", *cohort)
    with pytest.raises(ValueError, match=r"people: found 120, published 17,549; pass strict=False"):
        nafld.build(source, tmp_path / "root", progress=False)


def test_an_event_before_birth_is_an_error(tmp_path):
    people = [[1, 50, 1, None, None, None, 1, 100, 0]]
    source = write_source(tmp_path / "source", people, [[1, -19000, "hdl", 50]], [])
    with pytest.raises(ValueError, match="person 1 has LAB//hdl before birth"):
        nafld.build(source, tmp_path / "root", strict=False, progress=False)


def test_an_interrupted_build_can_be_repeated_and_a_finished_one_is_not_overwritten(
    cohort, built, tmp_path, monkeypatch
):
    source, root = write_source(tmp_path / "source", *cohort), tmp_path / "root"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(meds, "write_labels", interrupted)
        with pytest.raises(KeyboardInterrupt):
            nafld.build(source, root, strict=False, progress=False)
    assert not (root / "counts.json").exists()
    nafld.build(source, root, strict=False, progress=False)
    assert read_events(root).equals(read_events(built[0]))
    assert sorted(p.name for p in root.iterdir()) == sorted(p.name for p in built[0].iterdir())
    with pytest.raises(ValueError, match="already exists; write to an empty folder"):
        nafld.build(source, root, strict=False, progress=False)


# --------------------------------------------------------------------------------------- the real data
@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    root = tmp_path_factory.mktemp("nafld_real") / "root"
    records = nafld.build(shared_data("nafld"), root, progress=False)
    return root, {record["step"]: record for record in records}


def test_published_counts_and_prevalences(real):
    root, records = real
    assert records["people"]["n"] == 17_549
    assert records["dated values"]["n"] == 400_123
    assert records["dated diagnoses"]["n"] == 34_327
    assert records["matched sets"]["n"] == 3_853 + 31
    # Measured elsewhere on one tenth of the matched sets: rows at risk and prevalence, repetitions included.
    published = {30: (7914, 0.025), 90: (7681, 0.042), 180: (7398, 0.063), 365: (6808, 0.108)}
    for horizon, (rows, prevalence) in published.items():
        labels = meds.read_labels(root / "labels" / f"new_diagnosis_{horizon}d.parquet")
        assert len(labels) / 10 == pytest.approx(rows, rel=0.05)
        assert 0.82 * prevalence < labels["boolean_value"].mean() < prevalence


def test_repeated_diagnoses_made_606_of_the_positives_within_a_year(real, shared_data):
    """With repetitions as targets 7,267 lab days were positive at 365 days."""
    root, records = real
    labels = meds.read_labels(root / "labels" / "new_diagnosis_365d.parquet")
    assert labels["boolean_value"].sum() == 7_267 - 606 and records["first diagnoses"]["dropped"] == 1_762
    codes = [code for name, (code, _) in nafld_files.DIAGNOSES.items() if name != "nafld"]
    diagnosed = read_events(root).filter(pl.col("code").is_in(codes)).select("subject_id", "time")
    with_repeats = labels.join(diagnosed, on="subject_id").filter(
        pl.col("time").is_between("prediction_time", pl.col("prediction_time") + 365 * DAY, closed="right")
    )
    at = with_repeats.select("subject_id", "prediction_time").unique()
    assert 7_260 < at.height <= 7_267, "a few of them are censored now"


def test_cox_of_death_on_age_sex_and_bmi_is_the_published_one(real):
    lifelines = pytest.importorskip("lifelines")
    root, _ = real
    events = read_events(root)
    labels = meds.read_labels(root / "labels" / "death.parquet")

    def column(code, value):
        return events.filter(pl.col("code") == code).select("subject_id", value)

    table = (
        labels.join(column(meds.BIRTH_CODE, pl.col("time").alias("birth")), on="subject_id")
        .join(column("GENDER//M", pl.lit(1.0).alias("male")), on="subject_id", how="left")
        .join(column("VITAL//bmi", pl.col("numeric_value").alias("bmi")), on="subject_id")
        .with_columns(
            pl.col("male").fill_null(0.0),
            age=((pl.col("prediction_time").dt.truncate("1d") - pl.col("birth")) / DAY / 365.25).floor(),
        )
        .select("age", "male", "bmi", "time_to_event_days", "event_observed")
        .to_pandas()
    )
    assert len(table) == 12_588
    model = lifelines.CoxPHFitter().fit(table, "time_to_event_days", "event_observed")
    assert model.concordance_index_ == pytest.approx(0.82696, abs=5e-5)
