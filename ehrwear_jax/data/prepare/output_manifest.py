"""Records and verifies what prepare wrote: sizes and SHA-256 of files, and counts that add up, in manifest.json.

    python -m ehrwear_jax.data.prepare verify DIR     reads every file again; names those that are damaged

A file is as it was written if its size is and if it is no newer than the manifest; only where the time differs (a copy,
say) are its contents read.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ehrwear_jax.data.formats import parquet
from ehrwear_jax.data.prepare import workers

NAME = "manifest.json"


def fingerprint(path: Path) -> dict:
    """{"bytes": size, "sha256": hex} of a file."""
    path = Path(path)
    with open(path, "rb") as f:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def fingerprints(folder: Path, paths: Iterable[Path]) -> dict[str, dict]:
    """{path relative to the folder: fingerprint}."""
    return {os.path.relpath(path, folder): fingerprint(path) for path in paths}


def add_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of dicts of counts, by key, keys in order of their first appearance."""
    total: dict[str, int] = {}
    for count in counts:
        for key, n in count.items():
            total[key] = total.get(key, 0) + n
    return total


def merge_files(tallies: Iterable[Mapping]) -> dict[str, dict]:
    """The files of all tallies."""
    return {name: entry for tally in tallies for name, entry in tally["files"].items()}


def run_jobs(
    work: Callable, jobs: Sequence, tally_paths: Sequence[Path], folder: Path, pool: workers.Pool, description: str
) -> list[dict]:
    """The tally of each job; only jobs without one, or of which a file is missing, are done.

    Args:
      work: does a job and returns its tally, a dict with "files" (as `fingerprints`), after writing it to its path.
      tally_paths: where each job's tally is kept. folder: to which "files" are relative.
    """
    tallies = [_completed(path, folder) for path in tally_paths]
    todo = [i for i, tally in enumerate(tallies) if tally is None]
    for i, tally in zip(todo, pool.map(work, [jobs[i] for i in todo], description), strict=True):
        tallies[i] = tally
    return tallies


def _completed(path, folder):
    tally = json.loads(path.read_text()) if path.exists() else None
    return tally if tally and is_whole(folder, tally["files"]) else None


def is_whole(folder: Path, files: dict[str, dict]) -> bool:
    """Whether all the files are there in the size that was noted."""
    return all(_size(Path(folder) / name) == entry["bytes"] for name, entry in files.items())


def _size(path):
    return path.stat().st_size if path.is_file() else None


def write(folder: Path, files: dict[str, dict], counts: dict) -> None:
    """Writes FOLDER/manifest.json.

    Args:
      files: as `fingerprints` returns.
      counts: {kind: {"in": rows read, "out": {where they went: rows}}}.

    Raises:
      ValueError: counts of a kind that do not add up.
    """
    for kind, count in counts.items():
        if count["in"] != sum(count["out"].values()):
            raise ValueError(f"{folder}: the {kind} do not add up: {count['in']:,} in, out {count['out']}")
    parquet.write_json({"counts": counts, "files": dict(sorted(files.items()))}, Path(folder) / NAME)


def read(folder: Path) -> dict | None:
    """{"counts", "files"}, or None where there is no manifest."""
    path = Path(folder) / NAME
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise ValueError(f"{path}: not a manifest ({error}); delete it to have it made again") from error


def require(folder: Path) -> dict:
    """{"counts", "files"}; FileNotFoundError where there is no manifest."""
    noted = read(folder)
    if noted is None:
        raise FileNotFoundError(f"{Path(folder) / NAME}: no such file; prepare has not finished here")
    return noted


def faults(folder: Path, *, full: bool) -> list[str]:
    """One sentence for each file that is not as the manifest says.

    Args:
      folder: with a manifest.json.
      full: read every file; otherwise only those whose modification time says nothing.

    Raises:
      FileNotFoundError: no manifest.
    """
    folder, noted = Path(folder), require(folder)
    written_ns, found = (folder / NAME).stat().st_mtime_ns, []
    for name, entry in noted["files"].items():
        path = folder / name
        size = _size(path)
        if size is None:
            found.append(f"{path}: is missing")
        elif size != entry["bytes"]:
            found.append(f"{path}: has {size:,} bytes, {entry['bytes']:,} were written")
        elif (full or path.stat().st_mtime_ns > written_ns) and fingerprint(path) != entry:
            found.append(f"{path}: its contents are not those that were written (SHA-256 differs)")
    return found


def require_as_written(folder: Path) -> None:
    """Raises ValueError naming the first file that was changed since it was written; missing ones are made again."""
    if read(folder) is None:
        return
    changed = [fault for fault in faults(folder, full=False) if not fault.endswith("is missing")]
    if changed:
        raise ValueError(f"{changed[0]}; delete it to have it made again")


def main(argv: list[str]) -> int:
    """`verify DIR`: checks DIR, or every folder with a manifest below it; returns the exit code."""
    if len(argv) != 2 or argv[0] != "verify":
        print("usage: python -m ehrwear_jax.data.prepare verify DIR", file=sys.stderr)
        return 2
    folders = sorted(path.parent for path in Path(argv[1]).rglob(NAME))
    if not folders:
        print(f"{argv[1]}: no {NAME} in it", file=sys.stderr)
        return 2
    n = 0
    for folder in folders:
        found = faults(folder, full=True)
        n += len(found)
        print("\n".join(found) if found else f"{folder}: {len(require(folder)['files']):,} files as they were written")
    return 1 if n else 0
