"""Draws patient bootstrap resamples, one set shared by every model, metric and task.

Groups (patients, or matched sets) are resampled with replacement; a row weighs as often as its
group was drawn. The weights depend on (seed, set of groups) only, so paired differences compare
models on the same resamples. `inference` turns resampled values into intervals and tests.
"""

import functools
import itertools
import os
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, TypeVar

import joblib
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from ehrwear_jax.evals.survey import Design
from ehrwear_jax.evals.weighting import LANES, Deferred, Statistic, lanes_of

Key = TypeVar("Key", bound=Hashable)
# Rows times resamples times statistics from which processes are worth their start.
PARALLEL_CELLS = 10**9
# Rows of the statistics that are held at a time: one of a time-to-event task takes one or two KB for each.
ROWS_AT_ONCE = 2**17


def _positions(group_N, universe) -> tuple[np.ndarray, int]:
    """(position of each row's group among the sorted groups, number of groups)."""
    group_N = np.asarray(group_N)
    if group_N.ndim != 1 or group_N.size == 0:
        raise ValueError(f"group must be a non-empty vector, got shape {group_N.shape}")
    groups = np.unique(group_N if universe is None else np.asarray(universe))
    index_N = np.searchsorted(groups, group_N)
    known_N = groups[np.minimum(index_N, len(groups) - 1)] == group_N
    if not known_N.all():
        raise ValueError(f"group {group_N[~known_N][0]} is not in the universe of groups")
    return index_N, len(groups)


