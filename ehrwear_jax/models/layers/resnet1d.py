"""Holds a residual network of convolutions over time with norms before them (Hong et al. 2020, for ECG).

With 18 blocks of kernel 3 from width 32 it is the body of PaPaGei; wider ones of kernel 11 read longer waves.

Axes: R pieces of signal, S samples or frames, D features.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ehrwear_jax.models.layers.convolution import READS, WRITES, BatchNorm, conv
from ehrwear_jax.models.layers.dropout import dropout_seed, dropped

POOLS = ("mean", "max")


class ResidualBlock(nn.Module):
    """Two convolutions, each behind norm, ReLU and dropout: [R, S, E] -> [R, ceil(S / stride), width].

    Beside them goes the input: the highest of `stride` samples, and zeros for further features, as many before as
    behind. The first block of a network begins with its convolution.

    Attributes:
      stream: tells its dropout from that of other blocks.
    """

    width: int
    kernel: int
    stride: int
    dropout: float
    first: bool
    stream: int
    dtype: str

    @nn.compact
    def __call__(self, x_RxSxE: jax.Array, there_R: jax.Array, deterministic: bool) -> jax.Array:
        keep = deterministic or not self.dropout
        seed = None if keep else dropout_seed(self.make_rng("dropout"))

        def ready(x, name, stream):
            x = nn.relu(BatchNorm(self.dtype, name=name)(x, there_R, deterministic))
            return x if seed is None else dropped(x, self.dropout, seed, 2 * self.stream + stream)

        also: dict[str, Any] = {"padding": "SAME", "dtype": self.dtype}
        y = x_RxSxE if self.first else ready(x_RxSxE, "norm_in", 0)
        y = conv(self.width, self.kernel, READS, stride=self.stride, name="conv_in", **also)(y)
        y = ready(y, "norm_out", 1)
        y = conv(self.width, self.kernel, WRITES, name="conv_out", **also)(y)
        return y + _shortcut(x_RxSxE, self.stride, self.width)


def _shortcut(x_RxSxE, stride, width):
    if stride > 1:  # behind the last sample are zeros, as many as the original has
        missing = -x_RxSxE.shape[1] % stride
        x_RxSxE = nn.max_pool(jnp.pad(x_RxSxE, ((0, 0), (0, missing), (0, 0))), (stride,), (stride,))
    more = width - x_RxSxE.shape[2]
    return jnp.pad(x_RxSxE, ((0, 0), (0, 0), (more // 2, more - more // 2)))


class ResNet1D(nn.Module):
    """From signal to one vector a piece: [R, S, A] -> [R, D] float32.

    D is `width` doubled at every `widen_every`-th block; every second block, beginning with the second, divides the
    rate by `stride`.

    Attributes:
      width, kernel: of the first convolution; kernel of all. pool: over frames, see POOLS.
      norm_out: whether the last block is normed, and its negative parts are zero, before frames are pooled.
      dropout: share of activations before each convolution of the blocks that training drops.
    """

    width: int = 32
    n_blocks: int = 18
    kernel: int = 3
    stride: int = 2
    widen_every: int = 4
    dropout: float = 0.5
    pool: str = "mean"
    norm_out: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_RxSxA: jax.Array, there_R: jax.Array, deterministic: bool) -> jax.Array:
        """there_R: bool, which pieces count for norms' statistics."""
        also: dict[str, Any] = {"padding": "SAME", "dtype": self.dtype}
        x = conv(self.width, self.kernel, READS, name="stem", **also)(x_RxSxA.astype(self.dtype))
        x = nn.relu(BatchNorm(self.dtype, name="norm_stem")(x, there_R, deterministic))
        for k in range(self.n_blocks):
            block = ResidualBlock(
                widths(self)[k], self.kernel, self.stride if k % 2 else 1, self.dropout, k == 0, k, self.dtype,
                name=f"block_{k}",
            )  # fmt: skip
            x = block(x, there_R, deterministic)
        if self.norm_out:
            x = nn.relu(BatchNorm(self.dtype, name="norm_out")(x, there_R, deterministic))
        x = x.astype(jnp.float32)
        return jnp.mean(x, axis=1) if self.pool == "mean" else jnp.max(x, axis=1)


def widths(net: ResNet1D) -> list[int]:
    """Of the blocks."""
    return [net.width * 2 ** (k // net.widen_every) for k in range(net.n_blocks)]


def multiplications(net: ResNet1D, samples: int, channels: int) -> int:
    """In the convolutions, of a piece."""
    total, before = samples * net.kernel * channels * net.width, net.width
    for k, width in enumerate(widths(net)):
        samples = -(-samples // net.stride) if k % 2 else samples
        total += samples * net.kernel * (before * width + width * width)
        before = width
    return total
