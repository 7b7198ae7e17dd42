"""Reads hospital episodes of UK Biobank: hesin, hesin_diag, hesin_oper.

A spell is one stay in hospital and consists of episodes, each under one consultant. Its admission and its discharge are
events, as `HOSPITAL_ADMISSION//EMERGENCY` and `HOSPITAL_DISCHARGE`, and **diagnoses are known at the discharge** of the
spell, when they are coded: an episode's own dates would tell them while the person lies in hospital. Operations have a
date; one without is known at the discharge too.

- A date that is missing is taken from the next of epistart, admidate, epiend, disdate (an admission: admidate first);
  an episode without any is left out, and so are its codes.
- Episodes of one spell have the same spell_index; without one, those with the same date of admission are one spell.
- A discharge before its admission, or after death, is put there.
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import polars as pl

from ehrwear_jax.data.sources.ukb import coded_events, export_files, special_dates
from ehrwear_jax.data.sources.ukb.export_files import STRANGER, Tally

DATES = ("epistart", "epiend", "admidate", "disdate")
COLUMNS = ("eid", "ins_index", "dsource", *DATES, "spell_index", "admimeth")
# First character of the method of admission: England (HES) and Wales (PEDW), and Scotland (SMR01)
_METHODS = {"1": "ELECTIVE", "2": "EMERGENCY", "3": "MATERNITY"}
_SCOTTISH = {"1": "ELECTIVE", "2": "EMERGENCY", "3": "EMERGENCY"}
_NO_CODE = "no code"


def episodes(path: Path, people: pl.DataFrame, tally: Tally, latest: date) -> pl.DataFrame:
    """The episodes with a date.

    Args:
      path: of hesin. people: subject_id, birth, died. latest: last day that a date can have.

    Returns:
      subject_id, ins_index, spell, admitted, discharged (Date; null: unknown), known (Date: of the diagnoses), method.
    """
    found = []
    for rows in export_files.blocks(path, COLUMNS, ("eid", "ins_index")):
        tally.n_read += rows.height
        rows = rows.with_columns(export_files.ids(), pl.col("ins_index").cast(pl.Int64, strict=False))
        rows = rows.join(
            people.select("subject_id", "birth", "died"), on="subject_id", how="left", maintain_order="left"
        )
        known = pl.col("subject_id").is_in(people["subject_id"].implode())
        days = [
            pl.when(special_dates.fault(c, latest).is_null()).then(special_dates.resolved(c)).alias(c) for c in DATES
        ]
        rows = rows.with_columns(*days, known.alias("known_person"), _method())
        rows = tally.keep(
            rows,
            (~pl.col("known_person"), STRANGER),
            (pl.col("ins_index").is_null(), "ins_index is no number"),
            (pl.all_horizontal(pl.col(c).is_null() for c in DATES), "no usable date"),
        )
        found.append(rows.drop("known_person", "eid", "dsource", "admimeth"))
    rows = pl.concat(found)
    rows = tally.keep(
        rows, (~pl.struct("subject_id", "ins_index").is_first_distinct(), "repeats the ins_index of another row")
    )
    return _with_spells(rows)


def _method() -> pl.Expr:
    first = pl.col("admimeth").str.head(1)
    scottish = pl.col("dsource").str.to_uppercase() == "SMR"
    told = pl.when(scottish).then(first.replace_strict(_SCOTTISH, default=None))
    return told.otherwise(first.replace_strict(_METHODS, default=None)).alias("method")


def _with_spells(rows: pl.DataFrame) -> pl.DataFrame:
    key = (
        pl.when(pl.col("spell_index").is_not_null()).then("s" + pl.col("spell_index"))
        .when(pl.col("admidate").is_not_null()).then("a" + pl.col("admidate").cast(pl.String))
        .otherwise("e" + pl.col("ins_index").cast(pl.String))
    )  # fmt: skip
    rows = rows.with_columns(key.alias("spell")).sort("subject_id", "ins_index")
    of_spell = ["subject_id", "spell"]
    admitted = pl.coalesce("admidate", "epistart", "epiend", "disdate").min().over(of_spell)
    discharged = pl.coalesce(pl.col("disdate").max().over(of_spell), pl.col("epiend").max().over(of_spell))
    rows = rows.with_columns(
        admitted.alias("admitted"),
        discharged.alias("discharged"),
        pl.col("method").drop_nulls().first().over(of_spell),
    )
    discharged = pl.max_horizontal(pl.min_horizontal("discharged", "died"), "admitted")
    discharged = pl.when(pl.col("discharged").is_not_null()).then(discharged)
    rows = rows.with_columns(discharged.alias("discharged"))
    # without a discharge the last that is known of the episode
    own = pl.max_horizontal("admitted", "epistart", "epiend")
    rows = rows.with_columns(pl.coalesce("discharged", own).alias("known"))
    return rows.select("subject_id", "ins_index", "spell", "admitted", "discharged", "known", "method", "birth")


def stays(found: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Events of admissions and discharges, one each a spell."""
    spells = found.unique(["subject_id", "spell"], keep="first", maintain_order=True)
    code = pl.lit("HOSPITAL_ADMISSION") + pl.coalesce(pl.lit("//") + pl.col("method"), pl.lit(""))
    # two spells may begin on one day
    row = pl.struct("subject_id", "spell").hash(0).alias("row")
    yield coded_events.events(
        spells.select("subject_id", special_dates.day_end("admitted"), code.alias("code"), row), "admission", None
    )
    ended = spells.drop_nulls("discharged")
    yield coded_events.events(
        ended.select(
            "subject_id", special_dates.day_end("discharged"), pl.lit("HOSPITAL_DISCHARGE").alias("code"), row
        ),
        "discharge",
        None,
    )


