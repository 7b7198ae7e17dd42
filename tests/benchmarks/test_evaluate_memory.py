"""The memory of evaluate: the numbers are there and add up."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ehrwear_jax.benchmarks import evaluate_memory


@pytest.mark.slow
def test_small(tmp_path, capsys):
    flags = [str(tmp_path / "run"), "--people=150,300", "--simulated=150", "--width=8", "--resamples=20"]
    assert evaluate_memory.main([*flags, "--max_trees=5", f"--json={tmp_path / 'found.json'}"]) == 0
    few, more = json.loads((tmp_path / "found.json").read_text())
    assert few["people"] == 150 and more["prediction_times"] == 2 * few["prediction_times"] > 300
    assert more["features_mb"] > few["features_mb"] > 0.01
    assert few["evaluate_seconds"] > few["features_seconds"] > 0
    assert few["processor_seconds"] > 1
    # what is imported alone takes more than 100 MB, and 150 people more take little
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
        evaluate_memory.measure(tmp_path / "10", 10, 10)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells the memory of processes")
def test_memory_is_that_of_a_process_and_those_that_it_starts():
    child = "import time; held = bytearray(b'1' * 80_000_000); time.sleep(4)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    peak, _ = evaluate_memory._run([sys.executable, "-c", parent])
    assert 80e6 < peak < 160e6
