"""Names the files of NHANES as the CDC publishes them, and reads those of one row per person and the mortality file.

One folder, as launch/nhanes_download.sh makes it, holds for each survey cycle C (2003-2004), D (2005-2006), G
(2011-2012), H (2013-2014), in SAS transport format: demographics, the tables that nhanes_cdc_events.py names, the
prescriptions RXQ_RX, the minutes of the physical activity monitor (PAXRAW_C, PAXRAW_D; PAXMIN and the header PAXHD of G
and H), and the public-use linked mortality file, NHANES_2003_2004_MORT_2019_PUBLIC.dat and its like. Case of names does
not matter. A cycle is read if its demographics are there; then all of its files must be.
"""

from pathlib import Path
from typing import NamedTuple

import polars as pl

from ehrwear_jax.data.formats import parquet
from ehrwear_jax.data.sources.csv_source import Ledger, require_file
from ehrwear_jax.data.sources.sas_transport import TransportFile

HOW_TO_GET = "launch/nhanes_download.sh fetches the files"


class Cycle(NamedTuple):
    """A survey cycle: the letter of its files, SDDSRVYR, years, first Sunday of its first January, its oldest age.

    Ages above `oldest` are given as it. counts: whether the monitor counted (2003-2006) or was read as MIMS units.
    """

    letter: str
    number: int
    years: str
    sunday: str
    oldest: int
    counts: bool


CYCLES = (
    Cycle("C", 3, "2003-2004", "2003-01-05", 85, True),
    Cycle("D", 4, "2005-2006", "2005-01-02", 85, True),
    Cycle("G", 7, "2011-2012", "2011-01-02", 80, False),
    Cycle("H", 8, "2013-2014", "2013-01-06", 80, False),
)
# Tables with other names in a cycle, or that it does not have (None); all others are NAME_LETTER.
_OTHER_NAMES: dict[tuple[str, str], str | None] = {
    ("TCHOL", "C"): "L13_C",
    ("HDL", "C"): "L13_C",
    ("TRIGLY", "C"): "L13AM_C",
    ("GHB", "C"): "L10_C",
    ("GLU", "C"): "L10AM_C",
    ("BIOPRO", "C"): "L40_C",
    ("CBC", "C"): "L25_C",
    ("CRP", "C"): "L11_C",
    ("CRP", "G"): None,
    ("CRP", "H"): None,
}
# First and last column, from 1, of the public-use linked mortality files of NHANES (2019 release).
MORTALITY_LAYOUT = {
    "SEQN": (1, 6),
    "ELIGSTAT": (15, 15),
    "MORTSTAT": (16, 16),
    "UCOD_LEADING": (17, 19),
    "DIABETES": (20, 20),
    "HYPERTEN": (21, 21),
    "PERMTH_INT": (43, 45),
    "PERMTH_EXM": (46, 48),
}
_ELIGIBLE, _UNDER_18, _INELIGIBLE = 1, 2, 3
# DEMO: numbers of everybody; the others are null in cycles that lack them
_DEMO_NEEDED = (
    "SEQN", "SDDSRVYR", "RIDSTATR", "RIAGENDR", "RIDAGEYR", "RIDRETH1", "RIDEXMON",
    "WTINT2YR", "WTMEC2YR", "SDMVPSU", "SDMVSTRA", "DMDEDUC2", "INDFMPIR",
)  # fmt: skip
_DEMO_OTHER = ("RIDAGEMN", "RIDAGEEX", "RIDEXAGM")
EXAMINED = 2  # RIDSTATR: interviewed and examined


def stem(table: str, letter: str) -> str | None:
    """Name of a table's file in a cycle without the ending; None: the cycle does not have it."""
    return _OTHER_NAMES.get((table, letter), f"{table}_{letter}")


def mortality_name(cycle: Cycle) -> str:
    """Name of the linked mortality file of a cycle."""
    return f"NHANES_{cycle.years.replace('-', '_')}_MORT_2019_PUBLIC.dat"


def find(folder: Path, name: str) -> Path:
    """The file of that name in any case; the name itself where there is none."""
    folder = Path(folder)
    there = sorted(path for path in folder.iterdir() if path.name.lower() == name.lower()) if folder.is_dir() else []
    return there[0] if there else folder / name


def open_table(folder: Path, name: str) -> TransportFile:
    """The transport file NAME.xpt; raises FileNotFoundError or ValueError."""
    return TransportFile(find(folder, f"{name}.xpt"), HOW_TO_GET)


def cycles_in(folder: Path) -> list[Cycle]:
    """The cycles whose demographics are in a folder.

    Raises:
      FileNotFoundError: there is none.
    """
    there = [cycle for cycle in CYCLES if find(folder, f"DEMO_{cycle.letter}.xpt").is_file()]
    if not there:
        require_file(Path(folder) / "DEMO_C.xpt", f"nor of another cycle; {HOW_TO_GET}")
    return there


