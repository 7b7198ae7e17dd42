"""Writes and checks what makes a folder a checkpoint: a manifest of all its files, and a commit mark, written last.

    <step>/             what the checkpoint library wrote
    <step>/about.json   step, seed, config, data fingerprint, vocabulary, check sums of the arrays
    <step>/manifest.json  {"files": {name: {"bytes", "sha256"}}}
    <step>/COMMIT       SHA-256 of manifest.json

Needs neither jax nor the checkpoint library, so that a run can be looked at from anywhere.
"""

import hashlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ehrwear_jax.runtime import files

MANIFEST, COMMIT, ABOUT = "manifest.json", "COMMIT", "about.json"
CUT_OFF = f"{COMMIT} is missing: the save was not finished"


def seal(folder: Path | str) -> None:
    """Writes the manifest of a folder's files, then the commit mark; the files are forced to the disk before it."""
    folder = Path(folder)
    found = files.digests(folder, flush=True)
    for inner in sorted({(folder / name).parent for name in found}):
        files.flush_folder(inner)
    listed = {name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in found.items()}
    text = json.dumps({"files": listed}, indent=0)
    files.write_text(folder / MANIFEST, text, flush=True)
    files.write_text(folder / COMMIT, hashlib.sha256(text.encode()).hexdigest() + "\n", flush=True)


def is_committed(folder: Path | str) -> bool:
    """Whether a folder has the commit mark."""
    return (Path(folder) / COMMIT).is_file()


def faults(folder: Path | str) -> list[str]:
    """What is wrong with a checkpoint's files, as sentences that name them; empty: it is as it was written."""
    folder = Path(folder)
    if not folder.is_dir():
        return [f"there is no folder {folder}"]
    if not is_committed(folder):
        return [CUT_OFF]
    try:
        manifest = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    if hashlib.sha256(manifest).hexdigest() != (folder / COMMIT).read_bytes().decode(errors="replace").strip():
        return [f"{MANIFEST} is not what {COMMIT} says: one of the two is damaged"]
    listed = json.loads(manifest)["files"]
    found, intact = [], []
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif (size := path.stat().st_size) != entry["bytes"]:
            found.append(f"{name} has {size} bytes instead of {entry['bytes']}")
        else:
            intact.append(name)
    for name, digest in files.digests(folder, intact).items():
        if digest != listed[name]["sha256"]:
            found.append(f"{name} is damaged: its SHA-256 is not the manifest's")
    return found


def steps(folder: Path | str) -> list[int]:
    """Steps of the committed checkpoints in a folder, ascending; their files are not looked at."""
    folder = Path(folder)
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(n) for n in names if n.isdigit() and is_committed(folder / n))


def commit_times(folder: Path | str) -> dict[int, datetime]:
    """{step: when its commit mark was written} of the committed checkpoints in a folder, by ascending step."""
    marks = {step: Path(folder) / str(step) / COMMIT for step in steps(folder)}
    return {step: datetime.fromtimestamp(mark.stat().st_mtime, UTC) for step, mark in marks.items()}


def unfinished(folder: Path | str) -> list[int]:
    """Steps whose folders have no commit mark, ascending: saves that were cut off, or checkpoints that lost it."""
    folder = Path(folder)
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(n) for n in names if n.isdigit() and not is_committed(folder / n))


def about(folder: Path | str) -> dict[str, Any]:
    """What a checkpoint says about itself."""
    return json.loads((Path(folder) / ABOUT).read_text())


def remove(folder: Path | str) -> None:
    """Removes a checkpoint; what a kill leaves of it is not taken for one."""
    folder = Path(folder)
    (folder / COMMIT).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def tidy(folder: Path | str) -> None:
    """Removes what interrupted saves and removals left; only for the one writer of the folder."""
    for path in Path(folder).iterdir():
        name, _, rest = path.name.partition(".")
        unfinished = name.isdigit() and not rest and not is_committed(path)
        if path.is_dir() and (unfinished or rest.startswith("orbax-checkpoint-tmp")):
            shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path | str) -> Path:
    """Renames a damaged checkpoint to <step>.damaged, in the place of an older one; returns the new path."""
    folder = Path(folder)
    aside = folder.with_name(folder.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    return aside
