"""Draws prediction times and labels outcomes from the events of a MEDS dataset.

Conventions: a prediction at time t may use events with time <= t; a label looks at events with time
strictly after t. A death before the event is a negative label, not a missing one: death is a
competing event. A person is followed up to the last record, or to a time that the caller knows.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import meds, meds_checks, parquet
from ehrwear_jax.data.formats.times import DAY_US

ADMISSION_CODE_PREFIX = "HOSPITAL_ADMISSION"
DISCHARGE_CODE_PREFIX = "HOSPITAL_DISCHARGE"


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How prediction times are drawn.

    Attributes:
      per_subject: midnights drawn per subject, at least 1.
      min_history_days: from the first record to a prediction time.
      seed: non-negative; the draws are a function of (seed, subject_id).
    """

    per_subject: int
    min_history_days: float
    seed: int

    def __post_init__(self) -> None:
        if self.per_subject < 1:
            raise ValueError(f"per_subject is {self.per_subject}, must be at least 1")


def _key_events(
    meds_dir: Path, wanted: Mapping[str, pl.Expr], bounds: meds_checks.TimeBounds | None
) -> Iterable[tuple[pl.DataFrame, dict]]:
    """For each shard: first and last record of each subject, and the times of some codes.

    Yields:
      (subject_id, first, last): first and last time of any event but the birth; and
      {name: DataFrame[subject_id, time]} of the rows that each expression wants, in time order.
    """
    for shard in meds.list_shards(meds_dir):
        events = meds.read_shard(shard) if bounds is None else meds_checks.screen_shard(shard, bounds)[0]
        events = events.filter(pl.col("time").is_not_null() & ~_has_prefix(meds.BIRTH_CODE))
        span = events.group_by("subject_id").agg(
            pl.col("time").min().alias("first"), pl.col("time").max().alias("last")
        )
        times = {name: events.filter(of_name).select("subject_id", "time") for name, of_name in wanted.items()}
        yield span.sort("subject_id"), times


def _has_prefix(prefix: str) -> pl.Expr:
    """The code itself or one below it: HOSPITAL_ADMISSION or HOSPITAL_ADMISSION//..."""
    return (pl.col("code") == prefix) | pl.col("code").str.starts_with(prefix + "//")


def _by_subject(times: pl.DataFrame) -> dict[int, np.ndarray]:
    """Sorted times in microseconds since 1970, per subject."""
    grouped = times.with_columns(pl.col("time").to_physical()).group_by("subject_id")
    return {key: np.sort(part["time"].to_numpy()) for (key,), part in grouped}


def _times_table(table: pl.DataFrame | None, source: str) -> dict[int, int]:
    if table is None:
        return {}
    schema: parquet.Schema = {"subject_id": pl.Int64, "time": pl.Datetime("us")}
    table = parquet.normalise(table, schema, source)
    parquet.require_not_null(table, schema, source)
    if table["subject_id"].is_duplicated().any():
        raise ValueError(f"{source}: a subject has more than one row")
    return dict(table.with_columns(pl.col("time").to_physical()).iter_rows())


