"""Draws z from a latent stochastic differential equation, and says what its drift costs against the prior's.

Prior: dz = -rate z dt + g dW, g^2 = 2 rate stationary, an Ornstein-Uhlenbeck process. Posterior: the same noise under
the drift -rate z + g u(z, t, record), u a network. By Girsanov's theorem KL(q || p) of paths is the expectation of the
integral of |u|^2 / 2 (Li et al. 2020, "Scalable gradients for stochastic differential equations").

Steps are exponential: the linear drift and the noise are integrated exactly, u is constant in a step. So no gap is too
long for a step, and the cost of a step is that of its two normal transitions: the bound holds for any number of them,
and tends to Girsanov's integral as they become short.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.layers.dense import dense, named

Control = Callable[[jax.Array, jax.Array], jax.Array]  # (state [..., D], share of the gap that has passed) -> u
Noise = Callable[[tuple[int, ...]], jax.Array]  # shape -> standard normal numbers, or zeros


class Steps(NamedTuple):
    """Of one step: z' = decay z + gain u + sd noise, at a cost of u^2 weight nats; [..., D] each."""

    decay: jax.Array
    gain: jax.Array
    sd: jax.Array
    weight: jax.Array


def steps_of(prior: tuple[jax.Array, jax.Array], days: jax.Array) -> Steps:
    """The exponential step.

    Args:
      prior: (rate, stationary) [D], 1/day and variance. days: of the step, [...].
    """
    rate, stationary = (x.reshape((1,) * days.ndim + (-1,)) for x in prior)
    turned = rate * days[..., None]
    gain = -jnp.expm1(-turned) * jnp.sqrt(2.0 * stationary / rate)
    variance = -jnp.expm1(-2.0 * turned) * stationary
    return Steps(jnp.exp(-turned), gain, jnp.sqrt(variance), jnp.tanh(0.5 * turned) / rate)


