"""Says which version of the package runs, and of a checkout which commit."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path

CHECKOUT = "of a checkout"


def version() -> str:
    """Of the installed package; CHECKOUT where it is not installed."""
    try:
        return importlib.metadata.version("ehrwear_jax")
    except importlib.metadata.PackageNotFoundError:
        return CHECKOUT


@functools.cache
def commit() -> str:
    """The commit of a checkout, with "+" where tracked files differ from it; "" of an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return found.stdout.strip() if not found.returncode else ""

    try:
        name = git("rev-parse", "--short=12", "HEAD")
        return name and name + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except OSError:  # no git
        return ""
