"""A model family outside the package takes part in everything, and joins a finished run without changing a file of it.

The family is tests/helpers/toy_families/bag_of_codes.py: about a hundred lines, batch norm included, named in the
config by its dotted path.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import small_run
from repo import REPO

from ehrwear_jax.config import parse
from ehrwear_jax.report.result_records import check_records
from ehrwear_jax.runtime.checkpoint import read_newest
from ehrwear_jax.stages import runner
from ehrwear_jax.stages.embed import Embeddings, prediction_times
from ehrwear_jax.stages.plan import Plan, Trained
from ehrwear_jax.stages.workdir import Workdir
from ehrwear_jax.training.throughput import TIMINGS

BAG = {"family": "toy_families.bag_of_codes"}
STEPS, PARTS = 40, ("params", "collections")

CONFIG = """
import pathlib, sys
sys.path.insert(0, {here!r})
import test_second_family

def get_config(variant=""):
    return test_second_family.experiment(pathlib.Path({root!r}), bag=True)
"""


def experiment(root, bag, first="toy_families.value_mean"):
    """The small run with one network, of another family, and hand-made features; with the bag of codes or without."""
    config = small_run.one_model(small_run.small_config(root), "joint")
    config.models.joint.family = first
    for name in small_run.TABLES[:3]:  # boosting has tests of its own
        del config.models[name]
    config.evaluate.n_resamples = 20
    if bag:
        config.models.bag = BAG
        config.finetune.update({"models": ("bag",), "modes": ("head", "full"), "tasks": ("readmission",), "steps": 8,
                                "validate_every": 4})  # fmt: skip
    config.train.update({"steps": STEPS, "validate_every": 20, "checkpoint_every": 4, "log_every": 1})
    config.interpret.update({"enabled": True, "n_permutations": 5, "slices": 2, "dropout_samples": 2, "people": 1,
                             "gradient_steps": 2, "histories_days": (30.0,)})  # fmt: skip
    return config


def command(root, workdir, *flags, devices=1, stages="prepare,pretrain"):
    """Starts the main job on the experiment in a process of its own."""
    (root / "small.py").write_text(CONFIG.format(root=str(root), here=str(REPO / "tests" / "stages")))
    paths = (str(REPO), str(REPO / "tests" / "helpers"))
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths),
                        "JAX_NUM_CPU_DEVICES": str(devices)}  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "ehrwear_jax.main", f"--config={root}/small.py", f"--workdir={workdir}",
         f"--stages={stages}", *flags],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def digests(folder):
    """{path: SHA-256} of all files; the last config and the last report are links, and left out."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def losses(folder):
    """[(step, {metric: value})] without what is measured by the clock."""
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k not in TIMINGS} for x in lines]


@pytest.fixture(scope="module", params=["value_mean", pytest.param("joint", marks=pytest.mark.long)])
def joined(tmp_path_factory, request):
    """(plan with the bag of codes, digests of the files before it joined the finished run, root)."""
    root = tmp_path_factory.mktemp("second")
    small_run.write_inputs(root)
    first = {"joint": "joint"}.get(request.param, f"toy_families.{request.param}")
    runner.run(parse(experiment(root, False, first)), root / "run", runner.ORDER)
    before = digests(root / "run")
    config = parse(experiment(root, True, first))
    runner.run(config, root / "run", runner.ORDER)
    return Plan(config, Workdir(root / "run")), before, root


def test_it_leaves_every_file_of_the_finished_run_as_it_was(joined):
    plan, before, _ = joined
    after = digests(plan.workdir.root)
    assert len(before) > 60 and {k: after[k] for k in before} == before
    new = {name.split("/")[0] for name in after.keys() - before.keys()}
    assert new == {"configs", "models", "embeddings", "finetuned", "predictions", "scores", "interpret", "reports"}


