"""Times appends to a patient's state and reads of it, on one core, at several lengths of history.

python -m ehrwear_jax.benchmarks.streaming [BUNDLE] [--context_tokens=N] [--histories=100,1000,8000] [--repeats=200]

Each repeat appends one event and reads z an hour later, once with what is known of earlier tokens and once computed
anew. `--context_tokens` gives the model another context than its own (parameters do not depend on it): with more than
there are events nothing slides, and what the cache saves is seen; with the model's own, every append slides the context
of a longer history. Reads `again` ask at another time before the next append. Times are milliseconds.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

BEGIN = datetime(2015, 1, 1)
WARM_UP = 10  # repeats that are not counted: the programs of each shape are compiled


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ehrwear_jax.benchmarks.streaming", description=__doc__)
    parser.add_argument("bundle", nargs="?", default="tiny", help="a bundle of the joint family")
    parser.add_argument("--context_tokens", type=int, default=0, help="EHR tokens of a context; 0: the bundle's")
    parser.add_argument("--histories", default="100,1000,8000", help="events before the first repeat")
    parser.add_argument("--repeats", type=int, default=200)
    given = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):  # before jax counts the cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    histories = [int(n) for n in given.histories.split(",")]
    print("context events way         append p50    p99   read p50    p99   again p50    p99   state, MB")
    for name, values in measure(given.bundle, given.context_tokens, histories, given.repeats).items():
        print(f"{name[0]:7d} {name[1]:6d} {name[2]:11s} " + " ".join(f"{x:9.2f}" for x in values), flush=True)
    return 0


def measure(bundle: str, context_tokens: int, histories: Sequence[int], repeats: int) -> dict:
    """{(context, events, way): [p50 and p99 of append, of read and of a second read, milliseconds; megabytes]}."""
    import polars as pl

    from ehrwear_jax.inference import patient_state, trained_model
    from ehrwear_jax.runtime import compile_cache

    compile_cache.use()
    model = trained_model.load(bundle)
    config = model.model.config
    if context_tokens:
        context = dataclasses.replace(config.context, tokens=context_tokens, context_tokens=context_tokens)
        model.model = dataclasses.replace(model.model, config=dataclasses.replace(config, context=context))
    codes = pl.read_parquet(model.folder / "code_statistics.parquet").filter(pl.col("alias").is_not_null())["code"]
    found = {}
    for incremental in (True, False):
        reader = patient_state.Reader(model, incremental=incremental)
        for n in histories:
            state = patient_state.PatientState(model, reader)
            state.append([_event(codes, k) for k in range(n)])
            way = "incremental" if incremental else "recomputed"
            found[model.model.config.context.context_tokens, n, way] = _timed(state, codes, n, repeats)
    return found


def _event(codes, k):
    """Event k of a person: one every six hours."""
    time_k = (BEGIN + timedelta(hours=6 * k)).isoformat()
    return {"time": time_k, "code": codes[k * 7 % len(codes)], "numeric_value": float(60 + k % 50)}


def _timed(state, codes, n, repeats):
    import numpy as np

    spent = []
    for k in range(n, n + repeats + WARM_UP):
        event, asked = [_event(codes, k)], BEGIN + timedelta(hours=6 * k + 1)
        begin = time.perf_counter()
        state.append(event)
        appended = time.perf_counter()
        state.read(asked)
        read = time.perf_counter()
        state.read(asked + timedelta(hours=1))
        spent.append((appended - begin, read - appended, time.perf_counter() - read))
    percentiles = np.percentile(1e3 * np.array(spent[WARM_UP:]), [50, 99], axis=0)
    return [*percentiles.T.ravel().tolist(), state.nbytes / 1e6]


if __name__ == "__main__":
    sys.exit(main())
