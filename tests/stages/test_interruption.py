"""The command killed or stopped in pretraining, and run again: the numbers of a run that was not interrupted."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import small_run
from conftest import REPO

pytestmark = pytest.mark.slow
STEPS = 60

CONFIG = """
import pathlib, small_run

def get_config(variant=""):
    config = small_run.one_row(small_run.small_config(pathlib.Path({root!r})), "ehr_only")
    config.train.update({{"steps": {steps}, "validate_every": 20, "checkpoint_every": 7}})
    return config
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("interruption")
    small_run.write_inputs(root)
    (root / "small.py").write_text(CONFIG.format(root=str(root), steps=STEPS))
    return root


def start(root, name, *flags):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests'}"}
    command = [sys.executable, "-m", "ehrwear_jax.main", f"--config={root}/small.py", f"--workdir={root / name}"]
    return subprocess.Popen([*command, *flags], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    return output


def metrics(root, name):
    """[(step, {metric: value})] without the timings."""
    path = root / name / "pretrain" / "all" / "ehr_only" / "metrics.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    found = [{k: v for k, v in x.items() if k not in ("steps_per_second", "waiting_share")} for x in lines]
    return sorted(found, key=lambda x: (x["step"], len(x)))


def results(root, name):
    return (root / name / "results.json").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(root):
    output = finish(start(root, "whole"))
    assert "report: " in output and "readmission  (n = 12, 4 events)" in output
    found = metrics(root, "whole")
    assert [x["step"] for x in found if "loss/total" in x] == list(range(1, STEPS + 1))
    return found, results(root, "whole")


def test_a_run_stopped_by_the_config_goes_on_to_the_same_numbers(root, uninterrupted):
    output = finish(start(root, "stopped", "--config.train.stop_after=24"))
    assert "pretrain: stopped where the config says, not finished" in output
    assert not (root / "stopped" / "embed").exists() and max(x["step"] for x in metrics(root, "stopped")) == 24
    output = finish(start(root, "stopped"))
    assert "prepare: done before, skipped" in output and "pretrain: resumes" in output
    assert (metrics(root, "stopped"), results(root, "stopped")) == uninterrupted


def test_a_run_killed_in_pretraining_goes_on_to_the_same_numbers(root, uninterrupted):
    path = root / "killed" / "pretrain" / "all" / "ehr_only" / "metrics.jsonl"
    process = start(root, "killed")
    while process.poll() is None and not (path.exists() and len(path.read_bytes().splitlines()) >= 20):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    reached = max(x["step"] for x in metrics(root, "killed"))
    assert 15 <= reached < STEPS and not (root / "killed" / "embed").exists()
    output = finish(start(root, "killed"))
    assert "prepare: done before, skipped" in output and "pretrain: resumes" in output
    assert (metrics(root, "killed"), results(root, "killed")) == uninterrupted
