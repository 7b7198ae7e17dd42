"""Processes side by side: who gets what, and what becomes of those that fail, are lost or stopped. Their work is a line
of Python; tests/stages/test_study.py has the real one."""

import logging
import os
import signal
import sys
import threading
import time
import types

import pytest
import small_run

from ehrwear_jax.config import parse
from ehrwear_jax.runtime import exit_codes
from ehrwear_jax.stages import parallel
from ehrwear_jax.stages.plan import Plan, Trained
from ehrwear_jax.stages.workdir import Workdir

NAMES = ("joint", "ehr_only", "wear_only")


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A stage of three networks; `does[name]` is a script, and a network is done when it writes `done`."""
    does = dict.fromkeys(NAMES, "")

    def folder_of(plan, trained):
        return tmp_path / trained.name

    def missing(plan):
        return [t.key for t in plan.trained() if not (folder_of(plan, t) / "done").exists()]

    def command(plan, name, trained):
        folder = folder_of(plan, trained)
        script = f"import os, signal, sys, time, pathlib\nhere = pathlib.Path({str(folder)!r})\n{does[trained.name]}\n"
        return [sys.executable, "-c", script + "(here / 'done').touch()"]

    monkeypatch.setattr(parallel, "command", command)
    monkeypatch.setattr(parallel, "devices", lambda: ("cpu", 1))
    monkeypatch.setattr(parallel, "_LOOK_S", 0.01)
    return types.SimpleNamespace(
        does=does, missing=missing, folder_of=folder_of, where=lambda plan, t: f"half of {t.name}"
    )


@pytest.fixture
def plan(tmp_path):
    return Plan(parse(small_run.small_config(tmp_path)), Workdir(tmp_path / "run"))


def done(tmp_path):
    return {p.parent.name for p in tmp_path.glob("*/done")}


def test_each_network_is_done_once_by_at_most_so_many_processes(stage, plan, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(parallel, "_SAY_S", 0.05)
    now = tmp_path / "now"
    now.mkdir()
    for name in NAMES:
        stage.does[name] = (
            f"mine = pathlib.Path({str(now / name)!r})\nmine.touch()\ntime.sleep(0.3)\n"
            "print(len(list(mine.parent.iterdir())), flush=True)\nmine.unlink()"
        )
    with caplog.at_level(logging.INFO):
        parallel.run(stage, "pretrain", plan, 2)
    assert done(tmp_path) == {*NAMES}
    beside = [int((tmp_path / name / parallel.LOG).read_text()) for name in NAMES]
    assert max(beside) == 2, "two at a time, each of which ran once"
    assert "  joint/all-seed0: half of joint" in caplog.messages
    (last,) = [m for m in caplog.messages if m.startswith("pretrain: 3 of 3 networks in")]
    assert (
        any(m.startswith("pretrain: 2 of 3") and m.endswith("to go") for m in caplog.messages) and "to go" not in last
    )


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_waits_for_those_that_it_needs(stage, tmp_path, fails):
    """However many processes there are; it is not begun if one of them fails, and the others finish."""
    config = small_run.small_config(tmp_path)
    config.models.bag_of_another = {"family": "toy_families.bag_of_another", "teacher": "bag"}
    config.models.bag = {"family": "toy_families.bag_without_latents"}
    stage.does["bag"] = "time.sleep(0.3)"
    stage.does["bag_of_another"] = f"assert pathlib.Path({str(tmp_path / 'bag' / 'done')!r}).exists()\n"
    if fails:
        stage.does["bag"] = "sys.exit('ehrwear_jax: a broken file')"
        with pytest.raises(exit_codes.RunError, match="^bag/all-seed0 of 5 networks failed: a broken file$"):
            parallel.run(stage, "pretrain", Plan(parse(config), Workdir(tmp_path / "run")), 5)
        assert done(tmp_path) == {*NAMES} and not (tmp_path / "bag_of_another").exists()
    else:
        parallel.run(stage, "pretrain", Plan(parse(config), Workdir(tmp_path / "run")), 5)
        assert done(tmp_path) == {*NAMES, "bag", "bag_of_another"}


def test_what_is_there_is_not_started(stage, plan, tmp_path):
    (tmp_path / "joint").mkdir()
    (tmp_path / "joint" / "done").touch()
    parallel.run(stage, "embed", plan, 2)
    assert done(tmp_path) == {*NAMES} and not (tmp_path / "joint" / parallel.LOG).exists()


def test_one_that_fails_is_named_and_the_others_finish(stage, plan, tmp_path):
    stage.does["joint"] = f"sys.stderr.write('ehrwear_jax: no finite step\\n'); sys.exit({exit_codes.NOT_FINITE})"
    with pytest.raises(exit_codes.RunError, match="^joint/all-seed0 of 3 networks failed: no finite step$") as error:
        parallel.run(stage, "pretrain", plan, 2)
    assert error.value.code == exit_codes.NOT_FINITE and done(tmp_path) == {"ehr_only", "wear_only"}


def test_one_whose_process_is_lost_is_started_again_a_few_times(stage, plan, tmp_path):
    """Once by the kernel, once by somebody's SIGTERM; then it is done. One that is always lost fails in the end."""
    stage.does["joint"] = (
        "log = (here / 'log.txt').read_text()\nprint('begun', flush=True)\n"
        "n = log.count('begun')\n"
        f"n == 0 and os.kill(os.getpid(), signal.SIGKILL)\nn == 1 and sys.exit({exit_codes.STOPPED})"
    )
    parallel.run(stage, "pretrain", plan, 3)
    assert done(tmp_path) == {*NAMES} and (tmp_path / "joint" / parallel.LOG).read_text().count("begun") == 3
    (tmp_path / "wear_only" / "done").unlink()
    stage.does["wear_only"] = "print('begun', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(
        exit_codes.RunError, match="wear_only/all-seed0 of 1 networks failed: ended by signal 9"
    ) as error:
        parallel.run(stage, "pretrain", plan, 3)
    assert error.value.code == 128 + signal.SIGKILL
    assert (tmp_path / "wear_only" / parallel.LOG).read_text().count("begun") == parallel.STARTS


