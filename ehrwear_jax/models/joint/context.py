"""One patient's context in a row: the tokens, what is hidden of them, and the reads with their targets."""

import dataclasses
from typing import NamedTuple

import numpy as np

from ehrwear_jax.data.signals import signal
from ehrwear_jax.models.joint import augmentation as augment
from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.models.joint import masking, raw_fields, targets
from ehrwear_jax.models.joint.batch import MASK, MODALITY_EHR, MODALITY_WEAR, WEAR

DAY_US = signal.DAY_US


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """How patients become rows; times in days.

    Attributes:
      tokens, windows: capacity of a row.
      context_tokens: most tokens of one patient in a row, static ones included; at most `tokens`.
      queries, events: capacity of a row for query and event reads; shared among its contexts by their length.
      future_windows: steps of multi-step prediction.
      horizons: for the prediction of later codes.
      future_codes: how many codes and ancestors of codes (the most frequent) are predicted.
      recalled_tokens: how many tokens (the most frequent) are recalled.
      pairs: capacity of a row for pairs of a wearable window and the EHR events within colocated_days of its end, which
        contrastive alignment compares (paper, section 3.3: temporally co-located); 0 leaves it out.
      pool_days: tau of the wearable-to-EHR term. summary_days: tau' of the EHR-to-wearable term.
      raw_segments: the set of config.prepare.segments that become raw windows; "": none.
      raw_windows: capacity of a row for raw windows of sub-second signal, of which each window adds its share. 0:
        batches have none. See raw_fields.fill_raw.
      patch_steps: steps in a patch of the wearable encoder.
      ehr_mask, wear_mask: share hidden. mask_temperature: see masking.token_weights.
      masked_contexts: share of contexts in which anything is hidden; the others look as they do at inference.
      wear_mask_kind: "contiguous", "random", "window" (see masking.mask_patches) or "channel" (masking.mask_channels).
      interest_codes, interest_factor, interest_days: events within so many days of an event whose code starts with one
        of these, before or after, are hidden more often by this factor and the others of the context less, see
        masking.mask_chances. Many hidden events hint to a causal model that such an event follows; contexts without
        masks, as at inference, have no such hint.
      administrative_codes, administrative_weight: codes that start with one of these are hidden, and their days
        sampled, less often by this factor than their counts say.
      patient_days: share of contexts that end with a sampled patient-day, see patient.sample_day; the others end with
        the record where it fits into a context, else at a token that has a full context before it.
      day_temperature: of the sampling of patient-days by their codes, see masking.token_weights.
      patient_temperature: of the sampling of patients by the rarity of their codes, see plan.patient_weights; 0: every
        patient once in an epoch.
      time_warp: most that a step moves, as a share of a window. noise: standard deviation over the local one, which is
        that of noise_steps steps. channel_dropout: chance of a loss per window and channel. drop_ehr, drop_wear:
        chance that a context of both is given without its EHR, its wearables. See augment.py; validation leaves these
        five out.
      modalities: which of "ehr" and "wear" the model is given.

    Raises:
      ValueError: a kind of mask, a chance or a bound that there is not.
    """

    tokens: int = 128
    windows: int = 64
    context_tokens: int = 128
    queries: int = 8
    events: int = 16
    future_windows: int = 4
    horizons: tuple = (30, 90, 180, 365)
    future_codes: int = 128
    recalled_tokens: int = 256
    pairs: int = 0
    colocated_days: float = 7.0
    pool_days: float = 30.0
    summary_days: float = 7.0
    raw_segments: str = ""
    raw_windows: int = 0
    patch_steps: int = 6
    ehr_mask: float = 0.15
    wear_mask: float = 0.25
    mask_temperature: float = 0.3
    masked_contexts: float = 0.5
    wear_mask_kind: str = "contiguous"
    interest_codes: tuple = ()
    interest_factor: float = 3.0
    interest_days: float = 7.0
    administrative_codes: tuple = ()
    administrative_weight: float = 0.1
    patient_days: float = 0.0
    day_temperature: float = 0.3
    patient_temperature: float = 0.0
    time_warp: float = 0.0
    noise: float = 0.0
    noise_steps: int = 8
    channel_dropout: float = 0.0
    drop_ehr: float = 0.0
    drop_wear: float = 0.0
    modalities: tuple = ("ehr", "wear")

    def __post_init__(self):
        if self.wear_mask_kind not in masking.WEAR_MASKS:
            raise ValueError(
                f"config.context.wear_mask_kind is {self.wear_mask_kind!r}; it can be {', '.join(masking.WEAR_MASKS)}"
            )
        for name in ("interest_codes", "administrative_codes"):
            if isinstance(getattr(self, name), str):
                raise ValueError(
                    f"config.context.{name} is a string; it must be a tuple of strings, as in ('DX//I10',)"
                )
        if self.context_tokens > self.tokens:
            raise ValueError(
                f"config.context.context_tokens is {self.context_tokens}; it must be at most config.context.tokens, "
                f"{self.tokens}"
            )
        limits = {
            "raw_windows": (0, np.inf),
            "interest_factor": (1, np.inf),
            "interest_days": (0, np.inf),
            "administrative_weight": (0, np.inf),
            "patient_days": (0, 1),
            "patient_temperature": (0, np.inf),
            "time_warp": (0, augment.MAX_WARP),
            "noise": (0, np.inf),
            "noise_steps": (2, np.inf),
            "channel_dropout": (0, 1),
            "drop_ehr": (0, 1),
            "drop_wear": (0, 1 - self.drop_ehr),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"config.context.{name} is {getattr(self, name)}; it must lie in [{low}, {high:g}]")

    @property
    def augments_signal(self):
        return bool(self.time_warp or self.noise or self.channel_dropout)