def _of_episode(rows: pl.DataFrame, found: pl.DataFrame, people: pl.DataFrame) -> pl.DataFrame:
    """Rows with what is known of their episode; known_person, and `known` null where there is no such episode."""
    rows = rows.with_columns(export_files.ids(), pl.col("ins_index").cast(pl.Int64, strict=False))
    rows = rows.with_columns(pl.col("subject_id").is_in(people["subject_id"].implode()).alias("known_person"))
    of = found.select("subject_id", "ins_index", "known", "birth")
    return rows.join(of, on=["subject_id", "ins_index"], how="left", maintain_order="left")


_FAULTS = (
    (~pl.col("known_person"), STRANGER),
    (pl.col("known").is_null(), "its episode is not in hesin, or has no date"),
    (pl.col("code").is_null(), _NO_CODE),
)


def diagnoses(
    path: Path, found: pl.DataFrame, people: pl.DataFrame, tally: Tally, maps: pl.DataFrame | None
) -> Iterator[pl.DataFrame]:
    """Events of hesin_diag: ICD10//I219, ICD9//4109, at the discharge of their spell.

    Args:
      found: as `episodes` returns. people: subject_id. maps: as coded_events.read_maps returns.
    """

    def one(rows: pl.DataFrame) -> pl.DataFrame:
        # a category without further digits may be filled with X, as in I10X
        icd10 = pl.col("diag_icd10").str.replace_all(r"[.\s]", "").str.replace(r"^(\w{3})X$", "$1")
        icd9 = pl.col("diag_icd9").str.replace_all(r"[.\s]", "")
        code = pl.coalesce(pl.lit("ICD10//") + icd10, pl.lit("ICD9//") + icd9)
        rows = tally.keep(_of_episode(rows.with_columns(code.alias("code")), found, people), *_FAULTS)
        rows = rows.select("subject_id", special_dates.day_end("known"), "code")
        return coded_events.events(rows, "diagnosis", maps)

    yield from export_files.read_in_blocks(path, ("eid", "ins_index", "diag_icd10", "diag_icd9"), tally, one)


def operations(
    path: Path, found: pl.DataFrame, people: pl.DataFrame, tally: Tally, maps: pl.DataFrame | None
) -> Iterator[pl.DataFrame]:
    """Events of hesin_oper: OPCS4//K401, OPCS3//..., on their day, else at the discharge."""

    def one(rows: pl.DataFrame) -> pl.DataFrame:
        opcs4, opcs3 = (pl.col(c).str.replace_all(r"[.\s]", "") for c in ("oper4", "oper3"))
        code = pl.coalesce(pl.lit("OPCS4//") + opcs4, pl.lit("OPCS3//") + opcs3)
        rows = _of_episode(rows.with_columns(code.alias("code")), found, people)
        # HES writes 1800-01-01 and 1801-01-01 for no date, which is before any birth
        own = pl.when(special_dates.fault("opdate", date.max).is_null()).then(special_dates.resolved("opdate"))
        rows = tally.keep(rows.with_columns(own.alias("day")), *_FAULTS)
        # a day after the discharge is a typing error
        day = pl.when(pl.col("day") <= pl.col("known")).then("day").otherwise("known")
        rows = rows.with_columns(day.alias("day"))
        return coded_events.events(rows.select("subject_id", special_dates.day_end("day"), "code"), "operation", maps)

    yield from export_files.read_in_blocks(path, ("eid", "ins_index", "opdate", "oper4", "oper3"), tally, one)
