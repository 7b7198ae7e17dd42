"""The NHANES adapter: days of wear, what is known when, folds, a message per malformed table."""

import csv
import datetime
import json
import random

import numpy as np
import polars as pl
import pytest

from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.labels import task_design
from ehrwear_jax.data.sources import nhanes, nhanes_files

DAY = datetime.timedelta(days=1)
COVARIATES = [
    "SEQN", "SDDSRVYR", "SDMVPSU", "SDMVSTRA", "WTINT2YR", "WTMEC2YR", "RIDAGEMN", "RIDAGEEX", "RIDAGEYR", "BMI",
    "Race", "Gender", "Diabetes", "CHF", "CHD", "Cancer", "Stroke", "EducationAdult", "MobilityProblem", "DrinkStatus",
    "DrinksPerWeek", "SmokeCigs",
]  # fmt: skip
MORTALITY = ["SEQN", "eligstat", "mortstat", "permth_exm"]
IDA = ["seqn", "age", "sys", "lbxtc", "lbdhdd", *nhanes_files.SUMMARIES, *nhanes_files.PROFILE]
PACKED = ("bits", "SEQN", "PAXCAL", "PAXSTAT", "WEEKDAY")


def survey(n_people=80, seed=0):
    """People of every kind: without examination, without wear, unusable monitor, no valid day, over 85, adults."""
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    covariates, mortality, ida = [], [], []
    flags = {name: [] for name in PACKED}
    worn = {}
    for seqn in range(21001, 21001 + n_people):
        kind = seqn % 8
        years = 85 if kind == 4 else rng.randint(30, 84)
        months = None if kind == 4 else 12 * years + rng.randint(0, 11)
        adult = rng.random() < 0.9
        covariates.append([
            seqn, rng.choice([3, 4]), 1 + seqn % 2, 40 + seqn % 15, 4000.25, 0.0 if kind == 1 else 5000.5, months,
            None if kind in (1, 5) else months, years,
            rng.choice([None, 22.5, 31.25]), rng.choice(list(nhanes_files.RACES)), rng.choice(["Male", "Female"]),
            rng.choice(["Yes", "No", "Borderline", "Don't know", None]),
            *(rng.choice(["Yes", "No", None]) for _ in range(4)),
            rng.choice([*nhanes_files.ANSWERED["EducationAdult"], "Refused", None]) if adult else None,
            rng.choice(["Any Difficulty", "No Difficulty", None]),
            *rng.choice([("Non-Drinker", 0.0), ("Heavy Drinker", 20.5), (None, None)]),
            rng.choice(["Never", "Former", "Current", None]),
        ])  # fmt: skip
        died = rng.choice([0, 0, 1, None])
        mortality.append([seqn, 1, died, None if died is None else rng.randint(1, 150)])
        if kind == 1 or kind == 2:
            continue
        if kind != 3:
            summary = [None] * 21 if kind == 6 else [round(rng.uniform(0.01, 0.9), 3) for _ in range(21)]
            clinical = [rng.choice([None, 120]), rng.choice([None, 200]), rng.choice([None, 50])]
            ida.append([seqn, (months or 1020) / 12, *clinical, *summary])
        first = rng.randint(1, 7)
        worn[seqn] = (numbers.random((7, 1440)) < 0.5).astype(np.uint8)
        flags["bits"].append(np.packbits(worn[seqn], axis=1))
        for day in range(7):
            flags["SEQN"].append(seqn)
            flags["PAXCAL"].append(2 if kind == 7 else 1)
            flags["PAXSTAT"].append(1)
            flags["WEEKDAY"].append((first - 1 + day) % 7 + 1)
    flags = {name: np.concatenate(v) if name == "bits" else np.array(v) for name, v in flags.items()}
    return {"covariates": covariates, "mortality": mortality, "ida": ida, "flags": flags, "worn": worn}


