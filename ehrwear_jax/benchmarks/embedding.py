"""Measures how fast people are embedded, and whether that and its memory grow with people and prediction times.

    python -m ehrwear_jax.benchmarks.embedding DIR [--people=500,1000,2000] [--times=1,5] [--repeats=1] [--apart]
                                                   [--json=FILE]

Simulates and prepares as many people as the largest size in DIR, once, and embeds the first of them with the joint
network of configs/tiny.py as it is before training, at so many prediction times of each, evenly from the first quarter
of a record to its end, as the embed stage does: shards of people, each written as a file beside one of what the
model sees. All sizes in turn, --repeats times, the least processor time of each: other work on a machine adds to it.
Printed per size: prediction times, rows of batches, share of their tokens that are not padding, processor seconds, rows
and prediction times per processor second, processor milliseconds per person, and the peak of the process so far; then,
per number of times, the time of a person over that among the fewest people: 1 where the work is linear in people.

--apart also measures each size with a context for every prediction time, as transformed records have them, and prints
how many times as long that takes as contexts that prediction times share.
"""

import argparse
import itertools
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import polars as pl

from ehrwear_jax.benchmarks import evaluate_memory
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.models.family import Batch, Examples, Transform, places_by_person
from ehrwear_jax.stages import tokens_seen
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.workdir import Workdir
from ehrwear_jax.training import embedding, sharding
from ehrwear_jax.training.pretrain import make_task


def open_model(workdir: Path) -> tuple[Plan, Examples, embedding.Encoder]:
    """(artifacts, examples of everybody, encoder of the joint network before training) of a prepared run."""
    workdir_of_run = Workdir(workdir)
    plan = Plan(workdir_of_run.read_config(), workdir_of_run)
    trained = plan.first("joint")
    model = plan.model(trained)
    examples = model.module.examples(plan.store(trained.fold), model.config, model.seed, train=False)
    task = make_task(model, examples.spec, sharding.make_mesh(jax.local_devices()[:1]))
    params, collections = jax.jit(task.init)(jax.random.key(0))
    return plan, examples, embedding.encoder(task.network, {"params": params, "collections": collections})


def prediction_times(store: RecordStore, people: int, times: int) -> pl.DataFrame:
    """subject_id, prediction_time of the first people, `times` each."""
    first = store.index.head(people)
    begin_N, end_N = (first[name].to_numpy() for name in ("first_us", "end_us"))
    share_Q = np.linspace(0.25, 1.0, times) if times > 1 else np.ones(1)
    time_NxQ = begin_N[:, None] + (share_Q * (end_N - begin_N)[:, None]).astype(np.int64)
    table = pl.DataFrame({"subject_id": np.repeat(first["subject_id"].to_numpy(), times), "us": time_NxQ.ravel()})
    return table.select("subject_id", prediction_time=pl.col("us").cast(pl.Datetime("us"))).sort(pl.all())


