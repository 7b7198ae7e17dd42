"""Predicts one modality from the other, aligns their contents, and regularises latents."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.family import Batch, Field
from ehrwear_jax.models.joint.batch import MASK, MODALITY_EHR, MODALITY_WEAR, PAD
from ehrwear_jax.models.joint.config import LIKELIHOODS
from ehrwear_jax.models.joint.ehr_terms import CodeTerm, FutureEvent
from ehrwear_jax.models.joint.heads import Alignment, WearablePool
from ehrwear_jax.models.joint.layout import Contexts
from ehrwear_jax.models.joint.likelihood_terms import observed_steps
from ehrwear_jax.models.joint.terms import Arrays, Latents, Loss, Term, take
from ehrwear_jax.models.joint.wear_terms import average
from ehrwear_jax.models.layers.dense import Mlp
from ehrwear_jax.models.objective import masked_mean, n_true, n_true_of


class PooledCodes(nn.Module):
    """Head of WearToEhr: pooled latents of wearable tokens, normalised, through one hidden layer."""

    kind: str
    width: int

    def setup(self) -> None:
        self.pool = WearablePool(self.kind)
        self.norm = nn.LayerNorm()
        self.mlp = Mlp(self.width, self.width)

    def __call__(
        self,
        z_BxTxD: jax.Array,
        is_wear_BxT: jax.Array,
        pool_BxNx2: jax.Array,
        time_BxT: jax.Array,
        prediction_time_BxN: jax.Array,
    ) -> jax.Array:
        """Returns [B, N, D]."""
        pooled, _ = self.pool(z_BxTxD, is_wear_BxT, pool_BxNx2, time_BxT, prediction_time_BxN)
        return self.mlp(self.norm(pooled))


class WearToEhr(CodeTerm):
    """L_w->e (paper, section 3.3): the next code from the pooled latents of the wearable tokens in [t - tau, t].

    A prediction without a wearable token in its window has no term.
    """

    name = "wear_to_ehr"
    needs = ("ehr", "wear")
    at_events = True
    targets = FutureEvent.targets | {
        "event_pool": Field("E2", np.int32, 0, "token positions inside [t - tau, t], for pooling wearable latents"),
        "query_pool": Field("Q2", np.int32, 0, "as event_pool"),
    }

    def fill(self, batch: Batch, c: Contexts) -> None:
        begin_us = c.times_us_R - int(self.config.context.pool_days * DAY_US)
        begin_R = c.begins_at(begin_us, c.bound_R, "left")
        # static tokens have the time of the first one
        begin_R = np.where(c.anchor_C[c.of_R] < begin_us, begin_R, c.bound_N[c.of_R])
        pool_Rx2 = np.stack([begin_R, c.stop_R], axis=1) - c.row_begin_C[c.of_R][:, None]
        for name, bounds, mine in c.at_events_and_queries:
            c.put(batch[f"{name}_next"], bounds, c.future_token_R[mine])
            c.put(batch[f"{name}_pool"], bounds, pool_Rx2[mine])

    def head(self) -> nn.Module:
        return PooledCodes(self.config.network.pool, self.config.network.width)

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        detached = self.config.network.detach_cross_modal
        z_BxTxD = jax.lax.stop_gradient(z.token_BxTxD) if detached else z.token_BxTxD
        is_wear, out = batch["modality"] == MODALITY_WEAR, {}
        event_time = take(batch["time"][..., None], batch["event_position"])[..., 0]
        for name, time in (("event", event_time), ("query", batch["query_time"])):
            out[name] = head(z_BxTxD, is_wear, batch[f"{name}_pool"], batch["time"], time)
        return out

    @property
    def trains_table(self) -> bool:
        return not self.config.network.detach_cross_modal

    def asked(self, batch: Arrays) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Next codes of predictions with a wearable token in their pooling range."""
        so_far = jnp.pad(jnp.cumsum(batch["modality"] == MODALITY_WEAR, axis=1), ((0, 0), (1, 0)))
        asked = {}
        for name in ("event", "query"):
            lo, hi = (jnp.take_along_axis(so_far, batch[f"{name}_pool"][..., i], axis=1) for i in (0, 1))
            asked[name] = batch[f"{name}_next"], (batch[f"{name}_next"] != PAD) & (hi > lo)
        return asked


