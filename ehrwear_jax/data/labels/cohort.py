"""Judges who is eligible at a time, by what is known then, with counts as in a CONSORT diagram (paper, A.2).

Time zero is a prediction time or the cut-off of pretraining. Nothing later than it decides anything: to judge a record
by its end would select those who live long enough to fill it.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

import polars as pl

from ehrwear_jax.config.data import CohortConfig
from ehrwear_jax.data.formats import parquet
from ehrwear_jax.data.formats.times import DAY_US, HOUR_US

KEYS = ["subject_id", "prediction_time"]
_TIME = pl.Datetime("us")
_LAST = datetime(9999, 1, 1)


class Evidence(NamedTuple):
    """What eligibility is judged by.

    Attributes:
      births: subject_id (unique), birth_time, null where it is not known.
      runs: subject_id, begin, end: of each continuous stretch of EHR, see `continuous_runs`.
      window_times: subject_id, time: the ends of wearable windows; perhaps worn_minutes, see `wear_days`.
      flagged: subject_id, time (null: static): events with an excluded code.
      window_hours: length of a window.
    """

    births: pl.DataFrame
    runs: pl.DataFrame
    window_times: pl.DataFrame
    flagged: pl.DataFrame
    window_hours: float


def gather(
    events: Iterable[pl.LazyFrame],
    windows: Iterable[pl.DataFrame],
    births: pl.DataFrame,
    window_hours: float,
    config: CohortConfig,
) -> Evidence:
    """The Evidence of prepared tables.

    Args:
      events: pieces that hold whole people: subject_id, time (null: static), code. windows: pieces of `window_times`.
      births: subject_id, birth_time.
    """
    is_flag = pl.any_horizontal(pl.lit(False), *(pl.col("code").str.starts_with(x) for x in config.excluded_codes))
    times: parquet.Schema = {"subject_id": pl.Int64, "time": _TIME}
    runs = [pl.DataFrame(schema={"subject_id": pl.Int64, "begin": _TIME, "end": _TIME})]
    flagged = [pl.DataFrame(schema=times)]
    for piece in events:
        runs.append(continuous_runs(piece.select("subject_id", "time").collect(), config.max_gap_days))
        flagged.append(piece.filter(is_flag).select("subject_id", "time").collect())
    of_windows = list(windows)
    worn = pl.concat(of_windows) if of_windows else pl.DataFrame(schema=times)
    return Evidence(births, pl.concat(runs), worn, pl.concat(flagged), window_hours)


def continuous_runs(event_times: pl.DataFrame, max_gap_days: float) -> pl.DataFrame:
    """Stretches in which events follow one another by at most max_gap_days; 0: one stretch a person.

    Args:
      event_times: subject_id, time; rows without a time are left out.

    Returns:
      subject_id, begin, end: of each stretch, sorted.
    """
    known = event_times.drop_nulls("time").unique().sort("subject_id", "time")
    gap = pl.col("time").diff().over("subject_id").dt.total_microseconds()
    breaks = (gap > max_gap_days * DAY_US).fill_null(False) if max_gap_days else pl.lit(False)
    run = known.with_columns(breaks.cast(pl.Int64).cum_sum().over("subject_id").alias("run"))
    found = run.group_by("subject_id", "run").agg(
        pl.col("time").min().alias("begin"), pl.col("time").max().alias("end")
    )
    return found.drop("run").sort("subject_id", "begin").cast({"begin": _TIME, "end": _TIME})


def wear_days(window_times: pl.DataFrame, window_hours: float, min_hours: float, until: pl.DataFrame) -> pl.DataFrame:
    """Days of usable wear of each person up to a time.

    Args:
      window_times: subject_id, time: the ends of windows; perhaps worn_minutes, how much of each the device was worn,
        by default all of it.
      window_hours: length of a window.
      min_hours: hours of wear that make a day.
      until: subject_id, reference_time: any number of times of a person.

    Returns:
      subject_id, reference_time, wear_days u32: the distinct rows of `until`, sorted.
    """
    whole = pl.lit(round(60 * window_hours))
    minutes = pl.col("worn_minutes") if "worn_minutes" in window_times.columns else whole
    # a window belongs to the day in which it began
    day = (pl.col("time") - pl.duration(microseconds=int(window_hours * HOUR_US))).dt.truncate("1d").alias("day")
    known = window_times.sort("subject_id", "time").with_columns(day, minutes.cast(pl.Int64).alias("minutes"))
    so_far = known.with_columns(pl.col("minutes").cum_sum().over("subject_id", "day"))
    # a day counts from the window on that fills it up, so that what follows changes nothing
    filled = so_far.filter(pl.col("minutes") >= 60 * min_hours).group_by("subject_id", "day").agg(pl.col("time").min())
    filled = filled.sort("subject_id", "time").with_columns(
        pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).over("subject_id").alias("wear_days")
    )
    found = _last_before(
        until.select("subject_id", "reference_time").unique(), "reference_time", filled.drop("day"), "time"
    )
    return found.drop("time").with_columns(pl.col("wear_days").fill_null(0)).sort("subject_id", "reference_time")


def _last_before(left, left_on, right, right_on):
    """`left` with the columns of each person's last row of `right` that is not later; null without any."""
    right = right.with_columns(pl.col(right_on).alias("_on")).sort("_on")
    joined = left.with_columns(pl.col(left_on).cast(_TIME).alias("_on")).sort("_on")
    return joined.join_asof(right, on="_on", by="subject_id", strategy="backward", check_sortedness=False).drop("_on")


