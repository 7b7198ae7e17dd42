"""Computes MOTOR's z of places, and the losses of the times to events that z predicts.

Blocks are pre-norm with attention and the feed-forward part side by side; attention sees a window of the latest tokens
of the same person and turns pairs of features by the age in days. Axes beside those of the batch (examples.FIELDS): D
width, F pairs of features of a head.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ehrwear_jax.models.layers import time_encoding
from ehrwear_jax.models.layers.dense import LAYERS, dense, embedding, named, scaled
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.layers.rotation import rotated
from ehrwear_jax.models.layers.transformer import Adapter, rematerialised
from ehrwear_jax.models.layers.vocabulary_loss import Chunks, Table, TokenLoss, masked_loss
from ehrwear_jax.models.motor.config import Config
from ehrwear_jax.models.motor.hazard_loss import event_days, place_loss
from ehrwear_jax.models.motor.timelines import PAD, Facts

_TASK_INIT = 0.1  # of codes' vectors, so that training begins near their rates


def rotation_cycles(n_pairs: int) -> np.ndarray:
    """Turns a day of each pair of features: 10000^(-2 f / (F - 1)) radians, float64 [F]."""
    return 10_000.0 ** -np.linspace(0.0, 2.0, n_pairs) / (2.0 * np.pi)


class Block(nn.Module):
    """x + out(attention(norm x)) + down(gelu(up(norm x)))."""

    config: Config
    mesh_ops: MeshOps
    deterministic: bool

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, fields: Mapping[str, jax.Array]) -> tuple[jax.Array, None]:
        """One layer; fields: "sin", "cos" [B, T, 1, F], "time" [B, T] and "kv_range" [B, T, 2]."""
        c, ops = self.config, self.mesh_ops
        normed = nn.RMSNorm(dtype=c.dtype, name="norm")(x_BxTxD)
        heads = (c.n_heads, c.width // c.n_heads)

        def projected(name):
            x = dense(heads, ("embed", "heads", "depth"), dtype=c.dtype, name=name)(normed)
            return checkpoint_name(ops.constrain(x, "batch", "length", "heads", None), "qkv")

        query, key = (rotated(projected(name), fields["sin"], fields["cos"]) for name in ("query", "key"))
        seen = ops.attend(
            query,
            key,
            projected("value"),
            q_time_BxT=fields["time"],
            k_time_BxS=fields["time"],
            kv_range_BxTx2=fields["kv_range"],
            kernel=None,
            bit_causal=self.deterministic,  # where z is read
            implementation=c.attention,
        )
        seen = checkpoint_name(seen, "attended")
        update = dense(c.width, ("heads", "depth", "embed"), n_inputs=2, dtype=c.dtype, name="out")(seen)
        hidden = dense(c.mlp_width, ("embed", "mlp"), dtype=c.dtype, name="up")(normed)
        hidden = checkpoint_name(ops.constrain(hidden, "batch", "length", "mlp"), "hidden")
        update += dense(c.width, ("mlp", "embed"), dtype=c.dtype, name="down")(nn.gelu(hidden))
        if c.adapter_width:
            update = Adapter(c.adapter_width, c.dtype, name="adapter")(update)
        return ops.constrain(x_BxTxD + update, "batch", "length", None), None


class Backbone(nn.Module):
    """Blocks, one after the other, and a last norm."""

    config: Config
    mesh_ops: MeshOps

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, fields: Mapping[str, jax.Array], deterministic: bool) -> jax.Array:
        """Tokens to z_BxTxD, float32."""
        c = self.config
        scan = nn.scan(
            rematerialised(Block, c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.n_layers,
            in_axes=(nn.broadcast,),
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: LAYERS},
        )
        x_BxTxD, _ = scan(c, self.mesh_ops, deterministic, name="blocks")(x_BxTxD, fields)
        return nn.RMSNorm(dtype=jnp.float32, name="norm_out")(x_BxTxD)


class TimeToEventHead(nn.Module):
    """Hazards of all codes in pieces of time: a vector per piece from z, and a vector per code that pieces share."""

    facts: Facts
    width: int
    dtype: str
    mesh_ops: MeshOps

    def setup(self) -> None:
        n_bins, n_tasks = len(self.facts.bin_days), self.facts.tasks
        self.pieces = dense((n_bins, self.width), ("embed", None, None), dtype=self.dtype)
        shape, start = (self.width, n_tasks), named(scaled(_TASK_INIT), None, "future_code")
        self.kernel = self.param("kernel", start, shape)
        log_rate_C = np.log(np.asarray(self.facts.rates, np.float64)).astype(np.float32)

        def rates(_, shape):
            return jnp.broadcast_to(jnp.asarray(log_rate_C), shape)

        self.bias = self.param("bias", named(rates, None, "future_code"), (n_bins, n_tasks))

    def __call__(self, z_BxNxD: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """hazard_loss.place_loss of each place: float32 [B, N]."""
        constrain = self.mesh_ops.constrain
        event_BxNxC = constrain(event_days(batch, self.facts.tasks), "batch", None, "future_code")
        return place_loss(
            self.pieces(z_BxNxD), self.kernel, self.bias, self.facts.bin_days, event_BxNxC, batch["site_days"],
            constrain,
        )  # fmt: skip

    def log_hazards(self, z_BxNxD: jax.Array) -> jax.Array:
        """Natural logarithm of hazards a day: float32 [B, N, K, C], for few places; training never makes it."""
        score = jnp.einsum("bnke,ec->bnkc", self.pieces(z_BxNxD), self.kernel, preferred_element_type=jnp.float32)
        return score + self.bias[None, None]


class NextCodeHead(nn.Module):
    """Scores of all codes to be that of the next token."""

    tasks: int
    dtype: str
    mesh_ops: MeshOps

    @nn.compact
    def __call__(self, z_BxTxD: jax.Array, batch: Mapping[str, jax.Array]) -> TokenLoss:
        """Losses of the codes that follow, zeros where none is predicted: [B, T]."""
        ops, shape, next_BxT = self.mesh_ops, (z_BxTxD.shape[-1], self.tasks), batch["next_task"]
        kernel = self.param("kernel", named(scaled(_TASK_INIT), "embed", "future_code"), shape)
        bias = self.param("bias", named(nn.initializers.zeros, "future_code"), (self.tasks,))
        return masked_loss(
            z_BxTxD, jnp.maximum(next_BxT, 0), next_BxT >= 0, Table(kernel.T, bias),
            chunks=Chunks(dtype=self.dtype, constrain=ops.constrain), n_groups=ops.row_groups,
        )  # fmt: skip


class MotorNetwork(nn.Module):
    """Dictionary, backbone and head over one batch."""

    config: Config
    facts: Facts
    mesh_ops: MeshOps = ONE_DEVICE

    def setup(self) -> None:
        c = self.config
        self.dictionary = embedding(self.facts.dictionary, c.width)
        self.norm_in = nn.RMSNorm(dtype=c.dtype)
        if c.normed_ages:
            self.age = dense(c.width, (None, "embed"), use_bias=False, dtype=c.dtype)
        self.backbone = Backbone(c, self.mesh_ops)
        if c.predicts == "next_code":
            head: nn.Module = NextCodeHead(self.facts.tasks, c.dtype, self.mesh_ops)
        else:
            head = TimeToEventHead(self.facts, c.task_width, c.dtype, self.mesh_ops)
        self.head: Any = head

    def encode(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """z where it is read, float32 [B, N, D]; of slots without a place, some vector."""
        z_BxTxD = self._hidden(batch, deterministic)
        return jnp.take_along_axis(z_BxTxD, jnp.maximum(batch["site"], 0)[..., None], axis=1)

    def __call__(self, batch: Mapping[str, jax.Array], deterministic: bool = True) -> dict[str, Any]:
        """{"time_to_event": loss of each place [B, N]}, or {"next_code": TokenLoss of each token [B, T]}."""
        z, _ = self._read(batch, deterministic)
        return self.predicted(z, None, batch, (self._term,))

    def read(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, None]:
        """What the head reads, at inference."""
        return self._read(batch, True)

    def predicted(
        self, z: jax.Array, more: None, batch: Mapping[str, jax.Array], names: Iterable[str]
    ) -> dict[str, Any]:
        """{term: its prediction} of some terms, from what `read` returned."""
        del more
        if self._term not in names:
            return {}
        return {self._term: self.head(z, batch)}

    @property
    def _term(self):
        return "next_code" if self.config.predicts == "next_code" else "time_to_event"

    def _read(self, batch, deterministic):
        """z of all tokens, or of places alone."""
        hidden = self._hidden if self._term == "next_code" else self.encode
        return hidden(batch, deterministic), None

    def _hidden(self, batch, deterministic):
        return self.backbone(self._tokens(batch), self._fields(batch), deterministic)

    def log_hazards(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Of all codes at the places of a small batch: see TimeToEventHead.log_hazards."""
        return self.head.log_hazards(self.encode(batch))

    def _tokens(self, batch):
        """Sums of entries, normed, and ages: [B, T, D]."""
        c = self.config
        x: Any = 0.0
        table, look_up = self.dictionary.embedding.astype(c.dtype), self.mesh_ops.look_up
        share_BxTxA = jnp.where(batch["entry"] == PAD, 0.0, batch["weight"]).astype(c.dtype)
        for a in range(batch["entry"].shape[-1]):  # an entry at a time: [B, T, A, D] would be A times as large
            x = x + share_BxTxA[..., a, None] * look_up(table, batch["entry"][..., a])
        x = self.norm_in(x)
        if c.normed_ages:
            mean, std = self.facts.age_days
            normed = (batch["age"].sum(axis=-1, keepdims=True) - mean) / std
            x = x + self.age(jnp.concatenate([normed, normed * normed], axis=-1))
        return self.mesh_ops.constrain(x.astype(c.dtype), "batch", "length", None)

    def _fields(self, batch):
        cycles_F = rotation_cycles(self.config.width // self.config.n_heads // 2)
        sin, cos = jnp.split(time_encoding.encode(batch["age"], cycles_F)[:, :, None], 2, axis=-1)
        return {"sin": sin, "cos": cos, "time": batch["age"][..., 0], "kv_range": batch["kv_range"]}
