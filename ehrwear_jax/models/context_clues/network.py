"""Computes z of tokens with the backbone of ContextClues, and the losses of the tokens that follow."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ehrwear_jax.models.context_clues import blocks
from ehrwear_jax.models.context_clues.config import Config
from ehrwear_jax.models.context_clues.timelines import Facts
from ehrwear_jax.models.layers.dense import LAYERS, embedding, named
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.layers.transformer import rematerialised
from ehrwear_jax.models.layers.vocabulary_loss import Chunks, Table, TokenLoss, masked_loss


class Backbone(nn.Module):
    """Blocks, one after the other, and a last norm."""

    config: Config
    mesh_ops: MeshOps

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, fields: blocks.Fields, deterministic: bool) -> jax.Array:
        """Tokens to z_BxTxD, float32."""
        c = self.config
        scan = nn.scan(
            rematerialised(blocks.BLOCKS[c.backbone], c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.n_layers,
            in_axes=(nn.broadcast,),
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: LAYERS},
        )
        x_BxTxD, _ = scan(c, self.mesh_ops, deterministic, name="blocks")(x_BxTxD, fields)
        return nn.RMSNorm(blocks.EPSILON, dtype=jnp.float32, name="norm_out")(x_BxTxD)


class Scores(nn.Module):
    """The vectors that z is multiplied with, where they are not those of the dictionary."""

    width: int
    tokens: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """[V, D]."""
        init = named(nn.initializers.normal(0.02), "embed", "token")
        return self.param("kernel", init, (self.width, self.tokens)).T


class ContextCluesNetwork(nn.Module):
    """Dictionary, backbone and scores over one batch."""

    config: Config
    facts: Facts
    mesh_ops: MeshOps = ONE_DEVICE

    def setup(self) -> None:
        c = self.config
        self.dictionary = embedding(self.facts.dictionary, c.width)
        self.backbone = Backbone(c, self.mesh_ops)
        if not c.tied_head:
            self.head = Scores(c.width, self.facts.dictionary)

    def encode(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """z where it is read, float32 [B, N, D]; of slots without a place, some vector."""
        z_BxTxD = self._hidden(batch, deterministic)
        return jnp.take_along_axis(z_BxTxD, jnp.maximum(batch["site"], 0)[..., None], axis=1)

    def __call__(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> dict[str, TokenLoss]:
        """{"next_code": TokenLoss of [B, T], zeros where nothing is predicted}."""
        return {"next_code": self._losses(self._hidden(batch, deterministic), batch)}

    def read(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, None]:
        """What the scores are made of, at inference: z of all tokens."""
        return self._hidden(batch, True), None

    def predicted(
        self, z: jax.Array, more: None, batch: Mapping[str, jax.Array], names: Iterable[str]
    ) -> dict[str, Any]:
        """{term: its prediction} of some terms, from what `read` returned."""
        del more
        return {"next_code": self._losses(z, batch)} if "next_code" in names else {}

    def log_probabilities(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Of each token to be the one that follows, where z is read: float32 [B, N, V], for few places."""
        scores = jnp.einsum("bnd,vd->bnv", self.encode(batch), self._table(), preferred_element_type=jnp.float32)
        return jax.nn.log_softmax(scores)

    def _hidden(self, batch, deterministic):
        c = self.config
        x_BxTxD = jnp.take(self.dictionary.embedding.astype(c.dtype), batch["token"], axis=0)
        x_BxTxD = self.mesh_ops.constrain(x_BxTxD, "batch", "length", None)
        return self.backbone(x_BxTxD, blocks.fields(c, batch["kv_range"]), deterministic)

    def _table(self):
        return self.dictionary.embedding if self.config.tied_head else self.head()

    def _losses(self, z_BxTxD, batch):
        c, ops, target = self.config, self.mesh_ops, batch["target"]
        table = Table(self._table(), jnp.zeros(self.facts.dictionary, jnp.float32))
        return masked_loss(
            z_BxTxD, jnp.maximum(target, 0), target >= 0, table,
            chunks=Chunks(c.loss_chunk, c.dtype, ops.constrain), n_groups=ops.row_groups,
        )  # fmt: skip
