"""Writes a large random dataset of realistic shape quickly, to measure how fast and in how much memory it is read.

Nothing can be learnt from it: codes, values and signals are drawn independently. Codes are as skewed as real ones
(frequency falls as one over rank), a few hundred laboratory codes have values, minutes have stretches not worn.
"""

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import meds, wearable

CHANNELS = ("heart_rate", "activity", "skin_temperature")
_CHANNEL_TABLE = pl.DataFrame(
    [
        ("heart_rate", "bpm", "", 25.0, 230.0),
        ("activity", "counts/min", "", 0.0, 20_000.0),
        ("skin_temperature", "degC", "", 15.0, 45.0),
    ],
    schema=["channel", "unit", "description", "valid_min", "valid_max"],
    orient="row",
)
_UNIT = dict(_CHANNEL_TABLE.select("channel", "unit").iter_rows())
_START_US = int(np.datetime64(datetime(2016, 1, 1), "us").astype(np.int64))
_DAY_US = 86_400_000_000
N_CODES, N_LABS = 3000, 400


def write_events(
    meds_dir: Path, n_subjects: int, per_subject: int, seed: int = 0, subjects_per_shard: int = 500
) -> int:
    """Writes a MEDS dataset of n_subjects with per_subject events on average; returns the number of rows."""
    names = np.array([f"LOINC//{k}" if k % 7 == 0 and k < 7 * N_LABS else f"ICD10CM/A{k:04d}" for k in range(N_CODES)])
    share_C = 1.0 / np.arange(10, N_CODES + 10)
    edge_C = np.cumsum(share_C / share_C.sum())
    is_lab_C = np.char.startswith(names, "LOINC")
    centre_C = np.random.default_rng(seed).lognormal(3.0, 1.0, N_CODES)
    code_series, total = pl.Series([*names.tolist(), meds.BIRTH_CODE]), 0
    for shard, first in enumerate(range(0, n_subjects, subjects_per_shard)):
        rng = np.random.default_rng([seed, shard])
        ids_S = np.arange(first + 1, min(first + subjects_per_shard, n_subjects) + 1)
        count_S = 2 + rng.geometric(1 / per_subject, len(ids_S))
        subject_N = np.repeat(ids_S, count_S)
        n = len(subject_N)
        code_N = np.minimum(np.searchsorted(edge_C, rng.random(n)), N_CODES - 1)
        minute_N = rng.integers(0, 6 * 365 * 96, n) * 15  # several events share a time, as in a visit
        time_N = _START_US + minute_N * 60_000_000
        value_N = np.round(centre_C[code_N] * np.exp(0.3 * rng.standard_normal(n)), 1).astype(np.float32)
        value_N[~is_lab_C[code_N] | (rng.random(n) < 0.05)] = np.nan
        born_S = np.concatenate([[0], np.cumsum(count_S)[:-1]])  # one row each
        code_N[born_S], time_N[born_S], value_N[born_S] = N_CODES, _START_US - 50 * 365 * _DAY_US, np.nan
        order_N = np.lexsort((time_N, subject_N))
        events = pl.DataFrame(
            {
                "subject_id": subject_N,
                "time": pl.Series(time_N[order_N]).cast(pl.Datetime("us")),
                "code": code_series[code_N[order_N]],
                "numeric_value": pl.Series(value_N[order_N]).fill_nan(None),
            }
        )
        meds.write_shard(meds_dir / "data" / f"{shard:05d}.parquet", events)
        total += n
    _write_metadata(meds_dir, names.tolist(), n_subjects)
    return total


def _write_metadata(meds_dir, names, n_subjects):
    ids = np.arange(1, n_subjects + 1)
    split = np.array(meds.SPLITS)[np.searchsorted([8, 9], ids % 10, side="right")]
    parents = [[c[:-1], c[:-2]] if c.startswith("ICD") else [] for c in names]
    codes = pl.DataFrame({"code": [*names, "MEDS_BIRTH"], "description": "", "parent_codes": [*parents, []]})
    splits = pl.DataFrame({"subject_id": ids, "split": split})
    meds.write_metadata(meds_dir, meds.Metadata("bench", "1", codes, splits))


def write_minutes(root: Path, n_subjects: int, days: int, seed: int = 0, subjects_per_shard: int = 25) -> int:
    """Writes `days` of minutes in three channels for n_subjects, and a MEDS dataset of two rows each.

    Returns the number of patient-days.
    """
    meds_dir, n = root / "meds", days * 1440
    wearable.write_channels(root / "wearable", _CHANNEL_TABLE)
    for shard, first in enumerate(range(0, n_subjects, subjects_per_shard)):
        rng = np.random.default_rng([seed, shard])
        ids = range(first + 1, min(first + subjects_per_shard, n_subjects) + 1)
        rows = []
        for subject in ids:
            day_N = np.arange(n, dtype=np.float32) * np.float32(2 * np.pi / 1440)
            noise_3xN = rng.standard_normal((3, n), np.float32)
            off_N = np.repeat(rng.random(n // 30) < 0.1, 30)
            for channel, values_N in zip(
                CHANNELS,
                (
                    np.rint(65 - 10 * np.cos(day_N) + 6 * noise_3xN[0]),
                    np.rint(np.exp(2.0 - 2.0 * np.cos(day_N) + noise_3xN[1])),
                    np.round(33.0 + np.cos(day_N) + 0.2 * noise_3xN[2], 1),
                ),
                strict=True,
            ):
                values_N[off_N] = np.nan
                rows.append((subject, channel, values_N))
        table = pl.DataFrame(
            {
                "subject_id": [r[0] for r in rows],
                "start_time": datetime(2018, 1, 1, 9, 30),
                "sample_rate_hz": 1 / 60,
                "channel": [r[1] for r in rows],
                "values": pl.Series([r[2] for r in rows], dtype=pl.List(pl.Float32)),
                "unit": [_UNIT[r[1]] for r in rows],
                "device": "watch",
            }
        )
        wearable.write_shard(root / "wearable" / f"{shard:05d}.parquet", table, _CHANNEL_TABLE)
        events = pl.DataFrame({"subject_id": np.repeat(np.array(ids), 2), "code": ["MEDS_BIRTH", "VISIT"] * len(ids)})
        time = [datetime(1960, 1, 1), datetime(2018, 1, 2, 12)] * len(ids)
        events = events.with_columns(pl.Series("time", time, pl.Datetime("us")), numeric_value=pl.lit(None, pl.Float32))
        meds.write_shard(meds_dir / "data" / f"{shard:05d}.parquet", events)
    _write_metadata(meds_dir, ["VISIT"], n_subjects)
    return n_subjects * days
