"""Labels outcomes from the events of a MEDS dataset: admissions, first diagnoses, death.

Conventions: a prediction at time t may use events with time <= t; a label looks at events with time strictly after t,
up to the end of a person's follow-up and up to their death, that moment included: what is booked, billed or measured
afterwards is no event. A death before the event is a competing event: the event cannot come any more, so the label at
every horizon is negative, not missing.
"""

from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import label_tables, meds, meds_checks, parquet
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.labels import episodes, key_events
from ehrwear_jax.data.labels.key_events import Reading

_INDEX: parquet.Schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}


# ----------------------------------------------------------------------------------------------- times to the event
def next_event(index: pl.DataFrame, event: pl.DataFrame, people: pl.DataFrame) -> pl.DataFrame:
    """Days from each prediction to the first event after it, else to death or to the end of follow-up.

    Args:
      index: subject_id, prediction_time.
      event: subject_id, time of every event that may count.
      people: subject_id, end of follow-up, death (null: none).

    Returns:
      subject_id, prediction_time, time_to_event_days f64, event_observed bool, died bool (death ended the time),
      before bool (an event came at or before the prediction), rows in the order of `index`.

    Raises:
      ValueError: a subject of `index` that is not in people; a prediction after the end of follow-up, or at or after
        death.
    """
    index = parquet.normalise(index, _INDEX, "index")
    parquet.require_not_null(index, _INDEX, "index")
    event = event.select("subject_id", pl.col("time").cast(pl.Datetime("us"))).sort("time")
    first = event.group_by("subject_id").agg(pl.col("time").min().alias("first"))
    people = people.select("subject_id", pl.col("end", "death").cast(pl.Datetime("us")))
    joined = (
        index.with_row_index("row")
        .join(people, on="subject_id", how="left")
        .join(first, on="subject_id", how="left")
        .sort("prediction_time")
        .join_asof(
            event.with_columns(event=pl.col("time")),
            left_on="prediction_time",
            right_on="time",
            by="subject_id",
            strategy="forward",
            allow_exact_matches=False,
            check_sortedness=False,
        )
        .sort("row")
    )
    for bad, what in (
        (joined["end"].is_null(), "has no record, so no end of follow-up"),
        (joined["prediction_time"] > joined["end"], "is after the end of follow-up"),
        ((joined["prediction_time"] >= joined["death"]).fill_null(False), "is not before the death"),
    ):
        if bad.any():
            row = joined.row(parquet.first_true(bad), named=True)
            raise ValueError(f"index: row {row['row']}: subject {row['subject_id']} at {row['prediction_time']} {what}")
    # follow-up may end before a later event or death, and a claim may follow a death
    alive = pl.col("death").is_null() | (pl.col("event") <= pl.col("death"))
    seen = (pl.col("event").is_not_null() & (pl.col("event") <= pl.col("end")) & alive).fill_null(False)
    died = (pl.col("death") <= pl.col("end")).fill_null(False) & ~seen
    until = pl.when(seen).then("event").when(died).then("death").otherwise("end")
    return joined.select(
        "subject_id",
        "prediction_time",
        ((until - pl.col("prediction_time")).dt.total_microseconds() / DAY_US).alias("time_to_event_days"),
        seen.alias("event_observed"),
        died.alias("died"),
        (pl.col("first") <= pl.col("prediction_time")).fill_null(False).alias("before"),
    )


def composite(times: pl.DataFrame) -> pl.DataFrame:
    """Times to the event or death, whichever comes first."""
    either = pl.col("event_observed") | pl.col("died")
    return times.with_columns(either.alias("event_observed"), pl.lit(False).alias("died"))


def survival_table(times: pl.DataFrame) -> pl.DataFrame:
    """Survival labels with the column competing_event, of what next_event returns."""
    named = times.rename({"died": label_tables.COMPETING})
    return named.select(*label_tables.SURVIVAL_LABEL_SCHEMA, label_tables.COMPETING)


