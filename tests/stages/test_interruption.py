"""The command ended in pretraining and run again: the numbers of a run that was not interrupted."""

import random
import re
import shutil
import signal

import kill_and_resume
import pytest
from kill_and_resume import STEPS, finish, interrupt, is_same, metrics, network, start, state_hash

from ehrwear_jax.runtime import exit_codes as exits

pytestmark = pytest.mark.slow
RESUMED = re.compile(rf"ehr_only/all-seed0-\w+: steps [1-9]\d* to {STEPS}")
ALL = "prepare,pretrain,embed,evaluate,interpret,report"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("interruption")
    output = kill_and_resume.write_experiment(root, ALL)
    for said in ("report: ", "readmission  (n = 12)", "ehr_only/all-seed0", "goodput"):
        assert said in output
    assert [x["step"] for x in metrics(root / "whole") if "loss/total" in x] == list(range(1, STEPS + 1))
    return root


def results(root, name):
    return (root / name / "report" / "results.json").read_bytes()


def test_a_run_stopped_by_the_config_goes_on_to_the_same_numbers(root):
    output, code = finish(start(root, "stopped", "--config.train.stop_after=24", stages=ALL))
    assert code == 0 and "pretrain: stopped where the config says, not finished" in output, output
    assert not (root / "stopped" / "embeddings").exists() and state_hash(root / "stopped")[0] == 24
    stopped = network(root / "stopped")
    # another rate is another network: this one is left as it is, which is said
    other = "--config.train.peak_learning_rate=1e-4", "--config.train.stop_after=2"
    output, code = finish(start(root, "stopped", *other, stages=ALL))
    assert code == 0 and "was begun before with other settings" in output and "stopped at step 24" in output, output
    assert "train.peak_learning_rate: 0.003 -> 0.0001" in output and len(list(stopped.parent.iterdir())) == 2
    for folder in set(stopped.parent.iterdir()) - {stopped}:
        shutil.rmtree(folder)
    output, code = finish(start(root, "stopped", stages=ALL))
    assert code == 0 and "prepare: done before, skipped" in output and RESUMED.search(output), output
    assert is_same(root, "stopped") and results(root, "stopped") == results(root, "whole")


LONG = [pytest.param(name, False, marks=pytest.mark.long) for name in ("SIGKILL", "SIGINT")]


@pytest.mark.parametrize("name, while_saving", [("SIGKILL", True), ("SIGTERM", True), *LONG])
def test_a_run_ended_in_pretraining_goes_on_to_the_same_numbers(root, name, while_saving):
    """At a random step; more of it: python tests/helpers/kill_and_resume.py --times=20."""
    number = getattr(signal, name)
    ended = interrupt(root, "part", number, random.Random(f"{name} {while_saving}"), while_saving)
    assert ended["code"] == (-9 if name == "SIGKILL" else exits.STOPPED), ended["output"]
    assert not (root / "part" / "embeddings").exists()
    if name != "SIGKILL":
        assert "which is saved; run it again to go on" in ended["output"]
    output, code = finish(start(root, "part", stages=ALL))
    assert code == 0 and "prepare: done before, skipped" in output and RESUMED.search(output), output
    assert is_same(root, "part") and results(root, "part") == results(root, "whole")
