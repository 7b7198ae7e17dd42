"""Builds a MEDS dataset and labels from the NAFLD cohort (Olmsted County, 17,549 people; see nafld_files.py).

The source dates everything in days from a person's index date: the diagnosis of a case, and for the
four people matched to that case (`case.id`) an artefact of the study's design. For 60% of the
laboratory days the index lies in the future, so whatever reveals the distance to it is a leak:

- The index date itself is drawn per person (a hash of id and seed, over the years 1997 to 2014), so that
  absolute dates carry no index-relative day.
- Age is whole years at the index; birth is that age plus a drawn fraction of a year before it, since a
  birthday on the index date would give the distance away through age modulo one year. The error is
  uniform on (-0.5, 0.5) years around the middle, and constant per person.
- Height, weight and bmi are those of the index date: events at that date, never static.
- Label tables hold lab days on or after the index only.
- Whatever has a date without a time is stamped at the day's last microsecond.

`nafld2` of the R package holds every hdl value a second time as chol and every sbp value as dbp (the
medians, 48 and 136, are those of HDL cholesterol and systolic pressure). Such a copy is detected, not
assumed, and left out.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import label_tables, meds, parquet
from ehrwear_jax.data.formats.times import DAY_US, YEAR_DAYS
from ehrwear_jax.data.labels import outcomes
from ehrwear_jax.data.sources.csv_source import (
    Ledger,
    day_number,
    hashed_splits,
    hashed_uniform,
    staged,
    timestamps,
)
from ehrwear_jax.data.sources.nafld_files import (
    BASELINE,
    DIAGNOSES,
    FOLLOWUP_END,
    TESTS,
    code_table,
    read_source,
)

PUBLISHED = {"people": 17_549, "dated values": 400_123, "dated diagnoses": 34_327}
HORIZONS_DAYS = (30, 90, 180, 365)
INDEX_DIAGNOSIS = "nafld"
# Enrolment years of the study; index dates are drawn from them.
_INDEX_FIRST, _INDEX_LAST = "1997-01-01", "2014-12-31"
# (copy, original) pairs of tests that the source may hold twice under two names.
COPIED_TESTS = (("chol", "hdl"), ("dbp", "sbp"))
# Inclusive; outside it a value is a typing error (the source has 13,682 mmHg) and becomes null.
PLAUSIBLE = {"sbp": (40.0, 300.0), "dbp": (20.0, 300.0)}
_FOLLOW_UP = "From the prediction time to the end of follow-up that the source gives (futime)."
# How the labels were made, for the report: what a task's name begins with -> see data/labels/task_design.py.
DESIGN = {
    task: {
        "time_zero": "The end of every day on or after the index date on which a laboratory value, a blood pressure or "
        "the smoking status was recorded.",
        "eligibility": "Alive and followed at the end of that day.",
        "outcome": f"The first diagnosis after it that the person never had before, but for {INDEX_DIAGNOSIS}; {what}.",
        "follow_up": _FOLLOW_UP,
        "competing_events": "Death: a death before the diagnosis is a negative label at every horizon.",
        "censoring": "Whoever's follow-up ends inside a horizon without a diagnosis or a death has no label at that "
        "horizon; time-to-event labels are censored there.",
    }
    for task, what in (
        ("new_diagnosis", "within the days that the task's name says"),
        ("time_to_new_diagnosis", "the time to it"),
    )
} | {
    "death": {
        "time_zero": "The end of the index date: the diagnosis of a case, an artefact of the matching for others.",
        "eligibility": "Alive and followed at the end of that day.",
        "outcome": "Death from any cause; the time to it.",
        "follow_up": _FOLLOW_UP,
        "competing_events": "None.",
        "censoring": "Time-to-event labels are censored at the end of follow-up.",
    }
}
_NO_VALUE = pl.lit(None, dtype=pl.Float32).alias("numeric_value")


def group_ids(people: pl.DataFrame) -> pl.Series:
    """int64: the matched set `case.id`; a person without one is a set of their own, `-id`.

    Ids are positive, so that a negative group never meets a matched set.
    """
    return people.select(pl.col("case.id").fill_null(-pl.col("id")).alias("group_id"))["group_id"]


def _index_days(people: pl.DataFrame, seed: int) -> pl.DataFrame:
    """id, index_day: days since 1970-01-01 of each person's drawn index date."""
    first, last = day_number(_INDEX_FIRST), day_number(_INDEX_LAST)
    draw_N = hashed_uniform(people["id"].to_numpy(), seed, "index date")
    day_N = first + (draw_N * (last - first + 1)).astype(np.int64)
    return people.select("id").with_columns(pl.Series("index_day", day_N))


