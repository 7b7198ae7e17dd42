"""Scores what a context shows by its likelihood given drawn states: the data's part of the ELBO (paper, section 3.4).

The bound of a batch, a sum over its contexts, is

  sum_k log p(e_k | z(t_k)) + sum_l log p(w_l | z(t_l)) - KL(q || p),    z drawn from q,

with every EHR token, hidden or not, scored at its own state, every measured step of a window, hidden or not, at the
window's state, and the divergence in closed form (cross_terms.LatentKl). It bounds log p(codes, signal | their times)
from below whatever q is, as the states are all that likelihoods read. All parts are divided by the number of observed
steps, which is one constant of a batch: their weights are those of the bound, and a value is in nats per observed step.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.joint.batch import MODALITY_EHR, N_SPECIAL
from ehrwear_jax.models.joint.config import Config
from ehrwear_jax.models.joint.ehr_terms import CodeTerm, EhrMasked
from ehrwear_jax.models.joint.terms import Arrays, Latents, Loss, Term, take
from ehrwear_jax.models.layers.vocabulary_loss import TokenLoss
from ehrwear_jax.models.objective import n_true

LOG_SD = (-4.0, 2.0)  # a signal that stands still must not make a density without bound
_HALF_LOG_2PI = float(0.5 * np.log(2 * np.pi))


def event_targets(batch: Arrays) -> tuple[jax.Array, jax.Array]:
    """(what each token says or hides: vocabulary id, int32 [B, T]; whether it is an EHR token in a context: [B, T])."""
    token_BxT, position_BxM = batch["token"], batch["masked_position"]
    there = jnp.where(position_BxM >= 0, position_BxM, token_BxT.shape[1])
    put = jax.vmap(lambda row, at, target: row.at[at].set(target, mode="drop"))
    target_BxT = put(token_BxT, there, batch["masked_target"])
    return target_BxT, (batch["modality"] == MODALITY_EHR) & (target_BxT >= N_SPECIAL) & (batch["segment"] > 0)


def signal_targets(batch: Arrays) -> jax.Array:
    """Which steps of windows were measured: bool [B, W, L, C]."""
    return batch["observed"] & (batch["window_position"] >= 0)[..., None, None]


def observed_steps(batch: Arrays, config: Config) -> jax.Array:
    """EHR tokens and measured steps of the signal that the config's likelihoods score, in float32."""
    count = jnp.zeros((), jnp.float32)
    if any(config.weights[EventLikelihood.name][:2]) and "masked_position" in batch:
        count += n_true(event_targets(batch)[1])
    if any(config.weights[SignalLikelihood.name][:2]):
        count += n_true(signal_targets(batch))
    return count


class EventLikelihood(CodeTerm):
    """-log p(e_k | z(t_k)): cross-entropy of every EHR token from a draw of its own state, over observed steps.

    Codes alone: a token names the range of its value, and the number within it is not scored.
    """

    name = "event_likelihood"
    targets = EhrMasked.targets

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        return {"token": z.drawn_BxTxD}

    def asked(self, batch: Arrays) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {"token": event_targets(batch)}

    def normaliser(self, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """(observed steps of all kinds, those of this one)."""
        return observed_steps(batch, self.config), n_true(event_targets(batch)[1])

    def loss(self, out: Mapping[str, TokenLoss], batch: Arrays, normaliser: Any) -> Loss:
        steps, mine = normaliser
        known, found = event_targets(batch)[1], out["token"]
        total = jnp.sum(jnp.where(known, found.nll, 0.0))
        per_event, right = total / jnp.maximum(mine, 1), jnp.sum(found.right & known) / jnp.maximum(mine, 1)
        return total / jnp.maximum(steps, 1), {"per_event": per_event, "accuracy": right, "count": n_true(known)}


class ChannelScale(nn.Module):
    """Learned logarithms of the channels' standard deviations given the state: float32 [C], in LOG_SD, 0 at first."""

    channels: int

    @nn.compact
    def __call__(self) -> jax.Array:
        log_sd_C = self.param("log_sd", nn.initializers.zeros, (self.channels,), jnp.float32)
        return jnp.clip(log_sd_C, *LOG_SD)


class SignalLikelihood(Term):
    """-log p(w_l | z(t_l)): a normal density of every measured step of a window, with its constant.

    The mean is decoded from a draw of the window's state; the standard deviation is the channel's, learned. Steps are
    those of the grid: the integral over time of the paper is their sum.
    """

    name = "signal_likelihood"
    needs = ("wear",)
    hides_signal = True
    uses = ("signal",)

    def head(self) -> nn.Module:
        return ChannelScale(self.facts.channels)

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        return {"mean": network.signal_decoder(take(z.drawn_BxTxD, batch["window_position"]), 0), "log_sd": head()}

    def normaliser(self, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """(observed steps of all kinds, those of this one)."""
        return observed_steps(batch, self.config), n_true(signal_targets(batch))

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        steps, mine = normaliser
        known, log_sd = signal_targets(batch), out["log_sd"][None, None, None]
        square = jnp.square(out["mean"].astype(jnp.float32) - batch["wear"])
        nll = 0.5 * square * jnp.exp(-2.0 * log_sd) + log_sd + _HALF_LOG_2PI
        total, error = (jnp.sum(jnp.where(known, x, 0.0)) for x in (nll, square))
        mine = jnp.maximum(mine, 1)
        found = {"per_step": total / mine, "squared_error": error / mine, "count": n_true(known)}
        return total / jnp.maximum(steps, 1), found


TERMS = (EventLikelihood, SignalLikelihood)