def prediction_times(
    meds_dir: Path,
    sampling: Sampling,
    *,
    not_before: pl.DataFrame | None = None,
    not_after: pl.DataFrame | None = None,
    admission_code_prefix: str = ADMISSION_CODE_PREFIX,
    bounds: meds_checks.TimeBounds | None = None,
) -> pl.DataFrame:
    """Random midnights at which a prediction is made, the same for (seed, subject_id) always.

    Midnights are drawn without replacement from the window that starts `min_history_days` after the
    first record (the birth does not count) and ends before the last record, or where `not_before`
    and `not_after` say. Those drawn that are not before the last record and the death, or lie inside
    a stay in hospital (at or after an admission, before the next discharge; a stay never closed
    lasts to the end of the record), are then discarded. Which days are drawn therefore does not
    depend on what follows them if `not_after` does not: give the administrative end of observation
    less the longest horizon where it is known.

    Args:
      meds_dir: MEDS dataset.
      sampling: how many are drawn, from where, and by which seed.
      not_before: optional (subject_id, time): the earliest time, for instance the first day of
        wear; a subject that is not in it gets no prediction time.
      not_after: optional (subject_id, time): the latest time, same rule.
      admission_code_prefix: the code of admissions, or what it starts with before "//".
      bounds: leave out the rows that meds_checks.screen sets aside; None: such a row is an error.

    Returns:
      subject_id i64, prediction_time datetime[us], in that order.
    """
    earliest, latest = _times_table(not_before, "not_before"), _times_table(not_after, "not_after")
    prefixes = (admission_code_prefix, meds.DEATH_CODE, DISCHARGE_CODE_PREFIX)
    subject_ids, times = [], []
    for span, key_times in _key_events(meds_dir, {prefix: _has_prefix(prefix) for prefix in prefixes}, bounds):
        admissions, deaths, discharges = (_by_subject(key_times[prefix]) for prefix in prefixes)
        for subject_id, first, last in span.with_columns(pl.col("first", "last").to_physical()).iter_rows():
            if (not_before is not None and subject_id not in earliest) or (
                not_after is not None and subject_id not in latest
            ):
                continue
            low = max(first + int(sampling.min_history_days * DAY_US), earliest.get(subject_id, first))
            # drawn before looking at what happens in the window, so that no day is likelier to be
            # drawn for being followed by a death or a stay
            midnight_K = _draw_midnights(subject_id, low, latest.get(subject_id, last - 1), sampling)
            death = deaths.get(subject_id)
            keep_K = midnight_K < (last if death is None else min(last, int(death[0])))
            keep_K &= ~_inside_stay(midnight_K, admissions.get(subject_id), discharges.get(subject_id))
            subject_ids += [subject_id] * int(keep_K.sum())
            times += midnight_K[keep_K].tolist()
    drawn = pl.DataFrame(
        {"subject_id": subject_ids, "prediction_time": times},
        schema={"subject_id": pl.Int64, "prediction_time": pl.Int64},
    )
    return drawn.with_columns(pl.col("prediction_time").cast(pl.Datetime("us"))).sort("subject_id", "prediction_time")


