"""Divides people into training, tuning and held-out ones, and says who of them is pretrained on, and until when."""

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from ehrwear_jax.config.data import CohortConfig, DataConfig
from ehrwear_jax.data.formats import meds
from ehrwear_jax.data.labels import cohort
from ehrwear_jax.data.sources.csv_source import hashed_uniform

_OF_WINDOWS = ("subject_id", "time", "worn_minutes")


@dataclasses.dataclass(frozen=True)
class Division:
    """How people are divided.

    Attributes:
      fold: which one is held out; None: the dataset's own splits, or hashed ones.
      data: seed, n_folds, split_fractions and holdout. cohort: criteria and cut-off of pretraining.
      tuning_fraction: with a fold, of the other groups.
    """

    fold: int | None = None
    data: DataConfig = DataConfig()
    cohort: CohortConfig = CohortConfig()
    tuning_fraction: float = 0.1

    @property
    def cutoff(self) -> datetime | None:
        """When the records end that are learned from: the cut-off or, if it comes first, a temporal hold-out's date."""
        return min((t for t in (self.cohort.cutoff_time, self.data.holdout_time) if t is not None), default=None)

    def identity(self, has_splits: bool, has_folds: bool) -> dict:
        """What of it a fit depends on.

        Args:
          has_splits, has_folds: whether the dataset has some; what they are is part of the tables.
        """
        cut, chosen = self.cutoff, self.cohort.selects_pretraining
        # of a temporal hold-out the cut alone: which times are predicted is no part of what is learned
        of: dict[str, Any] = {"fold": self.fold, "site": self.data.holdout_site, "cutoff": str(cut or "")}
        of["criteria"] = self.cohort.criteria if chosen else None
        if self.fold is not None:
            of |= {"seed": self.data.seed, "tuning": self.tuning_fraction}
            return of if has_folds else of | {"n_folds": self.data.n_folds}
        return of if has_splits else of | {"seed": self.data.seed, "fractions": self.data.split_fractions}


def assign(subjects: pl.DataFrame, division: Division, at_site: pl.Series | None = None) -> pl.DataFrame:
    """`subjects` with the split of each one.

    Groups stay whole. Where the dataset has no splits (null) or, for out-of-fold evaluation, no folds, groups are
    divided by hashes of their ids and data.seed. With a hold-out by site, every group with somebody of it is held out,
    and of the others the tuning people stay tuning people and everybody else is trained on.

    Args:
      subjects: subject_id, split (null: the dataset has none), group_id and perhaps fold.
      at_site: subject_ids of a site that is held out.

    Raises:
      ValueError: a group in more than one split, or nobody of the site.
    """
    split = pl.col("split")
    if division.fold is not None:
        subjects = subjects.with_columns(_by_fold(subjects, division))
    elif subjects.height and subjects["split"].null_count() == subjects.height:
        u_N = hashed_uniform(subjects["group_id"].to_numpy(), division.data.seed, "split")
        train, tuning, _ = division.data.split_fractions
        names = np.array(meds.SPLITS, object)[np.searchsorted([train, train + tuning], u_N, side="right")]
        subjects = subjects.with_columns(pl.Series("split", names.tolist(), pl.String))
    subjects = _require_whole_groups(subjects)
    if at_site is None:
        return subjects
    there = subjects.filter(pl.col("subject_id").is_in(at_site.implode()))["group_id"].unique()
    if not len(there):
        raise ValueError(f"config.data.holdout: nobody is of the site {division.data.holdout_site!r}")
    held = pl.when(pl.col("group_id").is_in(there.implode())).then(pl.lit("held_out"))
    return subjects.with_columns(held.when(split == "tuning").then(split).otherwise(pl.lit("train")).alias("split"))


def _by_fold(subjects, division):
    """The split of each subject: one fold held out, hashed groups of the others for tuning."""
    group_N = subjects["group_id"].to_numpy()
    if "fold" in subjects.columns:
        fold_N = subjects["fold"].to_numpy()
    else:
        fold_N = (division.data.n_folds * hashed_uniform(group_N, division.data.seed, "fold")).astype(np.int32)
    # every fold draws its own tuning groups; seed 0 is what was drawn before there was a choice
    purpose = f"tuning {division.data.seed}" if division.data.seed else "tuning"
    is_tuning = hashed_uniform(group_N, division.fold, purpose) < division.tuning_fraction
    split_N = np.where(fold_N == division.fold, "held_out", np.where(is_tuning & (fold_N >= 0), "tuning", "train"))
    return pl.Series("split", split_N.tolist(), pl.String)


