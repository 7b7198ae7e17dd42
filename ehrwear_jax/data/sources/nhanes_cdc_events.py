"""Makes the events of NHANES's examination, laboratory, questionnaire and prescription tables of four cycles.

Everything is known at the end of the day of the examination: interviews lie days to weeks before it. Codes of what the
small joined form of the data has too (nhanes_files.py) are the same here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from ehrwear_jax.data.formats.times import YEAR_DAYS
from ehrwear_jax.data.sources import nhanes_cdc_files as files
from ehrwear_jax.data.sources.csv_source import Ledger

# Rows of an event: who, what, value
EVENTS = {"subject_id": pl.Int64, "code": pl.String, "numeric_value": pl.Float32}


class Measured(NamedTuple):
    """A number: the mean of those columns that are there (names differ between cycles), without values below `low`."""

    code: str
    description: str
    columns: tuple[str, ...]
    low: float = 0.0


# Table -> what is measured in it. A diastolic pressure of 0 is a sound that never ended, no pressure.
MEASURED: dict[str, tuple[Measured, ...]] = {
    "DEMO": (Measured("SOCIAL//poverty_income_ratio", "Family income over the poverty threshold", ("INDFMPIR",)),),
    "BMX": (
        Measured("VITAL//bmi", "Body mass index, kg/m2", ("BMXBMI",), 1.0),
        Measured("VITAL//weight", "Weight, kg", ("BMXWT",), 0.1),
        Measured("VITAL//height", "Standing height, cm", ("BMXHT",), 1.0),
        Measured("VITAL//waist", "Waist circumference, cm", ("BMXWAIST",), 1.0),
    ),
    "BPX": (
        Measured("VITAL//sbp", "Systolic blood pressure, mean of the readings, mmHg",
                 ("BPXSY1", "BPXSY2", "BPXSY3", "BPXSY4"), 1.0),
        Measured("VITAL//dbp", "Diastolic blood pressure, mean of the readings, mmHg",
                 ("BPXDI1", "BPXDI2", "BPXDI3", "BPXDI4"), 1.0),
        Measured("VITAL//pulse", "Pulse, beats/min", ("BPXPLS",), 1.0),
    ),
    "TCHOL": (Measured("LAB//total_cholesterol", "Total cholesterol, mg/dL", ("LBXTC",)),),
    "HDL": (Measured("LAB//hdl", "HDL cholesterol, mg/dL", ("LBDHDD", "LBXHDD")),),
    "TRIGLY": (
        Measured("LAB//triglycerides", "Triglycerides, fasting, mg/dL", ("LBXTR",)),
        Measured("LAB//ldl", "LDL cholesterol by Friedewald, mg/dL", ("LBDLDL",)),
    ),
    "GHB": (Measured("LAB//hba1c", "Glycohaemoglobin, %", ("LBXGH",)),),
    "GLU": (Measured("LAB//fasting_glucose", "Plasma glucose, fasting, mg/dL", ("LBXGLU",)),),
    "CRP": (Measured("LAB//crp", "C-reactive protein, mg/dL", ("LBXCRP",)),),
    "BIOPRO": (
        Measured("LAB//albumin", "Albumin, g/dL", ("LBXSAL",)),
        Measured("LAB//alt", "Alanine aminotransferase, U/L", ("LBXSATSI",)),
        Measured("LAB//ast", "Aspartate aminotransferase, U/L", ("LBXSASSI",)),
        Measured("LAB//alp", "Alkaline phosphatase, U/L", ("LBXSAPSI", "LBDSAPSI")),
        Measured("LAB//ggt", "Gamma glutamyl transferase, U/L", ("LBXSGTSI",)),
        Measured("LAB//bilirubin", "Total bilirubin, mg/dL", ("LBXSTB",)),
        Measured("LAB//urea_nitrogen", "Blood urea nitrogen, mg/dL", ("LBXSBU",)),
        Measured("LAB//creatinine", "Creatinine, standardised, mg/dL", ("LBXSCR", "LBDSCR")),
        Measured("LAB//uric_acid", "Uric acid, mg/dL", ("LBXSUA",)),
        Measured("LAB//sodium", "Sodium, mmol/L", ("LBXSNASI",)),
        Measured("LAB//potassium", "Potassium, mmol/L", ("LBXSKSI",)),
    ),
    "CBC": (
        Measured("LAB//white_cells", "White blood cells, 1000/uL", ("LBXWBCSI",)),
        Measured("LAB//lymphocytes", "Lymphocytes, %", ("LBXLYPCT",)),
        Measured("LAB//haemoglobin", "Haemoglobin, g/dL", ("LBXHGB",)),
        Measured("LAB//mcv", "Mean cell volume, fL", ("LBXMCVSI",)),
        Measured("LAB//rdw", "Red cell distribution width, %", ("LBXRDW",)),
        Measured("LAB//platelets", "Platelets, 1000/uL", ("LBXPLTSI",)),
    ),
}  # fmt: skip
# (code, cycle) -> (factor, addend) that brings a value to the standard method. Creatinine of 2005-2006 reads high: the
# documentation of BIOPRO_D gives this line (Selvin et al., 2007, for 1999-2000; 2003-2004 and later need none).
CORRECTED = {("LAB//creatinine", "D"): (0.978, -0.016)}
# Table -> {column: {answer: (code, description)}}. All other answers (no, refused 7, do not know 9) give no event.
_YES = 1.0
_TOLD = {
    "MCQ010": ("DX//asthma", "Asthma, told by a doctor"),
    "MCQ160A": ("DX//arthritis", "Arthritis, told by a doctor"),
    "MCQ160B": ("DX//chf", "Congestive heart failure, told by a doctor"),
    "MCQ160C": ("DX//chd", "Coronary heart disease, told by a doctor"),
    "MCQ160D": ("DX//angina", "Angina, told by a doctor"),
    "MCQ160E": ("DX//heart_attack", "Heart attack, told by a doctor"),
    "MCQ160F": ("DX//stroke", "Stroke, told by a doctor"),
    "MCQ160G": ("DX//emphysema", "Emphysema, told by a doctor"),
    "MCQ160K": ("DX//chronic_bronchitis", "Chronic bronchitis, told by a doctor"),
    "MCQ160L": ("DX//liver_condition", "Liver condition, told by a doctor"),
    "MCQ220": ("DX//cancer", "Cancer, told by a doctor"),
}
ANSWERED: dict[str, dict[str, dict[float, tuple[str, str]]]] = {
    "DEMO": {
        "DMDEDUC2": {
            1.0: ("EDUCATION//below_9th_grade", "Less than 9th grade"),
            2.0: ("EDUCATION//9th_to_11th_grade", "9th to 11th grade"),
            3.0: ("EDUCATION//high_school", "High school or equivalent"),
            4.0: ("EDUCATION//some_college", "Some college"),
            5.0: ("EDUCATION//college", "College graduate"),
        }
    },
    "BPQ": {
        "BPQ020": {_YES: ("DX//hypertension", "High blood pressure, told by a doctor")},
        "BPQ050A": {_YES: ("RX_FOR//hypertension", "Takes medicine for high blood pressure")},
        "BPQ080": {_YES: ("DX//high_cholesterol", "High cholesterol, told by a doctor")},
    },
    "DIQ": {
        "DIQ010": {
            1.0: ("DX//diabetes", "Diabetes, told by a doctor"),
            3.0: ("DX//diabetes_borderline", "Borderline diabetes, told by a doctor"),
        },
        "DIQ050": {_YES: ("RX_FOR//insulin", "Takes insulin")},
    },
    "MCQ": {column: {_YES: said} for column, said in _TOLD.items()},
    "HUQ": {
        "HUQ010": {
            1.0: ("HEALTH//excellent", "General health excellent, by own account"),
            2.0: ("HEALTH//very_good", "General health very good, by own account"),
            3.0: ("HEALTH//good", "General health good, by own account"),
            4.0: ("HEALTH//fair", "General health fair, by own account"),
            5.0: ("HEALTH//poor", "General health poor, by own account"),
        },
        "HUQ071": {_YES: ("HOSPITAL//past_year", "Stayed in a hospital overnight in the past year")},
    },
}
SMOKING = {
    "never": ("SMOKING//never", "Never smoked"),
    "former": ("SMOKING//former", "Former smoker"),
    "current": ("SMOKING//current", "Current smoker"),
}
DRINKING = {
    "none": ("DRINKING//none", "Does not drink; value: drinks per week"),
    "moderate": ("DRINKING//moderate", "Moderate drinker; value: drinks per week"),
    "heavy": ("DRINKING//heavy", "Heavy drinker; value: drinks per week"),
}
MOBILITY = {
    "some": ("MOBILITY//difficulty", "Some difficulty in moving"),
    "none": ("MOBILITY//no_difficulty", "No difficulty in moving"),
}
GENDERS = {1.0: ("GENDER//M", "Male"), 2.0: ("GENDER//F", "Female")}
RACES = {
    1.0: ("RACE//mexican_american", "Mexican American"),
    2.0: ("RACE//other_hispanic", "Other Hispanic"),
    3.0: ("RACE//white", "Non-Hispanic white"),
    4.0: ("RACE//black", "Non-Hispanic black"),
    5.0: ("RACE//other", "Other, and more than one"),
}
_DERIVED = {
    "SMQ": ("SMQ020", "SMQ040"),
    "ALQ": ("ALQ110", "ALQ120Q", "ALQ120U", "ALQ130"),
    "PFQ": ("PFQ049", "PFQ054", "PFQ057", "PFQ059", "PFQ061B", "PFQ061C"),
}
TABLES = tuple(dict.fromkeys([*MEASURED, *ANSWERED, *_DERIVED]))
# Heavier than this many drinks a week: men, women (2005 dietary guidelines)
_HEAVY = {1.0: 14.0, 2.0: 7.0}
_WEEKS = {1.0: 1.0, 2.0: YEAR_DAYS / 12 / 7, 3.0: YEAR_DAYS / 7}  # in a week, a month, a year
_UNKNOWN_NUMBER = (777.0, 999.0)
_UNKNOWN_DRUG = ("55555", "77777", "99999")
_UNKNOWN_DAYS = (77777.0, 99999.0)


def _events(seqn: pl.Expr, code: pl.Expr, value: pl.Expr | None = None) -> list[pl.Expr]:
    value = pl.lit(None, dtype=pl.Float32) if value is None else value.cast(pl.Float32)
    return [seqn.cast(pl.Int64).alias("subject_id"), code.alias("code"), value.alias("numeric_value")]


def _measured(table: pl.DataFrame, of: Measured, letter: str) -> pl.DataFrame:
    plausible = [pl.when(pl.col(column) >= of.low).then(pl.col(column)) for column in of.columns]
    factor, addend = CORRECTED.get((of.code, letter), (1.0, 0.0))
    value = pl.mean_horizontal(*plausible) * factor + addend
    return table.select(_events(pl.col("SEQN"), pl.lit(of.code), value)).drop_nulls("numeric_value")


def _answered(table: pl.DataFrame, column: str, answers: dict[float, tuple[str, str]]) -> pl.DataFrame:
    codes = {answer: code for answer, (code, _) in answers.items()}
    said = pl.col(column).replace_strict(codes, default=None, return_dtype=pl.String)
    return table.select(_events(pl.col("SEQN"), said)).drop_nulls("code")


def smoking(table: pl.DataFrame) -> pl.DataFrame:
    """Never, former or current smoker by SMQ020 (100 cigarettes in life) and SMQ040 (now)."""
    ever, now = pl.col("SMQ020"), pl.col("SMQ040")
    status = pl.when(ever == 2).then(pl.lit("never")).when((ever == 1) & (now == 3)).then(pl.lit("former"))
    status = status.when((ever == 1) & now.is_in([1.0, 2.0])).then(pl.lit("current"))
    codes = {name: code for name, (code, _) in SMOKING.items()}
    return table.select(_events(pl.col("SEQN"), status.replace_strict(codes, default=None))).drop_nulls("code")


def drinking(table: pl.DataFrame, genders: pl.DataFrame) -> pl.DataFrame:
    """Drinks per week of how often (ALQ120Q per ALQ120U) and how many (ALQ130); never (ALQ110) and not this year: 0.

    Args:
      table: SEQN and the columns of ALQ. genders: SEQN, RIAGENDR.
    """
    known = [pl.when(~pl.col(c).is_in(_UNKNOWN_NUMBER)).then(pl.col(c)).alias(c) for c in ("ALQ120Q", "ALQ130")]
    table = table.with_columns(known).join(genders, on="SEQN", how="inner", maintain_order="left")
    weeks = pl.col("ALQ120U").replace_strict(_WEEKS, default=None, return_dtype=pl.Float64)
    # of those who had twelve drinks in life but not in a year, the number in the past year is asked too
    none = (pl.col("ALQ120Q") == 0) | (pl.col("ALQ110") == 2)
    drinks = pl.when(none).then(0.0).otherwise(pl.col("ALQ120Q") * pl.col("ALQ130") / weeks)
    most = pl.col("RIAGENDR").replace_strict(_HEAVY, default=None, return_dtype=pl.Float64)
    kind = pl.when(drinks == 0).then(pl.lit("none")).when(drinks > most).then(pl.lit("heavy"))
    kind = kind.when(drinks <= most).then(pl.lit("moderate"))
    codes = {name: code for name, (code, _) in DRINKING.items()}
    return table.select(_events(pl.col("SEQN"), kind.replace_strict(codes, default=None), drinks)).drop_nulls("code")


def mobility(table: pl.DataFrame) -> pl.DataFrame:
    """Some difficulty: special equipment (PFQ054), in walking (PFQ061B) or climbing (PFQ061C); none: no limit at all.

    The two are asked of those from 60 on, and of others who are limited (PFQ049, PFQ054, PFQ057, PFQ059).
    """
    walk_or_climb = [pl.col("PFQ061B"), pl.col("PFQ061C")]
    hard = pl.any_horizontal(*(c.is_in([2.0, 3.0, 4.0]).fill_null(False) for c in walk_or_climb))
    easy = pl.all_horizontal(*((c == 1).fill_null(False) for c in walk_or_climb))
    unlimited = pl.all_horizontal(*((pl.col(c) == 2).fill_null(False) for c in ("PFQ049", "PFQ057", "PFQ059")))
    unasked = pl.all_horizontal(*(c.is_null() for c in walk_or_climb))
    some = hard | (pl.col("PFQ054") == 1).fill_null(False)
    status = pl.when(some).then(pl.lit("some")).when(easy | (unasked & unlimited)).then(pl.lit("none"))
    codes = {name: code for name, (code, _) in MOBILITY.items()}
    return table.select(_events(pl.col("SEQN"), status.replace_strict(codes, default=None))).drop_nulls("code")


def prescriptions(folder: Path, letter: str, people: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """code RX//<generic name>, value: days taken (null: not known), once per person and drug; description.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a malformed file.
    """
    file = files.open_table(folder, f"RXQ_RX_{letter}")
    rows = file.frame(["SEQN", "RXDUSE", "RXDDRUG", "RXDDAYS"])
    files.require_seqn(rows, file.path)
    name, step = pl.col("RXDDRUG"), f"RXQ_RX_{letter}: rows"
    days = pl.when(~pl.col("RXDDAYS").is_in(_UNKNOWN_DAYS)).then(pl.col("RXDDAYS"))
    for keep, why in (
        (pl.col("SEQN").is_in(people["SEQN"].cast(pl.Float64).implode()), "of people interviewed only"),
        ((pl.col("RXDUSE") == 1) | name.is_not_null(), "no prescription medicine, or not answered"),
        (name.is_not_null() & ~name.is_in(_UNKNOWN_DRUG), "a medicine whose name is not known"),
        (pl.struct("SEQN", "RXDDRUG").is_first_distinct(), "a medicine of a person once more"),
    ):
        kept = rows.filter(keep)
        ledger.add(step, len(kept), len(rows) - len(kept), why)
        rows = kept
    code = pl.lit("RX//") + name.str.to_lowercase().str.replace_all(r"[^a-z0-9]+", "_").str.strip_chars("_")
    return rows.select(*_events(pl.col("SEQN"), code, days), name.str.to_titlecase().alias("description"))


def examination(folder: Path, cycle: files.Cycle, people: pl.DataFrame, ledger: Ledger) -> Iterator[pl.DataFrame]:
    """Events without times (EVENTS) of the tables of a cycle; prescriptions also have a description.

    Args:
      people: those examined in the cycle, with the columns of DEMO.
      ledger: is told for each table how many rows it has, and of whom.

    Raises:
      FileNotFoundError, ValueError: a table is missing or malformed, or has none of the columns of something measured.
    """
    for name in TABLES:
        stem = files.stem(name, cycle.letter)
        if stem is None:
            continue
        measured, answered = MEASURED.get(name, ()), ANSWERED.get(name, {})
        columns = tuple(dict.fromkeys([
            *(c for m in measured for c in m.columns), *answered, *_DERIVED.get(name, ())
        ]))  # fmt: skip
        if name == "DEMO":
            table = people
        else:
            rows = files.read_table(folder, stem, columns)
            absent = [c for c in columns if rows[c].null_count() == len(rows)]
            if len(absent) == len(columns):
                raise ValueError(f"{files.find(folder, stem + '.xpt')}: holds none of {columns}")
            why = f"not in the file, or empty: {', '.join(absent)}" if absent else ""
            ledger.add(f"{stem}: variables for {name}", len(columns) - len(absent), len(absent), why)
            table = rows.filter(pl.col("SEQN").is_in(people["SEQN"].implode()))
            ledger.add(f"{stem}: rows for {name}", len(table), len(rows) - len(table), "of people interviewed only")
        for of in measured:
            yield _measured(table, of, cycle.letter)
        for column, answers in answered.items():
            yield _answered(table, column, answers)
        if name == "SMQ":
            yield smoking(table)
        elif name == "ALQ":
            yield drinking(table, people.select("SEQN", "RIAGENDR"))
        elif name == "PFQ":
            yield mobility(table)
    yield prescriptions(folder, cycle.letter, people, ledger)


def code_descriptions() -> dict[str, str]:
    """code -> description of all codes but those of medicines."""
    said = [pair for of in ANSWERED.values() for answers in of.values() for pair in answers.values()]
    for names in (SMOKING, DRINKING, MOBILITY, GENDERS, RACES):
        said += list(names.values())
    return dict(said) | {m.code: m.description for of in MEASURED.values() for m in of}
