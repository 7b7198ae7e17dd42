"""prepare, second part: recorded stretches -> windows on a regular grid and their summaries."""

import contextlib
import functools

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ehrwear_jax.data.formats import npy_rows as npy
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.formats.parquet import shard_names, write_frame, write_json, writing_table
from ehrwear_jax.data.formats.quarantine import count_reasons, quarantine_counts, set_aside
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.prepare import specs
from ehrwear_jax.data.signals import derived_features as window_summaries
from ehrwear_jax.data.signals import grid, grid_quality, overlap, raw_windows, summaries

_WINDOWS_AT_ONCE = 2048  # summarised and written together


def prepare_windows(wearable_dir, out, quarantine, config, deidentifier, pool):
    """Writes OUT/windows/, OUT/window_values/ and OUT/wearers/, one file each per shard.

    windows/NAME.parquet: subject_id, time (the end) and summaries of each window. window_values/NAME.npy: float32
    [windows, steps, channels]. wearers/NAME.parquet: subject_id, first_row, n_windows; wearers/NAME.npy: window_dtype
    [windows]. With config.raw_channels also OUT/raw_windows/NAME.npy, RawSpec.dtype [raw windows], and first_raw, n_raw
    in wearers/NAME.parquet; with config.quality OUT/window_quality/NAME.npy, uint8 [windows, steps, channels].

    Returns:
      (steps [{step, n, dropped, reason}], counts of the manifest, files of the manifest).

    Raises:
      ValueError: a channel that is not declared, or a fault of a file; see wearable.read_subjects.
    """
    table = wearable.read_channels(wearable_dir)
    known = set(table["channel"])
    if unknown := {*config.channels, *specs.raw_spec(config).channels} - known:
        raise ValueError(
            f"{wearable_dir}: no channel {sorted(unknown)} in metadata/channels.parquet; there are {sorted(known)}"
        )
    limits = {r["channel"]: (r["valid_min"], r["valid_max"]) for r in table.iter_rows(named=True)}
    wanted = window_summaries.parse(config.summaries, config.channels, known)
    shards = wearable.list_shards(wearable_dir)
    for folder, used in (("raw_windows", config.raw_channels), ("window_quality", config.quality)):
        if used:
            (out / folder).mkdir(exist_ok=True)
    jobs = list(zip(shards, shard_names(shards, wearable_dir), strict=True))
    work = functools.partial(
        _one_shard,
        table=table,
        limits=limits,
        wanted=wanted,
        out=out,
        quarantine=quarantine,
        config=config,
        deidentifier=deidentifier,
    )
    paths = [out / "windows" / f"{name}.json" for _, name in jobs]
    tallies = manifest.run_jobs(work, jobs, paths, out, pool, "wearable")
    _require_one_file_each(wearable_dir, out)
    total = manifest.add_up(t["rows"] for t in tallies)
    reasons = manifest.add_up(t["reasons"] for t in tallies)
    counts = {"in": total["read"], "out": {key: total[key] for key in ("used", "other channels")} | reasons}
    n_aside = sum(reasons.values())
    steps = [
        {
            "step": f"wearable windows of {config.window_hours} h",
            "n": total["windows"],
            "dropped": total["other channels"] + n_aside,
            "reason": f"{total['read']:,} recorded stretches read = {total['used']:,} used + "
            f"{total['other channels']:,} of channels that the config does not use + {n_aside:,} quarantined",
        }
    ]
    for key, reason in overlap.COUNTS.items():
        if total[key]:
            steps.append({"step": f"wearable {key}", "n": 0, "dropped": total[key], "reason": reason})
    if total["outside"]:
        reason = "no channel of the config covers the window, so it does not exist"
        steps.append({"step": "stretches to sum up", "n": 0, "dropped": total["outside"], "reason": reason})
    if config.raw_channels:
        steps.append({"step": f"raw windows of {config.raw_seconds:g} s", "n": total["raw windows"], "dropped": 0,
                      "reason": ""})  # fmt: skip
        for key, reason in raw_windows.DROPPED.items():
            steps.append({"step": key, "n": 0, "dropped": total[key], "reason": reason})
    steps += quarantine_counts("wearable", reasons)
    return steps, {"recorded stretches": counts}, manifest.merge_files(tallies)


