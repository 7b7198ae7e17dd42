"""Computes latents and predictions of the joint model: encoders, shared backbone, and a head per loss term."""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.joint import encoders
from ehrwear_jax.models.joint.batch import MASK, MODALITY_EHR, MODALITY_WEAR, N_MODALITY, Facts
from ehrwear_jax.models.joint.code_head import CodeHead
from ehrwear_jax.models.joint.config import LIKELIHOODS, Config, NetworkConfig
from ehrwear_jax.models.joint.cross_terms import MIN_GAP_DAYS
from ehrwear_jax.models.joint.ehr_terms import CodeTerm
from ehrwear_jax.models.joint.heads import Posterior
from ehrwear_jax.models.joint.latent_sde import SdePosterior, gaps_of
from ehrwear_jax.models.joint.raw_encoder import RawEncoder
from ehrwear_jax.models.joint.terms import Latents, Term, take
from ehrwear_jax.models.joint.wear_terms import SignalDecoder
from ehrwear_jax.models.layers import time_encoding
from ehrwear_jax.models.layers.decayed_counts import DecayedCounts
from ehrwear_jax.models.layers.dense import Mlp, dense
from ehrwear_jax.models.layers.mesh_ops import ONE_DEVICE, MeshOps
from ehrwear_jax.models.layers.transformer import Backbone, TransformerConfig
from ehrwear_jax.models.layers.vocabulary_loss import TokenLoss

BACKBONE_FIELDS = ("time", "kv_range", "modality", "query_time", "query_kv_range")
STATES = ("query_value", "query_signal")  # fields that tell queries of the state of values
LONGEST_PERIOD_DAYS = 36525.0  # of the encoding of ages


def backbone_config(n: NetworkConfig) -> TransformerConfig:
    """The backbone's part of the options."""
    names = TransformerConfig.__dataclass_fields__.keys() & NetworkConfig.__dataclass_fields__.keys()
    asks_as = MODALITY_EHR if n.query == "hidden" else -1
    return TransformerConfig(
        **{name: getattr(n, name) for name in names}, n_modalities=N_MODALITY, query_modality=asks_as
    )


def wearable_config(config: Config) -> encoders.WearableConfig:
    """The wearable encoder's part of the options."""
    n = config.network
    return encoders.WearableConfig(
        width=n.wear_width,
        out_width=n.width,
        n_layers=n.wear_layers,
        n_heads=n.wear_heads,
        patch_steps=config.context.patch_steps,
        kind=n.wear_encoder,
        window_parts=config.context.window_parts,
        span_days=n.wear_span_days / n.time_unit_days,  # in the unit of the times that it is given
        dropout=n.encoder_dropout,
        kernel=n.kernel,
        n_components=n.n_components,
        remat=n.wear_remat,
        unroll=n.wear_unroll,
        attention=n.attention,
        dtype=n.dtype,
    )


class Contents(NamedTuple):
    """What tokens say without their time [B, T, D], and raw windows [B, N, wear_width] where there are any."""

    token_BxTxD: jax.Array
    raw_BxNxD: jax.Array | None = None


