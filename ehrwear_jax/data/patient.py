"""One patient's record as a stream in time order, and what of it a context shows: which streams, up to which day."""

import dataclasses

import numpy as np

from ehrwear_jax import batch as batch_lib
from ehrwear_jax.data import signal

DAY_US = signal.DAY_US
NO_BIRTH = np.iinfo(np.int64).min


@dataclasses.dataclass
class Patient:
    """One patient's stream after the choice of modalities, merged in time order.

    Attributes:
      time_N: int64 us, when each token is known. ref_N: index into events or windows. is_wear_N: bool.
      static_token_S, static_value_S; event_token_K, event_value_K, event_time_K; window_end_M, window_MxLxC (float32,
      standardised, NaN missing); origin_us: birth, else first record; end_us: end of follow-up; died: bool.
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
    origin_us: int
    end_us: int
    died: bool
    _summary: np.ndarray | None = None

    def window_summary(self):
        """`summary_table` of all windows, computed once."""
        if self._summary is None:
            self._summary = summary_table(self.window_MxLxC)
        return self._summary


def summary_table(window_MxLxC):
    """Mean, std and mean absolute step per channel, statistic-major: float32 [M, F], NaN missing."""
    table = signal.summaries(window_MxLxC)
    return np.concatenate([table[k] for k in batch_lib.SUMMARIES], axis=1)


def make_patient(record, modalities):
    """Patient from a decoded record, with only the named modalities; a birth date is an EHR fact."""
    ehr, wear = "ehr" in modalities, "wear" in modalities
    token, value, time = record["token"], record["value"], record["time_us"]
    static_token, static_value = record["static_token"], record["static_value"]
    end, window = record["window_end_us"], record["window"]
    if not ehr:
        token, value, time, static_token, static_value = (
            x[:0] for x in (token, value, time, static_token, static_value)
        )
    if not wear:
        end, window = end[:0], window[:0]
    times = np.concatenate([end, time])
    is_wear = np.arange(len(times)) < len(end)
    order = np.lexsort((np.arange(len(times)), ~is_wear, times))
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
        window_MxLxC=window.astype(np.float32),
        origin_us=first if birth == NO_BIRTH else birth,
        end_us=int(record["end_us"]),
        died=bool(record["died"]),
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
    patient.window_summary()  # computed once, shared by every such copy
    time_N = patient.time_N[keep_N]
    no_birth = not keep_ehr or patient.origin_us == int(patient.time_N[0])
    return select(patient, keep_N, keep_ehr, int(time_N[0]) if no_birth else patient.origin_us)


def sample_day(rng, patient, weight_V):
    """A context's end: how many merged tokens there are up to the end of a sampled patient-day.

    A patient-day is drawn with a probability proportional to the weight of its tokens (paper, section 3.5: mini-batches
    sample patient-days, with rare codes upsampled and administrative tokens downsampled): an event has its code's
    weight, 1 on average, and a wearable window has 1. A token known at midnight belongs to the day that ends then.
    """
    weight_N = np.ones(len(patient.time_N))
    weight_N[~patient.is_wear_N] = weight_V[patient.event_token_K[patient.ref_N[~patient.is_wear_N]]]
    total_N = np.cumsum(weight_N)
    if not total_N[-1] > 0:
        total_N = np.arange(1.0, len(weight_N) + 1)
    token = min(int(np.searchsorted(total_N, rng.random() * total_N[-1], side="right")), len(total_N) - 1)
    day_N = (patient.time_N - 1) // DAY_US
    return int(np.searchsorted(day_N, day_N[token], side="right"))
