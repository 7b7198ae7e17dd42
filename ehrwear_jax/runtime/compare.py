"""Prints what two runs differ in: their configs, where trainings ended, the numbers of their reports.

    python -m ehrwear_jax.runtime.compare RUN RUN

Reads the last config, every network's last losses and the last report of each, and changes nothing. Needs no jax.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ehrwear_jax.runtime import files, run_dir

CONFIG, RESULTS, METRICS, ABOUT = "config.json", "report/results.json", "metrics.jsonl", "artifact.json"
_LOSSES = ("loss/total", "validation/loss/total")
_ABSENT = "-"


def compare(first: Path, second: Path) -> list[str]:
    """Lines on two workdirs.

    Raises:
      FileNotFoundError: one of them is none of a run.
    """
    configs = [_config(root) for root in (first, second)]
    lines = [f"A: {first}", f"B: {second}", "", "config, A -> B:"]
    lines += [f"  config.{line}" for line in run_dir.difference(*configs)] or ["  the same"]
    for title, found in (("last losses", [losses(r) for r in (first, second)]),
                         ("results", [results(r) for r in (first, second)])):  # fmt: skip
        lines += ["", f"{title}:", *_table(*found)]
    return lines


def _config(root):
    if not (root / CONFIG).exists():
        raise FileNotFoundError(f"{root}: no run; name a --workdir of main")
    return json.loads((root / CONFIG).read_text())


def losses(root: Path) -> dict[str, float]:
    """{"network loss, step N": the last one logged} of the networks of a workdir.

    Of trainings of one name with other settings the one that was written to last.
    """
    out: dict[str, float] = {}
    for path in sorted(root.glob(f"models/**/{METRICS}"), key=lambda p: p.stat().st_mtime):
        name = files.read_json(path.parent / ABOUT, {}).get("name", path.parent.name)
        logged = run_dir.read_lines(path)
        for loss in _LOSSES:
            if there := [line for line in logged if line.get(loss) is not None]:
                out[f"{name} {loss}"] = float(there[-1][loss])
        if logged:
            out[f"{name} step"] = float(max(line.get("step", 0) for line in logged))
    return out


def results(root: Path) -> dict[str, float]:
    """{"task model metric": value} of the last report; {} without one. Differences between models are left out."""
    records: list[dict[str, Any]] = files.read_json(root / RESULTS, [])
    told = (r for r in records if "_difference" not in r["metric"] and r["value"] is not None)
    return {f"{r['task']} {r['model']} {r['metric']}": float(r["value"]) for r in told}


def _table(a, b):
    """A line per name that differs or that one of both lacks, then how many are the same."""
    same = [name for name in a if name in b and math.isclose(a[name], b[name], rel_tol=1e-9)]
    names = [name for name in {**a, **b} if name not in set(same)]
    if not {**a, **b}:
        return ["  none in either"]
    width = max(map(len, names), default=0)
    lines = [f"  {'':<{width}} {'A':>12} {'B':>12} {'B - A':>12}"] if names else []
    for name in names:
        cells = [f"{x[name]:.5g}" if name in x else _ABSENT for x in (a, b)]
        change = f"{b[name] - a[name]:+.5g}" if name in a and name in b else ""
        lines.append(f"  {name:<{width}} {cells[0]:>12} {cells[1]:>12} {change:>12}".rstrip())
    return [*lines, *([f"  {len(same)} are the same"] if same else [])]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exits with one sentence if a folder is none of a run."""
    program, what = "python -m ehrwear_jax.runtime.compare", (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog=program, description=what)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="workdirs of main, such as runs/tiny")
    given = parser.parse_args(arguments)
    try:
        print("\n".join(compare(*given.runs)))
    except FileNotFoundError as error:
        sys.exit(f"ehrwear_jax: {error}")


if __name__ == "__main__":
    main()
