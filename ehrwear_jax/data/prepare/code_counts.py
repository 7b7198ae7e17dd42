"""What a vocabulary is fitted on, counted shard by shard and added up: exact whatever the shards are.

A subject's events lie in one shard, so numbers of subjects add. Values are kept as (code, value, how often): few rows,
because laboratories round, and mergeable without loss. Everything derived from them (mean, standard deviation,
quantiles, bin counts) is computed from the merged table in the order of the values. Neither the division into shards
nor the order in which they are done changes a bit of the result.
"""

import zlib

import numpy as np
import polars as pl

COUNTS = {"code": pl.String, "count": pl.Int64, "subjects": pl.Int64, "n_values": pl.Int64}
VALUES = {"code": pl.String, "value": pl.Float64, "n": pl.Int64}
SCALES = {
    "code": pl.String,
    "mean": pl.Float64,
    "std": pl.Float64,
    "cuts": pl.List(pl.Float64),
    "in_bin": pl.List(pl.Int64),
}


def count_codes(events):
    """COUNTS of one shard.

    Args:
      events: DataFrame: subject_id, code, numeric_value; no other shard has its subjects.
    """
    counted = events.group_by("code").agg(
        pl.len().alias("count"),
        pl.col("subject_id").n_unique().alias("subjects"),
        pl.col("numeric_value").count().alias("n_values"),
    )
    return counted.cast(COUNTS).sort("code")


def count_values(events):
    """VALUES of one shard, by (code, value)."""
    valued = events.filter(pl.col("numeric_value").is_not_null())
    value = pl.col("numeric_value").cast(pl.Float64)
    value = pl.when(value == 0).then(0.0).otherwise(value)  # not -0, whichever comes first
    found = valued.group_by("code", value.alias("value")).agg(pl.len().alias("n"))
    return found.cast(VALUES).sort("code", "value")


def count_pooled(events, pairs):
    """{ancestor: how many subjects have it or one of its rare descendants}, of one shard.

    Args:
      events: DataFrame: subject_id, code. pairs: DataFrame: code, ancestor.
    """
    mine = events.select("subject_id", "code").join(pairs, on="code")
    return dict(mine.group_by("ancestor").agg(pl.col("subject_id").n_unique()).sort("ancestor").iter_rows())


def add_counts(parts):
    """COUNTS of all shards, the most frequent code first."""
    whole = pl.concat(parts) if parts else pl.DataFrame(schema=COUNTS)
    return whole.group_by("code").agg(pl.exclude("code").sum()).sort("count", "code", descending=[True, False])


def add_values(parts, at_once=4_000_000):
    """VALUES of all shards, by (code, value).

    Args:
      parts: iterable of VALUES. at_once: rows that may wait to be added.
    """
    waiting, n_rows = [pl.DataFrame(schema=VALUES)], 0
    for part in parts:
        waiting.append(part)
        n_rows += part.height
        if n_rows > at_once:
            waiting, n_rows = [_added(waiting)], 0
    return _added(waiting).sort("code", "value")


def _added(parts):
    return pl.concat(parts).group_by("code", "value").agg(pl.col("n").sum())


def bucket_of(codes, n_buckets):
    """int32 per code: the part of the reduction that it belongs to, the same on every machine."""
    return np.array([zlib.crc32(code.encode()) % n_buckets for code in codes], np.int32)


def scales(values, value_bins, min_values, ranges=None):
    """SCALES of the codes with at least min_values values.

    std is that of a sample (n - 1). cuts are the distinct quantiles q / value_bins, each the value whose rank, counted
    from 0, is nearest to q / value_bins * (n - 1), halves upwards; or the bounds of the code's clinical ranges. in_bin
    counts the values in (cut, next cut].

    Args:
      values: VALUES of all shards, by (code, value). ranges: {code: inner bounds}.
    """
    rows = []
    code_N, value_N, n_N = values["code"], values["value"].to_numpy(), values["n"].to_numpy()
    begin = 0
    for length, code in code_N.rle().struct.unnest().iter_rows():
        value_K, n_K = value_N[begin : begin + length], n_N[begin : begin + length]
        begin += length
        up_to_K = np.cumsum(n_K)
        total = int(up_to_K[-1])
        if total < min_values:
            continue
        mean = float((value_K * n_K).sum() / total)
        std = float(np.sqrt((n_K * (value_K - mean) ** 2).sum() / (total - 1))) if total > 1 else 0.0
        cuts = (ranges or {}).get(code)
        if not cuts:
            share_Q = np.arange(1, value_bins) / value_bins
            rank_Q = np.floor(share_Q * (total - 1) + 0.5).astype(np.int64)
            cuts = np.unique(value_K[np.searchsorted(up_to_K, rank_Q, side="right")]).tolist()
        below = np.concatenate([[0], up_to_K])[np.searchsorted(value_K, cuts, side="right")]
        rows.append((code, mean, std, list(cuts), np.diff([0, *below.tolist(), total]).tolist()))
    return pl.DataFrame(rows, SCALES, orient="row")
