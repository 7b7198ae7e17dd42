"""Runs the prepare stage: a raw dataset (simulated, adapted or yours) with its labels, tables, records and fits."""

import dataclasses
import json
import logging
import os
from pathlib import Path

import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.data import store
from ehrwear_jax.data.formats import label_tables, meds, parquet, wearable
from ehrwear_jax.data.labels import outcomes, signal_outcomes
from ehrwear_jax.data.prepare import dataset, deidentify, harmonise, specs, workers
from ehrwear_jax.data.sources import nafld, nhanes
from ehrwear_jax.data.sources.simulator import simulate


def raw_root(config, workdir):
    """Where the raw dataset of simulated and adapted sources lies."""
    return Path(workdir) / "prepare" / "raw"


def tables_dir(workdir: Path) -> Path:
    """Where prepare_tables writes."""
    return Path(workdir) / "prepare" / "tables"


def records_dir(workdir: Path) -> Path:
    """Where prepare_records writes."""
    return Path(workdir) / "prepare" / "records"


def fit_dir(workdir: Path, fold: str) -> Path:
    """Where fit_split writes; fold: a folder's name of config.folds."""
    return Path(workdir) / "prepare" / "fit" / fold


def open_store(workdir: Path, fold: str, split: str | None = None) -> store.RecordStore:
    """The records of a split of a fold; None: of everybody."""
    return store.RecordStore(records_dir(workdir), fit_dir(workdir, fold), split)


def meds_dir(config, workdir):
    return Path(config.data.meds_dir) if config.data.source == "meds" else raw_root(config, workdir) / "meds"


def wearable_dir(config, workdir):
    if config.data.source == "meds":
        return Path(config.data.wearable_dir) if config.data.wearable_dir else None
    folder = raw_root(config, workdir) / "wearable"
    return folder if folder.is_dir() else None


def labels_dir(config, workdir):
    if deidentify.of(config_lib.prepare_config(config)).active:
        return made_labels_dir(workdir)
    if config.data.source == "meds" and config.data.labels_dir:
        return Path(config.data.labels_dir)
    return raw_root(config, workdir) / "labels"


def made_labels_dir(workdir):
    """Label tables that are made here and do not belong to the raw dataset."""
    return Path(workdir) / "prepare" / "labels"


def run(config, workdir):
    """Writes prepare/{raw,tables,records,fit/<fold>}/ and counts.json; prints what each step kept and dropped."""
    folder, root = Path(workdir) / "prepare", raw_root(config, workdir)
    root.mkdir(parents=True, exist_ok=True)
    counts = _raw(config, root)
    options = _options(config, workdir)
    if config.data.source == "meds" and not config.data.labels_dir:
        counts += _event_labels(config, workdir, options)
    elif config.data.source == "meds":
        _deidentify_labels(config, workdir, options)
    counts += _physiology_labels(config, workdir, options)
    source = meds_dir(config, workdir)
    has_codes = (source / "metadata" / "codes.parquet").exists()
    codes = meds.read_codes(source) if has_codes else None
    _require_all_folds(config, source)
    units = harmonise.dataset_units(source / "metadata" / "codes.parquet")
    tables, records = tables_dir(workdir), records_dir(workdir)
    with workers.open_pool(options) as pool:
        worn, criteria = wearable_dir(config, workdir), config_lib.cohort_config(config)
        counts += dataset.prepare_tables(source, worn, tables, options, criteria, folder / "quarantine", pool)
        undescribed = meds.undescribed_codes(source, codes)
        counts += dataset.prepare_records(tables, codes, records, options, units, pool)
        for name, fold in config_lib.folds(config):
            fitted = dataset.fit_split(tables, records, fit_dir(workdir, name), options, fold, units, pool)
            counts += [{**c, "step": c["step"] if fold is None else f"{name}: {c['step']}"} for c in fitted]
    _log(counts, options, *undescribed)
    if any((folder / "quarantine").iterdir()):
        logging.info("  quarantined rows, with file, row, column and reason: %s", folder / "quarantine")
    (folder / "counts.json").write_text(json.dumps(counts, indent=1))