def judge(times: pl.DataFrame, evidence: Evidence, config: CohortConfig) -> pl.DataFrame:
    """What the criteria look at, at each time zero.

    Args:
      times: subject_id, prediction_time.

    Returns:
      The distinct rows of `times`, sorted, with ehr_days f64 (from the beginning of the stretch of EHR that reaches
      time zero; null without one), wear_days u32, is_flagged bool and age i32 (completed years, null where unknown).
    """
    keys = times.select(KEYS).cast({"prediction_time": _TIME}).unique().sort(KEYS)
    run = _last_before(keys, "prediction_time", evidence.runs, "begin")
    silent = (pl.col("prediction_time") - pl.col("end")).dt.total_microseconds() / DAY_US
    reaches = silent <= config.max_gap_days if config.max_gap_days else pl.lit(True)
    days = (pl.col("prediction_time") - pl.col("begin")).dt.total_microseconds() / DAY_US
    run = run.select(*KEYS, pl.when(reaches).then(days).alias("ehr_days"))
    until = keys.rename({"prediction_time": "reference_time"})
    worn = wear_days(evidence.window_times, evidence.window_hours, config.min_wear_hours, until)
    since = evidence.flagged.with_columns(pl.col("time").fill_null(datetime(1, 1, 1)))
    since = since.group_by("subject_id").agg(pl.col("time").min().alias("flagged_at"))
    found = (
        keys.join(run, on=KEYS, how="left", maintain_order="left")
        .join(worn.rename({"reference_time": "prediction_time"}), on=KEYS, how="left", maintain_order="left")
        .join(since, on="subject_id", how="left", maintain_order="left")
        .join(evidence.births, on="subject_id", how="left", maintain_order="left")
    )
    return found.select(
        *KEYS,
        "ehr_days",
        pl.col("wear_days").fill_null(0),
        (pl.col("flagged_at").fill_null(_LAST) <= pl.col("prediction_time")).alias("is_flagged"),
        _years(pl.col("birth_time"), pl.col("prediction_time")).alias("age"),
    )


