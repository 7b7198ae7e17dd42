"""Writes the events of a few people, given in days, as a MEDS dataset."""

from datetime import datetime, timedelta

import polars as pl

from ehrwear_jax.data.formats import meds

T0 = datetime(2016, 1, 1)
ADMIT, LEAVE, END = "HOSPITAL_ADMISSION//INPATIENT", "HOSPITAL_DISCHARGE", "FOLLOWUP_END"


def day(x):
    return T0 + timedelta(days=x)


def write(root, people, subjects_per_shard=3):
    """people: {subject_id: [(day, code)]}; a birth and a static event are added."""
    rows = []
    for subject_id, events in people.items():
        rows.append((subject_id, None, "GENDER//F", None))
        rows.append((subject_id, day(-20_000), meds.BIRTH_CODE, None))
        rows += [(subject_id, day(when), code, None) for when, code in events]
    schema = {k: meds.EVENT_SCHEMA[k] for k in ("subject_id", "time", "code", "numeric_value")}
    events = pl.DataFrame(rows, schema=schema, orient="row")
    splits = pl.DataFrame({"subject_id": list(people), "split": ["train"] * len(people)})
    codes = events.select("code").unique().with_columns(description=pl.lit("x"))
    meds.write_dataset(root, events, meds.Metadata("t", "1", codes, splits), subjects_per_shard=subjects_per_shard)
    return root / "meds"


def make_index(rows):
    schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}
    return pl.DataFrame([(s, day(d)) for s, d in rows], schema=schema, orient="row")
