"""Keeps what was made of records: in memory up to a size, and what does not fit there in a file mapped to memory.

The file is temporary and has no name: nothing is left of it when its process ends, however it ends. What is read from
it costs processor time for the places of its arrays alone, whether or not the operating system has it in memory.
"""

import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from ehrwear_jax.data import record_bytes

CHUNK_BYTES = 2**26  # by which the file grows; an entry lies in one chunk, and a larger one is not kept
FREE_BYTES = 2**31  # that growing leaves on the disk
_ALIGN = 8


class Held(Protocol):
    """What knows how large it is."""

    @property
    def nbytes(self) -> int:
        """Memory held, bytes."""
        ...


T = TypeVar("T", bound=Held)
Arrays = Mapping[str, np.ndarray]


class MappedFile:
    """Named arrays by number in a temporary file; threads may share it.

    Args:
      max_bytes: that the file may take. It grows by chunks, and no further where the disk would have less than
        FREE_BYTES left or cannot be written to.
      folder: where the file is made; None: where Python makes temporary files.
    """

    def __init__(self, max_bytes: int, folder: str | None = None) -> None:
        self.max_bytes, self.folder = max_bytes, folder or tempfile.gettempdir()
        self._file: Any = None
        self._chunks: list[mmap.mmap] = []
        self._views: list[memoryview] = []
        self._used = CHUNK_BYTES  # of the last chunk: there is none yet
        self._full = False
        self._at: dict[int, tuple[int, int, int]] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self._chunks) * CHUNK_BYTES

    def put(self, i: int, arrays: Arrays) -> bool:
        """Keeps arrays under a number; whether there was room."""
        data = record_bytes.encode(arrays, _ALIGN)
        size = -(-len(data) // _ALIGN) * _ALIGN
        with self._lock:
            if i in self._at:
                return True
            if size > CHUNK_BYTES or (self._used + size > CHUNK_BYTES and not self._grow()):
                return False
            chunk, begin = len(self._chunks) - 1, self._used
            self._chunks[chunk][begin : begin + len(data)] = data
            self._used += size
            self._at[i] = chunk, begin, begin + len(data)  # after the bytes, since other threads read them
        return True

    def get(self, i: int) -> dict[str, np.ndarray] | None:
        """The arrays under a number, read-only views of the file; None: there are none."""
        found = self._at.get(i)
        if found is None:
            return None
        chunk, begin, end = found
        return record_bytes.decode(self._views[chunk][begin:end], _ALIGN)

    def __reduce__(self) -> tuple:
        """For worker processes: an empty one."""
        return MappedFile, (self.max_bytes, self.folder)

    def _grow(self):
        """Adds a chunk; whether there was room for it."""
        if self._full or self.nbytes + CHUNK_BYTES > self.max_bytes:
            return False
        try:
            self._file = self._file or tempfile.TemporaryFile(prefix="ehrwear_jax_", dir=self.folder)  # noqa: SIM115
            if shutil.disk_usage(self.folder).free < FREE_BYTES + CHUNK_BYTES:
                raise OSError("too little is free")
            # its blocks are taken now: writing to one that the disk has no room for would end the process
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), self.nbytes, CHUNK_BYTES)
            else:
                self._file.write(bytes(CHUNK_BYTES))
                self._file.flush()
            chunk = mmap.mmap(self._file.fileno(), CHUNK_BYTES, offset=self.nbytes)
        except OSError:
            self._full = True
            return False
        self._views.append(memoryview(chunk).toreadonly())
        self._chunks.append(chunk)
        self._used = 0
        return True


def to_arrays(made: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays and numbers of a NamedTuple or a dataclass, and of those in it, by name."""
    found: dict[str, np.ndarray] = {}
    for name, x in _fields(made).items():
        is_leaf = isinstance(x, (np.ndarray, int, float))
        found |= {prefix + name: np.asarray(x)} if is_leaf else to_arrays(x, f"{prefix}{name}.")
    return found


def from_arrays(arrays: dict[str, np.ndarray], like: T, prefix: str = "") -> T:
    """The inverse of `to_arrays`, of what has the fields of `like`."""
    values: dict[str, Any] = {}
    for name, x in _fields(like).items():
        if isinstance(x, np.ndarray):
            values[name] = arrays[prefix + name]
        elif isinstance(x, (int, float)):
            values[name] = type(x)(arrays[prefix + name])
        else:
            values[name] = from_arrays(arrays, x, f"{prefix}{name}.")
    return type(like)(**values)


def _fields(made):
    return made._asdict() if hasattr(made, "_asdict") else {f.name: getattr(made, f.name) for f in fields(made)}


class Cache(Generic[T]):
    """What was made of records, by their numbers; threads may share it.

    Args:
      memory_bytes: what may be kept as it is, by its own `nbytes`.
      file_bytes: of a MappedFile for what is beyond; 0: none.
      pack: to named arrays. unpack: from them, given another one, of which it may take what all have alike.
    """

    def __init__(
        self,
        memory_bytes: int,
        file_bytes: int = 0,
        pack: Callable[[T], Arrays] | None = None,
        unpack: Callable[[dict[str, np.ndarray], T], T] | None = None,
    ) -> None:
        self.memory_bytes, self.held_bytes = memory_bytes, 0
        self.held: dict[int, T] = {}
        self._pack, self._unpack = pack, unpack
        self._like: T | None = None
        self.file = MappedFile(file_bytes) if file_bytes and pack and unpack else None

    def get(self, i: int) -> T | None:
        """What is kept under a number."""
        found = self.held.get(i)
        if found is None and self.file is not None and (arrays := self.file.get(i)) is not None:
            return self._unpack(arrays, self._like)  # type: ignore[misc, arg-type]
        return found

    def put(self, i: int, made: T) -> None:
        """Keeps it, where there is room."""
        size = made.nbytes
        if self.held_bytes + size <= self.memory_bytes:
            self.held_bytes += size
            self.held[i] = made
        elif self.file is not None:
            self._like = self._like or made
            self.file.put(i, self._pack(made))  # type: ignore[misc]

    def __getstate__(self) -> dict:
        """For worker processes, which fill caches of their own."""
        return vars(self) | {"held": {}, "held_bytes": 0}
