"""Names everything that predicts a task, what its predictions depend on, and how they are made.

Every entry of config.models is treated alike: a network gives latents, late fusion those of its members side by side,
and a probe is fitted on them; a tabular model is fitted on hand-made features; stacked predictions are those of other
entries, weighted. Fine-tuned networks and the mean of a regression's training split come beside them.
"""

import dataclasses
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.config import options
from ehrwear_jax.data.prepare import workers
from ehrwear_jax.evals import stacking
from ehrwear_jax.models.tabular import code_columns
from ehrwear_jax.models.tabular import family as tabular
from ehrwear_jax.models.tabular import features as tabular_features
from ehrwear_jax.runtime import files, memory
from ehrwear_jax.stages import embed, evaluate_fit, finetuned
from ehrwear_jax.stages.artifacts import Artifact
from ehrwear_jax.stages.embed import KEYS, Embeddings
from ehrwear_jax.stages.evaluate_fit import Fitted
from ehrwear_jax.stages.plan import Plan, Trained
from ehrwear_jax.stages.tasks import REGRESSION, SPLITS, SURVIVAL, Task, TaskFold
from ehrwear_jax.stages.workdir import write_npz

TRAINING_MEAN = "training_mean"
PREDICTIONS = "predictions.npz"


@dataclasses.dataclass(frozen=True)
class Predictor:
    """One model as it is evaluated.

    Attributes:
      name: in results. seed: of the network, None without one.
      of: JSON-able identity beside the task's labels.
      fit: (task, fold) -> Fitted, or None where it does not predict such a task.
    """

    name: str
    seed: int | None
    of: Any
    fit: Callable[[Task, TaskFold], Fitted | None]


def latents(plan: Plan, name: str, seed: int) -> Callable[[TaskFold], dict[str, np.ndarray]]:
    """fold of a task -> {split: z [N, D] at its prediction times}, of a network or of late fusion."""

    def of_fold(fold):
        known = {m: Embeddings(plan.embeddings(Trained(m, fold.name, seed))) for m in plan.members(name)}

        def of_split(split: str) -> np.ndarray:
            return plan.fused(name, lambda m: known[m].read(fold.of(split)))

        return {split: of_split(split) for split in SPLITS}

    return of_fold


def probed(plan: Plan) -> list[str]:
    """Models on whose latents probes are fitted."""
    return plan.config.probed


def predictors(plan: Plan, task: Task) -> list[Predictor]:
    """Everything that predicts a task, in the order of config.models; then further seeds of networks.

    Last come stacked predictions, of the first seed and of further ones, since their members are fitted before.
    """
    out = []
    for name in plan.config.models:
        if name in probed(plan):
            out.append(_probed(plan, name, plan.config.seeds[0]))
        elif name not in plan.config.stacked and name not in plan.config.pretrained:
            out.append(_tabular(plan, name))
    out += finetuned_predictors(plan, task)
    if task.kind == REGRESSION:
        fits = [plan.fit(fold).digest for fold, _ in plan.config.folds]
        of = {"mean": fits}
        out.append(Predictor(TRAINING_MEAN, None, of, lambda _, fold: evaluate_fit.training_mean(fold.target)))
    for seed in plan.config.seeds[1:]:
        out += [_probed(plan, name, seed) for name in probed(plan)]
    return out + _stacks(plan, task, out)


def _probed(plan, name, seed):
    evaluate, read = plan.config.evaluate, latents(plan, name, seed)
    networks = _networks_identity(plan, name, seed)
    groups = getattr(plan.config.model_config(name), "groups", ())
    settings = {k: getattr(evaluate, k) for k in ("probe", "probe_hidden", "probe_seeds")}
    settings = settings if evaluate.probe == "adam" else {"probe": evaluate.probe}

    def fit(task, fold):
        x = _of_the_best(plan, groups, seed, task, fold) if groups else read(fold)
        found = evaluate_fit.probe(evaluate, task.kind, x, fold.target, task.times_T, fold.competing)
        logging.info("  %s %s, %s: probe with l2 %.3g", fold.name, task.name, name, found.l2)
        return found

    of = {"networks": networks, "probe": settings}
    return Predictor(name, seed, of | {"groups": [len(g) for g in groups]} if groups else of, fit)


def _of_the_best(plan, groups, seed, task, fold):
    """{split: latents} of the best member of each group side by side, as the probe of each predicts tuning people."""
    parts = []
    for group in groups:
        x = {m: latents(plan, m, seed)(fold) for m in group}
        losses = {}
        for m in group:
            found = evaluate_fit.probe(
                plan.config.evaluate, task.kind, x[m], fold.target, task.times_T, fold.competing
            )
            losses[m] = evaluate_fit.tuning_loss(task.kind, found, fold.target)
        best = min(group, key=losses.__getitem__)
        told = ", ".join(f"{m} {loss:.4f}" for m, loss in losses.items())
        logging.info("  %s %s: %s is fused, of tuning losses %s", fold.name, task.name, best, told)
        parts.append(x[best])
    return {split: np.concatenate([x[split] for x in parts], axis=1) for split in SPLITS}


