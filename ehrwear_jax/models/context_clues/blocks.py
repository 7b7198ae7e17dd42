"""Declares the blocks of ContextClues: one of Llama and one of Mamba, which leave each context of a row to itself.

Axes beside those of the batch (examples.FIELDS): D width, H heads, I hidden units of Mamba, S numbers of its state.
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ehrwear_jax.models.context_clues.config import Config
from ehrwear_jax.models.context_clues.state_space import causal_convolution, selective_scan
from ehrwear_jax.models.layers.dense import dense, named
from ehrwear_jax.models.layers.mesh_ops import MeshOps
from ehrwear_jax.models.layers.rotation import position_angles, rotated
from ehrwear_jax.models.layers.transformer import Adapter

EPSILON = 1e-5  # of norms
_STEPS = (0.001, 0.1)  # between which Mamba's step sizes begin

Fields = Mapping[str, jax.Array]


def fields(config: Config, kv_range_BxTx2: jax.Array) -> dict[str, jax.Array]:
    """What blocks read of a batch: "begin" [B, T], where contexts begin; of Llama "sin", "cos", "time", "kv_range"."""
    begin = kv_range_BxTx2[..., 0]
    position = jnp.arange(begin.shape[1], dtype=begin.dtype)[None]
    if config.backbone == "mamba":
        return {"begin": begin}
    inside = jnp.maximum(position - begin, 0)
    sin, cos = position_angles(inside, config.width // config.n_heads // 2, config.rotary_theta)
    return {"sin": sin, "cos": cos, "time": inside.astype(jnp.float32), "kv_range": kv_range_BxTx2}


class LlamaBlock(nn.Module):
    """x + attention(norm x), and that plus down(silu(gate(norm x)) up(norm x)); no biases (Touvron et al. 2023)."""

    config: Config
    mesh_ops: MeshOps
    deterministic: bool

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, fields: Fields) -> tuple[jax.Array, None]:
        """One layer."""
        c, ops = self.config, self.mesh_ops
        x_BxTxD = ops.constrain(x_BxTxD + self._attended(x_BxTxD, fields), "batch", "length", None)
        normed = nn.RMSNorm(EPSILON, dtype=c.dtype, name="norm_mlp")(x_BxTxD)

        def hidden(name):
            x = dense(c.mlp_width, ("embed", "mlp"), use_bias=False, dtype=c.dtype, name=name)(normed)
            return checkpoint_name(ops.constrain(x, "batch", "length", "mlp"), "hidden")

        product = nn.silu(hidden("gate")) * hidden("up")
        update = dense(c.width, ("mlp", "embed"), use_bias=False, dtype=c.dtype, name="down")(product)
        if c.adapter_width:
            update = Adapter(c.adapter_width, c.dtype, name="adapter")(update)
        return ops.constrain(x_BxTxD + update, "batch", "length", None), None

    def _attended(self, x_BxTxD, fields):
        c, ops = self.config, self.mesh_ops
        normed = nn.RMSNorm(EPSILON, dtype=c.dtype, name="norm_attention")(x_BxTxD)

        def projected(name, n_heads):
            shape = n_heads, c.width // c.n_heads
            x = dense(shape, ("embed", "heads", "depth"), use_bias=False, dtype=c.dtype, name=name)(normed)
            x = rotated(x, fields["sin"], fields["cos"]) if name != "value" else x
            x = checkpoint_name(x, "qkv")
            # the op takes as many heads of keys as of queries
            x = jnp.repeat(x, c.n_heads // n_heads, axis=2) if n_heads < c.n_heads else x
            return ops.constrain(x, "batch", "length", "heads", None)

        seen = ops.attend(
            projected("query", c.n_heads),
            projected("key", c.n_kv_heads),
            projected("value", c.n_kv_heads),
            q_time_BxT=fields["time"],
            k_time_BxS=fields["time"],
            kv_range_BxTx2=fields["kv_range"],
            kernel=None,
            bit_causal=self.deterministic,  # where z is read
            implementation=c.attention,
        )
        out = dense(
            c.width, ("heads", "depth", "embed"), n_inputs=2, use_bias=False, dtype=c.dtype, name="out"
        )  # fmt: skip
        return out(checkpoint_name(seen, "attended"))


class CausalConvolution(nn.Module):
    """state_space.causal_convolution with a learned kernel and bias."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, x_BxTxI: jax.Array, begin_BxT: jax.Array) -> jax.Array:
        shape, bound = (self.width, x_BxTxI.shape[-1]), self.width**-0.5
        kernel = self.param("kernel", named(_uniform(bound), None, "mlp"), shape).astype(self.dtype)
        bias = self.param("bias", named(_uniform(bound), "mlp"), shape[1:]).astype(self.dtype)
        return causal_convolution(x_BxTxI, kernel, begin_BxT) + bias[None, None]


