"""The bundles of the package are whole and small, and answer today what they answered when they were made."""

import bundle_people
import numpy as np
import polars as pl
import pytest

import ehrwear_jax as ew
from ehrwear_jax.inference import trained_model
from ehrwear_jax.runtime import checkpoint_manifest

MOST_BYTES = 2e6
# z0 to z3 at the last record, and the calibrated risk within 365 days, of the three people
Z = [[0.2147, -1.3418, 1.1491, 0.5842], [-0.0633, -1.1230, 1.3403, 0.5139], [0.9484, 0.0320, 0.0149, 1.0354]]
RISK = [0.44358, 0.22262, 0.3215]


@pytest.mark.parametrize("name", trained_model.shipped())
def test_it_is_whole_and_small(name):
    folder = trained_model.SHIPPED / name
    assert checkpoint_manifest.faults(folder) == []
    assert sum(p.stat().st_size for p in folder.iterdir()) < MOST_BYTES
    model = ew.load(name)
    assert model.card["limits"] and model.card["intended_use"] and model.card["metrics"] and model.card["cohort"]
    assert all({"lo", "hi", "value"} <= set(m) for m in model.card["metrics"]) and model.card_text.startswith("# ")


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
