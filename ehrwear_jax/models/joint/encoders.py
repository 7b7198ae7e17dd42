"""Encodes what tokens say: EHR events and wearable windows to vectors of the backbone's width."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ehrwear_jax.models.joint.batch import slot_sizes
from ehrwear_jax.models.joint.raw_encoder import conv_init
from ehrwear_jax.models.joint.value_encoder import ValueEncoder
from ehrwear_jax.models.layers.dense import LAYERS, dense, embedding
from ehrwear_jax.models.layers.dropout import dropout_seed, dropped
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.layers.transformer import TimeKernel, rematerialised

# --------------------------------------------------------------------------------------------------------- EHR events


class EhrEmbedder(nn.Module):
    """Embed(e) of the paper's section 3.2, with the numeric value as a continuous channel.

    Attributes:
      vocabulary: number of tokens. token_width: of the embedding table. out_width: p, the backbone's.
      scale: of what the tables say, whose parts start with a standard deviation of 0.02.
      value_features: curves of the value's quantile beside the value itself (value_encoder.py); 0: none.
      value_channel: whether the numeric value is read at all, beside the range that the token names.
      dropout: of what a token says before its projection, in training.
    """

    vocabulary: int
    token_width: int
    out_width: int
    dtype: str = "float32"
    scale: float = 1.0
    value_features: int = 0
    value_channel: bool = True
    mesh_ops: MeshOps = ONE_DEVICE
    dropout: float = 0.0

    def setup(self) -> None:
        self.table = embedding(self.vocabulary, self.token_width)
        if self.value_channel:
            self.value_table = embedding(self.vocabulary, self.token_width)
        self.project = dense(self.out_width, (None, "embed"), dtype=self.dtype)
        if self.value_features:
            self.curves = ValueEncoder(self.vocabulary, self.token_width, self.value_features, self.mesh_ops)

    def __call__(
        self, token: jax.Array, value: jax.Array, quantile: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        """token int32 [B, T], value float32 [B, T] and, with value_features, its quantile -> [B, T, out_width]."""
        vector = self.mesh_ops.look_up(self.table.embedding, token)
        if self.value_channel:
            vector = vector + value[..., None] * self.mesh_ops.look_up(self.value_table.embedding, token)
        if quantile is not None and self.value_features:
            vector = vector + self.curves(token, quantile)
        if self.dropout and not deterministic:
            vector = dropped(vector, self.dropout, dropout_seed(self.make_rng("dropout")), 0)
        return self.project((self.scale * vector).astype(self.dtype))


# --------------------------------------------------------------------------------------------------- wearable windows

KINDS = ("transformer", "tcn")
# two windows whose ends lie this close to the edge of the span count as outside: float32 days are no exact grid
TOLERANCE_DAYS = 1e-3


@dataclasses.dataclass(frozen=True)
class WearableConfig:
    """Sizes and options of the wearable encoder.

    Attributes:
      width: of the local encoder; out_width: p, the backbone's.
      n_layers, n_heads: of the local encoder. patch_steps: steps per patch.
      kind: "transformer", or "tcn": residual blocks of dilated convolutions.
      span_days: patches see those of the windows that end within so many days before their own window does: 1 for a
        day in all; 0 for their own window only. Each layer reaches a span further.
      window_parts: equal parts of the slots that are left out where a batch does not need them; 1: all are encoded.
      dropout: of what each sublayer adds, in training.
      kernel, n_components, remat, unroll, attention: as in transformer.TransformerConfig.
    """

    width: int
    out_width: int
    n_layers: int
    n_heads: int
    patch_steps: int
    kind: str = "transformer"
    window_parts: int = 1
    span_days: float = 0.0
    dropout: float = 0.0
    kernel: str = "mixture"
    n_components: int = 4
    remat: str = "none"
    unroll: int = 1
    attention: str | None = None
    dtype: str = "float32"


def used_slots(window_position_BxW: jax.Array) -> jax.Array:
    """How many slots the fullest row of the batch uses: int32 scalar; windows take a row's first slots."""
    stop_W = jnp.arange(1, window_position_BxW.shape[1] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(window_position_BxW >= 0, stop_W[None], 0), initial=0)


