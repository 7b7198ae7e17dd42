"""prepare: raw MEDS and wearable tables -> harmonised tables -> a fitted vocabulary and training records.

Two parts. `prepare_tables` does what depends on no split: event tables with known times, wearable windows and their
summaries. `prepare_split` fits vocabulary and channel statistics on the training patients of one split (or fold) and
writes records. Both are maps and reductions over shards (cluster.py says where they run), and what they write does not
depend on the number of workers. Each output file is written under a temporary name and renamed, so a killed run resumes
at the shard. manifest.json holds sizes and checksums of all outputs, and counts that add up to the rows read:

    python -m ehrwear_jax.data.prepare verify DIR
"""

import contextlib
import json
from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.formats.parquet import write_frame, write_json
from ehrwear_jax.data.labels import cohort
from ehrwear_jax.data.prepare import deidentify, specs
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.prepare import record_shards as prepare_records
from ehrwear_jax.data.prepare import statistics as fit
from ehrwear_jax.data.prepare import workers as cluster
from ehrwear_jax.data.prepare.events import prepare_events
from ehrwear_jax.data.prepare.windows import prepare_windows
from ehrwear_jax.data.sources.csv_source import hashed_uniform
from ehrwear_jax.models.joint import vocabulary as tokenizer


def prepare_tables(meds_dir, wearable_dir, out_dir, config, criteria=None, quarantine_dir=None, pool=None):
    """Writes events/, people/, windows/ (summaries), window_values/, wearers/, subjects.parquet and manifest.json.

    With raw_channels also raw_windows/, with quality also window_quality/.

    Rows that cannot be used (meds_checks.screen, wearable_checks.screen) go to files below quarantine_dir, with the
    file, row, column and reason; there is no file for a shard without such rows.

    Args:
      meds_dir: MEDS dataset. wearable_dir: wearable tables, or None.
      criteria: CohortConfig of who gets into subjects.parquet, None for everybody.
      quarantine_dir: OUT_DIR/quarantine by default.
      pool: cluster.Pool; by default one that config asks for.

    Returns:
      Counts: list of {step, n, dropped, reason}.

    Raises:
      ValueError: a fault of a file, a subject in two files, or an output that was changed since it was written.
    """
    with _own_or(pool, config) as pool:
        return _prepare_tables(meds_dir, wearable_dir, Path(out_dir), config, criteria, quarantine_dir, pool)


def _own_or(pool, config):
    return cluster.open_pool(config) if pool is None else contextlib.nullcontext(pool)


def _prepare_tables(meds_dir, wearable_dir, out, config, criteria, quarantine_dir, pool):
    quarantine = Path(quarantine_dir or out / "quarantine")
    manifest.require_as_written(out)
    for folder in (*(out / name for name in ("events", "windows", "window_values", "wearers", "people")), quarantine):
        folder.mkdir(parents=True, exist_ok=True)
    deidentifier = deidentify.begin(out, config)
    report, counts, files = prepare_events(meds_dir, out, quarantine, config, deidentifier, pool)
    if wearable_dir is not None and config.channels:
        steps, more, worn_files = prepare_windows(Path(wearable_dir), out, quarantine, config, deidentifier, pool)
        report[1:1], counts, files = steps, counts | more, files | worn_files
    shards = sorted((out / "people").glob("*.parquet"))
    people = pl.concat([pl.read_parquet(p).with_columns(pl.lit(p.stem).alias("shard")) for p in shards])
    if people["subject_id"].is_duplicated().any():
        bad = people.filter(pl.col("subject_id").is_duplicated())["subject_id"][0]
        where = " and ".join(people.filter(pl.col("subject_id") == bad)["shard"])
        raise ValueError(f"{meds_dir}: subject {bad} is in more than one shard: {where}")
    people = people.drop("shard")
    found = meds.read_splits(meds_dir), meds.read_groups(meds_dir), meds.read_folds(meds_dir)
    splits, groups, folds = (t if t is None else deidentifier.table(t) for t in found)
    subjects = splits.join(people, on="subject_id", how="left").sort("subject_id")
    subjects = (
        subjects.with_columns(pl.col("subject_id").alias("group_id"))
        if groups is None
        else subjects.join(groups, on="subject_id", how="left").with_columns(
            pl.col("group_id").fill_null(-pl.col("subject_id") - 1)
        )
    )
    if folds is not None:
        subjects = subjects.join(folds, on="subject_id", how="left").with_columns(pl.col("fold").fill_null(-1))
    worn = [pl.read_parquet(p, columns=["subject_id"]) for p in sorted((out / "wearers").glob("*.parquet"))]
    seen = pl.concat([people.select("subject_id"), *worn]).unique()
    lost = seen.join(splits, on="subject_id", how="anti").height
    report.append(
        {
            "step": "people with a split",
            "n": subjects.height,
            "dropped": lost,
            "reason": "no row in subject_splits.parquet",
        }
    )
    if criteria is not None and not criteria.is_open:
        subjects, steps = _included(subjects, out, config, criteria)
        report += steps
    write_frame(subjects, out / "subjects.parquet")
    manifest.write(out, files | manifest.fingerprints(out, [out / "subjects.parquet"]), counts)
    return report


