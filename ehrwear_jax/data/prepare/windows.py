"""Cuts recorded stretches into windows on a regular grid, with their summaries, quality and segments."""

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ehrwear_jax.config.data import PrepareConfig
from ehrwear_jax.data.formats import npy_rows as npy
from ehrwear_jax.data.formats import units, wearable
from ehrwear_jax.data.formats.parquet import shard_names, write_frame, write_json, writing_table
from ehrwear_jax.data.formats.quarantine import count_reasons, quarantine_counts, set_aside
from ehrwear_jax.data.formats.stretches import Stretch
from ehrwear_jax.data.prepare import deidentify, specs, workers
from ehrwear_jax.data.prepare import output_manifest as manifest
from ehrwear_jax.data.signals import (
    derived_features,
    grid,
    grid_quality,
    local_time,
    non_wear,
    overlap,
    rate_artefacts,
    raw_acceleration,
    segments,
    summaries,
)

_NON_WEAR = "recorded while the device was not worn, as config.prepare.non_wear finds it"
_WINDOWS_AT_ONCE = 2048  # summarised and written together


class How(NamedTuple):
    """How recordings become windows: the grid, plausible ranges, derived features, rules of non-wear, the options.

    rates: channels whose artefacts are taken out. in_g: {axis of raw acceleration: factor that brings its unit to g}.
    """

    spec: grid.WindowSpec
    limits: Mapping
    wanted: list
    rules: non_wear.Rules
    rates: tuple[str, ...]
    in_g: Mapping[str, float]
    config: PrepareConfig


def prepare_windows(
    wearable_dir: Path,
    out: Path,
    quarantine: Path,
    config: PrepareConfig,
    deidentifier: deidentify.Deidentifier,
    pool: workers.Pool,
) -> tuple[list[dict], dict[str, dict], dict[str, dict]]:
    """Writes OUT/windows/, OUT/window_values/ and OUT/wearers/, one file each per shard.

    Before, artefacts of the rates in config.artefacts are taken out (signals/rate_artefacts.py), channels are made of
    config.acceleration (signals/raw_acceleration.py), and what config.non_wear finds not worn is taken out of all
    (signals/non_wear.py).

    windows/NAME.parquet: subject_id, time (the end), worn_minutes, utc_offset_minutes (signals/local_time.py) and
    summaries of each window, of the logarithm where config.log_channels says so. window_values/NAME.npy: float32
    [windows, steps, channels] in the channels' units. wearers/NAME.parquet: subject_id, first_row, n_windows;
    wearers/NAME.npy: window_dtype [windows]. For each set of config.segments also OUT/segments/SET/NAME.npy,
    segments.dtype [segments], and first_segments_SET, n_segments_SET in wearers/NAME.parquet; with config.quality
    OUT/window_quality/NAME.npy, uint8 [windows, steps, channels].

    Returns:
      (steps [{step, n, dropped, reason}], counts of the manifest, files of the manifest).

    Raises:
      ValueError: a channel that is not declared, or a fault of a file; see wearable.read_subjects.
    """
    table = wearable.read_channels(wearable_dir)
    how = how_of(wearable_dir, table, config)
    shards = wearable.list_shards(wearable_dir)
    folders = [f"segments/{name}" for name in config.segments] + (["window_quality"] if config.quality else [])
    for folder in folders:
        (out / folder).mkdir(parents=True, exist_ok=True)
    jobs = list(zip(shards, shard_names(shards, wearable_dir), strict=True))
    work = functools.partial(
        _one_shard, table=table, how=how, out=out, quarantine=quarantine, deidentifier=deidentifier
    )
    paths = [out / "windows" / f"{name}.json" for _, name in jobs]
    tallies = manifest.run_jobs(work, jobs, paths, out, pool, "wearable")
    _require_one_file_each(wearable_dir, out)
    total = manifest.add_up(t["rows"] for t in tallies)
    reasons = manifest.add_up(t["reasons"] for t in tallies)
    counts = {"in": total["read"], "out": {key: total[key] for key in ("used", "other channels")} | reasons}
    return _steps(total, reasons, config), {"recorded stretches": counts}, manifest.merge_files(tallies)


