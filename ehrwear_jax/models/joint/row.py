"""Fills rows with their contexts: the tokens, what is hidden of them, the signal, and what the loss terms predict."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.family import Batch
from ehrwear_jax.models.joint import augmentation, layout, masking, raw_fields, value_fields
from ehrwear_jax.models.joint import patient as patient_lib
from ehrwear_jax.models.joint.batch import MASK, MODALITY_EHR, MODALITY_WEAR
from ehrwear_jax.models.joint.context import Contents

if TYPE_CHECKING:
    from ehrwear_jax.models.joint.examples import People


_BYTES_AT_ONCE = 2**21


def blocks(batch: Batch) -> Iterator[tuple[slice, Batch]]:
    """(which rows, their arrays) of the parts of a batch that are filled together.

    Many short rows share calls of numpy; of rows with much signal, each is done while its arrays are in a core's cache.
    """
    n_rows = len(batch["token"])
    at_once = max(1, _BYTES_AT_ONCE * n_rows // sum(array.nbytes for array in batch.values()))
    for first in range(0, n_rows, at_once):
        some = slice(first, first + at_once)
        yield some, {name: array[some] for name, array in batch.items()}


def fill_rows(batch: Batch, people: "People", rows: Sequence[Contents]) -> None:
    """Writes all contexts of some rows; each is what it is alone, in any company.

    Args:
      batch: empty arrays of these rows, see joint/batch.py.
      people: examples.People.
      rows: what each of them holds; all are of training, or none.

    A warp and a loss of channels change what the model sees and what it is to rebuild alike; the past summary is that
    of the changed signal, the summary of the following windows that of the recording. Noise is added to what the model
    sees only: hidden steps, the targets of reconstruction, stay clean, and their values do not scale the noise around
    them. Prediction of the next windows has the visible steps as targets, noise included: independent and with mean
    zero, it adds a constant to the expected squared error.
    """
    c = layout.lay_out(people, rows)
    training, draws = rows[0].draws is not None, [draw for row in rows for draw in row.draws or ()]
    _fill_tokens(batch, c)
    if training:
        c.rngs = [d.rng for d in draws]
        _fill_masks(batch, c)
    _fill_signal(batch, c, [d.augment_rng for d in draws] if training else [None] * len(c))
    if people.value_inputs:
        if "query_value" in batch:
            value_fields.fill_codes(batch, c)
        if "query_signal" in batch:
            value_fields.fill_channels(batch, c)
    if training:
        _fill_events(batch, c)
        for term in people.terms:
            term.fill(batch, c)
    c.put(batch["token"], c.bound_N, c.token_N)
    c.put(batch["value"], c.bound_N, np.where(np.isnan(c.value_N), np.float32(0), c.value_N))
    if "quantile" in batch:
        c.put(batch["quantile"], c.bound_N, people.value_quantiles(c.token_N, c.value_N))


def _fill_tokens(batch, c):
    """Order, times and visibility of the tokens and queries; padding at the end has an empty key range there."""
    n, place_C, begin_N = len(c.of_N), c.in_row(c.bound_N), c.row_begin_C[c.of_N]
    number_C = np.arange(len(c)) - c.row_bound[c.row_C] + 1
    sees_N = np.stack([place_C[c.of_N], np.arange(1, n + 1) - begin_N], axis=1)
    sees_Q = np.stack([place_C[c.of_Q], c.stop_Q - c.row_begin_C[c.of_Q]], axis=1)
    of, time_us = np.concatenate([c.of_N, c.of_Q]), np.concatenate([c.time_us_N, c.query_us_Q])
    age = layout.ages(c.patients, of, time_us, c.origin_C)
    wear_at = np.flatnonzero(c.is_wear_N)
    window_N = np.full(n, -1)
    window_N[wear_at] = c.slots(c.bound_M)[1]
    for name, bounds, value in (
        ("modality", c.bound_N, np.where(c.is_wear_N, MODALITY_WEAR, MODALITY_EHR)),
        ("time", c.bound_N, (c.time_us_N - c.anchor_C[c.of_N]) / DAY_US),
        ("segment", c.bound_N, number_C[c.of_N]),
        ("kv_range", c.bound_N, sees_N),
        ("age", c.bound_N, age[:n]),
        ("window", c.bound_N, window_N),
        ("window_position", c.bound_M, wear_at - begin_N[wear_at]),
        ("query_time", c.bound_Q, (c.query_us_Q - c.anchor_C[c.of_Q]) / DAY_US),
        ("query_age", c.bound_Q, age[n:]),
        ("query_segment", c.bound_Q, number_C[c.of_Q]),
        ("query_kv_range", c.bound_Q, sees_Q),
    ):
        c.put(batch[name], bounds, value)
    n_tokens_B, n_queries_B = (np.diff(bounds[c.row_bound]).tolist() for bounds in (c.bound_N, c.bound_Q))
    for r, (n_tokens, n_queries) in enumerate(zip(n_tokens_B, n_queries_B, strict=True)):
        batch["kv_range"][r, n_tokens:] = n_tokens  # which keeps it non-decreasing
        batch["query_kv_range"][r, n_queries:] = n_tokens


def _fill_masks(batch, c):
    """Hides events, and patches or channels of windows, in a share of the contexts; what no term asks for stays."""
    people, config, timed = c.people, c.people.config, c.timed_N
    chance_K = masking.mask_chances(c.token_N[timed], people.mask_weight_V, config.ehr_mask)
    draw_K, hidden_K = np.empty(len(timed)), np.zeros(len(timed), bool)
    at, n_windows, of_signal = c.timed_bound.tolist(), np.diff(c.bound_M).tolist(), batch[_masked_field(config)]
    for k, rng in enumerate(c.rngs):
        mine = slice(at[k], at[k + 1])
        hidden_K[mine] = c.hides_C[k] = hidden = rng.random() < config.masked_contexts
        if config.interest_codes:
            chance_K[mine] = _boosted_chances(c, timed[mine])
        rng.random(out=draw_K[mine])
        parts = _signal_mask(config, rng, n_windows[k], of_signal.shape[-1])
        if hidden and parts is not None and people.hides_signal:
            c.part(of_signal, c.bound_M, k)[...] = parts
    if "masked_position" in batch:
        chosen = timed[(draw_K < chance_K) & hidden_K]
        _, slot_H = c.slots(np.searchsorted(chosen, c.bound_N))
        chosen = chosen[slot_H < batch["masked_position"].shape[1]]
        bounds = np.searchsorted(chosen, c.bound_N)
        c.put(batch["masked_position"], bounds, chosen - c.row_begin_C[c.of_N[chosen]])
        c.put(batch["masked_target"], bounds, c.token_N[chosen])
        c.token_N[chosen], c.value_N[chosen] = MASK, np.nan


def _boosted_chances(c, at):
    """masking.mask_chances of a context's timed events at `at`, higher near events of interest."""
    people, config, token = c.people, c.people.config, c.token_N[at]
    near = masking.near_events(c.time_us_N[at], people.interest_V[token], config.interest_days)
    boost = np.where(near, config.interest_factor, 1.0)
    return masking.mask_chances(token, people.mask_weight_V, config.ehr_mask, boost)