def within_horizon(times: pl.DataFrame, horizon_days: float) -> pl.DataFrame:
    """Whether the event follows within the horizon, in the MEDS label schema.

    True: an event strictly after prediction_time and at most the horizon after it. False: no such event, and the
    person was followed for the whole horizon or died within it. Otherwise (censored) there is no row.

    Args:
      times: as next_event or time_to_admission returns.
      horizon_days: positive.

    Returns:
      subject_id, prediction_time, boolean_value, rows in the order of `times`.

    Raises:
      ValueError: a horizon that is not positive.
    """
    if horizon_days <= 0:
        raise ValueError(f"a horizon is {horizon_days} days, must be positive")
    within = pl.col("event_observed") & (pl.col("time_to_event_days") <= horizon_days)
    known = within | pl.col("died") | (pl.col("time_to_event_days") >= horizon_days)
    return times.filter(known).select("subject_id", "prediction_time", within.alias("boolean_value"))


# --------------------------------------------------------------------------------------- straight from a dataset
def stay_rows(rules: episodes.Rules) -> dict[str, pl.Expr]:
    """Which rows of a dataset key_events.read has to find for `stays`."""
    codes = {"admission": rules.admission, "discharge": rules.discharge, "transfer": rules.transfers}
    return {name: key_events.below(*of_kind) for name, of_kind in codes.items()}


def stays(events: key_events.KeyEvents, rules: episodes.Rules) -> tuple[pl.DataFrame, dict[str, int]]:
    """(episodes.STAYS, counts) of what key_events.read found."""
    found = events.times
    return episodes.merge(found["admission"], found["discharge"], found["transfer"], rules)


def new_admissions(stays_: pl.DataFrame) -> pl.DataFrame:
    """subject_id, time at which a stay begins that is a new admission."""
    begun = stays_.filter("is_new")
    return begun.select("subject_id", pl.col("start").cast(pl.Datetime("us")).alias("time"))


def _people(events: key_events.KeyEvents, end_of_followup: pl.DataFrame | None) -> pl.DataFrame:
    """subject_id, end, death: follow-up ends at the last record unless it is given."""
    ends = events.spans.select("subject_id", pl.col("last").alias("end"))
    if end_of_followup is not None:
        _times_table(end_of_followup, "end_of_followup")
        ends = end_of_followup.select("subject_id", pl.col("time").alias("end"))
    return ends.join(events.first("death"), on="subject_id", how="left")


def time_to_admission(
    meds_dir: Path,
    *,
    index: pl.DataFrame,
    rules: episodes.Rules | None = None,
    end_of_followup: pl.DataFrame | None = None,
    bounds: meds_checks.TimeBounds | None = None,
) -> pl.DataFrame:
    """Days from each prediction to the first new admission after it, else to death or end of follow-up.

    Args:
      meds_dir: MEDS dataset.
      index: subject_id, prediction_time; every subject has a record in the dataset.
      rules: what a new admission is.
      end_of_followup: optional (subject_id, time) for every subject of `index`; the default is the
        subject's last record.
      bounds: leave out the rows that meds_checks.screen sets aside; None: such a row is an error.

    Returns:
      As next_event, without `before`.

    Raises:
      ValueError: see next_event.
    """
    rules = rules or episodes.Rules()
    wanted = stay_rows(rules) | {"death": key_events.below(meds.DEATH_CODE)}
    events = key_events.read(Reading(Path(meds_dir), bounds), wanted)
    event = new_admissions(stays(events, rules)[0])
    return next_event(index, event, _people(events, end_of_followup)).drop("before")


def _times_table(table: pl.DataFrame, source: str) -> pl.DataFrame:
    schema: parquet.Schema = {"subject_id": pl.Int64, "time": pl.Datetime("us")}
    table = parquet.normalise(table, schema, source)
    parquet.require_not_null(table, schema, source)
    if table["subject_id"].is_duplicated().any():
        raise ValueError(f"{source}: a subject has more than one row")
    return table
