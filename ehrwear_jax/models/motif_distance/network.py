"""Computes how far a signal is from another: how badly it is reconstructed from what looks like it in the other.

Part of the *query* is hidden and taken, by attention, from frames of the *key* whose surroundings are alike; where the
key holds the motif, the error is small. In training the key is the query itself with nothing hidden. Xu et al.,
"Retrieval-based reconstruction for time-series contrastive learning" (ICLR 2024), with the sizes of "Pulse-PPG" (2025).

Both signals are brought to the mean and standard deviation of the key (reversible instance normalisation, Kim et al.,
ICLR 2022), so that a key of another level or gain is far from the query. Not as in the original:

    hidden samples of a distance   are drawn once, from a seed of the config; not anew, by a global generator, at each
                                   call, under which two calls of one pair differ and the order of candidates is random
    missing samples                are missing in the key too, and its frames without any are not attended to
    the learned scale              is an exponential, and so never zero when it is undone
    a distance                     is a mean, not a sum, over hidden samples: the same order of candidates

Axes: B rows, L samples, A channels, T frames (one every `stride` samples), D width, K taps of a kernel.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.layers.dense import dense, named
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.motif_distance.config import Config

_EPSILON = 1e-5  # added to variances
_lecun = nn.initializers.lecun_normal()


def hidden_samples(length: int, share: float, seed: int) -> np.ndarray:
    """Samples that are hidden where a distance is computed, the same in every signal: bool [L]."""
    hidden_L = np.zeros(length, bool)
    hidden_L[np.random.default_rng(seed).permutation(length)[: max(1, round(share * length))]] = True
    return hidden_L


def statistics(x_BxLxA: jax.Array, known_BxLxA: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation over time of what is known, not differentiated: float32 [B, 1, A] both."""
    x_BxLxA = jax.lax.stop_gradient(x_BxLxA.astype(jnp.float32))
    count = jnp.maximum(known_BxLxA.sum(axis=1, keepdims=True, dtype=jnp.float32), 1.0)
    mean = jnp.where(known_BxLxA, x_BxLxA, 0.0).sum(axis=1, keepdims=True) / count
    variance = jnp.where(known_BxLxA, (x_BxLxA - mean) ** 2, 0.0).sum(axis=1, keepdims=True) / count
    return mean, jnp.sqrt(variance + _EPSILON)


def instance_normed(x_BxTxD: jax.Array) -> jax.Array:
    """Each feature with mean 0 and variance 1 over time, in float32."""
    x = x_BxTxD.astype(jnp.float32)
    return (x - x.mean(axis=1, keepdims=True)) * jax.lax.rsqrt(x.var(axis=1, keepdims=True) + _EPSILON)