class MambaBlock(nn.Module):
    """x + out(y silu(gate)), y a selective state space of the norm of x behind a short convolution."""

    config: Config
    mesh_ops: MeshOps
    deterministic: bool

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, fields: Fields) -> tuple[jax.Array, None]:
        """One layer."""
        c, ops = self.config, self.mesh_ops
        normed = nn.RMSNorm(EPSILON, dtype=c.dtype, name="norm")(x_BxTxD)
        both = dense((2, c.inner), ("embed", None, "mlp"), use_bias=False, dtype=c.dtype, name="in")(normed)
        both = checkpoint_name(ops.constrain(both, "batch", "length", None, "mlp"), "qkv")
        hidden, gate = both[..., 0, :], both[..., 1, :]
        hidden = nn.silu(CausalConvolution(c.conv_width, c.dtype, name="convolution")(hidden, fields["begin"]))
        y = checkpoint_name(self._remembered(hidden, fields["begin"]).astype(c.dtype), "attended")
        update = dense(c.width, ("mlp", "embed"), use_bias=False, dtype=c.dtype, name="out")(y * nn.silu(gate))
        if c.adapter_width:
            update = Adapter(c.adapter_width, c.dtype, name="adapter")(update)
        return ops.constrain(x_BxTxD + update, "batch", "length", None), None

    def _remembered(self, hidden_BxTxI, begin_BxT):
        """What the state space puts out, float32."""
        c = self.config
        select = dense(c.rank + 2 * c.state, ("mlp", None), use_bias=False, dtype=c.dtype, name="select")
        low, write, read = jnp.split(select(hidden_BxTxI).astype(jnp.float32), (c.rank, c.rank + c.state), axis=-1)
        step = dense(
            c.inner, (None, "mlp"), kernel_init=_uniform(c.rank**-0.5), bias_init=_first_steps, name="step"
        )(low)  # fmt: skip
        rates = jnp.log(jnp.arange(1, c.state + 1, dtype=jnp.float32))
        log_rate_IxS = self.param(
            "log_rate", named(lambda _, shape: jnp.broadcast_to(rates[None], shape), "mlp", None), (c.inner, c.state)
        )
        skip_I = self.param("skip", named(nn.initializers.ones, "mlp"), (c.inner,))
        x, position = hidden_BxTxI.astype(jnp.float32), jnp.arange(begin_BxT.shape[1])[None]
        y = selective_scan(
            x, nn.softplus(step), jnp.exp(log_rate_IxS), write, read, begin_BxT == position,
            chunk=c.scan_chunk, constrain=self.mesh_ops.constrain,
        )  # fmt: skip
        return y + x * skip_I[None, None]


def _uniform(bound: float) -> Callable:
    """An initialiser between -bound and bound."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def _first_steps(key, shape, dtype=jnp.float32):
    """Biases whose softplus lies between _STEPS, uniformly on a logarithmic scale."""
    low, high = map(math.log, _STEPS)
    step = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return step + jnp.log(-jnp.expm1(-step))


BLOCKS: dict[str, type[nn.Module]] = {"llama": LlamaBlock, "mamba": MambaBlock}


def recurrence_flops(config: Config) -> int:
    """Flops of a token in the recurrence of a layer of Mamba, forward: inputs, decays, states and what is read."""
    return 7 * config.inner * config.state if config.backbone == "mamba" else 0
