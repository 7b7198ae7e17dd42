"""NAFLD cohort (Olmsted County, 17,549 people): three CSV files -> MEDS events and labels.

Source: `nafld1`, `nafld2` and `nafld3` of the R package survival (https://cran.r-project.org/package=
survival; Allen et al., Hepatology 67, 2018), exported from R by
    for (n in c("nafld1", "nafld2", "nafld3"))
      write.csv(get(n, asNamespace("survival")), paste0(n, ".csv"), row.names = FALSE)

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

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.sources.csv_source import (
    DAY_US,
    Ledger,
    day_number,
    hashed_splits,
    hashed_uniform,
    read_csv,
    require_unique,
    require_values,
    staged,
    timestamps,
)

HOW_TO_GET = (
    "export nafld1, nafld2 and nafld3 of the R package survival with write.csv, as the docstring of "
    "ehrwear_jax/data/sources/nafld.py shows"
)
PUBLISHED = {"people": 17_549, "dated values": 400_123, "dated diagnoses": 34_327}
HORIZONS_DAYS = (30, 90, 180, 365)
FOLLOWUP_END = "FOLLOWUP_END"
INDEX_DIAGNOSIS = "nafld"
DAYS_PER_YEAR = 365.25
# Enrolment years of the study; index dates are drawn from them.
_INDEX_FIRST, _INDEX_LAST = "1997-01-01", "2014-12-31"

_PEOPLE_SCHEMA = {
    "id": pl.Int64,
    "age": pl.Float64,
    "male": pl.Int64,
    "weight": pl.Float64,
    "height": pl.Float64,
    "bmi": pl.Float64,
    "case.id": pl.Int64,
    "futime": pl.Int64,
    "status": pl.Int64,
}
_VALUES_SCHEMA = {"id": pl.Int64, "days": pl.Int64, "test": pl.String, "value": pl.Float64}
_DIAGNOSES_SCHEMA = {"id": pl.Int64, "days": pl.Int64, "event": pl.String}

# test -> (code, description). Units as the ranges of the values imply; the source gives none.
TESTS = {
    "chol": ("LAB//chol", "Total cholesterol, mg/dL"),
    "hdl": ("LAB//hdl", "HDL cholesterol, mg/dL"),
    "fib4": ("LAB//fib4", "FIB-4 index of liver fibrosis"),
    "sbp": ("VITAL//sbp", "Systolic blood pressure, mmHg"),
    "dbp": ("VITAL//dbp", "Diastolic blood pressure, mmHg"),
    "smoke": ("SMOKE", "Smoking: 1 yes, 0 no"),
}
# (copy, original) pairs of tests that the source may hold twice under two names.
COPIED_TESTS = (("chol", "hdl"), ("dbp", "sbp"))
# Inclusive; outside it a value is a typing error (the source has 13,682 mmHg) and becomes null.
PLAUSIBLE = {"sbp": (40.0, 300.0), "dbp": (20.0, 300.0)}
DIAGNOSES = {
    "nafld": ("DX//nafld", "Non-alcoholic fatty liver disease"),
    "htn": ("DX//htn", "Hypertension"),
    "diabetes": ("DX//diabetes", "Diabetes mellitus"),
    "dyslipidemia": ("DX//dyslipidemia", "Dyslipidaemia"),
    "ang/isc": ("DX//angina_ischemia", "Angina or ischaemic heart disease"),
    "MI": ("DX//mi", "Myocardial infarction"),
    "heart failure": ("DX//heart_failure", "Heart failure"),
    "afib": ("DX//afib", "Atrial fibrillation"),
    "stroke": ("DX//stroke", "Stroke"),
    "cardiac arrest": ("DX//cardiac_arrest", "Cardiac arrest"),
}
BASELINE = {
    "height": ("VITAL//height", "Height, cm"),
    "weight": ("VITAL//weight", "Weight, kg"),
    "bmi": ("VITAL//bmi", "Body mass index, kg/m2"),
}
# ICD-10 chapters of the diagnoses, as their parents; the chapters' parent is the classification.
ICD10 = "ICD10"
CHAPTERS = {
    "ICD10//IV": ("Endocrine, nutritional and metabolic diseases", ("diabetes", "dyslipidemia")),
    "ICD10//IX": (
        "Diseases of the circulatory system",
        ("htn", "ang/isc", "MI", "heart failure", "afib", "stroke", "cardiac arrest"),
    ),
    "ICD10//XI": ("Diseases of the digestive system", ("nafld",)),
}
_OTHER_CODES = {
    meds.BIRTH_CODE: "Birth",
    meds.DEATH_CODE: "Death",
    FOLLOWUP_END: "End of follow-up (administrative)",
    "GENDER//M": "Male",
    "GENDER//F": "Female",
}


# ------------------------------------------------------------------------------------------ source
def read_source(source_dir: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The three tables with the columns of the source, checked.

    Returns:
      people: id, age (whole years at index), male, weight (kg), height (cm), bmi, case.id (nullable),
        futime (days from index to death or last contact), status (1: died).
      values: id, days (from index), test, value.
      diagnoses: id, days (from index), event.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a malformed column, an unknown test or diagnosis, a repeated person.
    """
    folder = Path(source_dir)
    needed = ("id", "age", "male", "futime", "status")
    path = folder / "nafld1.csv"
    people = read_csv(path, _PEOPLE_SCHEMA, HOW_TO_GET, required=needed)
    require_unique(people, "id", path)
    require_values(people, "male", (0, 1), path)
    require_values(people, "status", (0, 1), path)
    if (people["futime"] < 0).any():
        row = int((people["futime"] < 0).arg_max())
        raise ValueError(f"{path}: row {row + 1}: column 'futime' is negative")
    path = folder / "nafld2.csv"
    values = read_csv(path, _VALUES_SCHEMA, HOW_TO_GET, required=tuple(_VALUES_SCHEMA))
    require_values(values, "test", TESTS, path)
    path = folder / "nafld3.csv"
    diagnoses = read_csv(path, _DIAGNOSES_SCHEMA, HOW_TO_GET, required=tuple(_DIAGNOSES_SCHEMA))
    require_values(diagnoses, "event", DIAGNOSES, path)
    return people, values, diagnoses


