"""Changes records as evaluation asks: shorter histories, one modality only, noisier or interrupted signals.

Paper, section 4.6. Each function returns a transform `(record, time_us) -> record` for a
prediction at `time_us`, on physical units; what acts on a model's scale takes the store's scales. What is taken away is
missing, not zero. A transform is a function of its arguments, the seed and the part of the record that is known at
`time_us`: nothing later changes it. A record without a birth date then begins with the first time that is left, else
with the prediction: the age, counted from the first record, would otherwise tell when what is gone began.

Axes: K events, M windows, L steps, C channels, R segments.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from ehrwear_jax.data.formats.times import DAY_US, MINUTE_US
from ehrwear_jax.data.store import Record, RecordStore, Scales

Transform = Callable[[Record, int], Record]

# The paper's failure cases (sections 4.5 and 4.7): fewer clinic encounters in the prior year are a sparse EHR, fewer
# days of wearable data short wear. A day of wear has as many hours as one that lets people in (CohortConfig).
MIN_ENCOUNTERS, MIN_WEAR_DAYS, MIN_WEAR_HOURS = 2, 14, 12.0


def _begin(record, time_us):
    """The record, of which something was taken away, as one that begins no later than the prediction."""
    is_empty = not len(record.time_K) and not len(record.window_end_M)  # then first_us is the end of follow-up
    return dataclasses.replace(record, first_us=int(time_us) if is_empty else min(record.first_us, int(time_us)))


# ------------------------------------------------------------------------------------------------- less of the record


def truncate(days: float) -> Transform:
    """Only what became known in the last `days` before the prediction; static events and the birth date stay."""
    if not days > 0:
        raise ValueError(f"a history of {days} days; it must be positive")

    def apply(record, time_us):
        begin_us = time_us - int(days * DAY_US)
        keep_M, keep_K = record.window_end_M > begin_us, record.time_K > begin_us
        segments = {name: found.select(found.end_us_R > begin_us) for name, found in record.segments.items()}
        if keep_M.all() and keep_K.all():
            return dataclasses.replace(record, segments=segments)
        return _begin(record.select_windows(keep_M, segments).select_events(keep_K), time_us)

    return apply


def drop_wear() -> Transform:
    """No wearable at inference."""
    return lambda record, time_us: _begin(record.without_wear(), time_us)


def drop_ehr() -> Transform:
    """No EHR at inference: no events, no static events and no birth date. Nothing at all may be left."""
    return lambda record, time_us: _begin(record.without_ehr(), time_us)


def drop_codes(matches: Callable[[np.ndarray], np.ndarray]) -> Transform:
    """No events of some codes up to the prediction, static ones included.

    Args:
      matches: code_id int [K] -> bool [K]; see `code_matcher`.
    """

    def apply(record, time_us):
        gone_K = matches(record.code_K) & (record.time_K <= time_us)
        left_S = ~matches(record.static_code_S)
        if not gone_K.any() and left_S.all():
            return record
        return _begin(record.select_events(~gone_K, left_S), time_us)

    return apply


def code_matcher(codes: pl.DataFrame, prefixes: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    """Which code_ids are of a code that starts with one of the prefixes; codes: those of a RecordStore."""
    table_C = np.array([c.startswith(tuple(prefixes)) for c in codes["code"].to_list()], bool)
    return lambda code_K: table_C[code_K]


def _in_period(time_N, time_us, begin_days, end_days):
    """Times in (prediction - begin, prediction - end]."""
    before_days_N = (time_us - time_N) / DAY_US
    return (before_days_N < begin_days) & (before_days_N >= end_days)


# ------------------------------------------------------------------------------------------------- another signal


def _with_windows(record, window_MxLxC, time_us):
    """Another signal of the grid, of which segments lose what it lost; windows in which nothing is left are gone.

    A segment is gone where its step has lost all channels, and its own channel where that is on the grid and lost.
    """
    before, after = (np.isfinite(x) for x in (record.window_MxLxC, window_MxLxC))
    segments = {}
    for name, found in record.segments.items():
        window_R = record.window_of(found.start_us_R)
        inside = np.flatnonzero(window_R >= 0)
        step_us = record.window_us // window_MxLxC.shape[1]
        begin_us = record.window_end_M[window_R[inside]] - record.window_us
        at = window_R[inside], (found.start_us_R[inside] - begin_us) // step_us
        gone_R = np.zeros(len(window_R), bool)
        gone_R[inside] = before[at].any(axis=1) & ~after[at].any(axis=1)
        values = found.values_RxSxA
        for a, channel in enumerate(found.channels):
            if channel in record.channels:
                c = record.channels.index(channel)
                lost = inside[before[at][:, c] & ~after[at][:, c]]
                if len(lost):
                    values = values.copy()
                    values[lost, :, a] = np.nan
        segments[name] = found._replace(values_RxSxA=values).select(~gone_R)
    lost_M = before.any((1, 2)) & ~after.any((1, 2))
    changed = dataclasses.replace(record, window_MxLxC=window_MxLxC, segments=segments)
    return _begin(changed.select_windows(~lost_M, segments), time_us) if lost_M.any() else changed


def occlude_channels(channels: Sequence[str], begin_days: float, end_days: float) -> Transform:
    """Channels not measured in the windows that end from `begin_days` to `end_days` before the prediction."""

    def apply(record, time_us):
        at = [record.channels.index(c) for c in channels]
        inside_M = _in_period(record.window_end_M, time_us, begin_days, end_days)
        window_MxLxC = record.window_MxLxC.copy()
        window_MxLxC[np.ix_(inside_M, np.arange(window_MxLxC.shape[1]), at)] = np.nan
        return _with_windows(record, window_MxLxC, time_us)

    return apply


def add_to_channel(channel: str, amount: float, scales: Scales, begin_days: float = np.inf) -> Transform:
    """What if a channel had been higher by `amount` from `begin_days` before the prediction up to it.

    Args:
      amount: standard deviations of the training windows on the model's scale.
      scales: a store's.
    """

    def apply(record, time_us):
        c = record.channels.index(channel)
        inside_M = _in_period(record.window_end_M, time_us, begin_days, 0.0)
        window_MxLxC = record.window_MxLxC.copy()
        raised = scales.standardise(window_MxLxC[inside_M])
        raised[..., c] += np.float32(amount)
        window_MxLxC[inside_M, :, c] = scales.restore(raised)[..., c]
        return dataclasses.replace(record, window_MxLxC=window_MxLxC)

    return apply


def noise_variance(window_MxLxC: np.ndarray) -> np.ndarray:
    """Variance of the white noise in a recording, per channel: the estimator of Gasser, Sroka and Jennen-Steinmetz.

    2/3 of the mean square of x_i - (x_{i-1} + x_{i+1}) / 2 over the observed triples of steps inside a window
    (Biometrika 73, 1986): whatever is linear over three steps counts as signal, the rest as noise.

    Returns:
      float64 [C]; 0 where no triple is observed.
    """
    x = np.asarray(window_MxLxC, np.float64)
    if x.shape[1] < 3:
        return np.zeros(x.shape[2])
    residual = x[:, 1:-1] - 0.5 * (x[:, :-2] + x[:, 2:])
    seen = np.isfinite(residual)
    return np.square(np.where(seen, residual, 0.0)).sum((0, 1)) * (2 / 3) / np.maximum(seen.sum((0, 1)), 1)


def _recording_rng(record, seed, purpose):
    """A Generator of the recording: the same noise at every prediction for a person, other noise for other people."""
    first = np.ascontiguousarray(record.window_MxLxC[:1]).tobytes() + record.window_end_M[:1].tobytes()
    return np.random.default_rng([seed, purpose, zlib.crc32(first)])


def add_noise(drop_db: float, scales: Scales, *, mode: str = "relative", seed: int = 0) -> Transform:
    """Gaussian noise on every observed step, so that the signal-to-noise ratio falls by `drop_db`.

    relative: the recording's own noise, see `noise_variance`, becomes 10 ** (drop_db / 10) times as strong: for 6 dB
      noise of 2.98 times its power is added. The paper's "SNR reduced by 6 dB".
    absolute: a stress test. The noise added has 10 ** (drop_db / 10) times the *whole* variance of the recording, as if
      it had been clean: an SNR of -6 dB for 6.

    Per channel, over the windows known at the prediction, on the model's scale (logarithms for log channels), on which
    the noise is Gaussian; segments likewise, on the scale on which they are stored.

    Args:
      scales: a store's, of the channels.

    Raises:
      ValueError: another mode; a drop that is not positive.
    """
    if mode not in ("relative", "absolute") or not drop_db > 0:
        raise ValueError(f"noise of {drop_db} dB, mode {mode!r}: it must be positive, relative or absolute")

    def apply(record, time_us):
        known_M = record.window_end_M <= time_us
        if not known_M.any():
            return record
        window_MxLxC = record.window_MxLxC.copy()
        worse = _worsen(scales.standardise(window_MxLxC[known_M]), drop_db, mode, _recording_rng(record, seed, 0))
        window_MxLxC[known_M] = scales.restore(worse)
        segments = {}
        for k, (name, found) in enumerate(sorted(record.segments.items())):
            known_R = found.end_us_R <= time_us
            values = found.values_RxSxA.copy()
            values[known_R] = _worsen(values[known_R], drop_db, mode, _recording_rng(record, seed, 2 + k))
            segments[name] = found._replace(values_RxSxA=values)
        return dataclasses.replace(record, window_MxLxC=window_MxLxC, segments=segments)

    return apply


def _worsen(known_MxLxC, drop_db, mode, rng):
    """The signal with noise, see add_noise; windows are in time order, so a later one changes no earlier draw."""
    if mode == "relative":
        variance_C = noise_variance(known_MxLxC) * (10 ** (drop_db / 10) - 1)
    else:
        seen = np.isfinite(known_MxLxC)
        count_C = np.maximum(seen.sum((0, 1)), 1)
        mean_C = np.where(seen, known_MxLxC, 0.0).sum((0, 1), dtype=np.float64) / count_C
        square_C = np.where(seen, (known_MxLxC - mean_C) ** 2, 0.0).sum((0, 1))
        variance_C = square_C / count_C * 10 ** (drop_db / 10)
    noise = rng.standard_normal(known_MxLxC.shape, np.float32)
    return known_MxLxC + noise * np.sqrt(variance_C).astype(np.float32)


def missing_stretch(share: float, *, seed: int = 0) -> Transform:
    """One contiguous stretch of the recorded steps before the prediction is not there, `share` of them, at random.

    Steps are counted along the windows in time order, days without a recording left out. Windows that lose everything
    are gone.

    Raises:
      ValueError: a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"a missing share of {share}; it must lie between 0 and 1")

    def apply(record, time_us):
        known_M = np.flatnonzero(record.window_end_M <= time_us)
        n_steps = record.window_MxLxC.shape[1]
        total = len(known_M) * n_steps
        length = round(share * total)
        if not length:
            return record
        begin = int(_recording_rng(record, seed, 1).random() * (total - length + 1))
        step_ML = np.arange(total).reshape(len(known_M), n_steps)
        gone_ML = (step_ML >= begin) & (step_ML < begin + length)
        window_MxLxC = record.window_MxLxC.copy()
        window_MxLxC[known_M] = np.where(gone_ML[..., None], np.nan, window_MxLxC[known_M])
        return _with_windows(record, window_MxLxC, time_us)

    return apply


