"""Attributes predictions to inputs: integrated gradients, occlusion and counterfactual perturbations.

Functions take `score`, a function of the model's inputs that returns one number for each prediction time; for a probe
on frozen latents it is the probe's logit, so that effects are additive. Axes: B batch, T tokens, D width, W windows,
L steps, C channels.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Name = TypeVar("Name")


class Attribution(NamedTuple):
    """parts: of the structure of the inputs; their sum for each example is score - baseline_score plus `gap_B`."""

    parts: Any
    score_B: np.ndarray
    baseline_score_B: np.ndarray
    gap_B: np.ndarray


def integrated_gradients(
    score: Callable[[Any], jax.Array],
    inputs: Any,
    baseline: Any,
    *,
    n_steps: int = 64,
    steps_at_once: int = 8,
    compiler_options: dict[str, Any] | None = None,
) -> Attribution:
    """(x - x') * integral over a in [0, 1] of d score(x' + a (x - x')) / dx (Sundararajan, Taly & Yan 2017).

    Gauss-Legendre nodes: exact for scores that are polynomials of degree < 2 n_steps along the path. Completeness,
    sum of parts = score(x) - score(x'), checks the quadrature; `gap_B` is the error.

    Args:
      score: pytree of float [B, ...] -> [B]; example b of the result depends on example b of the inputs only.
      inputs, baseline: pytrees of one structure and shapes.
      n_steps: nodes; steps_at_once: of them evaluated as one batch.
      compiler_options: of jax.jit.
    """
    inputs, baseline = (jax.tree.map(jnp.asarray, x) for x in (inputs, baseline))
    node, weight = np.polynomial.legendre.leggauss(n_steps)
    # both ends beside the nodes, and the last one again until batches are full: one program serves them all
    n_step = -(-(n_steps + 2) // steps_at_once) * steps_at_once
    node = np.pad(0.5 * (node + 1.0), (1, n_step - n_steps - 1), constant_values=(0.0, 1.0))
    weight = np.pad(0.5 * weight, (1, n_step - n_steps - 1))
    difference = jax.tree.map(jnp.subtract, inputs, baseline)

    def at(alpha):
        return jax.tree.map(lambda b, d: b + alpha * d, baseline, difference)

    def summed(x):
        score_B = score(x)
        return score_B.sum(), score_B

    run = jax.jit(jax.vmap(lambda alpha: jax.grad(summed, has_aux=True)(at(alpha))), compiler_options=compiler_options)
    total = jax.tree.map(lambda x: np.zeros(x.shape, np.float64), inputs)
    values = []
    for begin in range(0, n_step, steps_at_once):
        part = slice(begin, begin + steps_at_once)
        found, score_SxB = run(jnp.asarray(node[part], jnp.float32))
        total = jax.tree.map(lambda t, g, w=weight[part]: t + np.tensordot(w, np.asarray(g), 1), total, found)
        values.append(np.asarray(score_SxB, np.float64))
    parts = jax.tree.map(lambda t, d: t * np.asarray(d, np.float64), total, difference)
    base_B, value_B = values[0][0], values[-1][-1]
    summed_B = sum(x.reshape(len(x), -1).sum(1) for x in jax.tree.leaves(parts))
    return Attribution(parts, value_B, base_B, summed_B - (value_B - base_B))


def by_token(attribution: Attribution) -> tuple[np.ndarray, np.ndarray]:
    """Sums the parts of one token, or of one channel of a window.

    Returns:
      (token_BxT, zero at wearable tokens; wear_BxWxC).
    """
    return attribution.parts["token"].sum(-1), attribution.parts["wear"].sum(2)


# ------------------------------------------------------------------------------------ occlusion and counterfactuals


def effects(score: Callable[[Any], np.ndarray], changes: Mapping[Name, Any]) -> dict[Name, np.ndarray]:
    """score with each change minus score without: {name: float64 [N]}.

    Occlusion and counterfactual perturbation are one computation with different changes: tokens of a code group or a
    period removed, channels not measured (`data.perturbations.drop_codes`, `truncate`, `occlude_channels`), or a value
    added (`add_to_channel`). Hidden inputs are missing, not zero, which would be a valid value.

    Args:
      score: change (None: none) -> one number for each prediction time.
      changes: name -> change.
    """
    plain_N = np.asarray(score(None), np.float64)
    return {name: np.asarray(score(change), np.float64) - plain_N for name, change in changes.items()}