def how_of(wearable_dir: str | Path, table: pl.DataFrame, config: PrepareConfig) -> How:
    """The How of a dataset; ValueError for channels that it does not declare, or that are not what they must be."""
    declared = wearable.units(table)
    unit_of = specs.made_units(config, declared)
    of_segments = [c for spec in specs.segment_specs(config).values() for c in spec.channels]
    unknown = sorted(({*config.channels} - set(unit_of)) | ({*of_segments, *config.acceleration} - set(declared)))
    if unknown:
        raise ValueError(
            f"{wearable_dir}: no channel {unknown} in metadata/channels.parquet; there are {sorted(declared)}"
        )
    found = {axis: units.conversion(declared[axis], "g") for axis in config.acceleration}
    if other := [axis for axis, conversion in found.items() if conversion is None]:
        raise ValueError(
            f"config.prepare.acceleration names {other[0]!r}, which is in {declared[other[0]]}: no unit of acceleration"
        )
    wanted = derived_features.parse(config.summaries, config.channels, unit_of)
    rules = non_wear.parse(config.non_wear, declared, config.non_wear_minutes)
    in_g, rates = {axis: c[0] for axis, c in found.items() if c}, rate_artefacts.parse(config.artefacts, declared)
    return How(specs.window_spec(config), wearable.plausible_limits(table), wanted, rules, rates, in_g, config)


def _steps(total, reasons, config):
    """What became of the recordings, for the log."""
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
    worn, off = (round(total[key] / 60) for key in ("minutes worn", "minutes not worn"))
    steps.append({"step": "hours of wear", "n": worn, "dropped": off, "reason": _NON_WEAR})
    for key, reason in (overlap.COUNTS | raw_acceleration.COUNTS).items():
        if total[key]:
            steps.append({"step": f"wearable {key}", "n": 0, "dropped": total[key], "reason": reason})
    for key, reason in rate_artefacts.COUNTS.items():
        if config.artefacts:
            step = f"samples of rates that are artefacts: {key}"
            steps.append({"step": step, "n": 0, "dropped": total[key], "reason": reason})
    for key in (raw_acceleration.CALIBRATED, raw_acceleration.NOT_CALIBRATED):
        if config.acceleration:
            steps.append({"step": key, "n": total[key], "dropped": 0, "reason": ""})
    if total["outside"]:
        reason = "no channel of the config covers the window, so it does not exist"
        steps.append({"step": "stretches to sum up", "n": 0, "dropped": total["outside"], "reason": reason})
    for name, spec in config.segments.items():
        kept = f"{name}: segments of {spec.seconds:g} s"
        steps.append({"step": kept, "n": total[f"{name}: segments"], "dropped": 0, "reason": ""})
        for key, reason in segments.DROPPED.items():
            what = f"{name}: segments {key}"
            steps.append({"step": what, "n": 0, "dropped": total[what], "reason": reason})
    return steps + quarantine_counts("wearable", reasons)


def _require_one_file_each(wearable_dir, out):
    paths = sorted((out / "wearers").glob("*.parquet"))
    homes = pl.concat([pl.read_parquet(p).select("subject_id", pl.lit(p.stem).alias("file")) for p in paths])
    twice = homes.filter(pl.col("subject_id").is_duplicated()).sort("subject_id", "file")
    if twice.height:
        subject = twice["subject_id"][0]
        where = " and ".join(twice.filter(pl.col("subject_id") == subject)["file"])
        raise ValueError(f"{wearable_dir}: subject {subject} has wearable rows in more than one file: {where}")


