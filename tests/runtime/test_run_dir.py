"""A run's folder: one writer, leases that were left behind, what may not change, heartbeats."""

import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repo import REPO

from ehrwear_jax.runtime import files, run_dir
from ehrwear_jax.runtime.exit_codes import Changed, InUse


def alter(folder, **values):
    """Rewrites the lease with other values, its time as it was."""
    path = folder / run_dir.LEASE
    when = path.stat().st_mtime
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    os.utime(path, (when, when))


def leave(folder, **values):
    """What a process leaves that did not give its lease back."""
    with run_dir.Lease(folder):
        text = (folder / run_dir.LEASE).read_text()
    (folder / run_dir.LEASE).write_text(text)
    alter(folder, **values)


def test_a_second_writer_is_refused_and_the_folder_is_free_afterwards(tmp_path):
    with run_dir.Lease(tmp_path / "run") as lease:
        assert lease.is_mine()
        with (
            pytest.raises(InUse, match=f"process {os.getpid()} on .* writes here, seen 0 s ago"),
            run_dir.Lease(tmp_path / "run"),
        ):
            pass
        lease.check()
    assert list((tmp_path / "run").iterdir()) == []
    with run_dir.Lease(tmp_path / "run"):
        pass


def test_a_process_that_lives_is_refused_and_taken_over_when_it_was_killed(tmp_path, caplog):
    program = (
        "import sys, time; from ehrwear_jax.runtime import run_dir\n"
        "with run_dir.Lease(sys.argv[1]):\n print(1, flush=True)\n time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE,
                             env=os.environ | {"PYTHONPATH": str(REPO)})  # fmt: skip
    try:
        assert other.stdout.readline()
        with pytest.raises(InUse, match=f"process {other.pid} "), run_dir.Lease(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with caplog.at_level(logging.WARNING), run_dir.Lease(tmp_path):
        assert f"took over from process {other.pid}" in caplog.text


def test_an_id_that_another_process_has_now_is_no_sign_of_life(tmp_path):
    leave(tmp_path, pid=os.getpid(), started=run_dir.start_of(os.getpid()) - 1)
    with run_dir.Lease(tmp_path):
        pass


@pytest.mark.parametrize("place", [["elsewhere", "boot", "pid:[1]"], [*run_dir.place()[:2], "pid:[1]"]])
def test_a_lease_from_elsewhere_counts_while_it_is_renewed(tmp_path, place):
    """Another host, or another container of this one, whose processes cannot be looked at."""
    leave(tmp_path, place=place, pid=1)
    old = time.time() - 100
    os.utime(tmp_path / run_dir.LEASE, (old, old))
    with run_dir.Lease(tmp_path, stale_s=99.0):  # silent for longer than that
        pass
    leave(tmp_path, place=place, pid=1)
    began = time.monotonic()
    with run_dir.Lease(tmp_path, stale_s=0.6, renew_s=0.1):  # watched until then
        assert 0.4 < time.monotonic() - began < 5
    leave(tmp_path, place=place, pid=1)
    end = threading.Event()
    owner = threading.Thread(
        target=lambda: [os.utime(tmp_path / run_dir.LEASE) for _ in iter(lambda: end.wait(0.1), True)]
    )
    owner.start()
    with pytest.raises(InUse, match=f"process 1 on {place[0]}"), run_dir.Lease(tmp_path, stale_s=5.0, renew_s=0.1):
        pass
    end.set()
    owner.join()


def test_of_many_that_take_over_at_once_one_does(tmp_path):
    """Processes race for a lease that was left behind; each holds it for a moment and sees no other."""
    leave(tmp_path, pid=2**22 + 1)
    held, most, refused, lock = [0], [0], [0], threading.Lock()
    gate = threading.Barrier(8)

    def compete():
        gate.wait()
        try:
            with run_dir.Lease(tmp_path):
                with lock:
                    held[0] += 1
                    most[0] = max(most[0], held[0])
                time.sleep(0.05)
                with lock:
                    held[0] -= 1
        except InUse:
            with lock:
                refused[0] += 1

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert most[0] == 1 and refused[0] >= 1 and list(tmp_path.iterdir()) == []


def test_a_claim_on_a_stale_lease_is_waited_for_and_an_old_one_removed(tmp_path):
    """Whoever claimed it may be about to remove it; if it died in that, the next one does."""
    leave(tmp_path, pid=2**22 + 1)
    claim = tmp_path / f"{run_dir.LEASE}.{run_dir.holder(tmp_path)[0]['id']}.claim"
    claim.touch()
    began = time.monotonic()
    with run_dir.Lease(tmp_path, stale_s=0.5):
        assert 0.4 < time.monotonic() - began < 5
    assert list(tmp_path.iterdir()) == []


def test_who_looked_at_the_lease_before_another_took_over_leaves_that_one(tmp_path):
    leave(tmp_path, pid=2**22 + 1)
    seen = run_dir.holder(tmp_path)[0]
    with run_dir.Lease(tmp_path) as lease:
        run_dir.Lease(tmp_path)._take_away(seen)
        assert lease.is_mine() and len(list(tmp_path.iterdir())) == 1


def test_a_lease_that_was_taken_away_is_noticed(tmp_path):
    with run_dir.Lease(tmp_path, renew_s=0.05) as lease:
        before = (tmp_path / run_dir.LEASE).stat().st_mtime_ns
        time.sleep(0.3)
        assert (tmp_path / run_dir.LEASE).stat().st_mtime_ns > before, "renewed"
        alter(tmp_path, id="other")
        with pytest.raises(InUse, match="taken by another process; this one writes no more"):
            lease.check()
        time.sleep(0.3)
        assert lease.lost
    assert (tmp_path / run_dir.LEASE).exists(), "another one's lease is not removed"


def test_what_changed_is_said(tmp_path):
    about = {"seed": 0, "config": {"train": {"rate": 1e-3, "weights": {"a": (0.1, 1.0)}}}, "data": {"index": "12ab"}}
    run_dir.check_same(tmp_path, about)
    run_dir.check_same(tmp_path, json.loads(json.dumps(about)))
    changed = {"seed": 0, "config": {"train": {"rate": 3e-3, "weights": {"a": (0.2, 1.0)}}}, "data": {"index": "34cd"}}
    with pytest.raises(Changed) as error:
        run_dir.check_same(tmp_path, changed)
    for sentence in ("config.train.rate: 0.001 -> 0.003", "config.train.weights.a: [0.1, 1.0] -> [0.2, 1.0]",
                     "data.index: 12ab -> 34cd", "start a run in another folder"):  # fmt: skip
        assert sentence in str(error.value)
    assert "seed" not in str(error.value).replace("seed:", "")
    run_dir.check_same(tmp_path, about)  # what was noted is as it was


tree = st.recursive(st.integers(0, 3), lambda x: st.dictionaries(st.sampled_from("abc"), x, max_size=3), max_leaves=6)


@settings(max_examples=50)
@given(tree, tree)
def test_a_difference_is_found_exactly_where_there_is_one(a, b):
    assert run_dir.difference(a, a) == []
    assert bool(run_dir.difference(a, b)) == (a != b)


def test_the_heartbeat_is_written_by_itself_and_at_a_change_of_phase(tmp_path):
    with run_dir.Heartbeat(tmp_path, steps=10, every_s=0.05) as heart:
        heart.beat(step=3)
        time.sleep(0.3)
        found = files.read_json(tmp_path / run_dir.HEARTBEAT)
        assert (found["step"], found["steps"], found["phase"], found["pid"]) == (3, 10, "starting", os.getpid())
        assert abs(time.time() - found["time"]) < 5
    with run_dir.Heartbeat(tmp_path, steps=10, every_s=60) as heart:
        heart.beat(step=4, phase="saving")
        assert files.read_json(tmp_path / run_dir.HEARTBEAT)["phase"] == "saving"


def test_events_of_a_torn_file_are_read(tmp_path):
    events = run_dir.Events(tmp_path)
    events.add("loss_spike", 3, loss=2.5)
    run_dir.Events(tmp_path, writes=False).add("loss_spike", 4)
    with open(tmp_path / run_dir.EVENTS, "a") as f:
        f.write('{"kind": "los')
    (found,) = run_dir.read_lines(tmp_path / run_dir.EVENTS)
    assert (found["kind"], found["step"], found["loss"]) == ("loss_spike", 3, 2.5)
    assert run_dir.read_lines(tmp_path / "none") == []
