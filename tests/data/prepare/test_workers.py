"""Where shards are worked on: in process, on local processes, on a running scheduler, in jobs of a batch system."""

import os
import time

import polars as pl
import pytest
from distributed import LocalCluster

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.prepare import workers as cluster


def slower_at_first(x):
    time.sleep(0.2 if x == 0 else 0.0)
    return x * x, os.getpid(), pl.thread_pool_size()


def fail_at_three(x):
    if x == 3:
        raise ValueError("shard 3: row 7: column 'time': before 1900-01-01")
    return x


def die(x):
    os._exit(1)


@pytest.fixture(scope="module")
def two():
    with cluster.Pool(workers=2) as pool:
        yield pool


def test_one_worker_or_one_shard_needs_no_cluster():
    of_nobody = cluster.Pool(scheduler="tcp://127.0.0.1:9")
    for pool, items in ((cluster.Pool(workers=1), range(5)), (cluster.Pool(workers=4), range(1)), (of_nobody, [])):
        with pool:
            found = pool.map(slower_at_first, items, "test")
            assert [f[0] for f in found] == [x * x for x in items] and {f[1] for f in found} <= {os.getpid()}
            assert pool._client is None


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core has no use for processes")
def test_as_many_processes_as_cores_start_once_the_work_that_is_left_is_worth_it(monkeypatch):
    with cluster.Pool(workers=0) as pool:
        found = pool.map(slower_at_first, range(20), "some 4 s of work, it seems")
        assert {f[1] for f in found} == {os.getpid()} and pool._client is None
        monkeypatch.setattr(cluster, "_WORTH_STARTING_S", 1.0)
        for begun_here in (1, 0):
            found = pool.map(slower_at_first, range(20), "test")
            assert [f[0] for f in found] == [x * x for x in range(20)]
            here = [f[1] == os.getpid() for f in found]
            assert here == [True] * begun_here + [False] * (20 - begun_here), "later ones find the processes started"


def test_results_are_in_the_order_of_the_shards_and_workers_have_a_thread_each(two):
    found = two.map(slower_at_first, range(30), "test")
    assert [f[0] for f in found] == [x * x for x in range(30)]
    assert len({f[1] for f in found}) == 2 and os.getpid() not in {f[1] for f in found}
    assert {f[2] for f in found} == {1}


def test_what_a_task_raises_is_raised_as_it_is_and_the_pool_goes_on(two):
    with pytest.raises(ValueError) as error:
        two.map(fail_at_three, range(8), "test")
    assert str(error.value) == "shard 3: row 7: column 'time': before 1900-01-01"
    assert two.map(fail_at_three, [1, 2], "test") == [1, 2]


def test_a_running_scheduler_is_used():
    with LocalCluster(
        1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0"
    ) as running:
        assert running.scheduler_address.startswith("tcp://127.0.0.1:")
        with cluster.Pool(scheduler=running.scheduler_address) as pool:
            assert [f[0] for f in pool.map(slower_at_first, range(3), "test")] == [0, 1, 4]
        assert len(running.scheduler_info["workers"]) == 1, "it goes on running"


def test_a_scheduler_that_does_not_answer_or_is_none_is_said(monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_S", 1)
    with (
        pytest.raises(OSError, match="config.prepare.scheduler: no dask scheduler answers at tcp://127.0.0.1:9"),
        cluster.Pool(scheduler="tcp://127.0.0.1:9") as pool,
    ):
        pool.map(fail_at_three, [1], "test")
    for scheduler in ("slurm", "jobqueue:cron", "host:8786"):
        with pytest.raises(ValueError, match=f"config.prepare.scheduler is '{scheduler}'; it can be empty"):
            cluster.open_pool(PrepareConfig(scheduler=scheduler))
    with pytest.raises(ValueError, match="config.prepare.workers is -1"):
        cluster.Pool(workers=-1)


@pytest.mark.slow
def test_a_task_that_kills_its_workers_is_named():
    with cluster.Pool(workers=2) as pool, pytest.raises(MemoryError, match="raise config.prepare.worker_memory_gb"):
        pool.map(die, range(2), "test")


SBATCH = """#!/bin/sh
cp "$1" job.sh && nohup sh job.sh >job.out 2>&1 &
echo $! >job.pid
echo Submitted batch job 1
"""
SCANCEL = """#!/bin/sh
pkill -P "$(cat job.pid)"
"""


@pytest.mark.slow
def test_jobs_of_a_batch_system(tmp_path, monkeypatch):
    """With commands in place of Slurm's that start each job script as a process."""
    dask = pytest.importorskip("dask")
    pytest.importorskip("dask_jobqueue")
    for name, script in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    size = {"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "1GB", "jobqueue.slurm.interface": "lo"}
    with dask.config.set(size), cluster.Pool(scheduler="jobqueue:slurm", workers=1) as pool:
        found = pool.map(os.getenv, ["POLARS_MAX_THREADS", "OMP_NUM_THREADS", "of no program"], "test")
    assert found == ["1", "1", None]
