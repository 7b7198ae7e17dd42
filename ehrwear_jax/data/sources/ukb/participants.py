"""Reads the participants' fields of UK Biobank: who there is, visits to assessment centres, first occurrences, wear.

The fields come in one or several files (`ukb<number>.tab`, `.csv` or `.txt`; `participant*.csv`), whose columns have
one of three styles:

    f.53.0.0        tables made by ukbconv for R
    53-0.0          CSV made by ukbconv
    p53_i0          exports of the Research Analysis Platform, perhaps as participant.p53_i0; p31 has no instances

Exports may have codes or their labels (Female, July, Cardiff). People on a list of withdrawals (`w<number>_*.csv`,
`withdrawn*.csv`), or with a negative id, are left out everywhere.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from ehrwear_jax.data.sources.ukb import export_files, special_dates
from ehrwear_jax.data.sources.ukb.export_files import Tally

STEMS = (r"ukb\d+.*", r"participants?.*")
WITHDRAWN = (r"w\d+[_a-z0-9]*", r"withdrawn.*", r"withdrawals?.*")
SEX, YEAR, MONTH, VISIT, CENTRE, LOST, DIED = 31, 34, 52, 53, 54, 191, 40000
ETHNICITY, CAUSE, CONTRIBUTING = 21000, 40001, 40002
# Measured at a visit: field -> unit
MEASURED = {48: "cm", 49: "cm", 50: "cm", 4079: "mm[Hg]", 4080: "mm[Hg]", 102: "/min", 21001: "kg/m2", 21002: "kg",
            30690: "mmol/L", 30740: "mmol/L", 30750: "mmol/mol", 30760: "mmol/L", 30780: "mmol/L",
            30870: "mmol/L"}  # fmt: skip
ANSWERED = (20116, 20117)  # smoking and alcohol status
WEAR_START, WEAR_END, WEAR_MEAN, GOOD_WEAR, GOOD_CALIBRATION, WEAR_DAYS = 90010, 90011, 90012, 90015, 90016, 90051
WEAR = (WEAR_START, WEAR_END, WEAR_MEAN, GOOD_WEAR, GOOD_CALIBRATION, WEAR_DAYS)
FIELDS = (SEX, YEAR, MONTH, VISIT, CENTRE, LOST, DIED, ETHNICITY, CAUSE, CONTRIBUTING, *MEASURED, *ANSWERED, *WEAR)
FIRST, LAST = 130000, 132605  # first occurrences: even fields are dates, the odd one after it its source
_STYLES = (
    re.compile(r"f\.(?P<field>\d+)\.(?P<instance>\d+)\.(?P<array>\d+)"),
    re.compile(r"(?P<field>\d+)-(?P<instance>\d+)\.(?P<array>\d+)"),
    re.compile(r"p(?P<field>\d+)(?:_i(?P<instance>\d+))?(?:_a(?P<array>\d+))?"),
)
_SEXES = {"0": "F", "female": "F", "1": "M", "male": "M"}
# Assessment centres outside England, by code and by name.
COUNTRY = dict.fromkeys(("11003", "11022", "11023", "cardiff", "swansea", "wrexham"), "Wales")
COUNTRY |= dict.fromkeys(("11004", "11005", "glasgow", "edinburgh"), "Scotland")


class Field(NamedTuple):
    """A column of the participants' fields."""

    field: int
    instance: int
    array: int

    @property
    def name(self) -> str:
        """One name for all styles."""
        return f"{self.field}_{self.instance}_{self.array}"


def field_of(column: str) -> Field | None:
    """The field that a column of any style holds, None if it is none."""
    for style in _STYLES:
        if found := style.fullmatch(column):
            return Field(*(int(found[part] or 0) for part in ("field", "instance", "array")))
    return None


@dataclasses.dataclass(frozen=True)
class Participants:
    """What the fields say.

    Attributes:
      people: subject_id, sex (F, M), birth (Date), country, lost (Date), died (Date: of field 40000), by subject_id.
      visits: subject_id, instance, day (Date).
      values: subject_id, instance, field, text: measured or answered at a visit; ethnicity.
      causes: subject_id, code: of death.
      occurrences: subject_id, field, day (text), source (text): first occurrences.
      wear: subject_id and WEAR as text, columns named by their field.
    """

    people: pl.DataFrame
    visits: pl.DataFrame
    values: pl.DataFrame
    causes: pl.DataFrame
    occurrences: pl.DataFrame
    wear: pl.DataFrame


def read(folder: Path, tally: Tally) -> Participants:
    """The fields of everybody who did not withdraw.

    Memory: the wanted fields of everybody, as long tables.

    Raises:
      FileNotFoundError: no file of participants.
      ValueError: a file without ids, or one without any known field.
    """
    files = export_files.find_files(folder, STEMS)
    if not files:
        raise FileNotFoundError(
            f"{folder}: holds no file of participants (ukb<number>.tab or .csv, participant.csv); docs/uk_biobank.md "
            "says what goes where"
        )
    gone = _withdrawn(folder)
    long, ids = [], []
    for path in files:
        for block in _long_blocks(path):
            ids.append(block[0])
            long.append(block[1])
    everybody = pl.concat(ids)
    tally.n_read = everybody.height
    known = tally.keep(
        everybody,
        (pl.col("subject_id").is_null(), "id is no number"),
        (pl.col("subject_id") <= 0, "withdrew: negative id"),
        (pl.col("subject_id").is_in(gone), "withdrew: on the list of withdrawals"),
        (~pl.col("subject_id").is_first_distinct(), "person of another file or row"),
    )
    fields = pl.concat(long).join(known, on="subject_id", how="semi").unique(
        ["subject_id", "field", "instance", "array"], keep="first", maintain_order=True
    )  # fmt: skip
    return _assembled(known.sort("subject_id"), fields)


