"""prepare: raw MEDS and wearable tables -> harmonised tables -> a fitted vocabulary and training records.

Two parts. `prepare_tables` does what depends on no split: event tables with known times, wearable windows and their
summaries. `prepare_split` fits vocabulary and channel statistics on the training patients of one split (or fold) and
writes records. Each output file is written under a temporary name and renamed, so a killed run resumes at the file.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from ehrwear_jax.data import cohort, harmonise, meds, meds_checks, records, signal, tokenizer, window_summaries
from ehrwear_jax.data.prepare_windows import prepare_windows
from ehrwear_jax.data.quarantine import count_reasons, quarantine_counts, set_aside
from ehrwear_jax.data.source import hashed_uniform
from ehrwear_jax.data.tables import shard_names, writing
from ehrwear_jax.data.tables import write_frame as _write
from ehrwear_jax.data.tables import write_json as _write_json

FOLLOWUP_END = "FOLLOWUP_END"
LAST_MICROSECOND = signal.DAY_US - 1
NO_BIRTH = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Thresholds of the prepare stage.

    Attributes:
      channels: wearable channels to use, in order; empty means none. log_channels: those taken as log(1 + x).
      window_hours, step_minutes, min_coverage: see signal.WindowSpec.
      summaries: further statistics of a window as "channel:kind", see window_summaries.py.
      min_subjects, value_bins, min_values: see tokenizer.fit_vocabulary.
      mapping_files, ranges_file: user tables, see harmonise.read_mapping and read_ranges.
      implied_parents: give ICD-10 and ATC codes the ancestors that they spell out, beside those of codes.parquet.
      max_per_day: most events of one code for a person and day, the first ones; 0: all.
      drop_codes: codes that never become input (administrative ones).
      first_date: ISO date; a row with an earlier time is set aside (a birth: a lifetime of 100 years earlier).
      extraction_date: ISO date on which the data were taken from their source; a row more than a year later is set
        aside. Empty: not known, the limit is 2300 (de-identified dates are shifted forwards).
      date_only_at_day_end: an event stamped exactly midnight is taken as a date without a time, known at the day's end.
      subjects_per_shard: patients in a record shard.
      tuning_fraction: with folds, the share of groups outside the fold that chooses hyper-parameters.
    """

    channels: tuple = ()
    log_channels: tuple = ()
    window_hours: int = 6
    step_minutes: int = 5
    min_coverage: float = 0.1
    summaries: tuple = ()
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

    def time_bounds(self):
        return meds_checks.time_bounds(self.first_date, self.extraction_date)

    def window_spec(self):
        return signal.WindowSpec(tuple(self.channels), self.window_hours, self.step_minutes, self.min_coverage)


def harmonise_events(events, config):
    """Known times and input codes of one MEDS shard.

    Returns:
      (events, births, ends): events to learn from; MEDS_BIRTH per subject; last known follow-up per subject.
    """
    is_birth = pl.col("code").str.starts_with(meds.BIRTH_CODE)
    births = (
        events.filter(is_birth & pl.col("time").is_not_null())
        .group_by("subject_id")
        .agg(pl.col("time").min().alias("birth_time"))
    )
    timed = events.filter(~is_birth)
    if config.date_only_at_day_end:
        midnight = pl.col("time") == pl.col("time").dt.truncate("1d")
        timed = timed.with_columns(
            pl.when(midnight)
            .then(pl.col("time") + pl.duration(microseconds=LAST_MICROSECOND))
            .otherwise(pl.col("time"))
            .alias("time")
        )
    ends = timed.group_by("subject_id").agg(
        pl.col("time").max().alias("end_time"), pl.col("code").str.starts_with(meds.DEATH_CODE).any().alias("died")
    )
    kept = timed.filter(~pl.col("code").is_in(config.drop_codes))
    kept = kept.select("subject_id", "time", "code", "numeric_value").sort(
        "subject_id", "time", nulls_last=False, maintain_order=True
    )
    return kept, births, ends


