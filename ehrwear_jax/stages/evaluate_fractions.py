"""Measures what few labels are worth: models fitted again to the labels of a share of the training patients.

A model on a fraction of the labels is the same predictor (stages/predictors.py) given a task that has fewer training
rows, so that probes, tabular models and models on both are treated alike, in every fold; its predictions are kept like
those of the whole task. Patients are drawn in each fold apart. What has no labels in it, z above all, is as it was. All
choices that a model makes are made on the whole tuning split, which overestimates small fractions a little, and all
models alike.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from ehrwear_jax.evals import classification, concordance, inference, subgroups
from ehrwear_jax.evals.estimates import Estimates, estimate
from ehrwear_jax.evals.protocol import TaskSpec, number
from ehrwear_jax.evals.weighting import Deferred, Statistic, evaluate
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import predictors, tasks
from ehrwear_jax.stages.plan import Plan
from ehrwear_jax.stages.tasks import BINARY, SURVIVAL, Task, TaskFold

Draws = list[Callable[[], Statistic]]


def models(plan: Plan) -> tuple[str, ...]:
    """Models that are fitted to fractions of the labels: those of the config, else all on whose latents probes are."""
    return plan.config.evaluate.label_models or tuple(predictors.probed(plan))


def on_fraction(plan: Plan, task: Task, fraction: float, draw: int) -> Task:
    """The task whose training rows are those of a share of the training patients, drawn in each fold.

    Patients with and without an event (a positive label) are drawn apart, at least one of each; smaller fractions of a
    draw are parts of its larger ones.
    """
    if fraction >= 1:
        return task
    folds = tuple(_restricted(fold, fraction, draw, plan.config.data.seed) for fold in task.folds)
    labels = files.digest([task.labels, "fraction", fraction, draw, plan.config.data.seed])
    return dataclasses.replace(task, folds=folds, labels=labels)


def _restricted(fold: TaskFold, fraction, draw, seed):
    train = fold.of("train")
    event_N = train["event_observed" if fold.kind == SURVIVAL else "boolean_value"].to_numpy().astype(np.int64)
    group_N = train["group_id"].to_numpy()
    rows = subgroups.label_fractions(event_N, group_N, (fraction,), n_draws=draw + 1, seed=seed)[fraction, draw]
    others = fold.times.filter(pl.col("split") != "train")
    return dataclasses.replace(fold, times=pl.concat([train[rows], others]).sort(predictors.KEYS))


def label_efficiency(plan: Plan, task: Task, spec: TaskSpec) -> list[dict]:
    """AUROC and AUPRC, or C, of models on fractions of the labels: means over the draws, with their intervals.

    The intervals are over held-out patients, with the draws fixed; `spread` is the standard deviation over draws.
    Differences are paired with the reference model on the same fraction. All draws of everything are one. C is that of
    the cause-specific risk where there are competing events.

    Returns:
      [{dataset, task, model, fraction, n_draws, n_patients, metric, value, lo, hi, spread, difference, difference_lo,
      difference_hi}]: n_patients of the training patients, of the first draw, on average over folds; difference:
      reference less model, None of the reference itself or without it.
    """
    config = plan.config.evaluate
    if not config.label_fractions or task.kind not in (BINARY, SURVIVAL):
        return []
    draws: dict[tuple[str, float], Draws] = {}
    sizes: dict[float, int] = {}
    for fraction in config.label_fractions:
        for draw in range(config.label_draws if fraction < 1 else 1):
            part = on_fraction(plan, task, fraction, draw)
            if not draw:
                sizes[fraction] = round(np.mean([f.of("train")["group_id"].n_unique() for f in part.folds]))
            for name, held_out in _predictions(plan, part, fraction):
                draws.setdefault((name, fraction), []).append(functools.partial(_ranking, task, held_out))
    # a model that could not be fitted to every draw has no mean that is comparable
    whole = {key: len(found) for key, found in draws.items()}
    draws = {
        (m, f): found for (m, f), found in draws.items() if whole[m, f] == max(whole[k] for k in whole if k[1] == f)
    }
    n = len(task.group_N)
    averaged = {key: Deferred(functools.partial(_mean_of, made), n * len(made)) for key, made in draws.items()}
    estimates = estimate(averaged, task.group_N, spec.resampling)
    out = []
    for (model, fraction), made in draws.items():
        values = [evaluate(make(), n) for make in made]
        common = {"dataset": spec.dataset, "task": task.name, "model": model, "fraction": fraction}
        common |= {"n_draws": len(made), "n_patients": sizes[fraction]}
        for metric, value in estimates.values[model, fraction].items():
            bounds = inference.interval(estimates.resampled((model, fraction), metric))
            record = {"metric": metric, "value": number(value), "lo": number(bounds.lo), "hi": number(bounds.hi)}
            spread = float(np.std([float(v[metric]) for v in values], ddof=1)) if len(values) > 1 else None
            compared = _difference(estimates, spec.reference_model, (model, fraction), metric)
            out.append(common | record | {"spread": spread} | compared)
    return out


def _predictions(plan, task, fraction):
    """(model, held-out predictions); one that cannot be fitted to so few labels is left out, and named."""
    for name in models(plan):
        try:
            with threadpool_limits(1, user_api="blas"):  # many small problems: threads would wait for each other
                found = predictors.predict(plan, task, only=(name,))
        except ValueError as error:
            if fraction >= 1:
                raise
            logging.warning("  %s, %g%% of the labels: left out: %s", task.name, 100 * fraction, error)
            continue
        for predicted in found:
            yield predicted.name, predicted.held_out


def _ranking(task, held_out_N):
    held = task.of("held_out")
    if task.kind == BINARY:
        return classification.BinaryRanking(held["boolean_value"].to_numpy(), held_out_N)
    follow_up = tasks.follow_up_of(held)
    return concordance.harrell_c(follow_up.time_N, follow_up.code_N, held_out_N)


def _mean_of(draws: Sequence[Callable[[], Statistic]]) -> Statistic:
    parts = [make() for make in draws]

    def statistic(weight_NxB):
        found = [part(weight_NxB) for part in parts]
        return {metric: np.mean([f[metric] for f in found], axis=0) for metric in found[0]}

    return statistic


def _difference(estimates: Estimates, reference, key, metric):
    names = ("difference", "difference_lo", "difference_hi")
    first = (reference, key[1])
    if reference is None or first == key or first not in estimates.values:
        return dict.fromkeys(names)
    value, delta_B = estimates.difference(first, key, metric)
    bounds = inference.interval(delta_B)
    return dict(zip(names, (number(value), number(bounds.lo), number(bounds.hi)), strict=True))
