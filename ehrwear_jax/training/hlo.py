"""Reads a compiled program's text: which collectives a step runs, how many bytes they bring, and its largest array."""

import collections
import re

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z\-]+)\(")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|branch_computations|async_execution_thread)=\{?(%[^},\s]+)")
_TRIPS = re.compile(r'"known_trip_count":\s*\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"\b(pred|bf16|[fsuc]\d+)\w*\[([\d,]*)\]")


def _bytes(shape):
    kind, dims = shape
    size = 1 if kind == "pred" else int(re.sub(r"\D", "", kind)) / 8
    return size * int(np.prod([int(n) for n in dims.split(",") if n]))


def _computations(text):
    """({name: [instruction lines]}, name of the entry)."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    entry: str | None = None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = found.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif current is not None and line.startswith(" "):
            current.append(line)
    return found, entry


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """What a device runs in one call of a program.

    Loops count by their trip counts (once where the compiler does not know it); bytes are those of the results.

    Args:
      text: compiled.as_text() of a jitted function.

    Returns:
      {kind: (how often, bytes)} of those of COLLECTIVES that occur.
    """
    computations, entry = _computations(text)
    total: collections.defaultdict[str, list] = collections.defaultdict(lambda: [0, 0.0])

    def visit(name, times):
        for line in computations.get(name, ()):
            if not (found := _INSTRUCTION.match(line)):
                continue
            result, operation = found.groups()
            kind = operation.removesuffix("-start")
            if kind in COLLECTIVES:
                sizes = [_bytes(shape) for shape in _SHAPE.findall(result)]
                if operation.endswith("-start") and kind != "all-reduce":  # (operands, results, counters)
                    sizes = [size for size in sizes if size > 4] or sizes
                    sizes = sizes[len(sizes) // 2 :]
                total[kind][0] += times
                total[kind][1] += times * sum(sizes)
            trips = _TRIPS.search(line) if operation == "while" else None
            for called in _CALLED.findall(line):
                visit(called.lstrip("%"), times * (int(trips[1]) if trips else 1))

    visit(entry, 1)
    return {kind: (count, int(size)) for kind, (count, size) in sorted(total.items())}


def largest(text: str) -> int:
    """Bytes on a device of the largest array that an instruction of a program gives."""
    results = (found[1] for line in text.splitlines() if (found := _INSTRUCTION.match(line)))
    return int(max((_bytes(shape) for result in results for shape in _SHAPE.findall(result)), default=0))
