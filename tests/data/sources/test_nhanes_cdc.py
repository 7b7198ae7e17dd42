"""NHANES as the CDC publishes it: timelines equal what the survey's people are, and every row is accounted for."""

import datetime
import json

import numpy as np
import polars as pl
import pytest
from nhanes_survey import CYCLES, KINDS, Survey
from xpt_writer import write_xpt

from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.labels import task_design
from ehrwear_jax.data.sources import nhanes_cdc, nhanes_cdc_files
from ehrwear_jax.data.sources.csv_source import Ledger

DAY, US = datetime.timedelta(days=1), datetime.timedelta(microseconds=1)
MINUTES = ("activity_count", "step_count", "mims", "wear_flag", "sleep_flag")
SEASONS = {1: (11, 12, 1, 2, 3, 4), 2: (5, 6, 7, 8, 9, 10)}
YEARS = {"C": (2003, 2004), "D": (2005, 2006), "G": (2011, 2012), "H": (2013, 2014)}


@pytest.fixture(scope="module", params=[64, pytest.param(1000, marks=pytest.mark.long)])
def survey(request):
    return Survey(request.param)


@pytest.fixture(scope="module")
def source(survey, tmp_path_factory):
    return survey.write(tmp_path_factory.mktemp("nhanes_cdc") / "source")


@pytest.fixture(scope="module")
def built(source):
    root = source.parent / "root"
    return root, nhanes_cdc.build(source, root, progress=False)


@pytest.fixture(scope="module")
def events(built):
    return pl.concat([meds.read_shard(path) for path in meds.list_shards(built[0] / "meds")])


@pytest.fixture(scope="module")
def recordings(built):
    table = wearable.read_channels(built[0] / "wearable")
    return pl.concat([wearable.read_shard(path, table) for path in wearable.list_shards(built[0] / "wearable")])


@pytest.fixture(scope="module")
def exams(events):
    """{person: midnight that ends the day of the examination}."""
    timed = events.filter(pl.col("time").is_not_null() & (pl.col("code") != meds.BIRTH_CODE))
    times = timed.group_by("subject_id").agg(pl.col("time").unique())
    assert times["time"].list.len().max() == 1, "everything is found on one day"
    return {seqn: time[0] + US for seqn, time in times.iter_rows()}


def test_everybodys_events_are_what_is_true_of_them(survey, events):
    found = {}
    for seqn, code, value in events.select("subject_id", "code", "numeric_value").iter_rows():
        if code != meds.BIRTH_CODE:
            found.setdefault(seqn, []).append((code, value))
    assert set(found) == {p.seqn for p in survey.people if p.examined}
    for p in survey.people:
        if p.examined:
            true = {(code, None if value is None else float(np.float32(value))) for code, value in p.events}
            assert sorted(map(str, found[p.seqn])) == sorted(map(str, true)), p.seqn
    assert meds.DEATH_CODE not in set(events["code"])
    static = events.filter(pl.col("time").is_null())
    assert {code.split("//")[0] for code in static["code"]} == {"GENDER", "RACE"}


def test_minutes_are_where_they_were_recorded(survey, recordings, exams):
    of = {}
    for row in recordings.filter(pl.col("channel").is_in(MINUTES)).iter_rows(named=True):
        of.setdefault(row["subject_id"], {})[row["channel"]] = row
    for p in survey.people:
        rows = of.get(p.seqn, {})
        assert set(rows) == {name for name, v in p.wear.items() if np.isfinite(v).any()}, p.seqn
        for channel, row in rows.items():
            np.testing.assert_array_equal(row["values"], p.wear[channel].astype(np.float32), err_msg=str(p.seqn))
            start = row["start_time"]
            assert start.isoweekday() % 7 + 1 == p.weekday
            midnight = exams[p.seqn] - DAY * (p.letter in "GH")
            assert start - midnight == datetime.timedelta(seconds=p.start_seconds)
            assert row["sample_rate_hz"] == 1 / 60 and row["device"].endswith("GT3X+" if p.letter in "GH" else "7164")


def test_examinations_lie_in_their_half_year_of_their_cycle(survey, exams):
    for p in survey.people:
        if p.examined:
            day = exams[p.seqn] - US
            assert day.month in SEASONS[p.season]
            assert day.year in YEARS[p.letter] or (day.month, day.day) >= (12, 25)


