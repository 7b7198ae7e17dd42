"""Which stages run, are skipped or refused, and that checks come before changes. The stages' work is replaced."""

import json
import logging
import os
import signal
import types

import polars as pl
import pytest
import small_run

from ehrwear_jax.config import parse
from ehrwear_jax.runtime import checkpoint_manifest, run_dir
from ehrwear_jax.runtime import exit_codes as exits
from ehrwear_jax.stages import prepare, pretrain, runner
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir

ALL = list(runner.ORDER)


class Work:
    """Stands for the stages: each makes one artifact of the whole config."""

    def __init__(self):
        self.calls, self.fail, self.pause = [], None, None

    def stage(self, name):
        def artifact(plan):
            return plan.artifact(name, "all", {"title": plan.config.report.title})

        def run(plan):
            self.calls.append(name)
            if name == self.fail:
                raise ValueError("a broken file")
            if name != self.pause:
                with artifact(plan).making():
                    pass

        return types.SimpleNamespace(missing=lambda plan: [] if artifact(plan).done else [f"the {name} of it"], run=run)

    def take(self):
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def work(monkeypatch):
    work = Work()
    monkeypatch.setattr(runner, "STAGES", {s: work.stage(s) for s in runner.ORDER})
    return work


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    small_run.write_inputs(root)
    return root


@pytest.fixture
def config(inputs):
    return small_run.small_config(inputs)


