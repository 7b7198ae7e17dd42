"""Scores tokens of the vocabulary against latents where there is a target, with the embedder's table."""

import flax.linen as nn
import jax

from ehrwear_jax.models.layers.dense import dense, named
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.layers.vocabulary_loss import Chunks, TokenLoss, masked_loss


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

    def __call__(
        self, hidden_BxSxD: jax.Array, table_VxE: jax.Array, target_BxS: jax.Array, mask_BxS: jax.Array
    ) -> TokenLoss:
        """What hidden vectors say of the targets where the mask is true, [B, S]; zeros elsewhere."""
        chunks = Chunks(self.chunk, self.dtype, self.mesh_ops.constrain, self.mesh_ops.row_groups)

        def to_vector(hidden_GxKxD):
            return self.to_token(self.norm(hidden_GxKxD))

        return masked_loss(chunks, to_vector, hidden_BxSxD, table_VxE, self.bias_V, target_BxS, mask_BxS)
