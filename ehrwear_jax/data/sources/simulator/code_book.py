# ruff: noqa: E501  (tables: one row per line)
"""Defines the codes of the simulated EHR: descriptions, parents, and the effects of the state on each."""

from typing import NamedTuple

import polars as pl

ADMISSION_CODE = "HOSPITAL_ADMISSION//INPATIENT"
DISCHARGE_CODE = "HOSPITAL_DISCHARGE"
FOLLOWUP_END_CODE = "FOLLOWUP_END"


class Condition(NamedTuple):
    """A chronic condition: present once its liability has crossed its threshold.

    Attributes:
      code, text: ICD-10.
      share: share of people of 62 who have it on an average day.
      ehr, age: effects on the liability, of the EHR component and per ten years.
      drugs: ATC codes given for it.
    """

    code: str
    text: str
    share: float
    ehr: float
    age: float
    drugs: tuple[str, ...]


CONDITIONS = (
    Condition("I10", "Essential (primary) hypertension", 0.40, 0.4, 0.45, ("C09AA05", "C08CA01")),
    Condition("E78.5", "Hyperlipidemia, unspecified", 0.35, 0.2, 0.30, ("C10AA05",)),
    Condition("E11.9", "Type 2 diabetes mellitus without complications", 0.16, 0.6, 0.25, ("A10BA02", "A10AE04")),
    Condition("I25.10", "Atherosclerotic heart disease of native coronary artery", 0.40, 0.0, 0.0, ("B01AC06",)),
    Condition("I50.9", "Heart failure, unspecified", 0.06, 1.2, 0.5, ("C03CA01", "C09AA05")),
    Condition("I48.91", "Unspecified atrial fibrillation", 0.06, 0.7, 0.6, ("B01AF02",)),
    Condition("J44.9", "Chronic obstructive pulmonary disease, unspecified", 0.08, 0.9, 0.3, ("R03BB04", "R03AC02")),
    Condition("N18.3", "Chronic kidney disease, stage 3", 0.08, 1.2, 0.5, ("A11CC05",)),
    Condition("F32.9", "Major depressive disorder, single episode, unspecified", 0.14, 0.3, -0.1, ("N06AB06",)),
    Condition("G47.33", "Obstructive sleep apnea", 0.08, 0.2, 0.1, ()),
    Condition("M17.9", "Osteoarthritis of knee, unspecified", 0.18, 0.1, 0.5, ("M01AE01",)),
    Condition("K21.9", "Gastro-esophageal reflux disease without esophagitis", 0.18, 0.1, 0.1, ("A02BC01",)),
    Condition("E03.9", "Hypothyroidism, unspecified", 0.09, 0.0, 0.2, ("H03AA01",)),
    Condition("E66.9", "Obesity, unspecified", 0.22, 0.3, -0.1, ()),
    Condition("D64.9", "Anemia, unspecified", 0.08, 1.0, 0.3, ("B03AA07",)),
    Condition("J45.909", "Unspecified asthma, uncomplicated", 0.09, 0.1, -0.1, ("R03AC02",)),
)  # fmt: skip

# Whoever has it has it for good (people.Person): the state does not drive its liability.
HEART_DISEASE = "I25.10"
BETA_BLOCKER = "C07AB02"

# Acute complaints at a visit: code, text, weight when well, rise of the weight per shock level.
ACUTE = (
    ("J06.9", "Acute upper respiratory infection, unspecified", 1.0, 0.6),
    ("N39.0", "Urinary tract infection, site not specified", 0.4, 0.5),
    ("R05", "Cough", 0.6, 0.6),
    ("R06.02", "Shortness of breath", 0.2, 1.0),
    ("R53.83", "Other fatigue", 0.5, 0.7),
    ("J18.9", "Pneumonia, unspecified organism", 0.05, 0.8),
    ("M54.50", "Low back pain, unspecified", 1.0, 0.0),
    ("L03.90", "Cellulitis, unspecified", 0.1, 0.4),
)
# Given for an acute complaint, by its position in ACUTE (None: nothing).
ACUTE_DRUGS = ("N02BE01", "J01XE01", "N02BE01", "R03AC02", None, "J01CA04", "M01AE01", "J01CA04")

