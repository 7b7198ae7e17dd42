"""Maps functions over the shards of the prepare stage: in this process, local processes, or a dask cluster.

    scheduler=""                 local processes, `workers` of them (1: this process; 0: one per core, once the work
                                 that is left would keep this process busy for longer than they take to start)
    scheduler="tcp://host:8786"  a running dask scheduler, whose workers see the same files under the same paths
    scheduler="jobqueue:slurm"   jobs of a batch system, `workers` of them, through dask-jobqueue (the extra `cluster`);
                                 their size is set in dask's own config, ~/.config/dask/jobqueue.yaml, as dask-jobqueue
                                 documents. Also pbs, sge, lsf, htcondor, oar, moab.

A task writes files of its own, each of which appears whole or not at all, and returns a few numbers; it may run twice.
The results do not depend on where tasks run or in which order. Workers of a running scheduler should be started with
POLARS_MAX_THREADS and OMP_NUM_THREADS set to their number of threads; those that are started here are.
"""

import dataclasses
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

from ehrwear_jax.config.data import PrepareConfig

JOB_QUEUES = {
    "slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster", "oar": "OARCluster",
    "htcondor": "HTCondorCluster", "moab": "MoabCluster",
}  # fmt: skip
_WORKER_ENVIRONMENT = {
    "POLARS_MAX_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # dask's own choice of 64 KiB returns every large array to the system, to be faulted in anew
    "MALLOC_TRIM_THRESHOLD_": "134217728",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "DASK_LOGGING__DISTRIBUTED": "warning",
}
_WAITING_PER_WORKER = 4  # tasks handed out at a time
_CONNECT_S = 60
_WORTH_STARTING_S = 60.0  # of work that is left; two local processes cost some 20 s of processor time more than one


def check(scheduler: str) -> None:
    """Raises ValueError for a scheduler that is none of the three kinds."""
    kind, _, name = scheduler.partition(":")
    if scheduler and not (kind == "jobqueue" and name in JOB_QUEUES) and kind not in ("tcp", "tls", "ucx", "ws"):
        raise ValueError(
            f"config.prepare.scheduler is {scheduler!r}; it can be empty (local processes), the address of a dask "
            f"scheduler such as tcp://host:8786, or jobqueue: and one of {', '.join(JOB_QUEUES)}"
        )


@dataclasses.dataclass
class Pool:
    """Runs a function on many shards; starts its cluster when there is first something to do on it.

    Args:
      scheduler: see the module's docstring.
      workers: processes or jobs; 0: one per core of this machine, if there is work for them.
      memory_gb: of each local process, above which it is restarted and its task done again; 0: an equal share of the
        machine's memory.

    Raises:
      ValueError: an unknown kind of scheduler.
    """

    scheduler: str = ""
    workers: int = 1
    memory_gb: float = 0.0

    def __post_init__(self) -> None:
        check(self.scheduler)
        if self.workers < 0:
            raise ValueError(f"config.prepare.workers is {self.workers}, must not be negative")
        self._client: Any = None
        self._cluster: Any = None

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *failure: object) -> None:
        for part in (self._client, self._cluster):
            if part is not None:
                part.close()
        self._client = self._cluster = None

    def map(self, function: Callable, items: Iterable, description: str, unit: str = "shard") -> list:
        """[function(item)] in the order of the items; what a task raises is raised here.

        Args:
          function, items: pickled to the workers.
          description, unit: of the progress bar, which is shown on a terminal.
        """
        items = list(items)
        n_workers = self.workers or os.cpu_count() or 1
        with tqdm(total=len(items), desc=description, unit=unit, disable=None) as bar:
            alone = not self.scheduler and min(n_workers, len(items)) <= 1
            waits = not self.scheduler and not self.workers and self._client is None
            found: list[Any] = []
            began = time.monotonic()
            while len(found) < len(items) and (alone or waits):
                found.append(_counted(bar, function(items[len(found)])))
                left = len(items) - len(found)
                waits = waits and (left == 1 or left * (time.monotonic() - began) / len(found) < _WORTH_STARTING_S)
            return found + self._map(function, items[len(found) :], bar)

    def _map(self, function, items, bar):
        if not items:
            return []
        import dask

        dask.config.set({"logging.distributed": "warning"})  # read when distributed is imported
        from distributed import KilledWorker, as_completed

        client = self._start()
        found: dict[int, Any] = {}
        number: dict[Any, int] = {}
        queue, running = iter(enumerate(items)), as_completed()
        try:
            while True:
                room = _WAITING_PER_WORKER * max(len(client.nthreads()), 1)
                while len(number) < room and (following := next(queue, None)) is not None:
                    i, item = following
                    future = client.submit(function, item, pure=False)
                    number[future] = i
                    running.add(future)
                if not number:
                    return [found[i] for i in range(len(items))]
                future = next(running)
                found[number.pop(future)] = _counted(bar, future.result())
        except KilledWorker as error:
            raise MemoryError(
                f"a worker of prepare died repeatedly on {error.task}: it may need more than "
                f"{self.memory_gb or 'its share of the memory in'} GB; raise config.prepare.worker_memory_gb or lower "
                "config.prepare.workers or config.prepare.rows_per_piece"
            ) from error
        finally:
            client.cancel(list(number))

    def _start(self):
        if self._client is None:
            import dask
            from distributed import Client, LocalCluster

            # Read before a worker's libraries are imported: one thread each, as there is a worker per core.
            dask.config.set({"distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT})
            target: Any = self.scheduler
            if not target:
                memory = f"{self.memory_gb}GB" if self.memory_gb else "auto"
                target = self._cluster = LocalCluster(
                    n_workers=self.workers or os.cpu_count(), threads_per_worker=1, processes=True,
                    memory_limit=memory, dashboard_address=None, worker_dashboard_address=None, silence_logs=40,
                )  # fmt: skip
            elif self.scheduler.startswith("jobqueue:"):
                target = self._cluster = _job_queue(self.scheduler.partition(":")[2])
                self._cluster.scale(jobs=self.workers or 1)
            try:
                self._client = Client(target, timeout=_CONNECT_S)
            except OSError as error:
                raise OSError(f"config.prepare.scheduler: no dask scheduler answers at {target}") from error
        return self._client


def _counted(bar, result):
    bar.update()
    return result


def _job_queue(name):
    try:
        module = importlib.import_module("dask_jobqueue")
    except ModuleNotFoundError as error:
        raise ValueError(f"jobqueue:{name} needs dask-jobqueue: pip install 'ehrwear_jax[cluster]'") from error
    prologue = [f"export {key}={value}" for key, value in _WORKER_ENVIRONMENT.items()]
    return getattr(module, JOB_QUEUES[name])(job_script_prologue=prologue, python=sys.executable)


def open_pool(config: PrepareConfig) -> Pool:
    """The Pool that a PrepareConfig asks for, to be used in a with statement."""
    return Pool(config.scheduler, config.workers, config.worker_memory_gb)
