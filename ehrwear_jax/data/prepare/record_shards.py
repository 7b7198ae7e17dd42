"""prepare, last part: events become tokens, and people become records in ArrayRecord shards.

Each shard of events is coded once, into OUT/coded: an array whose rows lie together per person, and a table of where. A
record shard then reads the rows of its people, wherever they are, so that records are in the order of subject ids
whatever the shards of the input are. OUT/coded is removed in the end.
"""

import functools
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from array_record.python.array_record_module import ArrayRecordWriter

from ehrwear_jax.data import store as records
from ehrwear_jax.data.formats import npy_rows as npy
from ehrwear_jax.data.formats.parquet import write_frame, write_json, writing
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.models.joint import vocabulary as tokenizer
from ehrwear_jax.models.joint.batch import N_SPECIAL

NO_BIRTH = np.iinfo(np.int64).min
_CODED = np.dtype([("time", "<i8"), ("token", "<i4"), ("value", "<f4")])
INDEX = {
    "subject_id": pl.Int64,
    "split": pl.String,
    "group_id": pl.Int64,
    "n_static": pl.Int64,
    "n_events": pl.Int64,
    "n_windows": pl.Int64,
    "n_unknown": pl.Int64,
    "days": pl.Float64,
    "rarity": pl.Float32,
}


# -------------------------------------------------------------------------------------------------------- coding
def code_events(tables, out, pool):
    """Writes OUT/coded/ for every shard of TABLES/events/.

    Returns:
      (people, counts): subject_id, events_of (name of the array), first_row, n_static, n_events, n_unknown, rarity;
      the manifest's counts of events by where they went.
    """
    pieces = sorted((tables / "events").glob("*.parquet"))
    (out / "coded").mkdir(exist_ok=True)
    work = functools.partial(_code, out=out, modified=(out / "codes.csv").stat().st_mtime_ns)
    people = pl.concat(pool.map(work, pieces, "tokens"))
    here = pl.read_parquet(out / "subjects.parquet", columns=["subject_id"])
    n_in = sum(pl.scan_parquet(p).select(pl.len()).collect().item() for p in pieces)
    tokens, unknown = pl.col("n_static") + pl.col("n_events"), pl.col("n_unknown")
    mine, others = (people.join(here, on="subject_id", how=how) for how in ("semi", "anti"))
    went = {
        "tokens": mine.select(tokens.sum()).item(),
        "out of the vocabulary": mine.select(unknown.sum()).item(),
        "of people left out": others.select((tokens + unknown).sum()).item(),
    }
    return people, {"in": n_in, "out": went}


@functools.lru_cache(maxsize=2)
def _vocabulary(out, _):
    """(Vocabulary, -log of each token's share of the training tokens; a token that never occurred counts as one)."""
    vocabulary = tokenizer.Vocabulary.load(out)
    count_V = vocabulary.tokens["count"].to_numpy().astype(np.float64)
    surprise_V = -np.log(np.maximum(count_V, 1) / max(count_V.sum(), 1))
    surprise_V[:N_SPECIAL] = 0.0
    return vocabulary, surprise_V


def _code(path, out, modified):
    """Writes the tokens of one shard; returns its people, see code_events."""
    array_path, people_path = (out / "coded" / f"{path.stem}.{kind}" for kind in ("npy", "parquet"))
    if people_path.exists():
        return pl.read_parquet(people_path)
    vocabulary, surprise_V = _vocabulary(out, modified)
    events = pl.read_parquet(path)
    token_N, value_N = vocabulary.encode_columns(events["code"], events["numeric_value"])
    time_N = events["time"].to_physical().fill_null(NO_BIRTH).to_numpy()
    subject_N = events["subject_id"].to_numpy()
    known_N, is_static_N = token_N >= 0, time_N == NO_BIRTH
    coded = np.empty(int(known_N.sum()), _CODED)
    coded["time"], coded["token"], coded["value"] = time_N[known_N], token_N[known_N], value_N[known_N]
    with npy.writing_rows(array_path, (), _CODED) as append:
        append(coded)
    is_first_N = np.append(True, subject_N[1:] != subject_N[:-1])[: len(subject_N)]
    person_N, subject_P = np.cumsum(is_first_N) - 1, subject_N[is_first_N]
    n_static, n_known, n_all = (
        np.bincount(person_N[which_N], minlength=len(subject_P))
        for which_N in (known_N & is_static_N, known_N, slice(None))
    )
    timed_N = known_N & ~is_static_N
    surprise_P = np.bincount(person_N[timed_N], surprise_V[token_N[timed_N]], len(subject_P))
    n_events = n_known - n_static
    people = pl.DataFrame(
        {
            "subject_id": subject_P,
            "events_of": [path.stem] * len(subject_P),
            "first_row": np.cumsum(n_known) - n_known,
            "n_static": n_static,
            "n_events": n_events,
            "n_unknown": n_all - n_known,
            "rarity": (surprise_P / np.maximum(n_events, 1)).astype(np.float32),
        },
        schema_overrides={"events_of": pl.String},
    )
    write_frame(people, people_path)
    return people


def remove_coded(out):
    """Removes OUT/coded once the records are written."""
    shutil.rmtree(Path(out) / "coded", ignore_errors=True)


