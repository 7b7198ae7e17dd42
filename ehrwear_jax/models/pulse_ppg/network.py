"""Computes Pulse-PPG's z of pieces of signal, and what the relative loss takes: similarities and distances.

Axes: B rows, N pieces of a row, R = B N, S samples, A channels, C candidates of an anchor, D width of z.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.layers.instance_norm import instance_normed
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.layers.resnet1d import ResNet1D
from ehrwear_jax.models.pulse_ppg.config import Config
from ehrwear_jax.models.pulse_ppg.relative_loss import similarities


def encoder(config: Config) -> ResNet1D:
    """The network of the encoder."""
    c = config
    return ResNet1D(c.width, c.n_blocks, c.kernel, c.stride, c.widen_every, c.dropout, "max", False, c.dtype)


def candidates(n_rows: int, n_pieces: int) -> tuple[np.ndarray, np.ndarray]:
    """Places along R of the anchors, the first of each row, int64 [B], and of their candidates, int64 [B, C].

    Candidates are the other rows' anchors and the further pieces of the own row.
    """
    anchor_B = np.arange(n_rows) * n_pieces
    others = (np.arange(n_rows)[:, None] + np.arange(1, n_rows)) % n_rows * n_pieces
    return anchor_B, np.concatenate([others, anchor_B[:, None] + np.arange(1, n_pieces)], axis=1)


def distances(
    needed: Callable[..., jax.Array],
    signal_RxSxA: jax.Array,
    observed_RxSxA: jax.Array,
    anchor_B: np.ndarray,
    candidate_BxC: np.ndarray,
) -> jax.Array:
    """How far each anchor is from its candidates: float32 [B, C], not differentiated; infinite where one is missing.

    Args:
      needed: the motif distance, called as MotifNetwork's methods keys and distance (models/motif_distance/network.py).
    """
    keys = needed(signal_RxSxA, observed_RxSxA, method="keys")
    signal, observed = signal_RxSxA[anchor_B], observed_RxSxA[anchor_B]

    def one(candidate_B):  # of each anchor: a pair of signals takes too much memory for all pairs at once
        return needed(signal, observed, jax.tree.map(lambda x: x[candidate_B], keys), method="distance")

    return jax.lax.stop_gradient(jax.lax.map(one, jnp.asarray(candidate_BxC.T)).T)


class PulseNetwork(nn.Module):
    """The encoder over one batch."""

    config: Config
    mesh_ops: MeshOps = ONE_DEVICE

    def setup(self) -> None:
        self.encoder = encoder(self.config)

    def encode(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """z of pieces, the maximum over frames: float32 [B, N, D]; zero where there is no piece."""
        n_rows, n_pieces, *_ = batch["signal"].shape
        signal, observed = _flat(batch)
        there_R = observed.any(axis=(1, 2))
        normed = self.mesh_ops.constrain(instance_normed(signal, observed), "batch", None, None)
        z_RxD = self.encoder(normed, there_R, deterministic)
        return jnp.where(there_R[:, None], z_RxD, 0.0).reshape(n_rows, n_pieces, -1)

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        deterministic: bool = True,
        needed: Mapping[str, Callable[..., jax.Array]] | None = None,
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """{"relative": (similarities, distances), float32 [B, C] both}; ValueError without the distance."""
        z_BxNxD = self.encode(batch, deterministic)
        n_rows, n_pieces, width = z_BxNxD.shape
        anchor_B, candidate_BxC = candidates(n_rows, n_pieces)
        similar = similarities(z_BxNxD.reshape(-1, width), anchor_B, candidate_BxC, self.config.temperature)
        if self.is_initializing():  # nothing of the distance is a parameter
            return {"relative": (similar, jnp.zeros_like(similar))}
        if not needed:
            raise ValueError(f"training needs the network {self.config.distance!r}, see models/family.py")
        signal, observed = _flat(batch)
        found = distances(needed[self.config.distance], signal, observed, anchor_B, candidate_BxC)
        return {"relative": (similar, found)}


def _flat(batch):
    """(signal, observed) [R, S, A]."""
    return tuple(jnp.asarray(batch[name]).reshape(-1, *batch[name].shape[2:]) for name in ("signal", "observed"))
