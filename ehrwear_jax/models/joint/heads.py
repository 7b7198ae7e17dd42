"""Pools wearable latents, aligns contents of the two modalities, and gives z a posterior."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.layers.dense import dense


class WearablePool(nn.Module):
    """Agg of L_w->e: a weighted mean of the latents of the wearable tokens in a range of positions.

    Attributes:
      kind: "attention": weights are a softmax of a learned score of the latent. "temporal": a readout at the time of
        the prediction, weights exp(-(t - t_j) / tau_k) with a learned tau_k for each of n_scales groups of dimensions.
      shortest_days, longest_days: tau_k starts log-spaced between them.
    """

    kind: str = "attention"
    n_scales: int = 4
    shortest_days: float = 0.25
    longest_days: float = 30.0

    @nn.compact
    def __call__(
        self,
        z_BxTxD: jax.Array,
        is_wear_BxT: jax.Array,
        pool_BxNx2: jax.Array,
        time_BxT: jax.Array | None = None,
        prediction_time_BxN: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (pooled_BxNxD, exists_BxN); a range without wearable tokens gives zeros and False.

        Raises:
          ValueError: another kind, no times for the temporal one, or a width that n_scales does not divide.
        """
        position = jnp.arange(z_BxTxD.shape[1])[None, None]
        inside = (position >= pool_BxNx2[..., :1]) & (position < pool_BxNx2[..., 1:]) & is_wear_BxT[:, None]
        if self.kind == "attention":
            logit = dense(1, ("embed", None), name="score")(z_BxTxD)[..., 0][:, None]
            return _weights(logit, inside) @ z_BxTxD, inside.any(-1)
        if self.kind != "temporal":
            raise ValueError(f"unknown pooling {self.kind!r}: attention or temporal")
        if time_BxT is None or prediction_time_BxN is None:
            raise ValueError("temporal pooling needs the times of tokens and predictions")
        n_batch, n_time, width = z_BxTxD.shape
        if width % self.n_scales:
            raise ValueError(f"{self.n_scales} time scales do not divide a width of {width}")
        days = np.geomspace(self.shortest_days, self.longest_days, self.n_scales)
        log_days_K = self.param("log_days", lambda _: jnp.asarray(np.log(days), jnp.float32))
        age_BxNxT = jnp.maximum(prediction_time_BxN[..., None] - time_BxT[:, None], 0.0)
        logit = -age_BxNxT[:, None] / jnp.exp(log_days_K)[None, :, None, None]
        part_BxKxTxd = z_BxTxD.reshape(n_batch, n_time, self.n_scales, -1).transpose(0, 2, 1, 3)
        pooled = _weights(logit, inside[:, None]) @ part_BxKxTxd
        return pooled.transpose(0, 2, 1, 3).reshape(n_batch, -1, width), inside.any(-1)


def _weights(logit, inside):
    """Softmax over the last axis where inside; zeros where nothing is."""
    logit = jnp.where(inside, logit, -jnp.inf)
    peak = jnp.max(logit, axis=-1, keepdims=True)
    weight = jnp.where(inside, jnp.exp(logit - jnp.where(jnp.isfinite(peak), peak, 0.0)), 0.0)
    total = weight.sum(-1, keepdims=True)
    return weight / jnp.where(total > 0, total, 1.0)


class Alignment(nn.Module):
    """Projections of co-located contents of the two modalities onto a common sphere, for InfoNCE.

    Attributes:
      width: of the common space. temperature: tau, where it starts. learned: whether it is learned, 0.01 at least.
    """

    width: int
    temperature: float = 0.1
    learned: bool = True

    @nn.compact
    def __call__(
        self, h_BxTxD: jax.Array, visible_ehr_BxT: jax.Array, position_BxN: jax.Array, near_BxNx2: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Args: contents of tokens, which are EHR events and not hidden, the pairs' fields (see batch.FIELDS).

        Returns:
          (ehr_BxNxS, wear_BxNxS float32 of norm 1, temperature): the mean of the events in range, and the window.
        """
        at = jnp.arange(h_BxTxD.shape[1])[None, None]
        near = (at >= near_BxNx2[..., :1]) & (at < near_BxNx2[..., 1:]) & visible_ehr_BxT[:, None]
        share = near / jnp.maximum(near.sum(-1, keepdims=True), 1)
        ehr = share @ h_BxTxD.astype(jnp.float32)
        wear = jnp.take_along_axis(h_BxTxD, jnp.maximum(position_BxN, 0)[..., None], axis=1).astype(jnp.float32)

        def project(x, name):
            x = dense(self.width, ("embed", "mlp"), use_bias=False, name=name)(nn.LayerNorm(name=f"norm_{name}")(x))
            return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)

        if self.learned:
            start = jnp.log(jnp.float32(self.temperature))
            temperature = jnp.maximum(jnp.exp(self.param("log_temperature", lambda _: start)), 0.01)
        else:
            temperature = jnp.float32(self.temperature)
        return project(ehr, "ehr"), project(wear, "wear"), temperature


class Posterior(nn.Module):
    """q(z(t)) of the ELBO variant: independent normal states around the backbone's latents, and the prior's parameters.

    Attributes:
      width: of z. shortest_days, longest_days: 1 / rate of the prior starts log-spaced between them, over dimensions.
    """

    width: int
    shortest_days: float = 0.25
    longest_days: float = 30.0

    def setup(self) -> None:
        zeros, start = nn.initializers.zeros, nn.initializers.constant(-2.0)
        self.log_variance = dense(self.width, ("embed", "mlp"), kernel_init=zeros, bias_init=start)
        days = np.geomspace(self.shortest_days, self.longest_days, self.width)
        self.log_rate = self.param("log_rate", lambda _: jnp.asarray(-np.log(days), jnp.float32))
        self.log_stationary = self.param("log_stationary", lambda _: jnp.zeros(self.width, jnp.float32))

    def variance(self, mean: jax.Array) -> jax.Array:
        """[..., D] -> [..., D], between 5e-5 and 55."""
        return jnp.exp(jnp.clip(self.log_variance(mean), -10.0, 4.0))

    def prior(self) -> tuple[jax.Array, jax.Array]:
        """(rate_D in 1/day, stationary variance_D)."""
        return jnp.exp(self.log_rate), jnp.exp(self.log_stationary)
