"""Dates in two styles, and days that stand for something else."""

from datetime import date, datetime

import polars as pl
import pytest

from ehrwear_jax.data.sources.ukb import special_dates

LATEST = date(2023, 1, 1)
BIRTH = date(1950, 6, 15)
BOTH = (
    ("2001-02-03", date(2001, 2, 3), None),
    ("03/02/2001", date(2001, 2, 3), None),
    ("2001-02-03T10:00:00", date(2001, 2, 3), None),
    ("1902-02-02", BIRTH, None),
    ("02/02/1902", BIRTH, None),
    ("03/03/1903", date(1950, 12, 31), None),
    ("1950-06-02", BIRTH, None),  # in the month of birth, whose day is not known
    ("1950-05-31", None, "before birth"),
    ("01/01/1901", None, "special date: before birth"),
    ("1900-01-01", None, "special date: unknown"),
    ("1904-04-04", None, "special date: unknown"),
    ("1910-10-10", None, "special date: unknown"),
    ("1909-09-09", None, "special date: in the future"),
    ("07/07/2037", None, "special date: in the future"),
    ("2024-01-01", date(2024, 1, 1), "in the future"),
    ("13/13/2001", None, "unreadable date"),
    ("yesterday", None, "unreadable date"),
    (None, None, "no date"),
)


@pytest.mark.parametrize(("text", "day", "reason"), BOTH)
def test_a_date(text, day, reason):
    rows = pl.DataFrame({"text": [text], "birth": [BIRTH]}, schema={"text": pl.String, "birth": pl.Date})
    found = rows.select(special_dates.resolved("text").alias("day"), special_dates.fault("text", LATEST).alias("why"))
    assert found.row(0) == (day, reason)


def test_what_stands_for_an_unknown_birth_is_no_date():
    rows = pl.DataFrame({"text": ["1902-02-02", "2001-02-03"], "birth": [None, None]},
                        schema={"text": pl.String, "birth": pl.Date})  # fmt: skip
    assert rows.select(special_dates.resolved("text")).to_series().to_list() == [None, date(2001, 2, 3)]
    reasons = rows.select(special_dates.fault("text", LATEST)).to_series().to_list()
    assert reasons == ["special date: birth, which is unknown", None]


def test_a_day_is_known_at_its_end():
    rows = pl.DataFrame({"day": [date(2001, 2, 3)]}).select(special_dates.day_end("day"))
    assert rows["time"][0] == datetime(2001, 2, 3, 23, 59, 59, 999_999)


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("July", 7), ("december", 12), ("7.0", 7), ("x", None)])
def test_months(text, number):
    assert pl.DataFrame({"m": [text]}).select(special_dates.month_number("m")).item() == number
