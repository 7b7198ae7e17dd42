"""Simulated recordings whose truth is known, noisy and with gaps, and their way through prepare."""

from datetime import UTC, datetime

import cohort
import numpy as np
import polars as pl

from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.prepare import dataset

START = datetime(2020, 3, 1)
START_US = int(START.replace(tzinfo=UTC).timestamp() * 1e6)
SUBJECT = 1
AXES = ("acc_x", "acc_y", "acc_z")
UNITS = {**dict.fromkeys(AXES, "g"), "heart_rate": "bpm", "activity": "counts/min", "ppg": "a.u.", "ppi": "ms"}
LIMITS = {
    "heart_rate": (25.0, 230.0),
    "activity": (0.0, 1e5),
    "ppi": (200.0, 3000.0),
    **dict.fromkeys(AXES, (-8.0, 8.0)),
}
GAIN, OFFSET = np.array([1.03, 0.97, 1.02]), np.array([0.04, -0.03, 0.02])  # of the device


def prepared(root, recordings, config, pool=None):
    """(steps by name, tables of windows, float32 [M, L, C]) of prepare_tables on the recordings of one person.

    Args:
      root: an empty folder.
      recordings: (minutes after START, rate_hz, channel, values) each.
    """
    write(root, recordings)
    steps = dataset.prepare_tables(root / "meds", root / "wearable", root / "tables", config, pool=pool)
    windows = pl.read_parquet(root / "tables" / "windows" / "0.parquet")
    return {s["step"]: s for s in steps}, windows, np.load(root / "tables" / "window_values" / "0.npy")


def write(root, recordings):
    """Writes root/meds and root/wearable, in which one person wears something."""
    cohort.write_cohort(root, 10, wear_days=1)
    for shard in wearable.list_shards(root / "wearable"):
        shard.unlink()
    names = sorted({channel for _, _, channel, _ in recordings})
    table = [(c, UNITS[c], "", *LIMITS.get(c, (-1e9, 1e9))) for c in names]
    schema = ["channel", "unit", "description", "valid_min", "valid_max"]
    wearable.write_channels(root / "wearable", pl.DataFrame(table, schema, orient="row"))
    rows = [
        (SUBJECT, START_US + round(minute * 6e7), rate_hz, channel, np.asarray(values, np.float32).tolist(),
         UNITS[channel], "watch") for minute, rate_hz, channel, values in recordings
    ]  # fmt: skip
    frame = pl.DataFrame(rows, list(wearable.ROW_SCHEMA)[:7], orient="row").with_columns(
        pl.col("start_time").cast(pl.Datetime("us")), pl.col("values").cast(pl.List(pl.Float32))
    )
    wearable.write_shard(root / "wearable" / "0.parquet", frame)


def acceleration(seed, hours, rate_hz, noise_g=0.004):
    """(true ENMO of each minute, mg; true angle of each minute, degrees; what the device reads [N, 3], g).

    The arm takes another posture every five minutes and keeps it; in every third of these times it moves along gravity,
    so that the norm is one g and what ENMO is. The device has GAIN, OFFSET and noise.
    """
    rng, n = np.random.default_rng(seed), round(hours * 3600 * rate_hz)
    part_N = np.arange(n) // round(300 * rate_hz)
    direction = rng.standard_normal((part_N[-1] + 1, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    height = np.where(np.arange(part_N[-1] + 1) % 3 == 0, rng.uniform(0.05, 0.4, part_N[-1] + 1), 0.0)
    moved_N = height[part_N] * (1 - np.cos(2 * np.pi * 1.5 * np.arange(n) / rate_hz)) / 2
    true_Nx3 = direction[part_N] * (1 + moved_N)[:, None]
    read_Nx3 = true_Nx3 / GAIN + OFFSET + noise_g * rng.standard_normal((n, 3))
    per_minute = round(60 * rate_hz)
    enmo_T = 1000 * moved_N.reshape(-1, per_minute).mean(axis=1)
    return enmo_T, np.degrees(np.arcsin(direction[part_N[::per_minute], 2])), read_Nx3


def heart_rate(seed, days):
    """(true heart rate of each minute; what the device reads; where it is an artefact), bpm and bool [N].

    Circadian, with bouts of exertion that rise and fall over minutes. The device adds its noise, counts half or 1.6
    times the beats for minutes, is noisy for half an hour three times a day, and loses one minute in 50.
    """
    rng, n = np.random.default_rng(seed), days * 1440
    effort = np.zeros(n)
    for start in rng.integers(0, n, 12 * days):
        effort[start : start + int(rng.integers(3, 25))] = rng.uniform(0.3, 1.0)
    rise = np.convolve(effort, 0.35 * 0.65 ** np.arange(30))[:n]
    true = 62 + 6 * np.cos(2 * np.pi * (np.arange(n) % 1440 - 960) / 1440) + 55 * rise + 1.5 * rng.standard_normal(n)
    read, bad = true + 1.5 * rng.standard_normal(n), np.zeros(n, bool)
    for start in rng.integers(0, n - 10, 8 * days):
        at = slice(start, start + int(rng.integers(1, 8)))
        read[at], bad[at] = true[at] * rng.choice([0.5, 1.6]), True
    for start in rng.integers(0, n - 40, 3 * days):
        at = slice(start, start + 30)
        read[at], bad[at] = true[at] * (1 + 0.35 * rng.standard_normal(30)), True
    read[rng.random(n) < 0.02] = np.nan
    return true, np.clip(read, 20, 240), bad
