"""Finds out how long each person was observed, and until when prediction times can be drawn.

The end of a person's follow-up is, in this order:

1. the one in a follow-up table (subject_id, start, end), of config.labels.followup_file or, beside groups and folds,
   metadata/subject_followup.parquet of the dataset; people who are not in the table get no prediction time;
2. the last code that says so (config.labels.followup_end_codes);
3. a guess (config.labels.followup): their last record up to the limit of the calendar, or the day of extraction.

None lies after the day of extraction where that is known. A guess is counted and warned of: people without a record did
not leave, and whoever has one soon after a prediction is more often still "observed" than who stays well.

**The limit of the calendar** is the last day that anybody's prediction can be labelled at, the same for everyone, less
the longest horizon. It is no maximum of all records, since one booked appointment a year ahead would move it: it is the
day up to which SHARE of all person-days with a record lie, and not after the day of extraction.

**Dates that were shifted per person**, as in MIMIC, have no common calendar: prediction times are drawn up to each
person's own end of follow-up. They are taken as shifted if more than MOST_AHEAD of the people have their last record
after AHEAD, or if the last records of the middle 98% spread over more than LONGEST_YEARS, more than any register of
events with times covers. What bias remains: a time shortly before the end is labelled only if the event (or a death)
follows in time, so such times hold more events than they should; a weighting by the chance of being censored
(evals/survival.py) takes that into account, as far as the end of follow-up says nothing about the event.
"""

import dataclasses
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from ehrwear_jax.config.labels import LabelsConfig
from ehrwear_jax.data.formats import meds, meds_checks, parquet
from ehrwear_jax.data.formats.times import DAY_US, YEAR_DAYS
from ehrwear_jax.data.labels.key_events import KeyEvents

SHARE = 0.995
AHEAD, MOST_AHEAD = datetime(2100, 1, 1), 0.01
LONGEST_YEARS = 60.0
TABLE = "subject_followup.parquet"
IN_TABLE, BY_CODE, BY_DEATH, GUESSED = "in the table", "by a code", "by death", "guessed"
_ROWS: parquet.Schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
_SCHEMA: parquet.Schema = {"subject_id": pl.Int64, "start": pl.Datetime("us"), "end": pl.Datetime("us")}


# ------------------------------------------------------------------------------------------------------ the calendar
@dataclasses.dataclass(frozen=True)
class Calendar:
    """Until when the dataset observes anybody.

    Attributes:
      limit: first moment after it; None: dates are shifted per person, there is no common one.
      extracted: first moment after the day of extraction, None if unknown.
      how: how the limit is known, in a few words.
      n_days, n_after: person-days with a record, and those of them after the limit.
    """

    limit: datetime | None
    extracted: datetime | None = None
    how: str = ""
    n_days: int = 0
    n_after: int = 0


class PersonDays(NamedTuple):
    """The days, since 1970, on which the people of a shard have a record but the birth.

    Attributes:
      people: day, len: how many people have one on it. last: subject_id, day: the last one of each.
    """

    people: pl.DataFrame
    last: pl.DataFrame


def person_days(path: Path, bounds: meds_checks.TimeBounds, max_rows: int = 2_000_000) -> PersonDays:
    """The PersonDays of a shard; rows outside the bounds do not count. Memory: max_rows, and its person-days."""
    pieces = [_person_days(rows, path, bounds) for _, rows in parquet.row_batches(path, list(_ROWS), max_rows)]
    found = pl.concat(pieces)
    runs = found.filter((pl.col("subject_id") != pl.col("subject_id").shift()).fill_null(True))
    in_order = pl.col("day").diff().over("subject_id") > 0
    if runs["subject_id"].is_duplicated().any() or not found.select(in_order.fill_null(True).all()).item():
        found = found.unique()  # else they are: rows lie by subject and time
    return PersonDays(found.group_by("day").len(), found.group_by("subject_id").agg(pl.col("day").max()))