def prepare_tables(meds_dir, wearable_dir, out_dir, config, criteria=None, quarantine_dir=None):
    """Writes events/, windows/ (summaries), window_values/ and subjects.parquet below out_dir.

    Rows that cannot be used (meds_checks.screen, wearable_checks.screen) go to files below quarantine_dir, with the
    file, row, column and reason; there is no file for a shard without such rows.

    Args:
      meds_dir: MEDS dataset. wearable_dir: wearable tables, or None.
      criteria: cohort.CohortConfig of who gets into subjects.parquet, None for everybody.
      quarantine_dir: OUT_DIR/quarantine by default.

    Returns:
      Counts: list of {step, n, dropped, reason}.
    """
    out = Path(out_dir)
    quarantine = Path(quarantine_dir or out / "quarantine")
    for folder in (*(out / name for name in ("events", "windows", "window_values", "people")), quarantine):
        folder.mkdir(parents=True, exist_ok=True)
    report = _prepare_events(meds_dir, out, quarantine, config)
    if wearable_dir is not None and config.channels:
        report[1:1] = prepare_windows(Path(wearable_dir), out, quarantine, config)
    shards = sorted((out / "people").glob("*.parquet"))
    people = pl.concat([pl.read_parquet(p).with_columns(pl.lit(p.stem).alias("shard")) for p in shards])
    if people["subject_id"].is_duplicated().any():
        bad = people.filter(pl.col("subject_id").is_duplicated())["subject_id"][0]
        where = " and ".join(people.filter(pl.col("subject_id") == bad)["shard"])
        raise ValueError(f"{meds_dir}: subject {bad} is in more than one shard: {where}")
    people = people.drop("shard")
    splits = meds.read_splits(meds_dir)
    subjects = splits.join(people, on="subject_id", how="left").sort("subject_id")
    groups, folds = meds.read_groups(meds_dir), meds.read_folds(meds_dir)
    subjects = (
        subjects.with_columns(pl.col("subject_id").alias("group_id"))
        if groups is None
        else subjects.join(groups, on="subject_id", how="left").with_columns(
            pl.col("group_id").fill_null(-pl.col("subject_id") - 1)
        )
    )
    if folds is not None:
        subjects = subjects.join(folds, on="subject_id", how="left").with_columns(pl.col("fold").fill_null(-1))
    worn = [pl.read_parquet(p, columns=["subject_id"]) for p in sorted((out / "windows").glob("*.parquet"))]
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
    _write(subjects, out / "subjects.parquet")
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


def _units(meds_dir):
    return harmonise.dataset_units(Path(meds_dir) / "metadata" / "codes.parquet")


