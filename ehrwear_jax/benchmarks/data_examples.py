"""How fast records become batches, on one core, how full they are and in how much memory.

    python -m ehrwear_jax.benchmarks.data_examples [--full] [--json=FILE]

Rates are per second of processor time of one process with one thread, so that other work on the machine counts little.
Records are made up (nothing can be learnt from them) in the format of prepare: codes as skewed as real ones, several
events at a visit, histories from a few tokens to many contexts, windows of 360 minutes in 3 channels with gaps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from array_record.python.array_record_module import ArrayRecordWriter

from ehrwear_jax.data import store as records
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import examples as pipeline
from ehrwear_jax.models.joint import vocabulary as tokenizer
from ehrwear_jax.models.joint.context import DAY_US, ContextConfig

STEPS, CHANNELS = 360, ("heart_rate", "activity", "skin_temperature")
SHARD = 50  # patients written at a time
N_CODES, N_LABS = 2000, 300
START_US = 16_800 * DAY_US
# as in configs/full.py
CONTEXT = {
    "tokens": 2048,
    "context_tokens": 2048,
    "queries": 64,
    "events": 128,
    "patch_steps": 10,
    "future_codes": 1024,
    "time_warp": 0.05,
    "noise": 0.1,
    "channel_dropout": 0.1,
    "masked_contexts": 1.0,
}
# Cohorts: median events of a patient, their spread (of the logarithm) and windows. "ehr": less than a tenth of the
# tokens are windows. "wear": weeks to a year of wear at four windows a day beside a short history.
COHORTS = {"ehr": (1000, 1.2, (0, 120)), "wear": (150, 0.5, (300, 1000))}
WINDOWS = {"ehr": 256, "wear": 1024}  # capacity of a row


def write_cohort(folder, kind, n_patients, seed=0):
    """Writes vocabulary, records and index of n_patients of a kind of COHORTS; all of them train."""
    folder = Path(folder)
    (folder / "records").mkdir(parents=True)
    starts = range(0, n_patients, SHARD)
    few = pl.concat([_events(kind, s, min(SHARD, n_patients - s), seed) for s in starts[:8]])
    parents = {f"ICD10CM/A{k:04d}": [f"ICD10CM/A{k // 10:03d}", f"ICD10CM/A{k // 100:02d}"] for k in range(N_CODES)}
    vocabulary = tokenizer.fit_vocabulary(few, parents, min_subjects=5, value_bins=10, min_values=50)
    vocabulary.save(folder)
    index, shards = [], []
    for start in starts:
        shards.append(f"{start // SHARD:05d}.array_record")
        index += _write_shard(
            folder / "records" / shards[-1], vocabulary, kind, start, min(SHARD, n_patients - start), seed
        )
    names = ["subject_id", "split", "n_static", "n_events", "n_windows", "days"]
    pl.DataFrame(index, names, orient="row").with_row_index("position").write_parquet(folder / "index.parquet")
    meta = {"steps": STEPS, "window_hours": 6, "channels": CHANNELS, "summaries": [], "shards": shards}
    (folder / "meta.json").write_text(json.dumps(meta))


def _events(kind, first, n_patients, seed):
    """Events of the patients from `first` on, sorted by patient and time: subject_id, time_us, code, numeric_value."""
    rng, (median, spread, _) = np.random.default_rng([seed, first, 0]), COHORTS[kind]
    count_S = 2 + (median * np.exp(spread * rng.standard_normal(n_patients))).astype(np.int64)
    subject_N = np.repeat(np.arange(first, first + n_patients), count_S)
    n = len(subject_N)
    share_C = 1.0 / np.arange(10, N_CODES + 10)
    code_N = np.minimum(np.searchsorted(np.cumsum(share_C / share_C.sum()), rng.random(n)), N_CODES - 1)
    visits_N = np.maximum(np.repeat(count_S, count_S) // 8, 1)  # eight events at a time, on average
    visit_N = (rng.random(n) * visits_N).astype(np.int64)
    minute_N = (visit_N * 0.6180339887 % 1.0 * 5 * 365 * 1440).astype(np.int64)
    order_N = np.lexsort((minute_N, subject_N))
    value_N = np.where(code_N < N_LABS, rng.lognormal(3.0, 0.5, n), np.nan).astype(np.float32)
    return pl.DataFrame(
        {
            "subject_id": subject_N,
            "time_us": START_US + minute_N[order_N] * 60_000_000,
            "code": pl.Series([f"ICD10CM/A{k:04d}" for k in range(N_CODES)])[code_N[order_N]],
            "numeric_value": pl.Series(value_N[order_N]).fill_nan(None),
        }
    )


def _write_shard(path, vocabulary, kind, first, n_patients, seed):
    """Writes the records; returns their rows of the index."""
    coded, rng = vocabulary.encode(_events(kind, first, n_patients, seed)), np.random.default_rng([seed, first, 1])
    subject_N, token_N, value_N, time_N = (coded[c].to_numpy() for c in ("subject_id", "token", "value", "time_us"))
    token_N = coded["token"].fill_null(-1).to_numpy()
    day_L = np.sin(np.arange(4 * STEPS) * (2 * np.pi / (4 * STEPS)))
    writer, index = ArrayRecordWriter(str(path), "group_size:1"), []
    for s in range(first, first + n_patients):
        mine = np.arange(*np.searchsorted(subject_N, [s, s + 1]))
        mine = mine[token_N[mine] >= 0]
        n_windows = int(rng.integers(*COHORTS[kind][2]))
        window = rng.standard_normal((n_windows, STEPS, len(CHANNELS)), np.float32)
        window += day_L.reshape(4, STEPS)[np.arange(n_windows) % 4][..., None]
        off_M, length_M = rng.integers(0, STEPS, n_windows), rng.integers(0, STEPS // 3, n_windows)
        step_L = np.arange(STEPS)
        window[(step_L >= off_M[:, None]) & (step_L < (off_M + length_M)[:, None])] = np.nan
        end_us = START_US + (int(rng.integers(0, 3 * 365)) * 4 + np.arange(1, n_windows + 1)) * (DAY_US // 4)
        last_us = max([START_US, *time_N[mine][-1:].tolist(), *end_us[-1:].tolist()])
        record = {
            "static_token": np.full(1, batch_lib.N_SPECIAL, np.int32),
            "static_value": np.full(1, np.nan, np.float32),
            "token": token_N[mine],
            "value": value_N[mine],
            "time_us": time_N[mine],
            "window_end_us": end_us,
            "window": np.clip(window, -10, 10).astype(np.float16),
            "summary": np.zeros((n_windows, 0), np.float16),
            "birth_us": np.int64(START_US - 20_000 * DAY_US),
            "end_us": np.int64(last_us),
            "died": np.bool_(False),
        }
        writer.write(records.encode(record))
        index.append((s, "train", 1, len(mine), n_windows, (last_us - START_US) / DAY_US))
    writer.close()
    return index


def run(folder, kind, n_batches, batch_size=8, **options):
    """Makes batches in this thread; returns a dict of rates and shares, see `measure`.

    The first batch opens files and caches and is not timed. Cached patients stay within 64 MiB.
    """
    config = ContextConfig(windows=WINDOWS[kind], **CONTEXT | options)
    rows = pipeline.TrainRows(pipeline.Patients(folder, config, "train", cache_bytes=2**26), seed=0)
    batches = pipeline.train_batches(rows, batch_size, threads=0)
    next(batches)
    tokens = windows = slots = 0
    began = time.process_time()
    for _ in range(n_batches):
        batch = next(batches)
        slots += batch["segment"].size
        tokens += int(np.count_nonzero(batch["segment"]))
        windows += int(np.count_nonzero(batch["window_position"] >= 0))
    seconds = time.process_time() - began
    return {
        "tokens_per_second": tokens / seconds,
        "windows_per_second": windows / seconds,
        "filled": tokens / slots,
        "window_share": windows / tokens,
        "contexts_per_row": float(batch["segment"].max(axis=1).mean()),
        "peak_mib": peak_mib(),
    }


def peak_mib():
    """Largest resident memory of this process so far, MiB (Linux: of this program, not of the one that started it)."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(x for x in status.read_text().splitlines() if x.startswith("VmHWM")).split()[1]) / 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _apart(folder, kind, n_batches, **options):
    """`run` in a process of its own with one thread."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
    command = [sys.executable, "-m", "ehrwear_jax.benchmarks.data_examples", "--run"]
    work = json.dumps([str(folder), kind, n_batches, options])
    env = os.environ | dict.fromkeys(names, "1")
    done = subprocess.run([*command, work], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(quick=True):
    """Flat metric name -> number.

    pipeline_tokens_per_s_core: where at most a tenth of the tokens are windows (pipeline_window_share), all changes of
      the signal and all masks on. pipeline_windows_per_s_core: windows of 6 h at minutes in 3 channels, the same.
    pipeline_filled_patient_days_0 and _1: share of token slots that hold a token, without and with sampled
      patient-days. pipeline_peak_mib and pipeline_peak_10x_mib: of a process that reads, cohorts of 1 and 10 sizes.

    Args:
      quick: half a minute; otherwise cohorts and runs are five times as large.
    """
    size, n = (60, 6) if quick else (300, 30)
    out = {}
    with tempfile.TemporaryDirectory() as root:
        folders = {name: Path(root) / name for name in ("ehr", "ehr_10x", "wear")}
        for name, folder in folders.items():
            kind = name.partition("_")[0]
            write_cohort(folder, kind, size * {"ehr": 4, "ehr_10x": 40, "wear": 1}[name])
        for days in (0.0, 1.0):
            got = _apart(folders["ehr"], "ehr", n, patient_days=days)
            out[f"pipeline_filled_patient_days_{days:.0f}"] = got["filled"]
        out["pipeline_tokens_per_s_core"] = got["tokens_per_second"]
        out["pipeline_window_share"] = got["window_share"]
        out["pipeline_contexts_per_row"] = got["contexts_per_row"]
        out["pipeline_peak_mib"] = got["peak_mib"]
        out["pipeline_peak_10x_mib"] = _apart(folders["ehr_10x"], "ehr", n, patient_days=1.0)["peak_mib"]
        got = _apart(folders["wear"], "wear", n, patient_days=1.0)
        out["pipeline_windows_per_s_core"] = got["windows_per_second"]
    return out


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="cohorts and runs five times as large")
    parser.add_argument("--json", default="", help="file for the results")
    parser.add_argument("--run", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.run:
        folder, kind, n_batches, config = json.loads(options.run)
        print(json.dumps(run(folder, kind, n_batches, **config)))
        return
    found = measure(quick=not options.full)
    for name, value in found.items():
        print(f"{name:36} {value:,.3f}")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
