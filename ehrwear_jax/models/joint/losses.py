"""The pretraining objectives: arrays in, (scalar, diagnostics) out; means over what exists, zero where nothing does.

Each term is a pair of functions. `normaliser(batch)` counts what the term averages over, from the batch alone;
`value(out, batch, normaliser)` is a sum divided by it. A batch cut into micro-batches that share the normaliser of the
whole has terms, gradients and diagnostics that add up to those of the whole, however unevenly targets are spread.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ehrwear_jax.models.joint import losses_latent
from ehrwear_jax.models.joint.batch import MODALITY_WEAR, PAD


class Term(NamedTuple):
    """normaliser: (batch, n_horizons) -> arrays; value: (out, batch, those arrays) -> (scalar, diagnostics)."""

    normaliser: Callable
    value: Callable


def n_true(mask, axis=None):
    """How many are true, in float32: a global batch has more steps than int32 counts."""
    return jnp.sum(mask, axis=axis, dtype=jnp.float32)


def masked_mean(value, mask, count=None):
    """Sum of value where mask over count (by default, of the mask), 0.0 if that is nothing; float32."""
    mask = jnp.broadcast_to(mask, value.shape)
    total = jnp.sum(jnp.where(mask, value.astype(jnp.float32), 0.0))
    return total / jnp.maximum(n_true(mask) if count is None else count, 1)


# ------------------------------------------------------------------------------------------------------- EHR terms


def code_cross_entropy(logits_NxV, target_N, mask_N, count):
    """-log p(target) in nats, and accuracy and count."""
    logp = jax.nn.log_softmax(logits_NxV.astype(jnp.float32))
    nll = -jnp.take_along_axis(logp, target_N[..., None], axis=-1)[..., 0]
    right = jnp.argmax(logits_NxV, axis=-1) == target_N
    return masked_mean(nll, mask_N, count), {"accuracy": masked_mean(right, mask_N, count), "count": n_true(mask_N)}


def masked_ehr(out, batch, count):
    """L_ehr (paper, section 3.3): cross-entropy of hidden events from z at their own position."""
    return code_cross_entropy(out["masked_logits"], batch["masked_target"], batch["masked_position"] >= 0, count)


def _reads(batch, pooled):
    """{"event", "query"}: reads with a next code and, if pooled, with a wearable token in their pooling range."""
    masks = {n: batch[f"{n}_next"] != PAD for n in ("event", "query")}
    if pooled:
        is_wear_BxT = batch["modality"] == MODALITY_WEAR
        so_far = jnp.pad(jnp.cumsum(is_wear_BxT, axis=1), ((0, 0), (1, 0)))
        for name in masks:
            lo, hi = (jnp.take_along_axis(so_far, batch[f"{name}_pool"][..., i], axis=1) for i in (0, 1))
            masks[name] &= hi > lo
    return masks


def _next_code(out, batch, logits, masks, count):
    parts = ([out[f"{logits}_{n}"] for n in masks], [batch[f"{n}_next"] for n in masks], list(masks.values()))
    return code_cross_entropy(*(jnp.concatenate(p, axis=1) for p in parts), count)


def next_event(out, batch, count):
    """The first code at the next distinct time, from z at event reads and at free-time queries."""
    return _next_code(out, batch, "next_logits", _reads(batch, pooled=False), count)


def wear_to_ehr(out, batch, count):
    """L_w->e (paper, section 3.3): the same target from the pooled latents of the wearable tokens in [t - tau, t].

    A read without a wearable token in its window has no term.
    """
    return _next_code(out, batch, "pooled_logits", _reads(batch, pooled=True), count)


def _count_reads(pooled):
    return lambda batch, _: sum(n_true(m) for m in _reads(batch, pooled).values())


def _horizons(batch):
    return jnp.where(batch["query_segment"] > 0, batch["query_horizons"], 0)


def later_codes(out, batch, count):
    """Which codes occur within each horizon after a query: binary cross-entropy over a pair's entropy, mean over pairs.

    The EHR counterpart of multi-step prediction. Divided by its entropy at the expected rate, a pair costs about 1 for
    a model that knows rates only, whether its code is rare or frequent. A horizon that ends after the patient's
    follow-up has no term.
    """
    horizon_1x1x1xA = jnp.arange(out["later_logits"].shape[-1])[None, None, None]
    occurs = batch["query_code_bin"][..., None] <= horizon_1x1x1xA
    known = horizon_1x1x1xA < _horizons(batch)[..., None, None]
    logits = out["later_logits"].astype(jnp.float32)
    nll = jnp.where(occurs, jax.nn.softplus(-logits), jax.nn.softplus(logits)) / out["later_entropy"][None, None]
    positives = masked_mean(occurs, known, count)
    return masked_mean(nll, known, count), {"positives": positives, "count": n_true(known)}


def _count_later(batch, _):
    """Pairs of a code and a horizon inside the follow-up, over all queries."""
    return jnp.sum(_horizons(batch), dtype=jnp.float32) * batch["query_code_bin"].shape[-1]


def _seen(batch, n_horizons):
    """(seen within each horizon back, and ever: float32 [B, Q, R, A + 1]; whether the query is one)."""
    bound = jnp.append(jnp.arange(n_horizons), 254)[None, None, None]
    seen = (batch["query_token_bin"][..., None] <= bound).astype(jnp.float32)
    return seen, jnp.broadcast_to((batch["query_segment"] > 0)[..., None, None], seen.shape)


def _recall_normaliser(batch, n_horizons):
    """(terms, entropy of each outcome's rate in the batch)."""
    seen, real = _seen(batch, n_horizons)
    count = jnp.maximum(jnp.sum(real, (0, 1), jnp.float32, keepdims=True), 1)
    rate = jnp.clip(jnp.sum(jnp.where(real, seen, 0.0), (0, 1), keepdims=True) / count, 0.01, 0.99)
    return n_true(real), -rate * jnp.log(rate) - (1 - rate) * jnp.log1p(-rate)


def ehr_recall(out, batch, normaliser):
    """When each frequent token was last seen, read from z of a query: the mirror image of `later_codes`.

    The latent is to be a summary of the record, and attention alone forgets what no later event depends on. Binary
    cross-entropy of "seen within the horizon back" (and of "seen"), over the entropy of its rate in the batch.
    """
    count, entropy = normaliser
    seen, real = _seen(batch, out["recall_logits"].shape[-1] - 1)
    logits = out["recall_logits"].astype(jnp.float32)
    nll = (jax.nn.softplus(logits) - seen * logits) / entropy
    return masked_mean(nll, real, count), {"seen": masked_mean(seen, real, count)}


# -------------------------------------------------------------------------------------------------- wearable terms


def wear_recall(out, batch, count):
    """Summary statistics of the signal in (t - tau', t], read from z of a query: the mirror image of `ehr_to_wear`."""
    error = jnp.square(out["past_summary"] - batch["query_past"])
    return masked_mean(error, batch["query_past_mask"], count), {"count": n_true(batch["query_past_mask"])}


def _hidden_steps(batch):
    """Measured steps that the model did not see: bool [B, W, L, C]."""
    steps = batch["wear"].shape[2]
    patch_steps = steps // batch["patch_mask"].shape[-1]
    hidden = jnp.repeat(batch["patch_mask"], patch_steps, axis=-1)
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, steps - hidden.shape[-1])))[..., None]
    hidden = hidden | batch["channel_mask"][:, :, None]
    return hidden & batch["observed"] & (batch["window_position"] >= 0)[:, :, None, None]


