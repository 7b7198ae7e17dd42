"""Describes the evaluated people: attributes at every prediction time, and the cohort's tables."""

import functools
import re

import numpy as np
import polars as pl

from ehrwear_jax.config.evaluation import EvaluateConfig
from ehrwear_jax.data import ages, perturbations
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.formats.times import YEAR_DAYS
from ehrwear_jax.data.prepare import workers
from ehrwear_jax.data.store import RecordStore
from ehrwear_jax.evals import disclosure, subgroups
from ehrwear_jax.runtime import files
from ehrwear_jax.stages import embed
from ehrwear_jax.stages.artifacts import Artifact
from ehrwear_jax.stages.embed import KEYS
from ehrwear_jax.stages.plan import Plan

_TIMES_AT_ONCE = 8192  # prediction times whose records a process reads in turn
SEXES = {"F": "female", "FEMALE": "female", "M": "male", "MALE": "male"}


def attributes_artifact(plan: Plan, fold: str) -> Artifact:
    """Where the `attributes` of a fold lie."""
    times = files.digest(embed.prediction_times(plan, fold).select(KEYS).write_csv())
    of = {"fit": plan.fit(fold).digest, "times": times, "sex": plan.config.evaluate.sex_prefixes}
    if plan.config.evaluate.encounter_prefixes:
        of["encounters"] = plan.config.evaluate.encounter_prefixes
    return plan.artifact("attributes", fold, of)


def held_out_attributes(plan: Plan) -> pl.DataFrame:
    """`attributes` of every fold's held-out prediction times, one fold behind the other."""
    parts = [attributes(plan, fold) for fold, _ in plan.config.folds]
    return pl.concat([p.filter(pl.col("split") == "held_out") for p in parts])


def described(plan: Plan) -> pl.DataFrame:
    """`attributes` of whom the cohort's tables describe: all splits of one fold; of several, everybody as held out.

    The splits of one of several folds would say nothing of the others.
    """
    first, *others = [fold for fold, _ in plan.config.folds]
    return held_out_attributes(plan) if others else attributes(plan, first)


def attributes(plan: Plan, fold: str) -> pl.DataFrame:
    """What is known of the person at every prediction time of a fold, with its split; made once.

    Columns: subject_id, prediction_time, age_years f64, sex, device (the one worn until then, or "several"), encounters
    and wear_days (`data.perturbations.failure_flags`), ehr_years (record before the prediction time), split; null where
    unknown.
    """
    artifact = attributes_artifact(plan, fold)
    path = artifact.folder / "attributes.parquet"
    if not artifact.done:
        with artifact.making():
            _make_attributes(plan, fold).write_parquet(path)
    return pl.read_parquet(path)


def _make_attributes(plan, fold):
    keys = embed.prediction_times(plan, fold)
    subjects = pl.read_parquet(plan.fit(fold).folder / "subjects.parquet")
    births = subjects.select("subject_id", "birth_time", ages.LIMIT)
    out = keys.select(KEYS).join(births, on="subject_id", how="left")
    age = ages.years(pl.col("birth_time"), pl.col("prediction_time"), pl.col(ages.LIMIT))
    out = out.with_columns(age_years=age).drop("birth_time", ages.LIMIT)
    out = out.join(_sex(plan), on="subject_id", how="left")
    out = _with_device(plan, out)
    flags = _flags(plan, fold, out)
    timed = pl.col("time").is_not_null() & ~pl.col("code").str.starts_with("MEDS_BIRTH")
    parts = [e.filter(timed).group_by("subject_id").agg(first=pl.col("time").min()).collect() for e in _events(plan)]
    first = pl.concat(parts).group_by("subject_id").agg(pl.col("first").min())
    out = pl.concat([out, flags.select("encounters", "wear_days")], how="horizontal")
    years = (pl.col("prediction_time") - pl.col("first")).dt.total_days() / YEAR_DAYS
    out = out.join(first, on="subject_id", how="left").with_columns(ehr_years=years).drop("first")
    return out.join(keys.select(*KEYS, "split"), on=KEYS)


