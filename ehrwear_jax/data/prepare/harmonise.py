"""Maps codes of many institutions to common concepts, before anything is fitted (paper, section A.2).

Three tables that a user may give, as CSV or parquet, and two hierarchies that codes spell out themselves:

    mapping:  code, target [, factor, offset, unit]: what a local code stands for; value = factor * value + offset
    ranges:   code, low, high [, unit]: clinical ranges of a value, which become its bins
    ICD-10 and ATC codes name their ancestors: ICD10CM/E11.65 belongs to E11.6, E11 and chapter IV, ATC/A10BA02 to
    A10BA, A10B, A10 and A. ATC codes can also be replaced by their class at a level.

Everything here is a pure function of the tables and of what came before in a person's record.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import parquet

# First letter and number of the last category of each chapter (WHO, ICD-10; D49 is of the clinical modification).
_CHAPTERS = (
    ("I", "B99"), ("II", "D49"), ("III", "D89"), ("IV", "E99"), ("V", "F99"), ("VI", "G99"), ("VII", "H59"),
    ("VIII", "H99"), ("IX", "I99"), ("X", "J99"), ("XI", "K99"), ("XII", "L99"), ("XIII", "M99"), ("XIV", "N99"),
    ("XV", "O99"), ("XVI", "P99"), ("XVII", "Q99"), ("XVIII", "R99"), ("XIX", "T99"), ("XXII", "U99"), ("XX", "Y99"),
    ("XXI", "Z99"),
)  # fmt: skip
_ICD10 = re.compile(r"^(?:ICD-?10(?:CM)?|DIAGNOSIS//ICD//10)/{1,2}([A-Z]\d[0-9A-Z])\.?([0-9A-Z]*)$")
_ATC = re.compile(r"^ATC/{1,2}([A-Z])(\d\d)?([A-Z])?([A-Z])?(\d\d)?$")
# A code's characters, level by level; what stands before ATC may be anything, as in MEDICATION//ATC//A10BA02.
_ATC_LEVELS = ("[A-Z]", r"\d\d", "[A-Z]", "[A-Z]", r"\d\d")
ICD10_ROOT = "ICD10CM"


def icd10_chapter(category: str) -> str:
    """Roman number of the chapter of a category such as "E11"."""
    return next(name for name, last in _CHAPTERS if category[:2] <= last[:2])


def implied_parents(code: str) -> list[str]:
    """The ancestors that an ICD-10 or ATC code spells out, nearest first; [] for other codes.

    ICD-10 nodes are named ICD10CM/E11.6, ICD10CM/E11, ICD10CM/CHAPTER IV, ICD10CM, whatever the code's own spelling,
    so that spellings meet there.
    """
    if found := _ICD10.match(code):
        category, rest = found.groups()
        full = [f"ICD10CM/{category}" + (f".{rest[:n]}" if n else "") for n in range(len(rest), -1, -1)]
        return [c for c in (*full, f"ICD10CM/CHAPTER {icd10_chapter(category)}", ICD10_ROOT) if c != code]
    if code.startswith(f"{ICD10_ROOT}/CHAPTER "):
        return [ICD10_ROOT]
    if found := _ATC.match(code):
        levels = [x for x in found.groups() if x]
        prefix = "ATC//" if code.startswith("ATC//") else "ATC/"
        return [prefix + "".join(levels[:n]) for n in range(len(levels) - 1, 0, -1)]
    return []


def complete_parents(parents: Mapping[str, Iterable[str] | None], codes: Iterable[str]) -> dict[str, list[str]]:
    """{code: [parents]} with what the codes spell out, for `codes` and for all that is reached from them.

    Parents that a table gives stay, before the implied one; null entries of a table's lists are left out.
    """
    out = {code: [p for p in (above or []) if p] for code, above in parents.items()}
    waiting = [*codes, *out]
    while waiting:
        code = waiting.pop()
        lineage = implied_parents(code)
        have = out.setdefault(code, [])
        if lineage and lineage[0] not in have:
            have.append(lineage[0])
        for above in have:
            if above not in out:
                waiting.append(above)
    return {code: above for code, above in out.items() if above}


# ------------------------------------------------------------------------------------------------------------- tables


def _read(path, required, numbers):
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such table")
    table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    if missing := sorted(set(required) - set(table.columns)):
        raise ValueError(f"{path}: no column {missing[0]!r}; there are {table.columns}")
    for name in set(numbers) & set(table.columns):
        try:
            table = table.with_columns(pl.col(name).cast(pl.Float64))
        except pl.exceptions.InvalidOperationError:
            bad = table.with_row_index("row", 1).filter(
                pl.col(name).is_not_null() & pl.col(name).cast(pl.Float64, strict=False).is_null()
            )
            raise ValueError(f"{path}: row {bad['row'][0]}: {name} {bad[name][0]!r} is not a number") from None
    empty = table.with_row_index("row", 1).filter(pl.col("code").is_null() | (pl.col("code") == ""))
    if empty.height:
        raise ValueError(f"{path}: row {empty['row'][0]}: code is empty")
    return table


def dataset_units(codes_path: Path) -> dict[str, str]:
    """{code: unit} of a MEDS codes.parquet that has a column `unit`; {} otherwise. Raises as parquet.read_parquet."""
    path = Path(codes_path)
    if not path.exists():
        return {}
    with parquet.reading(path):
        has_units = "unit" in pl.read_parquet_schema(path)
    return dict(parquet.read_parquet(path, ["code", "unit"]).drop_nulls().iter_rows()) if has_units else {}


def read_mapping(paths: Iterable[str], units: Mapping[str, str] | None = None) -> pl.DataFrame:
    """One mapping of all tables.

    Args:
      paths: tables of code, target and, optionally, factor (1), offset (0), unit.
      units: {code: unit of its values in the dataset}, against which a table's unit is checked.

    Returns:
      DataFrame: code, target, factor f64, offset f64; one row a code.

    Raises:
      FileNotFoundError, ValueError: naming file and row: a missing column, no target, a code twice, a target that is
        mapped itself, a factor that is zero or not finite, a unit that is not the dataset's.
    """
    read: list[pl.DataFrame] = []
    first: dict[str, str] = {}
    for path in paths:
        table = _read(path, ("code", "target"), ("factor", "offset"))
        for name, default in (("factor", 1.0), ("offset", 0.0)):
            value = pl.col(name).fill_null(default) if name in table.columns else pl.lit(default)
            table = table.with_columns(value.alias(name))
        if "unit" not in table.columns:
            table = table.with_columns(pl.lit(None, pl.String).alias("unit"))
        for i, row in enumerate(table.iter_rows(named=True), 1):
            where = f"{path}: row {i}"
            if not row["target"]:
                raise ValueError(f"{where}: code {row['code']!r} has no target")
            if row["code"] in first:
                raise ValueError(f"{where}: code {row['code']!r} is mapped already, in {first[row['code']]}")
            if not np.isfinite(row["factor"]) or row["factor"] == 0 or not np.isfinite(row["offset"]):
                raise ValueError(f"{where}: factor {row['factor']} and offset {row['offset']} make no value")
            _check_unit(where, row, units)
            first[row["code"]] = where
        read.append(table.select("code", "target", "factor", "offset"))
    schema = {"code": pl.String, "target": pl.String, "factor": pl.Float64, "offset": pl.Float64}
    mapping = pl.concat(read) if read else pl.DataFrame(schema=schema)
    chained = mapping.filter(pl.col("target").is_in(mapping["code"].implode()) & (pl.col("target") != pl.col("code")))
    if chained.height:
        code, target = chained.select("code", "target").row(0)
        raise ValueError(
            f"{first[code]}: the target {target!r} is mapped itself, in {first[target]}; name the last one"
        )
    return mapping


def _check_unit(where, row, units):
    have = (units or {}).get(row["code"])
    if row.get("unit") and have and have != row["unit"]:
        raise ValueError(f"{where}: {row['code']!r} is in {have!r} in the dataset, not in {row['unit']!r}")


def read_ranges(path: str, units: Mapping[str, str] | None = None) -> dict[str, list[float]]:
    """{code: inner bounds of its ranges, increasing}: values in (low, high] share a bin.

    Args:
      path: table of code, low, high and, optionally, unit; an empty low or high is unbounded.
      units: as in read_mapping.

    Raises:
      FileNotFoundError, ValueError: naming file and row: a missing column, low not below high, ranges of a code that
        overlap, a unit that is not the dataset's.
    """
    table = _read(path, ("code", "low", "high"), ("low", "high")).with_row_index("row", 1)
    table = table.with_columns(pl.col("low").fill_null(-np.inf), pl.col("high").fill_null(np.inf))
    out: dict[str, set[float]] = {}
    last: dict[str, float] = {}
    for row in table.sort("code", "low", "row").iter_rows(named=True):
        code, where = row["code"], f"{path}: row {row['row']}"
        if not row["low"] < row["high"]:
            raise ValueError(f"{where}: low {row['low']} is not below high {row['high']}")
        if row["low"] < last.get(code, -np.inf):
            raise ValueError(f"{where}: the range from {row['low']} overlaps the one below it, up to {last[code]}")
        _check_unit(where, row, units)
        last[code] = row["high"]
        out.setdefault(code, set()).update(x for x in (row["low"], row["high"]) if np.isfinite(x))
    return {code: sorted(cuts) for code, cuts in out.items()}


# ------------------------------------------------------------------------------------------------------------- events


def map_codes(events: pl.DataFrame, mapping: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Events under their common codes and units.

    Args:
      events: code, numeric_value; more columns pass through. mapping: from read_mapping.

    Returns:
      (events, how many rows were mapped).
    """
    if not mapping.height:
        return events, 0
    joined = events.join(mapping, on="code", how="left", maintain_order="left")
    mapped = pl.col("target").is_not_null()
    value = pl.col("numeric_value").cast(pl.Float64) * pl.col("factor") + pl.col("offset")
    out = joined.with_columns(
        pl.when(mapped).then(pl.col("target")).otherwise(pl.col("code")).alias("code"),
        pl.when(mapped).then(value.cast(pl.Float32)).otherwise(pl.col("numeric_value")).alias("numeric_value"),
    )
    return out.drop("target", "factor", "offset"), int(joined.select(mapped.sum()).item())