def masked_wear(out, batch, count):
    """L_wear^rec (paper, section 3.3): squared error on the hidden, measured steps of the window, from its own z."""
    mask = _hidden_steps(batch)
    return masked_mean(jnp.square(out["rebuilt"] - batch["wear"]), mask, count), {"count": n_true(mask)}


def _count_ahead(batch, _):
    """Measured steps of the windows 1..H ahead, over window tokens and queries: [H]."""
    seen_BxW = n_true(batch["observed"], axis=(2, 3))

    def count(slot_BxNxH):
        at = jnp.maximum(slot_BxNxH, 0).reshape(slot_BxNxH.shape[0], -1)
        seen = jnp.take_along_axis(seen_BxW, at, axis=1).reshape(slot_BxNxH.shape)
        return jnp.sum(jnp.where(slot_BxNxH >= 0, seen, 0), axis=(0, 1))

    return count(batch["step_window"]) + count(batch["query_window"])


def ahead_wear(out, batch, count_H, decay=0.7):
    """L_wear^pred (paper, section 3.3): windows 1..H ahead of window tokens and queries, weights decay ** (h - 1)."""

    def errors(prediction, slot_BxNxH):
        at = jnp.maximum(slot_BxNxH, 0).reshape(slot_BxNxH.shape[0], -1)[..., None, None]
        shape = (*slot_BxNxH.shape, *batch["wear"].shape[2:])
        target = jnp.take_along_axis(batch["wear"], at, axis=1).reshape(shape)
        seen = jnp.take_along_axis(batch["observed"], at, axis=1).reshape(shape) & (slot_BxNxH >= 0)[..., None, None]
        return jnp.sum(jnp.where(seen, jnp.square(prediction - target), 0.0), (0, 1, 3, 4))

    total_H = errors(out["ahead_window"], batch["step_window"]) + errors(out["ahead_query"], batch["query_window"])
    error_H = total_H / jnp.maximum(count_H, 1)
    weight_H = decay ** jnp.arange(error_H.shape[0])
    return jnp.sum(weight_H * error_H) / jnp.sum(weight_H), {"first": error_H[0], "last": error_H[-1]}


