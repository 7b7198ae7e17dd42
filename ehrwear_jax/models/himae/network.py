"""Holds HiMAE's network: residual blocks that halve the rate, and a decoder that doubles it beside their outputs.

Axes: B rows, N pieces of a row, R = B N, S samples or frames, A channels, H patches, D features.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ehrwear_jax.models.himae.config import Config
from ehrwear_jax.models.layers.convolution import READS, WRITES, BatchNorm, conv
from ehrwear_jax.models.layers.dense import named
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps


class EncoderBlock(nn.Module):
    """Two convolutions, the first of stride 2, beside one of a sample: [R, S, D] -> [R, ceil(S / 2), width]."""

    width: int
    config: Config

    @nn.compact
    def __call__(self, x_RxSxD: jax.Array, there_R: jax.Array, deterministic: bool) -> jax.Array:
        c = self.config
        also: dict[str, Any] = {"use_bias": False, "dtype": c.dtype}

        def norm(x, name):
            return BatchNorm(c.dtype, name=name)(x, there_R, deterministic)

        y = norm(conv(self.width, c.kernel, READS, stride=2, name="conv_in", **also)(x_RxSxD), "norm_in")
        y = norm(conv(self.width, c.kernel, WRITES, name="conv_out", **also)(_gelu(y)), "norm_out")
        short = conv(self.width, 1, READS, stride=2, name="shortcut", **also)(x_RxSxD)
        return _gelu(y + norm(short, "norm_shortcut"))


class DecoderBlock(nn.Module):
    """Doubles the rate and reads the encoder's output of that rate: [R, ceil(S / 2), E] -> [R, S, width]."""

    width: int
    config: Config

    @nn.compact
    def __call__(
        self, x_RxSxE: jax.Array, skip_RxSxD: jax.Array, there_R: jax.Array, deterministic: bool
    ) -> jax.Array:
        c = self.config
        up = doubled(self.width, c, name="up")(x_RxSxE)[:, : skip_RxSxD.shape[1]]
        y = jnp.concatenate([up, skip_RxSxD], axis=-1)
        for name, axes in (("in", READS), ("out", WRITES)):
            y = conv(self.width, c.kernel, axes, use_bias=False, dtype=c.dtype, name=f"conv_{name}")(y)
            y = _gelu(BatchNorm(c.dtype, name=f"norm_{name}")(y, there_R, deterministic))
        return y


def _gelu(x):
    return nn.gelu(x, approximate=False)


def doubled(width: int, config: Config, **options: Any) -> nn.ConvTranspose:
    """A transposed convolution [R, S, D] -> [R, 2 S, width]."""
    half = config.kernel // 2
    init = named(nn.initializers.he_uniform(), None, *READS)
    return nn.ConvTranspose(
        width, (config.kernel,), (2,), padding=[(half, half + 1)], dtype=config.dtype, kernel_init=init, **options
    )


class Encoder(nn.Module):
    """Blocks one after the other: [R, S, A] -> what each of them puts out, the last one the bottleneck."""

    config: Config

    @nn.compact
    def __call__(self, x_RxSxA: jax.Array, there_R: jax.Array, deterministic: bool) -> list[jax.Array]:
        out = [x_RxSxA.astype(self.config.dtype)]
        for k, width in enumerate(self.config.widths):
            out.append(EncoderBlock(width, self.config, name=f"block_{k}")(out[-1], there_R, deterministic))
        return out[1:]


class Decoder(nn.Module):
    """From what the encoder's blocks put out to the signal, within -1 and 1: [R, samples, channels] float32."""

    config: Config
    samples: int
    channels: int

    @nn.compact
    def __call__(self, blocks: list[jax.Array], there_R: jax.Array, deterministic: bool) -> jax.Array:
        x = blocks[-1]
        for k in reversed(range(len(blocks) - 1)):
            block = DecoderBlock(self.config.widths[k], self.config, name=f"block_{k}")
            x = block(x, blocks[k], there_R, deterministic)
        return jnp.tanh(doubled(self.channels, self.config, name="signal")(x)[:, : self.samples].astype(jnp.float32))


class HimaeNetwork(nn.Module):
    """Encoder and decoder over one batch."""

    config: Config
    samples: int
    channels: int
    mesh_ops: MeshOps = ONE_DEVICE

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config, self.samples, self.channels)

    def encode(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """z of each piece, nothing of it hidden: the bottleneck's mean over frames, float32 [B, N, D]; else zero."""
        there_BxN = batch["person"] >= 0
        x_RxSxA, there_R = self._rows(batch["signal"]), there_BxN.reshape(-1)
        z_RxD = jnp.mean(self.encoder(x_RxSxA, there_R, deterministic)[-1].astype(jnp.float32), axis=1)
        return jnp.where(there_BxN[..., None], z_RxD.reshape(*there_BxN.shape, -1), 0.0)

    def __call__(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> dict[str, jax.Array]:
        """{"masked": the signal from what is not hidden of it, float32 [B, N, S, A]}."""
        seen = jnp.where(hidden_samples(batch, self.config.patch)[..., None], 0.0, batch["signal"])
        there_R = (batch["person"] >= 0).reshape(-1)
        blocks = self.encoder(self._rows(seen), there_R, deterministic)
        return {"masked": self.decoder(blocks, there_R, deterministic).reshape(batch["signal"].shape)}

    def _rows(self, x_BxNxSxA):
        x_RxSxA = x_BxNxSxA.reshape(-1, *x_BxNxSxA.shape[2:])
        return self.mesh_ops.constrain(x_RxSxA, "batch", None, None)


def hidden_samples(batch: Mapping[str, jax.Array], patch: int) -> jax.Array:
    """Samples of hidden patches of so many samples: bool [B, N, S]."""
    return jnp.repeat(batch["hidden"], patch, axis=-1)[..., : batch["signal"].shape[2]]
