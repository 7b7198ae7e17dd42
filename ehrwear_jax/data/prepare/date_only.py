"""Tells the codes that carry dates without times, whose events are known at the day's end, from those with times.

An event stamped 00:00 is a date without a time if its code, in the whole dataset, has at least
config.prepare.date_only_share of its timed events at 00:00. A chart that is filled every six hours has a quarter of its
events there, and they are real times. A code with fewer than config.prepare.date_only_min_events events is judged
together with all codes that share its longest beginning, at "/" or "//", that has as many: PROCEDURE//ICD//10//0DB64Z3
with PROCEDURE//ICD//10, else PROCEDURE//ICD, else PROCEDURE. Where no beginning has as many, by all of its own.

All people count, those held out too: what is decided is how a source writes a time, before there are splits, and no
value or outcome plays a part.
"""

import functools
import shutil
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds, parquet
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.prepare import workers

CODES = pl.Schema({"code": pl.String, "n": pl.Int64, "at_midnight": pl.Int64})
DECIDED = pl.Schema({"code": pl.String, "n": pl.Int64, "at_midnight": pl.Int64, "date_only": pl.Boolean})
LAST_MICROSECOND = DAY_US - 1
_COLUMNS: parquet.Schema = {"time": pl.Datetime("us"), "code": pl.String}
_DEEPEST = 6  # parts of a code's beginning that are looked at


def at_midnight() -> pl.Expr:
    """Whether a row's time is 00:00; null for a static row."""
    return pl.col("time").to_physical() % DAY_US == 0  # of any number: a faulty row may hold a time of no calendar


def at_day_end(events: pl.DataFrame, codes: pl.Series) -> pl.DataFrame:
    """Events with those at midnight of codes without times moved to the last microsecond of their day.

    Args:
      events: time, code; more columns pass through, in the order of the rows. codes: as `names` returns.
    """
    moved = (at_midnight() & pl.col("code").is_in(codes.implode())).fill_null(False)
    later = pl.col("time") + pl.duration(microseconds=LAST_MICROSECOND)
    return events.with_columns(pl.when(moved).then(later).otherwise(pl.col("time")).alias("time"))


def names(decided: pl.DataFrame) -> pl.Series:
    """The codes without times, of what `decide` returns."""
    return decided.filter("date_only")["code"]


def count(path: Path, rows_per_piece: int) -> pl.DataFrame:
    """CODES of one shard, by code: timed events but births, and those of them at 00:00. Memory: about one piece.

    Rows that events.py sets aside count, if a code and a time can be read of them.
    """
    with parquet.reading(path):
        there = pq.read_schema(path).names
    if not set(_COLUMNS) <= set(there):  # what is wrong with a shard is said by events.py
        return pl.DataFrame(schema=CODES)
    found = [pl.DataFrame(schema=CODES)]
    for _, rows in parquet.row_batches(path, list(_COLUMNS), rows_per_piece):
        rows = parquet.normalise(rows, _COLUMNS, path).drop_nulls()
        rows = rows.filter(~pl.col("code").str.starts_with(meds.BIRTH_CODE))
        counted = rows.group_by("code").agg(pl.len().alias("n"), at_midnight().sum().alias("at_midnight"))
        found.append(counted.cast(CODES))
    return add_up(found)


def add_up(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The sum of tables CODES, by code."""
    return pl.concat(parts).group_by("code").agg(pl.col("n", "at_midnight").sum()).sort("code")


def decide(counts: pl.DataFrame, config: PrepareConfig) -> pl.DataFrame:
    """DECIDED, by code, as the module's docstring says; none is date_only unless config.date_only_at_day_end.

    Args:
      counts: CODES of the dataset.
    """
    parts = pl.col("code").str.replace_all("/+", "/").str.split("/")
    table = counts.with_columns(parts.alias("parts"), pl.col("n").alias("of"), pl.col("at_midnight").alias("at"))
    enough = pl.col("of") >= config.date_only_min_events
    for depth in range(_DEEPEST, 0, -1):
        beginning = pl.col("parts").list.head(depth).list.join("/")
        whole = pl.col("n").sum().over(beginning), pl.col("at_midnight").sum().over(beginning)
        pooled = ~enough & (whole[0] >= config.date_only_min_events)
        table = table.with_columns(
            pl.when(pooled).then(whole[0]).otherwise("of").alias("of"),
            pl.when(pooled).then(whole[1]).otherwise("at").alias("at"),
        )
    share = pl.when(enough).then(pl.col("at") >= config.date_only_share * pl.col("of")).otherwise(
        pl.col("at_midnight") == pl.col("n")
    )  # fmt: skip
    wanted = share & (pl.col("at_midnight") > 0) & pl.lit(config.date_only_at_day_end)
    return table.select(*CODES, wanted.alias("date_only")).cast(DECIDED).sort("code")


def prepared(
    shards: list[Path], shard_names: list[str], out: Path, config: PrepareConfig, pool: workers.Pool
) -> pl.DataFrame:
    """Writes OUT/date_only.parquet, unless it is there: DECIDED of the dataset. Returns it.

    Works in OUT/midnight_counts, which is removed in the end; a call that finds parts of it there goes on from them.
    """
    path, folder = out / "date_only.parquet", out / "midnight_counts"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(shard, folder / f"{name}.parquet") for shard, name in zip(shards, shard_names, strict=True)]
        parts = pool.map(functools.partial(_write_count, rows_per_piece=config.rows_per_piece), jobs, "midnights")
        parquet.write_frame(decide(add_up(map(pl.read_parquet, parts)), config), path)
    shutil.rmtree(folder, ignore_errors=True)
    return pl.read_parquet(path)


def _write_count(job, rows_per_piece):
    """Writes CODES of one shard, unless it is there; returns their path."""
    path, part = job
    if not part.exists():
        parquet.write_frame(count(path, rows_per_piece), part)
    return part
