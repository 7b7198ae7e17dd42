"""Computes latents of tokens and of free-time queries by a causal transformer with kernel attention."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ehrwear_jax.models.layers.dense import LAYERS, dense, named, scaled
from ehrwear_jax.models.layers.dropout import dropped, kept
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.ops.kernel_attention import ExponentialMixture, RationalQuadratic
from ehrwear_jax.ops.kernel_attention.reference import dropout_seed

# What the forward pass keeps of a block for the backward pass, which computes the rest again: everything; the block's
# input; that and its projections and the attention's result; that and the first product of the feed-forward part.
REMAT: dict[str, tuple[str, ...] | None] = {
    "none": None,
    "full": (),
    "attention": ("qkv", "attended"),
    "products": ("qkv", "attended", "hidden"),
}


_MOST_DIRECT = 2**18  # scores of a head that are computed at once where tokens are few: no tile of them would be full
N_STREAMS = 4  # updates of a layer whose entries are dropped: of tokens and queries, by attention and feed-forward


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of a backbone.

    Attributes:
      kernel: mixture, rational_quadratic or none; see TimeKernel. n_components: R of the mixture.
      source_width: of the projection v_j in the bias u_m . v_j. n_modalities: m's. query_modality: that of queries; -1:
        the last one.
      dropout, attention_dropout: rates. stochastic_depth: chance that a row loses the last layer's update; grows with
        depth up to there.
      qk_norm: queries and keys of each head have norm sqrt(depth), times a learned scale (Henry et al. 2020).
      residual_init: how the products start that end a sublayer: "fan_in", or "depth" for 1 / sqrt(2 n_layers) of that.
      attention: implementation of the op, None for the best available. skip_tolerance: see its argument.
      remat: a name in REMAT. unroll: layers per step of the scan.
      adapter_width: of an adapter behind each sublayer, before its sum with what came in; 0: none.
    """

    width: int
    n_layers: int
    n_heads: int
    mlp_width: int
    kernel: str = "mixture"
    n_components: int = 4
    source_width: int = 16
    n_modalities: int = 4
    query_modality: int = -1
    dropout: float = 0.1
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    qk_norm: bool = False
    residual_init: str = "fan_in"
    attention: str | None = None
    skip_tolerance: float = 0.0
    remat: str = "none"
    unroll: int = 1
    dtype: str = "float32"
    adapter_width: int = 0


def rematerialised(block: type[nn.Module], remat: str) -> type[nn.Module]:
    """A block class that keeps for the backward pass what REMAT[remat] says.

    Raises:
      ValueError: there is no such policy.
    """
    if remat not in REMAT:
        raise ValueError(f"remat is {remat!r}; it can be {', '.join(REMAT)}")
    kept = REMAT[remat]
    if kept is None:
        return block
    return nn.remat(block, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(*kept))


def _softplus_inverse(x):
    return x + math.log(-math.expm1(-x))


def _log_softplus_inverse(x):
    """softplus^-1 that keeps its digits for tiny x (rates of 1/decade)."""
    return jnp.where(x > 20.0, x, jnp.log(jnp.expm1(jnp.minimum(x, 20.0))))


