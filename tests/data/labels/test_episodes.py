"""Admissions and discharges become stays, by the documented rule."""

import numpy as np
import polars as pl
import pytest

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.labels import episodes, key_events

A, D, T = "admission", "discharge", "transfer"


def merged(rows, **rules):
    """[(start, end, is_new, is_closed) in days] and counts of [(day, kind)] of one person."""
    tables = [
        pl.DataFrame({"subject_id": 1, "time": [round(when * DAY_US) for when, of in rows if of == kind]},
                     {"subject_id": pl.Int64, "time": pl.Int64}).with_columns(pl.col("time").cast(pl.Datetime("us")))
        for kind in (A, D, T)
    ]  # fmt: skip
    stays, counts = episodes.merge(*tables, episodes.Rules(**rules))
    days = stays.with_columns(pl.col("start", "end") / DAY_US)
    return days.select("start", "end", "is_new", "is_closed").rows(), counts


@pytest.mark.parametrize(
    ("rows", "stays"),
    [
        ([(1, A), (4, D)], [(1, 4, True, True)]),
        ([(1, A), (4, D), (9, A), (9.5, D)], [(1, 4, True, True), (9, 9.5, True, True)]),
        ([(1, A), (4, D), (4.9, A), (9, D)], [(1, 9, True, True)]),  # to another hospital
        ([(1, A), (4, D), (5.1, A), (9, D)], [(1, 4, True, True), (5.1, 9, True, True)]),
        ([(1, A), (2, A), (4, D)], [(1, 4, True, True)]),  # to another ward
        ([(1, A), (2, A), (4, D), (4.5, D)], [(1, 4.5, True, True)]),  # overlapping records
        ([(1, A), (2, T), (4, D)], [(1, 4, True, True)]),
        ([(1, T), (2, A), (4, D)], [(1, 4, False, True)]),  # begins with a transfer
        ([(1, A), (1, T), (4, D)], [(1, 4, False, True)]),  # the row is both: a transfer
        ([(3, D), (5, A), (6, D)], [(5, 6, True, True)]),  # nothing to close
        ([(5, A), (5, D)], [(5, 5, True, True)]),
        ([(5, A)], [(5, 370, True, False)]),
        ([(5, A), (400, A), (401, D)], [(5, 370, True, False), (400, 401, True, True)]),  # a lost discharge
    ],
)
def test_rule(rows, stays):
    got, counts = merged(rows)
    assert got == stays
    assert counts["stays"] == len(stays) and counts["new"] == sum(new for *_, new, _ in stays)


def test_without_discharges_admissions_are_stays_of_no_length():
    rows = [(1, A), (1.5, A), (4, A)]
    assert merged(rows, discharge=())[0] == [(1, 1.5, True, True), (4, 4, True, True)]
    assert merged(rows, discharge=(), gap_hours=0.0)[1]["new"] == 3


def test_discharges_that_close_nothing_and_merged_admissions_are_counted():
    _, counts = merged([(0, D), (1, A), (2, A), (4, D), (9, D), (20, A)])
    assert counts == {"admissions": 3, "stays": 2, "new": 2, "open": 1, "orphans": 2}


def test_inside_is_from_admission_to_before_discharge():
    stays = pl.DataFrame([(1, 10, 20, True, True, 1), (1, 30, 40, True, True, 1), (2, 0, 5, True, True, 1)],
                         episodes.STAYS, orient="row")  # fmt: skip
    at = [(1, 9), (1, 10), (1, 19), (1, 20), (1, 35), (1, 99), (2, 4), (2, 12), (3, 1)]
    times = pl.DataFrame(at, {"subject_id": pl.Int64, "time": pl.Int64}, orient="row")
    assert episodes.inside(times, stays).tolist() == [
        False, True, True, False, True, False, True, False, False,
    ]  # fmt: skip


def test_stays_of_many_people_are_those_of_each_alone():
    rng = np.random.default_rng(0)
    kinds = rng.choice([A, D, T], 300, p=[0.45, 0.45, 0.1])
    rows = pl.DataFrame(
        {"subject_id": rng.integers(0, 20, 300), "time": rng.integers(0, 50 * DAY_US, 300), "of": kinds}
    )
    rows = rows.with_columns(pl.col("time").cast(pl.Datetime("us")))

    def stays(table):
        return episodes.merge(*(table.filter(pl.col("of") == kind) for kind in (A, D, T)), episodes.Rules())[0]

    alone = [stays(part) for _, part in sorted(rows.group_by("subject_id"), key=lambda x: x[0])]
    assert stays(rows).equals(pl.concat(alone)) and stays(rows).height > 40


def test_a_prefix_that_matches_nothing_names_the_option_and_the_nearest_codes():
    codes = pl.Series(["HOSPITAL_ADMISSION//EW", "HOSPITAL_DISCHARGE//HOME", "LAB//1"])
    key_events.require_codes(codes, "config.x", key_events.below("LAB"), ["LAB"])
    with pytest.raises(ValueError, match=r"config.x names 'HOSP_DISCHARGE', which no code .* HOSPITAL_DISCHARGE"):
        key_events.require_codes(codes, "config.x", key_events.below("HOSP_DISCHARGE"), ["HOSP_DISCHARGE"])
    with pytest.raises(ValueError, match="nearest are HOSPITAL_ADMISSION"):
        key_events.require_codes(codes, "config.x", key_events.below("ADMISSION"), ["ADMISSION"])