def classify_drugs(events: pl.DataFrame, level: int) -> tuple[pl.DataFrame, int]:
    """Events with ATC codes replaced by their class.

    Args:
      events: code; more columns pass through. level: of the class, 1 to 4 (3: A10B); codes of that level or a higher
        one stay. 0: all stay.

    Returns:
      (events, how many rows were replaced).
    """
    if not level:
        return events, 0
    below = "".join(f"(?:{part}" for part in _ATC_LEVELS[level + 1 :]) + ")?" * (len(_ATC_LEVELS) - level - 1)
    pattern = f"^((?:.*/)?ATC/{{1,2}}{''.join(_ATC_LEVELS[:level])}){_ATC_LEVELS[level]}{below}$"
    n = int(events.select(pl.col("code").str.contains(pattern).sum()).item())
    return events.with_columns(pl.col("code").str.replace(pattern, "${1}")), n


def to_common(events: pl.DataFrame, mapping: pl.DataFrame, atc_level: int) -> tuple[pl.DataFrame, int, int]:
    """(Events under their common codes, how many were mapped, how many replaced by a class of drugs).

    Args: see map_codes and classify_drugs.
    """
    mapped, n_mapped = map_codes(events, mapping)
    classified, n_classified = classify_drugs(mapped, atc_level)
    return classified, n_mapped, n_classified


def cap_frequency(events: pl.DataFrame, per_day: int) -> tuple[pl.DataFrame, int]:
    """At most `per_day` events of one code for a person and day: the first ones, so that the future decides nothing.

    Args:
      events: subject_id, time (null: static, never capped), code, in time order within a person.

    Returns:
      (events, how many rows were left out).
    """
    if per_day <= 0:
        return events, 0
    nth = pl.int_range(pl.len()).over("subject_id", pl.col("time").dt.truncate("1d"), "code")
    kept = events.filter(pl.col("time").is_null() | (nth < per_day))
    return kept, events.height - kept.height
