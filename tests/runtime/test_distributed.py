"""Pretraining by two processes is pretraining by one: the same global batches, dropout and losses."""

import json
import os
import socket
import subprocess
import sys

import cohort
import numpy as np
import pytest
import small_run
from repo import REPO

from ehrwear_jax.training.throughput import TIMINGS

pytestmark = pytest.mark.slow


def run(folder, out, n_processes):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out.mkdir()
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests' / 'helpers'}"}
    script = str(REPO / "tests" / "helpers" / "two_process_pretraining.py")
    started = [
        subprocess.Popen(
            [sys.executable, script, str(folder), str(out), str(port), str(i), str(n_processes)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(n_processes)
    ]  # fmt: skip
    try:
        for process in started:
            output, _ = process.communicate(timeout=400)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()
    lines = [json.loads(x) for x in (out / "joint" / "metrics.jsonl").read_text().splitlines()]
    return lines, [np.load(out / f"z{i}.npy") for i in range(n_processes)]


def test_two_processes_give_what_one_gives(tmp_path):
    small_run.write_inputs(tmp_path)
    options = small_run.config_lib.prepare_config(small_run.small_config(tmp_path))
    cohort.prepare(tmp_path / "raw", options, tmp_path)
    one, (z,) = run(tmp_path, tmp_path / "one", 1)
    two, z_of = run(tmp_path, tmp_path / "two", 2)
    assert len(one) == len(two) == 6 + 2, "one line per step and validation, however many processes"
    assert len({x["loss/total"] for x in one if "loss/total" in x}) == 6
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - set(TIMINGS):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), (a["step"], name)
    for other in z_of:
        np.testing.assert_allclose(other, z, atol=1e-4)
    np.testing.assert_array_equal(*z_of)
    assert z.shape == (small_run.N_SUBJECTS, 8) and z.std() > 0.1
