"""Turns coded rows into events, gathers them in shards of people, and writes these in the order of time.

Codes stay as they were coded, `VOCABULARY//code`; a user's tables may replace them. Values of a code are told apart by
their unit, `READ2//44I4.//mmol/L`, whose parent is the code without it. Codes that spell out their ancestors (ICD-9,
OPCS, Read v2, BNF) have them in codes.parquet; those of ICD-10 are implied (config.prepare.implied_parents).

Rows arrive a block at a time and table by table. Each goes to a file of its shard; later one shard at a time is read,
freed of rows that were there twice, sorted and checked. Memory: a block, then a shard.
"""

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from ehrwear_jax.data.formats import meds, parquet
from ehrwear_jax.data.sources.ukb.export_files import Tally

# Of the same person and time, in this order.
RANKS = {"birth": 0, "admission": 1, "operation": 2, "primary care": 3, "prescription": 4, "assessment": 5,
         "first occurrence": 6, "diagnosis": 7, "discharge": 8, "death": 9, "cause of death": 10}  # fmt: skip
SCHEMA: parquet.Schema = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "rank": pl.Int8,
    "part": pl.Int8,  # 0: the event that stands for its row; 1: a second value of it
    "row": pl.UInt64,  # hash of what the row says: the same twice is one
}
REPEATED = "says what another row says"
MAP_COLUMNS = ("vocabulary", "code", "mapped_code")
SECOND = "//2"  # the ending of a row's second value
# Length of the ancestors of a code, from its own characters.
_BNF_LEVELS, _OPCS_LEVEL, _ICD9_LEVEL = (9, 7, 6, 4, 2), 3, 3


def read_maps(paths: Iterable[Path]) -> pl.DataFrame | None:
    """key ("VOCABULARY//code"), mapped_code of the user's tables; None without any.

    Raises:
      ValueError: naming file and row: a column or a value is missing, or a code is mapped twice.
    """
    tables = []
    for path in paths:
        table = pl.read_csv(path, infer_schema=False)
        missing = [c for c in MAP_COLUMNS if c not in table.columns]
        if missing:
            raise ValueError(f"{path}: column '{missing[0]}' is missing (found {table.columns})")
        for c in MAP_COLUMNS:
            if table[c].null_count():
                raise ValueError(f"{path}: row {int(table[c].is_null().arg_max() or 0) + 1}: column '{c}' is missing")
        key = pl.col("vocabulary").str.to_uppercase() + "//" + pl.col("code")
        tables.append(table.select(key.alias("key"), "mapped_code", pl.lit(str(path)).alias("path")))
    if not tables:
        return None
    maps = pl.concat(tables)
    twice = maps.filter(pl.col("key").is_duplicated())
    if twice.height:
        raise ValueError(f"{twice['path'][0]}: {twice['key'][0]} is mapped more than once")
    return maps.drop("path")


def events(rows: pl.DataFrame, kind: str, maps: pl.DataFrame | None, *, part: int = 0) -> pl.DataFrame:
    """Rows as events of SCHEMA.

    Args:
      rows: subject_id, time, code; perhaps numeric_value, unit, and `row`, without which a row is what the event is.
      kind: of RANKS. maps: as read_maps returns.
      part: 1: the code gets the ending //2, and the event does not stand for a row.
    """
    given = set(rows.columns)
    if maps is not None:
        rows = rows.join(maps, left_on="code", right_on="key", how="left", maintain_order="left")
        rows = rows.with_columns(pl.coalesce("mapped_code", "code").alias("code"))
    if "unit" in given:
        rows = rows.with_columns(
            pl.when(pl.col("unit").is_not_null() & pl.col("numeric_value").is_not_null())
            .then(pl.col("code") + "//" + pl.col("unit"))
            .otherwise("code")
            .alias("code")
        )
    if part:
        rows = rows.with_columns(pl.col("code") + SECOND)
    if "numeric_value" not in given:
        rows = rows.with_columns(pl.lit(None, pl.Float32).alias("numeric_value"))
    if "row" not in given:
        rows = rows.with_columns(pl.struct("subject_id", "time", "code", "numeric_value").hash(0).alias("row"))
    rank, piece = pl.lit(RANKS[kind], pl.Int8).alias("rank"), pl.lit(part, pl.Int8).alias("part")
    return rows.with_columns(rank, piece).select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())


