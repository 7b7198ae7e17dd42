"""Files appear whole or not at all, whoever writes them and however that ends."""

import os
import threading
from pathlib import Path

import pytest

from ehrwear_jax.runtime import files


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old", flush=True)
    with files.replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(error), files.replacing(path, flush=True) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    (tmp_path / "x.txt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), files.replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    (tmp_path / "x.txt.partial").write_text("a longer text that was cut off")
    with files.replacing(tmp_path / "x.txt") as partial:
        partial.write_text("new")
    assert (tmp_path / "x.txt").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_flush_forces_the_contents_then_the_name_to_the_disk(tmp_path, monkeypatch):
    order, path = [], tmp_path / "x.txt"
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        order.append("folder" if target == str(tmp_path) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("name"), replace(*names)))
    files.write_text(path, "x", flush=True)
    assert order == ["file", "name", "folder"]
    order.clear()
    files.write_text(path, "x")
    assert order == ["name"]


def test_a_reader_beside_several_writers_finds_a_whole_file(tmp_path):
    """Threads that write one file, as the heartbeat's and the main one do: each write succeeds, no mixture is seen."""
    path, writing, faults = tmp_path / "x.json", threading.Event(), []
    values = [[n] * 20_000 for n in range(4)]
    files.write_json(path, values[0])
    writing.set()

    def write(value):
        try:
            for _ in range(25):
                files.write_json(path, value)
        except OSError as error:
            faults.append(error)

    def read():
        while writing.is_set():
            if (found := files.read_json(path)) not in values:
                faults.append(found)

    reader, *writers = [threading.Thread(target=read)] + [threading.Thread(target=write, args=(v,)) for v in values]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    writing.clear()
    reader.join()
    assert faults == [] and list(tmp_path.iterdir()) == [path]


def test_a_torn_json_file_is_no_error(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": "\u00e9"}, indent=1)
    assert files.read_json(tmp_path / "x.json") == {"a": "\u00e9"}
    (tmp_path / "x.json").write_text("[2")
    assert files.read_json(tmp_path / "x.json", {}) == {} and files.read_json(tmp_path / "none") is None


def test_digests_name_every_file_and_change_with_any_byte(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1")
    (tmp_path / "y").write_bytes(b"2")
    before = files.digests(tmp_path, flush=True)
    assert list(before) == ["a/x", "y"] and files.folder_bytes(tmp_path) == 2
    (tmp_path / "y").write_bytes(b"3")
    after = files.digests(tmp_path)
    assert after["a/x"] == before["a/x"] and after["y"] != before["y"]
    assert files.digests(tmp_path, ["y"]) == {"y": after["y"]}
