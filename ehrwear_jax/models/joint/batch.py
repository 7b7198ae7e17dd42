"""The contract between data and model: every batch field, its shape, dtype and unit.

A batch is a dict of numpy (later JAX) arrays. A row packs the contexts of several patients; a *context* is the tail of
one patient's tokens, ordered by (time, wearable before EHR, source order), behind the patient's static tokens. A *read*
is a place where a prediction is made: at an EHR event (fields `event_*`) or at a free time (fields `query_*`).

Axes: B rows, T tokens, W wearable windows, L steps in a window, C channels, P patches in a window, M masked events,
E event reads, Q query reads, J co-located pairs, H future windows, K future codes, R recalled
tokens, F summary statistics (three per channel, then the further ones of a window, see
data/signals/derived_features.py); N raw windows, S samples in one, A raw channels (of optional fields only).
"""

import dataclasses

import numpy as np

PAD, MASK, WEAR = 0, 1, 2  # token ids that are no codes
N_SPECIAL = 3
MODALITY_PAD, MODALITY_EHR, MODALITY_WEAR, MODALITY_QUERY = 0, 1, 2, 3
N_MODALITY = 4
SUMMARIES = ("mean", "std", "mean_abs_step")  # per channel: level, spread, roughness from step to step


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """Sizes of the axes of a batch; zero windows means that a dataset has no wearable part."""

    tokens: int
    windows: int
    steps: int
    channels: int
    patches: int
    masked: int
    events: int
    queries: int
    future_windows: int
    future_codes: int
    recalled_tokens: int
    further_summaries: int = 0
    pairs: int = 0
    raw_windows: int = 0
    raw_samples: int = 0
    raw_channels: int = 0
    quality: bool = False

    @property
    def summaries(self):
        """How many summary statistics of a window there are."""
        return len(SUMMARIES) * self.channels + self.further_summaries

    def axes(self, batch_size):
        return {
            "B": batch_size,
            "T": self.tokens,
            "W": self.windows,
            "L": self.steps,
            "C": self.channels,
            "P": self.patches,
            "M": self.masked,
            "E": self.events,
            "Q": self.queries,
            "H": self.future_windows,
            "K": self.future_codes,
            "R": self.recalled_tokens,
            "J": self.pairs,
            "F": self.summaries,
            "2": 2,
            "N": self.raw_windows,
            "S": self.raw_samples,
            "A": self.raw_channels,
        }

    def fields(self):
        """FIELDS, and those of OPTIONAL that batches of this shape have."""
        here = {n: self.quality if n == "quality" else self.raw_windows > 0 for n in OPTIONAL}
        return FIELDS | {n: f for n, f in OPTIONAL.items() if here[n]}


