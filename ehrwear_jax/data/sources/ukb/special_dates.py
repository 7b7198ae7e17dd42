"""Reads dates of UK Biobank: two styles, and days that stand for something else.

Bulk files write dd/mm/yyyy, exports of the platform ISO dates, perhaps with a time. Some days are no days: to protect
people, a record before, on or in the year of birth has a special one, and so has one in the future (data codings 819
and 272 of the Showcase). A birth is known to the month; it is taken to be on the 15th.

| day | is taken for |
| :--- | :--- |
| 1900-01-01, 1904-04-04, 1910-10-10 | no date: dropped |
| 1901-01-01 | before birth: dropped |
| 1902-02-02 | the date of birth |
| 1903-03-03 | later in the year of birth: its last day, when it was known at the latest |
| 1909-09-09, 2037-07-07 | in the future, a default of the system: dropped |

Everything is known at the end of its day, at the last microsecond.
"""

import calendar
from datetime import date

import polars as pl

from ehrwear_jax.data.formats.times import DAY_US

UNKNOWN = (date(1900, 1, 1), date(1904, 4, 4), date(1910, 10, 10))
BEFORE_BIRTH = date(1901, 1, 1)
AT_BIRTH = date(1902, 2, 2)
IN_YEAR_OF_BIRTH = date(1903, 3, 3)
FUTURE = (date(1909, 9, 9), date(2037, 7, 7))
SPECIAL = (*UNKNOWN, BEFORE_BIRTH, AT_BIRTH, IN_YEAR_OF_BIRTH, *FUTURE)
_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_name) if name}


def parsed(column: str) -> pl.Expr:
    """Date of a column of text in either style; null where it is neither."""
    day = pl.col(column).str.strip_chars().str.head(10)
    return pl.coalesce(day.str.to_date("%d/%m/%Y", strict=False), day.str.to_date("%Y-%m-%d", strict=False))


def resolved(column: str) -> pl.Expr:
    """Date that a column of text stands for, with the column `birth` (Date) beside it; null where there is none.

    A day before the birth, but in its month, is that of birth: the day of birth is not known.
    """
    day, birth = parsed(column), pl.col("birth")
    none = day.is_null() | day.is_in(SPECIAL) | (day < birth.dt.month_start())
    return (
        pl.when(day == AT_BIRTH).then(birth)
        .when(day == IN_YEAR_OF_BIRTH).then(pl.date(birth.dt.year(), 12, 31))
        .when(none).then(None)
        .otherwise(pl.max_horizontal(day, birth))
    )  # fmt: skip


def fault(column: str, latest: date) -> pl.Expr:
    """Why `resolved` is no date of use, null where it is: rows are dropped for it.

    Args:
      latest: the last day on which anything can have been recorded.
    """
    day = parsed(column)
    at_birth = day.is_in([AT_BIRTH, IN_YEAR_OF_BIRTH])
    return (
        pl.when(pl.col(column).is_null()).then(pl.lit("no date"))
        .when(day.is_null()).then(pl.lit("unreadable date"))
        .when(day.is_in(UNKNOWN)).then(pl.lit("special date: unknown"))
        .when(day == BEFORE_BIRTH).then(pl.lit("special date: before birth"))
        .when(day.is_in(FUTURE)).then(pl.lit("special date: in the future"))
        .when(at_birth & pl.col("birth").is_null()).then(pl.lit("special date: birth, which is unknown"))
        .when(~at_birth & (day < pl.col("birth").dt.month_start())).then(pl.lit("before birth"))
        .when(day > latest).then(pl.lit("in the future"))
    )  # fmt: skip


def day_end(column: str) -> pl.Expr:
    """Datetime: the last microsecond of a column of dates."""
    return (pl.col(column).cast(pl.Datetime("us")) + pl.duration(microseconds=DAY_US - 1)).alias("time")


def month_number(column: str) -> pl.Expr:
    """1 to 12 of a month as number or English name, as exports with labels write it."""
    text = pl.col(column).str.strip_chars().str.to_lowercase()
    return pl.coalesce(text.replace_strict(_MONTHS, default=None), text.cast(pl.Float64, strict=False)).cast(pl.Int8)
