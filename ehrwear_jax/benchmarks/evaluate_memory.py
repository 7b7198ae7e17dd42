"""Measures the peak memory of the evaluate stage on simulated cohorts of several sizes.

    python -m ehrwear_jax.benchmarks.evaluate_memory DIR [--people=1000,10000] [--json=FILE]

Runs the main job on configs/tiny.py with its tabular models alone, each size in a folder of its own below DIR: prepare
first, then evaluate in a process whose peak is read from the operating system. Printed per size: prediction times,
the peak, and the seconds that features and the whole stage took; then what 1,000 people beyond the first size take of
the peak, and the peak over that of the first. Features are float32 sparse matrices, a file per shard, of which a model
reads the rows and columns it is fitted on.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl

_CONFIG = '''"""configs/tiny.py with its tabular models alone."""

import runpy


def get_config(variant=""):
    config = runpy.run_path("configs/tiny.py")["get_config"](variant)
    for name, model in config.models.to_dict().items():
        if model["family"] != "tabular":
            del config.models[name]
    config.evaluate.reference_model = ""
    config.evaluate.label_fractions = ()
    config.interpret.enabled = False
    return config
'''


def command(workdir: Path, people: int, stage: str) -> list[str]:
    """The main job's command for one stage."""
    options = {"simulate.n_subjects": people, "simulate.wear_days": 4, "simulate.ppg_subjects_fraction": 0.0}
    main = [sys.executable, "-m", "ehrwear_jax.main", f"--config={workdir / 'config.py'}", f"--stages={stage}"]
    return [*main, f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in options.items())]


def measure(workdir: Path, people: int) -> dict[str, float]:
    """{metric: number} of one cohort.

    Raises:
      RuntimeError: a stage failed.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.py").write_text(_CONFIG)
    _run(command(workdir, people, "prepare"))
    began = time.perf_counter()
    peak = _run(command(workdir, people, "evaluate"))
    seconds = time.perf_counter() - began
    (features,) = workdir.glob("features/*")
    (attributes,) = workdir.glob("attributes/*/attributes.parquet")
    return {
        "people": people,
        "prediction_times": pl.scan_parquet(attributes).select(pl.len()).collect().item(),
        "columns": pl.scan_parquet(features / "columns.parquet").select(pl.len()).collect().item(),
        "features_mb": sum(path.stat().st_size for path in features.glob("*.npz")) / 1e6,
        "features_seconds": json.loads((features / "artifact.json").read_text())["seconds"],
        "evaluate_seconds": seconds,
        "evaluate_peak_mb": peak / 1e6,
    }


def _run(program):
    """Runs a command; returns its peak resident set, bytes."""
    process = subprocess.Popen(program)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(program)} failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def slope(first: dict[str, float], one: dict[str, float]) -> float:
    """MB by which the peak rises with 1,000 people from one size to another; NaN between a size and itself."""
    more = one["people"] - first["people"]
    return 1000 * (one["evaluate_peak_mb"] - first["evaluate_peak_mb"]) / more if more else float("nan")


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--people", default="1000,10000", help="sizes of the cohort")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics to a file")
    options = parser.parse_args(argv)
    found = [measure(options.workdir / str(n), n) for n in map(int, options.people.split(","))]
    for name in found[0]:
        print(f"{name:<18}" + "".join(f"{one[name]:>14,.1f}".removesuffix(".0").rjust(14) for one in found))
    first = found[0]
    print(f"{'MB a 1,000 people':<18}" + "".join(f"{slope(first, one):>14.1f}" for one in found))
    least = first["evaluate_peak_mb"]
    print(f"{'peak over first':<18}" + "".join(f"{one['evaluate_peak_mb'] / least:>14.2f}" for one in found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