def _networks_identity(plan, name, seed):
    """Digests of the networks whose latents a model's are, of all folds."""
    folds = [fold for fold, _ in plan.config.folds]
    return [plan.pretrained(Trained(m, fold, seed)).digest for fold in folds for m in plan.members(name)]


def _tabular(plan, name):
    config, seed = plan.config.model_config(name), plan.config.seeds[0]

    def fit(task, fold):
        made = hand_made_features(plan, fold.name)
        names = tabular.columns(config, made.columns)
        if not names and config.features != "none":
            return None
        chosen = made.columns.filter(pl.col("name").is_in(pl.Series(names).implode()))
        logging.info("  %s %s, %s: %d features", fold.name, task.name, name, chosen.height)

        def read(split):
            memory.give_back()  # what reading and encoding the rows before left
            return made.read(fold.of(split), names)

        table = tabular.Table(chosen, read, feature_ranges(plan).since)
        for model in config.latents:
            table = tabular.with_latents(table, model, latents(plan, model, seed)(fold))
        return evaluate_fit.from_table(config, task.kind, table, fold.target, task.times_T, fold.competing)

    fits = [plan.fit(fold).digest for fold, _ in plan.config.folds]
    own = {k: v for k, v in options.as_dict(config).items() if k != "latents"}  # told by what they are, not by name
    of = {"tabular": own, "revision": tabular.REVISION, "fits": fits} | ranges_identity(plan)
    of |= {"latents": [_networks_identity(plan, m, seed) for m in config.latents]} if config.latents else {}
    return Predictor(name, None, of, fit)


def _stacks(plan, task, known):
    """Stacked predictions; with further seeds where a member has them, beside the one fit of a tabular member."""
    out = []
    for seed in plan.config.seeds:
        by_name = {p.name: p for p in known if p.seed in (None, seed)}
        for name in plan.config.stacked:
            config = plan.config.model_config(name)
            members = [by_name[m] for m in config.members]
            if any(m.seed is not None for m in members):
                out.append(_stacked(plan, task, name, seed, members, config.weights))
            elif seed == plan.config.seeds[0]:
                out.append(_stacked(plan, task, name, None, members, config.weights))
    return out


def _stacked(plan, task, name, seed, members, weights="fitted"):
    made = [predictions_artifact(plan, task, m) for m in members]

    def fit(task, fold):
        found = [_of_fold(_read(artifact.folder / PREDICTIONS), task, fold) for artifact in made]
        if any(f is None for f in found):
            lacking = next(m.name for m, f in zip(members, found, strict=True) if f is None)
            logging.info("  %s %s, %s: none, as %s does not predict it", fold.name, task.name, name, lacking)
            return None
        stack, weight_K = evaluate_fit.stacked(task.kind, found, fold.target, task.times_T, fold.competing, weights)
        told = ", ".join(f"{m.name} {w:.2f}" for m, w in zip(members, weight_K, strict=True))
        logging.info("  %s %s, %s: weights %s", fold.name, task.name, name, told)
        return stack

    # the members are told by their predictions, not by name
    of = {"stacked": [a.digest for a in made], "revision": stacking.REVISION}
    return Predictor(name, seed, of if weights == "fitted" else of | {"weights": weights}, fit)


def feature_ranges(plan: Plan) -> tabular_features.Ranges:
    """The ranges of time that hand-made features are computed over."""
    return tabular_features.Ranges.of(plan.config.evaluate.feature_ranges_days)


def ranges_identity(plan: Plan) -> dict:
    """What of the config's ranges of time is part of what is made of hand-made features."""
    days = plan.config.evaluate.feature_ranges_days
    return {"ranges": days} if days else {}


def finetuned_predictors(plan: Plan, task: Task) -> list[Predictor]:
    """The fine-tuned networks of a task: <model>_<mode>, such as joint_lora."""
    out = []
    for model, mode in finetuned.chosen(plan, task):
        parts = [finetuned.artifact(plan, task, fold, model, mode) for fold in task.folds]

        def fit(task, fold, model=model, mode=mode):
            found = finetuned.predictions(plan, task, fold, model, mode)
            return evaluate_fit.finetuned(task.kind, found, fold.target, task.times_T, fold.competing)

        out.append(Predictor(f"{model}_{mode}", plan.config.seeds[0], {"finetuned": [a.digest for a in parts]}, fit))
    return out


