"""Computes CEHR-BERT's states of tokens and z, and what they predict of hidden tokens, values and types of visits.

Norms stand behind each sum, as in BERT, and every token sees all of its context. Axes beside those of the batch
(examples.FIELDS): D width, F features of time, V tokens, H heads.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ehrwear_jax.models.cehr_bert.config import Config
from ehrwear_jax.models.cehr_bert.timelines import Facts, predicts_visits
from ehrwear_jax.models.layers.dense import LAYERS, dense, embedding, named
from ehrwear_jax.models.layers.dropout import dropout_seed, dropped
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.layers.transformer import Adapter, rematerialised
from ehrwear_jax.models.layers.vocabulary_loss import Chunks, Table, TokenLoss, masked_loss, token_loss

VALUE_CLIP = 10.0  # standard deviations
DATE_SCALE, AGE_SCALE = 1000.0, 100.0  # weeks, years
N_VISIT_SEGMENTS = 3
N_MONTHS, N_VISITS = 1440, 1000  # that the sums of BEHRT and Med-BERT tell apart


def layer_norm(dtype: str, name: str | None = None) -> nn.LayerNorm:
    """BERT's."""
    return nn.LayerNorm(epsilon=1e-12, dtype=dtype, name=name)


def visit_encoding(visit_BxT: jax.Array, n_features: int) -> jax.Array:
    """Fixed sines and cosines in turn of a visit's number (Vaswani et al. 2017): float32 [B, T, F]."""
    rate_F = jnp.asarray(10_000.0 ** (-np.arange(0, n_features, 2) / n_features), jnp.float32)
    angle = visit_BxT[..., None].astype(jnp.float32) * rate_F[None, None]
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*visit_BxT.shape, n_features)


class Time2Vec(nn.Module):
    """sin(w t + phi), of Kazemi et al. (2019) without the linear term: [B, T] -> float32 [B, T, F]."""

    features: int
    scale: float

    @nn.compact
    def __call__(self, time_BxT: jax.Array) -> jax.Array:
        start = named(nn.initializers.normal(1.0), None)
        rate_F, phase_F = (self.param(name, start, (self.features,)) for name in ("rate", "phase"))
        return jnp.sin(time_BxT[..., None] / self.scale * rate_F[None, None] + phase_F[None, None])


class Attention(nn.Module):
    """Heads of queries over the keys in a range."""

    config: Config
    mesh_ops: MeshOps
    deterministic: bool

    @nn.compact
    def __call__(self, y_BxQxD: jax.Array, x_BxTxD: jax.Array, range_BxQx2: jax.Array) -> jax.Array:
        """What each y takes from those x that lie in its range: [B, Q, D]."""
        c, ops = self.config, self.mesh_ops
        heads = (c.n_heads, c.width // c.n_heads)

        def projected(name, x):
            x = dense(heads, ("embed", "heads", "depth"), dtype=c.dtype, name=name)(x)
            return checkpoint_name(ops.constrain(x, "batch", "length", "heads", None), "qkv")

        rate = 0.0 if self.deterministic else c.attention_dropout
        seen = ops.attend(
            projected("query", y_BxQxD),
            projected("key", x_BxTxD),
            projected("value", x_BxTxD),
            q_time_BxT=jnp.zeros(y_BxQxD.shape[:2], jnp.float32),  # no kernel reads times
            k_time_BxS=jnp.zeros(x_BxTxD.shape[:2], jnp.float32),
            kv_range_BxTx2=range_BxQx2,
            kernel=None,
            dropout_rate=rate,
            dropout_key=self.make_rng("dropout") if rate else None,
            bit_causal=self.deterministic,  # where z is read
            implementation=c.attention,
        )
        return dense(c.width, ("heads", "depth", "embed"), n_inputs=2, dtype=c.dtype, name="out")(
            checkpoint_name(seen, "attended")
        )


class FeedForward(nn.Module):
    """down(gelu(up(x)))."""

    config: Config
    width: int
    mesh_ops: MeshOps

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        hidden = dense(self.width, ("embed", "mlp"), dtype=self.config.dtype, name="up")(x_BxTxD)
        hidden = checkpoint_name(self.mesh_ops.constrain(hidden, "batch", "length", "mlp"), "hidden")
        hidden = nn.gelu(hidden, approximate=False)
        return dense(self.config.width, ("mlp", "embed"), dtype=self.config.dtype, name="down")(hidden)


class Block(nn.Module):
    """x = norm(x + attention(x)); norm(x + down(gelu(up(x))))."""

    config: Config
    mesh_ops: MeshOps
    deterministic: bool

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, kv_range_BxTx2: jax.Array) -> tuple[jax.Array, None]:
        """One layer: (x, None)."""
        c, ops = self.config, self.mesh_ops
        seed = dropout_seed(self.make_rng("dropout")) if c.dropout > 0 and not self.deterministic else None

        def summed(x, name, update, stream):
            update = update if seed is None else dropped(update, c.dropout, seed, stream)
            if c.adapter_width:
                update = Adapter(c.adapter_width, c.dtype, name=f"adapter_{name}")(update)
            x = layer_norm(c.dtype, f"norm_{name}")(x + update)
            return ops.constrain(x, "batch", "length", None)

        seen = Attention(c, ops, self.deterministic, name="attention")(x_BxTxD, x_BxTxD, kv_range_BxTx2)
        x_BxTxD = summed(x_BxTxD, "attention", seen, 0)
        return summed(x_BxTxD, "mlp", FeedForward(c, c.mlp_width, ops, name="mlp")(x_BxTxD), 1), None


