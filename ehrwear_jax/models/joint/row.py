"""Fills a row with its contexts: the tokens, what is hidden of them, the signal, and what the loss terms predict."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.joint import augmentation, layout, masking, raw_fields, value_fields
from ehrwear_jax.models.joint import patient as patient_lib
from ehrwear_jax.models.joint.batch import MASK, MODALITY_EHR, MODALITY_WEAR
from ehrwear_jax.models.joint.context import Draws, Shown

if TYPE_CHECKING:
    from ehrwear_jax.models.joint.examples import People


def fill_row(
    row: dict,
    people: "People",
    shown: Sequence[Shown],
    query_us: Sequence[np.ndarray],
    draws: Sequence[Draws] | None = None,
    phase: float = 0.0,
) -> None:
    """Writes all contexts of a row.

    Args:
      row: dict of empty arrays without the batch axis, see joint/batch.py.
      people: examples.People.
      shown: the patients and what their contexts show.
      query_us: int64 sorted times of the queries of each, absolute.
      draws: None at inference: nothing is hidden, and there are no targets.
      phase: in [0, 1), see context.quotas.

    A warp and a loss of channels change what the model sees and what it is to rebuild alike; the past summary is that
    of the changed signal, the summary of the following windows that of the recording. Noise is added to what the model
    sees only: hidden steps, the targets of reconstruction, stay clean, and their values do not scale the noise around
    them. Prediction of the next windows has the visible steps as targets, noise included: independent and with mean
    zero, it adds a constant to the expected squared error.
    """
    c = layout.lay_out(people, shown, query_us, phase)
    _fill_tokens(row, c)
    if draws is not None:
        c.rngs = [d.rng for d in draws]
        _fill_masks(row, c)
    _fill_signal(row, c, [None] * len(c) if draws is None else [d.augment_rng for d in draws])
    if people.value_inputs:
        if "query_value" in row:
            value_fields.fill_codes(row, c)
        if "query_signal" in row:
            value_fields.fill_channels(row, c)
    if draws is not None:
        _fill_events(row, c)
        for term in people.terms:
            term.fill(row, c)
    n = len(c.token_N)
    row["token"][:n], row["value"][:n] = c.token_N, np.where(np.isnan(c.value_N), np.float32(0), c.value_N)
    if "quantile" in row:
        row["quantile"][:n] = people.value_quantiles(c.token_N, c.value_N)


def _fill_tokens(row, c):
    """Order, times and visibility of the tokens and queries; padding at the end has an empty key range there."""
    n, n_queries, begin_C = len(c.of_N), len(c.of_Q), c.bound_N[:-1]
    row["modality"][:n] = np.where(c.is_wear_N, MODALITY_WEAR, MODALITY_EHR)
    row["time"][:n] = (c.time_us_N - c.anchor_C[c.of_N]) / DAY_US
    row["segment"][:n] = c.of_N + 1
    row["kv_range"][:n, 0] = begin_C[c.of_N]
    row["kv_range"][:n, 1] = np.arange(1, n + 1)
    row["kv_range"][n:] = n  # which keeps it non-decreasing
    wear_at = np.flatnonzero(c.is_wear_N)
    row["window"][wear_at] = np.arange(len(wear_at))
    row["window_position"][: len(wear_at)] = wear_at
    row["query_time"][:n_queries] = (c.query_us_Q - c.anchor_C[c.of_Q]) / DAY_US
    of, time_us = np.concatenate([c.of_N, c.of_Q]), np.concatenate([c.time_us_N, c.query_us_Q])
    age = layout.ages(c.patients, of, time_us, c.origin_C)
    row["age"][:n], row["query_age"][:n_queries] = age[:n], age[n:]
    row["query_segment"][:n_queries] = c.of_Q + 1
    row["query_kv_range"][:n_queries, 0] = begin_C[c.of_Q]
    row["query_kv_range"][:n_queries, 1] = c.stop_Q
    row["query_kv_range"][n_queries:] = n


def _fill_masks(row, c):
    """Hides events, and patches or channels of windows, in a share of the contexts; what no term asks for stays."""
    people, config, timed = c.people, c.people.config, c.timed_N
    chance_K = masking.mask_chances(c.token_N[timed], people.mask_weight_V, config.ehr_mask)
    draw_K, hidden_K = np.empty(len(timed)), np.zeros(len(timed), bool)
    at, windows = c.timed_bound.tolist(), c.bound_M.tolist()
    for k, rng in enumerate(c.rngs):
        mine, w = slice(at[k], at[k + 1]), slice(windows[k], windows[k + 1])
        hidden_K[mine] = c.hides_C[k] = hidden = rng.random() < config.masked_contexts
        if config.interest_codes:
            chance_K[mine] = _boosted_chances(c, timed[mine])
        rng.random(out=draw_K[mine])
        parts = _signal_mask(row, config, rng, w.stop - w.start)
        if hidden and parts is not None and people.hides_signal:
            row[_masked_field(config)][w] = parts
    if "masked_position" in row:
        chosen = timed[(draw_K < chance_K) & hidden_K][: len(row["masked_position"])]
        row["masked_position"][: len(chosen)], row["masked_target"][: len(chosen)] = chosen, c.token_N[chosen]
        c.token_N[chosen], c.value_N[chosen] = MASK, np.nan


def _boosted_chances(c, at):
    """masking.mask_chances of a context's timed events at `at`, higher near events of interest."""
    people, config, token = c.people, c.people.config, c.token_N[at]
    near = masking.near_events(c.time_us_N[at], people.interest_V[token], config.interest_days)
    boost = np.where(near, config.interest_factor, 1.0)
    return masking.mask_chances(token, people.mask_weight_V, config.ehr_mask, boost)


