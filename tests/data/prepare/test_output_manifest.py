"""The manifest of prepare: what was written is found damaged, missing or whole, and counts add up."""

import json
import os
import shutil
import subprocess
import sys

import cohort
import pytest
from repo import REPO

from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.prepare import output_manifest as manifest

OPTIONS = {"subjects_per_shard": 8, "step_minutes": 60}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = cohort.write_cohort(tmp_path_factory.mktemp("cohort"), 24, wear_days=1)
    return cohort.prepare_cohort(root, **OPTIONS)


@pytest.fixture
def root(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")  # with its times


def rot(path, at=-5):
    """One byte changed, in the file's own time."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_every_file_is_in_the_manifest_with_its_checksum(prepared):
    for folder in (prepared / "tables", prepared / "records", prepared / "fit" / "all"):
        noted = json.loads((folder / manifest.NAME).read_text())["files"]
        there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        tallies = {n for n in there if n.endswith(".json")} - set(noted)  # they hold the same checksums
        assert set(noted) == there - tallies and len(noted) > 3
        assert noted == manifest.fingerprints(folder, [folder / n for n in noted])
        assert manifest.faults(folder, full=True) == []


def test_counts_reconcile(prepared):
    tables, *later = (manifest.read(prepared / name)["counts"] for name in ("tables", "records", "fit/all"))
    n_raw = sum(meds.read_shard(p).height for p in meds.list_shards(prepared / "meds"))
    assert tables["EHR rows"]["in"] == n_raw == sum(tables["EHR rows"]["out"].values())
    assert tables["recorded stretches"]["in"] == sum(tables["recorded stretches"]["out"].values()) > 10
    for counts in later:
        assert counts["events"]["in"] == tables["EHR rows"]["out"]["kept"] == sum(counts["events"]["out"].values())


def test_counts_that_do_not_add_up_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the EHR rows do not add up: 5 in"):
        manifest.write(tmp_path, {}, {"EHR rows": {"in": 5, "out": {"kept": 3, "birth": 1}}})
    assert not (tmp_path / manifest.NAME).exists()


@pytest.mark.parametrize(("folder", "name"), [
    ("records", "00001.array_record"), ("tables", "window_values/0.npy"), ("fit/all", "code_statistics.parquet"),
])  # fmt: skip
def test_one_bit_is_found_by_the_full_check_and_named(root, folder, name):
    folder, name = root / folder, f"{folder}/{name}"
    rot(root / name)
    (fault,) = manifest.faults(folder, full=True)
    assert fault == f"{root / name}: its contents are not those that were written (SHA-256 differs)"
    assert manifest.faults(folder, full=False) == [], "its time and size are as before"
    (root / name).touch()
    assert manifest.faults(folder, full=False) == [fault]


def test_a_copy_with_other_times_is_as_it_was_written(root):
    for path in root.rglob("*"):
        if path.name != manifest.NAME:
            path.touch()
    assert manifest.faults(root / "records", full=False) == []
    cohort.prepare_cohort(root, **OPTIONS)


def test_a_changed_output_stops_the_next_call_and_a_missing_one_is_made_again(root):
    shard = root / "records" / "00000.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    want = f"{shard}: has {len(whole) - 9:,} bytes, {len(whole):,} were written; delete it to have it made again"
    with pytest.raises(ValueError) as error:
        cohort.prepare_cohort(root, **OPTIONS)
    assert str(error.value) == want
    shard.unlink()
    events = min((root / "tables" / "events").iterdir())
    events.unlink()
    cohort.prepare_cohort(root, **OPTIONS)
    assert shard.read_bytes() == whole and events.exists()
    assert manifest.faults(root / "tables", full=True) + manifest.faults(root / "records", full=True) == []


def test_a_torn_manifest_is_named(root):
    path = root / "records" / manifest.NAME
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"manifest\.json: not a manifest .*delete it to have it made again"):
        cohort.prepare_cohort(root, **OPTIONS)


def test_the_command_names_what_is_damaged(root, capsys):
    assert manifest.main(["verify", str(root)]) == 0
    assert capsys.readouterr().out.count("files as they were written") == 3
    rot(root / "records" / "00000.array_record")
    (root / "tables" / "subjects.parquet").unlink()
    command = [sys.executable, "-m", "ehrwear_jax.data.prepare", "verify", str(root)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert run.returncode == 1, run.stderr
    assert "records/00000.array_record: its contents are not those" in run.stdout
    assert "subjects.parquet: is missing" in run.stdout and len(run.stdout.splitlines()) == 3
    assert manifest.main(["verify", str(root / "meds")]) == manifest.main(["check"]) == 2
    assert "no manifest.json in it" in capsys.readouterr().err
