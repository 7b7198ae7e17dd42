"""Chooses which codes and ancestors of codes have columns of their own: those that enough training people have.

Fitted shard by shard on the training people of a fold; a person's events lie in one shard, so numbers of people add.
A result that is a text makes a code of its own, CODE//TEXT, below the event's code.
"""

import dataclasses
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import polars as pl

# Birth is the age feature; after death there is nothing to predict.
_NOT_FEATURES = ("MEDS_BIRTH", "MEDS_DEATH")
_COUNTED = pl.Schema(
    {"code": pl.String, "is_static": pl.Boolean, "n_people": pl.UInt32, "n_own": pl.UInt32, "n_valued": pl.UInt32}
)


@dataclasses.dataclass(frozen=True)
class CodeColumns:
    """The codes with columns.

    Attributes:
      timed: code, is_valued, of events with a time; static: the same of those without. The row number is the column.
      lineage: code, column: the columns that an event of a code counts for, its own and its ancestors'.
    """

    timed: pl.DataFrame
    static: pl.DataFrame
    lineage: pl.DataFrame


def is_feature() -> pl.Expr:
    """Whether a row of events is one that features are made of."""
    return ~pl.col("code").str.split("//").list.first().is_in(_NOT_FEATURES)


def with_texts(codes: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    """The codes with one more for each text, below the code whose result it is.

    Args:
      codes: code, ancestors (list, nearest first). texts: code, text.
    """
    above = texts.join(codes, on="code", maintain_order="left")
    lineage = pl.concat_list(pl.concat_list("code"), pl.col("ancestors").fill_null([]))
    below = above.select(_of_text("text").alias("code"), lineage.alias("ancestors"))
    return pl.concat([codes.select("code", "ancestors"), below])


def _of_text(text):
    return pl.concat_str(pl.col("code"), pl.col(text), separator="//")


def spelled() -> pl.Expr:
    """The code of an event that features are made of: that of its text where it has one."""
    return pl.coalesce(_of_text("text_value"), pl.col("code")).alias("code")


def choose(
    events: Iterable[Path], train_ids: pl.Series, codes: pl.DataFrame, min_subjects: int, end: datetime | None = None
) -> CodeColumns:
    """The columns for some training people.

    Args:
      events: parquet files with subject_id, time (null: static), code, numeric_value, text_value (null: none).
      codes: code, ancestors (list, nearest first) of all codes of the events, and those of texts (with_texts).
      min_subjects: training people that a code or ancestor, with all that descends from it, needs for a column; and as
        many with a finite value, for columns of values.
      end: events of training people after it are not looked at.
    """
    lineage = with_ancestors(codes)
    parts = [_count(path, train_ids, lineage, end) for path in events]
    whole = pl.concat([pl.DataFrame(schema=_COUNTED), *parts])
    counted = whole.group_by("code", "is_static").agg(pl.exclude("code", "is_static").sum())
    kept = counted.filter(pl.col("n_people") >= min_subjects).sort("code")
    kept = kept.select("code", "is_static", is_valued=pl.col("n_valued") >= min_subjects)
    timed = kept.filter(~pl.col("is_static")).drop("is_static")
    seen = counted.filter(~pl.col("is_static") & (pl.col("n_own") > 0))["code"]
    timed = timed.join(_distinct(lineage.filter(pl.col("code").is_in(seen.implode()))), on="code", how="semi")
    timed = timed.sort("code")
    numbered = timed.with_row_index("column").select(pl.col("code").alias("above"), pl.col("column").cast(pl.Int64))
    return CodeColumns(
        timed,
        kept.filter(pl.col("is_static")).drop("is_static"),
        lineage.join(numbered, on="above").select("code", "column").sort("code", "column"),
    )


def with_ancestors(codes: pl.DataFrame) -> pl.DataFrame:
    """code, above: each code with itself and with each of its ancestors."""
    own = codes.select("code", pl.col("code").alias("above"))
    above = codes.select("code", pl.col("ancestors").alias("above")).explode("above").drop_nulls()
    return pl.concat([own, above]).unique(maintain_order=True)


def _distinct(lineage):
    """Codes of `above`, without ancestors that stand for exactly the same codes of the data as a nearer one."""
    sets = lineage.group_by("above", maintain_order=True).agg(pl.col("code").sort().str.join("\n").alias("codes"))
    # of those that stand for the same codes the nearest comes first: a code itself, then the order of the lineage
    first = sets.with_columns(own=pl.col("above") == pl.col("codes")).sort("own", descending=True, maintain_order=True)
    return first.unique("codes", keep="first", maintain_order=True).select(pl.col("above").alias("code"))


def _count(path, train_ids, lineage, end):
    """_COUNTED of one shard."""
    known = pl.lit(True) if end is None else pl.col("time").is_null() | (pl.col("time") <= end)
    events = (
        pl.scan_parquet(path)
        .filter(pl.col("subject_id").is_in(train_ids.implode()) & is_feature() & known)
        .with_columns(spelled())
        .group_by("subject_id", "code", pl.col("time").is_null().alias("is_static"))
        .agg(pl.col("numeric_value").is_finite().any().fill_null(False).alias("valued"))
        .collect()
    )
    static = events.filter(pl.col("is_static")).with_columns(own=True)
    above = events.filter(~pl.col("is_static")).join(lineage, on="code")
    # the values of a descendant are another quantity's
    above = above.with_columns(own=pl.col("above") == pl.col("code"), code=pl.col("above")).drop("above")
    rows = pl.concat([static.select(above.columns), above])
    counted = rows.group_by("code", "is_static").agg(
        pl.col("subject_id").n_unique().alias("n_people"),
        pl.col("subject_id").filter(pl.col("own")).n_unique().alias("n_own"),
        pl.col("subject_id").filter(pl.col("own") & pl.col("valued")).n_unique().alias("n_valued"),
    )
    return counted.select(*_COUNTED).cast(_COUNTED)