def _require_whole_groups(subjects):
    spread = subjects.group_by("group_id").agg(pl.col("split").unique().sort()).filter(pl.col("split").list.len() > 1)
    if spread.height:
        group, splits = spread.sort("group_id").row(0)
        raise ValueError(f"metadata/subject_groups.parquet: group {group} is in {' and '.join(splits)}")
    return subjects


def divide(tables: Path, division: Division, window_hours: float) -> tuple[pl.DataFrame, list[dict]]:
    """The people of prepared tables with their split and, where not all are, whether they are pretrained on.

    Returns:
      (subjects.parquet with split and perhaps pretraining bool, which held-out people never are; steps [{step, n,
      dropped, reason}], [] where the dataset's own splits are taken as they are).

    Raises:
      ValueError: see `assign`, or nobody of the training people is eligible.
    """
    subjects, site = pl.read_parquet(tables / "subjects.parquet"), division.data.holdout_site
    own = "fold" in subjects.columns if division.fold is not None else subjects["split"].null_count() < subjects.height
    subjects = assign(subjects, division, _people_of_site(tables, subjects, site) if site else None)
    subjects = subjects.drop("site") if "site" in subjects.columns else subjects
    steps = []
    if site or not own:
        how = f"site {site}" if site else f"hashes of ids, seed {division.data.seed}"
        sizes = {split: subjects.filter(pl.col("split") == split).height for split in meds.SPLITS}
        steps = [{"step": f"people of {s}, by {how}", "n": n, "dropped": 0, "reason": ""} for s, n in sizes.items()]
    if division.cutoff is None and not division.cohort.selects_pretraining:
        return subjects, steps
    learned = subjects.filter(pl.col("split") != "held_out").select("subject_id")
    if division.cohort.selects_pretraining:
        if division.cutoff is None:
            raise ValueError("config.cohort has criteria but no cutoff at which they are judged for pretraining")
        at = learned.with_columns(pl.lit(division.cutoff, pl.Datetime("us")).alias("prediction_time"))
        found, judged = cohort.select(at, read_evidence(tables, window_hours, division.cohort), division.cohort)
        when = f"{division.cutoff:%Y-%m-%d}"
        steps += [{**s, "step": f"pretraining, at {when}: {s['step']}"} for s in judged if "people" in s["step"]]
        learned = found.select("subject_id")
        if not (subjects.join(learned, on="subject_id", how="semi")["split"] == "train").any():
            raise ValueError(
                f"config.cohort lets nobody of the training people in at {when}: "
                + "; ".join(f"{s['step']} {s['n']:,}" for s in steps)
            )
    return subjects.with_columns(
        pl.col("subject_id").is_in(learned["subject_id"].implode()).alias("pretraining")
    ), steps


def read_evidence(tables: Path, window_hours: float, config: CohortConfig) -> cohort.Evidence:
    """What eligibility is judged by, of tables that prepare_tables wrote."""
    events = (pl.scan_parquet(p) for p in sorted((tables / "events").glob("*.parquet")))
    paths = sorted((tables / "windows").glob("*.parquet"))
    windows = (pl.scan_parquet(p).select(cs.by_name(*_OF_WINDOWS, require_all=False)).collect() for p in paths)
    births = pl.read_parquet(tables / "subjects.parquet", columns=["subject_id", "birth_time"])
    return cohort.gather(events, windows, births, window_hours, config)


def _people_of_site(tables, subjects, site):
    """subject_ids with a code that begins so or, of COLUMN=VALUE, with that value in `site`."""
    if "=" in site:
        return subjects.filter(pl.col("site") == site.partition("=")[2])["subject_id"]
    events = pl.scan_parquet(sorted((tables / "events").glob("*.parquet")))
    return events.filter(pl.col("code").str.starts_with(site)).select("subject_id").unique().collect()["subject_id"]
