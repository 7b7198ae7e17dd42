"""Holds PaPaGei's network: a residual body, what pieces are compared by, and experts for their shape.

Axes: B rows, N pieces of a row, V views of a piece, R = B N V, S samples, A channels, E experts, D features.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ehrwear_jax.models.layers.convolution import BatchNorm
from ehrwear_jax.models.layers.dense import dense
from ehrwear_jax.models.layers.dropout import dropout_seed, dropped
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.layers.resnet1d import ResNet1D
from ehrwear_jax.models.papagei.config import Config

SQI_DROPOUT = 0.3  # of the experts of skewness


def body(config: Config) -> ResNet1D:
    """The residual network of a config."""
    return ResNet1D(config.width, config.n_blocks, config.kernel, dropout=config.dropout, dtype=config.dtype)


class Experts(nn.Module):
    """A number by experts of one hidden layer, weighted by a softmax of what they read: [R, D] -> [R] float32."""

    n_experts: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_RxD: jax.Array, deterministic: bool) -> jax.Array:
        hidden = dense((self.n_experts, x_RxD.shape[1] // 2), ("embed", None, "mlp"), name="hidden")(x_RxD)
        hidden_RxExH = nn.relu(hidden)
        if self.dropout and not deterministic:
            hidden_RxExH = dropped(hidden_RxExH, self.dropout, dropout_seed(self.make_rng("dropout")), 0)
        kernel_ExH = self.param("out_kernel", nn.initializers.lecun_normal(), hidden_RxExH.shape[1:])
        bias_E = self.param("out_bias", nn.initializers.zeros, (self.n_experts,))
        said_RxE = jnp.einsum("reh,eh->re", hidden_RxExH, kernel_ExH) + bias_E[None]
        gate_RxE = nn.softmax(dense(self.n_experts, ("embed", None), name="gate")(x_RxD))
        return jnp.sum(gate_RxE * said_RxE, axis=1)


class Projector(nn.Module):
    """One hidden layer with a norm: [R, D] -> [R, widths[1]]."""

    widths: tuple[int, int]

    @nn.compact
    def __call__(self, x_RxD: jax.Array, there_R: jax.Array, deterministic: bool) -> jax.Array:
        hidden = dense(self.widths[0], ("embed", "mlp"), name="hidden")(x_RxD)
        hidden = nn.relu(BatchNorm(name="norm")(hidden, there_R, deterministic))
        return dense(self.widths[1], ("mlp", None), name="out")(hidden)


class PapageiNetwork(nn.Module):
    """Body and heads over one batch."""

    config: Config
    mesh_ops: MeshOps = ONE_DEVICE

    def setup(self) -> None:
        c = self.config
        self.body = body(c)
        if c.has_morphology:
            self.out = dense(c.out_width, ("embed", "mlp"))
            self.ipa = Experts(c.experts)
            self.sqi = Experts(c.experts, SQI_DROPOUT)
        else:
            self.projector = Projector(c.projection)

    def encode(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """z of each piece as it was recorded, float32 [B, N, D]; zero where there is none."""
        there_BxN = batch["person"] >= 0
        pooled_RxD = self.body(self._rows(batch["signal"]), there_BxN.reshape(-1), deterministic)
        z_RxD = self.out(pooled_RxD) if self.config.has_morphology else pooled_RxD
        return jnp.where(there_BxN[..., None], z_RxD.reshape(*there_BxN.shape, -1), 0.0)

    def __call__(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> dict[str, Any]:
        """{"contrast": [B, N, V, D], and for morphology "ipa" and "sqi": [B, N]} of the pieces' views, float32."""
        views = batch["views"]
        there_R = jnp.repeat(batch["person"] >= 0, views.shape[2], axis=1).reshape(-1)
        pooled_RxD = self.body(self._rows(views), there_R, deterministic)
        if not self.config.has_morphology:
            return {"contrast": self.projector(pooled_RxD, there_R, deterministic).reshape(*views.shape[:3], -1)}
        numbers = {name: head(pooled_RxD, deterministic) for name, head in (("ipa", self.ipa), ("sqi", self.sqi))}
        found = {name: x_R.reshape(views.shape[:2]) for name, x_R in numbers.items()}
        return {"contrast": self.out(pooled_RxD).reshape(*views.shape[:3], -1), **found}

    def _rows(self, x):
        x_RxSxA = x.reshape(-1, *x.shape[-2:])
        return self.mesh_ops.constrain(x_RxSxA, "batch", None, None)
