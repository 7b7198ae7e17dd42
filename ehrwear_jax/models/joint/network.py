"""The joint model: encoders, backbone, heads. Batch in; latents and predictions out."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.joint import heads
from ehrwear_jax.models.joint.batch import MASK, MODALITY_EHR, MODALITY_WEAR, SUMMARIES
from ehrwear_jax.models.joint.decayed_counts import DecayedCounts
from ehrwear_jax.models.joint.ehr_embedder import EhrEmbedder
from ehrwear_jax.models.joint.raw_encoder import RawEncoder
from ehrwear_jax.models.joint.wearable_encoder import WearableEncoder
from ehrwear_jax.models.layers import time_encoding
from ehrwear_jax.models.layers.transformer import Backbone, anywhere
from ehrwear_jax.ops.kernel_attention import kernel_attention

BACKBONE_FIELDS = ("time", "kv_range", "modality", "query_time", "query_kv_range")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model (paper, appendix A.4 for the defaults of configs/full.py).

    Attributes:
      vocabulary, steps, channels, patch_steps, future_windows, future_codes, horizons, recalled_tokens,
        further_summaries, pairs: from data, see batch.BatchShape.
      later_rates: [future_codes x horizons] expected share of positives, where the head of later codes starts.
      time_features: q of rho. shortest_period_days: of rho; data by the day have no use for less than months, and
        fine phases of an age tell people apart. time_encoding: log_linear or gaussian (gaussian_period_days, see
        time_encoding). day_bins: all times in bins of one day. kernel: mixture, rational_quadratic or none.
        n_components: R; 1 is a single exponential.
      wear_encoder, wear_span_days: kind and span of WearableEncoder. raw_width: of the encoder of raw windows, for
        batches that hold them; 0: none.
      pool: Agg of the wearable-to-EHR term, see heads.WearablePool.
      align_width, temperature, learn_temperature: see heads.Alignment.
      posterior: "point" or, for the ELBO variant, "normal": z is drawn while training, its mean is read otherwise.
      detach_cross_modal: the cross-modal terms train their heads and nothing before them: what the terms cost if they
        do not shape z.
      count_width: features that decayed counts sum over the record; 0 leaves them out.
      qk_norm, remat, unroll, adapter_width: see backbone.Backbone.
    """

    vocabulary: int
    steps: int
    channels: int
    patch_steps: int
    future_windows: int
    future_codes: int
    horizons: int
    later_rates: tuple
    recalled_tokens: int
    further_summaries: int = 0
    pairs: int = 0
    width: int = 1024
    n_layers: int = 24
    n_heads: int = 16
    mlp_width: int = 4096
    token_width: int = 512
    time_features: int = 128
    shortest_period_days: float = 0.25
    time_encoding: str = "log_linear"
    gaussian_period_days: float = 365.25
    day_bins: bool = False
    wear_encoder: str = "transformer"
    wear_span_days: float = 0.0
    raw_width: int = 0
    wear_width: int = 512
    wear_layers: int = 6
    wear_heads: int = 8
    kernel: str = "mixture"
    n_components: int = 4
    source_width: int = 16
    count_width: int = 64
    pool: str = "attention"
    align_width: int = 128
    temperature: float = 0.1
    learn_temperature: bool = True
    posterior: str = "point"
    detach_cross_modal: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    qk_norm: bool = False
    attention: str | None = None
    remat: str = "none"
    unroll: int = 1
    dtype: str = "float32"
    adapter_width: int = 0


