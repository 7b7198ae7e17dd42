"""The benchmark's cohorts are what it says they are, and its numbers are those of the batches."""

import json

import numpy as np
import pytest

from ehrwear_jax.benchmarks import data_examples


@pytest.mark.parametrize("kind", data_examples.COHORTS)
def test_a_run_counts_what_its_batches_hold(tmp_path, kind):
    folder = tmp_path / kind
    data_examples.write_cohort(folder, kind, 12)
    people = data_examples.open_examples(folder, kind).people
    assert len(people) == 12 and people.steps == 360 and len(people.channels) == 3
    for i in range(12):
        p = people[i]
        assert len(p.event_time_K) == people.n_events[i] and len(p.window_end_M) == people.n_windows[i]
        assert np.all(np.diff(p.time_N) >= 0) and np.isnan(p.window_MxLxC).any() == bool(len(p.window_end_M))
    got = data_examples.run(folder, kind, 1, batch_size=2, patient_days=1.0)
    assert all(np.isfinite(v) and v > 0 for v in got.values())
    np.testing.assert_allclose(got["windows_per_second"] / got["tokens_per_second"], got["window_share"], rtol=1e-9)
    assert got["window_share"] <= 0.1 and got["filled"] > 0.9 if kind == "ehr" else got["window_share"] > 0.5


def test_a_run_apart_prints_its_numbers(tmp_path, capsys):
    data_examples.write_cohort(tmp_path / "ehr", "ehr", 6)
    data_examples.main(["--run", json.dumps([str(tmp_path / "ehr"), "ehr", 1, {"tokens": 256, "context_tokens": 256}])])
    got = json.loads(capsys.readouterr().out)
    assert 0.9 < got["filled"] <= 1.0 and got["peak_mib"] > 50