# ------------------------------------------------------------------------------------------------- the failure group


def failure_flags(
    store: RecordStore | Sequence[Record],
    index_N: Sequence[int],
    time_us_N: Sequence[int],
    min_wear_hours: float = MIN_WEAR_HOURS,
    is_encounter: Callable[[np.ndarray], np.ndarray] | None = None,
) -> pl.DataFrame:
    """Whom the paper's failure cases cover at each prediction: sparse EHR, short wear, both (sections 4.5 and 4.7).

    Args:
      store: records with both modalities. index_N, time_us_N: which record, and when.
      min_wear_hours: hours of wear that make a day of it.
      is_encounter: code_id int [K] -> bool [K], which events are of a clinic encounter (`code_matcher`); None: all.

    Returns:
      One row per prediction: encounters (days with such an event in the year before it), wear_days (days of enough wear
      in windows that ended before it), sparse_ehr, short_wear, failure_group (both).
    """
    rows, last, record = [], None, None
    for i, time_us in zip(index_N, time_us_N, strict=True):
        if record is None or i != last:  # the times of one person follow each other
            last, record = i, store[int(i)]
        counted_K = _in_period(record.time_K, time_us, 365.0, 0.0)
        if is_encounter is not None:
            counted_K &= is_encounter(record.code_K)
        event_N = record.time_K[counted_K]
        # what is known at midnight belongs to the day that ends then
        rows.append([len(np.unique((event_N - 1) // DAY_US)), _wear_days(record, time_us, min_wear_hours)])
    table = pl.DataFrame(rows, {"encounters": pl.Int64, "wear_days": pl.Int64}, orient="row")
    table = table.with_columns(
        sparse_ehr=pl.col("encounters") < MIN_ENCOUNTERS, short_wear=pl.col("wear_days") < MIN_WEAR_DAYS
    )
    return table.with_columns(failure_group=pl.col("sparse_ehr") & pl.col("short_wear"))


def _wear_days(record, time_us, min_hours):
    """Days of wear in windows that ended by a time; a window belongs to the day in which it began."""
    known_M = record.window_end_M <= time_us
    worn_M = record.worn_minutes_M
    if worn_M is None:
        worn_M = np.full(len(known_M), record.window_us // MINUTE_US)
    day_N = (record.window_end_M[known_M] - record.window_us) // DAY_US
    _, day_of_N = np.unique(day_N, return_inverse=True)
    return int((np.bincount(day_of_N, worn_M[known_M]) >= 60 * min_hours).sum())
