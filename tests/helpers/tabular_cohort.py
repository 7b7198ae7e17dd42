"""Simulates small tables of events and windows, of which tabular features are computed."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl

DAY = timedelta(days=1)
START = datetime(2020, 1, 1)
CODES = ("LAB//a", "LAB//b", "DX//c", "DX//rare", "MEDS_DEATH")
ABOVE = {"DX//c": ("DX",), "DX//rare": ("DX",)}  # ancestors of codes
CHANNELS = ("heart_rate", "activity")
PARTS = ("mean", "std", "min", "max", "coverage")


def cohort(seed, n_subjects=8):
    """Small tables with ties, missing values, static rows, people without events or windows."""
    rng = np.random.default_rng(seed)
    events, windows, subjects, index = [], [], [], []
    for subject in range(1, n_subjects + 1):
        birth = START - int(rng.integers(7000, 30000)) * DAY
        subjects.append((subject, None if subject == 3 else birth))
        if subject != 4:
            events += [(subject, birth, "MEDS_BIRTH", None), (subject, None, "GENDER//F", None)]
            if subject % 2:
                events.append((subject, None, "HEIGHT", 150.0 + subject))
            for _ in range(int(rng.integers(1, 30))):
                # Half-day steps: several events at one time, and times on the edge of a range.
                time = START + int(rng.integers(0, 1600)) * DAY / 2
                code = CODES[rng.choice(5, p=[0.4, 0.3, 0.2, 0.05, 0.05])]
                value = [None, np.nan, *rng.normal(100, 20, 6)][rng.integers(0, 8)]
                events.append((subject, time, code, value if code.startswith("LAB") else None))
        if subject != 5:
            first = int(rng.integers(0, 3000))
            for step in range(int(rng.integers(1, 150))):
                if rng.random() < 0.1:
                    continue
                end, values = START + (first + step) * DAY / 4, []
                for level in (70.0, 5.0):
                    coverage = float(rng.choice([0.0, 0.5, 1.0]))
                    mean, std = rng.normal(level, 3), rng.exponential(2)
                    present = (mean, std, mean - 3 * std, mean + 3 * std)
                    values += [*(present if coverage else (None,) * 4), coverage]
                entropy = None if rng.random() < 0.3 else rng.random()
                windows.append((subject, end, *values, entropy))
        for _ in range(int(rng.integers(1, 4))):
            index.append((subject, START + int(rng.integers(0, 1700)) * DAY / 2))
    index = list(dict.fromkeys(index))
    rng.shuffle(index)
    time = pl.Datetime("us")
    events_schema = {"subject_id": pl.Int64, "time": time, "code": pl.String}
    parts = {f"{c}__{p}": pl.Float32 for c in CHANNELS for p in PARTS} | {"activity__entropy": pl.Float32}
    return (
        pl.DataFrame(events, events_schema | {"numeric_value": pl.Float32}, orient="row"),
        pl.DataFrame(subjects, {"subject_id": pl.Int64, "birth_time": time}, orient="row"),
        pl.DataFrame(windows, {"subject_id": pl.Int64, "time": time} | parts, orient="row"),
        pl.DataFrame(index, {"subject_id": pl.Int64, "prediction_time": time}, orient="row"),
    )
