"""Measures whether reading ahead scales: real tokens a second against threads and worker processes.

    python -m ehrwear_jax.benchmarks.loader_scaling [--threads=1,2,4,8,16] [--workers=2,4,8] [--repeats=1] [--full]
                                                    [--json=FILE]

Rows are those of configs/full.py (2,048 tokens, half of the room for windows of six hours at minutes; signals changed,
events and signal hidden) on the made-up cohort of data_examples.py, eight a batch. Each number of threads in this
process, and each number of worker processes of two threads, runs in a process of its own, all in turn, --repeats times,
and the best is kept: run it on a machine that does nothing else, with as many cores as are to feed its accelerators.
Printed for each: real tokens a second of the clock; that over the first one's; and the cores that the process which
receives batches keeps busy. Threads of one interpreter share its lock: where tokens a second stop growing while the
workers' do not, set config.train.data_workers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ehrwear_jax.benchmarks import data_examples
from ehrwear_jax.training import feed

# of configs/full.py, beside data_examples.CONTEXT
SHAPE: dict[str, float | str] = {
    "windows": 1024,
    "tokens": 1024,
    "context_tokens": 1024,
    "window_parts": 2,
    "patch_steps": 20,
    "patient_days": 1.0,
    "pairs": 8,
}
KIND, BATCH = "ehr", 8
WORKER_THREADS = 2
# no library beside the threads that are measured has threads of its own
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")


def run(folder: Path, threads: int, workers: int, n_batches: int, **options: float | str) -> dict[str, float]:
    """{"tokens_per_second", "cores"} of some batches, when as many as are made at a time have been taken before.

    Args:
      folder: of data_examples.write_cohort. options: of ContextConfig, beside SHAPE.
    """
    examples = data_examples.open_examples(folder, KIND, **SHAPE | options)
    batches = feed.train_batches(examples, BATCH, threads=threads, workers=workers)
    for _ in range(threads * max(workers, 1)):
        next(batches)
    began, busy, tokens = time.monotonic(), time.process_time(), 0
    for _ in range(n_batches):
        tokens += int((next(batches)["segment"] > 0).sum())
    seconds = time.monotonic() - began
    return {"tokens_per_second": tokens / seconds, "cores": (time.process_time() - busy) / seconds}


def measure(folder: Path, settings: Sequence[tuple[int, int]], n_batches: int, repeats: int) -> list[dict[str, float]]:
    """The best of some runs of each (threads, workers); n_batches: for each thread of all processes."""
    found: list[dict[str, float]] = [{}] * len(settings)
    command = [sys.executable, "-m", "ehrwear_jax.benchmarks.loader_scaling", "--run"]
    for _ in range(repeats):
        for k, (threads, workers) in enumerate(settings):
            work = json.dumps([str(folder), threads, workers, n_batches * threads * max(workers, 1)])
            done = subprocess.run([*command, work], env=os.environ | ALONE, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} {work}: {done.stderr[-2000:]}")
            got = json.loads(done.stdout.splitlines()[-1])
            if not found[k] or got["tokens_per_second"] > found[k]["tokens_per_second"]:
                found[k] = {"threads": threads, "workers": workers} | got
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The command, see above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2,4,8,16", help="in one process")
    parser.add_argument("--workers", default="2,4,8", help=f"processes of {WORKER_THREADS} threads; empty: none")
    parser.add_argument("--repeats", type=int, default=1, help="of every measurement")
    parser.add_argument("--full", action="store_true", help="a cohort and runs five times as large")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to a file")
    parser.add_argument("--run", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.run:
        flags.FLAGS.mark_as_parsed()  # workers of grain read absl's flags
        print(json.dumps(run(*json.loads(options.run))))
        return
    settings = [(int(n), 0) for n in options.threads.split(",") if n]
    settings += [(WORKER_THREADS, int(n)) for n in options.workers.split(",") if n]
    with tempfile.TemporaryDirectory() as root:
        data_examples.write_cohort(Path(root) / KIND, KIND, 500 if options.full else 100)
        found = measure(Path(root) / KIND, settings, 20 if options.full else 4, options.repeats)
    print(f"{'threads':>8}{'workers':>9}{'tokens/s':>12}{'times':>8}{'cores':>8}")
    for one in found:
        times = one["tokens_per_second"] / found[0]["tokens_per_second"]
        print(
            f"{one['threads']:>8}{one['workers']:>9}{one['tokens_per_second']:>12,.0f}{times:>8.2f}{one['cores']:>8.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
