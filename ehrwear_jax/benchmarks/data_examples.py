"""Measures how fast records become batches, on one core, how full they are and in how much memory.

    python -m ehrwear_jax.benchmarks.data_examples [--full] [--json=FILE]

Rates are per second of processor time of one process with one thread, so that other work on the machine counts little.
Records are made up (nothing can be learnt from them) in the format of prepare: codes as skewed as real ones, several
events at a visit, histories from a few tokens to many contexts, windows of 360 minutes in 3 channels with gaps.
"""

import argparse
import collections
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

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.options import build
from ehrwear_jax.data import record_bytes, store
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.prepare import code_table, record_shards, statistics
from ehrwear_jax.data.prepare.texts import TEXTS
from ehrwear_jax.models.joint import family
from ehrwear_jax.models.joint.config import Config, ContextConfig
from ehrwear_jax.models.joint.examples import JointExamples
from ehrwear_jax.training import feed

STEPS, CHANNELS = 360, ("heart_rate", "activity", "skin_temperature")
# of the channels: mean and standard deviation on the model's scale, that of activity is logarithmic
MEAN, STD = (70.0, 2.5, 33.0), (12.0, 1.0, 0.8)
SHARD = 50  # patients written at a time
N_CODES, N_LABS = 2000, 300
START_US = 16_800 * DAY_US
TOKENS = 2048  # of a row, windows included
# as in configs/full.py
CONTEXT: dict[str, float | str] = {
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
CACHE_BYTES = 2**26  # of patients, so that memory tells what else a process needs


def write_cohort(folder: Path, kind: str, n_patients: int, seed: int = 0) -> None:
    """Writes FOLDER/records and FOLDER/fit of n_patients of a kind of COHORTS; all of them train."""
    records, fit = Path(folder) / "records", Path(folder) / "fit"
    records.mkdir(parents=True)
    fit.mkdir()
    starts = range(0, n_patients, SHARD)
    few = pl.concat([_events(kind, s, min(SHARD, n_patients - s), seed) for s in starts[:8]])
    codes, texts = _tables()
    fitted, of_text = statistics.fit_in_memory(code_table.event_ids(few, codes, texts), codes, texts, min_subjects=5)
    config = PrepareConfig(CHANNELS, ("activity",), step_minutes=1, subjects_per_shard=SHARD)
    meta, index = record_shards.make_meta(n_patients, config), []
    for name, start in zip(meta["shards"], starts, strict=True):
        index += _write_shard(records / name, fitted, kind, start, min(SHARD, n_patients - start), seed)
    names = ["subject_id", "n_static", "n_events", "n_windows", "known_events", "days"]
    table = pl.DataFrame(index, names, orient="row").with_row_index("position")
    table.drop("known_events").with_columns(group_id="subject_id").write_parquet(records / "index.parquet")
    of_split = {"split": pl.lit("train"), "known_static": pl.lit(1), "rarity": pl.lit(0.0)}
    known = table.select("subject_id", "known_events", **of_split)
    known.write_parquet(fit / "subject_statistics.parquet")
    for folder, tables in ((records, {"codes": codes, "texts": texts}),
                           (fit, {"code_statistics": fitted, "text_statistics": of_text})):  # fmt: skip
        for name, table in tables.items():
            table.write_parquet(folder / f"{name}.parquet")
    (records / "meta.json").write_text(json.dumps(meta))
    options = dict(zip(store.FITTED_WITH, (5, 10, 50, 5), strict=True))
    (fit / "meta.json").write_text(json.dumps(options))
    signals = {"mean": MEAN, "std": STD, "derived_mean": [], "derived_std": []}
    (fit / "signal_statistics.json").write_text(json.dumps(signals))


def _tables():
    names = [f"ICD10CM/A{k:04d}" for k in range(N_CODES)]
    parents = [[f"ICD10CM/A{k // 10:03d}", f"ICD10CM/A{k // 100:02d}"] for k in range(N_CODES)]
    codes = code_table.make_codes(
        names, pl.DataFrame({"code": names, "description": "", "parent_codes": parents}), {}, False
    )
    return codes, code_table.make_texts(pl.DataFrame(schema=TEXTS), codes)


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
            "text_value": pl.Series([None] * n, dtype=pl.String),
        }
    )