def read_table(folder: Path, name: str, columns: tuple[str, ...]) -> pl.DataFrame:
    """SEQN (Int64, once each) and some columns of a table; Float64 null where the file has no such column.

    Raises:
      FileNotFoundError: no such file.
      ValueError: malformed, no SEQN, or a person on two rows.
    """
    file = open_table(folder, name)
    frame = file.frame(["SEQN", *(column for column in columns if column in file.columns)])
    require_seqn(frame, file.path)
    repeated = frame["SEQN"].is_duplicated()
    if repeated.any():
        row = parquet.first_true(repeated)
        raise ValueError(f"{file.path}: row {row + 1}: person {frame['SEQN'][row]:g} is on more than one row")
    missing = [pl.lit(None, dtype=pl.Float64).alias(column) for column in columns if column not in file.columns]
    return frame.with_columns(pl.col("SEQN").cast(pl.Int64), *missing).select("SEQN", *columns)


def require_seqn(frame: pl.DataFrame, path: Path) -> None:
    """Raises ValueError naming the first row without a whole number in SEQN."""
    bad = frame["SEQN"].is_null() | (frame["SEQN"] != frame["SEQN"].round(0)).fill_null(True)
    if bad.any():
        row = parquet.first_true(bad)
        raise ValueError(f"{path}: row {row + 1}: column 'SEQN' is {frame['SEQN'][row]}, which is nobody's number")


def read_demographics(folder: Path, cycles: list[Cycle], ledger: Ledger) -> pl.DataFrame:
    """Everybody who was examined in some cycles: the columns of DEMO as Float64, SEQN and SDDSRVYR Int64, by SEQN.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a malformed file, one of another cycle, or without a column.
    """
    parts = []
    for cycle in cycles:
        name = f"DEMO_{cycle.letter}"
        table = read_table(folder, name, (*_DEMO_NEEDED[1:], *_DEMO_OTHER))
        absent = [c for c in _DEMO_NEEDED if table[c].null_count() == len(table)]
        if absent:
            raise ValueError(f"{find(folder, name + '.xpt')}: column '{absent[0]}' is missing or empty")
        if (table["SDDSRVYR"] != cycle.number).any():
            raise ValueError(f"{find(folder, name + '.xpt')}: column 'SDDSRVYR' must be {cycle.number} on all rows")
        examined = table.filter(pl.col("RIDSTATR") == EXAMINED)
        ledger.add(f"{name}: people examined", len(examined), len(table) - len(examined), "interviewed only")
        parts.append(examined)
    return pl.concat(parts).with_columns(pl.col("SDDSRVYR").cast(pl.Int64)).sort("SEQN")


def read_mortality(folder: Path, cycles: list[Cycle], people: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """The linked mortality of the people examined: the columns of MORTALITY_LAYOUT, Int64, of those who are eligible.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that is too short or holds something else than digits, a person on two lines, or a status
        that is none; names file, line and column.
    """
    parts = []
    for cycle in cycles:
        path = require_file(find(folder, mortality_name(cycle)), HOW_TO_GET)
        table = _read_fixed_width(path)
        eligible = table.filter(pl.col("ELIGSTAT") == _ELIGIBLE)
        for code, why in ((_UNDER_18, "under 18, not released"), (_INELIGIBLE, "not enough to be linked by")):
            n = len(table.filter(pl.col("ELIGSTAT") == code))
            ledger.add(f"{path.name}: lines of people", len(table) - n, n, why)
            table = table.filter(pl.col("ELIGSTAT") != code)
        of_these = eligible.filter(pl.col("SEQN").is_in(people["SEQN"].implode()))
        why = "interviewed only, or nobody of DEMO"
        ledger.add(f"{path.name}: people examined", len(of_these), len(eligible) - len(of_these), why)
        parts.append(of_these)
    return pl.concat(parts)


def _read_fixed_width(path: Path) -> pl.DataFrame:
    lines = path.read_text(encoding="latin-1").splitlines()
    last = max(end for _, end in MORTALITY_LAYOUT.values())
    text = pl.Series("line", [line.ljust(last) for line in lines if line.strip()], dtype=pl.String)
    out: dict[str, pl.Series] = {}
    for name, (first, end) in MORTALITY_LAYOUT.items():
        cell = text.str.slice(first - 1, end - first + 1).str.strip_chars()
        cell = cell.set(cell.is_in(["", "."]), None)
        number = cell.cast(pl.Int64, strict=False)
        bad = cell.is_not_null() & number.is_null()
        if name in ("SEQN", "ELIGSTAT"):
            bad |= number.is_null()
        if bad.any():
            row = parquet.first_true(bad)
            raise ValueError(f"{path}: line {row + 1}: {name} (columns {first} to {end}) is {cell[row]!r}")
        out[name] = number.alias(name)
    table = pl.DataFrame(out)
    known = {"ELIGSTAT": (_ELIGIBLE, _UNDER_18, _INELIGIBLE), "MORTSTAT": (0, 1)}
    for name, allowed in known.items():
        bad = table[name].is_not_null() & ~table[name].is_in(list(allowed))
        if bad.any():
            row = parquet.first_true(bad)
            raise ValueError(f"{path}: line {row + 1}: {name} is {table[name][row]}, none of {allowed}")
    repeated = table["SEQN"].is_duplicated()
    if repeated.any():
        row = parquet.first_true(repeated)
        raise ValueError(f"{path}: line {row + 1}: person {table['SEQN'][row]} is on more than one line")
    return table
