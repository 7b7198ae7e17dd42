"""The bundles of the package are whole and small, and answer today what they answered when they were made."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

import ehrwear_jax as ew
from ehrwear_jax.data.formats import meds, wearable
from ehrwear_jax.inference import trained_model
from ehrwear_jax.runtime import checkpoint_manifest

MOST_BYTES = 2e6
START = datetime(2018, 1, 1)
# z0 to z3 at the last record, and the calibrated risk within 365 days, of people 1 to 3 below
Z = [[0.2147, -1.3418, 1.1491, 0.5842], [-0.0633, -1.1230, 1.3403, 0.5139], [0.9484, 0.0320, 0.0149, 1.0354]]
RISK = [0.44358, 0.22262, 0.3215]


def write_people(root):
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


@pytest.mark.parametrize("name", trained_model.shipped())
def test_it_is_whole_and_small(name):
    folder = trained_model.SHIPPED / name
    assert checkpoint_manifest.faults(folder) == []
    assert sum(p.stat().st_size for p in folder.iterdir()) < MOST_BYTES
    model = ew.load(name)
    assert model.card["limits"] and model.card["intended_use"] and model.card["metrics"] and model.card["cohort"]
    assert all({"lo", "hi", "value"} <= set(m) for m in model.card["metrics"]) and model.card_text.startswith("# ")


def test_tiny_answers_what_it_did(tmp_path):
    write_people(tmp_path)
    people = ew.load("tiny").read(tmp_path / "meds", tmp_path / "wearable")
    z, risk = people.embed(), people.predict("hospitalization_365d")
    np.testing.assert_allclose(z.select("z0", "z1", "z2", "z3").to_numpy(), Z, atol=2e-3)
    np.testing.assert_allclose(risk["calibrated_risk"], RISK, atol=1e-3)
    assert people.report.shares["known"] == 1.0 and not people.report.warnings


@pytest.mark.slow
def test_the_mimic_demo_does_not_crash_it(shared_data):
    people = ew.load("tiny").read(shared_data("mimic4_demo_meds"))
    report = people.report
    assert people.embed().height == report.people == 100
    assert report.codes["n_events"].sum() > 800_000 and report.shares["unknown"] > 0.5
    assert any("does not know" in w for w in report.warnings)
    stands_for = dict(report.codes.filter(pl.col("known_as") == "ancestor").select("code", "stands_for").iter_rows())
    assert stands_for["LAB//51222//g/dL"] == "LOINC//718-7", "by parent_codes of the demo's metadata"
