"""Runs a stage's networks side by side, each in a process of its own on this machine (stages/worker.py).

A network is given to one process only, once those that its training needs are done, and each process has its share of
the devices and of the cores, so that what is trained is what one process after the other would train. Its words go to
log.txt in the network's folder. One that fails is named and lets the others finish; one that is lost, as to the
kernel's out of memory killer, is started again. A stop of the run stops all of them, which save. A run that is killed
takes them with it.
"""

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import jax

from ehrwear_jax.runtime import exit_codes, goodput
from ehrwear_jax.runtime.exit_codes import RunError
from ehrwear_jax.stages.plan import Plan, Trained

LOG = "log.txt"
STARTS = 3  # of a network whose process is lost
_LOOK_S, _SAY_S = 0.2, 30.0  # between looks at the processes; between lines about each
# that follow the number of cores unless they are told otherwise: XLA, BLAS, OpenMP, polars
_THREADS = ("NPROC", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "POLARS_MAX_THREADS")
# jax is asked in a process that ends: this one must not take the devices
_ASK = "import jax, json; print(json.dumps([jax.default_backend(), jax.local_device_count()]))"


@dataclasses.dataclass
class _Work:
    """A network that a process is at."""

    trained: Trained
    folder: Path
    process: subprocess.Popen


def run(stage: ModuleType, name: str, plan: Plan, processes: int) -> None:
    """Does what is missing of a stage.

    Args:
      stage: a module with missing(plan), folder_of(plan, trained) and where(plan, trained).
      name: of the stage.
      processes: at a time; at least 1.

    Raises:
      RunError: some networks failed; the others are done. Its code is that of the first one that is not worth starting
        again, else of the first one.
      ValueError: the devices cannot be shared out.
    """
    missing = set(stage.missing(plan))
    wanted = [t for t in plan.trained() if t.key in missing]
    left, failed, found = wanted, dict[str, tuple[int, str]](), devices()
    while ready := [t for t in left if not missing.intersection(n.key for n in plan.needed(t).values())]:
        slots = environments(min(processes, len(ready)), *found, _cores(), os.environ)
        for trained in ready:
            _check(plan, trained, len(slots))
        failed |= _Pool(stage, name, plan, slots).run(ready)
        left = [t for t in left if t not in ready]
        missing = set(stage.missing(plan)) if left else set()
    if failed:
        raise _error(failed, len(wanted))


