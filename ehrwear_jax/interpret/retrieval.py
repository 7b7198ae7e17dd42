"""Scores cross-modal retrieval between the EHR and wearable vectors of the same patient and time, in both directions.

Paper, section 3.4 (contrastive term). Row i of both matrices belongs together. Axes: N pairs, D dimensions.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

BLOCK = 1024  # queries whose similarities are in memory at a time


class Recall(TypedDict):
    """{k: chance of a hit of each query [N]} in both directions, and {k: what chance alone gives}."""

    ehr_to_wear: dict[int, np.ndarray]
    wear_to_ehr: dict[int, np.ndarray]
    chance: dict[int, float]


def unit_rows(z_NxD: npt.ArrayLike) -> np.ndarray:
    """Rows scaled to length one, so that products are cosines; rows of zeros stay zero."""
    z_NxD = np.asarray(z_NxD, np.float64)
    return z_NxD / np.maximum(np.linalg.norm(z_NxD, axis=1, keepdims=True), 1e-12)


def hit_chance(
    query_NxD: npt.ArrayLike,
    key_NxD: npt.ArrayLike,
    ranks: Sequence[int] = (1, 10),
    group_N: npt.ArrayLike | None = None,
) -> tuple[dict[int, np.ndarray], dict[int, float]]:
    """Chance that each query's own key is among its k nearest by inner product, under random order of ties.

    With g keys strictly nearer and e keys as near as the own one (itself included) it is clip((k - g) / e, 0, 1): a
    collapsed representation scores chance, not 1.

    Args:
      query_NxD, key_NxD: row i of both belongs together; see `unit_rows`.
      ranks: the k.
      group_N: patient of each row; other keys of the query's own patient are no candidates.

    Returns:
      ({k: float64 [N]}, {k: its expectation under random order, averaged over queries}).

    Raises:
      ValueError: shapes that disagree, no rows, values that are not finite.
    """
    query_NxD, key_NxD = np.asarray(query_NxD, np.float64), np.asarray(key_NxD, np.float64)
    if query_NxD.shape != key_NxD.shape or query_NxD.ndim != 2 or not len(query_NxD):
        raise ValueError(f"query and key must be matrices of one shape, got {query_NxD.shape} and {key_NxD.shape}")
    if not (np.isfinite(query_NxD).all() and np.isfinite(key_NxD).all()):
        raise ValueError("query or key has a value that is not finite")
    n = len(query_NxD)
    group_N = np.arange(n) if group_N is None else np.asarray(group_N)
    nearer_N, equal_N, candidates_N = np.empty(n), np.empty(n), np.empty(n)
    for begin in range(0, n, BLOCK):
        rows = np.arange(begin, min(begin + BLOCK, n))
        similarity = query_NxD[rows] @ key_NxD.T
        own = similarity[np.arange(len(rows)), rows][:, None]
        candidate = group_N[rows][:, None] != group_N[None]
        candidate[np.arange(len(rows)), rows] = True
        # equal up to the rounding of the product: the same vector in another column is a tie
        slack = 1e-12 * np.linalg.norm(query_NxD[rows], axis=1)[:, None] * np.linalg.norm(key_NxD, axis=1)[None]
        nearer_N[rows] = (candidate & (similarity > own + slack)).sum(1)
        equal_N[rows] = (candidate & (np.abs(similarity - own) <= slack)).sum(1)
        candidates_N[rows] = candidate.sum(1)
    hits = {k: np.clip((k - nearer_N) / equal_N, 0.0, 1.0) for k in ranks}
    return hits, {k: float(np.minimum(k / candidates_N, 1.0).mean()) for k in ranks}


def recall(
    ehr_NxD: npt.ArrayLike,
    wear_NxD: npt.ArrayLike,
    ranks: Sequence[int] = (1, 10),
    group_N: npt.ArrayLike | None = None,
) -> Recall:
    """Both directions of `hit_chance` by cosine; the means are recall@k.

    Returns:
      {"ehr_to_wear": {k: [N]}, "wear_to_ehr": {k: [N]}, "chance": {k: float}}.
    """
    ehr_NxD, wear_NxD = unit_rows(ehr_NxD), unit_rows(wear_NxD)
    forward, chance = hit_chance(ehr_NxD, wear_NxD, ranks, group_N)
    backward, _ = hit_chance(wear_NxD, ehr_NxD, ranks, group_N)
    return {"ehr_to_wear": forward, "wear_to_ehr": backward, "chance": chance}
