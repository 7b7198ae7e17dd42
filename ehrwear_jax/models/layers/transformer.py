"""The shared backbone: a causal transformer with kernel attention over tokens, and free-time queries over them."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ehrwear_jax.models.joint import batch as batch_lib
from ehrwear_jax.ops.kernel_attention import ExponentialMixture, RationalQuadratic, kernel_attention

# What the forward pass keeps of a block for the backward pass, which computes the rest again: everything; the block's
# input; that and its projections and the attention's result; that and the first product of the feed-forward part.
REMAT = {
    "none": None,
    "full": (),
    "attention": ("qkv", "attended"),
    "products": ("qkv", "attended", "hidden"),
}


def rematerialised(block, remat):
    """A block class that keeps for the backward pass what REMAT[remat] says.

    Raises:
      ValueError: there is no such policy.
    """
    if remat not in REMAT:
        raise ValueError(f"config.model.remat is {remat!r}; it can be {', '.join(REMAT)}")
    if REMAT[remat] is None:
        return block
    return nn.remat(block, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(*REMAT[remat]))


def anywhere(x, *names):
    """Says nothing of where an activation lies; sharding.placement does, by the names of its dimensions."""
    del names
    return x


def _softplus_inverse(x):
    return x + math.log(-math.expm1(-x))


class TimeKernel(nn.Module):
    """The learned K(dt) of one layer's heads; see DESIGN of the op in ops/kernel_attention/reference.py.

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
    def __call__(self):
        if self.kind == "none":
            return None
        if self.kind == "rational_quadratic":
            start = jnp.geomspace(self.shortest_days, self.longest_days, self.n_heads)
            length = self.param("length", lambda _: _log_softplus_inverse(start))
            alpha = self.param("alpha", lambda _: jnp.full((self.n_heads,), _softplus_inverse(1.0)))
            return RationalQuadratic(alpha_H=nn.softplus(alpha), length_H=nn.softplus(length))
        if self.kind != "mixture":
            raise ValueError(f"unknown time kernel {self.kind!r}: mixture, rational_quadratic or none")
        span = jnp.geomspace(self.shortest_days, self.longest_days, self.n_heads * self.n_components)
        # components of a head are spread over the whole range, heads are shifted against one another
        gamma_HxR = 1.0 / span.reshape(self.n_components, self.n_heads).T
        raw_gamma = self.param("gamma", lambda _: _log_softplus_inverse(gamma_HxR))
        raw_beta = self.param(
            "beta",
            # a dtype, for a weakly typed parameter would compile the training step twice
            lambda _: jnp.full(
                (self.n_heads, self.n_components), _softplus_inverse(1.0 / self.n_components), jnp.float32
            ),
        )
        return ExponentialMixture(beta_HxR=nn.softplus(raw_beta), gamma_HxR=nn.softplus(raw_gamma))


def _log_softplus_inverse(x):
    """softplus^-1 that keeps its digits for tiny x (rates of 1/decade)."""
    return jnp.where(x > 20.0, x, jnp.log(jnp.expm1(jnp.minimum(x, 20.0))))