def _draw_midnights(subject_id: int, low_us: int, high_us: int, sampling: Sampling) -> np.ndarray:
    """int64 [K]: midnights from low_us to high_us, both inclusive, without replacement, sorted."""
    first_day = -(-low_us // DAY_US)
    n_days = max(high_us // DAY_US - first_day + 1, 0)
    rng = np.random.default_rng((sampling.seed, subject_id & (2**64 - 1)))
    drawn_K = rng.choice(n_days, min(sampling.per_subject, n_days), replace=False) if n_days else np.zeros(0, np.int64)
    return (first_day + np.sort(drawn_K)) * DAY_US


def _inside_stay(time_N: np.ndarray, admission_A: np.ndarray | None, discharge_D: np.ndarray | None) -> np.ndarray:
    """True where the last admission at or before a time has no discharge between it and that time."""
    if admission_A is None:
        return np.zeros(len(time_N), bool)
    if discharge_D is None:
        discharge_D = np.empty(0, np.int64)
    n_before = np.searchsorted(admission_A, time_N, side="right")
    last_admission = np.append(admission_A, 0)[n_before - 1]
    closed_until = np.searchsorted(discharge_D, time_N, side="right")
    closed_before = np.searchsorted(discharge_D, last_admission, side="left")
    return (n_before > 0) & (closed_until <= closed_before)


def within_horizon(times: pl.DataFrame, horizon_days: float) -> pl.DataFrame:
    """Whether the event follows within the horizon, in the MEDS label schema.

    True: an event strictly after prediction_time and at most the horizon after it. False: no such event, and the
    person was followed for the whole horizon or died within it. Otherwise (censored) there is no row.

    Args:
      times: as time_to_admission or onset_times returns.
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


def time_to_admission(
    meds_dir: Path,
    *,
    index: pl.DataFrame,
    admission_code_prefix: str = ADMISSION_CODE_PREFIX,
    end_of_followup: pl.DataFrame | None = None,
    bounds: meds_checks.TimeBounds | None = None,
) -> pl.DataFrame:
    """Days from each prediction to the first admission after it, else to death or end of follow-up.

    Args:
      meds_dir: MEDS dataset.
      index: subject_id, prediction_time; every subject has a record in the dataset.
      admission_code_prefix: the code, or what it starts with before "//".
      end_of_followup: optional (subject_id, time) for every subject of `index`; the default is the
        subject's last record.
      bounds: as prediction_times.

    Returns:
      subject_id, prediction_time, time_to_event_days f64, event_observed bool (an admission), died
      bool (death ended the time), rows in the order of `index`. Without `died` these are survival
      labels for the cause-specific hazard.

    Raises:
      ValueError: a subject of `index` that has no record or no end of follow-up; a prediction after the
        end of follow-up or at or after death.
    """
    wanted = _has_prefix(admission_code_prefix)
    return _time_to_next(meds_dir, wanted, index, end_of_followup, bounds).drop("before")


def _time_to_next(
    meds_dir: Path,
    wanted: pl.Expr,
    index: pl.DataFrame,
    end_of_followup: pl.DataFrame | None,
    bounds: meds_checks.TimeBounds | None,
) -> pl.DataFrame:
    """time_to_admission for any rows of interest; `before` says whether one came at or before the prediction."""
    schema: parquet.Schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}
    index = parquet.normalise(index, schema, "index")
    parquet.require_not_null(index, schema, "index")
    spans, events, deaths = [], [], []
    for span, times in _key_events(meds_dir, {"event": wanted, "death": _has_prefix(meds.DEATH_CODE)}, bounds):
        spans.append(span.select("subject_id", pl.col("last").alias("end")))
        events.append(times["event"])
        deaths.append(times["death"])
    ends = pl.concat(spans)
    if end_of_followup is not None:
        _times_table(end_of_followup, "end_of_followup")
        ends = end_of_followup.select("subject_id", pl.col("time").cast(pl.Datetime("us")).alias("end"))
    death = pl.concat(deaths).group_by("subject_id").agg(pl.col("time").min().alias("death"))
    event = pl.concat(events).sort("time").with_columns(event=pl.col("time"))
    first = event.group_by("subject_id").agg(pl.col("time").min().alias("first"))
    joined = (
        index.with_row_index("row")
        .join(ends, on="subject_id", how="left")
        .join(death, on="subject_id", how="left")
        .join(first, on="subject_id", how="left")
        .sort("prediction_time")
        .join_asof(
            event,
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
    # follow-up may be known to end before a later event or death
    seen = pl.col("event").is_not_null() & (pl.col("event") <= pl.col("end"))
    seen_death = pl.col("death").is_not_null() & (pl.col("death") <= pl.col("end"))
    until = pl.when(seen).then("event").when(seen_death).then("death").otherwise("end")
    return joined.select(
        "subject_id",
        "prediction_time",
        ((until - pl.col("prediction_time")).dt.total_microseconds() / DAY_US).alias("time_to_event_days"),
        seen.alias("event_observed"),
        (seen_death & ~seen).alias("died"),
        (pl.col("first") <= pl.col("prediction_time")).fill_null(False).alias("before"),
    )


def onset_times(
    meds_dir: Path,
    *,
    code_prefixes: Sequence[str],
    index: pl.DataFrame,
    end_of_followup: pl.DataFrame | None = None,
    bounds: meds_checks.TimeBounds | None = None,
) -> pl.DataFrame:
    """Days from each prediction to the first diagnosis of a group, for people who never had one before.

    Left-censored rows are left out: a person with a code of the group at or before the prediction has no onset to
    come, and the model would read the answer in the record (paper, section A.2). How far back a record reaches
    decides how sure "never before" is: give prediction times with enough history.

    Args:
      code_prefixes: what the group's codes start with, such as ("ICD10CM/I21", "ICD10CM/I22").
      others, errors: as time_to_admission.

    Returns:
      As time_to_admission, for the rows of `index` that are at risk.

    Raises:
      ValueError: no prefix.
    """
    if not code_prefixes:
        raise ValueError("code_prefixes is empty: name what the codes of the diagnosis group start with")
    wanted = pl.any_horizontal(pl.col("code").str.starts_with(prefix) for prefix in code_prefixes)
    return _time_to_next(meds_dir, wanted, index, end_of_followup, bounds).filter(~pl.col("before")).drop("before")
