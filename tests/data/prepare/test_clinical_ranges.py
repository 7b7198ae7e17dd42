"""The table of clinical ranges: its rows, borders, units against molar masses, which codes it concerns, faults."""

import csv
import io

import polars as pl
import pytest

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import units as units_lib
from ehrwear_jax.data.prepare import clinical_ranges, code_table

TABLE = clinical_ranges.read()
VITAL_SIGNS = {"systolic blood pressure", "diastolic blood pressure", "heart rate", "respiratory rate",
               "body temperature", "oxygen saturation", "body mass index"}  # fmt: skip
# g/mol (of urea its nitrogen, of hemoglobin the monomer), from the atoms of each
MOLAR_MASS = {
    "urea nitrogen": 28.014, "creatinine": 113.12, "uric acid": 168.11, "glucose": 180.156, "fasting glucose": 180.156,
    "total cholesterol": 386.66, "LDL cholesterol": 386.66, "HDL cholesterol": 386.66, "non-HDL cholesterol": 386.66,
    "triglycerides": 885.4, "total bilirubin": 584.67, "direct bilirubin": 584.67, "calcium": 40.078,
    "ionized calcium": 40.078, "phosphate": 30.974, "magnesium": 24.305, "iron": 55.845,
    "iron binding capacity": 55.845, "vitamin B12": 1355.4, "folate": 441.4, "25-hydroxyvitamin D": 400.64,
    "free thyroxine": 776.87,
    "free triiodothyronine": 650.98, "cortisol": 362.46, "parathyroid hormone": 9425.0, "NT-proBNP": 8457.0,
    "lactate": 90.08, "hemoglobin": 16114.0, "digoxin": 780.94,
}  # fmt: skip
GRAMS = {"g/dL": 10.0, "mg/dL": 0.01, "ug/dL": 1e-5, "ng/mL": 1e-6, "ng/dL": 1e-8, "pg/mL": 1e-9}
MOLES = {"mmol/L": 1e-3, "umol/L": 1e-6, "nmol/L": 1e-9, "pmol/L": 1e-12}


