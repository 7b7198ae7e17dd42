"""The benchmark runs and writes flat numbers; at its size in the slow tests, bounds on its work."""

import json

import pytest

from ehrwear_jax.benchmarks import evals as bench


def test_the_command_writes_flat_numbers(tmp_path):
    path = tmp_path / "bench.json"
    sizes = ["--patients=400", "--resamples=20", "--models=2", "--large-patients=2000", "--large-resamples=5"]
    bench.main([*sizes, f"--json={path}"])
    result = json.loads(path.read_text())
    assert all(isinstance(v, int | float) and v >= 0 for v in result.values())
    for name in (
        "auroc_auprc_one_model_seconds",
        "auroc_auprc_28_vectors_seconds",
        "c_index_seconds",
        "complete_evaluation_seconds",
        "large_c_index_seconds_cpu",
        "scikit_learn_loop_seconds_extrapolated",
    ):
        assert name in result
    # Every model in every cell of every task.
    assert result["complete_evaluation_records"] > 2 * (4 + 3) * 13


@pytest.mark.slow
def test_resampling_stays_within_its_budget_of_processor_time():
    """Processor seconds of both cores, twice what the goals allow: a neighbour costs cache too."""
    result = {}
    bench.resampling(bench.N_PATIENTS, bench.N_RESAMPLES, result)
    assert result["auroc_auprc_one_model_seconds_cpu"] < 2
    assert result["auroc_auprc_28_vectors_seconds_cpu"] < 12
    assert result["c_index_seconds_cpu"] < 8
