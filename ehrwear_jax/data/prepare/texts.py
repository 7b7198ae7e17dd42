"""Counts the texts that are the only result of an event, and finds those that are frequent enough to be a category.

A text is a result if the event has no numeric value. Texts are compared without white space at their ends and in lower
case; nothing else is done to them. A text of a code is a category of that code if at least
config.prepare.min_text_subjects people of the dataset have it, whatever their split. Rarer texts are written nowhere:
free text may name a person.
"""

import functools
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds, parquet
from ehrwear_jax.data.prepare import harmonise, workers

TEXTS = pl.Schema({"code": pl.String, "text": pl.String, "n_subjects": pl.Int64})
BY_CODE = pl.Schema({"code": pl.String, "n_texts": pl.Int64, "n_kept": pl.Int64})
_COLUMNS = {"subject_id": pl.Int64, "code": pl.String, "numeric_value": pl.Float32, "text_value": pl.String}


def result() -> pl.Expr:
    """The text of a row of events as it is compared; null where a number is the result, or where there is no text."""
    text = pl.col("text_value").str.strip_chars().str.to_lowercase()
    return pl.when(pl.col("numeric_value").is_null() & (text != "")).then(text)


def frequent_texts(
    shards: list[Path], names: list[str], out: Path, config: PrepareConfig, mapping: pl.DataFrame, pool: workers.Pool
) -> pl.DataFrame:
    """Writes OUT/texts.parquet, unless it is there: TEXTS of the categories, by code and text. Returns it.

    OUT/texts_by_code.parquet says how many different texts a code has, and how many of them are categories: BY_CODE.

    Works in OUT/text_counts, which is removed in the end; a call that finds parts of it there goes on from them.

    Args:
      shards, names: of the MEDS dataset, and what each is called. mapping: see harmonise.to_common.
    """
    path, folder = out / "texts.parquet", out / "text_counts"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(shard, folder / f"{name}.parquet") for shard, name in zip(shards, names, strict=True)]
        work = functools.partial(_count, config=config, mapping=mapping)
        written = [part for part in pool.map(work, jobs, "texts") if part is not None]
        counts = pl.concat([pl.DataFrame(schema=TEXTS), *map(pl.read_parquet, written)])
        counts = counts.group_by("code", "text").agg(pl.col("n_subjects").sum())
        enough = pl.col("n_subjects") >= config.min_text_subjects
        by_code = counts.group_by("code").agg(pl.len().alias("n_texts"), enough.sum().alias("n_kept"))
        parquet.write_frame(by_code.cast(BY_CODE).sort("code"), out / "texts_by_code.parquet")
        parquet.write_frame(counts.filter(enough).cast(TEXTS).sort("code", "text"), path)
    shutil.rmtree(folder, ignore_errors=True)
    return pl.read_parquet(path)


def keep_frequent(events: pl.DataFrame, frequent: pl.DataFrame) -> tuple[pl.DataFrame, int, int]:
    """Leaves only categories in the column text_value.

    Args:
      events: code, numeric_value, text_value; more columns pass through. frequent: as frequent_texts returns.

    Returns:
      (events, rows whose only result is a text, rows among them that keep it).
    """
    events = events.with_columns(result().alias("text_value"))
    n = events["text_value"].count()
    if not n:
        return events, 0, 0
    known = frequent.select("code", pl.col("text").alias("text_value"), pl.lit(True).alias("is_frequent"))
    joined = events.join(known, on=["code", "text_value"], how="left", maintain_order="left")
    kept = joined.with_columns(pl.when("is_frequent").then("text_value").alias("text_value")).drop("is_frequent")
    return kept, n, kept["text_value"].count()


def _count(job, config, mapping):
    """Writes TEXTS of one shard; returns their path, None if it has none.

    Rows that events.py sets aside or caps count, since a text is one all the same.
    """
    path, part = job
    with parquet.reading(path):
        there = pq.read_schema(path).names
    if not {"subject_id", "code", "text_value"} <= set(there):  # what is wrong with a shard is said by events.py
        return None
    if part.exists():
        return part
    found, columns = [], [name for name in _COLUMNS if name in there]
    for _, rows in parquet.row_batches(path, columns, config.rows_per_piece):
        rows = parquet.normalise(rows, _COLUMNS, path, optional=("numeric_value",))
        rows = rows.with_columns(pl.col("numeric_value").fill_nan(None)).drop_nulls(["subject_id", "code"])
        rows = rows.with_columns(result().alias("text")).filter(pl.col("text").is_not_null())
        left_out = pl.col("code").str.starts_with(meds.BIRTH_CODE) | pl.col("code").is_in(config.drop_codes)
        mapped, *_ = harmonise.to_common(rows.filter(~left_out), mapping, config.atc_level)
        found.append(mapped.select("subject_id", "code", "text").unique())
    # a subject may go on in the next batch
    counted = pl.concat(found).unique().group_by("code", "text").agg(pl.len().alias("n_subjects"))
    parquet.write_frame(counted.cast(TEXTS).sort("code", "text"), part)
    return part