def with_counts(cohort):
    """Adds minute counts, positive only where worn: by weekday, by day of wear, and one Sunday."""
    rng = np.random.default_rng(9)
    place = {seqn: k for k, seqn in enumerate(cohort["flags"]["SEQN"][::7].tolist())}
    weekdays = cohort["flags"]["WEEKDAY"].reshape(-1, 7)
    a, b, c = [seqn for seqn in cohort["worn"] if seqn % 8 != 7][:3]

    def counts(seqn, day):
        return cohort["worn"][seqn][day] * rng.integers(1, 900, 1440)

    made = {(a, 2): counts(a, 2), (a, 5): counts(a, 5), (b, 0): counts(b, 0), (b, 4): counts(b, 4)}
    sunday = int(np.flatnonzero(weekdays[place[c]] == 1)[0])
    made[c, sunday] = counts(c, sunday)
    rows = [(a, int(weekdays[place[a], day]), 0, made[a, day]) for day in (2, 5)]
    rows += [(b, day + 1, 1, made[b, day]) for day in (0, 4)]
    rows.insert(0, (a, 3, 1, made[a, 2] + cohort["worn"][a][2]))  # another package's day 2 of a: left out
    cohort["counts"] = {
        "counts": np.array([row[3] for row in rows], np.int32), "SEQN": np.array([row[0] for row in rows]),
        "day": np.array([row[1] for row in rows]), "src": np.array([bool(row[2]) for row in rows]),
    }  # fmt: skip
    cohort["one_day"] = [[c, 40, "male", i + 1, 0, int(x)] for i, x in enumerate(made[c, sunday])]
    cohort["expected_counts"] = {
        key: np.where(cohort["worn"][key[0]][key[1]] == 1, x, np.nan) for key, x in made.items()
    }
    return cohort