def group_ids(people: pl.DataFrame) -> pl.Series:
    """int64: the matched set `case.id`; a person without one is a set of their own, `-id`.

    Ids are positive, so that a negative group never meets a matched set.
    """
    return people.select(pl.col("case.id").fill_null(-pl.col("id")).alias("group_id"))["group_id"]


def _index_days(ids_N, seed: int) -> np.ndarray:
    first, last = day_number(_INDEX_FIRST), day_number(_INDEX_LAST)
    draw_N = hashed_uniform(ids_N, seed, "index date")
    return first + (draw_N * (last - first + 1)).astype(np.int64)


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
def _events(people, values, diagnoses, seed: int, ledger: Ledger) -> pl.DataFrame:
    """All MEDS events; see the module's docstring for the time rules."""
    ids_N = people["id"].to_numpy()
    index_N = _index_days(ids_N, seed)
    fraction_N = hashed_uniform(ids_N, seed, "birth")
    age_days_N = (people["age"].to_numpy() + fraction_N) * DAYS_PER_YEAR
    birth_us_N = index_N * DAY_US - np.rint(age_days_N * DAY_US).astype(np.int64)
    index = people.select("id").with_columns(pl.Series("index_day", index_N))

    def at_day_end(frame: pl.DataFrame) -> pl.DataFrame:
        last_us = (pl.col("index_day") + pl.col("days") + 1) * DAY_US - 1
        return frame.join(index, on="id", how="left", maintain_order="left").select(
            pl.col("id").alias("subject_id"),
            last_us.cast(pl.Datetime("us")).alias("time"),
            "code",
            pl.col("numeric_value").cast(pl.Float32),
        )

    def rename(mapping: dict) -> Callable[[str], pl.Expr]:
        codes = {name: code for name, (code, _) in mapping.items()}
        return lambda column: pl.col(column).replace_strict(codes).alias("code")

    def code_only(code: str, days: pl.Expr, of: pl.DataFrame) -> pl.DataFrame:
        return of.select("id", days.alias("days"), code=pl.lit(code), numeric_value=pl.lit(None))

    no_value = pl.lit(None, dtype=pl.Float32).alias("numeric_value")
    static = people.select(
        pl.col("id").alias("subject_id"),
        pl.lit(None, dtype=pl.Datetime("us")).alias("time"),
        pl.when(pl.col("male") == 1).then(pl.lit("GENDER//M")).otherwise(pl.lit("GENDER//F")).alias("code"),
        no_value,
    )
    birth = people.select(
        pl.col("id").alias("subject_id"),
        timestamps(birth_us_N),
        pl.lit(meds.BIRTH_CODE).alias("code"),
        no_value,
    )
    measured = values.select("id", "days", rename(TESTS)("test"), _plausible(values, ledger).alias("numeric_value"))
    diagnosed = diagnoses.select("id", "days", rename(DIAGNOSES)("event"), numeric_value=pl.lit(None))
    baseline = (
        people.select("id", *BASELINE)
        .unpivot(index="id", variable_name="what", value_name="numeric_value")
        .drop_nulls("numeric_value")
        .select("id", pl.lit(0, dtype=pl.Int64).alias("days"), rename(BASELINE)("what"),
                "numeric_value")
    )  # fmt: skip
    ledger.add(
        "height, weight and bmi, known from the index date on", len(baseline),
        len(BASELINE) * len(people) - len(baseline), "missing in nafld1.csv",
    )  # fmt: skip
    deaths = code_only(meds.DEATH_CODE, pl.col("futime"), people.filter(pl.col("status") == 1))
    ends = code_only(FOLLOWUP_END, pl.col("futime"), people)
    ledger.add("deaths", len(deaths))
    dated = [at_day_end(part) for part in (measured, diagnosed, baseline, deaths, ends)]
    events = pl.concat([static, birth, *dated])
    too_early = events.join(birth.select("subject_id", born="time"), on="subject_id").filter(
        pl.col("time") < pl.col("born")
    )
    if len(too_early):
        raise ValueError(f"nafld: person {too_early['subject_id'][0]} has {too_early['code'][0]} before birth")
    return events


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
def new_diagnosis_labels(
    lab_days: pl.DataFrame,
    diagnoses: pl.DataFrame,
    people: pl.DataFrame,
    horizon_days: int,
    *,
    first_only: bool = False,
    death: str = "negative",
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Is there a new diagnosis in (day, day + horizon], for people still followed at the day's end?

    Args:
      lab_days: id, days; unique, on or after the index.
      diagnoses: id, days, event of the source; the index diagnosis never counts.
      people: id, futime, status.
      horizon_days: length of the window.
      first_only: count only the first row of each (id, event); the source has some twice (a second
        stroke, for example), and by default each of them counts.
      death: what a death within the horizon and before any diagnosis is: 'negative' (a competing
        event), 'censored' (excluded) or 'composite' (positive).

    Returns:
      (id, days, boolean_value) ordered by (id, days), and {reason: rows left out}.
    """
    if death not in ("negative", "censored", "composite"):
        raise ValueError(f"death is '{death}', none of negative, censored, composite")
    targets = diagnoses.filter(pl.col("event") != INDEX_DIAGNOSIS)
    if first_only:
        targets = targets.group_by("id", "event").agg(pl.col("days").min())
    targets = targets.select("id", pl.col("days"), next_days="days").sort("days")
    rows = (
        lab_days.sort("days")
        .join_asof(
            targets, on="days", by="id", strategy="forward", allow_exact_matches=False,
            check_sortedness=False,
        )
        .join(people.select("id", "futime", "status"), on="id", how="left")
        .with_columns(
            diagnosed=(pl.col("next_days") - pl.col("days") <= horizon_days).fill_null(False),
            followed=pl.col("futime") - pl.col("days"),
        )
        .with_columns(died=(pl.col("status") == 1) & (pl.col("followed") <= horizon_days))
    )  # fmt: skip
    over = pl.col("followed") <= 0
    censored = ~pl.col("diagnosed") & (pl.col("followed") < horizon_days) & ~pl.col("died")
    dead_first = ~pl.col("diagnosed") & (pl.col("followed") < horizon_days) & pl.col("died")
    left_out = {"dead or no longer followed at the day's end": over, "censored first": ~over & censored}
    if death == "censored":
        left_out["died first"] = ~over & dead_first
    counts = {why: int(rows.select(mask.sum()).item()) for why, mask in left_out.items()}
    positive = pl.col("diagnosed") | (pl.col("died") if death == "composite" else pl.lit(False))
    kept = rows.filter(~pl.any_horizontal(*left_out.values()))
    labels = kept.select("id", "days", boolean_value=positive).sort("id", "days")
    return labels, counts


def _write_labels(folder, people, values, diagnoses, seed, first_only, death, ledger) -> None:
    index = people.select("id").with_columns(pl.Series("index_day", _index_days(people["id"].to_numpy(), seed)))
    prediction_us = (pl.col("index_day") + pl.col("days") + 1) * DAY_US - 1
    prediction_time = prediction_us.cast(pl.Datetime("us")).alias("prediction_time")
    all_days = values.select("id", "days").unique()
    lab_days = all_days.filter(pl.col("days") >= 0)
    ledger.add(
        "lab days on or after the index date", len(lab_days), len(all_days) - len(lab_days),
        "before the index date, which would be known only later",
    )  # fmt: skip
    for horizon in HORIZONS_DAYS:
        labels, left_out = new_diagnosis_labels(
            lab_days, diagnoses, people, horizon, first_only=first_only, death=death
        )
        table = labels.join(index, on="id").select(pl.col("id").alias("subject_id"), prediction_time, "boolean_value")
        meds.write_labels(folder / "labels" / f"new_diagnosis_{horizon}d.parquet", table)
        positive = int(labels["boolean_value"].sum())
        why = ", ".join(f"{n:,} {reason}" for reason, n in left_out.items())
        ledger.add(f"rows at risk, {horizon} d ({positive:,} positive)", len(labels),
                   sum(left_out.values()), why)  # fmt: skip
    followed = people.filter(pl.col("futime") > 0).join(index, on="id")
    table = followed.with_columns(days=pl.lit(0)).select(
        pl.col("id").alias("subject_id"),
        prediction_time,
        pl.col("futime").cast(pl.Float64).alias("time_to_event_days"),
        (pl.col("status") == 1).alias("event_observed"),
    )
    meds.write_labels(folder / "labels" / "death.parquet", table)
    ledger.add("people with a survival time from the index date", len(table),
               len(people) - len(table), "not followed beyond the index date")  # fmt: skip


# ------------------------------------------------------------------------------------------- build
def build(
    source_dir: Path,
    root: Path,
    *,
    seed: int = 0,
    progress: bool = True,
    strict: bool = True,
    first_only: bool = False,
    death: str = "negative",
    drop_copied_tests: bool = True,
) -> list[dict]:
    """Writes the raw dataset root: meds/, labels/ and counts.json. There is no wearable side.

    Labels: new_diagnosis_{30,90,180,365}d (binary, at the end of every lab day on or after the index
    date) and death (survival, at the end of the index day). People are grouped by matched set, which
    splits (80/10/10, by a hash of set and seed) respect.

    Args:
      source_dir: folder with nafld1.csv, nafld2.csv and nafld3.csv.
      root: folder to write to; must not hold a dataset yet, except what an interrupted call left.
      seed: of index dates, birthdays and splits.
      progress: print each step.
      strict: a count that differs from the published one is an error.
      first_only, death: see new_diagnosis_labels.
      drop_copied_tests: leave out a test that copies another; see the module's docstring.

    Returns:
      The records of counts.json: step, n, dropped, reason.

    Raises:
      FileNotFoundError: a source file is missing.
      ValueError: a malformed source, a count that is not the published one, or a root in use.
    """
    ledger = Ledger("nafld", progress)
    people, values, diagnoses = read_source(source_dir)
    for what, table in zip(PUBLISHED, (people, values, diagnoses), strict=True):
        ledger.published(what, len(table), PUBLISHED[what], strict)
    values, diagnoses = (
        _within_followup(table, people, what, ledger)
        for table, what in ((values, "dated values"), (diagnoses, "dated diagnoses"))
    )
    all_values = values
    if drop_copied_tests:
        values = _drop_copied_tests(values, ledger)
    unique = values.unique(maintain_order=True)
    ledger.add("distinct dated values", len(unique), len(values) - len(unique),
               "same person, day, test and value as another row")  # fmt: skip
    values = unique
    repeats = len(diagnoses) - len(diagnoses.unique(["id", "event"]))
    role = "not targets" if first_only else "targets like the first"
    ledger.add("diagnoses that repeat an earlier one of the person", repeats, 0, f"kept; {role}")

    groups = pl.DataFrame({"subject_id": people["id"], "group_id": group_ids(people)})
    alone = int(people["case.id"].null_count())
    ledger.add("matched sets", groups["group_id"].n_unique(), 0,
               f"{alone} people without case.id are sets of one")  # fmt: skip
    splits = groups.select("subject_id", pl.Series("split", hashed_splits(groups["group_id"].to_numpy(), seed)))
    events = _events(people, values, diagnoses, seed, ledger)
    described = {**_OTHER_CODES, **dict([*TESTS.values(), *DIAGNOSES.values(), *BASELINE.values()])}
    described |= {chapter: text for chapter, (text, _) in CHAPTERS.items()}
    described[ICD10] = "Any diagnosis of ICD-10"
    parents = {DIAGNOSES[name][0]: [chapter] for chapter, (_, names) in CHAPTERS.items() for name in names}
    parents |= {chapter: [ICD10] for chapter in CHAPTERS}
    codes = pl.DataFrame(
        {
            "code": list(described),
            "description": list(described.values()),
            "parent_codes": pl.Series([parents.get(c, []) for c in described], dtype=pl.List(pl.String)),
        }
    )
    with staged(root) as folder:
        meds.write_dataset(folder, events, codes, splits, name="nafld", version="survival", groups=groups)
        ledger.add("events written", len(events))
        # Every day with a row of nafld2 is a lab day, whether or not its row was a copy.
        _write_labels(folder, people, all_values, diagnoses, seed, first_only, death, ledger)
        ledger.write(folder)
    return ledger.records


def _within_followup(table, people, what: str, ledger: Ledger) -> pl.DataFrame:
    known = table.join(people.select("id", "futime"), on="id", how="left", maintain_order="left")
    kept = known.filter(pl.col("days") <= pl.col("futime"))
    strangers = int(known["futime"].null_count())
    late = len(known) - len(kept) - strangers
    ledger.add(f"{what} of known people within follow-up", len(kept), strangers + late,
               f"{strangers:,} of people not in nafld1.csv, {late:,} after futime")  # fmt: skip
    return kept.drop("futime")