def _flags(plan, fold, times):
    """`perturbations.failure_flags` of prediction times, some at a time in the worker pool."""
    folders = plan.records.folder, plan.fit(fold).folder
    order = plan.store(fold, cache_bytes=0).index.select("subject_id").with_row_index("position")
    found = times.select(KEYS).join(order, on="subject_id", how="left", maintain_order="left")
    places = found["position"].to_numpy(), found["prediction_time"].to_physical().to_numpy()
    begins = range(0, max(len(found), 1), _TIMES_AT_ONCE)
    parts = [tuple(x[begin : begin + _TIMES_AT_ONCE] for x in places) for begin in begins]
    with workers.open_pool(plan.config.prepare) as pool:
        flags_at = functools.partial(_flags_at, folders, plan.config.evaluate.encounter_prefixes)
        made = pool.map(flags_at, parts, "attributes", "part")
    _records.cache_clear()
    return pl.concat(made)


def _flags_at(folders, prefixes, part):
    store = _records(*folders)
    is_encounter = perturbations.code_matcher(store.codes, prefixes) if prefixes else None
    index_N, time_us_N = part
    return perturbations.failure_flags(store, index_N, time_us_N, is_encounter=is_encounter)


@functools.lru_cache(maxsize=1)
def _records(records_dir, fit_dir):
    """Once a process; each record is read once."""
    return RecordStore(records_dir, fit_dir, cache_bytes=0)


def _events(plan):
    """The events, shard by shard, so that no more than one lies in memory."""
    return [pl.scan_parquet(path) for path in sorted((plan.tables.folder / "events").glob("*.parquet"))]


def _sex(plan):
    """subject_id, sex; the first code of config.evaluate.sex_prefixes, in words where it is F or M."""
    prefix = "^(" + "|".join(re.escape(p) for p in plan.config.evaluate.sex_prefixes) + ")"
    sexes = pl.col("code").str.contains(prefix)
    found = pl.concat([e.filter(sexes).select("subject_id", "code").collect() for e in _events(plan)])
    code = pl.col("code").str.replace(prefix, "")
    level = code.str.to_uppercase().replace_strict(SEXES, default=code, return_dtype=pl.String)
    return found.unique("subject_id", keep="first", maintain_order=True).select("subject_id", level.alias("sex"))


def _with_device(plan, times):
    """`times` with `device`. Where ids were changed the recordings cannot be told apart: unknown."""
    folder = plan.wearable_dir
    nobody = times.with_columns(device=pl.lit(None, pl.String))
    if folder is None or plan.changes_people:
        return nobody
    parts = [
        pl.scan_parquet(p).select("subject_id", "start_time", "device")
        for p in wearable.list_shards(folder)
        if "device" in pl.read_parquet_schema(p)
    ]
    if not parts:
        return nobody
    first = pl.col("start_time").min()
    worn = pl.concat([p.drop_nulls().group_by("subject_id", "device").agg(first).collect() for p in parts])
    worn = worn.group_by("subject_id", "device").agg(first)
    seen = times.select(KEYS).join(worn, on="subject_id").filter(pl.col("start_time") <= pl.col("prediction_time"))
    one = pl.when(pl.len() > 1).then(pl.lit("several")).otherwise(pl.col("device").first())
    return times.join(seen.group_by(KEYS).agg(device=one), on=KEYS, how="left", maintain_order="left")


def levels(config: EvaluateConfig, times: pl.DataFrame) -> dict[str, np.ndarray]:
    """Attribute -> level [N] of rows of `attributes`, None where unknown; attributes that nobody has are left out."""
    age_N = times["age_years"].fill_null(float("nan")).to_numpy()
    out = {"age": subgroups.age_bands(age_N, config.age_edges)}
    out |= {name: np.array(times[name].to_list(), object) for name in ("sex", "device")}
    covered = subgroups.coverage_groups(times["encounters"].to_numpy(), times["wear_days"].to_numpy())
    return {k: v for k, v in (out | covered).items() if any(x is not None for x in v)}


