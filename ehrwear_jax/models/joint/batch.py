"""Declares the inputs of a batch of the joint family; the targets are declared by the terms that need them.

A row packs the contexts of several patients; a *context* is the tail of one patient's tokens, ordered by (time,
wearable before EHR, source order), behind the patient's static tokens. Predictions are made at *events* (fields
`event_*`: the last event of its time) and at *queries* at free times (fields `query_*`).

Axes: B rows, T tokens, W wearable windows, L steps in a window, C channels, P patches in a window, M masked events,
E events that are predicted at, Q queries, J co-located pairs, H future windows, K future codes, R reconstructed tokens,
U numeric codes, G statistics of their values, X of a channel's, Y next values,
F summary statistics (three per channel, then derived features of a window); N raw windows, S samples in one, V parts of
one, A raw channels.
"""

import dataclasses

import numpy as np

from ehrwear_jax.models import vocabulary
from ehrwear_jax.models.family import BatchSpec, Field
from ehrwear_jax.models.joint import value_fields, value_states
from ehrwear_jax.models.joint.config import ContextConfig

PAD, MASK, WEAR = 0, 1, 2  # token ids that are no codes
N_SPECIAL = vocabulary.N_SPECIAL
MODALITY_PAD, MODALITY_EHR, MODALITY_WEAR, MODALITY_QUERY = 0, 1, 2, 3
N_MODALITY = 4
SUMMARIES = ("mean", "std", "mean_abs_step")  # per channel: level, spread, roughness from step to step