def test_it_is_trained_embedded_probed_fine_tuned_and_reported(joined):
    plan, _, _ = joined
    trained = Trained("bag", "all", 0)
    lines = losses(plan.pretrained(trained).folder)
    assert [x["step"] for x in lines if "loss/later" in x] == list(range(1, STEPS + 1))
    held = {x["step"]: x["validation/loss/later"] for x in lines if "validation/loss/later" in x}
    assert list(held) == [20, STEPS] and held[STEPS] < lines[0]["loss/later"], "it learns"
    parts, _ = read_newest(plan.pretrained(trained).folder / "checkpoints", PARTS)
    norm = parts["collections"]["batch_stats"]["norm"]
    assert np.abs(norm["mean"]).max() > 0, "the running means of the batch norm moved and were saved"
    z = Embeddings(plan.embeddings(trained)).read(prediction_times(plan, "all"))
    assert z.shape[1] == 8 and np.isfinite(z).all() and z.std(axis=0).max() > 0.01
    records = json.loads((plan.workdir.report / "results.json").read_text())
    check_records(records, "small")
    auroc = {r["model"] for r in records if r["metric"] == "auroc"}
    assert {"joint", "bag", "bag_head", "bag_full", "linear_table"} <= auroc
    assert {r["model"] for r in records if r["metric"] == "c_index"} >= {"bag", "joint"}
    assert {"bag - joint", "joint - bag"} & {r["model"] for r in records if r["metric"] == "auroc_difference"}
    page, markdown = ((plan.workdir.report / f"report.{x}").read_text() for x in ("html", "md"))
    assert re.search(r"\| Bag +\|", markdown) and "Bag" in page
    (folder,) = (plan.workdir.root / "interpret").glob("bag-*")
    assert json.loads((folder / "robustness.json").read_text()) and json.loads((folder / "geometry.json").read_text())


def bag_folder(workdir):
    (folder,) = (workdir / "models" / "bag").iterdir()
    return folder


def assert_same_losses(some, others):
    """Up to the order of sums, which Adam's division by the size of small gradients enlarges."""
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-6)


def test_sharded_over_eight_devices_it_learns_the_same(joined):
    """Rows and parameters both; the finished run had rows only, as is the default."""
    plan, _, root = joined
    config = experiment(root, True)
    config.mesh.update({"data": 2, "fsdp": 4})
    del config.models.joint
    config.evaluate.reference_model = "bag"
    runner.run(parse(config), root / "sharded", ["prepare", "pretrain"])
    assert jax.device_count() == 8
    whole = losses(plan.pretrained(Trained("bag", "all", 0)).folder)
    assert_same_losses(losses(bag_folder(root / "sharded")), whole)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(root, workdir): the bag of codes trained without interruption, on one device, in a process of its own."""
    root = tmp_path_factory.mktemp("alone")
    small_run.write_inputs(root)
    finish(command(root, root / "whole"))
    return root, root / "whole"


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_state_bit_by_bit(alone):
    root, whole = alone
    process = command(root, root / "part")
    logs = root / "part" / "models" / "bag"
    while process.poll() is None:
        log = next(iter(logs.glob("*/metrics.jsonl")), None)
        if log is not None and log.read_bytes().count(b"\n") >= 9:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was faster than the signal"
    process.communicate()
    output = finish(command(root, root / "part"))
    begun = re.search(rf"bag/\S+: steps (\d+) to {STEPS}", output)
    assert begun and 4 <= int(begun[1]) < STEPS, output
    assert losses(bag_folder(root / "part")) == losses(bag_folder(whole))
    states = [read_newest(bag_folder(w) / "checkpoints", PARTS)[0] for w in (root / "part", whole)]
    assert set(states[0]) == set(states[1]) == set(PARTS)
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_on_eight_devices_it_learns_what_it_learns_on_one(alone):
    root, whole = alone
    finish(command(root, root / "eight", "--config.mesh.data=2", "--config.mesh.fsdp=4", devices=8))
    assert_same_losses(losses(bag_folder(root / "eight")), losses(bag_folder(whole)))
