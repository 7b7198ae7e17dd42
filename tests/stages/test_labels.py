"""Labels made from the events: what counts, who is followed, what identifies them, and an oracle on real data."""

import json
import logging
from datetime import timedelta

import polars as pl
import pytest
from people_in_days import ADMIT, END, LEAVE, day, write

from ehrwear_jax import config as config_lib
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.labels import task_design
from ehrwear_jax.data.prepare import date_only
from ehrwear_jax.stages.labels import COUNTS, DESIGN, Labels, with_extraction_date
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir

MI = "ICD10CM/I21.9"
US = timedelta(microseconds=1)


def labels_of(meds_dir, workdir, make=True, seeds=(0,), **options):
    """Labels of a dataset without wearables, made."""
    config = config_lib.base()
    config.data.meds_dir = str(meds_dir)
    config.seeds = seeds
    config.labels.update({"horizons_days": (30, 90), "per_subject": 3, "min_history_days": 10.0} | options)
    labels = Labels(Plan(config_lib.parse(config), Workdir(workdir)))
    if make:
        labels.make(with_extraction_date(config_lib.parse(config).prepare, meds_dir)[0])
    return labels


def steps(labels, group="hospitalization"):
    found = json.loads((labels.groups[group].folder / COUNTS).read_text())
    return {s["step"]: s for s in found}


def everybody(events, n=60, last=400):
    """n people with a record a month, some events each, and a known end."""
    return {k: [*((d, "A") for d in range(0, last, 30)), *events(k), (last, END)] for k in range(n)}


def one_stay(k):
    """An admission on some day."""
    return [(150.4 + k, ADMIT), (155.4 + k, LEAVE)]


# ----------------------------------------------------------------------------------------------- what counts
def test_a_claim_after_death_is_no_event_and_death_is_a_competing_one(tmp_path):
    people = {k: [(0, "A"), (300.5, meds.DEATH_CODE), (310, ADMIT), (312, LEAVE), (800, END)] for k in range(80)}
    people |= everybody(one_stay, last=800, n=10) | {k + 10: people[k + 10] for k in range(70)}
    root = write(tmp_path, people)
    labels = labels_of(root, tmp_path / "run", death=True)
    dead = list(range(10, 80))
    times = labels.table("time_to_hospitalization").filter(pl.col("subject_id").is_in(dead))
    assert times.height > 20 and not times["event_observed"].any() and times["competing_event"].all()
    assert times["prediction_time"].max() < day(300.5)
    for days in (30, 90):
        table = labels.table(f"hospitalization_{days}d").filter(pl.col("subject_id").is_in(dead))
        assert not table["boolean_value"].any() and table.height == times.height
        died = labels.table(f"death_{days}d").filter(pl.col("subject_id").is_in(dead))
        assert died.height == times.height
        assert (died["boolean_value"] == (died["prediction_time"] >= day(300.5 - days))).all()
    step = steps(labels)["events of hospitalization up to the end of follow-up"]
    assert (step["n"], step["dropped"]) == (10, 70) and step["reason"].startswith("70 after death")


def test_the_composite_counts_death_as_the_event(tmp_path):
    people = everybody(one_stay, n=10, last=800)
    people |= {k: [(0, "A"), (300.5, meds.DEATH_CODE)] for k in range(10, 60)}
    root = write(tmp_path, people)
    plain, either = (labels_of(root, tmp_path / str(c), composite=c) for c in (False, True))
    before, after = (x.table("time_to_hospitalization") for x in (plain, either))
    assert before.select("subject_id", "prediction_time", "time_to_event_days").equals(
        after.select("subject_id", "prediction_time", "time_to_event_days")
    )
    assert (after["event_observed"] == (before["event_observed"] | before["competing_event"])).all()
    assert before["competing_event"].sum() > 10 and not after["competing_event"].any()
    assert plain.groups["hospitalization"].folder.name != either.groups["hospitalization"].folder.name
    assert "or death" in either.design("hospitalization_30d")["outcome"]


def test_repeated_diagnoses_are_no_onsets_and_are_counted(tmp_path):
    def twice(k):
        return [(100, MI), (200, MI)] if k % 2 else [(250, MI)]

    root = write(tmp_path, everybody(twice, last=500))
    labels = labels_of(
        root, tmp_path / "run", diagnosis_groups={"mi": ("ICD10CM/I21",)}, admission_codes=(), per_subject=9
    )
    times = labels.table("time_to_onset_mi")
    first = {k: day(100) if k % 2 else day(250) for k in range(60)}
    assert all(at < first[s] + timedelta(days=1) for s, at in times.select(times.columns[:2]).iter_rows())
    step = steps(labels, "onset_mi")["prediction times at risk of a first mi"]
    assert step["n"] == times.height and step["dropped"] > 0
    assert "have it again within 90 days" in step["reason"] and not step["reason"].split("; ")[1].startswith("0 ")
    assert set(labels.groups) == {"onset_mi"}, "no prefix of admissions: no hospitalisation"


