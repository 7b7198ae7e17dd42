"""Converts units of wearable channels, and those of laboratory values, which are written in many ways.

A laboratory's unit is one of `LABORATORY`, written as in UCUM (the Unified Code for Units of Measure). What a
conversion needs to know of the substance, such as its molar mass, is not here; see prepare/clinical_ranges.py.
"""

import re
from collections.abc import Mapping

_MINUTE = 1 / 60
_G = 9.80665  # m/s2, standard gravity

# unit: (quantity, factor, offset): a value in the quantity's base unit is value * factor + offset
UNITS = {
    **dict.fromkeys(("bpm", "beats/min", "breaths/min", "1/min", "/min", "min-1"), ("rate", _MINUTE, 0.0)),
    **dict.fromkeys(("Hz", "1/s", "/s", "s-1"), ("rate", 1.0, 0.0)),
    **dict.fromkeys(("counts/min", "cpm"), ("counts", _MINUTE, 0.0)),
    "counts/s": ("counts", 1.0, 0.0),
    "g": ("acceleration", _G, 0.0),
    "mg": ("acceleration", _G / 1000, 0.0),
    **dict.fromkeys(("m/s2", "m/s^2", "m/s²", "m s-2"), ("acceleration", 1.0, 0.0)),
    **dict.fromkeys(("degC", "°C", "Cel", "C"), ("temperature", 1.0, 273.15)),
    **dict.fromkeys(("degF", "°F", "[degF]", "F"), ("temperature", 5 / 9, 273.15 - 160 / 9)),
    "K": ("temperature", 1.0, 0.0),
    "s": ("time", 1.0, 0.0),
    "ms": ("time", 1e-3, 0.0),
    **dict.fromkeys(("us", "µs"), ("time", 1e-6, 0.0)),
    "min": ("time", 60.0, 0.0),
    "%": ("share", 0.01, 0.0),
    "1": ("share", 1.0, 0.0),
    "V": ("voltage", 1.0, 0.0),
    "mV": ("voltage", 1e-3, 0.0),
    **dict.fromkeys(("uV", "µV"), ("voltage", 1e-6, 0.0)),
}

# The same of laboratory values and vital signs, in UCUM. An international unit counts as a unit of activity, since for
# each test there is one. Units that stand alone, such as meq/L, are in other units what the test makes of them.
LABORATORY = {
    **{u: ("mass concentration", f, 0.0) for u, f in (
        ("g/dL", 10.0), ("g/L", 1.0), ("mg/mL", 1.0), ("mg/dL", 1e-2), ("mg/L", 1e-3), ("ug/mL", 1e-3), ("ug/dL", 1e-5),
        ("ug/L", 1e-6), ("ng/mL", 1e-6), ("ng/dL", 1e-8), ("ng/L", 1e-9), ("pg/mL", 1e-9))},
    **{u: ("amount concentration", f, 0.0) for u, f in (
        ("mol/L", 1.0), ("mmol/L", 1e-3), ("umol/L", 1e-6), ("nmol/L", 1e-9), ("pmol/L", 1e-12))},
    **{u: ("number concentration", f, 0.0) for u, f in (
        ("/L", 1.0), ("/mL", 1e3), ("/uL", 1e6), ("10*6/L", 1e6), ("10*3/uL", 1e9), ("10*9/L", 1e9), ("10*6/uL", 1e12),
        ("10*12/L", 1e12))},
    **{u: ("activity", f, 0.0) for u, f in (
        ("kU/L", 1e3), ("U/mL", 1e3), ("U/L", 1.0), ("m[IU]/mL", 1.0), ("m[IU]/L", 1e-3), ("u[IU]/mL", 1e-3),
        ("ukat/L", 60.0), ("nkat/L", 0.06))},
    **{u: ("share", f, 0.0) for u, f in (("%", 0.01), ("L/L", 1.0))},
    **{u: ("mass ratio", f, 0.0) for u, f in (("mg/g", 1.0), ("ug/mg", 1.0), ("mg/mg", 1e3), ("g/g", 1e3))},
    **{u: ("pressure", f, 0.0) for u, f in (("mm[Hg]", 133.322), ("kPa", 1000.0))},
    **{u: ("temperature", *UNITS[u][1:]) for u in ("Cel", "[degF]", "K")},
    "s": ("time", 1.0, 0.0),
    **{u: (u, 1.0, 0.0) for u in (
        "1", "meq/L", "mmol/mol", "mg/mmol", "mL/min/{1.73_m2}", "mm/h", "fL", "pg", "[pH]", "mosm/kg", "mmol/kg",
        "/min", "kg/m2")},
}  # fmt: skip