# Main diagnoses of an admission, with weights; chronic conditions are listed beside them.
ADMISSION_DIAGNOSES = (
    ("A41.9", "Sepsis, unspecified organism", 1.0),
    ("I50.23", "Acute on chronic systolic (congestive) heart failure", 1.5),
    ("J18.9", "Pneumonia, unspecified organism", 1.5),
    ("J96.01", "Acute respiratory failure with hypoxia", 0.8),
    ("N17.9", "Acute kidney failure, unspecified", 1.0),
    ("I21.4", "Non-ST elevation (NSTEMI) myocardial infarction", 0.8),
    ("K92.2", "Gastrointestinal hemorrhage, unspecified", 0.7),
)


class Lab(NamedTuple):
    """A measurement: value = centre + scale * score, or centre * exp(scale * score) if `log`.

    The score is a sum of: ehr and shock effects on the state; a personal level (standard
    deviation `personal`); visit-to-visit noise (`noise`); and 1.5 if the condition is present. Values above `top` are reported as `top`.
    """

    code: str
    text: str
    unit: str
    centre: float
    scale: float
    log: bool
    decimals: int
    ehr: float
    shock: float
    personal: float
    noise: float
    condition: str | None
    top: float  # largest value that the laboratory reports
    panel: int  # 0: at every visit; 1: basic panel; 2: at some visits


LABS = (
    Lab("8480-6", "Systolic blood pressure", "mm[Hg]", 126, 11, False, 0, 0.25, -0.3, 0.7, 0.8, "I10", 260, 0),
    Lab("8462-4", "Diastolic blood pressure", "mm[Hg]", 77, 8, False, 0, 0.1, -0.2, 0.7, 0.8, "I10", 150, 0),
    Lab("8867-4", "Heart rate", "/min", 73, 8, False, 0, 0.1, 0.7, 0.8, 0.9, None, 220, 0),
    Lab("39156-5", "Body mass index (BMI) [Ratio]", "kg/m2", 27.5, 4.2, False, 1, 0.05, 0.0, 1.0, 0.08, "E66.9", 80, 0),
    Lab("2345-7", "Glucose [Mass/volume] in Serum or Plasma", "mg/dL", 98, 0.14, True, 0, 0.3, 0.3, 0.6, 0.7, "E11.9", 800, 1),
    Lab("2160-0", "Creatinine [Mass/volume] in Serum or Plasma", "mg/dL", 0.92, 0.22, True, 2, 0.6, 0.2, 0.7, 0.4, "N18.3", 15, 1),
    Lab("2823-3", "Potassium [Moles/volume] in Serum or Plasma", "mmol/L", 4.2, 0.35, False, 1, 0.2, 0.1, 0.4, 0.9, None, 8, 1),
    Lab("2951-2", "Sodium [Moles/volume] in Serum or Plasma", "mmol/L", 140, 2.4, False, 0, -0.3, -0.4, 0.4, 0.8, None, 180, 1),
    Lab("718-7", "Hemoglobin [Mass/volume] in Blood", "g/dL", 13.9, 1.2, False, 1, -0.6, -0.3, 0.7, 0.4, None, 22, 1),
    Lab("6690-2", "Leukocytes [#/volume] in Blood by Automated count", "10*3/uL", 6.8, 0.24, True, 1, 0.15, 0.8, 0.6, 0.6, None, 100, 1),
    Lab("1751-7", "Albumin [Mass/volume] in Serum or Plasma", "g/dL", 4.2, 0.3, False, 1, -0.7, -0.4, 0.5, 0.5, None, 6, 1),
    Lab("1988-5", "C reactive protein [Mass/volume] in Serum or Plasma", "mg/L", 2.4, 0.65, True, 1, 0.5, 1.2, 0.6, 0.6, None, 400, 2),
    Lab("4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood", "%", 5.6, 0.09, True, 1, 0.25, 0.0, 0.7, 0.3, "E11.9", 18, 2),
    Lab("13457-7", "Cholesterol in LDL [Mass/volume] in Serum or Plasma by calculation", "mg/dL", 118, 30, False, 0, -0.1, -0.2, 0.8, 0.5, "E78.5", 400, 2),
    Lab("33762-6", "Natriuretic peptide.B prohormone N-Terminal [Mass/volume] in Serum or Plasma", "pg/mL", 110, 0.6, True, 0, 0.9, 0.6, 0.6, 0.5, "I50.9", 35000, 2),
)  # fmt: skip

VISIT_CODE = "PROC//CPT4//99213"
PROCEDURES = (
    ("PROC//CPT4//99213", "Office or other outpatient visit, established patient"),
    ("PROC//CPT4//93000", "Electrocardiogram, 12 leads, with interpretation and report"),
    ("PROC//CPT4//71046", "Radiologic examination, chest, 2 views"),
    ("PROC//CPT4//94640", "Inhalation treatment for acute airway obstruction"),
    ("PROC//CPT4//36430", "Transfusion of blood or blood components"),
)