def integrate(
    control: Control, z: jax.Array, days: jax.Array, noise_Kx: jax.Array, prior: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The state after a gap, in K equal steps, and what the path cost.

    Args:
      z: [..., D]. days: of the gap, [...]. noise_Kx: standard normal, [K, ..., D].

    Returns:
      (state [..., D], nats [...], summed over D).
    """
    n = noise_Kx.shape[0]
    step = steps_of(prior, days / n)

    def one(carry, now):
        (z, cost), (noise, share) = carry, now
        u = control(z, share)
        z = step.decay * z + step.gain * u + step.sd * noise
        return (z, cost + jnp.sum(step.weight * jnp.square(u), axis=-1)), None

    share_K = jnp.arange(n, dtype=jnp.float32) / n
    return jax.lax.scan(one, (z, jnp.zeros(days.shape, jnp.float32)), (noise_Kx, share_K))[0]


class Gaps(NamedTuple):
    """Where states come from: days since the state before, [B, N]; begins: there is none, bool [B, N]."""

    days: jax.Array
    begins: jax.Array


class SdePosterior(nn.Module):
    """q(z) as a stochastic differential equation that the encoder's latents steer, from token to token.

    What steers it towards a token or a query is the latent there, which knows nothing later. The first state of a
    context is drawn from a normal distribution.

    Attributes:
      width: of z. hidden: units of the drift. steps: between two states.
      shortest_days, longest_days: 1 / rate of the prior starts log-spaced between them, over dimensions.
    """

    width: int
    hidden: int = 128
    steps: int = 4
    shortest_days: float = 0.25
    longest_days: float = 30.0

    def setup(self) -> None:
        zeros, start = nn.initializers.zeros, nn.initializers.constant(-2.0)
        self.first_mean = dense(self.width, ("embed", "mlp"))
        self.first_log_variance = dense(self.width, ("embed", "mlp"), kernel_init=zeros, bias_init=start)
        self.context = dense(self.hidden, ("embed", "mlp"))
        days = np.geomspace(self.shortest_days, self.longest_days, self.width)
        self.log_rate = self.param("log_rate", lambda _: jnp.asarray(-np.log(days), jnp.float32))
        self.log_stationary = self.param("log_stationary", lambda _: jnp.zeros(self.width, jnp.float32))
        # plain arrays, as a scan takes no modules; u starts at zero, the posterior at the prior
        normal = nn.initializers.lecun_normal()
        self.of_state = self.param("of_state", named(normal, "embed", "mlp"), (self.width, self.hidden))
        self.of_time = self.param("of_time", named(normal, None, "mlp"), (2, self.hidden))
        self.out = self.param("out", named(zeros, "mlp", "embed"), (self.hidden, self.width))

    def prior(self) -> tuple[jax.Array, jax.Array]:
        """(rate_D in 1/day, stationary variance_D)."""
        return jnp.exp(self.log_rate), jnp.exp(self.log_stationary)

    def __call__(
        self, h: tuple[jax.Array, jax.Array], gaps: tuple[Gaps, Gaps], last_BxQ: jax.Array, noise: Noise
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """States of tokens and queries, and what they cost.

        Args:
          h: the encoder's latents of tokens [B, T, D] and queries [B, Q, D]. gaps: of tokens and of queries.
          last_BxQ: position of the last token that a query sees.
          noise: zeros give the path without noise.

        Returns:
          (z_BxTxD, z_BxQxD float32, {"kl_token" [B, T], "kl_query" [B, Q]} in nats).
        """
        (h_BxTxD, h_BxQxD), (of_tokens, of_queries) = h, gaps
        z_BxTxD, kl_BxT = self._along(h_BxTxD, of_tokens, noise)
        before = jnp.take_along_axis(z_BxTxD, jnp.maximum(last_BxQ, 0)[..., None], axis=1)
        shape = (*h_BxQxD.shape[:2], self.steps + 1, self.width)
        drawn = jnp.moveaxis(noise(shape), 2, 0)
        about = self._steering(h_BxQxD), of_queries.days, of_queries.begins
        z_BxQxD, kl_BxQ = self._next(before, *about, drawn)
        return z_BxTxD, z_BxQxD, {"kl_token": kl_BxT, "kl_query": kl_BxQ}

    def _along(self, h_BxTxD, gaps, noise):
        """States of tokens one after the other."""
        drawn = noise((*h_BxTxD.shape[:2], self.steps + 1, self.width))
        drawn_TxKxBxD = jnp.moveaxis(drawn, (1, 2), (0, 1))
        steering = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (self._steering(h_BxTxD), *gaps))

        def one(z_BxD, now):
            steering, days_B, begins_B, noise_KxBxD = now
            z_BxD, cost_B = self._next(z_BxD, steering, days_B, begins_B, noise_KxBxD)
            return z_BxD, (z_BxD, cost_B)

        first = jnp.zeros((h_BxTxD.shape[0], self.width), jnp.float32)
        _, (z_TxBxD, cost_TxB) = jax.lax.scan(jax.checkpoint(one), first, (*steering, drawn_TxKxBxD))
        return jnp.moveaxis(z_TxBxD, 0, 1), jnp.moveaxis(cost_TxB, 0, 1)

    def _steering(self, h):
        """What the latents say to the equation: (its hidden units, mean and variance of a first state)."""
        h = h.astype(jnp.float32)
        variance = jnp.exp(jnp.clip(self.first_log_variance(h), -10.0, 4.0))
        return self.context(h), self.first_mean(h), variance

    def _next(self, z, steering, days, begins, noise_Kx):
        """(state, cost) after a gap, or of a first state."""
        said, mean, variance = steering
        log_days = jnp.log1p(24.0 * days)[..., None]

        def control(z, share):
            time = jnp.concatenate([log_days, jnp.broadcast_to(share, log_days.shape)], axis=-1)
            return jnp.tanh(said + z @ self.of_state + time @ self.of_time) @ self.out

        moved, cost = integrate(control, z, days, noise_Kx[1:], self.prior())
        _, stationary = self.prior()
        stationary = stationary.reshape((1,) * (mean.ndim - 1) + (-1,))
        first = mean + jnp.sqrt(variance) * noise_Kx[0]
        ratio = variance / stationary
        first_cost = 0.5 * jnp.sum(jnp.square(mean) / stationary + ratio - 1.0 - jnp.log(ratio), axis=-1)
        return jnp.where(begins[..., None], first, moved), jnp.where(begins, first_cost, cost)


def gaps_of(batch: Any, unit_days: float, least_days: float) -> tuple[tuple[Gaps, Gaps], jax.Array]:
    """((gaps of tokens, of queries), last_BxQ) of a batch whose times count in a unit; see `SdePosterior`."""
    time_BxT = batch["time"]
    at_1xT = jnp.arange(time_BxT.shape[1])[None]
    since = jnp.diff(time_BxT, axis=1, prepend=time_BxT[:, :1])
    of_tokens = Gaps(jnp.maximum(since * unit_days, least_days), at_1xT - 1 < batch["kv_range"][..., 0])
    lo, hi = batch["query_kv_range"][..., 0], batch["query_kv_range"][..., 1]
    last_BxQ = jnp.maximum(hi - 1, 0)
    since = batch["query_time"] - jnp.take_along_axis(time_BxT, last_BxQ, axis=1)
    return (of_tokens, Gaps(jnp.maximum(since * unit_days, least_days), hi <= lo)), last_BxQ
