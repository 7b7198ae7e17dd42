"""Which stages run, resume, are skipped or refused. The stages' work is replaced; the bookkeeping is real."""

import json
import logging
import os
import signal

import pytest
import small_run

from ehrwear_jax.runtime import exit_codes as exits
from ehrwear_jax.runtime import run_dir
from ehrwear_jax.stages import marks, runner


class Work:
    """Stands for the stages: records the calls, writes one file each."""

    def __init__(self):
        self.calls, self.fail, self.unfinished = [], None, None

    def __call__(self, stage):
        def run(config, workdir):
            self.calls.append(stage)
            if stage == self.fail:
                raise ValueError("a broken file")
            (workdir / stage / "out.txt").write_text(stage)
            return False if stage == self.unfinished else None

        return run

    def take(self):
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def work(monkeypatch):
    work = Work()
    monkeypatch.setattr(runner, "WORK", {s: work(s) for s in runner.ORDER})
    return work


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    small_run.write_inputs(root)
    return root


@pytest.fixture
def config(inputs):
    return small_run.small_config(inputs)


def contents(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_a_second_run_skips_every_stage_with_one_line_and_rewrites_nothing(work, config, tmp_path, caplog):
    runner.run(config, tmp_path, runner.ORDER)
    assert work.take() == list(runner.ORDER)
    before = contents(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        runner.run(config, tmp_path, runner.ORDER)
    assert work.take() == []
    assert caplog.messages == [f"{s}: done before, skipped" for s in runner.ORDER]
    after = contents(tmp_path)
    config_path = tmp_path / "config.json"
    assert before.pop(config_path)[0] == after.pop(config_path)[0]
    assert before == after


ALL = list(runner.ORDER)


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("prepare.min_subjects", 3, ALL),
        ("seed", 1, ALL),
        ("data.n_folds", 2, ALL),
        ("model.width", 16, ALL[1:]),
        ("train.steps", 7, ALL[1:]),
        ("train.weights.wear_to_ehr", (0.0, 1.0, 4), ALL[1:]),
        ("context.queries", 4, ALL[1:]),
        ("rows.joint", ("ehr",), ALL[1:]),
        ("embed.trajectories", 1, ALL[2:]),
        ("evaluate.tasks", ("readmission",), ALL[2:]),
        ("evaluate.reference_model", "ehr_only", ALL[2:]),
        ("evaluate.n_resamples", 10, ALL[3:]),
        ("evaluate.late_fusion", (), ALL[3:]),
        ("name", "other", ALL[3:]),
        ("interpret.people", 1, ALL[4:]),
        ("report.title", "Another title", ALL[5:]),
        # how a result is reached, not what it is; and what this source does not read
        ("train.log_every", 5, []),
        ("train.checkpoint_every", 5, []),
        ("train.stop_after", 3, []),
        ("simulate.n_subjects", 5, []),
    ],
)
def test_a_config_change_runs_the_stages_that_read_it_and_those_after(work, config, tmp_path, key, value, expected):
    runner.run(config, tmp_path, runner.ORDER)
    work.take()
    part = config
    *path, last = key.split(".")
    for name in path:
        part = part[name]
    part[last] = value
    runner.run(config, tmp_path, runner.ORDER)
    assert work.take() == expected
    for stage in ALL:  # the result that was replaced is kept aside
        assert (tmp_path / f"{stage}.previous" / "out.txt").exists() == (stage in expected)
    runner.run(config, tmp_path, runner.ORDER)
    assert work.take() == []


def test_an_unfinished_pretraining_is_not_given_up_for_another_setting(work, config, tmp_path, caplog):
    work.unfinished = "pretrain"
    runner.run(config, tmp_path, ALL)
    work.take()
    config.train.steps = 7
    runner.run(config, tmp_path, ALL)  # nothing is saved yet: nothing is lost
    assert work.take() == ["pretrain"]
    saved = tmp_path / "pretrain" / "all" / "joint" / "checkpoints" / "40"
    saved.mkdir(parents=True)
    (saved / "COMMIT").touch()
    config.train.steps, config.model.width = 9, 16
    with pytest.raises(exits.Changed, match=r"unfinished pretraining \(step 40\)") as error:
        runner.run(config, tmp_path, ALL)
    assert "model.width: 8 -> 16; train.steps: 7 -> 9" in str(error.value) and error.value.code == 78
    config.train.steps, config.model.width, work.unfinished = 7, 8, None
    runner.run(config, tmp_path, ALL)
    config.train.steps = 8
    caplog.clear()
    with caplog.at_level(logging.INFO):
        runner.run(config, tmp_path, ALL)  # a finished one is kept aside, and what changed is said
    assert "pretrain: train.steps: 7 -> 8" in caplog.messages and (tmp_path / "pretrain.previous").exists()


