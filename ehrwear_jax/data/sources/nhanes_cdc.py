"""Builds a MEDS dataset, wearable tables and labels from NHANES as the CDC publishes it: 2003-2006 and 2011-2014.

Files and where they come from: nhanes_cdc_files.py. What becomes an event: nhanes_cdc_events.py. The monitors:
nhanes_cdc_wear.py. The small joined form of 2003-2006 that needs no download is nhanes.py; codes, channels, task and
the choices below are the same there.

There are no dates in NHANES: the week of the examination is drawn (a hash of SEQN and seed) among those of the survey
cycle that lie in the half-year RIDEXMON, and its weekday is the one that the monitor recorded. What the examination
found is known at that day's end; the seven days after it are the week of wear. Recordings are as they were taken, the
zeros of a monitor in a drawer too: time not worn is found when windows are made (signals/non_wear.py). Means over the
week are known only when it ends. Mortality is in the label tables only, never in the event stream, and people are
observed until the week ends (subject_followup.parquet): nobody was followed in records.

Age is known in completed months up to 84 years in 2003-2006 and up to 19 in 2011-2014, else in years. Birth lies that
long and a drawn part of a month, or of a year, before the examination. The oldest, 85 or 80 and older, are taken as it.

metadata/subject_survey.parquet: weights of interview and examination for the two years of a cycle (WTINT2YR, WTMEC2YR;
divide by the number of cycles that you join), strata and primary sampling units (SDMVSTRA, SDMVPSU).
"""

from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import meds, parquet, wearable
from ehrwear_jax.data.formats.times import DAY_MINUTES, DAY_US, MONTH_DAYS
from ehrwear_jax.data.labels import followup
from ehrwear_jax.data.signals.rest_activity import non_wear_counts
from ehrwear_jax.data.sources import nhanes, nhanes_cdc_events, nhanes_cdc_files, nhanes_cdc_summary, nhanes_cdc_wear
from ehrwear_jax.data.sources.csv_source import (
    Ledger,
    day_number,
    hashed_splits,
    hashed_uniform,
    staged,
    timestamps,
)
from ehrwear_jax.data.sources.nhanes_cdc_files import CYCLES, Cycle
from ehrwear_jax.data.sources.nhanes_cdc_wear import ASLEEP, COUNTS, MIMS, STEPS, WORN, Recording
from ehrwear_jax.data.sources.nhanes_files import MAX_COUNT, WEEK_DAYS

TASK = nhanes.TASK
# Task -> UCOD_LEADING: heart and cerebrovascular diseases; malignant neoplasms
CAUSES = {"cardiovascular_mortality": (1, 5), "cancer_mortality": (2,)}
DEVICES = {True: nhanes.DEVICE, False: "ActiGraph GT3X+"}
ADULT_YEARS = 18
PEOPLE_PER_SHARD = 500  # of recordings, all of whose minutes are in memory
MIMS_PROFILE = "mims_profile"
_UNITS = {COUNTS: "count/min", STEPS: "steps/min", MIMS: "MIMS/min", WORN: "1", ASLEEP: "1"}
_OF_WEEK = {name: (channel, unit) for name, (channel, unit, *_) in nhanes.DAILY_CHANNELS.items()}
_OF_WEEK |= {"total_mims": ("total_mims", "MIMS"), "sleep": ("sleep_time", "min")}
_WEEKS_PER_CYCLE = 102
_SEASONS = {1: (11, 12, 1, 2, 3, 4), 2: (5, 6, 7, 8, 9, 10)}  # RIDEXMON -> months
DESIGN = nhanes.DESIGN | {
    "eligibility": f"Adults of {ADULT_YEARS} years and older with a valid day of wear and a known vital status, alive "
    "at the end of that week.",
    "competing_events": "None for death from any cause; of deaths by cause, death from another or an unknown one.",
}


