"""Withholds the numbers of tasks that too few people, or too few of them with the event, were evaluated for.

Of three people with the event and none without, every model has an AUPRC of 1.000 [1.000, 1.000].
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ehrwear_jax.config.evaluation import EvaluateConfig
from ehrwear_jax.evals import disclosure
from ehrwear_jax.stages.tasks import BINARY

TOO_FEW = "too_few"


def counted(
    config: EvaluateConfig, task: str, kind: str, label_N: npt.ArrayLike | None, group_N: npt.ArrayLike
) -> dict[str, Any] | None:
    """{task, people, events, others, limit} of a task of too few held-out people, else None.

    Counts are of people, and -1 where they are hidden: from 1 to limit - 1, which is config.min_per_class. Events and
    others (without it) are None of a regression.

    Args:
      kind: as in stages/tasks.py. label_N: 0/1: label, or event; None of a regression. group_N: people.
    """
    group_N, known = np.asarray(group_N), list[int]()
    people = len(np.unique(group_N))
    enough = people >= config.min_task_people
    if label_N is not None:
        is_event_N = np.asarray(label_N, bool)
        known = [disclosure.people_of(group_N, mask_N) for mask_N in (is_event_N, ~is_event_N)]
        enough &= min(known if kind == BINARY else known[:1]) >= config.min_task_events
    if enough:
        return None
    limit = config.min_per_class
    shown = [-1 if disclosure.is_small(n, limit) else n for n in (people, *known)]
    named = dict(zip(("people", "events", "others"), shown, strict=False))
    return {"task": task, "events": None, "others": None, **named, "limit": limit}


def withheld(found: dict[str, list[dict]], few: dict[str, Any] | None) -> dict[str, list[dict]]:
    """Scores of a task; empty where `few`, which is then told."""
    return found if few is None else {name: [] for name in found} | {TOO_FEW: [few]}