def test_a_second_run_skips_every_stage_with_one_line_and_rewrites_nothing(work, config, tmp_path, caplog):
    runner.run(parse(config), tmp_path, ALL)
    assert work.take() == ALL
    before = small_run.written(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        runner.run(parse(config), tmp_path, ALL)
    assert work.take() == [] and small_run.written(tmp_path) == before
    assert caplog.messages == [f"{s}: done before, skipped" for s in ALL]
    assert Workdir(tmp_path).read_config() == parse(config)


def test_going_back_to_an_earlier_config_finds_what_it_made(work, config, tmp_path):
    titles = [config.report.title, "Another title"]
    for title in titles:
        config.report.title = title
        runner.run(parse(config), tmp_path, ALL)
        assert work.take() == ALL
    config.report.title = titles[0]
    runner.run(parse(config), tmp_path, ALL)
    assert work.take() == [] and Workdir(tmp_path).read_config().report.title == titles[0]
    assert len(list((tmp_path / "configs").iterdir())) == 2


def test_a_workdir_has_one_writer_and_a_signal_ends_a_stage(work, config, tmp_path, monkeypatch):
    with run_dir.Lease(tmp_path), pytest.raises(exits.InUse, match="writes here"):
        runner.run(parse(config), tmp_path, ALL)
    assert not (tmp_path / "config.json").exists(), "nothing is written before the lease is held"
    monkeypatch.setattr(runner.STAGES["embed"], "run", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(exits.Stopped, match="stopped by SIGTERM"):
        runner.run(parse(config), tmp_path, ALL)
    assert work.take() == ALL[:2] and signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "lease.json").exists()


def test_fine_tuning_is_refused_of_several_processes_before_anything_is_done(work, config, tmp_path, monkeypatch):
    """Its checkpoints would wait for processes that do not fine-tune."""
    monkeypatch.setattr(runner.distributed, "several", lambda: True)
    config.finetune.modes = ("head",)
    with pytest.raises(ValueError, match="config.finetune.modes: fine-tuning is done by a job of one process"):
        runner.run(parse(config), tmp_path, ALL)
    assert work.take() == [] and not list(tmp_path.iterdir())


def test_study_is_all_stages_and_processes_do_those_that_are_for_each_network(work, config, tmp_path, monkeypatch):
    """The same artifacts, so that what one process made is not made again by several."""
    beside = []

    def run(stage, name, plan, processes):
        beside.append((name, processes))
        stage.run(plan)

    monkeypatch.setattr(runner.parallel, "run", run)
    runner.run(parse(config), tmp_path, ["study"], processes=2)
    assert work.take() == ALL and beside == [("pretrain", 2), ("embed", 2)]
    runner.run(parse(config), tmp_path, ["study"])
    assert work.take() == [] and len(beside) == 2
    with pytest.raises(ValueError, match="--processes=0: it must be at least 1"):
        runner.run(parse(config), tmp_path, ALL, processes=0)
    monkeypatch.setattr(runner.distributed, "several", lambda: True)
    with pytest.raises(ValueError, match="--processes=2: the processes of a job train one network together"):
        runner.run(parse(config), tmp_path, ALL, processes=2)


def test_a_stage_that_stops_early_goes_on_where_it_was(work, config, tmp_path, caplog):
    work.pause = "pretrain"
    with caplog.at_level(logging.INFO):
        runner.run(parse(config), tmp_path, ALL)
    assert work.take() == ALL[:2]
    assert "pretrain: stopped where the config says, not finished: the pretrain of it" in caplog.messages
    work.pause = None
    runner.run(parse(config), tmp_path, ALL)
    assert work.take() == ALL[1:]


def test_a_stage_that_fails_ends_the_run_and_is_run_again(work, config, tmp_path):
    work.fail = "embed"
    with pytest.raises(ValueError, match="a broken file"):
        runner.run(parse(config), tmp_path, ALL)
    assert work.take() == ALL[:3]
    work.fail = None
    runner.run(parse(config), tmp_path, ALL)
    assert work.take() == ALL[2:]


def test_a_command_that_fails_leaves_the_config_of_what_was_finished(work, config, tmp_path):
    """`bundle` and others open a run by its last config."""
    runner.run(parse(config), tmp_path, ALL)
    before, config.report.title, work.fail = parse(config), "Another title", "pretrain"
    with pytest.raises(ValueError, match="a broken file"):
        runner.run(parse(config), tmp_path, ALL)
    assert Workdir(tmp_path).read_config() == before
    assert Workdir(tmp_path).config_file(parse(config)).exists(), "workers read it there"
    work.fail = None
    runner.run(parse(config), tmp_path, ALL)
    assert Workdir(tmp_path).read_config() == parse(config)


def test_a_stage_can_run_alone_after_those_before_it(work, config, tmp_path):
    for stage in ALL:
        runner.run(parse(config), tmp_path, [stage])
        assert work.take() == [stage]


def test_a_stage_whose_predecessor_is_missing_or_unfinished_is_refused(work, config, tmp_path):
    sentence = "^the stage embed needs prepare, which has not made the prepare of it .* in .*: add it to --stages$"
    with pytest.raises(ValueError, match=sentence):
        runner.run(parse(config), tmp_path, ["embed"])
    assert not (tmp_path / "config.json").exists(), "a refused start leaves the last config"
    work.pause = "pretrain"
    runner.run(parse(config), tmp_path, ["prepare", "pretrain"])
    with pytest.raises(ValueError, match="^the stage embed needs pretrain, which has not made "):
        runner.run(parse(config), tmp_path, ["embed", "evaluate"])
    work.pause = None
    runner.run(parse(config), tmp_path, ALL)
    work.take()
    config.report.title = "Another title"
    with pytest.raises(ValueError, match="^the stage report needs prepare, which has not made "):
        runner.run(parse(config), tmp_path, ["report"])
    assert work.take() == []


def test_the_report_needs_no_interpret_stage(work, config, tmp_path):
    without = [s for s in ALL if s != "interpret"]
    runner.run(parse(config), tmp_path, without)
    assert work.take() == without
    runner.run(parse(config), tmp_path, ["interpret"])
    assert work.take() == ["interpret"]


def test_an_unknown_stage_and_an_unwritable_workdir_are_said(work, config, tmp_path):
    with pytest.raises(ValueError, match="unknown stage 'trian'; stages are prepare, pretrain, embed, evaluate, int"):
        runner.run(parse(config), tmp_path, ["prepare", "trian"])
    with pytest.raises(ValueError, match="--stages is empty; stages are prepare, pretrain"):
        runner.run(parse(config), tmp_path, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="^cannot write to the workdir .*file/run: Not a directory$"):
        runner.run(parse(config), tmp_path / "file" / "run", ALL)
    assert work.take() == []


def test_a_missing_label_table_is_said_before_anything_is_made(work, config, tmp_path):
    """Of two misspelt tasks the first is named; what an earlier run made is untouched."""
    runner.run(parse(config), tmp_path, ALL)
    work.take()
    before = small_run.written(tmp_path)
    config.evaluate.tasks, config.report.reliability_task = ("readmision", "relapsed"), ""
    with pytest.raises(FileNotFoundError, match="no label table .*readmision.parquet; there are readmission, relapse$"):
        runner.run(parse(config), tmp_path, ALL)
    assert work.take() == [] and small_run.written(tmp_path) == before


def test_a_misspelt_task_of_a_simulation_is_said_before_anything_is_made(work, config, tmp_path):
    config.data.update({"source": "synthetic", "meds_dir": "", "wearable_dir": "", "labels_dir": ""})
    config.evaluate.tasks, config.report.reliability_task = ("hospitalization_36d",), ""
    there = "hospitalization_30d, hospitalization_90d, hospitalization_180d, hospitalization_365d"
    with pytest.raises(
        FileNotFoundError, match=f"no label table hospitalization_36d.parquet is made; there are {there}"
    ):
        runner.run(parse(config), tmp_path, ALL)
    assert work.take() == [] and not (tmp_path / "config.json").exists()
    config.evaluate.tasks = ("hospitalization_90d", "time_to_hospitalization")
    runner.run(parse(config), tmp_path, ALL)
    assert work.take() == ALL


def test_faulty_tables_of_the_users_are_said_before_anything_is_made(work, config, inputs, tmp_path):
    table = pl.read_parquet(inputs / "labels" / "readmission.parquet")
    table.drop("boolean_value").write_parquet(tmp_path / "times.parquet")
    labels, run = tmp_path / "labels", tmp_path / "run"
    labels.mkdir()
    table.drop("boolean_value").write_parquet(labels / "readmission.parquet")
    table.drop("prediction_time").write_parquet(tmp_path / "no_times.parquet")
    config.evaluate.tasks = ("readmission",)
    config.embed.times = str(tmp_path / "no_times.parquet")
    with pytest.raises(ValueError, match="no_times.parquet: no column 'prediction_time'"):
        runner.run(parse(config), run, ALL)
    config.embed.times = str(tmp_path / "times.parquet")
    runner.run(parse(config), run, ALL)
    assert work.take() == ALL
    config.data.labels_dir = str(labels)
    with pytest.raises(ValueError, match="is missing; prediction times without labels are for config.embed.times"):
        runner.run(parse(config), run, ALL)
    assert work.take() == []


def test_faults_of_the_config_are_said_before_the_workdir_is_made(work, config, tmp_path):
    config.evaluate.reference_model = "nobody"
    with pytest.raises(ValueError, match="names the model 'nobody'"):
        runner.run(parse(config), tmp_path / "run", ALL)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------- real stages


def test_verify_reads_the_inputs_again(tmp_path):
    """--verify finds bytes that changed behind an unchanged size and time, and prepares anew beside the old."""
    small_run.write_inputs(tmp_path)
    config = parse(small_run.small_config(tmp_path))
    runner.run(config, tmp_path / "run", ["prepare"])
    (old,) = (tmp_path / "run" / "tables").iterdir()
    path = min((tmp_path / "raw" / "meds").rglob("data/**/*.parquet"))
    stat, data = path.stat(), bytearray(path.read_bytes())
    data.insert(4, data.pop(4))  # the same bytes: touched only
    path.write_bytes(bytes(data))
    runner.run(config, tmp_path / "run", ["prepare"])
    assert [p.name for p in (tmp_path / "run" / "tables").iterdir()] == [old.name]
    metadata = tmp_path / "raw" / "meds" / "metadata" / "dataset.json"
    text, stat = metadata.read_text(), metadata.stat()
    metadata.write_text(text.replace("test cohort", "toast cohor"))
    os.utime(metadata, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    runner.run(config, tmp_path / "run", ["prepare"])
    assert len(list((tmp_path / "run" / "tables").iterdir())) == 1, "neither size nor time say so"
    before = small_run.written(old)
    runner.run(config, tmp_path / "run", ["prepare"], verify=True)
    assert len(list((tmp_path / "run" / "tables").iterdir())) == 2 and small_run.written(old) == before


def test_an_unfinished_pretraining_of_another_setting_is_kept_and_said(config, tmp_path, caplog, monkeypatch):
    config = small_run.one_model(config, "joint")
    plan = Plan(parse(config), Workdir(tmp_path))
    prepare.run(plan)
    steps = {"at": 4}
    monkeypatch.setattr(pretrain, "_train", lambda plan, folder, trained, data, needed: (None, steps["at"]))
    config.train.stop_after = 4
    pretrain.run(Plan(parse(config), Workdir(tmp_path)))
    (begun,) = (tmp_path / "models" / "joint").iterdir()
    assert not json.loads((begun / "artifact.json").read_text())["done"]
    (begun / "checkpoints" / "4").mkdir(parents=True)
    monkeypatch.setattr(checkpoint_manifest, "steps", lambda folder: [4] if folder.exists() else [])
    config.train.stop_after, config.train.peak_learning_rate, steps["at"] = None, 1e-4, 6
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        pretrain.run(Plan(parse(config), Workdir(tmp_path)))
    (message,) = [m for m in caplog.messages if "was begun before" in m]
    assert "joint/all-seed0" in message and "train.peak_learning_rate: 0.003 -> 0.0001" in message
    assert "stopped at step 4" in message and str(begun) in message
    assert len(list((tmp_path / "models" / "joint").iterdir())) == 2
    assert pretrain.missing(Plan(parse(config), Workdir(tmp_path))) == []