# name: (axes after B, dtype, value where nothing is, meaning and unit)
FIELDS = {
    # inputs
    "token": ("T", np.int32, PAD, "vocabulary id; MASK where hidden, WEAR for a wearable token"),
    "value": ("T", np.float32, 0, "standardised numeric value; 0 where there is none or it is hidden"),
    "modality": ("T", np.int32, MODALITY_PAD, "MODALITY_*"),
    "time": ("T", np.float32, 0, "kernel time: days since the first token of the context"),
    "age": ("T2", np.float32, 0, "days since birth, else since the first record: (whole days, fraction)"),
    "segment": ("T", np.int32, 0, "context of the token, 1, 2, ... along the row; 0 is padding"),
    "kv_range": ("T2", np.int32, 0, "half-open range of the token positions that the token sees"),
    "window": ("T", np.int32, -1, "slot of a wearable token's window along W"),
    "wear": ("WLC", np.float32, 0, "standardised signal, unmasked; 0 where missing"),
    "observed": ("WLC", np.bool_, False, "whether the step was measured"),
    "patch_mask": ("WP", np.bool_, False, "patches hidden from the model"),
    "channel_mask": ("WC", np.bool_, False, "channels hidden from the model in all steps of the window"),
    "window_position": ("W", np.int32, -1, "token position of the window"),
    "query_time": ("Q", np.float32, 0, "kernel time of the query, on its context's clock"),
    "query_age": ("Q2", np.float32, 0, "as age"),
    "query_segment": ("Q", np.int32, 0, "context of the query; 0 is padding"),
    "query_kv_range": ("Q2", np.int32, 0, "token positions known at the query's time"),
    # targets
    "masked_position": ("M", np.int32, -1, "token position of a hidden event"),
    "masked_target": ("M", np.int32, PAD, "its vocabulary id"),
    "event_position": ("E", np.int32, -1, "token position of an event read: the last event of its time"),
    "event_next": ("E", np.int32, PAD, "first code at the next distinct time"),
    "event_pool": ("E2", np.int32, 0, "token positions inside [t - tau, t], for pooling wearable latents"),
    "event_summary": ("EF", np.float32, 0, "summary statistics of the signal in (t, t + tau']"),
    "event_summary_mask": ("EF", np.bool_, False, "whether the statistic exists"),
    "query_next": ("Q", np.int32, PAD, "as event_next"),
    "query_pool": ("Q2", np.int32, 0, "as event_pool"),
    "query_summary": ("QF", np.float32, 0, "as event_summary"),
    "query_summary_mask": ("QF", np.bool_, False, "as event_summary_mask"),
    "query_window": ("QH", np.int32, -1, "slots of the windows that end next after the query"),
    "query_code_bin": ("QK", np.uint8, 255, "first horizon within which code k occurs after the query; 255: none"),
    "query_horizons": ("Q", np.int32, 0, "how many horizons end inside the follow-up"),
    "query_token_bin": ("QR", np.uint8, 255, "shortest horizon back within which token r was seen; 254: longer ago"),
    "query_past": ("QF", np.float32, 0, "summary statistics of the signal in (t - tau', t]"),
    "query_past_mask": ("QF", np.bool_, False, "whether the statistic exists"),
    "step_window": ("WH", np.int32, -1, "slots of the windows that follow window w"),
    "pair_position": ("J", np.int32, -1, "token position of a window that has visible events near its end"),
    "pair_near": ("J2", np.int32, 0, "token positions within colocated_days of that end, before or after it"),
    "pair_patient": ("J", np.int32, -1, "number of the pair's patient in its split; -1: no pair"),
}

# as FIELDS; a batch has those of one source of data or none
OPTIONAL = {
    "quality": (
        "WPC",
        np.float32,
        0,
        "signal quality of a patch, 0 to 1, as recorded; without the field: its share of known steps",
    ),
    "raw": ("NSA", np.float32, 0, "standardised samples of a raw window, 30 s by default; 0 where missing"),
    "raw_observed": ("NSA", np.bool_, False, "whether the sample was measured"),
    "raw_window": ("N", np.int32, -1, "slot along W of the window that the raw window lies in; -1: padding"),
    "raw_patch": ("N", np.int32, 0, "the patch of that window that the raw window lies in"),
}


def empty_batch(shape, batch_size):
    """A batch that holds nothing: {name: array of shape [B, ...]}."""
    axes, batch = shape.axes(batch_size), {}
    for name, (dims, dtype, fill, _) in shape.fields().items():
        size = (axes["B"], *(axes[a] for a in dims))
        batch[name] = (
            np.full(size, fill, dtype) if fill else np.zeros(size, dtype)
        )  # zeros take no memory until written
    return batch


def check_batch(batch, shape, batch_size):
    """Raises ValueError unless every field is there with its shape and dtype, and of OPTIONAL the raw ones together."""
    axes = shape.axes(batch_size)
    given = shape.fields() | {n: OPTIONAL[n] for n in OPTIONAL.keys() & batch.keys()}
    raw = {n for n in OPTIONAL if n.startswith("raw")}
    wanted = shape.fields().keys() | (raw if raw & batch.keys() else set())
    if missing := wanted ^ (batch.keys() - ({"quality"} - wanted)):
        raise ValueError(f"batch fields differ from the contract: {sorted(missing)}")
    if not shape.raw_windows and raw <= given.keys() and batch["raw"].ndim == 4:
        axes |= dict(zip("NSA", batch["raw"].shape[1:], strict=True))
    for name, (dims, dtype, _, _) in given.items():
        want = (axes["B"], *(axes.get(a) for a in dims))
        if batch[name].shape != want or batch[name].dtype != dtype:
            raise ValueError(
                f"batch field {name}: {batch[name].shape} {batch[name].dtype}, expected {want} {np.dtype(dtype)}"
            )
