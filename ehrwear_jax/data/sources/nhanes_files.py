"""Reads and checks the public tables of NHANES 2003-2006 that data/sources/nhanes.py joins; numbers days one way.

Public tables, joined by the survey's SEQN, in one folder:
- covariates.csv, mortality2015.csv: Covariate_C/D and Mortality_2015_C/D of the R package rnhanesdata
  (https://github.com/andrew-leroux/rnhanesdata), from CDC's NHANES and its linked mortality files, rows bound and
  exported with write.csv.
- flags_packed.npz: Flags_C/D of rnhanesdata (1: the monitor was worn that minute), one row per person and day;
  `bits` = numpy.packbits of the 1,440 minutes, with SEQN, PAXCAL, PAXSTAT, WEEKDAY (1 = Sunday).
- ida6680.csv: analysis table of 6,680 adults (https://github.com/stratosida/ida-regression): examination, activity
  averaged over valid days, mortality; lower-case names of the survey's variables.
- counts_268.npz: minute counts that R packages ship as examples, 218 people of accelmissing (`src` false, `day` is
  the weekday) and 50 of ActFrag (`src` true, `day` is the day of wear); SEQN, day, src, counts [rows, 1440].
- registr50_oneday.csv: 50 people more, one Sunday each, from the R package registr.
"""

from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import parquet
from ehrwear_jax.data.formats.times import DAY_MINUTES
from ehrwear_jax.data.sources.csv_source import Ledger, read_csv, read_npz, require_unique, require_values

HOW_TO_GET = "the docstring of ehrwear_jax/data/sources/nhanes_files.py lists the public tables"
WEEK_DAYS = 7
MAX_COUNT = 32_767  # the monitor's counter is full
CYCLE_NAME = {3: "2003-2004", 4: "2005-2006"}
CYCLE_SUNDAY = {3: "2003-01-05", 4: "2005-01-02"}  # first Sunday of the cycle's first January
_COVARIATES_SCHEMA: parquet.Schema = {
    "SEQN": pl.Int64,
    "SDDSRVYR": pl.Int64,
    "SDMVPSU": pl.Int64,
    "SDMVSTRA": pl.Int64,
    "WTINT2YR": pl.Float64,
    "WTMEC2YR": pl.Float64,
    "RIDAGEMN": pl.Int64,
    "RIDAGEEX": pl.Int64,
    "RIDAGEYR": pl.Int64,
    "BMI": pl.Float64,
    "Race": pl.String,
    "Gender": pl.String,
    "Diabetes": pl.String,
    "CHF": pl.String,
    "CHD": pl.String,
    "Cancer": pl.String,
    "Stroke": pl.String,
    "EducationAdult": pl.String,
    "MobilityProblem": pl.String,
    "DrinkStatus": pl.String,
    "DrinksPerWeek": pl.Float64,
    "SmokeCigs": pl.String,
}
_MORTALITY_SCHEMA: parquet.Schema = {"SEQN": pl.Int64, "mortstat": pl.Int64, "permth_exm": pl.Int64}
PROFILE = tuple(f"tlac.{i}" for i in range(1, 13))
# Averages over the valid days of wear: nine summaries, and log(1 + count) summed per two hours.
SUMMARIES = ("tac", "tlac", "wt", "st", "mvpa", "about", "sbout", "satp", "astp")
_IDA_SCHEMA: parquet.Schema = {
    "seqn": pl.Int64,
    "age": pl.Float64,
    "sys": pl.Float64,
    "lbxtc": pl.Float64,
    "lbdhdd": pl.Float64,
    **dict.fromkeys((*SUMMARIES, *PROFILE), pl.Float64),
}
_DAY_SCHEMA: parquet.Schema = {"id": pl.Int64, "index": pl.Int64, "raw_activity": pl.Int64}
# source column -> (code, description) of a numeric finding of the examination
MEASURED = {
    "BMI": ("VITAL//bmi", "Body mass index, kg/m2"),
    "sys": ("VITAL//sbp", "Systolic blood pressure, mean of the readings, mmHg"),
    "lbxtc": ("LAB//total_cholesterol", "Total cholesterol, mg/dL"),
    "lbdhdd": ("LAB//hdl", "HDL cholesterol, mg/dL"),
}
# source column -> {answer: (code, description)}; null, Refused and Don't know give no event, nor does a No.
ANSWERED = {
    "Diabetes": {
        "Yes": ("DX//diabetes", "Diabetes, told by a doctor"),
        "Borderline": ("DX//diabetes_borderline", "Borderline diabetes, told by a doctor"),
    },
    "CHF": {"Yes": ("DX//chf", "Congestive heart failure, told by a doctor")},
    "CHD": {"Yes": ("DX//chd", "Coronary heart disease, told by a doctor")},
    "Cancer": {"Yes": ("DX//cancer", "Cancer, told by a doctor")},
    "Stroke": {"Yes": ("DX//stroke", "Stroke, told by a doctor")},
    "EducationAdult": {
        "Less than 9th grade": ("EDUCATION//below_9th_grade", "Less than 9th grade"),
        "9-11th grade": ("EDUCATION//9th_to_11th_grade", "9th to 11th grade"),
        "High school grad/GED or equivalent": ("EDUCATION//high_school", "High school or equivalent"),
        "Some College or AA degree": ("EDUCATION//some_college", "Some college"),
        "College graduate or above": ("EDUCATION//college", "College graduate"),
    },
    "MobilityProblem": {
        "Any Difficulty": ("MOBILITY//difficulty", "Some difficulty in moving"),
        "No Difficulty": ("MOBILITY//no_difficulty", "No difficulty in moving"),
    },
    "DrinkStatus": {
        "Non-Drinker": ("DRINKING//none", "Does not drink; value: drinks per week"),
        "Moderate Drinker": ("DRINKING//moderate", "Moderate drinker; value: drinks per week"),
        "Heavy Drinker": ("DRINKING//heavy", "Heavy drinker; value: drinks per week"),
    },
    "SmokeCigs": {
        "Never": ("SMOKING//never", "Never smoked"),
        "Former": ("SMOKING//former", "Former smoker"),
        "Current": ("SMOKING//current", "Current smoker"),
    },
}
_NO_ANSWER = ("No", "Refused", "Don't know")
RACES = {
    "White": "RACE//white",
    "Black": "RACE//black",
    "Mexican American": "RACE//mexican_american",
    "Other Hispanic": "RACE//other_hispanic",
    "Other": "RACE//other",
}
GENDERS = {"Male": "GENDER//M", "Female": "GENDER//F"}