def _masked_field(config):
    return "channel_mask" if config.wear_mask_kind == "channel" else "patch_mask"


def _signal_mask(row, config, rng, n_windows):
    """What is hidden of a context's windows; None without any, where a mask of whole windows draws all the same."""
    kind, n_parts = config.wear_mask_kind, row[_masked_field(config)].shape[-1]
    if not n_windows and kind != "window":
        return None
    if kind == "channel":
        return masking.mask_channels(rng, n_windows, n_parts, config.wear_mask)
    parts = masking.mask_patches(rng, n_windows, n_parts, config.wear_mask, kind)
    return parts if n_windows else None


def _fill_events(row, c):
    """Chooses the events at which predictions are made: the last one of a distinct time, so that codes count once."""
    if "event_position" not in row:
        return
    timed, room = c.timed_N, len(row["event_position"])
    time_us, of = c.time_us_N[timed], c.of_N[timed]
    is_last = np.ones(len(timed), bool)
    is_last[:-1] = (time_us[1:] != time_us[:-1]) | (of[1:] != of[:-1])
    last = timed[is_last]
    at, chosen = np.searchsorted(last, c.bound_N).tolist(), []
    for k, (rng, quota) in enumerate(zip(c.rngs, c.quotas(c.people.config.events).tolist(), strict=True)):
        mine = last[at[k] : at[k + 1]]
        if not c.people.config.every_time:
            mine = rng.permutation(mine)[: min(room, quota)]
        chosen.append(mine)
        room -= len(mine)
        c.bound_E[k + 1] = c.bound_E[k] + len(mine)
    if chosen:
        c.event_E = np.sort(np.concatenate(chosen))
    row["event_position"][: len(c.event_E)] = c.event_E


# --------------------------------------------------------------------------------------------------------- signal


def _fill_signal(row, c, augment_rngs):
    """The windows, what is known of their quality, raw windows inside them, and the summaries of what is shown."""
    people, config, at = c.people, c.people.config, c.bound_M.tolist()
    if not at[-1]:
        return
    changed = config.augments_signal and augment_rngs[0] is not None
    if changed:
        worn = [k for k in range(len(c)) if at[k + 1] > at[k]]
        found = [_changed_signal(row, people, c.patients[k], c.windows[k], at[k], augment_rngs[k]) for k in worn]
        c.shown_MxF = np.concatenate(found)
    else:
        _fill_as_recorded(row, c)
    n_raw = 0
    for p, windows, w0 in zip(c.patients, c.windows, at, strict=False):
        if p.quality_MxLxC is not None:
            raw_fields.fill_quality(row, people, p.quality_MxLxC, windows, w0)
        if p.raw is not None:
            n_raw += raw_fields.fill_raw(row, n_raw, people, p.raw, (windows, w0), config.time_warp if changed else 0.0)


def _fill_as_recorded(row, c):
    """The windows of all contexts as they were recorded, a block at a time."""
    parts = [(p, _runs(windows)) for p, windows in zip(c.patients, c.windows, strict=True) if len(windows)]
    raw_MxLxC = np.concatenate([p.window_MxLxC[a:b] for p, runs in parts for a, b in runs])
    c.shown_MxF = np.concatenate([p.summary(a, b) for p, runs in parts for a, b in runs])
    for a, b in patient_lib.blocks(raw_MxLxC.shape, 0, len(raw_MxLxC)):
        signal_MxLxC = patient_lib.standard_signal(raw_MxLxC[a:b], parts[0][0].scales)
        observed_MxLxC = np.isfinite(signal_MxLxC)
        row["observed"][a:b], row["wear"][a:b] = observed_MxLxC, np.where(observed_MxLxC, signal_MxLxC, np.float32(0))


def _runs(windows):
    """[(lo, hi)] of increasing windows: consecutive ones, but where a transform of the patient took some away."""
    if windows[-1] - windows[0] == len(windows) - 1:
        return [(int(windows[0]), int(windows[-1]) + 1)]
    runs = np.split(windows, np.nonzero(np.diff(windows) != 1)[0] + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]


def _changed_signal(row, people, p, windows, at, rng):
    """The windows of a context with a changed signal; returns the summaries of what is shown, noise apart: [m, F]."""
    config, shown = people.config, []
    for a, b in (block for lo, hi in _runs(windows) for block in p.blocks(lo, hi)):
        signal_MxLxC = p.signal(a, b)
        if config.time_warp:
            signal_MxLxC = augmentation.time_warp(rng, signal_MxLxC, config.time_warp)
        if config.channel_dropout:
            signal_MxLxC = augmentation.drop_channels(rng, signal_MxLxC, config.channel_dropout)
        observed_MxLxC = np.isfinite(signal_MxLxC)
        clean_MxLxC = np.where(observed_MxLxC, signal_MxLxC, np.float32(0))
        shown.append(p.shown_summary(a, signal_MxLxC, people.derived_channel_X))
        part = slice(at, at + b - a)
        at += b - a
        if config.noise:
            clean_MxLxC = _with_noise(rng, row, signal_MxLxC, clean_MxLxC, part, config)
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
