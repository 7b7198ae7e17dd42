"""Fine-tunes the networks that the config names for a task, beside their frozen probes; each is an artifact."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from ehrwear_jax.config import options
from ehrwear_jax.config.training import FINETUNE_CHOICES, SCRATCH
from ehrwear_jax.runtime import files
from ehrwear_jax.stages.artifacts import Artifact
from ehrwear_jax.stages.embed import Embeddings
from ehrwear_jax.stages.plan import Plan, Trained
from ehrwear_jax.stages.tasks import REGRESSION, SURVIVAL, Task, TaskFold
from ehrwear_jax.stages.workdir import write_npz
from ehrwear_jax.training import embedding, scratch
from ehrwear_jax.training.finetune import Source, finetune

SPLITS, ALL_SPLITS = ("tuning", "held_out"), ("train", "tuning", "held_out")
PREDICTIONS, ABOUT = "predictions.npz", "finetuned.json"


def chosen(plan: Plan, task: Task) -> list[tuple[str, str]]:
    """[(model, mode)] of a task."""
    c = plan.config.finetune
    if task.kind == REGRESSION or (c.tasks and task.name not in c.tasks):
        return []
    return [(model, mode) for model in c.models or plan.config.networks for mode in c.modes]


def artifact(plan: Plan, task: Task, fold: TaskFold, model: str, mode: str) -> Artifact:
    """Where a fine-tuned network of one fold lies."""
    trained = Trained(model, fold.name, plan.config.seeds[0])
    given = options.as_dict(scratch.options_of(plan.config.finetune, mode))
    settings = {k: v for k, v in given.items() if k not in FINETUNE_CHOICES}
    of = {"model": _begins_with(plan, trained, mode), "labels": task.labels, "mode": mode, "finetune": settings}
    of |= {"predicted": ALL_SPLITS} if task.kind == SURVIVAL else {}
    return plan.artifact("finetuned", f"{task.name}/{model}_{mode}/{fold.name}", of)


def _begins_with(plan, trained, mode):
    """What says which parameters fine-tuning begins with: a pretrained model, or all that draws initial ones."""
    if mode != SCRATCH:
        return plan.pretrained(trained).digest
    return scratch.untrained(plan.model(trained)).identity() | {"data": plan.fit(trained.fold).digest}


def predictions(plan: Plan, task: Task, fold: TaskFold, model: str, mode: str) -> dict[str, np.ndarray]:
    """{"tuning", "held_out": P(y = 1) or log-hazard, float64 [N]}; trained where it is not there.

    Log-hazards are those of "train" too, where the baseline hazard is estimated.
    """
    made = artifact(plan, task, fold, model, mode)
    if not made.done:
        logging.info("  %s %s: %s_%s", fold.name, task.name, model, mode)
        with made.making() as folder:
            _finetune(plan, folder, Trained(model, fold.name, plan.config.seeds[0]), mode, fold)
    with np.load(made.folder / PREDICTIONS) as saved:
        return {split: saved[split] for split in saved.files}


def _finetune(plan: Plan, folder: Path, trained: Trained, mode: str, fold: TaskFold) -> None:
    model, config = plan.model(trained), scratch.options_of(plan.config.finetune, mode)
    times = {s: fold.of(s) for s in ALL_SPLITS}
    if mode == SCRATCH:
        source = scratch.source(model, plan.store(trained.fold), times, config.batch_size)
    else:
        examples, _, variables = embedding.restore(plan.pretrained(trained).folder, model, plan.store(trained.fold))
        frozen = Embeddings(plan.embeddings(trained))
        z_by_split = {s: frozen.read(times[s]) for s in ("train", "tuning")}
        source = Source(model, examples, variables, times, z_by_split)
    found = finetune(folder, source, config, mode)
    about = {k: getattr(found, k) for k in ("n_trained", "best_step", "last_step", "drift")}
    files.write_json(folder / ABOUT, about | {"settings": dataclasses.asdict(config)}, indent=1)
    wanted = ALL_SPLITS if fold.kind == SURVIVAL else SPLITS
    arrays: dict[str, Any] = {s: found.predict(source.examples, times[s], config.batch_size) for s in wanted}
    write_npz(folder / PREDICTIONS, **arrays)
