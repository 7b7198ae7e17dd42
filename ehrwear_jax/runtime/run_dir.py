"""Guards the folder of a run: one writer at a time, a heartbeat for supervisors, and what the run was made of.

    lease.json      who writes here; its modification time is renewed while that process lives
    heartbeat.json  {"time", "phase", "step", "steps", "pid", "host"}
    run.json        the config and the data that the run's state came from
    events.jsonl    what went wrong and what was done about it

Needs no jax, so that a run can be looked at from anywhere.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

from ehrwear_jax.runtime import files
from ehrwear_jax.runtime.exit_codes import Changed, InUse

LEASE, HEARTBEAT, ABOUT, EVENTS = "lease.json", "heartbeat.json", "run.json", "events.jsonl"


# ------------------------------------------------------------------------------------------------------ who writes


def start_of(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None: there is none, or no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie writes nothing any more


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def place() -> list[str]:
    """Where process ids mean the same: host, boot and pid namespace."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return [socket.gethostname(), _read(Path("/proc/sys/kernel/random/boot_id")), namespace]


def holder(folder: Path | str) -> tuple[dict[str, Any] | None, float | None]:
    """(what the lease of a folder says, seconds since its last renewal), or (None, None)."""
    path = Path(folder) / LEASE
    try:
        return json.loads(path.read_text()), max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None, None
    except ValueError:  # torn, as only a file system that was cut off leaves it
        return {"id": "", "pid": 0, "started": 0, "place": ["?"]}, max(0.0, time.time() - path.stat().st_mtime)


def is_dead(lease: dict[str, Any]) -> bool:
    """Whether the process that holds a lease is known to be gone; False where that cannot be known from here."""
    if lease["place"] != place():
        return False
    if lease["started"] is not None:
        return start_of(lease["pid"]) != lease["started"]  # another start: the id was given to another process
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


class Lease:
    """Holds a folder for this process while the `with` block lasts.

    A lease of a process of this machine that is dead is taken over at once. One of another machine is taken over when
    nobody has renewed it for `stale_s`: it is watched that long if need be.

    The library filelock (4.3) does not serve: its only lock that expires, SoftFileLease, is taken over by an exchange
    of two names (renameat2 with RENAME_EXCHANGE), which NFS refuses. A folder whose machine is gone would stay held for
    ever, as with its other locks, which nobody may take over.

    Args:
      stale_s, renew_s: seconds without renewal after which a lease counts as left behind; between renewals.

    Raises:
      InUse: another process holds the folder.
    """

    def __init__(self, folder: Path | str, stale_s: float = 120.0, renew_s: float = 10.0) -> None:
        self.folder, self._stale_s, self._renew_s = Path(folder), stale_s, renew_s
        self._path = self.folder / LEASE
        self._id, self._end, self.lost = uuid.uuid4().hex, threading.Event(), False

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        while not self._create():
            lease, age = holder(self.folder)
            if lease is None or age is None:
                continue
            if not is_dead(lease) and age <= self._stale_s:
                if lease["place"] == place():
                    raise InUse(self._sentence(lease, age))
                logging.info("%s: held from %s, waiting whether that lives", self.folder, lease["place"][0])
                if self._is_renewed(self._stale_s - age):
                    raise InUse(self._sentence(*holder(self.folder)))
            self._take_away(lease)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        return self

    def _sentence(self, lease, age):
        if lease is None:
            return f"{self.folder}: another process wrote here a moment ago"
        return (
            f"{self.folder}: process {lease['pid']} on {lease['place'][0]} writes here, seen {age:.0f} s ago; stop it, "
            f"or take another folder"
        )

    def _create(self):
        """Makes the lease if there is none: a link to a whole file, which is made or not made."""
        mine = self.folder / f"{LEASE}.{self._id}"
        about = {"id": self._id, "pid": os.getpid(), "started": start_of(os.getpid()), "place": place()}
        mine.write_text(json.dumps(about))
        try:
            os.link(mine, self._path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with open(self._path, "x") as f:
                    f.write(json.dumps(about))
            except FileExistsError:
                return False
        finally:
            mine.unlink()
        return True

    def _is_renewed(self, seconds):
        before, end = os.stat(self._path).st_mtime_ns, time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(1.0, self._renew_s / 4))
            try:
                if os.stat(self._path).st_mtime_ns != before:
                    return True
            except FileNotFoundError:  # given back
                return False
        return False

    def _take_away(self, stale):
        """Removes a lease that was left behind, unless another process is about to or has done so."""
        claim = self.folder / f"{LEASE}.{stale['id']}.claim"
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:  # held for a moment, unless its process died in it
            with contextlib.suppress(FileNotFoundError):
                if time.time() - claim.stat().st_mtime > self._stale_s:
                    claim.unlink()
            time.sleep(0.01)
            return
        try:
            self._remove(stale["id"])
        finally:
            claim.unlink(missing_ok=True)

    def _remove(self, stale_id):
        """Removes the lease of an id; only one process at a time does so for each id."""
        aside = self.folder / f"{LEASE}.{self._id}.stale"
        lease, _ = holder(self.folder)
        if lease is None or lease["id"] != stale_id:
            return
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return
        if files.read_json(aside, {}).get("id", "") == stale_id:
            logging.warning(
                "%s: took over from process %s on %s, which is gone", self.folder, lease["pid"], lease["place"][0]
            )
        else:  # its process woke up, gave it back and another one came, all since the look: back with it
            with contextlib.suppress(FileExistsError):
                os.link(aside, self._path)
        aside.unlink()

    def is_mine(self) -> bool:
        """Whether the lease that lies in the folder is this object's."""
        return files.read_json(self._path, {}).get("id") == self._id

    def _renew(self):
        while not self._end.wait(self._renew_s):
            if self.is_mine():
                os.utime(self._path)
            else:
                self.lost = True
                return

    def check(self) -> None:
        """Raises InUse if somebody took the lease away, as after this process was asleep for too long."""
        if self.lost or not self.is_mine():
            raise InUse(f"{self.folder}: the lease was taken by another process; this one writes no more")

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        if self.is_mine():
            self._path.unlink()


