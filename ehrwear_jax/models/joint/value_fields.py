"""Fills what rows tell of values at its queries: the state of each numeric code, and of each channel.

Both are of what the context shows before the query: hidden events and steps, and what lies before its first token, do
not count. Terms predict them (value_terms.py); where the network is given them (value_inputs), they are inputs, too.
"""

from typing import TYPE_CHECKING

import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.family import Batch, Field
from ehrwear_jax.models.joint import value_states

if TYPE_CHECKING:
    from ehrwear_jax.models.joint.layout import Contexts

CODES = {
    "query_value": Field("QUG", np.float32, 0, "statistic g of numeric code u of what was seen, robust scale"),
    "query_value_mask": Field("QUG", np.bool_, False, "whether it is known"),
}
CHANNELS = {
    "query_signal": Field("QCX", np.float32, 0, "statistic x of channel c of what was seen, standardised"),
    "query_signal_mask": Field("QCX", np.bool_, False, "whether it is known"),
}


def fill_codes(batch: Batch, c: "Contexts") -> None:
    """Writes the fields CODES."""
    if not len(c.query_us_Q):
        return
    scales, config = c.people.value_scales, c.people.config
    class_N, n_queries_C = scales.class_V[c.token_N], np.diff(c.bound_Q)
    usable_N = (class_N >= 0) & ~c.is_static_N & np.isfinite(c.value_N) & (n_queries_C > 0)[c.of_N]
    known = np.flatnonzero(usable_N)
    if not len(known):
        return
    class_K, of_K, n_classes = class_N[known], c.of_N[known], len(scales.names)
    span_us_S = (np.asarray(config.value_spans) * DAY_US).astype(np.int64)
    # of an event exactly a span ago the span has just ended
    lo_QxS = c.begins_at(c.query_us_Q[:, None] - span_us_S, c.bound_Q, "right")
    lo_QxS, hi_Q = np.searchsorted(known, lo_QxS), np.searchsorted(known, c.stop_Q)
    # times from the last query of a context, for the sake of rounding
    last_us_C = c.query_us_Q[np.maximum(c.bound_Q[1:] - 1, 0)]
    day_K, day_Q = (c.time_us_N[known] - last_us_C[of_K]) / DAY_US, (c.query_us_Q - last_us_C[c.of_Q]) / DAY_US
    series_P, series_K = np.unique(of_K * n_classes + class_K, return_inverse=True)
    # every series is asked for at all queries of its context
    of_P = series_P // n_classes
    series_R = np.repeat(np.arange(len(series_P)), n_queries_C[of_P])
    begin_P = np.cumsum(n_queries_C[of_P]) - n_queries_C[of_P]
    query_R = np.arange(len(series_R)) + (c.bound_Q[of_P] - begin_P)[series_R]
    asked = value_states.Asked(series_R, day_Q[query_R], lo_QxS[query_R].T, hi_Q[query_R])
    found_RxG = value_states.value_states(series_K, scales(class_K, c.value_N[known]), day_K, asked, config.value_spans)
    known_RxG, class_R = ~np.isnan(found_RxG), (series_P % n_classes)[series_R]
    row_Q, slot_Q = c.query_slots
    at_R = row_Q[query_R], slot_Q[query_R], class_R
    batch["query_value_mask"][at_R] = known_RxG
    batch["query_value"][at_R] = np.where(known_RxG, found_RxG, np.float32(0))


def fill_channels(batch: Batch, c: "Contexts") -> None:
    """Writes the fields CHANNELS; signal and masks are written before."""
    people, config, n, n_queries = c.people, c.people.config, int(c.bound_M[-1]), len(c.query_us_Q)
    if not n or not n_queries:
        return
    span_us_S = (np.asarray(config.wear_spans) * DAY_US).astype(np.int64)
    last_us_C = c.query_us_Q[np.maximum(c.bound_Q[1:] - 1, 0)]
    end_day_M, hi_Q = np.empty(n), np.zeros(n_queries, np.int64)
    lo_QxS = np.zeros((n_queries, len(span_us_S)), np.int64)
    for k, windows, (w0, w1), (q0, q1) in c.worn:
        end_us, query_us = c.patients[k].window_end_M[windows], c.query_us_Q[q0:q1]
        lo_QxS[q0:q1] = end_us.searchsorted(query_us[:, None] - span_us_S, side="right")
        hi_Q[q0:q1] = end_us.searchsorted(query_us, side="right")
        end_day_M[w0:w1] = (end_us - last_us_C[k]) / DAY_US
    seen_MxLxC, patch_MxP, channel_MxC = (
        c.gathered(batch[name], c.bound_M) for name in ("observed", "patch_mask", "channel_mask")
    )
    if patch_MxP.any() or channel_MxC.any():
        hidden_MxL = np.zeros((n, people.steps), bool)
        of_patches = np.repeat(patch_MxP, config.patch_steps, axis=1)
        hidden_MxL[:, : of_patches.shape[1]] = of_patches
        seen_MxLxC = seen_MxLxC & ~(hidden_MxL[..., None] | channel_MxC[:, None])
    found = value_states.signal_states(
        (c.gathered(batch["wear"], c.bound_M), seen_MxLxC),
        (end_day_M, people.window_us / people.steps / DAY_US),
        (c.bound_M, c.of_Q),
        (lo_QxS, hi_Q),
        config.wear_spans,
    )
    known = ~np.isnan(found)
    c.put(batch["query_signal_mask"], c.bound_Q, known)
    c.put(batch["query_signal"], c.bound_Q, np.where(known, found, np.float32(0)))