class Adapter(nn.Module):
    """x + up(gelu(down(x))) of Houlsby et al. (2019); up starts at zero, so that an adapter begins as no change."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        hidden = nn.gelu(nn.Dense(self.width, dtype=self.dtype, name="down")(x))
        return x + nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype, name="up")(hidden)


class Block(nn.Module):
    """Pre-norm block applied to the tokens and, over the same keys, to the queries (seen by nobody).

    adapter_width: of an adapter behind each sublayer, before its sum with what came in; 0: none.
    """

    width: int
    n_heads: int
    mlp_width: int
    kernel: str
    n_components: int
    source_width: int
    dropout: float
    attention_dropout: float
    stochastic_depth: float
    attention: str | None
    attend: Callable
    place: Callable
    qk_norm: bool
    dtype: jnp.dtype
    deterministic: bool
    adapter_width: int = 0

    @nn.compact
    def __call__(self, carry, layer_drop, fields):
        """One layer: (x_BxTxD, y_BxQxD), its chance of being dropped, and the batch's fields -> (carry, None)."""
        x_BxTxD, y_BxQxD = carry
        depth = self.width // self.n_heads
        norm = nn.LayerNorm(dtype=self.dtype, name="norm_attention")
        project = {
            n: nn.DenseGeneral((self.n_heads, depth), dtype=self.dtype, name=n) for n in ("query", "key", "value")
        }
        merge = nn.DenseGeneral(self.width, axis=(-2, -1), dtype=self.dtype, name="out")
        scaled = {n: nn.RMSNorm(dtype=self.dtype, name=f"{n}_norm") for n in ("query", "key") if self.qk_norm}
        sublayers = ("attention", "mlp") if self.adapter_width else ()
        adapters = {n: Adapter(self.adapter_width, self.dtype, name=f"adapter_{n}") for n in sublayers}

        def projected(name, x):
            heads = self.place(project[name](x), "batch", "length", "heads", None)
            return checkpoint_name(scaled[name](heads) if name in scaled else heads, "qkv")

        x_norm, y_norm = norm(x_BxTxD), norm(y_BxQxD)
        key, value = projected("key", x_norm), projected("value", x_norm)
        # b[m, j] = u_m . v_j: a bias per head from the query's modality and a small projection of the source token
        tag_MxHxS = self.param(
            "modality_tag", nn.initializers.normal(0.02), (batch_lib.N_MODALITY, self.n_heads, self.source_width)
        )
        source = nn.DenseGeneral((self.n_heads, self.source_width), dtype=jnp.float32, name="source")(x_norm)
        bias_BxHxMxT = jnp.einsum("mhs,bths->bhmt", tag_MxHxS, source)
        kernel = TimeKernel(self.kernel, self.n_heads, self.n_components, name="kernel")()
        drop_rate = 0.0 if self.deterministic else self.attention_dropout

        def attend(norm_x, time, kv_range, modality):
            query = projected("query", norm_x)
            # for evals/attention.py; nothing is stored unless the caller makes "intermediates" mutable
            call = {"query": query, "key": key, "bias": bias_BxHxMxT, "kernel": kernel, "key_time": fields["time"]}
            call |= {"time": time, "kv_range": kv_range, "modality": modality}
            self.sow("intermediates", "attention_calls", call)
            attended = self.attend(
                query,
                key,
                value,
                q_time_BxT=time,
                k_time_BxS=fields["time"],
                kv_range_BxTx2=kv_range,
                kernel=kernel,
                source_bias_BxHxMxS=bias_BxHxMxT,
                q_modality_BxT=modality,
                dropout_rate=drop_rate,
                dropout_key=self.make_rng("dropout") if drop_rate else None,
                implementation=self.attention,
            )
            return merge(checkpoint_name(attended, "attended"))

        up = nn.Dense(self.mlp_width, dtype=self.dtype, name="up")
        down = nn.Dense(self.width, dtype=self.dtype, name="down")
        norm_mlp = nn.LayerNorm(dtype=self.dtype, name="norm_mlp")
        dropout = nn.Dropout(self.dropout, deterministic=self.deterministic)

        def residual(x, sublayer, update):
            """Dropout, and a whole row's update dropped with the layer's probability (stochastic depth)."""
            update = dropout(adapters[sublayer](update) if adapters else update)
            if self.stochastic_depth > 0 and not self.deterministic:
                keep = 1.0 - layer_drop
                kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0], 1, 1))
                update = jnp.where(kept, update / keep.astype(update.dtype), 0.0)
            return self.place(x + update, "batch", "length", None)

        def feed_forward(x):
            hidden = self.place(up(norm_mlp(x)), "batch", "length", "mlp")
            return down(nn.gelu(checkpoint_name(hidden, "hidden")))

        queries = jnp.full(y_BxQxD.shape[:2], batch_lib.MODALITY_QUERY)
        x_BxTxD = residual(x_BxTxD, "attention", attend(x_norm, fields["time"], fields["kv_range"], fields["modality"]))
        y_BxQxD = residual(
            y_BxQxD, "attention", attend(y_norm, fields["query_time"], fields["query_kv_range"], queries)
        )
        x_BxTxD = residual(x_BxTxD, "mlp", feed_forward(x_BxTxD))
        y_BxQxD = residual(y_BxQxD, "mlp", feed_forward(y_BxQxD))
        return (x_BxTxD, y_BxQxD), None


class Backbone(nn.Module):
    """g_theta of the paper's section 3.2: token and query vectors to latents z, by scanned blocks.

    Attributes:
      adapter_width: see Block.
      qk_norm: queries and keys of each head have norm sqrt(depth), times a learned scale (Henry et al. 2020).
      remat: a name in REMAT. unroll: layers per step of the scan.
      attention: implementation of the op, None for the best available. attend: the op itself, or what spreads it over
        the devices of a mesh. place: where activations lie on a mesh, see sharding.placement.
    """

    n_layers: int
    width: int
    n_heads: int
    mlp_width: int
    kernel: str = "mixture"
    n_components: int = 4
    source_width: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    attention: str | None = None
    attend: Callable = kernel_attention
    place: Callable = anywhere
    qk_norm: bool = False
    remat: str = "none"
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32
    adapter_width: int = 0

    @nn.compact
    def __call__(self, x_BxTxD, y_BxQxD, fields, deterministic):
        """Args: x tokens, y queries, fields of the batch (times, ranges, modality). Returns (z_BxTxD, z_BxQxD)."""
        scan = nn.scan(
            rematerialised(Block, self.remat),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.n_layers,
            in_axes=(0, nn.broadcast),
            unroll=self.unroll,
        )
        layer_drop = self.stochastic_depth * (1 + jnp.arange(self.n_layers)) / self.n_layers  # grows with depth
        blocks = scan(
            self.width,
            self.n_heads,
            self.mlp_width,
            self.kernel,
            self.n_components,
            self.source_width,
            self.dropout,
            self.attention_dropout,
            self.stochastic_depth,
            self.attention,
            self.attend,
            self.place,
            self.qk_norm,
            self.dtype,
            deterministic,
            self.adapter_width,
            name="blocks",
        )
        (x, y), _ = blocks((x_BxTxD, y_BxQxD), layer_drop, fields)
        norm = nn.LayerNorm(dtype=jnp.float32, name="norm_out")
        return norm(x), norm(y)