def test_the_table_has_its_rows():
    tests = {name: row for name, row in TABLE.items() if name not in VITAL_SIGNS}
    assert len(tests) >= 60 and TABLE.keys() >= VITAL_SIGNS
    assert all(row.loinc and row.source and len(row.labels) >= 2 for row in TABLE.values())
    with open(clinical_ranges.TABLE, newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == list(TABLE)
    for row in TABLE.values():  # in every unit that its values may have
        for unit in {row.unit, *row.also, *row.loinc.values()}:
            bounds = row.bounds(unit)
            assert bounds == sorted(set(bounds)) and len(bounds) + 1 == len(row.labels), (row.name, unit)


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        ("potassium", "mmol/L", {2.9: "moderately low", 3.0: "mildly low", 3.49: "mildly low", 3.5: "normal",
                                 5.0: "normal", 5.1: "mildly high", 5.5: "mildly high", 5.6: "moderately high",
                                 6.0: "moderately high", 6.1: "very high"}),
        ("potassium", "meq/L", {3.5: "normal", 5.0: "normal", 5.1: "mildly high"}),
        ("sodium", "mmol/L", {129: "moderately low", 130: "mildly low", 135: "normal", 145: "normal",
                              146: "mildly high"}),
        ("estimated GFR", "mL/min/{1.73_m2}", {14.9: "G5", 15: "G4", 30: "G3b", 45: "G3a", 59.9: "G3a", 60: "G2",
                                              90: "G1"}),
        ("urine albumin/creatinine ratio", "mg/g", {29.9: "A1", 30: "A2", 300: "A2", 301: "A3"}),
        ("urine albumin/creatinine ratio", "mg/mmol", {3.3: "A1", 3.4: "A2", 33.9: "A2", 34: "A3"}),
        ("hemoglobin A1c", "%", {5.6: "normal", 5.7: "prediabetes", 6.4: "prediabetes", 6.5: "diabetes below 7"}),
        ("hemoglobin A1c", "mmol/mol", {38: "normal", 39: "prediabetes", 47: "prediabetes", 48: "diabetes below 7"}),
        ("fasting glucose", "mg/dL", {69: "low", 70: "normal", 99: "normal", 100: "impaired", 125: "impaired",
                                      126: "diabetes"}),
        # 6.9 mmol/L are 124.3 mg/dL, 7.0 are 126.1
        ("fasting glucose", "mmol/L", {5.5: "normal", 5.6: "impaired", 6.9: "impaired", 7.0: "diabetes"}),
        # 176 umol/L are 1.991 mg/dL, 177 are 2.002
        ("creatinine", "umol/L", {176: "mildly high", 177: "moderately high"}),
        # 4.9 mmol/L are 189.5 mg/dL, 5.0 are 193.4
        ("LDL cholesterol", "mmol/L", {4.9: "high", 5.0: "very high"}),
        ("hemoglobin", "g/L", {79: "severe anemia", 80: "moderate anemia", 109: "moderate anemia", 110: "mild anemia",
                               120: "mild anemia in men", 130: "normal", 160: "normal", 165: "high in women",
                               166: "high"}),
        ("platelets", "10*9/L", {149: "mildly low", 150: "normal", 450: "normal", 451: "high"}),
        ("neutrophils", "/uL", {499: "extremely low", 500: "very low", 1500: "mildly low"}),
        ("thyrotropin", "u[IU]/mL", {0.09: "suppressed", 0.1: "low", 0.4: "normal", 4.0: "normal", 4.01: "high"}),
        ("C reactive protein", "mg/dL", {0.09: "low risk", 0.1: "average risk", 10.0: "moderate inflammation",
                                         10.1: "severe inflammation"}),
        # 5.9 kPa are 44.3 mm Hg, 6.1 are 45.8
        ("arterial pCO2", "kPa", {5.9: "normal", 6.1: "high"}),
        ("body temperature", "[degF]", {100.4: "normal", 100.5: "raised"}),  # 38 degrees Celsius
        ("INR", "1", {1.2: "normal", 1.3: "mildly prolonged", 2.0: "therapeutic", 3.0: "therapeutic",
                      3.1: "above therapeutic"}),
        ("hematocrit", "L/L", {0.36: "low", 0.37: "low in men", 0.42: "normal", 0.48: "normal",
                               0.485: "high in women"}),
    ],
)  # fmt: skip
def test_values_at_the_borders_have_the_known_label(name, unit, expected):
    assert {value: TABLE[name].label(value, unit) for value in expected} == expected


def test_factors_are_those_of_molar_masses():
    found = set()
    for row in TABLE.values():
        for unit, (factor, offset) in row.also.items():
            if unit in MOLES and row.unit in GRAMS:
                want = MOLAR_MASS[row.name] * MOLES[unit] / GRAMS[row.unit]
            elif unit in GRAMS and row.unit in MOLES:
                want = GRAMS[unit] / MOLAR_MASS[row.name] / MOLES[row.unit]
            else:
                continue
            assert factor == pytest.approx(want, rel=2e-3) and offset == 0, (row.name, unit)
            found.add(row.name)
    assert found == MOLAR_MASS.keys()
    assert TABLE["glucose"].conversion("umol/L") == pytest.approx((0.018016, 0.0))
    # divalent ions: an equivalent is half a mole; creatinine has 113.12 g/mol
    assert TABLE["calcium"].conversion("meq/L") == pytest.approx((4.008 / 2, 0.0))
    assert TABLE["magnesium"].conversion("meq/L") == pytest.approx((2.431 / 2, 0.0))
    assert TABLE["urine protein/creatinine ratio"].conversion("mg/mmol")[0] == pytest.approx(1000 / 113.12, rel=1e-3)
    assert TABLE["hemoglobin A1c"].conversion("%") == (1.0, 0.0)


