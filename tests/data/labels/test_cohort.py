"""Inclusion criteria against loops over people."""

import dataclasses
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrwear_jax.config.data import CohortConfig
from ehrwear_jax.data.labels import cohort

DAY = timedelta(days=1)
CUTOFF = datetime(2020, 6, 1)
PAPER = CohortConfig("2020-06-01", 365.0, 14, 12.0, 18.0, 89.0, ("FLAG//",))


def make_people(n=400, seed=0):
    """(people, windows, flagged): random records around the cutoff, some without birth date, EHR or wear."""
    rng = np.random.default_rng(seed)
    people, windows, flagged = [], [], []
    for subject in range(n):
        birth = CUTOFF - float(rng.uniform(10, 100)) * 365.25 * DAY
        first = CUTOFF - float(rng.uniform(-100, 1500)) * DAY
        end = first + float(rng.uniform(0, 2000)) * DAY
        birth = None if subject % 13 == 0 else birth.replace(hour=0, minute=0, second=0, microsecond=0)
        people.append((subject, None if subject % 17 == 0 else first, end, birth))
        start = CUTOFF - int(rng.integers(0, 40)) * DAY
        for day in range(int(rng.integers(0, 30)) if subject % 3 else 0):
            for part in range(int(rng.integers(0, 5))):
                end, worn = start + day * DAY + (part + 1) * timedelta(hours=6), int(rng.integers(180, 361))
                windows.append((subject, end, worn))
        if subject % 20 == 0:
            flagged.append((subject, None if subject % 40 else CUTOFF + float(rng.uniform(-100, 100)) * DAY))
    time = pl.Datetime("us")
    columns = {"subject_id": pl.Int64, "first_time": time, "end_time": time, "birth_time": time}
    pair = {"subject_id": pl.Int64, "time": time}
    return (
        pl.DataFrame(people, columns, orient="row"),
        pl.DataFrame(windows, pair | {"worn_minutes": pl.Int16}, orient="row"),
        pl.DataFrame(flagged, pair, orient="row"),
    )


def included(person, windows, flagged, config):
    """The criteria by hand, in their order: name of the first that fails, or None."""
    subject, first, end, birth = person
    at = CUTOFF if config.cutoff else end
    if config.excluded_codes and any(s == subject and (t is None or t <= at) for s, t in flagged):
        return "flag"
    if config.min_ehr_days and (first is None or (at - first) / DAY < config.min_ehr_days):
        return "ehr"
    days = {}
    for s, t, minutes in windows:
        if s == subject and t <= at:
            days[(t - timedelta(hours=6)).date()] = days.get((t - timedelta(hours=6)).date(), 0) + minutes / 60
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
    dataclasses.replace(PAPER, cutoff="", min_age_years=0.0),
    CohortConfig(min_wear_days=1),
])  # fmt: skip
def test_criteria_are_those_of_a_loop_and_counts_reconcile(config):
    people, windows, flagged = make_people()
    ids, steps = cohort.select(people, windows, flagged, 6, config)
    why = {p[0]: included(p, windows.rows(), flagged.rows(), config) for p in people.rows()}
    assert ids.to_list() == sorted(s for s, reason in why.items() if reason is None)
    assert 0 < len(ids) < people.height
    assert steps[0]["n"] == people.height and steps[-1]["n"] == len(ids)
    for before, after in zip(steps[:-1], steps[1:], strict=True):
        assert before["n"] == after["n"] + after["dropped"]
    order = ["flag", "ehr", "wear", "age"]
    used = [
        config.excluded_codes,
        config.min_ehr_days,
        config.min_wear_days,
        config.min_age_years or config.max_age_years,
    ]
    want = [sum(r == name for r in why.values()) for name, use in zip(order, used, strict=True) if use]
    assert [s["dropped"] for s in steps[1:]] == want


def test_what_comes_after_the_reference_time_decides_nothing():
    people, windows, flagged = make_people()
    later = pl.DataFrame(
        [(s, CUTOFF + k * DAY / 4, 360) for s in range(400) for k in range(1, 120)], windows.schema, orient="row"
    )
    more = pl.concat([windows, later])
    config = dataclasses.replace(PAPER, excluded_codes=())
    assert cohort.select(people, more, flagged, 6, config)[0].equals(
        cohort.select(people, windows, flagged, 6, config)[0]
    )
    assert len(cohort.select(people, more, flagged, 6, dataclasses.replace(config, cutoff=""))[0]) > 0


def test_defaults_let_everybody_in():
    people, windows, flagged = make_people(50)
    ids, steps = cohort.select(people, windows, flagged, 6, CohortConfig())
    assert len(ids) == 50 and len(steps) == 1 and CohortConfig().is_open
    assert not PAPER.is_open and not CohortConfig(min_wear_days=1).is_open


def test_a_cutoff_that_is_no_date_is_named():
    with pytest.raises(ValueError, match="config.cohort.cutoff is 'June'"):
        cohort.select(*make_people(5), 6, CohortConfig(cutoff="June"))


def test_a_day_of_wear_has_the_hours_that_were_worn():
    ends = [CUTOFF - k * DAY / 4 for k in range(20 * 4)]
    until = pl.DataFrame({"subject_id": [1, 2, 3], "reference_time": [CUTOFF] * 3})

    def days(minutes_of_window, min_hours):
        rows = [(s, end, m) for s, m in minutes_of_window.items() for end in ends]
        schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "worn_minutes": pl.Int16}
        found = cohort.wear_days(pl.DataFrame(rows, schema, orient="row"), 6, min_hours, until)
        return dict(found.iter_rows())

    # four windows of 18 minutes are 72 minutes a day, and those of a device in a drawer none
    assert days({1: 18, 2: 180, 3: 0}, 12.0) == {2: 20}
    assert days({1: 18, 2: 180, 3: 0}, 1.0) == {1: 20, 2: 20}
    assert days({1: 179, 2: 360}, 12.0) == {2: 20}
    assert days({1: 360}, 24.5) == {}
