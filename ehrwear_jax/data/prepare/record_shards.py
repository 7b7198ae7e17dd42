"""Writes people as records in ArrayRecord shards, in no model's terms and once for all folds.

Each piece of events is coded once, into OUT/coded: an array whose rows lie together per person, and a table of where. A
record shard then reads the rows of its people, wherever they are, so that records are in the order of subject ids
whatever the shards of the input are. OUT/coded is removed in the end.
"""

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from array_record.python.array_record_module import ArrayRecordWriter

from ehrwear_jax.config import options
from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.config.segment_spec import SegmentSpec
from ehrwear_jax.data import record_bytes, store
from ehrwear_jax.data.formats import npy_rows as npy
from ehrwear_jax.data.formats.parquet import write_frame, write_json, writing
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.prepare import code_table, specs, workers
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.signals import derived_features, segments

CODED = np.dtype([("time", "<i8"), ("code", "<i4"), ("value", "<f4"), ("text", "<i4")])
INDEX = {
    "subject_id": pl.Int64,
    "group_id": pl.Int64,
    "n_static": pl.Int64,
    "n_events": pl.Int64,
    "n_windows": pl.Int64,
    "days": pl.Float64,
    "first_us": pl.Int64,
    "end_us": pl.Int64,
}


def make_meta(n_subjects: int, config: PrepareConfig) -> dict:
    """The content of meta.json: what records hold, and in which shards they lie."""
    n_shards = -(-n_subjects // config.subjects_per_shard)
    return {
        "steps": specs.window_spec(config).steps,
        "step_minutes": config.step_minutes,
        "window_hours": config.window_hours,
        "channels": list(config.channels),
        "log_channels": [c for c in config.channels if c in config.log_channels],
        "derived": derived_features.targets(derived_features.parse(config.summaries, config.channels)),
        "quality": config.quality,
        "max_age_years": config.max_age_years,
        "segments": {name: dataclasses.asdict(spec) for name, spec in specs.segment_specs(config).items()},
        "shards": [f"{s:05d}.array_record" for s in range(n_shards)],
    }


# -------------------------------------------------------------------------------------------------------- coding
def code_events(tables: Path, out: Path, subjects: pl.DataFrame, pool: workers.Pool) -> tuple[pl.DataFrame, dict]:
    """Writes OUT/coded/ for every piece of TABLES/events/.

    Args:
      out: holds codes.parquet and texts.parquet. subjects: subject_id of everybody who gets a record.

    Returns:
      (people, counts): subject_id, events_of (name of the array), first_row, n_static, n_events; the manifest's counts
      of events by where they went.
    """
    pieces = sorted((tables / "events").glob("*.parquet"))
    (out / "coded").mkdir(exist_ok=True)
    modified = (out / "texts.parquet").stat().st_mtime_ns
    people = pl.concat(pool.map(functools.partial(_code, out=out, modified=modified), pieces, "code ids"))
    of_event = pl.col("n_static") + pl.col("n_events")
    here = people.join(subjects, on="subject_id", how="semi").select(of_event.sum()).item()
    n_in = people.select(of_event.sum()).item()
    return people, {"in": n_in, "out": {"in records": here, "of people left out": n_in - here}}


def coded_events(events: pl.DataFrame) -> np.ndarray:
    """CODED [N] of events as code_table.event_ids returns them; a static one has the time NO_BIRTH."""
    coded = np.empty(events.height, CODED)
    coded["time"] = events["time"].to_physical().fill_null(store.NO_BIRTH).to_numpy()
    coded["code"] = events["code_id"].to_numpy()
    coded["value"] = events["numeric_value"].fill_null(float("nan")).to_numpy()
    coded["text"] = events["text_id"].fill_null(store.NO_TEXT).to_numpy()
    return coded


@functools.lru_cache(maxsize=2)
def _tables_of(folder, _):
    return code_table.tables_of(folder)


def _code(path, out, modified):
    """Writes the events of one piece; returns its people, see code_events."""
    array_path, people_path = (out / "coded" / f"{path.stem}.{kind}" for kind in ("npy", "parquet"))
    if people_path.exists():
        return pl.read_parquet(people_path)
    named = pl.read_parquet(path)
    events = code_table.event_ids(named, *_tables_of(out, modified))
    if unknown := named.filter(events["code_id"].is_null())["code"].unique().sort().to_list():
        raise ValueError(f"{out / 'codes.parquet'}: holds no code {unknown[0]!r}, which {path} has")
    coded = coded_events(events)
    with npy.writing_rows(array_path, (), CODED) as append:
        append(coded)
    subject_N = events["subject_id"].to_numpy()
    is_first_N = np.append(True, subject_N[1:] != subject_N[:-1])[: len(subject_N)]
    person_N, subject_P = np.cumsum(is_first_N) - 1, subject_N[is_first_N]
    n_all = np.bincount(person_N, minlength=len(subject_P))
    n_static = np.bincount(person_N[coded["time"] == store.NO_BIRTH], minlength=len(subject_P))
    people = pl.DataFrame(
        {
            "subject_id": subject_P,
            "events_of": [path.stem] * len(subject_P),
            "first_row": np.cumsum(n_all) - n_all,
            "n_static": n_static,
            "n_events": n_all - n_static,
        },
        schema_overrides={"events_of": pl.String},
    )
    write_frame(people, people_path)
    return people


def remove_coded(out: Path) -> None:
    """Removes OUT/coded once the records are written."""
    shutil.rmtree(Path(out) / "coded", ignore_errors=True)


# -------------------------------------------------------------------------------------------------------- records
def write_records(
    subjects: pl.DataFrame,
    people: pl.DataFrame,
    tables: Path,
    out: Path,
    meta: dict,
    config: PrepareConfig,
    pool: workers.Pool,
) -> dict[str, dict]:
    """Writes the shards and OUT/index.parquet; returns the files of the manifest.

    Args:
      subjects: subject_id, group_id, birth_time, end_time, died of everybody, in the order of the records.
      people: as code_events returns. meta: the content of meta.json.
    """
    files = sorted((tables / "wearers").glob("*.parquet")) if meta["channels"] else []
    empty = pl.DataFrame(schema=dict.fromkeys(("subject_id", "window_row", "n_windows"), pl.Int64))
    wearers = pl.concat(
        [
            empty.with_columns(pl.lit(None, pl.String).alias("windows_of")),
            *(
                pl.read_parquet(p).rename({"first_row": "window_row"}).with_columns(pl.lit(p.stem).alias("windows_of"))
                for p in files
            ),
        ],
        how="diagonal",
    )
    of_segments = [f"{what}_segments_{name}" for name in meta["segments"] for what in ("first", "n")]
    wearers = wearers.with_columns(
        pl.lit(None, pl.Int64).alias(c) for c in of_segments if c not in wearers.columns
    )  # without wearables
    counts = ["first_row", "n_static", "n_events", "window_row", "n_windows", *of_segments]
    everybody = (
        subjects.select("subject_id", "group_id", pl.col("birth_time", "end_time").to_physical(), "died")
        .join(people, on="subject_id", how="left", maintain_order="left")
        .join(wearers, on="subject_id", how="left", maintain_order="left")
        .with_columns(pl.col(counts).fill_null(0), pl.col("birth_time", "end_time").fill_null(store.NO_BIRTH))
        .with_columns(pl.col("died").fill_null(False))
    )
    jobs = list(zip(meta["shards"], everybody.iter_slices(config.subjects_per_shard), strict=True))
    work = functools.partial(_one_shard, tables=tables, out=out, meta=meta)
    parts = out / "parts"
    parts.mkdir(exist_ok=True)
    tallies = manifest.run_jobs(work, jobs, [parts / f"{name}.json" for name in meta["shards"]], out, pool, "records")
    index = pl.concat(
        [pl.DataFrame(schema=_index_schema(meta)), *(pl.read_parquet(parts / f"{n}.parquet") for n in meta["shards"])]
    )
    write_frame(index.with_row_index("position"), out / "index.parquet")
    return manifest.merge_files(tallies)


def _index_schema(meta):
    return INDEX | {f"n_segments_{name}": pl.Int64 for name in meta["segments"]}


class _Sources(NamedTuple):
    """Where the arrays of a record shard come from."""

    opened: npy.OpenRows
    tables: Path
    coded: Path
    meta: dict


def _one_shard(job, tables, out, meta):
    """Writes one ArrayRecord shard and its part of the index; its tally comes last."""
    name, chunk = job
    path, part, index, schema = out / name, out / "parts" / f"{name}.parquet", [], _index_schema(meta)
    with npy.OpenRows() as opened, writing(path) as partial:
        sources = _Sources(opened, tables, out / "coded", meta)
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for person in chunk.iter_rows(named=True):
            record = _record(person, sources)
            writer.write(record_bytes.encode(record))
            end_us = int(record["end_us"])
            first_us = int(min([*record["window_end_us"][:1], *record["time_us"][:1], end_us]))
            days = (end_us - first_us) / DAY_US if end_us > store.NO_BIRTH else 0.0
            facts = person | {"days": days, "first_us": first_us, "end_us": end_us}
            index.append([facts[column] for column in schema])
        writer.close()
    write_frame(pl.DataFrame(index, schema, orient="row"), part)
    tally = {"files": manifest.fingerprints(out, [path, part])}
    write_json(tally, out / "parts" / f"{name}.json")
    return tally


def _record(person, sources):
    """The arrays of one person, see store.make_record."""
    opened, tables, coded, meta = sources
    n_static, n_coded = person["n_static"], person["n_static"] + person["n_events"]
    events = np.zeros(0, CODED)
    if n_coded:
        events = opened[coded / f"{person['events_of']}.npy"].read(person["first_row"], n_coded)
    worn = _worn(person, sources)
    time_us, end_us = events["time"][n_static:], worn["window_end_us"]
    return {
        **{f"static_{name}": events[name][:n_static] for name in ("code", "value", "text")},
        **{name: events[name][n_static:] for name in ("code", "value", "text")},
        "time_us": time_us,
        **worn,
        "birth_us": np.int64(person["birth_time"]),
        "end_us": np.int64(max([person["end_time"], *end_us[-1:].tolist(), *time_us[-1:].tolist()])),
        "died": np.bool_(person["died"]),
    }


def _worn(person, sources):
    """What a wearable gave."""
    opened, tables, _, meta = sources
    n, first, name = person["n_windows"], person["window_row"], f"{person['windows_of']}.npy"
    shape = (n, meta["steps"], len(meta["channels"]))
    window, end_us, (worn, offset) = np.zeros(shape, np.float32), np.zeros(n, np.int64), np.zeros((2, n), np.int16)
    derived, quality = np.zeros((n, len(meta["derived"])), np.float32), np.zeros(shape, np.uint8)
    if n:
        window = opened[tables / "window_values" / name].read(first, n)
        seen = opened[tables / "wearers" / name].read(first, n)
        end_us, worn, offset, derived = (seen[name] for name in ("end", "worn_minutes", "utc_offset", "derived"))
        if meta["quality"]:
            quality = opened[tables / "window_quality" / name].read(first, n)
    found = {"window_end_us": end_us, "window": window, "worn_minutes": worn, "utc_offset": offset, "derived": derived}
    if meta["quality"]:
        found["quality"] = quality
    for set_, spec in meta["segments"].items():
        segment_R = np.zeros(0, segments.dtype(options.build(SegmentSpec, spec)))
        if person[f"n_segments_{set_}"]:
            rows = opened[tables / "segments" / set_ / name]
            segment_R = rows.read(person[f"first_segments_{set_}"], person[f"n_segments_{set_}"])
        found |= {f"{set_}/start_us": segment_R["start"], f"{set_}/score": segment_R["score"]}
        found[f"{set_}/values"] = segment_R["values"]
    return found