def read_people(source_dir: Path) -> pl.DataFrame:
    """One row per SEQN of covariates.csv, with mortality and, where there is one, the row of ida6680.csv.

    Returns:
      The columns of the source (_COVARIATES_SCHEMA, mortstat, permth_exm, and of ida6680.csv age, sys, lbxtc, lbdhdd,
      tac to astp, tlac.1 to tlac.12) and in_ida, ordered by SEQN.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a malformed column, an unknown answer, a repeated person.
    """
    folder = Path(source_dir)
    path = folder / "covariates.csv"
    needed = ("SEQN", "SDDSRVYR", "WTMEC2YR", "RIDAGEYR", "Race", "Gender")
    people = read_csv(path, _COVARIATES_SCHEMA, HOW_TO_GET, required=needed)
    require_unique(people, "SEQN", path)
    require_values(people, "SDDSRVYR", CYCLE_SUNDAY, path)
    require_values(people, "Race", RACES, path)
    require_values(people, "Gender", GENDERS, path)
    for column, answers in ANSWERED.items():
        require_values(people, column, (*answers, *_NO_ANSWER), path)
    path = folder / "mortality2015.csv"
    mortality = read_csv(path, _MORTALITY_SCHEMA, HOW_TO_GET, required=("SEQN",))
    require_unique(mortality, "SEQN", path)
    require_values(mortality, "mortstat", (0, 1), path)
    path = folder / "ida6680.csv"
    ida = read_csv(path, _IDA_SCHEMA, HOW_TO_GET, required=("seqn", "age"))
    require_unique(ida, "seqn", path)
    strangers = ida.filter(~pl.col("seqn").is_in(people["SEQN"].implode()))
    if len(strangers):
        raise ValueError(f"{path}: column 'seqn' holds {strangers['seqn'][0]}, which is not in covariates.csv")
    ida = ida.rename({"seqn": "SEQN"}).with_columns(in_ida=pl.lit(True))
    return (
        people.join(mortality, on="SEQN", how="left")
        .join(ida, on="SEQN", how="left")
        .with_columns(pl.col("in_ida").fill_null(False))
        .sort("SEQN")
    )


