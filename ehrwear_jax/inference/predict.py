"""Answers questions about new people from the shell: z and the risks of a bundled model, as parquet.

python -m ehrwear_jax.inference.predict BUNDLE --meds_dir=DIR [--wearable_dir=DIR] [--mapping=FILE] [--times=FILE]
    [--task=NAME] --out=DIR

BUNDLE is a bundle, a run's folder or the name of a bundle that comes with the package. Writes embeddings.parquet,
predictions/<task>.parquet of each task, unknown.json (what the model did not know of the data, and warnings) and
codes.parquet (every code and what it was known as).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code, 2 with one sentence where it cannot."""
    program, what = "python -m ehrwear_jax.inference.predict", (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog=program, description=what)
    parser.add_argument("bundle", help="a bundle, a run, or the name of a bundle that comes with the package")
    parser.add_argument("--meds_dir", type=Path, required=True, help="MEDS data set of the new people")
    parser.add_argument("--wearable_dir", type=Path, help="their wearable tables, if any")
    parser.add_argument("--mapping", type=Path, help="table of code, target, factor, offset: your codes as the model's")
    parser.add_argument(
        "--times", type=Path, help="parquet of subject_id, prediction_time; the last records by default"
    )
    parser.add_argument("--task", action="append", help="a task, may be repeated; all by default")
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers, which must not be there yet")
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except (ValueError, OSError) as error:
        print(f"ehrwear_jax.inference.predict: {error}", file=sys.stderr)
        return 2
    return 0


def _run(given):
    from ehrwear_jax.data.formats import label_tables
    from ehrwear_jax.data.formats.parquet import write_frame, write_json
    from ehrwear_jax.inference import trained_model
    from ehrwear_jax.runtime import compile_cache

    compile_cache.use()
    if given.out.exists():
        raise FileExistsError(f"{given.out}: is there already; name a folder that is not")
    times = None if given.times is None else label_tables.read_times(given.times)  # everything given is read first
    model = trained_model.load(given.bundle)
    tasks = given.task or model.tasks
    for task in tasks:
        model.probe(task)
    people = model.read(given.meds_dir, given.wearable_dir, given.mapping)
    embedded = people.embed(times)
    predictions = {task: people.predict(task, times) for task in tasks}
    given.out.mkdir(parents=True)
    write_frame(embedded, given.out / "embeddings.parquet")
    for task, table in predictions.items():
        path = given.out / "predictions" / f"{task}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_frame(table, path)
    write_frame(people.report.codes, given.out / "codes.parquet")
    write_json(people.report.as_dict(), given.out / "unknown.json")
    print(f"{model!r}\n{people.report}\n{given.out}: z of {embedded.height:,} prediction times, {len(tasks)} tasks")


if __name__ == "__main__":
    sys.exit(main())