def _log(counts, options, n_codes, undescribed):
    """Says what each step kept and dropped."""
    for c in counts:
        logging.info(
            "  %-58s %12s kept %10s dropped  %s",
            c["step"],
            f"{c['n']:,}",
            f"{c['dropped']:,}",
            c["reason"] if c["dropped"] or " read = " in c["reason"] else "",
        )
        if c["dropped"] and not c["n"] and "events of frequent codes" in c["step"]:
            logging.info("  no code is frequent: lower config.prepare.min_subjects (%d)", options.min_subjects)
    if undescribed:
        logging.info(
            "  %s of %s codes are used by name, without parents: no row in metadata/codes.parquet (the first: %s)",
            f"{len(undescribed):,}",
            f"{n_codes:,}",
            undescribed[0],
        )


def _options(config, workdir):
    """PrepareConfig with the day of extraction, which is said loudly: later rows are set aside."""
    options = config_lib.prepare_config(config)
    day, source = meds.extraction_date(meds_dir(config, workdir), options.extraction_date)
    options = dataclasses.replace(options, extraction_date=day)
    bounds = specs.time_bounds(options)
    logging.info(
        "  times before %s (births: a lifetime earlier) or on or after %s are set aside; day of extraction: %s (%s)",
        f"{bounds.first:%Y-%m-%d}",
        f"{bounds.end:%Y-%m-%d}",
        day or "unknown",
        source,
    )
    return options


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


def _raw(config, root):
    """Builds the raw dataset; returns its counts."""
    if config.data.source == "synthetic":
        n_workers = config.prepare.workers or os.cpu_count() or 1
        return simulate.simulate(root, config_lib.simulator_config(config), workers=n_workers)
    if config.data.source == "meds":
        return []
    done = root / "counts.json"  # written last by the adapters
    if done.exists():
        return json.loads(done.read_text())
    if config.data.source == "nafld":
        return nafld.build(Path(config.data.source_dir), root, seed=config.seed)
    return nhanes.build(Path(config.data.source_dir), root, seed=config.seed, n_folds=config.data.n_folds)


def _event_labels(config, workdir, options):
    """Label tables hospitalization_<h>d, onset_<group>_<h>d and time_to_<group>, at random times of each person."""
    c, source, out = config.labels, meds_dir(config, workdir), labels_dir(config, workdir)
    out.mkdir(parents=True, exist_ok=True)
    bounds = specs.time_bounds(options)
    index = outcomes.prediction_times(
        source,
        per_subject=c.per_subject,
        min_history_days=c.min_history_days,
        seed=config.seed,
        not_before=_first_wear(config, workdir, bounds) if c.after_wearable else None,
        not_after=_last_observable(source, max(c.horizons_days), bounds),
        admission_code_prefix=c.admission_code_prefix,
        bounds=bounds,
    )
    at_risk = {
        "hospitalization": outcomes.time_to_admission(
            source, index=index, admission_code_prefix=c.admission_code_prefix, bounds=bounds
        )
    }
    for group, prefixes in c.diagnosis_groups.items():
        at_risk[f"onset_{group}"] = outcomes.onset_times(
            source, code_prefixes=tuple(prefixes), index=index, bounds=bounds
        )
    counts = []
    for name, times in at_risk.items():
        if name != "hospitalization":
            survival = times.select(*meds.SURVIVAL_LABEL_SCHEMA)
            _write_labels(options, out, f"time_to_{name}", survival)
            reason = "a diagnosis of the group came first"
            counts.append(_count(f"time_to_{name}", survival, index, reason))
        for horizon in c.horizons_days:
            table = outcomes.within_horizon(times, horizon)
            _write_labels(options, out, f"{name}_{horizon}d", table)
            reason = "follow-up ends inside the horizon without an event"
            counts.append(_count(f"{name}_{horizon}d", table, times, reason))
    return counts


def _write_labels(options, folder, task, table):
    """Labels made from, or read with, the ids and dates of the source."""
    table = deidentify.of(options).table(table)
    meds.write_labels(Path(folder) / f"{task}.parquet", table)


