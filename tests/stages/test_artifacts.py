"""An artifact is found by what it depends on, is done when it was made whole, and is resumed otherwise."""

import json

import pytest

from ehrwear_jax.stages import workdir as workdir_lib
from ehrwear_jax.stages.artifacts import Artifact, Paused
from ehrwear_jax.stages.workdir import Workdir


def make(tmp_path, **of):
    return Artifact(Workdir(tmp_path), "models", "joint/all-seed0", {"width": 8} | of)


def test_it_lies_where_its_identity_says(tmp_path):
    a, same, other = make(tmp_path), make(tmp_path), make(tmp_path, width=9)
    assert a.folder == same.folder == tmp_path / "models" / "joint" / f"all-seed0-{a.digest[:8]}"
    assert other.folder.parent == a.folder.parent and other.folder != a.folder
    assert a.digest != Artifact(a.workdir, "fit", a.name, a.of).digest
    assert a.digest != Artifact(a.workdir, a.kind, "joint/all-seed1", a.of).digest


def test_it_is_done_when_it_was_made_whole(tmp_path):
    a = make(tmp_path)
    assert not a.done and not a.folder.exists(), "to ask makes nothing"
    with a.making() as folder:
        assert folder == a.folder and not a.done
        (folder / "x").write_text("1")
    assert a.done and a.seconds > 0 and not make(tmp_path, width=9).done
    about = json.loads((a.folder / "artifact.json").read_text())
    assert about["of"] == {"width": 8} and about["digest"] == a.digest


def test_what_fails_or_pauses_is_resumed_in_the_same_folder_and_its_time_adds_up(tmp_path):
    a = make(tmp_path)
    with pytest.raises(ValueError, match="a broken file"), a.making() as folder:
        (folder / "x").write_text("1")
        raise ValueError("a broken file")
    assert not a.done
    with a.making() as folder:
        assert (folder / "x").read_text() == "1"
        raise Paused
    assert not a.done
    workdir_lib.write_about(a.folder, workdir_lib.read_about(a.folder) | {"seconds": 100.0})
    with a.making():
        pass
    assert a.done and a.seconds > 100


def test_the_folder_of_another_artifact_is_not_taken_for_it(tmp_path):
    """Folders are named by eight digits of 64: the whole digest is compared."""
    a = make(tmp_path)
    with a.making():
        pass
    workdir_lib.write_about(a.folder, workdir_lib.read_about(a.folder) | {"digest": a.digest[:8] + "0" * 56})
    assert not a.done


def test_a_file_that_was_deleted_is_made_again(tmp_path):
    a = make(tmp_path)
    with a.making() as folder:
        (folder / "parts").mkdir()
        for name in ("x", "parts/0", "parts/1", "x.partial", "lease.json"):
            (folder / name).write_text("1")
    (a.folder / "x.partial").unlink()
    (a.folder / "lease.json").unlink()
    assert a.done, "what is there for a time is not waited for"
    for name in ("x", "parts/1"):
        (a.folder / name).unlink()
        assert not a.done
        with a.making() as folder:
            (folder / name).write_text("1")
        assert a.done
    about = workdir_lib.read_about(a.folder)
    del about["files"]
    workdir_lib.write_about(a.folder, about)
    assert a.done, "as one that was made before files were counted"


def test_a_link_is_replaced_whole(tmp_path):
    link, (one, two) = tmp_path / "report", (tmp_path / "reports" / x for x in "ab")
    for target in (one, two):
        target.mkdir(parents=True)
        workdir_lib.link(link, target)
        assert link.resolve() == target and not link.readlink().is_absolute(), "a workdir can be moved"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report", "reports"]