def devices() -> tuple[str, int]:
    """(platform, number of devices) that jax finds here, without taking them.

    Raises:
      RunError: jax finds none.
    """
    found = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    if found.returncode:
        raise RunError(f"jax finds no devices: {(found.stderr.strip().splitlines() or ['no word'])[-1]}")
    platform, count = json.loads(found.stdout.splitlines()[-1])
    return platform, count


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environments(n: int, platform: str, count: int, cores: int, given: Mapping[str, str]) -> list[dict[str, str]]:
    """What each of n processes has in its environment beside `given`: its share of cores and devices.

    Of `count` GPUs each process has as many; where there are fewer than processes, several share one and its memory.
    Numbers of threads that are given stay.

    Raises:
      ValueError: the devices are neither CPU nor GPU.
    """
    threads = {k: str(max(1, cores // max(1, n))) for k in _THREADS if k not in given}
    if platform == "cpu" or n < 2:
        return [dict(threads) for _ in range(n)]
    if platform not in ("gpu", "cuda", "rocm"):
        raise ValueError(f"--processes={n}: {platform} devices are not shared out; train on them one after the other")
    visible = [d for d in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if d] or [str(i) for i in range(count)]
    each, out = count // n, []
    for i in range(n):
        mine = visible[i * each : (i + 1) * each] if each else [visible[i % count]]
        out.append(threads | {"CUDA_VISIBLE_DEVICES": ",".join(mine)})
        if not each and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in given:
            out[i]["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / -(-n // count):.3f}"
    return out


def _check(plan, trained, n):
    if n > 1 and plan.config.train_config(trained.name).rows_per_device:
        raise ValueError(
            f"--processes={n}: the batch of {trained.name} would follow from its share of the devices "
            "(config.train.rows_per_device): say config.train.batch_size"
        )


def command(plan: Plan, stage: str, trained: Trained) -> list[str]:
    """The command line of a process for one network."""
    workdir = plan.workdir
    arguments = [str(workdir.root), str(workdir.config_file(plan.config)), stage, trained.key]
    return [sys.executable, "-m", "ehrwear_jax.stages.worker", *arguments]


class _Pool:
    """Processes of a stage, at most one for each of the environments `slots`."""

    def __init__(self, stage: ModuleType, name: str, plan: Plan, slots: list[dict[str, str]]) -> None:
        self._stage, self._name, self._plan = stage, name, plan
        self._slots, self._running = slots, dict[int, _Work]()
        self._starts, self._failed, self._done = dict[str, int](), dict[str, tuple[int, str]](), 0
        self._began, self._said = time.monotonic(), time.monotonic()

    def run(self, wanted: list[Trained]) -> dict[str, tuple[int, str]]:
        """{network: (exit code, sentence)} of those that failed."""
        queue, total = deque(wanted), len(wanted)
        with self._stopping():
            while queue or self._running:
                for slot in range(len(self._slots)):
                    if slot not in self._running and queue:
                        self._running[slot] = self._start(queue.popleft(), slot)
                time.sleep(_LOOK_S)
                for slot, work in list(self._running.items()):
                    if (code := work.process.poll()) is not None:
                        del self._running[slot]
                        if self._ended(work, code):
                            queue.append(work.trained)
                        else:
                            self._say_total(total)
                if time.monotonic() - self._said > _SAY_S:
                    self._say()
        return self._failed

    def _start(self, trained, slot):
        folder = self._stage.folder_of(self._plan, trained)
        folder.mkdir(parents=True, exist_ok=True)
        self._starts[trained.key] = self._starts.get(trained.key, 0) + 1
        logging.info("  %s: begun, its log is %s", trained.key, folder / LOG)
        environment = os.environ | self._slots[slot]
        if cache := getattr(jax.config, "jax_compilation_cache_dir", None):
            environment["JAX_COMPILATION_CACHE_DIR"] = cache
        with open(folder / LOG, "ab") as log:  # in a session of its own: ctrl-C is this process's to pass on
            process = subprocess.Popen(
                command(self._plan, self._name, trained), env=environment, stdin=subprocess.PIPE, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        return _Work(trained, folder, process)

    def _ended(self, work, code):
        """Notes how a process ended; True: it is to be started again."""
        key, code = work.trained.key, 128 - code if code < 0 else code
        if not code:
            self._done += 1
            return False
        sentence = _last_words(work.folder / LOG) if code < 128 else f"ended by signal {code - 128}"
        if _worth_restarting(code) and self._starts[key] < STARTS:
            logging.warning("  %s: exit code %d, starting again: %s", key, code, sentence)
            return True
        logging.error("  %s: exit code %d: %s", key, code, sentence)
        self._failed[key] = (code, sentence)
        return False

    def _say(self):
        self._said = time.monotonic()
        for work in self._running.values():
            if words := self._stage.where(self._plan, work.trained):
                logging.info("  %s: %s", work.trained.key, words)

    def _say_total(self, total):
        ended, seconds = self._done + len(self._failed), time.monotonic() - self._began
        left = f", about {goodput.duration(seconds / ended * (total - ended))} to go" if ended < total else ""
        logging.info("%s: %d of %d networks in %s%s", self._name, ended, total, goodput.duration(seconds), left)

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """A block at whose end, however it comes, no process is left; those that run save first."""
        try:
            yield
        finally:
            for work in self._running.values():
                work.process.terminate()
            try:
                for work in self._running.values():
                    work.process.wait()
            finally:  # a second signal does not wait
                for work in self._running.values():
                    work.process.kill()


def _worth_restarting(code):
    return code in exit_codes.RESTART or code > 128


def _last_words(log):
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.strip()]
    return (lines or ["no word"])[-1].removeprefix("ehrwear_jax: ")


def _error(failed, total):
    codes = {key: code for key, (code, _) in failed.items()}
    first = next((k for k, code in codes.items() if not _worth_restarting(code)), next(iter(codes)))
    others = f"; so did {', '.join(k for k in failed if k != first)}" if len(failed) > 1 else ""
    error = RunError(f"{first} of {total} networks failed: {failed[first][1]}{others}")
    error.code = codes[first]
    return error
