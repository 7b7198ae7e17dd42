"""Derives ages from birth dates, and tells all ages above a limit as the limit (config.prepare.max_age_years).

The limit acts on the age at the time that is asked for, as in the HIPAA Safe Harbor rule, which aggregates ages above
89 (45 CFR 164.514(b)(2)(i)(C)). To forget the birth date of those whose record goes on beyond the limit, instead, would
tell a model who lives to see it.
"""

import numpy as np
import polars as pl

from ehrwear_jax.data.formats.times import DAY_US, YEAR_DAYS

LIMIT = "max_age_years"  # column of subjects.parquet beside birth_time; null: none
_YEAR_US = YEAR_DAYS * DAY_US


def years(birth: pl.Expr, time: pl.Expr, limit: pl.Expr) -> pl.Expr:
    """Age in years, f64, null without a birth date.

    Args:
      birth, time: Datetime. limit: highest age that is told; null: none.
    """
    age = (time - birth).dt.total_microseconds() / _YEAR_US
    return pl.when(age > limit.fill_null(float("inf"))).then(limit.cast(pl.Float64)).otherwise(age)


def whole_days(days_N: np.ndarray, limit_years: float | None) -> np.ndarray:
    """Whole days of age, of which those above the limit are the limit's; None: no limit.

    The fraction of a day beside them stays: it is the time of the day and tells no age.
    """
    return days_N if limit_years is None else np.minimum(days_N, round(limit_years * YEAR_DAYS))


def of_the_old(birth: pl.Expr, first: pl.Expr, max_years: float) -> pl.Expr:
    """The birth date to be kept: of those who are above the limit at their first record, one of exactly that age.

    It depends on the past of every prediction time alone, and the age from it is at least the limit from the first
    record on, as the true one is.

    Args:
      birth, first: Datetime; null where unknown.
    """
    at_limit = first.dt.truncate("1d").dt.offset_by(f"-{round(max_years * 12)}mo")
    return pl.when((birth < at_limit).fill_null(False)).then(at_limit).otherwise(birth)
