"""What a prediction rests on: integrated gradients, and differences when something is hidden or changed.

Functions take `score`, a function of the model's inputs that returns one number per read; for a probe on frozen latents
it is the probe's logit, so that effects add up. Axes: B batch, T tokens, D width, W windows, L steps, C channels.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ehrwear_jax.models.joint.batch import MASK
from ehrwear_jax.models.joint.ehr_embedder import EhrEmbedder


class Attribution(NamedTuple):
    """parts: as the inputs, input by input; their sum per example is score - baseline_score but for `gap_B`."""

    parts: dict
    score_B: np.ndarray
    baseline_score_B: np.ndarray
    gap_B: np.ndarray


def integrated_gradients(
    score: Callable, inputs, baseline, *, n_steps: int = 64, steps_at_once: int = 8
) -> Attribution:
    """(x - x') * integral over a in [0, 1] of d score(x' + a (x - x')) / dx (Sundararajan, Taly & Yan 2017).

    Gauss-Legendre nodes: exact for scores that are polynomials of degree < 2 n_steps along the path. Completeness,
    sum of parts = score(x) - score(x'), is the check of the quadrature; `gap_B` says by how much it fails.

    Args:
      score: pytree of float [B, ...] -> [B]; example b of the result depends on example b of the inputs only.
      inputs, baseline: pytrees of one structure and shapes.
      n_steps: nodes; steps_at_once: of them evaluated as one batch.
    """
    inputs, baseline = (jax.tree.map(jnp.asarray, x) for x in (inputs, baseline))
    node, weight = np.polynomial.legendre.leggauss(n_steps)
    node, weight = 0.5 * (node + 1.0), 0.5 * weight
    difference = jax.tree.map(jnp.subtract, inputs, baseline)

    def at(alpha):
        return jax.tree.map(lambda b, d: b + alpha * d, baseline, difference)

    gradient = jax.jit(jax.vmap(lambda alpha: jax.grad(lambda x: score(x).sum())(at(alpha))))
    total = jax.tree.map(lambda x: np.zeros(x.shape, np.float64), inputs)
    for begin in range(0, n_steps, steps_at_once):
        part = slice(begin, begin + steps_at_once)
        found = gradient(jnp.asarray(node[part], jnp.float32))
        total = jax.tree.map(lambda t, g, w=weight[part]: t + np.tensordot(w, np.asarray(g), 1), total, found)
    parts = jax.tree.map(lambda t, d: t * np.asarray(d, np.float64), total, difference)
    run = jax.jit(score)
    value_B, base_B = (np.asarray(run(x), np.float64) for x in (inputs, baseline))
    summed_B = sum(x.reshape(len(x), -1).sum(1) for x in jax.tree.leaves(parts))
    return Attribution(parts, value_B, base_B, summed_B - (value_B - base_B))


def embedded_inputs(model, params, batch) -> tuple[dict, dict]:
    """The continuous inputs of a batch and their baselines, for `score_of_embedded`.

    Tokens enter as their embedding (code and value; time, age and modality stay as they are), against that of the MASK
    token, which the model has learnt to read as an event without content. Signals enter as the standardised steps,
    against 0, the average of the training split; unobserved steps have no effect.

    Returns:
      ({"token": [B, T, D], "wear": [B, W, L, C]}, the same of the baseline).
    """
    embed = jax.jit(nn.apply(lambda m, token, value: m.ehr(token, value), model))
    variables = {"params": params}
    token = embed(variables, batch["token"], batch["value"])
    masked = embed(variables, jnp.full_like(batch["token"], MASK), jnp.zeros_like(batch["value"]))
    return {"token": token, "wear": jnp.asarray(batch["wear"])}, {
        "token": masked,
        "wear": jnp.zeros(batch["wear"].shape),
    }


def score_of_embedded(model, params, batch, head: Callable) -> Callable:
    """inputs of `embedded_inputs` -> head(z_BxTxD, z_BxQxD), float [B]."""

    def score(inputs):
        def replace(call, args, kwargs, context):
            if isinstance(context.module, EhrEmbedder) and context.method_name == "__call__":
                return inputs["token"]
            return call(*args, **kwargs)

        with nn.intercept_methods(replace):
            z = model.apply({"params": params}, {**batch, "wear": inputs["wear"]}, method="encode")
        return head(*z)

    return score


def by_token(attribution: Attribution) -> tuple[np.ndarray, np.ndarray]:
    """Sums the parts over what one token or one channel of a window contributes.

    Returns:
      (token_BxT, zero at wearable tokens; wear_BxWxC).
    """
    return attribution.parts["token"].sum(-1), attribution.parts["wear"].sum(2)


# ------------------------------------------------------------------------------------ occlusion and counterfactuals


def effects(score: Callable[[object], np.ndarray], changes: Mapping[str, object]) -> dict[str, np.ndarray]:
    """score with each change minus score without: {name: float64 [N]}.

    Occlusion and counterfactual perturbation are one computation with different changes: tokens of a code group or a
    period removed, channels not measured (`data.robustness.drop_codes`, `truncate`, `occlude_channels`), or something
    added (`add_to_channel`). What is hidden is missing, not zero, which would be a value like any other.

    Args:
      score: change (None: none) -> one number per read.
      changes: name -> change.
    """
    plain_N = np.asarray(score(None), np.float64)
    return {name: np.asarray(score(change), np.float64) - plain_N for name, change in changes.items()}
