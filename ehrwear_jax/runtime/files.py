"""Files that a kill, a full disk or a flipped bit may hit: written whole or not at all, and known by their digests."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def digest(value):
    """SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def digest_file(path, flush=False):
    """SHA-256 of a file's bytes; flush: also force them to the disk."""
    with open(path, "rb") as f:
        if flush:
            os.fsync(f.fileno())
        return hashlib.file_digest(f, "sha256").hexdigest()


def digests(folder, names=None, flush=False):
    """{name relative to the folder: SHA-256}, of all files below it or of the given ones, in order of name."""
    folder = Path(folder)
    if names is None:
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
    names = sorted(names)
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: digest_file(folder / name, flush), names), strict=True))


def flush_folder(folder):
    """Forces the names in a folder to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems
        pass
    finally:
        os.close(descriptor)


def write_whole(path, text, flush=False):
    """Replaces a file's text: a reader, and a run that was killed, find the old or the new one."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "w") as f:
        f.write(text)
        if flush:
            f.flush()
            os.fsync(f.fileno())
    os.replace(partial, path)
    if flush:
        flush_folder(path.parent)


def read_json(path, default=None):
    """A JSON file's value; the default if there is none or it is torn."""
    try:
        return json.loads(Path(path).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return default


def folder_bytes(folder):
    return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