def _included(subjects, out, config, criteria):
    """The subjects that meet the criteria, and the counts; see cohort.select."""
    events = pl.scan_parquet(sorted((out / "events").glob("*.parquet")))
    first = events.group_by("subject_id").agg(pl.col("time").min().alias("first_time")).collect()
    flag = pl.any_horizontal(pl.lit(False), *(pl.col("code").str.starts_with(x) for x in criteria.excluded_codes))
    windows = [pl.read_parquet(p, columns=["subject_id", "time"]) for p in sorted((out / "windows").glob("*.parquet"))]
    ids, steps = cohort.select(
        subjects.join(first, on="subject_id", how="left"),
        pl.concat(windows or [pl.DataFrame(schema={"subject_id": pl.Int64, "time": pl.Datetime("us")})]),
        events.filter(flag).select("subject_id", "time").collect(),
        config.window_hours,
        criteria,
    )
    if not len(ids):
        raise ValueError("config.cohort lets nobody in: " + "; ".join(f"{s['step']} {s['n']:,}" for s in steps))
    return subjects.filter(pl.col("subject_id").is_in(ids.implode())), steps


def assign_split(subjects, fold, config):
    """The split of each subject: the dataset's own, or with folds `fold` held out and hashed groups for tuning.

    Raises:
      ValueError: no folds in the dataset, or a group in more than one split.
    """
    if fold is None:
        return _require_whole_groups(subjects)
    if "fold" not in subjects.columns:
        raise ValueError("config.data.n_folds is set but the dataset has no metadata/subject_folds.parquet")
    tuning = pl.Series(hashed_uniform(subjects["group_id"].to_numpy(), fold, "tuning") < config.tuning_fraction)
    return _require_whole_groups(
        subjects.with_columns(
            pl.when(pl.col("fold") == fold)
            .then(pl.lit("held_out"))
            .when(pl.lit(tuning) & (pl.col("fold") >= 0))
            .then(pl.lit("tuning"))
            .otherwise(pl.lit("train"))
            .alias("split")
        )
    )


def _require_whole_groups(subjects):
    spread = subjects.group_by("group_id").agg(pl.col("split").unique().sort()).filter(pl.col("split").list.len() > 1)
    if spread.height:
        group, splits = spread.sort("group_id").row(0)
        raise ValueError(f"metadata/subject_groups.parquet: group {group} is in {' and '.join(splits)}")
    return subjects


def prepare_split(tables_dir, codes, out_dir, config, fold=None, units=None, pool=None):
    """Fits on the training patients and writes vocabulary.csv, codes.csv, meta.json, records/, index.parquet, manifest.

    index.parquet has a row per record, in their order: position, subject_id, split, group_id, n_static, n_events,
    n_windows, n_unknown (events out of the vocabulary), days (from the first record to the end of follow-up), rarity
    (mean over the timed events of -log of their tokens' share of the training tokens; 0 without events).

    Args:
      tables_dir: written by prepare_tables.
      codes: MEDS codes.parquet (code, description, parent_codes), or None.
      fold: None, or which fold is held out.
      units: {code: unit}, against which a table of ranges is checked.
      pool: cluster.Pool; by default one that config asks for.

    Returns:
      Counts: list of {step, n, dropped, reason}.

    Raises:
      ValueError: see assign_split, or an output that was changed since it was written.
    """
    with _own_or(pool, config) as pool:
        return _prepare_split(Path(tables_dir), codes, Path(out_dir), config, fold, units, pool)


def _prepare_split(tables, codes, out, config, fold, units, pool):
    manifest.require_as_written(out)
    (out / "records").mkdir(parents=True, exist_ok=True)
    subjects = assign_split(pl.read_parquet(tables / "subjects.parquet"), fold, config)
    write_frame(subjects, out / "subjects.parquet")
    fitted = [out / name for name in ("vocabulary.csv", "codes.csv", "meta.json")]  # in the order of writing
    if not all(path.exists() for path in fitted):
        vocabulary = fit.fit_vocabulary(tables, out, codes, config, units, pool)
        vocabulary.save(out)
        meta = {
            "steps": specs.window_spec(config).steps,
            "window_hours": config.window_hours,
            "channels": list(config.channels),
            "shards": [f"{s:05d}.array_record" for s in range(-(-subjects.height // config.subjects_per_shard))],
            **fit.channel_statistics(tables, out, config, pool),
        }
        if config.quality:
            meta["quality"] = True
        if config.raw_channels:
            meta["raw"] = {"channels": list(config.raw_channels), "samples": specs.raw_spec(config).samples}
        write_json(meta, out / "meta.json")
        fit.remove_parts(out)
    meta = json.loads((out / "meta.json").read_text())
    noted = manifest.read(out)
    if noted is None or not manifest.is_whole(out, noted["files"]):
        people, counts = prepare_records.code_events(tables, out, pool)
        index, files = prepare_records.write_records(subjects, people, tables, out, meta, config, pool)
        others = manifest.fingerprints(out, [*fitted, out / "subjects.parquet", out / "index.parquet"])
        manifest.write(out, files | others, {"events": counts})
        prepare_records.remove_coded(out)
    return _split_steps(manifest.read(out)["counts"]["events"]["out"], tokenizer.Vocabulary.load(out), config)


def _split_steps(went, vocabulary, config):
    steps = [
        {
            "step": f"events in the vocabulary of {len(vocabulary)} tokens",
            "n": went["tokens"],
            "dropped": went["out of the vocabulary"],
            "reason": f"codes of fewer than {config.min_subjects} training patients, no ancestor with as many",
        }
    ]
    if n := went["of people left out"]:
        steps.append({"step": "events of people left out", "n": 0, "dropped": n, "reason": "not in subjects.parquet"})
    return steps
