"""Prediction heads: decoders of signals and summaries, the pooling of wearable latents, later codes."""

import flax.linen as nn
import jax.numpy as jnp


class SignalDecoder(nn.Module):
    """w_hat(z, h): the whole window that ends h windows after the latent's time; h = 0 is the latent's own window."""

    steps: int
    channels: int
    n_future: int
    width: int

    @nn.compact
    def __call__(self, z, horizon):
        """z [..., D], horizon int -> [..., L, C]; one trunk, a learned vector per horizon."""
        horizon_HxD = self.param("horizon", nn.initializers.normal(0.02), (self.n_future + 1, self.width))
        hidden = nn.gelu(
            nn.Dense(self.width, name="trunk")(z) + horizon_HxD[horizon].reshape((1,) * (z.ndim - 1) + (-1,))
        )
        out = nn.Dense(self.steps * self.channels, name="out")(hidden)
        return out.reshape(*z.shape[:-1], self.steps, self.channels)


class WearablePool(nn.Module):
    """Agg of L_w->e: attention-weighted mean of the latents of the wearable tokens in a range of positions."""

    @nn.compact
    def __call__(self, z_BxTxD, is_wear_BxT, pool_BxNx2):
        """Returns (pooled_BxNxD, exists_BxN); a range without wearable tokens gives zeros and False."""
        score_BxT = nn.Dense(1, name="score")(z_BxTxD)[..., 0]
        position = jnp.arange(z_BxTxD.shape[1])[None, None]
        inside = (position >= pool_BxNx2[..., :1]) & (position < pool_BxNx2[..., 1:]) & is_wear_BxT[:, None]
        logit = jnp.where(inside, score_BxT[:, None], -jnp.inf)
        peak = jnp.max(logit, axis=-1, keepdims=True)
        weight = jnp.where(inside, jnp.exp(logit - jnp.where(jnp.isfinite(peak), peak, 0.0)), 0.0)
        total = weight.sum(-1, keepdims=True)
        return (weight / jnp.where(total > 0, total, 1.0)) @ z_BxTxD, inside.any(-1)


class Mlp(nn.Module):
    """One hidden layer."""

    width: int
    out: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.out, name="out")(nn.gelu(nn.Dense(self.width, name="hidden")(x)))
