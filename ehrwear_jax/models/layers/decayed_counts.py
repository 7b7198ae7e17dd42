"""Computes decayed counts: sums over the visible record that attention, being normalised, cannot form."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.layers.dense import dense


def decayed_sums(
    feature_BxTxD: jax.Array,
    time_BxT: jax.Array,
    starts_BxT: jax.Array,
    rate_R: jax.Array,
    before: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """S_r(i) = sum over j <= i of the same context of exp(-rate_r (t_i - t_j)) feature_j, in O(T).

    The excitation of a Hawkes process (Hawkes 1971) with exponential decay: rate 0 counts, larger rates forget. An
    associative scan solves the recurrence S_r(i) = exp(-rate_r (t_i - t_{i-1})) S_r(i-1) + feature_i.

    Args:
      feature_BxTxD: float32.
      time_BxT: days, non-decreasing inside a context.
      starts_BxT: bool, where a context begins.
      rate_R: float32 >= 0, 1/day.
      before: (S [B, R, D], time [B]) of the token before the first one; None: nothing is before it.

    Returns:
      float32 [B, T, R, D].
    """
    time_before_Bx1 = time_BxT[:, :1] if before is None else before[1][:, None]
    gap_BxT = jnp.maximum(jnp.diff(time_BxT, axis=1, prepend=time_before_Bx1), 0.0)
    decay_BxTxR = jnp.exp(-gap_BxT[..., None] * rate_R[None, None])
    decay_BxTxR = jnp.where(starts_BxT[..., None], 0.0, decay_BxTxR)
    n_batch, n_time, depth = feature_BxTxD.shape
    start = jnp.broadcast_to(feature_BxTxD[:, :, None], (n_batch, n_time, rate_R.shape[0], depth))
    if before is not None:
        start = start.at[:, 0].add(decay_BxTxR[:, 0, :, None] * before[0])

    def join(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    return jax.lax.associative_scan(join, (decay_BxTxR[..., None], start), axis=1)[1]


class DecayedCounts(nn.Module):
    """How much of what has been seen, and how lately: an input of tokens and queries beside their own content.

    Softmax weights sum to one, so a stack of attention layers learns the number of past measurements or the age of a
    code's last occurrence slowly, if at all. Here the features of the visible tokens, non-negative so that they count,
    are summed under a few learned decay rates; log1p keeps the sums of long records in range.

    Attributes:
      width: features of a token. n_rates: decay rates, one of them 0; 1: a plain count. out_width: of the result.
      shortest_days, longest_days: 1 / rate starts log-spaced between them.
    """

    width: int
    out_width: int
    n_rates: int = 8
    shortest_days: float = 1.0
    longest_days: float = 3650.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, batch: Mapping[str, jax.Array], known: Mapping[str, jax.Array] | None = None
    ) -> tuple[jax.Array, ...]:
        """x: token contents; batch: time, kv_range, query_time, query_kv_range (see batch.FIELDS).

        Args:
          known: where x are the tokens from place `first` (int32) of one context on: the context's sums, float32
            [1, S, R, width] of the tokens before, and the time of all its tokens, [1, S].

        Returns:
          ([B, T, out_width], [B, Q, out_width]): the state at each token (itself included) and at each query; with
          what is known, third, the sums of the context's tokens, these included, [1, S, R, width].
        """
        project = dense(self.width, ("embed", "mlp"), dtype=jnp.float32, name="feature")
        feature = nn.relu(project(nn.LayerNorm(name="norm")(x_BxTxD)))
        rate_R = self._rates()
        first, key_time, before = jnp.int32(0), batch["time"], None
        if known is not None:
            first, key_time = known["first"], known["time"]
            last = jnp.maximum(first - 1, 0)
            before = known["sums"][:, last], key_time[:, last]
        position = first + jnp.arange(x_BxTxD.shape[1])[None]
        sums = decayed_sums(feature, batch["time"], batch["kv_range"][..., 0] == position, rate_R, before)
        all_sums = sums if known is None else jax.lax.dynamic_update_slice_in_dim(known["sums"], sums, first, axis=1)

        stop_BxQ = batch["query_kv_range"][..., 1]
        seen_BxQ = stop_BxQ > batch["query_kv_range"][..., 0]
        last_BxQ = jnp.maximum(stop_BxQ - 1, 0)
        gap_BxQ = batch["query_time"] - jnp.take_along_axis(key_time, last_BxQ, axis=1)
        decay_BxQxR = jnp.exp(-jnp.maximum(gap_BxQ, 0.0)[..., None] * rate_R[None, None])
        at_query = jnp.take_along_axis(all_sums, last_BxQ[..., None, None], axis=1) * decay_BxQxR[..., None]
        at_query = jnp.where(seen_BxQ[..., None, None], at_query, 0.0)

        out = dense(self.out_width, ("mlp", "embed"), dtype=self.dtype, name="out")
        flat = [jnp.log1p(s).reshape(*s.shape[:2], -1).astype(self.dtype) for s in (sums, at_query)]
        return (out(flat[0]), out(flat[1]), *([] if known is None else [all_sums]))

    def _rates(self):
        if self.n_rates == 1:  # a parameter without elements would be one to optimise and to keep all the same
            return jnp.zeros(1, jnp.float32)
        days_R = np.geomspace(self.shortest_days, self.longest_days, self.n_rates - 1)
        log_rate_R = self.param("log_rate", lambda _: jnp.asarray(-np.log(days_R), jnp.float32))
        return jnp.append(jnp.exp(log_rate_R), 0.0)
