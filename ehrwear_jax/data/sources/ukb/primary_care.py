"""Reads primary care of UK Biobank: gp_clinical, gp_scripts, gp_registrations.

Four systems send them, which code and write values in ways of their own: 1 England (Vision), 2 Scotland (EMIS and
Vision), 3 England (TPP), 4 Wales (EMIS and Vision).

- A clinical row has a Read v2 code (`READ2//44I4.`) or one of CTV3 (`CTV3//XE2mq`), each of five characters; Read v2
  codes of seven have a term's number behind them, and codes such as -1 or -99 stand for none.
- value1 to value3 hold numbers, an operator (OPR001 and the like) and a unit, in places that differ by system. Here the
  first number of value1, value2, value3 is the value; a further one in value2, as of a blood pressure, is an event of
  its own (code//2); value3 is the unit unless it is a number or an operator. The micro sign of units comes in three
  encodings; MEA000 and "unknown" are no unit.
- A prescription is one event, under the first of its BNF code, its dm+d code and its Read code. TPP writes BNF codes
  with dots; all zeros stand for none.
"""

import functools
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import units
from ehrwear_jax.data.sources.ukb import coded_events, export_files, special_dates
from ehrwear_jax.data.sources.ukb.export_files import STRANGER, Tally

PROVIDERS = {"1": "England (Vision)", "2": "Scotland", "3": "England (TPP)", "4": "Wales"}
CLINICAL = ("eid", "data_provider", "event_dt", "read_2", "read_3", "value1", "value2", "value3")
SCRIPTS = ("eid", "data_provider", "issue_date", "read_2", "bnf_code", "dmd_code")
REGISTRATIONS = ("eid", "data_provider", "reg_date", "deduct_date")
_NO_CODES = ("-1", "-4", "-99", "0", "00000", ".....")
_NO_UNITS = ("mea000", "unknown", "unk", "unk uom", "none", "null", "\ufffd")
_PROVIDER_FAULT = (~pl.col("data_provider").is_in(list(PROVIDERS)), "data_provider is none of 1, 2, 3, 4")


def _located(rows: pl.DataFrame, people: pl.DataFrame) -> pl.DataFrame:
    """Rows with subject_id, birth, died and known_person."""
    rows = rows.with_columns(export_files.ids()).drop("eid")
    of = people.select("subject_id", "birth", "died", pl.lit(True).alias("known_person"))
    return rows.join(of, on="subject_id", how="left", maintain_order="left")


def _faults(column: str, latest: date) -> tuple:
    late = special_dates.parsed(column) > pl.col("died")
    special = special_dates.parsed(column).is_in(special_dates.FUTURE)
    return (
        (pl.col("known_person").is_null(), STRANGER),
        _PROVIDER_FAULT,
        special_dates.fault(column, latest),
        (late & ~special, "after death"),
        (pl.col("code").is_null(), "no code"),
    )


def _code(column: str, length: int | None = None) -> pl.Expr:
    """A column of codes without what stands for none; of `length` characters at most."""
    code = pl.col(column)
    code = code.str.head(length) if length else code
    return pl.when(~pl.col(column).is_in(_NO_CODES)).then(code)


@functools.cache
def unit(text: str | None) -> str | None:
    """A unit as written by any of the systems, in UCUM where it is known; None where it is none."""
    if text is None:
        return None
    text = text.replace("\u00b5", "u").replace("\u03bc", "u").replace("\u00c2u", "u").strip()
    if text.lower() in _NO_UNITS or not text:
        return None
    return units.laboratory_unit(text) or text