def _masked_field(config):
    return "channel_mask" if config.wear_mask_kind == "channel" else "patch_mask"


def _signal_mask(config, rng, n_windows, n_parts):
    """What is hidden of a context's windows; None without any, where a mask of whole windows draws all the same."""
    kind = config.wear_mask_kind
    if not n_windows and kind != "window":
        return None
    if kind == "channel":
        return masking.mask_channels(rng, n_windows, n_parts, config.wear_mask)
    parts = masking.mask_patches(rng, n_windows, n_parts, config.wear_mask, kind)
    return parts if n_windows else None


def _fill_events(batch, c):
    """Chooses the events at which predictions are made: the last one of a distinct time, so that codes count once."""
    if "event_position" not in batch:
        return
    timed = c.timed_N
    time_us, of = c.time_us_N[timed], c.of_N[timed]
    is_last = np.ones(len(timed), bool)
    is_last[:-1] = (time_us[1:] != time_us[:-1]) | (of[1:] != of[:-1])
    last = timed[is_last]
    at, chosen = np.searchsorted(last, c.bound_N).tolist(), []
    room_B = [batch["event_position"].shape[1]] * len(batch["event_position"])
    quotas = c.quotas(c.people.config.events).tolist()
    for k, (r, rng, quota) in enumerate(zip(c.row_C.tolist(), c.rngs, quotas, strict=True)):
        mine = last[at[k] : at[k + 1]]
        if not c.people.config.every_time:
            mine = rng.permutation(mine)[: min(room_B[r], quota)]
        chosen.append(mine)
        room_B[r] -= len(mine)
        c.bound_E[k + 1] = c.bound_E[k] + len(mine)
    if chosen:
        c.event_E = np.sort(np.concatenate(chosen))
    c.put(batch["event_position"], c.bound_E, c.event_E - c.row_begin_C[c.of_N[c.event_E]])


# --------------------------------------------------------------------------------------------------------- signal


def _fill_signal(batch, c, augment_rngs):
    """The windows, what is known of their quality, raw windows inside them, and the summaries of what is shown."""
    people, config = c.people, c.people.config
    if not c.bound_M[-1]:
        return
    changed = config.augments_signal and augment_rngs[0] is not None
    shown, slot_C, bound_B = [], c.in_row(c.bound_M).tolist(), c.row_bound.tolist()
    for r, (first, end) in enumerate(zip(bound_B, bound_B[1:], strict=False)):
        worn = [k for k in range(first, end) if len(c.windows[k])]
        if not worn:
            continue
        row = {name: array[r] for name, array in batch.items()}
        if changed:
            shown += [
                _changed_signal(row, people, c.patients[k], c.windows[k], slot_C[k], augment_rngs[k]) for k in worn
            ]
        else:
            shown.append(_fill_as_recorded(row, [(c.patients[k], _runs(c.windows[k])) for k in worn]))
        n_raw = 0
        for k in worn:
            p, at = c.patients[k], (c.windows[k], slot_C[k])
            if p.quality_MxLxC is not None:
                raw_fields.fill_quality(row, people, p.quality_MxLxC, *at)
            if p.raw is not None:
                n_raw += raw_fields.fill_raw(row, n_raw, people, p.raw, at, config.time_warp if changed else 0.0)
    c.shown_MxF = np.concatenate(shown)


def _fill_as_recorded(row, parts):
    """The windows of a row as they were recorded, a block at a time, and the summaries of them.

    parts: (patient, runs of the windows that are shown) of each context.
    """
    raw_MxLxC = np.concatenate([p.window_MxLxC[a:b] for p, runs in parts for a, b in runs])
    for a, b in patient_lib.blocks(raw_MxLxC.shape, 0, len(raw_MxLxC)):
        signal_MxLxC = patient_lib.standard_signal(raw_MxLxC[a:b], parts[0][0].scales)
        observed_MxLxC = np.isfinite(signal_MxLxC)
        row["observed"][a:b], row["wear"][a:b] = observed_MxLxC, np.where(observed_MxLxC, signal_MxLxC, np.float32(0))
    return np.concatenate([p.summary(a, b) for p, runs in parts for a, b in runs])


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