def _require_one_file_each(wearable_dir, out):
    paths = sorted((out / "wearers").glob("*.parquet"))
    homes = pl.concat([pl.read_parquet(p).select("subject_id", pl.lit(p.stem).alias("file")) for p in paths])
    twice = homes.filter(pl.col("subject_id").is_duplicated()).sort("subject_id", "file")
    if twice.height:
        subject = twice["subject_id"][0]
        where = " and ".join(twice.filter(pl.col("subject_id") == subject)["file"])
        raise ValueError(f"{wearable_dir}: subject {subject} has wearable rows in more than one file: {where}")


def window_dtype(wanted):
    """One window in wearers/NAME.npy: its end, microseconds since the epoch, and the summaries that are predicted."""
    return np.dtype([("end", "<i8"), ("summary", "<f4", (len(window_summaries.targets(wanted)),))])


def _one_shard(job, table, limits, wanted, out, quarantine, config, deidentifier):
    """Writes the windows of one file of recordings, a few people at a time; its tally comes last."""
    path, name = job
    spec, aside, wearers, waiting = specs.window_spec(config), [], [], []
    counted = {"used": 0, "other channels": 0, "windows": 0, "outside": 0} | dict.fromkeys(overlap.COUNTS, 0)
    windows, values = out / "windows" / f"{name}.parquet", out / "window_values" / f"{name}.npy"
    people, ends = out / "wearers" / f"{name}.parquet", out / "wearers" / f"{name}.npy"
    raw, raw_path = specs.raw_spec(config), out / "raw_windows" / f"{name}.npy"
    columns = ["subject_id", "first_row", "n_windows"]
    if raw.channels:
        counted |= dict.fromkeys(("raw windows", *raw_windows.DROPPED), 0)
        columns += ["first_raw", "n_raw"]
    quality, shape = out / "window_quality" / f"{name}.npy", (spec.steps, len(spec.channels))
    with (
        npy.writing_rows(raw_path, (), raw.dtype) if raw.channels else contextlib.nullcontext() as add_raw,
        npy.writing_rows(quality, shape, np.uint8) if config.quality else contextlib.nullcontext() as add_quality,
        npy.writing_rows(values, shape, np.float32) as add_values,
        npy.writing_rows(ends, (), window_dtype(wanted)) as add_ends,
        writing_table(windows) as add_windows,
    ):

        def flush():
            parts = zip(*[_no_windows(spec, wanted), *waiting], strict=True)
            id_M, end_M, window_MxLxC, further_MxX = map(np.concatenate, parts)
            frame = _frame(id_M, end_M, window_MxLxC, further_MxX, spec, wanted)
            row_M = np.zeros(len(id_M), window_dtype(wanted))
            row_M["end"] = end_M
            targets = [window_summaries.columns(wanted).index(c) for c in window_summaries.targets(wanted)]
            row_M["summary"] = further_MxX[:, targets]
            add_values(window_MxLxC)
            add_ends(row_M)
            add_windows(frame)
            waiting.clear()

        for subject, rows in wearable.read_subjects(path, table, specs.time_bounds(config), aside):
            subject, rows = deidentifier.recordings(subject, rows)
            stretches, end_M, window_MxLxC, further_MxX = _one_person(rows, spec, limits, wanted, config, counted)
            wearers.append((subject, counted["windows"], len(end_M)))
            if config.quality:
                add_quality(grid_quality.of_person(stretches, end_M, spec, limits))
            if raw.channels:
                raw_R, dropped = raw_windows.of_person(stretches, end_M, window_MxLxC, spec, limits, raw)
                wearers[-1] += (counted["raw windows"], len(raw_R))
                counted = manifest.add_up([counted, dropped, {"raw windows": len(raw_R)}])
                add_raw(raw_R)
            counted["windows"] += len(end_M)
            waiting.append((np.full(len(end_M), subject, np.int64), end_M, window_MxLxC, further_MxX))
            if sum(len(part[0]) for part in waiting) >= _WINDOWS_AT_ONCE:
                flush()
        flush()
    order = pl.DataFrame(wearers, dict.fromkeys(columns, pl.Int64), orient="row")
    more = {"first_row": [quality] if config.quality else [], "first_raw": [raw_path] if raw.channels else []}
    if config.pseudonymise:
        order = _in_order_of_pseudonyms(order, windows, more | {"first_row": [values, ends, *more["first_row"]]})
    write_frame(order, people)
    bad, bad_path = deidentifier.recordings_aside(pl.concat(aside)), quarantine / f"wearable__{name}.parquet"
    set_aside(bad, bad_path)
    written = [windows, values, people, ends, *sum(more.values(), []), *([bad_path] if bad.height else [])]
    tally = {
        "rows": counted | {"read": pq.read_metadata(path).num_rows},
        "reasons": count_reasons(bad),
        "files": manifest.fingerprints(out, written),
    }
    write_json(tally, out / "windows" / f"{name}.json")
    return tally