INPUTS = {
    "token": Field("T", np.int32, PAD, "vocabulary id; MASK where hidden, WEAR for a wearable token"),
    "value": Field("T", np.float32, 0, "standardised numeric value; 0 where there is none or it is hidden"),
    "modality": Field("T", np.int32, MODALITY_PAD, "MODALITY_*"),
    "time": Field("T", np.float32, 0, "kernel time: days since the first token of the context"),
    "age": Field("T2", np.float32, 0, "days since birth, else since the first record: (whole days, fraction)"),
    "segment": Field("T", np.int32, 0, "context of the token, 1, 2, ... along the row; 0 is padding"),
    "kv_range": Field("T2", np.int32, 0, "half-open range of the token positions that the token sees"),
    "window": Field("T", np.int32, -1, "slot of a wearable token's window along W"),
    "wear": Field("WLC", np.float32, 0, "standardised signal, unmasked; 0 where missing"),
    "observed": Field("WLC", np.bool_, False, "whether the step was measured"),
    "patch_mask": Field("WP", np.bool_, False, "patches hidden from the model"),
    "channel_mask": Field("WC", np.bool_, False, "channels hidden from the model in all steps of the window"),
    "window_position": Field("W", np.int32, -1, "token position of the window"),
    "query_time": Field("Q", np.float32, 0, "kernel time of the query, on its context's clock"),
    "query_age": Field("Q2", np.float32, 0, "as age"),
    "query_segment": Field("Q", np.int32, 0, "context of the query; 0 is padding"),
    "query_kv_range": Field("Q2", np.int32, 0, "token positions known at the query's time"),
}
# where the network encodes values beyond their bins
QUANTILES = {"quantile": Field("T", np.float32, 0, "of the value within its code, inside (0, 1); 0: none, or hidden")}
# where prepare scored the signal's quality
QUALITY = {
    "quality": Field(
        "WPC", np.float32, 0, "signal quality of a patch, 0 to 1, as recorded; else its share of known steps"
    ),
}
# where rows have room for raw windows
RAW = {
    "raw": Field("NSA", np.float32, 0, "standardised samples of a raw window, 30 s by default; 0 where missing"),
    "raw_observed": Field("NSA", np.bool_, False, "whether the sample was measured"),
    "raw_window": Field("N", np.int32, -1, "slot along W of the window that the raw window lies in; -1: padding"),
    "raw_patch": Field("N", np.int32, 0, "the patch of that window that the raw window lies in"),
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What data decide of a model: sizes, and statistics of the training split.

    Attributes:
      modalities: those that the model is given and the dataset has.
      vocabulary: number of tokens. steps, channels: of a window. derived: derived features of a window.
      future_codes, history_tokens: how many are predicted, reconstructed. n_horizons: of the context options.
      future_rates: [future_codes x n_horizons] row by row: expected share of queries with a code within a horizon.
      raw_samples, raw_channels: of a raw window; 0: none. quality: whether the signal's quality is known.
      static: whether static tokens are given without the EHR's others.
      value_codes: numeric codes whose values are predicted. quantiles, value_inputs: whether the network reads values'
        quantiles, the state of values at queries.
    """

    modalities: tuple[str, ...]
    vocabulary: int
    steps: int
    channels: int
    derived: int
    future_codes: int
    history_tokens: int
    n_horizons: int
    future_rates: tuple[float, ...]
    raw_samples: int = 0
    raw_channels: int = 0
    quality: bool = False
    static: bool = False
    value_codes: int = 0
    quantiles: bool = False
    value_inputs: bool = False

    @property
    def wear(self) -> bool:
        """Whether there are wearable windows."""
        return "wear" in self.modalities

    @property
    def summaries(self) -> int:
        """How many summary statistics of a window there are."""
        return len(SUMMARIES) * self.channels + self.derived


def row_tokens(context: ContextConfig, facts: Facts) -> int:
    """Capacity of a row for tokens: `tokens` of the EHR, and `windows` more where the model is given wearables."""
    return context.tokens * ("ehr" in facts.modalities or facts.static) + context.windows * facts.wear


def masked_slots(n_tokens: int, rate: float) -> int:
    """Slots of a row for hidden events: for five thirds of the share that is hidden on average.

    All of a row's tokens may be events, and all of its contexts hide some. With 2,048 tokens and a rate of 15%, 307 are
    hidden on average of 512 slots; were they drawn alike, a row would need more once in e^51 (Chernoff's bound). Rare
    codes are hidden more often: a row's codes must be hidden five thirds as often as codes are on average to fill the
    slots. What is drawn beyond them, the row's last events, stays visible and has no loss.
    """
    return max(1, int(n_tokens * min(1.0, rate * 5 / 3)))


def slot_sizes(n_window: int, n_parts: int) -> tuple[int, ...]:
    """How many of a row's n_window slots may be encoded: all; or none, or the first so many of several equal parts."""
    if n_parts == 1:
        return (n_window,)
    return tuple(sorted({-(-n_window * k // n_parts) for k in range(n_parts + 1)}))


def batch_spec(context: ContextConfig, facts: Facts, targets: dict[str, Field]) -> BatchSpec:
    """The fields of a batch.

    Args:
      targets: fields of the terms.

    Raises:
      ValueError: raw windows do not fall into equal parts, of which some are to be hidden.
    """
    wear = facts.wear
    raw = wear and context.raw_windows > 0
    if "raw_mask" in targets and facts.raw_samples % context.raw_parts:
        raise ValueError(
            f"config.joint.context.raw_parts is {context.raw_parts}, which does not divide the {facts.raw_samples} "
            "samples of a raw window"
        )
    sizes = {
        "T": (n_tokens := row_tokens(context, facts)),
        "W": context.windows if wear else 0,
        "L": facts.steps,
        "C": facts.channels,
        "P": facts.steps // context.patch_steps,
        "M": masked_slots(n_tokens, context.ehr_mask),
        "E": n_tokens if context.every_time else context.events,
        "Q": context.queries,
        "H": context.future_windows,
        "K": facts.future_codes,
        "R": facts.history_tokens,
        "J": context.pairs,
        "U": facts.value_codes,
        "Y": context.next_values,
        "G": len(value_states.names(context.value_spans)),
        "X": len(value_states.signal_names(context.wear_spans)),
        "F": facts.summaries,
        "N": context.raw_windows if raw else 0,
        "S": facts.raw_samples if raw else 0,
        "V": context.raw_parts if raw else 0,
        "A": facts.raw_channels if raw else 0,
        "2": 2,
    }
    inputs = INPUTS | (QUANTILES if facts.quantiles else {})
    if facts.value_inputs:
        inputs |= (value_fields.CODES if facts.value_codes else {}) | (value_fields.CHANNELS if wear else {})
    inputs |= (QUALITY if wear and facts.quality else {}) | (RAW if raw else {})
    return BatchSpec(sizes, inputs | targets, facts)
