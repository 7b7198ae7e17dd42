"""Labels the physiology of the days after a prediction time, from the wearable tables.

A label at time t uses only samples that begin at or after t and end within the period: none of it is complete at t, so
the input, which knows a sample at its end, has none of it. A person gets a label only with enough usable days in the
period, and prediction times only where they wore something around them (paper, sections 4.1 and A.3: targets come from
the device). That selects by later wear, as any target from a device does.

Nights, hours of the day and calendar days are those of the local clock, where stretches have offsets; periods and
prediction times are on the clock of start_time.
"""

from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from ehrwear_jax.config.labels import PhysiologyConfig
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.formats.meds_checks import TimeBounds
from ehrwear_jax.data.formats.parquet import Schema
from ehrwear_jax.data.formats.stretches import Limits, Stretch, sample_edges
from ehrwear_jax.data.formats.times import DAY_US, MINUTE_US
from ehrwear_jax.data.signals import derived_features, grid, local_time, rest_activity, rhythm

LABEL_SCHEMA: Schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "float_value": pl.Float32}
_RHYTHM = {
    "activity_regularity": rhythm.interdaily_stability,
    "intradaily_variability": rhythm.intradaily_variability,
    "relative_amplitude": rhythm.relative_amplitude,
    "activity_entropy": rhythm.activity_entropy,
}


def label_wearables(
    wearable_dir: Path, config: PhysiologyConfig, *, seed: int, bounds: TimeBounds
) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
    """Physiological labels of everyone with wearable recordings.

    Args:
      wearable_dir: wearable tables.
      config: what is labelled, and how much wear that takes.
      seed: of the prediction times; a person's depend on nothing else but their own recordings.
      bounds: which times can be; rows that prepare sets aside are left out.

    Returns:
      ({task: LABEL_SCHEMA, sorted, rows without enough usable days left out}, (subject_id, prediction_time) of all
      prediction times, sorted).

    Raises:
      ValueError: a channel that the data do not declare; or as wearable.read_subjects.
    """
    table = wearable.read_channels(wearable_dir)
    if unknown := set(config.channels()) - set(table["channel"]):
        raise ValueError(
            f"config.labels.physiology: no channel {sorted(unknown)} in {wearable_dir}/metadata/channels.parquet; "
            f"there are {sorted(table['channel'])}"
        )
    limits = wearable.plausible_limits(table)
    keys, values = [], []
    for path in tqdm(wearable.list_shards(wearable_dir), "physiology", unit="shard", disable=None):
        for subject, rows in wearable.read_subjects(path, table, bounds, []):
            stretches = wearable.stretches(rows.filter(pl.col("channel").is_in(config.channels())))
            for time_us in draw_times(stretches, subject, config, seed):
                keys.append((subject, time_us))
                values.append([label(stretches, time_us, days, config, limits) for days in config.period_days])
    whole = pl.DataFrame(keys, {"subject_id": pl.Int64, "prediction_time": pl.Int64}, orient="row")
    whole = whole.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    out = {}
    for measure in config.measures:
        for k, days in enumerate(config.period_days):
            column = pl.Series("float_value", [v[k][measure] for v in values], pl.Float64).cast(pl.Float32)
            labels = whole.with_columns(column).filter(pl.col("float_value").is_finite())
            out[f"{measure}_{days}d"] = labels.sort("subject_id", "prediction_time").select(list(LABEL_SCHEMA))
    return out, whole.sort("subject_id", "prediction_time")