# ------------------------------------------------------------------------------------------------------- heartbeat


class Heartbeat:
    """Writes heartbeat.json every `every_s` seconds and when the phase changes, from a thread."""

    def __init__(self, folder: Path | str, steps: int, every_s: float = 5.0) -> None:
        self._path, self._every_s = Path(folder) / HEARTBEAT, every_s
        who = {"pid": os.getpid(), "host": socket.gethostname()}
        self._now: dict[str, Any] = {"phase": "starting", "step": 0, "steps": steps} | who
        self._end = threading.Event()

    def beat(self, **now: Any) -> None:
        """Notes where the run is; costs nothing unless the phase changed."""
        changed = now.get("phase", self._now["phase"]) != self._now["phase"]
        self._now = self._now | now
        if changed:
            self._write()

    def _write(self):
        try:
            files.write_json(self._path, self._now | {"time": time.time()})
        except OSError as error:  # a full disk must not end the run from here
            logging.warning("%s: %s", self._path, error.strerror)

    def _beat(self):
        while not self._end.wait(self._every_s):
            self._write()

    def __enter__(self) -> Self:
        self._write()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._write()


# -------------------------------------------------------------------------------------------- what a run is made of


def difference(old: Any, new: Any, path: str = "") -> list[str]:
    """Sentences such as "train.seed: 0 -> 1", one per value that differs in two JSON-able trees of dicts."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]
    found = []
    for key in sorted(old.keys() | new.keys()):
        inner = f"{path}.{key}" if path else str(key)
        found += difference(old.get(key, "(absent)"), new.get(key, "(absent)"), inner)
    return found


def _short(value, limit=60):
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) == 64 and not set(text) - set("0123456789abcdef"):  # a digest
        return text[:12]
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_same(folder: Path | str, about: dict[str, Any]) -> None:
    """Notes what a run is made of, or compares it with what was noted.

    Raises:
      Changed: the folder's state came from another config or other data; says what differs.
    """
    path = Path(folder) / ABOUT
    about = json.loads(json.dumps(about, default=str))
    before = files.read_json(path)
    if before is None:
        files.write_json(path, about, indent=1, flush=True)
    elif found := difference(before, about):
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise Changed(
            f"{folder}: cannot go on, the run was started with something else: {'; '.join(found[:8])}{more}. Give it "
            f"back its settings and data, or start a run in another folder"
        )


class Events:
    """Appends to events.jsonl: {"time", "step", "kind", ...}. Of several processes the first one writes."""

    def __init__(self, folder: Path | str, writes: bool = True) -> None:
        self._path, self._writes = Path(folder) / EVENTS, writes

    def add(self, kind: str, step: int, **more: Any) -> None:
        """Appends one event; a full disk is logged and no error."""
        if self._writes:
            line = {"time": round(time.time(), 3), "step": step, "kind": kind} | more
            try:
                with open(self._path, "a") as f:
                    f.write(json.dumps(line, default=str) + "\n")
            except OSError as error:
                logging.warning("%s: %s", self._path, error.strerror)


def read_lines(path: Path | str) -> list[Any]:
    """The values of a JSON lines file; a last line that a kill tore is left out."""
    found: list[Any] = []
    try:
        lines = Path(path).read_text().splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