class EhrToWear(Term):
    """L_e->w (paper, section 3.3): summary statistics of the signal in (t, t + tau'], from z at events and queries."""

    name = "ehr_to_wear"
    needs = ("ehr", "wear")
    at_events = True
    targets = {
        "event_summary": Field("EF", np.float32, 0, "summary statistics of the signal in (t, t + tau']"),
        "event_summary_mask": Field("EF", np.bool_, False, "whether the statistic exists"),
        "query_summary": Field("QF", np.float32, 0, "as event_summary"),
        "query_summary_mask": Field("QF", np.bool_, False, "as event_summary_mask"),
    }

    def fill(self, batch: Batch, c: Contexts) -> None:
        days_us, at = int(self.config.context.summary_days * DAY_US), c.bound_R.tolist()
        value_RxF = np.zeros((at[-1], self.facts.summaries), np.float32)
        there_RxF = np.zeros(value_RxF.shape, bool)
        for p, a, b in zip(c.patients, at, at[1:], strict=False):
            if not len(p.window_end_M) or a == b:
                continue
            time_us = c.times_us_R[a:b]
            # windows that lie inside, their beginnings too
            lo = p.window_end_M.searchsorted(time_us + c.people.window_us, side="left")
            hi = p.window_end_M.searchsorted(time_us + days_us, side="right")
            first, last = int(lo.min()), int(max(lo.max(), hi.max()))
            if last > first:
                value_RxF[a:b], there_RxF[a:b] = average(p.summary(first, last), lo - first, hi - first)
        for name, bounds, mine in c.at_events_and_queries:
            c.put(batch[f"{name}_summary"], bounds, value_RxF[mine])
            c.put(batch[f"{name}_summary_mask"], bounds, there_RxF[mine])

    def head(self) -> nn.Module:
        return Mlp(self.config.network.width, self.facts.summaries)

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        at = {"event": take(z.token_BxTxD, batch["event_position"]), "query": z.query_BxQxD}
        detached = self.config.network.detach_cross_modal
        return {n: head(jax.lax.stop_gradient(x) if detached else x) for n, x in at.items()}

    def normaliser(self, batch: Arrays) -> jax.Array:
        return n_true_of(batch[f"{n}_summary_mask"] for n in ("event", "query"))

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        error = [jnp.square(out[n] - batch[f"{n}_summary"]) for n in out]
        mask = [batch[f"{n}_summary_mask"] for n in out]
        value = masked_mean(jnp.concatenate(error, 1), jnp.concatenate(mask, 1), normaliser)
        return value, {"count": n_true_of(mask)}