def _folded(text: str) -> str:
    """A unit without what is spelled in several ways: case, spaces, the micro sign, {annotations}, IU for U."""
    text = re.sub(r"\{(?!DDU)[^}]*\}|\s", "", text)  # a D-dimer in DDU is another quantity than one in FEU
    text = text.casefold().replace("\u00b5", "u").replace("\u03bc", "u")
    return text.replace("[iu]", "u").replace("iu", "u").replace("[arb'u]", "u").replace("mcg", "ug").replace("^", "*")


_OTHER_SPELLINGS = {
    **dict.fromkeys(("k/ul", "k/mm3", "thou/ul", "thousand/ul", "10*3/mm3", "10e3/ul", "1000/ul"), "10*3/uL"),
    **dict.fromkeys(("m/ul", "mil/ul", "million/ul", "10*6/mm3", "10e6/ul"), "10*6/uL"),
    **{"10e9/l": "10*9/L", "10e12/l": "10*12/L", "10e6/l": "10*6/L"},
    **dict.fromkeys(("#/ul", "cells/ul", "/mm3", "cells/mm3"), "/uL"),
    **dict.fromkeys(("gm/dl", "g%"), "g/dL"),
    **{"mg%": "mg/dL", "fraction": "L/L"},
    **dict.fromkeys(("", "ratio", "inr", "units"), "1"),
    **dict.fromkeys(("percent", "pct"), "%"),
    **dict.fromkeys(("mg/gcr", "mg/gcreat", "mg/gcreatinine"), "mg/g"),
    **dict.fromkeys(("mg/mmolcr", "mg/mmolcreat", "mg/mmolcreatinine"), "mg/mmol"),
    **dict.fromkeys(("ng/mlfeu", "ng/ml(feu)"), "ng/mL"),
    **dict.fromkeys(("mg/lfeu", "mg/l(feu)"), "mg/L"),
    **dict.fromkeys(("ug/mlfeu", "ug/ml(feu)"), "ug/mL"),
    **dict.fromkeys(("mmhg", "torr"), "mm[Hg]"),
    **dict.fromkeys(("degc", "\u00b0c", "c"), "Cel"),
    **dict.fromkeys(("degf", "\u00b0f", "f"), "[degF]"),
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("mm/hr", "mm/hour", "mm/1h"), "mm/h"),
    **dict.fromkeys(("ml/min", "ml/min/", "ml/min/1.73m2", "ml/min/1.73m*2", "ml/min/1.73sqm", "ml/min/1.73m\u00b2",
                     "ml/min/1.73_m2"), "mL/min/{1.73_m2}"),
    **dict.fromkeys(("ph", "phunits"), "[pH]"),
    **dict.fromkeys(("mosmol/kg", "mosm/kgh2o", "mosm/kgh20", "mosmol/kgh2o"), "mosm/kg"),
    **dict.fromkeys(("bpm", "beats/min", "breaths/min", "insp/min", "1/min"), "/min"),
    **dict.fromkeys(("kg/m*2", "kg/m\u00b2"), "kg/m2"),
}  # fmt: skip
_SPELLINGS = _OTHER_SPELLINGS | {_folded(unit): unit for unit in LABORATORY}


def laboratory_unit(text: str) -> str | None:
    """The unit of LABORATORY that a text means, as in "mg/dl", "x10^9/L" or "uIU/mL"; None if it is none of them."""
    folded = _folded(text)
    return _SPELLINGS.get(folded) or _SPELLINGS.get(folded.removeprefix("x"))


def conversion(
    unit: str, target: str | None, known: Mapping[str, tuple[str, float, float]] = UNITS
) -> tuple[float, float] | None:
    """(factor, offset) that turn a value in `unit` into one in `target`; None if it is not known how.

    Args:
      known: UNITS, of wearable channels, or LABORATORY.
    """
    if unit not in known or target is None or target not in known or known[unit][0] != known[target][0]:
        return None
    _, factor, offset = known[unit]
    _, target_factor, target_offset = known[target]
    return factor / target_factor, (offset - target_offset) / target_factor
