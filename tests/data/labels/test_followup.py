"""Who was observed until when, and until which day prediction times are drawn."""

import dataclasses
from datetime import datetime, timedelta

import polars as pl
import pytest
from people_in_days import END, T0, day, write

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.labels import LabelsConfig
from ehrwear_jax.data.formats import meds, meds_checks
from ehrwear_jax.data.labels import followup, key_events

BOUNDS = meds_checks.TimeBounds()
CONFIG = LabelsConfig()
NOBODY = followup.Calendar(None)


def found(root, config=CONFIG, table=None, limits=NOBODY):
    """({subject: (day of the end, how it is known)}, {step: its counts})."""
    wanted = {
        "death": key_events.below(meds.DEATH_CODE),
        "followup_start": key_events.below(*config.followup_start_codes),
        "followup_end": key_events.below(*config.followup_end_codes),
    }
    events = key_events.read(key_events.Reading(root, BOUNDS), wanted, limits.limit)
    people, steps = followup.follow_up(events, table, limits, config)
    ends = {s: ((end - T0) / timedelta(days=1), known) for s, end, known in
            people.select("subject_id", "end", "known").iter_rows()}  # fmt: skip
    return ends, {s["step"]: s for s in steps}


def calendar(root, bounds, extraction_date, shifted, max_rows=2_000_000):
    """followup.calendar of a dataset."""
    found = [followup.person_days(path, bounds, max_rows) for path in meds.list_shards(root)]
    return followup.calendar(found, extraction_date, shifted)


PEOPLE = {
    0: [(0, "A"), (50, "A"), (90, END)],
    1: [(0, "A"), (60, "A")],
    2: [(0, "A"), (70, meds.DEATH_CODE)],
    3: [(0, "A"), (70, "A"), (800, "BOOKING")],
}


def test_codes_decide_then_the_last_record_and_guesses_are_counted(tmp_path):
    root = write(tmp_path, PEOPLE)
    ends, steps = found(root)
    assert ends == {0: (90, "by a code"), 1: (60, "guessed"), 2: (70, "by death"), 3: (800, "guessed")}
    assert steps["ends of follow-up that are guessed"]["n"] == 2
    assert "followup_file" in steps["ends of follow-up that are guessed"]["reason"]
    ends, _ = found(root, limits=followup.Calendar(day(100), None))
    assert ends[3] == (70, "guessed"), "a booked appointment is no record of being observed"
    other = dataclasses.replace(CONFIG, followup_end_codes=("BOOKING",))
    assert found(root, other)[0][3] == (800, "by a code") and found(root, other)[0][0] == (90, "guessed")


def test_the_day_of_extraction_bounds_everything_and_can_be_the_guess(tmp_path):
    root = write(tmp_path, PEOPLE)
    limits = followup.Calendar(day(80), day(85))
    whole = dataclasses.replace(CONFIG, followup="extraction_date")
    ends, _ = found(root, whole, limits=limits)
    assert ends == {0: (85, "by a code"), 1: (85, "guessed"), 2: (85, "by death"), 3: (85, "guessed")}
    with pytest.raises(ValueError, match="set config.prepare.extraction_date"):
        found(root, whole)


def test_a_table_decides_and_leaves_out_who_is_not_in_it(tmp_path):
    root = write(tmp_path, PEOPLE)
    path = tmp_path / "followup.csv"
    path.write_text("subject_id,start,end\n0,2016-01-11,2016-04-30T00:00:00\n2,,2016-12-31T00:00:00\n")
    table = followup.read_table(path)
    assert table.rows() == [(0, day(10), day(120)), (2, None, datetime(2016, 12, 31))]
    ends, steps = found(root, table=table)
    assert {s: how for s, (_, how) in ends.items()} == {0: "in the table", 2: "in the table"} and ends[0][0] == 120
    assert steps["people with a follow-up"]["dropped"] == 2


