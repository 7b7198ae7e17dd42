"""Jobs of one, two and four real processes: the same numbers, one fate, checkpoints that pass from one to another."""

import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
import small_run
from repo import REPO

from ehrwear_jax.runtime import checkpoint_manifest, exit_codes, run_dir
from ehrwear_jax.runtime.checkpoint import read_newest
from ehrwear_jax.training.throughput import TIMINGS

pytestmark = pytest.mark.slow
DEVICES, STEPS = 4, 12

CONFIG = """
import pathlib, small_run, toy_training

def get_config(variant=""):
    config = small_run.one_model(small_run.small_config(pathlib.Path({root!r})), "joint")
    config.models.joint = {{"family": toy_training.FAMILY, **config.joint.to_dict()}}
    config.train.update({{"steps": {steps}, "validate_every": 6, "checkpoint_every": 4, "step_timeout_s": 20.0}})
    return config
"""


class Job:
    """Processes of one job in root/name, by default in pretraining only."""

    def __init__(self, root, name, n, *flags, fault="", stages="pretrain", devices=DEVICES, permuted=False):
        self.folder = root / name
        if not self.folder.exists():
            shutil.copytree(root / "prepared", self.folder)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        env = os.environ | {
            "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices // n), "FAULT": fault,
            "PERMUTED": "1" if permuted else "",
            "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests' / 'helpers'}", "EHRWEAR_COORDINATOR": f"localhost:{port}",
            "EHRWEAR_NUM_PROCESSES": str(n),
        }  # fmt: skip
        env.pop("XLA_FLAGS", None)
        command = [sys.executable, str(REPO / "tests" / "helpers" / "faulty_main.py"), f"--config={root}/small.py",
                   f"--workdir={self.folder}", f"--stages={stages}", *flags]  # fmt: skip
        self.processes = [
            subprocess.Popen(command, env=env | {"EHRWEAR_PROCESS_ID": str(i)}, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
            for i in range(n)
        ]  # fmt: skip

    def end(self, timeout=200):
        """[exit code of each process]."""
        try:
            self.output = [p.communicate(timeout=timeout)[0] for p in self.processes]
        finally:
            for p in self.processes:
                p.kill()
        self.codes = [p.returncode for p in self.processes]
        return self.codes

    def done(self):
        assert self.end() == [0] * len(self.processes), "\n".join(self.output)
        return self

    @property
    def network(self):
        """The folder of the network."""
        (found,) = self.folder.glob("models/joint/*")
        return found

    def lines(self):
        return [
            {k: v for k, v in x.items() if k not in TIMINGS} for x in run_dir.read_lines(self.network / "metrics.jsonl")
        ]

    def params(self):
        parts, step = read_newest(self.network / "checkpoints")
        return step, parts["params"]["w"]


def assert_close(job, other):
    assert len(job.lines()) == len(other.lines()) == STEPS + 2, "one writer"
    for a, b in zip(job.lines(), other.lines(), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-7, nan_ok=True)
    np.testing.assert_allclose(job.params()[1], other.params()[1], rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    small_run.write_inputs(root)
    (root / "small.py").write_text(CONFIG.format(root=str(root), steps=STEPS))
    (root / "prepared").mkdir()
    Job(root, "prepared", 2, stages="prepare").done()  # by the first of them
    return root


@pytest.fixture(scope="module")
def one(root):
    return Job(root, "one", 1).done()


@pytest.fixture(scope="module")
def two(root):
    return Job(root, "two", 2).done()


def test_two_processes_give_what_one_gives_and_one_of_them_writes(one, two):
    assert_close(two, one)
    assert len({x["loss/total"] for x in one.lines() if "loss/total" in x}) == STEPS
    assert ": goodput" in two.output[0] and "goodput" not in two.output[1]
    about = checkpoint_manifest.about(two.network / "checkpoints" / "12")
    assert about["processes"] == 2 and checkpoint_manifest.faults(two.network / "checkpoints" / "12") == []


def test_processes_whose_devices_are_not_neighbours_in_the_mesh_train_the_same(root, one):
    """As hosts of a TPU slice: of a batch's eight parts each of the four reads two that lie apart."""
    assert_close(Job(root, "apart", 4, devices=8, permuted=True).done(), one)


def test_checkpoints_pass_between_jobs_of_other_sizes(root, one):
    for n, stop in ((1, 3), (2, 6), (4, 9), (1, None)):
        job = Job(root, "chain", n, *([f"--config.train.stop_after={stop}"] if stop else [])).done()
        assert checkpoint_manifest.about(job.network / "checkpoints" / str(stop or STEPS))["processes"] == n
    assert_close(job, one)


def test_all_processes_leave_out_the_step_that_is_not_finite_on_one(root):
    """Rows 0-3 of the global batch of 8 are the first process's, 4-7 the second's."""
    jobs = [Job(root, "nan2", 2, fault="nan:5:1").done(), Job(root, "nan1", 1, fault="nan:5:0").done()]
    assert_close(*jobs)
    for job in jobs:
        (event,) = [e for e in run_dir.read_lines(job.network / run_dir.EVENTS) if e["kind"] == "not_finite"]
        assert event["step"] == 5 and len(event["examples"]) >= 4
    assert [x["finite"] for x in jobs[0].lines() if "finite" in x] == [1.0] * 4 + [0.0] + [1.0] * 7


def test_a_signal_to_one_process_stops_all_after_the_same_step(root, two):
    job = Job(root, "term", 2, fault="term:6:1")
    assert job.end() == [exit_codes.STOPPED] * 2, "\n".join(job.output)
    stopped = job.params()[0]
    assert 6 <= stopped <= 8 and f"stopped at step {stopped}, which is saved" in job.output[0]
    assert Job(root, "term", 2).done().lines() == two.lines()


def test_a_save_that_fails_on_one_process_fails_on_all_and_is_tried_again(root, two):
    """They agree before it is sealed; else one would save again while the others go on, and wait for them for ever."""
    job = Job(root, "unsaved", 2, fault="unsaved:4:1").done()
    (event,) = [e for e in run_dir.read_lines(job.network / run_dir.EVENTS) if e["kind"] == "not_saved"]
    assert "step 4 was not written: process 1: OSError: the disk of this process is gone" in event["reason"]
    assert checkpoint_manifest.steps(job.network / "checkpoints")[-1] == STEPS
    assert job.lines() == two.lines()


def test_a_killed_process_ends_the_job_in_time_and_nothing_is_lost(root, two):
    job, began = Job(root, "kill", 2, fault="kill:7:1"), time.monotonic()
    code, killed = job.end(timeout=150)
    assert killed == -9 and (code in exit_codes.RESTART or code < 0), job.output[0]
    # the collective fails, or hangs until the watchdog ends it, or the coordination service misses the process
    words = "a process of the job is gone", "step has hung for", "coordination service"
    assert any(w in job.output[0] for w in words), job.output[0]
    assert time.monotonic() - began < 120
    again = Job(root, "kill", 2).done()
    assert again.lines() == two.lines()
    np.testing.assert_array_equal(again.params()[1], two.params()[1])


def test_a_process_that_hangs_ends_the_job_with_stacks(root, two):
    job = Job(root, "hang", 2, "--config.train.step_timeout_s=4", fault="hang:7:1")
    codes = job.end(timeout=150)
    assert codes[1] == exit_codes.HUNG and codes[0] in exit_codes.RESTART, "\n".join(job.output)
    stacks = {p.name[-5]: p.read_text() for p in job.network.glob("stacks-*.txt")}
    assert "the_batch_that_never_comes" in stacks["1"]
    assert Job(root, "hang", 2).done().lines() == two.lines()


def test_a_second_job_in_the_same_folder_is_refused(root):
    first = Job(root, "twice", 1, fault="hang:3:0")
    path = first.folder / "lease.json"
    while not path.exists() and first.processes[0].poll() is None:
        time.sleep(0.05)
    second = Job(root, "twice", 1)
    assert second.end() == [exit_codes.IN_USE] and "writes here, seen" in second.output[0]
    first.processes[0].kill()
    first.end()
    again = Job(root, "twice", 1).done()  # the dead one's lease is taken over
    assert "took over from process" in again.output[0]


# -------------------------------------------------------------------------------------------------- embedding together


class Embedding(Job):
    """A job that embeds with the network of another, four people a shard."""

    def __init__(self, trained, name, n, fault=""):
        root = trained.folder.parent
        if not (root / name).exists():
            shutil.copytree(trained.folder, root / name)
        super().__init__(root, name, n, "--config.embed.shard_people=4", fault=fault, stages="embed")

    def files(self):
        return {p: p.stat().st_mtime_ns for p in self.folder.glob("embeddings/joint/*/*.parquet")}

    def table(self):
        table = pl.concat([pl.read_parquet(path) for path in self.files()]).sort("subject_id", "prediction_time")
        assert not table.select("subject_id", "prediction_time").is_duplicated().any()
        return table


@pytest.fixture(scope="module")
def embedded(one):
    return Embedding(one, "embed", 1).done()


def test_two_processes_embed_what_one_embeds(one, embedded):
    two = Embedding(one, "embed2", 2).done()
    assert two.table().equals(embedded.table()) and len(two.files()) == len(embedded.files()) > 4
    assert {p.name for p in two.files()} == {p.name for p in embedded.files()}
    assert embedded.table()["embedding"].n_unique() > 8, "what is read depends on the time"
    seen = pl.concat(map(pl.read_parquet, two.folder.glob("embeddings/joint/*/tokens_seen/*")))
    assert seen.height == two.table().height


@pytest.mark.parametrize("n", [1, 2])
def test_embedding_that_was_killed_between_shards_goes_on_to_the_same_table(one, embedded, n):
    """Of two processes the second is killed: both have shards of their own."""
    killed = Embedding(one, f"embed-killed{n}", n, fault=f"shard:3:{n - 1}")
    codes = killed.end(timeout=150)
    assert codes[-1] == -9 and 2 <= len(killed.files()) < len(embedded.files()), "\n".join(killed.output)
    before = killed.files()
    again = Embedding(one, f"embed-killed{n}", n).done()
    assert before.items() <= again.files().items(), "what was there is not made again"
    assert again.table().equals(embedded.table())
