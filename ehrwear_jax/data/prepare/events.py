"""prepare, first part: MEDS shards -> harmonised events with known times, and what is known of their people."""

import functools
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from ehrwear_jax.data.formats import meds, meds_checks
from ehrwear_jax.data.formats.parquet import shard_names, write_frame, write_json
from ehrwear_jax.data.formats.quarantine import count_reasons, quarantine_counts, set_aside
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.prepare import harmonise, specs
from ehrwear_jax.data.prepare import output_manifest as manifest

LAST_MICROSECOND = DAY_US - 1
_DROPPED = {"birth": "birth rows", "administrative": "administrative rows", "beyond the cap": "beyond the cap"}


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


def prepare_events(meds_dir, out, quarantine, config, deidentifier, pool):
    """Writes OUT/events/ and OUT/people/, one file each per shard, or per piece of a large one.

    Returns:
      (steps [{step, n, dropped, reason}], counts of the manifest, files of the manifest).

    Raises:
      ValueError: naming file, row and column; see meds_checks.screen_pieces.
    """
    shards = meds.list_shards(meds_dir)
    mapping = harmonise.read_mapping(
        config.mapping_files, harmonise.dataset_units(Path(meds_dir) / "metadata" / "codes.parquet")
    )
    work = functools.partial(
        _one_shard, out=out, quarantine=quarantine, config=config, deidentifier=deidentifier, mapping=mapping
    )
    jobs = list(zip(shards, shard_names(shards, meds_dir), strict=True))
    tallies = manifest.run_jobs(work, jobs, [out / "people" / f"{name}.json" for _, name in jobs], out, pool, "events")
    total = manifest.add_up(t["rows"] for t in tallies)
    reasons = manifest.add_up(t["reasons"] for t in tallies)
    counts = {"in": total["read"], "out": {key: total[key] for key in ("kept", *_DROPPED)} | reasons}
    dropped, n_aside = sum(total[key] for key in _DROPPED), sum(reasons.values())
    capped = f" + {total['beyond the cap']:,} beyond the cap per code and day" if config.max_per_day else ""
    mapped = [{"step": "EHR rows mapped to other codes", "n": total["mapped"], "dropped": 0, "reason": ""}]
    steps = [
        {
            "step": "EHR rows kept as events",
            "n": total["kept"],
            "dropped": dropped + n_aside,
            "reason": f"{total['read']:,} rows read = {total['kept']:,} kept + {total['birth']:,} birth rows (they "
            f"give the age) + {total['administrative']:,} administrative rows{capped} + {n_aside:,} quarantined",
        },
        *(mapped if config.mapping_files else []),
        *quarantine_counts("EHR", reasons),
    ]
    return steps, {"EHR rows": counts}, manifest.merge_files(tallies)


def _one_shard(job, out, quarantine, config, deidentifier, mapping):
    """Writes one shard's events and people; its tally, PEOPLE/NAME.json, comes last."""
    path, name = job
    rows, reasons, written, n = [], [], [], 0
    for raw, bad in meds_checks.screen_pieces(path, specs.time_bounds(config), config.rows_per_piece):
        raw, bad = deidentifier.events(raw, bad)
        events, people, aside = _piece_paths(out, quarantine, name, n)
        rows.append(_one_piece(raw, events, people, config, mapping))
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


def _one_piece(raw, events_path, people_path, config, mapping):
    """Writes one piece; returns how many of its rows went where."""
    known, births, ends = harmonise_events(raw, config)
    mapped, n_mapped = harmonise.map_codes(known, mapping)
    kept, n_capped = harmonise.cap_frequency(mapped, config.max_per_day)
    is_birth = pl.col("code").str.starts_with(meds.BIRTH_CODE)
    people = raw.select("subject_id").unique(maintain_order=True)
    people = people.join(births, on="subject_id", how="left", maintain_order="left")
    people = people.join(ends, on="subject_id", how="left", maintain_order="left")
    write_frame(kept, events_path)
    write_frame(people, people_path)
    n_birth, n_administrative = raw.select(
        is_birth.sum().alias("birth"), (~is_birth & pl.col("code").is_in(config.drop_codes)).sum().alias("other")
    ).row(0)
    return {
        "kept": kept.height,
        "birth": n_birth,
        "administrative": n_administrative,
        "beyond the cap": n_capped,
        "mapped": n_mapped,
    }
