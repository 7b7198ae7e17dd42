"""Writes what z holds of the hand-made features: the ledger of a model.

ledger.json   [{model, modality (ehr, wear), of (code, channel; "" for the record), statistic (last, mean, slope,
              count, days_since, ...), range (30d, 6h, all, ""), measure (r2, auroc), value, n, n_train}] of the
              features of the first fold; see interpret/ledger.py.
"""

from typing import Any

import numpy as np
import polars as pl

from ehrwear_jax.interpret import ledger
from ehrwear_jax.models.tabular.event_features import COUNT, FLAG, SINCE
from ehrwear_jax.stages import predictors
from ehrwear_jax.stages.loaded_run import LoadedRun


def compute(run: LoadedRun, name: str, folder: Any) -> list[dict]:
    """The entries of a model's ledger."""
    del folder
    config = run.config.interpret
    if not config.ledger_codes:
        return []
    features = predictors.hand_made_features(run.plan, run.fold)
    chosen = _chosen(run, features, config.ledger_codes)
    rows = {split: _rows(run, split, config.ledger_times) for split in ledger.SPLITS}
    since_days = predictors.feature_ranges(run.plan).since  # as the tabular models read it
    z = {split: run.latents(name)[at].astype(np.float64) for split, at in rows.items()}
    kinds = chosen["kind"].to_list()
    x = {split: _dense(features.read(run.keys[at], chosen["name"]), kinds, since_days) for split, at in rows.items()}
    found = ledger.scores(z, x, np.array([kind == FLAG for kind in kinds]))
    named = zip((split_name(n) for n in chosen["name"]), found, strict=True)
    return [{"model": name, **about, **entry} for about, entry in named if entry is not None]


def split_name(name: str) -> dict[str, str]:
    """What a column of hand-made features is of: modality, of, statistic, range (features.py has the names)."""
    modality, _, rest = name.partition("__")
    if rest.startswith("static__"):
        of, value = rest.removesuffix("__value"), rest.endswith("__value")
        return {"modality": modality, "of": of.removeprefix("static__"), "statistic": "value" if value else "flag",
                "range": ""}  # fmt: skip
    of, _, what = rest.rpartition("__")
    statistic, _, days = what.rpartition("_")
    if days == "all" or (days.endswith(("d", "h")) and days[:-1].replace(".", "", 1).isdigit()):
        return {"modality": modality, "of": of, "statistic": statistic, "range": days}
    return {"modality": modality, "of": of, "statistic": what, "range": ""}


def _rows(run, split, limit):
    """Which prediction times of a split are looked at: whole people, drawn by the seed, up to about the limit."""
    here = run.keys.with_row_index("at").filter(pl.col("split") == split)
    if limit and here.height > limit:
        people = here["subject_id"].unique().sort().to_numpy()
        people = np.random.default_rng(run.config.data.seed).permutation(people)
        order = pl.DataFrame({"subject_id": people, "order": np.arange(len(people))})
        here = here.join(order, on="subject_id").sort("order", "at").head(limit).sort("at")
    return here["at"].to_numpy()


def _chosen(run, features, n_codes):
    """Columns (name, kind) of the codes that most training times know, and all that are of no code."""
    train = _rows(run, "train", run.config.interpret.ledger_times)
    columns = features.columns.select("name", "kind")
    known_F = np.diff(features.read(run.keys[train], columns["name"]).tocsc().indptr)
    of = [split_name(n)["of"] if n.startswith("ehr__") else "" for n in columns["name"]]
    columns = columns.with_columns(of=pl.Series(of), known=pl.Series(known_F))
    most = columns.filter(pl.col("of") != "").group_by("of").agg(pl.col("known").max())
    most = most.sort("known", "of", descending=[True, False]).head(n_codes)["of"]
    return columns.filter((pl.col("of") == "") | pl.col("of").is_in(most.implode())).filter(pl.col("known") > 0)


def _dense(x, kinds, since_days):
    """Sparse features as numbers to read: log counts, log(1 + days since / since_days), values; NaN: unknown."""
    x = x.tocoo()
    out = np.full(x.shape, np.nan)
    out[x.row, x.col] = x.data
    for f, kind in enumerate(kinds):
        if kind in (COUNT, FLAG):
            out[:, f] = np.log1p(np.maximum(np.nan_to_num(out[:, f]), 0)) if kind == COUNT else np.nan_to_num(out[:, f])
        elif kind == SINCE:
            out[:, f] = np.log1p(np.maximum(out[:, f], 0) / since_days)
    return out
