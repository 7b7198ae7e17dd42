"""Raw stretches of sub-second signal for the cohort of cohort.py, and how they are prepared and shown."""

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import wearable

PPG = {"segments": {"ppg": {"channels": ("ppg",), "per_window": 2}}}
RAW = {"raw_segments": "ppg"}  # of a context, beside raw_windows
CONTEXT = {"tokens": 64, "windows": 32, "context_tokens": 40, "queries": 8, "events": 8, "patch_steps": 3,
           "future_windows": 2, "future_codes": 6}  # fmt: skip


def sine(hz, rate_hz, seconds, phase=0.0):
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz + phase)


def with_waves(root):
    """Adds raw stretches for two thirds of the wearers: a sine whose frequency tells subject and place."""
    channels = wearable.read_channels(root / "wearable")
    ppg = pl.DataFrame([("ppg", "a.u.", "", -10.0, 10.0)], channels.schema, orient="row")
    wearable.write_channels(root / "wearable", pl.concat([channels, ppg]))
    for shard in wearable.list_shards(root / "wearable"):
        rows = pl.read_parquet(shard)
        parts = []
        for (subject,), mine in rows.group_by("subject_id", maintain_order=True):
            parts.append(mine)
            start = mine["start_time"].min()
            for k in range(5) if subject % 3 else ():
                parts.append(mine[:1].with_columns(
                    start_time=pl.lit(start) + pl.duration(hours=1 + 4 * k, minutes=7 * k),
                    sample_rate_hz=pl.lit(50.0), channel=pl.lit("ppg"), unit=pl.lit("a.u."),
                    values=pl.lit(wave(subject, k).astype(np.float32).tolist(), pl.List(pl.Float32)),
                ).cast(mine.schema))  # fmt: skip
        pl.concat(parts).write_parquet(shard)
    return root


def wave(subject, k):
    return sine(0.7 + 0.05 * subject + 0.01 * k, 50.0, 65)
