"""Reads and checks the files of the PhysioNet/CinC Challenge 2012, and says what its parameters are.

https://physionet.org/content/challenge-2012/1.0.0/ (Silva et al., Computing in Cardiology 2012; Open Data Commons
Attribution License v1.0). A folder with, for each of the sets a, b and c that are wanted:

- set-a.tar.gz as published, or the folder set-a unpacked from it: a text file per ICU stay, RecordID.txt, with rows
  Time,Parameter,Value. Time is hh:mm since admission to the ICU, 00:00 to 48:00.
- Outcomes-a.txt: RecordID, SAPS-I, SOFA, Length_of_stay, Survival, In-hospital_death. A set without it has no labels.
"""

import dataclasses
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import parquet
from ehrwear_jax.data.sources.csv_source import read_csv, require_unique, require_values

HOW_TO_GET = "the docstring of ehrwear_jax/data/sources/physionet2012_files.py says where the files are published"
SETS = ("a", "b", "c")
LAST_MINUTE = 48 * 60
UNKNOWN = -1.0  # what the challenge writes where a descriptor is not known
_HEADER = ["Time", "Parameter", "Value"]
_OUTCOMES: parquet.Schema = {"RecordID": pl.Int64, "In-hospital_death": pl.Int64}
GENDERS = {0: "GENDER//F", 1: "GENDER//M"}
ICU_TYPES = {
    1: ("ICU_ADMISSION//coronary", "Admission to a coronary care unit"),
    2: ("ICU_ADMISSION//cardiac_surgery", "Admission to a cardiac surgery recovery unit"),
    3: ("ICU_ADMISSION//medical", "Admission to a medical ICU"),
    4: ("ICU_ADMISSION//surgical", "Admission to a surgical ICU"),
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What the challenge measures.

    Attributes:
      name: of the event's code or of the channel. description: with the unit.
      unit: of the channel, "" of what is no vital sign.
      low, high: plausible values, inclusive; another one is an artefact.
    """

    name: str
    description: str
    low: float
    high: float
    unit: str = ""


_BP, _CUFF = "invasive (arterial line), mmHg", "non-invasive (cuff), mmHg"
# Monitored signs: wearable channels. 0 mmHg and 0 beats are a line that is off; -17.8 C is 0 F; a temperature of 1.9 C
# and a mean pressure of 2 mmHg are no patient's either.
VITALS = {
    "HR": Parameter("heart_rate", "Heart rate, beats/min", 10, 300, "beats/min"),
    "RespRate": Parameter("respiratory_rate", "Respiratory rate, breaths/min", 1, 100, "breaths/min"),
    "Temp": Parameter("temperature", "Temperature, C", 25, 45, "C"),
    "SysABP": Parameter("systolic_bp", f"Systolic blood pressure, {_BP}", 20, 300, "mmHg"),
    "DiasABP": Parameter("diastolic_bp", f"Diastolic blood pressure, {_BP}", 5, 250, "mmHg"),
    "MAP": Parameter("mean_bp", f"Mean blood pressure, {_BP}", 15, 300, "mmHg"),
    "NISysABP": Parameter("systolic_bp_cuff", f"Systolic blood pressure, {_CUFF}", 20, 300, "mmHg"),
    "NIDiasABP": Parameter("diastolic_bp_cuff", f"Diastolic blood pressure, {_CUFF}", 5, 250, "mmHg"),
    "NIMAP": Parameter("mean_bp_cuff", f"Mean blood pressure, {_CUFF}", 15, 300, "mmHg"),
}
# Everything else: events. SaO2 is a result of the blood gas analysis here: 91% of its rows of set a have a PaO2 beside.
MEASURED = {
    "Albumin": Parameter("LAB//albumin", "Albumin, g/dL", 0.3, 10),
    "ALP": Parameter("LAB//alkaline_phosphatase", "Alkaline phosphatase, IU/L", 1, 1e4),
    "ALT": Parameter("LAB//alanine_transaminase", "Alanine transaminase, IU/L", 1, 1e5),
    "AST": Parameter("LAB//aspartate_transaminase", "Aspartate transaminase, IU/L", 1, 1e5),
    "Bilirubin": Parameter("LAB//bilirubin", "Bilirubin, mg/dL", 0.05, 100),
    "BUN": Parameter("LAB//urea_nitrogen", "Blood urea nitrogen, mg/dL", 0.5, 400),
    "Cholesterol": Parameter("LAB//cholesterol", "Cholesterol, mg/dL", 10, 1000),
    "Creatinine": Parameter("LAB//creatinine", "Serum creatinine, mg/dL", 0.05, 60),
    "Glucose": Parameter("LAB//glucose", "Serum glucose, mg/dL", 5, 3000),
    "HCO3": Parameter("LAB//bicarbonate", "Serum bicarbonate, mmol/L", 1, 80),
    "HCT": Parameter("LAB//hematocrit", "Hematocrit, %", 3, 80),
    "K": Parameter("LAB//potassium", "Serum potassium, mmol/L", 1, 15),
    "Lactate": Parameter("LAB//lactate", "Lactate, mmol/L", 0.05, 50),
    "Mg": Parameter("LAB//magnesium", "Serum magnesium, mmol/L as the challenge says; mg/dL by its size", 0.1, 20),
    "Na": Parameter("LAB//sodium", "Serum sodium, mmol/L", 80, 220),
    "PaCO2": Parameter("LAB//pco2_arterial", "Partial pressure of arterial CO2, mmHg", 5, 250),
    "PaO2": Parameter("LAB//po2_arterial", "Partial pressure of arterial O2, mmHg", 10, 800),
    "pH": Parameter("LAB//ph_arterial", "Arterial pH", 6.5, 8),
    "Platelets": Parameter("LAB//platelets", "Platelets, 1000/uL", 1, 3000),
    "SaO2": Parameter("LAB//so2_arterial", "O2 saturation in hemoglobin, %", 10, 100),
    "TroponinI": Parameter("LAB//troponin_i", "Troponin I, ug/L", 0, 1e4),
    "TroponinT": Parameter("LAB//troponin_t", "Troponin T, ug/L", 0, 1e3),
    "WBC": Parameter("LAB//white_cells", "White blood cell count, 1000/uL", 0.01, 1000),
    "FiO2": Parameter("VENTILATION//fio2", "Fractional inspired O2, 0 to 1", 0.2, 1),
    "MechVent": Parameter("VENTILATION//mechanical", "Mechanical ventilation respiration, true where recorded", 1, 1),
    "GCS": Parameter("SCORE//glasgow_coma", "Glasgow Coma Score, 3 to 15", 3, 15),
    "Urine": Parameter("OUTPUT//urine", "Urine output since the last entry, mL", 0, 20_000),
    "Weight": Parameter("BODY//weight", "Weight, kg", 25, 350),
    "Height": Parameter("BODY//height", "Height, cm", 120, 230),
}
DESCRIBING = ("RecordID", "Age", "Gender", "ICUType")  # of the stay itself, once at 00:00
MAY_BE_UNKNOWN = ("Height", "Weight")  # and Gender
WITHOUT_VALUE = ("MechVent",)  # 1 wherever it is written
# Parameter -> [(low, high, factor, why)]: a value within low..high is one in another unit, and is multiplied.
REPAIRS = {
    "pH": [(65.0, 80.0, 0.1, "a point too far right"), (650.0, 800.0, 0.01, "without its point: 735")],
    "Height": [(1.2, 2.3, 100.0, "metres"), (305.0, 585.0, 1 / 2.54, "centimetres taken for inches")],
}


def read_stays(source_dir: Path, name: str) -> pl.DataFrame:
    """All rows of a set: stay (RecordID), minute (since admission), parameter, value; by stay, in its file's order.

    Raises:
      FileNotFoundError: neither archive nor folder.
      ValueError: a malformed file; names it and the row (1 is the first below the header).
    """
    parts = []
    for path, text in _files(Path(source_dir), name):
        stem = Path(path).stem
        if not stem.isdigit():
            raise ValueError(f"{path}: the name is no RecordID")
        rows = _rows(path, text).with_columns(stay=pl.lit(int(stem), pl.Int64))
        parts.append(rows)
    if not parts:
        raise FileNotFoundError(f"{source_dir}: set-{name} holds no stay; {HOW_TO_GET}")
    rows = pl.concat(parts).sort("stay", maintain_order=True)
    where = f"{source_dir}: set-{name}: stay "
    time = rows["Time"].str.extract_groups(r"^(\d{2}):([0-5]\d)$").struct.unnest().cast(pl.Int64)
    minute, value = time["1"] * 60 + time["2"], rows["Value"].cast(pl.Float64, strict=False)
    known = [*VITALS, *MEASURED, *DESCRIBING]
    _require(rows, "Time", minute.is_not_null() & (minute <= LAST_MINUTE).fill_null(False), "hh:mm up to 48:00", where)
    _require(rows, "Parameter", rows["Parameter"].is_in(known), "a parameter of the challenge", where)
    _require(rows, "Value", value.is_finite().fill_null(False), "a finite number", where)
    return rows.select("stay", minute.alias("minute"), pl.col("Parameter").alias("parameter"), value.alias("value"))


def _files(source_dir: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every stay of a set, from the folder or else the archive."""
    folder, archive = source_dir / f"set-{name}", source_dir / f"set-{name}.tar.gz"
    if folder.is_dir():
        for path in sorted(folder.glob("*.txt")):
            yield str(path), path.read_bytes()
        return
    if not archive.is_file():
        raise FileNotFoundError(f"{source_dir}: neither set-{name} nor set-{name}.tar.gz; {HOW_TO_GET}")
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                file = members.extractfile(member) if member.isfile() and member.name.endswith(".txt") else None
                if file is not None:
                    yield f"{archive}/{member.name}", file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{archive}: not a readable archive ({error})") from error


def _rows(path: str, text: bytes) -> pl.DataFrame:
    """The rows of a stay as text, with their number."""
    try:
        rows = pl.read_csv(io.BytesIO(text), infer_schema=False)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error
    if rows.columns != _HEADER:
        raise ValueError(f"{path}: the header is {','.join(rows.columns)}, not {','.join(_HEADER)}")
    return rows.with_row_index("row", offset=1)


def _require(rows: pl.DataFrame, column: str, good: pl.Series, what: str, where: str) -> None:
    if not good.all():
        bad = rows.row(parquet.first_true(~good.fill_null(False)), named=True)
        raise ValueError(f"{where}{bad['stay']}: row {bad['row']}: column '{column}' is '{bad[column]}', not {what}")


def read_outcomes(source_dir: Path, name: str) -> pl.DataFrame | None:
    """stay (RecordID), died bool (in hospital) of a set; None where its outcomes are not there.

    Raises:
      ValueError: a malformed table, or a stay that is in it twice.
    """
    path = Path(source_dir) / f"Outcomes-{name}.txt"
    if not path.is_file():
        return None
    table = read_csv(path, _OUTCOMES, HOW_TO_GET, required=tuple(_OUTCOMES))
    require_values(table, "In-hospital_death", (0, 1), path)
    require_unique(table, "RecordID", path)
    return table.select(pl.col("RecordID").alias("stay"), (pl.col("In-hospital_death") == 1).alias("died"))
