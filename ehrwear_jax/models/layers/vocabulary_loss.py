"""Computes cross-entropies over a vocabulary where there is a target, a chunk of targets' scores at a time."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ehrwear_jax.models.layers.mesh_ops import no_constraint


class TokenLoss(NamedTuple):
    """What scores over a vocabulary say of targets, all of one shape.

    Attributes:
      nll: float32, -log p(target) in nats. log_sum: float32, log of the sum of exponentiated scores. right: bool,
        whether no token has a higher score than the target.
    """

    nll: jax.Array
    log_sum: jax.Array
    right: jax.Array


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How the scores are computed.

    Attributes:
      size: targets of a group whose scores are alive at once.
      dtype: of the factors of the products, which add up in float32 as everything else does.
      constrain, row_groups: of MeshOps.
    """

    size: int = 512
    dtype: str = "float32"
    constrain: Callable = no_constraint
    row_groups: int = 1


def token_loss(scores: jax.Array, target: jax.Array) -> TokenLoss:
    """The plain formula, of scores [..., V] and int32 targets [...]."""
    scores = scores.astype(jnp.float32)
    log_sum = jax.nn.logsumexp(scores, axis=-1)
    own = jnp.take_along_axis(scores, target[..., None], axis=-1)[..., 0]
    return TokenLoss(log_sum - own, log_sum, own >= scores.max(axis=-1))


