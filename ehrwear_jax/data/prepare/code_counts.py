"""Counts codes, values and texts shard by shard and adds the counts up: exact whatever the shards are.

A subject's events lie in one shard, so numbers of subjects add. Values are kept as (code, value, how often): few rows,
because laboratories round, and mergeable without loss. Everything derived from them (mean, standard deviation,
quantiles, counts between them) is computed from the merged table in the order of the values. Neither the division into
shards nor the order in which they are done changes a bit of the result.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

COUNTS = pl.Schema({"code_id": pl.Int32, "count": pl.Int64, "subjects": pl.Int64, "n_values": pl.Int64})
TEXT_COUNTS = pl.Schema({"text_id": pl.Int32, "count": pl.Int64, "subjects": pl.Int64})
VALUES = pl.Schema({"code_id": pl.Int32, "value": pl.Float64, "n": pl.Int64})
SCALES = pl.Schema(
    {
        "code_id": pl.Int32(),
        "mean": pl.Float64(),
        "std": pl.Float64(),
        "quantile": pl.List(pl.Float64),
        "up_to": pl.List(pl.Int64),
        "range_cut": pl.List(pl.Float64),
        "range_up_to": pl.List(pl.Int64),
        "n_beyond": pl.Int64(),
    }
)
PERMILLES = 1000
FENCE = 10.0
# shares between which normal values spread over so many standard deviations
_SPREADS = ((0.25, 0.75, 1.348980), (0.1, 0.9, 2.563103), (0.05, 0.95, 3.289707))


def count_codes(events: pl.DataFrame) -> pl.DataFrame:
    """COUNTS of one shard.

    Args:
      events: subject_id, code_id, numeric_value; no other shard has its subjects.
    """
    counted = events.group_by("code_id").agg(
        pl.len().alias("count"),
        pl.col("subject_id").n_unique().alias("subjects"),
        pl.col("numeric_value").count().alias("n_values"),
    )
    return counted.select(*COUNTS).cast(COUNTS).sort("code_id")


def count_texts(events: pl.DataFrame) -> pl.DataFrame:
    """TEXT_COUNTS of one shard; events: subject_id, text_id (null: none)."""
    by_text = events.drop_nulls("text_id").group_by("text_id")
    counted = by_text.agg(pl.len().alias("count"), pl.col("subject_id").n_unique().alias("subjects"))
    return counted.select(*TEXT_COUNTS).cast(TEXT_COUNTS).sort("text_id")


def count_values(events: pl.DataFrame) -> pl.DataFrame:
    """VALUES of one shard, by (code_id, value); events: code_id, numeric_value."""
    valued = events.filter(pl.col("numeric_value").is_not_null())
    value = pl.col("numeric_value").cast(pl.Float64)
    value = pl.when(value == 0).then(0.0).otherwise(value)  # not -0, whichever comes first
    found = valued.group_by("code_id", value.alias("value")).agg(pl.len().alias("n"))
    return found.cast(VALUES).sort("code_id", "value")


def count_pooled(events: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """How many subjects of one shard have an ancestor or one of its rare descendants: ancestor_id, subjects.

    Args:
      events: subject_id, code_id. pairs: code_id, ancestor_id.
    """
    mine = events.select("subject_id", "code_id").join(pairs, on="code_id")
    counted = mine.group_by("ancestor_id").agg(pl.col("subject_id").n_unique().cast(pl.Int64).alias("subjects"))
    return counted.sort("ancestor_id")


def add_counts(parts: Iterable[pl.DataFrame], schema: pl.Schema) -> pl.DataFrame:
    """The sum of the parts by their first column, by which it is sorted."""
    whole = pl.concat([pl.DataFrame(schema=schema), *parts])
    key = whole.columns[0]
    return whole.group_by(key).agg(pl.exclude(key).sum()).sort(key)


def add_values(parts: Iterable[pl.DataFrame], at_once: int = 4_000_000) -> pl.DataFrame:
    """VALUES of all shards, by (code_id, value).

    Args:
      parts: VALUES. at_once: rows that may wait to be added.
    """
    waiting, n_rows = [pl.DataFrame(schema=VALUES)], 0
    for part in parts:
        waiting.append(part)
        n_rows += part.height
        if n_rows > at_once:
            waiting, n_rows = [_added(waiting)], 0
    return _added(waiting).sort("code_id", "value")


def _added(parts):
    return pl.concat(parts).group_by("code_id", "value").agg(pl.col("n").sum())


def nearest_ranks(share_Q: np.ndarray, n: int) -> np.ndarray:
    """Ranks, from 0, of the quantiles of n values: the nearest to share * (n - 1), halves upwards; int64."""
    return np.floor(share_Q * (n - 1) + 0.5).astype(np.int64)


def bounds(value_K: np.ndarray, up_to_K: np.ndarray, fence: float) -> tuple[float, float]:
    """Between which values are taken as they are when mean and standard deviation are fitted; beyond, as the bound.

    The bounds lie `fence` robust standard deviations from the median. That is the largest of the distances between the
    quantiles of 25 and 75, 10 and 90, and 5 and 95%, each over what it is of a standard normal distribution: less than
    5% of the values on a side, whatever they are, cannot widen it, and a long tail with more of them keeps its width.
    Values of which 90% are alike have no such scale and no bounds.

    Args:
      value_K: distinct values, increasing. up_to_K: how many values are at most each. fence: 0: no bounds.
    """
    share_Q = np.array([0.5, *(share for low, high, _ in _SPREADS for share in (low, high))])
    rank_Q = nearest_ranks(share_Q, int(up_to_K[-1]))
    middle, *ends = value_K[np.searchsorted(up_to_K, rank_Q, side="right")].tolist()
    scale = max((high - low) / s for low, high, (_, _, s) in zip(ends[::2], ends[1::2], _SPREADS, strict=True))
    if not scale > 0 or not fence:
        return -np.inf, np.inf
    return middle - fence * scale, middle + fence * scale


def scales(
    values: pl.DataFrame, ranges: Mapping[int, list[float]] | None = None, fence: float = FENCE
) -> pl.DataFrame:
    """SCALES of the codes that have values.

    mean and std are those of values within `bounds`: one that was mistyped would else make all others alike; n_beyond
    values are beyond. std is that of a sample (n - 1), 0 of one value. quantile holds the distinct values of the ranks
    (`nearest_ranks`) of 1 to 999 permille, up_to the number of values that are at most each, from which the quantiles
    of any number of bins that divides 1000, and the values in each, follow exactly (`bin_cuts`). range_cut and
    range_up_to hold the same of the inner bounds of a code's clinical ranges, null where it has none.

    Args:
      values: VALUES of all shards, by (code_id, value). ranges: {code_id: inner bounds, increasing}. fence: see bounds.
    """
    rows, begin = [], 0
    share_Q = np.arange(1, PERMILLES) / PERMILLES
    value_N, n_N = values["value"].to_numpy(), values["n"].to_numpy()
    for length, code_id in values["code_id"].rle().struct.unnest().iter_rows():
        value_K, n_K = value_N[begin : begin + length], n_N[begin : begin + length]
        begin += length
        up_to_K = np.cumsum(n_K)
        total = int(up_to_K[-1])
        low, high = bounds(value_K, up_to_K, fence)
        within_K = np.clip(value_K, low, high)
        beyond = int(n_K[within_K != value_K].sum())
        mean = float((within_K * n_K).sum() / total)
        std = float(np.sqrt((n_K * (within_K - mean) ** 2).sum() / (total - 1))) if total > 1 else 0.0
        at = np.unique(np.searchsorted(up_to_K, nearest_ranks(share_Q, total), side="right"))
        cuts, below = (ranges or {}).get(code_id), None
        if cuts:
            below = np.append(0, up_to_K)[np.searchsorted(value_K, cuts, side="right")].tolist()
        rows.append((code_id, mean, std, value_K[at].tolist(), up_to_K[at].tolist(), cuts or None, below, beyond))
    return pl.DataFrame(rows, SCALES, orient="row")


def bin_cuts(quantile: list[float], up_to: list[int], n_values: int, n_bins: int) -> tuple[list[float], list[int]]:
    """Distinct inner bounds of quantile bins, and how many values are at most each.

    The bounds are exact for a number of bins that divides 1000, and for up to 1000 values; else each is the next
    permille's value at most above it.

    Args:
      quantile, up_to: a row of SCALES. n_values: of the code.

    Raises:
      ValueError: fewer than one bin, or more than 1000.
    """
    if not 1 <= n_bins <= PERMILLES:
        raise ValueError(f"{n_bins} bins of values; there can be 1 to {PERMILLES}")
    rank_Q = nearest_ranks(np.arange(1, n_bins) / n_bins, n_values)
    at = np.unique(np.searchsorted(up_to, rank_Q, side="right"))
    return [quantile[k] for k in at], [up_to[k] for k in at]
