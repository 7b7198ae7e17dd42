"""What status says of a workdir: its artifacts, and every network below them."""

import json
import os
import time

import pytest

from ehrwear_jax.runtime import files, run_dir, status
from ehrwear_jax.stages.artifacts import Artifact, Paused
from ehrwear_jax.stages.workdir import Workdir


@pytest.fixture
def workdir(tmp_path):
    """A workdir with two label artifacts that are done and a network that was begun."""
    place = Workdir(tmp_path)
    for name in ("hospitalization", "onset_diabetes"):
        with Artifact(place, "labels", name, {"horizon": 30}).making():
            pass
    with Artifact(place, "models", "joint/all-seed0", {"width": 8}).making() as folder:
        beat = {"phase": "step", "step": 30, "steps": 120, "time": time.time()}
        files.write_json(folder / run_dir.HEARTBEAT, beat)
        line = {"step": 40, "loss/total": 1.25, "steps_per_second": 2.0}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        raise Paused
    return tmp_path, folder


def test_artifacts_are_counted_by_kind_and_what_is_not_done_is_named(workdir):
    root, _ = workdir
    lines = status.artifact_lines(root)
    labels, models, begun = lines
    assert labels.split()[:3] == ["labels", "2", "done,"] and models.split()[:3] == ["models", "0", "done,"]
    assert begun == "  joint/all-seed0: begun, not done"
    with Artifact(Workdir(root), "models", "joint/all-seed0", {"width": 8}).making():
        pass
    assert status.artifact_lines(root)[1:] == [status.artifact_lines(root)[1]] and "1 done" in lines_of(root, "models")


def lines_of(root, kind):
    (line,) = [x for x in status.artifact_lines(root) if x.startswith(kind)]
    return line


def test_work_of_a_kind_is_added_up(workdir):
    root, _ = workdir
    for path, seconds in zip(sorted(root.glob("labels/*/artifact.json")), (3600.0, 1800.0), strict=True):
        files.write_json(path, files.read_json(path) | {"seconds": seconds})
    assert lines_of(root, "labels").endswith("90.0 min of work")


def test_a_network_in_a_workdir_has_its_own_part(workdir):
    root, folder = workdir
    shown = status.report(root)
    assert shown.splitlines()[0] == f"{root}: nobody works here"
    head, part = shown.split(f"\n\n{folder.relative_to(root)}\n")
    assert "joint/all-seed0: begun, not done" in head
    assert part.startswith("  step 40 of 120 (33%), loss 1.25, 2 steps/s, 40 s to go at that rate\n")
    assert "  no checkpoint" in part
    alone = status.report(folder)
    assert part.strip() in alone


def test_who_works_in_a_workdir_is_said(workdir):
    root, _ = workdir
    with run_dir.Lease(root):
        assert f"process {os.getpid()} on " in status.report(root).splitlines()[0]


def test_a_folder_of_no_run_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="no run; name a --workdir of main, or the folder of one network") as end:
        status.main([str(tmp_path)])
    assert str(end.value.code).startswith("ehrwear_jax: ")