def test_units_of_other_quantities_do_not_convert():
    assert TABLE["potassium"].bounds("mg/dL") is None and TABLE["INR"].bounds("%") is None
    assert TABLE["lipoprotein(a) mass"].bounds("nmol/L") is None
    assert TABLE["hemoglobin A1c IFCC"].bounds("%") is None, "a share by IFCC is not the share by NGSP"
    assert units_lib.laboratory_unit("ng/mL{DDU}") is None and units_lib.laboratory_unit("ng/mL{FEU}") == "ng/mL"
    with pytest.raises(ValueError, match="potassium: 'mg/dL' does not convert to 'mmol/L'"):
        TABLE["potassium"].label(4.0, "mg/dL")


@pytest.mark.parametrize(("number", "is_one"), [("2823-3", True), ("718-7", True), ("39156-5", True), ("2823-4", False),
                                                ("2832-3", False), ("28233", False), ("x-3", False)])  # fmt: skip
def test_loinc_codes_have_a_check_digit(number, is_one):
    assert clinical_ranges.is_loinc(number) == is_one


GOOD = {"name": "potassium", "loinc": "2823-3", "unit": "mmol/L", "also": "meq/L=1", "cuts": ">=3.5 >5.0",
        "labels": "low|normal|high", "source": "somebody"}  # fmt: skip