class _Counted(Examples):
    """Examples that count the rows and tokens of the batches for prediction times.

    Args:
      apart: whether every prediction time has a context of its own: first times are asked for first, then second ones.
    """

    def __init__(self, examples: Examples, apart: bool) -> None:
        self._examples, self.spec, self.subject_id, self.apart = examples, examples.spec, examples.subject_id, apart
        self.rows = self.tokens = self.slots = 0

    def prediction_batches(
        self, position_N: np.ndarray, time_us_N: np.ndarray, batch_size: int, transform: Transform | None = None
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        for place_K in self._turns(position_N):
            asked = position_N[place_K], time_us_N[place_K]
            for batch, where in self._examples.prediction_batches(*asked, batch_size, transform):
                self.rows += len(where)
                self.tokens += self._examples.counts(batch)["tokens"]
                self.slots += batch["segment"].size
                yield batch, np.where(where >= 0, place_K[where], -1)

    def _turns(self, position_N):
        """Places of the prediction times that may share contexts."""
        if not self.apart:
            return [np.arange(len(position_N))]
        of_person = places_by_person(position_N).values()
        return [np.array([k for k in turn if k is not None]) for turn in itertools.zip_longest(*of_person)]

    def tokens_seen(self, position_N: np.ndarray, time_us_N: np.ndarray) -> dict[str, np.ndarray]:
        return self._examples.tokens_seen(position_N, time_us_N)

    def fill(self, row: Batch, g: int) -> None:
        self._examples.fill(row, g)

    def subjects(self, rows: Sequence[int]) -> list[int]:
        return self._examples.subjects(rows)

    def counts(self, batch: Batch) -> dict[str, int]:
        return self._examples.counts(batch)


def measure(
    examples: Examples, encode: embedding.Encoder, index: pl.DataFrame, out: Path, plan: Plan, apart: bool = False
) -> dict[str, float]:
    """{metric: number} of the embedding of some prediction times by examples with nothing in their cache."""
    examples, size = _Counted(examples, apart), plan.config.embed.batch_size
    out.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    for k, part in enumerate(embedding.shards(index, plan.config.embed.shard_people)):
        tokens_seen.write(out, str(k), examples, part)
        embedding.write(out / f"{k}.parquet", part, embedding.embed(encode, examples, part, size))
    seconds, people = time.process_time() - began, index["subject_id"].n_unique()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "people": people,
        "times": index.height // people,
        "apart": apart,
        "prediction_times": index.height,
        "rows": examples.rows,
        "tokens_filled": examples.tokens / max(examples.slots, 1),
        "processor_seconds": seconds,
        "rows_per_second": examples.rows / seconds,
        "per_second": index.height / seconds,
        "ms_per_person": 1e3 * seconds / people,
        "peak_mb": peak / 1e6,
    }


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--people", default="500,1000,2000", help="sizes of the cohort")
    parser.add_argument("--times", default="1,5", help="prediction times of a person")
    parser.add_argument("--repeats", type=int, default=1, help="of every measurement")
    parser.add_argument("--apart", action="store_true", help="also with a context for every prediction time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics to a file")
    options = parser.parse_args(argv)
    sizes, times = ([int(n) for n in text.split(",")] for text in (options.people, options.times))
    base = options.workdir / f"simulated-{max(sizes)}"
    evaluate_memory.simulate(base, max(sizes))
    plan, examples, encode = open_model(base)
    trained = plan.first("joint")
    store, model = plan.store(trained.fold), plan.model(trained)
    found: dict[tuple[int, int, bool], dict[str, float]] = {}
    embedding.embed(encode, examples, prediction_times(store, 1, 1), plan.config.embed.batch_size)  # compiles
    del examples
    for number in range(options.repeats):
        for n_times, people, apart in itertools.product(times, sizes, (False, True)[: 1 + options.apart]):
            anew = model.module.examples(plan.store(trained.fold), model.config, model.seed, train=False)
            out = options.workdir / f"z-{people}-{n_times}{'-apart' * apart}-{number}"
            one = measure(anew, encode, prediction_times(store, people, n_times), out, plan, apart)
            key = people, n_times, apart
            if key not in found or one["processor_seconds"] < found[key]["processor_seconds"]:
                found[key] = one
    _print(list(found.values()))
    if options.json:
        options.json.write_text(json.dumps(list(found.values()), indent=1) + "\n")
    return 0


def _print(found):
    for name in found[0]:
        print(f"{name:<18}" + "".join(f"{one[name]:>12,.2f}".removesuffix(".00").rjust(12) for one in found))
    first = {(one["times"], one["apart"]): one["ms_per_person"] for one in reversed(found)}
    over = [one["ms_per_person"] / first[one["times"], one["apart"]] for one in found]
    print(f"{'over fewest people':<18}" + "".join(f"{x:>12.2f}" for x in over))
    if any(one["apart"] for one in found):
        shared = {(one["times"], one["people"]): one["ms_per_person"] for one in found if not one["apart"]}
        over = [one["ms_per_person"] / shared[one["times"], one["people"]] for one in found]
        print(f"{'over shared':<18}" + "".join(f"{x:>12.2f}" for x in over))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
