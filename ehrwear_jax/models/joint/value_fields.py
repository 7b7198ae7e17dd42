"""Fills what a row tells of values at its queries: the state of each numeric code, and of each channel.

Both are of what the context shows before the query: hidden events and steps, and what lies before its first token, do
not count. Terms predict them (value_terms.py); where the network is given them (value_inputs), they are inputs, too.
"""

from typing import TYPE_CHECKING

import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.family import Batch, Field
from ehrwear_jax.models.joint import value_states

if TYPE_CHECKING:
    from ehrwear_jax.models.joint.context import Context

CODES = {
    "query_value": Field("QUG", np.float32, 0, "statistic g of numeric code u of what was seen, robust scale"),
    "query_value_mask": Field("QUG", np.bool_, False, "whether it is known"),
}
CHANNELS = {
    "query_signal": Field("QCX", np.float32, 0, "statistic x of channel c of what was seen, standardised"),
    "query_signal_mask": Field("QCX", np.bool_, False, "whether it is known"),
}


def fill_codes(row: Batch, c: "Context") -> None:
    """Writes the fields CODES of one context."""
    if not len(c.query_us_Q):
        return
    scales, config, q = c.people.value_scales, c.people.config, c.queries
    class_N, first = scales.class_V[c.token_N], c.n_static
    known = first + np.flatnonzero((class_N[first:] >= 0) & np.isfinite(c.value_N[first:]))
    stop_Q = row["query_kv_range"][q, 1] - row["query_kv_range"][q, 0]
    span_us_S = (np.asarray(config.value_spans) * DAY_US).astype(np.int64)
    # of an event exactly a span ago the span has just ended
    lo_QxS = first + np.searchsorted(c.time_us_N[first:], c.query_us_Q[:, None] - span_us_S, side="right")
    ranges = np.searchsorted(known, lo_QxS), np.searchsorted(known, stop_Q)
    value_K = scales(class_N[known], c.value_N[known])
    days = tuple((x - c.query_us_Q[-1]) / DAY_US for x in (c.time_us_N[known], c.query_us_Q))
    n_classes = len(scales.names)
    found = value_states.value_states(class_N[known], value_K, days, ranges, config.value_spans, n_classes)
    row["query_value_mask"][q] = np.isfinite(found)
    row["query_value"][q] = np.nan_to_num(found)


def fill_channels(row: Batch, c: "Context") -> None:
    """Writes the fields CHANNELS of one context, whose signal and masks are written before."""
    if not len(c.windows) or not len(c.query_us_Q):
        return
    people, config, q, w = c.people, c.people.config, c.queries, c.window_slots
    end_us_M = c.patient.window_end_M[c.windows]
    span_us_S = (np.asarray(config.wear_spans) * DAY_US).astype(np.int64)
    lo_QxS = np.searchsorted(end_us_M, c.query_us_Q[:, None] - span_us_S, side="right")
    hidden_MxL = np.repeat(row["patch_mask"][w], config.patch_steps, axis=1)
    hidden_MxL = np.pad(hidden_MxL, ((0, 0), (0, people.steps - hidden_MxL.shape[1])))
    seen_MxLxC = row["observed"][w] & ~hidden_MxL[..., None] & ~row["channel_mask"][w][:, None]
    found = value_states.signal_states(
        (row["wear"][w], seen_MxLxC),
        (end_us_M - c.query_us_Q[-1]) / DAY_US,
        people.window_us / people.steps / DAY_US,
        (lo_QxS, np.searchsorted(end_us_M, c.query_us_Q, side="right")),
        config.wear_spans,
    )
    row["query_signal_mask"][q] = np.isfinite(found)
    row["query_signal"][q] = np.nan_to_num(found)