class TimeKernel(nn.Module):
    """The learned K(dt) of one layer's heads, as ops/kernel_attention/reference.py defines it.

    Attributes:
      kind: "mixture" (n_components exponentials), "rational_quadratic" or "none".
      shortest_days, longest_days: 1/gamma starts log-spaced between them, shifted from head to head.
    """

    kind: str
    n_heads: int
    n_components: int
    shortest_days: float = 0.25
    longest_days: float = 3650.0

    @nn.compact
    def __call__(self) -> ExponentialMixture | RationalQuadratic | None:
        if self.kind == "none":
            return None
        if self.kind == "rational_quadratic":
            start = jnp.geomspace(self.shortest_days, self.longest_days, self.n_heads)
            length = self.param("length", named(lambda _: _log_softplus_inverse(start), "heads"))
            one = _softplus_inverse(1.0)
            alpha = self.param("alpha", named(lambda _: jnp.full((self.n_heads,), one), "heads"))
            return RationalQuadratic(alpha_H=nn.softplus(alpha), length_H=nn.softplus(length))
        if self.kind != "mixture":
            raise ValueError(f"unknown time kernel {self.kind!r}: mixture, rational_quadratic or none")
        span = jnp.geomspace(self.shortest_days, self.longest_days, self.n_heads * self.n_components)
        # components of a head are spread over the whole range, heads are shifted against one another
        gamma_HxR = 1.0 / span.reshape(self.n_components, self.n_heads).T
        raw_gamma = self.param("gamma", named(lambda _: _log_softplus_inverse(gamma_HxR), "heads", None))
        # a dtype, for a weakly typed parameter would compile the training step twice
        share = jnp.full((self.n_heads, self.n_components), _softplus_inverse(1.0 / self.n_components), jnp.float32)
        raw_beta = self.param("beta", named(lambda _: share, "heads", None))
        return ExponentialMixture(beta_HxR=nn.softplus(raw_beta), gamma_HxR=nn.softplus(raw_gamma))


class Adapter(nn.Module):
    """x + up(gelu(down(x))) of Houlsby et al. (2019); up starts at zero, so that an adapter begins as no change."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(dense(self.width, ("embed", "mlp"), dtype=self.dtype, name="down")(x))
        zeros = nn.initializers.zeros
        return x + dense(x.shape[-1], ("mlp", "embed"), kernel_init=zeros, dtype=self.dtype, name="up")(hidden)


class ModalityBias(nn.Module):
    """b[m, j] = u_m . v_j: a bias per head from the query's modality and a small projection of the source token.

    Its parameters are those of an attention kernel and never decayed: no leaf of it is called "kernel".
    """

    n_modalities: int
    n_heads: int
    width: int

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Returns bias_BxHxMxT, float32."""
        tag_MxHxS = self.param(
            "tag",
            named(nn.initializers.normal(0.02), None, "heads", None),
            (self.n_modalities, self.n_heads, self.width),
        )
        projection_DxHxS = self.param(
            "projection",
            named(_source_init, "embed", "heads", None),
            (x_BxTxD.shape[-1], self.n_heads, self.width),
        )
        offset_HxS = self.param("offset", named(nn.initializers.zeros, "heads", None), (self.n_heads, self.width))
        # the narrow product first: M columns a head instead of S; its factors are of x's dtype
        joined_DxHxM = jnp.einsum("dhs,mhs->dhm", projection_DxHxS, tag_MxHxS).astype(x_BxTxD.dtype)
        bias = jnp.einsum("btd,dhm->bhmt", x_BxTxD, joined_DxHxM, preferred_element_type=jnp.float32)
        return bias + jnp.einsum("hs,mhs->hm", offset_HxS, tag_MxHxS)[None, :, :, None]


def _source_init(key, shape):
    flat = nn.initializers.lecun_normal()(key, (shape[0], math.prod(shape[1:])))
    return flat.reshape(shape)


