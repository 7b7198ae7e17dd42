"""Scores tokens of the vocabulary against latents where there is a target, with the embedder's table."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ehrwear_jax.models.layers.dense import dense, named
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.layers.vocabulary_loss import Chunks, Table, TokenLoss, masked_loss


class CodeHead(nn.Module):
    """Cross-entropies of tokens, with the table of the embedder as the weights of the scores.

    Attributes:
      chunk: targets of a device whose scores over the vocabulary are alive at once.
    """

    vocabulary: int
    token_width: int
    dtype: str = "float32"
    chunk: int = 512
    mesh_ops: MeshOps = ONE_DEVICE

    def setup(self) -> None:
        self.norm = nn.LayerNorm(dtype=self.dtype)
        self.to_token = dense(self.token_width, ("embed", None), dtype=self.dtype)
        self.bias_V = self.param("bias", named(nn.initializers.zeros, "token"), (self.vocabulary,))

    def log_probabilities(self, hidden_BxSxD: jax.Array, table_VxE: jax.Array) -> jax.Array:
        """Of all tokens of the vocabulary at every place, [B, S, V] float32: for places that are few."""
        vector_BxSxE = self.to_token(self.norm(hidden_BxSxD))
        scores = jnp.einsum("bse,ve->bsv", vector_BxSxE, table_VxE, preferred_element_type=jnp.float32)
        return jax.nn.log_softmax(scores + self.bias_V[None, None].astype(jnp.float32))

    def __call__(
        self, hidden_BxSxD: jax.Array, table_VxE: jax.Array, target_BxS: jax.Array, mask_BxS: jax.Array
    ) -> TokenLoss:
        """What hidden vectors say of the targets where the mask is true, [B, S]; zeros elsewhere."""
        ops = self.mesh_ops
        return masked_loss(
            hidden_BxSxD, target_BxS, mask_BxS, Table(table_VxE, self.bias_V),
            chunks=Chunks(self.chunk, self.dtype, ops.constrain), n_groups=ops.row_groups,
            to_vector=lambda x: self.to_token(self.norm(x)),
        )  # fmt: skip
