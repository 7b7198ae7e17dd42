"""The pretraining objectives: arrays in, (scalar, diagnostics) out; means over what exists, zero where nothing does."""

import jax
import jax.numpy as jnp

from ehrwear_jax.batch import PAD


def masked_mean(value, mask):
    """Mean of value where mask, 0.0 if nowhere; float32."""
    mask = jnp.broadcast_to(mask, value.shape)
    total = jnp.sum(jnp.where(mask, value.astype(jnp.float32), 0.0))
    return total / jnp.maximum(jnp.sum(mask), 1)


def code_cross_entropy(logits_NxV, target_N, mask_N):
    """Mean -log p(target) in nats, and accuracy and count."""
    logp = jax.nn.log_softmax(logits_NxV.astype(jnp.float32))
    nll = -jnp.take_along_axis(logp, target_N[..., None], axis=-1)[..., 0]
    right = jnp.argmax(logits_NxV, axis=-1) == target_N
    return masked_mean(nll, mask_N), {"accuracy": masked_mean(right, mask_N), "count": jnp.sum(mask_N)}


def masked_ehr(out, batch):
    """L_ehr (paper, section 3.3): cross-entropy of hidden events from z at their own position."""
    return code_cross_entropy(out["masked_logits"], batch["masked_target"], batch["masked_position"] >= 0)


def next_event(out, batch):
    """The first code at the next distinct time, from z at event reads and at free-time queries."""
    return _both(out, batch, "next_logits", None)


def wear_to_ehr(out, batch):
    """L_w->e (paper, section 3.3): the same target from the pooled latents of the wearable tokens in [t - tau, t].

    A read without a wearable token in its window has no term.
    """
    return _both(out, batch, "pooled_logits", "pooled_exists")


def _both(out, batch, logits, exists):
    masks = {n: batch[f"{n}_next"] != PAD for n in ("event", "query")}
    if exists:
        masks = {n: m & out[f"{exists}_{n}"] for n, m in masks.items()}
    flat = [
        jnp.concatenate([f(n) for n in ("event", "query")], axis=1)
        for f in (lambda n: out[f"{logits}_{n}"], lambda n: batch[f"{n}_next"], lambda n: masks[n])
    ]
    return code_cross_entropy(*flat)


def later_codes(out, batch):
    """Which codes occur within each horizon after a query: binary cross-entropy over a pair's entropy, mean over pairs.

    The EHR counterpart of multi-step prediction. Divided by its entropy at the expected rate, a pair costs about 1 for
    a model that knows rates only, whether its code is rare or frequent. A horizon that ends after the patient's
    follow-up has no term.
    """
    horizon_1x1x1xA = jnp.arange(out["later_logits"].shape[-1])[None, None, None]
    occurs = batch["query_code_bin"][..., None] <= horizon_1x1x1xA
    known = horizon_1x1x1xA < jnp.where(batch["query_segment"] > 0, batch["query_horizons"], 0)[..., None, None]
    logits = out["later_logits"].astype(jnp.float32)
    nll = jnp.where(occurs, jax.nn.softplus(-logits), jax.nn.softplus(logits)) / out["later_entropy"][None, None]
    return masked_mean(nll, known), {"positives": masked_mean(occurs, known), "count": jnp.sum(known)}


def ehr_recall(out, batch):
    """When each frequent token was last seen, read from z of a query: the mirror image of `later_codes`.

    The latent is to be a summary of the record, and attention alone forgets what no later event depends on. Binary
    cross-entropy of "seen within the horizon back" (and of "seen"), over the entropy of its rate in the batch.
    """
    n_horizon = out["recall_logits"].shape[-1] - 1
    bound = jnp.append(jnp.arange(n_horizon), 254)[None, None, None]
    seen = (batch["query_token_bin"][..., None] <= bound).astype(jnp.float32)
    real = jnp.broadcast_to((batch["query_segment"] > 0)[..., None, None], seen.shape)
    count = jnp.maximum(jnp.sum(real, (0, 1), keepdims=True), 1)
    rate = jnp.clip(jnp.sum(jnp.where(real, seen, 0.0), (0, 1), keepdims=True) / count, 0.01, 0.99)
    entropy = -rate * jnp.log(rate) - (1 - rate) * jnp.log1p(-rate)
    logits = out["recall_logits"].astype(jnp.float32)
    nll = (jax.nn.softplus(logits) - seen * logits) / entropy
    return masked_mean(nll, real), {"seen": masked_mean(seen, real)}


