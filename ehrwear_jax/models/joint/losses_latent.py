"""Objectives on representations: contrastive alignment, the norm of contents, the OU prior of the ELBO variant.

As in losses.py, each value is a sum over the batch divided by a normaliser that the batch alone determines.
"""

import jax
import jax.numpy as jnp

from ehrwear_jax.models.joint.batch import MODALITY_EHR, MODALITY_WEAR

MIN_GAP_DAYS = 1.0 / 24.0  # to the prior of z, simultaneous tokens are an hour apart


def count_pairs(batch, _):
    """Co-located pairs in the batch."""
    return jnp.sum(batch["pair_patient"] >= 0, dtype=jnp.float32)


def contrast(out, batch, count):
    """L_contr (paper, section 3.3): InfoNCE, which of the batch's wearable windows lies near a pair's EHR events.

    A pair's own window against those of all other patients of the batch; windows of the same patient, in whichever row
    or context, are no negatives. Under `jax.jit` the batch is the global one. Of a batch cut into micro-batches, each
    part has its own windows as negatives: there are fewer, and the term's value is lower than that of the whole.

    Args:
      out: pair_ehr, pair_wear float32 [B, N, S] unit vectors; temperature scalar.

    Returns:
      (nats per pair, {accuracy: own window first of several, negatives: per pair, temperature}).
    """
    e_PxS, w_PxS = (out[n].reshape(-1, out[n].shape[-1]).astype(jnp.float32) for n in ("pair_ehr", "pair_wear"))
    patient_P = batch["pair_patient"].reshape(-1)
    real_P = patient_P >= 0
    other_PxP = (patient_P[:, None] != patient_P[None]) & real_P[:, None] & real_P[None]
    logit_PxP = jnp.dot(e_PxS, w_PxS.T, precision=jax.lax.Precision.HIGHEST) / out["temperature"]
    own_PxP = jnp.eye(len(patient_P), dtype=bool)
    nll_P = jax.nn.logsumexp(logit_PxP, axis=1, where=other_PxP | own_PxP) - jnp.diagonal(logit_PxP)
    best_P = jnp.max(logit_PxP, axis=1, where=other_PxP, initial=-jnp.inf)
    right_P = (jnp.diagonal(logit_PxP) > best_P) & other_PxP.any(1)

    def mean(value_P):
        return jnp.sum(jnp.where(real_P, value_P, 0.0)) / jnp.maximum(count, 1)

    temperature_P = jnp.broadcast_to(out["temperature"], nll_P.shape)
    diagnostics = {"accuracy": mean(right_P), "negatives": mean(other_PxP.sum(1)), "temperature": mean(temperature_P)}
    return mean(nll_P), diagnostics


def count_contents(batch, _):
    """Tokens of each modality: [2]."""
    return jnp.stack([jnp.sum(batch["modality"] == m, dtype=jnp.float32) for m in (MODALITY_EHR, MODALITY_WEAR)])


def content_norm(out, batch, count_2):
    """Penalty on the norm of contents, "to prevent domination by one modality" (paper, section 3.5).

    ||h||^2 / p of the tokens' vectors as their encoders give them, before the encoding of time: averaged within each
    modality, so that dense signals do not outnumber sparse events, and summed over the two.
    """
    size_BxT = jnp.mean(jnp.square(out["content"].astype(jnp.float32)), axis=-1)
    size_2 = [jnp.sum(jnp.where(batch["modality"] == m, size_BxT, 0.0)) for m in (MODALITY_EHR, MODALITY_WEAR)]
    size_2 = jnp.stack(size_2) / jnp.maximum(count_2, 1)
    return jnp.sum(size_2), {"ehr": size_2[0], "wear": size_2[1]}


def ou_kl(mean, variance, mean_before, variance_before, gap_days, begins, rate, stationary):
    """One state's part of KL(q || p), q independent normal states, p a stationary Ornstein-Uhlenbeck process.

    dz = -rate z dt + sqrt(2 rate stationary) dW has normal transitions: given the state a gap earlier, mean
    exp(-rate gap) times it and variance stationary (1 - exp(-2 rate gap)) (Uhlenbeck and Ornstein 1930). The process is
    Markov, so the divergence of a whole path is the sum of these parts over its states.

    Args:
      mean, variance: of q at the state, [..., D]. mean_before, variance_before: at the state before it.
      gap_days: [...]. begins: bool [...], there is no state before it: the prior is the stationary one.
      rate, stationary: [D], 1/day and variance.

    Returns:
      float32 [...], nats, summed over D.
    """
    shape = (1,) * (mean.ndim - 1) + (-1,)
    rate, stationary = rate.reshape(shape), stationary.reshape(shape)
    turned = rate * gap_days[..., None]
    decay = jnp.where(begins[..., None], 0.0, jnp.exp(-turned))
    noise = stationary * jnp.where(begins[..., None], 1.0, -jnp.expm1(-2.0 * turned))
    square = jnp.square(mean - decay * mean_before) + variance + jnp.square(decay) * variance_before
    return 0.5 * jnp.sum(square / noise - 1.0 + jnp.log(noise / variance), axis=-1)


def count_states(batch, _):
    """Tokens and queries that are no padding."""
    return sum(jnp.sum(batch[n] > 0, dtype=jnp.float32) for n in ("segment", "query_segment"))


def latent_kl(out, batch, count):
    """KL(q(z) || p(z)) of the ELBO (paper, section 3.4) with an Ornstein-Uhlenbeck prior, per state.

    A token's state follows that of the token before it in its context; a query's follows that of the last token it
    sees, and nothing follows a query: up to its time the prior is the same process. The gap between two states is at
    least MIN_GAP_DAYS, for simultaneous tokens would otherwise have to have one state.

    Args:
      out: mean_{token,query}, variance_{token,query} [B, N, D]; prior_rate, prior_variance [D].
    """
    mean, variance = out["mean_token"], out["variance_token"]
    position = jnp.arange(mean.shape[1])[None]
    prior = out["prior_rate"], out["prior_variance"]

    def part(name, at_BxN, begins_BxN, real_BxN):
        at = jnp.maximum(at_BxN, 0)
        before = (jnp.take_along_axis(x, at[..., None], axis=1) for x in (mean, variance))
        now = batch["time"] if name == "token" else batch["query_time"]
        gap = jnp.maximum(now - jnp.take_along_axis(batch["time"], at, axis=1), MIN_GAP_DAYS)
        kl = ou_kl(out[f"mean_{name}"], out[f"variance_{name}"], *before, gap, begins_BxN, *prior)
        return jnp.sum(jnp.where(real_BxN, kl, 0.0)) / jnp.maximum(count, 1)

    at = jnp.broadcast_to(position - 1, mean.shape[:2])
    token = part("token", at, at < batch["kv_range"][..., 0], batch["segment"] > 0)
    lo, hi = batch["query_kv_range"][..., 0], batch["query_kv_range"][..., 1]
    query = part("query", hi - 1, hi <= lo, batch["query_segment"] > 0)
    return token + query, {"token": token, "query": query}
