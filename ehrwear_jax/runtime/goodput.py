"""Measures goodput: the share of a run's wall time, over all its restarts, that is spent in steps that count."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ehrwear_jax.runtime import files

NAME = "goodput.json"
# step: steps that count; lost: steps done again after a kill; down: between a process's last word and the next start
PARTS = ("step", "data", "saving", "validating", "compiling", "starting", "lost", "down", "other")


class Goodput:
    """Adds seconds to the parts of goodput.json; every second since the first start belongs to one part.

    Args:
      writes: whether this process keeps the file.
      clock: seconds, comparable over processes.
      devices: (kind, number) of this start; a restart may have others. None: not known, and not counted.
    """

    def __init__(
        self,
        folder: Path | str,
        writes: bool = True,
        clock: Callable[[], float] = time.time,
        devices: tuple[str, int] | None = None,
    ) -> None:
        self._path, self._writes, self._clock = Path(folder) / NAME, writes, clock
        before = files.read_json(self._path, {}) if writes else {}
        self.seconds = {part: before.get("seconds", {}).get(part, 0.0) for part in PARTS}
        self.starts = before.get("starts", 0) + 1
        # {step: seconds in steps when its state was saved}
        self._at_save = {int(k): v for k, v in before.get("at_save", {}).items()}
        # {kind: {"count": of the last start, "seconds": of all starts, times the devices of each}}; none while down
        self.devices: dict[str, dict[str, float]] = dict(before.get("devices", {}))
        self._kind: str | None = None
        if devices is not None:
            self._kind, count = devices
            spent = self.devices.get(self._kind, {}).get("seconds", 0.0)
            self.devices[self._kind] = {"count": count, "seconds": spent}
        self._now, self._since = "starting", clock()
        if before:
            self.seconds["down"] += max(0.0, self._since - before["written"])

    def resumed(self, step: int) -> None:
        """The state of this step was restored: time in steps after it is lost."""
        done = self._at_save.get(step, 0.0) if step else 0.0
        lost = max(0.0, self.seconds["step"] - done)
        self.seconds["step"] -= lost
        self.seconds["lost"] += lost
        self._at_save = {k: v for k, v in self._at_save.items() if k <= step}

    def saved(self, step: int) -> None:
        """The state of this step is on its way to the disk: time in steps up to now is not lost after a restart."""
        self._turn(self._now)
        self._at_save = dict(sorted((self._at_save | {step: self.seconds["step"]}).items())[-50:])

    def _turn(self, part):
        now = self._clock()
        spent = max(0.0, now - self._since)
        self.seconds[self._now] += spent
        if self._kind is not None:
            mine = self.devices[self._kind]
            mine["seconds"] += spent * mine["count"]
        before, self._now, self._since = self._now, part, now
        return before

    def turn(self, part: str) -> None:
        """From now on the time belongs to this part."""
        self._turn(part)

    @contextlib.contextmanager
    def part(self, part: str) -> Iterator[None]:
        """The time of the block belongs to this part."""
        before = self._turn(part)
        try:
            yield
        finally:
            self._turn(before)

    def shares(self) -> dict[str, float]:
        """{part: share of the wall time}, of the parts that are not zero."""
        self._turn(self._now)
        total = sum(self.seconds.values()) or 1.0
        return {k: v / total for k, v in self.seconds.items() if v}

    def write(self) -> None:
        """Writes goodput.json, if this process keeps it."""
        self._turn(self._now)
        if self._writes:
            about = {"written": self._clock(), "starts": self.starts, "seconds": self.seconds, "at_save": self._at_save}
            files.write_json(self._path, about | {"devices": self.devices})


def read(folder: Path | str) -> tuple[dict[str, float] | None, int]:
    """(seconds by part, number of starts) as they were last written, or (None, 0)."""
    found = files.read_json(Path(folder) / NAME)
    return (found["seconds"], found["starts"]) if found else (None, 0)


def sentence(seconds: dict[str, float], starts: int) -> str:
    """Such as "goodput 86% of 2.0 min: compiling 9%, data 3%, saving 1%"."""
    total = sum(seconds.values()) or 1.0
    rest = sorted(((v / total, k) for k, v in seconds.items() if k != "step" and v / total >= 0.005), reverse=True)
    times = "" if starts == 1 else f" over {starts} starts"
    return f"goodput {seconds['step'] / total:.0%} of {duration(total)}{times}" + (
        ": " + ", ".join(f"{k} {v:.0%}" for v, k in rest) if rest else ""
    )


def duration(seconds: float) -> str:
    """Such as "12 s", "3.5 min", "7.1 h", "2.0 days"."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