def _withdrawn(folder: Path) -> list[int]:
    found: list[int] = []
    for path in export_files.find_files(folder, WITHDRAWN):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        found += [int(line.split(",")[0]) for line in lines if line.split(",")[0].strip().lstrip("-").isdigit()]
    return found


def _long_blocks(path: Path) -> Iterable[tuple[pl.DataFrame, pl.DataFrame]]:
    """(subject_id; subject_id, field, instance, array, text without nulls) of each block of a file."""
    names = export_files.header(path)
    eid = next((c for c in names if c in ("eid", "f.eid")), None)
    if eid is None:
        raise ValueError(f"{path}: column 'eid' is missing (found {names[:20]})")
    wanted = {c: f for c in names if (f := field_of(c)) and (f.field in FIELDS or FIRST <= f.field <= LAST)}
    if not wanted:
        raise ValueError(f"{path}: no column is a field that is used; styles are f.31.0.0, 31-0.0 and p31")
    places = pl.DataFrame(
        [(c, *f) for c, f in wanted.items()],
        schema={"column": pl.String, "field": pl.Int32, "instance": pl.Int16, "array": pl.Int16},
        orient="row",
    )
    for block in export_files.blocks(path, [eid, *wanted]):
        block = block.with_columns(export_files.ids(eid)).drop(eid)
        long = block.unpivot(index="subject_id", variable_name="column", value_name="text").drop_nulls("text")
        long = long.filter(pl.col("text") != "NA").join(places, on="column").drop("column")
        yield block.select("subject_id"), long.select("subject_id", "field", "instance", "array", "text")


def _assembled(known: pl.DataFrame, fields: pl.DataFrame) -> Participants:
    def of(field: int, name: str) -> pl.DataFrame:
        rows = fields.filter(pl.col("field") == field).sort("instance", "array")
        return rows.group_by("subject_id", maintain_order=True).agg(pl.col("text").first().alias(name))

    people = known
    names = {SEX: "sex", YEAR: "year", MONTH: "month", CENTRE: "centre", LOST: "lost", DIED: "died"}
    for field, name in names.items():
        people = people.join(of(field, name), on="subject_id", how="left", maintain_order="left")
    lower = pl.col("sex").str.to_lowercase()
    year = pl.col("year").cast(pl.Float64, strict=False).cast(pl.Int32)
    month = special_dates.month_number("month")
    people = people.select(
        "subject_id",
        lower.replace_strict(_SEXES, default=None, return_dtype=pl.String).alias("sex"),
        pl.when(month.is_not_null()).then(pl.date(year, month, 15)).otherwise(pl.date(year, 7, 1)).alias("birth"),
        pl.when(pl.col("centre").is_not_null())
        .then(pl.col("centre").str.to_lowercase().replace_strict(COUNTRY, default="England"))
        .alias("country"),
        special_dates.parsed("lost").alias("lost"),
        special_dates.parsed("died").alias("died"),
    )
    visits = fields.filter(pl.col("field") == VISIT).select(
        "subject_id", "instance", special_dates.parsed("text").alias("day")
    )
    values = fields.filter(pl.col("field").is_in([*MEASURED, *ANSWERED, ETHNICITY]))
    causes = fields.filter(pl.col("field").is_in([CAUSE, CONTRIBUTING])).select("subject_id", pl.col("text"))
    return Participants(
        people,
        visits.drop_nulls("day").unique(["subject_id", "instance"], keep="first", maintain_order=True),
        values.select("subject_id", "instance", "field", "text"),
        causes.with_columns(pl.col("text").str.extract(r"^([A-Z]\d[0-9A-Z]{1,3})").alias("code")).drop("text"),
        _occurrences(fields),
        _wide(fields.filter(pl.col("field").is_in(WEAR)), WEAR),
    )


def _wide(rows: pl.DataFrame, fields: Sequence[int]) -> pl.DataFrame:
    out = rows.select("subject_id").unique(maintain_order=True)
    for field in fields:
        one = rows.filter((pl.col("field") == field) & (pl.col("instance") == 0) & (pl.col("array") == 0))
        out = out.join(one.select("subject_id", pl.col("text").alias(str(field))), on="subject_id", how="left",
                       maintain_order="left")  # fmt: skip
    return out.sort("subject_id")


def _occurrences(fields: pl.DataFrame) -> pl.DataFrame:
    rows = fields.filter(pl.col("field").is_between(FIRST, LAST))
    days = rows.filter(pl.col("field") % 2 == 0).select("subject_id", "field", pl.col("text").alias("day"))
    sources = rows.filter(pl.col("field") % 2 == 1)
    sources = sources.select("subject_id", pl.col("field") - 1, pl.col("text").alias("source"))
    return days.join(sources, on=["subject_id", "field"], how="left", maintain_order="left")