def ehr_to_wear(out, batch, count):
    """L_e->w (paper, section 3.3): summary statistics of the signal in (t, t + tau'], from z at reads."""
    error = [jnp.square(out[f"summary_{n}"] - batch[f"{n}_summary"]) for n in ("event", "query")]
    mask = [batch[f"{n}_summary_mask"] for n in ("event", "query")]
    value = masked_mean(jnp.concatenate(error, 1), jnp.concatenate(mask, 1), count)
    return value, {"count": n_true(mask[0]) + n_true(mask[1])}


# ------------------------------------------------------------------------------------------------------- all terms


def _count(*masks):
    return lambda batch, _: sum(n_true(batch[m]) for m in masks)


TERMS = {
    "ehr_masked": Term(lambda batch, _: n_true(batch["masked_position"] >= 0), masked_ehr),
    "ehr_next": Term(_count_reads(pooled=False), next_event),
    "ehr_later": Term(_count_later, later_codes),
    "ehr_recall": Term(_recall_normaliser, ehr_recall),
    "wear_masked": Term(lambda batch, _: n_true(_hidden_steps(batch)), masked_wear),
    "wear_ahead": Term(_count_ahead, ahead_wear),
    "wear_recall": Term(_count("query_past_mask"), wear_recall),
    "wear_to_ehr": Term(_count_reads(pooled=True), wear_to_ehr),
    "ehr_to_wear": Term(_count("event_summary_mask", "query_summary_mask"), ehr_to_wear),
    "contrast": Term(losses_latent.count_pairs, losses_latent.contrast),
    "content_norm": Term(losses_latent.count_contents, losses_latent.content_norm),
    "latent_kl": Term(losses_latent.count_states, losses_latent.latent_kl),
}
NEED_WEAR = ("wear_masked", "wear_ahead", "wear_recall", "wear_to_ehr", "ehr_to_wear", "contrast")
NEED_EHR = ("ehr_masked", "ehr_next", "ehr_later", "ehr_recall", "wear_to_ehr", "ehr_to_wear", "contrast")


def normalisers(batch, terms, n_horizons):
    """{term: what it is divided by}, of a whole batch whose micro-batches are then given to `total`."""
    return {name: TERMS[name].normaliser(batch, n_horizons) for name in terms}


def total(out, batch, weights, given=None):
    """Weighted sum of the terms.

    Args:
      weights: {term: weight}; terms that are absent are not computed.
      given: normalisers of the batch that this one is a part of; None: it is whole.

    Returns:
      (loss, {"loss/<term>": value, "<term>/<diagnostic>": value}).
    """
    if given is None:
        n_horizons = out["recall_logits"].shape[-1] - 1 if "ehr_recall" in weights else 0
        given = normalisers(batch, weights, n_horizons)
    loss, metrics = 0.0, {}
    for name, weight in weights.items():
        value, diagnostics = TERMS[name].value(out, batch, given[name])
        loss = loss + weight * value
        metrics[f"loss/{name}"] = value
        metrics |= {f"{name}/{k}": v for k, v in diagnostics.items()}
    return loss, metrics | {"loss/total": loss}