class Block(nn.Module):
    """Pre-norm block applied to the tokens and, over the same keys, to the queries (seen by nobody)."""

    config: TransformerConfig
    mesh_ops: MeshOps
    deterministic: bool

    def setup(self) -> None:
        c = self.config
        heads = (c.n_heads, c.width // c.n_heads)
        self.norm_attention = nn.LayerNorm(dtype=c.dtype)
        for name in ("query", "key", "value"):
            setattr(self, name, dense(heads, ("embed", "heads", "depth"), dtype=c.dtype))
        # an update of the residual stream each; with 1 / sqrt(2 L) the sum of all starts as large as one
        start = scaled((2 * c.n_layers) ** -0.5 if c.residual_init == "depth" else 1.0)
        self.out = dense(c.width, ("heads", "depth", "embed"), n_inputs=2, kernel_init=start, dtype=c.dtype)
        if c.qk_norm:
            self.query_norm, self.key_norm = nn.RMSNorm(dtype=c.dtype), nn.RMSNorm(dtype=c.dtype)
        self.modality_bias = ModalityBias(c.n_modalities, c.n_heads, c.source_width)
        self.kernel = TimeKernel(c.kernel, c.n_heads, c.n_components)
        self.norm_mlp = nn.LayerNorm(dtype=c.dtype)
        self.up = dense(c.mlp_width, ("embed", "mlp"), dtype=c.dtype)
        self.down = dense(c.width, ("mlp", "embed"), kernel_init=start, dtype=c.dtype)
        self.drops = (c.dropout > 0 or c.stochastic_depth > 0) and not self.deterministic
        if c.adapter_width:
            self.adapter_attention, self.adapter_mlp = (Adapter(c.adapter_width, c.dtype) for _ in range(2))

    def __call__(
        self, carry: tuple[jax.Array, jax.Array], layer_drop: jax.Array, fields: Mapping[str, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        """One layer: (x_BxTxD, y_BxQxD), its chance of being dropped, and the batch's fields -> (carry, None)."""
        # one key a layer: each key is a program of its own on the device
        seed = dropout_seed(self.make_rng("dropout")) if self.drops else None
        norms = tuple(self.norm_attention(x) for x in carry)
        return self._updated(carry, norms, self._keys(norms[0], fields["time"]), fields, layer_drop, seed), None

    def extend(
        self, carry: tuple[jax.Array, jax.Array], known: Mapping[str, jax.Array], fields: Mapping[str, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], dict[str, jax.Array]]:
        """As `__call__` at inference, of tokens behind others whose keys and values are known.

        Args:
          known: key and value [B, S, H, D] and bias [B, H, M, S] of the tokens before place fields["first"].
          fields: also key_time [B, S], of all tokens.

        Returns:
          (carry, what is known then: of the new tokens too).
        """
        norms = tuple(self.norm_attention(x) for x in carry)
        keys = self._keys(norms[0], fields["key_time"])  # times of all of them, and keys of the new ones
        known = {
            name: jax.lax.dynamic_update_slice_in_dim(known[name], keys[name], fields["first"], axis)
            for name, axis in (("key", 1), ("value", 1), ("bias", 3))
        }
        n_scores = fields["time"].shape[1] * fields["key_time"].shape[1]
        direct = {"implementation": "reference"} if n_scores <= _MOST_DIRECT else {}
        return self._updated(carry, norms, keys | known | direct, fields, jnp.float32(0.0), None), known

    def _updated(self, carry, norms, keys, fields, layer_drop, seed):
        (x_BxTxD, y_BxQxD), (x_norm, y_norm) = carry, norms
        queries = jnp.full(y_BxQxD.shape[:2], self.config.query_modality % self.config.n_modalities)
        seen = self._attended(x_norm, keys, fields["time"], fields["kv_range"], fields["modality"])
        x_BxTxD = self._residual(x_BxTxD, "attention", seen, layer_drop, (seed, 0))
        seen = self._attended(y_norm, keys, fields["query_time"], fields["query_kv_range"], queries)
        y_BxQxD = self._residual(y_BxQxD, "attention", seen, layer_drop, (seed, 1))
        x_BxTxD = self._residual(x_BxTxD, "mlp", self._feed_forward(x_BxTxD), layer_drop, (seed, 2))
        y_BxQxD = self._residual(y_BxQxD, "mlp", self._feed_forward(y_BxQxD), layer_drop, (seed, 3))
        return x_BxTxD, y_BxQxD

    def _projected(self, name, x):
        heads = self.mesh_ops.constrain(getattr(self, name)(x), "batch", "length", "heads", None)
        norm = getattr(self, f"{name}_norm") if self.config.qk_norm and name != "value" else lambda y: y
        return checkpoint_name(norm(heads), "qkv")

    def _keys(self, x_norm, time):
        """What all queries of the layer share."""
        key, value = self._projected("key", x_norm), self._projected("value", x_norm)
        return {"key": key, "value": value, "bias": self.modality_bias(x_norm), "kernel": self.kernel(), "time": time}

    def _attended(self, norm_x, keys, time, kv_range, modality):
        rate = 0.0 if self.deterministic else self.config.attention_dropout
        query = self._projected("query", norm_x)
        call = {"query": query, "key": keys["key"], "bias": keys["bias"], "kernel": keys["kernel"]}
        call |= {"key_time": keys["time"], "time": time, "kv_range": kv_range, "modality": modality}
        # for interpret/attention.py; nothing is stored unless the caller makes "intermediates" mutable
        self.sow("intermediates", "attention_calls", call)
        attended = self.mesh_ops.attend(
            query,
            keys["key"],
            keys["value"],
            q_time_BxT=time,
            k_time_BxS=keys["time"],
            kv_range_BxTx2=kv_range,
            kernel=keys["kernel"],
            source_bias_BxHxMxS=keys["bias"],
            q_modality_BxT=modality,
            dropout_rate=rate,
            dropout_key=self.make_rng("dropout") if rate else None,
            skip_tolerance=self.config.skip_tolerance,
            bit_causal=self.deterministic,  # where z is read
            implementation=keys.get("implementation", self.config.attention),
        )
        return self.out(attended)

    def _feed_forward(self, x):
        hidden = self.mesh_ops.constrain(self.up(self.norm_mlp(x)), "batch", "length", "mlp")
        return self.down(nn.gelu(checkpoint_name(hidden, "hidden")))

    def _residual(self, x, sublayer, update, layer_drop, stream):
        """Dropout, and a whole row's update dropped with the layer's probability (stochastic depth)."""
        if self.config.adapter_width:
            update = getattr(self, f"adapter_{sublayer}")(update)
        if self.config.dropout > 0 and self.drops:
            update = dropped(update, self.config.dropout, *stream)
        if self.config.stochastic_depth > 0 and self.drops:
            row_Bx1x1 = kept((x.shape[0], 1, 1), layer_drop, stream[0], N_STREAMS + stream[1])
            update = jnp.where(row_Bx1x1, update / (1.0 - layer_drop).astype(update.dtype), 0.0)
        return self.mesh_ops.constrain(x + update, "batch", "length", None)


class Backbone(nn.Module):
    """g_theta of the paper's section 3.2: token and query vectors to latents z, by scanned blocks."""

    config: TransformerConfig
    mesh_ops: MeshOps = ONE_DEVICE

    @nn.compact
    def __call__(
        self,
        x_BxTxD: jax.Array,
        y_BxQxD: jax.Array,
        fields: Mapping[str, jax.Array],
        deterministic: bool,
        known: Mapping[str, jax.Array] | None = None,
    ) -> tuple[Any, ...]:
        """Args: x tokens, y queries, fields of the batch (times, ranges, modality). Returns (z_BxTxD, z_BxQxD).

        known: as Block.extend takes and returns it, of all layers, [L, ...]; what is known then comes third.
        """
        c = self.config
        if known is not None:
            going_on = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": False},
                length=c.n_layers,
                in_axes=(0, nn.broadcast),
                methods=["extend"],
            )
            (x, y), known = going_on(c, self.mesh_ops, True, name="blocks").extend((x_BxTxD, y_BxQxD), known, fields)
            norm = nn.LayerNorm(dtype=jnp.float32, name="norm_out")
            return norm(x), norm(y), known
        scan = nn.scan(
            rematerialised(Block, c.remat),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=c.n_layers,
            in_axes=(0, nn.broadcast),
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: LAYERS},
        )
        layer_drop = c.stochastic_depth * (1 + jnp.arange(c.n_layers)) / c.n_layers  # grows with depth
        (x, y), _ = scan(c, self.mesh_ops, deterministic, name="blocks")((x_BxTxD, y_BxQxD), layer_drop, fields)
        norm = nn.LayerNorm(dtype=jnp.float32, name="norm_out")
        return norm(x), norm(y)
