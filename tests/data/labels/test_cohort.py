"""Eligibility against loops over people and prediction times, and that nothing after time zero decides it."""

import dataclasses
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ehrwear_jax.config.data import CohortConfig
from ehrwear_jax.data.labels import cohort

DAY = timedelta(days=1)
MIDDLE = datetime(2020, 6, 1)
PAPER = CohortConfig(
    min_ehr_days=365.0, min_wear_days=14, min_age_years=18.0, max_age_years=89.0, excluded_codes=("FLAG//",)
)
TIME = pl.Datetime("us")
PAIR = {"subject_id": pl.Int64, "time": TIME}


def make_people(n=300, seed=0):
    """(events [(subject, time, code)], window ends [(subject, time)], {subject: birth}, times [(subject, time)])."""
    rng = np.random.default_rng(seed)
    events, windows, births, times = [], [], {}, []
    for subject in range(n):
        birth = MIDDLE - float(rng.uniform(10, 100)) * 365.25 * DAY
        births[subject] = None if subject % 13 == 0 else birth.replace(hour=0, minute=0, second=0, microsecond=0)
        first = MIDDLE - float(rng.uniform(-100, 1500)) * DAY
        if subject % 17:
            gaps = np.cumsum(rng.exponential(60, rng.integers(1, 30)))
            events += [(subject, first + float(d) * DAY, "DX") for d in (0, *gaps)]
        start = MIDDLE - int(rng.integers(0, 40)) * DAY
        for day in range(int(rng.integers(0, 30)) if subject % 3 else 0):
            for part in range(int(rng.integers(0, 5))):
                windows.append((subject, start + day * DAY + (part + 1) * timedelta(hours=6)))
        if subject % 20 == 0:
            flag = None if subject % 40 else MIDDLE + float(rng.uniform(-100, 100)) * DAY
            events.append((subject, flag, "FLAG//x"))
        times += [(subject, MIDDLE + float(d) * DAY) for d in rng.uniform(-300, 300, 4)]
    return events, windows, births, times


def frame(rows, columns):
    return pl.DataFrame(rows, columns, orient="row")


def gather(events, windows, births, config):
    births = frame(list(births.items()), {"subject_id": pl.Int64, "birth_time": TIME})
    return cohort.gather([frame(events, PAIR | {"code": pl.String}).lazy()], [frame(windows, PAIR)], births, 6, config)


def table(times):
    return frame(times, {"subject_id": pl.Int64, "prediction_time": TIME})


def included(subject, at, events, windows, birth, config):
    """The criteria by hand, in their order: name of the first that fails, or None."""
    if any(c.startswith(config.excluded_codes) and (t is None or t <= at) for t, c in events if config.excluded_codes):
        return "flag"
    if config.min_ehr_days or config.max_gap_days:
        known = sorted({t for t, _ in events if t is not None and t <= at})
        begin = None
        if known and not (config.max_gap_days and (at - known[-1]) / DAY > config.max_gap_days):
            begin = known[-1]
            for earlier, later in zip(known[-2::-1], known[:0:-1], strict=True):
                if config.max_gap_days and (later - earlier) / DAY > config.max_gap_days:
                    break
                begin = earlier
        if begin is None or (at - begin) / DAY < config.min_ehr_days:
            return "ehr"
    days = {}
    for t in windows:
        if t <= at:
            days[(t - timedelta(hours=6)).date()] = days.get((t - timedelta(hours=6)).date(), 0) + 6
    if sum(h >= config.min_wear_hours for h in days.values()) < config.min_wear_days:
        return "wear"
    if config.min_age_years or config.max_age_years:
        if birth is None:
            return "age"
        age = at.year - birth.year - ((at.month, at.day) < (birth.month, birth.day))
        if age < config.min_age_years or (config.max_age_years and age > config.max_age_years):
            return "age"
    return None