def write_csv(path, header, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([["NA" if cell is None else cell for cell in row] for row in rows])


def write_source(folder, cohort):
    folder.mkdir()
    write_csv(folder / "covariates.csv", COVARIATES, cohort["covariates"])
    write_csv(folder / "mortality2015.csv", MORTALITY, cohort["mortality"])
    write_csv(folder / "ida6680.csv", IDA, cohort["ida"])
    write_csv(folder / "registr50_oneday.csv", ["id", "age", "gender", "index", "value", "raw_activity"],
              cohort["one_day"])  # fmt: skip
    np.savez_compressed(folder / "flags_packed.npz", **cohort["flags"])
    np.savez_compressed(folder / "counts_268.npz", **cohort["counts"])
    return folder


@pytest.fixture(scope="module")
def cohort():
    return with_counts(survey())


@pytest.fixture(scope="module")
def built(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nhanes")
    source = write_source(folder / "source", cohort)
    records = nhanes.build(source, folder / "root", strict=False, progress=False)
    return folder / "root", {record["step"]: record for record in records}


def test_the_design_of_the_survey_is_beside_the_data(cohort, built):
    design = pl.read_parquet(meds.survey_path(built[0] / "meds"))
    examined = {row[0] for row in cohort["covariates"] if row[0] % 8 != 1}
    assert set(design["subject_id"]) == examined and {"WTMEC2YR", "SDMVSTRA", "SDMVPSU", "cycle"} <= set(design.columns)
    for seqn, interview, exam, stratum, unit, _ in design.iter_rows():
        assert (interview, exam, stratum, unit) == (4000.25, 5000.5, 40 + seqn % 15, 1 + seqn % 2)


def read_events(root):
    return pl.concat([meds.read_shard(path) for path in meds.list_shards(root / "meds")])


def read_recordings(root):
    channels = wearable.read_channels(root / "wearable")
    return pl.concat([wearable.read_shard(path, channels) for path in wearable.list_shards(root / "wearable")])


def people_of(cohort, kinds):
    return {row[0] for row in cohort["covariates"] if row[0] % 8 in kinds}


def week_starts(root):
    """First midnight of the week of wear: the microsecond after the examination's day."""
    exams = read_events(root).filter(pl.col("code").str.contains("^SMOKING|^VITAL|^DX|^MOBILITY|^EDUCATION"))
    times = exams.group_by("subject_id").agg(pl.col("time").unique())
    assert times["time"].list.len().max() == 1
    return {i: t[0] + datetime.timedelta(microseconds=1) for i, t in times.iter_rows()}


def test_everyone_examined_is_in_and_nobody_else(cohort, built):
    root, records = built
    everyone = {row[0] for row in cohort["covariates"]}
    assert set(read_events(root)["subject_id"]) == everyone - people_of(cohort, [1])
    assert records["people examined"]["dropped"] == len(people_of(cohort, [1]))
    assert records["people with usable wear flags"]["dropped"] == len(people_of(cohort, [7]))


def test_wear_flags_fall_on_the_recorded_weekdays_of_the_week_after_the_examination(cohort, built):
    root, _ = built
    flags = read_recordings(root).filter(pl.col("channel") == nhanes.WEAR_FLAG)
    assert set(flags["subject_id"]) == set(cohort["worn"]) - people_of(cohort, [7])
    starts = week_starts(root)
    weekday = dict(zip(cohort["flags"]["SEQN"][::7].tolist(), cohort["flags"]["WEEKDAY"][::7].tolist(), strict=True))
    for row in flags.iter_rows(named=True):
        seqn, start = row["subject_id"], row["start_time"]
        np.testing.assert_array_equal(row["values"], cohort["worn"][seqn].reshape(-1))
        assert row["sample_rate_hz"] == pytest.approx(1 / 60)
        assert start.isoweekday() % 7 + 1 == weekday[seqn]
        assert starts.get(seqn, start) == start
        cycle = next(r[1] for r in cohort["covariates"] if r[0] == seqn)
        assert start.year in {3: (2003, 2004), 4: (2005, 2006)}[cycle]


def test_minute_counts_are_on_their_day_of_wear_and_missing_where_not_worn(cohort, built):
    root, records = built
    recordings = read_recordings(root)
    start = dict(
        recordings.filter(pl.col("channel") == nhanes.WEAR_FLAG).select("subject_id", "start_time").iter_rows()
    )
    counts = recordings.filter(pl.col("channel") == nhanes.ACTIVITY_COUNT)
    found = {
        (row["subject_id"], (row["start_time"] - start[row["subject_id"]]).days): row["values"]
        for row in counts.iter_rows(named=True)
    }
    assert found.keys() == cohort["expected_counts"].keys()
    for key, expected in cohort["expected_counts"].items():
        np.testing.assert_array_equal(np.array(found[key], np.float64), expected)
    assert records["days of minute counts"]["dropped"] == 1


def test_averages_over_the_week_are_known_only_when_it_ends(cohort, built):
    root, _ = built
    recordings = read_recordings(root).filter(~pl.col("channel").is_in([nhanes.WEAR_FLAG, nhanes.ACTIVITY_COUNT]))
    rows = {row[0]: row for row in cohort["ida"] if row[5] is not None}
    assert set(recordings["subject_id"]) == rows.keys()
    labels = meds.read_labels(root / "labels" / f"{nhanes.TASK}.parquet")
    prediction_time = dict(labels.select("subject_id", "prediction_time").iter_rows())
    starts = week_starts(root)
    for row in recordings.iter_rows(named=True):
        seqn = row["subject_id"]
        end = row["start_time"] + datetime.timedelta(seconds=len(row["values"]) / row["sample_rate_hz"])
        if seqn in starts:
            assert end == starts[seqn] + 7 * DAY
        assert end == prediction_time.get(seqn, end)
        column = next((c for c, (name, *_) in nhanes.DAILY_CHANNELS.items() if name == row["channel"]), None)
        expected = rows[seqn][14:] if column is None else [rows[seqn][IDA.index(column)]]
        assert row["values"] == pytest.approx(expected)
    per_person = recordings.group_by("subject_id").len()["len"].unique().to_list()
    assert per_person == [1 + len(nhanes.DAILY_CHANNELS)]


def test_events_are_the_answers_and_findings(cohort, built):
    root, _ = built
    examined = {row[0]: dict(zip(COVARIATES, row, strict=True)) for row in cohort["covariates"] if row[0] % 8 != 1}
    ida = {row[0]: dict(zip(IDA, row, strict=True)) for row in cohort["ida"]}
    expected = set()
    for seqn, row in examined.items():
        expected.add((seqn, nhanes_files.RACES[row["Race"]], None))
        expected.add((seqn, nhanes_files.GENDERS[row["Gender"]], None))
        expected.add((seqn, meds.BIRTH_CODE, None))
        for column, answers in nhanes_files.ANSWERED.items():
            if row[column] in answers:
                value = row["DrinksPerWeek"] if column == "DrinkStatus" else None
                expected.add((seqn, answers[row[column]][0], value))
        for column, (code, _) in nhanes_files.MEASURED.items():
            value = row["BMI"] if column == "BMI" else ida.get(seqn, {}).get(column)
            if value is not None:
                expected.add((seqn, code, float(value)))
    events = read_events(root)
    assert set(events.select("subject_id", "code", "numeric_value").iter_rows()) == expected
    assert len(events) == len(expected)
    assert meds.DEATH_CODE not in set(events["code"])
    static = events.filter(pl.col("time").is_null())
    assert {code.split("//")[0] for code in static["code"]} == {"GENDER", "RACE"}
    dated = events.filter(pl.col("time").is_not_null() & (pl.col("code") != meds.BIRTH_CODE))
    assert dated["time"].dt.time().unique().to_list() == [datetime.time.max]


def test_age_at_the_examination_is_the_recorded_month(cohort, built):
    root, _ = built
    starts = week_starts(root)
    births = read_events(root).filter(pl.col("code") == meds.BIRTH_CODE).select("subject_id", "time")
    parts = []
    for seqn, birth in births.filter(pl.col("subject_id").is_in(list(starts))).iter_rows():
        row = next(dict(zip(COVARIATES, r, strict=True)) for r in cohort["covariates"] if r[0] == seqn)
        recorded = row["RIDAGEEX"] or row["RIDAGEMN"] or 12 * row["RIDAGEYR"]
        months = (starts[seqn] - DAY - birth) / DAY / 30.4375
        assert int(months) == recorded
        parts.append(months - recorded)
    assert min(parts) < 0.25 < 0.75 < max(parts)


def test_the_design_of_the_labels_is_told(built):
    found = json.loads((built[0] / "labels" / "design.json").read_text())
    assert found == nhanes.DESIGN and tuple(found) == task_design.PARTS


def test_labels_and_folds(cohort, built):
    root, _ = built
    followed = {row[0]: (row[3], row[2]) for row in cohort["mortality"] if row[2] is not None}
    expected = {row[0]: followed[row[0]] for row in cohort["ida"] if row[5] is not None and row[0] in followed}
    labels = meds.read_labels(root / "labels" / f"{nhanes.TASK}.parquet")
    found = {i: (days, died) for i, _, days, died in labels.iter_rows()}
    assert found.keys() == expected.keys()
    for seqn, (months, died) in expected.items():
        assert found[seqn] == (pytest.approx(months * 30.4375 - 7), died == 1)
    folds = dict(meds.read_folds(root / "meds").iter_rows())
    assert {seqn for seqn, fold in folds.items() if fold >= 0} == expected.keys()
    assert {folds[seqn] for seqn in expected} == set(range(5))
    assert set(meds.read_splits(root / "meds")["split"]) == set(meds.SPLITS)


def test_a_cycle_can_be_held_out(cohort, built, tmp_path):
    """For whoever learns from one survey and is scored on the next; then there are no folds."""
    root = tmp_path / "root"
    nhanes.build(write_source(tmp_path / "source", cohort), root, n_folds=0, strict=False, progress=False)
    splits = pl.read_parquet(meds.splits_path(root / "meds"))
    names = {3: "2003-2004", 4: "2005-2006"}
    cycles = {seqn: names[cycle] for seqn, cycle, *_ in cohort["covariates"]}
    assert dict(splits.select("subject_id", "cycle").iter_rows()) == {i: cycles[i] for i in splits["subject_id"]}
    assert splits["cycle"].n_unique() == 2 and meds.read_folds(root / "meds") is None


def test_a_person_does_not_depend_on_the_others_or_the_order_of_rows(cohort, built, tmp_path):
    some = {row[0] for row in cohort["covariates"] if row[0] % 3 or row[0] in set(cohort["counts"]["SEQN"].tolist())}
    some |= {row[0] for row in cohort["one_day"]}
    smaller = dict(cohort)
    for name in ("covariates", "mortality", "ida"):
        smaller[name] = [row for row in cohort[name] if row[0] in some][::-1]
    keep = np.isin(cohort["flags"]["SEQN"], list(some))
    smaller["flags"] = {name: array[keep] for name, array in cohort["flags"].items()}
    nhanes.build(write_source(tmp_path / "source", smaller), tmp_path / "root", strict=False, progress=False)
    for read in (read_events, read_recordings):
        before = read(built[0]).filter(pl.col("subject_id").is_in(some))
        assert read(tmp_path / "root").equals(before)
    for read in (meds.read_splits, meds.read_folds):
        assert read(tmp_path / "root" / "meds").equals(read(built[0] / "meds").filter(pl.col("subject_id").is_in(some)))


def test_outcomes_change_nothing_but_labels(cohort, built, tmp_path):
    """Flipping who died and when leaves every event, recording, split and fold as it is."""
    other = dict(cohort)
    other["mortality"] = [
        [seqn, 1, None if died is None else 1 - died, None if months is None else 151 - months]
        for seqn, _, died, months in cohort["mortality"]
    ]
    nhanes.build(write_source(tmp_path / "source", other), tmp_path / "root", strict=False, progress=False)
    assert read_events(tmp_path / "root").equals(read_events(built[0]))
    assert read_recordings(tmp_path / "root").equals(read_recordings(built[0]))
    for read in (meds.read_splits, meds.read_folds):
        assert read(tmp_path / "root" / "meds").equals(read(built[0] / "meds"))


FILES = ["covariates.csv", "mortality2015.csv", "ida6680.csv", "registr50_oneday.csv", "flags_packed.npz",
         "counts_268.npz"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_says_where_the_list_is(cohort, tmp_path, name):
    source = write_source(tmp_path / "source", cohort)
    (source / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}: no such file; the docstring of .*nhanes_files.py"):
        nhanes.build(source, tmp_path / "root", strict=False, progress=False)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("covariates.csv", "Race", "race", "covariates.csv: column 'Race' is missing"),
        ("covariates.csv", "Former", "Sometimes", r"covariates.csv: row \d+: column 'SmokeCigs' is 'Sometimes'"),
        ("covariates.csv", "\n21002,", "\n21001,", "covariates.csv: row 1: column 'SEQN' holds 21001 more than once"),
        ("mortality2015.csv", "\n21002,1,", "\n21002,1,7", r"mortality2015.csv: row 2: column 'mortstat' is '7"),
        ("ida6680.csv", "tlac.12", "tlac12", "ida6680.csv: column 'tlac.12' is missing"),
        ("ida6680.csv", "\n21004,", "\n99,", "ida6680.csv: column 'seqn' holds 99, which is not in covariates.csv"),
    ],
)
def test_a_malformed_table_is_named_with_its_column(cohort, tmp_path, file, old, new, message):
    source = write_source(tmp_path / "source", cohort)
    text = (source / file).read_text().replace("\r", "")
    assert old in text
    (source / file).write_text(text.replace(old, new, 1).replace("7NA", "7"))
    with pytest.raises(ValueError, match=message):
        nhanes.build(source, tmp_path / "root", strict=False, progress=False)


def broken_flags(flags, what):
    flags = {name: array.copy() for name, array in flags.items()}
    if what == "weekday":
        flags["WEEKDAY"][3] = flags["WEEKDAY"][2]
    elif what == "person":
        flags["SEQN"][6] = flags["SEQN"][7]
    elif what == "rows":
        flags = {name: array[:-1] for name, array in flags.items()}
    elif what == "array":
        del flags["PAXCAL"]
    elif what == "minutes":
        flags["bits"] = flags["bits"][:, :90]
    elif what == "bits":  # minutes in reverse within each byte: the counts no longer fall into the wear
        flags["bits"] = np.packbits(np.unpackbits(flags["bits"], axis=1), axis=1, bitorder="little")
    return flags


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weekday", "'WEEKDAY' of person 210.. is not seven weekdays"),
        ("person", "'SEQN' must hold each person on 7 consecutive rows"),
        ("rows", "'SEQN' has .* rows, not 7 for each person"),
        ("array", "array 'PAXCAL' is missing"),
        ("minutes", r"array 'bits' has shape \(\d+, 90\), expected \(\d+, 180\)"),
        ("bits", "minutes with counts are flagged as worn in flags_packed.npz"),
    ],
)
def test_malformed_flags_are_named(cohort, tmp_path, what, message):
    source = write_source(tmp_path / "source", cohort | {"flags": broken_flags(cohort["flags"], what)})
    with pytest.raises(ValueError, match=message):
        nhanes.build(source, tmp_path / "root", strict=False, progress=False)