class Span(NamedTuple):
    """What of a patient a context shows: its first static tokens, and the merged tokens start to stop.

    Of the windows among the latter, the n_left_out oldest are left out.
    """

    n_static: int
    start: int
    stop: int
    n_left_out: int = 0

    @property
    def n_tokens(self):
        return self.n_static + self.stop - self.start - self.n_left_out

    def places(self, patient):
        """The merged tokens that are shown: a slice, or int64 indices where windows are left out."""
        if not self.n_left_out:
            return slice(self.start, self.stop)
        is_wear = patient.is_wear_N[self.start : self.stop]
        return self.start + np.flatnonzero(~is_wear | (np.cumsum(is_wear) > self.n_left_out))

    def n_windows(self, patient):
        """How many windows it shows."""
        return int(np.count_nonzero(patient.is_wear_N[self.start : self.stop])) - self.n_left_out


def fit(patient, stop, max_tokens, max_windows):
    """The longest context that ends before merged token `stop` within the capacities.

    Where there are more than max_windows windows, the oldest of them are left out, and the events among them stay.
    """
    n_static, limit = min(len(patient.static_token_S), max_tokens - 1), max(max_tokens - len(patient.static_token_S), 1)
    start = max(0, stop - limit)
    is_wear = patient.is_wear_N[start:stop]
    n_wear = int(np.count_nonzero(is_wear))
    if n_wear <= max_windows:
        return Span(n_static, start, stop)
    is_wear = patient.is_wear_N[:stop]
    newer = np.cumsum(is_wear[::-1])[::-1]  # windows from here on
    kept = np.flatnonzero(~is_wear | (newer <= max_windows))[-limit:]
    if not len(kept):
        return Span(n_static, stop, stop)
    start = int(kept[0])
    return Span(n_static, start, stop, stop - start - len(kept))


