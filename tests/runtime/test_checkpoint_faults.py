"""Checkpoints under damage, full disks and failed saves: never a silently wrong state, and the one before is used."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import jax
import numpy as np
import pytest
from repo import REPO

from ehrwear_jax.runtime import checkpoint, checkpoint_manifest
from ehrwear_jax.runtime.checkpoint import Checkpoints, DamagedCheckpoint
from ehrwear_jax.runtime.exit_codes import NotSaved
from ehrwear_jax.training import sharding

SHAPES = {"a": (16, 5), "b": (7,)}


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(jax.devices()[:1])


def state(mesh, step):
    rng = np.random.default_rng(step)
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}
    tree = {"params": params, "optimizer": (rng.integers(0, 9, 4).astype(np.int32),), "step": np.int32(step)}
    return jax.tree.map(lambda x: jax.device_put(x, sharding.replicated(mesh)), tree)


def same(got, want):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))


@pytest.fixture(scope="module")
def saved(mesh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, about={"seed": 3}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(mesh, step))
    return folder


def flip(path):
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data) or b"x")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] or b"x")  # an empty file grows instead


@pytest.mark.parametrize("damage", [flip, truncate, os.unlink])
def test_damage_of_any_file_is_named_and_the_checkpoint_before_is_used(mesh, saved, tmp_path, damage, caplog):
    """Every file of the newest checkpoint in turn."""
    like, found = state(mesh, 0), sorted(p.relative_to(saved) for p in (saved / "2").rglob("*") if p.is_file())
    assert len(found) >= 8 and len({p.name for p in found} & {"COMMIT", "manifest.json", "about.json"}) == 3
    for name in found:
        folder = tmp_path / str(name).replace("/", "_")
        shutil.copytree(saved, folder)
        damage(folder / name)
        caplog.clear()
        with Checkpoints(folder) as checkpoints:
            step, got, skipped = checkpoints.restore_newest(like, set_aside=True)
            assert step == 1 and same(got, state(mesh, 1)), name
            assert len(skipped) == 1 and name.name in skipped[0] and skipped[0] in caplog.text
            cut_off = name.name == "COMMIT" and damage is os.unlink  # as after a kill in the middle of a save
            assert (folder / "2").exists() == cut_off and (folder / "2.damaged").is_dir() != cut_off
            checkpoints.save(2, state(mesh, 2))  # the step is reached again
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.restore_newest(like)[0] == 2


def test_nothing_whole_is_said(mesh, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "all")
    for step in (1, 2):
        flip(tmp_path / "all" / str(step) / "manifest.json")
    with Checkpoints(tmp_path / "all") as checkpoints:
        with pytest.raises(DamagedCheckpoint, match="no checkpoint is whole: .*checkpoint 2 .*checkpoint 1 "):
            checkpoints.restore_newest(state(mesh, 0), set_aside=True)
        with pytest.raises(DamagedCheckpoint, match="manifest.json is not what COMMIT says"):
            checkpoints.restore(2, state(mesh, 0))
        assert checkpoints.steps() == [1, 2], "nothing is moved, so that the next start does not begin anew"
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.restore_newest(state(mesh, 0)) == (None, None, [])


def test_arrays_that_are_not_those_saved_are_refused_though_every_file_is_whole(mesh, saved, tmp_path):
    """What a full disk or a fault of the library may write: files with the right digests and the wrong numbers."""
    shutil.copytree(saved, tmp_path / "all")
    about = json.loads((tmp_path / "all" / "2" / "about.json").read_text())
    about["leaves"]["params/a"][2] ^= 1
    (tmp_path / "all" / "2" / "about.json").write_text(json.dumps(about))
    for name in ("manifest.json", "COMMIT"):
        (tmp_path / "all" / "2" / name).unlink()
    checkpoint_manifest.seal(tmp_path / "all" / "2")
    with Checkpoints(tmp_path / "all") as checkpoints:
        assert checkpoints.faults(2) == []
        step, _, (reason,) = checkpoints.restore_newest(state(mesh, 0))
        assert step == 1 and "params/a is not what was saved" in reason


@pytest.mark.parametrize("host_bytes", [0, 1 << 20])
def test_checksums_see_every_word_and_its_place_and_no_mesh(monkeypatch, host_bytes):
    """Summed by the devices and by numpy."""
    monkeypatch.setattr(checkpoint, "HOST_BYTES", host_bytes)
    meshes = [sharding.make_mesh(jax.devices()[:n]) for n in (1, 4)]
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    sums = {checkpoint.checksums(jax.device_put(x, sharding.batch_sharding(m))) for m in meshes}
    assert len(sums) == 1
    for change in (lambda y: y.reshape(-1).view(np.uint32).__setitem__(5, 0), lambda y: y.__setitem__((0, 0), -y[0, 0]),
                   lambda y: y.__setitem__(slice(None), y[::-1].copy())):  # fmt: skip
        y = x.copy()
        change(y)
        sums.add(checkpoint.checksums(jax.numpy.asarray(y)))
    assert len(sums) == 4


def test_both_sums_are_the_same_number(monkeypatch):
    rng = np.random.default_rng(0)
    half = jax.numpy.asarray(rng.normal(size=(2, 3, 4)), jax.numpy.bfloat16)
    tree = [rng.normal(size=(5, 3)).astype(np.float32), np.int32(7), np.array([True, False]), np.zeros((0, 2)), half]
    tree = [jax.numpy.asarray(x) for x in tree]
    host = checkpoint.checksums(tree)
    monkeypatch.setattr(checkpoint, "HOST_BYTES", 0)
    assert checkpoint.checksums(tree) == host


def test_what_a_checkpoint_says_about_itself_and_its_parameters_alone(mesh, saved):
    about = checkpoint_manifest.about(saved / "2")
    assert (about["step"], about["seed"]) == (2, 3)
    parts = checkpoint.read_parts(saved / "2")
    assert parts.keys() == {"params"} and same(parts["params"], state(mesh, 2)["params"])


def test_the_last_and_every_so_many_are_kept(mesh, tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 12):
            checkpoints.save(step, state(mesh, step))
        assert checkpoints.steps() == [4, 8, 10, 11]
    now = datetime.now(UTC)
    assert checkpoint.preserved(dict.fromkeys((5, 1, 9), now), newest=1) == [9]
    assert checkpoint.preserved(dict.fromkeys((4, 6, 8, 9), now), newest=1, every=4) == [4, 8, 9]
    assert checkpoint.preserved({}, newest=2, every=4) == []


def test_a_checkpoint_is_removed_only_when_a_newer_one_is_sealed(mesh, tmp_path, monkeypatch):
    """Of one that is kept: at no moment is there none with a commit mark, so that a kill at any moment loses none."""
    there = []
    seal = checkpoint_manifest.seal

    def watched(folder):
        there.append(checkpoint_manifest.steps(tmp_path))
        seal(folder)
        there.append(checkpoint_manifest.steps(tmp_path))

    monkeypatch.setattr(checkpoint_manifest, "seal", watched)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(mesh, step))
        assert checkpoints.steps() == [3]
    assert there == [[], [1], [1], [1, 2], [2], [2, 3]]


def test_a_checkpoint_without_commit_mark_does_not_count_among_the_newest(mesh, saved, tmp_path):
    """What a kill between orbax's rename and the mark leaves; a whole one before it stays until enough are newer."""
    shutil.copytree(saved, tmp_path / "all")
    (tmp_path / "all" / "2" / "COMMIT").unlink()
    with Checkpoints(tmp_path / "all", keep=2) as checkpoints:
        checkpoints.save(3, state(mesh, 3))
        assert checkpoints.steps() == [1, 3]


