"""Fits statistics of codes and texts on the training patients of a fold, shard by shard.

Map: each piece of events is counted (code_counts.py), its values sorted into buckets by code. Reduce: buckets add up
the values of their codes over all pieces and derive means and quantiles; memory is bounded by one bucket. What is
fitted depends neither on the shards nor on how many workers there are.
"""

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats.parquet import write_frame, writing
from ehrwear_jax.data.prepare import code_counts, code_table, training_people, workers

_VALUES_PER_BUCKET = 8_000_000  # (code, value) pairs; a pair is about 30 bytes
CODE_STATISTICS = pl.Schema(
    {
        "code_id": pl.Int32(),
        "code": pl.String(),
        "count": pl.Int64(),
        "subjects": pl.Int64(),
        "n_values": pl.Int64(),
        **{name: dtype for name, dtype in code_counts.SCALES.items() if name != "code_id"},
        "alias": pl.Int32(),
    }
)
SUBJECT_STATISTICS = pl.Schema(
    {
        "subject_id": pl.Int64,
        "split": pl.String,
        "known_static": pl.Int64,
        "known_events": pl.Int64,
        "rarity": pl.Float32,
    }
)


@functools.lru_cache(maxsize=2)
def _tables_of(records, _):
    return code_table.tables_of(records)


def _events(path, records, columns):
    """Some columns of a piece of events, with ids in the place of codes and texts."""
    tables = _tables_of(records, (records / "texts.parquet").stat().st_mtime_ns)
    return code_table.event_ids(pl.read_parquet(path, columns=columns), *tables)


