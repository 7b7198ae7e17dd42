"""Fits the scales of channels and derived features on the training patients of a fold, person by person.

First each person's moments, extremes and a sketch of their quantiles; from the sketches bounds (code_counts.bounds);
where somebody's extremes lie beyond them the moments again, with values beyond a bound as the bound. With
config.impute_gap_minutes short gaps count as an autoregressive model fills them (imputation.py), in the moments alone.
"""

import functools
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data import store
from ehrwear_jax.data.formats import npy_rows as npy
from ehrwear_jax.data.formats.times import MINUTE_US
from ehrwear_jax.data.prepare import code_counts, training_people, workers
from ehrwear_jax.data.signals import derived_features
from ehrwear_jax.data.signals.imputation import impute_ar

# of a person's values of a column, in the middle of as many equal parts
_SKETCH = (np.arange(40) + 0.5) / 40


def fit_signals(tables: Path, out: Path, config: PrepareConfig, pool: workers.Pool) -> dict[str, list]:
    """Mean and standard deviation of channels and of derived features, over the windows of training patients.

    Channels are on the model's scale, logarithms where config.log_channels says so (store.Scales). Values beyond
    config.value_fence count as at its distance. Each person's moments are computed apart and added in the order of
    their ids.

    Returns:
      {"mean", "std", "n_values", "n_beyond"} per channel, and "n_imputed" if gaps may be filled;
      {"derived_mean", "derived_std"} per name of derived_features.targets.
    """
    names = derived_features.targets(derived_features.parse(config.summaries, config.channels))
    n = len(config.channels)
    logs = tuple(k for k, channel in enumerate(config.channels) if channel in config.log_channels)
    paths = sorted((tables / "wearers").glob("*.parquet")) if n else []
    work = functools.partial(_of_file, tables=tables, out=out, logs=logs, config=config)
    moments_PxKxC, sketch_PxSxC = _everybody(pool.map(work, paths, "channel statistics"), n + len(names))
    lowest_C, highest_C = (x.min(axis=0, initial=np.inf) for x in (sketch_PxSxC[:, 0], -sketch_PxSxC[:, -1]))
    bounds_2xC = _bounds(moments_PxKxC[:, 0], sketch_PxSxC[:, 1:-1], config.value_fence)
    if np.any((lowest_C < bounds_2xC[0]) | (-highest_C > bounds_2xC[1])):
        work = functools.partial(work, bounds_2xC=bounds_2xC)
        moments_PxKxC, _ = _everybody(pool.map(work, paths, "channel statistics within bounds"), n + len(names))
    count_PxC, mean_PxC, square_PxC, beyond_PxC, imputed_PxC = np.moveaxis(moments_PxKxC, 1, 0)
    count = np.maximum(count_PxC.sum(axis=0), 1)
    mean = (count_PxC * mean_PxC).sum(axis=0) / count
    between = (count_PxC * (mean_PxC - mean) ** 2).sum(axis=0)
    std = np.sqrt(np.maximum((square_PxC.sum(axis=0) + between) / count, 1e-12))
    n_imputed_C = imputed_PxC.sum(axis=0)[:n].astype(int)
    imputed = {"n_imputed": n_imputed_C.tolist()} if config.impute_gap_minutes else {}
    return imputed | {
        "mean": mean[:n].tolist(),
        "std": std[:n].tolist(),
        "n_values": (count_PxC.sum(axis=0)[:n].astype(int) - n_imputed_C).tolist(),
        "n_beyond": beyond_PxC.sum(axis=0)[:n].astype(int).tolist(),
        "derived_mean": mean[n:].tolist(),
        "derived_std": np.where(std[n:] > 1e-6, std[n:], 1.0).tolist(),
    }


def _everybody(parts, n_columns):
    """(moments [P, 5, C], sketches [P, 42, C]) of all files, in the order of the ids."""
    ids = np.concatenate([np.zeros(0, np.int64), *(ids for ids, _, _ in parts)])
    order = np.argsort(ids)
    empty = np.zeros((0, 5, n_columns)), np.zeros((0, len(_SKETCH) + 2, n_columns), np.float32)
    tables = (np.concatenate([e, *(part[k] for part in parts)]) for k, e in enumerate(empty, start=1))
    return tuple(table[order] for table in tables)


def _bounds(count_PxC, sketch_PxSxC, fence):
    """code_counts.bounds of each column, its quantiles as if each person's values were those of the sketch: [2, C]."""
    out = _open(count_PxC.shape[1])
    for c, (count_P, sketch_PxS) in enumerate(zip(count_PxC.T, np.moveaxis(sketch_PxSxC, 2, 0), strict=True)):
        if not count_P.any():
            continue
        seen_P = count_P > 0
        value_K, at_K = np.unique(sketch_PxS[seen_P], return_inverse=True)
        of_each = np.repeat(count_P[seen_P].astype(np.int64), sketch_PxS.shape[1])
        up_to_K = np.cumsum(np.bincount(at_K.ravel(), weights=of_each)).astype(np.int64)
        out[:, c] = code_counts.bounds(value_K.astype(np.float64), up_to_K, fence)
    return out


