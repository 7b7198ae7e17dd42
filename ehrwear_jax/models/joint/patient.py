"""Turns a record into one patient's stream in time order, and says what of it a context shows."""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from ehrwear_jax.data import ages
from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.data.store import NO_BIRTH, Record, RecordStore, Scales
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.vocabulary import Vocabulary

SIGNAL_CLIP = 10.0  # standard deviations

# Windows are worked on in blocks of this size in float32: their temporaries stay in a core's cache.
BLOCK_BYTES = 256_000

_NONE = np.zeros(0, np.int64)
_DERIVED_BYTES = 20  # for each place of a stream: where it is, its token and value, the next token


class RawWindows(NamedTuple):
    """A patient's raw windows, in order of time: the window that each lies in, the step there, and its samples.

    int64 [R], int64 [R], [R, S, A] as the set of segments stores them, NaN missing; see data/signals/segments.py.
    """

    window_R: np.ndarray
    step_R: np.ndarray
    values_RxSxA: np.ndarray


@dataclasses.dataclass
class Patient:
    """One patient's stream after the choice of modalities, merged in time order.

    Attributes:
      time_N: int64 us, when each token is known. ref_N: index into events or windows. is_wear_N: bool.
      static_token_S, static_value_S; event_token_K, event_value_K, event_time_K; window_end_M, window_MxLxC (float32 as
      recorded, in the channels' units, NaN missing); derived_MxX: float32, standardised, NaN missing, see
      derived_features.py; origin_us: birth, else first record, as has_birth says; end_us: end of follow-up; died: bool.
      scales: of the channels.
      raw: RawWindows, or None where the context has no room for them.
      quality_MxLxC: uint8, see grid_quality.py; None where it was not prepared. max_age_years: as of the RecordStore.
      utc_offset_M: minutes, as in Record; None: all zero, also where the context shows no wearable.
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
    derived_MxX: np.ndarray
    origin_us: int
    has_birth: bool
    end_us: int
    died: bool
    scales: Scales
    _summary_MxF: np.ndarray
    _summed_M: np.ndarray
    raw: RawWindows | None = None
    quality_MxLxC: np.ndarray | None = None
    utc_offset_M: np.ndarray | None = None
    max_age_years: float | None = None

    @functools.cached_property
    def max_days(self) -> int | None:
        """Most whole days that ages have, see data/ages.py; None: no limit."""
        whole = ages.whole_days(np.array([np.iinfo(np.int64).max]), self.max_age_years)
        return int(whole[0]) if self.has_birth and self.max_age_years is not None else None

    @functools.cached_property
    def event_at(self) -> np.ndarray:
        """Where in the stream its events are: int64, increasing."""
        return np.flatnonzero(~self.is_wear_N) if len(self.window_end_M) else np.arange(len(self.time_N))

    @functools.cached_property
    def window_at(self) -> np.ndarray:
        """Where in the stream its windows are: int64, increasing."""
        return np.flatnonzero(self.is_wear_N) if len(self.window_end_M) else _NONE

    @functools.cached_property
    def window_ref(self) -> np.ndarray:
        """The windows of the stream, in order: int64, increasing."""
        return self.ref_N[self.window_at]

    @functools.cached_property
    def next_token_K(self) -> np.ndarray:
        """int32 [K + 1]: tokens of the events, PAD behind them."""
        return np.append(self.event_token_K, np.int32(batch_lib.PAD))

    @functools.cached_property
    def _stream(self):
        """(tokens, values) of the stream: int32 [N], WEAR for windows; float32 [N], NaN where there is none."""
        if not len(self.window_end_M) and len(self.time_N) == len(self.event_token_K):
            return self.event_token_K, self.event_value_K
        token_N = np.full(len(self.time_N), batch_lib.WEAR, np.int32)
        value_N = np.full(len(self.time_N), np.nan, np.float32)
        events = self.ref_N[self.event_at]
        token_N[self.event_at], value_N[self.event_at] = self.event_token_K[events], self.event_value_K[events]
        return token_N, value_N

    def part(self, at: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(times, whether each is a window, tokens, values) of a part of the stream."""
        token_N, value_N = self._stream
        return self.time_N[at], self.is_wear_N[at], token_N[at], value_N[at]

    @property
    def nbytes(self) -> int:
        """Memory held, bytes, with what is derived on first use."""
        arrays = [x for x in (*vars(self).values(), *(self.raw or ())) if isinstance(x, np.ndarray)]
        return sum(x.nbytes for x in arrays) + _DERIVED_BYTES * len(self.time_N)

    def signal(self, lo: int, hi: int) -> np.ndarray:
        """Windows lo to hi, standardised: float32 [hi - lo, L, C], the steps of a channel side by side in memory."""
        return standard_signal(self.window_MxLxC[lo:hi], self.scales)

    def blocks(self, lo: int, hi: int) -> list[tuple[int, int]]:
        """[(lo, hi)] of the blocks of the windows lo to hi; the last one may be smaller."""
        return blocks(self.window_MxLxC.shape, lo, hi)

    def summary(self, lo: int, hi: int) -> np.ndarray:
        """`shown_summary` of the windows lo to hi as they were recorded, each computed once."""
        for a, b in self.blocks(lo, hi):
            if not self._summed_M[a:b].all():
                self._summary_MxF[a:b] = self.shown_summary(a, self.signal(a, b))
                self._summed_M[a:b] = True  # after the numbers, since other threads read them
        return self._summary_MxF[lo:hi]

    def shown_summary(self, first: int, shown_MxLxC: np.ndarray, channel_X: np.ndarray | None = None) -> np.ndarray:
        """`summary_table` of a signal and the derived features: float32 [M, F].

        Args:
          first: the window that shown_MxLxC begins with.
          channel_X: where the signal was changed, the channel that each derived feature is of, -1 for none of them. A
            summary is missing where that channel was lost.
        """
        derived_MxX = self.derived_MxX[first : first + len(shown_MxLxC)]
        if channel_X is not None and len(channel_X):
            here_MxC = np.isfinite(shown_MxLxC).any(axis=1)
            here_MxC = np.append(here_MxC, np.ones((len(here_MxC), 1), bool), axis=1)
            derived_MxX = np.where(here_MxC[:, channel_X], derived_MxX, np.float32(np.nan))
        return np.concatenate([summary_table(shown_MxLxC), derived_MxX], axis=1)