def _write_shard(path, fitted, kind, first, n_patients, seed):
    """Writes the records; returns their rows of the index."""
    events, rng = _events(kind, first, n_patients, seed), np.random.default_rng([seed, first, 1])
    events = events.join(fitted.select("code", "code_id", "alias"), on="code", how="left", maintain_order="left")
    subject_N, time_N = events["subject_id"].to_numpy(), events["time_us"].to_numpy()
    code_N, value_N = events["code_id"].to_numpy(), events["numeric_value"].fill_null(np.nan).to_numpy()
    has_alias_N = events["alias"].is_not_null().to_numpy()
    day_L = np.sin(np.arange(4 * STEPS) * (2 * np.pi / (4 * STEPS)))
    writer, index = ArrayRecordWriter(str(path), "group_size:1"), []
    for s in range(first, first + n_patients):
        mine = slice(*np.searchsorted(subject_N, [s, s + 1]))
        n_windows, n = int(rng.integers(*COHORTS[kind][2])), mine.stop - mine.start
        window = rng.standard_normal((n_windows, STEPS, len(CHANNELS)), np.float32)
        window += day_L.reshape(4, STEPS)[np.arange(n_windows) % 4][..., None]
        window = window * np.array(STD, np.float32) + np.array(MEAN, np.float32)
        window[..., 0], window[..., 1] = np.rint(window[..., 0]), np.rint(np.expm1(np.maximum(window[..., 1], 0)))
        off_M, length_M = rng.integers(0, STEPS, n_windows), rng.integers(0, STEPS // 3, n_windows)
        step_L = np.arange(STEPS)
        window[(step_L >= off_M[:, None]) & (step_L < (off_M + length_M)[:, None])] = np.nan
        end_us = START_US + (int(rng.integers(0, 3 * 365)) * 4 + np.arange(1, n_windows + 1)) * (DAY_US // 4)
        last_us = max([START_US, *time_N[mine][-1:].tolist(), *end_us[-1:].tolist()])
        record = {
            "static_code": fitted.sort("count", descending=True)["code_id"].to_numpy()[:1],
            "static_value": np.full(1, np.nan, np.float32),
            "static_text": np.full(1, store.NO_TEXT, np.int32),
            "code": code_N[mine],
            "value": value_N[mine].astype(np.float32),
            "text": np.full(n, store.NO_TEXT, np.int32),
            "time_us": time_N[mine],
            "window_end_us": end_us,
            "window": window,
            "derived": np.zeros((n_windows, 0), np.float32),
            "birth_us": np.int64(START_US - 20_000 * DAY_US),
            "end_us": np.int64(last_us),
            "died": np.bool_(False),
        }
        writer.write(record_bytes.encode(record))
        days = (last_us - START_US) / DAY_US
        index.append((s, 1, n, n_windows, int(has_alias_N[mine].sum()), days))
    writer.close()
    return index


def open_examples(folder: Path, kind: str, **options: float | str) -> JointExamples:
    """Training examples of the joint family on what write_cohort wrote.

    Args:
      kind: of COHORTS. options: of ContextConfig, beside CONTEXT.
    """
    records = store.RecordStore(Path(folder) / "records", Path(folder) / "fit", "train")
    windows = WINDOWS[kind]
    room = {"windows": windows, "tokens": TOKENS - windows, "context_tokens": TOKENS - windows}
    context = build(ContextConfig, room | CONTEXT | options)
    examples = family.examples(records, Config(context=context))
    examples.people.cache.memory_bytes = CACHE_BYTES
    return examples


def run(folder: Path, kind: str, n_batches: int, batch_size: int = 8, **options: float | str) -> dict[str, float]:
    """Makes batches in this thread; returns a dict of rates and shares, see `measure`.

    The first batch opens files and caches and is not timed. Cached patients stay within CACHE_BYTES.
    """
    examples = open_examples(folder, kind, **options)
    batches = feed.train_batches(examples, batch_size, threads=0)
    next(batches)
    count: collections.Counter[str] = collections.Counter()
    seconds = 0.0
    for _ in range(n_batches):
        began = time.process_time()
        batch = next(batches)
        seconds += time.process_time() - began
        count.update(examples.counts(batch))
    tokens, windows, rows = count["tokens"], count["windows"], n_batches * batch_size
    return {
        "tokens_per_second": tokens / seconds,
        "windows_per_second": windows / seconds,
        "filled": tokens / (rows * examples.spec.sizes["T"]),
        "window_share": windows / tokens,
        "contexts_per_row": count["contexts"] / rows,
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
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


def measure(quick: bool = True) -> dict[str, float]:
    """Flat metric name -> number.

    pipeline_tokens_per_s_core: where at most a tenth of the tokens are windows (pipeline_window_share), all changes of
      the signal and all masks on. pipeline_windows_per_s_core: windows of 6 h at minutes in 3 channels, the same.
    pipeline_bytes_per_event and pipeline_bytes_per_window: on disk, of records that are events and windows in the main.
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
        for kind, part in (("ehr_10x", "n_events"), ("wear", "n_windows")):
            records = folders[kind] / "records"
            size = sum(path.stat().st_size for path in records.glob("*.array_record"))
            number = pl.read_parquet(records / "index.parquet")[part].sum()
            out[f"pipeline_bytes_per_{part.removeprefix('n_').removesuffix('s')}"] = size / number
    return out


def main(argv: list[str] | None = None) -> None:
    """The command, see above."""
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
