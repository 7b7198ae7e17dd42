"""Computes PaPaGei's losses: a contrast between pieces of a batch, and absolute errors of their shape.

Axes: B rows, N pieces of a row, V views of a piece, P = B N V, D features.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from ehrwear_jax.models.objective import masked_mean, n_true

NEVER = -1e9  # logit of what is no negative: finite, so that its gradient is zero


def cosines(e_PxD: jax.Array) -> jax.Array:
    """Of each pair, float32 [P, P]; zero with a vector that is zero."""
    e_PxD = e_PxD.astype(jnp.float32)
    square_P = jnp.sum(e_PxD * e_PxD, axis=1, keepdims=True)
    e_PxD = e_PxD * jax.lax.rsqrt(jnp.maximum(square_P, 1e-24))
    return jnp.dot(e_PxD, e_PxD.T, precision=jax.lax.Precision.HIGHEST)


def nt_xent(e_PxD: jax.Array, positive_PxP: jax.Array, negative_PxP: jax.Array, temperature: float) -> jax.Array:
    """-log of a positive's share among itself and all negatives of its anchor, by cosines: float32 [P, P].

    Row: the anchor. Zero where a pair is not positive.
    """
    logit_PxP = cosines(e_PxD) / temperature
    others_P = jax.nn.logsumexp(jnp.where(negative_PxP, logit_PxP, NEVER), axis=1, keepdims=True)
    return jnp.where(positive_PxP, jnp.logaddexp(logit_PxP, others_P) - logit_PxP, 0.0)


@dataclasses.dataclass(frozen=True)
class Contrast:
    """NT-Xent, mean over positive pairs (Chen et al. 2020; with several positives of an anchor, each by itself).

    Of morphology, positive are pieces with the sVRI in the same bin and all others negative. Of views, positive are
    those of a piece, and negative those of other people: of one person's pieces none pushes away another. Under
    `jax.jit` the batch is the global one. Of a batch cut into micro-batches, each part has its own pairs: there are
    fewer, and the term's value is lower than that of the whole.

    Diagnostics: chance, the loss if all pieces were alike; accuracy, how many anchors have a positive as their nearest.
    """

    morphology: bool
    n_views: int
    temperature: float
    name: ClassVar[str] = "contrast"

    def pairs(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """(positive, negative) of each pair of views: bool [P, P]."""
        person_P = jnp.repeat(batch["person"].reshape(-1), self.n_views)
        if self.morphology:
            group_P, real_P = batch["svri_bin"].reshape(-1), (person_P >= 0) & (batch["svri_bin"].reshape(-1) >= 0)
        else:
            group_P, real_P = jnp.arange(len(person_P)) // self.n_views, person_P >= 0
        real_PxP = real_P[:, None] & real_P[None] & ~jnp.eye(len(person_P), dtype=bool)
        same_PxP = group_P[:, None] == group_P[None]
        other_PxP = ~same_PxP if self.morphology else person_P[:, None] != person_P[None]
        return real_PxP & same_PxP, real_PxP & other_PxP

    def normaliser(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """How many positive pairs, and anchors of some."""
        positive_PxP, _ = self.pairs(batch)
        return {"pairs": n_true(positive_PxP), "anchors": n_true(positive_PxP.any(axis=1))}

    def loss(
        self, out_BxNxVxD: jax.Array, batch: Mapping[str, jax.Array], normaliser: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(nats a pair, diagnostics)."""
        e_PxD = out_BxNxVxD.reshape(-1, out_BxNxVxD.shape[-1])
        positive_PxP, negative_PxP = self.pairs(batch)
        pairs, anchors = (jnp.maximum(normaliser[n], 1.0) for n in ("pairs", "anchors"))
        loss_PxP = nt_xent(e_PxD, positive_PxP, negative_PxP, self.temperature)
        alike_PxP = nt_xent(jnp.ones_like(e_PxD), positive_PxP, negative_PxP, self.temperature)
        shown_P, cosine_PxP = positive_PxP.any(axis=1) & negative_PxP.any(axis=1), cosines(e_PxD)
        best = [jnp.max(jnp.where(mask, cosine_PxP, -2.0), axis=1) for mask in (positive_PxP, negative_PxP)]
        found = {"chance": jnp.sum(alike_PxP) / pairs, "accuracy": n_true(shown_P & (best[0] > best[1])) / anchors}
        return jnp.sum(loss_PxP) / pairs, found


@dataclasses.dataclass(frozen=True)
class AbsoluteError:
    """Mean absolute error of a number of the pieces that have it; diagnostic: that of predicting zero.

    Attributes:
      name: of the term and the batch's field, NaN where it is not defined.
    """

    name: str

    def normaliser(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Pieces that have it."""
        return n_true(jnp.isfinite(batch[self.name]))

    def loss(
        self, out_BxN: jax.Array, batch: Mapping[str, jax.Array], normaliser: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss, diagnostics)."""
        there = jnp.isfinite(batch[self.name])
        want = jnp.where(there, batch[self.name], 0.0)
        trivial = masked_mean(jnp.abs(want), there, normaliser)
        return masked_mean(jnp.abs(out_BxN - want), there, normaliser), {"zero_error": trivial}