# ------------------------------------------------------------------------------------------------- the cohort's tables


def demographics(times: pl.DataFrame, limit: int = 10) -> list[dict]:
    """[{split, measure, value}] from `attributes` with `split`; ages and histories at the first prediction time.

    Args:
      limit: fewer people are not counted, nor others from whom they would follow (`disclosure.hidden_parts`).
    """
    out = []
    for split in ("train", "tuning", "held_out"):
        mine = times.filter(pl.col("split") == split)
        people = mine.sort(KEYS).unique("subject_id", keep="first")
        if not people.height:
            continue
        if disclosure.is_small(people.height, limit):
            out.append({"split": split, "measure": "people", "value": f"< {limit}"})
            continue
        measures = {"people": f"{people.height:,}", "prediction times": f"{mine.height:,}"}
        for name, label in (("age_years", "age, years"), ("ehr_years", "EHR history, years"),
                            ("wear_days", "days of wear"), ("encounters", "encounters, prior year")):  # fmt: skip
            known = people[name].drop_nulls()
            if len(known) and not disclosure.is_small(len(known), limit):
                low, middle, high = (known.quantile(q, "linear") for q in (0.25, 0.5, 0.75))
                measures[f"{label}: median (IQR)"] = f"{middle:.1f} ({low:.1f} to {high:.1f})"
        for name in ("sex", "device"):
            counts = people[name].fill_null("unknown").value_counts(sort=True, name="n")
            if people[name].null_count() < people.height:
                hidden = disclosure.hidden_parts(counts["n"].to_list(), limit)
                for (level, n), is_hidden in zip(counts.rows(), hidden, strict=True):
                    measures |= {} if is_hidden else {f"{name}: {level}": f"{n:,} ({100 * n / people.height:.1f}%)"}
                if hidden.any():
                    measures[f"{name}: levels not shown, some of fewer than {limit} people"] = str(hidden.sum())
        out += [{"split": split, "measure": k, "value": v} for k, v in measures.items()]
    return out


def prevalence(task: str, times: pl.DataFrame, column: str, limit: int = 10) -> list[dict]:
    """Counts of a task's labelled prediction times by split (Table 5).

    Args:
      limit: fewer people are not counted: neither the positives nor their share where fewer have a positive (or a
        negative) prediction time, nor anything of a split of fewer.

    Returns:
      [{task, split, times, people, positives, people_positive, share, median_days, hidden}]: people_positive have a
      prediction time that is positive, hidden says that counts are None because of the limit.
    """
    out = []
    for split in ("train", "tuning", "held_out"):
        mine = times.filter(pl.col("split") == split)
        if mine.height:
            label = "event_observed" if column == "time_to_event_days" else column
            is_class = mine[label].dtype == pl.Boolean
            positives = int(mine[label].sum()) if is_class else None
            people_positive = mine.filter(label)["subject_id"].n_unique() if is_class else None
            days = mine[column].median() if column == "time_to_event_days" else None
            share, people = None if positives is None else positives / mine.height, mine["subject_id"].n_unique()
            entry = {"task": task, "split": split, "times": mine.height, "people": people, "positives": positives,
                     "people_positive": people_positive, "share": share, "median_days": days,
                     "hidden": False}  # fmt: skip
            whole = ("times", "people", "median_days") if disclosure.is_small(people, limit) else ()
            if whole or is_class and disclosure.tells_few(mine[label].to_numpy(), mine["subject_id"], limit):
                entry |= dict.fromkeys((*whole, "positives", "people_positive", "share")) | {"hidden": True}
            out.append(entry)
    return out
