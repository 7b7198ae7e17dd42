"""Writes files whole or not at all, and computes their digests; needs the standard library alone."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def digest_file(path: Path | str, flush: bool = False) -> str:
    """SHA-256 of a file's bytes; flush: also force them to the disk."""
    with open(path, "rb") as f:
        if flush:
            os.fsync(f.fileno())
        return hashlib.file_digest(f, "sha256").hexdigest()


def digests(folder: Path | str, names: Iterable[str] | None = None, flush: bool = False) -> dict[str, str]:
    """{name relative to the folder: SHA-256}, of all files below it or of the given ones, in order of name."""
    folder = Path(folder)
    if names is None:
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    names = sorted(names)
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: digest_file(folder / name, flush), names), strict=True))


def flush_folder(folder: Path | str) -> None:
    """Forces the names in a folder to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems
        pass
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path | str, *, flush: bool = False, unique: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, whose file replaces it when the block ends: whole, or not at all.

    A block that raises leaves `path` as it was, and nothing under the temporary name.

    Args:
      flush: force the contents, then the name, to the disk.
      unique: for a path that several threads or processes may write at a time; the last one's file stays. Else the name
        is `path` + ".partial", so that what a killed process left is overwritten by the next.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.partial" if unique else f"{path.name}.partial")
    try:
        yield partial
        if flush:
            with open(partial, "rb") as f:
                os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if flush:
        flush_folder(path.parent)


def write_text(path: Path | str, text: str, *, flush: bool = False) -> None:
    """Replaces a file's text (UTF-8): a reader, and a run that was killed, find the old or the new one."""
    with replacing(path, flush=flush, unique=True) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any, *, indent: int | None = None, flush: bool = False) -> None:
    """Replaces a JSON file, as `write_text`."""
    write_text(path, json.dumps(value, indent=indent), flush=flush)


def read_json(path: Path | str, default: Any = None) -> Any:
    """A JSON file's value; the default if there is none or it is torn."""
    try:
        return json.loads(Path(path).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return default


def folder_bytes(folder: Path | str) -> int:
    """The size of all files below a folder."""
    return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