def blocks(shape: tuple[int, ...], lo: int, hi: int) -> list[tuple[int, int]]:
    """[(lo, hi)] of blocks of BLOCK_BYTES of the windows lo to hi of an array; the last one may be smaller."""
    size = max(1, BLOCK_BYTES // max(4 * math.prod(shape[1:]), 1))
    return [(k, min(k + size, hi)) for k in range(lo, hi, size)]


def standard_signal(window_MxLxC: np.ndarray, scales: Scales) -> np.ndarray:
    """Windows, standardised: float32 [M, L, C], the steps of a channel side by side in memory."""
    x_MxCxL = scales.standardise(window_MxLxC.transpose(0, 2, 1), axis=1)
    return np.clip(x_MxCxL, -SIGNAL_CLIP, SIGNAL_CLIP, out=x_MxCxL).transpose(0, 2, 1)


def summary_table(window_MxLxC: np.ndarray) -> np.ndarray:
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


def given(record: Record, modalities: tuple[str, ...], static: bool = False) -> Record:
    """The record with only the named modalities; static: without EHR, facts without a time and the birth date stay."""
    if "ehr" not in modalities:
        record = record.select_events(slice(0)) if static else record.without_ehr()
    if "wear" in modalities:
        return record
    record = record.without_wear()
    return record if record.quality_MxLxC is None else dataclasses.replace(record, quality_MxLxC=None)


def make_patient(record: Record, store: RecordStore, vocabulary: Vocabulary, raw_segments: str = "") -> Patient:
    """The Patient of a record of a store, or of one that was made of it.

    raw_segments: the set of segments that become raw windows; "": none. Events out of the vocabulary are left out.
    """
    (static_token, static_value), (token, value, time) = vocabulary.known(record)
    end = record.window_end_M
    derived: np.ndarray = np.zeros(record.derived_MxX.shape, np.float32)
    if derived.size:
        derived = np.clip(store.derived_scales.standardise(record.derived_MxX), -SIGNAL_CLIP, SIGNAL_CLIP)
    window, quality = record.window_MxLxC, record.quality_MxLxC
    offset = record.utc_offset_M
    offset = offset.copy() if offset is not None and offset.any() else None
    if not len(end) or (record.segments and not raw_segments):
        # copies, since a view keeps the whole record with its windows or segments in memory
        end, window, quality = end.copy(), window.copy(), None if quality is None else quality.copy()
    return Patient(
        **_stream_of(end, time),
        static_token_S=static_token,
        static_value_S=static_value,
        event_token_K=token,
        event_value_K=value,
        event_time_K=time,
        window_end_M=end,
        window_MxLxC=window,
        derived_MxX=derived,
        origin_us=record.origin_us,
        has_birth=record.birth_us != NO_BIRTH,
        end_us=record.end_us,
        died=record.died,
        scales=store.scales,
        **_no_summaries(window, derived),
        raw=_raw_windows(record, raw_segments, store) if raw_segments else None,
        quality_MxLxC=quality,
        utc_offset_M=offset,
        max_age_years=store.max_age_years,
    )


def _no_summaries(window_MxLxC, derived_MxX):
    n, n_channels = len(window_MxLxC), window_MxLxC.shape[2]
    width = len(batch_lib.SUMMARIES) * n_channels + derived_MxX.shape[1]
    return {"_summary_MxF": np.empty((n, width), np.float32), "_summed_M": np.zeros(n, bool)}


_OF_EVENTS = ("event_time_K", "static_token_S", "static_value_S", "event_token_K", "event_value_K")
_OF_WINDOWS = ("window_end_M", "window_MxLxC", "derived_MxX")
_OPTIONAL = ("quality_MxLxC", "utc_offset_M")


def packed(patient: Patient) -> dict[str, np.ndarray]:
    """A patient of `make_patient` as named arrays, without what is the same for everybody of a store."""
    p = patient
    found = {"facts": np.array([p.origin_us, p.has_birth, p.end_us, p.died], np.int64)}
    found |= {name: getattr(p, name) for name in _OF_EVENTS}
    if len(p.window_end_M):
        found |= {name: getattr(p, name) for name in _OF_WINDOWS}
        found |= {name: x for name in _OPTIONAL if (x := getattr(p, name)) is not None}
    return found | (p.raw._asdict() if p.raw is not None else {})


def unpacked(arrays: dict[str, np.ndarray], like: Patient) -> Patient:
    """The inverse of `packed`, of the store that `like` is of."""
    origin_us, has_birth, end_us, died = arrays.pop("facts").tolist()
    raw = None if like.raw is None else RawWindows(*(arrays.pop(name) for name in RawWindows._fields))
    if "window_end_M" not in arrays:
        arrays |= {name: getattr(like, name)[:0] for name in _OF_WINDOWS}
        arrays |= {} if like.quality_MxLxC is None else {"quality_MxLxC": like.quality_MxLxC[:0]}
    return Patient(
        **arrays,
        **_stream_of(arrays["window_end_M"], arrays["event_time_K"]),
        **_no_summaries(arrays["window_MxLxC"], arrays["derived_MxX"]),
        origin_us=origin_us,
        has_birth=bool(has_birth),
        end_us=end_us,
        died=bool(died),
        scales=like.scales,
        raw=raw,
        max_age_years=like.max_age_years,
    )


def _stream_of(end_M, time_K):
    """Fields of both in order of time, windows first: times, places among windows or events, which are windows."""
    if not len(end_M):
        return {"time_N": time_K, "ref_N": np.arange(len(time_K)), "is_wear_N": np.zeros(len(time_K), bool)}
    times = np.concatenate([end_M, time_K])
    order = np.argsort(times, kind="stable")  # of the same time: windows, which come first here, before events
    is_wear = np.arange(len(times)) < len(end_M)
    ref = np.concatenate([np.arange(len(end_M)), np.arange(len(time_K))])
    return {"time_N": times[order], "ref_N": ref[order], "is_wear_N": is_wear[order]}


def _raw_windows(record, name, store):
    """The segments of a set that lie in windows of the record."""
    segments = record.segments[name]
    window_R = record.window_of(segments.start_us_R)
    segments, window_R = segments.select(window_R >= 0), window_R[window_R >= 0]
    step_R = (segments.start_us_R - record.window_end_M[window_R] + record.window_us) // store.step_us
    return RawWindows(window_R, step_R, segments.values_RxSxA)


def select(patient: Patient, keep_N: np.ndarray, keep_static: bool, origin_us: int) -> Patient:
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


def without(patient: Patient, keep_ehr: bool, keep_wear: bool) -> Patient:
    """The patient whose context shows one stream only; the other one remains what is predicted.

    As in `make_patient`, static tokens and the birth date are EHR facts. At least one of the two is kept, and there is
    something of it.
    """
    keep_N = np.where(patient.is_wear_N, keep_wear, keep_ehr)
    if keep_N.all() and keep_ehr:
        return patient
    time_N = patient.time_N[keep_N]
    has_birth = keep_ehr and patient.has_birth
    shown = select(patient, keep_N, keep_ehr, patient.origin_us if has_birth else int(time_N[0]))
    return shown if keep_wear else dataclasses.replace(shown, utc_offset_M=None)


def first_full(patient: Patient, max_ehr: int, max_windows: int) -> int:
    """The first end of a context that fills a budget; the end of the record where all of it fits.

    Args:
      max_ehr, max_windows: budgets of a context, see context.fit.
    """
    room = max(max_ehr - len(patient.static_token_S), 1), max_windows
    parts = zip((patient.event_at, patient.window_at), room, strict=True)
    return min((int(at[n - 1]) + 1 for at, n in parts if 0 < n < len(at)), default=len(patient.time_N))


def sample_day(draw: float, patient: Patient, weight_V: np.ndarray) -> int:
    """A context's end: how many merged tokens there are up to the end of a sampled patient-day.

    A patient-day is drawn with a probability proportional to the weight of its tokens (paper, section 3.5: mini-batches
    sample patient-days, with rare codes upsampled and administrative tokens downsampled): an event has its code's
    weight, 1 on average, and a wearable window has 1. A token known at midnight belongs to the day that ends then.

    Args:
      draw: uniform in [0, 1).
    """
    weight_N, at = np.ones(len(patient.time_N)), patient.event_at
    weight_N[at] = weight_V[patient.event_token_K[patient.ref_N[at]]]
    total_N = np.cumsum(weight_N)
    if not total_N[-1] > 0:
        total_N = np.arange(1.0, len(weight_N) + 1)
    token = min(int(np.searchsorted(total_N, draw * total_N[-1], side="right")), len(total_N) - 1)
    day_end = -(-int(patient.time_N[token]) // DAY_US) * DAY_US
    return int(np.searchsorted(patient.time_N, day_end, side="right"))
