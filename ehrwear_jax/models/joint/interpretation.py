"""Opens the joint model for interpretation: its kernels of time, what its contexts show, attributable inputs.

A family that has this module as `interpretation` is looked into beyond what z alone tells (stages/interpret*.py).
"""

import dataclasses
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