class PartialConv(nn.Module):
    """A convolution of what is known: its sum times K A / known samples, plus a bias; zero where nothing is known.

    Liu et al., "Image inpainting for irregular holes using partial convolutions" (ECCV 2018). Beyond the ends nothing
    is known.
    """

    width: int
    taps: int

    @nn.compact
    def __call__(self, x_BxLxA: jax.Array, known_BxLxA: jax.Array) -> jax.Array:
        """float32 [B, L, D]; x is not read where it is not known."""
        n_in = x_BxLxA.shape[-1]
        kernel_KxAxD = self.param("kernel", named(_lecun, None, None, "embed"), (self.taps, n_in, self.width))
        bias_D = self.param("bias", named(nn.initializers.zeros, None), (self.width,))

        def convolved(x, kernel):
            ends = [((self.taps - 1) // 2,) * 2]
            return jax.lax.conv_general_dilated(x, kernel, (1,), ends, dimension_numbers=("NHC", "HIO", "NHC"))

        n_known = convolved(known_BxLxA.astype(jnp.float32), jnp.ones((self.taps, n_in, 1)))
        total = convolved(jnp.where(known_BxLxA, x_BxLxA.astype(jnp.float32), 0.0), kernel_KxAxD)
        scaled = total * (self.taps * n_in / jnp.maximum(n_known, 1.0)) + bias_D[None, None]
        return jnp.where(n_known > 0, scaled, 0.0)


class DilatedConvs(nn.Module):
    """A partial convolution, then residual ones with dilations 1, 2, 4, ...; the last has the stride.

    With 15 taps and 5 of them a frame sees 449 samples.
    """

    config: Config

    @nn.compact
    def __call__(self, x_BxLxA: jax.Array, known_BxLxA: jax.Array) -> jax.Array:
        """float32 [B, T, D]."""
        c = self.config
        x = instance_normed(nn.gelu(PartialConv(c.width, c.taps, name="first")(x_BxLxA, known_BxLxA)))
        for i in range(c.n_layers):
            stride, reach = (c.stride if i == c.n_layers - 1 else 1), (c.taps - 1) // 2 * 2**i
            narrow = dense(c.width // 8, ("embed", "mlp"), dtype=c.dtype, name=f"narrow_{i}")(x)
            kernel = named(_lecun, None, "mlp", "embed")
            y = nn.Conv(c.width, (c.taps,), stride, [(reach, reach)], kernel_dilation=2**i, dtype=c.dtype,
                        kernel_init=kernel, name=f"wide_{i}")(narrow)  # fmt: skip
            x = instance_normed(nn.gelu(y + x[:, ::stride]))
        return x


class Keys(NamedTuple):
    """A signal as others are compared with it.

    Attributes:
      key_BxTxD, value_BxTxD: of its frames. seen_BxT: bool, which hold a known sample.
      mean_Bx1xA, std_Bx1xA: of the signal.
    """

    key_BxTxD: jax.Array
    value_BxTxD: jax.Array
    seen_BxT: jax.Array
    mean_Bx1xA: jax.Array
    std_Bx1xA: jax.Array


class MotifNetwork(nn.Module):
    """Reconstructs hidden samples of one signal from another one."""

    config: Config
    n_channels: int
    mesh_ops: MeshOps = ONE_DEVICE

    def setup(self) -> None:
        c = self.config
        self.of_query, self.of_key, self.of_value = (DilatedConvs(c) for _ in range(3))
        self.log_scale = self.param("log_scale", named(nn.initializers.zeros, None), (self.n_channels,))
        self.shift = self.param("shift", named(nn.initializers.zeros, None), (self.n_channels,))
        self.out = dense(self.n_channels, ("embed", None))
        self.dropout = nn.Dropout(c.dropout)

    def keys(self, signal_BxLxA: jax.Array, known_BxLxA: jax.Array) -> Keys:
        """The signals as Keys, which serve all queries."""
        mean, std = statistics(signal_BxLxA, known_BxLxA)
        x = self._normed(signal_BxLxA, mean, std)
        stride, (n_rows, length, _) = self.config.stride, known_BxLxA.shape
        in_frames = jnp.pad(known_BxLxA.any(axis=-1), ((0, 0), (0, -length % stride)))
        seen_BxT = in_frames.reshape(n_rows, -1, stride).any(axis=-1)
        return Keys(self.of_key(x, known_BxLxA), self.of_value(x, known_BxLxA), seen_BxT, mean, std)

    def reconstruct(
        self, signal_BxLxA: jax.Array, known_BxLxA: jax.Array, keys: Keys, deterministic: bool = True
    ) -> jax.Array:
        """The queries' frames from those of the keys, in the queries' units: float32 [B, T, A].

        Args:
          known_BxLxA: without what is hidden.
        """
        x = self._normed(signal_BxLxA, keys.mean_Bx1xA, keys.std_Bx1xA)
        query_BxTxD = self.mesh_ops.constrain(self.of_query(x, known_BxLxA), "batch", None, None)
        score = jnp.einsum("bqd,bkd->bqk", query_BxTxD, keys.key_BxTxD) / np.sqrt(self.config.width)
        weight = nn.softmax(jnp.where(keys.seen_BxT[:, None], score, jnp.finfo(jnp.float32).min), axis=-1)
        weight = self.dropout(weight, deterministic=deterministic)
        y = self.out(jnp.einsum("bqk,bkd->bqd", weight, keys.value_BxTxD))
        return (y - self.shift[None, None]) * jnp.exp(-self.log_scale)[None, None] * keys.std_Bx1xA + keys.mean_Bx1xA

    def distance(self, signal_BxLxA: jax.Array, known_BxLxA: jax.Array, keys: Keys) -> jax.Array:
        """Mean squared error of the queries' hidden frames, infinite where none is known: float32 [B].

        A function of the two signals of a row, and of the config's seed alone.
        """
        c = self.config
        hidden_L = hidden_samples(signal_BxLxA.shape[1], c.distance_share, c.distance_seed)
        left = known_BxLxA & ~jnp.asarray(hidden_L)[None, :, None]
        found = self.reconstruct(signal_BxLxA, left, keys)
        judged = (known_BxLxA & jnp.asarray(hidden_L)[None, :, None])[:, :: c.stride]
        error = jnp.where(judged, (found - signal_BxLxA[:, :: c.stride]) ** 2, 0.0).sum(axis=(1, 2))
        count = judged.sum(axis=(1, 2), dtype=jnp.float32)
        return jnp.where((count > 0) & keys.seen_BxT.any(axis=1), error / jnp.maximum(count, 1.0), jnp.inf)

    def encode(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """Mean over frames of what is read of the signals, each feature squared: [B, 1, D]; no representation."""
        del deterministic
        keys = self.keys(batch["signal"], batch["known"])
        return jnp.mean(keys.value_BxTxD**2, axis=1, keepdims=True)

    def __call__(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> dict[str, jax.Array]:
        """{"reconstruction": float32 [B, T, A]} of the signals, from themselves."""
        keys = self.keys(batch["signal"], batch["known"])
        left = batch["known"] & ~batch["hidden"][..., None]
        return {"reconstruction": self.reconstruct(batch["signal"], left, keys, deterministic)}

    def _normed(self, x, mean, std):
        return (x - mean) / std * jnp.exp(self.log_scale)[None, None] + self.shift[None, None]


class Reconstruction:
    """Mean squared error of hidden samples that are known, at the frames that are reconstructed."""

    name = "reconstruction"

    def __init__(self, stride: int) -> None:
        self._stride = stride

    def judged(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Which samples are: bool [B, T, A]."""
        return (batch["known"] & batch["hidden"][..., None])[:, :: self._stride]

    def normaliser(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """How many samples are judged."""
        return self.judged(batch).sum(dtype=jnp.float32)

    def loss(
        self, out: jax.Array, batch: Mapping[str, jax.Array], normaliser: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss, {"of_mean": that of the mean of what is not hidden, "judged": samples})."""
        judged, count = self.judged(batch), jnp.maximum(normaliser, 1.0)
        target = batch["signal"][:, :: self._stride]
        mean, _ = statistics(batch["signal"], batch["known"] & ~batch["hidden"][..., None])

        def error(x):
            return jnp.where(judged, (x - target) ** 2, 0.0).sum() / count

        return error(out), {"of_mean": error(mean), "judged": judged.sum(dtype=jnp.float32)}