def test_dates_without_times_are_known_at_the_days_end_in_labels_too(tmp_path):
    """A diagnosis dated on the day that begins at the prediction time is still to come, as it is for the model."""
    root = write(tmp_path, {k: [(0.3, "A"), (50, MI), (300.2, "A"), (400, END)] for k in range(30)})
    labels = labels_of(
        root, tmp_path / "run", diagnosis_groups={"mi": ("ICD10CM/I21",)}, admission_codes=(), per_subject=300,
    )  # fmt: skip
    times = labels.table("time_to_onset_mi")
    assert times["prediction_time"].max() == day(50)
    last = times.filter(pl.col("prediction_time") == day(50))
    assert last.height == 30 and (last["time_to_event_days"] - (1 - US / timedelta(days=1))).abs().max() < 1e-9


# ----------------------------------------------------------------------------------------------- who is followed
def test_a_booked_appointment_moves_no_prediction_time(tmp_path):
    people = everybody(one_stay)
    plain = labels_of(write(tmp_path / "a", people), tmp_path / "run_a")
    people[0] = [*people[0][:-1], (1400, "BOOKED"), (400, END)]
    booked = labels_of(write(tmp_path / "b", people), tmp_path / "run_b")
    for task in ("time_to_hospitalization", "hospitalization_90d"):
        assert plain.table(task).equals(booked.table(task))
    assert steps(booked)["person-days with a record up to the limit of the calendar"]["dropped"] == 1


def test_follow_up_from_a_table_replaces_the_guess(tmp_path, caplog):
    def untold(k):
        return one_stay(k)[:2] if k < 20 else []

    people = {k: events[:-1] for k, events in everybody(untold).items()}
    for k in range(30):
        people[k] = [e for e in people[k] if e[0] < 250]  # well, and not seen for a while
    root = write(tmp_path, people)
    with caplog.at_level(logging.WARNING):
        guessed = labels_of(root, tmp_path / "guessed")
    assert "60 of 60 people" in caplog.text and "config.labels.followup_file" in caplog.text
    caplog.clear()
    path = tmp_path / "followup.parquet"
    pl.DataFrame({"subject_id": range(50), "end": [day(400)] * 50}).write_parquet(path)
    with caplog.at_level(logging.WARNING):
        known = labels_of(root, tmp_path / "known", followup_file=str(path))
    assert "guess" not in caplog.text and "nothing says" not in caplog.text
    tables = [x.table("hospitalization_90d") for x in (guessed, known)]
    missed = steps(guessed)["prediction times"]["dropped"]
    assert missed > 10 and "ends of follow-up that are guessed" in steps(guessed)
    assert "ends of follow-up that are guessed" not in steps(known)
    assert tables[1].filter(pl.col("subject_id") < 30).height > tables[0].filter(pl.col("subject_id") < 30).height
    assert tables[1]["subject_id"].max() == 49 and steps(known)["people with a follow-up"]["dropped"] == 10
    assert "the end in the follow-up table (50 people)" in known.design("time_to_hospitalization")["follow_up"]


def test_the_start_of_follow_up_gives_the_history(tmp_path):
    root = write(tmp_path, {k: [(0, "A"), (100, "ENROLLED"), (300, "A"), (400, END)] for k in range(20)})
    options = {"admission_codes": (), "death": True, "per_subject": 500}
    early = labels_of(root, tmp_path / "a", **options).table("time_to_death")
    late = labels_of(root, tmp_path / "b", followup_start_codes=("ENROLLED",), **options).table("time_to_death")
    assert early["prediction_time"].min() <= day(11) and day(110) <= late["prediction_time"].min() <= day(111)