_ICD_BLOCKS = {
    "A": ("A00-B99", "Certain infectious and parasitic diseases"),
    "D": ("D50-D89", "Diseases of the blood and blood-forming organs"),
    "E": ("E00-E89", "Endocrine, nutritional and metabolic diseases"),
    "F": ("F01-F99", "Mental, behavioral and neurodevelopmental disorders"),
    "G": ("G00-G99", "Diseases of the nervous system"),
    "I": ("I00-I99", "Diseases of the circulatory system"),
    "J": ("J00-J99", "Diseases of the respiratory system"),
    "K": ("K00-K95", "Diseases of the digestive system"),
    "L": ("L00-L99", "Diseases of the skin and subcutaneous tissue"),
    "M": ("M00-M99", "Diseases of the musculoskeletal system and connective tissue"),
    "N": ("N00-N99", "Diseases of the genitourinary system"),
    "R": ("R00-R99", "Symptoms, signs and abnormal clinical and laboratory findings"),
}
_ATC_NAMES = {
    "A02BC01": "omeprazole", "A10AE04": "insulin glargine", "A10BA02": "metformin",
    "A11CC05": "colecalciferol", "B01AC06": "acetylsalicylic acid", "B01AF02": "apixaban",
    "B03AA07": "ferrous sulfate", "C03CA01": "furosemide", "C07AB02": "metoprolol",
    "C08CA01": "amlodipine", "C09AA05": "ramipril", "C10AA05": "atorvastatin",
    "H03AA01": "levothyroxine sodium", "J01CA04": "amoxicillin", "J01XE01": "nitrofurantoin",
    "M01AE01": "ibuprofen", "N02BE01": "paracetamol", "N06AB06": "sertraline",
    "R03AC02": "salbutamol", "R03BB04": "tiotropium bromide",
}  # fmt: skip
_ATC_GROUPS = {
    "A": "Alimentary tract and metabolism", "B": "Blood and blood forming organs",
    "C": "Cardiovascular system", "H": "Systemic hormonal preparations",
    "J": "Antiinfectives for systemic use", "M": "Musculo-skeletal system", "N": "Nervous system",
    "R": "Respiratory system",
}  # fmt: skip


def code_table() -> pl.DataFrame:
    """code, description, parent_codes of every code that the simulator writes, and of ancestors."""
    rows: dict[str, tuple[str | None, list[str]]] = {
        "MEDS_BIRTH": ("Birth", []),
        "MEDS_DEATH": ("Death", []),
        "GENDER//F": ("Female", []),
        "GENDER//M": ("Male", []),
        ADMISSION_CODE: ("Admission to hospital, inpatient", ["HOSPITAL_ADMISSION"]),
        "HOSPITAL_ADMISSION": ("Admission to hospital", []),
        DISCHARGE_CODE: ("Discharge from hospital", []),
        FOLLOWUP_END_CODE: ("End of observation; administrative, not an input", []),
    }
    diagnoses = [(c.code, c.text) for c in CONDITIONS]
    diagnoses += [(c[0], c[1]) for c in ACUTE + ADMISSION_DIAGNOSES]
    for code, text in diagnoses:
        block, block_text = _ICD_BLOCKS[code[0]]
        category = code.split(".")[0]
        rows[f"ICD10//{block}"] = (block_text, [])
        if category != code:
            rows.setdefault(f"ICD10//{category}", (None, [f"ICD10//{block}"]))
            rows[f"ICD10//{code}"] = (text, [f"ICD10//{category}"])
        else:
            rows[f"ICD10//{code}"] = (text, [f"ICD10//{block}"])
    for code, name in _ATC_NAMES.items():
        rows[f"ATC//{code}"] = (name, [f"ATC//{code[:5]}"])
        for length, parent in ((5, 4), (4, 3), (3, 1)):
            rows.setdefault(f"ATC//{code[:length]}", (None, [f"ATC//{code[:parent]}"]))
        rows[f"ATC//{code[0]}"] = (_ATC_GROUPS[code[0]], [])
    for lab in LABS:
        rows[f"LOINC//{lab.code}"] = (f"{lab.text} ({lab.unit})", [])
    for code, text in PROCEDURES:
        rows[code] = (text, [])
    return pl.DataFrame(
        [(code, text, parents) for code, (text, parents) in sorted(rows.items())],
        schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)},
        orient="row",
    )