# ---------------------------------------------------------------------------------------------------------------- times
class Weeks:
    """Draws on which day people were examined, and so on which the week of wear begins, the next one.

    Args:
      seed: of the draws.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._of: dict[tuple[int, int, int], np.ndarray] = {}

    def start(self, seqn: int, cycle: Cycle, season: float | None, weekday: int | None) -> int:
        """Days since 1970-01-01 of the first day of the week of wear.

        Args:
          season: RIDEXMON; None or another: any week of the cycle.
          weekday: of that day, 1 = Sunday; None: drawn.
        """
        ids = np.array([seqn])
        if weekday is None:
            weekday = 1 + int(hashed_uniform(ids, self._seed, "weekday")[0] * WEEK_DAYS)
        key = (cycle.number, int(season or 0), weekday)
        if key not in self._of:
            day_W = day_number(cycle.sunday) + WEEK_DAYS * np.arange(_WEEKS_PER_CYCLE) + weekday - 1
            month_W = (day_W - 1).astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) % 12 + 1
            inside_W = np.isin(month_W, _SEASONS.get(key[1], range(1, 13)))
            self._of[key] = day_W[inside_W]
        days = self._of[key]
        return int(days[int(hashed_uniform(ids, self._seed, "week")[0] * len(days))])


def _birth_days_before(people: pl.DataFrame, seed: int, ledger: Ledger) -> np.ndarray:
    """float64 [N]: days from birth to the examination's beginning."""
    u_N = hashed_uniform(people["SEQN"].to_numpy(), seed, "birth")
    months = pl.coalesce("RIDAGEEX", "RIDEXAGM", "RIDAGEMN")
    table = people.select(months=months, years=pl.col("RIDAGEYR"), oldest=_of_cycle(people, "oldest"))
    known_N = table["months"].is_not_null().to_numpy()
    top_N = ~known_N & (table["years"] >= table["oldest"]).to_numpy()
    months_N = table["months"].fill_null(0.0).to_numpy() + u_N
    years_N = 12 * table["years"].to_numpy() + np.where(top_N, u_N, 12 * u_N)
    why = f"{int((~known_N & ~top_N).sum()):,} others in years, {int(top_N.sum()):,} as the oldest of their cycle"
    ledger.add("people with age in months", int(known_N.sum()), 0, why)
    return np.where(known_N, months_N, years_N) * MONTH_DAYS


def _of_cycle(people: pl.DataFrame, attribute: str) -> pl.Series:
    return people["SDDSRVYR"].replace_strict({cycle.number: getattr(cycle, attribute) for cycle in CYCLES})


# ------------------------------------------------------------------------------------------------------------- wearable
def channels() -> pl.DataFrame:
    """The table of channels (wearable.CHANNEL_SCHEMA)."""
    rows = [
        (COUNTS, "count/min", "Vertical activity counts in a minute", 0.0, float(MAX_COUNT)),
        (STEPS, "steps/min", "Steps in a minute", 0.0, 400.0),
        (MIMS, "MIMS/min", "Monitor-independent movement summary units in a minute", 0.0, 1000.0),
        (WORN, "1", "1: predicted worn in that minute, 0: predicted not worn", 0.0, 1.0),
        (ASLEEP, "1", "1: predicted asleep in a worn minute, 0: awake", 0.0, 1.0),
        (nhanes.ACTIVITY_PROFILE, "1", "Sum of log(1 + count) per two hours, mean over the valid days", 0.0, 2000.0),
        (MIMS_PROFILE, "MIMS", "Sum of MIMS units per two hours, mean over the valid days", 0.0, 1e5),
        ("total_mims", "MIMS", "Sum of MIMS units in a day, mean over the valid days", 0.0, 1e6),
        ("sleep_time", "min", "Minutes asleep in a day, mean over the valid days", 0.0, 1440.0),
    ]
    rows += [
        (name, unit, f"{text}, mean over the valid days", low, high)
        for name, unit, low, high, text in nhanes.DAILY_CHANNELS.values()
    ]
    return pl.DataFrame(rows, schema=list(wearable.CHANNEL_SCHEMA), orient="row")


