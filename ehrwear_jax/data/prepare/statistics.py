"""Fits the vocabulary and the statistics of channels on the training patients, shard by shard.

Map: each shard of events is counted (code_counts.py), its values sorted into buckets by code. Reduce: buckets add up
the values of their codes over all shards and derive means and quantiles; memory is bounded by one bucket. What is
fitted depends neither on the shards nor on how many workers there are.
"""

import functools
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from ehrwear_jax.data.formats import npy_rows as npy
from ehrwear_jax.data.formats.parquet import write_frame, writing
from ehrwear_jax.data.prepare import code_counts, harmonise
from ehrwear_jax.data.signals import derived_features as window_summaries
from ehrwear_jax.models.joint import vocabulary as tokenizer

_VALUES_PER_BUCKET = 8_000_000  # (code, value) pairs; a pair is about 50 bytes


def training_subjects(out):
    """Ids, sorted, of the training patients of OUT/subjects.parquet."""
    path = Path(out) / "subjects.parquet"
    return _training_subjects(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _training_subjects(path, _):
    subjects = pl.read_parquet(path, columns=["subject_id", "split"])
    return subjects.filter(pl.col("split") == "train").select("subject_id").sort("subject_id")


# -------------------------------------------------------------------------------------------------------- vocabulary
def fit_vocabulary(tables, out, codes, config, units, pool):
    """A Vocabulary fitted on TABLES/events/ of the training patients of OUT/subjects.parquet.

    Works in OUT/fit, which the caller removes; a call that finds parts of it there goes on from them.

    Args:
      codes: MEDS codes.parquet, or None. units: {code: unit}, see harmonise.read_ranges. pool: cluster.Pool.
    """
    ranges = harmonise.read_ranges(config.ranges_file, units) if config.ranges_file else None
    pieces, folder = sorted((tables / "events").glob("*.parquet")), out / "fit"
    folder.mkdir(exist_ok=True)
    n_buckets = int(np.clip(sum(map(_n_rows, pieces)) // _VALUES_PER_BUCKET + 1, 1, 256))
    parts = pool.map(functools.partial(_count, out=out, n_buckets=n_buckets), pieces, "count codes")
    counts = code_counts.add_counts([counted for counted, _ in parts])
    parents = {} if codes is None else dict(zip(codes["code"], codes["parent_codes"].to_list(), strict=True))
    if config.implied_parents:
        found = pl.concat([all_codes for _, all_codes in parts]).unique().sort()
        parents = harmonise.complete_parents(parents, found.to_list())
    names = [folder / f"{path.stem}.arrow" for path in pieces]
    reduce = functools.partial(_scales, names=names, config=config, ranges=ranges)
    scales = pl.concat(pool.map(reduce, range(n_buckets), "value bins", unit="bucket")).sort("code")
    lineage, pooled = tokenizer.ancestors(parents), []
    pairs = tokenizer.rare_pairs(counts, lineage, config.min_subjects)
    if (pairs["code"] != pairs["ancestor"]).any():
        pooled = pool.map(functools.partial(_pool, out=out, pairs=pairs), pieces, "rare codes")
    return tokenizer.build_vocabulary(counts, scales, lineage, _summed(pooled), config.min_subjects)


def _n_rows(path):
    return pl.scan_parquet(path).select(pl.len()).collect().item()


def _summed(parts):
    total = {}
    for part in parts:
        for key, n in part.items():
            total[key] = total.get(key, 0) + n
    return total


def _training_events(path, out, columns):
    return pl.read_parquet(path, columns=columns).join(training_subjects(out), on="subject_id", how="semi")


def _count(path, out, n_buckets):
    """(COUNTS of the training patients, all codes) of a shard; a batch per bucket of values goes to OUT/fit."""
    counted_path, values_path = (out / "fit" / f"{path.stem}.{kind}" for kind in ("parquet", "arrow"))
    everybody = pl.read_parquet(path, columns=["subject_id", "code", "numeric_value"])
    all_codes = everybody["code"].unique()
    if not values_path.exists():
        events = everybody.join(training_subjects(out), on="subject_id", how="semi")
        write_frame(code_counts.count_codes(events), counted_path)
        values = code_counts.count_values(events)
        of_code = values.select(pl.col("code").unique(maintain_order=True))
        bucket = pl.Series("bucket", code_counts.bucket_of(of_code["code"], n_buckets), pl.Int32)
        values = values.join(of_code.with_columns(bucket), on="code", how="left", maintain_order="left")
        with writing(values_path) as partial:
            schema = pa.schema([("code", pa.large_string()), ("value", pa.float64()), ("n", pa.int64())])
            with pa.ipc.new_file(str(partial), schema) as file:
                for b in range(n_buckets):
                    mine = values.filter(pl.col("bucket") == b).drop("bucket").to_arrow().cast(schema)
                    file.write_batch(pa.RecordBatch.from_struct_array(mine.to_struct_array().combine_chunks()))
    return pl.read_parquet(counted_path), all_codes


def _scales(bucket, names, config, ranges):
    """SCALES of the codes of one bucket."""

    def parts():
        for name in names:
            with pa.OSFile(str(name)) as source:
                yield pl.from_arrow(pa.ipc.open_file(source).get_batch(bucket)).cast(code_counts.VALUES)

    return code_counts.scales(code_counts.add_values(parts()), config.value_bins, config.min_values, ranges)


def _pool(path, out, pairs):
    return code_counts.count_pooled(_training_events(path, out, ["subject_id", "code"]), pairs)


def remove_parts(out):
    """Removes OUT/fit once what was fitted is written."""
    shutil.rmtree(Path(out) / "fit", ignore_errors=True)


# -------------------------------------------------------------------------------------------------------- signals
def channel_statistics(tables, out, config, pool):
    """Mean and standard deviation of channels and of further summaries, over the windows of training patients.

    Each person's moments are computed apart and added in the order of their ids.

    Returns:
      {"mean", "std"} per channel, {"summaries", "summary_mean", "summary_std"} of window_summaries.targets.
    """
    names = window_summaries.targets(window_summaries.parse(config.summaries, config.channels))
    n = len(config.channels)
    paths = sorted((tables / "wearers").glob("*.parquet")) if n else []
    parts = pool.map(functools.partial(_moments, tables=tables, out=out), paths, "channel statistics")
    ids = np.concatenate([np.zeros(0, np.int64), *(ids for ids, _ in parts)])
    table = np.concatenate([np.zeros((0, 3, n + len(names))), *(moments for _, moments in parts)])
    count_PxC, mean_PxC, square_PxC = np.moveaxis(table[np.argsort(ids)], 1, 0)
    count = np.maximum(count_PxC.sum(axis=0), 1)
    mean = (count_PxC * mean_PxC).sum(axis=0) / count
    between = (count_PxC * (mean_PxC - mean) ** 2).sum(axis=0)
    std = np.sqrt(np.maximum((square_PxC.sum(axis=0) + between) / count, 1e-12))
    return {
        "mean": mean[:n].tolist(),
        "std": std[:n].tolist(),
        "summaries": names,
        "summary_mean": mean[n:].tolist(),
        "summary_std": np.where(std[n:] > 1e-6, std[n:], 1.0).tolist(),
    }


def _moments(path, tables, out):
    """(ids [P], moments [P, 3, C + X]) of the training patients of one file, see _of_columns."""
    wearers = pl.read_parquet(path).join(training_subjects(out), on="subject_id", how="semi")
    ids, moments = wearers["subject_id"].to_numpy(), []
    with npy.OpenRows() as opened:
        values, further = (opened[tables / kind / f"{path.stem}.npy"] for kind in ("window_values", "wearers"))
        for first, n in wearers.select("first_row", "n_windows").iter_rows():
            of_signal = _of_columns(values.read(first, n).reshape(-1, values.shape[-1]))
            moments.append(np.concatenate([of_signal, _of_columns(further.read(first, n)["summary"])], axis=1))
        n_columns = values.shape[-1] + further.dtype["summary"].shape[0]
    return ids, np.array(moments).reshape(len(ids), 3, n_columns)


def _of_columns(x_NxC):
    """Count, mean and sum of squared deviations of the finite values of each column: float64 [3, C]."""
    x_CxN = np.ascontiguousarray(x_NxC.T)
    seen = np.isfinite(x_CxN)
    filled = np.where(seen, x_CxN, 0).astype(np.float64)
    count = seen.sum(axis=1).astype(np.float64)
    mean = filled.sum(axis=1) / np.maximum(count, 1)
    return np.stack([count, mean, (np.where(seen, filled - mean[:, None], 0.0) ** 2).sum(axis=1)])