def test_an_option_that_matches_no_code_is_an_error(tmp_path):
    root = write(tmp_path, everybody(one_stay, n=3))
    for options, message in (
        ({"admission_codes": ("ADMIT",)}, "admission_codes names 'ADMIT', which .* HOSPITAL_ADMISSION"),
        ({"discharge_codes": ("HOSPITAL_DISCHARGE", "LEAVE")}, "discharge_codes names 'LEAVE', which no code"),
        ({"transfer_codes": ("MOVE",)}, "config.labels.transfer_codes"),
        ({"followup_end_codes": ("GONE",)}, "config.labels.followup_end_codes"),
        ({"followup_start_codes": ("COME",)}, "config.labels.followup_start_codes"),
        ({"diagnosis_groups": {"mi": ("ICD10CM/I21",)}}, r"config.labels.diagnosis_groups.mi names 'ICD10CM/I21'"),
    ):
        with pytest.raises(ValueError, match=message):
            labels_of(root, tmp_path / "run", **options)
    with pytest.raises(FileNotFoundError, match=r"config.labels.followup_file: there is no table nowhere.csv"):
        labels_of(root, tmp_path / "run", make=False, followup_file="nowhere.csv").check()


# ----------------------------------------------------------------------------------------------- identity, design
def test_labels_depend_on_the_seed_of_the_data_and_the_follow_up_file_by_content(tmp_path):
    root = write(tmp_path, everybody(one_stay, n=6))

    def digest(**options):
        return labels_of(root, tmp_path / "run", make=False, **options).groups["hospitalization"].digest

    assert digest() == digest(seeds=(3, 4)) == digest(death=True), "no seed of a model, no other task"
    assert digest() == digest(diagnosis_groups={"mi": ("ICD10CM/I21",)})
    assert len({digest(), digest(composite=True), digest(stay_gap_hours=1.0), digest(followup="extraction_date")}) == 4
    one, same, other = (tmp_path / f"{name}.csv" for name in ("one", "same", "other"))
    for path, end in ((one, "2017-01-01"), (same, "2017-01-01"), (other, "2017-01-02")):
        path.write_text(f"subject_id,end\n1,{end}T00:00:00\n")
    assert digest(followup_file=str(one)) == digest(followup_file=str(same)) != digest(followup_file=str(other))
    assert digest(followup_file=str(one)) != digest()


def test_the_design_says_how_a_table_was_made(tmp_path):
    root = write(tmp_path, everybody(lambda k: [*one_stay(k), (300, MI), (350, meds.DEATH_CODE)][: 4 if k % 2 else 3]))
    labels = labels_of(root, tmp_path / "run", death=True, diagnosis_groups={"mi": ("ICD10CM/I21",)})
    designs = {}
    for task in ("hospitalization_30d", "time_to_hospitalization", "death_90d", "onset_mi_30d"):
        designs[task] = labels.design(task)
        assert tuple(designs[task]) == task_design.PARTS
        assert all(isinstance(text, str) and text.endswith(".") for text in designs[task].values())
    assert designs["hospitalization_30d"] == designs["time_to_hospitalization"]
    assert designs["death_90d"]["competing_events"] == "None." and "ICD10CM/I21" in designs["onset_mi_30d"]["outcome"]
    assert "the code of the end of follow-up (FOLLOWUP_END) (60 people)" in designs["death_90d"]["follow_up"]
    assert (labels.groups["death"].folder / DESIGN).is_file() and labels.design("nothing") is None


# ----------------------------------------------------------------------------------------------- MIMIC-IV demo
KIDNEY = ("DIAGNOSIS//ICD//9//584", "DIAGNOSIS//ICD//10//N17")


@pytest.fixture(scope="module")
def mimic(shared_data, tmp_path_factory):
    root = shared_data("mimic4_demo_meds")
    labels = labels_of(
        root, tmp_path_factory.mktemp("mimic"), death=True, horizons_days=(30, 90, 365), per_subject=2,
        min_history_days=180.0, diagnosis_groups={"kidney": KIDNEY},
    )  # fmt: skip
    raw = pl.concat([meds.read_shard(p) for p in meds.list_shards(root)])
    timed = raw.filter(pl.col("time").is_not_null() & (pl.col("code") != "MEDS_BIRTH"))
    counts = date_only.add_up(date_only.count(p, 1000) for p in meds.list_shards(root))
    only = date_only.names(date_only.decide(counts, config_lib.parse(config_lib.base()).prepare))
    at_midnight = (pl.col("time").dt.truncate("1d") == pl.col("time")) & pl.col("code").is_in(only.to_list())
    end_of_day = pl.col("time") + pl.duration(days=1) - pl.duration(microseconds=1)
    return labels, timed.with_columns(time=pl.when(at_midnight).then(end_of_day).otherwise("time"))


