"""Turns MEDS shards into harmonised events with known times, and tables of what is known of their people."""

import functools
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import meds, meds_checks
from ehrwear_jax.data.formats.parquet import shard_names, write_frame, write_json
from ehrwear_jax.data.formats.quarantine import count_reasons, quarantine_counts, set_aside
from ehrwear_jax.data.prepare import date_only, deidentify, harmonise, specs, texts, workers
from ehrwear_jax.data.prepare import output_manifest as manifest

_DROPPED = {"birth": "birth rows", "administrative": "administrative rows", "beyond the cap": "beyond the cap"}


def harmonise_events(
    events: pl.DataFrame, config: PrepareConfig, without_times: pl.Series | None = None
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Known times and input codes of one MEDS shard.

    Args:
      events: as meds.read_shard returns. without_times: codes that carry dates alone, see
        date_only.names; None: none.

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
    timed = timed if without_times is None else date_only.at_day_end(timed, without_times)
    ends = timed.group_by("subject_id").agg(
        pl.col("time").max().alias("end_time"), pl.col("code").str.starts_with(meds.DEATH_CODE).any().alias("died")
    )
    kept = timed.filter(~pl.col("code").is_in(config.drop_codes))
    kept = kept.select("subject_id", "time", "code", "numeric_value", "text_value").sort(
        "subject_id", "time", nulls_last=False, maintain_order=True
    )
    return kept, births, ends


def prepare_events(
    meds_dir: Path,
    out: Path,
    quarantine: Path,
    config: PrepareConfig,
    deidentifier: deidentify.Deidentifier,
    pool: workers.Pool,
) -> tuple[list[dict], dict[str, dict], dict[str, dict]]:
    """Writes OUT/date_only.parquet, OUT/texts.parquet, and OUT/events/ and OUT/people/.

    The last two hold one file per shard, or per piece of a large one.

    events/NAME.parquet: subject_id, time (null: static), code, numeric_value, text_value (a category of texts.py, null
    where there is none), by subject and time.

    Returns:
      (steps [{step, n, dropped, reason}], counts of the manifest, files of the manifest).

    Raises:
      ValueError: naming file, row and column; see meds_checks.screen_pieces.
    """
    shards = meds.list_shards(meds_dir)
    names = shard_names(shards, meds_dir)
    mapping = harmonise.read_mapping(
        config.mapping_files, harmonise.dataset_units(Path(meds_dir) / "metadata" / "codes.parquet")
    )
    decided = date_only.prepared(shards, names, out, config, pool)
    frequent = texts.frequent_texts(shards, names, out, config, mapping, pool)
    rules = Rules(config, mapping, frequent, date_only.names(decided))
    work = functools.partial(_one_shard, out=out, quarantine=quarantine, deidentifier=deidentifier, rules=rules)
    jobs = list(zip(shards, names, strict=True))
    tallies = manifest.run_jobs(work, jobs, [out / "people" / f"{name}.json" for name in names], out, pool, "events")
    total = manifest.add_up(t["rows"] for t in tallies)
    reasons = manifest.add_up(t["reasons"] for t in tallies)
    rows = {"in": total["read"], "out": {key: total[key] for key in ("kept", *_DROPPED)} | reasons}
    of_text = {"in": total["text only"], "out": {key: total[key] for key in ("categories", "not frequent")}}
    by_code = pl.read_parquet(out / "texts_by_code.parquet").select("n_texts", "n_kept").sum().row(0, named=True)
    n_texts = {"in": by_code["n_texts"], "out": {"categories": by_code["n_kept"]}}
    n_texts["out"]["not frequent"] = by_code["n_texts"] - by_code["n_kept"]
    made = [out / name for name in ("texts.parquet", "texts_by_code.parquet", "date_only.parquet")]
    files = manifest.merge_files(tallies) | manifest.fingerprints(out, made)
    steps = _steps(total, reasons, n_texts["out"], config) + _midnight_steps(total, decided)
    return steps, {"EHR rows": rows, "text results": of_text, "texts": n_texts}, files


def _steps(total, reasons, n_texts, config):
    """What became of the rows, for the log."""
    dropped, n_aside = sum(total[key] for key in _DROPPED), sum(reasons.values())
    capped = f" + {total['beyond the cap']:,} beyond the cap per code and day" if config.max_per_day else ""
    kept = {
        "step": "EHR rows kept as events",
        "n": total["kept"],
        "dropped": dropped + n_aside,
        "reason": f"{total['read']:,} rows read = {total['kept']:,} kept + {total['birth']:,} birth rows (they "
        f"give the age) + {total['administrative']:,} administrative rows{capped} + {n_aside:,} quarantined",
    }
    mapped = {"step": "EHR rows mapped to other codes", "n": total["mapped"], "dropped": 0, "reason": ""}
    step = f"EHR rows of drugs as ATC classes of level {config.atc_level}"
    classified = {"step": step, "n": total.get("classified", 0), "dropped": 0, "reason": ""}
    of_text = {
        "step": "events with a text as their only result",
        "n": total["categories"],
        "dropped": total["not frequent"],
        "reason": f"kept without their text, which fewer than {config.min_text_subjects} people have for the code",
    }
    categories = {
        "step": "texts of codes that are categories",
        "n": n_texts["categories"],
        "dropped": n_texts["not frequent"],
        "reason": f"fewer than {config.min_text_subjects} people have them; per code: texts_by_code.parquet",
    }
    in_texts = [of_text, categories] if total["text only"] else []
    harmonised = [*([mapped] if config.mapping_files else []), *([classified] if config.atc_level else [])]
    steps = [kept, *harmonised, *in_texts]
    return steps + quarantine_counts("EHR", reasons)


def _midnight_steps(total, decided):
    """What became of rows at midnight."""
    at_midnight = decided.filter(pl.col("at_midnight") > 0)
    n_codes, n = int(at_midnight["date_only"].sum()), total["at the day's end"]
    if not at_midnight.height:
        return []
    stay = f"{total['at midnight']:,} at midnight of {at_midnight.height - n_codes:,} codes that carry times stay there"
    step = "events of codes without times, known at the day's end"
    return [{"step": step, "n": n, "dropped": 0, "reason": f"{n_codes:,} codes; {stay}"}]


def _one_shard(job, out, quarantine, deidentifier, rules):
    """Writes one shard's events and people; its tally, PEOPLE/NAME.json, comes last."""
    path, name = job
    config = rules.config
    rows, reasons, written, n = [], [], [], 0
    for raw, bad in meds_checks.screen_pieces(path, specs.time_bounds(config), config.rows_per_piece):
        raw, bad = deidentifier.events(raw, bad)
        events, people, aside = _piece_paths(out, quarantine, name, n)
        rows.append(_one_piece(raw, (events, people), rules))
        reasons.append(count_reasons(bad))
        set_aside(bad, aside)
        written += [events, people, *([aside] if bad.height else [])]
        n += 1
    while (left := _piece_paths(out, quarantine, name, n))[1].exists():  # by an earlier call with smaller pieces
        for path_left in left:
            path_left.unlink(missing_ok=True)
        n += 1
    tally = {
        "rows": manifest.add_up(rows) | {"read": pq.read_metadata(path).num_rows},
        "reasons": manifest.add_up(reasons),
        "files": manifest.fingerprints(out, written),
    }
    write_json(tally, out / "people" / f"{name}.json")
    return tally


def _piece_paths(out, quarantine, name, k):
    """Files of piece k of a shard: events, people, quarantined rows; the first is named like the shard."""
    piece = f"{name}~{k:05d}" if k else name
    return (
        out / "events" / f"{piece}.parquet",
        out / "people" / f"{piece}.parquet",
        quarantine / f"ehr__{piece}.parquet",
    )


class Rules(NamedTuple):
    """How rows become events.

    Attributes:
      config: options. mapping: of harmonise.read_mapping. frequent: texts.TEXTS of the categories.
      without_times: codes that carry dates alone, see date_only.names.
    """

    config: PrepareConfig
    mapping: pl.DataFrame
    frequent: pl.DataFrame
    without_times: pl.Series


def known_events(raw: pl.DataFrame, rules: Rules) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """The events of rows: at the times at which they are known, under common codes, with frequent texts alone.

    Args:
      raw: as meds_checks.screen returns them.

    Returns:
      (events subject_id, time, code, numeric_value, text_value; births and ends of harmonise_events; counts).
    """
    known, births, ends = harmonise_events(raw, rules.config, rules.without_times)
    mapped, n_mapped, n_classified = harmonise.to_common(known, rules.mapping, rules.config.atc_level)
    capped, n_capped = harmonise.cap_frequency(mapped, rules.config.max_per_day)
    kept, n_text, n_category = texts.keep_frequent(capped, rules.frequent)
    counts = {"kept": kept.height, "beyond the cap": n_capped, "mapped": n_mapped, "classified": n_classified}
    return kept, births, ends, counts | {"text only": n_text, "categories": n_category}


def _one_piece(raw, paths, rules):
    """Writes one piece, its events and people; returns how many of its rows went where."""
    events_path, people_path = paths
    kept, births, ends, counts = known_events(raw, rules)
    is_birth = pl.col("code").str.starts_with(meds.BIRTH_CODE)
    people = raw.select("subject_id").unique(maintain_order=True)
    people = people.join(births, on="subject_id", how="left", maintain_order="left")
    people = people.join(ends, on="subject_id", how="left", maintain_order="left")
    write_frame(kept, events_path)
    write_frame(people, people_path)
    at_midnight = raw.filter(~is_birth & date_only.at_midnight())
    n_later = at_midnight.filter(pl.col("code").is_in(rules.without_times.implode())).height
    n_birth, n_administrative = raw.select(
        is_birth.sum().alias("birth"), (~is_birth & pl.col("code").is_in(rules.config.drop_codes)).sum().alias("other")
    ).row(0)
    return counts | {
        "birth": n_birth,
        "administrative": n_administrative,
        "at the day's end": n_later,
        "at midnight": at_midnight.height - n_later,
        "not frequent": counts["text only"] - counts["categories"],
    }
