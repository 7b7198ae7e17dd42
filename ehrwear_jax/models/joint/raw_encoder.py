"""Raw windows, of sub-second resolution, to vectors that join the patches of the wearable encoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class ResidualBlock(nn.Module):
    """Pre-norm residual block of two convolutions over time, the first with a stride: [N, S, D] -> [N, S/stride, F]."""

    width: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_NxSxD):
        y = nn.gelu(nn.LayerNorm(dtype=self.dtype, name="norm_in")(x_NxSxD))
        y = nn.Conv(self.width, (7,), self.stride, dtype=self.dtype, name="conv_in")(y)
        y = nn.gelu(nn.LayerNorm(dtype=self.dtype, name="norm_out")(y))
        y = nn.Conv(self.width, (7,), dtype=self.dtype, name="conv_out")(y)
        short = nn.avg_pool(x_NxSxD, (self.stride,), (self.stride,), "SAME", count_include_pad=False)
        return y + nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="shortcut")(short)


class RawEncoder(nn.Module):
    """The residual encoder of raw 30 s windows (paper, section 3.5: higher-frequency details are preserved).

    A vector per raw window, averaged over the raw windows of each patch of the wearable encoder. It sees nothing
    beyond its own samples, so a patch's vector is known at the patch's end.

    Attributes:
      width: of the last block; earlier blocks are narrower by halves, down to 4, as a norm over one or two features
        leaves nothing or a sign. out_width: of the result.
      n_blocks: residual blocks, each of which reduces the rate by 4.
    """

    width: int
    out_width: int
    n_blocks: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, batch, n_window, n_patch):
        """batch: the raw fields of batch.OPTIONAL.

        Returns:
          [B, W, P, out_width]; zeros at patches without a raw window.
        """
        raw_BxNxSxA, seen = batch["raw"], batch["raw_observed"]
        n_batch, n_raw = raw_BxNxSxA.shape[:2]
        # as in the wearable encoder, absence can be told from a value of zero
        signal = jnp.concatenate([jnp.where(seen, raw_BxNxSxA, 0.0), seen.astype(jnp.float32)], axis=-1)
        x = signal.reshape(n_batch * n_raw, *signal.shape[2:]).astype(self.dtype)
        # before the first norm: over one channel and its mask, that would leave little more of a sample than its sign
        x = nn.Conv(max(self.width >> self.n_blocks, 4), (7,), dtype=self.dtype, name="stem")(x)
        for i in range(self.n_blocks):
            width = max(self.width >> (self.n_blocks - 1 - i), 4)
            x = ResidualBlock(width, 4, self.dtype, name=f"block_{i}")(x)
        x = jnp.mean(nn.LayerNorm(dtype=self.dtype, name="norm")(x), axis=1)
        h_BxNxD = nn.Dense(self.out_width, dtype=self.dtype, name="out")(x).reshape(n_batch, n_raw, -1)

        there_BxN = (batch["raw_window"] >= 0) & seen.any((2, 3))
        place_BxN = jnp.where(there_BxN, batch["raw_window"] * n_patch + batch["raw_patch"], n_window * n_patch)
        weighted = jnp.where(there_BxN[..., None], h_BxNxD.astype(jnp.float32), 0.0)

        def by_patch(x_NxD, place_N):
            return jax.ops.segment_sum(x_NxD, place_N, n_window * n_patch + 1)[:-1]

        total = jax.vmap(by_patch)(weighted, place_BxN)
        count = jax.vmap(by_patch)(there_BxN[..., None].astype(jnp.float32), place_BxN)
        mean = total / jnp.maximum(count, 1.0)
        return mean.astype(self.dtype).reshape(n_batch, n_window, n_patch, self.out_width)
