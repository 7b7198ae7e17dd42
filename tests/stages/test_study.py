"""A study of several models and seeds as one command: side by side, killed, gone on with, and with a further model."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import jax
import kill_and_resume
import pytest
import small_run

from ehrwear_jax.runtime import exit_codes, files
from ehrwear_jax.runtime.checkpoint import read_newest
from ehrwear_jax.training.throughput import TIMINGS

CONFIG = """
import pathlib, small_run

def get_config(variant=""):
    config = small_run.small_config(pathlib.Path({root!r}))
    for name in set(config.models) - {{"ehr_only", "age_sex"}}:
        del config.models[name]
    config.evaluate.reference_model = "ehr_only"
    if variant:
        further = {{"weights": {{"ehr_history": (0.0, 0.0, 0)}}}}
        config.models.no_history = {{"family": "joint", "modalities": ("ehr",), **further}}
    config.seeds = (0, 1)
    config.train.update({{"steps": 12, "checkpoint_every": 3}})
    return config
"""
NETWORKS = ["ehr_only/all-seed0", "ehr_only/all-seed1"]


def study(root, name, *flags, variant=""):
    return kill_and_resume.start(root, name, *flags, stages="study", config=f"small.py{variant}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Inputs, a config and, below whole/, a study whose networks were trained one after the other."""
    root = tmp_path_factory.mktemp("study")
    small_run.write_inputs(root)
    (root / "small.py").write_text(CONFIG.format(root=str(root)))
    output, code = kill_and_resume.finish(study(root, "whole"))
    assert code == 0, output
    return root


def trained(workdir):
    """{network: (SHA-256 of its parameters' bytes, its losses)}."""
    found = {}
    for folder in (workdir / "models").glob("*/*-seed*"):
        about = files.read_json(folder / "artifact.json")
        assert about["done"], folder
        parts, _ = read_newest(folder / "checkpoints")
        bits = hashlib.sha256(b"".join(x.tobytes() for x in jax.tree.leaves(parts["params"]))).hexdigest()
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = sorted((x["step"], sorted((k, v) for k, v in x.items() if k not in TIMINGS)) for x in lines)
        found[about["name"]] = (bits, losses)
    return found


def numbers(workdir):
    return (workdir / "report" / "results.json").read_bytes()


def is_same(root, name):
    return trained(root / name) == trained(root / "whole") and numbers(root / name) == numbers(root / "whole")


@pytest.mark.slow
def test_side_by_side_gives_the_same_networks_bit_for_bit(root):
    output, code = kill_and_resume.finish(study(root, "beside", "--processes=2"))
    assert code == 0, output
    assert sorted(trained(root / "beside")) == NETWORKS and is_same(root, "beside")
    assert "pretrain: 2 of 2 networks in" in output and "embed: 2 of 2 networks in" in output
    for log in (root / "beside" / "models").glob("*/*/log.txt"):
        assert log.read_text().count("goodput") == 1
    output, code = kill_and_resume.finish(study(root, "beside", "--processes=2"))
    assert code == 0 and "pretrain: done before, skipped" in output and "report: done before, skipped" in output


@pytest.mark.slow
def test_a_further_model_trains_only_itself(root):
    shutil.copytree(root / "whole", root / "further", symlinks=True)
    before = small_run.written(root / "further" / "models")
    output, code = kill_and_resume.finish(study(root, "further", "--processes=2", variant=":further"))
    assert code == 0, output
    after = small_run.written(root / "further" / "models")
    assert {k: after[k] for k in before} == before
    assert {k.split("/")[0] for k in after.keys() - before.keys()} == {"no_history"}
    assert sorted(trained(root / "further")) == [*NETWORKS, "no_history/all-seed0", "no_history/all-seed1"]


def alive(workdir):
    """Process ids of the workers of a workdir."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(x.split()[0]) for x in found.splitlines() if f"ehrwear_jax.stages.worker {workdir} " in x]


@pytest.mark.long  # many starts
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_a_study_that_is_ended_at_random_moments_gives_the_same_page(root, number):
    """The study, and one of its networks' processes, at random moments until there is a page."""
    rng, name = random.Random(number.name), f"ended-{number.name}"
    ended = 0
    for _ in range(30):
        process = study(root, name, "--processes=2")
        until = time.monotonic() + (rng.uniform(5, 40) if ended < 3 else 600)
        killed_worker = False
        while process.poll() is None and time.monotonic() < until:
            if (pids := alive(root / name)) and not killed_worker and rng.random() < 0.02:
                os.kill(rng.choice(pids), number)
                killed_worker = True
            time.sleep(0.1)
        if process.poll() is None:
            process.send_signal(number)
        output, code = kill_and_resume.finish(process)
        if code == 0:
            break
        ended += 1
        expected = {-signal.SIGKILL} if number == signal.SIGKILL else {exit_codes.STOPPED, -signal.SIGTERM}
        assert code in expected, output
        if number == signal.SIGTERM:
            assert not alive(root / name), "nobody is left behind"
    assert code == 0 and ended and is_same(root, name), output
    assert not re.search("Traceback", output), output
