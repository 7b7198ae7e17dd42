"""Who is in: inclusion criteria with a count at each step, as a CONSORT diagram has them (paper, section A.2)."""

from datetime import datetime

import polars as pl


def wear_days(window_times, window_hours, min_hours, until):
    """Days of usable wear of each person up to a time.

    Args:
      window_times: subject_id, time: the ends of usable windows.
      window_hours: length of a window. min_hours: usable hours that make a day.
      until: subject_id, reference_time.

    Returns:
      DataFrame: subject_id, wear_days u32.
    """
    seen = window_times.join(until, on="subject_id").filter(pl.col("time") <= pl.col("reference_time"))
    # a window belongs to the day in which it began
    day = (pl.col("time") - pl.duration(microseconds=int(window_hours * 3.6e9))).dt.truncate("1d").alias("day")
    per_day = seen.group_by("subject_id", day).agg((pl.len() * window_hours).alias("hours"))
    usable = per_day.filter(pl.col("hours") >= min_hours)
    return usable.group_by("subject_id").agg(pl.len().alias("wear_days"))


def select(people, window_times, flagged, window_hours, config):
    """Applies the criteria in order.

    Args:
      people: subject_id, first_time (of the first EHR event), end_time (of the record), birth_time; times may be null.
      window_times: subject_id, time, see wear_days.
      flagged: subject_id, time: events with an excluded code.
      config: CohortConfig.

    Returns:
      (subject ids that are in, steps [{step, n, dropped, reason}]): n and dropped of a step make the n before it.

    Raises:
      ValueError: the cutoff is no date.
    """
    try:
        cutoff = datetime.fromisoformat(config.cutoff) if config.cutoff else None
    except ValueError:
        raise ValueError(f"config.cohort.cutoff is {config.cutoff!r}, which is no ISO date") from None
    reference = pl.lit(cutoff, pl.Datetime("us")) if cutoff else pl.col("end_time")
    people = people.with_columns(reference.cast(pl.Datetime("us")).alias("reference_time"))
    until = people.select("subject_id", "reference_time")
    days = wear_days(window_times, window_hours, config.min_wear_hours, until)
    bad = flagged.join(until, on="subject_id").filter(
        pl.col("time").is_null() | (pl.col("time") <= pl.col("reference_time"))
    )
    people = people.join(days, on="subject_id", how="left").with_columns(
        pl.col("wear_days").fill_null(0),
        ((pl.col("reference_time") - pl.col("first_time")).dt.total_microseconds() / 8.64e10).alias("ehr_days"),
        pl.col("subject_id").is_in(bad["subject_id"].implode()).alias("is_flagged"),
        _years(pl.col("birth_time"), pl.col("reference_time")).alias("age"),
    )
    age = pl.lit(True)
    if config.min_age_years:
        age &= pl.col("age") >= config.min_age_years
    if config.max_age_years:
        age &= pl.col("age") <= config.max_age_years
    limits = f"from {config.min_age_years:g}" + (f" to {config.max_age_years:g}" if config.max_age_years else "")
    steps = [{"step": "people", "n": people.height, "dropped": 0, "reason": ""}]
    for step, use, criterion, reason in (
        ("without a flag of bad data", config.excluded_codes, ~pl.col("is_flagged"), "a code that excludes"),
        (
            "with enough EHR history",
            config.min_ehr_days,
            pl.col("ehr_days") >= config.min_ehr_days,
            f"less than {config.min_ehr_days:g} days of EHR before the reference time",
        ),
        (
            "with enough wear",
            config.min_wear_days,
            pl.col("wear_days") >= config.min_wear_days,
            f"fewer than {config.min_wear_days} days of at least {config.min_wear_hours:g} usable hours",
        ),
        (
            "of the right age",
            config.min_age_years or config.max_age_years,
            age,
            f"age unknown or not {limits} years",
        ),
    ):
        if not use:
            continue
        kept = people.filter(criterion.fill_null(False))
        steps.append(
            {"step": f"people {step}", "n": kept.height, "dropped": people.height - kept.height, "reason": reason}
        )
        people = kept
    return people["subject_id"].sort(), steps


def _years(birth, time):
    """Completed years from birth to time."""
    months = 12 * (time.dt.year() - birth.dt.year()) + (time.dt.month().cast(pl.Int32) - birth.dt.month())
    return (months - (time.dt.day() < birth.dt.day()).cast(pl.Int32)).floordiv(12)