def _week(recording: Recording, channel: str) -> np.ndarray:
    """float32 [10080]: the minutes of the seven days that follow the examination, NaN where there are none."""
    first = -(-recording.start_seconds // 60) - (DAY_MINUTES if recording.on_examination_day else 0)
    values_T = recording.values_T[channel]
    out_T = np.full(nhanes_cdc_wear.WEEK_MINUTES, np.nan, np.float32)
    part_T = values_T[max(-first, 0) :][: len(out_T) - max(first, 0)]
    out_T[max(first, 0) :][: len(part_T)] = part_T
    return out_T


def _rows(recording: Recording, week_day: int) -> list[tuple]:
    """Rows of a person's recordings: those of minutes and, if a day of the week was valid, those of the whole week."""
    counted = COUNTS in recording.values_T
    device = DEVICES[counted]
    first_day = week_day - (1 if recording.on_examination_day else 0)
    start_us = first_day * DAY_US + recording.start_seconds * 1_000_000
    rows = [
        (recording.seqn, start_us, 1 / 60, channel, values_T, _UNITS[channel], device)
        for channel, values_T in recording.values_T.items()
        if np.isfinite(values_T).any()
    ]
    if counted:
        counts_T = _week(recording, COUNTS)
        n_valid, means, profile = nhanes_cdc_summary.of_counts(counts_T, ~non_wear_counts(counts_T))
    else:
        mims_T, worn_T, asleep_T = (_week(recording, channel) for channel in (MIMS, WORN, ASLEEP))
        n_valid, means, profile = nhanes_cdc_summary.of_mims(mims_T, worn_T == 1, asleep_T == 1)
    if not n_valid:
        return rows
    last_us = (week_day + WEEK_DAYS - 1) * DAY_US
    of_week = [(*_OF_WEEK[name], 86_400, [mean]) for name, mean in means.items()]
    of_week.append((nhanes.ACTIVITY_PROFILE if counted else MIMS_PROFILE, "1" if counted else "MIMS", 7200, profile))
    rows += [
        (recording.seqn, last_us, 1 / seconds, channel, np.array(values, np.float32), unit, device)
        for channel, unit, seconds, values in of_week
    ]
    return rows


class _Shards:
    """Writes recordings of people in files of PEOPLE_PER_SHARD, each split's in its folder."""

    def __init__(self, folder: Path, split_of: dict[int, str]) -> None:
        self._folder, self._split_of, self._table = folder, split_of, channels()
        self._rows: dict[str, list[list[tuple]]] = {split: [] for split in meds.SPLITS}
        self._written = dict.fromkeys(meds.SPLITS, 0)
        self.n_rows = 0
        wearable.write_channels(folder, self._table)

    def add(self, seqn: int, rows: list[tuple]) -> None:
        split = self._split_of[seqn]
        self._rows[split].append(rows)
        if len(self._rows[split]) == PEOPLE_PER_SHARD:
            self._flush(split)

    def close(self) -> None:
        for split in meds.SPLITS:
            self._flush(split)

    def _flush(self, split: str) -> None:
        columns = list(zip(*(row for rows in self._rows[split] for row in rows), strict=True))
        self._rows[split] = []
        if not columns:
            return
        ids, start_us, rate, channel, values, unit, device = columns
        frame = pl.DataFrame(
            {
                "subject_id": pl.Series(ids, dtype=pl.Int64),
                "start_time": timestamps(start_us),
                "sample_rate_hz": pl.Series(rate, dtype=pl.Float64),
                "channel": pl.Series(channel, dtype=pl.String),
                "values": pl.Series(values, dtype=pl.List(pl.Float32)),
                "unit": pl.Series(unit, dtype=pl.String),
                "device": pl.Series(device, dtype=pl.String),
            }
        )
        wearable.write_shard(self._folder / split / f"{self._written[split]}.parquet", frame, self._table)
        self._written[split] += 1
        self.n_rows += len(frame)


def _write_recordings(
    source_dir: Path, folder: Path, cycles: list[Cycle], people: pl.DataFrame, split_of: dict[int, str], seed: int,
    ledger: Ledger,
) -> tuple[dict[int, int], set[int]]:  # fmt: skip
    """({SEQN: first day of the week of wear} of everybody, those with a valid day)."""
    weeks, shards = Weeks(seed), _Shards(folder, split_of)
    season_of = dict(people.select("SEQN", "RIDEXMON").iter_rows())
    week_of: dict[int, int] = {}
    valid: set[int] = set()
    n = 0
    for cycle in cycles:
        of_cycle = people.filter(pl.col("SDDSRVYR") == cycle.number)["SEQN"].to_list()
        read = nhanes_cdc_wear.read_counts if cycle.counts else nhanes_cdc_wear.read_mims
        for recording in read(source_dir, cycle, set(of_cycle), ledger):
            weekday = recording.weekday % WEEK_DAYS + 1 if recording.on_examination_day else recording.weekday
            week_of[recording.seqn] = weeks.start(recording.seqn, cycle, season_of[recording.seqn], weekday)
            rows = _rows(recording, week_of[recording.seqn])
            n += 1
            if any(row[3] == "wear_time" for row in rows):
                valid.add(recording.seqn)
            if rows:
                shards.add(recording.seqn, rows)
        for seqn in of_cycle:
            if seqn not in week_of:
                week_of[seqn] = weeks.start(seqn, cycle, season_of[seqn], None)
    shards.close()
    why = f"no day with {nhanes_cdc_summary.VALID_MINUTES} minutes of wear"
    ledger.add("people with a valid day of wear", len(valid), n - len(valid), why)
    ledger.add("recorded stretches written", shards.n_rows)
    return week_of, valid


# --------------------------------------------------------------------------------------------------------------- events
def _events(
    source_dir: Path, cycles: list[Cycle], people: pl.DataFrame, week_of: dict[int, int], seed: int, ledger: Ledger
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(events, codes): birth and statics, and the examination at the end of the day before the week of wear."""
    week_N = np.array([week_of[seqn] for seqn in people["SEQN"].to_list()], np.int64)
    before_us_N = np.rint(_birth_days_before(people, seed, ledger) * DAY_US).astype(np.int64)
    times = pl.DataFrame(
        {
            "subject_id": people["SEQN"],
            "birth": timestamps((week_N - 1) * DAY_US - before_us_N),
            "exam": timestamps(week_N * DAY_US - 1),
        }
    )
    parts, described = [], nhanes_cdc_events.code_descriptions() | {meds.BIRTH_CODE: "Birth"}
    for cycle in cycles:
        of_cycle = people.filter(pl.col("SDDSRVYR") == cycle.number)
        for found in nhanes_cdc_events.examination(source_dir, cycle, of_cycle, ledger):
            if "description" in found.columns:
                described |= dict(found.select("code", "description").unique("code", keep="first").iter_rows())
            parts.append(found.select(list(nhanes_cdc_events.EVENTS)))
    examined = pl.concat(parts).join(times.select("subject_id", time="exam"), on="subject_id", maintain_order="left")
    no_value = pl.lit(None, dtype=pl.Float32)
    ids = people.select(subject_id="SEQN", gender="RIAGENDR", race="RIDRETH1").join(times, on="subject_id")
    statics = []
    for column, names in (("gender", nhanes_cdc_events.GENDERS), ("race", nhanes_cdc_events.RACES)):
        code_of = {answer: code for answer, (code, _) in names.items()}
        code = pl.col(column).replace_strict(code_of, default=None, return_dtype=pl.String)
        statics.append(ids.select("subject_id", time=pl.lit(None, dtype=pl.Datetime("us")), code=code))
    statics.append(ids.select("subject_id", time="birth", code=pl.lit(meds.BIRTH_CODE)))
    columns = ["subject_id", "time", "code", "numeric_value"]
    first = pl.concat(statics).drop_nulls("code").with_columns(numeric_value=no_value)
    events = pl.concat([first.select(columns), examined.select(columns)])
    ledger.add("events written", len(events), 0, f"{len(examined):,} of the examination")
    codes = pl.DataFrame({"code": list(described), "description": list(described.values())})
    return events, codes.with_columns(parent_codes=pl.lit([], dtype=pl.List(pl.String)))


# --------------------------------------------------------------------------------------------------------------- labels
def labels(
    mortality: pl.DataFrame, adults: pl.DataFrame, week_of: dict[int, int], ledger: Ledger
) -> dict[str, pl.DataFrame]:
    """{task: survival labels at the end of the week of wear}, of adults with a valid day and a known vital status.

    Args:
      mortality: as nhanes_cdc_files.read_mortality returns. adults: SEQN. week_of: {SEQN: first day of the week}.
    """
    table = adults.join(mortality, on="SEQN", how="left", maintain_order="left")
    known = table.filter(pl.col("MORTSTAT").is_not_null())
    ledger.add("adults with a valid day and a known vital status", len(known), len(table) - len(known), "not linked")
    end_us_N = np.array([(week_of[seqn] + WEEK_DAYS) * DAY_US for seqn in known["SEQN"].to_list()], np.int64)
    # Months are counted from the examination, whose day ends seven days before the prediction time.
    known = known.with_columns(
        timestamps(end_us_N).alias("prediction_time"),
        time_to_event_days=pl.col("PERMTH_EXM") * MONTH_DAYS - WEEK_DAYS,
        died=pl.col("MORTSTAT") == 1,
    )
    kept = known.filter(pl.col("time_to_event_days") > 0)
    ledger.add("people labelled at the end of the week of wear", len(kept), len(known) - len(kept),
               "followed for less than the week of wear, or for an unknown time")  # fmt: skip
    keys = [pl.col("SEQN").alias("subject_id"), pl.col("prediction_time"), pl.col("time_to_event_days")]
    out = {TASK: kept.select(*keys, event_observed=pl.col("died"))}
    # a death of an unknown cause competes, too: to leave these people out would select by what comes later
    n = kept.filter("died", pl.col("UCOD_LEADING").is_null()).height
    ledger.add("people labelled by cause of death", len(kept), 0, f"{n:,} of them died of an unknown cause, as another")
    for task, causes in CAUSES.items():
        died_of = pl.col("died") & pl.col("UCOD_LEADING").is_in(causes).fill_null(False)
        out[task] = kept.select(*keys, event_observed=died_of, competing_event=pl.col("died") & ~died_of)
    return out


# ---------------------------------------------------------------------------------------------------------------- build
def build(source_dir: Path, root: Path, *, seed: int = 0, n_folds: int = 5, progress: bool = True) -> list[dict]:
    """Writes the raw dataset root: meds/, wearable/, labels/ and counts.json.

    Everyone who was examined is in the dataset. Adults with a valid day of wear and a known vital status are labelled
    (all_cause_mortality and, with competing events, cardiovascular_mortality and cancer_mortality) and have a fold
    0..n_folds-1; all others have fold -1. Splits (80/10/10) and folds are hashes of SEQN and seed.
    metadata/subject_splits.parquet also has the column `cycle`, for a hold-out such as "site:cycle=2005-2006".

    Args:
      source_dir: folder with the files that nhanes_cdc_files.py names.
      root: folder to write to; must not hold a dataset yet, except what an interrupted call left.
      seed: of pseudo-dates, birthdays, splits and folds.
      n_folds: folds of the evaluation; fewer than two: none.
      progress: print each step.

    Returns:
      The records of counts.json: step, n, dropped, reason.

    Raises:
      FileNotFoundError: a source file is missing.
      ValueError: a malformed source, or a root in use.
    """
    ledger = Ledger("nhanes_cdc", progress)
    cycles = nhanes_cdc_files.cycles_in(source_dir)
    people = nhanes_cdc_files.read_demographics(source_dir, cycles, ledger)
    mortality = nhanes_cdc_files.read_mortality(source_dir, cycles, people, ledger)
    ids_N = people["SEQN"].to_numpy()
    splits = pl.DataFrame({"subject_id": ids_N, "split": hashed_splits(ids_N, seed)})
    split_of = dict(splits.iter_rows())
    with staged(root) as folder:
        week_of, valid = _write_recordings(source_dir, folder / "wearable", cycles, people, split_of, seed, ledger)
        events, codes = _events(source_dir, cycles, people, week_of, seed, ledger)
        adults = people.filter((pl.col("RIDAGEYR") >= ADULT_YEARS) & pl.col("SEQN").is_in(list(valid))).select("SEQN")
        tables = labels(mortality, adults, week_of, ledger)
        folds = nhanes.folds_of(ids_N, tables[TASK], seed, n_folds, ledger) if n_folds > 1 else None
        sites = people.select(subject_id="SEQN", cycle=_of_cycle(people, "years"))
        years = ", ".join(cycle.years for cycle in cycles)
        metadata = meds.Metadata("nhanes_cdc", years, codes, splits, folds=folds, sites=sites)
        meds.write_dataset(folder, events, metadata, nhanes.SUBJECTS_PER_SHARD)
        _write_beside(folder / "meds" / "metadata", people, week_of)
        for task, table in tables.items():
            meds.write_labels(folder / "labels" / f"{task}.parquet", table)
        parquet.write_json(DESIGN, folder / "labels" / "design.json")
        ledger.write(folder)
    return ledger.records


def _write_beside(metadata_dir: Path, people: pl.DataFrame, week_of: dict[int, int]) -> None:
    """Who was observed when, and the survey's design."""
    week_N = np.array([week_of[seqn] for seqn in people["SEQN"].to_list()], np.int64)
    observed = people.select(
        pl.col("SEQN").alias("subject_id"),
        timestamps((week_N - 1) * DAY_US).alias("start"),
        timestamps((week_N + WEEK_DAYS) * DAY_US).alias("end"),
    )
    parquet.write_frame(observed, metadata_dir / followup.TABLE)
    survey = people.select(pl.col("SEQN").alias("subject_id"), *nhanes.SURVEY_COLUMNS, cycle=_of_cycle(people, "years"))
    parquet.write_frame(survey, meds.survey_path(metadata_dir.parent))
