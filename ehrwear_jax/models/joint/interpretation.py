"""Opens the joint model for interpretation: its kernels of time, what its contexts show, attributable inputs.

A family that has this module as `interpretation` is looked into beyond what z alone tells (stages/interpret*.py).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.family import Batch
from ehrwear_jax.models.joint.batch import MASK, MODALITY_EHR
from ehrwear_jax.models.joint.config import Config
from ehrwear_jax.models.joint.encoders import EhrEmbedder
from ehrwear_jax.models.joint.examples import JointExamples
from ehrwear_jax.models.joint.prediction import shown_at
from ehrwear_jax.models.joint.wear_terms import hidden_steps

Params = Mapping[str, Any]


class TimeKernels(NamedTuple):
    """What the backbone has learned of time, see interpret.attention.learned_kernels."""

    params: Params
    kind: str
    n_heads: int
    n_components: int
    unit_days: float


def time_kernels(config: Config, params: Params) -> TimeKernels:
    """Of all layers and heads."""
    n = config.network
    found = params["backbone"]["blocks"].get("kernel", {})
    return TimeKernels(found, n.kernel, n.n_heads, n.n_components, n.time_unit_days)


# ------------------------------------------------------------------------------------------- what a context shows


def window_ends(examples: JointExamples, position: int, time_us: int) -> np.ndarray:
    """When the windows end that a person's context at a time holds: int64."""
    patient = examples.people[position]
    shown = shown_at(examples.people, examples.spec, patient, time_us).positions(patient)
    return patient.time_N[shown][patient.is_wear_N[shown]]


