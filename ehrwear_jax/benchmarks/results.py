"""Prints what a benchmark measured, and writes it to a file."""

import json
from collections.abc import Mapping
from pathlib import Path


def show(title: str, found: Mapping[str, float], path: str = "") -> None:
    """Prints a title and {metric: number} below it; writes the numbers as JSON to a path, if there is one."""
    print(title)
    for name, value in found.items():
        print(f"  {name:28} {value:.6g}")
    if path:
        Path(path).write_text(json.dumps(dict(found), indent=1) + "\n")
