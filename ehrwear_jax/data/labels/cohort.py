"""Applies the inclusion criteria of the cohort, with a count at each step as in a CONSORT diagram (paper, A.2)."""

from datetime import datetime

import polars as pl

from ehrwear_jax.config.data import CohortConfig
from ehrwear_jax.data.formats.times import DAY_US, HOUR_US


def wear_days(window_times: pl.DataFrame, window_hours: float, min_hours: float, until: pl.DataFrame) -> pl.DataFrame:
    """Days of usable wear of each person up to a time.

    Args:
      window_times: subject_id, time, worn_minutes: the ends of windows, and how much of each the device was worn.
      window_hours: length of a window.
      min_hours: hours of wear that make a day.
      until: subject_id, reference_time.

    Returns:
      subject_id, wear_days u32.
    """
    seen = window_times.join(until, on="subject_id").filter(pl.col("time") <= pl.col("reference_time"))
    # a window belongs to the day in which it began
    day = (pl.col("time") - pl.duration(microseconds=int(window_hours * HOUR_US))).dt.truncate("1d").alias("day")
    per_day = seen.group_by("subject_id", day).agg(pl.col("worn_minutes").cast(pl.Int64).sum().alias("minutes"))
    usable = per_day.filter(pl.col("minutes") >= 60 * min_hours)
    return usable.group_by("subject_id").agg(pl.len().alias("wear_days"))


def select(
    people: pl.DataFrame, window_times: pl.DataFrame, flagged: pl.DataFrame, window_hours: float, config: CohortConfig
) -> tuple[pl.Series, list[dict]]:
    """Applies the criteria in order.

    Args:
      people: subject_id, first_time (of the first EHR event), end_time (of the record), birth_time; times may be null.
      window_times: subject_id, time, worn_minutes, see wear_days.
      flagged: subject_id, time: events with an excluded code.
      window_hours: length of a window.
      config: the criteria.

    Returns:
      (subject ids that are in, steps [{step, n, dropped, reason}]): n and dropped of a step make the n before it.

    Raises:
      ValueError: the cutoff is no date.
    """
    people = _with_reference_time(people, config.cutoff)
    until = people.select("subject_id", "reference_time")
    days = wear_days(window_times, window_hours, config.min_wear_hours, until)
    bad = flagged.join(until, on="subject_id").filter(
        pl.col("time").is_null() | (pl.col("time") <= pl.col("reference_time"))
    )
    people = people.join(days, on="subject_id", how="left").with_columns(
        pl.col("wear_days").fill_null(0),
        ((pl.col("reference_time") - pl.col("first_time")).dt.total_microseconds() / DAY_US).alias("ehr_days"),
        pl.col("subject_id").is_in(bad["subject_id"].implode()).alias("is_flagged"),
        _years(pl.col("birth_time"), pl.col("reference_time")).alias("age"),
    )
    steps = [{"step": "people", "n": people.height, "dropped": 0, "reason": ""}]
    for step, in_use, criterion, reason in _criteria(config):
        if in_use:
            kept = people.filter(criterion.fill_null(False))
            dropped = people.height - kept.height
            steps.append({"step": f"people {step}", "n": kept.height, "dropped": dropped, "reason": reason})
            people = kept
    return people["subject_id"].sort(), steps


def _with_reference_time(people: pl.DataFrame, cutoff: str) -> pl.DataFrame:
    """The people with reference_time, at which eligibility is judged: the cutoff, or where the record ends."""
    try:
        date = datetime.fromisoformat(cutoff) if cutoff else None
    except ValueError:
        raise ValueError(f"config.cohort.cutoff is {cutoff!r}, which is no ISO date") from None
    reference = pl.lit(date, pl.Datetime("us")) if date else pl.col("end_time")
    return people.with_columns(reference.cast(pl.Datetime("us")).alias("reference_time"))


def _criteria(config: CohortConfig) -> tuple[tuple[str, bool, pl.Expr, str], ...]:
    """(step, whether it is in use, who stays, why the others do not) of each criterion, in their order."""
    age = pl.lit(True)
    if config.min_age_years:
        age &= pl.col("age") >= config.min_age_years
    if config.max_age_years:
        age &= pl.col("age") <= config.max_age_years
    limits = f"from {config.min_age_years:g}" + (f" to {config.max_age_years:g}" if config.max_age_years else "")
    return (
        (
            "without a flag of bad data",
            bool(config.excluded_codes),
            ~pl.col("is_flagged"),
            "a code that excludes",
        ),
        (
            "with enough EHR history",
            bool(config.min_ehr_days),
            pl.col("ehr_days") >= config.min_ehr_days,
            f"less than {config.min_ehr_days:g} days of EHR before the reference time",
        ),
        (
            "with enough wear",
            bool(config.min_wear_days),
            pl.col("wear_days") >= config.min_wear_days,
            f"fewer than {config.min_wear_days} days of at least {config.min_wear_hours:g} usable hours",
        ),
        (
            "of the right age",
            bool(config.min_age_years or config.max_age_years),
            age,
            f"age unknown or not {limits} years",
        ),
    )


def _years(birth: pl.Expr, time: pl.Expr) -> pl.Expr:
    """Completed years from birth to time."""
    months = 12 * (time.dt.year() - birth.dt.year()) + (time.dt.month().cast(pl.Int32) - birth.dt.month())
    return (months - (time.dt.day() < birth.dt.day()).cast(pl.Int32)).floordiv(12)