def new_admissions(events):
    """Admissions of people who are in no stay, and left the last one more than a day before: joins, no scan."""
    admitted = events.filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION//")).select("subject_id", a="time")
    left = events.filter(pl.col("code").str.starts_with("HOSPITAL_DISCHARGE//")).select("subject_id", d="time")
    earlier = admitted.join(admitted.rename({"a": "previous"}), on="subject_id")
    earlier = earlier.filter(pl.col("previous") < pl.col("a"))
    earlier = earlier.group_by("subject_id", "a").agg(pl.col("previous").max())
    closed = admitted.join(left, on="subject_id").filter(pl.col("d") <= pl.col("a"))
    closed = closed.group_by("subject_id", "a").agg(pl.col("d").max())
    joined = admitted.join(earlier, on=["subject_id", "a"], how="left").join(closed, on=["subject_id", "a"], how="left")
    between = (pl.col("d") >= pl.col("previous")) & (pl.col("a") - pl.col("d") > timedelta(days=1))
    return joined.filter(pl.col("previous").is_null() | between).select("subject_id", event="a")


def oracle(events, index, event, days, dying=False):
    """{(subject, time): label} by joins over all pairs of predictions and events."""
    ends = events.group_by("subject_id").agg(end=pl.col("time").max())
    deaths = events.filter(pl.col("code") == "MEDS_DEATH").group_by("subject_id").agg(death=pl.col("time").min())
    rows = index.join(ends, on="subject_id").join(deaths, on="subject_id", how="left")
    until = pl.min_horizontal(pl.col("prediction_time") + timedelta(days=days), "end", "death")
    pairs = rows.join(event, on="subject_id").filter(
        (pl.col("event") > pl.col("prediction_time")) & (pl.col("event") <= until)
    )
    hit = pairs.select("subject_id", "prediction_time").unique().with_columns(hit=True)
    rows = rows.join(hit, on=["subject_id", "prediction_time"], how="left").with_columns(pl.col("hit").fill_null(False))
    whole = pl.col("end") >= pl.col("prediction_time") + timedelta(days=days)
    free = whole if dying else whole | pl.col("death").is_not_null()
    kept = rows.filter(pl.col("hit") | free)
    return {(s, t): y for s, t, y in kept.select("subject_id", "prediction_time", "hit").iter_rows()}


@pytest.mark.parametrize("group", ["hospitalization", "death", "onset_kidney"])
def test_mimic_labels_are_those_of_an_independent_query(mimic, group):
    labels, events = mimic
    index = labels.table(f"time_to_{group}").select("subject_id", "prediction_time")
    kidney = events.filter(pl.any_horizontal(pl.col("code").str.starts_with(c) for c in KIDNEY))
    of_group = {
        "hospitalization": new_admissions(events),
        "death": events.filter(pl.col("code") == "MEDS_DEATH").select("subject_id", event="time"),
        "onset_kidney": kidney.select("subject_id", event="time"),
    }[group]
    n_positive = []
    for days in (30, 90, 365):
        table = labels.table(f"{group}_{days}d")
        expected = oracle(events, index, of_group, days, dying=group == "death")
        assert {(s, t): y for s, t, y in table.iter_rows()} == expected
        n_positive.append(sum(expected.values()))
    assert n_positive[-1] > 9 and len(expected) - n_positive[-1] > 9, "both classes are there"
    if group == "onset_kidney":
        every = labels.table("time_to_hospitalization").select("subject_id", "prediction_time")
        first = kidney.group_by("subject_id").agg(first=pl.col("time").min())
        at_risk = every.join(first, on="subject_id", how="left").filter(
            pl.col("first").is_null() | (pl.col("first") > pl.col("prediction_time"))
        )
        assert at_risk.select("subject_id", "prediction_time").equals(index)


def test_mimic_prediction_times_are_those_of_people_and_not_of_the_calendar(mimic):
    labels, events = mimic
    index = labels.table("time_to_hospitalization").select("subject_id", "prediction_time")
    # a global limit leaves 15 times of 11 people
    assert index.height == 106 and index["subject_id"].n_unique() == 54
    admitted = events.filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION//")).select("subject_id", a="time")
    left = events.filter(pl.col("code").str.starts_with("HOSPITAL_DISCHARGE//")).select("subject_id", d="time")
    nearest = (
        index.join(admitted, on="subject_id").filter(pl.col("a") <= pl.col("prediction_time"))
        .group_by("subject_id", "prediction_time").agg(pl.col("a").max())
        .join(left, on="subject_id").filter(pl.col("d") >= pl.col("a"))
        .group_by("subject_id", "prediction_time").agg(pl.col("d").min())
    )  # fmt: skip
    assert nearest.height > 50 and (nearest["d"] <= nearest["prediction_time"]).all(), "nobody is in hospital"
    found = steps(labels)
    assert found["admissions that begin a stay"]["n"] == 271
    assert "shifted per person" in found["people with days to draw prediction times from"]["reason"]
