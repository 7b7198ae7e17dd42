"""Hides counts of few people, and others with them, so that no hidden count follows from the shown ones of its table.

One rule for every count on a page. A count from 1 to limit - 1 is small and hidden; 0 is about nobody and shown. Where
the parts of a shown whole are counted, the smallest other parts are hidden too until the hidden ones are two or more
and hold `limit` people together: any of them could then be nobody, or more than `limit`. Hundepool et al., Statistical
Disclosure Control, 2012, chapter 4. What people know from elsewhere, or from several pages, is beyond it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Metrics that tell the number of positives where that of all is known, and those that tell a confusion matrix.
TELL_POSITIVES = frozenset({"prevalence", "prevalence_ipcw", "brier_null", "brier_skill", "mean_gap"})
TELL_MATRIX = frozenset({"sensitivity", "specificity", "ppv", "npv", "accuracy", "tp", "fp", "tn", "fn"})


def is_small(count: int, limit: int) -> bool:
    """Whether a count is of few people: from 1 to limit - 1."""
    return 0 < count < limit


def complete(counts_K: npt.ArrayLike, hidden_K: npt.ArrayLike, limit: int) -> np.ndarray:
    """The hidden parts of a shown whole, with as many more as keep each from being solved for; bool [K].

    Args:
      counts_K: people of each part.
      hidden_K: parts that are hidden already; none: nothing is hidden.
      limit: people that the hidden parts hold together at least.
    """
    counts, hidden = np.asarray(counts_K, np.int64), np.array(hidden_K, bool)
    if not hidden.any():
        return hidden
    # from the smallest, those of nobody last: they would hide nothing
    for k in sorted(np.flatnonzero(~hidden), key=lambda k: (counts[k] == 0, counts[k])):
        if hidden.sum() > 1 and counts[hidden].sum() >= limit:
            break
        hidden[k] = True
    return hidden


def hidden_parts(counts_K: npt.ArrayLike, limit: int) -> np.ndarray:
    """Which parts of a shown whole to hide: the small ones and what `complete` adds; bool [K]."""
    counts = np.asarray(counts_K, np.int64)
    return complete(counts, (counts > 0) & (counts < limit), limit)


def hide_steps(steps: Sequence[Mapping[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Steps of a selection with counts of few as None.

    Where a step drops few, what it leaves is hidden too, and so is what the next steps drop, until the hidden ones have
    dropped `limit` together: the difference between two numbers that remain would tell it. Steps that leave few are
    hidden whole.

    Args:
      steps: {"n": remaining, "dropped", ...} in order. A step follows on the one before where n + dropped is its n.
    """
    out, waiting = [], 0  # people dropped since the last shown number; 0: nothing is hidden
    parts, before = 0, None
    for step in steps:
        n, dropped = int(step["n"]), int(step["dropped"])
        if before is None or n + dropped != before:
            waiting = parts = 0
        if waiting or is_small(dropped, limit) or is_small(n, limit):
            waiting, parts = waiting + dropped, parts + (dropped > 0)
            told = waiting >= limit and parts > 1 and not is_small(n, limit)
            out.append({**step, "n": n if told else None, "dropped": None})
            # a small remainder keeps everything after it hidden
            waiting, parts = (0, 0) if told else (max(waiting, 1), parts)
        else:
            out.append(dict(step))
        before = n
    return out


def people_of(group_N: npt.ArrayLike, mask_N: npt.ArrayLike) -> int:
    """Number of people with a row in the mask."""
    return len(np.unique(np.asarray(group_N)[np.asarray(mask_N, bool)]))


def tells_few(y_N: npt.ArrayLike, group_N: npt.ArrayLike, limit: int) -> bool:
    """Whether few people have a positive row, or few a negative one, so that the share of positives is not shown."""
    y_N = np.asarray(y_N, bool)
    return any(is_small(people_of(group_N, mask_N), limit) for mask_N in (y_N, ~y_N))


def matrix_tells_few(y_N: npt.ArrayLike, called_N: npt.ArrayLike, group_N: npt.ArrayLike, limit: int) -> bool:
    """Whether a cell of a confusion matrix is of few people. All four are then hidden, as the classes are counted."""
    y_N, called_N = np.asarray(y_N, bool), np.asarray(called_N, bool)
    cells = (y_N & called_N, y_N & ~called_N, ~y_N & called_N, ~y_N & ~called_N)
    return any(is_small(people_of(group_N, mask_N), limit) for mask_N in cells)


def without(records: Sequence[Mapping[str, Any]], metrics: frozenset[str], models: frozenset[str] | None = None):
    """Result records with the numbers of some metrics as None, of some models (by default all)."""
    nothing = {"value": None, "lo": None, "hi": None}
    return [
        {**r, **nothing} if r["metric"] in metrics and (models is None or r["model"] in models) else dict(r)
        for r in records
    ]


def without_positives(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Result records of a task of which few people are positive: neither their number nor what tells it."""
    return [{**r, "n_positive": None} for r in without(records, TELL_POSITIVES | TELL_MATRIX)]
