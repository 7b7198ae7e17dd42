"""Reads deaths of UK Biobank: the tables death and death_cause, else the participants' fields 40000 to 40002.

A death may be certified more than once (ins_index 1 and above): the first counts. A person without a row in the table
may still have field 40000, where fields are newer; the earlier of both counts. Causes are events at the death,
`DEATH_CAUSE//ICD10//I219`, whose parent is the diagnosis.
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.sources.ukb import coded_events, export_files, special_dates
from ehrwear_jax.data.sources.ukb.export_files import STRANGER, Tally


def deaths(path: Path | None, people: pl.DataFrame, tally: Tally, latest: date) -> pl.DataFrame:
    """subject_id, died (Date) of those who died, by subject_id.

    Args:
      path: of death; None: fields alone. people: subject_id, birth, died (of the field). latest: last day it can be.
    """
    of_field = people.select("subject_id", "died").drop_nulls()
    if path is None:
        return of_field
    found = []
    for rows in export_files.blocks(path, ("eid", "ins_index", "date_of_death"), ("eid", "date_of_death")):
        tally.n_read += rows.height
        rows = rows.with_columns(export_files.ids())
        rows = rows.join(people.select("subject_id", "birth", pl.lit(True).alias("known_person")), on="subject_id",
                         how="left", maintain_order="left")  # fmt: skip
        rows = tally.keep(
            rows,
            (pl.col("known_person").is_null(), STRANGER),
            special_dates.fault("date_of_death", latest),
        )
        index = pl.col("ins_index").cast(pl.Int64, strict=False).fill_null(0).alias("ins_index")
        found.append(rows.select("subject_id", index, special_dates.resolved("date_of_death").alias("died")))
    rows = pl.concat(found).sort("subject_id", "ins_index", maintain_order=True)
    rows = tally.keep(rows, (~pl.col("subject_id").is_first_distinct(), "a further certificate of one death"))
    both = pl.concat([rows.select("subject_id", "died"), of_field])
    return both.group_by("subject_id").agg(pl.col("died").min()).sort("subject_id")


def death_events(people: pl.DataFrame) -> pl.DataFrame:
    """MEDS_DEATH of those who died; people: subject_id, died."""
    died = people.drop_nulls("died")
    rows = died.select("subject_id", special_dates.day_end("died"), pl.lit(meds.DEATH_CODE).alias("code"))
    return coded_events.events(rows, "death", None)


def causes(
    path: Path | None, of_fields: pl.DataFrame, people: pl.DataFrame, tally: Tally, maps: pl.DataFrame | None
) -> Iterator[pl.DataFrame]:
    """Events of death_cause, or of the fields without that table.

    Args:
      of_fields: subject_id, code. people: subject_id, died. maps: as coded_events.read_maps returns.
    """

    def of(rows: pl.DataFrame) -> pl.DataFrame:
        rows = rows.join(people.select("subject_id", "died", pl.lit(True).alias("known_person")), on="subject_id",
                         how="left", maintain_order="left")  # fmt: skip
        code = pl.col("code").str.replace_all(r"[.\s]", "").str.replace(r"^(\w{3})X$", "$1")
        rows = tally.keep(
            rows.with_columns((pl.lit("DEATH_CAUSE//ICD10//") + code).alias("code")),
            (pl.col("known_person").is_null(), STRANGER),
            (pl.col("died").is_null(), "of a person without a date of death"),
            (pl.col("code").is_null(), "no code"),
        )
        return coded_events.events(
            rows.select("subject_id", special_dates.day_end("died"), "code"), "cause of death", maps
        )

    if path is None:
        tally.n_read += of_fields.height
        yield of(of_fields)
        return

    def one(rows: pl.DataFrame) -> pl.DataFrame:
        return of(rows.select(export_files.ids(), pl.col("cause_icd10").alias("code")))

    yield from export_files.read_in_blocks(path, ("eid", "cause_icd10"), tally, one)
