"""Wearable windows to vectors: patches seen both ways inside a window, and backwards across windows."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from ehrwear_jax.models.layers.transformer import TimeKernel, anywhere, rematerialised
from ehrwear_jax.ops.kernel_attention import kernel_attention

KINDS = ("transformer", "tcn")
# two windows whose ends lie this close to the edge of the span count as outside: float32 days are no exact grid
TOLERANCE_DAYS = 1e-3


def first_windows(batch, span_days):
    """The first window that each window sees: of its own context, ending less than span_days before its own end.

    Args:
      batch: time, segment, window_position (see batch.FIELDS), windows in time order inside a context.

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


class LocalBlock(nn.Module):
    """Pre-norm attention and feed-forward block over patches; each sees its window, and windows of the span before it.

    Attributes:
      attention, attend, place, kernel, n_components: as in backbone.Block, for windows that see others.
      span_days: how far back; 0: each window by itself.
    """

    width: int
    n_heads: int
    span_days: float
    kernel: str
    n_components: int
    attention: str | None
    attend: Callable
    place: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxWxPxD, seen):
        n_batch, n_window, n_patch, width = x_BxWxPxD.shape
        y = nn.LayerNorm(dtype=self.dtype, name="norm_attention")(x_BxWxPxD)
        heads = (self.n_heads, self.width // self.n_heads)
        q, k, v = (nn.DenseGeneral(heads, dtype=self.dtype, name=n)(y) for n in ("query", "key", "value"))
        if self.span_days:
            kernel = TimeKernel(self.kernel, self.n_heads, self.n_components, 0.25, self.span_days, name="kernel")()
            flat = (n_batch, n_window * n_patch, *heads)
            options = {"kernel": kernel, "implementation": self.attention}
            y = self.attend(q.reshape(flat), k.reshape(flat), v.reshape(flat), **options, **seen)
            y = y.reshape(n_batch, n_window, n_patch, *heads)
        else:
            y = nn.dot_product_attention(q, k, v)
        merged = nn.DenseGeneral(self.width, axis=(-2, -1), dtype=self.dtype, name="out")(y)
        x_BxWxPxD = self.place(x_BxWxPxD + merged, "batch", "length", None, None)
        y = nn.LayerNorm(dtype=self.dtype, name="norm_mlp")(x_BxWxPxD)
        y = nn.Dense(4 * self.width, dtype=self.dtype, name="up")(y)
        y = nn.gelu(self.place(y, "batch", "length", None, "mlp"))
        x_BxWxPxD = x_BxWxPxD + nn.Dense(width, dtype=self.dtype, name="down")(y)
        return self.place(x_BxWxPxD, "batch", "length", None, None), None


class ConvBlock(nn.Module):
    """Residual block of a temporal convolutional network (Bai et al. 2018), both ways inside a window.

    Before the convolutions, the mean of the patches of the windows that a window sees before it is added to its own.
    """

    width: int
    dilation: int
    across: bool
    place: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxWxPxD, weight_BxWxW):
        y = nn.LayerNorm(dtype=self.dtype, name="norm_in")(x_BxWxPxD)
        if self.across:
            before = jnp.einsum("bvw,bwd->bvd", weight_BxWxW.astype(self.dtype), jnp.mean(y, axis=2))
            y = y + nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="before")(before)[:, :, None]
        options = {"kernel_size": (3,), "kernel_dilation": self.dilation, "dtype": self.dtype}
        y = nn.gelu(nn.Conv(self.width, **options, name="conv_in")(y))
        y = nn.LayerNorm(dtype=self.dtype, name="norm_out")(y)
        y = nn.Conv(self.width, **options, name="conv_out")(nn.gelu(y))
        return self.place(x_BxWxPxD + y, "batch", "length", None, None)