def window_dtype(wanted: list[tuple[str, str]]) -> np.dtype:
    """One window in wearers/NAME.npy: its end, microseconds since the epoch, and what else records have of it."""
    derived = ("derived", "<f4", (len(derived_features.targets(wanted)),))
    return np.dtype([("end", "<i8"), ("worn_minutes", "<i2"), ("utc_offset", "<i2"), derived])


def in_records(derived_MxX: np.ndarray, wanted: list[tuple[str, str]]) -> np.ndarray:
    """The derived features that records have, of all that are made."""
    columns = derived_features.columns(wanted)
    return derived_MxX[:, [columns.index(c) for c in derived_features.targets(wanted)]]


def log_scaled(values: np.ndarray, channels: tuple[str, ...], log_channels: tuple[str, ...]) -> np.ndarray:
    """A copy of values [..., channels] with log(1 + x) of the log channels, of which negative values count as 0."""
    out = values.copy()
    for channel in set(log_channels) & set(channels):
        at = channels.index(channel)
        out[..., at] = np.log1p(np.maximum(values[..., at], 0.0))
    return out


class Windows(NamedTuple):
    """Windows of one person: int64 ends, float32 values and derived features, int16 worn minutes and UTC offsets."""

    end_M: np.ndarray
    window_MxLxC: np.ndarray
    derived_MxX: np.ndarray
    worn_M: np.ndarray
    offset_M: np.ndarray