def wear_recall(out, batch):
    """Summary statistics of the signal in (t - tau', t], read from z of a query: the mirror image of `ehr_to_wear`."""
    error = jnp.square(out["past_summary"] - batch["query_past"])
    return masked_mean(error, batch["query_past_mask"]), {"count": jnp.sum(batch["query_past_mask"])}


def masked_wear(out, batch):
    """L_wear^rec (paper, section 3.3): squared error on the hidden, measured steps of the window, from its own z."""
    steps = batch["wear"].shape[2]
    patch_steps = steps // batch["patch_mask"].shape[-1]
    hidden = jnp.repeat(batch["patch_mask"], patch_steps, axis=-1)
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, steps - hidden.shape[-1])))[..., None]
    hidden = hidden | batch["channel_mask"][:, :, None]
    mask = hidden & batch["observed"] & (batch["window_position"] >= 0)[:, :, None, None]
    return masked_mean(jnp.square(out["rebuilt"] - batch["wear"]), mask), {"count": jnp.sum(mask)}


def ahead_wear(out, batch, decay=0.7):
    """L_wear^pred (paper, section 3.3): windows 1..H ahead of window tokens and queries, weights decay ** (h - 1)."""

    def errors(prediction, slot_BxNxH):
        at = jnp.maximum(slot_BxNxH, 0).reshape(slot_BxNxH.shape[0], -1)[..., None, None]
        shape = (*slot_BxNxH.shape, *batch["wear"].shape[2:])
        target = jnp.take_along_axis(batch["wear"], at, axis=1).reshape(shape)
        seen = jnp.take_along_axis(batch["observed"], at, axis=1).reshape(shape) & (slot_BxNxH >= 0)[..., None, None]
        axes = (0, 1, 3, 4)
        return jnp.sum(jnp.where(seen, jnp.square(prediction - target), 0.0), axes), jnp.sum(seen, axes)

    window, query = errors(out["ahead_window"], batch["step_window"]), errors(out["ahead_query"], batch["query_window"])
    error_H = (window[0] + query[0]) / jnp.maximum(window[1] + query[1], 1)
    weight_H = decay ** jnp.arange(error_H.shape[0])
    return jnp.sum(weight_H * error_H) / jnp.sum(weight_H), {"first": error_H[0], "last": error_H[-1]}


def ehr_to_wear(out, batch):
    """L_e->w (paper, section 3.3): summary statistics of the signal in (t, t + tau'], from z at reads."""
    error = [jnp.square(out[f"summary_{n}"] - batch[f"{n}_summary"]) for n in ("event", "query")]
    mask = [batch[f"{n}_summary_mask"] for n in ("event", "query")]
    return masked_mean(jnp.concatenate(error, 1), jnp.concatenate(mask, 1)), {"count": mask[0].sum() + mask[1].sum()}


TERMS = {
    "ehr_masked": masked_ehr,
    "ehr_next": next_event,
    "ehr_later": later_codes,
    "ehr_recall": ehr_recall,
    "wear_masked": masked_wear,
    "wear_ahead": ahead_wear,
    "wear_recall": wear_recall,
    "wear_to_ehr": wear_to_ehr,
    "ehr_to_wear": ehr_to_wear,
}
NEED_WEAR = ("wear_masked", "wear_ahead", "wear_recall", "wear_to_ehr", "ehr_to_wear")
NEED_EHR = ("ehr_masked", "ehr_next", "ehr_later", "ehr_recall", "wear_to_ehr", "ehr_to_wear")


def total(out, batch, weights):
    """Weighted sum of the terms.

    Args:
      weights: {term: weight}; terms that are absent are not computed.

    Returns:
      (loss, {"loss/<term>": value, "<term>/<diagnostic>": value}).
    """
    loss, metrics = 0.0, {}
    for name, weight in weights.items():
        value, diagnostics = TERMS[name](out, batch)
        loss = loss + weight * value
        metrics[f"loss/{name}"] = value
        metrics |= {f"{name}/{k}": v for k, v in diagnostics.items()}
    return loss, metrics | {"loss/total": loss}