@pytest.mark.parametrize("config", [
    PAPER,
    dataclasses.replace(PAPER, min_wear_days=3, min_wear_hours=6.0, min_ehr_days=30.0),
    dataclasses.replace(PAPER, max_gap_days=90.0, min_wear_days=0),
    CohortConfig(max_gap_days=30.0),
    CohortConfig(min_wear_days=1),
])  # fmt: skip
def test_criteria_are_those_of_a_loop_at_each_prediction_time_and_counts_reconcile(config):
    events, windows, births, times = make_people()
    kept, steps = cohort.select(table(times), gather(events, windows, births, config), config)
    mine = {s: ([], []) for s in births}
    for s, t, c in events:
        mine[s][0].append((t, c))
    for s, t in windows:
        mine[s][1].append(t)
    why = [included(s, t, *mine[s], births[s], config) for s, t in times]
    assert kept.rows() == [key for key, reason in zip(times, why, strict=True) if reason is None]
    assert 0 < kept.height < len(times)
    per_person = kept["subject_id"].value_counts()["count"]
    assert (per_person < 4).any(), "some people are in at some of their times only"
    of_times, of_people = steps[::2], steps[1::2]
    assert of_times[0]["n"] == len(times) and of_people[0]["n"] == len(births)
    assert of_times[-1]["n"] == kept.height and of_people[-1]["n"] == kept["subject_id"].n_unique()
    for rows in (of_times, of_people):
        for before, after in zip(rows[:-1], rows[1:], strict=True):
            assert before["n"] == after["n"] + after["dropped"]
    used = {
        "flag": config.excluded_codes,
        "ehr": config.min_ehr_days or config.max_gap_days,
        "wear": config.min_wear_days,
        "age": config.min_age_years or config.max_age_years,
    }
    assert [s["dropped"] for s in of_times[1:]] == [why.count(name) for name, use in used.items() if use]


def test_another_future_changes_nobodys_eligibility():
    config = dataclasses.replace(PAPER, max_gap_days=100.0, min_wear_days=3, min_ehr_days=60.0)
    events, windows, births, times = make_people()
    before = cohort.judge(table(times), gather(events, windows, births, config), config)
    rng = np.random.default_rng(1)
    for at in (MIDDLE - 100 * DAY, MIDDLE, MIDDLE + 200 * DAY):
        # all that lies later is gone, or much is added
        cut = [[r for r in rows if r[1] is None or r[1] <= at] for rows in (events, windows)]
        later = [(s, at + float(d) * DAY, "FLAG//x") for s in births for d in rng.uniform(0.01, 900, 20)]
        worn = [(s, t + 6 * timedelta(hours=k)) for s, t, _ in later for k in range(1, 5)]
        more = cut[0] + later, cut[1] + worn
        now = pl.col("prediction_time") <= at
        for changed in (cut, more):
            after = cohort.judge(table(times), gather(*changed, births, config), config)
            assert after.filter(now).equals(before.filter(now), null_equal=True)
            assert not after.equals(before, null_equal=True)


def test_eligibility_says_nothing_of_who_dies():
    """People observed for two years but for those who die, who are frail and wear as the others do."""
    rng = np.random.default_rng(0)
    n, start = 2000, datetime(2018, 1, 1)
    death = rng.exponential(900, n)
    end = np.minimum(death, 730)
    t0 = start + 200 * DAY
    alive = np.flatnonzero(end > 200)
    events = [(s, start + float(d) * DAY, "DX") for s in range(n) for d in np.arange(0, end[s], 20)]
    windows = [
        (s, start + int(d) * DAY + timedelta(hours=6 * k)) for s in range(n) for d in range(0, int(end[s]), 40)
        for k in range(1, 5)
    ]  # fmt: skip
    births = {s: datetime(2018 - 18 - int(rng.integers(0, 70)), 1, 1) for s in range(n)}
    config = CohortConfig(min_ehr_days=150.0, min_wear_days=3)
    evidence = gather(events, windows, births, config)
    kept, _ = cohort.select(table([(s, t0) for s in alive]), evidence, config)
    dies = {s for s in alive if death[s] <= 360}
    assert len(dies) > 150
    assert set(kept["subject_id"]) >= dies, "those who die soon meet the criteria as the others do"
    # the criteria of the paper where the record ends: who dies within 160 days of day 200 has not enough of it
    ends = table([(s, start + float(end[s]) * DAY) for s in alive])
    by_end, _ = cohort.select(ends, evidence, dataclasses.replace(config, min_ehr_days=365.0))
    assert not dies & set(by_end["subject_id"]), "the comparison can fail"
    y = np.array([s in dies for s in alive])
    assert roc_auc_score(y, [s in set(kept["subject_id"]) for s in alive]) == 0.5