def _deidentify_labels(config, workdir, options):
    """Copies the user's label tables, if the ids or dates of the dataset are changed."""
    folder = Path(config.data.labels_dir)
    if deidentify.of(options).active:
        for task in label_tables.tasks(folder):
            table = meds.read_labels(label_tables.task_files(folder, task))
            _write_labels(options, made_labels_dir(workdir), task, table)


def _physiology_labels(config, workdir, options):
    """Label tables <measure>_<days>d; see data/labels/signal_outcomes.py."""
    c, folder = config_lib.physiology_config(config), wearable_dir(config, workdir)
    if not c.measures:
        return []
    if folder is None:
        raise ValueError("config.labels.physiology.measures needs wearable recordings: set config.data.wearable_dir")
    bounds = specs.time_bounds(options)
    made, index = signal_outcomes.label_wearables(folder, c, seed=config.seed, bounds=bounds)
    for name, table in made.items():
        _write_labels(options, made_labels_dir(workdir), name, table)
    reason = "too few usable days in the period"
    return [_count(name, table, index, reason) for name, table in made.items()]


def _count(name, table, index, reason):
    return {"step": f"label rows {name}", "n": table.height, "dropped": index.height - table.height, "reason": reason}


def _times(path, column, bounds):
    """(subject_id, time) of one file, those within the bounds."""
    schema = {"subject_id": pl.Int64, column: pl.Datetime("us")}
    table = parquet.normalise(parquet.read_parquet(path, list(schema)), schema, path).rename({column: "time"})
    return table.filter(pl.col("time").is_between(bounds.first, bounds.end, closed="left"))


def _first_wear(config, workdir, bounds):
    """subject_id, time: the day after the first recorded stretch; None without wearables."""
    folder = wearable_dir(config, workdir)
    if folder is None:
        return None
    firsts = [
        _times(p, "start_time", bounds).group_by("subject_id").agg(pl.col("time").min())
        for p in wearable.list_shards(folder)
    ]
    first = pl.concat(firsts).drop_nulls().group_by("subject_id").agg(pl.col("time").min())
    return first.with_columns(pl.col("time") + pl.duration(days=1)).sort("subject_id")


def _last_observable(meds_folder, horizon_days, bounds):
    """subject_id, time: the end of the whole dataset less the longest horizon, the same for everyone.

    Later prediction times could be labelled only if something happens soon, which would select rows by outcome. A
    person's own last record does not serve: it is their death for some.
    """
    lasts = [
        _times(p, "time", bounds).group_by("subject_id").agg(pl.col("time").max())
        for p in meds.list_shards(meds_folder)
    ]
    people = pl.concat(lasts).drop_nulls()
    last = pl.lit(people["time"].max(), pl.Datetime("us")) - pl.duration(days=horizon_days)
    return people.select("subject_id", last.alias("time")).unique("subject_id").sort("subject_id")


def label_table(config, workdir, task):
    """One task's labels, e.g. hospitalization_365d, from one file or a folder of shards.

    Raises:
      FileNotFoundError: naming the tasks that there are.
      ValueError: a faulty table, or labels that are neither boolean nor float nor survival.
    """
    folder, made = labels_dir(config, workdir), made_labels_dir(workdir)
    files = label_tables.task_files(folder, task) or label_tables.task_files(made, task)
    if not files:
        there = ", ".join(sorted({*label_tables.tasks(folder), *label_tables.tasks(made)})) or "none"
        raise FileNotFoundError(f"config.evaluate.tasks: no label table {folder / task}.parquet; there are {there}")
    table = meds.read_labels(files)
    if table.columns[2] not in ("boolean_value", "time_to_event_days", "float_value"):
        raise ValueError(
            f"config.evaluate.tasks: {task} holds {table.columns[2]}; boolean, float and survival labels are evaluated"
        )
    return table


def prediction_index(config, workdir):
    """All distinct (subject_id, prediction_time) of the configured tasks, sorted."""
    keys = [label_table(config, workdir, t).select("subject_id", "prediction_time") for t in config.evaluate.tasks]
    if not keys:
        raise ValueError("config.evaluate.tasks is empty: name at least one label table")
    return pl.concat(keys).unique().sort("subject_id", "prediction_time")
