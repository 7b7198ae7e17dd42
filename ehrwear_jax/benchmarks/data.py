"""Measures how fast the data layer is: prepare (raw tables to records) and examples (records to batches).

    python -m ehrwear_jax.benchmarks.data [--json=FILE] [--only=prepare,examples] [--quick]

Prints a table; --json writes a flat mapping from the name of a metric to its number. Timings mean something on a quiet
machine only; rates per CPU second (of all processes together) depend less on what else runs.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

PARTS = ("prepare", "examples")


def measure(parts: Sequence[str] = PARTS, quick: bool = False) -> dict[str, float]:
    """{metric: number} of the parts, each measured by `measure(quick)` of its module data_<part>."""
    found: dict[str, float] = {}
    for part in parts:
        found |= importlib.import_module(f"ehrwear_jax.benchmarks.data_{part}").measure(quick=quick)
    return found


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m ehrwear_jax.benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics to a file")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a small cohort: shows that it runs, not how fast it is")
    options = parser.parse_args(argv)
    parts = options.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--only: there is no {unknown[0]!r}; there are {', '.join(PARTS)}")
    found = measure(parts, options.quick)
    width = max(map(len, found))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, value in found.items():
        print(f"{name:<{width}}  {value:>16,.3f}".rstrip("0").rstrip("."))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
