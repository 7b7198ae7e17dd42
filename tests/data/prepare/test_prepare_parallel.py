"""Workers, and kills at any moment, change no byte of what prepare writes."""

import os
import random
import subprocess
import sys
import time

import cohort
import psutil
import pytest
from repo import REPO

from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.prepare import workers as worker_pool

N_SUBJECTS = 40
OPTIONS = {"rows_per_piece": 60, "subjects_per_shard": 6, "min_subjects": 4, "implied_parents": True}
PROGRAM = f"""
import sys
from pathlib import Path
sys.path.insert(0, "tests/helpers")
import cohort

if __name__ == "__main__":  # worker processes import this file
    cohort.prepare_cohort(Path(sys.argv[1]), workers=int(sys.argv[2]), **{OPTIONS!r})
"""


def written(root):
    """{path: content} of what prepare wrote; half-written files left by a kill are not part of it."""
    found = {}
    for folder in ("tables", "records", "fit"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and not path.name.endswith(".partial"):
                found[str(path.relative_to(root))] = path.read_bytes()
    return found


def n_written(root):
    """Files under `root` (its inputs are links, which are not followed); a folder that vanishes meanwhile has none."""
    return sum(len(files) for _, _, files in os.walk(root))


def inputs(source, root):
    root.mkdir()
    for name in ("meds", "wearable"):
        (root / name).symlink_to(source / name)
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return cohort.write_cohort(tmp_path_factory.mktemp("cohort"), N_SUBJECTS, wear_days=1)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    return written(cohort.prepare_cohort(inputs(source, tmp_path_factory.mktemp("one") / "run"), **OPTIONS))


def test_large_shards_are_taken_in_pieces_and_records_do_not_change(source, whole, tmp_path):
    assert sum("~" in name for name in whole) > 10, "the comparison is of pieces"
    one = written(cohort.prepare_cohort(inputs(source, tmp_path / "run"), **OPTIONS | {"rows_per_piece": 10**6}))
    names = {name for name in whole if name.startswith(("records/", "fit/"))}
    assert names == {name for name in one if name.startswith(("records/", "fit/"))}
    assert not any("~" in name for name in one)
    assert [name for name in names if whole[name] != one[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_no_byte(source, whole, tmp_path, workers):
    root = inputs(source, tmp_path / "run")
    with worker_pool.Pool(workers=workers) as pool:
        cohort.prepare_cohort(root, pool=pool, **OPTIONS)
        assert len(pool._client.nthreads()) == workers
    assert written(root) == whole


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(source, whole, tmp_path, workers):
    """SIGKILL when a random number of files is there, again and again, until a run gets through."""
    root, program = inputs(source, tmp_path / "run"), tmp_path / "program.py"
    program.write_text(PROGRAM)
    draw, n_killed = random.Random(workers), 0
    for n_files in sorted(draw.sample(range(1, len(whole)), 4)):
        process = subprocess.Popen([sys.executable, str(program), str(root), str(workers)], cwd=REPO)
        while process.poll() is None and n_written(root) < n_files:
            time.sleep(0.002)
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        n_killed += process.wait() == -9
        gone, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, "workers end with the program that started them"
    assert n_killed >= 2, "the runs were killed in the middle"
    if workers == 1:
        cohort.prepare_cohort(root, **OPTIONS)
    else:
        assert subprocess.run([sys.executable, str(program), str(root), str(workers)], cwd=REPO).returncode == 0
    assert written(root) == whole
    for folder in ("tables", "records", "fit/all"):
        assert manifest.faults(root / folder, full=True) == []