def first_windows(batch: Mapping[str, jax.Array], span_days: float) -> jax.Array:
    """The first window that each window sees: of its own context, ending less than span_days before its own end.

    Args:
      batch: time, segment, window_position (see joint/batch.py), windows in time order inside a context.

    Returns:
      int32 [B, W], non-decreasing along W; a span of 0 gives the windows themselves.
    """
    position = batch["window_position"]
    at = jnp.maximum(position, 0)
    # padding comes last, as a context of its own
    segment = jnp.where(position >= 0, jnp.take_along_axis(batch["segment"], at, 1), jnp.iinfo(jnp.int32).max)
    time = jnp.where(position >= 0, jnp.take_along_axis(batch["time"], at, 1), 0.0)
    own, other = (lambda x: x[:, :, None]), (lambda x: x[:, None])
    same = own(segment) == other(segment)
    unseen = (other(segment) < own(segment)) | (same & (other(time) <= own(time) - span_days + TOLERANCE_DAYS))
    before = jnp.arange(position.shape[1])
    return jnp.sum(unseen & (before[None, None] < before[None, :, None]), axis=-1, dtype=jnp.int32)


def dropped_update(update_BxWxPxD: jax.Array, rate: float, seed: jax.Array | None, stream: Any) -> jax.Array:
    """An update of patches without some entries; as it is where there is no seed.

    What is dropped is a function of the slot, not of how many slots are encoded.
    """
    if seed is None or not rate:
        return update_BxWxPxD
    shape = update_BxWxPxD.shape
    return dropped(update_BxWxPxD.reshape(shape[0], -1, shape[-1]), rate, seed, stream).reshape(shape)