def draw_times(stretches: list[Stretch], subject: int, config: PhysiologyConfig, seed: int) -> list[int]:
    """Midnights (us), without replacement, of those that wear precedes and follows.

    Wear begins min_history_days or more before, and min_days of the days of the longest period have a recording.
    """
    if not stretches:
        return []
    n_period = int(max(config.period_days))
    first_us = min(row.start_us for row in stretches)
    last_us = [row.start_us + int(len(row.values_N) * 1e6 / row.rate_hz) - 1 for row in stretches]
    origin, n_days = first_us // DAY_US, max(last_us) // DAY_US - first_us // DAY_US + 1
    worn_D = np.zeros(n_days + n_period, np.int64)
    for row, end_us in zip(stretches, last_us, strict=True):
        worn_D[row.start_us // DAY_US - origin : end_us // DAY_US - origin + 1] = 1
    total = np.concatenate([[0], np.cumsum(worn_D)])
    follows_D = total[n_period : n_period + n_days] - total[:n_days] >= config.min_days
    day_D = origin + np.arange(n_days)
    candidates = day_D[follows_D & (day_D * DAY_US >= first_us + config.min_history_days * DAY_US)]
    rng = np.random.default_rng((seed, subject & (2**64 - 1)))
    drawn = rng.choice(len(candidates), min(config.per_subject, len(candidates)), replace=False)
    return [int(day) * DAY_US for day in candidates[np.sort(drawn)]]


def label(
    stretches: list[Stretch], begin_us: int, days: float, config: PhysiologyConfig, limits: Limits
) -> dict[str, float]:
    """{measure: value, NaN without enough usable days} of one period.

    Args:
      stretches: one person's recordings.
      begin_us: the prediction time.
      days: length of the period.
      config: what is labelled.
      limits: plausible range of each channel.
    """
    end_us = begin_us + int(days * DAY_US)
    rows = _inside(stretches, begin_us, end_us)
    out = {}
    if "hrv_rmssd" in config.measures:
        out["hrv_rmssd"] = _hrv(rows, begin_us, end_us, config, limits)
    if set(config.measures) - {"hrv_rmssd"}:
        shift_us = [(row.utc_offset_minutes or 0) * MINUTE_US for row in rows] or [0]
        local = local_time.on_local_clock(rows), begin_us + min(shift_us), end_us + max(shift_us)
        out |= _of_activity(*local, config, limits)
    return {name: out[name] for name in config.measures}


def _inside(stretches: list[Stretch], begin_us: int, end_us: int) -> list[Stretch]:
    """The stretches cut to the samples that begin at or after begin_us and end at or before end_us."""
    cut = []
    for row in stretches:
        if row.start_us >= end_us or row.start_us + len(row.values_N) * (1e6 / row.rate_hz) <= begin_us:
            continue
        edge_us = sample_edges(row.start_us, row.rate_hz, len(row.values_N))
        first = int(np.searchsorted(edge_us[:-1], begin_us, side="left"))
        last = int(np.searchsorted(edge_us[1:], end_us, side="right"))
        if first < last:
            cut.append(row._replace(start_us=int(edge_us[first]), values_N=row.values_N[first:last]))
    return cut


def _by_minute(rows: list[Stretch], channels: list[str], begin_us: int, end_us: int, limits: Limits) -> np.ndarray:
    """float32 [T, C] per minute of the whole days around the period; NaN where nothing was observed."""
    spec = grid.WindowSpec(tuple(channels), window_hours=24, step_minutes=1, min_coverage=0.0)
    end_M, values_MxLxC, _ = grid.window_person(rows, spec, limits)
    first_day, n_days = begin_us // DAY_US, -(-end_us // DAY_US) - begin_us // DAY_US
    value_DxLxC = np.full((n_days, spec.steps, len(channels)), np.nan, np.float32)
    value_DxLxC[end_M // DAY_US - 1 - first_day] = values_MxLxC
    return value_DxLxC.reshape(n_days * spec.steps, len(channels))


def _hrv(rows: list[Stretch], begin_us: int, end_us: int, config: PhysiologyConfig, limits: Limits) -> float:
    """RMSSD, ms: mean over the period's days of the median of each."""
    if config.hrv_kind == "rmssd":
        value_T = _by_minute(rows, [config.hrv_channel], begin_us, end_us, limits)[:, 0]
    else:
        step_us = config.hrv_minutes * MINUTE_US
        step_T = np.arange(begin_us // DAY_US * DAY_US, -(-end_us // DAY_US) * DAY_US, step_us)
        wanted = config.hrv_channel, config.hrv_kind
        found, _ = derived_features.of_signal(rows, step_T + step_us, step_us, limits, *wanted)
        value_T = found[:, derived_features.KINDS[config.hrv_kind].index("rmssd_ms")]
    # days are counted from the prediction, which need not be midnight
    per_day = len(value_T) // (-(-end_us // DAY_US) - begin_us // DAY_US)
    offset = int((begin_us % DAY_US) * per_day // DAY_US)
    of_day = [value_T[i : i + per_day] for i in range(offset, len(value_T), per_day)]
    of_day = [v[np.isfinite(v)] for v in of_day]
    medians = [np.median(v) for v in of_day if len(v) >= config.min_hrv_values]
    return float(np.mean(medians)) if len(medians) >= config.min_days else np.nan


def _of_activity(
    rows: list[Stretch], begin_us: int, end_us: int, config: PhysiologyConfig, limits: Limits
) -> dict[str, float]:
    """The measures of sleep, rest and rhythm; rows, and where they lie, on the local clock."""
    channels = [c for c in (config.activity_channel, config.heart_rate_channel) if c]
    value_TxC = _by_minute(rows, channels, begin_us, end_us, limits)
    counts_T = value_TxC[:, 0].astype(np.float64)
    heart_T = value_TxC[:, -1] if config.heart_rate_channel else np.full(len(counts_T), np.nan)
    if config.non_wear_minutes:
        # a minute with a heart rate counts like one with movement, as in signals/non_wear.py
        moved_T = np.where(np.isfinite(heart_T) & (counts_T == 0), 1.0, counts_T)
        off_T = rest_activity.non_wear_counts(moved_T, config.non_wear_minutes)
        counts_T = np.where(off_T, np.nan, counts_T)
    out: dict[str, float] = {}
    asleep_T = rest_activity.asleep_counts(counts_T, config.counts_scale, config.counts_cap)
    if "sleep_efficiency" in config.measures:
        nights = rest_activity.sleep_windows(asleep_T, start_minute=0)
        of_night = rest_activity.sleep_efficiency(asleep_T, nights)
        of_night = of_night[np.isfinite(of_night)]
        out["sleep_efficiency"] = float(of_night.mean()) if len(of_night) >= config.min_days else np.nan
    hours_DxP = rhythm.by_day(counts_T, start_minute=0)
    usable_D = np.isfinite(hours_DxP).mean(axis=1) >= config.min_day_share
    enough = usable_D.sum() >= config.min_days
    hours_DxP[~usable_D] = np.nan  # in its place, so that no two days become neighbours
    for name in config.measures:
        if name in _RHYTHM:
            out[name] = _RHYTHM[name](hours_DxP) if enough else np.nan
    if "resting_heart_rate" in config.measures:
        rate = rest_activity.resting_heart_rate(heart_T, counts_T, config.still_counts, asleep_T)
        out["resting_heart_rate"] = rate if enough else np.nan
    return out