def written(path, *rows):
    text = io.StringIO()
    out = csv.DictWriter(text, list(rows[0]))
    out.writeheader()
    out.writerows(rows)
    path.write_text(text.getvalue())
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuts": ">5.0 >=3.5"}, "the cuts >5.0 >=3.5 do not increase"),
        ({"cuts": ">=3.5 >3.5"}, "do not increase"),
        ({"cuts": "3.5 5.0"}, "cuts '3.5 5.0' are not as in"),
        ({"labels": "low|normal"}, "2 cuts make 3 ranges, and 2 have a label"),
        ({"labels": "low|normal|low"}, "not all different"),
        ({"labels": "low||high"}, "one is empty"),
        ({"loinc": "2823-4"}, "'2823-4' is no LOINC code"),
        ({"loinc": "2823-3:mg/dL"}, "'mg/dL' does not convert to 'mmol/L'"),
        ({"unit": "mmol"}, "'mmol' is no known unit"),
        ({"also": "meq/L"}, "also 'meq/L' is not UNIT=FACTOR"),
        ({"also": "meq/L=0"}, "also 'meq/L=0' is not UNIT=FACTOR"),
        ({"source": ""}, "source is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, message):
    other = GOOD | {"name": "sodium", "loinc": "2951-2"}
    assert list(clinical_ranges.read(written(tmp_path / "good.csv", other, GOOD))) == ["sodium", "potassium"]
    with pytest.raises(ValueError, match=rf"bad\.csv: row 2: .*{message}"):
        clinical_ranges.read(written(tmp_path / "bad.csv", other, GOOD | change))


def test_rows_and_codes_are_there_once(tmp_path):
    with pytest.raises(ValueError, match="row 2: 'potassium' is there already"):
        clinical_ranges.read(written(tmp_path / "t.csv", GOOD, GOOD | {"loinc": "6298-4"}))
    with pytest.raises(ValueError, match="row 2: LOINC code 2823-3 is that of 'potassium' already"):
        clinical_ranges.read(written(tmp_path / "t.csv", GOOD, GOOD | {"name": "kalium"}))
    with pytest.raises(ValueError, match="no column 'source'"):
        clinical_ranges.read(written(tmp_path / "t.csv", {k: v for k, v in GOOD.items() if k != "source"}))
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        clinical_ranges.read(tmp_path / "none.csv")


def chosen(codes, named=(), units=(), usual_units=False):
    """{code: (test, unit, reason)} of {code: its ancestors}."""
    rows = [(i, code, None, list(above), None) for i, (code, above) in enumerate(codes.items())]
    table = pl.DataFrame(rows, code_table.CODES, orient="row")
    found = clinical_ranges.choose(table, dict(named), dict(units), usual_units)
    assert all((cut is None) == bool(reason) for cut, reason in found.select("cut", "reason").iter_rows())
    return {code: rest for code, *rest in found.select("code", "test", "unit", "reason").iter_rows()}


def test_codes_are_found_by_loinc_and_by_name():
    unknown, other = clinical_ranges.UNKNOWN, clinical_ranges.OTHER
    codes = {
        "LOINC//2823-3": [], "LAB//LOINC//2823-3//mEq/L": [], "LOINC/2345-7/mg/dl": [], "loinc:718-7": [],
        "LAB//50971//mEq/L": ["LOINC/2823-3", "LOINC//LP15098-4"], "LAB//51237//UNK": ["LOINC/6301-6"],
        "LOINC//12823-3": [], "LOINC//2823-31": [], "DX//2823-3": [], "LAB//glu": [], "LAB//k": [],
        "LOINC//14749-6": [], "LOINC//2160-0//furlong": [], "LOINC//2951-2": [], "LOINC//2093-3": [],
    }  # fmt: skip
    units = {"LOINC//2823-3": "mmol/L", "LOINC//2951-2": "furlong", "loinc:718-7": "g/L", "LAB//k": "mg/dL"}
    named = {"LAB//glu": "glucose [mmol/l]", "LAB//k": "potassium [meq/L]"}
    want = {
        "LOINC//2823-3": ["potassium", "mmol/L", ""],
        "LAB//LOINC//2823-3//mEq/L": ["potassium", "meq/L", ""],
        "LOINC/2345-7/mg/dl": ["glucose", "mg/dL", ""],
        "loinc:718-7": ["hemoglobin", "g/L", ""],
        "LAB//50971//mEq/L": ["potassium", "meq/L", ""],
        "LAB//51237//UNK": ["INR", "1", ""],
        "LAB//glu": ["glucose", "mmol/L", ""],
        "LAB//k": ["potassium", "meq/L", ""],
        "LOINC//14749-6": ["glucose", None, unknown],
        "LOINC//2160-0//furlong": ["creatinine", None, unknown],
        "LOINC//2951-2": ["sodium", "furlong", other],
        "LOINC//2093-3": ["total cholesterol", None, unknown],
    }
    assert chosen(codes, named, units) == want
    usual = {"LOINC//14749-6": ["glucose", "mmol/L", ""], "LOINC//2160-0//furlong": ["creatinine", "mg/dL", ""],
             "LOINC//2093-3": ["total cholesterol", "mg/dL", ""]}  # fmt: skip
    assert chosen(codes, named, units, usual_units=True) == want | usual


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="'LAB//x' is 'kalium', which is not in clinical_ranges.csv; it has sodium"):
        chosen({"LAB//x": []}, {"LAB//x": "kalium"})
    with pytest.raises(ValueError, match="'LAB//x': 'mg/dL' does not convert to 'mmol/L'"):
        chosen({"LAB//x": []}, {"LAB//x": "potassium [mg/dL]"})
    with pytest.raises(ValueError, match="the dataset has no code 'LAB//y'"):
        chosen({"LAB//x": []}, {"LAB//y": "potassium"})
    for options in ({"ranges_usual_units": True}, {"ranges_codes": {"a": "b"}, "ranges_file": "x.csv"}):
        with pytest.raises(ValueError, match="are for ranges_file 'clinical'"):
            PrepareConfig(**options)


def test_a_users_bound_holds_its_own_value_in_float32(tmp_path):
    (tmp_path / "r.csv").write_text("code,low,high\nK,,4.3\nK,4.3,\n")
    codes = pl.DataFrame([(0, "K", None, [], None)], code_table.CODES, orient="row")
    ranges, table = clinical_ranges.value_ranges(codes, PrepareConfig(ranges_file=str(tmp_path / "r.csv")), {})
    value = pl.Series([4.3], dtype=pl.Float32).cast(pl.Float64)[0]
    assert table is None and 4.3 < value <= ranges[0][0]


def test_units_convert_by_the_substance_behind_a_code():
    row = clinical_ranges.row_of(["LAB//glucose", "LOINC/2345-7"])
    assert row.name == "glucose" and clinical_ranges.row_of(["LAB//glucose"]) is None
    factor, offset = row.between("mmol/L", "mg/dL")
    assert factor == pytest.approx(18.016, rel=1e-3) and offset == 0
    assert row.between("mg/dL", "mmol/L")[0] == pytest.approx(1 / factor) and row.between("mm/h", "mg/dL") is None
