"""Turns the participants' fields into events: birth, sex, ethnicity, measurements at visits, first occurrences.

A first occurrence is the first date of an ICD-10 category over all sources. What hospital and death registers tell is
in their own tables, with the day on which it was known, and is left out where these are there; so is primary care. What
a person reported is known at the visit and not at the date that they remember: it is dated to the later of the date
and the first visit. Fields are named by their number, `FIRST_OCCURRENCE//130000`, unless the data dictionary is
there (`*data_dictionary*.csv` of the platform, or `Data_Dictionary_Showcase.csv` or `.tsv`), whose titles say which
category each is of: `FIRST_OCCURRENCE//ICD10//A00`.
"""

import re
from datetime import date
from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.sources.ukb import coded_events, export_files, participants, special_dates
from ehrwear_jax.data.sources.ukb.export_files import Tally
from ehrwear_jax.data.sources.ukb.participants import Participants

# Data coding 2171, by code and by the beginning of its label: who told a first occurrence first
DEATH, CARE, HOSPITAL, REPORTED = "death", "gp", "hospital", "self"
SOURCES = {"20": DEATH, "21": DEATH, "30": CARE, "31": CARE, "40": HOSPITAL, "41": HOSPITAL, "50": REPORTED,
           "51": REPORTED}  # fmt: skip
_LABELS = {"death": DEATH, "primary": CARE, "hospital": HOSPITAL, "self": REPORTED}
DICTIONARY = (r".*data_dictionary.*",)
_TITLE = re.compile(r"date (?P<code>[a-z]\d\d) first reported", re.IGNORECASE)


def static(people: pl.DataFrame) -> pl.DataFrame:
    """Births and sexes; people: subject_id, sex, birth."""
    born = people.drop_nulls("birth")
    births = born.select("subject_id", pl.col("birth").cast(pl.Datetime("us")).alias("time"),
                         pl.lit(meds.BIRTH_CODE).alias("code"))  # fmt: skip
    sexes = people.drop_nulls("sex").select(
        "subject_id", pl.lit(None, pl.Datetime("us")).alias("time"), (pl.lit("GENDER//") + pl.col("sex")).alias("code")
    )
    return pl.concat([coded_events.events(births, "birth", None), coded_events.events(sexes, "birth", None)])


def at_visits(found: Participants, tally: Tally) -> pl.DataFrame:
    """Measurements, answers and ethnicity, at the end of the day of their visit: UKB//21001//kg/m2, UKB//20116//2."""
    tally.n_read += found.values.height
    rows = found.values.join(found.visits, on=["subject_id", "instance"], how="left", maintain_order="left")
    number = pl.col("text").cast(pl.Float64, strict=False)
    measured = pl.col("field").is_in(list(participants.MEASURED))
    rows = tally.keep(
        rows.with_columns(pl.when(measured).then(number).cast(pl.Float32).alias("numeric_value")),
        (pl.col("day").is_null(), "of a visit without a date (field 53)"),
        (measured & ~pl.col("numeric_value").is_finite().fill_null(False), "not a number"),
        (pl.col("text").str.starts_with("-") & number.is_not_null(), "not answered (a negative code)"),
    )
    code = pl.lit("UKB//") + pl.col("field").cast(pl.String)
    code = pl.when(pl.col("numeric_value").is_null()).then(code + "//" + pl.col("text")).otherwise(code)
    unit = pl.col("field").replace_strict(participants.MEASURED, default=None, return_dtype=pl.String)
    rows = rows.select(
        "subject_id", special_dates.day_end("day"), code.alias("code"), "numeric_value", unit.alias("unit")
    )
    return coded_events.events(rows, "assessment", None)


def categories(folder: Path) -> dict[int, str]:
    """{field of a first occurrence: ICD-10 category} of the data dictionary, {} without one."""
    found: dict[int, str] = {}
    for path in export_files.find_files(folder, DICTIONARY):
        names = export_files.header(path)
        title = next((c for c in names if c in ("title", "field")), None)
        number = next((c for c in names if c in ("fieldid", "name")), None)
        if title is None or number is None:
            continue
        for block in export_files.blocks(path, [number, title]):
            for name, text in block.drop_nulls().iter_rows():
                field = re.search(r"\d+", name)
                told = _TITLE.search(text)
                if field and told:
                    found[int(field[0])] = told["code"].upper()
    return found


def first_occurrences(
    found: Participants, people: pl.DataFrame, names: dict[int, str], told: set[str], tally: Tally, latest: date
) -> pl.DataFrame:
    """Events of the first occurrences that no table tells.

    Args:
      people: subject_id, birth, died. names: as categories returns.
      told: of DEATH, CARE, HOSPITAL: sources whose tables are there. latest: last day that a date can have.
    """
    rows = found.occurrences.join(people, on="subject_id", how="left", maintain_order="left")
    tally.n_read += rows.height
    first = found.visits.group_by("subject_id").agg(pl.col("day").min().alias("visit"))
    source = pl.col("source").str.to_lowercase()
    word = source.str.extract(r"^([a-z]+)").replace_strict(_LABELS, default=None, return_dtype=pl.String)
    source = pl.coalesce(source.replace_strict(SOURCES, default=None, return_dtype=pl.String), word)
    rows = rows.join(first, on="subject_id", how="left", maintain_order="left").with_columns(source.alias("source"))
    reasons = {HOSPITAL: "told by hesin_diag", DEATH: "told by death_cause", CARE: "told by gp_clinical"}
    rows = tally.keep(
        rows,
        special_dates.fault("day", latest),
        (pl.col("source").is_null(), "source unknown"),
        *((pl.col("source") == s, reason) for s, reason in reasons.items() if s in told),
    )
    rows = rows.with_columns(special_dates.resolved("day").alias("date"))
    reported = pl.col("source") == REPORTED
    day = pl.when(reported).then(pl.max_horizontal("date", "visit")).otherwise("date").alias("date")
    category = pl.col("field").replace_strict(names, default=None, return_dtype=pl.String)
    code = pl.coalesce(pl.lit("ICD10//") + category, pl.col("field").cast(pl.String))
    rows = rows.with_columns(day, (pl.lit("FIRST_OCCURRENCE//") + code).alias("code"))
    return coded_events.events(
        rows.select("subject_id", special_dates.day_end("date"), "code"), "first occurrence", None
    )