def hand_made_features(plan: Plan, fold: str) -> tabular_features.Features:
    """Features at all prediction times of a fold; made once, shard by shard."""
    times = embed.prediction_times(plan, fold).select(KEYS)
    of = {"fit": plan.fit(fold).digest, "times": files.digest(times.write_csv())}
    of |= ranges_identity(plan)
    of |= {"end": plan.config.data.holdout} if plan.config.data.holdout_time else {}
    artifact = plan.artifact("features", fold, of)
    if not artifact.done:
        tables, records, prepare = plan.tables.folder, plan.records.folder, plan.config.prepare
        codes = pl.read_parquet(records / "codes.parquet", columns=["code", "code_id", "ancestors"])
        texts = pl.read_parquet(records / "texts.parquet").join(codes.select("code", "code_id"), on="code_id")
        with artifact.making() as folder:
            sources = tabular_features.Sources(
                events=tuple(sorted((tables / "events").glob("*.parquet"))),
                windows=tuple(sorted((tables / "windows").glob("*.parquet"))),
                subjects=pl.read_parquet(plan.fit(fold).folder / "subjects.parquet"),
                codes=code_columns.with_texts(codes.drop("code_id"), texts.select("code", "text")),
                min_subjects=prepare.min_subjects,
                window_hours=prepare.window_hours,
                end=plan.config.data.holdout_time,
                ranges=feature_ranges(plan),
            )
            with workers.open_pool(prepare) as pool:
                tabular_features.build(sources, times, folder, pool)
        memory.give_back()
    return tabular_features.Features(artifact.folder, times)


# ------------------------------------------------------------------------------------------------- predictions


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Predictions of a model for a task, over its folds.

    Attributes:
      artifact: where they lie. name, seed: of the Predictor.
      held_out, tuning, curve_NxT, seeds_SxN: see evaluate_fit.Fitted; in the order of Task.of.
    """

    artifact: Artifact
    name: str
    seed: int | None
    held_out: np.ndarray
    tuning: np.ndarray
    curve_NxT: np.ndarray | None = None
    seeds_SxN: np.ndarray | None = None


def predictions_artifact(plan: Plan, task: Task, predictor: Predictor) -> Artifact:
    """Where a model's predictions for a task lie."""
    seed = f"-seed{predictor.seed}" if predictor.seed is not None else ""
    of = {"of": predictor.of, "labels": task.labels, "folds": [f.number for f in task.folds]}
    of |= {"times": task.times_T.tolist()} if task.kind == SURVIVAL else {}
    return plan.artifact("predictions", f"{task.name}/{predictor.name}{seed}", of)


def predict(plan: Plan, task: Task, only: Collection[str] | None = None) -> list[Predicted]:
    """Predictions of every model for a task; those that are there are read.

    Args:
      only: names of the models that are wanted, of their first seed alone; None: all, and all seeds.

    Raises:
      ValueError: a model cannot be fitted, as without an event in the training or the tuning split; names both.
    """
    out = []
    wanted = predictors(plan, task)
    if only is not None:
        stacks = [plan.config.model_config(name) for name in only if name in plan.config.stacked]
        needed = {*only, *(member for stack in stacks for member in stack.members)}
        wanted = [p for p in wanted if p.name in needed and p.seed in (None, plan.config.seeds[0])]
    for predictor in wanted:
        artifact = predictions_artifact(plan, task, predictor)
        if not artifact.done:
            with artifact.making() as folder:
                fitted = [_fit(predictor, task, fold) for fold in task.folds]
                _write(folder / PREDICTIONS, [f for f in fitted if f is not None])
            memory.give_back()
        arrays = _read(artifact.folder / PREDICTIONS)
        if arrays and (only is None or predictor.name in only):
            out.append(Predicted(artifact, predictor.name, predictor.seed, **arrays))
    return out


def _fit(predictor, task, fold):
    try:
        return predictor.fit(task, fold)
    except ValueError as error:
        raise ValueError(f"{predictor.name} cannot be fitted to {task.name}, fold {fold.name}: {error}") from error


def _write(path: Path, fitted: list[Fitted]) -> None:
    """Predictions of all folds one behind the other; nothing of a model that does not predict the task."""
    arrays: dict[str, Any] = {}
    for name, axis in (("held_out", 0), ("tuning", 0), ("curve_NxT", 0), ("seeds_SxN", 1)):
        parts = [getattr(f, name) for f in fitted]
        if parts and parts[0] is not None:
            arrays[name] = np.concatenate(parts, axis=axis)
    write_npz(path, **arrays)


def _of_fold(arrays, task, fold):
    """Predictions of one fold, of those of all that `_write` wrote; None of a model that does not predict the task."""
    if not arrays:
        return None
    k, parts = [f.name for f in task.folds].index(fold.name), {}
    for split in ("held_out", "tuning"):
        ends = np.cumsum([f.of(split).height for f in task.folds])
        parts[split] = np.split(arrays[split], ends[:-1])[k]
    return Fitted(parts["held_out"], parts["tuning"])


def _read(path):
    with np.load(path) as saved:
        return {name: saved[name] for name in saved.files}
