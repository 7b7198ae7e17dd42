"""The run at scale: the numbers are there and add up."""

import pytest

from ehrwear_jax.benchmarks import data_scale as bench_scale


@pytest.mark.slow
def test_small(tmp_path):
    found = bench_scale.measure(tmp_path / "run", subjects=30, days=20)
    assert found["minutes_simulated_mb"] == pytest.approx(30 * 20 * 1440 * 3 * 4 / 1e6)
    assert found["patient_days_per_s"] == pytest.approx(600 / found["prepare_seconds"])
    assert found["peak_rss_mb"] >= found["simulate_peak_rss_mb"] > 50
    assert min(found["raw_mb"], found["written_mb"]) > 1
    with pytest.raises(ValueError, match="exists"):
        bench_scale.measure(tmp_path / "run", subjects=30, days=20)
