"""prepare, the wearable part: recorded stretches -> windows on a regular grid and their summaries."""

import json

import numpy as np
import polars as pl
from tqdm import tqdm

from ehrwear_jax.data import overlap, signal, wearable, window_summaries
from ehrwear_jax.data.quarantine import count_reasons, quarantine_counts, set_aside
from ehrwear_jax.data.tables import shard_names, write_frame, write_json, writing


def prepare_windows(wearable_dir, out, quarantine, config):
    """Writes OUT/windows/ and OUT/window_values/, one file each per shard.

    Returns:
      Counts: list of {step, n, dropped, reason}.

    Raises:
      ValueError: a channel that is not declared, or a fault of a file; see wearable.read_subjects.
    """
    table = wearable.read_channels(wearable_dir)
    known = set(table["channel"])
    if unknown := set(config.channels) - known:
        raise ValueError(
            f"{wearable_dir}: no channel {sorted(unknown)} in metadata/channels.parquet; there are {sorted(known)}"
        )
    limits = {r["channel"]: (r["valid_min"], r["valid_max"]) for r in table.iter_rows(named=True)}
    window_summaries.parse(config.summaries, config.channels, known)
    shards = wearable.list_shards(wearable_dir)
    total = {"rows": 0, "other channels": 0, "set aside": 0, "windows": 0, "outside": 0}
    total |= dict.fromkeys(overlap.COUNTS, 0)
    reasons = {}
    for path, name in zip(
        tqdm(shards, "wearable", unit="shard", disable=None), shard_names(shards, wearable_dir), strict=True
    ):
        tally = out / "windows" / f"{name}.json"
        if not tally.exists():
            write_json(_one_shard(path, name, table, limits, out, quarantine, config), tally)
        counted = json.loads(tally.read_text())
        for reason, n in counted.pop("reasons").items():
            reasons[reason] = reasons.get(reason, 0) + n
        for key, n in counted.items():
            total[key] += n
    _require_one_file_each(wearable_dir, out)
    report = [
        {
            "step": f"wearable windows of {config.window_hours} h",
            "n": total["windows"],
            "dropped": total["other channels"] + total["set aside"],
            "reason": f"{total['rows']:,} recorded stretches read = "
            f"{total['rows'] - total['other channels'] - total['set aside']:,} used + {total['other channels']:,} of "
            f"channels that the config does not use + {total['set aside']:,} quarantined",
        }
    ]
    for key, reason in overlap.COUNTS.items():
        if total[key]:
            report.append({"step": f"wearable {key}", "n": 0, "dropped": total[key], "reason": reason})
    if total["outside"]:
        reason = "no channel of the config covers the window, so it does not exist"
        report.append({"step": "stretches to sum up", "n": 0, "dropped": total["outside"], "reason": reason})
    return report + quarantine_counts("wearable", reasons)


def _require_one_file_each(wearable_dir, out):
    paths = sorted((out / "windows").glob("*.parquet"))
    homes = pl.concat(
        [pl.read_parquet(p, columns=["subject_id"]).unique().with_columns(pl.lit(p.stem).alias("file")) for p in paths]
    )
    twice = homes.filter(pl.col("subject_id").is_duplicated()).sort("subject_id", "file")
    if twice.height:
        subject = twice["subject_id"][0]
        where = " and ".join(twice.filter(pl.col("subject_id") == subject)["file"])
        raise ValueError(f"{wearable_dir}: subject {subject} has wearable rows in more than one file: {where}")


def _one_shard(path, name, table, limits, out, quarantine, config):
    """Writes the windows of one file of recordings; returns its counts."""
    spec, aside = config.window_spec(), []
    wanted = window_summaries.parse(config.summaries, config.channels)
    needed = list(dict.fromkeys([*config.channels, *(channel for channel, _ in wanted)]))
    counted = {"rows": 0, "other channels": 0, "windows": 0, "outside": 0} | dict.fromkeys(overlap.COUNTS, 0)
    ids, ends, values, further = [], [], [], []
    for subject, rows in wearable.read_subjects(path, table, config.time_bounds(), aside):
        used = rows.filter(pl.col("channel").is_in(needed))
        counted["rows"] += rows.height
        counted["other channels"] += rows.height - used.height
        stretches = wearable.stretches(used)
        end, window, resolved = signal.window_person(stretches, spec, limits)
        summed, n_outside = window_summaries.of_person(stretches, end, window, spec, limits, wanted)
        counted["outside"] += n_outside
        for key, n in resolved.items():
            counted[key] += n
        for c in set(config.log_channels) & set(config.channels):
            at = spec.channels.index(c)
            window[..., at] = np.log1p(np.maximum(window[..., at], 0.0))
        ids.append(np.full(len(end), subject, np.int64))
        ends.append(end)
        values.append(window)
        further.append(summed)
    window = np.concatenate(values) if values else np.zeros((0, spec.steps, len(spec.channels)), np.float32)
    columns = {
        "subject_id": np.concatenate(ids) if ids else np.zeros(0, np.int64),
        "time": pl.Series(np.concatenate(ends) if ends else np.zeros(0, np.int64)).cast(pl.Datetime("us")),
    }
    for stat, x in signal.summaries(window).items():
        for i, c in enumerate(spec.channels):
            columns[f"{c}__{stat}"] = pl.Series(x[:, i]).fill_nan(None)
    for i, column in enumerate(window_summaries.columns(wanted)):
        columns[column] = pl.Series(np.concatenate([np.zeros(0, np.float32), *(x[:, i] for x in further)])).fill_nan(
            None
        )
    with writing(out / "window_values" / f"{name}.npy") as partial, open(partial, "wb") as f:
        np.save(f, window)
    write_frame(pl.DataFrame(columns), out / "windows" / f"{name}.parquet")
    bad = pl.concat(aside)
    set_aside(bad, quarantine / f"wearable__{name}.parquet")
    return counted | {
        "rows": counted["rows"] + bad.height,
        "set aside": bad.height,
        "windows": len(window),
        "reasons": count_reasons(bad),
    }
