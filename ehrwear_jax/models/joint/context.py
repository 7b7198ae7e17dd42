"""Fills one patient's context into a row: the tokens, what is hidden of them, and what the loss terms predict."""

import dataclasses
import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.joint import augmentation, masking, raw_fields, value_fields
from ehrwear_jax.models.joint.batch import MASK, MODALITY_EHR, MODALITY_WEAR, PAD, WEAR
from ehrwear_jax.models.joint.patient import Patient

if TYPE_CHECKING:
    from ehrwear_jax.models.joint.examples import People

_CURSORS = ("tokens", "windows", "masked", "events", "queries", "pairs", "raw_windows", "segment")


class Span(NamedTuple):
    """What of a patient a context shows: its first static tokens, its latest events and its latest windows.

    Attributes:
      n_static, n_events, n_windows: how many it shows.
      n_events_out, n_windows_out: how many older ones there are that it does not show.
      start, stop: the shown events and windows lie among these merged tokens, the first of which is shown.
    """

    n_static: int
    n_events: int
    n_windows: int
    n_events_out: int
    n_windows_out: int
    start: int
    stop: int

    @property
    def n_ehr(self) -> int:
        """How many EHR tokens it shows, static ones included."""
        return self.n_static + self.n_events

    @property
    def n_tokens(self) -> int:
        """How many tokens it shows."""
        return self.n_ehr + self.n_windows

    def positions(self, patient: Patient) -> slice | np.ndarray:
        """The merged tokens that are shown: a slice, or int64 indices where some in between are left out."""
        if self.stop - self.start == self.n_events + self.n_windows:
            return slice(self.start, self.stop)
        parts = zip((patient.event_at, patient.window_at), (self.n_events_out, self.n_windows_out),
                    (self.n_events, self.n_windows), strict=True)  # fmt: skip
        return np.sort(np.concatenate([at[first : first + n] for at, first, n in parts]))


def fit(patient: Patient, stop: int, max_ehr: int, max_windows: int) -> Span:
    """The longest context that ends before merged token `stop` within two budgets that do not know of each other.

    So a model of both modalities is shown the events that a model of the EHR alone is shown, and the windows that a
    model of the wearable alone is shown, whatever there is of the other.

    Args:
      max_ehr: most EHR tokens, static ones included, which come first; the latest events take the others, one at
        least. max_windows: the latest windows.
    """
    n_static = min(len(patient.static_token_S), max(max_ehr - 1, 0))
    before = [int(np.searchsorted(at, stop)) for at in (patient.event_at, patient.window_at)]
    n_events, n_windows = min(before[0], max(max_ehr - n_static, 0)), min(before[1], max(max_windows, 0))
    out = before[0] - n_events, before[1] - n_windows
    start = stop
    if n_events:
        start = int(patient.event_at[out[0]])
    if n_windows:
        start = min(start, int(patient.window_at[out[1]]))
    return Span(n_static, n_events, n_windows, *out, start, stop)


class Shown(NamedTuple):
    """A patient, what of them a context shows (see fit), and their position in the split."""

    patient: Patient
    span: Span
    position: int = -1


class Draws(NamedTuple):
    """Generators of a training context: of masks and of where predictions are made; of changes of the signal.

    The second is None where the signal stays as recorded.
    """

    rng: np.random.Generator
    augment_rng: np.random.Generator | None = None


@dataclasses.dataclass
class Context:
    """One context of a row while it is filled; what the terms' targets are made from.

    Attributes:
      people: examples.People. patient: whose context it is, at this position in the split.
      n_static, is_wear_N, time_us_N: of its tokens, static ones first.
      token_N: tokens, after some were hidden. value_N: float32, their standardised values, NaN: none, or hidden.
      windows: the patient's windows that it shows. shown_MxF: their summaries as shown, noise apart.
      query_us_Q: sorted times of its queries. event_E: its tokens at which predictions are made, increasing.
      tokens, window_slots, queries, events: slices of the row that it takes.
      rng: of further draws; not set at inference.
    """

    people: "People"
    patient: Patient
    position: int
    n_static: int
    is_wear_N: np.ndarray
    time_us_N: np.ndarray
    token_N: np.ndarray
    value_N: np.ndarray
    windows: np.ndarray
    query_us_Q: np.ndarray
    tokens: slice
    window_slots: slice
    queries: slice
    shown_MxF: np.ndarray = dataclasses.field(init=False)
    rng: np.random.Generator = dataclasses.field(init=False)
    event_E: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    events: slice = dataclasses.field(default_factory=lambda: slice(0, 0))

    @functools.cached_property
    def timed_events(self) -> np.ndarray:
        """Its timed EHR events among its tokens."""
        return self.n_static + np.flatnonzero(~self.is_wear_N[self.n_static :])

    @functools.cached_property
    def times_us_R(self) -> np.ndarray:
        """When predictions are made: at events, then at queries."""
        return np.concatenate([self.time_us_N[self.event_E], self.query_us_Q])

    def at_events_and_queries(self) -> tuple[tuple[str, slice, slice], tuple[str, slice, slice]]:
        """(name of the fields, slice of the row, slice of what is made for times_us_R) of the two kinds."""
        n = len(self.event_E)
        return ("event", self.events, slice(n)), ("query", self.queries, slice(n, None))

    @functools.cached_property
    def future_token_R(self) -> np.ndarray:
        """The patient's first token at the next distinct time, PAD where there is none."""
        p = self.patient
        return np.append(p.event_token_K, PAD)[np.searchsorted(p.event_time_K, self.times_us_R, side="right")]


