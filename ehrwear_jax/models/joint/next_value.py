"""Predicts the next values given their codes and time: a mark of the point process, as a mixture of normals."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.family import Batch, Field
from ehrwear_jax.models.joint.layout import Contexts
from ehrwear_jax.models.joint.terms import Arrays, Latents, Loss, Term, take
from ehrwear_jax.models.layers.dense import dense, embedding
from ehrwear_jax.models.objective import masked_mean, n_true, n_true_of

N_COMPONENTS = 3
_AHEAD = 64  # events that are looked at first for the value after the last prediction
_GOLDEN = 0.6180339887498949  # multiples of it cover [0, 1) evenly
_LOG_SD = (-3.0, 2.0)  # values that many share and clipped ones must not make a density without bound


class NextValueHead(nn.Module):
    """Parameters of the mixture of a value from z, its code and the time until it."""

    width: int
    n_codes: int

    @nn.compact
    def __call__(self, z_BxNxD: jax.Array, code_BxNxY: jax.Array, gap_BxN: jax.Array) -> jax.Array:
        """gap in days -> float32 [B, N, Y, 3 N_COMPONENTS]: logits, means, log standard deviations."""
        time = jnp.stack([jnp.log1p(24.0 * gap_BxN), jnp.log1p(gap_BxN / 30.0)], axis=-1)
        trunk = dense(self.width, ("embed", "mlp"), name="trunk")(z_BxNxD)
        trunk = (trunk + dense(self.width, (None, "mlp"), use_bias=False, name="time")(time))[:, :, None]
        code = jnp.maximum(code_BxNxY, 0)
        gain, shift = (
            embedding(self.n_codes, self.width, ("value_code", "mlp"), name=name)(code) for name in ("gain", "shift")
        )
        hidden = nn.gelu(trunk * (1.0 + 50.0 * gain) + shift)
        return dense(3 * N_COMPONENTS, ("mlp", None), name="out")(hidden).astype(jnp.float32)


class _Numeric(NamedTuple):
    """Values of numeric codes in order of time: codes, times, on the robust scale, and where each time's values end."""

    class_N: np.ndarray
    time_us_N: np.ndarray
    value_N: np.ndarray
    stop_N: np.ndarray


def _numeric(p, scales, after_us, last_us):
    """The values of a patient's events after a time, until all of the next time after `last_us` are among them."""
    begin, stop = p.event_time_K.searchsorted((after_us, last_us), side="right").tolist()
    n, ahead = len(p.event_time_K), _AHEAD
    while True:
        end = min(stop + ahead, n)
        if end < n:  # whole times
            end = int(p.event_time_K.searchsorted(p.event_time_K[end - 1], side="right"))
        class_K, value_K = scales.class_V[p.event_token_K[begin:end]], p.event_value_K[begin:end]
        known = np.flatnonzero((class_K >= 0) & np.isfinite(value_K))
        time_us_N = p.event_time_K[begin:end][known]
        if end == n or (len(known) and time_us_N[-1] > last_us):
            break
        ahead *= 8
    class_N = class_K[known]
    stop_N = np.searchsorted(time_us_N, time_us_N, side="right")
    return _Numeric(class_N, time_us_N, scales(class_N, value_K[known]), stop_N)


