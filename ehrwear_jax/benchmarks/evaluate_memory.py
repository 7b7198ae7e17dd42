"""Measures the memory and time of the evaluate stage on cohorts of several sizes.

    python -m ehrwear_jax.benchmarks.evaluate_memory DIR [--people=1000,10000] [--simulated=2000] [--times=3]
        [--width=64] [--resamples=1000] [--max_trees=1000] [--json=FILE]

Simulates and prepares --simulated people once, multiplies them to each size (evaluate_cohort.py says what of that is
real), and runs the main job's evaluate stage on six models: three networks whose latents have --width numbers, their
late fusion, gradient boosting and a linear model on tables, for a binary and a time-to-event task of which people die,
with subgroups, label efficiency and --resamples resamples. Fewer of these, and fewer trees, save time. The stage runs
in a process of its own; the peak is the largest sum of the memory of it and of the processes that it starts, each page
counted once (proportional set size), where Linux tells that, else of the process alone. Printed per size: prediction
times, the peak, the seconds of features and of the whole stage, and the processor seconds of all; then what 1,000
people beyond the first size take of the peak, and the peak over that of the first.
"""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.benchmarks import evaluate_cohort
from ehrwear_jax.config import RunConfig

_CONFIG = '''"""configs/tiny.py with six models, for evaluate alone."""

import runpy


def get_config(variant=""):
    config = runpy.run_path("configs/tiny.py")["get_config"](variant)
    kept = ("joint", "ehr_only", "wear_only", "late_fusion", "gradient_boosting", "linear_table")
    for name in [name for name in config.models if name not in kept]:
        del config.models[name]
    config.models.gradient_boosting.max_trees = 1000
    config.evaluate.tasks = ("hospitalization_365d", "time_to_hospitalization")
    config.embed.trajectories = 0
    config.report.reliability_task = ""
    config.interpret.enabled = False
    return config
'''
_PAUSE_S = 1.0  # between two looks at the memory


def command(workdir: Path, options: Mapping[str, object], stage: str) -> list[str]:
    """The main job's command for one stage; options: of the config."""
    main = [sys.executable, "-m", "ehrwear_jax.main", f"--config={workdir / 'config.py'}", f"--stages={stage}"]
    return [*main, f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in options.items())]


def config_of(workdir: Path, options: Mapping[str, object]) -> RunConfig:
    """What the main job makes of `command`'s options."""
    config = runpy.run_path(str(workdir / "config.py"))["get_config"]()
    config.update_from_flattened_dict(dict(options))
    return config_lib.parse(config)


def simulate(workdir: Path, people: int) -> dict[str, object]:
    """Simulates and prepares people in a folder, unless it is done; returns the options that say so.

    Raises:
      RuntimeError: the stage failed.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.py").write_text(_CONFIG)
    options: dict[str, object] = {"simulate.n_subjects": people, "simulate.wear_days": 4}
    options |= {"simulate.ppg_subjects_fraction": 0.0}
    _run(command(workdir, options, "prepare"))
    return options


def measure(
    workdir: Path, people: int, simulated: int, times: int = 3, settings: Mapping[str, object] | None = None
) -> dict[str, float]:
    """{metric: number} of one cohort.

    Args:
      simulated: people who are simulated, in a folder beside; `people` is rounded up to a multiple.
      times: prediction times of a person. settings: further options of the config.

    Raises:
      RuntimeError: a stage failed.
    """
    base = workdir.parent / f"simulated-{simulated}"
    of_base = simulate(base, simulated)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.py").write_text(_CONFIG)
    meds_dir, labels_dir = evaluate_cohort.sources(workdir.absolute())
    options: dict[str, object] = {"data.source": "meds", "data.meds_dir": str(meds_dir)}
    options |= {"data.labels_dir": str(labels_dir)} | dict(settings or {})
    copies = -(-people // simulated)
    cohort = evaluate_cohort.Cohort(config_of(base, of_base), base, copies, times)
    n_times = evaluate_cohort.multiply(cohort, config_of(workdir, options), workdir)
    began = time.perf_counter()
    peak, processor_seconds = _run(command(workdir, options, "evaluate"))
    seconds = time.perf_counter() - began
    (features,) = workdir.glob("features/*")
    return {
        "people": copies * simulated,
        "prediction_times": n_times,
        "columns": pl.scan_parquet(features / "columns.parquet").select(pl.len()).collect().item(),
        "features_mb": sum(path.stat().st_size for path in features.glob("*.npz")) / 1e6,
        "features_seconds": json.loads((features / "artifact.json").read_text())["seconds"],
        "evaluate_seconds": seconds,
        "processor_seconds": processor_seconds,
        "evaluate_peak_mb": peak / 1e6,
    }


def _run(program):
    """Runs a command; returns (largest sum of its and its descendants' memory, bytes; their processor seconds)."""
    process = subprocess.Popen(program)
    peaks, ended = [0], threading.Event()
    watch = threading.Thread(target=_watch, args=(process.pid, peaks, ended), daemon=True)
    watch.start()
    _, status, usage = os.wait4(process.pid, 0)
    ended.set()
    watch.join()
    if status:
        raise RuntimeError(f"{' '.join(program)} failed")
    # what wait4 tells is no less than the memory of this process, of which the other one began as a copy
    peak = max(peaks) or usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, usage.ru_utime + usage.ru_stime


def _watch(root, peaks, ended):
    while not ended.wait(_PAUSE_S):
        together = sum(_told(f"{pid}/smaps_rollup", "Pss") for pid in _family(root))
        # alone, it tells the most that it ever had, between two looks too
        peaks.append(max(together, _told(f"{root}/status", "VmHWM")))


def _family(root):
    """Ids of a process and of all that descend from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it has ended
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _told(path, name):
    """Bytes of a line of a file of /proc; 0 where it is not there."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{path}").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def slope(first: dict[str, float], one: dict[str, float]) -> float:
    """MB by which the peak rises with 1,000 people from one size to another; NaN between a size and itself."""
    more = one["people"] - first["people"]
    return 1000 * (one["evaluate_peak_mb"] - first["evaluate_peak_mb"]) / more if more else float("nan")


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--people", default="1000,10000", help="sizes of the cohort")
    parser.add_argument("--simulated", type=int, default=2000, help="people who are simulated, then multiplied")
    parser.add_argument("--times", type=int, default=3, help="prediction times of a person")
    parser.add_argument("--width", type=int, default=64, help="numbers of a latent")
    parser.add_argument("--resamples", type=int, default=1000, help="of patients, for the intervals")
    parser.add_argument("--max_trees", type=int, default=1000, help="most trees of a boosted model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics to a file")
    options = parser.parse_args(argv)
    settings = {"joint.network.width": options.width, "evaluate.n_resamples": options.resamples}
    settings |= {"models.gradient_boosting.max_trees": options.max_trees}
    found = []
    for n in map(int, options.people.split(",")):
        simulated = min(n, options.simulated)
        found.append(measure(options.workdir / str(n), n, simulated, options.times, settings))
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
