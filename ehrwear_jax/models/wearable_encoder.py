"""Wearable windows to vectors: a local transformer over patches, bidirectional inside a window."""

import flax.linen as nn
import jax.numpy as jnp


class LocalBlock(nn.Module):
    """Pre-norm self-attention and feed-forward block over the patches of one window."""

    width: int
    n_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_NxPxD):
        y = nn.LayerNorm(dtype=self.dtype, name="norm_attention")(x_NxPxD)
        y = nn.MultiHeadDotProductAttention(self.n_heads, dtype=self.dtype, name="attention")(y)
        x_NxPxD = x_NxPxD + y
        y = nn.LayerNorm(dtype=self.dtype, name="norm_mlp")(x_NxPxD)
        y = nn.Dense(4 * self.width, dtype=self.dtype, name="up")(y)
        return x_NxPxD + nn.Dense(self.width, dtype=self.dtype, name="down")(nn.gelu(y))


class WearableEncoder(nn.Module):
    """f_w of the paper's section 3.2: h^w(t_j) = f_w(w[t_j - window, t_j]), known at the window's end.

    Attributes:
      width: of the local transformer; out_width: p, the backbone's.
      n_layers, n_heads: of the local transformer.
      patch_steps: steps per patch.
    """

    width: int
    out_width: int
    n_layers: int
    n_heads: int
    patch_steps: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, wear_BxWxLxC, observed_BxWxLxC, patch_mask_BxWxP, channel_mask_BxWxC=None):
        """Returns h_BxWxD; hidden patches contribute a learned vector and nothing of their signal.

        Hidden channels look like channels that were not measured.

        Raises:
          ValueError: patches do not divide the window.
        """
        n_batch, n_window, n_step, n_channel = wear_BxWxLxC.shape
        n_patch = patch_mask_BxWxP.shape[-1]
        if n_patch * self.patch_steps != n_step:
            raise ValueError(f"patches of {self.patch_steps} steps do not divide a window of {n_step} steps")
        hidden = jnp.repeat(patch_mask_BxWxP, self.patch_steps, axis=-1)[..., None]
        seen = observed_BxWxLxC & ~hidden
        if channel_mask_BxWxC is not None:
            seen = seen & ~channel_mask_BxWxC[:, :, None]
        # the coverage mask is an input (paper, appendix A.2), so that absence can be told from a value of zero
        signal = jnp.concatenate([jnp.where(seen, wear_BxWxLxC, 0.0), seen.astype(jnp.float32)], axis=-1)
        scale_C = self.param("channel_scale", nn.initializers.ones, (2 * n_channel,))
        patch = (signal * scale_C[None, None, None]).reshape(
            n_batch * n_window, n_patch, self.patch_steps * 2 * n_channel
        )
        x_NxPxD = nn.Dense(self.width, dtype=self.dtype, name="channel_projection")(patch.astype(self.dtype))
        mask_D = self.param("mask_vector", nn.initializers.normal(0.02), (self.width,))
        position_PxD = self.param("position", nn.initializers.normal(0.02), (n_patch, self.width))
        flat_mask = patch_mask_BxWxP.reshape(n_batch * n_window, n_patch, 1)
        x_NxPxD = (
            jnp.where(flat_mask, mask_D.astype(self.dtype)[None, None], x_NxPxD) + position_PxD.astype(self.dtype)[None]
        )
        for i in range(self.n_layers):
            x_NxPxD = LocalBlock(self.width, self.n_heads, self.dtype, name=f"block_{i}")(x_NxPxD)
        x_NxPxD = nn.LayerNorm(dtype=self.dtype, name="norm_out")(x_NxPxD)
        score = nn.softmax(nn.Dense(1, dtype=jnp.float32, name="pool")(x_NxPxD), axis=1).astype(self.dtype)
        pooled = jnp.concatenate([jnp.sum(score * x_NxPxD, axis=1), jnp.mean(x_NxPxD, axis=1)], axis=-1)
        h = nn.Dense(self.out_width, dtype=self.dtype, name="out")(pooled)
        return h.reshape(n_batch, n_window, self.out_width)