def ancestors(code: str) -> list[str]:
    """The ancestors that a code spells out, nearest first; [] if its vocabulary has none."""
    vocabulary, _, rest = code.partition("//")
    if vocabulary in ("FIRST_OCCURRENCE", "DEATH_CAUSE"):
        return [rest] if "//" in rest else []
    if rest.endswith(SECOND):
        return []  # another quantity than the first value, such as the diastolic pressure
    own, _, unit = rest.partition("//")
    whole = [f"{vocabulary}//{own}"] if unit else []
    if vocabulary == "READ2":
        stem = own.rstrip(".")
        found = [stem[:n].ljust(5, ".") for n in range(len(stem) - 1, 0, -1)]
    elif vocabulary == "BNF":
        found = [own[:n] for n in _BNF_LEVELS if n < len(own)]
    elif vocabulary in ("OPCS3", "OPCS4", "ICD9"):
        level = _ICD9_LEVEL if vocabulary == "ICD9" else _OPCS_LEVEL
        found = [own[:level]] if len(own) > level else []
    else:
        found = []
    return whole + [f"{vocabulary}//{a}" for a in found]


def code_table(codes: Iterable[str]) -> pl.DataFrame:
    """code, description (null), parent_codes of the codes of a dataset and of what they descend from."""
    known = set(codes)
    for code in list(known):
        known.update(ancestors(code))
    rows = sorted(known)
    return pl.DataFrame(
        {"code": rows, "description": [None] * len(rows), "parent_codes": [ancestors(c) or None for c in rows]},
        schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)},
    )


class Shards:
    """Events on their way to the shards of a dataset.

    Args:
      folder: to keep them in meanwhile.
      people: subject_id, split, shard i32: number of the shard over all splits.
    """

    def __init__(self, folder: Path, people: pl.DataFrame) -> None:
        self._folder = folder
        self._shard_of = people.select("subject_id", "shard")
        self._places = people.select("split", "shard").unique().sort("shard").rows()
        self._writers: dict[int, pq.ParquetWriter] = {}
        folder.mkdir(parents=True)

    def add(self, rows: pl.DataFrame) -> None:
        """Takes events of SCHEMA, of any people of the dataset."""
        placed = rows.join(self._shard_of, on="subject_id", how="inner", maintain_order="left")
        for (shard,), part in placed.partition_by("shard", as_dict=True, include_key=False).items():
            table = part.to_arrow()
            if shard not in self._writers:
                self._writers[shard] = pq.ParquetWriter(self._folder / f"{shard}.parquet", table.schema)
            self._writers[shard].write_table(table)

    def write(self, meds_dir: Path, tallies: dict[str, Tally]) -> tuple[set[str], int]:
        """Writes data/<split>/<n>.parquet; returns the codes and the number of events.

        Args:
          tallies: {kind: counts of its table}, in which rows that are repeated are counted.
        """
        for writer in self._writers.values():
            writer.close()
        codes: set[str] = set()
        n, number = 0, Counter[str]()
        for split, shard in self._places:
            rows = pl.read_parquet(self._folder / f"{shard}.parquet")
            kept = rows.unique(["subject_id", "rank", "part", "row"], keep="first", maintain_order=True)
            lost = rows.filter(pl.col("part") == 0)["rank"].value_counts()
            left = kept.filter(pl.col("part") == 0)["rank"].value_counts()
            for rank, n_before, n_after in lost.join(left, on="rank").iter_rows():
                tally = tallies.get(list(RANKS)[rank])
                if tally is not None:
                    tally.drop(REPEATED, n_before - n_after)
            kept = kept.sort("subject_id", "time", "rank", nulls_last=False, maintain_order=True)
            kept = kept.select("subject_id", "time", "code", "numeric_value")
            meds.write_shard(meds_dir / "data" / split / f"{number[split]}.parquet", kept.with_columns(
                pl.lit(None, pl.String).alias("text_value")))  # fmt: skip
            codes.update(kept["code"].unique().to_list())
            number[split] += 1
            n += kept.height
        shutil.rmtree(self._folder)
        return codes, n