def fill_context(row, at, patients, patient, span, query_us, rng, augment_rng=None):
    """Writes one context into a row and moves the cursors.

    Args:
      row: dict of arrays without the batch axis, see batch.FIELDS.
      at: dict of cursors, see new_row.
      span: what of the patient it shows, see fit.
      query_us: int64 sorted times of its queries, absolute.
      rng: numpy Generator for masks and event reads; None at inference (nothing hidden, no targets).
      augment_rng: numpy Generator for changes of the signal; None leaves it as recorded.

    A warp and a loss of channels change what the model sees and what it is to rebuild alike; the past summary is that
    of the changed signal, the summary of the following windows that of the recording. Noise is added to what the model
    sees only: hidden steps, the targets of reconstruction, stay clean, and their values do not scale the noise around
    them. Prediction of the next windows has the visible steps as targets, noise included: independent and with mean
    zero, it adds a constant to the expected squared error.
    """
    config, p, n_static, shown = patients.config, patient, span.n_static, span.places(patient)
    is_wear = np.concatenate([np.zeros(n_static, bool), p.is_wear_N[shown]])
    n, t0, w0 = len(is_wear), at["tokens"], at["windows"]
    at["segment"] += 1
    anchor = int(p.time_N[span.start]) if span.stop > span.start else p.origin_us
    time_us = np.concatenate([np.full(n_static, anchor), p.time_N[shown]]).astype(np.int64)
    ref = p.ref_N[shown]
    events, windows = ref[~is_wear[n_static:]], ref[is_wear[n_static:]]
    token = np.full(n, WEAR, np.int32)
    value = np.zeros(n, np.float32)
    ehr_at = np.nonzero(~is_wear)[0]
    token[ehr_at] = np.concatenate([p.static_token_S[:n_static], p.event_token_K[events]])
    value[ehr_at] = np.nan_to_num(np.concatenate([p.static_value_S[:n_static], p.event_value_K[events]]))
    original = token.copy()
    s = slice(t0, t0 + n)
    row["modality"][s] = np.where(is_wear, MODALITY_WEAR, MODALITY_EHR)
    row["time"][s] = (time_us - anchor) / DAY_US
    row["age"][s] = _age(time_us, p.origin_us)
    row["segment"][s] = at["segment"]
    row["kv_range"][s, 0] = t0
    row["kv_range"][s, 1] = t0 + 1 + np.arange(n)
    wear_at = np.nonzero(is_wear)[0]
    m = len(wear_at)
    row["window"][t0 + wear_at] = w0 + np.arange(m)
    w = slice(w0, w0 + m)
    row["window_position"][w] = t0 + wear_at
    q0, nq = at["queries"], len(query_us)
    q = slice(q0, q0 + nq)
    row["query_time"][q] = (query_us - anchor) / DAY_US
    row["query_age"][q] = _age(query_us, p.origin_us)
    row["query_segment"][q] = at["segment"]
    row["query_kv_range"][q, 0] = t0
    known = np.searchsorted(time_us[n_static:], query_us, side="right")
    row["query_kv_range"][q, 1] = t0 + n_static + known
    if rng is not None:
        hidden = rng.random() < config.masked_contexts
        _fill_masks(row, at, patients, token, value, time_us, ehr_at[n_static:], t0, w0, m, rng, hidden)
    shown_MxF = _fill_signal(row, w, patients, p, windows, augment_rng)
    if p.quality_MxLxC is not None:
        raw_fields.fill_quality(row, patients, p.quality_MxLxC, windows, w0)
    if p.raw is not None:
        warp = config.time_warp if augment_rng is not None else 0.0
        raw_fields.fill_raw(row, at, patients, p.raw, windows, w0, warp)
    if rng is not None:
        targets.fill_targets(row, at, patients, p, original, time_us, ehr_at[n_static:], windows, query_us, rng)
        if nq:
            targets.fill_recall(row, q, patients, token, n_static, time_us, query_us)
        if m and nq:
            targets.fill_past(row, q, config, p.window_end_M[windows], shown_MxF, query_us)
        targets.fill_pairs(row, at, config, time_us, token, is_wear, n_static, t0, w0, rng)
    row["token"][s], row["value"][s] = token, value
    at["tokens"] += n
    at["windows"] += m
    at["queries"] += nq


def _age(time_us, origin_us):
    days, rest = np.divmod(np.asarray(time_us, np.int64) - origin_us, DAY_US)
    return np.stack([days.astype(np.float32), (rest / DAY_US).astype(np.float32)], axis=-1)