def share(capacity: int, at: dict, n_tokens: int, max_tokens: int) -> int:
    """How many of a row's predictions the next context of n_tokens gets: by its length, rounded at random.

    Args:
      capacity: predictions of a row of max_tokens tokens.

    Every token has the same expected number of predictions, and a row full of tokens uses the whole capacity.
    """
    before, after = (capacity * used / max_tokens + at["phase"] for used in (at["tokens"], at["tokens"] + n_tokens))
    return int(after) - int(before)


def fill_context(
    row: dict, at: dict, people: "People", shown: Shown, query_us: np.ndarray, draws: Draws | None = None
) -> None:
    """Writes one context into a row and moves the cursors.

    Args:
      row: dict of arrays without the batch axis, see joint/batch.py.
      at: dict of cursors, see `cursors`.
      people: examples.People.
      shown: the patient and what the context shows.
      query_us: int64 sorted times of its queries, absolute.
      draws: None at inference: nothing is hidden, and there are no targets.

    A warp and a loss of channels change what the model sees and what it is to rebuild alike; the past summary is that
    of the changed signal, the summary of the following windows that of the recording. Noise is added to what the model
    sees only: hidden steps, the targets of reconstruction, stay clean, and their values do not scale the noise around
    them. Prediction of the next windows has the visible steps as targets, noise included: independent and with mean
    zero, it adds a constant to the expected squared error.
    """
    c = _fill_tokens(row, at, people, shown, query_us)
    augment_rng = None
    if draws is not None:
        c.rng, augment_rng = draws
        _fill_masks(row, at, c)
    c.shown_MxF = _fill_signal(row, c, augment_rng)
    if c.patient.quality_MxLxC is not None:
        raw_fields.fill_quality(row, people, c.patient.quality_MxLxC, c.windows, c.window_slots.start)
    if c.patient.raw is not None:
        warp = people.config.time_warp if augment_rng is not None else 0.0
        raw_fields.fill_raw(row, at, people, c.patient.raw, c.windows, c.window_slots.start, warp)
    if people.value_inputs:
        if "query_value" in row:
            value_fields.fill_codes(row, c)
        if "query_signal" in row:
            value_fields.fill_channels(row, c)
    if draws is not None:
        _fill_events(row, at, c)
        for term in people.terms:
            term.fill(row, at, c)
    row["token"][c.tokens], row["value"][c.tokens] = c.token_N, np.nan_to_num(c.value_N)
    if "quantile" in row:
        row["quantile"][c.tokens] = people.value_quantiles(c.token_N, c.value_N)
    at["tokens"], at["windows"], at["queries"] = c.tokens.stop, c.window_slots.stop, c.queries.stop


def _fill_tokens(row, at, people, shown, query_us):
    """Order, times and visibility of the tokens and queries."""
    p, span, position = shown
    merged, n_static = span.positions(p), span.n_static
    is_wear = np.concatenate([np.zeros(n_static, bool), p.is_wear_N[merged]])
    n, t0 = len(is_wear), at["tokens"]
    at["segment"] += 1
    # without a birth date, the first record may be yet to come: when it comes, or that none does, must not show
    origin_us = p.origin_us if p.has_birth or span.stop else int(query_us.min())
    anchor = int(p.time_N[span.start]) if span.stop > span.start else origin_us
    time_us = np.concatenate([np.full(n_static, anchor), p.time_N[merged]]).astype(np.int64)
    ref = p.ref_N[merged]
    events, windows = ref[~is_wear[n_static:]], ref[is_wear[n_static:]]
    token, value, ehr_at = np.full(n, WEAR, np.int32), np.full(n, np.nan, np.float32), np.flatnonzero(~is_wear)
    token[ehr_at] = np.concatenate([p.static_token_S[:n_static], p.event_token_K[events]])
    value[ehr_at] = np.concatenate([p.static_value_S[:n_static], p.event_value_K[events]])
    s, wear_at = slice(t0, t0 + n), np.flatnonzero(is_wear)
    row["modality"][s] = np.where(is_wear, MODALITY_WEAR, MODALITY_EHR)
    row["time"][s] = (time_us - anchor) / DAY_US
    row["age"][s] = p.ages(time_us, origin_us)
    row["segment"][s] = at["segment"]
    row["kv_range"][s, 0] = t0
    row["kv_range"][s, 1] = t0 + 1 + np.arange(n)
    w = slice(at["windows"], at["windows"] + len(wear_at))
    row["window"][t0 + wear_at] = w.start + np.arange(len(wear_at))
    row["window_position"][w] = t0 + wear_at
    q = slice(at["queries"], at["queries"] + len(query_us))
    row["query_time"][q] = (query_us - anchor) / DAY_US
    row["query_age"][q] = p.ages(query_us, origin_us)
    row["query_segment"][q] = at["segment"]
    row["query_kv_range"][q, 0] = t0
    row["query_kv_range"][q, 1] = t0 + n_static + np.searchsorted(time_us[n_static:], query_us, side="right")
    found = {"n_static": n_static, "is_wear_N": is_wear, "time_us_N": time_us, "windows": windows}
    found |= {"token_N": token, "value_N": value, "query_us_Q": query_us}
    return Context(people, p, position, **found, tokens=s, window_slots=w, queries=q)