def calendar(found: Iterable[PersonDays], extraction_date: str, shifted: str) -> Calendar:
    """The limit of the calendar. Memory: the last record of each person.

    Args:
      found: of every shard. extraction_date: ISO, "" if unknown.
      shifted: "auto", "yes" or "no": whether dates are shifted per person.
    """
    days, lasts = zip(*found, strict=True)
    per_day = pl.concat(days).group_by("day").agg(pl.col("len").sum()).sort("day")
    day_D, so_far_D = per_day["day"].to_numpy(), per_day["len"].to_numpy().cumsum()
    if not len(day_D):
        return Calendar(None, None, "no record has a time")
    extracted = datetime.fromisoformat(extraction_date) + timedelta(days=1) if extraction_date else None
    why = (
        ""
        if shifted == "no"
        else _shifted(
            pl.concat(lasts).group_by("subject_id").agg(pl.col("day").max())["day"].to_numpy(), sure=shifted == "yes"
        )
    )
    if why:
        return Calendar(None, extracted, why)
    last_day = int(day_D[np.searchsorted(so_far_D, SHARE * so_far_D[-1])])
    robust = datetime(1970, 1, 1) + timedelta(days=last_day + 1)
    if extracted is not None and extracted <= robust:
        limit, how = extracted, "the day of extraction"
    else:
        limit, how = robust, f"the day up to which {SHARE:.1%} of all person-days with a record lie"
    so_far = int(np.searchsorted(day_D, (limit - datetime(1970, 1, 1)).days))  # days before the limit
    n_before = int(so_far_D[so_far - 1]) if so_far else 0
    return Calendar(limit, extracted, how, int(so_far_D[-1]), int(so_far_D[-1]) - n_before)


