"""Stamps mean what Python's own zones say they mean; what is ambiguous or impossible is told."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrwear_jax.data.sources.csv_import.clock import Clock, parse

EPOCH = datetime(1970, 1, 1)


def read(stamps, clock):
    """[(time, offset)], None where it cannot be read."""
    frame = parse(stamps if isinstance(stamps, pl.Series) else pl.Series(stamps), clock)
    return [
        None if us is None else (EPOCH + timedelta(microseconds=us), offset)
        for us, offset in frame.select("time", "offset").iter_rows()
    ]


@given(
    st.datetimes(datetime(1980, 1, 1), datetime(2035, 1, 1)),
    st.sampled_from(["Europe/London", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "UTC"]),
    st.sampled_from(["local", "offset", "epoch_us", "utc"]),
)
def test_times_are_those_of_the_time_zone_database(moment, zone, kind):
    there = moment.replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
    if kind == "local" and there.fold:
        there, moment = there.replace(fold=0), there.replace(fold=0).astimezone(UTC).replace(tzinfo=None)
    minutes = there.utcoffset() // timedelta(minutes=1)
    stamp, clock = {
        "local": (there.replace(tzinfo=None).isoformat(), Clock(timezone=zone)),
        "offset": (there.isoformat(sep=" "), Clock()),
        "epoch_us": (str((moment - EPOCH) // timedelta(microseconds=1)), Clock("epoch_us", zone)),
        "utc": (moment.isoformat() + "Z", Clock(timezone=zone)),
    }[kind]
    assert read([stamp], clock) == [(moment, minutes)]


def test_stamps_of_the_place_without_a_zone_stay_as_they_are():
    stamps = ["2016-04-12", "2016-04-12 07:21", "2016-04-12T07:21:00.5", "12-04-2016", "2016-02-30", None]
    day = datetime(2016, 4, 12)
    assert read(stamps, Clock()) == [
        (day, None),
        (day + timedelta(hours=7, minutes=21), None),
        (day + timedelta(hours=7, minutes=21, seconds=0.5), None),
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("form", "stamp"),
    [
        ("%m/%d/%Y %I:%M:%S %p", "4/12/2016 7:21:00 AM"),
        ("%d-%m-%Y %H:%M", "12-04-2016 07:21"),
        ("%d/%m/%Y %H:%M %z", "12/04/2016 08:21 +0100"),
        ("epoch_s", "1460445660.0"),
        ("epoch_ms", "1460445660000"),
        ("epoch_ns", "1460445660000000000"),
    ],
)
def test_formats(form, stamp):
    [(time, offset)] = read([stamp], Clock(form, utc_offset_minutes=None if "%" in form else 120))
    assert time == datetime(2016, 4, 12, 7, 21) and offset == (60 if "%z" in form else None if "%" in form else 120)


def test_epochs_and_elapsed_times_count_from_a_start():
    start = "2020-10-24T23:30:00"  # the night in which London's clock is set back
    clock = Clock("epoch_ms", "Europe/London", start=start)
    assert read([0, 10_800_000], clock) == [(datetime(2020, 10, 24, 22, 30), 60), (datetime(2020, 10, 25, 1, 30), 0)]
    assert read(["00:00:00", "30:00:01.5", "1:99"], Clock("elapsed", start=start)) == [
        (datetime(2020, 10, 24, 23, 30), None),
        (datetime(2020, 10, 26, 5, 30, 1, 500_000), None),
        None,
    ]


def test_a_time_that_the_clock_skips_is_told_but_a_day_begins_even_so():
    frame = parse(pl.Series(["2022-03-27 01:30", "2022-03-27 02:30", "nonsense"]), Clock(timezone="Europe/London"))
    assert frame["skipped"].to_list() == [True, False, False] and frame["time"].null_count() == 2
    # Brazil's clock went from midnight to one
    assert read(["2018-11-04"], Clock(timezone="America/Sao_Paulo")) == [(datetime(2018, 11, 4, 3), -120)]


def test_utc_of_a_place_that_is_not_known_is_told():
    assert parse(pl.Series(["2022-01-01T00:00:00Z"]), Clock())["placeless"].to_list() == [True]
    assert parse(pl.Series(["2022-01-01T00:00:00+00:00"]), Clock())["placeless"].to_list() == [False]
    assert parse(pl.Series([0]), Clock("epoch_s"))["placeless"].to_list() == [True]


def test_typed_columns():
    noon = pl.Series([datetime(2022, 7, 1, 12)])
    assert read(noon, Clock(timezone="Europe/London")) == [(datetime(2022, 7, 1, 11), 60)]
    assert read(noon.dt.replace_time_zone("UTC"), Clock(timezone="Europe/London")) == [(datetime(2022, 7, 1, 12), 60)]
    assert read(noon.dt.date(), Clock()) == [(datetime(2022, 7, 1), None)]


@pytest.mark.parametrize(
    ("clock", "words"),
    [
        (Clock(timezone="Europe/Atlantis"), "no IANA time zone"),
        (Clock(timezone="UTC", utc_offset_minutes=0), "both given"),
        (Clock("iso", start="2020-01-01"), "start goes with"),
        (Clock("epoch_s", start="yesterday"), "no ISO time"),
        (Clock("elapsed"), "need a start"),
        (Clock("dd.mm.yyyy"), "no strptime format"),
        (Clock("%d.%m.%Y"), ""),
    ],
)
def test_faults(clock, words):
    assert words in clock.fault() and bool(words) == bool(clock.fault())
