"""What a reader of the record would have had: shorter histories, one stream only, noisier or interrupted signals.

Paper, section 4.6 and DESIGN, section 6. Each function returns a transform `(patient, time_us) -> patient` for reads at
`time_us`; labels and targets are never touched, and what is not there is missing, not zero. A transform is a function
of its arguments, the seed and the part of the recording that is known at `time_us`: nothing later changes it.

Axes: N tokens, M windows, L steps, C channels.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from ehrwear_jax.models.joint.patient import DAY_US, Patient, select

Transform = Callable[[Patient, int], Patient]


def chain(*transforms: Transform) -> Transform:
    """One after another, from left to right."""

    def apply(patient, time_us):
        for transform in transforms:
            patient = transform(patient, time_us)
        return patient

    return apply


def _keep(patient, keep_N, time_us, static=True):
    """Some of the tokens. A record without a birth date begins with the first token left, else with the read.

    Otherwise the age, counted from the first record, would tell when what is gone began.
    """
    if keep_N.all() and static:
        return patient
    time_N = patient.time_N[keep_N]
    no_birth = not static or (len(patient.time_N) > 0 and patient.origin_us == int(patient.time_N[0]))
    known_N = time_N[time_N <= time_us]
    first = int(known_N[0]) if len(known_N) else int(time_us)
    return select(patient, keep_N, static, first if no_birth else patient.origin_us)


# ------------------------------------------------------------------------------------------------- less of the record


def truncate(days: float) -> Transform:
    """Only tokens known in the last `days` before the read; static tokens and the birth date stay."""
    if not days > 0:
        raise ValueError(f"a history of {days} days; it must be positive")
    return lambda patient, time_us: _keep(patient, patient.time_N > time_us - int(days * DAY_US), time_us)


def drop_wear() -> Transform:
    """No wearable at inference."""
    return lambda patient, time_us: _keep(patient, ~patient.is_wear_N, time_us)


def drop_ehr() -> Transform:
    """No EHR at inference: no events, no static tokens and no birth date. Nothing at all may be left."""
    return lambda patient, time_us: _keep(patient, patient.is_wear_N, time_us, static=False)


def drop_codes(matches: Callable[[np.ndarray], np.ndarray], begin_days=np.inf, end_days=0.0) -> Transform:
    """No events of some codes from `begin_days` to `end_days` before the read; without a begin no static ones either.

    Args:
      matches: token ids int [K] -> bool [K]; see `code_matcher`.
    """

    def apply(patient, time_us):
        gone_N = np.zeros(len(patient.time_N), bool)
        event_N = ~patient.is_wear_N
        gone_N[event_N] = matches(patient.event_token_K[patient.ref_N[event_N]])
        found = _keep(patient, ~(gone_N & _in_period(patient.time_N, time_us, begin_days, end_days)), time_us)
        left_S = ~matches(patient.static_token_S)
        if np.isfinite(begin_days) or left_S.all():
            return found
        static = patient.static_token_S[left_S], patient.static_value_S[left_S]
        return dataclasses.replace(found, static_token_S=static[0], static_value_S=static[1])

    return apply


def code_matcher(vocabulary, prefixes: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    """Which token ids stand for a code that starts with one of the prefixes, all bins of it."""
    table_V = np.array([c.startswith(tuple(prefixes)) for c in vocabulary.tokens["code"].to_list()], bool)
    return lambda token_K: table_V[token_K]


def _in_period(time_N, time_us, begin_days, end_days):
    """Times in (read - begin, read - end]."""
    before_days_N = (time_us - time_N) / DAY_US
    return (before_days_N < begin_days) & (before_days_N >= end_days)


# ------------------------------------------------------------------------------------------------- another signal


def _with_windows(patient, window_MxLxC, time_us):
    """Another signal; windows in which nothing is left are no tokens any more."""
    lost_M = np.isfinite(patient.window_MxLxC).any((1, 2)) & ~np.isfinite(window_MxLxC).any((1, 2))
    patient = patient.with_windows(window_MxLxC)
    keep_N = np.ones(len(patient.time_N), bool)
    keep_N[patient.is_wear_N] = ~lost_M[patient.ref_N[patient.is_wear_N]]
    return _keep(patient, keep_N, time_us)


def occlude_channels(channels: Sequence[int], begin_days: float, end_days: float) -> Transform:
    """Channels not measured in the windows that end from `begin_days` to `end_days` before the read."""
    channels = list(channels)

    def apply(patient, time_us):
        inside_M = _in_period(patient.window_end_M, time_us, begin_days, end_days)
        window_MxLxC = patient.window_MxLxC.copy()
        window_MxLxC[np.ix_(inside_M, np.arange(window_MxLxC.shape[1]), channels)] = np.nan
        return _with_windows(patient, window_MxLxC, time_us)

    return apply


def add_to_channel(channel: int, amount: float, begin_days=np.inf, end_days=0.0) -> Transform:
    """What if a channel had been higher by `amount` (standardised units) in a period before the read.

    A raised resting heart rate is the amount that heart rate rises by, over its training standard deviation.
    """

    def apply(patient, time_us):
        inside_M = _in_period(patient.window_end_M, time_us, begin_days, end_days)
        window_MxLxC = patient.window_MxLxC.copy()
        window_MxLxC[inside_M, :, channel] += np.float32(amount)
        return patient.with_windows(window_MxLxC)

    return apply


def noise_variance(window_MxLxC) -> np.ndarray:
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


def _recording_rng(patient, seed, purpose):
    """A Generator of the recording: the same noise at every read of a patient, other noise for other patients."""
    first = np.ascontiguousarray(patient.window_MxLxC[:1]).tobytes() + patient.window_end_M[:1].tobytes()
    return np.random.default_rng([seed, purpose, zlib.crc32(first)])


def add_noise(drop_db: float, *, mode: str = "relative", seed: int = 0) -> Transform:
    """Gaussian noise on every observed step, so that the signal-to-noise ratio falls by `drop_db`.

    relative: the recording's own noise, see `noise_variance`, becomes 10 ** (drop_db / 10) times as strong: for 6 dB
      noise of 2.98 times its power is added. DESIGN, section 6: the paper's "SNR reduced by 6 dB".
    absolute: a stress test. The noise added has 10 ** (drop_db / 10) times the *whole* variance of the recording, as if
      it had been clean: an SNR of -6 dB for 6.

    Per channel, over the windows known at the read; raw windows likewise. Signals are in the model's units
    (standardised, logarithms for config.prepare.log_channels), and so is the noise.

    Raises:
      ValueError: another mode; a drop that is not positive.
    """
    if mode not in ("relative", "absolute") or not drop_db > 0:
        raise ValueError(f"noise of {drop_db} dB, mode {mode!r}: it must be positive, relative or absolute")

    def apply(patient, time_us):
        known_M = patient.window_end_M <= time_us
        if not known_M.any():
            return patient
        noisy = patient.with_windows(worsen(patient.window_MxLxC, known_M, _recording_rng(patient, seed, 0)))
        if patient.raw is not None:
            known_R = known_M[patient.raw.window_R]
            values = worsen(patient.raw.values_RxSxA, known_R, _recording_rng(patient, seed, 2))
            noisy = dataclasses.replace(noisy, raw=patient.raw._replace(values_RxSxA=values))
        return noisy

    def worsen(signal_MxLxC, known_M, rng):
        known = signal_MxLxC[known_M]
        if mode == "relative":
            variance_C = noise_variance(known) * (10 ** (drop_db / 10) - 1)
        else:
            seen = np.isfinite(known)
            count_C = np.maximum(seen.sum((0, 1)), 1)
            mean_C = np.where(seen, known, 0.0).sum((0, 1), dtype=np.float64) / count_C
            variance_C = np.where(seen, (known - mean_C) ** 2, 0.0).sum((0, 1)) / count_C * 10 ** (drop_db / 10)
        # windows are in time order, so a later window changes none of the earlier draws
        noise = rng.standard_normal(known.shape, np.float32)
        worse_MxLxC = signal_MxLxC.copy()
        worse_MxLxC[known_M] += noise * np.sqrt(variance_C).astype(np.float32)
        return worse_MxLxC

    return apply


def missing_stretch(share: float, *, seed: int = 0) -> Transform:
    """One contiguous stretch of the recorded steps before the read is not there, `share` of them, placed at random.

    Steps are counted along the windows in time order, days without a recording left out. Windows that lose everything
    are no tokens.

    Raises:
      ValueError: a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"a missing share of {share}; it must lie between 0 and 1")

    def apply(patient, time_us):
        known_M = np.flatnonzero(patient.window_end_M <= time_us)
        n_steps = patient.window_MxLxC.shape[1]
        total = len(known_M) * n_steps
        length = round(share * total)
        if not length:
            return patient
        begin = int(_recording_rng(patient, seed, 1).random() * (total - length + 1))
        step_ML = np.arange(total).reshape(len(known_M), n_steps)
        gone_ML = (step_ML >= begin) & (step_ML < begin + length)
        window_MxLxC = patient.window_MxLxC.copy()
        window_MxLxC[known_M] = np.where(gone_ML[..., None], np.nan, window_MxLxC[known_M])
        return _with_windows(patient, window_MxLxC, time_us)

    return apply


