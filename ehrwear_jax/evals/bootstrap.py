"""Patient bootstrap: one set of resamples shared by every model, metric and task.

Groups (patients, or matched sets) are resampled with replacement; a row weighs as often as its
group was drawn. The weights depend on (seed, set of groups) only, so paired differences compare
models on the same resamples.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ehrwear_jax.evals.metrics import LANES, Statistic


def weight_blocks(group_N, n_resamples: int, seed: int, *, universe=None) -> Iterator[np.ndarray]:
    """Yields float64 weights [N, b], b <= 250 resamples at a time, in the layout of the statistics.

    Block k is drawn from (seed, k), so the first resamples do not depend on n_resamples and memory
    does not grow with it.

    Args:
      group_N: unit of resampling of each row.
      n_resamples: number of resamples in all.
      seed: a non-negative integer.
      universe: the groups to resample, where rows of some of them are absent from this task; by
        default the groups present.

    Raises:
      ValueError: no rows, or a group that the universe lacks.
    """
    group_N = np.asarray(group_N)
    if group_N.ndim != 1 or group_N.size == 0:
        raise ValueError(f"group must be a non-empty vector, got shape {group_N.shape}")
    groups = np.unique(group_N if universe is None else np.asarray(universe))
    index_N = np.searchsorted(groups, group_N)
    known_N = groups[np.minimum(index_N, len(groups) - 1)] == group_N
    if not known_N.all():
        raise ValueError(f"group {group_N[~known_N][0]} is not in the universe of groups")
    n_groups = len(groups)
    offset = np.arange(LANES)[:, None] * n_groups
    for block in range(-(-n_resamples // LANES)):
        rng = np.random.default_rng([seed, block])
        drawn = rng.integers(0, n_groups, (LANES, n_groups), dtype=np.int32) + offset
        count_BxG = np.bincount(drawn.ravel(), minlength=LANES * n_groups).reshape(LANES, n_groups)
        lanes = min(LANES, n_resamples - block * LANES)
        yield np.ascontiguousarray(count_BxG[:lanes].T, dtype=np.float64)[index_N]


def patient_weights(group_N, n_resamples: int, seed: int, *, universe=None) -> np.ndarray:
    """Bootstrap weights uint16 [B, N] for the metrics; `weight_blocks` has the same in blocks."""
    weight_BxN = np.empty((n_resamples, len(group_N)), np.uint16)
    row = 0
    for weight_NxB in weight_blocks(group_N, n_resamples, seed, universe=universe):
        weight_BxN[row : row + weight_NxB.shape[1]] = weight_NxB.T
        row += weight_NxB.shape[1]
    return weight_BxN


def resample(
    statistics: Mapping[str, Statistic], group_N, n_resamples: int, seed: int, *, universe=None
) -> dict[str, dict[str, np.ndarray]]:
    """Evaluates several statistics on shared resamples: {row: {metric: float64 [B]}}."""
    parts: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in statistics}
    for weight_NxB in weight_blocks(group_N, n_resamples, seed, universe=universe):
        for name, statistic in statistics.items():
            parts[name].append(statistic(weight_NxB))
    return {
        name: {metric: np.concatenate([p[metric] for p in blocks]) for metric in blocks[0]}
        for name, blocks in parts.items()
        if blocks
    }


class Interval(NamedTuple):
    lo: float
    hi: float
    n_valid: int  # resamples in which the metric was defined
    n_degenerate: int  # resamples in which it was not (NaN), for instance a single class


def interval(samples_B, level: float = 0.95) -> Interval:
    """Percentile interval over the defined resamples; lo = hi = NaN when there is none."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    samples_B = np.asarray(samples_B, np.float64)
    valid = samples_B[np.isfinite(samples_B)]
    tail = (1 - level) / 2
    lo, hi = np.quantile(valid, [tail, 1 - tail]) if valid.size else (np.nan, np.nan)
    return Interval(float(lo), float(hi), valid.size, samples_B.size - valid.size)


def paired_pvalue(delta_B) -> float:
    """Two-sided bootstrap p-value of a paired difference.

    2 min(1 + #{delta <= 0}, 1 + #{delta >= 0}) / (B + 1), at most 1, over the B resamples in which
    the difference is defined: never below 2 / (B + 1). NaN when there is none.
    """
    delta_B = np.asarray(delta_B, np.float64)
    valid = delta_B[np.isfinite(delta_B)]
    if not valid.size:
        return float("nan")
    smaller_tail = 1 + min((valid <= 0).sum(), (valid >= 0).sum())
    return float(min(1.0, 2 * smaller_tail / (valid.size + 1)))
