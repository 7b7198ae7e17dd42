"""prepare: raw MEDS and wearable tables -> harmonised tables -> a fitted vocabulary and training records.

Two parts. `prepare_tables` does what depends on no split: event tables with known times, wearable windows and their
summaries. `prepare_split` fits vocabulary and channel statistics on the training patients of one split (or fold) and
writes records. Both are maps and reductions over shards (cluster.py says where they run), and what they write does not
depend on the number of workers. Each output file is written under a temporary name and renamed, so a killed run resumes
at the shard. manifest.json holds sizes and checksums of all outputs, and counts that add up to the rows read:

    python -m ehrwear_jax.data.prepare verify DIR
"""

import contextlib
import dataclasses
import json
from pathlib import Path

import polars as pl

from ehrwear_jax.data.formats import meds, meds_checks
from ehrwear_jax.data.formats.parquet import write_frame, write_json
from ehrwear_jax.data.labels import cohort
from ehrwear_jax.data.prepare import deidentify
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.prepare import record_shards as prepare_records
from ehrwear_jax.data.prepare import statistics as fit
from ehrwear_jax.data.prepare import workers as cluster
from ehrwear_jax.data.prepare.events import prepare_events
from ehrwear_jax.data.prepare.windows import prepare_windows
from ehrwear_jax.data.signals import raw_windows, signal
from ehrwear_jax.data.sources.csv_source import hashed_uniform
from ehrwear_jax.models.joint import vocabulary as tokenizer

FOLLOWUP_END = "FOLLOWUP_END"


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Thresholds of the prepare stage.

    Attributes:
      channels: wearable channels to use, in order; empty means none. log_channels: those taken as log(1 + x).
      window_hours, step_minutes, min_coverage: see signal.WindowSpec. summaries: see window_summaries.py.
      raw_channels, raw_rate_hz, raw_seconds, raw_per_window, raw_score: raw windows of sub-second signal, see
        raw_windows.RawSpec; no channels: none. The channels need not be among `channels`.
      quality: score how well each step of the grid was measured, see grid_quality.py; an input of the model then.
      min_subjects, value_bins, min_values: see tokenizer.fit_vocabulary.
      mapping_files, ranges_file: user tables, see harmonise.read_mapping and read_ranges.
      implied_parents: give ICD-10 and ATC codes the ancestors that they spell out, beside those of codes.parquet.
      max_per_day: most events of one code for a person and day, the first ones; 0: all.
      drop_codes: codes that never become input (administrative ones).
      first_date: ISO date; a row with an earlier time is set aside (a birth: a lifetime of 100 years earlier).
      extraction_date: ISO date on which the data were taken from their source; a row more than a year later is set
        aside. Empty: see meds.extraction_date; none known: the limit is 2300 (shifted dates lie in the future).
      date_only_at_day_end: an event stamped exactly midnight is taken as a date without a time, known at the day's end.
      subjects_per_shard: patients in a record shard.
      pseudonymise, shift_days, shift_whole_weeks, max_age_years, key_file: see deidentify.py.
      tuning_fraction: with folds, the share of groups outside the fold that chooses hyper-parameters.
      scheduler: where shards are worked on: "" for local processes, tcp://host:port of a dask scheduler, or
        jobqueue:slurm and the like; see cluster.py. It changes no byte of the result.
      workers: local processes or jobs; 0: one per core; 1: this process alone.
      worker_memory_gb: of a local process, above which it is started again; 0: its share of the machine's memory.
      rows_per_piece: a shard of more events than this is read in pieces of about as many, whole subjects each.
    """

    channels: tuple = ()
    log_channels: tuple = ()
    window_hours: int = 6
    step_minutes: int = 5
    min_coverage: float = 0.1
    summaries: tuple = ()
    raw_channels: tuple = ()
    raw_rate_hz: float = 25.0
    raw_seconds: float = 30.0
    raw_per_window: int = 4
    raw_score: str = "pulse"
    quality: bool = False
    min_subjects: int = 10
    value_bins: int = 10
    min_values: int = 50
    mapping_files: tuple = ()
    ranges_file: str = ""
    implied_parents: bool = False
    max_per_day: int = 0
    drop_codes: tuple = (FOLLOWUP_END,)
    first_date: str = "1900-01-01"
    extraction_date: str = ""
    date_only_at_day_end: bool = True
    subjects_per_shard: int = 2000
    tuning_fraction: float = 0.1
    pseudonymise: bool = False
    shift_days: int = 0
    shift_whole_weeks: bool = False
    max_age_years: float = 0.0
    key_file: str = ""
    scheduler: str = ""
    workers: int = 1
    worker_memory_gb: float = 0.0
    rows_per_piece: int = 2_000_000

    def time_bounds(self):
        return meds_checks.time_bounds(self.first_date, self.extraction_date)

    def window_spec(self):
        return signal.WindowSpec(tuple(self.channels), self.window_hours, self.step_minutes, self.min_coverage)

    def raw_spec(self):
        """raw_windows.RawSpec; ValueError for one that cannot be, as without a grid or longer than its steps."""
        channels = self.raw_channels if isinstance(self.raw_channels, str) else tuple(self.raw_channels)
        raw = raw_windows.RawSpec(channels, self.raw_rate_hz, self.raw_seconds, self.raw_per_window, self.raw_score)
        if raw.channels and not self.channels:
            raise ValueError("config.prepare.raw_channels needs config.prepare.channels, in whose windows raw ones lie")
        if raw.channels and raw.seconds > 60 * self.step_minutes:
            raise ValueError(
                f"config.prepare.raw_seconds is {raw.seconds:g}: a raw window must fit into a step of "
                f"config.prepare.step_minutes, {self.step_minutes}"
            )
        return raw


def prepare_tables(meds_dir, wearable_dir, out_dir, config, criteria=None, quarantine_dir=None, pool=None):
    """Writes events/, people/, windows/ (summaries), window_values/, wearers/, subjects.parquet and manifest.json.

    With raw_channels also raw_windows/, with quality also window_quality/.

    Rows that cannot be used (meds_checks.screen, wearable_checks.screen) go to files below quarantine_dir, with the
    file, row, column and reason; there is no file for a shard without such rows.

    Args:
      meds_dir: MEDS dataset. wearable_dir: wearable tables, or None.
      criteria: cohort.CohortConfig of who gets into subjects.parquet, None for everybody.
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
            "steps": config.window_spec().steps,
            "window_hours": config.window_hours,
            "channels": list(config.channels),
            "shards": [f"{s:05d}.array_record" for s in range(-(-subjects.height // config.subjects_per_shard))],
            **fit.channel_statistics(tables, out, config, pool),
        }
        if config.quality:
            meta["quality"] = True
        if config.raw_channels:
            meta["raw"] = {"channels": list(config.raw_channels), "samples": config.raw_spec().samples}
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
