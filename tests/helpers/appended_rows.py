"""Draws what arrives of a person, part by part, and writes what has arrived of many people as a data set."""

import dataclasses
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.inference.growing_record import EVENT_ROWS, SIGNAL_ROWS, frame

BEGIN = datetime(2018, 1, 1)
NEW = ("ICD10//E11.99", "LOINC/2345-7", "NOBODY//KNOWS//IT")  # codes that no bundle has, two of which stand for others
UNITS = {"heart_rate": "bpm", "activity": "counts/min"}


def small(model, tokens=24, windows=6):
    """The model with a context so short that records do not fit into it; its parameters do not depend on that."""
    config = model.model.config
    context = dataclasses.replace(config.context, tokens=tokens, context_tokens=tokens, windows=windows)
    model.model = dataclasses.replace(model.model, config=dataclasses.replace(config, context=context))
    return model


def parts(rng, codes, n_events, n_stretches, late=0.2):
    """[(event rows, signal rows)] of one person, as dicts: mostly in the order of time, some later than their time."""
    days = np.sort(rng.uniform(0, 60, n_events))
    days = np.where(rng.random(n_events) < 0.2, np.floor(days), days)
    facts = [{"time": None, "code": "GENDER//F"}, {"time": None, "code": "ZIP//1", "text_value": "x"}]
    events = facts[: rng.integers(3)]
    if rng.random() < 0.7:
        events.append({"time": BEGIN - timedelta(days=int(rng.integers(9000, 30000))), "code": "MEDS_BIRTH"})
    for day in days:
        time = BEGIN + timedelta(seconds=int(day * 86_400))
        is_new = rng.random() < 0.05 and day % 1 > 0  # of a code at midnight, a data set decides whether it has times
        code = str(rng.choice(NEW if is_new else codes))
        value = float(np.float32(rng.normal(90, 40))) if rng.random() < 0.6 else None
        events.append({"time": time, "code": code, "numeric_value": value})
    signal = [_stretch(rng, hour) for hour in np.sort(rng.uniform(0, 240, n_stretches))]
    arriving = [(_delayed(rng, e["time"], late), e, None) for e in events]
    arriving += [(_delayed(rng, s["start_time"], late, most=10), None, s) for s in signal]
    arriving.sort(key=lambda x: x[0])
    out = []
    while arriving:
        some, arriving = arriving[: (n := int(rng.integers(1, 8)))], arriving[n:]
        out.append(([e for _, e, _ in some if e], [s for *_, s in some if s]))
    return out


def _delayed(rng, time, late, most=500):
    """When something arrives, hours since BEGIN."""
    hours = -1e6 if time is None else (time - BEGIN) / timedelta(hours=1)
    return hours + (rng.uniform(0, most) if rng.random() < late else 0.0)


def _stretch(rng, hour):
    """Six hours or less of a channel, with gaps and with time not worn."""
    channel, every = str(rng.choice(list(UNITS))), int(rng.choice([60, 300]))
    n = int(rng.integers(1, 6 * 3600 // every))
    values = rng.normal(70, 10, n) if channel == "heart_rate" else np.maximum(rng.normal(20, 40, n), 0)
    values[rng.random(n) < 0.1] = np.nan
    if channel == "activity" and rng.random() < 0.4:
        values[n // 3 :] = 0.0
    start = BEGIN + timedelta(seconds=int(hour * 3600))
    return {"start_time": start, "sample_rate_hz": 1 / every, "channel": channel, "unit": UNITS[channel],
            "values": values.astype(np.float32).tolist(), "device": str(rng.choice(["band", "watch"]))}  # fmt: skip


def write(root, people):
    """Writes {subject_id: parts} as a MEDS data set and wearable tables."""
    events, signal = [], []
    for subject_id, arrived in sorted(people.items()):
        rows = [e for some, _ in arrived for e in some]
        if rows:
            table = frame(rows, EVENT_ROWS).with_columns(subject_id=pl.lit(subject_id, pl.Int64))
            events.append(table.sort("time", maintain_order=True))
        if worn := [s for _, some in arrived for s in some]:
            signal.append(frame(worn, SIGNAL_ROWS).with_columns(subject_id=pl.lit(subject_id, pl.Int64)))
    meds.write_shard(root / "meds" / "data" / "0.parquet", pl.concat(events, how="diagonal"))
    table = pl.DataFrame(
        [("heart_rate", "bpm", "", 25.0, 230.0), ("activity", "counts/min", "", 0.0, 2e4)],
        ["channel", "unit", "description", "valid_min", "valid_max"], orient="row",
    )  # fmt: skip
    wearable.write_channels(root / "wearable", table)
    rows = pl.concat(signal, how="diagonal") if signal else pl.DataFrame(schema=wearable.ROW_SCHEMA)
    wearable.write_shard(root / "wearable" / "0.parquet", rows)
    return root / "meds", root / "wearable"