def test_a_removal_or_save_that_was_cut_off_is_tidied_and_not_taken_for_a_checkpoint(mesh, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "all")
    (tmp_path / "all" / "1" / "COMMIT").unlink()
    (tmp_path / "all" / "3.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path / "all") as checkpoints:
        assert checkpoints.steps() == [2]
        checkpoints.save(4, state(mesh, 4))
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["2", "4"]


def test_a_failed_save_is_said_and_can_be_repeated(mesh, tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(mesh, 1))
        checkpoints.wait()

        def broken(folder):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_manifest, "seal", broken)
            checkpoints.save(2, state(mesh, 2))
            with pytest.raises(NotSaved, match="step 2 was not written.*No space left on device"):
                checkpoints.wait()
        assert checkpoints.steps() == [1] and not (tmp_path / "2").exists()
        checkpoints.save(2, state(mesh, 2))
        assert checkpoints.steps() == [1, 2]


FULL_DISK = """
import collections, shutil, sys
import jax, numpy as np
from ehrwear_jax.runtime import checkpoint, checkpoint_manifest
from ehrwear_jax.training import sharding
from ehrwear_jax.runtime.exit_codes import NotSaved
folder = sys.argv[1]
mesh = sharding.make_mesh()
def state(step):
    x = np.random.default_rng(step).normal(size=(500, 1000)).astype(np.float32)  # 2 MB, not compressible
    return {"params": {"x": jax.device_put(x, sharding.replicated(mesh))}}
def check(checkpoints, want):
    step, got, skipped = checkpoints.restore_newest(state(0))
    assert (step, skipped) == (want, []) and np.array_equal(got["params"]["x"], state(want)["params"]["x"])
with checkpoint.Checkpoints(folder, keep=9) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    try:
        checkpoints.save(3, state(3))
    except NotSaved as error:
        print("refused:", error)
    check(checkpoints, 2)
    real = shutil.disk_usage
    shutil.disk_usage = lambda path: real(path)._replace(free=1 << 40)  # the disk fills up after the look at it
    checkpoints.save(3, state(3))
    try:
        checkpoints.wait()
    except NotSaved as error:
        print("failed:", error)
    shutil.disk_usage = real
    check(checkpoints, 2)
    checkpoint_manifest.remove(checkpoints.folder / "1")  # someone makes room
    checkpoints.save(3, state(3))
    check(checkpoints, 3)
"""


def test_a_disk_that_fills_up(tmp_path):
    """A real file system of 5 MB: refused before, failed during, repeated after; the newest checkpoint stays whole."""
    (tmp_path / "full.py").write_text(FULL_DISK)
    (tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size=5m none {tmp_path}/disk"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urm", "sh", "-c", mount]).returncode:
        pytest.skip("this machine lets no user mount a tmpfs in a namespace of their own")
    command = f"{mount} && exec {sys.executable} {tmp_path}/full.py {tmp_path}/disk"
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", command], env=os.environ | {"PYTHONPATH": str(REPO)},
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused, failed = done.stdout.splitlines()
    assert refused.startswith("refused:") and "no room for the checkpoint of step 3: it needs 3.0 MB" in refused
    assert failed.startswith("failed:") and "step 3 was not written" in failed
