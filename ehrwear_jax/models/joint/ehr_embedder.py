"""EHR events to vectors: token embedding, value along a learned direction of the token."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class EhrEmbedder(nn.Module):
    """Embed(e) of the paper's section 3.2, with the numeric value as a continuous channel.

    Attributes:
      vocabulary: number of tokens. token_width: of the embedding table. out_width: p, the backbone's.
    """

    vocabulary: int
    token_width: int
    out_width: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.table = nn.Embed(self.vocabulary, self.token_width, embedding_init=nn.initializers.normal(0.02))
        self.value_table = nn.Embed(self.vocabulary, self.token_width, embedding_init=nn.initializers.normal(0.02))
        self.project = nn.Dense(self.out_width, dtype=self.dtype)
        self.to_token = nn.Dense(self.token_width, dtype=self.dtype)
        self.norm = nn.LayerNorm(dtype=self.dtype)
        self.bias_V = self.param("bias", nn.initializers.zeros, (self.vocabulary,))

    def __call__(self, token, value):
        """token int32 [...], value float32 [...] -> [..., out_width]."""
        vector = self.table(token) + value[..., None] * self.value_table(token)
        return self.project(vector.astype(self.dtype))

    def logits(self, hidden, train_table=True):
        """Scores of every token, [..., out_width] -> float32 [..., vocabulary]; the table is shared with the input.

        train_table: whether a loss on the scores changes the table.
        """
        vector = self.to_token(self.norm(hidden)).astype(jnp.float32)
        table = self.table.embedding if train_table else jax.lax.stop_gradient(self.table.embedding)
        return vector @ table.T + self.bias_V.reshape((1,) * (vector.ndim - 1) + (-1,))