def test_a_table_of_the_dataset_is_found_and_a_given_one_comes_first(tmp_path):
    root = write(tmp_path, {0: [(0, "A")]})
    assert followup.find_table("", root) is None
    own = root / "metadata" / followup.TABLE
    pl.DataFrame({"subject_id": [0], "end": [day(5)]}).write_parquet(own)
    assert followup.find_table("", root) == own and followup.read_table(own)["start"].to_list() == [None]
    assert str(followup.find_table("mine.csv", root)) == "mine.csv"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"subject_id": [1, 1], "end": [day(1), day(2)]}, "row 0: subject 1 has more than one row"),
        ({"subject_id": [1], "start": [day(3)], "end": [day(2)]}, "row 0: subject 1 has an end that is not after"),
        ({"subject_id": [1], "start": [day(3)]}, "column 'end' is missing"),
        ({"subject_id": [1, 2], "end": [day(3), None]}, "row 1: .*'end'"),
    ],
)
def test_faulty_tables_are_named(tmp_path, columns, message):
    path = tmp_path / "t.parquet"
    pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(ValueError, match=message) as error:
        followup.read_table(path)
    assert str(path) in str(error.value)


# ------------------------------------------------------------------------------------------------------ the calendar
def observed(n=200, last=600):
    return {k: [(d, "A") for d in range(0, last, 30)] for k in range(n)}


def test_one_booked_appointment_does_not_move_the_limit(tmp_path):
    people = observed()
    usual = calendar(write(tmp_path / "a", people), BOUNDS, "", "auto").limit
    people[0] = [*people[0], (1000, "BOOKING")]
    booked = write(tmp_path / "b", people)
    limits = calendar(booked, BOUNDS, "", "auto")
    assert limits.limit == usual == day(571) and (limits.n_days, limits.n_after) == (4001, 1)
    assert calendar(booked, BOUNDS, "", "auto", max_rows=7) == limits, "the same in any pieces"
    assert max(meds.read_shard(p)["time"].max() for p in meds.list_shards(booked)) == day(1000)


def test_the_day_of_extraction_is_the_limit_where_it_comes_first(tmp_path):
    root = write(tmp_path, observed(20))
    limits = calendar(root, BOUNDS, "2016-12-31", "auto")
    assert limits.limit == limits.extracted == datetime(2017, 1, 1)
    late = calendar(root, BOUNDS, "2020-12-31", "auto")
    assert late.limit == day(571) and late.extracted == datetime(2021, 1, 1), "nobody has records so late"


def test_dates_shifted_per_person_are_detected(tmp_path):
    ahead = {k: [(40_000 + 400 * k, "A"), (40_300 + 400 * k, "A")] for k in range(30)}
    root = write(tmp_path / "ahead", ahead)
    limits = calendar(root, BOUNDS, "", "auto")
    assert limits.limit is None and "shifted per person" in limits.how
    spread = {k: [(-900 * k, "A"), (300 - 900 * k, "A")] for k in range(30)}  # last records of 74 years
    early = meds_checks.TimeBounds(first=datetime(1700, 1, 1))
    assert "spread over" in calendar(write(tmp_path / "spread", spread), early, "", "auto").how
    assert calendar(root, BOUNDS, "", "no").limit is not None
    assert calendar(write(tmp_path / "usual", observed(5)), BOUNDS, "", "yes").limit is None


def test_windows_of_shifted_dates_end_with_each_persons_follow_up(tmp_path):
    people = pl.DataFrame(
        {"subject_id": [1, 2], "start": [None, day(30)], "end": [day(500), day(700)], "first": [day(0), day(0)],
         "death": [day(400), None]},
        schema_overrides={"start": pl.Datetime("us"), "death": pl.Datetime("us")},
    )  # fmt: skip
    history = 10 * followup.DAY_US

    def days(limits):
        table = followup.windows(people, limits, 90, history, None).drop("subject_id").cast(pl.Datetime("us"))
        return [tuple((t - T0) / timedelta(days=1) for t in row) for row in table.iter_rows()]

    assert [(round(low), round(high), until) for low, high, until in days(NOBODY)] == [(10, 500, 400), (40, 700, 700)]
    assert days(followup.Calendar(day(300))) == [(10, 210, 400), (40, 210, 700)], "the same last day for everyone"


def test_mimic_demo_has_prediction_times_of_its_own_people(shared_data):
    limits = calendar(shared_data("mimic4_demo_meds"), BOUNDS, PrepareConfig().extraction_date, "auto")
    assert limits.limit is None
