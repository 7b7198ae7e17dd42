"""Gathers what a target-trial table says of a task: its design in words, who is in it, and what became of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrwear_jax.data.formats.label_tables import COMPETING
from ehrwear_jax.evals import disclosure, survival
from ehrwear_jax.evals.survival import FollowUp
from ehrwear_jax.report.result_records import horizon_of
from ehrwear_jax.stages import evaluate_censoring, prepare, tasks
from ehrwear_jax.stages.labels import Labels
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.tasks import BINARY, SURVIVAL, Task

OUTCOMES = ("event", "competing", "censored", "free")
# Steps that all tasks which are made from the events share.
SHARED_STEPS = ("people with days to draw prediction times from", "prediction times")
_COUNTED = re.compile(r" \((\d[\d,]*) people\)")


def counts(plan: Plan, task: Task) -> dict[str, Any]:
    """Who is in a task and what became of them: {task, kind, competing_known, splits, outcomes}; see `splits`,
    `outcomes`."""
    limit, times = plan.config.evaluate.min_per_class, pl.concat([task.of(s) for s in tasks.SPLITS])
    found = {"task": task.name, "kind": task.kind, "splits": splits(times, limit), "competing_known": False}
    followed, horizons = times, list(task.horizons)
    if task.kind == BINARY:
        name, days = horizon_of(task.name) or ("", 0.0)
        behind = evaluate_censoring.event_times(plan, name) if name else None
        horizons = [days]
        if behind is None:
            return found | {"outcomes": [labelled(times, days or None, limit)]}
        people = pl.concat([f.times for f in task.folds]).select("subject_id").unique()
        followed = behind.join(people, on="subject_id", how="semi")
    elif task.kind != SURVIVAL:
        return found | {"outcomes": []}
    people_N, follow_up = followed["subject_id"].to_numpy(), tasks.follow_up_of(followed)
    found["outcomes"] = [outcomes(follow_up, people_N, days, limit) for days in horizons]
    return found | {"competing_known": COMPETING in followed.columns}


def of_saved(task: str, times: pl.DataFrame, limit: int, horizons: Sequence[float] = ()) -> dict[str, Any]:
    """As `counts` with the design, of the held-out prediction times and labels that saved predictions bring."""
    kind = tasks.KIND_OF_COLUMN[times.columns[2]]
    found = {"task": task, "kind": kind, "competing_known": COMPETING in times.columns, "design": None, "steps": []}
    found["splits"] = splits(times.with_columns(split=pl.lit("held_out")), limit)
    if kind == SURVIVAL:
        people_N, follow_up = times["subject_id"].to_numpy(), tasks.follow_up_of(times)
        within = [days for days in horizons if days < np.max(follow_up.time_N)]
        return found | {"outcomes": [outcomes(follow_up, people_N, days, limit) for days in within]}
    days = (horizon_of(task) or (task, None))[1]
    return found | {"outcomes": [labelled(times, days, limit)] if kind == BINARY else []}


def splits(times: pl.DataFrame, limit: int) -> list[dict[str, Any]]:
    """[{split, people, times}] of labelled prediction times; counts of few people are None."""
    out = []
    for split in tasks.SPLITS:
        mine = times.filter(pl.col("split") == split)
        people = mine["subject_id"].n_unique()
        shown = (None, None) if disclosure.is_small(people, limit) else (people, mine.height)
        out += [{"split": split, "people": shown[0], "times": shown[1]}] if mine.height else []
    return out


def outcomes(follow_up: FollowUp, people_N: npt.ArrayLike, days: float, limit: int) -> dict[str, Any]:
    """{days, times, event, competing, censored, free} at a horizon, in prediction times.

    event: by then. competing: a competing event by then, first. censored: follow-up ended before, so that it is not
    known. free: followed to the horizon without either. Parts of few people are None, with as many others as would tell
    them.
    """
    y_N, known_N = survival.horizon_labels(follow_up.time_N, follow_up.code_N, days)
    first_N = (follow_up.code_N == 2) & (np.asarray(follow_up.time_N) <= days)
    parts = (y_N, first_N, ~known_N, known_N & ~y_N & ~first_N)
    return {"days": float(days), "times": len(y_N)} | _shown(dict(zip(OUTCOMES, parts, strict=True)), people_N, limit)


def labelled(times: pl.DataFrame, days: float | None, limit: int) -> dict[str, Any]:
    """As `outcomes` of a binary label table alone: it tells neither the censored nor competing events."""
    y_N = times["boolean_value"].to_numpy().astype(bool)
    found = _shown({"event": y_N, "free": ~y_N}, times["subject_id"].to_numpy(), limit)
    return {"days": days, "times": len(y_N), "competing": None, "censored": None, "untold": True} | found


def _shown(mask_by_part: Mapping[str, np.ndarray], people_N, limit: int) -> dict[str, int | None]:
    people = [disclosure.people_of(people_N, mask_N) for mask_N in mask_by_part.values()]
    hidden = disclosure.hidden_parts(people, limit)
    return {
        part: None if is_hidden else int(mask_N.sum())
        for (part, mask_N), is_hidden in zip(mask_by_part.items(), hidden, strict=True)
    }


def described(plan: Plan, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The counts of every task with `design`, {time_zero, ..., censoring} or None, and `steps` of its selection."""
    limit, labels, steps = plan.config.evaluate.min_per_class, Labels(plan), prepare.counts(plan)
    out = []
    for entry in found:
        design = labels.design(entry["task"])
        told = None if design is None else {k: without_few(v, limit) for k, v in design.items()}
        mine = disclosure.hide_steps(list(_of_task(entry["task"], steps)), limit)
        out.append({**entry, "design": told, "steps": mine})
    return out


def _of_task(task: str, steps: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The steps of the selection that name a task or the event that it is about."""
    name = (horizon_of(task) or (task, 0.0))[0].removeprefix("time_to_")
    about = re.compile(rf"\b{re.escape(name.removeprefix('onset_'))}\b|{re.escape(name)}")
    for step in steps:
        text = str(step["step"])
        of_another = text.startswith("label rows ") and text != f"label rows {task}"
        if text in SHARED_STEPS or (about.search(text) and not of_another):
            yield step


def without_few(text: str, limit: int) -> str:
    """A sentence without its counts of people, "(12 people)", where one of them is of few."""
    few = any(disclosure.is_small(int(n.replace(",", "")), limit) for n in _COUNTED.findall(text))
    return _COUNTED.sub("", text) if few else text
