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

from ehrwear_jax.config.data import DataConfig, PrepareConfig
from ehrwear_jax.data import ages, store
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.formats import parquet as parquet_lib
from ehrwear_jax.data.formats.parquet import write_frame, write_json
from ehrwear_jax.data.prepare import (
    clinical_ranges,
    code_table,
    deidentify,
    pretraining,
    record_shards,
    signal_statistics,
    specs,
    statistics,
    workers,
)
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.prepare.division import Division, divide
from ehrwear_jax.data.prepare.events import prepare_events
from ehrwear_jax.data.prepare.windows import prepare_windows

_FITTED = ("subject_statistics.parquet", "code_statistics.parquet", "text_statistics.parquet", "signal_statistics.json")


def _own_or(pool, config):
    return workers.open_pool(config) if pool is None else contextlib.nullcontext(pool)


# -------------------------------------------------------------------------------------------------------- tables
def prepare_tables(
    meds_dir: Path,
    wearable_dir: Path | None,
    out_dir: Path,
    config: PrepareConfig,
    data: DataConfig | None = None,
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
      data: names of splits, and the column of sites.
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
    config = specs.resolve(config, wearable_dir, out)
    with _own_or(pool, config) as pool:
        report, counts, files = prepare_events(meds_dir, out, quarantine, config, deidentifier, pool)
        if wearable_dir is not None and config.channels:
            steps, more, worn = prepare_windows(Path(wearable_dir), out, quarantine, config, deidentifier, pool)
            report[1:1], counts, files = steps, counts | more, files | worn
    subjects, step = _subjects(meds_dir, out, deidentifier, data or DataConfig())
    report += [step, *_top_coded(subjects, config.max_age_years)]
    write_frame(subjects, out / "subjects.parquet")
    written = [path for path in (out / "subjects.parquet", out / specs.RESOLVED) if path.exists()]
    manifest.write(out, files | manifest.fingerprints(out, written), counts)
    return report


def _subjects(meds_dir, out, deidentifier, data):
    """(subject_id, split, birth_time, end_time, died, group_id, max_age_years, perhaps fold and site; the count).

    Everybody has a split of the dataset, or nobody has one: then it is null.
    """
    shards = sorted((out / "people").glob("*.parquet"))
    people = pl.concat([pl.read_parquet(p).with_columns(pl.lit(p.stem).alias("shard")) for p in shards])
    if people["subject_id"].is_duplicated().any():
        bad = people.filter(pl.col("subject_id").is_duplicated())["subject_id"][0]
        where = " and ".join(people.filter(pl.col("subject_id") == bad)["shard"])
        raise ValueError(f"{meds_dir}: subject {bad} is in more than one shard: {where}")
    people = people.drop("shard")
    worn = [pl.read_parquet(p, columns=["subject_id"]) for p in sorted((out / "wearers").glob("*.parquet"))]
    seen = pl.concat([people.select("subject_id"), *worn]).unique()
    found = meds.read_groups(meds_dir), meds.read_folds(meds_dir), _sites(meds_dir, data)
    groups, folds, sites = (t if t is None else deidentifier.table(t) for t in found)
    step, reason = "people with a split", "no row in subject_splits.parquet"
    if meds.splits_path(meds_dir).exists():
        splits = deidentifier.table(meds.read_splits(meds_dir, data.split_names))
    else:
        splits, step, reason = seen.with_columns(pl.lit(None, pl.String).alias("split")), "people", ""
    subjects = splits.join(people, on="subject_id", how="left").sort("subject_id")
    if groups is None:
        subjects = subjects.with_columns(pl.col("subject_id").alias("group_id"))
    else:
        subjects = subjects.join(groups, on="subject_id", how="left").with_columns(
            pl.col("group_id").fill_null(-pl.col("subject_id") - 1)
        )
    if folds is not None:
        subjects = subjects.join(folds, on="subject_id", how="left").with_columns(pl.col("fold").fill_null(-1))
    if sites is not None:
        subjects = subjects.join(sites, on="subject_id", how="left")
    limit = pl.lit(deidentifier.max_age_years or None, pl.Float64).alias(ages.LIMIT)
    subjects = subjects.with_columns(limit)
    lost = seen.join(splits, on="subject_id", how="anti").height
    return subjects, {"step": step, "n": subjects.height, "dropped": lost, "reason": reason}


def _top_coded(subjects, limit):
    """The count of people whose ages are told as the limit, [] without one."""
    if not limit:
        return []
    age = ages.years(pl.col("birth_time"), pl.col("end_time"), pl.lit(None, pl.Float64))
    step = f"people told as {limit:g} years old in some or all of their record"
    return [{"step": step, "n": subjects.filter(age >= limit).height, "dropped": 0, "reason": ""}]


def _sites(meds_dir, data):
    """subject_id, site (the column of subject_splits.parquet that a hold-out by site names, as text), or None."""
    column, equals, _ = data.holdout_site.partition("=")
    if not equals:
        return None
    path = meds.splits_path(meds_dir)
    table = parquet_lib.read_parquet(path)
    if column not in table.columns:
        raise ValueError(f"{path}: config.data.holdout names a column {column!r}, which is not there")
    return table.select(pl.col("subject_id").cast(pl.Int64), pl.col(column).cast(pl.String).alias("site"))


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
    config = specs.resolved(config, tables)
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
def fit_split(
    tables_dir: Path,
    records_dir: Path,
    out_dir: Path,
    config: PrepareConfig,
    division: Division | None = None,
    units: Mapping[str, str] | None = None,
    pool: workers.Pool | None = None,
) -> list[dict]:
    """Fits on the training patients of a division: on those who are pretrained on, and until its cut-off.

    Writes subjects.parquet (that of the tables with the division's split, see divide), subject_statistics.parquet
    (statistics.SUBJECT_STATISTICS), code_statistics.parquet (statistics.CODE_STATISTICS), text_statistics.parquet
    (code_counts.TEXT_COUNTS), signal_statistics.json (signal_statistics.fit_signals), meta.json (the options
    min_subjects, value_bins, min_values, min_text_subjects, and the cut-off) and manifest.json; where not everybody or
    everything is pretrained on, pretraining.parquet (pretraining.py); with clinical ranges, value_ranges.parquet.

    Args:
      tables_dir, records_dir: written by prepare_tables and prepare_records.
      division: by default the dataset's own splits.
      units: {code: unit}, against which a table of ranges is checked.
      pool: where shards are worked on; by default one that config asks for.

    Returns:
      Counts: list of {step, n, dropped, reason}.

    Raises:
      ValueError: see divide, or an output that was changed since it was written.
    """
    tables, records, out = Path(tables_dir), Path(records_dir), Path(out_dir)
    division, config = division or Division(), specs.resolved(config, tables)
    manifest.require_as_written(out)
    out.mkdir(parents=True, exist_ok=True)
    subjects, steps = divide(tables, division, config.window_hours)
    noted = manifest.read(out)
    if noted is None or not manifest.is_whole(out, noted["files"]):
        write_frame(subjects, out / "subjects.parquet")
        cutoff = division.cutoff.isoformat() if division.cutoff else None
        write_json({name: getattr(config, name) for name in store.FITTED_WITH} | {"cutoff": cutoff}, out / "meta.json")
        ranges, chosen = clinical_ranges.value_ranges(code_table.tables_of(records)[0], config, units or {})
        with _own_or(pool, config) as pool:
            codes, texts = statistics.fit_codes(tables, records, out, config, ranges, pool)
            frequent = texts.filter(pl.col("subjects") >= _text_subjects(config))["text_id"]
            people, counts = statistics.fit_subjects(tables, records, out, codes, frequent, pool)
            signals = signal_statistics.fit_signals(tables, out, config, pool)
        for name, table in zip(_FITTED, (people, codes, texts), strict=False):
            write_frame(table, out / name)
        write_json(signals, out / "signal_statistics.json")
        n, beyond = sum(signals["n_values"]), sum(signals["n_beyond"])
        counts["samples of signals"] = {"in": n, "out": {"within bounds": n - beyond, "beyond": beyond}}
        of_ranges = () if chosen is None else (store.RANGES,)
        written = [out / name for name in (*_FITTED, "subjects.parquet", "meta.json", *of_ranges)]
        counts |= _imputed(signals) | clinical_ranges.write(chosen, codes, config.min_values, out / store.RANGES)
        if "pretraining" in subjects.columns:
            counts |= pretraining.write(records, out)
            written.append(out / store.PRETRAINING)
        manifest.write(out, manifest.fingerprints(out, written), counts)
        statistics.remove_parts(out)
    counts = manifest.require(out)["counts"]
    return steps + pretraining.steps(counts, division.cutoff) + _fit_steps(counts, config, out)


def _imputed(signals):
    """The count of steps that were filled for the scale."""
    n = sum(signals.get("n_imputed", ()))
    return {"imputed samples of signals": {"in": n, "out": {"of the scale alone": n}}} if n else {}


def _text_subjects(config):
    """Training patients that a text needs for a token of its own."""
    return max(config.min_subjects, config.min_text_subjects)


def _fit_steps(counts, config, out_dir):
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
        reason = f"texts that fewer than {_text_subjects(config)} training patients have"
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
    if imputed := counts.get("imputed samples of signals"):
        step = f"steps of gaps of at most {config.impute_gap_minutes:g} minutes that count for the scale, filled"
        steps.append({"step": step, "n": imputed["in"], "dropped": 0, "reason": ""})
    return steps + clinical_ranges.steps(out_dir / store.RANGES)
