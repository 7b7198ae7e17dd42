"""Raw recordings of Axivity loggers, against the arrays that their reader's own project expects of a real file."""

import shutil
from datetime import datetime, timedelta

import numpy as np
import pytest
from csv_exports import assert_reconciled, imported, refused

from ehrwear_jax.data.sources.csv_import import axivity

pytest.importorskip("skdh", reason="scikit-digital-health is not installed (extra axivity)")
PRESET = "--preset=axivity"


@pytest.fixture(scope="module")
def file(shared_data):
    return shared_data("signals/ax3_sample.cwa")


@pytest.fixture(scope="module")
def expected(shared_data):
    return np.load(shared_data("signals/ax3_data.npz"))


def test_three_axes_stand_where_the_device_put_them(file, expected, tmp_path, monkeypatch):
    """In blocks of samples that are no parts of the recording: nothing is lost between them.

    The clock of the device drifts (by 17 samples in five minutes, here), and a stretch has one rate: some steps get two
    samples or none.
    """
    monkeypatch.setattr(axivity, "SAMPLES_AT_ONCE", 9_001)
    shutil.copy(file, tmp_path / "1000017_90001_0_0.cwa")
    rows = imported(tmp_path / "1000017_90001_0_0.cwa", tmp_path / "out", PRESET)
    assert set(rows["subject_id"]) == {1000017} and set(rows["unit"]) == {"g"}
    start = datetime(1970, 1, 1) + timedelta(seconds=float(expected["time"][0]))
    for k, axis in enumerate("xyz"):
        [row] = rows.filter(channel=f"acceleration_{axis}").iter_rows(named=True)
        assert abs(row["start_time"] - start) < timedelta(milliseconds=6)
        assert row["sample_rate_hz"] == pytest.approx(1 / np.diff(expected["time"]).mean(), rel=1e-4)
        found, step_s = np.array(row["values"], float), 1 / row["sample_rate_hz"]
        assert len(found) == len(expected["time"]) and np.isnan(found).mean() < 0.003
        at_s = (row["start_time"] - datetime(1970, 1, 1)).total_seconds() + step_s * np.arange(len(found))
        after = np.clip(np.searchsorted(expected["time"], at_s), 1, len(at_s) - 1)
        nearest = after - (at_s - expected["time"][after - 1] < expected["time"][after] - at_s)
        same = np.abs(found - expected["accel"][nearest, k]) < 1e-6
        assert same.mean() > 0.99, same.mean()
    assert_reconciled(tmp_path / "out")


def test_the_clock_at_the_place_gets_the_zones_offset(file, expected, tmp_path):
    rows = imported(file, tmp_path / "out", PRESET, "--subject=7", "--timezone=Europe/London")
    summer = bool(3 < datetime.fromtimestamp(float(expected["time"][0])).month < 11)
    assert set(rows["utc_offset_minutes"]) == {60 if summer else 0}


def test_whose_it_is_and_what_it_is_must_be_known(file, tmp_path, capsys):
    assert "does not say whose recording it is; give --subject=ID" in refused(capsys, file, tmp_path / "out", PRESET)
    (tmp_path / "other.cwa").write_bytes(b"no packet")
    assert "holds no .cwa file" in refused(capsys, tmp_path / "other.cwa", tmp_path / "out", PRESET, "--subject=1")
    cut = tmp_path / "cut.cwa"
    cut.write_bytes(b"MD" + bytes(40))
    assert "scikit-digital-health cannot read it" in refused(capsys, cut, tmp_path / "out", PRESET, "--subject=1")
