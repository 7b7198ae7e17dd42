"""Reads the table of clinical ranges of tests and finds the ranges of a dataset's codes, in the codes' own units.

clinical_ranges.csv has a row per test (laboratory tests and vital signs of adults):

    name     by which config.prepare.ranges_codes calls it
    loinc    its LOINC codes, each with its usual unit where that is not the row's: 2345-7 14749-6:mmol/L
    unit     of the cut points, in UCUM
    also     units that convert for this test alone, value = factor * value [+ offset]: mmol/L=18.016
    cuts     increasing; ">=3.5": 3.5 and what is above belong together; ">5.0": 5.0 belongs to what is below
    labels   of the ranges, one more than there are cuts: low|normal|high
    source   that the limits are attributed to, with those of several where there are several

The limits were not compared with these sources line by line: reference limits come from a transcription of them, and
those of guidelines from general knowledge. They cut values into tokens; they are no medical advice.

Where limits depend on the sex, both sexes' are cut points, since a code's bins are everybody's.

This material contains content from LOINC (http://loinc.org). LOINC is copyright (c) Regenstrief Institute, Inc. and the
Logical Observation Identifiers Names and Codes (LOINC) Committee and is available at no cost under the license at
http://loinc.org/license. LOINC(R) is a registered United States trademark of Regenstrief Institute, Inc.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.config.data import CLINICAL, PrepareConfig
from ehrwear_jax.data.formats import units as units_lib
from ehrwear_jax.data.formats.parquet import write_frame
from ehrwear_jax.data.prepare import harmonise

TABLE = Path(__file__).with_suffix(".csv")
REVISION = 1  # of how bins follow from ranges
COLUMNS = ("name", "loinc", "unit", "also", "cuts", "labels", "source")
CHOSEN = pl.Schema(
    {
        "code_id": pl.Int32(),
        "code": pl.String(),
        "test": pl.String(),
        "unit": pl.String(),
        "reason": pl.String(),
        "cut": pl.List(pl.Float64),
        "label": pl.List(pl.String),
    }
)
UNKNOWN, OTHER = "of unknown unit", "in a unit that does not convert"
# Tests that have a unit in name only, so that a value of theirs needs none.
_UNITLESS = ("1", "[pH]")
_CUT = re.compile(r"(>=|>)(-?\d+\.?\d*)")
_ALSO = re.compile(r"([^=]+)=(\d+\.?\d*)(\+\d+\.?\d*)?")
_LOINC = re.compile(r"LOINC(?://|[/:|_ -])(\d{1,7}-\d)(?![\w-])", re.IGNORECASE)
_NAMED = re.compile(r"(.*?)(?: \[(.*)\])?")


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row of the table.

    Attributes:
      loinc: {LOINC code: its usual unit}. also: {unit: (factor, offset)} to `unit`.
      cuts: increasing, in `unit`. above: whether a value at the cut belongs to the range above it. labels: of the
        ranges, one more than cuts.
    """

    name: str
    loinc: Mapping[str, str]
    unit: str
    also: Mapping[str, tuple[float, float]]
    cuts: tuple[float, ...]
    above: tuple[bool, ...]
    labels: tuple[str, ...]
    source: str

    def conversion(self, unit: str) -> tuple[float, float] | None:
        """(factor, offset) that turn a value in a unit of units.LABORATORY into one in the row's; None: it cannot."""
        if direct := units_lib.conversion(unit, self.unit, units_lib.LABORATORY):
            return direct
        for other, (factor, offset) in self.also.items():
            if step := units_lib.conversion(unit, other, units_lib.LABORATORY):
                return step[0] * factor, step[1] * factor + offset
        return None

    def between(self, unit: str, target: str) -> tuple[float, float] | None:
        """(factor, offset) from a unit to another one, both as for `conversion`; None: one of them does not convert."""
        here, there = self.conversion(unit), self.conversion(target)
        return None if here is None or there is None else (here[0] / there[0], (here[1] - there[1]) / there[0])

    def bounds(self, unit: str) -> list[float] | None:
        """Inner bounds of the ranges in a unit, so that (low, high] are the bins; None if it does not convert.

        Values are float32, so a bound is the float32 of its cut or, where a value at the cut belongs above, the one
        before it.
        """
        found = self.conversion(unit)
        if found is None:
            return None
        factor, offset = found
        at = [np.float32((cut - offset) / factor) for cut in self.cuts]
        lower = [np.nextafter(x, np.float32(-np.inf)) if up else x for x, up in zip(at, self.above, strict=True)]
        return [float(x) for x in lower]

    def label(self, value: float, unit: str | None = None) -> str:
        """The label of a value in a unit (the row's by default); ValueError if it does not convert."""
        bounds = self.bounds(unit or self.unit)
        if bounds is None:
            raise ValueError(f"{self.name}: {unit!r} does not convert to {self.unit!r}")
        return self.labels[int(np.searchsorted(bounds, np.float32(value), side="left"))]


