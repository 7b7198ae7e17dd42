"""Who the evaluated people are: attributes of every read, the cohort's tables, and fewer labels to learn from."""

import re

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from ehrwear_jax import config as config_lib
from ehrwear_jax.data import perturbations
from ehrwear_jax.data.formats import wearable
from ehrwear_jax.data.prepare import deidentify
from ehrwear_jax.evals import bootstrap, classification, inference, protocol, subgroups
from ehrwear_jax.evals.weighting import evaluate
from ehrwear_jax.stages import prepare

SEXES = {"F": "female", "FEMALE": "female", "M": "male", "MALE": "male"}
YEAR_DAYS = 365.25
KEYS = ["subject_id", "prediction_time"]


def attributes(config, workdir, keys) -> pl.DataFrame:
    """`keys` (subject_id, prediction_time) with what is known of the person then; null where unknown.

    Columns: age_years f64, sex, device (the one worn until then, or "several"), encounters and wear_days
    (`data.perturbations.failure_flags`), ehr_years (record before the read).
    """
    fold = config_lib.folds(config)[0][0]
    subjects = pl.read_parquet(prepare.fit_dir(workdir, fold) / "subjects.parquet")
    out = keys.select(KEYS).join(subjects.select("subject_id", "birth_time"), on="subject_id", how="left")
    days = (pl.col("prediction_time") - pl.col("birth_time")).dt.total_days()
    out = out.with_columns(age_years=days / YEAR_DAYS).drop("birth_time")
    out = out.join(_sex(config, workdir), on="subject_id", how="left")
    out = _with_device(config, workdir, out)
    records = prepare.open_store(workdir, fold)
    place = dict(zip(records.index["subject_id"].to_list(), range(len(records)), strict=True))
    times = out["prediction_time"].to_physical().to_numpy()
    flags = perturbations.failure_flags(records, [place[s] for s in out["subject_id"].to_list()], times)
    events = _events(workdir).filter(pl.col("time").is_not_null() & ~pl.col("code").str.starts_with("MEDS_BIRTH"))
    first = events.group_by("subject_id").agg(pl.col("time").min().alias("first")).collect()
    out = pl.concat([out, flags.select("encounters", "wear_days")], how="horizontal")
    years = (pl.col("prediction_time") - pl.col("first")).dt.total_days() / YEAR_DAYS
    return out.join(first, on="subject_id", how="left").with_columns(ehr_years=years).drop("first")


def _events(workdir):
    return pl.scan_parquet(sorted((prepare.tables_dir(workdir) / "events").glob("*.parquet")))


def _sex(config, workdir):
    """subject_id, sex; the first code of config.evaluate.sex_prefixes, in words where it is F or M."""
    prefix = "^(" + "|".join(re.escape(p) for p in config.evaluate.sex_prefixes) + ")"
    found = _events(workdir).filter(pl.col("code").str.contains(prefix)).select("subject_id", "code").collect()
    code = pl.col("code").str.replace(prefix, "")
    level = code.str.to_uppercase().replace_strict(SEXES, default=code, return_dtype=pl.String)
    return found.unique("subject_id", keep="first", maintain_order=True).select("subject_id", level.alias("sex"))


def _with_device(config, workdir, reads):
    """`reads` with `device`. Where ids were changed the recordings cannot be told apart: unknown."""
    folder = prepare.wearable_dir(config, workdir)
    nobody = reads.with_columns(device=pl.lit(None, pl.String))
    if folder is None or deidentify.of(config_lib.prepare_config(config)).active:
        return nobody
    parts = [
        pl.scan_parquet(p).select("subject_id", "start_time", "device")
        for p in wearable.list_shards(folder)
        if "device" in pl.read_parquet_schema(p)
    ]
    if not parts:
        return nobody
    worn = pl.concat([p.collect() for p in parts]).drop_nulls()
    worn = worn.group_by("subject_id", "device").agg(pl.col("start_time").min())
    seen = reads.select(KEYS).join(worn, on="subject_id").filter(pl.col("start_time") <= pl.col("prediction_time"))
    one = pl.when(pl.len() > 1).then(pl.lit("several")).otherwise(pl.col("device").first())
    return reads.join(seen.group_by(KEYS).agg(device=one), on=KEYS, how="left", maintain_order="left")


def levels(config, reads) -> dict[str, np.ndarray]:
    """Attribute -> level [N] of rows of `attributes`, None where unknown; attributes that nobody has are left out."""
    age_N = reads["age_years"].fill_null(float("nan")).to_numpy()
    out = {"age": subgroups.age_bands(age_N, config.evaluate.age_edges)}
    out |= {name: np.array(reads[name].to_list(), object) for name in ("sex", "device")}
    covered = subgroups.coverage_groups(reads["encounters"].to_numpy(), reads["wear_days"].to_numpy())
    return {k: v for k, v in (out | covered).items() if any(x is not None for x in v)}


# ------------------------------------------------------------------------------------------------- the cohort's tables


