"""The bundles of the package are whole and small, and answer today what they answered when they were made."""

import bundle_people
import numpy as np
import polars as pl
import pytest

import ehrwear_jax as ew
from ehrwear_jax.data.sources import nhanes
from ehrwear_jax.evals import concordance
from ehrwear_jax.inference import trained_model
from ehrwear_jax.runtime import checkpoint_manifest

MOST_BYTES, MOST_IN_ALL = 5e6, 16e6
# z0 to z3 at the last record, and the calibrated risk within 365 days, of the three people
Z = [[0.2147, -1.3418, 1.1491, 0.5842], [-0.0633, -1.1230, 1.3403, 0.5139], [0.9484, 0.0320, 0.0149, 1.0354]]
RISK_ICU = [0.00498, 0.82473, 0.00877, 0.89541]
RISK = [0.44358, 0.22262, 0.3215]


@pytest.mark.parametrize("name", trained_model.shipped())
def test_it_is_whole_and_small(name):
    folder = trained_model.SHIPPED / name
    assert checkpoint_manifest.faults(folder) == []
    assert sum(p.stat().st_size for p in folder.iterdir()) < MOST_BYTES
    model = ew.load(name)
    assert model.card["limits"] and model.card["intended_use"] and model.card["metrics"] and model.card["cohort"]
    assert all({"lo", "hi", "value"} <= set(m) for m in model.card["metrics"]) and model.card_text.startswith("# ")


def test_all_of_them_are_small_and_name_the_terms_of_their_data():
    assert set(trained_model.shipped()) == {"tiny", "nhanes-activity", "physionet2012"}
    assert sum(p.stat().st_size for p in trained_model.SHIPPED.rglob("*") if p.is_file()) < MOST_IN_ALL
    assert "public use" in ew.load("nhanes-activity").card_text
    assert "Open Data Commons Attribution License" in ew.load("physionet2012").card_text


# what is measured of somebody on the ward, and what is otherwise of somebody who does badly
MEASURED = {"SCORE//glasgow_coma": 15.0, "LAB//creatinine": 0.9, "LAB//urea_nitrogen": 14.0, "LAB//potassium": 4.1,
            "LAB//sodium": 139.0, "LAB//glucose": 120.0, "LAB//white_cells": 9.0, "LAB//hematocrit": 33.0,
            "LAB//platelets": 210.0, "LAB//bicarbonate": 25.0, "OUTPUT//urine": 120.0}  # fmt: skip
WORSE = {"SCORE//glasgow_coma": 4.0, "LAB//creatinine": 3.5, "LAB//urea_nitrogen": 90.0, "LAB//bicarbonate": 14.0,
         "LAB//white_cells": 24.0, "LAB//platelets": 60.0, "OUTPUT//urine": 10.0}  # fmt: skip


def icu_stay(worse: bool, age: int):
    """Rows of two days on the ward, every six hours."""
    rows = [{"time": f"{2010 - age}-01-01T00:00", "code": "MEDS_BIRTH"}]
    rows += [{"time": "2010-01-01T00:00", "code": code} for code in ("GENDER//M", "ICU_ADMISSION//medical")]
    for hour in range(2, 48, 6):
        at = f"2010-01-0{1 + hour // 24}T{hour % 24:02d}:00"
        found = MEASURED | (WORSE if worse else {})
        rows += [{"time": at, "code": code, "numeric_value": value} for code, value in found.items()]
    return rows


@pytest.mark.slow
def test_physionet2012_fears_for_who_is_worse_and_older():
    model, risk = ew.load("physionet2012"), {}
    for worse, age in ((False, 45), (True, 45), (False, 85), (True, 85)):
        state = model.state()
        state.append(events=icu_stay(worse, age))
        found = state.predict("in_hospital_death_at_48h", "2010-01-03T00:00")
        risk[worse, age] = found["predicted_boolean_probability"]
    assert risk[False, 45] < risk[True, 45] < risk[True, 85] and risk[False, 45] < risk[False, 85] < risk[True, 85]
    np.testing.assert_allclose(list(risk.values()), RISK_ICU, atol=2e-3)


@pytest.mark.long
def test_nhanes_activity_answers_as_its_run_did(shared_data, tmp_path):
    """People of the survey's second cycle, from its files: risks as reported, by half precision's rounding."""
    nhanes.build(shared_data("nhanes_linked"), tmp_path / "raw", progress=False)
    labels = pl.read_parquet(tmp_path / "raw" / "labels" / "all_cause_mortality.parquet")
    sites = pl.read_parquet(tmp_path / "raw" / "meds" / "metadata" / "subject_splits.parquet")
    second = labels.join(sites.filter(pl.col("cycle") == "2005-2006"), on="subject_id", how="semi")
    people = ew.load("nhanes-activity").read(tmp_path / "raw" / "meds", tmp_path / "raw" / "wearable")
    risk = people.predict("all_cause_mortality", second.select("subject_id", "prediction_time"))
    both = risk.join(second, on=["subject_id", "prediction_time"])
    columns = ("time_to_event_days", "event_observed", "predicted_log_hazard")
    c_index = concordance.concordance_index(*(both[c].to_numpy() for c in columns))
    assert both.height == 2941 and c_index == pytest.approx(0.8228, abs=5e-4)
    assert people.report.shares["known"] == 1.0


def test_tiny_answers_what_it_did(tmp_path):
    bundle_people.write(tmp_path)
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
