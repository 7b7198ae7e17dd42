"""Remembers digests of raw inputs: each file is read once, and again only if its size or its time changed."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ehrwear_jax.runtime import files


class Inputs:
    """Digests of folders and files, kept in a JSON file.

    Args:
      path: of the JSON file: {absolute path: [bytes, modification time in ns, SHA-256]}.
      verify: read every file again, whatever its size and time.
    """

    def __init__(self, path: Path, verify: bool = False) -> None:
        self._path, self._verify = path, verify
        self._known: dict[str, list] = files.read_json(path, {})

    def digest(self, root: str | Path) -> str:
        """SHA-256 over the names and contents of all files below a folder, or of one file.

        A folder that is not there any more has the digest that it had: what was made of it can be looked at without it.

        Raises:
          FileNotFoundError: it is not there and was never read.
        """
        root = Path(root).absolute()
        if not root.exists():
            known = {p: e for p, e in self._known.items() if Path(p) == root or root in Path(p).parents}
            if not known:
                raise FileNotFoundError(f"{root}: no such file or folder")
            return _whole(root, {p: entry[2] for p, entry in known.items()})
        found = self._digests(_files(root))
        self._forget(root, found)
        return _whole(root, found)

    def has(self, path: str | Path) -> bool:
        """Whether a raw file is there or, where its folder is not there any more, was when it was read."""
        path = Path(path).absolute()
        return path.exists() or (not path.parent.exists() and str(path) in self._known)

    def of_files(self, paths: Iterable[str | Path]) -> str:
        """SHA-256 over the contents of some files, in their order."""
        paths = [str(Path(p).absolute()) for p in paths]
        found = self._digests((p, os.stat(p)) for p in paths)
        return files.digest([found[p] for p in paths])

    def noted(self, path: str | Path, found: str) -> str:
        """The digest of what was found at a path; where that is "", as it is gone, of what was found last."""
        key = str(Path(path).absolute())
        if not found:
            return self._known.get(key, [0, 0, ""])[2]
        if self._known.get(key) != [0, 0, found]:
            self._known[key] = [0, 0, found]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self._path, self._known)
        return found

    def _forget(self, root, found):
        """Files that a folder has no more are no part of the digest that it had."""
        gone = [p for p in self._known if p not in found and root in Path(p).parents]
        for path in gone:
            del self._known[path]
        if gone:
            files.write_json(self._path, self._known)

    def _digests(self, listed):
        """{path: SHA-256} of [(path, stat)]; notes those that were read."""
        stats = {path: (stat.st_size, stat.st_mtime_ns) for path, stat in listed}
        stale = [p for p, now in stats.items() if self._verify or list(now) != self._known.get(p, [])[:2]]
        with ThreadPoolExecutor(4) as pool:
            for path, digest in zip(stale, pool.map(files.digest_file, stale), strict=True):
                self._known[path] = [*stats[path], digest]
        if stale:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self._path, self._known)
        return {p: self._known[p][2] for p in stats}


def _files(root):
    """(path, stat) of a file, or of all files below a folder."""
    if root.is_file():
        yield str(root), root.stat()
        return
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            yield path, os.stat(path)


def _whole(root, digests):
    return files.digest(sorted((os.path.relpath(path, root), digest) for path, digest in digests.items()))