def _prepare_events(meds_dir, out, quarantine, config):
    """events/ and people/, one file each per shard; returns their counts, which add up to the rows read."""
    total = dict.fromkeys(("read", "kept", "birth", "administrative", "beyond the cap", "mapped", "set aside"), 0)
    mapping, reasons = harmonise.read_mapping(config.mapping_files, _units(meds_dir)), {}
    shards = meds.list_shards(meds_dir)
    for path, name in zip(
        tqdm(shards, "events", unit="shard", disable=None), shard_names(shards, meds_dir), strict=True
    ):
        tally = out / "people" / f"{name}.json"
        if not tally.exists():
            raw, bad = meds_checks.screen_shard(path, config.time_bounds())
            known, births, ends = harmonise_events(raw, config)
            mapped, n_mapped = harmonise.map_codes(known, mapping)
            kept, n_capped = harmonise.cap_frequency(mapped, config.max_per_day)
            is_birth = pl.col("code").str.starts_with(meds.BIRTH_CODE)
            people = raw.select("subject_id").unique(maintain_order=True)
            people = people.join(births, on="subject_id", how="left").join(ends, on="subject_id", how="left")
            _write(kept, out / "events" / f"{name}.parquet")
            _write(people, out / "people" / f"{name}.parquet")
            set_aside(bad, quarantine / f"ehr__{name}.parquet")
            counted = {
                "read": raw.height + bad.height,
                "kept": kept.height,
                "birth": raw.filter(is_birth).height,
                "administrative": raw.filter(~is_birth & pl.col("code").is_in(config.drop_codes)).height,
                "beyond the cap": n_capped,
                "mapped": n_mapped,
                "set aside": bad.height,
            }
            _write_json({"rows": counted, "reasons": count_reasons(bad)}, tally)
        counted = json.loads(tally.read_text())
        for key, n in counted["rows"].items():
            total[key] += n
        for reason, n in counted["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + n
    dropped = total["birth"] + total["administrative"] + total["beyond the cap"]
    if total["read"] != total["kept"] + dropped + total["set aside"]:
        raise ValueError(f"{meds_dir}: the rows read do not add up: {total}")
    capped = f" + {total['beyond the cap']:,} beyond the cap per code and day" if config.max_per_day else ""
    steps = [{"step": "EHR rows mapped to other codes", "n": total["mapped"], "dropped": 0, "reason": ""}]
    return [
        {
            "step": "EHR rows kept as events",
            "n": total["kept"],
            "dropped": dropped + total["set aside"],
            "reason": f"{total['read']:,} rows read = {total['kept']:,} kept + {total['birth']:,} birth rows (they "
            f"give the age) + {total['administrative']:,} administrative rows{capped} + {total['set aside']:,} "
            "quarantined",
        },
        *(steps if config.mapping_files else []),
        *quarantine_counts("EHR", reasons),
    ]


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


def prepare_split(tables_dir, codes, out_dir, config, fold=None, units=None):
    """Fits on the training patients and writes vocabulary.csv, codes.csv, meta.json, records/ and index.parquet.

    Args:
      tables_dir: written by prepare_tables.
      codes: MEDS codes.parquet (code, description, parent_codes), or None.
      fold: None, or which fold is held out.
      units: {code: unit}, against which a table of ranges is checked.

    Returns:
      Counts: list of {step, n, dropped, reason}.
    """
    tables, out = Path(tables_dir), Path(out_dir)
    (out / "records").mkdir(parents=True, exist_ok=True)
    subjects = assign_split(pl.read_parquet(tables / "subjects.parquet"), fold, config)
    _write(subjects, out / "subjects.parquet")
    train = subjects.filter(pl.col("split") == "train")["subject_id"]
    events = pl.scan_parquet(sorted((tables / "events").glob("*.parquet")))
    if (out / "meta.json").exists():
        vocabulary, meta = tokenizer.Vocabulary.load(out), json.loads((out / "meta.json").read_text())
    else:
        parents = {} if codes is None else dict(zip(codes["code"], codes["parent_codes"].to_list(), strict=True))
        if config.implied_parents:
            found = events.select(pl.col("code").unique()).collect()["code"].sort()
            parents = harmonise.complete_parents(parents, found.to_list())
        of_train = events.join(train.to_frame().lazy(), on="subject_id", how="semi")
        vocabulary = tokenizer.fit_vocabulary(
            of_train,
            parents,
            min_subjects=config.min_subjects,
            value_bins=config.value_bins,
            min_values=config.min_values,
            ranges=harmonise.read_ranges(config.ranges_file, units) if config.ranges_file else None,
        )
        vocabulary.save(out)
        vocabulary = tokenizer.Vocabulary.load(out)  # what a later stage reads, to the last digit
        meta = {
            "steps": config.window_spec().steps,
            "window_hours": config.window_hours,
            "channels": list(config.channels),
            "shards": [f"{s:05d}.array_record" for s in range(-(-subjects.height // config.subjects_per_shard))],
            **_channel_statistics(tables, set(train.to_list()), config),
            **window_summaries.fit(tables, train, window_summaries.parse(config.summaries, config.channels)),
        }
        _write_json(meta, out / "meta.json")
    places = _window_places(tables)
    parts = []
    chunks = subjects.iter_slices(config.subjects_per_shard)
    for name, chunk in zip(tqdm(meta["shards"], "records", unit="shard", disable=None), chunks, strict=True):
        part = out / "records" / f"{name}.parquet"
        if not part.exists():
            _write(_write_records(chunk, events, places, vocabulary, meta, out / "records" / name), part)
        parts.append(pl.read_parquet(part))
    index = pl.concat(parts).with_row_index("position")
    _write(index, out / "index.parquet")
    n_events, n_unknown = int(index["n_events"].sum() + index["n_static"].sum()), int(index["n_unknown"].sum())
    return [
        {
            "step": f"events in the vocabulary of {len(vocabulary)} tokens",
            "n": n_events,
            "dropped": n_unknown,
            "reason": f"codes of fewer than {config.min_subjects} training patients, no ancestor with as many",
        }
    ]


def _channel_statistics(tables, train, config):
    """Mean and standard deviation per channel over the observed steps of training patients."""
    n = len(config.channels)
    count, total, square = np.zeros(n), np.zeros(n), np.zeros(n)
    for path in sorted((tables / "windows").glob("*.parquet")) if n else []:
        mine = np.isin(pl.read_parquet(path, columns=["subject_id"])["subject_id"].to_numpy(), list(train))
        values = np.load(tables / "window_values" / f"{path.stem}.npy", mmap_mode="r")
        for begin in range(0, len(values), 4096):
            x = values[begin : begin + 4096][mine[begin : begin + 4096]].astype(np.float64)
            count += np.isfinite(x).sum(axis=(0, 1))
            total += np.nansum(x, axis=(0, 1))
            square += np.nansum(x * x, axis=(0, 1))
    mean = total / np.maximum(count, 1)
    std = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 1e-12))
    return {"mean": mean.tolist(), "std": std.tolist()}


def _window_places(tables):
    """{subject: (file, first row, number of rows, end times)}."""
    places = {}
    for path in sorted((tables / "windows").glob("*.parquet")):
        table = pl.read_parquet(path, columns=["subject_id", "time"])
        ids, ends = table["subject_id"].to_numpy(), table["time"].to_physical().to_numpy()
        start = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])) if len(ids) else []
        for lo, hi in zip(start, np.append(start[1:], len(ids)) if len(ids) else [], strict=True):
            places[int(ids[lo])] = (tables / "window_values" / f"{path.stem}.npy", int(lo), int(hi), ends[lo:hi])
    return places


