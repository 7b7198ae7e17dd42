"""Prepares a dataset: raw MEDS and wearable tables -> harmonised tables -> records, and what is fitted per fold.

`prepare_tables` writes event tables with known times, wearable windows and their summaries, `prepare_records` the
records of everybody; both depend on no split. `fit_split` fits statistics on the training patients of one split (or
fold). All are maps and reductions over shards (workers.py says where they run), and what they write does not depend on
the number of workers. Each output file is written under a temporary name and renamed, so a killed run resumes at the
shard. manifest.json holds sizes and checksums of all outputs, and counts that add up to the rows read:

    python -m ehrwear_jax.data.prepare verify DIR
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from ehrwear_jax.config.data import CohortConfig, PrepareConfig
from ehrwear_jax.data import store
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.formats.parquet import Schema, write_frame, write_json
from ehrwear_jax.data.labels import cohort
from ehrwear_jax.data.prepare import code_table, deidentify, record_shards, signal_statistics, statistics, workers
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.prepare.events import prepare_events
from ehrwear_jax.data.prepare.windows import prepare_windows
from ehrwear_jax.data.sources.csv_source import hashed_uniform

_FITTED = ("subject_statistics.parquet", "code_statistics.parquet", "text_statistics.parquet", "signal_statistics.json")


def _own_or(pool, config):
    return workers.open_pool(config) if pool is None else contextlib.nullcontext(pool)


# -------------------------------------------------------------------------------------------------------- tables
def prepare_tables(
    meds_dir: Path,
    wearable_dir: Path | None,
    out_dir: Path,
    config: PrepareConfig,
    criteria: CohortConfig | None = None,
    quarantine_dir: Path | None = None,
    pool: workers.Pool | None = None,
) -> list[dict]:
    """Writes the tables that depend on no split, and manifest.json.

    texts.parquet, events/, people/, windows/ (summaries), window_values/, wearers/ and subjects.parquet; with
    config.segments also segments/, with config.quality also window_quality/.

    Rows that cannot be used (meds_checks.screen, wearable_checks.screen) go to files below quarantine_dir, with the
    file, row, column and reason; there is no file for a shard without such rows.

    Args:
      meds_dir: MEDS dataset. wearable_dir: wearable tables, or None.
      criteria: CohortConfig of who gets into subjects.parquet, None for everybody.
      quarantine_dir: OUT_DIR/quarantine by default.
      pool: where shards are worked on; by default one that config asks for.

    Returns:
      Counts: list of {step, n, dropped, reason}.

    Raises:
      ValueError: a fault of a file, a subject in two files, or an output that was changed since it was written.
    """
    out = Path(out_dir)
    quarantine = Path(quarantine_dir or out / "quarantine")
    manifest.require_as_written(out)
    for folder in (*(out / name for name in ("events", "windows", "window_values", "wearers", "people")), quarantine):
        folder.mkdir(parents=True, exist_ok=True)
    deidentifier = deidentify.begin(out, config)
    with _own_or(pool, config) as pool:
        report, counts, files = prepare_events(meds_dir, out, quarantine, config, deidentifier, pool)
        if wearable_dir is not None and config.channels:
            steps, more, worn = prepare_windows(Path(wearable_dir), out, quarantine, config, deidentifier, pool)
            report[1:1], counts, files = steps, counts | more, files | worn
    subjects, step = _subjects(meds_dir, out, deidentifier)
    report.append(step)
    if criteria is not None and not criteria.is_open:
        subjects, steps = _included(subjects, out, config, criteria)
        report += steps
    write_frame(subjects, out / "subjects.parquet")
    manifest.write(out, files | manifest.fingerprints(out, [out / "subjects.parquet"]), counts)
    return report


def _subjects(meds_dir, out, deidentifier):
    """(subject_id, split, birth_time, end_time, died, group_id, perhaps fold of everybody with a split; the count)."""
    shards = sorted((out / "people").glob("*.parquet"))
    people = pl.concat([pl.read_parquet(p).with_columns(pl.lit(p.stem).alias("shard")) for p in shards])
    if people["subject_id"].is_duplicated().any():
        bad = people.filter(pl.col("subject_id").is_duplicated())["subject_id"][0]
        where = " and ".join(people.filter(pl.col("subject_id") == bad)["shard"])
        raise ValueError(f"{meds_dir}: subject {bad} is in more than one shard: {where}")
    people = people.drop("shard")
    splits = deidentifier.table(meds.read_splits(meds_dir))
    found = meds.read_groups(meds_dir), meds.read_folds(meds_dir)
    groups, folds = (t if t is None else deidentifier.table(t) for t in found)
    subjects = splits.join(people, on="subject_id", how="left").sort("subject_id")
    if groups is None:
        subjects = subjects.with_columns(pl.col("subject_id").alias("group_id"))
    else:
        subjects = subjects.join(groups, on="subject_id", how="left").with_columns(
            pl.col("group_id").fill_null(-pl.col("subject_id") - 1)
        )
    if folds is not None:
        subjects = subjects.join(folds, on="subject_id", how="left").with_columns(pl.col("fold").fill_null(-1))
    worn = [pl.read_parquet(p, columns=["subject_id"]) for p in sorted((out / "wearers").glob("*.parquet"))]
    seen = pl.concat([people.select("subject_id"), *worn]).unique()
    lost = seen.join(splits, on="subject_id", how="anti").height
    reason = "no row in subject_splits.parquet"
    return subjects, {"step": "people with a split", "n": subjects.height, "dropped": lost, "reason": reason}


def _included(subjects, out, config, criteria):
    """The subjects that meet the criteria, and the counts; see cohort.select."""
    events = pl.scan_parquet(sorted((out / "events").glob("*.parquet")))
    first = events.group_by("subject_id").agg(pl.col("time").min().alias("first_time")).collect()
    flag = pl.any_horizontal(pl.lit(False), *(pl.col("code").str.starts_with(x) for x in criteria.excluded_codes))
    schema: Schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "worn_minutes": pl.Int16}
    windows = [pl.read_parquet(p, columns=list(schema)) for p in sorted((out / "windows").glob("*.parquet"))]
    ids, steps = cohort.select(
        subjects.join(first, on="subject_id", how="left"),
        pl.concat(windows or [pl.DataFrame(schema=schema)]),
        events.filter(flag).select("subject_id", "time").collect(),
        config.window_hours,
        criteria,
    )
    if not len(ids):
        raise ValueError("config.cohort lets nobody in: " + "; ".join(f"{s['step']} {s['n']:,}" for s in steps))
    return subjects.filter(pl.col("subject_id").is_in(ids.implode())), steps


# -------------------------------------------------------------------------------------------------------- records
def prepare_records(
    tables_dir: Path,
    codes: pl.DataFrame | None,
    out_dir: Path,
    config: PrepareConfig,
    units: Mapping[str, str] | None = None,
    pool: workers.Pool | None = None,
) -> list[dict]:
    """Writes the records of everybody in subjects.parquet, which data/store.py reads.

    NNNNN.array_record: a record per person, by subject_id. index.parquet: a row per record, record_shards.INDEX and
    n_segments_<set>. codes.parquet: code_table.CODES. texts.parquet: code_table.TEXTS. meta.json:
    record_shards.make_meta. parts/ holds parts of the index and checksums, for a run that was killed.

    Args:
      tables_dir: written by prepare_tables.
      codes: MEDS codes.parquet (code, description, parent_codes), or None.
      units: {code: unit}.
      pool: where shards are worked on; by default one that config asks for.

    Returns:
      Counts: list of {step, n, dropped, reason}.

    Raises:
      ValueError: an output that was changed since it was written.
    """
    tables, out = Path(tables_dir), Path(out_dir)
    manifest.require_as_written(out)
    out.mkdir(parents=True, exist_ok=True)
    noted = manifest.read(out)
    if noted is None or not manifest.is_whole(out, noted["files"]):
        described = [out / name for name in ("codes.parquet", "meta.json", "texts.parquet")]
        subjects = pl.read_parquet(tables / "subjects.parquet")
        with _own_or(pool, config) as pool:
            if not all(path.exists() for path in described):
                code_ids, texts = code_table.make(tables, codes, config, units or {}, pool)
                write_frame(code_ids, out / "codes.parquet")
                write_json(record_shards.make_meta(subjects.height, config), out / "meta.json")
                write_frame(texts, out / "texts.parquet")
            meta = json.loads((out / "meta.json").read_text())
            people, counts = record_shards.code_events(tables, out, subjects.select("subject_id"), pool)
            files = record_shards.write_records(subjects, people, tables, out, meta, config, pool)
        files |= manifest.fingerprints(out, [*described, out / "index.parquet"])
        manifest.write(out, files, {"events": counts})
        record_shards.remove_coded(out)
    went = manifest.require(out)["counts"]["events"]["out"]
    if not went["of people left out"]:
        return []
    left_out = {"step": "events of people left out", "n": 0, "dropped": went["of people left out"]}
    return [left_out | {"reason": "not in subjects.parquet"}]


# -------------------------------------------------------------------------------------------------------- folds
def assign_split(subjects: pl.DataFrame, fold: int | None, config: PrepareConfig) -> pl.DataFrame:
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


def fit_split(
    tables_dir: Path,
    records_dir: Path,
    out_dir: Path,
    config: PrepareConfig,
    fold: int | None = None,
    units: Mapping[str, str] | None = None,
    pool: workers.Pool | None = None,
) -> list[dict]:
    """Fits on the training patients of a split, or of the dataset but for one fold.

    Writes subjects.parquet (that of the tables with the fold's split), subject_statistics.parquet
    (statistics.SUBJECT_STATISTICS), code_statistics.parquet (statistics.CODE_STATISTICS), text_statistics.parquet
    (code_counts.TEXT_COUNTS), signal_statistics.json (signal_statistics.fit_signals), meta.json (the options
    min_subjects, value_bins, min_values, min_text_subjects) and manifest.json.

    Args:
      tables_dir, records_dir: written by prepare_tables and prepare_records.
      fold: None, or which fold is held out.
      units: {code: unit}, against which a table of ranges is checked.
      pool: where shards are worked on; by default one that config asks for.

    Returns:
      Counts: list of {step, n, dropped, reason}.

    Raises:
      ValueError: see assign_split, or an output that was changed since it was written.
    """
    tables, records, out = Path(tables_dir), Path(records_dir), Path(out_dir)
    manifest.require_as_written(out)
    out.mkdir(parents=True, exist_ok=True)
    noted = manifest.read(out)
    if noted is None or not manifest.is_whole(out, noted["files"]):
        write_frame(assign_split(pl.read_parquet(tables / "subjects.parquet"), fold, config), out / "subjects.parquet")
        options = {name: getattr(config, name) for name in store.FITTED_WITH}
        write_json(options, out / "meta.json")
        with _own_or(pool, config) as pool:
            codes, texts = statistics.fit_codes(tables, records, out, config, units, pool)
            frequent = texts.filter(pl.col("subjects") >= config.min_subjects)["text_id"]
            people, counts = statistics.fit_subjects(tables, records, out, codes, frequent, pool)
            signals = signal_statistics.fit_signals(tables, out, config, pool)
        for name, table in zip(_FITTED, (people, codes, texts), strict=False):
            write_frame(table, out / name)
        write_json(signals, out / "signal_statistics.json")
        n, beyond = sum(signals["n_values"]), sum(signals["n_beyond"])
        counts["samples of signals"] = {"in": n, "out": {"within bounds": n - beyond, "beyond": beyond}}
        written = [out / name for name in (*_FITTED, "subjects.parquet", "meta.json")]
        manifest.write(out, manifest.fingerprints(out, written), counts)
        statistics.remove_parts(out)
    return _fit_steps(manifest.require(out)["counts"], config)


def _fit_steps(counts, config):
    went, of_text = counts["events"]["out"], counts["text results"]["out"]
    steps = [
        {
            "step": "events of frequent codes",
            "n": went["of frequent codes"],
            "dropped": went["of rare codes"],
            "reason": f"codes of fewer than {config.min_subjects} training patients, no ancestor with as many",
        }
    ]
    if counts["text results"]["in"]:
        reason = f"texts that fewer than {config.min_subjects} training patients have"
        steps.append({"step": "text results that are frequent", "n": of_text["frequent"],
                      "dropped": of_text["not frequent"], "reason": reason})  # fmt: skip
        held, reason = counts["text results of held-out people"]["out"], f"{reason}: the code alone is their token"
        steps.append({"step": "text results of held-out people that are frequent", "n": held["frequent"],
                      "dropped": held["not frequent"], "reason": reason})  # fmt: skip
    for kind, of in (("values", "code"), ("samples of signals", "channel")):
        if counts[kind]["in"]:
            out = counts[kind]["out"]
            reason = "none is left out: those beyond, {:,}, count as at that distance when the scale is fitted"
            steps.append({"step": f"training {kind} within {config.value_fence:g} robust SD of their {of}'s median",
                          "n": out["within bounds"], "dropped": 0, "reason": reason.format(out["beyond"])})  # fmt: skip
    return steps
