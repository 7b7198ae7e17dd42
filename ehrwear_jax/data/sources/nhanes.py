"""Builds a MEDS dataset, wearable tables and labels from NHANES 2003-2006: an examination and a week of accelerometry.

Which public tables the source folder holds and where to get them: the docstring of nhanes_files.py.

There are no dates in NHANES, so a week is drawn per person within the survey cycle (a hash of SEQN and seed), and the
days of wear fall on the recorded weekdays. The examination is the day before the first day of wear; what it found is
known at that day's end. Age is known in completed months; birth lies that many months plus a drawn fraction of one
before the examination. Averages over the week of wear are known only when the week ends: they are recordings whose
last sample ends with it. Mortality is in the label table only, never in the event stream: nobody was followed in
records, and an encoder that is pretrained on everyone must not see the outcome.
"""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from ehrwear_jax.data.formats import meds, parquet, wearable
from ehrwear_jax.data.formats.times import DAY_US, MONTH_DAYS
from ehrwear_jax.data.sources.csv_source import (
    Ledger,
    day_number,
    hashed_splits,
    hashed_uniform,
    staged,
    timestamps,
)
from ehrwear_jax.data.sources.nhanes_files import (
    ANSWERED,
    CYCLE_NAME,
    CYCLE_SUNDAY,
    GENDERS,
    MAX_COUNT,
    MEASURED,
    PROFILE,
    RACES,
    WEEK_DAYS,
    Flags,
    read_counts,
    read_people,
)

PUBLISHED = {
    "people in the survey": 20_470,
    "people with wear flags": 14_631,
    "people with minute counts": 316,
    "adults in the analysis table": 6_680,
    "people with a wear summary and known vital status": 5_964,
    "deaths among them": 1_068,
}
TASK = "all_cause_mortality"
DEVICE = "ActiGraph AM-7164"
SUBJECTS_PER_SHARD = 2000
_WEEKS_PER_CYCLE = 102
WEAR_FLAG, ACTIVITY_COUNT, ACTIVITY_PROFILE = "wear_flag", "activity_count", "activity_profile"
# column of ida6680.csv -> (channel, unit, valid_min, valid_max, description); activity is in counts per minute.
DAILY_CHANNELS = {
    "tac": ("total_activity", "count", 0.0, 1e7, "Sum of counts in a day"),
    "tlac": ("total_log_activity", "1", 0.0, 2e4, "Sum of log(1 + count) over the minutes of a day"),
    "wt": ("wear_time", "min", 0.0, 1440.0, "Minutes worn in a day"),
    "st": ("sedentary_time", "min", 0.0, 1440.0, "Sedentary minutes in a day, minutes without wear included"),
    "mvpa": ("mvpa_time", "min", 0.0, 1440.0, "Minutes of moderate or vigorous activity in a day"),
    "about": ("active_bout_length", "min", 0.0, 1440.0, "Mean length of an active bout"),
    "sbout": ("sedentary_bout_length", "min", 0.0, 1440.0, "Mean length of a sedentary bout"),
    "satp": ("sedentary_to_active", "1", 0.0, 1.0, "Probability of turning active in a sedentary minute"),
    "astp": ("active_to_sedentary", "1", 0.0, 1.0, "Probability of turning sedentary in an active minute"),
}

SURVEY_COLUMNS = ("WTINT2YR", "WTMEC2YR", "SDMVSTRA", "SDMVPSU")  # the design of the survey

# How the labels were made, for the report; see data/labels/task_design.py.
DESIGN = {
    "time_zero": "The end of the week of wear that follows the examination.",
    "eligibility": "Adults with a valid summary of their wear and a known vital status, alive at the end of that week.",
    "outcome": "Death from any cause; the time to it.",
    "follow_up": "From the end of the week of wear to the end of the linked mortality file, in months from the "
    "examination.",
    "competing_events": "None.",
    "censoring": "Time-to-event labels are censored at the end of the linked follow-up.",
}


def _evaluated(people: pl.DataFrame) -> pl.DataFrame:
    """People with a wear summary and a known vital status; tac is null where no day of wear was valid."""
    return people.filter(pl.col("tac").is_not_null() & pl.col("mortstat").is_not_null())


# -------------------------------------------------------------------------------------------------------------- events
def _age_months(people: pl.DataFrame) -> np.ndarray:
    """Completed months at the examination; else at the interview, days to weeks before; else years, 85 meaning 85+."""
    return people.select(pl.coalesce("RIDAGEEX", "RIDAGEMN", pl.col("RIDAGEYR") * 12))["RIDAGEEX"].to_numpy()


