"""Measures prepare, the loader and the start beside MEDS-transforms with meds-torch-data, in processor time.

    python -m venv VENV && VENV/bin/pip install meds-torch-data MEDS-transforms      # or the extra `peers`
    python -m ehrwear_jax.benchmarks.peers --python=VENV/bin/python [--people=4000] [--events=250] [--json=FILE]

Both are given the same MEDS dataset: made up (data_cohort.py), sharded by split as the peers want it, with a static
event for each person. Runs take turns, ours and the peer's, and what is printed are medians of processor time, of all
processes of a command together, and their ratio: below 1 ours is cheaper, or of a rate faster above 1. PyTorch is in
the peers' environment alone.

- prepare: ours from MEDS to records and what is fitted, with the default workers, theirs MTD_preprocess. Neither makes
  labels; what ours for hospitalisation and five diagnosis groups cost is printed beside it.
- loader: real tokens a second, static ones included, of one process with one thread, in batches of 32, at the same
  sequence length: theirs is random crops of one person each, padded; ours rows of packed contexts with all targets of
  the EHR. "cached": after a pass over everybody, so that what fits into memory is there; "mapped": likewise, with
  nobody in memory and everybody in the file of config.train.file_cache_mib, as for most people of a cohort that is
  much larger than memory (theirs are in mapped files, too); "read": kept nowhere, as in the first epoch.
- start: --help of the two programs, and their import.
"""

import argparse
import functools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ehrwear_jax.benchmarks import data_cohort
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.labels import LabelsConfig
from ehrwear_jax.config.training import TrainConfig
from ehrwear_jax.data import store
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.labels import event_tasks
from ehrwear_jax.models.joint.config import Config, ContextConfig

BATCH = 32
EVENTS = 250  # of a person, on average
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
_MODULES = ("meds_torchdata", "MEDS_transforms")
# arguments: folder, sequence length, batch, seconds
_PEER_LOADER = """
import json, sys, time
import torch
torch.set_num_threads(1)
from meds_torchdata import MEDSPytorchDataset, MEDSTorchDataConfig
folder, length, size, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
data = MEDSPytorchDataset(MEDSTorchDataConfig(tensorized_cohort_dir=folder, max_seq_len=length), split="train")
def batches():
    while True:
        yield from torch.utils.data.DataLoader(data, batch_size=size, shuffle=True, collate_fn=data.collate)
found = batches()
for _ in range(-(-len(data) // size)):
    next(found)
tokens = slots = 0
began = time.process_time()
while time.process_time() - began < seconds:
    batch = next(found)
    tokens += int((batch.code != 0).sum()) + int((batch.static_code != 0).sum())
    slots += batch.code.numel() + batch.static_code.numel()
print(json.dumps({"rate": tokens / (time.process_time() - began), "filled": tokens / slots}))
"""