def test_a_file_that_is_no_archive_is_named(cohort, tmp_path):
    source = write_source(tmp_path / "source", cohort)
    (source / "flags_packed.npz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="flags_packed.npz: not a readable .npz file"):
        nhanes.build(source, tmp_path / "root", strict=False, progress=False)


def test_counts_that_are_not_the_published_ones_are_an_error(cohort, tmp_path):
    source = write_source(tmp_path / "source", cohort)
    with pytest.raises(ValueError, match="people in the survey: found 80, published 20,470"):
        nhanes.build(source, tmp_path / "root", progress=False)


def test_an_interrupted_build_can_be_repeated_and_a_finished_one_is_not_overwritten(
    cohort, built, tmp_path, monkeypatch
):
    source, root = write_source(tmp_path / "source", cohort), tmp_path / "root"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(meds, "write_labels", interrupted)
        with pytest.raises(KeyboardInterrupt):
            nhanes.build(source, root, strict=False, progress=False)
    assert not (root / "counts.json").exists()
    nhanes.build(source, root, strict=False, progress=False)
    assert read_events(root).equals(read_events(built[0]))
    assert sorted(p.name for p in root.iterdir()) == sorted(p.name for p in built[0].iterdir())
    with pytest.raises(ValueError, match="already exists; write to an empty folder"):
        nhanes.build(source, root, strict=False, progress=False)


# --------------------------------------------------------------------------------------- the real data