class _Shard:
    """The outputs of one file of recordings, open for people to be added to them."""

    def __init__(self, name, how, out, stack) -> None:
        self.spec, self.wanted, self.config = how.spec, how.wanted, how.config
        wanted, config = how.wanted, how.config
        self.waiting: list[tuple[np.ndarray, Windows]] = []
        self.windows, self.people = (out / folder / f"{name}.parquet" for folder in ("windows", "wearers"))
        shape, self.arrays, self.append = (self.spec.steps, len(self.spec.channels)), {}, {}
        kinds: dict[str, tuple[tuple[int, ...], Any]] = {"window_values": (shape, np.float32)}
        kinds["wearers"] = (), window_dtype(wanted)
        if config.quality:
            kinds["window_quality"] = (shape, np.uint8)
        kinds |= {f"segments/{name}": ((), segments.dtype(spec)) for name, spec in config.segments.items()}
        for folder, (row_shape, dtype) in kinds.items():
            self.arrays[folder] = out / folder / f"{name}.npy"
            self.append[folder] = stack.enter_context(npy.writing_rows(self.arrays[folder], row_shape, dtype))
        self._append_table = stack.enter_context(writing_table(self.windows))

    def add(self, subject: int, windows: Windows) -> None:
        """Takes one person's windows."""
        self.waiting.append((np.full(len(windows.end_M), subject, np.int64), windows))
        if sum(len(ids) for ids, _ in self.waiting) >= _WINDOWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting."""
        waiting = [(np.zeros(0, np.int64), _no_windows(self.spec, self.wanted)), *self.waiting]
        id_M = np.concatenate([ids for ids, _ in waiting])
        windows = Windows(*map(np.concatenate, zip(*(w for _, w in waiting), strict=True)))
        row_M = np.zeros(len(id_M), window_dtype(self.wanted))
        row_M["end"], row_M["worn_minutes"], row_M["utc_offset"] = windows.end_M, windows.worn_M, windows.offset_M
        row_M["derived"] = in_records(windows.derived_MxX, self.wanted)
        self.append["window_values"](windows.window_MxLxC)
        self.append["wearers"](row_M)
        logged = log_scaled(windows.window_MxLxC, self.spec.channels, self.config.log_channels)
        self._append_table(_frame(id_M, windows._replace(window_MxLxC=logged), self.spec, self.wanted))
        self.waiting.clear()

    def arrays_by_column(self) -> dict[str, tuple[str, list[Path]]]:
        """{column of where a person's rows begin: (column of their number, arrays)}."""
        windows = ("window_values", "wearers", "window_quality")
        found = {"first_row": ("n_windows", [self.arrays[k] for k in windows if k in self.arrays])}
        for name in self.config.segments:
            found[f"first_segments_{name}"] = f"n_segments_{name}", [self.arrays[f"segments/{name}"]]
        return found


def _one_shard(job, table, how, out, quarantine, deidentifier):
    """Writes the windows of one file of recordings, a few people at a time; its tally comes last."""
    path, name = job
    config, wearers, n_rows = how.config, [], dict.fromkeys(how.config.segments, 0)
    aside: list = []
    kinds = [f"{set_}: segments{key}" for set_ in config.segments for key in ("", *(f" {k}" for k in segments.DROPPED))]
    counted = {"used": 0, "other channels": 0, "windows": 0, "outside": 0, "minutes worn": 0, "minutes not worn": 0}
    counted |= dict.fromkeys((*overlap.COUNTS, *kinds, *rate_artefacts.COUNTS, *raw_acceleration.COUNTS), 0)
    counted |= dict.fromkeys((raw_acceleration.CALIBRATED, raw_acceleration.NOT_CALIBRATED), 0)
    with contextlib.ExitStack() as stack:
        shard = _Shard(name, how, out, stack)
        for subject, rows in wearable.read_subjects(path, table, specs.time_bounds(config), aside):
            subject, rows = deidentifier.recordings(subject, rows)
            stretches, windows = of_person(rows, how, counted)
            wearer = [subject, counted["windows"], len(windows.end_M)]
            if config.quality:
                quality = grid_quality.of_person(stretches, windows.end_M, how.spec, how.limits)
                shard.append["window_quality"](quality)
            for set_, segment_spec in config.segments.items():
                found_R, dropped = segments.of_person(stretches, *windows[:2], how.spec, how.limits, segment_spec)
                wearer += [n_rows[set_], len(found_R)]
                n_rows[set_] += len(found_R)
                shard.append[f"segments/{set_}"](found_R)
                dropped = {f"{set_}: segments {key}": n for key, n in dropped.items()}
                counted = manifest.add_up([counted, dropped, {f"{set_}: segments": len(found_R)}])
            wearers.append(tuple(wearer))
            counted["windows"] += len(windows.end_M)
            shard.add(subject, windows)
        shard.flush()
    bad = deidentifier.recordings_aside(pl.concat(aside))
    return _finish(job, shard, wearers, counted, bad, quarantine / f"wearable__{name}.parquet", out)


def _finish(job, shard, wearers, counted, bad, bad_path, out):
    """Writes the people of a file, its quarantined rows and, last, its tally, which is returned."""
    path, name = job
    by_column = shard.arrays_by_column()
    columns = ["subject_id", *(c for first, (number, _) in by_column.items() for c in (first, number))]
    order = pl.DataFrame(wearers, dict.fromkeys(columns, pl.Int64), orient="row")
    if shard.config.pseudonymise:
        order = _in_order_of_pseudonyms(order, shard.windows, by_column)
    write_frame(order, shard.people)
    set_aside(bad, bad_path)
    written = [shard.windows, shard.people, *shard.arrays.values(), *([bad_path] if bad.height else [])]
    tally = {
        "rows": counted | {"read": pq.read_metadata(path).num_rows},
        "reasons": count_reasons(bad),
        "files": manifest.fingerprints(out, written),
    }
    write_json(tally, out / "windows" / f"{name}.json")
    return tally


def _in_order_of_pseudonyms(wearers, windows, by_column):
    """Sorts the people of a file anew, as their first order would tell that of the ids; returns the sorted wearers."""
    table = wearers.sort("subject_id")
    write_frame(pl.read_parquet(windows).sort("subject_id", maintain_order=True), windows)
    for first, (number, arrays) in by_column.items():
        for path in arrays:
            with npy.OpenRows() as opened, npy.writing_rows(path, opened[path].shape[1:], opened[path].dtype) as append:
                for begin, n in table.select(first, number).iter_rows():
                    append(opened[path].read(begin, n))
        table = table.with_columns((pl.col(number).cum_sum() - pl.col(number)).alias(first))
    return table


def _no_windows(spec, wanted):
    """Zero windows."""
    derived = np.zeros((0, len(derived_features.columns(wanted))), np.float32)
    values = np.zeros((0, spec.steps, len(spec.channels)), np.float32)
    return Windows(np.zeros(0, np.int64), values, derived, *np.zeros((2, 0), np.int16))


def of_person(rows: pl.DataFrame, how: How, counted: dict[str, int]) -> tuple[list[Stretch], Windows]:
    """(stretches without artefacts and what was not worn, windows) of one person.

    A window is made of what was recorded up to its end.

    Args:
      rows: as wearable_checks.screen returns them. counted: where what was done is counted; every count is there.
    """
    spec, limits, wanted, rules, config = how.spec, how.limits, how.wanted, how.rules, how.config
    of_segments = (channel for segment_spec in config.segments.values() for channel in segment_spec.channels)
    shown = dict.fromkeys([*config.channels, *(channel for channel, _ in wanted), *of_segments])
    used = rows.filter(pl.col("channel").is_in([*shown, *rules.channels, *config.acceleration]))
    counted["used"] += used.height
    counted["other channels"] += rows.height - used.height
    recorded = _recorded(used, how, counted)
    worn = non_wear.remove(recorded, rules, spec.window_us, limits)
    minutes = non_wear.recorded_minutes(worn, rules, spec.window_us, limits)
    whole = minutes
    if any(a is not b for a, b in zip(worn, recorded, strict=True)):
        whole = non_wear.recorded_minutes(recorded, rules, spec.window_us, limits)
    counted["minutes worn"] += int(minutes[1].sum())
    counted["minutes not worn"] += int(whole[1].sum() - minutes[1].sum())
    stretches = [row for row in worn if row.channel in shown]
    end, window, resolved = grid.window_person(stretches, spec, limits)
    derived, n_outside = derived_features.of_person(stretches, end, window, spec, limits, wanted)
    counted["outside"] += n_outside
    for key, n in resolved.items():
        counted[key] += n
    worn_M = non_wear.minutes_of_windows(minutes, end)
    return stretches, Windows(end, window, derived, worn_M, local_time.offsets(recorded, end))


def _recorded(used, how, counted):
    """One person's stretches without artefacts of rates, and those made of raw acceleration; counts them."""
    stretches, window_us = wearable.stretches(used), how.spec.window_us
    made, found = list[Stretch](), [dict[str, int]()]
    if how.rates:
        stretches, taken_out = rate_artefacts.remove(stretches, how.rates, window_us, how.limits)
        found.append(taken_out)
    if how.in_g:
        axes = how.config.acceleration
        made, of_axes = raw_acceleration.of_person(stretches, axes, how.in_g, window_us, how.limits)
        found.append(of_axes)
    for key, n in manifest.add_up(found).items():
        counted[key] += n
    return [*stretches, *made]


def _frame(id_M, windows, spec, wanted):
    """subject_id, time, worn_minutes, utc_offset_minutes, and CHANNEL__STATISTIC of each window."""
    columns = {"subject_id": id_M, "time": pl.Series(windows.end_M).cast(pl.Datetime("us"))}
    columns |= {"worn_minutes": windows.worn_M, "utc_offset_minutes": windows.offset_M}
    for stat, x in summaries.window_summaries(windows.window_MxLxC).items():
        for i, c in enumerate(spec.channels):
            columns[f"{c}__{stat}"] = pl.Series(x[:, i]).fill_nan(None)
    for i, column in enumerate(derived_features.columns(wanted)):
        columns[column] = pl.Series(windows.derived_MxX[:, i]).fill_nan(None)
    return pl.DataFrame(columns)
