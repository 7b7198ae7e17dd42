"""Units of wearable channels: known values, inverses, and what prepare does with a unit other than the declared one."""

import itertools
import logging

import cohort
import numpy as np
import polars as pl
import pytest

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import units, wearable, wearable_checks
from ehrwear_jax.data.prepare import dataset


@pytest.mark.parametrize(
    ("value", "unit", "target", "want"),
    [
        (1.2, "Hz", "bpm", 72.0),
        (72.0, "1/min", "bpm", 72.0),
        (250.0, "mg", "g", 0.25),
        (9.80665, "m/s2", "mg", 1000.0),
        (98.6, "degF", "degC", 37.0),
        (310.15, "K", "degC", 37.0),
        (37.0, "degC", "degF", 98.6),
        (0.85, "s", "ms", 850.0),
        (97.0, "%", "1", 0.97),
        (1.5, "mV", "uV", 1500.0),
        (2.0, "counts/s", "counts/min", 120.0),
    ],
)
def test_known_values(value, unit, target, want):
    factor, offset = units.conversion(unit, target)
    assert value * factor + offset == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("known", [units.UNITS, units.LABORATORY], ids=["channels", "laboratory"])
def test_every_conversion_has_its_inverse_and_none_crosses_quantities(known):
    for a, b in itertools.product(known, repeat=2):
        there, back = units.conversion(a, b, known), units.conversion(b, a, known)
        if known[a][0] != known[b][0]:
            assert there is None and back is None
        else:
            assert there[0] * back[0] == pytest.approx(1.0)
            assert back[0] * there[1] + back[1] == pytest.approx(0.0, abs=1e-6)
    assert units.conversion(None, "bpm") is None and units.conversion("bpm", "furlongs") is None


@pytest.mark.parametrize(
    ("texts", "unit"),
    [
        (("mg/dL", "mg/dl", "MG/DL", " mg / dL", "mg%"), "mg/dL"),
        (("K/uL", "10*3/uL", "10^3/uL", "x10E3/uL", "10*3{cells}/uL", "thou/\u00b5L"), "10*3/uL"),
        (("10*9/L", "10^9/L", "x10e9/L"), "10*9/L"),
        (("umol/L", "\u00b5mol/L", "\u03bcmol/L"), "umol/L"),
        (("mIU/L", "m[IU]/L", "mU/L"), "m[IU]/L"),
        (("uIU/mL", "uU/ML", "\u00b5IU/mL"), "u[IU]/mL"),
        (("U/L", "IU/L", "[IU]/L"), "U/L"),
        (("mL/min/{1.73_m2}", "mL/min/1.73 m2", "ml/min/1.73m\u00b2"), "mL/min/{1.73_m2}"),
        (("mm[Hg]", "mmHg", "mm Hg"), "mm[Hg]"),
        (("mg/g", "mg/g{creat}"), "mg/g"),
        (("UNK", "furlong", "mol", "SERUM", "1000"), None),
    ],
)
def test_units_of_laboratories_are_known_in_their_spellings(texts, unit):
    assert {text: units.laboratory_unit(text) for text in texts} == dict.fromkeys(texts, unit)
    assert all(units.laboratory_unit(known) == known for known in units.LABORATORY)


@pytest.mark.parametrize(
    ("value", "unit", "target", "want"),
    [
        (5.0, "g/dL", "g/L", 50.0), (3.0, "ng/mL", "ug/L", 3.0), (250.0, "pg/mL", "ng/dL", 25.0),
        (7.2, "10*3/uL", "10*9/L", 7.2), (500.0, "/uL", "10*3/uL", 0.5), (2.0, "ukat/L", "U/L", 120.0),
        (4.0, "u[IU]/mL", "m[IU]/L", 4.0), (6.0, "kPa", "mm[Hg]", 45.0037), (0.45, "L/L", "%", 45.0),
        (100.4, "[degF]", "Cel", 38.0),
    ],
)  # fmt: skip
def test_known_laboratory_values(value, unit, target, want):
    factor, offset = units.conversion(unit, target, units.LABORATORY)
    assert value * factor + offset == pytest.approx(want, rel=1e-5)


def test_recordings_in_another_unit_are_converted_once_said_and_others_set_aside(tmp_path, caplog):
    root = cohort.write_cohort(tmp_path / "raw", 12, wear_days=1)
    config = PrepareConfig(channels=cohort.CHANNELS, min_subjects=2, step_minutes=30)
    dataset.prepare_tables(root / "meds", root / "wearable", tmp_path / "clean", config)
    for shard in wearable.list_shards(root / "wearable"):
        rows = pl.read_parquet(shard)
        heart = pl.col("channel") == "heart_rate"
        rows = rows.with_columns(
            values=pl.when(heart).then(pl.col("values").list.eval(pl.element() / 60)).otherwise("values"),
            unit=pl.when(heart).then(pl.lit("Hz")).otherwise("unit"),
        )
        odd = rows[-1:].with_columns(unit=pl.lit("steps"))
        pl.concat([rows, odd]).write_parquet(shard)
    wearable_checks._log_conversion.cache_clear()
    with caplog.at_level(logging.WARNING):
        counts = dataset.prepare_tables(root / "meds", root / "wearable", tmp_path / "other", config)
    said = [r.getMessage() for r in caplog.records if "converted" in r.getMessage()]
    assert said == ["  channel heart_rate: recordings in 'Hz' are converted to 'bpm', its declared unit"]
    for path in sorted((tmp_path / "clean" / "window_values").glob("*.npy")):
        np.testing.assert_allclose(np.load(path), np.load(tmp_path / "other" / "window_values" / path.name), rtol=1e-6)
    (aside,) = [c for c in counts if c["step"] == "wearable rows quarantined"]
    assert aside["dropped"] == 1 and "'steps' is not 'counts/min'" in aside["reason"]


def test_a_writer_does_not_pass_another_unit_off_as_the_declared_one(tmp_path):
    root = cohort.write_cohort(tmp_path, 3, wear_days=1)
    channels = wearable.read_channels(root / "wearable")
    rows = wearable.read_shard(wearable.list_shards(root / "wearable")[0]).with_columns(unit=pl.lit("Hz"))
    with pytest.raises(ValueError, match="column 'unit': 'Hz' is not 'bpm'"):
        wearable_checks.validate_rows(rows, "rows", channels)