def test_a_workdir_has_one_writer_and_a_signal_ends_a_stage(work, config, tmp_path, monkeypatch):
    with run_dir.Lease(tmp_path), pytest.raises(exits.InUse, match="writes here"):
        runner.run(config, tmp_path, ALL)
    monkeypatch.setitem(runner.WORK, "embed", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(exits.Stopped, match="stopped by SIGTERM"):
        runner.run(config, tmp_path, ALL)
    assert work.take() == ALL[:2] and signal.getsignal(signal.SIGTERM) == before
    monkeypatch.undo()
    assert not (tmp_path / "lease.json").exists() and not runner.read_mark(tmp_path / "embed")["done"]


def test_every_part_of_the_config_is_read_by_some_stage(config):
    read = {key.split(".")[0] for keys in marks.READS.values() for key in keys}
    assert set(config) - {"mesh", "topology", "compile"} == read, "where it runs changes no result"


@pytest.mark.parametrize("folder", ["raw/meds", "raw/wearable", "labels"])
def test_changed_bytes_of_an_input_run_prepare_again_and_a_touched_one_does_not(work, tmp_path, folder):
    small_run.write_inputs(tmp_path)
    config, workdir = small_run.small_config(tmp_path), tmp_path / "run"
    runner.run(config, workdir, runner.ORDER)
    work.take()
    path = min((tmp_path / folder).rglob("*.parquet"))
    stat, data = path.stat(), bytearray(path.read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    runner.run(config, workdir, runner.ORDER)
    assert work.take() == []
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    runner.run(config, workdir, ["prepare"])
    assert work.take() == ["prepare"]


def test_inputs_that_moved_unchanged_are_the_same_inputs(work, config, inputs, tmp_path):
    runner.run(config, tmp_path / "run", runner.ORDER)
    work.take()
    (tmp_path / "link").symlink_to(inputs)
    runner.run(small_run.small_config(tmp_path / "link"), tmp_path / "run", runner.ORDER)
    assert work.take() == []


def test_a_renamed_input_file_is_a_change(tmp_path):
    (tmp_path / "a").write_text("x")
    before = marks.digest_files(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert marks.digest_files(tmp_path) != before


def test_a_stage_that_stops_early_is_unfinished_and_resumes_where_it_was(work, config, tmp_path, caplog):
    work.unfinished = "pretrain"
    with caplog.at_level(logging.INFO):
        runner.run(config, tmp_path, runner.ORDER)
    assert work.take() == ["prepare", "pretrain"]
    assert "pretrain: stopped where the config says, not finished" in caplog.messages
    work.unfinished = None
    with caplog.at_level(logging.INFO):
        runner.run(config, tmp_path, runner.ORDER)
    assert work.take() == ALL[1:]
    assert "pretrain: resumes" in caplog.messages and not (tmp_path / "pretrain.previous").exists()


def test_a_stage_that_fails_is_unfinished_and_its_time_adds_up(work, config, tmp_path):
    work.fail = "embed"
    with pytest.raises(ValueError, match="a broken file"):
        runner.run(config, tmp_path, runner.ORDER)
    mark = json.loads((tmp_path / "embed" / "stage.json").read_text())
    assert mark["done"] is False and mark["seconds"] > 0
    runner.write_mark(tmp_path / "embed", **mark | {"seconds": 100.0})
    work.fail, work.calls = None, []
    runner.run(config, tmp_path, runner.ORDER)
    assert work.take() == ALL[2:]
    assert json.loads((tmp_path / "embed" / "stage.json").read_text())["seconds"] > 100.0


def test_a_stage_can_run_alone_after_those_before_it(work, config, tmp_path):
    for stage in runner.ORDER:
        runner.run(config, tmp_path, [stage])
        assert work.take() == [stage]


def test_a_stage_whose_predecessor_is_missing_stale_or_unfinished_is_refused(work, config, tmp_path):
    with pytest.raises(ValueError, match="^the stage embed needs prepare, which has not been run in .*add it to --st"):
        runner.run(config, tmp_path, ["embed"])
    work.unfinished = "pretrain"
    runner.run(config, tmp_path, ["prepare", "pretrain"])
    with pytest.raises(ValueError, match="^the stage embed needs pretrain, which is not finished in "):
        runner.run(config, tmp_path, ["embed", "evaluate"])
    work.unfinished = None
    runner.run(config, tmp_path, ALL)
    work.take()
    config.model.width = 16
    with pytest.raises(ValueError, match="^the stage report needs pretrain, which is out of date "):
        runner.run(config, tmp_path, ["report"])
    assert work.take() == []


def test_the_report_needs_no_interpret_stage_and_follows_it_where_there_is_one(work, config, tmp_path):
    without = [s for s in ALL if s != "interpret"]
    runner.run(config, tmp_path, without)
    assert work.take() == without and not (tmp_path / "interpret").exists()
    assert marks.interpret_fault(config, tmp_path) == "has not been run"
    runner.run(config, tmp_path, without)
    assert work.take() == []
    runner.run(config, tmp_path, ["interpret"])
    assert work.take() == ["interpret"] and marks.interpret_fault(config, tmp_path) == ""
    runner.run(config, tmp_path, ["report"])  # there is more to show
    assert work.take() == ["report"]
    runner.run(config, tmp_path, ALL)
    assert work.take() == []
    config.interpret.people = 1  # what was found is of other settings: shown no more
    assert marks.interpret_fault(config, tmp_path) == "is out of date (config or input changed)"
    runner.run(config, tmp_path, ["evaluate", "report"])
    assert work.take() == ["report"]
    runner.run(config, tmp_path, ["evaluate", "report"])
    assert work.take() == []
    (tmp_path / "interpret" / "stage.json").unlink()  # the page says which of the two it is
    runner.run(config, tmp_path, ["evaluate", "report"])
    assert work.take() == ["report"]
    config.evaluate.n_resamples = 10
    runner.run(config, tmp_path, ["evaluate", "report"])
    assert work.take() == ["evaluate", "report"]
    runner.run(config, tmp_path, ALL)
    assert work.take() == ["interpret", "report"] and marks.interpret_fault(config, tmp_path) == ""
    mark = runner.read_mark(tmp_path / "interpret")
    runner.write_mark(tmp_path / "interpret", **mark | {"done": False})
    assert marks.interpret_fault(config, tmp_path) == "is not finished"
    with pytest.raises(ValueError, match="^the stage report needs evaluate, which is out of date "):
        config.evaluate.n_resamples = 20
        runner.run(config, tmp_path, ["report"])


@pytest.mark.parametrize("key, value", [("seed", 1), ("train.steps", 7), ("embed.batch_size", 3), ("name", "other")])
def test_what_was_interpreted_of_another_model_or_evaluation_is_out_of_date(work, config, tmp_path, key, value):
    runner.run(config, tmp_path, ALL)
    *path, last = key.split(".")
    setattr(config[path[0]] if path else config, last, value)
    runner.run(config, tmp_path, ALL[:4])
    assert marks.interpret_fault(config, tmp_path).startswith("is out of date")


def test_an_unknown_stage_and_an_unwritable_workdir_are_said(work, config, tmp_path):
    with pytest.raises(ValueError, match="unknown stage 'trian'; stages are prepare, pretrain, embed, evaluate, int"):
        runner.run(config, tmp_path, ["prepare", "trian"])
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="^cannot write to the workdir .*file/run: Not a directory$"):
        runner.run(config, tmp_path / "file" / "run", ALL)
    assert work.take() == []


def test_a_missing_label_table_is_said_before_pretraining(work, config, tmp_path):
    config.evaluate.tasks = ("readmission", "relapsed")
    with pytest.raises(FileNotFoundError, match="no label table .*relapsed.parquet; there are readmission, relapse$"):
        runner.run(config, tmp_path, ALL)
    assert work.take() == ["prepare"]
    runner.run(config, tmp_path, ["prepare", "pretrain"])  # labels are not needed for these
    assert work.take() == ["pretrain"]
