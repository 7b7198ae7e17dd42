"""Supervises one training run: everything around its steps, in one place.

A run's folder has one writer (run_dir.Lease) and one config and data (run_dir.check_same). It goes on from the newest
whole checkpoint, stops at a signal after saving, ends itself when a step hangs, and notes where its time goes.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol, Self, SupportsFloat

from ehrwear_jax.runtime import distributed, exit_codes, files, profiling, run_dir
from ehrwear_jax.runtime.checkpoint import Checkpoints, State
from ehrwear_jax.runtime.goodput import Goodput, sentence
from ehrwear_jax.runtime.metrics_log import MetricsLog, SpikeWatch
from ehrwear_jax.runtime.watchdog import Watchdog

RETRIES = 10  # of a failed save per checkpoint interval
FAILED_SAVES = 2 * RETRIES  # in a row, then the run ends: it would lose too much
SLOW = 4  # a step that compiles, a validation and a save may take this many times a step's timeout


class RunOptions(Protocol):
    """What is read of a training configuration; training.train.TrainConfig has these fields, and says what they do."""

    @property
    def steps(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def keep(self) -> int: ...
    @property
    def keep_every(self) -> int: ...
    @property
    def step_timeout_s(self) -> float: ...
    @property
    def max_skipped(self) -> int: ...
    @property
    def spike_factor(self) -> float: ...
    @property
    def profile_at(self) -> int: ...
    @property
    def profile_steps(self) -> int: ...


class Signals:
    """Notes SIGTERM and SIGINT instead of obeying them; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number
        logging.warning("%s: saving after this step, then stopping", signal.Signals(number).name)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Supervision:
    """A `with` block around a training loop.

    Args:
      folder: of the run; receives checkpoints/, metrics.jsonl, events.jsonl, run.json, heartbeat.json, goodput.json.
      about: JSON-able dict of what the state depends on: {"seed", "config", "data"}; must be the same on a resume.
      devices: (kind, number) of those that the run is on, for goodput.json; others are allowed on a resume.

    Raises:
      InUse, Changed: the folder is another process's, or another config's.
    """

    def __init__(
        self, folder: Path | str, config: RunOptions, about: dict[str, Any], devices: tuple[str, int] | None = None
    ) -> None:
        self.folder, self._config, self._about, self._devices = Path(folder), config, about, devices
        self._stack = contextlib.ExitStack()
        self._first, self._stop, self._owed, self._failed = distributed.is_first(), distributed.AnyFlag(), False, 0
        self.log: MetricsLog | None = None

    def __enter__(self) -> Self:
        c, name = self._config, str(distributed.process_index())
        with contextlib.ExitStack() as stack:
            self._lease = stack.enter_context(run_dir.Lease(self.folder)) if self._first else None
            if self._first:
                run_dir.check_same(self.folder, self._about)
            self.goodput = Goodput(self.folder, self._first, devices=self._devices)
            self.events = run_dir.Events(self.folder, self._first)
            self._heart = stack.enter_context(run_dir.Heartbeat(self.folder, c.steps)) if self._first else None
            self._dog = stack.enter_context(Watchdog(self.folder, c.step_timeout_s, name, self._last_words))
            self._profiler = stack.enter_context(profiling.Profiler(self.folder, c.profile_at, c.profile_steps))
            self._signals = stack.enter_context(Signals())
            brief = self._about | {"data": files.digest(self._about.get("data"))}
            self.checkpoints = Checkpoints(self.folder / "checkpoints", c.keep, c.keep_every, brief)
            stack.enter_context(self.checkpoints)
            self._spikes = SpikeWatch(c.spike_factor)
            self._step, self._stepped = 0, False
            self._beat("starting", SLOW * c.step_timeout_s)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, exit_codes.Stopped)
        phase = "ended" if kind is None else "stopped" if stopped else f"failed: {' '.join(str(error).split())[:200]}"
        if kind is not None and not stopped:
            self.events.add("failed", self._step, error=f"{kind.__name__}: {error}")
        try:
            with contextlib.suppress(OSError):  # a full disk, which is then the error
                self.goodput.write()
            if self.log is not None:
                self.log.close()
            self._beat(phase)
        finally:
            self._stack.__exit__(kind, error, trace)

    def _last_words(self, sentence):
        self.events.add("hung", self._step, error=sentence)
        self.goodput.write()

    def _beat(self, phase, allowed_s=None):
        self._dog.beat(phase, allowed_s)
        if self._heart is not None:
            self._heart.beat(phase=phase, step=self._step)

    # ------------------------------------------------------------------------------------------------------- the run

    def resume(self, state: State) -> tuple[int, State]:
        """(step, state) of the newest whole checkpoint; (0, the given state) if there is none."""
        step, restored, skipped = self.checkpoints.restore_newest(state, set_aside=True)
        if step is None or restored is None:
            step, restored = 0, state
        for reason in skipped:
            self.events.add("checkpoint_skipped", step, reason=reason)
        self._step = step
        self.goodput.resumed(step)
        if self.goodput.starts > 1:
            self.events.add("resumed", step, starts=self.goodput.starts)
        return step, restored

    def begin(self, step: int) -> None:
        """Opens the curves; to be called once before the first step."""
        self.log = MetricsLog(self.folder, step, self._first)
        self.goodput.turn("other")
        self._beat("starting", SLOW * self._config.step_timeout_s)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block's time is for data, steps, validating, saving...; slow parts may take longer before they hang."""
        if name == "step" and not self._stepped:
            name, self._stepped = "compiling", True
        slow = name in ("compiling", "validating", "saving")
        if slow:
            self._beat(name, SLOW * self._config.step_timeout_s)
        with self.goodput.part(name):
            yield
        if slow:
            self._beat("step")

    def step_done(self, step: int) -> bool:
        """To be called after each step was handed to the devices; whether the run is to stop here.

        The answer is the same on all processes: with several, it is that of the step before.
        """
        self._step = step
        self._beat("step")
        self._profiler.step_done(step)
        if distributed.several():
            stop = self._stop.answer()
            self._stop.ask(self._signals.received is not None)
            return stop
        return self._signals.received is not None

    def judge(self, step: int, loss: float, finite: bool, in_a_row: int, examples: Callable[[], list[int]]) -> None:
        """Notes a step that was not finite, and a loss that stands out, with their examples.

        Args:
          examples: function that returns the ids in the step's global batch.

        Raises:
          NonFiniteStep: config.max_skipped steps in a row were not finite.
        """
        if not finite:
            ids = examples()
            logging.warning("step %d was not finite and not applied; subjects %s", step, ids)
            self.events.add("not_finite", step, loss=loss, in_a_row=in_a_row, examples=ids)
            if in_a_row >= self._config.max_skipped:
                raise exit_codes.NonFiniteStep(
                    f"{in_a_row} steps in a row up to step {step} were not finite; subjects of the last: {ids}"
                )
        elif spike := self._spikes(loss):
            median, deviations = spike
            logging.warning("step %d: loss %.4g is %.0f deviations over the median %.4g", step, loss, *spike[::-1])
            self.events.add("loss_spike", step, loss=loss, median=median, deviations=deviations, examples=examples())

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """A line of metrics; on the board also goodput and device memory."""
        shares = {f"goodput/{k}": v for k, v in self.goodput.shares().items()}
        if self.log is None:
            raise RuntimeError("write() before begin()")
        self.log.write(step, values, board_only=shares | profiling.device_memory())
        with contextlib.suppress(OSError):
            self.goodput.write()

    def due(self, step: int, last: int) -> bool:
        """Whether the state of this step is to be saved: at the interval, at the end, and where a save has failed."""
        every = self._config.checkpoint_every
        retry = step % max(1, every // RETRIES) == 0
        if retry and distributed.from_first("checkpoint/finished", self.checkpoints.finished()):
            self._settle()
        return step % every == 0 or step == last or (self._owed and retry)

    def _settle(self):
        """Learns how the last save ended."""
        saved = self.checkpoints.saving
        try:
            self.checkpoints.wait()
        except exit_codes.NotSaved as error:
            self._not_saved(error)
        else:
            if saved is not None:
                self._owed, self._failed = False, 0

    def _not_saved(self, error):
        self._owed, self._failed = True, self._failed + 1
        logging.warning("%s", error)
        self.events.add("not_saved", self._step, reason=str(error))
        if self._failed >= FAILED_SAVES:
            raise error

    def save(self, step: int, state: State, last: bool = False) -> None:
        """Starts a save; one that fails is tried again, and ends the run if it is the last or one of too many.

        Raises:
          NotSaved, InUse.
        """
        if self._lease is not None:
            self._lease.check()
        self._step = step
        with self.part("saving"):
            self._settle()
            try:
                self.checkpoints.save(step, state)
                if last:
                    self.checkpoints.wait()
            except exit_codes.NotSaved as error:
                if last:
                    raise
                self._not_saved(error)
            else:
                self._owed = False
                self.goodput.saved(step)
        with contextlib.suppress(OSError):
            self.goodput.write()

    def stop(self, step: int, state: State) -> NoReturn:
        """Saves and ends the run; for when `step_done` said so."""
        if step not in distributed.from_first("checkpoint/steps", self.checkpoints.steps()):
            self.save(step, state, last=True)
        self.events.add("stopped", step)
        raise exit_codes.Stopped(f"{self.folder}: stopped at step {step}, which is saved; run it again to go on")

    def summary(self) -> str:
        """One sentence on where the time went."""
        self.goodput.shares()
        return sentence(self.goodput.seconds, self.goodput.starts)