class WearableEncoder(nn.Module):
    """f_w of the paper's section 3.2: h^w(t_j), known at the window's end t_j.

    Attributes:
      width: of the local encoder; out_width: p, the backbone's.
      n_layers, n_heads: of the local encoder. patch_steps: steps per patch.
      kind: "transformer", or "tcn": residual blocks of dilated convolutions.
      span_days: patches see those of the windows that end within so many days before their own window does: 1 for a
        day in all; 0 for their own window only. Each layer reaches a span further.
      kernel, n_components, remat, attention, attend, place: as in backbone.Backbone.
    """

    width: int
    out_width: int
    n_layers: int
    n_heads: int
    patch_steps: int
    kind: str = "transformer"
    span_days: float = 0.0
    kernel: str = "mixture"
    n_components: int = 4
    remat: str = "none"
    attention: str | None = None
    attend: Callable = kernel_attention
    place: Callable = anywhere
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, batch, detail_BxWxPxD=None):
        """Encodes wear, observed, patch_mask, channel_mask (and quality, if it is there) of a batch.

        Args:
          batch: also time, segment, window_position where span_days is positive.
          detail_BxWxPxD: added to the patches' vectors: what RawEncoder has seen.

        Returns:
          h_BxWxD; hidden patches contribute a learned vector and nothing of their signal; hidden channels look like
          channels that were not measured.

        Raises:
          ValueError: patches do not divide the window; an unknown kind.
        """
        if self.kind not in KINDS:
            raise ValueError(f"config.model.wear_encoder is {self.kind!r}; it can be {', '.join(KINDS)}")
        x_BxWxPxD = self._patches(batch, detail_BxWxPxD)
        n_batch, n_window, n_patch, _ = x_BxWxPxD.shape
        first_BxW = first_windows(batch, self.span_days) if self.span_days else None
        if self.kind == "tcn":
            x_BxWxPxD = self._convolutions(x_BxWxPxD, first_BxW)
        else:
            x_BxWxPxD = self._attention(x_BxWxPxD, first_BxW, batch)
        x_BxWxPxD = nn.LayerNorm(dtype=self.dtype, name="norm_out")(x_BxWxPxD)
        score = nn.softmax(nn.Dense(1, dtype=jnp.float32, name="pool")(x_BxWxPxD), axis=2).astype(self.dtype)
        pooled = jnp.concatenate([jnp.sum(score * x_BxWxPxD, axis=2), jnp.mean(x_BxWxPxD, axis=2)], axis=-1)
        return nn.Dense(self.out_width, dtype=self.dtype, name="out")(pooled)

    def _patches(self, batch, detail_BxWxPxD):
        """Channels normalised, scaled and projected; with what is missing and of what quality as inputs."""
        wear_BxWxLxC, mask_BxWxP = batch["wear"], batch["patch_mask"]
        n_batch, n_window, n_step, n_channel = wear_BxWxLxC.shape
        n_patch = mask_BxWxP.shape[-1]
        if n_patch * self.patch_steps != n_step:
            raise ValueError(f"patches of {self.patch_steps} steps do not divide a window of {n_step} steps")
        hidden = jnp.repeat(mask_BxWxP, self.patch_steps, axis=-1)[..., None]
        shown_BxWx1xC = ~batch["channel_mask"][:, :, None]
        seen = batch["observed"] & ~hidden & shown_BxWx1xC
        # the coverage mask is an input (paper, appendix A.2), so that absence can be told from a value of zero
        signal = jnp.concatenate([jnp.where(seen, wear_BxWxLxC, 0.0), seen.astype(jnp.float32)], axis=-1)
        scale_C = self.param("channel_scale", nn.initializers.ones, (2 * n_channel,))
        shape = (n_batch, n_window, n_patch, self.patch_steps)
        patch = (signal * scale_C[None, None, None]).reshape(*shape[:3], self.patch_steps * 2 * n_channel)
        known_BxWxPxC = jnp.mean(seen.astype(jnp.float32).reshape(*shape, n_channel), axis=3)
        quality = jnp.where(shown_BxWx1xC, batch["quality"], 0.0) if "quality" in batch else known_BxWxPxC
        patch = jnp.concatenate([patch, quality], axis=-1).astype(self.dtype)
        x_BxWxPxD = nn.Dense(self.width, dtype=self.dtype, name="channel_projection")(patch)
        if detail_BxWxPxD is not None:
            x_BxWxPxD = x_BxWxPxD + detail_BxWxPxD
        mask_D = self.param("mask_vector", nn.initializers.normal(0.02), (self.width,)).astype(self.dtype)
        position_PxD = self.param("position", nn.initializers.normal(0.02), (n_patch, self.width)).astype(self.dtype)
        x_BxWxPxD = jnp.where(mask_BxWxP[..., None], mask_D[None, None, None], x_BxWxPxD) + position_PxD[None, None]
        return self.place(x_BxWxPxD, "batch", "length", None, None)

    def _attention(self, x_BxWxPxD, first_BxW, batch):
        seen = None
        if self.span_days:
            n_patch = x_BxWxPxD.shape[2]
            last = jnp.broadcast_to(jnp.arange(1, first_BxW.shape[1] + 1)[None], first_BxW.shape)
            seen = {"kv_range_BxTx2": jnp.repeat(n_patch * jnp.stack([first_BxW, last], -1), n_patch, axis=1)}
            position = jnp.maximum(batch["window_position"], 0)
            time = jnp.repeat(jnp.take_along_axis(batch["time"], position, axis=1), n_patch, axis=1)
            seen |= {"q_time_BxT": time, "k_time_BxS": time}
        scan = nn.scan(
            rematerialised(LocalBlock, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.n_layers,
            in_axes=nn.broadcast,
        )
        sizes = (self.width, self.n_heads, self.span_days, self.kernel, self.n_components, self.attention)
        return scan(*sizes, self.attend, self.place, self.dtype, name="blocks")(x_BxWxPxD, seen)[0]

    def _convolutions(self, x_BxWxPxD, first_BxW):
        weight_BxWxW = None
        if self.span_days:
            window = jnp.arange(first_BxW.shape[1])
            before = (window[None, None] >= first_BxW[..., None]) & (window[None, None] < window[None, :, None])
            weight_BxWxW = before / jnp.maximum(jnp.sum(before, axis=-1, keepdims=True), 1)
        for i in range(self.n_layers):
            block = rematerialised(ConvBlock, self.remat)
            options = (self.width, 2 ** (i % 4), self.span_days > 0, self.place, self.dtype)
            x_BxWxPxD = block(*options, name=f"block_{i}")(x_BxWxPxD, weight_BxWxW)
        return x_BxWxPxD
