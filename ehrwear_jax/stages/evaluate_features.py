"""Gathers the features that are evaluated: embeddings of each model, late fusion, hand-made features."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax import config as config_lib
from ehrwear_jax.models.tabular import features
from ehrwear_jax.stages.evaluate_subgroups import KEYS

# fold -> (prediction times of its people with split, group_id and `at`, the position in the embeddings;
#          {model: float [N, D], or the table of hand-made features})
Features = Mapping[str, tuple[pl.DataFrame, Mapping[str, Any]]]


def of_fold(config: Any, workdir: Path, fold: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """What `Features` holds of a fold."""
    folder = workdir / "embed" / fold
    keys, out = None, {}
    for model in config.rows:
        table = pl.read_parquet(folder / f"{model}.parquet")
        keys = table.select(*KEYS, "split") if keys is None else keys
        out[model] = np.stack(table["embedding"].to_numpy())
    if config.evaluate.late_fusion and set(config.evaluate.late_fusion) <= set(config.rows):
        out["late_fusion"] = np.concatenate([out[m] for m in config.evaluate.late_fusion], axis=1)
    if config.evaluate.tabular:
        out["tabular"] = _tabular_features(config, workdir, fold, keys)
    subjects = pl.read_parquet(workdir / "prepare" / fold / "subjects.parquet")
    return keys.join(subjects.select("subject_id", "group_id"), on="subject_id", how="left").with_row_index("at"), out


def _tabular_features(config, workdir, fold, keys):
    path = workdir / "evaluate" / f"tabular_{fold}.parquet"
    if not path.exists():
        tables, split = workdir / "prepare" / "tables", workdir / "prepare" / fold
        subjects = pl.read_parquet(split / "subjects.parquet")
        windows = sorted((tables / "windows").glob("*.parquet"))
        features.build_features(
            pl.concat([pl.read_parquet(p) for p in sorted((tables / "events").glob("*.parquet"))]),
            subjects,
            pl.concat([pl.read_parquet(p) for p in windows]) if windows else None,
            keys.select(KEYS),
            train_subject_ids=subjects.filter(pl.col("split") == "train")["subject_id"],
            max_codes=config.evaluate.tabular_codes,
        ).write_parquet(f"{path}.partial")
        os.replace(f"{path}.partial", path)
    return pl.read_parquet(path)


def held_out_groups(config: Any, by_fold: Features) -> np.ndarray:
    """Groups of all held-out people with a prediction time, so that the tasks share their resamples."""
    held = [by_fold[fold][0].filter(pl.col("split") == "held_out")["group_id"] for fold, _ in config_lib.folds(config)]
    return pl.concat(held).unique().sort().to_numpy()


def tabular_matrices(table: pl.DataFrame, by_modality: bool) -> dict[str, np.ndarray]:
    """{suffix of the model's name: matrix}: all hand-made features, and those of one modality where both are there."""
    groups = features.feature_groups(table)
    out = {"": [*groups["ehr"], *groups["wear"]]}
    if by_modality and groups["wear"] and groups["ehr"]:
        out |= {"_ehr": groups["ehr"], "_wear": groups["wear"]}
    return {k: table.select(v).cast(pl.Float64).fill_null(float("nan")).to_numpy() for k, v in out.items()}