def test_ages_are_those_recorded(survey, events, exams):
    birth = dict(events.filter(pl.col("code") == meds.BIRTH_CODE).select("subject_id", "time").iter_rows())
    parts = {"months": [], "years": []}
    for p in survey.people:
        if p.examined:
            months = (exams[p.seqn] - DAY - birth[p.seqn]) / DAY / 30.4375
            if p.months is not None:
                assert int(months) == p.months
                parts["months"].append(months - p.months)
            else:
                top = p.years == CYCLES[p.letter][2]
                assert 0 <= months - 12 * p.years < (1 if top else 12)
                parts["years"].append(0 if top else months - 12 * p.years)
    assert min(parts["months"]) < 0.25 < 0.75 < max(parts["months"])
    assert max(parts["years"]) > 6


def test_every_row_is_kept_or_dropped_for_a_reason(survey, built):
    root, records = built
    assert json.loads((root / "counts.json").read_text()) == records
    for stem, n in survey.rows.items():
        of = [r for r in records if r["step"].startswith(f"{stem}: rows")]
        if stem.lower().startswith(("pax", "rxq")):
            assert of[0]["n"] + of[0]["dropped"] == n, stem
            for before, after in zip(of, of[1:], strict=False):
                assert before["n"] == after["n"] + after["dropped"]
        else:
            assert of and all(r["n"] + r["dropped"] == n for r in of), stem
    for (file, reason), n in survey.dropped.items():
        assert [r["dropped"] for r in records if r["step"] == f"{file}: rows" and reason in r["reason"]] == [n], reason
    dropped = {f: sum(n for (file, _), n in survey.dropped.items() if file == f) for f, _ in survey.dropped}
    for file, n in dropped.items():
        assert sum(r["dropped"] for r in records if r["step"] == f"{file}: rows") == n
    used = {"number", "clock", "once more", "calibration", "examined", "PAXHD", "PAXSSNMP", "day or weekday"}
    assert {reason for _, reason in survey.dropped} == used, "the survey has every oddity"