def _write_records(chunk, events, places, vocabulary, meta, path):
    """Writes one ArrayRecord shard; returns its index rows in order."""
    ids = chunk["subject_id"].sort()
    coded = vocabulary.encode(events.join(ids.to_frame().lazy(), on="subject_id", how="semi").collect())
    coded = coded.sort("subject_id", maintain_order=True)
    # one frame operation per person would take longer than everything else: slices of plain arrays instead
    subject_N, token_N = coded["subject_id"].to_numpy(), coded["token"].fill_null(-1).to_numpy()
    value_N, time_N = coded["value"].to_numpy(), coded["time"].to_physical().fill_null(NO_BIRTH).to_numpy()
    mean, std = np.asarray(meta["mean"], np.float32), np.asarray(meta["std"], np.float32)
    opened, index = {}, []
    with writing(path) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for row in chunk.iter_rows(named=True):
            mine = slice(*np.searchsorted(subject_N, [row["subject_id"], row["subject_id"] + 1]))
            known = np.flatnonzero(token_N[mine] >= 0) + mine.start
            static, timed = known[time_N[known] == NO_BIRTH], known[time_N[known] != NO_BIRTH]
            window = np.zeros((0, meta["steps"], len(meta["channels"])), np.float16)
            summary = np.zeros((0, len(meta["summaries"])), np.float16)
            end = np.zeros(0, np.int64)
            if row["subject_id"] in places:
                file, lo, hi, end = places[row["subject_id"]]
                if file not in opened:
                    opened[file] = np.load(file, mmap_mode="r"), window_summaries.standardised(file, meta)
                window = np.clip((opened[file][0][lo:hi] - mean) / std, -10.0, 10.0).astype(np.float16)
                summary = opened[file][1][lo:hi]
            time_us = time_N[timed]
            end_us = max([_micros(row["end_time"]), *end[-1:].tolist(), *time_us[-1:].tolist()])
            writer.write(
                records.encode(
                    {
                        "static_token": token_N[static],
                        "static_value": value_N[static],
                        "token": token_N[timed],
                        "value": value_N[timed],
                        "time_us": time_us,
                        "window_end_us": end,
                        "window": window,
                        "summary": summary,
                        "birth_us": np.int64(_micros(row["birth_time"])),
                        "end_us": np.int64(end_us),
                        "died": np.bool_(bool(row["died"])),
                    }
                )
            )
            index.append(
                (
                    row["subject_id"],
                    row["split"],
                    row["group_id"],
                    len(static),
                    len(timed),
                    len(end),
                    mine.stop - mine.start - len(known),
                    (end_us - min([*end[:1].tolist(), *time_us[:1].tolist(), end_us])) / signal.DAY_US
                    if end_us > NO_BIRTH
                    else 0.0,
                )
            )
        writer.close()
    return pl.DataFrame(
        index,
        ["subject_id", "split", "group_id", "n_static", "n_events", "n_windows", "n_unknown", "days"],
        orient="row",
    )


def _micros(time):
    """Microseconds since the epoch of a naive datetime; NO_BIRTH for None."""
    return NO_BIRTH if time is None else int(np.datetime64(time, "us").astype(np.int64))