def require_peers(python: str) -> dict[str, str]:
    """{package: version} of the peers in an environment.

    Raises:
      RuntimeError: what is missing there, and how to install it.
    """
    script = "import importlib.metadata as m, json, sys; [__import__(n) for n in sys.argv[1:]]; "
    script += "print(json.dumps({n: m.version(n) for n in ('meds-torch-data', 'MEDS-transforms', 'torch')}))"
    done = subprocess.run([python, "-c", script, *_MODULES], capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise RuntimeError(
            f"{python} has not the peers ({why}): install the extra in an environment of its own, VENV/bin/pip install "
            "'ehrwear_jax[peers]', and name it: --python=VENV/bin/python"
        )
    return json.loads(done.stdout.splitlines()[-1])


def write_cohort(root: Path, people: int, events_each: int = EVENTS) -> int:
    """Writes ROOT/meds, sharded by split, with a static event for each person; returns the number of events.

    events_each: of a person, on average.
    """
    n = data_cohort.write_events(root / "meds", people, events_each)
    splits = pl.read_parquet(meds.splits_path(root / "meds"))
    for path in meds.list_shards(root / "meds"):
        events = meds.read_shard(path)
        sex = pl.when(pl.col("subject_id") % 2 == 0).then(pl.lit("GENDER//F")).otherwise(pl.lit("GENDER//M"))
        none = {
            name: pl.lit(None, events.schema[name]) for name in events.columns if name not in ("subject_id", "code")
        }
        static = events.select("subject_id").unique().with_columns(sex.alias("code"), **none).select(events.columns)
        whole = pl.concat([static, events]).sort("subject_id", "time", nulls_last=False, maintain_order=True)
        path.unlink()
        for (split,), part in whole.join(splits, on="subject_id", maintain_order="left").group_by("split"):
            meds.write_shard(path.parent / str(split) / path.name, part.drop("split"))
        n += static.height
    return n


def processor_seconds(command: Sequence[str], log: Path, **environment: str) -> float:
    """Of a command and the processes that it waits for; absl ends --help with 1.

    Raises:
      RuntimeError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode > (command[-1] == "--help"):
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# --------------------------------------------------------------------------------------------- ours, in processes


def _labels(root: Path) -> None:
    """Makes labels of the cohort's events, as prepare does where there are none."""
    groups = {f"group{k}": (f"ICD10CM/A{k:03d}",) for k in range(5)}
    labels = LabelsConfig(
        admission_codes=("ICD10CM/A0012",), discharge_codes=("ICD10CM/A0013",), diagnosis_groups=groups, death=False,
        followup_end_codes=(),
    )  # fmt: skip
    source = event_tasks.Source(root / "meds", None, labels, PrepareConfig(), 0)
    event_tasks.make(source, ["hospitalization", *(f"onset_{name}" for name in groups)])


def load(root: Path, length: int, seconds: float, cache_mib: int, file_cache_mib: int = 0) -> dict[str, float]:
    """Real tokens a second, and their share of all slots, of training batches of a prepared cohort.

    cache_mib, file_cache_mib: as of config.train; one epoch is read before it is measured unless both are 0.
    """
    from ehrwear_jax.models.joint import family  # loaded here: neither prepare nor labels wait for JAX
    from ehrwear_jax.training import feed

    context = ContextConfig(tokens=length, context_tokens=length, queries=length // 16, events=length // 8)
    weights = {"ehr_values": (1.0, 1.0, 0), "next_value": (1.0, 1.0, 0)}
    sizes = {"cache_bytes": cache_mib * 2**20, "file_cache_bytes": file_cache_mib * 2**20}
    records = store.RecordStore(root / "records", root / "fit", "train", pretraining=True, **sizes)
    examples = family.examples(records, Config(("ehr",), context=context, weights=weights))
    batches = feed.train_batches(examples, BATCH, threads=0)
    for _ in range(-(-examples.rows_per_epoch // BATCH) if cache_mib or file_cache_mib else 1):
        next(batches)
    tokens = slots = 0
    took = 0.0
    while took < seconds:
        began = time.process_time()
        batch = next(batches)
        took += time.process_time() - began
        tokens += examples.counts(batch)["tokens"]
        slots += batch["token"].size
    return {"rate": tokens / took, "filled": tokens / slots}


# ----------------------------------------------------------------------------------------------------- measurements


def measurements(root: Path, python: str, options: argparse.Namespace) -> dict[str, dict[str, Callable[[], float]]]:
    """{what: {whose: how it is measured once}}, in the order in which they can run."""
    folder, here = Path(python).absolute().parent, [sys.executable, "-m", "ehrwear_jax.benchmarks.peers", "--run"]
    log = root / "log.txt"

    def ours(*work: Any) -> list[str]:
        return [*here, json.dumps([str(root), *work])]

    def prepare() -> float:
        _remove(*(root / name for name in ("tables", "records", "fit")))
        module = [sys.executable, "-m", "ehrwear_jax.benchmarks.data_prepare", "ehr", str(root), "--workers=0"]
        return processor_seconds(module, log)

    def peer_prepare() -> float:
        _remove(root / "peer")
        command = [str(folder / "MTD_preprocess"), f"MEDS_dataset_dir={root / 'meds'}", f"output_dir={root / 'peer'}"]
        return processor_seconds(command, log, PATH=f"{folder}:{os.environ['PATH']}")

    def rate(command: list[str]) -> float:
        processor_seconds(command, log, **_ONE_THREAD)
        return float(json.loads(log.read_text().splitlines()[-1])["rate"])

    found: dict[str, dict[str, Callable[[], float]]] = {
        "prepare, s": {"ours": prepare, "peer": peer_prepare},
        "labels beside it, s": {"ours": lambda: processor_seconds(ours("labels"), log)},
    }
    for length in options.lengths:
        peer = [python, "-c", _PEER_LOADER, str(root / "peer"), str(length), str(BATCH), str(options.seconds)]
        kept = {"cached": (options.cache_mib, 0), "mapped": (0, TrainConfig().file_cache_mib), "read": (0, 0)}
        for name, sizes in kept.items():
            mine = ours("load", length, options.seconds, *sizes)
            found[f"loader, {length} tokens, {name}, tokens/s"] = {
                "ours": functools.partial(rate, mine),
                "peer": functools.partial(rate, peer),
            }
    main = [sys.executable, "-m", "ehrwear_jax.main", "--help"]
    found["--help, s"] = {
        "ours": lambda: processor_seconds(main, log),
        "peer": lambda: processor_seconds([str(folder / "MTD_preprocess"), "--help"], log),
    }
    found["import, s"] = {
        "ours": lambda: processor_seconds([sys.executable, "-c", "import ehrwear_jax"], log),
        "peer": lambda: processor_seconds([python, "-c", "import meds_torchdata"], log),
    }
    return found


def _remove(*folders):
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def measure(root: Path, python: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """{what: {"ours", "peer": median, "ratio"}}; in every round each is measured once, ours and the peer's in turn."""
    seen: dict[str, dict[str, list[float]]] = {}
    how = measurements(root, python, options)
    for turn in range(options.rounds):
        for what, of in how.items():
            for whose in sorted(of, reverse=bool(turn % 2)):
                seen.setdefault(what, {}).setdefault(whose, []).append(of[whose]())
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    found = {what: {whose: statistics.median(x) for whose, x in of.items()} for what, of in seen.items()}
    return {what: of | ({"ratio": of["ours"] / of["peer"]} if "peer" in of else {}) for what, of in found.items()}


def main(argv: list[str] | None = None) -> int:
    """The command, see above; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter of an environment with the peers")
    parser.add_argument("--people", type=int, default=4000, help="of the cohort")
    parser.add_argument("--events", type=int, default=EVENTS, help="of a person, on average")
    parser.add_argument("--lengths", default="256,1024", help="sequence lengths of the loaders")
    parser.add_argument("--cache_mib", type=int, default=TrainConfig().cache_mib, help="as config.train.cache_mib")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--seconds", type=float, default=5.0, help="of processor time that a loader is measured for")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file")
    parser.add_argument("--run", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.run:
        root, what, *work = json.loads(options.run)
        if what == "labels":
            _labels(Path(root))
        else:
            print(json.dumps(load(Path(root), *work)))
        return 0
    options.lengths = [int(x) for x in options.lengths.split(",")]
    try:
        versions = require_peers(options.python)
    except (RuntimeError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    with tempfile.TemporaryDirectory(prefix="bench_peers_") as folder:
        n = write_cohort(Path(folder), options.people, options.events)
        found = measure(Path(folder), options.python, options)
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{options.people:,} people, {n:,} events; medians of {options.rounds} rounds; {named}")
    for what, of in found.items():
        ratio = f"{of['ratio']:8.2f}" if "ratio" in of else ""
        print(f"{what:42} ours {of['ours']:12,.2f}   peer {of.get('peer', float('nan')):12,.2f} {ratio}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