class Flags:
    """Reads the wear flags of every person, unpacked on demand.

    Attributes:
      path: the file. seqn_P: int64 [P]. weekday_Px7: int64 [P, 7], 1 = Sunday, in the order of wear.
      usable_P: bool [P], the monitor was in calibration and its data reliable on all days.
      position: SEQN -> p.
    """

    def __init__(self, source_dir: Path) -> None:
        """Reads flags_packed.npz; raises FileNotFoundError, or ValueError naming file and array."""
        path = Path(source_dir) / "flags_packed.npz"
        shapes = {"bits": (DAY_MINUTES // 8,), "SEQN": (), "PAXCAL": (), "PAXSTAT": (), "WEEKDAY": ()}
        table = read_npz(path, shapes, HOW_TO_GET)
        if len(table["SEQN"]) % WEEK_DAYS:
            raise ValueError(f"{path}: array 'SEQN' has {len(table['SEQN'])} rows, not {WEEK_DAYS} for each person")
        seqn_Px7 = table["SEQN"].reshape(-1, WEEK_DAYS)
        mixed_P = (seqn_Px7 != seqn_Px7[:, :1]).any(axis=1)
        if mixed_P.any() or len(np.unique(seqn_Px7[:, 0])) != len(seqn_Px7):
            raise ValueError(f"{path}: array 'SEQN' must hold each person on {WEEK_DAYS} consecutive rows")
        weekday_Px7 = table["WEEKDAY"].reshape(-1, WEEK_DAYS).astype(np.int64)
        expected_Px7 = (weekday_Px7[:, :1] - 1 + np.arange(WEEK_DAYS)[None]) % WEEK_DAYS + 1
        if (weekday_Px7 != expected_Px7).any():
            person = seqn_Px7[(weekday_Px7 != expected_Px7).any(axis=1), 0][0]
            raise ValueError(f"{path}: array 'WEEKDAY' of person {person} is not seven weekdays in a row, 1 to 7")
        self.path = path
        self.seqn_P = seqn_Px7[:, 0].astype(np.int64)
        self.weekday_Px7 = weekday_Px7
        fine_N = (table["PAXCAL"] == 1) & (table["PAXSTAT"] == 1)
        self.usable_P = fine_N.reshape(-1, WEEK_DAYS).all(axis=1)
        self._bits = table["bits"]
        self.position = {int(seqn): p for p, seqn in enumerate(self.seqn_P)}

    def of(self, seqn: int) -> np.ndarray:
        """uint8 [7, 1440] of one person."""
        first = self.position[seqn] * WEEK_DAYS
        return np.unpackbits(self._bits[first : first + WEEK_DAYS], axis=1)


def read_counts(source_dir: Path, flags: Flags, ledger: Ledger) -> dict[int, dict[int, np.ndarray]]:
    """Minute counts: SEQN -> {day of wear 0..6: float32 [1440], NaN where the monitor was not worn}.

    The three sources number days differently; all are put on the day of wear. Where two hold the same day, the first
    of accelmissing, ActFrag, registr is kept.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a malformed file, or counts that fall outside the minutes of wear (a day or bit order gone wrong).
    """
    path = Path(source_dir) / "counts_268.npz"
    table = read_npz(path, {"counts": (DAY_MINUTES,), "SEQN": (), "day": (), "src": ()}, HOW_TO_GET)
    day_path = Path(source_dir) / "registr50_oneday.csv"
    one_day = read_csv(day_path, _DAY_SCHEMA, HOW_TO_GET, required=tuple(_DAY_SCHEMA)).sort("id", "index")
    minutes = one_day.group_by("id", maintain_order=True).agg("index", "raw_activity")
    found = [
        (path, int(seqn), int(day), bool(by_day), counts)
        for seqn, day, by_day, counts in zip(table["SEQN"], table["day"], table["src"], table["counts"], strict=True)
    ]
    found.sort(key=lambda row: row[3])  # stable: accelmissing first
    for seqn, index, counts in minutes.iter_rows():
        if index != list(range(1, DAY_MINUTES + 1)):
            raise ValueError(f"{day_path}: column 'index' of person {seqn} must run from 1 to {DAY_MINUTES}")
        # Day 1 is Sunday: of all weekdays it alone fits the wear flags of all 50 people.
        found.append((day_path, seqn, 1, False, np.array(counts)))
    result: dict[int, dict[int, np.ndarray]] = {}
    repeated = active = worn_active = 0
    for file, seqn, day, by_day, counts in found:
        if seqn not in flags.position:
            raise ValueError(f"{file}: column 'SEQN' holds {seqn}, who has no wear flags in {flags.path.name}")
        if not 1 <= day <= WEEK_DAYS or counts.min() < 0 or counts.max() > MAX_COUNT:
            raise ValueError(f"{file}: person {seqn}, day {day}: day must be 1 to 7, counts 0 to {MAX_COUNT}")
        offset = day - 1 if by_day else int(day - flags.weekday_Px7[flags.position[seqn], 0]) % WEEK_DAYS
        worn = flags.of(seqn)[offset] == 1
        active += int((counts > 0).sum())
        worn_active += int((worn & (counts > 0)).sum())
        days = result.setdefault(seqn, {})
        repeated += offset in days
        days.setdefault(offset, np.where(worn, counts, np.nan).astype(np.float32))
    if active and worn_active < 0.98 * active:
        share = worn_active / active
        raise ValueError(f"{path}: only {share:.1%} of minutes with counts are flagged as worn in {flags.path.name}")
    kept = sum(len(days) for days in result.values())
    ledger.add("days of minute counts", kept, repeated, "day of a person that two packages hold")
    ledger.add("minutes with counts that are flagged as worn", worn_active, active - worn_active, "not flagged as worn")
    return result