class MultimodalModel(nn.Module):
    """Encoders, shared backbone and heads over one batch (see batch.FIELDS).

    Attributes:
      attend: the kernel attention op, or what spreads it over the devices of a mesh (sharding.attention).
      place: where activations lie on a mesh (sharding.placement).
    """

    config: ModelConfig
    attend: Callable = kernel_attention
    place: Callable = anywhere

    def setup(self):
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.ehr = EhrEmbedder(c.vocabulary, c.token_width, c.width, dtype)
        self.rho = nn.Dense(c.width, dtype=dtype)  # W_rho, q x p
        self.modality = nn.Embed(4, c.width, embedding_init=nn.initializers.normal(0.02))
        if c.channels:
            self.wear = WearableEncoder(
                c.wear_width,
                c.width,
                c.wear_layers,
                c.wear_heads,
                c.patch_steps,
                c.wear_encoder,
                c.wear_span_days,
                c.kernel,
                c.n_components,
                c.remat,
                c.attention,
                self.attend,
                self.place,
                dtype,
            )
            if c.raw_width:
                self.raw = RawEncoder(c.raw_width, c.wear_width, dtype=dtype)
            self.decoder = heads.SignalDecoder(c.steps, c.channels, c.future_windows, c.width)
            n_summaries = len(SUMMARIES) * c.channels + c.further_summaries
            self.past = nn.Dense(n_summaries)
            self.summary = heads.Mlp(c.width, n_summaries)
            self.pool = heads.WearablePool(c.pool)
            self.pool_norm = nn.LayerNorm()
            self.pool_mlp = heads.Mlp(c.width, c.width)
        if c.pairs:
            self.align = heads.Alignment(c.align_width, c.temperature, c.learn_temperature)
        if c.posterior == "normal":
            self.posterior = heads.Posterior(c.width)
        elif c.posterior != "point":
            raise ValueError(f"unknown posterior {c.posterior!r}: point or normal")
        self.query = self.param("query", nn.initializers.normal(0.02), (c.width,))
        self.next_mlp = heads.Mlp(c.width, c.width)
        rate = np.clip(np.asarray(c.later_rates, np.float64).reshape(c.future_codes, c.horizons), 1e-5, 1 - 1e-5)
        start = np.log(rate) - np.log1p(-rate)
        self.later = nn.Dense(start.size, bias_init=lambda *_: jnp.asarray(start.ravel(), jnp.float32))
        # A code's binary entropy: dividing by it lets rare codes count as much as frequent ones, down to a rate of 1%;
        # below that, single events would decide the gradient.
        floored = np.clip(rate, 0.01, 0.99)
        self.later_entropy = -(floored * np.log(floored) + (1 - floored) * np.log1p(-floored))
        self.recall = nn.Dense(c.recalled_tokens * (c.horizons + 1))
        self.stream = heads.Mlp(4 * time_encoding.N_STREAM, c.width)
        if c.count_width:
            self.counts = DecayedCounts(c.count_width, c.width, dtype=dtype)
        self.backbone = Backbone(
            c.n_layers,
            c.width,
            c.n_heads,
            c.mlp_width,
            c.kernel,
            c.n_components,
            c.source_width,
            c.dropout,
            c.attention_dropout,
            c.stochastic_depth,
            c.attention,
            self.attend,
            self.place,
            c.qk_norm,
            c.remat,
            c.unroll,
            dtype,
            c.adapter_width,
        )

    def encode(self, batch, deterministic=True):
        """Latents of the tokens and of the queries.

        Returns:
          (z_BxTxD, z_BxQxD) float32.
        """
        return self._encode(self._binned(batch), deterministic)[:2]

    def _binned(self, batch):
        return time_encoding.in_day_bins(batch) if self.config.day_bins else batch

    def _encode(self, batch, deterministic):
        """(z_BxTxD, z_BxQxD, h_BxTxD: what the tokens say, without their time)."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        x = self.ehr(batch["token"], batch["value"])
        if c.channels and batch["wear"].shape[1]:
            h_BxWxD = self._windows(batch)
            slot_BxTx1 = jnp.maximum(batch["window"], 0)[..., None]
            is_wear_BxTx1 = (batch["modality"] == MODALITY_WEAR)[..., None]
            x = jnp.where(is_wear_BxTx1, jnp.take_along_axis(h_BxWxD, slot_BxTx1, axis=1), x)
        # where tests differentiate with respect to what tokens say; adds nothing otherwise
        h_BxTxD = x = self.perturb("content", x)
        counts = self.counts(x, batch) if c.count_width else (0.0, 0.0)
        before = jnp.broadcast_to(jnp.arange(-1, x.shape[1] - 1)[None], x.shape[:2])
        x = x + self._time(batch["age"]) + self.modality(batch["modality"]).astype(dtype)
        x = x + self._stream(batch["time"], batch["kv_range"], before, batch["time"]) + counts[0]
        last = batch["query_kv_range"][..., 1] - 1
        y = self.query.astype(dtype)[None, None] + self._time(batch["query_age"])
        y = y + self._stream(batch["query_time"], batch["query_kv_range"], last, batch["time"]) + counts[1]
        x, y = (self.place(z, "batch", "length", None) for z in (x, y))
        return *self.backbone(x, y, {n: batch[n] for n in BACKBONE_FIELDS}, deterministic), h_BxTxD

    def _windows(self, batch):
        detail = None
        if self.config.raw_width and "raw" in batch:
            detail = self.raw(batch, *batch["patch_mask"].shape[1:])
        return self.wear(batch, detail)

    def _time(self, age):
        c = self.config
        if c.time_encoding == "gaussian":
            cycles_F = time_encoding.gaussian_frequencies(c.time_features, c.gaussian_period_days)
        elif c.time_encoding == "log_linear":
            cycles_F = time_encoding.frequencies(c.time_features, c.shortest_period_days, 36525.0)
        else:
            raise ValueError(f"config.model.time_encoding is {c.time_encoding!r}; it can be log_linear or gaussian")
        return self.rho(time_encoding.encode(age, cycles_F).astype(c.dtype))

    def _stream(self, *position):
        return self.stream(time_encoding.stream_features(*position)).astype(self.config.dtype)

    def __call__(self, batch, deterministic=True):
        """All predictions that the losses need.

        Returns:
          dict: z_token, z_query; masked_logits_BxMxV; next_logits_{event,query}; later_logits_BxQxKxA,
          later_entropy_KxA, recall_logits_BxQxRx(A+1); with wearables also rebuilt_BxWxLxC, ahead_window_BxWxHxLxC,
          ahead_query_BxQxHxLxC, summary_{event,query}, past_summary, pooled_logits_*; what losses_latent.py needs.
        """
        c, batch = self.config, self._binned(batch)
        z_BxTxD, z_BxQxD, h_BxTxD = self._encode(batch, deterministic)
        out = {"z_token": z_BxTxD, "z_query": z_BxQxD, "content": h_BxTxD}
        if c.posterior == "normal":
            z_BxTxD, z_BxQxD = self._draw(out, deterministic)
        cross = jax.lax.stop_gradient if c.detach_cross_modal else lambda x: x
        z_masked, z_event = _take(z_BxTxD, batch["masked_position"]), _take(z_BxTxD, batch["event_position"])
        out["masked_logits"] = self.ehr.logits(z_masked)
        for name, z in (("event", z_event), ("query", z_BxQxD)):
            out[f"next_logits_{name}"] = self.ehr.logits(z + self.next_mlp(z))
        later = self.later(z_BxQxD)
        out["later_logits"] = later.reshape(*z_BxQxD.shape[:2], c.future_codes, c.horizons)
        out["later_entropy"] = jnp.asarray(self.later_entropy, jnp.float32)
        out["recall_logits"] = self.recall(z_BxQxD).reshape(*z_BxQxD.shape[:2], c.recalled_tokens, c.horizons + 1)
        if c.channels and batch["wear"].shape[1]:
            out["past_summary"] = self.past(z_BxQxD)
            z_window = _take(z_BxTxD, batch["window_position"])
            out["rebuilt"] = self.decoder(z_window, 0)
            steps = range(1, c.future_windows + 1)
            out["ahead_window"] = jnp.stack([self.decoder(z_window, h) for h in steps], axis=2)
            out["ahead_query"] = jnp.stack([self.decoder(z_BxQxD, h) for h in steps], axis=2)
            is_wear = batch["modality"] == MODALITY_WEAR
            event_time = _take(batch["time"][..., None], batch["event_position"])[..., 0]
            for name, z, time in (("event", z_event, event_time), ("query", z_BxQxD, batch["query_time"])):
                out[f"summary_{name}"] = self.summary(cross(z))
                pooled, _ = self.pool(cross(z_BxTxD), is_wear, batch[f"{name}_pool"], batch["time"], time)
                hidden = self.pool_mlp(self.pool_norm(pooled))
                out[f"pooled_logits_{name}"] = self.ehr.logits(hidden, train_table=not c.detach_cross_modal)
        if c.pairs:
            # contents before time and context: through attention one could copy the other, and the encoding of an age
            # tells patients apart without a look at what the two modalities say
            visible = (batch["modality"] == MODALITY_EHR) & (batch["token"] != MASK)
            pair = self.align(cross(h_BxTxD), visible, batch["pair_position"], batch["pair_near"])
            out |= dict(zip(("pair_ehr", "pair_wear", "temperature"), pair, strict=True))
        return out

    def _draw(self, out, deterministic):
        """States of tokens and queries drawn from q(z) (their means if deterministic); puts q and p into `out`."""
        drawn = []
        for name in ("token", "query"):
            mean = out[f"mean_{name}"] = out[f"z_{name}"]
            variance = out[f"variance_{name}"] = self.posterior.variance(mean)
            noise = 0.0 if deterministic else jax.random.normal(self.make_rng("dropout"), mean.shape)
            drawn.append(mean + jnp.sqrt(variance) * noise)
        out["prior_rate"], out["prior_variance"] = self.posterior.prior()
        return drawn


def _take(z_BxTxD, position_BxN):
    return jnp.take_along_axis(z_BxTxD, jnp.maximum(position_BxN, 0)[..., None], axis=1)