def one_time_a_row(examples: JointExamples, position_N: Sequence[int], time_us_N: Sequence[int]) -> Batch:
    """A batch with one prediction time in each row, at its first query."""
    times = [np.array([x], np.int64) for x in time_us_N]
    people = [np.array([x], np.int64) for x in position_N]
    rows = [next(examples.prediction_batches(i, t, 1))[0] for i, t in zip(people, times, strict=True)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


class Shown(NamedTuple):
    """What one row of such a batch shows, with the parts that its tokens and windows have of a score.

    Attributes:
      known: positions of its tokens. days_T: before the query, negative. label_T: of each token of the row.
      gradient_T: of each token; wear_WxC, wear_days_W: of each window and channel.
    """

    known: np.ndarray
    label_T: list[str]
    days_T: np.ndarray
    gradient_T: np.ndarray
    wear_WxC: np.ndarray
    wear_days_W: np.ndarray


def shown(examples: JointExamples, batch: Batch, b: int, token_BxT: np.ndarray, wear_BxWxC: np.ndarray) -> Shown:
    """Row b of a batch.

    Args:
      token_BxT, wear_BxWxC: parts of a score, see interpret.attribution.by_token.
    """
    names = examples.people.vocabulary.tokens["token"].to_list()
    is_ehr_T, days_T = batch["modality"][b] == MODALITY_EHR, batch["time"][b] - batch["query_time"][b, 0]
    label_T = [names[v] if e else "wearable window" for v, e in zip(batch["token"][b], is_ehr_T, strict=True)]
    slots = np.flatnonzero(batch["window_position"][b] >= 0)
    at = batch["window_position"][b, slots]
    gradient_T = np.where(is_ehr_T, token_BxT[b], 0.0)
    gradient_T[at] = wear_BxWxC[b, slots].sum(-1)
    known = np.flatnonzero(batch["segment"][b] > 0)
    return Shown(known, label_T, days_T, gradient_T, wear_BxWxC[b, slots], days_T[at])


# ------------------------------------------------------------------------------------------- attributable inputs


def embedded_inputs(
    network: nn.Module, params: Params, batch: Batch
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The continuous inputs of a batch and their baselines, for `score_of_embedded`.

    The input of a token is its embedding (code and value; time, age and modality are unchanged), its baseline that of
    the MASK token, which in pretraining stands for an event without content. The input of signals are the standardised
    steps, their baseline is 0, the average of the training split; unobserved steps have no effect.

    Returns:
      ({"token": [B, T, D], "wear": [B, W, L, C]}, the same of the baseline).
    """
    embed = jax.jit(nn.apply(lambda m, *inputs: m.ehr(*inputs), network))
    variables = {"params": params}
    values = [batch[name] for name in ("value", "quantile") if name in batch]
    token = embed(variables, batch["token"], *values)
    masked = embed(variables, jnp.full_like(batch["token"], MASK), *map(jnp.zeros_like, values))
    return {"token": token, "wear": jnp.asarray(batch["wear"])}, {
        "token": masked,
        "wear": jnp.zeros(batch["wear"].shape),
    }


def score_of_embedded(
    network: nn.Module, params: Params, batch: Batch, head: Callable[[jax.Array], jax.Array]
) -> Callable[[Any], jax.Array]:
    """inputs of `embedded_inputs` -> head(z of the queries [B, Q, D]), float [B]."""

    def score(inputs):
        def replace(call, args, kwargs, about):
            if isinstance(about.module, EhrEmbedder) and about.method_name == "__call__":
                return inputs["token"]
            return call(*args, **kwargs)

        with nn.intercept_methods(replace):
            z: Any = network.apply({"params": params}, {**batch, "wear": inputs["wear"]}, method="encode")
            return head(z)

    return score


# ------------------------------------------------------------------------------------------- draws of the posterior


def has_posterior(config: Config) -> bool:
    """Whether z is a distribution, and `encode_drawn` draws from it."""
    return config.network.posterior != "point"


def masked(config: Config) -> Config:
    """The config all of whose contexts hide something: what the states are not told is held out."""
    return dataclasses.replace(config, context=dataclasses.replace(config.context, masked_contexts=1.0))


def generated(
    network: nn.Module, params: Params, batches: Iterable[Batch], n_draws: int, seed: int, levels: tuple[float, ...]
) -> dict[str, dict[str, np.ndarray]]:
    """Hidden events and steps beside what draws of their states say of them, as sums over each row.

    Args:
      batches: of examples of a `masked` config. n_draws: of each state; what they say is averaged.
      levels: of predictive sets and intervals.

    Returns:
      {"code": fields of evals.generative.CodeSums, "signal": of SignalSums}, float64; without a likelihood not there.
    """
    apply: Callable[..., Any] = functools.partial(network.apply, {"params": params})

    @jax.jit
    def sums(batch, key):
        z, _ = apply(batch, method="read")

        def add(total, key):
            found = apply(z, batch, method="decoded", rngs={"dropout": key})
            return jax.tree.map(lambda a, b: a + b / n_draws, total, _mixed(found, batch)), None

        keys = jax.random.split(key, n_draws)
        shapes = jax.eval_shape(lambda: _mixed(apply(z, batch, method="decoded", rngs={"dropout": key}), batch))
        mixed, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), keys)
        code = {"code": _code_sums(mixed["code"], batch, levels)} if "code" in mixed else {}
        return code | ({"signal": _signal_sums(mixed, batch, levels)} if "mean" in mixed else {})

    keys = (jax.random.fold_in(jax.random.key(seed), i) for i in itertools.count())
    parts = [jax.device_get(sums(batch, key)) for batch, key in zip(batches, keys, strict=False)]
    return jax.tree.map(lambda *x: np.concatenate(x).astype(np.float64), *parts) if parts else {}


def _mixed(found, batch):
    """Of one draw, what is averaged over draws."""
    out = {"code": jnp.exp(found["code"])} if "code" in found else {}
    if "mean" in found:
        mean, sd = found["mean"], jnp.exp(found["log_sd"])[None, None, None]
        below = jax.scipy.stats.norm.cdf((batch["wear"] - mean) / sd)
        out |= {"mean": mean, "square": jnp.square(mean) + jnp.square(sd), "below": below}
    return out


def _code_sums(p_BxMxV, batch, levels):
    target_BxM = batch["masked_target"]
    real_BxM = batch["masked_position"] >= 0
    own_BxM = jnp.take_along_axis(p_BxMxV, target_BxM[..., None], axis=-1)[..., 0]
    above_BxM = jnp.sum(jnp.where(p_BxMxV > own_BxM[..., None], p_BxMxV, 0.0), axis=-1)
    # in the smallest set that reaches a level if the codes before it do not
    inside_BxMxA = real_BxM[..., None] & (above_BxM[..., None] < jnp.asarray(levels)[None, None])
    observed = real_BxM[..., None] & (target_BxM[..., None] == jnp.arange(p_BxMxV.shape[-1])[None, None])
    expected_BxV = jnp.sum(jnp.where(real_BxM[..., None], p_BxMxV, 0.0), axis=1)
    log_p_B = jnp.sum(jnp.where(real_BxM, jnp.log(jnp.maximum(own_BxM, 1e-30)), 0.0), axis=1)
    return {"expected_RxV": expected_BxV, "observed_RxV": observed.sum(1), "inside_RxA": inside_BxMxA.sum(1),
            "log_p_R": log_p_B}  # fmt: skip


def _signal_sums(mixed, batch, levels):
    known = hidden_steps(batch)

    def sums(value):
        return jnp.sum(jnp.where(known, value, 0.0), axis=(1, 2))

    wear, inside = batch["wear"], [sums(2 * jnp.abs(mixed["below"] - 0.5) <= a) for a in levels]
    found = {"n": jnp.ones_like(wear), "observed": wear, "observed_square": jnp.square(wear), "decoded": mixed["mean"],
             "decoded_square": mixed["square"]}  # fmt: skip
    return {f"{name}_RxC": sums(x) for name, x in found.items()} | {"inside_RxCxA": jnp.stack(inside, axis=-1)}


# ------------------------------------------------------------------------------------------- trained projections


def unmasked(config: Config) -> Config:
    """The config whose contexts look as they do at inference: pairs of hidden events are no content."""
    return dataclasses.replace(config, context=dataclasses.replace(config.context, masked_contexts=0.0))


def projected_pairs(
    network: nn.Module, params: Params, batches: Iterable[Batch]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(ehr [N, S], wear [N, S], patient [N]) of the pairs in batches, if the network was trained to align them.

    One pair per patient, the first: pairs of a patient's other times are neither candidates nor independent.
    """

    @jax.jit
    def predict(batch):
        out: Any = network.apply({"params": params}, batch)
        return out.get("contrast")

    parts = []
    for batch in batches:
        found = predict(batch) if "pair_patient" in batch else None
        if found is None:
            return None
        real = batch["pair_patient"] >= 0
        parts.append([np.asarray(found["ehr"])[real], np.asarray(found["wear"])[real], batch["pair_patient"][real]])
    ehr, wear, patient = (np.concatenate(x) for x in zip(*parts, strict=True))
    _, first = np.unique(patient, return_index=True)
    return (ehr[first], wear[first], patient[first]) if len(first) > 1 else None
