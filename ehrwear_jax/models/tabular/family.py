"""Fits models on hand-made features, a model per task; a family without a network (stages/predictors.py).

Array suffixes: N rows, F features.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from ehrwear_jax.models.tabular import boosting, kernel, linear, losses
from ehrwear_jax.models.tabular.config import Config
from ehrwear_jax.models.tabular.encoder import Encoder
from ehrwear_jax.models.tabular.features import AGE, COUNT, VALUE
from ehrwear_jax.models.tabular.quantiles import NormalScores

__all__ = ["REVISION", "Config", "Table", "columns", "scores", "with_latents"]

REVISION = 3  # of what is fitted: raised with every change of its numbers, so that earlier predictions are made anew

_MAX_STATIC = 16  # static facts whose interaction with age a linear model has


@dataclasses.dataclass(frozen=True)
class Table:
    """The features that a model is given.

    Attributes:
      columns: name, kind of each.
      read: split -> features at its prediction times, CSR float32 [N, F], which the caller may change.
      since_days: days in which "time since" is told most finely, see Encoder.
    """

    columns: pl.DataFrame
    read: Callable[[str], sparse.csr_matrix]
    since_days: float = 30.0


def with_latents(table: Table, model: str, z: Mapping[str, np.ndarray]) -> Table:
    """The table with the latents of a model as further columns.

    Args:
      z: split -> latents at the prediction times of table.read(split), float [N, D].
    """
    names = [f"latent__{model}__{k}" for k in range(z["train"].shape[1])]
    further = pl.DataFrame({"name": names}).with_columns(kind=pl.lit(VALUE))

    def read(split: str) -> sparse.csr_matrix:
        own = np.asarray(z[split], np.float32)
        full = np.indices(own.shape).reshape(2, -1)  # a latent of exactly 0 is known, too
        return sparse.hstack([table.read(split), sparse.csr_matrix((own.ravel(), full), own.shape)], "csr")

    return dataclasses.replace(table, columns=pl.concat([table.columns.select("name", "kind"), further]), read=read)


def columns(config: Config, table: pl.DataFrame) -> list[str]:
    """The features that a model is given, of Features.columns; [] where it would be another one's or has none.

    None are wanted by a model of latents alone. A model of fewer modalities than there are differs from one of all only
    where there are features of both.
    """
    name = pl.col("name")
    there = [m for m in ("ehr", "wear") if table["name"].str.starts_with(f"{m}__").any()]
    mine = [m for m in there if m in config.modalities]
    if config.features == "none" or not mine or (len(config.modalities) == 1 and len(there) == 1):
        return []
    if config.features == "demographics":
        sexes = (name.str.starts_with(f"ehr__static__{prefix}") for prefix in config.sex_prefixes)
        return table.filter(pl.any_horizontal(name == AGE, *sexes))["name"].to_list()
    kept = table.filter(pl.any_horizontal(name.str.starts_with(f"{m}__") for m in mine))
    if config.features == "counts":
        kept = kept.filter((pl.col("kind") == COUNT) & name.str.starts_with("ehr__"))
    return kept["name"].to_list()


def scores(config: Config, kind: str, table: Table, target: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"tuning", "held_out": log-odds, log-hazard or value float64 [N]} of a task.

    Args:
      kind: losses.BINARY, SURVIVAL or REGRESSION.
      table: of splits train, tuning and held_out, each of which is read once, held-out ones last.
      target: {"train", "tuning": labels [N]}; of a time-to-event task (time [N], event [N]).

    Raises:
      ValueError: see losses.of and Encoder.
    """
    if config.estimator == "average":
        both = [scores(dataclasses.replace(config, estimator=e), kind, table, target) for e in ("boosting", "linear")]
        return {split: (both[0][split] + both[1][split]) / 2 for split in both[0]}
    fit = {"linear": _linear, "kernel": _kernel, "boosting": _boosted}[config.estimator]
    if config.estimator == "kernel":
        target = {**target, "train": _some_rows(kind, target["train"])}
    return fit(config, table, *(losses.of(kind, target[s], s) for s in ("train", "tuning")))