def test_days_of_wear_are_counted_at_several_times_of_a_person():
    day = datetime(2020, 1, 1)
    ends = [day + timedelta(hours=h) for h in (6, 12, 18, 24, 30, 54, 60)]
    worn = frame([(1, t) for t in ends] + [(2, ends[0])], PAIR)
    at = [day + timedelta(hours=h) for h in (0, 6, 11.9, 12, 24, 54, 59, 60, 900)]
    until = frame([(1, t) for t in at] + [(2, at[-1])], {"subject_id": pl.Int64, "reference_time": TIME})
    got = cohort.wear_days(worn, 6, 12.0, until)
    assert got.filter(pl.col("subject_id") == 1)["wear_days"].to_list() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert got.filter(pl.col("subject_id") == 2)["wear_days"].to_list() == [0]
    # an hour of each window
    hours = worn.with_columns(worn_minutes=pl.lit(60, pl.Int16))
    assert cohort.wear_days(hours, 6, 4.0, until)["wear_days"].to_list() == [0] * 4 + [1] * 5 + [0]


def test_defaults_let_everybody_in():
    events, windows, births, times = make_people(50)
    kept, steps = cohort.select(table(times), gather(events, windows, births, CohortConfig()), CohortConfig())
    assert kept.equals(table(times)) and len(steps) == 2 and CohortConfig().is_open
    assert CohortConfig(cutoff="2020-01-01").is_open and not CohortConfig().selects_pretraining
    assert not PAPER.is_open and not CohortConfig(min_wear_days=1).is_open and PAPER.selects_pretraining
    assert not dataclasses.replace(PAPER, pretraining="everybody").selects_pretraining


def test_the_criteria_in_words():
    assert cohort.in_words(dataclasses.replace(PAPER, max_gap_days=90.0)) == (
        "At the prediction time, by what is known then: at least 365 days of EHR, at least 14 days with 12 hours of "
        "wear, no gap of more than 90 days in that EHR, an age of 18 to 89 years, no code of FLAG//."
    )
    assert cohort.in_words(CohortConfig(min_age_years=18.0)).endswith("then: an age of 18 or more years.")
    assert cohort.in_words(CohortConfig()) == "Every prediction time of the label table is in."


def test_a_day_of_wear_has_the_hours_that_were_worn():
    ends = [MIDDLE - k * DAY / 4 for k in range(20 * 4)]
    until = pl.DataFrame({"subject_id": [1, 2, 3], "reference_time": [MIDDLE] * 3})

    def days(minutes_of_window, min_hours):
        rows = [(s, end, m) for s, m in minutes_of_window.items() for end in ends]
        found = cohort.wear_days(frame(rows, PAIR | {"worn_minutes": pl.Int16}), 6, min_hours, until)
        return dict(found.select("subject_id", "wear_days").iter_rows())

    # four windows of 18 minutes are 72 minutes a day, and those of a device in a drawer none
    assert days({1: 18, 2: 180, 3: 0}, 12.0) == {1: 0, 2: 20, 3: 0}
    assert days({1: 18, 2: 180, 3: 0}, 1.0) == {1: 20, 2: 20, 3: 0}
    assert days({1: 179, 2: 360}, 12.0) == {1: 0, 2: 20, 3: 0}
    assert days({1: 360}, 24.5) == {1: 0, 2: 0, 3: 0}


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="config.cohort.cutoff is 'June'"):
        CohortConfig(cutoff="June")
    with pytest.raises(ValueError, match="config.cohort.pretraining is 'nobody'"):
        CohortConfig(pretraining="nobody")
