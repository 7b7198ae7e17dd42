"""Processes agree; two of them pretrain as one does: the same batches, dropout and losses."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import small_run
from repo import REPO

from ehrwear_jax.runtime import distributed
from ehrwear_jax.training.throughput import TIMINGS

# What each process of a job of two does: agrees with the first, meets the other, and is left waiting by it.
MEETING = """
import sys
from ehrwear_jax.runtime import distributed
from ehrwear_jax.runtime.exit_codes import ProcessLost
distributed.initialize(wait_s=60)
me = distributed.process_index()
assert distributed.several() and distributed.is_first() == (me == 0)
assert [distributed.from_first("step", [me, step]) for step in (3, 4)] == [[0, 3], [0, 4]]
assert distributed.to_first("shards", [me, 5], timeout_s=60) == ([[0, 5], [1, 5]] if me == 0 else [])
assert [distributed.from_all("step", [me, step]) for step in (3, 4)] == [[[0, 3], [1, 3]], [[0, 4], [1, 4]]]
if me == 1:
    try:
        distributed.from_first("alone", timeout_s=0.5)
    except ProcessLost as error:
        print(error)
distributed.from_first("over", timeout_s=60)
"""


def test_two_processes_agree_and_one_that_is_not_answered_says_so():
    """On the coordination service of the installed JAX, which coordination_client finds by a private name."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPO), "EHRWEAR_COORDINATOR": f"localhost:{port}",
                        "EHRWEAR_NUM_PROCESSES": "2"}  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, "-c", MEETING], env=env | {"EHRWEAR_PROCESS_ID": str(i)},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]  # fmt: skip
    try:
        output = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [p.returncode for p in started] == [0, 0], output
    assert output[1][0].startswith("'alone': nothing from the first process within 0.5 s"), output


def test_a_coordination_service_that_jax_has_moved_is_said(monkeypatch):
    """The sentence that a developer reads when a new JAX renames what coordination_client relies on."""
    assert distributed.coordination_client() is None, "this process is alone"
    from jax._src import distributed as service

    for gone in (None, object(), type("Moved", (), {"client": object()})()):
        with monkeypatch.context() as patch:
            if gone is None:
                patch.setitem(sys.modules, "jax._src.distributed", None)
                patch.delattr("jax._src.distributed", raising=False)
            else:
                patch.setattr(service, "global_state", gone)
            with pytest.raises(RuntimeError, match="has moved the client of its coordination service .*look for it"):
                distributed.coordination_client()


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


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    small_run.write_inputs(tmp_path)
    small_run.prepare(tmp_path)
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