class JointNetwork(nn.Module):
    """Encoders, shared backbone and the heads of the terms over one batch (see joint/batch.py)."""

    config: Config
    facts: Facts
    terms: tuple[Term, ...]
    mesh_ops: MeshOps = ONE_DEVICE

    def setup(self) -> None:
        n, facts = self.config.network, self.facts
        sizes, values = (facts.vocabulary, n.token_width, n.width), (n.value_features, n.value_channel)
        self.ehr = encoders.EhrEmbedder(*sizes, n.dtype, n.embedding_scale, *values, self.mesh_ops, n.encoder_dropout)
        self.rho = dense(n.width, (None, "embed"), dtype=n.dtype)  # W_rho, q x p
        self.modality = nn.Embed(N_MODALITY, n.width, embedding_init=nn.initializers.normal(0.02))
        if facts.wear:
            self.wear = encoders.WearableEncoder(wearable_config(self.config), self.mesh_ops)
            if n.raw_width:
                self.raw = RawEncoder(n.raw_width, n.wear_width, dtype=n.dtype)
        if n.posterior != "point":
            of_sde = SdePosterior(n.width, steps=n.sde_steps)
            self.posterior = of_sde if n.posterior == "sde" else Posterior(n.width)
        if n.query == "learned":
            self.query = self.param("query", nn.initializers.normal(0.02), (n.width,))
        if facts.value_inputs:
            self.states = {name: Mlp(n.width, n.width) for name in STATES if self._has_states(name)}
        if n.stream:
            self.stream = Mlp(4 * time_encoding.N_STREAM, n.width)
        if n.count_width:
            self.counts = DecayedCounts(n.count_width, n.width, n.count_rates, dtype=n.dtype)
        self.backbone = Backbone(backbone_config(n), self.mesh_ops)
        shared = {name for term in self.terms for name in term.uses}
        if "codes" in shared:
            self.code_head = CodeHead(facts.vocabulary, n.token_width, n.dtype, n.target_chunk, self.mesh_ops)
        if "signal" in shared:
            n_future = self.config.context.future_windows
            self.signal_decoder = SignalDecoder(facts.steps, facts.channels, n_future, n.width)
        self.term_head = {term.name: head for term in self.terms if (head := term.head()) is not None}

    def encode(self, batch: dict, deterministic: bool = True) -> jax.Array:
        """Latents of the queries, float32 [B, Q, D]: z at the prediction times of examples.prediction_batches."""
        return self.latents(batch, deterministic)[1]

    def latents(self, batch: dict, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """Latents of the tokens and of the queries: (z_BxTxD, z_BxQxD) float32."""
        batch = self._timed(batch)
        z = self._encode(batch, deterministic)[:2]
        return self._sampled(z, batch, jnp.zeros)[0] if self.config.network.posterior == "sde" else z

    def __call__(self, batch: dict, deterministic: bool = True) -> dict:
        """{term: its prediction}."""
        batch = self._timed(batch)
        z_BxTxD, z_BxQxD, contents, _ = self._encode(batch, deterministic)
        return self._predictions((z_BxTxD, z_BxQxD), contents, batch, self.terms, deterministic)

    def read(self, batch: dict) -> tuple[tuple[jax.Array, jax.Array], Contents]:
        """What the heads read, at inference: (z as `latents` gives it, of an SDE what steers it; what contents say)."""
        z_BxTxD, z_BxQxD, contents, _ = self._encode(self._timed(batch), True)
        return (z_BxTxD, z_BxQxD), contents

    def predicted(self, z: tuple[jax.Array, jax.Array], contents: Contents, batch: dict, names: Iterable[str]) -> dict:
        """{term: its prediction at inference} of some terms, from what `read` returned."""
        terms = tuple(t for t in self.terms if t.name in names)
        return self._predictions(z, contents, self._timed(batch), terms, True)

    def encode_drawn(self, batch: dict) -> jax.Array:
        """As `encode` at inference, a draw from the posterior of each query; of a network that has one."""
        batch = self._timed(batch)
        return self._sampled(self._encode(batch, True)[:2], batch, self._noise)[0][1]

    def decoded(self, z: tuple[jax.Array, jax.Array], batch: dict) -> dict:
        """What likelihoods say of hidden events and of windows from a draw of their states.

        Args:
          z: of `read`.

        Returns:
          {"code": log probabilities [B, M, V]} with event_likelihood, {"mean" [B, W, L, C], "log_sd" [C]} with
          signal_likelihood.
        """
        (drawn, _), _ = self._sampled(z, self._timed(batch), self._noise)
        names, out = {t.name for t in self.terms}, {}
        if "event_likelihood" in names:
            hidden = take(drawn, batch["masked_position"])
            out["code"] = self.code_head.log_probabilities(hidden, self.ehr.table.embedding)
        if "signal_likelihood" in names:
            out["mean"] = self.signal_decoder(take(drawn, batch["window_position"]), 0)
            out["log_sd"] = self.term_head["signal_likelihood"]()
        return out

    def _predictions(self, z, contents, batch, terms, deterministic):
        states, posterior, drawn_BxTxD = z, {}, z[0]
        if self.config.network.posterior != "point":
            states, posterior = self._sampled(z, batch, jnp.zeros if deterministic else self._noise)
            drawn_BxTxD = states[0]
            if deterministic and any(t.name in LIKELIHOODS for t in self.terms):
                # of draws all the same: at the mean of q likelihoods are larger, and would be no bound
                (drawn_BxTxD, _), posterior = self._sampled(z, batch, _noise_of_places())
        latents = Latents(states[0], states[1], contents.token_BxTxD, posterior, drawn_BxTxD, contents.raw_BxNxD)
        out = {t.name: t.predict(self, self.term_head.get(t.name), latents, batch) for t in terms}
        asking = [t for t in terms if isinstance(t, CodeTerm)]
        for trains_table in sorted({t.trains_table for t in asking}):
            out |= self._token_losses([t for t in asking if t.trains_table == trains_table], out, batch, trains_table)
        return out

    def _token_losses(self, terms, out, batch, trains_table):
        """{term: {name: TokenLoss of [B, N]}}: all that the terms ask for in one call, since most places are empty."""
        asked = {(t.name, name): (out[t.name][name], *x) for t in terms for name, x in t.asked(batch).items()}
        ends = np.cumsum([mask.shape[1] for _, _, mask in asked.values()])[:-1].tolist()
        hidden, target, mask = (jnp.concatenate(x, axis=1) for x in zip(*asked.values(), strict=True))
        table = self.ehr.table.embedding
        found = self.code_head(hidden, table if trains_table else jax.lax.stop_gradient(table), target, mask)
        parts: dict = {t.name: {} for t in terms}
        for (term, name), *part in zip(asked, *(jnp.split(x, ends, axis=1) for x in found), strict=True):
            parts[term][name] = TokenLoss(*part)
        return parts

    def _timed(self, batch):
        """The batch with its kernel times in the network's unit. Ages stay in days."""
        n = self.config.network
        batch = time_encoding.in_day_bins(batch) if n.day_bins else batch
        if n.time_unit_days == 1.0:
            return batch
        return {**batch, **{name: batch[name] / n.time_unit_days for name in ("time", "query_time")}}

    def extend(self, batch: dict, known: dict) -> tuple[jax.Array, dict]:
        """Latents of queries, float32 [1, Q, D], where a context goes on; see decoding.py.

        Args:
          batch: inputs of one row as at inference, of the tokens from place `first` (int32) on and of their windows.
          known: of `known_before`, of the tokens before.

        Returns:
          (z_BxQxD, what is known then).
        """
        _, z_BxQxD, _, known = self._encode(self._timed(batch), True, known)
        return z_BxQxD, known

    def known_before(self, n_places: int) -> dict:
        """What is known of no token yet, with room for so many of one context: arrays for each layer, and for all."""
        n, f32 = self.config.network, np.float32
        shape = (n.n_layers, 1, n_places, n.n_heads, n.width // n.n_heads)
        layers = {name: np.zeros(shape, n.dtype) for name in ("key", "value")}
        layers["bias"] = np.zeros((n.n_layers, 1, n.n_heads, N_MODALITY, n_places), f32)
        found = {"layers": layers, "time": np.zeros((1, n_places), f32)}
        return found | ({"sums": np.zeros((1, n_places, n.count_rates, n.count_width), f32)} if n.count_width else {})

    def _encode(self, batch, deterministic, known=None):
        """(z_BxTxD, z_BxQxD, Contents, what is known of the tokens: see `extend`)."""
        n = self.config.network
        x = self.ehr(batch["token"], batch["value"], batch.get("quantile"), deterministic)
        raw_BxNxD = None
        if self.facts.wear and batch["wear"].shape[1]:
            h_BxWxD, raw_BxNxD = self._windows(batch, deterministic)
            slot_BxTx1 = jnp.maximum(batch["window"], 0)[..., None]
            is_wear_BxTx1 = (batch["modality"] == MODALITY_WEAR)[..., None]
            x = jnp.where(is_wear_BxTx1, jnp.take_along_axis(h_BxWxD, slot_BxTx1, axis=1), x)
        # where tests differentiate with respect to what tokens say; adds nothing otherwise
        h_BxTxD = x = self.perturb("content", x)
        first, key_time, of_context = 0, batch["time"], None
        if known is not None:
            first = batch["first"]
            key_time = jax.lax.dynamic_update_slice_in_dim(known["time"], batch["time"], first, axis=1)
            known = {**known, "time": key_time}
            of_context = {"first": first, "time": key_time, "sums": known.get("sums")}
        counts: Any = self.counts(x, batch, of_context) if n.count_width else (0.0, 0.0)
        before = jnp.broadcast_to(first + jnp.arange(-1, x.shape[1] - 1)[None], x.shape[:2])
        x = x + self._time(batch["age"]) + self.modality(batch["modality"]).astype(n.dtype)
        x = x + self._stream(batch["time"], batch["kv_range"], before, key_time) + counts[0]
        last = batch["query_kv_range"][..., 1] - 1
        y = self._query(batch) + self._time(batch["query_age"])
        y = y + self._stream(batch["query_time"], batch["query_kv_range"], last, key_time) + counts[1]
        y = y + self._states(batch) if self.facts.value_inputs else y
        x, y = (self.mesh_ops.constrain(z, "batch", "length", None) for z in (x, y))
        fields, contents = {name: batch[name] for name in BACKBONE_FIELDS}, Contents(h_BxTxD, raw_BxNxD)
        if known is None:
            z_BxTxD, z_BxQxD = self.backbone(x, y, fields, deterministic)
            return z_BxTxD, z_BxQxD, contents, None
        fields |= {"first": first, "key_time": key_time}
        z_BxTxD, z_BxQxD, layers = self.backbone(x, y, fields, deterministic, known["layers"])
        known = {**known, "layers": layers} | ({"sums": counts[2]} if n.count_width else {})
        return z_BxTxD, z_BxQxD, contents, known

    def _query(self, batch):
        """What queries are before time and context: [1 or B, 1 or Q, D]."""
        dtype = self.config.network.dtype
        if self.config.network.query == "learned":
            return self.query.astype(dtype)[None, None]
        hidden_1x1 = jnp.full((1, 1), MASK)
        modality_1x1xD = self.modality(jnp.full((1, 1), MODALITY_EHR))
        return self.ehr(hidden_1x1, jnp.zeros((1, 1))) + modality_1x1xD.astype(dtype)

    def _has_states(self, name):
        return self.facts.value_codes > 0 if name == "query_value" else self.facts.wear

    def _states(self, batch):
        """What queries are told of the state of values: [B, Q, D], zero where none is known."""
        found: Any = 0.0
        for name, encode in self.states.items():
            known, value = (batch[n].reshape(*batch[n].shape[:2], -1) for n in (f"{name}_mask", name))
            said = jnp.concatenate([known.astype(jnp.float32), jnp.where(known, value, 0.0)], axis=-1)
            found = found + jnp.where(known.any(-1, keepdims=True), encode(said), 0.0)
        return found.astype(self.config.network.dtype) if self.states else found

    def _windows(self, batch, deterministic):
        detail = raw_BxNxD = None
        if self.config.network.raw_width and "raw" in batch:
            detail, raw_BxNxD = self.raw(batch, *batch["patch_mask"].shape[1:])
        return self.wear(batch, detail, deterministic), raw_BxNxD

    def _time(self, age):
        n = self.config.network
        if n.time_encoding == "gaussian":
            cycles_F = time_encoding.gaussian_frequencies(n.time_features, n.gaussian_period_days)
        elif n.time_encoding == "log_linear":
            cycles_F = time_encoding.frequencies(n.time_features, n.shortest_period_days, LONGEST_PERIOD_DAYS)
        else:
            raise ValueError(f"time_encoding is {n.time_encoding!r}; it can be log_linear or gaussian")
        cycles_F = np.append(cycles_F, 1.0 / np.asarray(n.cycles_days, np.float64))
        return self.rho(time_encoding.encode(age, cycles_F).astype(n.dtype))

    def _stream(self, *position):
        if not self.config.network.stream:
            return 0.0
        return self.stream(time_encoding.stream_features(*position)).astype(self.config.network.dtype)

    def _noise(self, shape):
        return jax.random.normal(self.make_rng("dropout"), shape)

    def _sampled(self, z, batch, noise):
        """((states of tokens, of queries) of q(z), what LatentKl takes); noise: shape -> normal numbers, or zeros."""
        if self.config.network.posterior == "sde":
            gaps = gaps_of(batch, self.config.network.time_unit_days, MIN_GAP_DAYS)
            z_BxTxD, z_BxQxD, cost = self.posterior(z, *gaps, noise)
            return (z_BxTxD, z_BxQxD), cost
        drawn, out = [], {}
        for name, mean in zip(("token", "query"), z, strict=True):
            out[f"mean_{name}"], out[f"variance_{name}"] = mean, self.posterior.variance(mean)
            drawn.append(mean + jnp.sqrt(out[f"variance_{name}"]) * noise(mean.shape))
        out["prior_rate"], out["prior_variance"] = self.posterior.prior()
        return tuple(drawn), out


def _noise_of_places():
    """The same for each row, so that a row's value does not depend on the batch that it is in; another at each call."""
    keys = (jax.random.key(i) for i in itertools.count())
    return lambda shape: jnp.broadcast_to(jax.random.normal(next(keys), (1, *shape[1:])), shape)