def weight_blocks(
    group_N: npt.ArrayLike, n_resamples: int, seed: int, *, universe: npt.ArrayLike | None = None
) -> Iterator[np.ndarray]:
    """Yields float64 weights [N, b], in the layout of the statistics.

    b is at most 250 and shrinks with N, see `weighting.lanes_of`. Every 250 resamples have their own generator, from
    (seed, block): the first resamples depend neither on n_resamples nor on b.

    Args:
      group_N: unit of resampling of each row.
      n_resamples: number of resamples in all.
      seed: a non-negative integer.
      universe: the groups to resample, where rows of some of them are absent from this task; by
        default the groups present.

    Raises:
      ValueError: no rows, or a group that the universe lacks.
    """
    index_N, n_groups = _positions(group_N, universe)
    lanes = lanes_of(max(n_groups, len(index_N)))
    offset = np.arange(lanes)[:, None] * n_groups
    for block in range(-(-n_resamples // LANES)):
        rng = np.random.default_rng([seed, block])
        wanted = min(LANES, n_resamples - block * LANES)
        for first in range(0, wanted, lanes):
            b = min(lanes, wanted - first)
            drawn = rng.integers(0, n_groups, (b, n_groups), dtype=np.int32) + offset[:b]
            count_bxG = np.bincount(drawn.ravel(), minlength=b * n_groups).reshape(b, n_groups)
            yield np.ascontiguousarray(count_bxG.T, dtype=np.float64)[index_N]


def jackknife_blocks(group_N: npt.ArrayLike, *, max_parts: int = 5000) -> Iterator[np.ndarray]:
    """Yields weights [N, b] that leave out one group at a time.

    Above `max_parts` groups, that many near-equal random sets of groups are left out instead.
    """
    index_N, n_groups = _positions(group_N, None)
    n_parts = min(n_groups, max_parts)
    part_G = np.arange(n_groups) % n_parts
    if n_parts < n_groups:
        part_G = np.random.default_rng(0).permutation(part_G)
    part_N, lanes = part_G[index_N], lanes_of(len(index_N))
    for first in range(0, n_parts, lanes):
        left_out = np.arange(first, min(first + lanes, n_parts))
        yield (part_N[:, None] != left_out).astype(np.float64)


def patient_weights(
    group_N: npt.ArrayLike, n_resamples: int, seed: int, *, universe: npt.ArrayLike | None = None
) -> np.ndarray:
    """Bootstrap weights uint16 [B, N] for the metrics; `weight_blocks` has the same in blocks."""
    weight_BxN = np.empty((n_resamples, len(np.asarray(group_N))), np.uint16)
    first = 0
    for weight_NxB in weight_blocks(group_N, n_resamples, seed, universe=universe):
        weight_BxN[first : first + weight_NxB.shape[1]] = weight_NxB.T
        first += weight_NxB.shape[1]
    return weight_BxN


def resample(
    statistics: Mapping[Key, Statistic],
    group_N: npt.ArrayLike,
    n_resamples: int,
    seed: int,
    *,
    universe: npt.ArrayLike | None = None,
    whole: bool = False,
    design: Design | None = None,
) -> dict[Key, dict[str, np.ndarray]]:
    """Evaluates several statistics on shared resamples: {key: {metric: float64 [B]}}; {} without a weighting.

    Work of more than some seconds is divided among a process per core (a thread would wait for the interpreter, which
    sparse products do not release). A process makes some statistics that are `weighting.Deferred` at a time, evaluates
    them on all resamples, which it draws anew for the next, and lets them go. The numbers depend on neither.

    Args:
      whole: the data as they are come first, as one more weighting.
      design: of a survey, of the groups of the universe: its weights and resamples take the place of these.
    """
    n_processes = min(os.cpu_count() or 1, len(statistics))
    cells = len(np.asarray(group_N)) * n_resamples * len(statistics)
    blocks = functools.partial(_blocks, group_N, n_resamples, seed, universe, whole, design)
    if n_processes < 2 or cells < PARALLEL_CELLS:
        return _some_at_a_time(statistics, len(np.asarray(group_N)), blocks)
    names = list(statistics)
    # every n-th one: neighbours are one model in several cells, and those differ in size
    parts = [{name: statistics[name] for name in names[i::n_processes]} for i in range(n_processes)]
    work = (joblib.delayed(_some_at_a_time)(part, len(np.asarray(group_N)), blocks) for part in parts)
    found = {k: v for part in joblib.Parallel(n_processes)(work) for k, v in part.items()}
    return {name: found[name] for name in names}


def _blocks(group_N, n_resamples, seed, universe, whole, design):
    if design is not None:
        index_N, n_groups = _positions(group_N, universe)
        if n_groups != len(design.weight_G):
            raise ValueError(f"the design is of {len(design.weight_G)} groups, and {n_groups} are resampled")
        if whole:
            yield design.weight_G[index_N, None]
        yield from design.blocks(index_N, n_resamples, seed)
        return
    if whole:
        yield np.ones((len(np.asarray(group_N)), 1))
    yield from weight_blocks(group_N, n_resamples, seed, universe=universe)


def _some_at_a_time(statistics, n_rows, blocks):
    """over_blocks, of statistics of no more than ROWS_AT_ONCE rows in all, or of one, at a time."""
    found: dict[Any, dict[str, np.ndarray]] = {}
    waiting: dict[Any, Statistic] = {}
    n_waiting = 0
    for k, (name, statistic) in enumerate(statistics.items()):
        waiting[name] = statistic
        n_waiting += _rows_of(statistic, n_rows)
        following = list(itertools.islice(statistics.values(), k + 1, k + 2))
        if not following or n_waiting + _rows_of(following[0], n_rows) > ROWS_AT_ONCE:
            found |= over_blocks(waiting, blocks())
            for done in waiting.values():
                if isinstance(done, Deferred):
                    done.release()
            waiting, n_waiting = {}, 0
    return found


def _rows_of(statistic, n_rows):
    return statistic.n_rows if isinstance(statistic, Deferred) else n_rows


def over_blocks(
    statistics: Mapping[Key, Statistic], blocks: Iterator[np.ndarray]
) -> dict[Key, dict[str, np.ndarray]]:
    """Evaluates every statistic on every block of weights."""
    parts: dict[Key, list[dict[str, np.ndarray]]] = {name: [] for name in statistics}
    with threadpool_limits(1):  # blocks are too small for further threads
        for weight_NxB in blocks:
            for name, statistic in statistics.items():
                parts[name].append(statistic(weight_NxB))
    return {
        name: {metric: np.concatenate([p[metric] for p in blocks]) for metric in blocks[0]}
        for name, blocks in parts.items()
        if blocks
    }