# -------------------------------------------------------------------------------------------------------------- table
def read(path: Path = TABLE) -> dict[str, Measured]:
    """{name: row} of a table, in its order.

    Raises:
      FileNotFoundError, ValueError: naming file and row: a missing column, a name or a LOINC code twice, no such LOINC
        code (by its check digit), an unknown unit, one that does not convert, cuts that do not increase, another number
        of labels than one more than cuts, labels that are alike, no source.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such table")
    table = pl.read_csv(path, infer_schema=False)
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise ValueError(f"{path}: no column {missing[0]!r}; there are {table.columns}")
    out: dict[str, Measured] = {}
    numbers: dict[str, str] = {}
    for i, row in enumerate(table.iter_rows(named=True), 1):
        where = f"{path}: row {i}"
        found = _row({name: (row[name] or "").strip() for name in COLUMNS}, where)
        if found.name in out:
            raise ValueError(f"{where}: {found.name!r} is there already")
        for number in found.loinc:
            if number in numbers:
                raise ValueError(f"{where}: LOINC code {number} is that of {numbers[number]!r} already")
            numbers[number] = found.name
        out[found.name] = found
    return out


def _row(row, where):
    for name in ("name", "unit", "cuts", "source"):
        if not row[name]:
            raise ValueError(f"{where}: {name} is empty")
    units = [row["unit"]]
    also = {}
    for text in row["also"].split():
        if not (parts := _ALSO.fullmatch(text)) or float(parts[2]) == 0:
            raise ValueError(f"{where}: also {text!r} is not UNIT=FACTOR or UNIT=FACTOR+OFFSET")
        also[parts[1]] = float(parts[2]), float(parts[3] or 0)
        units.append(parts[1])
    loinc = {}
    for text in row["loinc"].split():
        number, _, unit = text.partition(":")
        if not is_loinc(number):
            raise ValueError(f"{where}: {number!r} is no LOINC code")
        loinc[number] = unit or row["unit"]
    if unknown := [unit for unit in (*units, *loinc.values()) if unit not in units_lib.LABORATORY]:
        raise ValueError(f"{where}: {unknown[0]!r} is no known unit")
    cuts = [cut for text in row["cuts"].split() if (cut := _CUT.fullmatch(text))]
    if len(cuts) < len(row["cuts"].split()):
        raise ValueError(f"{where}: cuts {row['cuts']!r} are not as in '>=3.5 >5.0'")
    values, labels = tuple(float(cut[2]) for cut in cuts), tuple(text.strip() for text in row["labels"].split("|"))
    if any(low >= high for low, high in zip(values, values[1:], strict=False)):
        raise ValueError(f"{where}: the cuts {row['cuts']} do not increase")
    if len(labels) != len(values) + 1:
        raise ValueError(f"{where}: {len(values)} cuts make {len(values) + 1} ranges, and {len(labels)} have a label")
    if len({*labels}) < len(labels) or any(not label or "//" in label for label in labels):
        raise ValueError(f"{where}: the labels {row['labels']} are not all different, or one is empty or has a //")
    above = tuple(cut[1] == ">=" for cut in cuts)
    found = Measured(row["name"], loinc, row["unit"], also, values, above, labels, row["source"])
    for unit in loinc.values():
        if found.conversion(unit) is None:
            raise ValueError(f"{where}: {unit!r} does not convert to {found.unit!r}")
    return found


def is_loinc(number: str) -> bool:
    """Whether a text is a LOINC code: digits, and the check digit that they have (modulo 10, every other doubled)."""
    digits, dash, check = number.partition("-")
    if not (digits.isdigit() and dash and len(check) == 1 and check.isdigit()):
        return False
    doubled = "".join(str(int(d) * (2 if k % 2 == 0 else 1)) for k, d in enumerate(reversed(digits)))
    return (-sum(map(int, doubled))) % 10 == int(check)


# -------------------------------------------------------------------------------------------------------------- codes
def value_ranges(
    codes: pl.DataFrame, config: PrepareConfig, units: Mapping[str, str]
) -> tuple[dict[int, list[float]], pl.DataFrame | None]:
    """The value bins that config.prepare.ranges_file gives.

    Args:
      codes: code_table.CODES. units: {code: unit of its values}.

    Returns:
      ({code_id: inner bounds, increasing}, CHOSEN of the package's table or None with another).

    Raises:
      FileNotFoundError, ValueError: see harmonise.read_ranges and choose.
    """
    if not config.ranges_file:
        return {}, None
    if config.ranges_file != CLINICAL:
        ids = dict(codes.select("code", "code_id").iter_rows())
        ranges = {ids[c]: cuts for c, cuts in harmonise.read_ranges(config.ranges_file, units).items() if c in ids}
        # values are float32: 4.3 would lie above the float64 of its own bound
        return {i: np.unique(np.array(cuts, np.float32)).astype(float).tolist() for i, cuts in ranges.items()}, None
    chosen = choose(codes, config.ranges_codes, units, config.ranges_usual_units)
    return dict(chosen.filter(pl.col("reason") == "").select("code_id", "cut").iter_rows()), chosen


def named_rows(ranges_codes: Mapping[str, str]) -> dict[str, tuple[Measured, str]]:
    """{code: (row, unit or "")} of config.prepare.ranges_codes; ValueError for a row or a unit that there is not."""
    table, out = read(), {}
    for code, text in ranges_codes.items():
        where, parts = f"config.prepare.ranges_codes: {code!r}", _NAMED.fullmatch(text)
        name, unit = (parts[1], parts[2]) if parts else (text, None)
        if name not in table:
            raise ValueError(f"{where} is {name!r}, which is not in {TABLE.name}; it has {', '.join(table)}")
        known = units_lib.laboratory_unit(unit) if unit else ""
        if known is None or (known and table[name].conversion(known) is None):
            raise ValueError(f"{where}: {unit!r} does not convert to {table[name].unit!r}")
        out[code] = table[name], known
    return out


def choose(
    codes: pl.DataFrame, ranges_codes: Mapping[str, str], units: Mapping[str, str], usual_units: bool = False
) -> pl.DataFrame:
    """CHOSEN: a row for every code that the package's table concerns, binned by it or with a reason why not.

    A code is that of ranges_codes or the first LOINC code of the table that the code's name, else its ancestors', has.
    Its unit is, in this order: that of ranges_codes, that of `units`, the one that ends the code (LAB//50971//mEq/L)
    and, with usual_units, the usual one of the LOINC code.

    Raises:
      ValueError: see named_rows; a code of ranges_codes that the dataset does not have.
    """
    named = named_rows(ranges_codes)
    if unknown := sorted(set(named) - set(codes["code"])):
        raise ValueError(f"config.prepare.ranges_codes: the dataset has no code {unknown[0]!r}")
    by_number = {number: row for row in read().values() for number in row.loinc}
    rows = []
    for code_id, code, ancestors in codes.select("code_id", "code", "ancestors").iter_rows():
        row, unit = named.get(code, (None, ""))
        number = "" if row else _number((code, *ancestors), by_number)
        row = row or by_number.get(number)
        if row is None:
            continue
        text = units.get(code)
        found = unit or (units_lib.laboratory_unit(text) if text else _suffix(code))
        if found is None and not text and usual_units:
            found = row.loinc.get(number)
        if found is None and not text and row.unit in _UNITLESS:
            found = row.unit
        cut = row.bounds(found) if found else None
        reason = "" if cut else (UNKNOWN if found is None and not text else OTHER)
        rows.append((code_id, code, row.name, found or text, reason, cut, list(row.labels) if cut else None))
    return pl.DataFrame(rows, CHOSEN, orient="row")


def _number(names, by_number):
    """The first LOINC code of the table in some names, "" without one."""
    found = (number for name in names for number in _LOINC.findall(name))
    return next((number for number in found if number in by_number), "")


def row_of(names: Iterable[str]) -> Measured | None:
    """The row of the first of some names (a code's own, then its ancestors') that holds a LOINC code of the table."""
    by_number = {number: row for row in read().values() for number in row.loinc}
    return by_number.get(_number(names, by_number))


@functools.lru_cache(maxsize=4096)
def _suffix(code):
    """The unit with which a code ends, after // or after its LOINC code; None without one."""
    parts = code.split("//")[1:]
    if found := _LOINC.search(code):
        parts = re.split("/{1,2}", code[found.end() :], maxsplit=1)[1:]
        parts = parts[0].split("//") if parts else []
    return next((u for u in map(units_lib.laboratory_unit, filter(None, reversed(parts))) if u and u != "1"), None)


# ------------------------------------------------------------------------------------------------------------- counts
def write(chosen: pl.DataFrame | None, statistics: pl.DataFrame, min_values: int, path: Path) -> dict[str, dict]:
    """Writes CHOSEN of the codes that have enough training values for bins, with their number: n_values i64.

    Args:
      chosen: None: nothing is written. statistics: statistics.CODE_STATISTICS. min_values: config.prepare's.

    Returns:
      Counts of the manifest: how many values are in which bins.
    """
    if chosen is None:
        return {}
    enough = statistics.filter(pl.col("n_values") >= max(min_values, 1)).select("code_id", "n_values")
    table = chosen.join(enough, on="code_id", how="inner", maintain_order="left")
    write_frame(table, path)
    n = {reason: int(table.filter(pl.col("reason") == reason)["n_values"].sum()) for reason in ("", UNKNOWN, OTHER)}
    went = {"in clinical ranges": n[""], **{f"in quantile bins, {reason}": n[reason] for reason in (UNKNOWN, OTHER)}}
    return {"values of tests with clinical ranges": {"in": sum(n.values()), "out": went}}


def steps(path: Path) -> list[dict]:
    """[{step, n, dropped, reason}] of what `write` wrote, for the log; [] where there is no such file."""
    if not path.exists():
        return []
    table = pl.read_parquet(path)
    binned, left = table.filter(pl.col("reason") == ""), table.filter(pl.col("reason") != "")
    hint = " (config.prepare.ranges_usual_units takes the usual one)"
    parts = [
        f"{group.height:,} codes {reason}, such as {group['code'][0]}"
        + (f" ({group['unit'][0]})" if reason == OTHER else hint)
        for (reason,), group in left.group_by("reason", maintain_order=True)
    ]
    return [
        {
            "step": f"training values of {binned.height:,} codes in clinical ranges",
            "n": int(binned["n_values"].sum()),
            "dropped": int(left["n_values"].sum()),
            "reason": f"none is left out, they are in quantile bins: {', '.join(parts)}" if left.height else "",
        }
    ]