def _boosted(config, table, train, tuning):
    x_train = table.read("train")
    encode = Encoder(x_train, table.columns["kind"].to_list(), table.since_days)
    rows = boosting.Rows.of(encode(x_train), train)
    del x_train  # trees grow on its bins alone
    x_tuning = encode(table.read("tuning"))
    chosen = boosting.CANDIDATES[: config.candidates]
    search = boosting.Search(chosen, config.max_trees, averaged=config.averaged, seed=config.seed)
    model = boosting.fit(rows, rows.like(x_tuning, tuning), search)
    del rows
    found = {"tuning": model.score(x_tuning)}
    del x_tuning
    return found | {"held_out": model.score(encode(table.read("held_out")))}


def _some_rows(kind, target):
    """The targets of the rows that a kernel machine is fitted to."""
    if kind == losses.SURVIVAL:
        return tuple(np.asarray(of_N)[kernel.rows(len(of_N))] for of_N in target)
    return np.asarray(target)[kernel.rows(len(target))]


def _kernel(config, table, train, tuning):
    x_train = table.read("train")
    encode = Encoder(x_train, table.columns["kind"].to_list(), table.since_days)
    x_train, x_tuning = encode(x_train), encode(table.read("tuning"))
    x_train = x_train[kernel.rows(x_train.shape[0])]
    model = kernel.fit(x_train, train, x_tuning, tuning, config.averaged)
    logging.info("    kernel: tuning loss by gamma %s", {g: round(loss, 4) for g, loss in model.tuning_loss.items()})
    found = {"tuning": model.score(x_tuning)}
    return found | {"held_out": model.score(encode(table.read("held_out")))}


def _linear(config, table, train, tuning):
    """Of values in standard deviations, or of their normal scores and squares: what has the lower tuning loss."""
    del config
    x_train, kinds = table.read("train"), table.columns["kind"].to_list()
    encode, interactions = Encoder(x_train, kinds, table.since_days), _interactions(table.columns)
    x_train, x_tuning = encode(x_train), encode(table.read("tuning"))
    normal_scores = NormalScores(x_train, kinds)
    found = []
    # the scores take the values' place, so they come second
    for design in (lambda x: [interactions(x), x], lambda x: [interactions(x), *normal_scores(x)]):
        of_tuning = design(x_tuning)
        model = linear.fit(design(x_train), train, of_tuning, tuning)
        found.append((model.tuning_loss[model.l2], design, model, model.score(of_tuning)))
    del x_train, x_tuning, of_tuning
    _, design, model, score_N = min(found, key=lambda f: f[0])
    return {"tuning": score_N, "held_out": model.score(design(encode(table.read("held_out"))))}


def _interactions(table: pl.DataFrame) -> Callable[[sparse.csr_matrix], sparse.csr_matrix]:
    """What gives a linear model the square and the bends of age, and its products with static facts.

    Age counts in standard deviations of the training times.
    """
    names = table["name"].to_list()
    static = [i for i, (n, k) in enumerate(table.select("name", "kind").iter_rows()) if n.startswith("ehr__static__")]
    static = static[:_MAX_STATIC]

    def expand(x: sparse.csr_matrix) -> sparse.csr_matrix:
        if AGE not in names:
            return sparse.csr_matrix((x.shape[0], 0), dtype=np.float32)
        age_N = x[:, names.index(AGE)].toarray()
        bends = [age_N**2, np.maximum(age_N - 0.5, 0), np.maximum(age_N - 1.0, 0), np.maximum(-age_N - 0.5, 0)]
        facts = x[:, static].multiply(age_N)
        return sparse.hstack([np.concatenate(bends, axis=1), facts], "csr", dtype=np.float32)

    return expand
