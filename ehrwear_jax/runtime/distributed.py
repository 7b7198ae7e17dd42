"""Joins the processes of a distributed job; lets them agree on values.

Agreements go through JAX's coordination service, not through the devices: they have names and timeouts,
and work when a device does not.
"""

import itertools
import json
import logging
import os
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from ehrwear_jax.runtime.exit_codes import PROCESS_LOST, STOPPED, ProcessLost, RunError

T = TypeVar("T")
TIMEOUT_S = 600.0
LONGEST_STAGE_S = 7 * 86400.0  # that one process may wait for what another computes
# The coordination service takes each name once: a use of one gets the next number.
_uses: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)


def coordination_client() -> Any:
    """The client of JAX's coordination service, with a key-value store; None in a single process.

    JAX has no public name for it; no other line of the package uses a private name of JAX.

    Raises:
      RuntimeError: this version of JAX keeps it elsewhere.
    """
    try:
        from jax._src import distributed as service

        client = service.global_state.client
        if client is not None:
            for method in ("key_value_set", "blocking_key_value_get"):
                getattr(client, method)
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"JAX {jax.__version__} has moved the client of its coordination service ({error}); "
            "ehrwear_jax.runtime.distributed.coordination_client must look for it elsewhere"
        ) from error
    return client


def arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What jax.distributed.initialize is to be told, from the environment; None: this is one process alone.

    EHRWEAR_COORDINATOR (host:port), EHRWEAR_NUM_PROCESSES and EHRWEAR_PROCESS_ID say it outright. Else Slurm tasks, a
    JobSet on Kubernetes (launch/gke_jobset.yaml sets the three names) and the hosts of a TPU slice are recognised, and
    jax finds out the rest.

    Raises:
      ValueError: only some of the three are set.
    """
    names = ("EHRWEAR_COORDINATOR", "EHRWEAR_NUM_PROCESSES", "EHRWEAR_PROCESS_ID")
    given = [n for n in names if environment.get(n)]
    if given and len(given) < 3:
        raise ValueError(f"{', '.join(given)} is set, {', '.join(n for n in names if n not in given)} is not")
    if given:
        coordinator, n, i = (environment[name] for name in names)
        if int(n) == 1:
            return None
        return {"coordinator_address": coordinator, "num_processes": int(n), "process_id": int(i)}
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:  # set by srun, for the step that this process is of
        return {"cluster_detection_method": "slurm"}
    hosts = [h for h in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if h and h != "localhost"]
    if len(hosts) > 1 or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return {}
    return None


def initialize(environment: Mapping[str, str] = os.environ, heartbeat_timeout_s: int = 60, wait_s: int = 300) -> None:
    """Joins the job's other processes, if the environment names any. Before anything touches a device.

    Raises:
      ProcessLost: they were not all there in time.
      ValueError: as `arguments`.
    """
    found = arguments(environment)
    if found is None:
        return
    if environment.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **found,
            initialization_timeout=wait_s,
            heartbeat_timeout_seconds=heartbeat_timeout_s,
            shutdown_timeout_seconds=60,
        )
    except jax.errors.JaxRuntimeError as error:
        raise ProcessLost(f"the processes of the job did not come together within {wait_s} s: {error}") from error
    coordination_client()  # if it was moved, that is said now and not when they first have to agree
    logging.info("process %d of %d", jax.process_index(), jax.process_count())
    if not is_first():
        logging.getLogger().setLevel(logging.ERROR)  # one process writes the log


def several() -> bool:
    """Whether the job has more than one process."""
    return process_count() > 1


def process_index() -> int:
    """This process's number in the job, from 0; of a process alone without a look at its devices, which takes them."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def process_count() -> int:
    """How many processes the job has; the same way."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes logs, marks and manifests."""
    return process_index() == 0


