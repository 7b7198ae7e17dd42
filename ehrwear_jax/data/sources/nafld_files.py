"""Reads the three CSV files of the NAFLD cohort that data/sources/nafld.py joins, and names their codes.

Source: `nafld1`, `nafld2` and `nafld3` of the R package survival (https://cran.r-project.org/package=
survival; Allen et al., Hepatology 67, 2018), exported from R by
    for (n in c("nafld1", "nafld2", "nafld3"))
      write.csv(get(n, asNamespace("survival")), paste0(n, ".csv"), row.names = FALSE)
"""

from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import meds, parquet
from ehrwear_jax.data.sources.csv_source import read_csv, require_unique, require_values

HOW_TO_GET = (
    "export nafld1, nafld2 and nafld3 of the R package survival with write.csv, as the docstring of "
    "ehrwear_jax/data/sources/nafld_files.py shows"
)
FOLLOWUP_END = "FOLLOWUP_END"
_PEOPLE_SCHEMA: parquet.Schema = {
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
_VALUES_SCHEMA: parquet.Schema = {"id": pl.Int64, "days": pl.Int64, "test": pl.String, "value": pl.Float64}
_DIAGNOSES_SCHEMA: parquet.Schema = {"id": pl.Int64, "days": pl.Int64, "event": pl.String}


# test -> (code, description). Units as the ranges of the values imply; the source gives none.
TESTS = {
    "chol": ("LAB//chol", "Total cholesterol, mg/dL"),
    "hdl": ("LAB//hdl", "HDL cholesterol, mg/dL"),
    "fib4": ("LAB//fib4", "FIB-4 index of liver fibrosis"),
    "sbp": ("VITAL//sbp", "Systolic blood pressure, mmHg"),
    "dbp": ("VITAL//dbp", "Diastolic blood pressure, mmHg"),
    "smoke": ("SMOKE", "Smoking: 1 yes, 0 no"),
}
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
OTHER_CODES = {
    meds.BIRTH_CODE: "Birth",
    meds.DEATH_CODE: "Death",
    FOLLOWUP_END: "End of follow-up (administrative)",
    "GENDER//M": "Male",
    "GENDER//F": "Female",
}


def code_table() -> pl.DataFrame:
    """code, description, parent_codes of every code of the dataset, and of the ancestors of diagnoses."""
    described = {**OTHER_CODES, **dict([*TESTS.values(), *DIAGNOSES.values(), *BASELINE.values()])}
    described |= {chapter: text for chapter, (text, _) in CHAPTERS.items()}
    described[ICD10] = "Any diagnosis of ICD-10"
    parents = {DIAGNOSES[name][0]: [chapter] for chapter, (_, names) in CHAPTERS.items() for name in names}
    parents |= {chapter: [ICD10] for chapter in CHAPTERS}
    return pl.DataFrame(
        {
            "code": list(described),
            "description": list(described.values()),
            "parent_codes": pl.Series([parents.get(c, []) for c in described], dtype=pl.List(pl.String)),
        }
    )


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
        row = parquet.first_true(people["futime"] < 0)
        raise ValueError(f"{path}: row {row + 1}: column 'futime' is negative")
    path = folder / "nafld2.csv"
    values = read_csv(path, _VALUES_SCHEMA, HOW_TO_GET, required=tuple(_VALUES_SCHEMA))
    require_values(values, "test", TESTS, path)
    path = folder / "nafld3.csv"
    diagnoses = read_csv(path, _DIAGNOSES_SCHEMA, HOW_TO_GET, required=tuple(_DIAGNOSES_SCHEMA))
    require_values(diagnoses, "event", DIAGNOSES, path)
    return people, values, diagnoses
