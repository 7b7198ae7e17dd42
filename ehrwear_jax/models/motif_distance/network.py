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

Axes: B signals, S samples, A channels, T frames (one every `stride` samples), D width, K taps of a kernel, R all pieces
of a batch.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.layers.dense import dense, named
from ehrwear_jax.models.layers.instance_norm import instance_normed, statistics
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.motif_distance.config import Config

_lecun = nn.initializers.lecun_normal()


def hidden_samples(length: int, share: float, seed: int) -> np.ndarray:
    """Samples that are hidden where a distance is computed, the same in every signal: bool [S]."""
    hidden_S = np.zeros(length, bool)
    hidden_S[np.random.default_rng(seed).permutation(length)[: max(1, round(share * length))]] = True
    return hidden_S


class PartialConv(nn.Module):
    """A convolution of what is observed: its sum times K A / observed samples, plus a bias; zero where nothing is.

    Liu et al., "Image inpainting for irregular holes using partial convolutions" (ECCV 2018). Beyond the ends nothing
    is observed.
    """

    width: int
    taps: int

    @nn.compact
    def __call__(self, x_BxSxA: jax.Array, observed_BxSxA: jax.Array) -> jax.Array:
        """float32 [B, S, D]; x is not read where it is not observed."""
        n_in = x_BxSxA.shape[-1]
        kernel_KxAxD = self.param("kernel", named(_lecun, None, None, "embed"), (self.taps, n_in, self.width))
        bias_D = self.param("bias", named(nn.initializers.zeros, None), (self.width,))

        def convolved(x, kernel):
            ends = [((self.taps - 1) // 2,) * 2]
            return jax.lax.conv_general_dilated(x, kernel, (1,), ends, dimension_numbers=("NHC", "HIO", "NHC"))

        n_observed = convolved(observed_BxSxA.astype(jnp.float32), jnp.ones((self.taps, n_in, 1)))
        total = convolved(jnp.where(observed_BxSxA, x_BxSxA.astype(jnp.float32), 0.0), kernel_KxAxD)
        scaled = total * (self.taps * n_in / jnp.maximum(n_observed, 1.0)) + bias_D[None, None]
        return jnp.where(n_observed > 0, scaled, 0.0)


class DilatedConvs(nn.Module):
    """A partial convolution, then residual ones with dilations 1, 2, 4, ...; the last has the stride.

    With 15 taps and 5 of them a frame sees 449 samples.
    """

    config: Config

    @nn.compact
    def __call__(self, x_BxSxA: jax.Array, observed_BxSxA: jax.Array) -> jax.Array:
        """float32 [B, T, D]."""
        c = self.config
        x = instance_normed(nn.gelu(PartialConv(c.width, c.taps, name="first")(x_BxSxA, observed_BxSxA)))
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
      key_BxTxD, value_BxTxD: of its frames. seen_BxT: bool, which hold an observed sample.
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

    def keys(self, signal_BxSxA: jax.Array, observed_BxSxA: jax.Array) -> Keys:
        """The signals as Keys, which serve all queries."""
        mean, std = map(jax.lax.stop_gradient, statistics(signal_BxSxA, observed_BxSxA))
        x = self._normed(signal_BxSxA, mean, std)
        stride, (n_rows, length, _) = self.config.stride, observed_BxSxA.shape
        in_frames = jnp.pad(observed_BxSxA.any(axis=-1), ((0, 0), (0, -length % stride)))
        seen_BxT = in_frames.reshape(n_rows, -1, stride).any(axis=-1)
        return Keys(self.of_key(x, observed_BxSxA), self.of_value(x, observed_BxSxA), seen_BxT, mean, std)

    def reconstruct(
        self, signal_BxSxA: jax.Array, observed_BxSxA: jax.Array, keys: Keys, deterministic: bool = True
    ) -> jax.Array:
        """The queries' frames from those of the keys, in the queries' units: float32 [B, T, A].

        Args:
          observed_BxSxA: without what is hidden.
        """
        x = self._normed(signal_BxSxA, keys.mean_Bx1xA, keys.std_Bx1xA)
        query_BxTxD = self.mesh_ops.constrain(self.of_query(x, observed_BxSxA), "batch", None, None)
        score = jnp.einsum("bqd,bkd->bqk", query_BxTxD, keys.key_BxTxD) / np.sqrt(self.config.width)
        weight = nn.softmax(jnp.where(keys.seen_BxT[:, None], score, jnp.finfo(jnp.float32).min), axis=-1)
        weight = self.dropout(weight, deterministic=deterministic)
        y = self.out(jnp.einsum("bqk,bkd->bqd", weight, keys.value_BxTxD))
        return (y - self.shift[None, None]) * jnp.exp(-self.log_scale)[None, None] * keys.std_Bx1xA + keys.mean_Bx1xA

    def distance(self, signal_BxSxA: jax.Array, observed_BxSxA: jax.Array, keys: Keys) -> jax.Array:
        """Mean squared error of the queries' hidden frames, infinite where none is observed: float32 [B].

        A function of the two signals of a row, and of the config's seed alone.
        """
        c = self.config
        hidden_S = hidden_samples(signal_BxSxA.shape[1], c.distance_share, c.distance_seed)
        left = observed_BxSxA & ~jnp.asarray(hidden_S)[None, :, None]
        found = self.reconstruct(signal_BxSxA, left, keys)
        judged = (observed_BxSxA & jnp.asarray(hidden_S)[None, :, None])[:, :: c.stride]
        error = jnp.where(judged, (found - signal_BxSxA[:, :: c.stride]) ** 2, 0.0).sum(axis=(1, 2))
        count = judged.sum(axis=(1, 2), dtype=jnp.float32)
        return jnp.where((count > 0) & keys.seen_BxT.any(axis=1), error / jnp.maximum(count, 1.0), jnp.inf)

    def __call__(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> dict[str, jax.Array]:
        """{"reconstruction": float32 [R, T, A]} of the pieces of all rows, from themselves."""
        signal, observed, hidden = pieces(batch)
        keys = self.keys(signal, observed)
        return {"reconstruction": self.reconstruct(signal, observed & ~hidden[..., None], keys, deterministic)}

    def _normed(self, x, mean, std):
        return (x - mean) / std * jnp.exp(self.log_scale)[None, None] + self.shift[None, None]


def pieces(batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    """"signal", "observed" and "hidden" of a batch without the axis of rows: [R, S, A] twice and [R, S]."""
    return tuple(batch[name].reshape(-1, *batch[name].shape[2:]) for name in ("signal", "observed", "hidden"))