def reference_valid(p):
    """Whether some day of the week has ten hours of wear, by the facts of the survey."""
    if p.letter in "GH":
        worn = p.wear["wear_flag"][1440 - p.start_seconds // 60 :][: 7 * 1440] == 1
        return any(worn[d * 1440 : (d + 1) * 1440].sum() >= 600 for d in range(7))
    return p.seqn % KINDS != 6


def test_labels_are_those_of_the_facts(survey, built, exams):
    root, _ = built
    expected = {}
    for p in survey.people:
        if p.examined and p.adult and p.mortality and p.wear and reference_valid(p):
            _, died, cause, months = p.mortality
            days = months * 30.4375 - 7
            if days > 0:
                expected[p.seqn] = (exams[p.seqn] + 7 * DAY, days, died == 1, cause)
    assert len(expected) > 20
    assert any(died and cause is None for *_, died, cause in expected.values()), "of an unknown cause"
    for task, causes in {"all_cause_mortality": None, **nhanes_cdc.CAUSES}.items():
        table = meds.read_labels(root / "labels" / f"{task}.parquet")
        assert set(table["subject_id"]) == set(expected)
        for row in table.iter_rows(named=True):
            time, days, died, cause = expected[row["subject_id"]]
            event = died and (causes is None or cause in causes)
            assert (row["prediction_time"], row["event_observed"]) == (time, event)
            assert row["time_to_event_days"] == pytest.approx(days)
            assert row.get("competing_event", False) == (died and not event)
    folds = meds.read_folds(root / "meds")
    assert set(folds.filter(pl.col("fold") >= 0)["subject_id"]) == set(expected)
    design = json.loads((root / "labels" / "design.json").read_text())
    assert design == nhanes_cdc.DESIGN and tuple(design) == task_design.PARTS


def test_the_survey_design_and_the_time_of_observation_are_beside_the_data(survey, built, exams):
    metadata = built[0] / "meds" / "metadata"
    design = pl.read_parquet(meds.survey_path(metadata.parent))
    examined = {p.seqn: p for p in survey.people if p.examined}
    assert set(design["subject_id"]) == set(examined)
    for seqn, interview, exam, stratum, unit, cycle in design.iter_rows():
        assert (interview, exam, stratum, unit) == (5000.25, 6000.5, 40 + seqn % 15, seqn % 2 + 1)
        assert cycle.replace("-", "_") == CYCLES[examined[seqn].letter][1]
    for seqn, start, end in pl.read_parquet(metadata / "subject_followup.parquet").iter_rows():
        assert (start, end) == (exams[seqn] - DAY, exams[seqn] + 7 * DAY)


def test_sums_over_the_week_are_known_when_it_ends(recordings, exams):
    week = recordings.filter(~pl.col("channel").is_in(MINUTES))
    assert set(week["channel"]) >= {"activity_profile", "mims_profile", "total_activity", "total_mims", "sleep_time"}
    for row in week.iter_rows(named=True):
        length = datetime.timedelta(seconds=round(len(row["values"]) / row["sample_rate_hz"]))
        assert row["start_time"] + length == exams[row["subject_id"]] + 7 * DAY


def test_files_can_be_read_in_any_portions(survey, source):
    for read, letter in ((nhanes_cdc.nhanes_cdc_wear.read_counts, "C"), (nhanes_cdc.nhanes_cdc_wear.read_mims, "G")):
        cycle = next(c for c in nhanes_cdc_files.CYCLES if c.letter == letter)
        everybody = {p.seqn for p in survey.people if p.examined}
        for recording in read(source, cycle, everybody, Ledger("x", False), 17_000):
            p = next(p for p in survey.people if p.seqn == recording.seqn)
            for channel, values in recording.values_T.items():
                np.testing.assert_array_equal(values, p.wear[channel].astype(np.float32))


# --------------------------------------------------------------------------------------------------------------- faults
def test_the_mortality_file_is_read_by_its_columns(tmp_path):
    line = list(" " * 48)
    for first, text in (
        (1, "62161"),
        (15, "1"),
        (16, "1"),
        (17, "005"),
        (20, "0"),
        (21, "1"),
        (43, "104"),
        (46, "103"),
    ):
        line[first - 1 : first - 1 + len(text)] = text
    alive = "62162         10         ".ljust(42) + " 98 97"
    young = "62163         2"
    cycle = nhanes_cdc_files.CYCLES[2]
    path = tmp_path / nhanes_cdc_files.mortality_name(cycle)
    assert path.name == "NHANES_2011_2012_MORT_2019_PUBLIC.dat"
    people = pl.DataFrame({"SEQN": [62161, 62162, 62163]})

    def read(*lines):
        path.write_text("\n".join(lines) + "\n")
        return nhanes_cdc_files.read_mortality(tmp_path, [cycle], people, Ledger("x", False))

    table = read("".join(line), alive, young)
    assert table.rows() == [(62161, 1, 1, 5, 0, 1, 104, 103), (62162, 1, 0, None, None, None, 98, 97)]
    assert table.columns == list(nhanes_cdc_files.MORTALITY_LAYOUT)
    with pytest.raises(ValueError, match=r"line 2: PERMTH_EXM \(columns 46 to 48\) is '9x7'"):
        read("".join(line), alive[:45] + "9x7")
    with pytest.raises(ValueError, match="line 1: MORTSTAT is 3, none of"):
        read(alive[:15] + "3" + alive[16:])
    with pytest.raises(ValueError, match="person 62162 is on more than one line"):
        read(alive, alive)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="nhanes_download.sh"):
        nhanes_cdc_files.read_mortality(tmp_path, [cycle], people, Ledger("x", False))


def test_missing_and_wrong_tables_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"DEMO_C\.xpt.*nhanes_download"):
        nhanes_cdc.build(tmp_path, tmp_path / "root", progress=False)
    cycle = nhanes_cdc_files.CYCLES[1]
    demo = {name: [1.0] for name in nhanes_cdc_files._DEMO_NEEDED}
    write_xpt(tmp_path / "DEMO_D.xpt", demo)
    with pytest.raises(ValueError, match="'SDDSRVYR' must be 4"):
        nhanes_cdc_files.read_demographics(tmp_path, [cycle], Ledger("x", False))
    write_xpt(tmp_path / "DEMO_D.xpt", {k: v for k, v in demo.items() if k != "WTMEC2YR"})
    with pytest.raises(ValueError, match="'WTMEC2YR' is missing"):
        nhanes_cdc_files.read_demographics(tmp_path, [cycle], Ledger("x", False))
    write_xpt(tmp_path / "bmx_d.XPT", {"SEQN": [7, 7], "BMXBMI": [20, 21]})
    with pytest.raises(ValueError, match="row 1: person 7 is on more than one row"):
        nhanes_cdc_files.read_table(tmp_path, "BMX_D", ("BMXBMI",))