class NextValue(Term):
    """The values of the next time at which numeric codes are measured, given which, and when: a density, in nats.

    From z at events and at queries. So z is to know where values are heading, whatever the next order is. Values are on
    the scale of value_scales.py; of more than `next_values` at that time, a run of them, another at each place.
    """

    name = "next_value"
    needs = ("ehr",)
    at_events = True
    targets = {
        f"{name}_{part}": field
        for name, n in (("event", "E"), ("query", "Q"))
        for part, field in (
            ("mark_code", Field(f"{n}Y", np.int32, -1, "numeric code of a value of the next time that has some")),
            ("mark", Field(f"{n}Y", np.float32, 0, "the value, robust scale")),
            ("mark_gap", Field(n, np.float32, 0, "days until then")),
        )
    }

    def has_targets(self) -> bool:
        return self.facts.value_codes > 0 and self.config.context.next_values > 0

    def fill(self, batch: Batch, c: Contexts) -> None:
        n_slots, at, parts, times = self.config.context.next_values, c.bound_R.tolist(), [], c.times_us_R
        first_R, there_R, n = np.zeros(at[-1], np.int64), np.zeros(at[-1], bool), 0
        for p, a, b in zip(c.patients, at, at[1:], strict=False):
            if b == a:
                continue
            known = _numeric(p, c.people.value_scales, times[a:b].min(), times[a:b].max())
            if not len(known.time_us_N):
                continue
            first = known.time_us_N.searchsorted(times[a:b], side="right")
            lo, hi = int(first.min()), min(int(first.max()), len(known.time_us_N) - 1)
            if lo > hi:
                continue
            # from the first value that is asked for to the last one of its time
            part = _Numeric(*(x[lo : int(known.stop_N[hi])] for x in known))
            parts.append(part._replace(stop_N=part.stop_N - lo + n))
            there_R[a:b] = first < len(known.time_us_N)
            first_R[a:b] = np.minimum(first, hi) - lo + n
            n += len(part.class_N)
        if not parts:
            return
        class_N, time_us_N, value_N, stop_N = (np.concatenate(x) for x in zip(*parts, strict=True))
        n_R, next_R = stop_N[first_R] - first_R, time_us_N[first_R]
        # no draw: what is hidden decides how many values are known, and must not decide what is drawn after
        draw_R = (c.phase_C[c.of_R] + _GOLDEN * (np.arange(1, at[-1] + 1) - c.bound_R[c.of_R])) % 1.0
        first_R = first_R + (draw_R * (np.maximum(n_R - n_slots, 0) + 1)).astype(np.int64)
        slot_RxY = first_R[:, None] + np.arange(n_slots)
        real_RxY = there_R[:, None] & (np.arange(n_slots) < n_R[:, None])
        slot_RxY = np.where(real_RxY, slot_RxY, 0)
        gap_R = np.where(there_R, (next_R - times) / 86_400e6, 0.0)
        code_RxY, mark_RxY = np.where(real_RxY, class_N[slot_RxY], -1), np.where(real_RxY, value_N[slot_RxY], 0.0)
        for name, bounds, mine in c.at_events_and_queries:
            for field, of_R in (("mark_code", code_RxY), ("mark", mark_RxY), ("mark_gap", gap_R)):
                c.put(batch[f"{name}_{field}"], bounds, of_R[mine])

    def head(self) -> nn.Module:
        return NextValueHead(self.config.network.width, self.facts.value_codes)

    def predict(self, network: nn.Module, head: Any, z: Latents, batch: Arrays) -> Any:
        at = {"event": take(z.token_BxTxD, batch["event_position"]), "query": z.query_BxQxD}
        return {n: head(x, batch[f"{n}_mark_code"], batch[f"{n}_mark_gap"]) for n, x in at.items()}

    def normaliser(self, batch: Arrays) -> jax.Array:
        return n_true_of(batch[f"{n}_mark_code"] >= 0 for n in ("event", "query"))

    def loss(self, out: Any, batch: Arrays, normaliser: Any) -> Loss:
        parameters, value, code = (
            jnp.concatenate(parts, axis=1)
            for parts in (
                list(out.values()), [batch[f"{n}_mark"] for n in out], [batch[f"{n}_mark_code"] for n in out]
            )
        )  # fmt: skip
        real, nll = code >= 0, negative_log_density(parameters, value)
        logit, mean, _ = jnp.split(parameters, 3, axis=-1)
        expected = jnp.sum(jax.nn.softmax(logit) * mean, axis=-1)
        error = masked_mean(jnp.square(expected - value), real, normaliser)
        return masked_mean(nll, real, normaliser), {"squared_error": error, "count": n_true(real)}


def negative_log_density(parameters: jax.Array, value: jax.Array) -> jax.Array:
    """-log of a mixture of normals, nats: [..., 3 N_COMPONENTS] (logits, means, log standard deviations), [...]."""
    logit, mean, log_sd = jnp.split(parameters, 3, axis=-1)
    log_sd = jnp.clip(log_sd, *_LOG_SD)
    standard = (value[..., None] - mean) * jnp.exp(-log_sd)
    log_density = -0.5 * jnp.square(standard) - log_sd - 0.5 * np.log(2 * np.pi)
    return -jax.nn.logsumexp(jax.nn.log_softmax(logit) + log_density, axis=-1)


TERMS = (NextValue,)
