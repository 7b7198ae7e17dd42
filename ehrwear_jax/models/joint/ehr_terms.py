"""Predicts EHR events: hidden ones, the next one, future codes, and which codes were seen of late."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.family import Batch, Field
from ehrwear_jax.models.joint.batch import PAD
from ehrwear_jax.models.joint.layout import Contexts
from ehrwear_jax.models.joint.terms import Arrays, Latents, Loss, Term, take
from ehrwear_jax.models.layers.dense import Mlp, dense
from ehrwear_jax.models.layers.vocabulary_loss import TokenLoss
from ehrwear_jax.models.objective import masked_mean, n_true, n_true_of


class CodeTerm(Term):
    """A term that predicts tokens of the vocabulary: cross-entropy, mean over its targets.

    `predict` says from which vectors, {name: [B, N, width]}, and `asked` which tokens, of which names and where. The
    network scores what all such terms ask for in one call, and gives `loss` {name: TokenLoss of [B, N]}.
    """

    needs: ClassVar[tuple[str, ...]] = ("ehr",)
    uses = ("codes",)

    @property
    def trains_table(self) -> bool:
        """Whether the loss changes the embedding table, by whose vectors tokens are scored."""
        return True

    def asked(self, batch: Arrays) -> dict[str, tuple[jax.Array, jax.Array]]:
        """{name: (token int32 [B, N], whether it is a target bool [B, N])}."""
        raise NotImplementedError

    def normaliser(self, batch: Arrays) -> Any:
        return n_true_of(mask for _, mask in self.asked(batch).values())

    def loss(self, out: Mapping[str, TokenLoss], batch: Arrays, normaliser: Any) -> Loss:
        """Nats per target, and how many there are and have the highest score of all tokens."""
        masks = {name: mask for name, (_, mask) in self.asked(batch).items()}
        mask = jnp.concatenate([masks[name] for name in out], axis=1)
        nll, log_sum, right = (jnp.concatenate(x, axis=1) for x in zip(*out.values(), strict=True))
        value = masked_mean(nll, mask, normaliser)
        if self.config.z_loss:
            value += self.config.z_loss * masked_mean(jnp.square(log_sum), mask, normaliser)
        return value, {"accuracy": masked_mean(right, mask, normaliser), "count": n_true(mask)}


class EhrMasked(CodeTerm):
    """L_ehr (paper, section 3.3): cross-entropy of hidden events from z at their own position.

    Its targets are written where events are hidden (context.py).
    """

    name = "ehr_masked"
    targets = {
        "masked_position": Field("M", np.int32, -1, "token position of a hidden event"),
        "masked_target": Field("M", np.int32, PAD, "its vocabulary id"),
    }

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        return {"masked": take(z.token_BxTxD, batch["masked_position"])}

    def asked(self, batch: Arrays) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {"masked": (batch["masked_target"], batch["masked_position"] >= 0)}


class FutureEvent(CodeTerm):
    """The first code at the next distinct time, from z at events and at free-time queries."""

    name = "future_event"
    at_events = True
    targets = {
        "event_next": Field("E", np.int32, PAD, "first code at the next distinct time"),
        "query_next": Field("Q", np.int32, PAD, "as event_next"),
    }

    def fill(self, batch: Batch, c: Contexts) -> None:
        for name, bounds, mine in c.at_events_and_queries:
            c.put(batch[f"{name}_next"], bounds, c.future_token_R[mine])

    def head(self) -> nn.Module:
        width = self.config.network.width
        return Mlp(width, width)

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        at_events = take(z.token_BxTxD, batch["event_position"])
        return {n: x + head(x) for n, x in (("event", at_events), ("query", z.query_BxQxD))}

    def asked(self, batch: Arrays) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {n: (batch[f"{n}_next"], batch[f"{n}_next"] != PAD) for n in ("event", "query")}


# ------------------------------------------------------------------------------------------------ sets of codes


def _horizons_us(config):
    return (np.asarray(config.horizons) * DAY_US).astype(np.int64)


def _bins(gap_us, horizon_us):
    """Index of the shortest horizon that a gap does not exceed, len(horizon_us) where it exceeds all: uint8."""
    bin_ = np.zeros(gap_us.shape, np.uint8)
    for h in horizon_us:
        bin_ += gap_us > h
    return bin_


def _events_after(c, within_us):
    """The events after the first query of a context, up to so long after its last one, of all contexts.

    (tokens, times, the last query before each: [J], bounds [C + 1])
    """
    found, bounds, at = [], [0], c.bound_Q.tolist()
    for p, a, b in zip(c.patients, at, at[1:], strict=False):
        query_us = c.query_us_Q[a:b]
        if b > a:
            lo, hi = p.event_time_K.searchsorted((query_us[0], query_us[-1] + within_us), side="right")
            time_us = p.event_time_K[lo:hi]
            found.append((p.event_token_K[lo:hi], time_us, query_us.searchsorted(time_us) + (a - 1)))
            bounds.append(bounds[-1] + hi - lo)
        else:
            bounds.append(bounds[-1])
    return *(np.concatenate(x) for x in zip(*found, strict=True)), np.array(bounds)


class FutureCodes(Term):
    """Which codes occur within each horizon after a query: binary cross-entropy over a pair's entropy, mean over pairs.

    The EHR counterpart of multi-step prediction. Divided by its entropy at the expected rate, a pair costs about 1 for
    a model that knows rates only, whether its code is rare or frequent. A horizon that ends after the patient's
    follow-up has no term.
    """

    name = "future_codes"
    needs = ("ehr",)
    targets = {
        "query_code_bin": Field("QK", np.uint8, 255, "first horizon within which code k occurs after it; 255: none"),
        "query_horizons": Field("Q", np.int32, 0, "how many horizons end inside the follow-up"),
    }

    def fill(self, batch: Batch, c: Contexts) -> None:
        if not len(c.query_us_Q):
            return
        horizon_us, (row_Q, slot_Q) = _horizons_us(self.config.context), c.query_slots
        token_J, time_J, last_J, bound_J = _events_after(c, int(horizon_us[-1]))
        n_events, n_queries = len(token_J), len(c.query_us_Q)
        # The queries before an event are the first few of the sorted ones: note it at the last of them, then hand it on
        # to those before. Of several notes at one place the last one written stays: events run from late to early.
        class_JxA = c.people.future_class_VxA[token_J[::-1]]
        j, a = np.nonzero(class_JxA >= 0)
        next_QxK = np.full((n_queries, self.facts.future_codes), n_events, np.int32)
        next_QxK[last_J[::-1][j], class_JxA[j, a]] = n_events - 1 - j
        next_QxK = np.minimum.accumulate(next_QxK[::-1], axis=0)[::-1]
        q, k = np.nonzero(next_QxK < bound_J[c.of_Q + 1][:, None])  # others are of later contexts
        bin_ = _bins(time_J[next_QxK[q, k]] - c.query_us_Q[q], horizon_us)
        batch["query_code_bin"][row_Q[q], slot_Q[q], k] = np.where(bin_ < len(horizon_us), bin_, 255)
        end_C, died_C = np.array([p.end_us for p in c.patients]), np.array([p.died for p in c.patients])
        inside_QxH = c.query_us_Q[:, None] + horizon_us <= end_C[c.of_Q][:, None]
        n_inside_Q = np.where(died_C[c.of_Q], len(horizon_us), inside_QxH.sum(axis=1))
        c.put(batch["query_horizons"], c.bound_Q, n_inside_Q)

    def _rates(self):
        rate = np.asarray(self.facts.future_rates, np.float64).reshape(self.facts.future_codes, self.facts.n_horizons)
        return np.clip(rate, 1e-5, 1 - 1e-5)

    def head(self) -> nn.Module:
        rate = self._rates()
        start = np.log(rate) - np.log1p(-rate)
        return dense(
            start.shape,
            ("embed", "future_code", "horizon"),
            bias_init=lambda *_: jnp.asarray(start.ravel(), jnp.float32),
        )

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        return head(z.query_BxQxD)

    def _horizons(self, batch):
        return jnp.where(batch["query_segment"] > 0, batch["query_horizons"], 0)

    def normaliser(self, batch: Arrays) -> jax.Array:
        """Pairs of a code and a horizon inside the follow-up, over all queries."""
        return jnp.sum(self._horizons(batch), dtype=jnp.float32) * batch["query_code_bin"].shape[-1]

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        horizon_1x1x1xA = jnp.arange(self.facts.n_horizons)[None, None, None]
        occurs = batch["query_code_bin"][..., None] <= horizon_1x1x1xA
        known = horizon_1x1x1xA < self._horizons(batch)[..., None, None]
        # A code's binary entropy: dividing by it lets rare codes count as much as frequent ones, down to a rate of 1%;
        # below that, single events would decide the gradient.
        floored = np.clip(self._rates(), 0.01, 0.99)
        entropy_KxA = jnp.asarray(-(floored * np.log(floored) + (1 - floored) * np.log1p(-floored)), jnp.float32)
        logits = out.astype(jnp.float32)
        nll = jnp.where(occurs, jax.nn.softplus(-logits), jax.nn.softplus(logits)) / entropy_KxA[None, None]
        positives = masked_mean(occurs, known, normaliser)
        return masked_mean(nll, known, normaliser), {"positives": positives, "count": n_true(known)}


class EhrHistory(Term):
    """When each frequent token was last seen, from z of a query: history reconstruction, the mirror of FutureCodes.

    The latent is to be a summary of the record, and attention alone forgets what no later event depends on. Binary
    cross-entropy of "seen within the horizon back" (and of "seen"), over the entropy of its rate in the batch. Only
    what the context shows counts: neither hidden events nor what lies before its first token.
    """

    name = "ehr_history"
    needs = ("ehr",)
    targets = {
        "query_token_bin": Field(
            "QR", np.uint8, 255, "shortest horizon back within which token r was seen; 254: longer ago"
        ),
    }

    def fill(self, batch: Batch, c: Contexts) -> None:
        if not len(c.query_us_Q):
            return
        horizon_us, begin_C = _horizons_us(self.config.context), c.bound_N[:-1]
        class_N = c.people.history_class_V[c.token_N]
        known = np.flatnonzero(class_N >= 0)
        first_Q = np.searchsorted(c.stop_Q, known, side="right")  # the first query that knows it
        mine = np.append(c.of_Q, -1)[first_Q] == c.of_N[known]
        known, first_Q = known[mine], first_Q[mine]
        # noted at that query, then handed on to those after; of several notes the latest one stays
        last_QxR = np.full((len(c.of_Q), self.facts.history_tokens), -1, np.int32)
        last_QxR[first_Q, class_N[known]] = known
        last_QxR = np.maximum.accumulate(last_QxR, axis=0)
        q, r = np.nonzero(last_QxR >= begin_C[c.of_Q][:, None])  # others are of earlier contexts
        last = last_QxR[q, r]
        bin_ = _bins(c.query_us_Q[q] - c.time_us_N[last], horizon_us)
        bin_[(bin_ == len(horizon_us)) | c.is_static_N[last]] = 254
        row_Q, slot_Q = c.query_slots
        batch["query_token_bin"][row_Q[q], slot_Q[q], r] = bin_

    def head(self) -> nn.Module:
        return dense((self.facts.history_tokens, self.facts.n_horizons + 1), ("embed", "history_token", "horizon"))

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        return head(z.query_BxQxD)

    def _seen(self, batch):
        """(seen within each horizon back, and ever: float32 [B, Q, R, A + 1]; whether the query is one)."""
        bound = jnp.append(jnp.arange(self.facts.n_horizons), 254)[None, None, None]
        seen = (batch["query_token_bin"][..., None] <= bound).astype(jnp.float32)
        return seen, jnp.broadcast_to((batch["query_segment"] > 0)[..., None, None], seen.shape)

    def normaliser(self, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """(terms, entropy of each outcome's rate in the batch)."""
        seen, real = self._seen(batch)
        count = jnp.maximum(jnp.sum(real, (0, 1), jnp.float32, keepdims=True), 1)
        rate = jnp.clip(jnp.sum(jnp.where(real, seen, 0.0), (0, 1), keepdims=True) / count, 0.01, 0.99)
        return n_true(real), -rate * jnp.log(rate) - (1 - rate) * jnp.log1p(-rate)

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        count, entropy = normaliser
        seen, real = self._seen(batch)
        logits = out.astype(jnp.float32)
        nll = (jax.nn.softplus(logits) - seen * logits) / entropy
        return masked_mean(nll, real, count), {"seen": masked_mean(seen, real, count)}


TERMS = (EhrMasked, FutureEvent, FutureCodes, EhrHistory)