def test_a_mistake_outweighs_a_lost_process(stage, plan):
    stage.does["joint"] = "os.kill(os.getpid(), signal.SIGKILL)"
    stage.does["wear_only"] = "sys.exit('ehrwear_jax: a broken file')"
    with pytest.raises(
        exit_codes.RunError, match="wear_only/all-seed0 .*: a broken file; so did joint/all-seed0"
    ) as error:
        parallel.run(stage, "pretrain", plan, 3)
    assert error.value.code == 1, "starting again would not help"


def test_a_stop_reaches_all_and_waits_until_they_have_saved(stage, plan, tmp_path):
    for name in NAMES:
        stage.does[name] = (
            "def stop(*_):\n    time.sleep(0.2); (here / 'saved').touch(); sys.exit(75)\n"
            "signal.signal(signal.SIGTERM, stop)\n(here / 'ready').touch()\ntime.sleep(60)"
        )

    def interrupt():
        until = time.monotonic() + 20
        while len(list(tmp_path.glob("*/ready"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        parallel.run(stage, "pretrain", plan, 2)
    thread.join()
    assert len(list(tmp_path.glob("*/saved"))) == 2 and not done(tmp_path)


# -------------------------------------------------------------------------------------------------- who gets what


def test_cores_are_shared_and_what_the_user_says_stays():
    first, second = parallel.environments(2, "cpu", 1, 9, {"OMP_NUM_THREADS": "1"})
    assert first == second == {"NPROC": "4", "OPENBLAS_NUM_THREADS": "4", "POLARS_MAX_THREADS": "4"}
    assert parallel.environments(4, "cpu", 1, 2, {})[3]["NPROC"] == "1"


@pytest.mark.parametrize(
    "n, count, visible, expected",
    [
        (2, 4, "", ["0,1", "2,3"]),
        (3, 4, "", ["0", "1", "2"]),  # each as many, so that no network's batches lie otherwise than another's
        (2, 2, "5,GPU-7", ["5", "GPU-7"]),
        (3, 2, "", ["0", "1", "0"]),
    ],
)
def test_gpus_are_shared(n, count, visible, expected):
    found = parallel.environments(n, "gpu", count, 8, {"CUDA_VISIBLE_DEVICES": visible})
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == expected
    assert {e.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for e in found} == ({"0.450"} if n > count else {None})


def test_what_cannot_be_shared_is_refused(stage, plan, tmp_path):
    with pytest.raises(ValueError, match="--processes=2: tpu devices are not shared out"):
        parallel.environments(2, "tpu", 4, 8, {})
    config = small_run.small_config(tmp_path)
    config.train.update({"batch_size": 0, "rows_per_device": 4})
    with pytest.raises(
        ValueError, match="its share of the devices .config.train.rows_per_device.: say config.train.ba"
    ):
        parallel.run(stage, "pretrain", Plan(parse(config), plan.workdir), 2)
    assert not done(tmp_path)


def test_the_command_names_what_the_worker_reads(tmp_path):
    config = parse(small_run.small_config(tmp_path))
    plan = Plan(config, Workdir(tmp_path / "run"))
    plan.workdir.root.mkdir()
    plan.workdir.keep_config(config)
    *_, module, workdir, path, stage, key = parallel.command(plan, "embed", Trained("joint", "all", 0))
    assert (module, workdir, stage, key) == (
        "ehrwear_jax.stages.worker",
        str(tmp_path / "run"),
        "embed",
        "joint/all-seed0",
    )
    assert path.startswith(str(tmp_path / "run" / "configs")), "of this run, wherever a link may point later"