def _fill_signal(row, w, patients, p, windows, augment_rng):
    """The windows of a context, a block at a time; returns the summaries of what is shown, noise apart: [m, F]."""
    if not len(windows):
        return p.summary(0, 0)
    config, shown = patients.config, []
    changed = augment_rng is not None and config.augments_signal
    # consecutive ones, but where a transform of the patient took windows away
    runs = np.split(windows, np.nonzero(np.diff(windows) != 1)[0] + 1)
    at = w.start
    for a, b in (block for run in runs for block in p.blocks(int(run[0]), int(run[-1]) + 1)):
        signal_MxLxC = p.signal(a, b)
        if changed and config.time_warp:
            signal_MxLxC = augment.time_warp(augment_rng, signal_MxLxC, config.time_warp)
        if changed and config.channel_dropout:
            signal_MxLxC = augment.drop_channels(augment_rng, signal_MxLxC, config.channel_dropout)
        observed_MxLxC = np.isfinite(signal_MxLxC)
        clean_MxLxC = np.where(observed_MxLxC, signal_MxLxC, np.float32(0))
        shown.append(p.shown_summary(a, signal_MxLxC, patients.further_channel_X if changed else None))
        part = slice(at, at + b - a)
        at += b - a
        if changed and config.noise:
            clean_MxLxC = _with_noise(augment_rng, row, signal_MxLxC, clean_MxLxC, part, config)
        row["observed"][part], row["wear"][part] = observed_MxLxC, clean_MxLxC
    return np.concatenate(shown)


def _with_noise(rng, row, signal_MxLxC, clean_MxLxC, w, config):
    """Noise on the steps of the windows `w` of a row that the model sees; the others as in clean_MxLxC."""
    seen_only = signal_MxLxC
    if row["patch_mask"][w].any() or row["channel_mask"][w].any():
        in_patches = np.repeat(row["patch_mask"][w], config.patch_steps, axis=1)
        seen_only = signal_MxLxC.transpose(0, 2, 1).copy()
        np.copyto(seen_only[..., : in_patches.shape[1]], np.float32(np.nan), where=in_patches[:, None])
        np.copyto(seen_only, np.float32(np.nan), where=row["channel_mask"][w][..., None])
        seen_only = seen_only.transpose(0, 2, 1)
    noisy = augment.add_noise(rng, seen_only, config.noise, config.noise_steps)
    return np.where(np.isfinite(noisy), noisy, clean_MxLxC)


def _fill_masks(row, at, patients, token, value, time_us, event_at, t0, w0, m, rng, hidden):
    config = patients.config
    boost = None
    if config.interest_codes:
        near = masking.near_events(time_us[event_at], patients.interest_V[token[event_at]], config.interest_days)
        boost = np.where(near, config.interest_factor, 1.0)
    chosen = event_at[masking.mask_events(rng, token[event_at], patients.mask_weight_V, config.ehr_mask, boost)]
    kind = config.wear_mask_kind
    field = "channel_mask" if kind == "channel" else "patch_mask"
    n_parts = row[field].shape[-1]
    if kind == "channel":
        parts = masking.mask_channels(rng, m, n_parts, config.wear_mask)
    else:
        parts = masking.mask_patches(rng, m, n_parts, config.wear_mask, kind)
    if not hidden:
        return
    chosen = chosen[: len(row["masked_position"]) - at["masked"]]
    s = slice(at["masked"], at["masked"] + len(chosen))
    row["masked_position"][s], row["masked_target"][s] = t0 + chosen, token[chosen]
    at["masked"] += len(chosen)
    token[chosen], value[chosen] = MASK, 0.0
    if m:
        row[field][w0 : w0 + m] = parts


def new_row(shape):
    """An empty row and its cursors: see `cursors`."""
    return {k: v[0] for k, v in batch_lib.empty_batch(shape, 1).items()}, cursors()


def cursors(phase=0.0):
    """How much of each axis of a row is used, the number of contexts, and the phase in [0, 1) of targets.share."""
    used = ("tokens", "windows", "masked", "events", "queries", "pairs", "raw_windows", "segment")
    return {**dict.fromkeys(used, 0), "phase": phase}


def close_row(row, at):
    """Gives padding an empty key range at the end, which keeps kv_range non-decreasing."""
    row["kv_range"][at["tokens"] :] = at["tokens"]
    row["query_kv_range"][at["queries"] :] = at["tokens"]
    return row