def _person_days(rows: pl.DataFrame, path: Path, bounds: meds_checks.TimeBounds) -> pl.DataFrame:
    """subject_id, day (since 1970): of days on which a person has a record but the birth, once in a row."""
    rows = parquet.normalise(rows, _ROWS, path).drop_nulls()
    rows = rows.filter(
        pl.col("time").is_between(bounds.first, bounds.end, closed="left")
        & ~pl.col("code").str.starts_with(meds.BIRTH_CODE)
    )
    days = rows.select("subject_id", (pl.col("time").to_physical() // DAY_US).alias("day"))
    return days.filter(pl.any_horizontal((pl.all() != pl.all().shift()).fill_null(True)))


def _shifted(last_day_N: np.ndarray, sure: bool) -> str:
    """Why dates seem shifted per person, "" if they do not; last_day_N: of each person's records, since 1970."""
    if sure:
        return "dates are shifted per person, as config.labels.shifted_dates says"
    ahead = float((last_day_N >= (AHEAD - datetime(1970, 1, 1)).days).mean())
    early, late = np.quantile(last_day_N, (0.01, 0.99))
    years = (late - early) / YEAR_DAYS
    if ahead > MOST_AHEAD:
        return f"dates are shifted per person: {ahead:.0%} of the people have records after {AHEAD:%Y}"
    if years > LONGEST_YEARS:
        return f"dates are shifted per person: last records spread over {years:.0f} years"
    return ""


# ------------------------------------------------------------------------------------------------------ the table
def find_table(given: str, meds_dir: Path) -> Path | None:
    """The file of the follow-up table: config.labels.followup_file, else that of the dataset, else None."""
    own = Path(meds_dir) / "metadata" / TABLE
    return Path(given) if given else own if own.is_file() else None


def read_table(path: Path) -> pl.DataFrame:
    """subject_id, start (null: unknown), end: times, one row per person, from a parquet or CSV file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: naming file, row and column: a missing column or value, an end before the start, a repeated person.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        table = pl.read_csv(path, try_parse_dates=True)
    else:
        table = parquet.read_parquet(path)
    dates = [c for c in ("start", "end") if c in table.columns and table[c].dtype == pl.Date]
    table = table.with_columns(pl.col(dates).cast(pl.Datetime("us"))) if dates else table
    if "start" in table.columns and table["start"].null_count() == table.height:
        table = table.drop("start")
    table = parquet.normalise(table, _SCHEMA, path, optional=("start",))
    parquet.require_not_null(table, ["subject_id", "end"], path)
    faults = (
        (table["subject_id"].is_duplicated(), "has more than one row; give the stretch that is to be used"),
        ((table["end"] <= table["start"]).fill_null(False), "has an end that is not after its start"),
    )
    for bad, what in faults:
        if bad.any():
            row = parquet.first_true(bad)
            raise ValueError(f"{path}: row {row}: subject {table['subject_id'][row]} {what}")
    return table.sort("subject_id")


# ------------------------------------------------------------------------------------------------------ each person
def follow_up(
    events: KeyEvents, table: pl.DataFrame | None, limits: Calendar, config: LabelsConfig
) -> tuple[pl.DataFrame, list[dict]]:
    """When each person was observed.

    Args:
      events: with the times "followup_start", "followup_end" and "death", and spans up to limits.limit.
      table: as read_table returns, or None.

    Returns:
      (subject_id, start (null: the first record), end, known (IN_TABLE, BY_CODE, BY_DEATH or GUESSED), first, death
      (null: none seen up to the end) of the people who were followed, by subject_id; the steps of counts.json).

    Raises:
      ValueError: config.followup "extraction_date" where that date is unknown.
    """
    ends = events.times["followup_end"].group_by("subject_id").agg(pl.col("time").max().alias("coded"))
    people = events.spans.join(events.first("followup_start"), on="subject_id", how="left", maintain_order="left")
    people = people.join(ends, on="subject_id", how="left", maintain_order="left")
    people = people.join(events.first("death"), on="subject_id", how="left", maintain_order="left")
    guess: pl.Expr = pl.col("last")
    if config.followup == "extraction_date":
        if limits.extracted is None:
            raise ValueError(
                "config.labels.followup is 'extraction_date', but the day of extraction is unknown: set "
                "config.prepare.extraction_date, or give config.labels.followup_file"
            )
        guess = pl.lit(limits.extracted)
    if table is None:
        people = people.with_columns(pl.lit(None, pl.Datetime("us")).alias("end_T"), pl.col("followup_start"))
        n_strangers = 0
    else:
        of_table = table.select("subject_id", pl.col("start").alias("start_T"), pl.col("end").alias("end_T"))
        known = people.join(of_table, on="subject_id", how="inner", maintain_order="left")
        n_strangers = people.height - known.height
        people = known.with_columns(pl.coalesce("start_T", "followup_start").alias("followup_start"))
    end = pl.coalesce("end_T", "coded", guess)
    if limits.extracted is not None:
        end = pl.min_horizontal(end, pl.lit(limits.extracted))
    people = people.with_columns(end.alias("end"))
    seen = (pl.col("death") <= pl.col("end")).fill_null(False)
    how = (
        pl.when(pl.col("end_T").is_not_null()).then(pl.lit(IN_TABLE))
        .when(pl.col("coded").is_not_null()).then(pl.lit(BY_CODE))
        .when(seen).then(pl.lit(BY_DEATH)).otherwise(pl.lit(GUESSED))
    )  # fmt: skip
    people = people.with_columns(how.alias("known"), pl.when(seen).then(pl.col("death")).alias("death"))
    followed = people.drop_nulls(["first", "end"]).rename({"followup_start": "start"})
    followed = followed.select("subject_id", "start", "end", "known", "first", "death")
    return followed, _steps(followed, people.height - followed.height, n_strangers, config)


def _steps(followed, n_unseen, n_strangers, config):
    """What is known of the ends, for counts.json."""
    n_known = {how: int((followed["known"] == how).sum()) for how in (IN_TABLE, BY_CODE, BY_DEATH, GUESSED)}
    ways = ", ".join(f"{n:,} {how}" for how, n in n_known.items() if n)
    guess = {"last_record": "the last record", "extraction_date": "the day of extraction"}[config.followup]
    lost = f"{n_strangers:,} not in the follow-up table, {n_unseen:,} without a record up to the limit"
    steps = [
        {
            "step": "people with a follow-up",
            "n": followed.height,
            "dropped": n_strangers + n_unseen,
            "reason": f"{lost}; the end is known {ways}",
        }
    ]
    if n_known[GUESSED]:
        reason = f"guessed as {guess}: name config.labels.followup_file or followup_end_codes to give it"
        steps.append({"step": "ends of follow-up that are guessed", "n": n_known[GUESSED], "dropped": 0,
                      "reason": reason})  # fmt: skip
    return steps


def windows(
    people: pl.DataFrame, limits: Calendar, horizon_days: float, history_us: int, not_before: pl.DataFrame | None
) -> pl.DataFrame:
    """From and until when each person's prediction times are drawn, as prediction_times.draw takes it.

    Args:
      people: as follow_up returns. horizon_days: the longest. history_us: least microseconds of history.
      not_before: optional (subject_id, time): the earliest time; a person who is not in it gets no window.
    """
    low = pl.max_horizontal("first", "start").to_physical() + history_us
    if not_before is not None:
        people = people.join(not_before.select("subject_id", pl.col("time").alias("earliest")), on="subject_id")
        low = pl.max_horizontal(low, pl.col("earliest").to_physical())
    end = pl.col("end").to_physical()
    high = end - 1
    if limits.limit is not None:
        high = pl.lit(limits.limit - timedelta(days=horizon_days), pl.Datetime("us")).to_physical()
    until = pl.min_horizontal(end, pl.col("death").to_physical())
    return people.select("subject_id", low.alias("low"), high.alias("high"), until.alias("until"))
