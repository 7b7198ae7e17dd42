"""What befalls a training run, and how it ends: the real loop on real batches, with a step of one addition."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import small_run
import toy_training

from ehrwear_jax.runtime import (
    checkpoint,
    checkpoint_manifest,
    distributed,
    exit_codes,
    files,
    metrics_log,
    run_dir,
    status,
)
from ehrwear_jax.training import feed
from ehrwear_jax.training import pretrain as pretrain_lib

STEPS = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    small_run.write_inputs(root)
    return small_run.prepare(root)


@pytest.fixture
def pretrain(root, monkeypatch):
    """pretrain(folder, happen={step: function of the batch}, **train options) -> (params, step)."""
    toy_training.install(monkeypatch.setattr)
    model = dataclasses.replace(small_run.model_of(small_run.small_config(root)), family=toy_training.FAMILY)
    batches = feed.train_batches

    def run(folder, happen=None, data=root, **options):
        steps = {"steps": STEPS, "log_every": 1, "validate_every": 6, "checkpoint_every": 5, "warmup_steps": 2}
        mine = dataclasses.replace(model, train=dataclasses.replace(model.train, **steps | options))

        def watched(*arguments, start_step=0, **keywords):
            for i, batch in enumerate(batches(*arguments, start_step=start_step, **keywords)):
                if "n_steps" not in keywords and (do := (happen or {}).get(start_step + i + 1)):
                    do(batch)
                yield batch

        monkeypatch.setattr(feed, "train_batches", watched)
        variables, step = pretrain_lib.pretrain(folder, mine, small_run.store(data))
        return variables["params"], step

    run.rows = lambda: model.module.examples(small_run.store(root, "train"), model.config, model.seed)
    run.batch_size = model.train.batch_size
    return run


def events(folder, kind=None):
    return [e for e in run_dir.read_lines(folder / run_dir.EVENTS) if kind in (None, e["kind"])]


def losses(folder):
    return [(x["step"], x["loss/total"]) for x in run_dir.read_lines(folder / "metrics.jsonl") if "loss/total" in x]


def spoil(batch):
    batch["value"][0, 0] = np.nan


@pytest.fixture
def whole(pretrain, tmp_path):
    return pretrain(tmp_path / "whole")[0]["w"], losses(tmp_path / "whole")


def test_what_a_run_leaves(pretrain, whole, tmp_path, capsys):
    w, logged = whole
    assert [s for s, _ in logged] == list(range(1, STEPS + 1)) and len({x for _, x in logged}) == STEPS
    beat = files.read_json(tmp_path / "whole" / run_dir.HEARTBEAT)
    assert (beat["phase"], beat["step"], beat["steps"]) == ("ended", STEPS, STEPS)
    assert checkpoint_manifest.steps(tmp_path / "whole" / "checkpoints") == [10, 12]
    assert events(tmp_path / "whole") == []
    about = checkpoint_manifest.about(tmp_path / "whole" / "checkpoints" / "12")
    assert about["step"] == 12 and about["seed"] == 0 and about["train"]["steps"] == STEPS
    spent = files.read_json(tmp_path / "whole" / "goodput.json")
    (kind,) = spent["devices"]  # those of the mesh: all that the tests have
    assert spent["devices"][kind]["count"] == jax.device_count() > 1 and kind == jax.devices()[0].device_kind
    assert spent["devices"][kind]["seconds"] == pytest.approx(jax.device_count() * sum(spent["seconds"].values()))
    assert about["data"] == files.digest(files.read_json(tmp_path / "whole" / "run.json")["data"])
    status.main([str(tmp_path / "whole"), "--verify"])
    shown = capsys.readouterr().out
    for text in (
        "nobody works here",
        "step 12 of 12 (100%)",
        "heartbeat 0 s ago: ended",
        "checkpoint 12: ",
        "whole",
        "goodput",
    ):
        assert text in shown, shown
    assert not (tmp_path / "whole" / run_dir.LEASE).exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_stops_and_the_run_goes_on_as_if_nothing_had_been(pretrain, whole, tmp_path, name):
    before = signal.getsignal(signal.SIGTERM)
    happen = {7: lambda _: os.kill(os.getpid(), getattr(signal, name))}
    with pytest.raises(exit_codes.Stopped, match="stopped at step 7, which is saved") as stop:
        pretrain(tmp_path / "part", happen, data_threads=0)
    assert stop.value.code == 75 and checkpoint_manifest.steps(tmp_path / "part" / "checkpoints") == [5, 7]
    assert files.read_json(tmp_path / "part" / run_dir.HEARTBEAT)["phase"] == "stopped"
    assert signal.getsignal(signal.SIGTERM) == before
    params, step = pretrain(tmp_path / "part")
    assert step == STEPS and losses(tmp_path / "part") == whole[1]
    np.testing.assert_array_equal(params["w"], whole[0])
    assert [e["kind"] for e in events(tmp_path / "part")] == ["stopped", "resumed"]


def test_a_step_that_is_not_finite_is_left_out_and_its_examples_are_named(pretrain, tmp_path):
    _, step = pretrain(tmp_path, {3: spoil, 4: spoil})
    assert step == STEPS
    found = events(tmp_path, "not_finite")
    assert [(e["step"], e["in_a_row"]) for e in found] == [(3, 1), (4, 2)]
    n, rows = pretrain.batch_size, pretrain.rows()
    assert [e["examples"] for e in found] == [rows.subjects(range(s * n, (s + 1) * n)) for s in (2, 3)]
    w = np.full(4, 0.1, np.float32)
    for s, loss in losses(tmp_path):
        assert np.isnan(loss) == (s in (3, 4))
        w = w if np.isnan(loss) else np.float32(0.9) * w + np.float32(loss)
    got, _ = checkpoint.read_newest(tmp_path / "checkpoints")
    np.testing.assert_allclose(got["params"]["w"], w, rtol=1e-6)


def test_too_many_in_a_row_end_the_run(pretrain, tmp_path):
    happen = dict.fromkeys(range(4, 9), spoil)
    with pytest.raises(
        exit_codes.NonFiniteStep, match="3 steps in a row up to step 6 were not finite; subjects of the last: "
    ) as end:
        pretrain(tmp_path, happen, max_skipped=3)
    assert end.value.code == 70 and files.read_json(tmp_path / run_dir.HEARTBEAT)["phase"].startswith("failed: 3 steps")
    pretrain(tmp_path / "patient", happen, max_skipped=6)


def test_a_loss_that_stands_out_is_noted(pretrain, tmp_path):
    def grow(batch):
        batch["value"] += 1000.0

    pretrain(tmp_path, {56: grow}, steps=58, checkpoint_every=50)
    (event,) = events(tmp_path, "loss_spike")
    assert event["step"] == 56 and event["loss"] > 100 and event["deviations"] > 8 and event["examples"]


def test_spikes_are_told_from_noise():
    watch, rng = metrics_log.SpikeWatch(8.0), np.random.default_rng(0)
    assert not any(watch(x) for x in 3.0 + 0.1 * rng.normal(size=500))
    median, deviations = watch(5.0)
    assert median == pytest.approx(3.0, abs=0.05) and deviations == pytest.approx(20, rel=0.3)
    assert watch(0.0) is None and watch(float("nan")) is None and metrics_log.SpikeWatch(0.0)(1e9) is None


def test_another_config_or_data_set_is_refused_with_what_differs(pretrain, root, tmp_path):
    pretrain(tmp_path / "run", stop_after=5)
    with pytest.raises(exit_codes.Changed, match=r"train.peak_learning_rate: 0.003 -> 0.004\. Give it back"):
        pretrain(tmp_path / "run", peak_learning_rate=0.004)
    pretrain(tmp_path / "run", stop_after=6, checkpoint_every=3, log_every=2, keep=3)  # not what the result depends on
    for name in ("records", "fit"):
        shutil.copytree(root / name, tmp_path / "data" / name)
    pretrain(tmp_path / "run", data=tmp_path / "data", stop_after=7)  # the same data elsewhere
    config = small_run.config_lib.parse(small_run.small_config(root)).prepare
    other = small_run.prepare(tmp_path / "other", root / "raw", dataclasses.replace(config, value_bins=3))
    with pytest.raises(exit_codes.Changed, match="data: ") as error:
        pretrain(tmp_path / "run", data=other)
    assert error.value.code == 78 and checkpoint_manifest.steps(tmp_path / "run" / "checkpoints") == [6, 7]


def test_a_second_writer_is_refused(pretrain, tmp_path):
    with run_dir.Lease(tmp_path), pytest.raises(exit_codes.InUse, match="writes here") as error:
        pretrain(tmp_path)
    assert error.value.code == 77 and not (tmp_path / "checkpoints").exists()


def test_a_run_whose_lease_is_taken_writes_no_checkpoint(pretrain, tmp_path):
    happen = {4: lambda _: (tmp_path / run_dir.LEASE).write_text('{"id": "another"}')}
    with pytest.raises(exit_codes.InUse, match="taken by another process"):
        pretrain(tmp_path, happen, data_threads=0)
    assert checkpoint_manifest.steps(tmp_path / "checkpoints") == []


def test_a_full_disk_is_said_and_the_save_is_tried_again(pretrain, whole, tmp_path, monkeypatch):
    """No room at step 5, room again from step 7 on (a tenth of the interval is less than a step: tried at each)."""
    free = [0]
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free[0]))
    pretrain(tmp_path / "run", {8: lambda _: free.__setitem__(0, 1 << 40)}, data_threads=0)
    found = events(tmp_path / "run", "not_saved")
    assert [e["step"] for e in found] == [5, 6, 7] and "no room for the checkpoint of step 5" in found[0]["reason"]
    assert checkpoint_manifest.steps(tmp_path / "run" / "checkpoints") == [10, 12]
    assert losses(tmp_path / "run") == whole[1]
    free[0] = 0
    with pytest.raises(exit_codes.NotSaved, match="no room for the checkpoint of step 12") as error:
        pretrain(tmp_path / "full")
    assert error.value.code == 74


def test_damage_is_walked_past_and_noted(pretrain, whole, tmp_path):
    pretrain(tmp_path / "run", stop_after=10)
    name = max(
        (tmp_path / "run" / "checkpoints" / "10" / "params").rglob("*"), key=lambda p: p.stat().st_size * p.is_file()
    )
    os.truncate(name, 3)
    params, _ = pretrain(tmp_path / "run")
    np.testing.assert_array_equal(params["w"], whole[0])
    assert losses(tmp_path / "run") == whole[1]
    (event,) = events(tmp_path / "run", "checkpoint_skipped")
    assert event["step"] == 5 and f"{name.name} has 3 bytes instead of" in event["reason"]
    assert "set aside: 10.damaged" in status.report(tmp_path / "run")


def test_a_trace_is_made_when_it_is_asked_for(pretrain, tmp_path):
    pretrain(tmp_path, {5: lambda _: os.kill(os.getpid(), signal.SIGUSR1)}, data_threads=0, profile_steps=2)
    assert list((tmp_path / "profiles").rglob("*.xplane.pb"))


def test_status_of_a_run_that_is_silent_and_of_no_run(pretrain, tmp_path):
    pretrain(tmp_path / "run", stop_after=6)
    beat = files.read_json(tmp_path / "run" / run_dir.HEARTBEAT)
    files.write_text(
        tmp_path / "run" / run_dir.HEARTBEAT, json.dumps(beat | {"phase": "step", "time": time.time() - 600})
    )
    shown = status.report(tmp_path / "run")
    assert "step 6 of 12 (50%)" in shown and "heartbeat 10.0 min ago: step; NO SIGN OF LIFE since" in shown
    with pytest.raises(FileNotFoundError, match="no run"):
        status.report(tmp_path / "nothing")


def test_saving_and_sums_are_a_small_part(pretrain, tmp_path):
    """Every second of the run has a part, and none of the parts is forgotten."""
    began = time.time()
    pretrain(tmp_path)
    found = files.read_json(tmp_path / "goodput.json")
    assert 0 < sum(found["seconds"].values()) <= time.time() - began
    assert all(found["seconds"][k] > 0 for k in ("starting", "compiling", "step", "data", "validating", "saving"))


def test_without_other_processes_agreements_are_free():
    assert distributed.from_first("x", [1]) == [1] and distributed.is_first() and not distributed.several()
    flag = distributed.AnyFlag()
    assert not flag.answer()
    flag.ask(True)
    assert flag.answer()


@pytest.mark.parametrize(
    "environment, want",
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, None),  # within a job, but not started by srun
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4"}, {"cluster_detection_method": "slurm"}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "1"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, {}),
        ({"EHRWEAR_COORDINATOR": "h:1", "EHRWEAR_NUM_PROCESSES": "1", "EHRWEAR_PROCESS_ID": "0"}, None),
        ({"EHRWEAR_COORDINATOR": "h:1", "EHRWEAR_NUM_PROCESSES": "4", "EHRWEAR_PROCESS_ID": "2"},
         {"coordinator_address": "h:1", "num_processes": 4, "process_id": 2}),
    ],
)  # fmt: skip
def test_other_processes_are_found_in_the_environment(environment, want):
    assert distributed.arguments(environment) == want


def test_half_a_description_of_the_job_is_refused():
    with pytest.raises(
        ValueError, match="EHRWEAR_COORDINATOR is set, EHRWEAR_NUM_PROCESSES, EHRWEAR_PROCESS_ID is not"
    ):
        distributed.arguments({"EHRWEAR_COORDINATOR": "h:1"})


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("a sentence"), "ehrwear_jax: a sentence"),
        (exit_codes.Stopped("x"), 75),
        (exit_codes.InUse("x"), 77),
        (exit_codes.Changed("x"), 78),
        (exit_codes.NonFiniteStep("x"), 70),
        (exit_codes.NotSaved("x"), 74),
        (exit_codes.ProcessLost("x"), 69),
        (KeyboardInterrupt(), 75),
    ],
)
def test_each_end_has_its_code(error, code, capsys):
    def work():
        raise error

    with pytest.raises(SystemExit) as end:
        distributed.to_the_end(work)
    assert end.value.code == code
    assert isinstance(code, str) or capsys.readouterr().err.startswith("ehrwear_jax: ")
    assert distributed.to_the_end(functools.partial(int, "3")) == 3
