"""Measures the prepare stage of the main job on a large simulated cohort, and says what a biobank would take.

    python -m ehrwear_jax.benchmarks.data_scale DIR [--subjects=5000] [--days=180] [--people=500000] [--json=FILE]

Minute-level signals of three channels. DIR takes about 4.5 MB a person at 180 days. What another number of people would
take is a proportion: time and disk grow with their number, memory with that of the workers and with the tables that
have a row per person.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from ehrwear_jax.benchmarks import data_cohort, data_prepare

_POLL_S = 0.2


def command(workdir: Path, subjects: int, days: int, workers: int) -> list[str]:
    """The main job's command."""
    config = {
        "simulate.n_subjects": subjects, "simulate.wear_days": days, "simulate.temperature": True,
        "simulate.subjects_per_shard": 25, "prepare.step_minutes": 1, "prepare.channels": str(data_cohort.CHANNELS),
        "prepare.workers": workers,
    }  # fmt: skip
    main = [sys.executable, "-m", "ehrwear_jax.main", "--config=configs/tiny.py", "--stages=prepare"]
    return [*main, f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in config.items())]


def measure(workdir: Path, subjects: int, days: int, workers: int = data_prepare.WORKERS) -> dict[str, float]:
    """{metric: number} of one run in an empty folder.

    Raises:
      ValueError: the folder is not empty.
      RuntimeError: the run failed.
    """
    root = Path(workdir)
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} exists: what is there would not be done again, and the time would be wrong")
    began = time.perf_counter()
    simulated = cpu = peak = 0.0
    program = command(workdir, subjects, days, workers)
    process = subprocess.Popen(program)
    watch = data_prepare.Watch(process.pid, every_s=_POLL_S)
    while process.poll() is None:
        if not simulated and (root / "tables").exists():
            simulated, cpu, peak = time.perf_counter() - began, watch.cpu_seconds, watch.peak_bytes
        time.sleep(_POLL_S)
    watch.stop()
    if process.returncode:
        raise RuntimeError(f"{' '.join(program)} failed")
    seconds = time.perf_counter() - began - simulated
    return {
        "subjects": subjects,
        "days": days,
        "workers": workers,
        "simulate_seconds": simulated,
        "simulate_cpu_seconds": cpu,
        "simulate_peak_rss_mb": peak / 1e6,
        "prepare_seconds": seconds,
        "prepare_cpu_seconds": watch.cpu_seconds - cpu,
        "peak_rss_mb": watch.peak_bytes / 1e6,
        "patient_days_per_s": subjects * days / seconds,
        "minutes_simulated_mb": subjects * days * 1440 * len(data_cohort.CHANNELS) * 4 / 1e6,
        "raw_mb": _size(root / "raw") / 1e6,
        "written_mb": sum(_size(root / kind) for kind in ("tables", "records", "fit")) / 1e6,
    }


def _size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--subjects", type=int, default=5000)
    parser.add_argument("--days", type=int, default=180)
    parser.add_argument("--workers", type=int, default=data_prepare.WORKERS)
    parser.add_argument("--people", type=int, default=500_000, help="to extrapolate to")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics to a file")
    options = parser.parse_args(argv)
    found = measure(options.workdir, options.subjects, options.days, options.workers)
    for name, value in found.items():
        print(f"{name:<24} {value:>14,.1f}".removesuffix(".0"))
    times = options.people / options.subjects
    print(
        f"{options.people:,} people: {found['prepare_seconds'] * times / 3600:.1f} h of prepare, "
        f"{found['raw_mb'] * times / 1e6:.1f} TB raw, {found['written_mb'] * times / 1e6:.1f} TB written"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