def _fill_masks(row, at, c):
    """Hides events, and patches or channels of windows, in a share of the contexts; what no term asks for stays."""
    config, people, event_at = c.people.config, c.people, c.timed_events
    hidden = c.rng.random() < config.masked_contexts
    boost = None
    if config.interest_codes:
        near = masking.near_events(c.time_us_N[event_at], people.interest_V[c.token_N[event_at]], config.interest_days)
        boost = np.where(near, config.interest_factor, 1.0)
    of_event = masking.mask_events(c.rng, c.token_N[event_at], people.mask_weight_V, config.ehr_mask, boost)
    chosen, m = event_at[of_event], len(c.windows)
    field = "channel_mask" if config.wear_mask_kind == "channel" else "patch_mask"
    n_parts = row[field].shape[-1]
    if config.wear_mask_kind == "channel":
        parts = masking.mask_channels(c.rng, m, n_parts, config.wear_mask)
    else:
        parts = masking.mask_patches(c.rng, m, n_parts, config.wear_mask, config.wear_mask_kind)
    if not hidden:
        return
    if "masked_position" in row:
        chosen = chosen[: len(row["masked_position"]) - at["masked"]]
        s = slice(at["masked"], at["masked"] + len(chosen))
        row["masked_position"][s], row["masked_target"][s] = c.tokens.start + chosen, c.token_N[chosen]
        at["masked"] += len(chosen)
        c.token_N[chosen], c.value_N[chosen] = MASK, np.nan
    if m and people.hides_signal:
        row[field][c.window_slots] = parts


def _fill_signal(row, c, augment_rng):
    """The windows of a context, a block at a time; returns the summaries of what is shown, noise apart: [m, F]."""
    p, config, shown = c.patient, c.people.config, []
    if not len(c.windows):
        return p.summary(0, 0)
    changed = augment_rng is not None and config.augments_signal
    # consecutive ones, but where a transform of the patient took windows away
    runs = np.split(c.windows, np.nonzero(np.diff(c.windows) != 1)[0] + 1)
    at = c.window_slots.start
    for a, b in (block for run in runs for block in p.blocks(int(run[0]), int(run[-1]) + 1)):
        signal_MxLxC = p.signal(a, b)
        if changed and config.time_warp:
            signal_MxLxC = augmentation.time_warp(augment_rng, signal_MxLxC, config.time_warp)
        if changed and config.channel_dropout:
            signal_MxLxC = augmentation.drop_channels(augment_rng, signal_MxLxC, config.channel_dropout)
        observed_MxLxC = np.isfinite(signal_MxLxC)
        clean_MxLxC = np.where(observed_MxLxC, signal_MxLxC, np.float32(0))
        shown.append(p.shown_summary(a, signal_MxLxC, c.people.derived_channel_X if changed else None))
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
    noisy = augmentation.add_noise(rng, seen_only, config.noise, config.noise_steps)
    return np.where(np.isfinite(noisy), noisy, clean_MxLxC)


def _fill_events(row, at, c):
    """Chooses the events at which predictions are made: the last one of a distinct time, so that codes count once."""
    if "event_position" not in row:
        return
    event_at, config = c.timed_events, c.people.config
    time_us = c.time_us_N[event_at]
    last = event_at[np.append(time_us[1:] != time_us[:-1], True)] if len(event_at) else event_at
    if config.every_time:
        c.event_E = last.astype(np.int64)
    else:
        quota = share(config.events, at, len(c.time_us_N), c.people.row_tokens)
        quota = min(len(row["event_position"]) - at["events"], quota)
        c.event_E = np.sort(c.rng.permutation(last)[:quota]).astype(np.int64)
    c.events = slice(at["events"], at["events"] + len(c.event_E))
    row["event_position"][c.events] = c.tokens.start + c.event_E
    at["events"] = c.events.stop


def cursors(phase: float = 0.0) -> dict:
    """How much of each axis of a row is used, the number of contexts, and the phase in [0, 1) of `share`."""
    return {**dict.fromkeys(_CURSORS, 0), "phase": phase}


def close_row(row: dict, at: dict) -> dict:
    """Gives padding an empty key range at the end, which keeps kv_range non-decreasing."""
    row["kv_range"][at["tokens"] :] = at["tokens"]
    row["query_kv_range"][at["queries"] :] = at["tokens"]
    return row
