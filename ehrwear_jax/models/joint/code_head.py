"""Scores tokens of the vocabulary against latents where there is a target, with the embedder's table."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ehrwear_jax.models.layers.dense import dense, named
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.layers.vocabulary_loss import Chunks, TokenLoss, front, front_loss


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
        """What hidden vectors say of the targets where the mask is true, [B, S]; zeros elsewhere.

        The targets of the rows of one device are brought together first, so that the others cost nothing.
        """
        ops, (n_row, n_slot) = self.mesh_ops, mask_BxS.shape
        n_group = ops.row_groups if n_row % ops.row_groups == 0 else 1
        chunks = Chunks(min(self.chunk, n_row // n_group * n_slot), self.dtype, ops.constrain)

        def grouped(x):
            return ops.constrain(x.reshape(n_group, -1, *x.shape[2:]), "batch", *[None] * (x.ndim - 1))

        from_GxK, to_GxN, count_G = front(grouped(mask_BxS), chunks.size)
        hidden_GxKxD = jnp.take_along_axis(grouped(hidden_BxSxD), from_GxK[..., None], axis=1)
        target_GxK = jnp.take_along_axis(grouped(target_BxS), from_GxK, axis=1)
        vector_GxKxE = self.to_token(self.norm(ops.constrain(hidden_GxKxD, "batch", None, None)))
        found = front_loss(chunks, vector_GxKxE, table_VxE, self.bias_V, target_GxK, count_G)
        back = (jnp.take_along_axis(x, to_GxN, axis=1).reshape(mask_BxS.shape) for x in found)
        return TokenLoss(*(jnp.where(mask_BxS, x, jnp.zeros((), x.dtype)) for x in back))