def from_first(name: str, value: Any = None, timeout_s: float = TIMEOUT_S) -> Any:
    """The first process's JSON-able value, on every process.

    Raises:
      ProcessLost: it did not come within timeout_s.
    """
    if not several():
        return value
    key, client = f"ehrwear_jax/{name}/{next(_uses[name])}", coordination_client()
    if is_first():
        client.key_value_set(key, json.dumps(value))
        return value
    try:
        return json.loads(client.blocking_key_value_get(key, int(timeout_s * 1000)))
    except jax.errors.JaxRuntimeError as error:
        raise ProcessLost(f"{name!r}: nothing from the first process within {timeout_s:g} s: {error}") from error


def to_first(name: str, value: Any, timeout_s: float = TIMEOUT_S) -> list[Any]:
    """Every process's JSON-able value, in the order of the processes, on the first; [] on the others.

    Raises:
      ProcessLost: one did not come within timeout_s.
    """
    if not several():
        return [value]
    key, client = f"ehrwear_jax/{name}/{next(_uses[name])}", coordination_client()
    if not is_first():
        client.key_value_set(f"{key}/{process_index()}", json.dumps(value))
        return []
    found = [value]
    for i in range(1, process_count()):
        try:
            found.append(json.loads(client.blocking_key_value_get(f"{key}/{i}", int(timeout_s * 1000))))
        except jax.errors.JaxRuntimeError as error:
            raise ProcessLost(f"{name!r}: nothing from process {i} within {timeout_s:g} s: {error}") from error
    return found


def from_all(name: str, value: Any, timeout_s: float = TIMEOUT_S) -> list[Any]:
    """The JSON-able values of all processes in their order, on every process.

    Raises:
      ProcessLost: one of them did not come within timeout_s.
    """
    # the others wait for the first process, and it for each of them
    return from_first(f"{name}/together", to_first(name, value, timeout_s), timeout_s)


def to_the_end(work: Callable[[], T], debug: bool = False) -> T:
    """Calls work(); what ends it badly becomes one sentence on stderr and an exit code of exit_codes.py.

    Of several processes, one that fails ends at once, since the others will not come to the shutdown that jax would
    wait for; they in turn find it gone.
    """
    try:
        return work()
    except KeyboardInterrupt:
        code, sentence = STOPPED, "stopped by SIGINT; run it again to go on"
    except (ValueError, OSError, RunError) as error:
        if debug and not several():
            raise
        code, sentence = getattr(error, "code", 1), str(error)
    except jax.errors.JaxRuntimeError as error:
        if not several():
            raise
        code, sentence = PROCESS_LOST, f"a step failed, as it does when a process of the job is gone: {error}"
    except Exception:
        if not several():
            raise
        traceback.print_exc()
        code, sentence = 1, f"process {jax.process_index()} failed"
    sentence = f"ehrwear_jax: {' '.join(sentence.split())[:2000]}"
    if several():
        print(sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)
    if code == 1:
        sys.exit(sentence)
    print(sentence, file=sys.stderr)
    sys.exit(code)


class AnyFlag:
    """Whether any process raised its flag, the same on all, one small sum over the devices per question.

    `ask` starts the sum, `answer` reads it: between the two the devices do other work.
    """

    def __init__(self) -> None:
        self._pending: jax.Array | bool | None = None
        if several():
            devices = np.array(jax.devices())
            mesh = jax.sharding.Mesh(devices, ("process",))
            self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("process"))
            whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            self._any = jax.jit(lambda x: x.max(), out_shardings=whole)
            self._n_local = len(jax.local_devices())

    def ask(self, flag: bool) -> None:
        """Starts the sum over all processes' flags."""
        if not several():
            self._pending = bool(flag)
        else:
            mine = np.full(self._n_local, bool(flag), np.int32)
            self._pending = self._any(jax.make_array_from_process_local_data(self._sharding, mine))

    def answer(self) -> bool:
        """The answer to the last question; False if none was asked."""
        return self._pending is not None and bool(self._pending)