def clinical(
    path: Path, people: pl.DataFrame, tally: Tally, maps: pl.DataFrame | None, latest: date
) -> Iterator[pl.DataFrame]:
    """Events of gp_clinical, a block at a time.

    Args:
      people: subject_id, birth, died. latest: last day that a date can have.
      maps: as coded_events.read_maps returns.
    """

    def one(rows: pl.DataFrame) -> pl.DataFrame:
        code = pl.coalesce(pl.lit("READ2//") + _code("read_2", 5), pl.lit("CTV3//") + _code("read_3", 5))
        rows = tally.keep(_located(rows.with_columns(code.alias("code")), people), *_faults("event_dt", latest))
        numbers = [pl.col(c).cast(pl.Float64, strict=False) for c in ("value1", "value2", "value3")]
        finite = [pl.when(n.is_finite()).then(n).cast(pl.Float32).alias(f"n{i}") for i, n in enumerate(numbers, 1)]
        rows = rows.with_columns(*finite, special_dates.resolved("event_dt").alias("day"))
        third = rows["value3"].unique()
        known = {t: unit(t) for t in third if t and not t.upper().startswith("OPR")}
        third_unit = pl.col("value3").replace_strict(known, default=None, return_dtype=pl.String)
        rows = rows.select(
            "subject_id",
            special_dates.day_end("day"),
            "code",
            pl.coalesce("n1", "n2", "n3").alias("numeric_value"),
            pl.when(pl.col("n1").is_not_null()).then("n2").alias("second"),
            pl.when(pl.col("n3").is_null()).then(third_unit).alias("unit"),
            pl.struct("subject_id", "day", "code", "value1", "value2", "value3").hash(0).alias("row"),
        )
        seconds = rows.drop_nulls("second").with_columns(pl.col("second").alias("numeric_value"))
        return pl.concat(
            [
                coded_events.events(rows, "primary care", maps),
                coded_events.events(seconds, "primary care", maps, part=1),
            ]
        )

    yield from export_files.read_in_blocks(path, CLINICAL, tally, one)


def prescriptions(
    path: Path, people: pl.DataFrame, tally: Tally, maps: pl.DataFrame | None, latest: date
) -> Iterator[pl.DataFrame]:
    """Events of gp_scripts, as `clinical`: BNF//0202010B0, DMD//319775004, READ2//bxd1."""

    def one(rows: pl.DataFrame) -> pl.DataFrame:
        bnf = pl.col("bnf_code").str.replace_all(r"[.\s]", "")
        # sections that are not told are 00 at the end: 02.12.00.00.00 is 0212
        bnf = pl.when(bnf.str.contains(r"^\d+$")).then(bnf.str.replace(r"(?:00)+$", "")).otherwise(bnf)
        code = pl.coalesce(
            pl.lit("BNF//") + pl.when(bnf.str.len_chars() > 1).then(bnf),
            pl.lit("DMD//") + _code("dmd_code").str.replace(r"\.0$", ""),
            pl.lit("READ2//") + _code("read_2", 5),
        )
        rows = tally.keep(_located(rows.with_columns(code.alias("code")), people), *_faults("issue_date", latest))
        rows = rows.with_columns(special_dates.resolved("issue_date").alias("day"))
        return coded_events.events(
            rows.select("subject_id", special_dates.day_end("day"), "code"), "prescription", maps
        )

    yield from export_files.read_in_blocks(path, SCRIPTS, tally, one)


def registrations(path: Path, people: pl.DataFrame, tally: Tally, ends: dict[str, date]) -> pl.DataFrame:
    """Stretches of registration with a practice whose system sends records.

    A missing date of deregistration, or one after the last day that a system sends, is that day.

    Args:
      ends: {provider: last day that it sends}.

    Returns:
      subject_id, start, end (Date, both included), by subject_id and start; a person may have several, which overlap.
    """
    found = []
    for rows in export_files.blocks(path, REGISTRATIONS, ("eid", "reg_date")):
        tally.n_read += rows.height
        rows = _located(rows, people).with_columns(
            pl.col("data_provider").replace_strict(ends, default=None, return_dtype=pl.Date).alias("last")
        )
        last = pl.min_horizontal("last", "died")
        deduct = special_dates.resolved("deduct_date")
        start = special_dates.resolved("reg_date")
        rows = rows.with_columns(start.alias("start"), pl.min_horizontal(deduct, last).alias("end"), last.alias("last"))
        before = special_dates.parsed("deduct_date") == special_dates.BEFORE_BIRTH
        rows = tally.keep(
            rows,
            (pl.col("known_person").is_null(), STRANGER),
            _PROVIDER_FAULT,
            special_dates.fault("reg_date", date.max),
            (before, "deduct_date: special date: before birth"),
            (pl.col("start") > pl.col("last"), "begins after the system's last day, or after death"),
            (pl.col("end") < pl.col("start"), "ends before it begins"),
        )
        found.append(rows.select("subject_id", "start", "end"))
    return pl.concat(found).sort("subject_id", "start", "end")
