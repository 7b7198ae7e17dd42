"""One patient's context in a row: the tokens, what is hidden of them, and the reads with their targets."""

import dataclasses

import numpy as np

from ehrwear_jax import batch as batch_lib
from ehrwear_jax.batch import MASK, MODALITY_EHR, MODALITY_WEAR, PAD, WEAR
from ehrwear_jax.data import augment, masking, signal
from ehrwear_jax.data.patient import summary_table

DAY_US = signal.DAY_US


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """How patients become rows; times in days.

    Attributes:
      tokens, windows: capacity of a row.
      context_tokens: most tokens of one patient in a row, static ones included.
      queries, events: capacity of a row for query and event reads; shared among its contexts by their length.
      future_windows: steps of multi-step prediction.
      horizons: for the prediction of later codes.
      future_codes: how many codes and ancestors of codes (the most frequent) are predicted.
      recalled_tokens: how many tokens (the most frequent) are recalled.
      pairs: capacity of a row for pairs of a wearable window and the EHR events within colocated_days of its end, which
        contrastive alignment compares (paper, section 3.3: temporally co-located); 0 leaves it out.
      pool_days: tau of the wearable-to-EHR term. summary_days: tau' of the EHR-to-wearable term.
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
        the record where it fits into a context, else at a token that has a full context before it. Contexts that end
        early are shorter, and rows emptier.
      day_temperature: of the sampling of patient-days by their codes, see masking.token_weights.
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
        limits = {
            "interest_factor": (1, np.inf),
            "interest_days": (0, np.inf),
            "administrative_weight": (0, np.inf),
            "patient_days": (0, 1),
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


def first_token(patient, stop, config, max_windows):
    """Where a context that ends before merged token `stop` begins, within the capacities of tokens and windows."""
    start = max(0, stop - max(config.context_tokens - len(patient.static_token_S), 1))
    n_wear = np.cumsum(patient.is_wear_N[start:stop][::-1])
    if len(n_wear) and n_wear[-1] > max_windows:
        start = stop - int(np.searchsorted(n_wear, max_windows, side="right"))
    return start


def fill_context(row, at, patients, patient, start, stop, query_us, rng, augment_rng=None):
    """Writes one context into a row and moves the cursors.

    Args:
      row: dict of arrays without the batch axis, see batch.FIELDS.
      at: dict of cursors: tokens, windows, masked, events, queries, pairs, segment.
      start, stop: the merged tokens of the context.
      query_us: int64 sorted times of its queries, absolute.
      rng: numpy Generator for masks and event reads; None at inference (nothing hidden, no targets).
      augment_rng: numpy Generator for changes of the signal; None leaves it as recorded.

    A warp and a loss of channels change what the model sees and what it is to rebuild alike; the past summary is that
    of the changed signal, the summary of the following windows that of the recording. Noise is added to what the model
    sees only: hidden steps, the targets of reconstruction, stay clean, and their values do not scale the noise around
    them. Prediction of the next windows has the visible steps as targets, noise included: independent and with mean
    zero, it adds a constant to the expected squared error.
    """
    config, p = patients.config, patient
    n_static = min(len(p.static_token_S), config.context_tokens - 1)
    is_wear = np.concatenate([np.zeros(n_static, bool), p.is_wear_N[start:stop]])
    n, t0, w0 = len(is_wear), at["tokens"], at["windows"]
    at["segment"] += 1
    anchor = int(p.time_N[start]) if stop > start else p.origin_us
    time_us = np.concatenate([np.full(n_static, anchor), p.time_N[start:stop]]).astype(np.int64)
    ref = p.ref_N[start:stop]
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
    changed = augment_rng is not None and config.augments_signal and m > 0
    signal_MxLxC = p.window_MxLxC[windows]
    if changed:
        signal_MxLxC = _change_signal(augment_rng, signal_MxLxC, config)
    if m:
        row["wear"][w0 : w0 + m] = np.nan_to_num(signal_MxLxC)
        row["observed"][w0 : w0 + m] = np.isfinite(signal_MxLxC)
        row["window_position"][w0 : w0 + m] = t0 + wear_at
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
        if changed and config.noise:
            _add_noise(augment_rng, row, signal_MxLxC, slice(w0, w0 + m), config)
        _fill_targets(row, at, patients, p, original, time_us, ehr_at[n_static:], t0, w0, m, windows, query_us, rng)
        _fill_recall(row, q, patients, token, n_static, time_us, query_us)
        if m and nq:
            shown_MxF = summary_table(signal_MxLxC) if changed else p.window_summary()[windows]
            _fill_past(row, q, config, p.window_end_M[windows], shown_MxF, query_us)
        _fill_pairs(row, at, config, time_us, token, is_wear, n_static, t0, w0, rng)
    row["token"][s], row["value"][s] = token, value
    at["tokens"] += n
    at["windows"] += m
    at["queries"] += nq


def _age(time_us, origin_us):
    days, rest = np.divmod(np.asarray(time_us, np.int64) - origin_us, DAY_US)
    return np.stack([days.astype(np.float32), (rest / DAY_US).astype(np.float32)], axis=-1)


def _change_signal(rng, signal_MxLxC, config):
    """The windows of a context warped, with channels lost."""
    if config.time_warp:
        signal_MxLxC = augment.time_warp(rng, signal_MxLxC, config.time_warp)
    if config.channel_dropout:
        signal_MxLxC = augment.drop_channels(rng, signal_MxLxC, config.channel_dropout)
    return signal_MxLxC


def _add_noise(rng, row, signal_MxLxC, w, config):
    """Noise on the steps of the windows `w` of a row that the model sees."""
    hidden_MxL = np.zeros(signal_MxLxC.shape[:2], bool)
    in_patches = np.repeat(row["patch_mask"][w], config.patch_steps, axis=1)
    hidden_MxL[:, : in_patches.shape[1]] = in_patches
    seen_MxLxC = ~(hidden_MxL[..., None] | row["channel_mask"][w][:, None]) & np.isfinite(signal_MxLxC)
    seen_only = np.where(seen_MxLxC, signal_MxLxC, np.nan)
    noisy = augment.add_noise(rng, seen_only, config.noise, config.noise_steps)
    row["wear"][w] = np.where(seen_MxLxC, noisy, row["wear"][w])


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


def _fill_targets(row, at, patients, p, token, time_us, event_at, t0, w0, m, windows, query_us, rng):
    config = patients.config
    n = len(time_us)
    # event reads: the last event of each distinct time, so that simultaneous codes count once
    last = event_at[np.append(time_us[event_at][1:] != time_us[event_at][:-1], True)] if len(event_at) else event_at
    quota = min(len(row["event_position"]) - at["events"], max(1, config.events * n // config.tokens))
    reads = np.sort(rng.permutation(last)[: max(quota, 0)]).astype(np.int64)
    e = slice(at["events"], at["events"] + len(reads))
    row["event_position"][e] = t0 + reads
    at["events"] += len(reads)
    q = slice(at["queries"], at["queries"] + len(query_us))
    for name, s, read_us, stop in (
        ("event", e, time_us[reads], reads + 1),
        ("query", q, query_us, row["query_kv_range"][q, 1] - t0),
    ):
        if not len(read_us):
            continue
        nxt = np.searchsorted(p.event_time_K, read_us, side="right")
        row[f"{name}_next"][s] = np.where(nxt < len(p.event_token_K), np.append(p.event_token_K, PAD)[nxt], PAD)
        begin = np.searchsorted(time_us, read_us - int(config.pool_days * DAY_US), side="left")
        row[f"{name}_pool"][s, 0], row[f"{name}_pool"][s, 1] = t0 + begin, t0 + stop
        if len(p.window_end_M):
            row[f"{name}_summary"][s], row[f"{name}_summary_mask"][s] = _following(
                p, read_us, config, patients.window_us
            )
    if m:
        end = p.window_end_M[windows]
        row["step_window"][w0 : w0 + m] = _next_windows(end, end, patients.window_us, config.future_windows, w0)
        if len(query_us):
            row["query_window"][q] = _next_windows(query_us, end, patients.window_us, config.future_windows, w0)
    horizon_us = (np.asarray(config.horizons) * DAY_US).astype(np.int64)
    for i, t in enumerate(query_us):
        later = slice(*np.searchsorted(p.event_time_K, [t, t + horizon_us[-1]], side="right"))
        cls = patients.future_class_VxA[p.event_token_K[later]]
        first = np.searchsorted(horizon_us, p.event_time_K[later] - t, side="left").astype(np.uint8)
        first = np.broadcast_to(first[:, None], cls.shape)
        np.minimum.at(row["query_code_bin"][q.start + i], cls[cls >= 0], first[cls >= 0])
        row["query_horizons"][q.start + i] = len(horizon_us) if p.died else np.sum(t + horizon_us <= p.end_us)


def _fill_recall(row, q, patients, token, n_static, time_us, query_us):
    """What a query should still know of the events: when each token was last seen.

    Only what the context shows counts: neither hidden events nor what lies before its first token.
    """
    config = patients.config
    horizon_us = (np.asarray(config.horizons) * DAY_US).astype(np.int64)
    cls = patients.recalled_class_V[token]
    for i, (t, stop) in enumerate(
        zip(query_us, row["query_kv_range"][q, 1] - row["query_kv_range"][q, 0], strict=True)
    ):
        ago = np.searchsorted(horizon_us, t - time_us[:stop], side="left")
        ago = np.where((ago == len(horizon_us)) | (np.arange(stop) < n_static), 254, ago).astype(np.uint8)
        known = cls[:stop] >= 0
        np.minimum.at(row["query_token_bin"][q.start + i], cls[:stop][known], ago[known])


def _fill_past(row, q, config, end_M, shown_MxF, query_us):
    """What a query should still know of the signal: how the windows that the context shows were of late."""
    lo = np.searchsorted(end_M, query_us - int(config.summary_days * DAY_US), side="right")
    hi = np.searchsorted(end_M, query_us, side="right")
    row["query_past"][q], row["query_past_mask"][q] = _average(shown_MxF, lo, hi)


def _fill_pairs(row, at, config, time_us, token, is_wear, n_static, t0, w0, rng):
    """Windows with something visible, and with visible events near their end, in random choice.

    Static tokens have no time and are near to nothing.
    """
    quota = min(len(row["pair_position"]) - at["pairs"], max(1, config.pairs * len(time_us) // config.tokens))
    wear_at = np.nonzero(is_wear)[0]
    if quota <= 0 or not len(wear_at):
        return
    near_us = np.array([-1, 1]) * int(config.colocated_days * DAY_US)
    lo, hi = (
        n_static + np.searchsorted(time_us[n_static:], time_us[wear_at] + s, side=side)
        for s, side in zip(near_us, ("left", "right"), strict=True)
    )
    visible = np.concatenate([[0], np.cumsum(~is_wear & (token != MASK))])
    w = slice(w0, w0 + len(wear_at))
    hidden = row["patch_mask"][w].all(axis=1) | row["channel_mask"][w].all(axis=1)
    shown = row["observed"][w].any(axis=(1, 2)) & ~hidden
    found = np.nonzero(shown & (visible[hi] > visible[lo]))[0]
    chosen = np.sort(rng.permutation(found)[:quota]).astype(np.int64)
    s = slice(at["pairs"], at["pairs"] + len(chosen))
    row["pair_position"][s] = t0 + wear_at[chosen]
    row["pair_near"][s] = t0 + np.stack([lo[chosen], hi[chosen]], axis=1)
    at["pairs"] += len(chosen)


def _following(p, read_us, config, window_us):
    """Mean summary statistics of the windows that lie inside (t, t + summary_days]: ([N, F], mask [N, F])."""
    lo = np.searchsorted(p.window_end_M, read_us + window_us, side="left")
    hi = np.searchsorted(p.window_end_M, read_us + int(config.summary_days * DAY_US), side="right")
    return _average(p.window_summary(), lo, hi)


def _average(table_MxF, lo_N, hi_N):
    """Means of the rows lo to hi, leaving out NaN: (float32 [N, F], whether there was any [N, F])."""
    good = np.isfinite(table_MxF)
    zero = np.zeros((1, table_MxF.shape[1]))
    total = np.concatenate([zero, np.cumsum(np.where(good, table_MxF, 0.0), axis=0, dtype=np.float64)])
    count = np.concatenate([zero, np.cumsum(good, axis=0)])
    hi_N = np.maximum(hi_N, lo_N)
    seen = count[hi_N] - count[lo_N]
    return ((total[hi_N] - total[lo_N]) / np.maximum(seen, 1)).astype(np.float32), seen > 0


def _next_windows(time_us, end_M, window_us, steps, w0):
    """Slots of the windows that end in (t + (h-1) window, t + h window], h = 1..steps; -1 where there is none."""
    h = np.arange(1, steps + 1)
    until = np.asarray(time_us)[:, None] + h[None] * window_us
    slot = np.searchsorted(end_M, until, side="right") - 1
    found = (slot >= 0) & (end_M[np.maximum(slot, 0)] > until - window_us)
    return np.where(found, w0 + slot, -1)


def new_row(shape):
    """An empty row and its cursors."""
    row = {k: v[0] for k, v in batch_lib.empty_batch(shape, 1).items()}
    return row, dict.fromkeys(("tokens", "windows", "masked", "events", "queries", "pairs", "segment"), 0)


def close_row(row, at):
    """Gives padding an empty key range at the end, which keeps kv_range non-decreasing."""
    row["kv_range"][at["tokens"] :] = at["tokens"]
    row["query_kv_range"][at["queries"] :] = at["tokens"]
    return row
