"""Intervals cover, p-values are uniform under the null, discoveries are false rarely: in simulation."""

import json

import numpy as np
import pytest

from ehrwear_jax.evals import ci_coverage


def bounds(n_studies, rate, spread=3.5):
    """Range of a binomial share around `rate`."""
    half = spread * np.sqrt(rate * (1 - rate) / n_studies)
    return rate - half, rate + half


def check(result, lo, hi):
    intervals = {k: v for k, v in result.items() if k.startswith("coverage_") and "percentile" not in k}
    assert len(intervals) == 10
    for name, value in intervals.items():
        # A true error of zero can be missed on one side only: at least 97.5% there.
        assert lo <= value <= (1 if name.endswith("_calibrated") else hi), name
    assert result["null_p_ks_p"] > 1e-3
    # Six of eight models are truly equal: discoveries are false in at most 0.05 * 6 / 8.
    assert result["false_discovery_rate"] <= bounds(result["studies"], 0.05 * 6 / 8)[1]
    assert result["any_false_uncorrected"] > result["false_discovery_rate"]
    assert result["power_of_family"] > 0.3
    # What the correction is for: the percentile interval of the calibration error does not cover.
    assert result["coverage_ece_percentile_calibrated"] < 0.5


@pytest.mark.slow
def test_coverage_in_a_small_simulation():
    result = ci_coverage.run(150, 300, n_patients=500)
    check(result, bounds(150, 0.95)[0] - 0.01, 1.0)


@pytest.mark.long
def test_coverage_in_a_thousand_studies():
    check(ci_coverage.run(1000, 1000), 0.92, 0.98)


def test_truth_equals_what_a_large_independent_population_shows():
    expected = ci_coverage.truth(20_000)
    again = ci_coverage.truth(20_000, seed=5)
    np.testing.assert_allclose(expected.auroc_M, again.auroc_M, atol=0.015)
    np.testing.assert_allclose(expected.auroc_M[1:7], expected.auroc_M[0], atol=0.015)
    assert (expected.auroc_M[7:] < expected.auroc_M[0] - 0.03).all()
    edges = np.linspace(0, 1, 11)
    assert expected.ece("calibrated", edges) == 0
    assert 0.04 < expected.ece("distorted", edges) < 0.1


def test_the_command_writes_flat_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ci_coverage, "truth", lambda: ci_coverage.Truth(np.full(9, 0.7), np.full(9, 0.4), 0.7, {}, {}))
    monkeypatch.setattr(ci_coverage.Truth, "ece", lambda self, name, edges: 0.0)
    path = tmp_path / "coverage.json"
    ci_coverage.main(["--studies=2", "--resamples=20", "--patients=60", f"--json={path}"])
    result = json.loads(path.read_text())
    assert all(isinstance(v, int | float) for v in result.values())
    assert "coverage_auroc" in capsys.readouterr().out