def select(times: pl.DataFrame, evidence: Evidence, config: CohortConfig) -> tuple[pl.DataFrame, list[dict]]:
    """Applies the criteria in order.

    Args:
      times: subject_id, prediction_time, and perhaps further columns, which stay.

    Returns:
      (rows that are in, in their order; steps [{step, n, dropped, reason}], of prediction times and of people in turn:
      n and dropped of a step make the n before it. People are in while one of their times is).
    """
    judged = judge(times, evidence, config)
    left = times.join(judged, on=KEYS, how="left", maintain_order="left")
    steps = [
        {"step": "prediction times", "n": left.height, "dropped": 0, "reason": ""},
        {"step": "people with a prediction time", "n": left["subject_id"].n_unique(), "dropped": 0, "reason": ""},
    ]
    for step, in_use, criterion, reason in _criteria(config):
        if in_use:
            kept = left.filter(criterion.fill_null(False))
            for what, count in (("prediction times", pl.DataFrame.__len__), ("people", _n_people)):
                n, before = count(kept), count(left)
                steps.append({"step": f"{what} {step}", "n": n, "dropped": before - n, "reason": reason})
            left = kept
    return left.select(times.columns), steps


def _n_people(table):
    return table["subject_id"].n_unique()


def in_words(config: CohortConfig) -> str:
    """The criteria as one sentence, as a table of a target trial has them."""
    least = {
        f"{config.min_ehr_days:g} days of EHR": config.min_ehr_days,
        f"{config.min_wear_days} days with {config.min_wear_hours:g} hours of wear": config.min_wear_days,
    }
    parts = [f"at least {what}" for what, in_use in least.items() if in_use]
    if config.max_gap_days:
        parts.append(f"no gap of more than {config.max_gap_days:g} days in that EHR")
    if config.min_age_years or config.max_age_years:
        most = f" to {config.max_age_years:g}" if config.max_age_years else " or more"
        parts.append(f"an age of {config.min_age_years:g}{most} years")
    if config.excluded_codes:
        parts.append(f"no code of {', '.join(map(str, config.excluded_codes))}")
    if not parts:
        return "Every prediction time of the label table is in."
    return f"At the prediction time, by what is known then: {', '.join(parts)}."


def _criteria(config: CohortConfig) -> tuple[tuple[str, bool, pl.Expr, str], ...]:
    """(step, whether it is in use, who stays, why the others do not) of each criterion, in their order."""
    age = pl.lit(True)
    if config.min_age_years:
        age &= pl.col("age") >= config.min_age_years
    if config.max_age_years:
        age &= pl.col("age") <= config.max_age_years
    limits = f"from {config.min_age_years:g}" + (f" to {config.max_age_years:g}" if config.max_age_years else "")
    gap = f", with a gap of more than {config.max_gap_days:g} days as its beginning" if config.max_gap_days else ""
    return (
        (
            "without a flag of bad data",
            bool(config.excluded_codes),
            ~pl.col("is_flagged"),
            "a code that excludes, up to time zero",
        ),
        (
            "with enough EHR history",
            bool(config.min_ehr_days or config.max_gap_days),
            pl.col("ehr_days") >= config.min_ehr_days,
            f"less than {config.min_ehr_days:g} days of EHR before time zero{gap}",
        ),
        (
            "with enough wear",
            bool(config.min_wear_days),
            pl.col("wear_days") >= config.min_wear_days,
            f"fewer than {config.min_wear_days} days of at least {config.min_wear_hours:g} usable hours before time "
            "zero",
        ),
        (
            "of the right age",
            bool(config.min_age_years or config.max_age_years),
            age,
            f"age at time zero unknown or not {limits} years",
        ),
    )


def _years(birth: pl.Expr, time: pl.Expr) -> pl.Expr:
    """Completed years from birth to time."""
    months = 12 * (time.dt.year() - birth.dt.year()) + (time.dt.month().cast(pl.Int32) - birth.dt.month())
    return (months - (time.dt.day() < birth.dt.day()).cast(pl.Int32)).floordiv(12)
