"""A small random cohort in the raw formats, for tests of what comes after them."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data import store
from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.data.prepare import dataset

CHANNELS = ("heart_rate", "activity")


def write_cohort(root, n_subjects=30, seed=0, wear_days=3, ehr_only=(), folds=None):
    """Writes MEDS and wearable tables; every fifth subject has no wearable, every seventh no EHR events.

    Args:
      ehr_only: further subjects without a wearable.
      folds: optional (subject_id, fold) for metadata/subject_folds.parquet.
    """
    rng = np.random.default_rng(seed)
    events, rows, splits = [], [], []
    for subject in range(1, n_subjects + 1):
        start = datetime(2015, 1, 1) + timedelta(days=int(rng.integers(0, 300)))
        splits.append((subject, ("train", "train", "train", "tuning", "held_out")[subject % 5]))
        birth = start - timedelta(days=int(rng.integers(7000, 25000)))
        events.append((subject, birth, "MEDS_BIRTH", None))
        if subject % 7:
            events.append((subject, None, f"GENDER//{'FM'[subject % 2]}", None))
            for _ in range(int(rng.integers(3, 25))):
                time = start + timedelta(minutes=int(rng.integers(1, 400 * 1440)))
                code = ("LAB//glucose", "LAB//hdl", "DX//I10", "DX//E11", "HOSPITAL_ADMISSION//INPATIENT")[
                    rng.integers(0, 5)
                ]
                value = float(np.round(rng.normal(100, 20), 1)) if code.startswith("LAB") else None
                events += [(subject, time, code, value)] * (1 + (rng.random() < 0.2))
            if subject % 11 == 0:
                events.append((subject, start + timedelta(days=402), "MEDS_DEATH", None))
            else:
                events.append((subject, start + timedelta(days=450), "FOLLOWUP_END", None))
        if subject % 5:
            begin = start + timedelta(days=int(rng.integers(0, 200)), minutes=int(rng.integers(0, 1440)))
            n = int(wear_days * 1440)
            for channel, level in zip(CHANNELS, (70.0, 20.0), strict=True):
                signal = np.maximum(rng.normal(level, 8.0, n), 0.0)
                signal[rng.random(n) < 0.05] = np.nan
                rows.append(
                    (
                        subject,
                        begin,
                        1 / 60,
                        channel,
                        signal.astype(np.float32),
                        "bpm" if channel == "heart_rate" else "counts/min",
                        "watch",
                    )
                )
    rows = [row for row in rows if row[0] not in ehr_only]
    frame = pl.DataFrame(
        events,
        {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32},
        orient="row",
    )
    names = sorted(set(frame["code"]))
    codes = pl.DataFrame(
        {"code": names, "description": "", "parent_codes": [["DX"] if c.startswith("DX") else None for c in names]},
        {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)},
    )
    split_table = pl.DataFrame(splits, ["subject_id", "split"], orient="row")
    metadata = meds.Metadata("test cohort", "1", codes, split_table, folds=folds)
    meds.write_dataset(root, frame, metadata, subjects_per_shard=12)
    channels = pl.DataFrame(
        {
            "channel": list(CHANNELS),
            "unit": ["bpm", "counts/min"],
            "description": ["", ""],
            "valid_min": [25.0, 0.0],
            "valid_max": [230.0, 1e5],
        }
    )
    (root / "wearable").mkdir(parents=True, exist_ok=True)
    wearable.write_channels(root / "wearable", channels)
    table = pl.DataFrame(
        rows,
        {
            "subject_id": pl.Int64,
            "start_time": pl.Datetime("us"),
            "sample_rate_hz": pl.Float64,
            "channel": pl.String,
            "values": pl.List(pl.Float32),
            "unit": pl.String,
            "device": pl.String,
        },
        orient="row",
    )
    ids = table["subject_id"].unique(maintain_order=True)
    for i, part in enumerate((ids[:10], ids[10:])):
        wearable.write_shard(
            root / "wearable" / f"{i}.parquet", table.filter(pl.col("subject_id").is_in(part.to_list()))
        )
    return root


def write_labels(folder, n_subjects=30, seed=0):
    """Label tables for everyone, two prediction times each: readmission (binary) and relapse (survival).

    Both outcomes occur in every split. They are drawn at random: nothing can be learnt from them.
    """
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(1, n_subjects + 1), 2)
    day = np.where(np.arange(len(subject)) % 2, 300, 500) + rng.integers(0, 60, len(subject))
    index = pl.DataFrame({"subject_id": subject, "day": day}).select(
        "subject_id", prediction_time=pl.lit(datetime(2015, 1, 1)) + pl.duration(days="day")
    )
    index = index.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    binary = index.with_columns(boolean_value=pl.Series((subject // 5 + np.arange(len(subject))) % 3 == 0))
    time = pl.Series(np.round(rng.exponential(200.0, len(subject)) + 1, 1))
    survival = index.with_columns(time_to_event_days=time, event_observed=pl.Series(np.arange(len(subject)) % 4 != 1))
    folder.mkdir(parents=True, exist_ok=True)
    meds.write_labels(folder / "readmission.parquet", binary)
    meds.write_labels(folder / "relapse.parquet", survival)
    return {"readmission": meds.read_labels(folder / "readmission.parquet"), "relapse": survival}


def prepare_cohort(root, pool=None, **options):
    """Tables, records and a fit of a written cohort: root/tables, root/records, root/fit/all; returns root.

    pool: workers.Pool.
    """
    defaults = {"channels": CHANNELS, "log_channels": ("activity",), "min_subjects": 2, "min_values": 10}
    return prepare(root, PrepareConfig(**defaults | {"value_bins": 4, "step_minutes": 30} | options), pool=pool)


def prepare(root, config, out=None, codes=True, pool=None):
    """All of prepare on root/meds and root/wearable (where that is), below out (else root), which is returned."""
    out = root if out is None else out
    worn, described = root / "wearable", meds.read_codes(root / "meds") if codes else None
    dataset.prepare_tables(root / "meds", worn if worn.exists() else None, out / "tables", config, pool=pool)
    dataset.prepare_records(out / "tables", described, out / "records", config, pool=pool)
    dataset.fit_split(out / "tables", out / "records", out / "fit" / "all", config, pool=pool)
    return out


def open_store(root, split=None, **options):
    """The records that `prepare` wrote below root."""
    return store.RecordStore(root / "records", root / "fit" / "all", split, **options)
