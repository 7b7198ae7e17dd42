"""Predicts wearable signals: hidden steps, the windows ahead, and how the signal was of late."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.data.formats.times import DAY_US
from ehrwear_jax.models.family import Batch, Field
from ehrwear_jax.models.joint.layout import Contexts
from ehrwear_jax.models.joint.terms import Arrays, Latents, Loss, Term, take
from ehrwear_jax.models.layers.dense import dense
from ehrwear_jax.models.objective import masked_mean, n_true


class SignalDecoder(nn.Module):
    """w_hat(z, h): the whole window that ends h windows after the latent's time; h = 0 is the latent's own window."""

    steps: int
    channels: int
    n_future: int
    width: int

    @nn.compact
    def __call__(self, z: jax.Array, horizon: int) -> jax.Array:
        """z [..., D], horizon int -> [..., L, C]; one trunk, a learned vector per horizon."""
        horizon_HxD = self.param("horizon", nn.initializers.normal(0.02), (self.n_future + 1, self.width))
        trunk = dense(self.width, ("embed", "mlp"), name="trunk")(z)
        hidden = nn.gelu(trunk + horizon_HxD[horizon].reshape((1,) * (z.ndim - 1) + (-1,)))
        out = dense(self.steps * self.channels, ("mlp", "embed"), name="out")(hidden)
        return out.reshape(*z.shape[:-1], self.steps, self.channels)


class WearMasked(Term):
    """L_wear^rec (paper, section 3.3): squared error on the hidden, measured steps of the window, from its own z."""

    name = "wear_masked"
    needs = ("wear",)
    hides_signal = True
    uses = ("signal",)

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        return network.signal_decoder(take(z.token_BxTxD, batch["window_position"]), 0)

    def normaliser(self, batch: Arrays) -> jax.Array:
        return n_true(hidden_steps(batch))

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        mask = hidden_steps(batch)
        return masked_mean(jnp.square(out - batch["wear"]), mask, normaliser), {"count": n_true(mask)}


def hidden_steps(batch: Arrays) -> jax.Array:
    """Measured steps that the model did not see: bool [B, W, L, C]."""
    steps = batch["wear"].shape[2]
    patch_steps = steps // batch["patch_mask"].shape[-1]
    hidden = jnp.repeat(batch["patch_mask"], patch_steps, axis=-1)
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, steps - hidden.shape[-1])))[..., None]
    hidden = hidden | batch["channel_mask"][:, :, None]
    return hidden & batch["observed"] & (batch["window_position"] >= 0)[:, :, None, None]


class FutureSignal(Term):
    """L_wear^pred (paper, section 3.3): windows 1..H ahead of window tokens and queries, weights 0.7 ** (h - 1)."""

    name = "future_signal"
    needs = ("wear",)
    uses = ("signal",)
    targets = {
        "step_window": Field("WH", np.int32, -1, "slots of the windows that follow window w"),
        "query_window": Field("QH", np.int32, -1, "slots of the windows that end next after the query"),
    }
    decay = 0.7

    def fill(self, batch: Batch, c: Contexts) -> None:
        slot_C = c.in_row(c.bound_M).tolist()
        window_us, n = c.people.window_us, self.config.context.future_windows
        for k, windows, _, (q0, q1) in c.worn:
            end = c.patients[k].window_end_M[windows]
            c.part(batch["step_window"], c.bound_M, k)[...] = _next_windows(end, end, window_us, n, slot_C[k])
            if q1 > q0:
                following = _next_windows(c.query_us_Q[q0:q1], end, window_us, n, slot_C[k])
                c.part(batch["query_window"], c.bound_Q, k)[...] = following

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        z_window, horizons = take(z.token_BxTxD, batch["window_position"]), range(1, batch["step_window"].shape[-1] + 1)
        return {
            name: jnp.stack([network.signal_decoder(x, h) for h in horizons], axis=2)
            for name, x in (("step_window", z_window), ("query_window", z.query_BxQxD))
        }

    def normaliser(self, batch: Arrays) -> jax.Array:
        """Measured steps of the windows 1..H ahead, over window tokens and queries: [H]."""
        seen_BxW = n_true(batch["observed"], axis=(2, 3))

        def count(slot_BxNxH):
            at = jnp.maximum(slot_BxNxH, 0).reshape(slot_BxNxH.shape[0], -1)
            seen = jnp.take_along_axis(seen_BxW, at, axis=1).reshape(slot_BxNxH.shape)
            return jnp.sum(jnp.where(slot_BxNxH >= 0, seen, 0), axis=(0, 1))

        return count(batch["step_window"]) + count(batch["query_window"])

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        def errors(prediction, slot_BxNxH):
            at = jnp.maximum(slot_BxNxH, 0).reshape(slot_BxNxH.shape[0], -1)[..., None, None]
            shape = (*slot_BxNxH.shape, *batch["wear"].shape[2:])
            target = jnp.take_along_axis(batch["wear"], at, axis=1).reshape(shape)
            seen = jnp.take_along_axis(batch["observed"], at, axis=1).reshape(shape)
            seen &= (slot_BxNxH >= 0)[..., None, None]
            return jnp.sum(jnp.where(seen, jnp.square(prediction - target), 0.0), (0, 1, 3, 4))

        total_H = sum(errors(out[name], batch[name]) for name in ("step_window", "query_window"))
        error_H = total_H / jnp.maximum(normaliser, 1)
        weight_H = self.decay ** jnp.arange(error_H.shape[0])
        return jnp.sum(weight_H * error_H) / jnp.sum(weight_H), {"first": error_H[0], "last": error_H[-1]}


def _next_windows(time_us, end_M, window_us, steps, w0):
    """Slots of the windows that end in (t + (h-1) window, t + h window], h = 1..steps; -1 where there is none."""
    h = np.arange(1, steps + 1)
    until = np.asarray(time_us)[:, None] + h[None] * window_us
    slot = end_M.searchsorted(until, side="right") - 1
    found = (slot >= 0) & (end_M[np.maximum(slot, 0)] > until - window_us)
    return np.where(found, w0 + slot, -1)


class WearHistory(Term):
    """Summary statistics of the signal in (t - tau', t], from z of a query: the mirror of EhrToWear."""

    name = "wear_history"
    needs = ("wear",)
    targets = {
        "query_past": Field("QF", np.float32, 0, "summary statistics of the signal in (t - tau', t]"),
        "query_past_mask": Field("QF", np.bool_, False, "whether the statistic exists"),
    }

    def fill(self, batch: Batch, c: Contexts) -> None:
        days_us = int(self.config.context.summary_days * DAY_US)
        for k, windows, (w0, w1), (q0, q1) in c.worn:
            if q1 == q0:
                continue
            end_M, query_us = c.patients[k].window_end_M[windows], c.query_us_Q[q0:q1]
            lo, hi = end_M.searchsorted(query_us - days_us, side="right"), end_M.searchsorted(query_us, side="right")
            for name, found in zip(("query_past", "query_past_mask"), average(c.shown_MxF[w0:w1], lo, hi), strict=True):
                c.part(batch[name], c.bound_Q, k)[...] = found

    def head(self) -> nn.Module:
        return dense(self.facts.summaries, ("embed", "mlp"))

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        return head(z.query_BxQxD)

    def normaliser(self, batch: Arrays) -> jax.Array:
        return n_true(batch["query_past_mask"])

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        mask = batch["query_past_mask"]
        return masked_mean(jnp.square(out - batch["query_past"]), mask, normaliser), {"count": n_true(mask)}


def average(table_MxF: np.ndarray, lo_N: np.ndarray, hi_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the rows lo to hi, leaving out NaN: (float32 [N, F], whether there was any [N, F])."""
    good = np.isfinite(table_MxF)
    zero = np.zeros((1, table_MxF.shape[1]))
    total = np.concatenate([zero, np.cumsum(np.where(good, table_MxF, 0.0), axis=0, dtype=np.float64)])
    count = np.concatenate([zero, np.cumsum(good, axis=0)])
    hi_N = np.maximum(hi_N, lo_N)
    seen = count[hi_N] - count[lo_N]
    return ((total[hi_N] - total[lo_N]) / np.maximum(seen, 1)).astype(np.float32), seen > 0


TERMS = (WearMasked, FutureSignal, WearHistory)