def masked_loss(
    chunks: Chunks, to_vector: Callable, hidden_BxSxD: jax.Array, table_VxE: jax.Array, bias_V: jax.Array,
    target_BxS: jax.Array, mask_BxS: jax.Array,
) -> TokenLoss:  # fmt: skip
    """Cross-entropies where the mask is true, [B, S]; zeros elsewhere.

    The targets of the rows of one device are brought together first, so that the others cost nothing.

    Args:
      to_vector: hidden_GxKxD -> vector_GxKxE whose products with the table are scores.
    """
    n_row, n_slot = mask_BxS.shape
    n_group = chunks.row_groups if n_row % chunks.row_groups == 0 else 1
    chunks = dataclasses.replace(chunks, size=min(chunks.size, n_row // n_group * n_slot))

    def grouped(x):
        return chunks.constrain(x.reshape(n_group, -1, *x.shape[2:]), "batch", *[None] * (x.ndim - 1))

    from_GxK, to_GxN, count_G = front(grouped(mask_BxS), chunks.size)
    hidden_GxKxD = jnp.take_along_axis(grouped(hidden_BxSxD), from_GxK[..., None], axis=1)
    target_GxK = jnp.take_along_axis(grouped(target_BxS), from_GxK, axis=1)
    vector_GxKxE = to_vector(chunks.constrain(hidden_GxKxD, "batch", None, None))
    found = front_loss(chunks, vector_GxKxE, table_VxE, bias_V, target_GxK, count_G)
    back = (jnp.take_along_axis(x, to_GxN, axis=1).reshape(mask_BxS.shape) for x in found)
    return TokenLoss(*(jnp.where(mask_BxS, x, jnp.zeros((), x.dtype)) for x in back))


def front(mask_GxN: jax.Array, multiple: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where each group's true places come to lie if they are moved to its front, and the way back.

    Args:
      multiple: the number of places in front is rounded up to one of these.

    Returns:
      (from_GxK int32: the place that each place in front takes; to_GxN int32: the place in front that each takes;
      count_G int32: how many are true). Behind the true places, and for false ones, they are some place.
    """
    n = mask_GxN.shape[1]
    order = jnp.argsort(~mask_GxN, axis=1, stable=True).astype(jnp.int32)
    to = jnp.maximum(jnp.cumsum(mask_GxN, axis=1, dtype=jnp.int32) - 1, 0)
    return jnp.pad(order, ((0, 0), (0, -n % multiple))), to, mask_GxN.sum(axis=1, dtype=jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def front_loss(
    chunks: Chunks, vector_GxNxE: jax.Array, table_VxE: jax.Array, bias_V: jax.Array, target_GxN: jax.Array,
    count_G: jax.Array,
) -> TokenLoss:  # fmt: skip
    """Cross-entropies of the first count_G targets of each group, for scores vector . table + bias.

    Only chunks that hold a target are computed, forward and backward, and the backward pass computes their scores
    again: neither time nor memory grows with the places that are not used. Groups do not mix, so that devices that hold
    different groups send each other nothing but the gradient of the table, once.

    Args:
      vector_GxNxE: N is a multiple of chunks.size.

    Returns:
      [G, N]; zeros behind the last chunk that holds a target.
    """
    return _forward(chunks, vector_GxNxE, table_VxE, bias_V, target_GxN, count_G)[0]


def _scores(chunks, i, vector_GxNxE, table_VxE, bias_V, target_GxN):
    """(vectors_GxCxE, scores_GxCxV float32, whether a score is the target's) of chunk i."""
    x_GxCxE, target_GxC = (
        jax.lax.dynamic_slice_in_dim(x, i * chunks.size, chunks.size, axis=1) for x in (vector_GxNxE, target_GxN)
    )
    x_GxCxE = x_GxCxE.astype(chunks.dtype)
    scores = jnp.einsum("gce,ve->gcv", x_GxCxE, table_VxE, preferred_element_type=jnp.float32)
    scores = chunks.constrain(scores + bias_V[None, None].astype(jnp.float32), "batch", None, "token")
    # compared, not looked up: the vocabulary may lie over several devices
    own = target_GxC[..., None] == jnp.arange(scores.shape[-1], dtype=jnp.int32)[None, None]
    return x_GxCxE, scores, own


def _n_chunks(chunks, count_G):
    return (jnp.max(count_G) + chunks.size - 1) // chunks.size


def _put(whole, part, i, size):
    return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), i * size, axis=1)


def _forward(chunks, vector_GxNxE, table_VxE, bias_V, target_GxN, count_G):
    # narrowed and gathered once, ahead of the chunks
    table = chunks.constrain(table_VxE.astype(chunks.dtype), "token", None)

    def one(i, found):
        _, scores, own = _scores(chunks, i, vector_GxNxE, table, bias_V, target_GxN)
        peak_GxC = jnp.max(scores, axis=-1)
        log_sum = peak_GxC + jnp.log(jnp.sum(jnp.exp(scores - peak_GxC[..., None]), axis=-1))
        target = jnp.sum(jnp.where(own, scores, 0.0), axis=-1)
        now = TokenLoss(log_sum - target, log_sum, target >= peak_GxC)
        return TokenLoss(*(_put(whole, part, i, chunks.size) for whole, part in zip(found, now, strict=True)))

    zero = jnp.zeros(target_GxN.shape, jnp.float32)
    found = jax.lax.fori_loop(0, _n_chunks(chunks, count_G), one, TokenLoss(zero, zero, zero.astype(bool)))
    return found, (vector_GxNxE, table_VxE, bias_V, target_GxN, count_G, found.log_sum)


def _backward(chunks, saved, cotangent):
    vector_GxNxE, table_VxE, bias_V, target_GxN, count_G, log_sum_GxN = saved
    table = chunks.constrain(table_VxE.astype(chunks.dtype), "token", None)
    d_nll_GxN, d_log_sum_GxN = cotangent.nll, cotangent.log_sum

    def one(i, sums):
        d_vector, d_table_GxVxE, d_bias_GxV = sums
        x, scores, own = _scores(chunks, i, vector_GxNxE, table, bias_V, target_GxN)
        log_sum, d_nll, d_log_sum = (
            jax.lax.dynamic_slice_in_dim(y, i * chunks.size, chunks.size, axis=1)[..., None]
            for y in (log_sum_GxN, d_nll_GxN, d_log_sum_GxN)
        )
        d_scores = jnp.exp(scores - log_sum) * (d_nll + d_log_sum) - jnp.where(own, d_nll, 0.0)
        d_bias_GxV += jnp.sum(d_scores, axis=1)
        d_scores = d_scores.astype(chunks.dtype)
        wide = {"preferred_element_type": jnp.float32}
        d_vector = _put(d_vector, jnp.einsum("gcv,ve->gce", d_scores, table, **wide), i, chunks.size)
        d_table_GxVxE += jnp.einsum("gcv,gce->gve", d_scores, x, **wide)
        return d_vector, d_table_GxVxE, d_bias_GxV

    # groups add up behind the loop: inside it, every chunk would be a message between devices
    n_group, (n_token, width) = vector_GxNxE.shape[0], table_VxE.shape
    zeros = (
        jnp.zeros(vector_GxNxE.shape, jnp.float32),
        chunks.constrain(jnp.zeros((n_group, n_token, width), jnp.float32), "batch", "token", None),
        chunks.constrain(jnp.zeros((n_group, n_token), jnp.float32), "batch", "token"),
    )
    d_vector, d_table_GxVxE, d_bias_GxV = jax.lax.fori_loop(0, _n_chunks(chunks, count_G), one, zeros)
    sums = d_table_GxVxE.sum(0).astype(table_VxE.dtype), d_bias_GxV.sum(0).astype(bias_V.dtype)
    return d_vector.astype(vector_GxNxE.dtype), *sums, None, None


front_loss.defvjp(_forward, _backward)