class Contrast(Term):
    """L_contr (paper, section 3.3): InfoNCE, which of the batch's wearable windows lies near a pair's EHR events.

    A pair's own window against those of all other patients of the batch; windows of the same patient, in whichever row
    or context, are no negatives. Under `jax.jit` the batch is the global one, and negatives are as many as a pod has
    rows for: the term's value rises with the logarithm of their number, what devices send each other for it with the
    number itself, and with another number of rows it is another term. Of a batch cut into micro-batches, each part has
    its own windows as negatives: there are fewer, and the value is lower than that of the whole.

    Contents before time and context are aligned: through attention one could copy the other, and the encoding of an age
    tells patients apart without a look at what the two modalities say.
    """

    name = "contrast"
    needs = ("ehr", "wear")
    targets = {
        "pair_position": Field("J", np.int32, -1, "token position of a window that has visible events near its end"),
        "pair_near": Field("J2", np.int32, 0, "token positions within colocated_days of that end, before or after it"),
        "pair_patient": Field("J", np.int32, -1, "number of the pair's patient in its split; -1: no pair"),
    }

    def fill(self, batch: Batch, c: Contexts) -> None:
        """Windows with something visible, and with visible events near their end, in random choice.

        Static tokens have no time and are near to nothing.
        """
        config, wear_at = self.config.context, np.flatnonzero(c.is_wear_N)
        if not len(wear_at):
            return
        near_us, end_us = int(config.colocated_days * DAY_US), c.time_us_N[wear_at]
        lo, hi = c.begins_at(end_us - near_us, c.bound_M, "left"), c.begins_at(end_us + near_us, c.bound_M, "right")
        visible = np.concatenate([[0], np.cumsum(~c.is_wear_N & (c.token_N != MASK))])
        hidden = [c.gathered(batch[name], c.bound_M).all(axis=1) for name in ("patch_mask", "channel_mask")]
        shown = c.gathered(batch["observed"], c.bound_M).any(axis=(1, 2)) & ~(hidden[0] | hidden[1])
        found = np.flatnonzero(shown & (visible[hi] > visible[lo]))
        at, chosen, bounds = np.searchsorted(found, c.bound_M), [], np.zeros(len(c) + 1, np.int64)
        room_B = [batch["pair_position"].shape[1]] * len(batch["pair_position"])
        for k, (r, quota) in enumerate(zip(c.row_C.tolist(), c.quotas(config.pairs).tolist(), strict=True)):
            quota = min(room_B[r], quota)
            if quota > 0 and c.bound_M[k + 1] > c.bound_M[k]:
                chosen.append(np.sort(c.rngs[k].permutation(found[at[k] : at[k + 1]])[:quota]))
                room_B[r] -= len(chosen[-1])
                bounds[k + 1] = len(chosen[-1])
        pair, bounds = np.concatenate([np.zeros(0, np.int64), *chosen]), np.cumsum(bounds)
        of = c.of_N[wear_at[pair]]
        near_Jx2 = np.stack([lo[pair], hi[pair]], axis=1) - c.row_begin_C[of][:, None]
        c.put(batch["pair_position"], bounds, wear_at[pair] - c.row_begin_C[of])
        c.put(batch["pair_near"], bounds, near_Jx2)
        c.put(batch["pair_patient"], bounds, np.array(c.positions)[of])

    def head(self) -> nn.Module:
        n = self.config.network
        return Alignment(n.align_width, n.temperature, n.learn_temperature)

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        detached = self.config.network.detach_cross_modal
        h_BxTxD = jax.lax.stop_gradient(z.content_BxTxD) if detached else z.content_BxTxD
        visible = (batch["modality"] == MODALITY_EHR) & (batch["token"] != MASK)
        pair = head(h_BxTxD, visible, batch["pair_position"], batch["pair_near"])
        return dict(zip(("ehr", "wear", "temperature"), pair, strict=True))

    def normaliser(self, batch: Arrays) -> jax.Array:
        return n_true(batch["pair_patient"] >= 0)

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        """Nats per pair; accuracy: own window first of several, negatives: per pair."""
        e_PxS, w_PxS = (out[n].reshape(-1, out[n].shape[-1]).astype(jnp.float32) for n in ("ehr", "wear"))
        patient_P = batch["pair_patient"].reshape(-1)
        real_P = patient_P >= 0
        other_PxP = (patient_P[:, None] != patient_P[None]) & real_P[:, None] & real_P[None]
        logit_PxP = jnp.dot(e_PxS, w_PxS.T, precision=jax.lax.Precision.HIGHEST) / out["temperature"]
        own_PxP = jnp.eye(len(patient_P), dtype=bool)
        nll_P = jax.nn.logsumexp(logit_PxP, axis=1, where=other_PxP | own_PxP) - jnp.diagonal(logit_PxP)
        best_P = jnp.max(logit_PxP, axis=1, where=other_PxP, initial=-jnp.inf)
        right_P = (jnp.diagonal(logit_PxP) > best_P) & other_PxP.any(1)

        def mean(value_P):
            return jnp.sum(jnp.where(real_P, value_P, 0.0)) / jnp.maximum(normaliser, 1)

        temperature_P = jnp.broadcast_to(out["temperature"], nll_P.shape)
        found = {"accuracy": right_P, "negatives": other_PxP.sum(1), "temperature": temperature_P}
        return mean(nll_P), {name: mean(value) for name, value in found.items()}


class ContentNorm(Term):
    """Penalty on the norm of contents, "to prevent domination by one modality" (paper, section 3.5).

    ||h||^2 / p of the tokens' vectors as their encoders give them, before the encoding of time: averaged within each
    modality, so that dense signals do not outnumber sparse events, and summed over the two.
    """

    name = "content_norm"

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        return z.content_BxTxD

    def normaliser(self, batch: Arrays) -> jax.Array:
        """Tokens of each modality: [2]."""
        return jnp.stack([n_true(batch["modality"] == m) for m in (MODALITY_EHR, MODALITY_WEAR)])

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        size_BxT = jnp.mean(jnp.square(out.astype(jnp.float32)), axis=-1)
        total = [jnp.sum(jnp.where(batch["modality"] == m, size_BxT, 0.0)) for m in (MODALITY_EHR, MODALITY_WEAR)]
        size_2 = jnp.stack(total) / jnp.maximum(normaliser, 1)
        return jnp.sum(size_2), {"ehr": size_2[0], "wear": size_2[1]}