# -------------------------------------------------------------------------------------------------------- records
def write_records(subjects, people, tables, out, meta, config, pool):
    """Writes OUT/records/ and OUT/index.parquet.

    Args:
      subjects: subject_id, split, group_id, birth_time, end_time, died of everybody, in the order of the records.
      people: as code_events returns. meta: the content of meta.json.

    Returns:
      (index, files of the manifest).
    """
    files = sorted((tables / "wearers").glob("*.parquet")) if meta["channels"] else []
    empty = pl.DataFrame(schema=dict.fromkeys(("subject_id", "window_row", "n_windows"), pl.Int64))
    places = [
        pl.read_parquet(p).rename({"first_row": "window_row"}).with_columns(pl.lit(p.stem).alias("windows_of"))
        for p in files
    ]
    empty = empty.with_columns(pl.lit(None, pl.String).alias("windows_of"))
    wearers = pl.concat([empty, *places], how="diagonal")
    counts = ["first_row", "n_static", "n_events", "n_unknown", "window_row", "n_windows", "rarity"]
    counts += [c for c in ("first_raw", "n_raw") if c in wearers.columns]
    everybody = (
        subjects.select("subject_id", "split", "group_id", pl.col("birth_time", "end_time").to_physical(), "died")
        .join(people, on="subject_id", how="left", maintain_order="left")
        .join(wearers, on="subject_id", how="left", maintain_order="left")
        .with_columns(pl.col(counts).fill_null(0), pl.col("birth_time", "end_time").fill_null(NO_BIRTH))
        .with_columns(pl.col("died").fill_null(False))
    )
    jobs = list(zip(meta["shards"], everybody.iter_slices(config.subjects_per_shard), strict=True))
    work = functools.partial(_one_shard, tables=tables, out=out, meta=meta)
    tally_paths = [out / "records" / f"{name}.json" for name in meta["shards"]]
    tallies = manifest.run_jobs(work, jobs, tally_paths, out, pool, "records")
    parts = [pl.read_parquet(out / "records" / f"{name}.parquet") for name in meta["shards"]]
    index = pl.concat([pl.DataFrame(schema=INDEX), *parts]).with_row_index("position")
    write_frame(index, out / "index.parquet")
    return index, manifest.merge_files(tallies)


class _Sources(NamedTuple):
    """Where the arrays of a record shard come from, and how signals are standardised."""

    opened: npy.OpenRows
    tables: Path
    coded: Path
    meta: dict


def _one_shard(job, tables, out, meta):
    """Writes one ArrayRecord shard and its part of the index; its tally comes last."""
    name, chunk = job
    path, part, index = out / "records" / name, out / "records" / f"{name}.parquet", []
    with npy.OpenRows() as opened, writing(path) as partial:
        sources = _Sources(opened, tables, out / "coded", meta)
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for person in chunk.iter_rows(named=True):
            record = _record(person, sources)
            writer.write(records.encode(record))
            first_us = min([*record["window_end_us"][:1], *record["time_us"][:1], record["end_us"]])
            days = (int(record["end_us"]) - int(first_us)) / DAY_US if record["end_us"] > NO_BIRTH else 0.0
            index.append([days if column == "days" else person[column] for column in INDEX])
        writer.close()
    write_frame(pl.DataFrame(index, INDEX, orient="row"), part)
    tally = {"files": manifest.fingerprints(out, [path, part])}
    write_json(tally, out / "records" / f"{name}.json")
    return tally


def _record(person, sources):
    """The arrays of one person."""
    opened, tables, coded, meta = sources
    n_static, n_coded = person["n_static"], person["n_static"] + person["n_events"]
    events = np.zeros(0, _CODED)
    if n_coded:
        events = opened[coded / f"{person['events_of']}.npy"].read(person["first_row"], n_coded)
    n, first, name = person["n_windows"], person["window_row"], f"{person['windows_of']}.npy"
    window = np.zeros((0, meta["steps"], len(meta["channels"])), np.float16)
    summary, end_us = np.zeros((0, len(meta["summaries"])), np.float16), np.zeros(0, np.int64)
    if n:
        window = _standardised(opened[tables / "window_values" / name].read(first, n), meta["mean"], meta["std"])
        seen = opened[tables / "wearers" / name].read(first, n)
        summary = _standardised(seen["summary"], meta["summary_mean"], meta["summary_std"])
        end_us = seen["end"]
    time_us = events["time"][n_static:]
    more = {}
    if "quality" in meta:
        more["quality"] = np.zeros(window.shape, np.uint8)
        if n:
            more["quality"] = opened[tables / "window_quality" / name].read(first, n)
    if "raw" in meta:
        samples, n_channels, n_raw = meta["raw"]["samples"], len(meta["raw"]["channels"]), person.get("n_raw", 0)
        more |= {"raw_window": np.zeros(0, np.int32), "raw_step": np.zeros(0, np.int32)}
        more["raw"] = np.zeros((0, samples, n_channels), np.float16)
        if n_raw:
            raw = opened[tables / "raw_windows" / name].read(person["first_raw"], n_raw)
            more |= {"raw_window": raw["window"], "raw_step": raw["step"], "raw": raw["values"]}
    return {
        "static_token": events["token"][:n_static],
        "static_value": events["value"][:n_static],
        "token": events["token"][n_static:],
        "value": events["value"][n_static:],
        "time_us": time_us,
        "window_end_us": end_us,
        "window": window,
        "summary": summary,
        "birth_us": np.int64(person["birth_time"]),
        "end_us": np.int64(max([person["end_time"], *end_us[-1:].tolist(), *time_us[-1:].tolist()])),
        "died": np.bool_(person["died"]),
        **more,
    }


def _standardised(values, mean, std):
    """float16, within 10 standard deviations; NaN stays."""
    scaled = (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.clip(scaled, -10.0, 10.0).astype(np.float16)
