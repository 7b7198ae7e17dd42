"""Runs the prepare stage: a raw dataset (simulated, adapted or the user's) with its labels, then tables and records."""

import json
import logging
import os
from pathlib import Path

from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.prepare import dataset, harmonise, specs, workers
from ehrwear_jax.data.sources import nafld, nhanes
from ehrwear_jax.data.sources.simulator import simulate
from ehrwear_jax.runtime import files
from ehrwear_jax.stages.labels import COUNTS, Labels, with_extraction_date
from ehrwear_jax.stages.plan import Plan


def missing(plan: Plan) -> list:
    """The artifacts of this stage that are not there."""
    made = [plan.raw] if plan.adapted else []
    made += [plan.tables, plan.records, *(plan.fit(fold) for fold, _ in plan.config.folds)]
    return [a for a in (*made, *Labels(plan).groups.values()) if not a.done]


def run(plan: Plan) -> None:
    """Makes the raw dataset, labels, tables, records and what is fitted per fold; prints what was kept and dropped."""
    counts = raw_counts(plan)
    prepare, known = with_extraction_date(plan.config.prepare, plan.meds_dir)
    bounds = specs.time_bounds(prepare)
    logging.info(
        "  times before %s (births: a lifetime earlier) or on or after %s are set aside; day of extraction: %s (%s)",
        f"{bounds.first:%Y-%m-%d}",
        f"{bounds.end:%Y-%m-%d}",
        prepare.extraction_date or "unknown",
        known,
    )
    counts += Labels(plan).make(prepare)
    source = plan.meds_dir
    _require_all_folds(plan.config, source)
    codes = meds.read_codes(source) if (source / "metadata" / "codes.parquet").exists() else None
    units = harmonise.dataset_units(source / "metadata" / "codes.parquet")
    with workers.open_pool(prepare) as pool:
        counts += _tables(plan, prepare, codes, units, pool)
        for fold, number in plan.config.folds:
            found = _make(
                plan.fit(fold), dataset.fit_split, plan.tables.folder, plan.records.folder, prepare, number, units, pool
            )
            counts += [{**c, "step": c["step"] if number is None else f"{fold}: {c['step']}"} for c in found]
    _log(counts, plan)


def _make(artifact, work, *arguments):
    """Makes an artifact if it is not there, with its counts beside it; returns the counts.

    `work` takes the folder behind the folders that it reads.
    """
    path = artifact.folder / COUNTS
    if not artifact.done:
        inputs = [a for a in arguments if isinstance(a, Path) or a is None and not isinstance(a, dict)]
        del inputs
        with artifact.making() as folder:
            files.write_whole(path, json.dumps(work(*arguments, out=folder), indent=1))
    return json.loads(path.read_text())
