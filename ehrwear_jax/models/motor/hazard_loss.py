"""Computes the loss of piecewise-constant hazards of many codes, one piece of time at a time.

At a place, the hazard of code c in the piece [b_k, b_k+1) is exp(l_kc) a day, as far as the person is followed up and
the code has not occurred. With T_kc the days in piece k until the code occurs or follow-up ends, and d_kc whether it
occurs in the piece, the negative log-likelihood of a place is

    sum_kc  exp(l_kc) T_kc - d_kc l_kc

(Steinberg et al. 2024, in natural logarithms and days). The original averages over pieces and codes too: a constant
factor that puts the gradients of rare codes below the epsilon of Adam.

Axes: B rows, N places, K pieces of time, E width, C codes, P pairs of a place and a code that follows.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from ehrwear_jax.models.layers.mesh_ops import no_constraint
from ehrwear_jax.models.objective import masked_mean, n_true


def event_days(batch: Mapping[str, jax.Array], n_tasks: int) -> jax.Array:
    """Days from each place to each code's next occurrence, infinite where it has none: float32 [B, N, C].

    Args:
      batch: with the pairs of examples.FIELDS.
    """
    n_sites = batch["site"].shape[1]
    # of padding: a place that there is not, whose pairs are dropped
    site_BxP = jnp.where(batch["pair_site"] >= 0, batch["pair_site"], n_sites)

    # Row by row: were the row an index too, each device would be sent the pairs of the whole batch.
    def of_row(site_P, task_P, days_P):
        never = jnp.full((n_sites, n_tasks), jnp.inf, jnp.float32)
        return never.at[site_P, task_P].set(days_P, mode="drop")

    return jax.vmap(of_row)(site_BxP, batch["pair_task"], batch["pair_days"])


def place_loss(
    h_BxNxKxE: jax.Array,
    kernel_ExC: jax.Array,
    bias_KxC: jax.Array,
    bin_days: tuple[float, ...],
    event_BxNxC: jax.Array,
    end_BxN: jax.Array,
    constrain: Callable = no_constraint,
) -> jax.Array:
    """Negative log-likelihood of each place, nats, with l_kc = h_k . kernel_c + bias_kc: float32 [B, N].

    Pieces of time are gone through one by one, forward and backward, and the backward pass computes their scores again:
    what is alive at once is as large as event_BxNxC, never K times that. Products are of h's dtype, sums float32.

    Args:
      bin_days: when each piece begins; the last has no end. event_BxNxC: see event_days. end_BxN: days to the end of
        follow-up; places of 0 have no loss. constrain: of MeshOps.
    """
    kernel = kernel_ExC.astype(h_BxNxKxE.dtype)
    until_BxNxC = jnp.minimum(event_BxNxC, end_BxN[..., None])
    happens_BxNxC = event_BxNxC <= end_BxN[..., None]

    @jax.checkpoint
    def one(sum_BxN, piece):
        h_BxNxE, bias_C, begin, end = piece
        score = jnp.einsum("bne,ec->bnc", h_BxNxE, kernel, preferred_element_type=jnp.float32)
        score = constrain(score + bias_C[None, None], "batch", None, "future_code")
        exposed = jnp.clip(until_BxNxC - begin, 0.0, end - begin)
        # with the logarithm inside, no exposure is no loss however large the score
        expected = jnp.exp(score + jnp.log(exposed))
        here = happens_BxNxC & (event_BxNxC >= begin) & (event_BxNxC < end)
        return sum_BxN + jnp.sum(expected - jnp.where(here, score, 0.0), axis=-1), None

    begin_K = jnp.asarray(bin_days, jnp.float32)
    end_K = jnp.asarray([*bin_days[1:], jnp.inf], jnp.float32)
    pieces = jnp.moveaxis(h_BxNxKxE, 2, 0), bias_KxC, begin_K, end_K
    found, _ = jax.lax.scan(one, jnp.zeros(end_BxN.shape, jnp.float32), pieces)
    return jnp.where(end_BxN > 0, found, 0.0)


@dataclasses.dataclass(frozen=True)
class TimeToEvent:
    """The one term of the objective: mean over places of their negative log-likelihood.

    Attributes:
      n_scores: pieces of time times codes, by which the original divides.
    """

    n_scores: int
    name: str = "time_to_event"

    def normaliser(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """How many places there are."""
        return n_true(batch["site_days"] > 0)

    def loss(
        self, out: jax.Array, batch: Mapping[str, jax.Array], normaliser: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(mean of place_loss over places, {"per_score": that of the original})."""
        value = masked_mean(out, batch["site_days"] > 0, normaliser)
        return value, {"per_score": value / self.n_scores}