class Backbone(nn.Module):
    """Blocks, one after the other."""

    config: Config
    mesh_ops: MeshOps

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, kv_range_BxTx2: jax.Array, deterministic: bool) -> jax.Array:
        """Tokens to their states, float32 [B, T, D]."""
        c = self.config
        scan = nn.scan(
            rematerialised(Block, c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=c.n_layers,
            in_axes=(nn.broadcast,),
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: LAYERS},
        )
        x_BxTxD, _ = scan(c, self.mesh_ops, deterministic, name="blocks")(x_BxTxD, kv_range_BxTx2)
        return x_BxTxD.astype(jnp.float32)


class Embedder(nn.Module):
    """Vectors of tokens: what they say, with its value, when, at what age, in which visit."""

    config: Config
    facts: Facts

    def setup(self) -> None:
        c = self.config
        self.table = embedding(self.facts.tokens, c.width)
        self.merge = dense(c.width, (None, "embed"), dtype=c.dtype)
        self.date, self.age = Time2Vec(c.time_features, DATE_SCALE), Time2Vec(c.time_features, AGE_SCALE)
        self.join = dense(c.width, (None, "embed"), dtype=c.dtype)
        self.visit_segment = embedding(N_VISIT_SEGMENTS, c.width, (None, "embed"))

    def times(self, date_BxT: jax.Array, age_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features of dates (weeks) and ages (years), which are scaled and learned apart."""
        return self.date(date_BxT), self.age(age_BxT)

    def __call__(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """[B, T, D]."""
        c = self.config
        x = jnp.take(self.table.embedding.astype(c.dtype), batch["token"], axis=0)
        value = jnp.clip(batch["value"], -VALUE_CLIP, VALUE_CLIP)[..., None].astype(c.dtype)
        merged = nn.gelu(self.merge(jnp.concatenate([x, value], axis=-1)))
        x = jnp.where(batch["has_value"][..., None], merged, x)
        parts = [x, *self.times(batch["date"], batch["age"]), visit_encoding(batch["visit"], c.time_features)]
        x = nn.gelu(self.join(jnp.concatenate([part.astype(c.dtype) for part in parts], axis=-1)))
        return x + jnp.take(self.visit_segment.embedding.astype(c.dtype), batch["visit_segment"], axis=0)


class SummedEmbedder(nn.Module):
    """Vectors of tokens of BEHRT and Med-BERT: sums, normed, of what they say and where they stand."""

    config: Config
    facts: Facts

    def setup(self) -> None:
        c = self.config
        self.table = embedding(self.facts.tokens, c.width)
        if c.inputs == "behrt":
            self.month = embedding(N_MONTHS, c.width, (None, "embed"))
            self.visit_segment = embedding(N_VISIT_SEGMENTS, c.width, (None, "embed"))
        else:
            self.visit = embedding(N_VISITS, c.width, (None, "embed"))
            self.place = embedding(c.context_tokens, c.width, (None, "embed"))
        self.norm = layer_norm(c.dtype)

    def __call__(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """[B, T, D]."""
        c = self.config

        def of(table, index, n=None):
            # of what is beyond a table, its last place
            index = index if n is None else jnp.clip(index, 0, n - 1)
            return jnp.take(table.embedding.astype(c.dtype), index, axis=0)

        x = of(self.table, batch["token"])
        if c.inputs == "behrt":
            month = jnp.floor(batch["age"] * 12.0).astype(jnp.int32)
            x = x + of(self.month, month, N_MONTHS) + of(self.visit_segment, batch["visit_segment"])
            x = x + visit_encoding(batch["visit"], c.width).astype(c.dtype)
        else:
            place = jnp.arange(batch["token"].shape[1])[None] - batch["kv_range"][..., 0]
            x = x + of(self.visit, batch["visit"], N_VISITS) + of(self.place, place, c.context_tokens)
        return self.norm(x)


class TokenHead(nn.Module):
    """Scores of tokens against states, with the table of the embedder, as in BERT."""

    config: Config
    tokens: int
    mesh_ops: MeshOps

    def setup(self) -> None:
        c = self.config
        self.transform = dense(c.width, ("embed", None), dtype=c.dtype)
        self.norm = layer_norm(c.dtype)
        self.bias_V = self.param("bias", named(nn.initializers.zeros, "token"), (self.tokens,))

    def __call__(self, state_BxTxD: jax.Array, table_VxD: jax.Array, target_BxT: jax.Array) -> TokenLoss:
        """Of targets that are not -1, [B, T]; zeros elsewhere."""
        c, ops = self.config, self.mesh_ops
        chunks, table = Chunks(c.target_chunk, c.dtype, ops.constrain), Table(table_VxD, self.bias_V)
        return masked_loss(
            state_BxTxD, jnp.maximum(target_BxT, 0), target_BxT >= 0, table, chunks=chunks, n_groups=ops.row_groups,
            to_vector=self.vectors,
        )  # fmt: skip

    def vectors(self, state: jax.Array) -> jax.Array:
        """What products with the table are scores of."""
        return self.norm(nn.gelu(self.transform(state), approximate=False))


class VisitDecoder(nn.Module):
    """Scores of the types of visits: visits see those of their context, and then its tokens."""

    config: Config
    visit_types: int
    mesh_ops: MeshOps

    @nn.compact
    def __call__(
        self, state_BxTxD: jax.Array, times: tuple[jax.Array, jax.Array], batch: Mapping[str, jax.Array]
    ) -> TokenLoss:
        """Of visit_target, [B, U]; times: features of the tokens' dates and ages [B, T, F]."""
        c, ops = self.config, self.mesh_ops
        table_KxD = embedding(self.visit_types, c.width, ("visit_type", "embed"), name="types").embedding
        at_BxUx1 = batch["visit_at"][..., None]
        when = [jnp.take_along_axis(x, at_BxUx1, axis=1) for x in times]
        x = jnp.concatenate([jnp.take(table_KxD, batch["visit_type"], axis=0), *when], axis=-1)
        x = jnp.tanh(dense(c.width, (None, "embed"), dtype=c.dtype, name="join")(x))

        def summed(x, name, update):
            return layer_norm(c.dtype, f"norm_{name}")(x + update)

        x = summed(x, "peers", Attention(c, ops, True, name="peers")(x, x, batch["visit_peers"]))
        x = summed(x, "tokens", Attention(c, ops, True, name="tokens")(x, state_BxTxD, batch["visit_sees"]))
        x = summed(x, "mlp", FeedForward(c, c.visit_mlp_width, ops, name="mlp")(x))
        bias_K = self.param("bias", named(nn.initializers.zeros, "visit_type"), (self.visit_types,))
        scores = jnp.einsum("bud,kd->buk", x.astype(jnp.float32), table_KxD) + bias_K[None, None]
        return token_loss(scores, jnp.maximum(batch["visit_target"], 0))


class CehrBertNetwork(nn.Module):
    """Embedder, encoder and heads over one batch."""

    config: Config
    facts: Facts
    mesh_ops: MeshOps = ONE_DEVICE

    def setup(self) -> None:
        c = self.config
        self.embedder = (Embedder if c.inputs == "cehr_bert" else SummedEmbedder)(c, self.facts)
        self.backbone = Backbone(c, self.mesh_ops)
        self.token_head = TokenHead(c, self.facts.tokens, self.mesh_ops)
        if predicts_visits(c, self.facts):
            self.visit_decoder = VisitDecoder(c, self.facts.visit_types, self.mesh_ops)
        if c.long_stay_weight > 0:
            self.pooler = dense(c.width, ("embed", None), dtype=c.dtype)
            self.long_stay = dense(2, (None, None))
        if c.value_weight > 0:
            self.value_hidden = dense(c.width // 2, ("embed", None), dtype=c.dtype)
            self.value_out = dense(1, (None, None))

    def states(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """Of all tokens, float32 [B, T, D]."""
        x = self.mesh_ops.constrain(self.embedder(batch), "batch", "length", None)
        return self.backbone(x, batch["kv_range"], deterministic)

    def encode(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """z, float32 [B, N, D]; zeros of slots from which nothing is read."""
        state_BxTxD, begin_BxN, end_BxN = self.states(batch, deterministic), *jnp.moveaxis(batch["site"], -1, 0)
        end_BxN = jnp.minimum(end_BxN, begin_BxN + 1) if self.config.readout == "cls" else end_BxN
        position = jnp.arange(state_BxTxD.shape[1])[None, None]
        is_read = (position >= begin_BxN[..., None]) & (position < end_BxN[..., None])
        share = is_read / jnp.maximum(end_BxN - begin_BxN, 1)[..., None].astype(jnp.float32)
        return jnp.einsum("bnt,btd->bnd", share, state_BxTxD, precision="highest")

    def __call__(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> dict[str, Any]:
        """{term: its prediction}, see `predicted`."""
        names = ("masked_tokens", "masked_values", "visit_types", "long_stays")
        return self.predicted(self.states(batch, deterministic), None, batch, names)

    def read(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, None]:
        """The states that the heads read, at inference."""
        return self.states(batch), None

    def predicted(
        self, z: jax.Array, more: None, batch: Mapping[str, jax.Array], names: Iterable[str]
    ) -> dict[str, Any]:
        """{term: its prediction} of some terms, from the states: TokenLoss, of values the values [B, T]."""
        del more
        found: dict[str, Any] = {}
        if "masked_tokens" in names:
            found["masked_tokens"] = self.token_head(z, self.embedder.table.embedding, batch["target"])
        if "masked_values" in names and self.config.value_weight > 0:
            found["masked_values"] = self.value_out(nn.gelu(self.value_hidden(z)).astype(jnp.float32))[..., 0]
        if "visit_types" in names and predicts_visits(self.config, self.facts):
            times = self.embedder.times(batch["date"], batch["age"])
            found["visit_types"] = self.visit_decoder(z, times, batch)
        if "long_stays" in names and self.config.long_stay_weight > 0:
            first_BxNxD = jnp.take_along_axis(z, batch["first_at"][..., None], axis=1)
            scores = self.long_stay(jnp.tanh(self.pooler(first_BxNxD)).astype(jnp.float32))
            found["long_stays"] = token_loss(scores, jnp.maximum(batch["long_stay"], 0))
        return found