def wear_start_days(people: pl.DataFrame, first_weekday: dict[int, int], seed: int) -> np.ndarray:
    """int64 [N]: days since 1970-01-01 of the first day of the week after the examination.

    Args:
      people: SEQN, SDDSRVYR.
      first_weekday: SEQN -> weekday (1 = Sunday) of the first day of wear; drawn for everyone else.
      seed: of the draws.
    """
    ids_N = people["SEQN"].to_numpy()
    week_N = (hashed_uniform(ids_N, seed, "week") * _WEEKS_PER_CYCLE).astype(np.int64)
    drawn_N = 1 + (hashed_uniform(ids_N, seed, "weekday") * WEEK_DAYS).astype(np.int64)
    weekday_N = np.array([first_weekday.get(i, d) for i, d in zip(ids_N.tolist(), drawn_N.tolist(), strict=True)])
    sunday_N = np.array([day_number(CYCLE_SUNDAY[cycle]) for cycle in people["SDDSRVYR"]])
    return sunday_N + WEEK_DAYS * week_N + weekday_N - 1


def _events(people: pl.DataFrame, wear_start_N: np.ndarray, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(events, codes): birth and statics, and the examination at the end of the day before the wear."""
    fraction_N = hashed_uniform(people["SEQN"].to_numpy(), seed, "birth")
    before_us_N = np.rint((_age_months(people) + fraction_N) * MONTH_DAYS * DAY_US).astype(np.int64)
    people = people.rename({"SEQN": "subject_id"}).with_columns(
        timestamps((wear_start_N - 1) * DAY_US - before_us_N).alias("birth"),
        timestamps(wear_start_N * DAY_US - 1).alias("exam"),
    )
    no_time, no_value = pl.lit(None, dtype=pl.Datetime("us")), pl.lit(None, dtype=pl.Float32)

    def part(code: pl.Expr, time: pl.Expr, value: pl.Expr = no_value) -> pl.DataFrame:
        return people.select(
            "subject_id", time.alias("time"), code.alias("code"), value.cast(pl.Float32).alias("numeric_value")
        ).drop_nulls("code")

    parts = [
        part(pl.col("Gender").replace_strict(GENDERS), no_time),
        part(pl.col("Race").replace_strict(RACES), no_time),
        part(pl.lit(meds.BIRTH_CODE), pl.col("birth")),
    ]
    for column, (code, _) in MEASURED.items():
        parts.append(part(pl.lit(code), pl.col("exam"), pl.col(column)).drop_nulls("numeric_value"))
    for column, answers in ANSWERED.items():
        code_of = {answer: code for answer, (code, _) in answers.items()}
        value = pl.col("DrinksPerWeek") if column == "DrinkStatus" else no_value
        parts.append(part(pl.col(column).replace_strict(code_of, default=None), pl.col("exam"), value))
    described = [(meds.BIRTH_CODE, "Birth"), *MEASURED.values()]
    described += [pair for answers in ANSWERED.values() for pair in answers.values()]
    described += [(code, answer) for names in (GENDERS, RACES) for answer, code in names.items()]
    codes = pl.DataFrame(described, schema=["code", "description"], orient="row")
    return pl.concat(parts), codes.with_columns(parent_codes=pl.lit([], dtype=pl.List(pl.String)))


# ------------------------------------------------------------------------------------------------------------ wearable
def channels() -> pl.DataFrame:
    """The table of channels (wearable.CHANNEL_SCHEMA)."""
    rows = [
        (WEAR_FLAG, "1", "1: worn in that minute, 0: not", 0.0, 1.0),
        (ACTIVITY_COUNT, "count/min", "Vertical activity counts in a worn minute", 0.0, float(MAX_COUNT)),
        (ACTIVITY_PROFILE, "1", "Sum of log(1 + count) per two hours, mean over the valid days", 0.0, 2000.0),
    ]
    rows += [
        (name, unit, f"{text}, mean over the valid days", low, high)
        for name, unit, low, high, text in DAILY_CHANNELS.values()
    ]
    return pl.DataFrame(rows, schema=list(wearable.CHANNEL_SCHEMA), orient="row")


def _recordings(
    people: pl.DataFrame, wear_start: dict[int, int], flags: Flags, counts: dict[int, dict[int, np.ndarray]]
) -> pl.DataFrame:
    """All recordings of some people, rows of a person together (wearable.ROW_SCHEMA)."""
    rows = []

    def add(seqn: int, start_day: int, seconds: int, channel: str, values: ArrayLike, unit: str) -> None:
        values = np.asarray(values, np.float32)
        rows.append((seqn, start_day * DAY_US, 1.0 / seconds, channel, values, unit))

    for person in people.iter_rows(named=True):
        seqn = person["SEQN"]
        start = wear_start[seqn]
        position = flags.position.get(seqn)
        if position is not None and flags.usable_P[position]:
            add(seqn, start, 60, WEAR_FLAG, flags.of(seqn).reshape(-1), "1")
            for day, counts_1440 in sorted(counts.get(seqn, {}).items()):
                add(seqn, start + day, 60, ACTIVITY_COUNT, counts_1440, "count/min")
        last_day = start + WEEK_DAYS - 1
        if person["tac"] is not None:
            add(seqn, last_day, 7200, ACTIVITY_PROFILE, [person[c] for c in PROFILE], "1")
            for column, (channel, unit, *_) in DAILY_CHANNELS.items():
                add(seqn, last_day, 86_400, channel, [person[column]], unit)
    frame = pl.DataFrame(
        {
            "subject_id": [row[0] for row in rows],
            "start_time": timestamps([row[1] for row in rows]),
            "sample_rate_hz": [row[2] for row in rows],
            "channel": [row[3] for row in rows],
            "values": pl.Series([row[4] for row in rows], dtype=pl.List(pl.Float32)),
            "unit": [row[5] for row in rows],
        },
        schema_overrides={
            "subject_id": pl.Int64,
            "sample_rate_hz": pl.Float64,
            "channel": pl.String,
            "unit": pl.String,
        },
    )
    return frame.with_columns(device=pl.lit(DEVICE))


# --------------------------------------------------------------------------------------------------------------- build
def _labels(people: pl.DataFrame, wear_start: dict[int, int], ledger: Ledger) -> pl.DataFrame:
    evaluated = _evaluated(people)
    start_N = np.array([wear_start[seqn] for seqn in evaluated["SEQN"]], np.int64)
    # Follow-up is counted in months from the examination, whose day ends seven days before the prediction time.
    days = pl.col("permth_exm") * MONTH_DAYS - WEEK_DAYS
    labels = evaluated.select(
        pl.col("SEQN").alias("subject_id"),
        timestamps((start_N + WEEK_DAYS) * DAY_US).alias("prediction_time"),
        days.alias("time_to_event_days"),
        (pl.col("mortstat") == 1).alias("event_observed"),
    )
    kept = labels.filter(pl.col("time_to_event_days") > 0)
    ledger.add("people labelled at the end of the week of wear", len(kept), len(labels) - len(kept),
               "followed for less than the week of wear, or for an unknown time")  # fmt: skip
    return kept


def build(
    source_dir: Path,
    root: Path,
    *,
    seed: int = 0,
    n_folds: int = 5,
    progress: bool = True,
    strict: bool = True,
) -> list[dict]:
    """Writes the raw dataset root: meds/, wearable/, labels/ and counts.json.

    Everyone who was examined is in the dataset. Those with a wear summary and a known vital status are labelled
    (all_cause_mortality, survival, at the end of the week of wear) and have a fold 0..n_folds-1; all others have fold
    -1. Splits (80/10/10) and folds are hashes of SEQN and seed. metadata/subject_splits.parquet also has the column
    `cycle`, for a hold-out such as "site:cycle=2005-2006".

    Args:
      source_dir: folder with the files that the module's docstring lists.
      root: folder to write to; must not hold a dataset yet, except what an interrupted call left.
      seed: of pseudo-dates, birthdays, splits and folds.
      n_folds: folds of the evaluation; fewer than two: none.
      progress: print each step.
      strict: a count that differs from the published one is an error.

    Returns:
      The records of counts.json: step, n, dropped, reason.

    Raises:
      FileNotFoundError: a source file is missing.
      ValueError: a malformed source, a count that is not the published one, or a root in use.
    """
    ledger = Ledger("nhanes", progress)
    people, flags, counts = _read(source_dir, strict, ledger)
    first_weekday = dict(zip(flags.seqn_P.tolist(), flags.weekday_Px7[:, 0].tolist(), strict=True))
    wear_start_N = wear_start_days(people, first_weekday, seed)
    wear_start = dict(zip(people["SEQN"].to_list(), wear_start_N.tolist(), strict=True))
    labels = _labels(people, wear_start, ledger)
    ids_N = people["SEQN"].to_numpy()
    splits = pl.DataFrame({"subject_id": ids_N, "split": hashed_splits(ids_N, seed)})
    folds = folds_of(ids_N, labels, seed, n_folds, ledger) if n_folds > 1 else None
    sites = people.select(subject_id="SEQN", cycle=pl.col("SDDSRVYR").replace_strict(CYCLE_NAME))
    events, codes = _events(people, wear_start_N, seed)
    with staged(root) as folder:
        metadata = meds.Metadata("nhanes", "2003-2006", codes, splits, folds=folds, sites=sites)
        meds.write_dataset(folder, events, metadata, SUBJECTS_PER_SHARD)
        ledger.add("events written", len(events))
        table = channels()
        wearable.write_channels(folder / "wearable", table)
        n_rows = 0
        for split in meds.SPLITS:
            part = people.filter(splits["split"] == split)
            for shard, first in enumerate(range(0, len(part), SUBJECTS_PER_SHARD)):
                rows = _recordings(part[first : first + SUBJECTS_PER_SHARD], wear_start, flags, counts)
                if len(rows):
                    wearable.write_shard(folder / "wearable" / split / f"{shard}.parquet", rows, table)
                    n_rows += len(rows)
        ledger.add("recorded stretches written", n_rows)
        _write_beside(folder, people, sites, labels)
        ledger.write(folder)
    return ledger.records


def _write_beside(folder: Path, people: pl.DataFrame, sites: pl.DataFrame, labels: pl.DataFrame) -> None:
    """The survey's design, and the labels with theirs."""
    survey = people.select(pl.col("SEQN").alias("subject_id"), *SURVEY_COLUMNS)
    parquet.write_frame(survey.join(sites, on="subject_id"), meds.survey_path(folder / "meds"))
    meds.write_labels(folder / "labels" / f"{TASK}.parquet", labels)
    parquet.write_json(DESIGN, folder / "labels" / "design.json")


def _read(
    source_dir: Path, strict: bool, ledger: Ledger
) -> tuple[pl.DataFrame, Flags, dict[int, dict[int, np.ndarray]]]:
    """The people examined, wear flags and minute counts, with their counts beside the published ones."""
    people = read_people(source_dir)
    flags = Flags(source_dir)
    counts = read_counts(source_dir, flags, ledger)
    evaluated = _evaluated(people)
    n_ida, n_deaths = int(people["in_ida"].sum()), int(evaluated["mortstat"].sum())
    sizes = (len(people), len(flags.seqn_P), len(counts), n_ida, len(evaluated), n_deaths)
    for (what, expected), n in zip(PUBLISHED.items(), sizes, strict=True):
        ledger.published(what, n, expected, strict)
    examined = people.filter((pl.col("WTMEC2YR") > 0) | pl.col("SEQN").is_in(flags.seqn_P.tolist()))
    ledger.add("people examined", len(examined), len(people) - len(examined), "interviewed only")
    strangers = int((~np.isin(flags.seqn_P, examined["SEQN"].to_numpy())).sum())
    if strangers:
        raise ValueError(f"{flags.path}: {strangers} people are not in covariates.csv")
    unusable = int((~flags.usable_P).sum())
    why = "monitor out of calibration (PAXCAL) or data unreliable (PAXSTAT)"
    ledger.add("people with usable wear flags", len(flags.seqn_P) - unusable, unusable, why)
    n_counts = sum(bool(flags.usable_P[flags.position[seqn]]) for seqn in counts)
    ledger.add("people with usable minute counts", n_counts, len(counts) - n_counts, "the same")
    top_coded = int(examined.select(pl.coalesce("RIDAGEEX", "RIDAGEMN").is_null().sum()).item())
    why = f"{top_coded} others are 85 or older, taken as 85"
    ledger.add("people with age in months", len(examined) - top_coded, 0, why)
    return examined, flags, counts


def folds_of(ids_N: np.ndarray, labels: pl.DataFrame, seed: int, n_folds: int, ledger: Ledger) -> pl.DataFrame:
    """subject_id, fold: 0 to n_folds - 1 by a hash for those labelled, -1 for all others."""
    fold_N = (hashed_uniform(ids_N, seed, "fold") * n_folds).astype(np.int64)
    fold_N = np.where(np.isin(ids_N, labels["subject_id"].to_numpy()), fold_N, -1)
    sizes = ", ".join(str(int((fold_N == k).sum())) for k in range(n_folds))
    ledger.add("people in evaluation folds", int((fold_N >= 0).sum()), 0, f"{sizes}; all others pretrain only")
    return pl.DataFrame({"subject_id": ids_N, "fold": fold_N})
