"""Predicts who the person is: age, and the facts that never change, which z is to hold at queries."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.family import Batch, Field
from ehrwear_jax.models.joint.layout import Contexts
from ehrwear_jax.models.joint.terms import Arrays, Latents, Loss, Term
from ehrwear_jax.models.joint.value_terms import balanced, unexplained
from ehrwear_jax.models.layers.dense import dense

AGE_UNIT_DAYS = 20 * 365.25  # about a standard deviation among adults
_LEAST_RATE = 0.01


class Person(Term):
    """Asks z of a query for the age then, and for which static tokens the record has, of those often reconstructed.

    Squared error of age over its variance in the batch, and the mean over static tokens of the cross-entropy over the
    entropy of the token's rate in the batch: each is 1 for a model that knows rates only, and each is half of the loss.
    A token that nobody in the batch has, or everybody, is not asked for. EhrHistory asks for static tokens too, among
    hundreds of others and within each horizon, and nothing else asks for age, which is told by periodic functions.
    """

    name = "person"
    targets = {"query_static": Field("QR", np.bool_, False, "whether token r is a static token of the context")}

    def fill(self, batch: Batch, c: Contexts) -> None:
        class_N = np.where(c.is_static_N, c.people.history_class_V[c.token_N], -1)
        known = np.flatnonzero(class_N >= 0)
        static_CxR = np.zeros((len(c), self.facts.history_tokens), bool)
        static_CxR[c.of_N[known], class_N[known]] = True
        c.put(batch["query_static"], c.bound_Q, static_CxR[c.of_Q])

    def head(self) -> nn.Module:
        return dense(1 + self.facts.history_tokens, ("embed", None))

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        return head(z.query_BxQxD)

    def _age(self, batch):
        """(age, whether the query is one): [B, Q, 1, 1]."""
        age = jnp.sum(batch["query_age"], axis=-1) / AGE_UNIT_DAYS
        return age[..., None, None], (batch["query_segment"] > 0)[..., None, None]

    def normaliser(self, batch: Arrays) -> Any:
        """(variance of age and the square root of how many there are; weight of each static token's cross-entropy)."""
        real_BxQx1 = (batch["query_segment"] > 0)[..., None]
        count = jnp.maximum(jnp.sum(real_BxQx1, dtype=jnp.float32), 1)
        rate_R = jnp.sum(batch["query_static"] & real_BxQx1, (0, 1), jnp.float32) / count
        asked_R = (rate_R > 0) & (rate_R < 1)
        rate_R = jnp.clip(rate_R, _LEAST_RATE, 1 - _LEAST_RATE)
        entropy_R = -rate_R * jnp.log(rate_R) - (1 - rate_R) * jnp.log1p(-rate_R)
        weight_R = asked_R / (entropy_R * count * jnp.maximum(jnp.sum(asked_R), 1))
        return balanced(*self._age(batch)), weight_R

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        of_age, weight_R = normaliser
        out = out.astype(jnp.float32)
        target, real = self._age(batch)
        age = jnp.sum(unexplained(out[..., :1, None], target, real, of_age))
        age = age / jnp.maximum(jnp.sum(of_age[1]), 1e-9)
        logits = out[..., 1:]
        nll = jax.nn.softplus(logits) - batch["query_static"] * logits
        real_BxQx1 = (batch["query_segment"] > 0)[..., None]
        static = jnp.sum(jnp.where(real_BxQx1, nll, 0.0) * weight_R[None, None])
        return 0.5 * (age + static), {"age": age, "static": static}


TERMS = (Person,)
