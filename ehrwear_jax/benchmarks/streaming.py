"""Times appends to a patient's state and reads of it, on one core, at several lengths of history.

python -m ehrwear_jax.benchmarks.streaming [BUNDLE] [--context_tokens=N] [--histories=100,1000,8000] [--repeats=200]
    [--ways=incremental,recomputed]

Each repeat appends one event and reads z an hour later, once with what is known of earlier tokens and once computed
anew. `--context_tokens` gives the model another context than its own (parameters do not depend on it): with more than
there are events nothing slides, and what the cache saves is seen; with the model's own, every append slides the context
of a longer history. Reads `again` ask at another time before the next append. Times are milliseconds of the clock, 50th
and 99th percentile, and of the processor, 50th: on a machine that does other work, the clock's are those of its queue.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

BEGIN = datetime(2015, 1, 1)
WARM_UP = 3  # repeats that are not counted: the programs of each shape are compiled


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ehrwear_jax.benchmarks.streaming", description=__doc__)
    parser.add_argument("bundle", nargs="?", default="tiny", help="a bundle of the joint family")
    parser.add_argument("--context_tokens", type=int, default=0, help="EHR tokens of a context; 0: the bundle's")
    parser.add_argument("--histories", default="100,1000,8000", help="events before the first repeat")
    parser.add_argument("--ways", default="incremental,recomputed")
    parser.add_argument("--repeats", type=int, default=200)
    given = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):  # before jax counts the cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    histories = [int(n) for n in given.histories.split(",")]
    columns = "".join(f"{what:>10} {'p99':>7} {'cpu':>6}" for what in ("append p50", "read p50", "again p50"))
    print(f"context events way         {columns}  MB")
    ways = given.ways.split(",")
    for name, values in measure(given.bundle, given.context_tokens, histories, ways, given.repeats):
        print(f"{name[0]:7d} {name[1]:6d} {name[2]:11s} " + "".join(f"{x:8.2f}" for x in values), flush=True)
    return 0


def measure(
    bundle: str, context_tokens: int, histories: Sequence[int], ways: Sequence[str], repeats: int
) -> Iterator[tuple[tuple[int, int, str], list[float]]]:
    """((context, events, way), [p50, p99 and processor of append, of read, of a second read; megabytes]) in turn."""
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
    for way in ways:
        reader = patient_state.Reader(model, incremental=way == "incremental")
        for n in histories:
            state = patient_state.PatientState(model, reader)
            state.append([_event(codes, k) for k in range(n)])
            yield (model.model.config.context.context_tokens, n, way), _timed(state, codes, n, repeats)


def _event(codes, k):
    """Event k of a person: one every six hours."""
    time_k = (BEGIN + timedelta(hours=6 * k)).isoformat()
    return {"time": time_k, "code": codes[k * 7 % len(codes)], "numeric_value": float(60 + k % 50)}


def _timed(state, codes, n, repeats):
    import numpy as np

    spent = []
    for k in range(n, n + repeats + WARM_UP):
        event, asked = [_event(codes, k)], BEGIN + timedelta(hours=6 * k + 1)
        marks = [_clocks()]
        for step in (
            lambda event=event: state.append(event),
            lambda asked=asked: state.read(asked),
            lambda asked=asked: state.read(asked + timedelta(hours=1)),
        ):
            step()
            marks.append(_clocks())
        spent.append(np.diff(1e3 * np.array(marks), axis=0))
    spent_Rx3x2 = np.array(spent[WARM_UP:])
    p50_3x2, p99_3x2 = np.percentile(spent_Rx3x2, [50, 99], axis=0)
    of_steps = [x for a, b in zip(p50_3x2, p99_3x2, strict=True) for x in (a[0], b[0], a[1])]
    return [*of_steps, state.nbytes / 1e6]


def _clocks():
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    sys.exit(main())