# ------------------------------------------------------------------------------------------------- the failure group


def failure_flags(patients, index_N, time_us_N, *, min_encounters: int = 2, min_wear_days: int = 14) -> pl.DataFrame:
    """Whom the paper's failure cases cover at each read: sparse EHR, short wear, both (sections 4.5 and 4.7).

    Args:
      patients: pipeline.Patients of both modalities. index_N, time_us_N: reads, as in `pipeline.inference_batches`.
      min_encounters: an EHR with fewer days with an event in the year before the read is sparse ("fewer than two clinic
        encounters in the prior year"; a day with events stands for an encounter).
      min_wear_days: fewer days with a window before the read are short wear ("less than 14 days of wearable data").

    Returns:
      One row per read: encounters, wear_days, sparse_ehr, short_wear, failure_group.
    """
    rows = []
    for i, time_us in zip(index_N, time_us_N, strict=True):
        patient = patients[int(i)]
        event_N = patient.event_time_K[_in_period(patient.event_time_K, time_us, 365.0, 0.0)]
        window_N = patient.window_end_M[patient.window_end_M <= time_us]
        # what is known at midnight belongs to the day that ends then
        rows.append([len(np.unique((known_N - 1) // DAY_US)) for known_N in (event_N, window_N)])
    table = pl.DataFrame(rows, {"encounters": pl.Int64, "wear_days": pl.Int64}, orient="row")
    table = table.with_columns(
        sparse_ehr=pl.col("encounters") < min_encounters, short_wear=pl.col("wear_days") < min_wear_days
    )
    return table.with_columns(failure_group=pl.col("sparse_ehr") & pl.col("short_wear"))