# -------------------------------------------------------------------------------------------------------- codes
def fit_codes(
    tables: Path,
    records: Path,
    out: Path,
    config: PrepareConfig,
    ranges: Mapping[int, list[float]],
    pool: workers.Pool,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(CODE_STATISTICS, code_counts.TEXT_COUNTS) of the training patients of OUT/subjects.parquet.

    A row per code and per text of the records' tables, zero where no training patient has it. alias is the code itself
    or its nearest ancestor that config.min_subjects training patients have (of an ancestor those count, too, who have
    a descendant of it that fewer have); null where there is none (paper, A.2: collapsing infrequent codes).

    Works in OUT/parts, which the caller removes; a call that finds parts of it there goes on from them.

    Args:
      ranges: {code_id: inner bounds of clinical ranges}, see clinical_ranges.value_ranges.
    """
    codes, texts = code_table.tables_of(records)
    pieces, folder = sorted((tables / "events").glob("*.parquet")), out / "parts"
    folder.mkdir(exist_ok=True)
    n_buckets = int(np.clip(sum(map(_n_rows, pieces)) // _VALUES_PER_BUCKET + 1, 1, 256))
    parts = pool.map(functools.partial(_count, records=records, out=out, n_buckets=n_buckets), pieces, "count codes")
    counts = code_counts.add_counts((counted for counted, _ in parts), code_counts.COUNTS)
    text_counts = code_counts.add_counts((counted for _, counted in parts), code_counts.TEXT_COUNTS)
    names = [folder / f"{path.stem}.arrow" for path in pieces]
    reduce = functools.partial(_scales, names=names, ranges=ranges, fence=config.value_fence)
    scales = pl.concat(pool.map(reduce, range(n_buckets), "quantiles", unit="bucket")).sort("code_id")
    pairs, pooled = rare_pairs(counts, codes, config.min_subjects), {}
    if (pairs["code_id"] != pairs["ancestor_id"]).any():
        work = functools.partial(_pool, records=records, out=out, pairs=pairs)
        found = pl.concat(pool.map(work, pieces, "rare codes"))
        pooled = dict(found.group_by("ancestor_id").agg(pl.col("subjects").sum()).iter_rows())
    return code_statistics(counts, scales, pooled, codes, config.min_subjects), text_statistics(text_counts, texts)


def fit_in_memory(
    events: pl.DataFrame,
    codes: pl.DataFrame,
    texts: pl.DataFrame,
    min_subjects: int,
    ranges: Mapping[int, list[float]] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """As fit_codes, of events (subject_id, code_id, numeric_value, text_id) that are all of training patients."""
    counts = code_counts.count_codes(events)
    pairs = rare_pairs(counts, codes, min_subjects)
    pooled = dict(code_counts.count_pooled(events, pairs).iter_rows())
    scales = code_counts.scales(code_counts.count_values(events), ranges)
    of_text = text_statistics(code_counts.count_texts(events), texts)
    return code_statistics(counts, scales, pooled, codes, min_subjects), of_text


def rare_pairs(counts: pl.DataFrame, codes: pl.DataFrame, min_subjects: int) -> pl.DataFrame:
    """code_id, ancestor_id: each rare code with itself and with its ancestors.

    An ancestor earns its place by the patients of its rare descendants together with its own.

    Args:
      counts: code_counts.COUNTS. codes: code_table.CODES.
    """
    rare = counts.filter(pl.col("subjects") < min_subjects).select("code_id")
    above = rare.join(codes.select("code_id", "ancestors"), on="code_id", maintain_order="left").explode("ancestors")
    above = above.drop_nulls().join(
        codes.select(pl.col("code").alias("ancestors"), pl.col("code_id").alias("ancestor_id")), on="ancestors"
    )
    own = rare.with_columns(pl.col("code_id").alias("ancestor_id"))
    return pl.concat([own, above.select("code_id", "ancestor_id")]).sort("code_id", "ancestor_id")


def code_statistics(
    counts: pl.DataFrame,
    scales: pl.DataFrame,
    pooled: Mapping[int, int],
    codes: pl.DataFrame,
    min_subjects: int,
) -> pl.DataFrame:
    """CODE_STATISTICS of what was counted, see fit_codes.

    Args:
      counts, scales: code_counts.COUNTS and SCALES. pooled: {code_id of an ancestor: patients}, see rare_pairs.
    """
    frequent = set(counts.filter(pl.col("subjects") >= min_subjects)["code_id"])
    frequent |= {ancestor for ancestor, n in pooled.items() if n >= min_subjects}
    ids = dict(codes.select("code", "code_id").iter_rows())
    lineage = {i: [ids[a] for a in above] for i, above in codes.select("code_id", "ancestors").iter_rows()}

    def nearest(code):
        return code if code in frequent else next((a for a in lineage[code] if a in frequent), None)

    seen = {code: nearest(code) for code in counts["code_id"]}
    frequent = set(seen.values()) - {None}  # an ancestor that stands for nothing would be a code without training
    # codes that only other patients have are as rare as can be
    alias = [seen[code] if code in seen else nearest(code) for code in codes["code_id"]]
    table = codes.select("code_id", "code").join(counts, on="code_id", how="left", maintain_order="left")
    table = table.with_columns(pl.col("count", "subjects", "n_values").fill_null(0))
    table = table.join(scales, on="code_id", how="left", maintain_order="left")
    return table.with_columns(pl.Series("alias", alias, pl.Int32)).select(*CODE_STATISTICS).cast(CODE_STATISTICS)


def text_statistics(counts: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    """code_counts.TEXT_COUNTS with a row for every text of code_table.TEXTS."""
    table = texts.select("text_id").join(counts, on="text_id", how="left", maintain_order="left")
    return table.with_columns(pl.col("count", "subjects").fill_null(0))


def _n_rows(path):
    return pl.scan_parquet(path).select(pl.len()).collect().item()


def _training_events(path, records, out, columns):
    cutoff, people = training_people.cutoff(out), training_people.ids(out)
    if cutoff is None:
        return _events(path, records, columns).join(people, on="subject_id", how="semi")
    events = _events(path, records, [*columns, *(["time"] if "time" not in columns else [])])
    events = events.filter(pl.col("time").is_null() | (pl.col("time") <= cutoff))
    return events.drop([c for c in ("time",) if c not in columns]).join(people, on="subject_id", how="semi")


def _count(path, records, out, n_buckets):
    """(COUNTS, TEXT_COUNTS) of the training patients of a piece; a batch per bucket of values goes to OUT/parts."""
    folder = out / "parts"
    counted_path, texts_path, values_path = (
        folder / f"{path.stem}.{kind}" for kind in ("parquet", "texts.parquet", "arrow")
    )
    if not values_path.exists():
        events = _training_events(path, records, out, ["subject_id", "code", "numeric_value", "text_value"])
        write_frame(code_counts.count_codes(events), counted_path)
        write_frame(code_counts.count_texts(events), texts_path)
        values = code_counts.count_values(events)
        with writing(values_path) as partial:
            schema = pa.schema([("code_id", pa.int32()), ("value", pa.float64()), ("n", pa.int64())])
            with pa.ipc.new_file(str(partial), schema) as file:
                for b in range(n_buckets):
                    mine = values.filter(pl.col("code_id") % n_buckets == b).to_arrow().cast(schema)
                    file.write_batch(pa.RecordBatch.from_struct_array(mine.to_struct_array().combine_chunks()))
    return pl.read_parquet(counted_path), pl.read_parquet(texts_path)


def _scales(bucket, names, ranges, fence):
    """SCALES of the codes of one bucket."""

    def parts():
        for name in names:
            with pa.OSFile(str(name)) as source:
                batch = cast(pl.DataFrame, pl.from_arrow(pa.ipc.open_file(source).get_batch(bucket)))
                yield batch.cast(code_counts.VALUES)

    return code_counts.scales(code_counts.add_values(parts()), ranges, fence)


def _pool(path, records, out, pairs):
    return code_counts.count_pooled(_training_events(path, records, out, ["subject_id", "code"]), pairs)


def remove_parts(out: Path) -> None:
    """Removes OUT/parts once what was fitted is written."""
    shutil.rmtree(Path(out) / "parts", ignore_errors=True)


# -------------------------------------------------------------------------------------------------------- people
def fit_subjects(
    tables: Path,
    records: Path,
    out: Path,
    statistics: pl.DataFrame,
    frequent_texts: pl.Series,
    pool: workers.Pool,
) -> tuple[pl.DataFrame, dict[str, dict]]:
    """What of each person's events has an alias.

    rarity is the mean over these timed events of -log of their alias's share of all training events that have an
    alias (the share of one event where none has that alias); 0 without such events.

    Args:
      statistics: CODE_STATISTICS. frequent_texts: text_id of the texts that are counted as frequent.

    Returns:
      (SUBJECT_STATISTICS of OUT/subjects.parquet, counts of the manifest).
    """
    known = statistics.select("code_id", pl.Series("surprise", surprises(statistics), pl.Float64))
    pieces = sorted((tables / "events").glob("*.parquet"))
    work = functools.partial(_of_people, records=records, known=known, frequent_texts=frequent_texts)
    found = pl.concat(pool.map(work, pieces, "events of people"))
    subjects = pl.read_parquet(out / "subjects.parquet", columns=["subject_id", "split"])
    table = subjects.join(found, on="subject_id", how="left", maintain_order="left").fill_null(0)
    everything = ("known", "unknown", "frequent", "rare")
    of_held_out = table.filter(pl.col("split") == "held_out")
    here, read, held = ({c: int(t[c].sum()) for c in everything} for t in (table, found, of_held_out))
    beyond = int(statistics["n_beyond"].sum())
    counts = {
        "events": {
            "in": read["known"] + read["unknown"],
            "out": {
                "of frequent codes": here["known"],
                "of rare codes": here["unknown"],
                "of people left out": read["known"] + read["unknown"] - here["known"] - here["unknown"],
            },
        },
        "text results": {
            "in": here["frequent"] + here["rare"],
            "out": {"frequent": here["frequent"], "not frequent": here["rare"]},
        },
        "text results of held-out people": {
            "in": held["frequent"] + held["rare"],
            "out": {"frequent": held["frequent"], "not frequent": held["rare"]},
        },
        "values": {
            "in": int(statistics["n_values"].sum()),
            "out": {"within bounds": int(statistics["n_values"].sum()) - beyond, "beyond": beyond},
        },
    }
    return table.select(*SUBJECT_STATISTICS).cast(SUBJECT_STATISTICS), counts


def surprises(statistics: pl.DataFrame) -> list[float | None]:
    """-log of the share of each code's alias among all training events that have one, None without an alias.

    Args:
      statistics: CODE_STATISTICS; the result is in its order.
    """
    of_alias = dict(
        statistics.drop_nulls("alias").group_by("alias").agg(pl.col("count").sum()).select("alias", "count").iter_rows()
    )
    total = max(sum(of_alias.values()), 1)
    return [None if a is None else float(-np.log(max(of_alias[a], 1) / total)) for a in statistics["alias"]]


def _of_people(path, records, known, frequent_texts):
    """Counts of each person of a piece of events, and their rarity."""
    events = _events(path, records, ["subject_id", "time", "code", "numeric_value", "text_value"])
    events = events.join(known, on="code_id", how="left", maintain_order="left")
    has_alias, is_timed = pl.col("surprise").is_not_null(), pl.col("time").is_not_null()
    frequent, text = pl.col("text_id").is_in(frequent_texts.implode()), pl.col("text_id").is_not_null()
    n = events.group_by("subject_id", maintain_order=True).agg(
        (has_alias & ~is_timed).sum().alias("known_static"),
        (has_alias & is_timed).sum().alias("known_events"),
        has_alias.sum().alias("known"),
        (~has_alias).sum().alias("unknown"),
        (text & frequent).sum().alias("frequent"),
        (text & ~frequent).sum().alias("rare"),
    )
    timed = events.filter(has_alias & is_timed)
    # in the order of the rows, so that pieces change no bit
    first, total = np.zeros(0, np.int64), np.zeros(0)
    if timed.height:
        first = np.flatnonzero(np.append(True, np.diff(timed["subject_id"].to_numpy()) != 0))
        total = np.add.reduceat(timed["surprise"].to_numpy(), first)
    sums = pl.DataFrame({"subject_id": timed["subject_id"].gather(first), "total": total}, {"subject_id": pl.Int64,
                        "total": pl.Float64})  # fmt: skip
    n = n.join(sums, on="subject_id", how="left", maintain_order="left")
    return n.with_columns(pl.col(pl.UInt32).cast(pl.Int64), rarity=pl.col("total") / pl.col("known_events")).drop(
        "total"
    )
