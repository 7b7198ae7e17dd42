"""Runs the prepare stage: a raw dataset (simulated, adapted or yours) with its labels, tables, records and fits."""

import functools
import importlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl

from ehrwear_jax.config.data import ADAPTERS
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.prepare import clinical_ranges, dataset, harmonise, specs, workers
from ehrwear_jax.data.sources.simulator import simulate
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import eligibility, tasks
from ehrwear_jax.stages.artifacts import Artifact
from ehrwear_jax.stages.labels import COUNTS, Labels, with_extraction_date
from ehrwear_jax.stages.plan import Plan

QUARANTINE = "quarantine"


def artifacts(plan: Plan) -> list[Artifact]:
    """What this stage makes, in order."""
    raw = [plan.raw] if plan.adapted else []
    labels = Labels(plan)
    made = [*raw, *labels.groups.values(), plan.tables, plan.records, *labels.eligibility().values()]
    return made + [plan.fit(fold) for fold, _ in plan.config.folds]


def missing(plan: Plan) -> list[str]:
    """Names of what is not there yet."""
    return [f"{a.kind} {a.name}" for a in artifacts(plan) if not a.done]


def counts(plan: Plan) -> list[dict]:
    """What every step kept and dropped: [{step, n, dropped, reason}]."""
    out = []
    for artifact in artifacts(plan):
        found = json.loads((artifact.folder / COUNTS).read_text())
        named = artifact.kind == "fit" and len(plan.config.folds) > 1
        prefix = f"{artifact.name}: " if named else ""
        steps = [{**c, "step": prefix + c["step"]} for c in found]
        # groups of labels share their first steps
        out += [c for c in steps if c not in out] if artifact.kind == "labels" else steps
    return out + _holdout_counts(plan)


def _holdout_counts(plan):
    """What a temporal hold-out leaves of the prediction times of each task, in the first fold."""
    data, out = plan.config.data, list[dict]()
    if data.holdout_time is None:
        return out
    folder = plan.fit(plan.config.folds[0][0]).folder
    subjects = pl.read_parquet(folder / "subjects.parquet", columns=["subject_id", "split"])
    for task in plan.config.evaluate.tasks:
        table = Labels(plan).table(task).join(subjects, on="subject_id")
        out += eligibility.holdout_steps(table, task, data)
    return out


def run(plan: Plan) -> None:
    """Makes what is missing, and prints what was kept and dropped."""
    config = plan.config
    if plan.adapted:
        _make(plan.raw, functools.partial(_raw, config=config, simulated=plan.simulate))
    source = plan.meds_dir
    prepare, known = with_extraction_date(config.prepare, source)
    clinical_ranges.named_rows(prepare.ranges_codes)  # an error before any work is done
    bounds = specs.time_bounds(prepare)
    logging.info(
        "  times before %s (births: a lifetime earlier) or on or after %s are set aside; day of extraction: %s (%s)",
        f"{bounds.first:%Y-%m-%d}",
        f"{bounds.end:%Y-%m-%d}",
        prepare.extraction_date or "unknown",
        known,
    )
    _require_all_folds(config, source)
    described = source / "metadata" / "codes.parquet"
    codes = meds.read_codes(source) if described.exists() else None
    units = harmonise.dataset_units(described)
    tables, records = plan.tables.folder, plan.records.folder
    with workers.open_pool(prepare) as pool:
        Labels(plan).make(prepare, pool)
        _make(
            plan.tables,
            lambda out: dataset.prepare_tables(
                source, plan.wearable_dir, out, prepare, config.data, out / QUARANTINE, pool
            ),
        )
        _make(plan.records, lambda out: dataset.prepare_records(tables, codes, out, prepare, units, pool))
        _make_eligibility(plan)
        for fold, _ in config.folds:
            divided = plan.division(fold)
            fit = functools.partial(
                dataset.fit_split, tables, records, config=prepare, division=divided, units=units, pool=pool
            )
            _make(plan.fit(fold), functools.partial(_fit, plan=plan, fit=fit))
    _log(plan, *meds.undescribed_codes(source, codes))


def _fit(out, plan, fit):
    """Makes a fit; returns its counts. ValueError where no event is left, and a network reads events."""
    counts = fit(out)
    lost = any(c["dropped"] and not c["n"] for c in counts if "events of frequent codes" in c["step"])
    if lost and any("ehr" in plan.modalities(name) for name in plan.config.networks):
        raise ValueError(
            "no code is frequent, so that no event is left: lower config.prepare.min_subjects "
            f"({plan.config.prepare.min_subjects}), or let configs/own.py choose it"
        )
    return counts


def _make_eligibility(plan):
    """Judges the prediction times of every task whose table is there."""
    labels = Labels(plan)
    judge = eligibility.Judge(plan)
    for task, artifact in labels.eligibility().items():
        if labels.files(task):
            _make(artifact, functools.partial(judge.make, task=task, table=labels.given(task)))


def _make(artifact: Artifact, make: Callable[[Path], list[dict]]) -> None:
    """Makes an artifact that is not there; its counts lie in it."""
    if not artifact.done:
        with artifact.making() as folder:
            files.write_json(folder / COUNTS, make(folder), indent=1)


def _raw(root, config, simulated):
    """Builds the raw dataset; returns its counts."""
    if config.data.source == "synthetic":
        return simulate.simulate(root, simulated, workers=config.prepare.workers or os.cpu_count() or 1)
    adapter = importlib.import_module(f"ehrwear_jax.data.sources.{config.data.source}")
    given = {name: getattr(config.data, name) for name in ADAPTERS[config.data.source]}
    return adapter.build(Path(config.data.source_dir), root, **given)


def _log(plan, n_codes, undescribed):
    for c in counts(plan):
        logging.info(
            "  %-58s %12s kept %10s dropped  %s",
            c["step"],
            f"{c['n']:,}",
            f"{c['dropped']:,}",
            c["reason"] if c["dropped"] or " read = " in c["reason"] else "",
        )
    if undescribed:
        logging.info(
            "  %s of %s codes are used by name, without parents: no row in metadata/codes.parquet (the first: %s)",
            f"{len(undescribed):,}",
            f"{n_codes:,}",
            undescribed[0],
        )
    if all(Labels(plan).files(name) for name in plan.config.evaluate.tasks):  # known before anything is trained
        for name, why in tasks.left_out(plan).items():
            logging.warning("  %s will not be evaluated: %s", name, why)
    quarantine = plan.tables.folder / QUARANTINE
    if any(quarantine.iterdir()):
        logging.info("  quarantined rows, with file, row, column and reason: %s", quarantine)


def _require_all_folds(config, source):
    """With fewer or more folds than the dataset has, some people would never be predicted, or a fold be empty."""
    n, table = config.data.n_folds, meds.read_folds(source)
    if n > 1 and table is not None:
        there = sorted(set(table["fold"].to_list()) - {-1})
        if there != list(range(n)):
            raise ValueError(
                f"config.data.n_folds is {n} but metadata/subject_folds.parquet has the folds "
                f"{', '.join(map(str, there)) or 'none'}"
            )
