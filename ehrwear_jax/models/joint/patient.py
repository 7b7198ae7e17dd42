"""One patient's record as a stream in time order, and what of it a context shows: which streams, up to which day."""

import dataclasses
from typing import NamedTuple

import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.joint import batch as batch_lib

NO_BIRTH = np.iinfo(np.int64).min


# Windows are worked on in blocks of this size in float32: their temporaries stay in a core's cache.
BLOCK_BYTES = 256_000


class RawWindows(NamedTuple):
    """A patient's raw windows, in order of time: the window that each lies in, the step there, and its samples.

    int32 [R], int32 [R], float16 [R, S, A]: standardised, NaN missing; see raw_windows.py.
    """

    window_R: np.ndarray
    step_R: np.ndarray
    values_RxSxA: np.ndarray


@dataclasses.dataclass
class Patient:
    """One patient's stream after the choice of modalities, merged in time order.

    Attributes:
      time_N: int64 us, when each token is known. ref_N: index into events or windows. is_wear_N: bool.
      static_token_S, static_value_S; event_token_K, event_value_K, event_time_K; window_end_M, window_MxLxC (float16 as
      recorded, standardised, NaN missing); further_MxX: float32, standardised, NaN missing, see window_summaries.py;
      origin_us: birth, else first record; end_us: end of follow-up; died: bool.
      raw: RawWindows, or None where the context has no room for them.
      quality_MxLxC: uint8, see grid_quality.py; None where it was not prepared.
    """

    time_N: np.ndarray
    ref_N: np.ndarray
    is_wear_N: np.ndarray
    static_token_S: np.ndarray
    static_value_S: np.ndarray
    event_token_K: np.ndarray
    event_value_K: np.ndarray
    event_time_K: np.ndarray
    window_end_M: np.ndarray
    window_MxLxC: np.ndarray
    further_MxX: np.ndarray
    origin_us: int
    end_us: int
    died: bool
    _summary_MxF: np.ndarray
    _summed_M: np.ndarray
    raw: RawWindows | None = None
    quality_MxLxC: np.ndarray | None = None

    @property
    def nbytes(self):
        """Memory held, bytes."""
        return sum(x.nbytes for x in (*vars(self).values(), *(self.raw or ())) if isinstance(x, np.ndarray))

    def with_windows(self, window_MxLxC):
        """The same patient with another signal, of the same shape."""
        unknown = {"_summary_MxF": np.empty_like(self._summary_MxF), "_summed_M": np.zeros_like(self._summed_M)}
        return dataclasses.replace(self, window_MxLxC=window_MxLxC, **unknown)

    def signal(self, lo, hi):
        """Windows lo to hi: float32 [hi - lo, L, C], in memory with the steps of a channel side by side."""
        return self.window_MxLxC[lo:hi].transpose(0, 2, 1).astype(np.float32, order="C").transpose(0, 2, 1)

    def blocks(self, lo, hi):
        """[(lo, hi)] of the blocks of the windows lo to hi; the last one may be smaller."""
        size = max(1, BLOCK_BYTES // max(4 * int(np.prod(self.window_MxLxC.shape[1:])), 1))
        return [(k, min(k + size, hi)) for k in range(lo, hi, size)]

    def summary(self, lo, hi):
        """`shown_summary` of the windows lo to hi as they were recorded, each computed once."""
        for a, b in self.blocks(lo, hi):
            if not self._summed_M[a:b].all():
                self._summary_MxF[a:b] = self.shown_summary(a, self.signal(a, b))
                self._summed_M[a:b] = True  # after the numbers, since other threads read them
        return self._summary_MxF[lo:hi]

    def shown_summary(self, first, shown_MxLxC, channel_X=None):
        """`summary_table` of a signal and the further summaries: float32 [M, F].

        Args:
          first: the window that shown_MxLxC begins with.
          channel_X: where the signal was changed, the channel that each further summary is of, -1 for none of them. A
            summary is missing where that channel was lost.
        """
        further_MxX = self.further_MxX[first : first + len(shown_MxLxC)]
        if channel_X is not None and len(channel_X):
            here_MxC = np.isfinite(shown_MxLxC).any(axis=1)
            here_MxC = np.append(here_MxC, np.ones((len(here_MxC), 1), bool), axis=1)
            further_MxX = np.where(here_MxC[:, channel_X], further_MxX, np.float32(np.nan))
        return np.concatenate([summary_table(shown_MxLxC), further_MxX], axis=1)


def summary_table(window_MxLxC):
    """Mean, std and mean absolute step per channel, statistic-major: float32 [M, F], NaN missing.

    The definition is summaries.window_summaries; these run for every context, in float32 along contiguous steps.
    """
    x_MxCxL = np.ascontiguousarray(window_MxLxC.transpose(0, 2, 1), np.float32)
    finite = np.isfinite(x_MxCxL)
    seen = finite.astype(np.float32)  # 0 or 1: to multiply by is faster than to choose
    x_MxCxL = np.where(finite, x_MxCxL, np.float32(0))
    count = seen.sum(axis=-1)
    step = np.abs(x_MxCxL[..., 1:] - x_MxCxL[..., :-1])
    pair = seen[..., 1:] * seen[..., :-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = x_MxCxL.sum(axis=-1) / count
        apart = x_MxCxL - mean[..., None]
        apart *= seen
        std = np.sqrt(np.einsum("mcl,mcl->mc", apart, apart) / np.where(count > 1, count, np.nan))
        mean_abs_step = np.einsum("mcl,mcl->mc", step, pair) / pair.sum(axis=-1)
    table = {"mean": mean, "std": np.where(count > 1, std, np.nan), "mean_abs_step": mean_abs_step}
    return np.concatenate([table[k] for k in batch_lib.SUMMARIES], axis=1).astype(np.float32)


def make_patient(record, modalities, with_raw=False):
    """Patient from a decoded record, with only the named modalities; a birth date is an EHR fact."""
    ehr, wear = "ehr" in modalities, "wear" in modalities
    token, value, time = record["token"], record["value"], record["time_us"]
    static_token, static_value = record["static_token"], record["static_value"]
    end, window, further = record["window_end_us"], record["window"], record["summary"]
    if not ehr:
        token, value, time, static_token, static_value = (
            x[:0] for x in (token, value, time, static_token, static_value)
        )
    if not wear:
        end, window, further = (x[:0].copy() for x in (end, window, further))
        # copies, since a view keeps the whole record with its windows in memory
        token, value, time, static_token, static_value = map(np.copy, (token, value, time, static_token, static_value))
    raw = None
    if wear and with_raw:
        raw = RawWindows(record["raw_window"], record["raw_step"], record["raw"])
    elif wear and "raw" in record:
        token, value, time, static_token, static_value, end, window = map(
            np.copy, (token, value, time, static_token, static_value, end, window)
        )
    times = np.concatenate([end, time])
    is_wear = np.arange(len(times)) < len(end)
    order = np.argsort(times, kind="stable")  # of the same time: windows, which come first here, before events
    ref = np.concatenate([np.arange(len(end)), np.arange(len(time))])
    birth = int(record["birth_us"]) if ehr else NO_BIRTH
    first = int(times.min()) if len(times) else int(record["end_us"])
    return Patient(
        time_N=times[order],
        ref_N=ref[order],
        is_wear_N=is_wear[order],
        static_token_S=static_token,
        static_value_S=static_value,
        event_token_K=token,
        event_value_K=value,
        event_time_K=time,
        window_end_M=end,
        window_MxLxC=window,
        further_MxX=further.astype(np.float32),
        origin_us=first if birth == NO_BIRTH else birth,
        end_us=int(record["end_us"]),
        died=bool(record["died"]),
        _summary_MxF=np.empty((len(end), len(batch_lib.SUMMARIES) * window.shape[2] + further.shape[1]), np.float32),
        _summed_M=np.zeros(len(end), bool),
        raw=raw,
        quality_MxLxC=record.get("quality") if wear else None,
    )


def select(patient, keep_N, keep_static, origin_us):
    """The patient with some of the tokens of the stream, with or without the static ones, and the origin of ages."""
    return dataclasses.replace(
        patient,
        time_N=patient.time_N[keep_N],
        ref_N=patient.ref_N[keep_N],
        is_wear_N=patient.is_wear_N[keep_N],
        static_token_S=patient.static_token_S if keep_static else patient.static_token_S[:0],
        static_value_S=patient.static_value_S if keep_static else patient.static_value_S[:0],
        origin_us=origin_us,
    )


def without(patient, keep_ehr, keep_wear):
    """The patient whose context shows one stream only; the other one remains what is predicted.

    As in `make_patient`, static tokens and the birth date are EHR facts. At least one of the two is kept, and there is
    something of it.
    """
    keep_N = np.where(patient.is_wear_N, keep_wear, keep_ehr)
    if keep_N.all() and keep_ehr:
        return patient
    time_N = patient.time_N[keep_N]
    no_birth = not keep_ehr or patient.origin_us == int(patient.time_N[0])
    return select(patient, keep_N, keep_ehr, int(time_N[0]) if no_birth else patient.origin_us)


def sample_day(draw, patient, weight_V):
    """A context's end: how many merged tokens there are up to the end of a sampled patient-day.

    A patient-day is drawn with a probability proportional to the weight of its tokens (paper, section 3.5: mini-batches
    sample patient-days, with rare codes upsampled and administrative tokens downsampled): an event has its code's
    weight, 1 on average, and a wearable window has 1. A token known at midnight belongs to the day that ends then.

    Args:
      draw: uniform in [0, 1).
    """
    weight_N = np.ones(len(patient.time_N))
    weight_N[~patient.is_wear_N] = weight_V[patient.event_token_K[patient.ref_N[~patient.is_wear_N]]]
    total_N = np.cumsum(weight_N)
    if not total_N[-1] > 0:
        total_N = np.arange(1.0, len(weight_N) + 1)
    token = min(int(np.searchsorted(total_N, draw * total_N[-1], side="right")), len(total_N) - 1)
    day_end = -(-int(patient.time_N[token]) // DAY_US) * DAY_US
    return int(np.searchsorted(patient.time_N, day_end, side="right"))
