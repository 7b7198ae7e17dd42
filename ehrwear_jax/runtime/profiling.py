"""Records profiler traces on demand; reads how much memory the devices use."""

import logging
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Self

import jax

TRIGGER = "profile"


class Profiler:
    """Traces a few steps when a file <folder>/profile is made or touched, on SIGUSR1, or at a step of the config.

    The trace of each process goes to <folder>/profiles/<time>; TensorBoard and Perfetto read it.

    Args:
      at: the step whose end starts a trace; 0: none. steps: how many steps a trace covers.
    """

    def __init__(self, folder: Path | str, at: int = 0, steps: int = 5) -> None:
        self._trigger, self._out, self._at, self._steps = Path(folder) / TRIGGER, Path(folder) / "profiles", at, steps
        self._wanted, self._left, self._looked = False, 0, time.monotonic()
        self._before: Any = None  # the handler of SIGUSR1 before
        self._touched = time.time()

    def step_done(self, step: int) -> None:
        """To be called after each step: begins, goes on with or ends a trace."""
        if self._left:
            self._left -= 1
            if not self._left:
                jax.profiler.stop_trace()
                logging.info("step %d: profiler trace in %s", step, self._out)
            return
        now = time.monotonic()
        if now - self._looked > 2.0:  # a look at the file system is not free everywhere
            self._looked = now
            # left in place, since every process of the job looks for it
            touched = self._trigger.stat().st_mtime if self._trigger.exists() else 0.0
            self._wanted |= touched > self._touched
            self._touched = max(touched, self._touched)
        if self._wanted or (self._at and step == self._at):
            self._wanted, self._left = False, self._steps
            jax.profiler.start_trace(str(self._out))

    def _want(self, number: int, frame: FrameType | None) -> None:
        self._wanted = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGUSR1"):
            self._before = signal.signal(signal.SIGUSR1, self._want)
        return self

    def __exit__(self, *error: object) -> None:
        if self._left:
            jax.profiler.stop_trace()
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)


def device_memory() -> dict[str, int]:
    """{"device/bytes_in_use", "device/peak_bytes_in_use", ...}: the most over this process's devices; {} on a CPU."""
    out: dict[str, int] = {}
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        for name in ("bytes_in_use", "peak_bytes_in_use", "bytes_limit"):
            if name in stats:
                out[f"device/{name}"] = max(out.get(f"device/{name}", 0), stats[name])
    return out
