"""Measures how fast, and in how much memory, prepare turns raw tables into records and a fit: see benchmarks/data.py.

The cohort is made up (data_cohort.py). A rate covers all of prepare, from the raw files to the manifest of one fold's
fit, the start of the worker processes included; `fit_seconds` is what each further fold takes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from ehrwear_jax.benchmarks import data_cohort
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.prepare import dataset, workers

WORKERS = 2
# Subjects of the small cohort (the large one has ten times as many), and events or days of each.
SIZES = {"ehr": (4000, 250), "wear": (50, 60)}
_UNITS = {"ehr": "ehr_events", "wear": "patient_days"}


def measure(quick: bool = False) -> dict[str, float]:
    """{metric: number}: rates per second and per CPU second, and the peak memory at two sizes of the cohort.

    Args:
      quick: a twentieth of the cohort; rates are then mostly the start of the workers.
    """
    found = {}
    with tempfile.TemporaryDirectory(prefix="bench_prepare_") as folder:
        for kind, (n_subjects, each) in SIZES.items():
            for label, n in (("1x", n_subjects), ("10x", 10 * n_subjects)):
                root = Path(folder) / f"{kind}_{label}"
                run = _measured(kind, root, max(n // 20, 1) if quick else n, each)
                found[f"prepare/{kind}_peak_rss_{label}_mb"] = run["peak_bytes"] / 1e6
            unit = _UNITS[kind]
            found[f"prepare/{unit}"] = run["n"]
            found[f"prepare/{unit}_per_s"] = run["n"] / run["seconds"]
            found[f"prepare/{unit}_per_cpu_s"] = run["n"] / run["cpu_seconds"]
            found[f"prepare/{kind}_fit_seconds"] = run["fit_seconds"]
    return found


def _measured(kind, root, n_subjects, each):
    """Prepares in a process of its own while watching it and its workers."""
    write = data_cohort.write_events if kind == "ehr" else data_cohort.write_minutes
    n = write(root / "meds" if kind == "ehr" else root, n_subjects, each)
    command = [sys.executable, "-m", "ehrwear_jax.benchmarks.data_prepare", kind, str(root), f"--workers={WORKERS}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = Watch(process.pid)
    said, _ = process.communicate()
    watch.stop()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")
    return {"n": n, "peak_bytes": watch.peak_bytes, "cpu_seconds": watch.cpu_seconds} | json.loads(said)


class Watch:
    """Samples the memory and the CPU time of a process and its descendants.

    Attributes:
      peak_bytes: the largest sum of their resident sets; memory that they share counts several times.
      cpu_seconds: of all of them, to the last sample.
    """

    def __init__(self, pid: int, every_s: float = 0.05) -> None:
        self.peak_bytes, self._every_s, self._done = 0, every_s, threading.Event()
        self._seconds: dict[int, float] = {}
        self._root = psutil.Process(pid)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def cpu_seconds(self) -> float:
        return sum(self._seconds.values())

    def _watch(self):
        while not self._done.wait(self._every_s):
            resident = 0
            try:
                family = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                try:
                    times = process.cpu_times()
                    self._seconds[process.pid] = times.user + times.system
                    resident += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak_bytes = max(self.peak_bytes, resident)

    def stop(self) -> None:
        self._done.set()
        self._thread.join()


def _prepare(kind, root, n_workers):
    """The prepare of one cohort, timed."""
    wear = kind == "wear"
    config = PrepareConfig(
        channels=data_cohort.CHANNELS if wear else (),
        log_channels=("activity",) if wear else (),
        step_minutes=1,
        workers=n_workers,
        subjects_per_shard=100 if wear else 2000,
    )
    began = time.perf_counter()
    with workers.open_pool(config) as pool:
        tables, records, codes = root / "tables", root / "records", meds.read_codes(root / "meds")
        dataset.prepare_tables(root / "meds", root / "wearable" if wear else None, tables, config, pool=pool)
        dataset.prepare_records(tables, codes, records, config, pool=pool)
        fitting = time.perf_counter()
        dataset.fit_split(tables, records, root / "fit", config, pool=pool)
    now = time.perf_counter()
    return {"seconds": now - began, "fit_seconds": now - fitting}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prepares one cohort of data_cohort; prints the seconds as JSON.")
    parser.add_argument("kind", choices=sorted(SIZES))
    parser.add_argument("root", type=Path)
    parser.add_argument("--workers", type=int, default=WORKERS)
    options = parser.parse_args()
    print(json.dumps(_prepare(options.kind, options.root, options.workers)))