def _open(n_columns):
    """Bounds that nothing is beyond."""
    return np.stack([np.full(n_columns, -np.inf), np.full(n_columns, np.inf)])


def _of_file(path, tables, out, logs, config, bounds_2xC=None):
    """(ids [P], moments [P, 5, C + X], sketches [P, 42, C + X]) of the training patients of one file."""
    wearers = pl.read_parquet(path).join(training_people.ids(out), on="subject_id", how="semi")
    ids, moments, sketches = wearers["subject_id"].to_numpy(), [], []
    cutoff, gap_minutes = training_people.cutoff(out), config.impute_gap_minutes
    with npy.OpenRows() as opened:
        values, derived = (opened[tables / kind / f"{path.stem}.npy"] for kind in ("window_values", "wearers"))
        n_channels = values.shape[-1]
        n_columns = n_channels + derived.dtype["derived"].shape[0]
        whole = _open(n_columns) if bounds_2xC is None else bounds_2xC
        for first, n in wearers.select("first_row", "n_windows").iter_rows():
            if cutoff is not None:  # windows are in the order of their ends
                end_us = np.datetime64(cutoff, "us").astype(np.int64)
                n = int(np.searchsorted(derived.read(first, n)["end"], end_us, side="right"))
            x_NxC = values.read(first, n).reshape(-1, n_channels)
            for k in logs:
                x_NxC[:, k] = store.signed_log1p(x_NxC[:, k])
            rows = derived.read(first, n)
            filled_NxC, y_MxX = _filled(x_NxC, rows["end"], config) if gap_minutes else x_NxC, rows["derived"]
            parts = _moments(x_NxC, filled_NxC, *whole[:, :n_channels]), _moments(y_MxX, y_MxX, *whole[:, n_channels:])
            moments.append(np.concatenate(parts, axis=1))
            sketches.append(np.concatenate([_sketch(x) for x in (x_NxC, y_MxX)], axis=1))
    n_sketch = len(_SKETCH) + 2
    return (ids, np.array(moments).reshape(len(ids), 5, n_columns),
            np.array(sketches, np.float32).reshape(len(ids), n_sketch, n_columns))  # fmt: skip


def _filled(x_NxC, end_M, config):
    """One person's steps, in the order of their windows, with the short gaps between them filled."""
    step_us = config.step_minutes * MINUTE_US
    steps = len(x_NxC) // max(len(end_M), 1)
    # windows that are not there are gaps: as many steps as make one too long to be filled stand for them
    room = int(config.impute_gap_minutes // config.step_minutes) + 1
    absent_M = np.diff(end_M, prepend=end_M[:1]) > steps * step_us
    at_N = np.arange(len(x_NxC)) + np.repeat(np.cumsum(absent_M) * room, steps)
    line_TxC = np.full((int(at_N[-1]) + 1 if len(at_N) else 0, x_NxC.shape[1]), np.nan)
    line_TxC[at_N] = x_NxC
    filled = [impute_ar(x_T, 1e6 / step_us, max_gap_minutes=config.impute_gap_minutes)[0] for x_T in line_TxC.T]
    return np.stack(filled, axis=1)[at_N] if len(x_NxC) else x_NxC


def _moments(x_NxC, filled_NxC, low_C, high_C):
    """Count, mean, sum of squared deviations, of each column's finite filled values, number beyond the bounds, imputed.

    [5, C] float64; those beyond count as the bound.
    """
    x_CxN = np.ascontiguousarray(filled_NxC.T)
    seen = np.isfinite(x_CxN)
    observed = seen if filled_NxC is x_NxC else np.isfinite(x_NxC.T)
    filled = np.where(seen, x_CxN, 0).astype(np.float64)
    beyond = seen & ((filled < low_C[:, None]) | (filled > high_C[:, None]))
    filled = np.where(beyond, np.clip(filled, low_C[:, None], high_C[:, None]), filled)
    count = seen.sum(axis=1).astype(np.float64)
    mean = filled.sum(axis=1) / np.maximum(count, 1)
    square = (np.where(seen, filled - mean[:, None], 0.0) ** 2).sum(axis=1)
    return np.stack([count, mean, square, (beyond & observed).sum(axis=1), (seen & ~observed).sum(axis=1)])


def _sketch(x_NxC):
    """Each column's least finite value, its quantiles of _SKETCH (the nearest values), and its greatest: [42, C].

    (inf, zeros, -inf) of a column without a finite value.
    """
    out = np.zeros((len(_SKETCH) + 2, x_NxC.shape[1]), np.float32)
    for c in range(x_NxC.shape[1]):
        x = np.sort(x_NxC[np.isfinite(x_NxC[:, c]), c])
        out[[0, -1], c] = (x[0], x[-1]) if len(x) else (np.inf, -np.inf)
        if len(x):
            out[1:-1, c] = x[code_counts.nearest_ranks(_SKETCH, len(x))]
    return out