def _in_order_of_pseudonyms(wearers, windows, arrays):
    """Sorts the people of a file anew, as their first order would tell that of the ids; returns the sorted wearers.

    arrays: {column of where a person's rows begin: files}.
    """
    table = wearers.sort("subject_id")
    write_frame(pl.read_parquet(windows).sort("subject_id", maintain_order=True), windows)
    for first, number in (("first_row", "n_windows"), ("first_raw", "n_raw")):
        for path in arrays[first]:
            with npy.OpenRows() as opened, npy.writing_rows(path, opened[path].shape[1:], opened[path].dtype) as append:
                for begin, n in table.select(first, number).iter_rows():
                    append(opened[path].read(begin, n))
        if number in table.columns:
            table = table.with_columns((pl.col(number).cum_sum() - pl.col(number)).alias(first))
    return table


def _no_windows(spec, wanted):
    """Zero windows: subject, end, values and further summaries."""
    none = np.zeros(0, np.int64)
    further = np.zeros((0, len(window_summaries.columns(wanted))), np.float32)
    return none, none, np.zeros((0, spec.steps, len(spec.channels)), np.float32), further


def _one_person(rows, spec, limits, wanted, config, counted):
    """(stretches, end_M int64, window_MxLxC float32, further summaries float32 [M, X]) of one person; counts them."""
    needed = dict.fromkeys([*config.channels, *(channel for channel, _ in wanted), *config.raw_channels])
    used = rows.filter(pl.col("channel").is_in(list(needed)))
    counted["used"] += used.height
    counted["other channels"] += rows.height - used.height
    stretches = wearable.stretches(used)
    end, window, resolved = grid.window_person(stretches, spec, limits)
    further, n_outside = window_summaries.of_person(stretches, end, window, spec, limits, wanted)
    counted["outside"] += n_outside
    for key, n in resolved.items():
        counted[key] += n
    for c in set(config.log_channels) & set(config.channels):
        at = spec.channels.index(c)
        window[..., at] = np.log1p(np.maximum(window[..., at], 0.0))
    return stretches, end, window, further


def _frame(id_M, end_M, window_MxLxC, further_MxX, spec, wanted):
    """subject_id, time, and CHANNEL__STATISTIC of each window."""
    columns = {"subject_id": id_M, "time": pl.Series(end_M).cast(pl.Datetime("us"))}
    for stat, x in summaries.window_summaries(window_MxLxC).items():
        for i, c in enumerate(spec.channels):
            columns[f"{c}__{stat}"] = pl.Series(x[:, i]).fill_nan(None)
    for i, column in enumerate(window_summaries.columns(wanted)):
        columns[column] = pl.Series(further_MxX[:, i]).fill_nan(None)
    return pl.DataFrame(columns)
