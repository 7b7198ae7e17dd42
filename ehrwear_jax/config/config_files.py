"""Finds a config file by its path, or by its name among those that come with the package."""

from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# of an installed package; of a checkout
FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def find(value: str) -> str:
    """The value of --config with the path of a file that is there.

    Args:
      value: a path or, of a file that comes with the package, its name, as in "tiny" and "full.py:220m".

    Raises:
      FileNotFoundError: there is no such file.
    """
    path, colon, variant = value.partition(":")
    if Path(path).is_file():
        return value
    name = Path(path).name.removesuffix(".py")
    by_name = path in (name, f"{name}.py", f"configs/{name}.py")
    for folder in FOLDERS if by_name else ():
        if (found := folder / f"{name}.py").is_file():
            return f"{found}{colon}{variant}"
    raise FileNotFoundError(f"there is no config file {path}")


def in_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments of a program with what `find` gives for --config; FileNotFoundError as there."""
    found: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name in ("--config", "-config") and equals:
            word = f"{name}={find(value)}"
        elif found and found[-1] in ("--config", "-config"):
            word = find(word)
        found.append(word)
    return found