def demographics(reads) -> list[dict]:
    """[{split, measure, value}] of rows of `attributes` with `split`; ages and histories at a person's first read."""
    out = []
    for split in ("train", "tuning", "held_out"):
        people = reads.filter(pl.col("split") == split).sort(KEYS).unique("subject_id", keep="first")
        if not people.height:
            continue
        measures = {"people": f"{people.height:,}", "reads": f"{reads.filter(pl.col('split') == split).height:,}"}
        for name, label in (("age_years", "age, years"), ("ehr_years", "EHR history, years"),
                            ("wear_days", "days of wear"), ("encounters", "days with events, prior year")):  # fmt: skip
            known = people[name].drop_nulls()
            if len(known):
                low, middle, high = (known.quantile(q, "linear") for q in (0.25, 0.5, 0.75))
                measures[f"{label}: median (IQR)"] = f"{middle:.1f} ({low:.1f} to {high:.1f})"
        for name in ("sex", "device"):
            counts = people[name].fill_null("unknown").value_counts(sort=True, name="n")
            if people[name].null_count() < people.height:
                shown = [(level, n) for level, n in counts.rows() if n >= 10]
                measures |= {f"{name}: {level}": f"{n:,} ({100 * n / people.height:.1f}%)" for level, n in shown}
                if len(shown) < counts.height:
                    measures[f"{name}: others, of fewer than 10 people each"] = str(counts.height - len(shown))
        out += [{"split": split, "measure": k, "value": v} for k, v in measures.items()]
    return out


def prevalence(task, rows, column) -> list[dict]:
    """[{task, split, reads, people, positives, share, median_days}] of a task's labelled reads, as in Table 5."""
    out = []
    for split in ("train", "tuning", "held_out"):
        mine = rows.filter(pl.col("split") == split)
        if mine.height:
            label = "event_observed" if column == "time_to_event_days" else column
            positives = int(mine[label].sum()) if mine[label].dtype == pl.Boolean else None
            days = mine[column].median() if column == "time_to_event_days" else None
            share = None if positives is None else positives / mine.height
            out.append({"task": task, "split": split, "reads": mine.height, "people": mine["subject_id"].n_unique(),
                        "positives": positives, "share": share, "median_days": days})  # fmt: skip
    return out


# ------------------------------------------------------------------------------------------------- label efficiency


def label_efficiency(config, options, task, x_by_row, y, train_group_N, group_N) -> list[dict]:
    """AUROC and AUPRC of exact probes on fractions of the training patients: mean over the draws, with its interval.

    The strength of the penalty is chosen on the whole tuning split, so small fractions are a little flattered. The
    interval is of the held-out patients, with the draws as they are; `spread` is the standard deviation over draws.

    Args:
      x_by_row: row -> {split: features}. y: {split: labels}. train_group_N, group_N: patients of the training and of
        the held-out reads.

    Returns:
      [{dataset, task, row, fraction, n_draws, n_patients, metric, value, lo, hi, spread}].
    """
    fractions = tuple(config.evaluate.label_fractions)
    if not fractions:
        return []
    chosen = subgroups.label_fractions(
        y["train"], train_group_N, fractions, n_draws=config.evaluate.label_draws, seed=config.seed
    )
    statistics, sizes = {}, {}
    for (fraction, draw), rows in chosen.items():
        if fraction == 1 and draw:
            continue  # all draws of everything are one
        sizes[fraction] = len(np.unique(np.asarray(train_group_N)[rows]))
        for row, x in x_by_row.items():
            given = {**x, "train": x["train"][rows]}, {**y, "train": y["train"][rows]}
            with threadpool_limits(1, user_api="blas"):  # many small problems: threads would wait for each other
                p_N = protocol.predict_binary(*given).probability["held_out"]
            statistics.setdefault((row, fraction), []).append(classification.BinaryRanking(y["held_out"], p_N))
    averaged = {key: _mean_of(parts) for key, parts in statistics.items()}
    samples = bootstrap.resample(averaged, group_N, options.n_resamples, options.seed, universe=options.universe)
    out = []
    for key, statistic in averaged.items():
        n = len(y["held_out"])
        draws = [evaluate(s, n) for s in statistics[key]]
        for metric, value in evaluate(statistic, n).items():
            bounds = inference.interval(samples[key][metric] if samples else ())
            spread = float(np.std([d[metric] for d in draws], ddof=1)) if len(draws) > 1 else None
            record = {"dataset": options.dataset, "task": task, "row": key[0], "fraction": key[1]}
            record |= {"n_draws": len(draws), "n_patients": sizes[key[1]], "metric": metric}
            numbers = {"value": value, "lo": bounds.lo, "hi": bounds.hi}
            numbers = {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()}
            out.append(record | numbers | {"spread": spread})
    return out


def _mean_of(parts):
    def statistic(weight_NxB):
        found = [part(weight_NxB) for part in parts]
        return {metric: np.mean([f[metric] for f in found], axis=0) for metric in found[0]}

    return statistic
