"""Decomposes the uncertainty of predictions from several models: Monte Carlo dropout or an ensemble of seeds.

Paper, section 4.1 ("uncertainty is assessed via ensemble or Monte Carlo dropout"). The decomposition is that of Depeweg
et al. 2018: predictive entropy = expected entropy (mean uncertainty of the members) + mutual information (their
disagreement). Entropies are in nats. Axes: S members, N rows, K classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Decomposition(NamedTuple):
    """All float64 [N]; `mean_NxK` [N, K]. For two classes `mean_NxK[:, 1]` is the averaged probability."""

    mean_NxK: np.ndarray
    predictive_entropy_N: np.ndarray
    expected_entropy_N: np.ndarray
    mutual_information_N: np.ndarray


def entropy(p_xK: npt.ArrayLike) -> np.ndarray:
    """-sum p log p over the last axis, with 0 log 0 = 0; nats."""
    p_xK = np.asarray(p_xK, np.float64)
    return -np.where(p_xK > 0, p_xK * np.log(np.where(p_xK > 0, p_xK, 1.0)), 0.0).sum(-1)


def decompose(p_SxNxK: npt.ArrayLike) -> Decomposition:
    """Averages the members' probabilities and splits the entropy of the average.

    Args:
      p_SxNxK: probabilities of K classes; or [S, N], the probability of the second of two classes.

    Raises:
      ValueError: fewer than two members, values that are no distribution.
    """
    p_SxNxK = np.asarray(p_SxNxK, np.float64)
    if p_SxNxK.ndim == 2:
        p_SxNxK = np.stack([1.0 - p_SxNxK, p_SxNxK], axis=-1)
    if p_SxNxK.ndim != 3 or len(p_SxNxK) < 2:
        raise ValueError(f"probabilities of two or more members are needed, got shape {p_SxNxK.shape}")
    if not ((p_SxNxK >= 0).all() and np.allclose(p_SxNxK.sum(-1), 1.0, atol=1e-6)):
        raise ValueError("probabilities must be non-negative and sum to one over the last axis")
    mean_NxK = p_SxNxK.mean(0)
    predictive_N, expected_N = entropy(mean_NxK), entropy(p_SxNxK).mean(0)
    # not negative by Jensen's inequality; what is below zero is rounding
    return Decomposition(mean_NxK, predictive_N, expected_N, np.maximum(predictive_N - expected_N, 0.0))


def sample(predict: Callable[[int], np.ndarray], n_samples: int) -> np.ndarray:
    """Stacks the predictions of members 0 .. n_samples - 1: [S, ...].

    Args:
      predict: member -> probabilities [N] or [N, K]. For Monte Carlo dropout the member is the seed of the dropout
        masks, which differ from row to row; for an ensemble it picks the model.
    """
    return np.stack([np.asarray(predict(member), np.float64) for member in range(n_samples)])
