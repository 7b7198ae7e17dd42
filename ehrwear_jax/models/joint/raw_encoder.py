"""Encodes raw windows of sub-second signal, such as 30 s of a pulse wave, to vectors for the wearable encoder."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from ehrwear_jax.models.layers.dense import dense, named


def conv_init(*axes: str | None) -> Callable:
    """An initialiser of convolutions over time, with the names of their inputs and outputs."""
    return named(nn.initializers.lecun_normal(), None, *axes)


class ResidualBlock(nn.Module):
    """Pre-norm residual block of two convolutions over time, the first with a stride: [N, S, D] -> [N, S/stride, F]."""

    width: int
    stride: int
    dtype: str

    @nn.compact
    def __call__(self, x_NxSxD: jax.Array) -> jax.Array:
        y = nn.gelu(nn.LayerNorm(dtype=self.dtype, name="norm_in")(x_NxSxD))
        inward, outward = conv_init("embed", "mlp"), conv_init("mlp", "embed")
        y = nn.Conv(self.width, (7,), self.stride, dtype=self.dtype, kernel_init=inward, name="conv_in")(y)
        y = nn.gelu(nn.LayerNorm(dtype=self.dtype, name="norm_out")(y))
        y = nn.Conv(self.width, (7,), dtype=self.dtype, kernel_init=outward, name="conv_out")(y)
        short = nn.avg_pool(x_NxSxD, (self.stride,), (self.stride,), "SAME", count_include_pad=False)
        return y + dense(self.width, ("embed", "mlp"), use_bias=False, dtype=self.dtype, name="shortcut")(short)


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
    dtype: str = "float32"

    def __call__(
        self, batch: Mapping[str, jax.Array], n_window: int, n_patch: int
    ) -> tuple[jax.Array, jax.Array]:
        """batch: the raw fields of joint/batch.py.

        Returns:
          (by_patch of the vectors, [B, W, P, out_width]; the vectors, [B, N, out_width]).
        """
        h_BxNxD = self.vectors(batch)
        return by_patch(h_BxNxD, batch, n_window, n_patch), h_BxNxD

    @nn.compact
    def vectors(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """A vector per raw window, [B, N, out_width]; hidden samples look like those that were not measured."""
        raw_BxNxSxA, seen = batch["raw"], shown(batch)
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
        out = dense(self.out_width, ("mlp", "embed"), dtype=self.dtype, name="out")
        return out(x).reshape(n_batch, n_raw, -1)


def shown(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Which samples of raw windows the model sees: measured, and not hidden; bool [B, N, S, A]."""
    seen = batch["raw_observed"]
    if "raw_mask" not in batch:
        return seen
    n_samples, n_parts = seen.shape[2], batch["raw_mask"].shape[2]
    return seen & ~jnp.repeat(batch["raw_mask"], n_samples // n_parts, axis=-1)[..., None]


def by_patch(h_BxNxD: jax.Array, batch: Mapping[str, jax.Array], n_window: int, n_patch: int) -> jax.Array:
    """Mean over the raw windows of each patch, [B, W, P, D]; zeros at patches without one."""
    there_BxN = (batch["raw_window"] >= 0) & shown(batch).any((2, 3))
    place_BxN = jnp.where(there_BxN, batch["raw_window"] * n_patch + batch["raw_patch"], n_window * n_patch)
    weighted = jnp.where(there_BxN[..., None], h_BxNxD.astype(jnp.float32), 0.0)

    def summed(x_NxD, place_N):
        return jax.ops.segment_sum(x_NxD, place_N, n_window * n_patch + 1)[:-1]

    total = jax.vmap(summed)(weighted, place_BxN)
    count = jax.vmap(summed)(there_BxN[..., None].astype(jnp.float32), place_BxN)
    mean = total / jnp.maximum(count, 1.0)
    return mean.astype(h_BxNxD.dtype).reshape(len(h_BxNxD), n_window, n_patch, -1)