def _day_end() -> pl.Expr:
    """The last microsecond of the day that lies `days` after index_day."""
    return ((pl.col("index_day") + pl.col("days") + 1) * DAY_US - 1).cast(pl.Datetime("us"))


def _drop_copied_tests(values: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """Leaves out a test whose values per person and day are those of another test."""
    for copy, original in COPIED_TESTS:
        per_day = {
            test: values.filter(pl.col("test") == test).group_by("id", "days").agg(pl.col("value").sort())
            for test in (copy, original)
        }
        both = per_day[copy].join(per_day[original], on=["id", "days"], suffix="_original")
        same = int((both["value"] == both["value_original"]).sum())
        # On every day of the copy, not on nearly every day: a real second test differs on most.
        if len(per_day[copy]) and same == len(per_day[copy]):
            kept = values.filter(pl.col("test") != copy)
            ledger.add(
                f"dated values without the copy '{copy}'", len(kept), len(values) - len(kept),
                f"in the source each '{copy}' value is the '{original}' value of that day",
            )  # fmt: skip
            values = kept
    return values


# ------------------------------------------------------------------------------------------ events
def _events(
    people: pl.DataFrame, values: pl.DataFrame, diagnoses: pl.DataFrame, seed: int, ledger: Ledger
) -> pl.DataFrame:
    """All MEDS events; see the module's docstring for the time rules."""
    index = _index_days(people, seed)
    fraction_N = hashed_uniform(people["id"].to_numpy(), seed, "birth")
    age_days_N = (people["age"].to_numpy() + fraction_N) * YEAR_DAYS
    birth_us_N = index["index_day"].to_numpy() * DAY_US - np.rint(age_days_N * DAY_US).astype(np.int64)
    static = people.select(
        pl.col("id").alias("subject_id"),
        pl.lit(None, dtype=pl.Datetime("us")).alias("time"),
        pl.when(pl.col("male") == 1).then(pl.lit("GENDER//M")).otherwise(pl.lit("GENDER//F")).alias("code"),
        _NO_VALUE,
    )
    birth = people.select(
        pl.col("id").alias("subject_id"), timestamps(birth_us_N), pl.lit(meds.BIRTH_CODE).alias("code"), _NO_VALUE
    )
    dated = pl.concat(_dated(people, values, diagnoses, ledger), how="vertical_relaxed")
    dated = dated.join(index, on="id", how="left", maintain_order="left").select(
        pl.col("id").alias("subject_id"), _day_end().alias("time"), "code", pl.col("numeric_value").cast(pl.Float32)
    )
    events = pl.concat([static, birth, dated])
    too_early = events.join(birth.select("subject_id", born="time"), on="subject_id").filter(
        pl.col("time") < pl.col("born")
    )
    if len(too_early):
        raise ValueError(f"nafld: person {too_early['subject_id'][0]} has {too_early['code'][0]} before birth")
    return events


def _dated(people: pl.DataFrame, values: pl.DataFrame, diagnoses: pl.DataFrame, ledger: Ledger) -> list[pl.DataFrame]:
    """id, days (from the index date), code, numeric_value of everything that has a date."""
    no_value = pl.lit(None, dtype=pl.Float64).alias("numeric_value")
    measured = values.select("id", "days", _code_of(TESTS, "test"), _plausible(values, ledger).alias("numeric_value"))
    diagnosed = diagnoses.select("id", "days", _code_of(DIAGNOSES, "event"), no_value)
    baseline = (
        people.select("id", *BASELINE)
        .unpivot(index="id", variable_name="what", value_name="numeric_value")
        .drop_nulls("numeric_value")
        .select("id", pl.lit(0, dtype=pl.Int64).alias("days"), _code_of(BASELINE, "what"), "numeric_value")
    )
    ledger.add(
        "height, weight and bmi, known from the index date on",
        len(baseline),
        len(BASELINE) * len(people) - len(baseline),
        "missing in nafld1.csv",
    )
    last_day = pl.col("futime").alias("days")
    deaths = people.filter(pl.col("status") == 1).select(
        "id", last_day, pl.lit(meds.DEATH_CODE).alias("code"), no_value
    )
    ends = people.select("id", last_day, pl.lit(FOLLOWUP_END).alias("code"), no_value)
    ledger.add("deaths", len(deaths))
    return [measured, diagnosed, baseline, deaths, ends]


def _code_of(names: Mapping[str, tuple[str, str]], column: str) -> pl.Expr:
    """The codes of a column of names."""
    return pl.col(column).replace_strict({name: code for name, (code, _) in names.items()}).alias("code")


def _plausible(values: pl.DataFrame, ledger: Ledger) -> pl.Series:
    number = values["value"]
    outside = pl.Series(np.zeros(len(values), bool))
    for test, (low, high) in PLAUSIBLE.items():
        outside = outside | ((values["test"] == test) & ~number.is_between(low, high))
    ledger.add(
        "dated values with a number", len(values) - int(outside.sum()), int(outside.sum()),
        "outside 40-300 mmHg (dbp 20-300): the event stays, its number becomes null",
    )  # fmt: skip
    return values.select(pl.when(outside).then(None).otherwise(number).alias("value"))["value"]


# ------------------------------------------------------------------------------------------ labels
def first_diagnoses(diagnoses: pl.DataFrame) -> pl.DataFrame:
    """id, days, event: the first time that each person has each diagnosis.

    The source has some twice (a second stroke, for example). A repetition is no new diagnosis, and is easy to foretell
    from the first.
    """
    return diagnoses.group_by("id", "event").agg(pl.col("days").min()).select("id", "days", "event")


def time_to_diagnosis(lab_days: pl.DataFrame, diagnoses: pl.DataFrame, people: pl.DataFrame) -> pl.DataFrame:
    """Days from each lab day to the first diagnosis after it, else to death or the end of follow-up.

    Args:
      lab_days: id, days; unique, on or after the index.
      diagnoses: id, days, event of the source; the index diagnosis never counts, nor does what a person had before.
      people: id, futime, status.

    Returns:
      id, days, time_to_event_days, event_observed, competing_event (died first), by (id, days): of people still
      followed at the day's end.
    """
    targets = first_diagnoses(diagnoses.filter(pl.col("event") != INDEX_DIAGNOSIS))
    targets = targets.select("id", pl.col("days"), next_days="days").sort("days")
    rows = (
        lab_days.sort("days")
        .join_asof(targets, on="days", by="id", strategy="forward", allow_exact_matches=False, check_sortedness=False)
        .join(people.select("id", "futime", "status"), on="id", how="left")
        .filter(pl.col("futime") > pl.col("days"))
    )
    observed = (pl.col("next_days") <= pl.col("futime")).fill_null(False)
    until = pl.when(observed).then("next_days").otherwise("futime")
    return rows.select(
        "id",
        "days",
        (until - pl.col("days")).cast(pl.Float64).alias("time_to_event_days"),
        observed.alias("event_observed"),
        (~observed & (pl.col("status") == 1)).alias(label_tables.COMPETING),
    ).sort("id", "days")


def new_diagnosis_labels(times: pl.DataFrame, horizon_days: int) -> pl.DataFrame:
    """Is there a diagnosis that the person never had, in (day, day + horizon]?

    A death before any diagnosis is a negative label: death is a competing event. Whoever is censored first has none.

    Args:
      times: as time_to_diagnosis returns. horizon_days: length of the window.

    Returns:
      id, days, boolean_value, by (id, days).
    """
    known = times.rename({"id": "subject_id", "days": "prediction_time", label_tables.COMPETING: "died"})
    labels = outcomes.within_horizon(known, horizon_days)
    return labels.rename({"subject_id": "id", "prediction_time": "days"})


def _write_labels(
    folder: Path, people: pl.DataFrame, values: pl.DataFrame, diagnoses: pl.DataFrame, seed: int, ledger: Ledger
) -> None:
    index = _index_days(people, seed)
    prediction_time = _day_end().alias("prediction_time")
    all_days = values.select("id", "days").unique()
    lab_days = all_days.filter(pl.col("days") >= 0)
    ledger.add(
        "lab days on or after the index date",
        len(lab_days),
        len(all_days) - len(lab_days),
        "before the index date, which would be known only later",
    )
    times = time_to_diagnosis(lab_days, diagnoses, people)
    ledger.add(
        "lab days of people who are followed at the day's end",
        len(times),
        len(lab_days) - len(times),
        "dead or no longer followed",
    )

    def write(task: str, labels: pl.DataFrame) -> None:
        table = labels.join(index, on="id", maintain_order="left")
        table = table.select(pl.col("id").alias("subject_id"), prediction_time, *labels.columns[2:])
        meds.write_labels(folder / "labels" / f"{task}.parquet", table)

    write("time_to_new_diagnosis", times)
    for horizon in HORIZONS_DAYS:
        labels = new_diagnosis_labels(times, horizon)
        write(f"new_diagnosis_{horizon}d", labels)
        positive = int(labels["boolean_value"].sum())
        step = f"rows at risk, {horizon} d ({positive:,} positive)"
        ledger.add(step, len(labels), len(times) - len(labels), "censored first")
    followed = people.filter(pl.col("futime") > 0).join(index, on="id")
    table = followed.with_columns(days=pl.lit(0)).select(
        pl.col("id").alias("subject_id"),
        prediction_time,
        pl.col("futime").cast(pl.Float64).alias("time_to_event_days"),
        (pl.col("status") == 1).alias("event_observed"),
    )
    meds.write_labels(folder / "labels" / "death.parquet", table)
    ledger.add(
        "people with a survival time from the index date",
        len(table),
        len(people) - len(table),
        "not followed beyond the index date",
    )


# ------------------------------------------------------------------------------------------- build
def build(source_dir: Path, root: Path, *, seed: int = 0, progress: bool = True, strict: bool = True) -> list[dict]:
    """Writes the raw dataset root: meds/, labels/ and counts.json. There is no wearable side.

    Labels: new_diagnosis_{30,90,180,365}d (binary) and time_to_new_diagnosis (survival), at the end of every lab day on
    or after the index date, of a diagnosis that the person never had; death (survival, at the end of the index day).
    labels/design.json says how they were made. People are grouped by matched set, which
    splits (80/10/10, by a hash of set and seed) respect.

    Args:
      source_dir: folder with nafld1.csv, nafld2.csv and nafld3.csv.
      root: folder to write to; must not hold a dataset yet, except what an interrupted call left.
      seed: of index dates, birthdays and splits.
      progress: print each step.
      strict: a count that differs from the published one is an error.

    Returns:
      The records of counts.json: step, n, dropped, reason.

    Raises:
      FileNotFoundError: a source file is missing.
      ValueError: a malformed source, a count that is not the published one, or a root in use.
    """
    ledger = Ledger("nafld", progress)
    people, all_values, diagnoses = _read(source_dir, strict, ledger)
    values = _drop_copied_tests(all_values, ledger)
    unique = values.unique(maintain_order=True)
    repeated = len(values) - len(unique)
    ledger.add("distinct dated values", len(unique), repeated, "same person, day, test and value as another row")
    first = len(first_diagnoses(diagnoses))
    ledger.add("first diagnoses", first, len(diagnoses) - first, "repeat an earlier one: events, but never targets")

    groups = pl.DataFrame({"subject_id": people["id"], "group_id": group_ids(people)})
    alone = int(people["case.id"].null_count())
    n_sets = groups["group_id"].n_unique()
    ledger.add("matched sets", n_sets, 0, f"{alone} people without case.id are sets of one")
    splits = groups.select("subject_id", pl.Series("split", hashed_splits(groups["group_id"].to_numpy(), seed)))
    events = _events(people, unique, diagnoses, seed, ledger)
    with staged(root) as folder:
        meds.write_dataset(folder, events, meds.Metadata("nafld", "survival", code_table(), splits, groups=groups))
        ledger.add("events written", len(events))
        # Every day with a row of nafld2 is a lab day, whether or not its row was a copy.
        _write_labels(folder, people, all_values, diagnoses, seed, ledger)
        parquet.write_json(DESIGN, folder / "labels" / "design.json")
        ledger.write(folder)
    return ledger.records


def _read(source_dir: Path, strict: bool, ledger: Ledger) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The tables of read_source, with the rows of known people within their follow-up."""
    people, values, diagnoses = read_source(source_dir)
    for what, table in zip(PUBLISHED, (people, values, diagnoses), strict=True):
        ledger.published(what, len(table), PUBLISHED[what], strict)
    values = _within_followup(values, people, "dated values", ledger)
    return people, values, _within_followup(diagnoses, people, "dated diagnoses", ledger)


def _within_followup(table: pl.DataFrame, people: pl.DataFrame, what: str, ledger: Ledger) -> pl.DataFrame:
    known = table.join(people.select("id", "futime"), on="id", how="left", maintain_order="left")
    kept = known.filter(pl.col("days") <= pl.col("futime"))
    strangers = int(known["futime"].null_count())
    late = len(known) - len(kept) - strangers
    why = f"{strangers:,} of people not in nafld1.csv, {late:,} after futime"
    ledger.add(f"{what} of known people within follow-up", len(kept), strangers + late, why)
    return kept.drop("futime")
