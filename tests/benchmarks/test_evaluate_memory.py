"""The memory of evaluate: the numbers are there and add up."""

import json

import numpy as np
import pytest

from ehrwear_jax.benchmarks import evaluate_memory


@pytest.mark.slow
def test_small(tmp_path, capsys):
    flags = [str(tmp_path / "run"), "--people=120,150", f"--json={tmp_path / 'found.json'}"]
    assert evaluate_memory.main(flags) == 0
    few, more = json.loads((tmp_path / "found.json").read_text())
    assert few["people"] == 120 and more["prediction_times"] > few["prediction_times"] > 120
    assert more["features_mb"] > few["features_mb"] > 0.01
    assert few["evaluate_seconds"] > few["features_seconds"] > 0
    # what is imported alone takes more than 100 MB, and 30 people more take little
    assert few["evaluate_peak_mb"] > 100 and more["evaluate_peak_mb"] < 1.3 * few["evaluate_peak_mb"]
    said = capsys.readouterr().out
    assert f"{more['evaluate_peak_mb'] / few['evaluate_peak_mb']:.2f}" in said.splitlines()[-1]


def test_the_slope_is_of_people_beyond_the_first_size():
    sizes = [{"people": 1000, "evaluate_peak_mb": 500.0}, {"people": 10_000, "evaluate_peak_mb": 635.0}]
    assert evaluate_memory.slope(*sizes) == pytest.approx(15.0)
    assert np.isnan(evaluate_memory.slope(sizes[0], sizes[0]))


def test_a_stage_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_memory, "command", lambda *_: ["false", "prepare"])
    with pytest.raises(RuntimeError, match="false prepare failed"):
        evaluate_memory.measure(tmp_path, 10)