MIN_GAP_DAYS = 1.0 / 24.0  # to the prior of z, simultaneous tokens are an hour apart


def ou_kl(state: tuple, before: tuple, gap_days: jax.Array, begins: jax.Array, prior: tuple) -> jax.Array:
    """One state's part of KL(q || p), q independent normal states, p a stationary Ornstein-Uhlenbeck process.

    dz = -rate z dt + sqrt(2 rate stationary) dW has normal transitions: given the state a gap earlier, mean
    exp(-rate gap) times it and variance stationary (1 - exp(-2 rate gap)) (Uhlenbeck and Ornstein 1930). The process is
    Markov, so the divergence of a whole path is the sum of these parts over its states.

    Args:
      state, before: (mean, variance) of q at the state and at the one before it, [..., D] each.
      gap_days: [...]. begins: bool [...], there is no state before it: the prior is the stationary one.
      prior: (rate, stationary) [D], 1/day and variance.

    Returns:
      float32 [...], nats, summed over D.
    """
    (mean, variance), (mean_before, variance_before) = state, before
    rate, stationary = (x.reshape((1,) * (mean.ndim - 1) + (-1,)) for x in prior)
    turned = rate * gap_days[..., None]
    decay = jnp.where(begins[..., None], 0.0, jnp.exp(-turned))
    noise = stationary * jnp.where(begins[..., None], 1.0, -jnp.expm1(-2.0 * turned))
    square = jnp.square(mean - decay * mean_before) + variance + jnp.square(decay) * variance_before
    return 0.5 * jnp.sum(square / noise - 1.0 + jnp.log(noise / variance), axis=-1)


class LatentKl(Term):
    """KL(q(z) || p(z)) of the ELBO (paper, section 3.4) with an Ornstein-Uhlenbeck prior.

    Its sum over states, divided by their number, or by that of observed steps beside the likelihoods of
    likelihood_terms.py, with which it is the bound. States of queries, at which nothing is observed, are part of q and
    p like the others: the bound holds with them and is lower by what they cost.

    A token's state follows that of the token before it in its context; a query's follows that of the last token it
    sees, and nothing follows a query: up to its time the prior is the same process. The gap between two states is at
    least MIN_GAP_DAYS, for simultaneous tokens would otherwise have to have one state.
    """

    name = "latent_kl"

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        return z.posterior

    def normaliser(self, batch: Arrays) -> jax.Array:
        """Tokens and queries that are no padding; the observed steps where it is part of the bound."""
        if any(any(self.config.weights[name][:2]) for name in LIKELIHOODS):
            return observed_steps(batch, self.config)
        return n_true_of(batch[n] > 0 for n in ("segment", "query_segment"))

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        if "kl_token" in out:  # of an SDE, which knows what its path cost
            of_tokens, of_queries = (
                jnp.sum(jnp.where(batch[segment] > 0, out[f"kl_{name}"], 0.0)) / jnp.maximum(normaliser, 1)
                for name, segment in (("token", "segment"), ("query", "query_segment"))
            )
            return of_tokens + of_queries, {"token": of_tokens, "query": of_queries}
        token = out["mean_token"], out["variance_token"]
        prior = out["prior_rate"], out["prior_variance"]

        def part(name, at_BxN, begins_BxN, real_BxN):
            at = jnp.maximum(at_BxN, 0)
            before = tuple(jnp.take_along_axis(x, at[..., None], axis=1) for x in token)
            now = batch["time"] if name == "token" else batch["query_time"]
            gap = jnp.maximum(now - jnp.take_along_axis(batch["time"], at, axis=1), MIN_GAP_DAYS)
            kl = ou_kl((out[f"mean_{name}"], out[f"variance_{name}"]), before, gap, begins_BxN, prior)
            return jnp.sum(jnp.where(real_BxN, kl, 0.0)) / jnp.maximum(normaliser, 1)

        shape = token[0].shape[:2]
        at = jnp.broadcast_to(jnp.arange(shape[1])[None] - 1, shape)
        of_tokens = part("token", at, at < batch["kv_range"][..., 0], batch["segment"] > 0)
        lo, hi = batch["query_kv_range"][..., 0], batch["query_kv_range"][..., 1]
        of_queries = part("query", hi - 1, hi <= lo, batch["query_segment"] > 0)
        return of_tokens + of_queries, {"token": of_tokens, "query": of_queries}


TERMS = (WearToEhr, EhrToWear, Contrast, ContentNorm, LatentKl)
