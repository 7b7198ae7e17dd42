"""The reads of a context, at events and at free times, and what is to be predicted there."""

import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.joint.batch import MASK, PAD


def share(capacity, at, n_tokens, config):
    """How many of a row's reads the next context of n_tokens gets: in proportion to its length, rounded at random.

    Every token has the same expected number of reads, and a row full of tokens uses the whole capacity.
    """
    before, after = (capacity * used / config.tokens + at["phase"] for used in (at["tokens"], at["tokens"] + n_tokens))
    return int(after) - int(before)


def fill_targets(row, at, patients, p, token, time_us, event_at, windows, query_us, rng):
    """Places the event reads of a context, moves their cursor and writes the targets of all its reads and windows.

    Args:
      row, at, patients, p, query_us, rng: see context.fill_context; the cursors stand before the context.
      token, time_us: of the context, nothing hidden. event_at: places of its timed events among them.
      windows: the patient's windows that it shows.
    """
    config, n, t0, w0, m = patients.config, len(time_us), at["tokens"], at["windows"], len(windows)
    # event reads: the last event of each distinct time, so that simultaneous codes count once
    last = event_at[np.append(time_us[event_at][1:] != time_us[event_at][:-1], True)] if len(event_at) else event_at
    quota = min(len(row["event_position"]) - at["events"], share(config.events, at, n, config))
    reads = np.sort(rng.permutation(last)[:quota]).astype(np.int64)
    e = slice(at["events"], at["events"] + len(reads))
    row["event_position"][e] = t0 + reads
    at["events"] += len(reads)
    q = slice(at["queries"], at["queries"] + len(query_us))
    reads_us, n_event = np.concatenate([time_us[reads], query_us]), len(reads)
    stop_R = np.concatenate([reads + 1, row["query_kv_range"][q, 1] - t0])
    next_R = np.append(p.event_token_K, PAD)[np.searchsorted(p.event_time_K, reads_us, side="right")]
    begin_R = np.searchsorted(time_us, reads_us - int(config.pool_days * DAY_US), side="left")
    following = _following(p, reads_us, config, patients.window_us) if len(p.window_end_M) and len(reads_us) else None
    for name, s, mine in (("event", e, slice(n_event)), ("query", q, slice(n_event, None))):
        row[f"{name}_next"][s] = next_R[mine]
        row[f"{name}_pool"][s, 0], row[f"{name}_pool"][s, 1] = t0 + begin_R[mine], t0 + stop_R[mine]
        if following is not None:
            row[f"{name}_summary"][s], row[f"{name}_summary_mask"][s] = (x[mine] for x in following)
    if m:
        end = p.window_end_M[windows]
        row["step_window"][w0 : w0 + m] = _next_windows(end, end, patients.window_us, config.future_windows, w0)
        if len(query_us):
            row["query_window"][q] = _next_windows(query_us, end, patients.window_us, config.future_windows, w0)
    if len(query_us):
        _fill_later(row, q, patients, p, query_us)


def _horizons_us(config):
    return (np.asarray(config.horizons) * DAY_US).astype(np.int64)


def _bins(gap_us, horizon_us):
    """Index of the shortest horizon that a gap does not exceed, len(horizon_us) where it exceeds all: uint8."""
    bin_ = np.zeros(gap_us.shape, np.uint8)
    for h in horizon_us:
        bin_ += gap_us > h
    return bin_


def _fill_later(row, q, patients, p, query_us):
    """Which codes occur after each query, and how far the follow-up reaches."""
    horizon_us, n = _horizons_us(patients.config), len(p.event_time_K)
    lo, hi = np.searchsorted(p.event_time_K, [query_us[0], query_us[-1] + horizon_us[-1]], side="right")
    event_J = np.arange(lo, hi)[::-1]
    # The queries before an event are the first few of the sorted ones: note it at the last of them, then hand it on to
    # those before. Of several notes at one place the last one written stays: events run from late to early.
    last_J = np.searchsorted(query_us, p.event_time_K[event_J], side="left") - 1
    class_JxA = patients.future_class_VxA[p.event_token_K[event_J]]
    j, a = np.nonzero(class_JxA >= 0)
    next_QxK = np.full((len(query_us), row["query_code_bin"].shape[1]), n, np.int32)
    next_QxK[last_J[j], class_JxA[j, a]] = event_J[j]
    for k in range(len(query_us) - 1, 0, -1):
        np.minimum(next_QxK[k - 1], next_QxK[k], out=next_QxK[k - 1])
    never = np.iinfo(np.int64).max // 2
    bin_QxK = _bins(np.append(p.event_time_K, never)[next_QxK] - query_us[:, None], horizon_us)
    row["query_code_bin"][q] = np.where(bin_QxK < len(horizon_us), bin_QxK, 255)
    inside_QxH = query_us[:, None] + horizon_us <= p.end_us
    row["query_horizons"][q] = len(horizon_us) if p.died else inside_QxH.sum(axis=1)


def fill_recall(row, q, patients, token, n_static, time_us, query_us):
    """What a query should still know of the events: when each token was last seen.

    Only what the context shows counts: neither hidden events nor what lies before its first token.
    """
    horizon_us = _horizons_us(patients.config)
    stop_Q = row["query_kv_range"][q, 1] - row["query_kv_range"][q, 0]
    class_N = patients.recalled_class_V[token]
    known = np.flatnonzero((class_N >= 0) & (np.arange(len(token)) < stop_Q[-1]))
    # noted at the first query that knows it, then handed on to those after; of several notes the latest token's stays
    last_QxR = np.full((len(query_us), row["query_token_bin"].shape[1]), -1, np.int32)
    last_QxR[np.searchsorted(stop_Q, known, side="right"), class_N[known]] = known
    for k in range(1, len(query_us)):
        np.maximum(last_QxR[k - 1], last_QxR[k], out=last_QxR[k])
    bin_QxR = _bins(query_us[:, None] - time_us[last_QxR], horizon_us)
    bin_QxR[(bin_QxR == len(horizon_us)) | (last_QxR < n_static)] = 254
    row["query_token_bin"][q] = np.where(last_QxR < 0, 255, bin_QxR)


def fill_past(row, q, config, end_M, shown_MxF, query_us):
    """What a query should still know of the signal: how the windows that the context shows were of late."""
    lo = np.searchsorted(end_M, query_us - int(config.summary_days * DAY_US), side="right")
    hi = np.searchsorted(end_M, query_us, side="right")
    row["query_past"][q], row["query_past_mask"][q] = _average(shown_MxF, lo, hi)


def _following(p, read_us, config, window_us):
    """Mean summary statistics of the windows that lie inside (t, t + summary_days]: ([N, F], mask [N, F])."""
    lo = np.searchsorted(p.window_end_M, read_us + window_us, side="left")
    hi = np.searchsorted(p.window_end_M, read_us + int(config.summary_days * DAY_US), side="right")
    first, last = int(lo.min()), int(max(lo.max(), hi.max()))
    return _average(p.summary(first, last), lo - first, hi - first)


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


def fill_pairs(row, at, config, time_us, token, is_wear, n_static, t0, w0, rng):
    """Windows with something visible, and with visible events near their end, in random choice.

    Static tokens have no time and are near to nothing.
    """
    quota = min(len(row["pair_position"]) - at["pairs"], share(config.pairs, at, len(time_us), config))
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
