"""Three people who can be asked of the bundle that comes with the package; made by hand, so that they never change."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl

from ehrwear_jax.data.formats import meds, wearable

START = datetime(2018, 1, 1)


def write(root):
    """Three people: codes of the tiny bundle in other orders and numbers; the first two have worn a wristband."""
    events, rows = [], []
    for person in (1, 2, 3):
        events += [
            (person, START - timedelta(days=9000 * person), "MEDS_BIRTH", None),
            (person, None, "GENDER//F", None),
        ]
        for day in range(0, 240, 20 * person):
            events.append((person, START + timedelta(days=day, hours=9), "LOINC//2345-7", 90.0 + day / person))
            events.append((person, START + timedelta(days=day, hours=9), "LOINC//8867-4", 60.0 + 7 * person))
        diagnosis = ("ICD10//E11.9", "ICD10//I50.9", "ICD10//N18.3")[person - 1]
        events.append((person, START + timedelta(days=50, hours=12), diagnosis, None))
        for channel, level, unit in (("heart_rate", 70.0, "bpm"), ("activity", 30.0, "counts/min"))[: 2 * (person < 3)]:
            minute = np.arange(2 * 1440)
            values = level * (1 + 0.3 * np.sin(2 * np.pi * minute / 1440) + 0.05 * np.cos(minute / (3 + person)))
            begin = START + timedelta(days=230)
            rows.append((person, begin, 1 / 60, channel, values.astype(np.float32).tolist(), unit, "band"))
    kinds = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    (root / "meds" / "data").mkdir(parents=True)
    meds.write_shard(
        root / "meds" / "data" / "0.parquet",
        pl.DataFrame(events, kinds, orient="row").sort("subject_id", "time", maintain_order=True),
    )
    table = pl.DataFrame(
        [("heart_rate", "bpm", "", 25.0, 230.0), ("activity", "counts/min", "", 0.0, 1e5)],
        ["channel", "unit", "description", "valid_min", "valid_max"], orient="row",
    )  # fmt: skip
    wearable.write_channels(root / "wearable", table)
    wearable.write_shard(root / "wearable" / "0.parquet", pl.DataFrame(rows, wearable.ROW_SCHEMA, orient="row"))