class LocalBlock(nn.Module):
    """Pre-norm attention and feed-forward block over patches; each sees its window, and windows of the span before."""

    config: WearableConfig
    mesh_ops: MeshOps
    deterministic: bool

    @nn.compact
    def __call__(
        self, x_BxWxPxD: jax.Array, layer: jax.Array, seen: Mapping[str, jax.Array], seed: jax.Array | None
    ) -> tuple[jax.Array, None]:
        c = self.config
        n_batch, n_window, n_patch, width = x_BxWxPxD.shape
        y = nn.LayerNorm(dtype=c.dtype, name="norm_attention")(x_BxWxPxD)
        heads, axes = (c.n_heads, c.width // c.n_heads), ("embed", "heads", "depth")
        q, k, v = (
            checkpoint_name(dense(heads, axes, dtype=c.dtype, name=n)(y), "qkv") for n in ("query", "key", "value")
        )
        if c.span_days:
            kernel = TimeKernel(c.kernel, c.n_heads, c.n_components, 0.25, c.span_days, name="kernel")()
            flat = (n_batch, n_window * n_patch, *heads)
            options = {"kernel": kernel, "implementation": c.attention, "bit_causal": self.deterministic}
            y = self.mesh_ops.attend(q.reshape(flat), k.reshape(flat), v.reshape(flat), **options, **seen)
            y = y.reshape(n_batch, n_window, n_patch, *heads)
        else:
            y = nn.dot_product_attention(q, k, v)
        y = checkpoint_name(y, "attended")
        merged = dense(c.width, ("heads", "depth", "embed"), n_inputs=2, dtype=c.dtype, name="out")(y)
        merged = dropped_update(merged, c.dropout, seed, 2 * layer)
        x_BxWxPxD = self.mesh_ops.constrain(x_BxWxPxD + merged, "batch", "length", None, None)
        y = nn.LayerNorm(dtype=c.dtype, name="norm_mlp")(x_BxWxPxD)
        y = dense(4 * c.width, ("embed", "mlp"), dtype=c.dtype, name="up")(y)
        y = nn.gelu(checkpoint_name(self.mesh_ops.constrain(y, "batch", "length", None, "mlp"), "hidden"))
        update = dense(width, ("mlp", "embed"), dtype=c.dtype, name="down")(y)
        x_BxWxPxD = x_BxWxPxD + dropped_update(update, c.dropout, seed, 2 * layer + 1)
        return self.mesh_ops.constrain(x_BxWxPxD, "batch", "length", None, None), None


class ConvBlock(nn.Module):
    """Residual block of a temporal convolutional network (Bai et al. 2018), both ways inside a window.

    Before the convolutions, the mean of the patches of the windows that a window sees before it is added to its own.
    """

    width: int
    dilation: int
    mesh_ops: MeshOps
    dtype: str
    dropout: float = 0.0
    layer: int = 0

    @nn.compact
    def __call__(
        self, x_BxWxPxD: jax.Array, weight_BxWxW: jax.Array | None, seed: jax.Array | None = None
    ) -> jax.Array:
        y = nn.LayerNorm(dtype=self.dtype, name="norm_in")(x_BxWxPxD)
        if weight_BxWxW is not None:
            before = jnp.einsum("bvw,bwd->bvd", weight_BxWxW.astype(self.dtype), jnp.mean(y, axis=2))
            mixed = dense(self.width, ("embed", "mlp"), use_bias=False, dtype=self.dtype, name="before")(before)
            y = y + mixed[:, :, None]
        conv = functools.partial(nn.Conv, self.width, (3,), kernel_dilation=self.dilation, dtype=self.dtype)
        y = nn.gelu(conv(kernel_init=conv_init("embed", "mlp"), name="conv_in")(y))
        y = nn.LayerNorm(dtype=self.dtype, name="norm_out")(y)
        y = conv(kernel_init=conv_init("mlp", "embed"), name="conv_out")(nn.gelu(y))
        y = dropped_update(y, self.dropout, seed, self.layer)
        return self.mesh_ops.constrain(x_BxWxPxD + y, "batch", "length", None, None)


# fields of a batch that the encoder reads: of windows, and of tokens
PER_WINDOW = ("wear", "observed", "patch_mask", "channel_mask", "quality", "window_position")
PER_TOKEN = ("time", "segment")


def _first_slots(encoder, batch, detail_BxWxPxD, seed, *, n, deterministic):
    """h_BxWxD of the first n slots of each row, zeros behind them."""
    n_batch, n_window = batch["window_position"].shape
    if not n:
        return jnp.zeros((n_batch, n_window, encoder.config.out_width), encoder.config.dtype)
    batch = {name: x[:, :n] if name in PER_WINDOW else x for name, x in batch.items()}
    detail_BxNxPxD = None if detail_BxWxPxD is None else detail_BxWxPxD[:, :n]
    h_BxNxD = encoder._encoded(batch, detail_BxNxPxD, seed, deterministic)
    return jnp.pad(h_BxNxD, ((0, 0), (0, n_window - n), (0, 0)))


class WearableEncoder(nn.Module):
    """f_w of the paper's section 3.2: h^w(t_j), known at the window's end t_j."""

    config: WearableConfig
    mesh_ops: MeshOps = ONE_DEVICE

    @nn.compact
    def __call__(
        self, batch: Mapping[str, jax.Array], detail_BxWxPxD: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        """Encodes wear, observed, patch_mask, channel_mask (and quality, if it is there) of a batch.

        Args:
          batch: also window_position where span_days is positive or there are several parts, and time and segment
            where span_days is positive.
          detail_BxWxPxD: added to the patches' vectors: what RawEncoder has seen.
          deterministic: whether no bit may depend on windows that come later; see kernel_attention's bit_causal.

        Returns:
          h_BxWxD; hidden patches contribute a learned vector and nothing of their signal; hidden channels look like
          channels that were not measured. What slots without a window hold is not to be read.

        Raises:
          ValueError: patches do not divide the window; an unknown kind.
        """
        c = self.config
        if c.kind not in KINDS:
            raise ValueError(f"wear_encoder is {c.kind!r}; it can be {', '.join(KINDS)}")
        drops = c.dropout > 0 and not deterministic
        seed = dropout_seed(self.make_rng("dropout")) if drops else None  # one for all layers and numbers of slots
        if c.window_parts == 1 or self.is_initializing():
            return self._encoded(batch, detail_BxWxPxD, seed, deterministic)
        batch = {name: batch[name] for name in (*PER_WINDOW, *PER_TOKEN) if name in batch}
        sizes = slot_sizes(batch["window_position"].shape[1], c.window_parts)
        branches = [functools.partial(_first_slots, n=n, deterministic=deterministic) for n in sizes]
        size = jnp.searchsorted(jnp.array(sizes), used_slots(batch["window_position"]))
        return nn.switch(size, branches, self, batch, detail_BxWxPxD, seed)

    def _encoded(self, batch, detail_BxWxPxD, seed, deterministic):
        """h_BxWxD of all slots of a batch."""
        c = self.config
        x_BxWxPxD = self._patches(batch, detail_BxWxPxD)
        first_BxW = first_windows(batch, c.span_days) if c.span_days else None
        if c.kind == "tcn":
            x_BxWxPxD = self._convolutions(x_BxWxPxD, first_BxW, seed)
        else:
            x_BxWxPxD = self._attention(x_BxWxPxD, first_BxW, batch, seed, deterministic)
        # cheap to do again, and its intermediate arrays are as large as the patches'
        pool = WearableEncoder._pooled if c.remat == "none" else nn.remat(WearableEncoder._pooled)
        return dense(c.out_width, ("mlp", "embed"), dtype=c.dtype, name="out")(pool(self, x_BxWxPxD))

    def _pooled(self, x_BxWxPxD):
        """A weighted and a plain mean over a window's patches: [B, W, 2 D]."""
        x_BxWxPxD = nn.LayerNorm(dtype=self.config.dtype, name="norm_out")(x_BxWxPxD)
        score = dense(1, ("embed", None), dtype=jnp.float32, name="pool")(x_BxWxPxD)
        score = nn.softmax(score, axis=2).astype(self.config.dtype)
        return jnp.concatenate([jnp.sum(score * x_BxWxPxD, axis=2), jnp.mean(x_BxWxPxD, axis=2)], axis=-1)

    def _patches(self, batch, detail_BxWxPxD):
        """Channels normalised, scaled and projected; with what is missing and of what quality as inputs."""
        c, wear_BxWxLxC, mask_BxWxP = self.config, batch["wear"], batch["patch_mask"]
        n_batch, n_window, n_step, n_channel = wear_BxWxLxC.shape
        n_patch = mask_BxWxP.shape[-1]
        if n_patch * c.patch_steps != n_step:
            raise ValueError(f"patches of {c.patch_steps} steps do not divide a window of {n_step} steps")
        hidden = jnp.repeat(mask_BxWxP, c.patch_steps, axis=-1)[..., None]
        shown_BxWx1xC = ~batch["channel_mask"][:, :, None]
        seen = batch["observed"] & ~hidden & shown_BxWx1xC
        # the coverage mask is an input (paper, appendix A.2), so that absence can be told from a value of zero
        signal = jnp.concatenate([jnp.where(seen, wear_BxWxLxC, 0.0), seen.astype(jnp.float32)], axis=-1)
        scale_C = self.param("channel_scale", nn.initializers.ones, (2 * n_channel,))
        shape = (n_batch, n_window, n_patch, c.patch_steps)
        patch = (signal * scale_C[None, None, None]).reshape(*shape[:3], c.patch_steps * 2 * n_channel)
        known_BxWxPxC = jnp.mean(seen.astype(jnp.float32).reshape(*shape, n_channel), axis=3)
        quality = jnp.where(shown_BxWx1xC, batch["quality"], 0.0) if "quality" in batch else known_BxWxPxC
        patch = jnp.concatenate([patch, quality], axis=-1).astype(c.dtype)
        x_BxWxPxD = dense(c.width, (None, "embed"), dtype=c.dtype, name="channel_projection")(patch)
        if detail_BxWxPxD is not None:
            x_BxWxPxD = x_BxWxPxD + detail_BxWxPxD
        normal = nn.initializers.normal(0.02)
        mask_D = self.param("mask_vector", normal, (c.width,)).astype(c.dtype)
        position_PxD = self.param("position", normal, (n_patch, c.width)).astype(c.dtype)
        x_BxWxPxD = jnp.where(mask_BxWxP[..., None], mask_D[None, None, None], x_BxWxPxD) + position_PxD[None, None]
        return self.mesh_ops.constrain(x_BxWxPxD, "batch", "length", None, None)

    def _attention(self, x_BxWxPxD, first_BxW, batch, seed, deterministic):
        c, seen = self.config, None
        if c.span_days:
            n_patch = x_BxWxPxD.shape[2]
            # padding sees nothing: there may be more of it than of windows
            is_window_BxW = batch["window_position"] >= 0
            last = jnp.where(is_window_BxW, jnp.arange(1, first_BxW.shape[1] + 1)[None], first_BxW)
            seen = {"kv_range_BxTx2": jnp.repeat(n_patch * jnp.stack([first_BxW, last], -1), n_patch, axis=1)}
            position = jnp.maximum(batch["window_position"], 0)
            time = jnp.repeat(jnp.take_along_axis(batch["time"], position, axis=1), n_patch, axis=1)
            seen |= {"q_time_BxT": time, "k_time_BxS": time}
        scan = nn.scan(
            rematerialised(LocalBlock, c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.n_layers,
            in_axes=(0, nn.broadcast, nn.broadcast),
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: LAYERS},
        )
        layers = jnp.arange(c.n_layers, dtype=jnp.uint32)
        return scan(c, self.mesh_ops, deterministic, name="blocks")(x_BxWxPxD, layers, seen, seed)[0]

    def _convolutions(self, x_BxWxPxD, first_BxW, seed):
        c, weight_BxWxW = self.config, None
        if c.span_days:
            window = jnp.arange(first_BxW.shape[1])
            before = (window[None, None] >= first_BxW[..., None]) & (window[None, None] < window[None, :, None])
            weight_BxWxW = before / jnp.maximum(jnp.sum(before, axis=-1, keepdims=True), 1)
        for i in range(c.n_layers):
            block = rematerialised(ConvBlock, c.remat)
            options = (c.width, 2 ** (i % 4), self.mesh_ops, c.dtype, c.dropout, i)
            x_BxWxPxD = block(*options, name=f"block_{i}")(x_BxWxPxD, weight_BxWxW, seed)
        return x_BxWxPxD
