"""Computes the relative contrastive loss: of candidates in order of distance, each is nearer than those behind it.

For an anchor and each candidate i, -log(exp(s_i) / sum of exp(s_j) over candidates j that are at least as far), with s
the cosine similarity over a temperature; summed over all candidates but the farthest. Xu et al., "RelCon: relative
contrastive learning for a motion foundation model for wearable data" (ICLR 2025).

Axes: B anchors, C candidates of each, N signals, D width.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


def similarities(z_NxD: jax.Array, anchor_B: np.ndarray, candidate_BxC: np.ndarray, temperature: float) -> jax.Array:
    """Cosine similarities of anchors with their candidates over a temperature: float32 [B, C].

    Args:
      anchor_B, candidate_BxC: places along N.
    """
    z = z_NxD.astype(jnp.float32)
    z = z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1e-12))
    return jnp.take_along_axis(z[anchor_B] @ z.T, candidate_BxC, axis=1) / temperature


def relative_loss(similarity_BxC: jax.Array, distance_BxC: jax.Array) -> jax.Array:
    """The loss of each anchor, float32 [B]; 0 where no two candidates differ in distance.

    Candidates of equal distance stand in each other's sum, so that their order does not matter.

    Args:
      distance_BxC: infinite for what is no candidate.
    """
    there_BxC = jnp.isfinite(distance_BxC)
    order_BxC = jnp.argsort(distance_BxC, axis=1)
    distance, there, s = (
        jnp.take_along_axis(x, order_BxC, axis=1) for x in (distance_BxC, there_BxC, similarity_BxC.astype(jnp.float32))
    )
    # not -inf, of which the gradient is NaN
    behind = jax.lax.cumlogsumexp(jnp.where(there, s, -1e30), axis=1, reverse=True)
    first = jax.vmap(lambda d: jnp.searchsorted(d, d, side="left"))(distance)  # of those that are equally far
    terms = jnp.take_along_axis(behind, first, axis=1) - s
    farthest = jnp.max(jnp.where(there, distance, -jnp.inf), axis=1, keepdims=True)
    return jnp.sum(jnp.where(there & (distance < farthest), terms, 0.0), axis=1)


def is_ranked(distance_BxC: jax.Array) -> jax.Array:
    """Which anchors have candidates of different distances: bool [B]."""
    there = jnp.isfinite(distance_BxC)
    low = jnp.min(jnp.where(there, distance_BxC, jnp.inf), axis=1)
    return low < jnp.max(jnp.where(there, distance_BxC, -jnp.inf), axis=1)


class Relative:
    """The relative loss, mean over the anchors of a batch; each is compared with what its micro-batch holds."""

    name = "relative"

    def normaliser(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """How many anchors there are."""
        return batch["observed"][:, 0].any(axis=(1, 2)).sum(dtype=jnp.float32)

    def loss(
        self, out: tuple[jax.Array, jax.Array], batch: Mapping[str, jax.Array], normaliser: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss, diagnostics).

        "of_equal": the loss of embeddings of which all are equally alike. "nearest_found": share of anchors whose most
        similar candidate is the nearest one; "nearest_is_own": to whom a piece of the same person is the nearest.
        """
        similarity_BxC, distance_BxC = out
        count, ranked_B = jnp.maximum(normaliser, 1.0), is_ranked(distance_BxC)
        similar = jnp.where(jnp.isfinite(distance_BxC), similarity_BxC, -jnp.inf)
        nearest_B, own = jnp.argmin(distance_BxC, axis=1), batch["observed"].shape[1] - 1

        def share(of_B):
            return (of_B & ranked_B).sum(dtype=jnp.float32) / count

        diagnostics = {
            "of_equal": relative_loss(jnp.zeros_like(similarity_BxC), distance_BxC).sum() / count,
            "nearest_found": share(jnp.argmax(similar, axis=1) == nearest_B),
            "nearest_is_own": share(nearest_B >= distance_BxC.shape[1] - own),
        }
        return relative_loss(similarity_BxC, distance_BxC).sum() / count, diagnostics
